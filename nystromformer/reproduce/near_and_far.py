"""The part of `table=starts` with exact neighbours: either part alone, both, fitted and transferred."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nystromformer.data.documents import in_validation, text_hash
from nystromformer.data.imdb import Imdb
from nystromformer.data.layout import Batch
from nystromformer.markdown import table
from nystromformer.model import NystromformerModel
from nystromformer.model.attention import NystromformerSelfAttention
from nystromformer.model.closed_form import fit_in_closed_form
from nystromformer.model.source import NEW_CONVOLUTION, Source, open_source, open_tokenizer
from nystromformer.settings.convert import ConvertSettings
from nystromformer.settings.scale import StartsScale
from nystromformer.training.attention_transfer import error_of_states, length_of_row, transfer_attention

_HELD_OUT = 0.02  # the share of the documents that the pretraining on reviews holds out


@dataclass(frozen=True)
class NearAndFar:
    """What goes into the result."""

    measured: dict[str, Any]
    lines: list[str]
    headline: str


def near_and_far(bert: str, scale: StartsScale) -> NearAndFar:
    """Measure every row of the table."""
    source = open_source(bert, "bert")
    exact = encoder_of(source, attention="softmax", conv_kernel_size=None)
    lengths = (scale.length // 2, scale.length)
    held_out = {n: list(_batches(islice(reviews_of(bert, n, held_out=True), scale.rows))) for n in lengths}
    found: dict[str, dict[str, float]] = {}

    def note(name: str, encoder: NystromformerModel) -> None:
        errors = {str(n): error_of_states(encoder, exact, rows) for n, rows in held_out.items()}
        found[name] = errors
        print(f"  {name}: " + ", ".join(f"{error:.3f}" for error in errors.values()), flush=True)

    for m in scale.landmarks:
        note(f"landmarks alone, m = {m}", _nystrom(source, m, None))
    for w in scale.neighbours:
        note(f"neighbours alone, w = {w}", near_alone(_nystrom(source, 1, w), w))
    for m in scale.landmarks:
        for w in scale.neighbours:
            note(f"both, m = {m}, w = {w}", _nystrom(source, m, w))
    m, w = (values[len(values) // 2] for values in (scale.landmarks, scale.neighbours))
    counts = {"fitted": scale.rows, "scaled": scale.rows, "reconstructed": scale.reconstructed_rows}
    for how, count in counts.items():
        encoder = _nystrom(source, m, w, conv_kernel_size=NEW_CONVOLUTION)
        fit_in_closed_form(encoder, list(islice(mixed_rows(bert, scale.length), count)), how)
        note(f"both, m = {m}, w = {w}, {how}", encoder)
    # The last one goes on.
    settings = ConvertSettings(steps=scale.transfer_steps, minutes=scale.transfer_minutes)
    done = transfer_attention(
        encoder, exact, lambda: mixed_rows(bert, scale.length), held_out[scale.length], settings
    )
    note(f"both, m = {m}, w = {w}, reconstructed and transferred", encoder)
    told = f"{done.steps} steps of {settings.batch_size} rows, {done.seconds / 60:.1f} minutes"
    told += "" if done.kept else ", no better and undone"
    lines = [
        f"With exact neighbours in blocks of w, on {scale.rows} held-out reviews of each length. Without "
        "a word there is no convolution; `neighbours alone` leaves the far part out. Fitted on "
        f"{scale.rows} reviews, projections on {scale.reconstructed_rows}, of {scale.length} tokens, of "
        f"half and a quarter of it; transferred: {told}.",
        "",
        *table(
            ("attention", *(f"{n} tokens" for n in lengths)),
            [(name, *(f"{error:.3f}" for error in errors.values())) for name, errors in found.items()],
        ),
    ]
    at_length = {name: errors[str(scale.length)] for name, errors in found.items()}
    last = f"both, m = {m}, w = {w}"
    return NearAndFar(
        {
            "near_and_far": found,
            "transfer": {"steps": done.steps, "seconds": done.seconds, "kept": done.kept},
        },
        lines,
        f"with neighbours {at_length[last]:.3f}, {at_length[f'{last}, fitted']:.3f} fitted, "
        f"{at_length[f'{last}, reconstructed']:.3f} reconstructed, "
        f"{at_length[f'{last}, reconstructed and transferred']:.3f} transferred",
    )


class NearAlone(nn.Module):
    """Exact attention of one row to its near tokens, nothing beyond: with n × n matrices, to measure only."""

    def __init__(self, attention: NystromformerSelfAttention, neighbours: int) -> None:
        super().__init__()
        self.attention, self.neighbours = attention, neighbours

    def forward(self, hidden_1NE: Tensor, padding_mask: Tensor | None, segments: object) -> Tensor:
        assert padding_mask is None
        inner = self.attention
        query, key, value = (
            projection(hidden_1NE).unflatten(-1, (inner.num_heads, -1)).transpose(1, 2)
            for projection in (inner.query, inner.key, inner.value)
        )
        block_N = torch.arange(hidden_1NE.shape[1], device=hidden_1NE.device) // self.neighbours
        near_NN = (block_N[:, None] - block_N).abs() <= 1
        near_NN[:, 0] = True
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=near_NN)
        return out.transpose(1, 2).flatten(2)

    def segments(self, padding_mask: Tensor | None) -> None:
        return None


def near_alone(encoder: NystromformerModel, neighbours: int) -> NystromformerModel:
    """The encoder with the far part left out, for rows without padding."""
    for layer in encoder.encoder.layer:
        attention = layer.get_submodule("attention")
        attention.self = NearAlone(attention.self, neighbours)  # type: ignore[arg-type]
    return encoder


def mixed_rows(tokenizer: str, longest: int) -> Iterator[Batch]:
    """Reviews that nothing is measured on, of the lengths that `text_rows` has, one a row."""
    for number, ids in enumerate(reviews_of(tokenizer, longest)):
        length = length_of_row(number, longest)
        yield {"input_ids": torch.tensor([[*ids[: length - 1], ids[-1]]])}


def reviews_of(tokenizer: str, length: int, *, held_out: bool = False) -> Iterator[list[int]]:
    """Token ids of the reviews that fill `length`, cut to it, special tokens included."""
    tokenize = open_tokenizer(None, tokenizer)
    for document in Imdb().documents():
        if in_validation(text_hash(document.text), _HELD_OUT) != held_out or len(document.text) < 3 * length:
            continue
        ids = tokenize(document.text, truncation=True, max_length=length)["input_ids"]
        if len(ids) == length:
            yield ids


def encoder_of(source: Source, **changes: object) -> NystromformerModel:
    """The source's encoder with another configuration."""
    return source.model(source.configuration(changes))[0].nystromformer.eval()


def _nystrom(source: Source, landmarks: int, neighbours: int | None, **changes: object) -> NystromformerModel:
    changes = {"conv_kernel_size": None, **changes}
    return encoder_of(source, attention="nystrom", num_landmarks=landmarks, neighbours=neighbours, **changes)


def _batches(rows: Iterator[list[int]] | Sequence[list[int]]) -> Iterator[Batch]:
    return ({"input_ids": torch.tensor([ids])} for ids in rows)
