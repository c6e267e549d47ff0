"""Attention transfer: a model with Nyström attention is trained towards its own exact attention.

The teacher has the same weights and exact attention. Attention's outputs alone, layer by layer with frozen
projections, are what the convolution is fitted to in closed form already (`model.closed_form`): a
step of training has nothing left to gain there. What is trained here are the hidden states after every
layer, which drift further apart from layer to layer:

    loss = mean over layers of ‖h − h*‖² / ‖h*‖²  +  the same of the last layer
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from nystromformer.data.corpora import Corpus, read_documents
from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.model.encoder import NystromformerModel
from nystromformer.settings import TrainingSettings
from nystromformer.settings.convert import ConvertSettings
from nystromformer.training.display import ProgressDisplay
from nystromformer.training.optimizer import build_optimizer, set_learning_rate
from nystromformer.training.phases import plan_of

SHARES = (1, 1, 2, 4)
"""Lengths of the rows, one after the other, as divisors of the longest: what is fitted to text has to serve
shorter rows too, which get more of exact attention."""

SHORTEST = 8
"""Tokens, special ones included, below which a corpus holds no row."""

WARMUP = 20
"""Steps, also where there are fewer: Adam's first ones move every weight by the whole rate."""

FROZEN = {
    "mechanism": lambda name: not name.endswith("attention.self.conv.weight"),
    "small": lambda name: not (name.endswith((".conv.weight", ".bias")) or ".LayerNorm." in name),
    "layers": lambda name: any(f".self.{part}." in name for part in ("query", "key", "value")),
    "all": lambda name: False,
}
"""Of the layers' parameters, which stay as they are; the embeddings and the pooler always do."""


@dataclass(frozen=True)
class Transferred:
    """What a transfer came to."""

    steps: int
    seconds: float
    after: float
    """Error of the last hidden state on the held-out rows, see `error_of_states`."""
    kept: bool
    """Whether it was better than before; if not, the weights are as they were."""


def transfer_attention(
    encoder: NystromformerModel,
    exact: NystromformerModel,
    rows: Callable[[], Iterator[Batch]],
    held_out: Sequence[Batch],
    settings: ConvertSettings,
) -> Transferred:
    """Train the encoder's layers; no dropout, float32. What is no better on the held-out rows is undone.

    Args:
        encoder: is left in `eval`, with all parameters to be trained.
        exact: the teacher.
        rows: begins a pass over batches of one row; the passes follow each other.
        held_out: rows that are in none of the passes.
        settings: steps, minutes, batch_size, learning_rate and trained.

    Raises:
        UserError: the loss is no number, or `trained` names nothing that this model has.
    """
    frozen = FROZEN[settings.trained]
    trained = [p for name, p in encoder.encoder.named_parameters() if not frozen(name)]
    if not trained:
        raise UserError(
            f"trained={settings.trained}: this model has none: write conv_kernel_size=33, or trained=all"
        )
    encoder.eval().requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    recipe = TrainingSettings(
        steps=max(settings.steps, WARMUP),
        learning_rate=settings.learning_rate,
        warmup_steps=WARMUP,
        weight_decay=0.0,
        beta2=0.98,
    )
    optimizer, plan = build_optimizer(encoder, recipe), plan_of(recipe)
    weights = [p.detach().clone() for p in trained]
    before, begun, step = error_of_states(encoder, exact, held_out), time.perf_counter(), 0
    ahead, allowed = _endless(rows), 60 * settings.minutes if settings.minutes else math.inf
    with ProgressDisplay(settings.steps, 0, shown=True) as display:
        told, losses, tokens = begun, 0.0, 0
        while step < settings.steps and (spent := (time.perf_counter() - begun) / allowed) < 1:
            set_learning_rate(optimizer, rate := plan.rate(step, spent))
            batch = [next(ahead) for _ in range(settings.batch_size)]
            loss = sum(_backward(encoder, exact, row, len(batch)) for row in batch)
            step += 1
            if not loss < math.inf:
                raise UserError(
                    f"transfer: the loss of step {step} is no number: write a smaller learning_rate"
                )
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            display.advance(step)
            losses, tokens = losses + loss, tokens + sum(row["input_ids"].numel() for row in batch)
            if step % (every := max(settings.steps // 20, 1)) == 0:
                now = time.perf_counter()
                left = min((now - begun) / step * (settings.steps - step), allowed - (now - begun))
                display.train(step, losses / every, rate, tokens / (now - told), left)
                told, losses, tokens = now, 0.0, 0
    seconds = time.perf_counter() - begun
    encoder.requires_grad_(True)
    after = error_of_states(encoder, exact, held_out)
    if not (kept := after < before):
        with torch.no_grad():
            for parameter, weight in zip(trained, weights, strict=True):
                parameter.copy_(weight)
    return Transferred(step, seconds, after, kept)


@torch.no_grad()
def error_of_states(encoder: NystromformerModel, exact: NystromformerModel, rows: Sequence[Batch]) -> float:
    """‖h − h*‖ / ‖h*‖ of the last hidden state over all tokens of the rows, which have no padding."""
    squares = torch.zeros(2, dtype=torch.float64)
    for row in rows:
        wanted, found = (model(**_on(model, row)).last_hidden_state for model in (exact, encoder))
        squares += torch.stack([(found - wanted).square().sum(), wanted.square().sum()]).double().cpu()
    return float((squares[0] / squares[1].clamp(min=1e-30)).sqrt())


def _backward(encoder: NystromformerModel, exact: NystromformerModel, row: Batch, rows: int) -> float:
    """Add the gradient of a row's share of the loss; the share."""
    with torch.no_grad():
        wanted = exact(**_on(exact, row), output_hidden_states=True).hidden_states
    found = encoder(**_on(encoder, row), output_hidden_states=True).hidden_states
    pairs = zip(found[1:], wanted[1:], strict=True)
    errors = torch.stack([(h - w).square().sum() / w.square().sum() for h, w in pairs])
    loss = (errors.mean() + errors[-1]) / rows
    loss.backward()
    return float(loss.detach())


def _endless(rows: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
    while True:
        yield from rows()


def _on(model: NystromformerModel, row: Batch) -> Batch:
    return {name: tensor.to(model.device) for name, tensor in row.items()}


# --- text to be fitted and trained on -----------------------------------------------------------------


def text_rows(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[Batch]:
    """Batches of one row, without padding, of `length` tokens and of halves and quarters of it.

    A row begins with a document, or with what the row before left of one, and is filled up with the
    documents that follow; less than a row at a document's end is not used where a row came of it. Goes
    through the corpus once; a row that the corpus does not fill is given only where it is the first.

    Raises:
        UserError: there is no text.
    """
    filled = 0
    ids: list[int] = []
    for document in read_documents(corpus):
        ids += tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        before = filled
        while len(ids) >= (wanted := length_of_row(filled, length) - 2):
            yield _batch(tokenizer, ids[:wanted])
            ids, filled = ids[wanted:], filled + 1
        if filled > before:
            ids = []
    if not filled:
        if len(ids) < SHORTEST:
            raise UserError("data: the corpus holds less than a row of text: name another")
        yield _batch(tokenizer, ids)


def length_of_row(number: int, longest: int) -> int:
    """Tokens of the row of that number, special ones included."""
    return max(longest // SHARES[number % len(SHARES)], SHORTEST)


def _batch(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Batch:
    row = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
    return {"input_ids": torch.tensor([row])}
