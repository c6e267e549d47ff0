"""Whether a call is being recorded, to be run later on other batches."""

from __future__ import annotations

import torch

# Before torch 2.7 an export could not be told from a compilation.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def is_recorded() -> bool:
    """True in `torch.jit.trace`, `torch.export` and both exporters to ONNX.

    What is then decided from this batch's numbers (its length, that it has no padding) would silently hold
    for every batch that the record is run on.
    """
    return torch.jit.is_tracing() or _is_exporting()
