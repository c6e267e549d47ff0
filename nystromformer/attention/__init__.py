"""Attention mechanisms, one file each, over (batch, heads, tokens, width) tensors.

It imports nothing, so that settings can look into a mechanism's file without torch.
"""
