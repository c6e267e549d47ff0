"""ONNX: a recorded program as a file, its int8 twin, and ONNX Runtime that runs either."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers import PretrainedConfig

from nystromformer.errors import UserError, check_installed

OPSET = 18
"""Version of ONNX's operators: the first with all that is used, and PyTorch's own choice."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LARGEST = 1.9e9
"""Bytes of weights beyond which they stand in a file of their own: protobuf holds 2 GiB."""
QUANTISED = ("MatMul", "Gemm", "Gather")
"""Operators whose weights become int8: linear layers and embeddings, not the convolution."""


def missing_packages() -> list[str]:
    """Those of PACKAGES that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def check_packages(setting: str) -> None:
    """Raise UserError where ONNX's packages are missing."""
    check_installed(missing_packages(), setting, "onnx")


def write(program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Write the program as ONNX, weights inside unless they are too large for one file."""
    size = sum(x.numel() * x.element_size() for x in program.state_dict.values())
    with _quiet():
        torch.onnx.export(
            program,
            (),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            external_data=size > LARGEST,
            verbose=False,
        )


def quantise(path: Path, target: Path) -> None:
    """Weights of the linear layers and embeddings in int8; activations are quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            path,
            target,
            op_types_to_quantize=list(QUANTISED),
            weight_type=QuantType.QInt8,
            per_channel=True,
            use_external_data_format=path.with_name(path.name + ".data").exists(),
        )


class Session:
    """ONNX Runtime on the CPU: a file as a function of its inputs' tensors, in their order."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._shrinking = onnxruntime.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.inputs = [one.name for one in self._session.get_inputs()]
        self.outputs = [one.name for one in self._session.get_outputs()]

    def __call__(self, *inputs: Tensor, shrink: bool = False) -> tuple[Tensor, ...]:
        """With `shrink` a call gives back the memory that it and earlier ones took."""
        given = {name: x.numpy() for name, x in zip(self.inputs, inputs, strict=True)}
        outputs = self._session.run(None, given, self._shrinking if shrink else None)
        return tuple(torch.from_numpy(x) for x in outputs)


class ModelOfFile(nn.Module):
    """A file that `export` wrote, called as the model it was made from, with its outputs by name."""

    device = torch.device("cpu")

    def __init__(self, path: Path, config: PretrainedConfig) -> None:
        """Raises UserError where ONNX Runtime is missing or cannot open the file."""
        super().__init__()
        check_packages(f"onnx={path}")
        try:
            self._session = Session(path)
        except Exception as error:  # its own kinds, one for each way to be no ONNX file
            told = str(error).splitlines()[0]
            raise UserError(
                f"onnx={path} cannot be opened ({told}): write a .onnx file of `export`"
            ) from None
        self.config = config

    def forward(self, **batch: Tensor) -> SimpleNamespace:
        ids = batch["input_ids"]
        every = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids), **batch}
        outputs = self._session(*(every[name] for name in self._session.inputs))
        return SimpleNamespace(**dict(zip(self._session.outputs, outputs, strict=True)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks: on torchvision's absence, and that shapes were not inferred."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
