"""Model FLOPs of a batch, and the share of the device's peak that they use (MFU).

MFU = model FLOPs per second / (devices × peak FLOPs per second), as in the PaLM paper (Chowdhery et
al. 2022, appendix B): what the mathematics of the model needs, not what a kernel happens to do.
Padding, recomputation under gradient checkpointing, norms and activations count as nothing, so the
figure is a lower bound of what the device does, and cannot be raised by doing useless work.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from numpy.typing import NDArray

from nystromformer.attention.mechanism import mechanism_of
from nystromformer.attention.precision import tf32_allowed
from nystromformer.model import NystromformerConfig

TRAINING_FACTOR = 3
"""A backward pass costs two products, by the inputs and by the weights, for each of the forward's."""

# Dense peak of one device, TFLOP/s, from the makers' data sheets: bf16, TF32, float32. The first entry
# whose words the device's name holds decides, so "H100 PCIe" stands before "H100".
_PEAK_TFLOPS = {
    "GB300": (2500.0, 1250.0, 80.0),
    "B300": (2250.0, 1125.0, 75.0),
    "GB200": (2500.0, 1250.0, 80.0),
    "B200": (2250.0, 1125.0, 75.0),
    "H200": (989.5, 494.7, 66.9),
    "H100 PCIe": (756.0, 378.0, 51.0),
    "H100 NVL": (835.0, 417.5, 60.0),
    "H100": (989.5, 494.7, 66.9),
    "A100": (312.0, 156.0, 19.5),
    "L40S": (362.05, 183.0, 91.6),
    "L4": (121.0, 60.0, 30.3),
    "A10": (125.0, 62.5, 31.2),
    "RTX 5090": (209.5, 104.8, 104.8),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71.0, 35.6, 35.6),
}


def forward_flops(config: NystromformerConfig, lengths: NDArray[np.int64], predicted: int) -> float:
    """Floating-point operations of one forward pass; a multiplication with its addition counts as 2.

    With n real tokens of a row, L layers, hidden d, feed-forward f, kernel k, T predicted tokens and
    vocabulary V:

        a row   L · (8 n d² + 4 n d f + attention + 2 n d k) + 2 d² + 4 d
        attention of each mechanism  see its `flops`, e.g. exact attention 4 n² d: Q Kᵀ and A V
        MLM head                     T · (2 d² + 2 d V)

    The convolution's term falls away without one.

    Args:
        lengths: real tokens of each row, (B,).
    """
    n = lengths.astype(np.float64)
    d, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    attention = mechanism_of(config.attention).flops(config, n)
    layer = 8 * n * d**2 + 4 * n * d * f + attention + 2 * n * d * (config.conv_kernel_size or 0)
    rows = layers * layer.sum() + len(n) * (2 * d**2 + 4 * d)
    return float(rows + predicted * (2 * d**2 + 2 * d * config.vocab_size))


def training_flops(config: NystromformerConfig, lengths: NDArray[np.int64], predicted: int) -> float:
    """Operations of a forward and a backward pass; see `forward_flops`."""
    return TRAINING_FACTOR * forward_flops(config, lengths, predicted)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Dense peak of the device in operations a second for products in `dtype`; None where unknown."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), dtype, tf32=tf32_allowed())


def peak_of(name: str, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """The table's entry for a device's name, operations a second."""
    for known, (bf16, tensor_float, single) in _PEAK_TFLOPS.items():
        if re.search(rf"\b{known}\b", name):
            tera = bf16 if dtype == torch.bfloat16 else tensor_float if tf32 else single
            return tera * 1e12
    return None
