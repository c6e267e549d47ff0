"""Attention mechanisms, one file each, over (batch, heads, tokens, width) tensors."""

from nystromformer.attention.nystrom import nystrom_attention
from nystromformer.attention.softmax import softmax_attention

__all__ = ["nystrom_attention", "softmax_attention"]
