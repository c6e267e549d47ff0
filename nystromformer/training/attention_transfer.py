"""Attention transfer: a model with Nyström attention is trained towards its own exact attention.

The teacher has the same weights and exact attention. Attention's outputs alone, layer by layer with frozen
projections, are what the convolution is fitted to in closed form already (`model.closed_form`): a
step of training has nothing left to gain there. What is trained here are the hidden states after every
layer, which drift further apart from layer to layer:

    loss = mean over layers of ‖h − h*‖² / ‖h*‖²  +  the same of the last layer
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nystromformer.data.corpora import Corpus, read_documents
from nystromformer.data.examples import Key
from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.model.encoder import NystromformerModel
from nystromformer.settings import TrainingSettings
from nystromformer.settings.convert import ConvertSettings
from nystromformer.training.checkpoint import whole_checkpoint
from nystromformer.training.devices import accelerator_of, on_device
from nystromformer.training.flops import forward_flops, training_flops
from nystromformer.training.loop import Run, train
from nystromformer.training.objective import every
from nystromformer.training.signals import StopRequest
from nystromformer.training.together import Together

SHARES = (1, 1, 2, 4)
"""Lengths of the rows, one after the other, as divisors of the longest: what is fitted to text has to serve
shorter rows too, which get more of exact attention."""

SHORTEST = 8
"""Tokens, special ones included, below which a corpus holds no row."""

WARMUP = 20
"""Steps, or all where there are fewer: Adam's first ones move every weight by the whole rate."""

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
    rows: Iterator[Batch],
    held_out: Sequence[Batch],
    settings: ConvertSettings,
    folder: Path,
) -> Transferred:
    """Train the encoder's layers; no dropout, float32. What is no better on the held-out rows is undone.

    Args:
        encoder: is left in `eval`, with all parameters to be trained, on the device it was on.
        exact: the teacher.
        rows: batches of one row each, none of them held out; they are gone through again and again.
        settings: steps, minutes, batch_size, learning_rate and trained.
        folder: where a signal leaves a checkpoint, from which the next call with this folder goes on; gone
            after the last step, and after a fault.

    Raises:
        UserError: a loss or gradient is no number, or `trained` names nothing that this model has.
        SystemExit: a signal came.
    """
    frozen = FROZEN[settings.trained]
    trained = {name for name, _ in encoder.encoder.named_parameters(prefix="encoder") if not frozen(name)}
    if not trained:
        raise UserError(
            f"trained={settings.trained}: this model has none: write conv_kernel_size=33, or trained=all"
        )
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name in trained)
    place, accelerator = encoder.device, accelerator_of()
    for model in (encoder, exact):
        model.eval().to(accelerator.device)
    fitted, before = copy.deepcopy(encoder.state_dict()), error_of_states(encoder, exact, held_out)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = TrainingSettings(
        steps=settings.steps,
        max_minutes=settings.minutes,
        learning_rate=settings.learning_rate,
        warmup_steps=min(WARMUP, settings.steps),
        weight_decay=0.0,
        beta2=0.98,
        precision="float32",
        keep_checkpoints=1,
        on_full_disk="continue",
        max_skipped_steps=0,
    )
    try:
        run = Run(
            recipe,
            folder,
            encoder,
            encoder.config,
            HiddenStates(exact),
            RowsInTurn(rows, settings.batch_size, settings.steps),
            accelerator,
            Together(accelerator),
            saved=whole_checkpoint(folder / "checkpoints"),
            logs_after=every(max(settings.steps // 20, 1)),
            saves_after=every(0),
            remedy="write a smaller learning_rate",
        )
        with StopRequest() as stop:
            train(run, stop)
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    after = error_of_states(encoder.eval(), exact, held_out)
    if not (kept := after < before):
        encoder.load_state_dict(fitted)
    for model in (encoder, exact):
        model.to(place)
    encoder.requires_grad_(True)
    shutil.rmtree(folder)
    return Transferred(run.progress.step, run.progress.seconds, after, kept)


class HiddenStates:
    """The objective: the module's loss, the mean over a batch's rows, which have no padding."""

    losses = ("hidden_states",)

    def __init__(self, exact: NystromformerModel) -> None:
        self._exact = exact

    def counts(self, batch: Batch) -> tuple[int]:
        return (len(batch["input_ids"]),)

    def means(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor]:
        ids = batch["input_ids"]
        with torch.no_grad():
            wanted = self._exact(ids, output_hidden_states=True).hidden_states
        # The teacher has no dropout, and what is to come near to it has none either.
        found = model.eval()(ids, output_hidden_states=True).hidden_states
        pairs = zip(found[1:], wanted[1:], strict=True)
        errors = torch.stack([(h - w).square().sum() / w.square().sum() for h, w in pairs])
        return (errors.mean() + errors[-1],)

    def flops(self, lengths: NDArray[np.int64], counts: list[int]) -> float:
        config = self._exact.config
        return training_flops(config, lengths, 0) + forward_flops(config, lengths, 0)


class RowsInTurn:
    """Batches of rows one after the other, each row a micro-batch; behind the last one from the first again.

    Rows are read when a step first asks for them and kept.
    """

    def __init__(self, rows: Iterator[Batch], batch_size: int, steps: int) -> None:
        self._unread, self._size, self._steps = rows, batch_size, steps
        self._read: list[Batch] = []

    def training(self, start_step: int, *, pin_memory: bool) -> Iterator[list[Batch]]:
        """The rows of each step that is still to do."""
        return map(self.of_step, range(start_step, self._steps))

    def of_step(self, step: int) -> list[Batch]:
        """The rows of a step, counted from 0."""
        return [self._row(number) for number in range(step * self._size, (step + 1) * self._size)]

    def keys_of_step(self, step: int) -> list[Key]:
        """(epoch, index) of each of them."""
        rows = len(self._read)
        return [divmod(number, rows) for number in range(step * self._size, (step + 1) * self._size)]

    def _row(self, number: int) -> Batch:
        while len(self._read) <= number and (row := next(self._unread, None)):
            self._read.append({**row, "attention_mask": torch.ones_like(row["input_ids"])})
        return self._read[number % len(self._read)]


@torch.no_grad()
def error_of_states(encoder: NystromformerModel, exact: NystromformerModel, rows: Sequence[Batch]) -> float:
    """‖h − h*‖ / ‖h*‖ of the last hidden state over all tokens of the rows, which have no padding."""
    squares = torch.zeros(2, dtype=torch.float64)
    for row in rows:
        wanted, found = (
            model(**on_device(row, encoder.device)).last_hidden_state for model in (exact, encoder)
        )
        squares += torch.stack([(found - wanted).square().sum(), wanted.square().sum()]).double().cpu()
    return float((squares[0] / squares[1].clamp(min=1e-30)).sqrt())


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
