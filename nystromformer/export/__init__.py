"""`nystromformer export`: a model as a file that runs without this project, checked before it is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from nystromformer.errors import UserError
from nystromformer.export import onnx_file
from nystromformer.export.heads import Recordable, open_recordable
from nystromformer.files import check_new_folder, new_folder
from nystromformer.hub import opened_tokenizer
from nystromformer.settings.export import ExportSettings

__all__ = ["export"]

Run: TypeAlias = Callable[..., tuple[Tensor, ...]]


def export(settings: ExportSettings) -> None:
    """Record the model, write it with its configuration and tokenizer, and print how near it is.

    Raises:
        UserError: a setting is impossible, a package is missing, the model cannot be read or recorded, the
            file computes something else than the model, or the target cannot be written.
    """
    settings.check()
    if settings.format == "onnx":
        onnx_file.check_packages("format=onnx")
    target = Path(str(settings.target)).expanduser()
    check_new_folder(target)
    model = open_recordable(settings)
    lines = []
    with new_folder(target) as beside:
        program = model.record("auto" if settings.operator else "composed")
        if settings.format == "onnx":
            path = beside / "model.onnx"
            onnx_file.write(program, path, model.inputs, model.outputs)
            run: Run = onnx_file.Session(path)
            lines.append(f"{path.name}: ONNX, opset {onnx_file.OPSET}, {_megabytes(path)}")
        else:
            path = beside / "model.pt2"
            torch.export.save(program, path)
            run = torch.export.load(path).module()
            needs = "with nystromformer imported" if settings.operator else "alone"
            lines.append(f"{path.name}: torch.export, runs with torch {needs}, {_megabytes(path)}")
        lines.append(f"  {_as_near(model, run, settings)}")
        if settings.int8:
            small = beside / "model.int8.onnx"
            onnx_file.quantise(path, small)
            off = model.differences(onnx_file.Session(small))
            lines.append(f"{small.name}: dynamic int8, {_megabytes(small)}")
            lines.append(f"  off by {off.relative:.1%} of the outputs, at most {off.largest:.3g}")
        model.config.save_pretrained(beside)
        lines.append(f"tokenizer: {_write_tokenizer(settings, model, beside)}")
    print(f"{settings.checkpoint} → {target}: {model.head} head")
    print(f"  takes {', '.join(model.inputs)}; gives {', '.join(model.outputs)}")
    print("\n".join(f"  {line}" for line in lines))


def _as_near(model: Recordable, run: Run, settings: ExportSettings) -> str:
    """How near the file is to the model, in words; raises UserError where that is not near enough."""
    off = model.differences(run)
    told = (
        f"differs from PyTorch by at most {off.largest:.2g}, outputs up to {off.scale:.3g}; "
        f"rows of {', '.join(map(str, off.lengths))} tokens, with padding"
    )
    if not off.largest <= settings.tolerance:  # NaN is not either
        raise UserError(
            f"checkpoint={settings.checkpoint}: the file {told}: nothing is written; tolerance="
            f"{2 * off.largest:.1g} takes it as it is"
        )
    return told


def _megabytes(path: Path) -> str:
    parts = [path, path.with_name(path.name + ".data")]
    return f"{sum(part.stat().st_size for part in parts if part.exists()) / 1e6:,.1f} MB"


def _write_tokenizer(settings: ExportSettings, model: Recordable, folder: Path) -> str:
    try:
        tokenizer = opened_tokenizer(str(settings.checkpoint), "", "")
    except UserError:
        return f"none, as {settings.checkpoint} has none that can be opened"
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    return "tokenizer.json" if (folder / "tokenizer.json").is_file() else "in transformers' layout"
