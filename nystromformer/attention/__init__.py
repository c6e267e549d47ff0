"""Attention mechanisms, one file each, over (batch, heads, tokens, width) tensors.

Its names load on first use, so that settings can look into a mechanism's file without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nystromformer.attention.nystrom import nystrom_attention
    from nystromformer.attention.softmax import softmax_attention

__all__ = ["nystrom_attention", "softmax_attention"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.{name.removesuffix('_attention')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
