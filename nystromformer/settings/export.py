"""Settings of `nystromformer export`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nystromformer.settings.schema import Section, path, place, result

HEADS = ("pretraining", "masked_lm", "sequence", "tokens", "question", "choice", "embedding", "encoder")


@dataclass
class ExportSettings(Section):
    """One model as a file that runs without this project, for every batch, length and padding."""

    checkpoint: str | None = path(None)
    """A model of this project: a folder or hub name."""
    target: str | None = place(None)
    """The folder to write, with model, configuration and tokenizer; it must not hold anything yet."""
    format: str = result("onnx", choices=("onnx", "torch"))
    """`onnx`, for ONNX Runtime and others (needs nystromformer[onnx]); `torch`, a program of torch.export."""
    head: str | None = result(None, choices=HEADS)
    """`pretraining`, `masked_lm`, `sequence`, `tokens`, `question`, `choice`, `embedding` for a
    text's vector, or `encoder` for the hidden states; empty takes what the checkpoint was trained for."""
    int8: bool = result(False)
    """onnx: also write model.int8.onnx, by ONNX Runtime's dynamic quantisation, and say how far it is off."""
    operator: bool = result(False)
    """torch: keep this project's compiled attention, which is faster; the program that loads the file has to
    import nystromformer then."""
    tolerance: float = result(1e-4, above=0)
    """Largest difference from PyTorch's outputs, on any number, with which the file is written."""

    def complaints_together(self) -> Iterator[str]:
        for name, what in (("checkpoint", "FOLDER, or a hub name"), ("target", "FOLDER")):
            if not getattr(self, name):
                yield f"{name} is empty: write {name}={what}"
        if self.int8 and self.format == "torch":
            yield "int8=true is for format=onnx: write that, or int8=false"
        if self.operator and self.format == "onnx":
            yield "operator=true is for format=torch, as ONNX has no such operator: write operator=false"
