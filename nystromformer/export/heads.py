"""What is recorded: a model of any head as a function of three tensors, for every batch and length.

Shapes: B rows, N positions, K choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel

from nystromformer import model as models
from nystromformer.attention.mechanism import Mechanism, mechanism_of
from nystromformer.errors import UserError
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.embedding import NystromformerForEmbedding
from nystromformer.model.layouts import folder_layout, load_model
from nystromformer.settings.export import HEADS, ExportSettings

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
RECORDED_LENGTH = 61
"""Tokens of the batch that is recorded; the record is for all lengths."""

_MODELS: dict[str, tuple[type[PreTrainedModel], tuple[str, ...]]] = {
    "pretraining": (models.NystromformerForPreTraining, ("prediction_logits", "seq_relationship_logits")),
    "masked_lm": (models.NystromformerForMaskedLM, ("logits",)),
    "sequence": (models.NystromformerForSequenceClassification, ("logits",)),
    "tokens": (models.NystromformerForTokenClassification, ("logits",)),
    "question": (models.NystromformerForQuestionAnswering, ("start_logits", "end_logits")),
    "choice": (models.NystromformerForMultipleChoice, ("logits",)),
    "embedding": (NystromformerForEmbedding, ("embeddings",)),
    "encoder": (models.NystromformerModel, ("last_hidden_state", "pooler_output")),
}
assert tuple(_MODELS) == HEADS


@dataclass(frozen=True)
class Differences:
    """How far a file's outputs are from the model's, over all lengths looked at."""

    largest: float
    relative: float
    """Norm of the difference by that of the outputs."""
    scale: float
    """The largest of the model's outputs."""
    lengths: list[int]


class _Function(nn.Module):
    """The model as a function of INPUTS that gives a tuple, which every exporter takes."""

    def __init__(self, model: PreTrainedModel, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, ...]:
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            return_dict=True,
        )
        return tuple(found[name] for name in self.outputs)


@dataclass
class Recordable:
    """A model in float32 on the CPU, in evaluation mode."""

    head: str
    model: PreTrainedModel
    outputs: tuple[str, ...]
    inputs: tuple[str, ...] = INPUTS

    @property
    def config(self) -> NystromformerConfig:
        return self.model.config

    @property
    def choices(self) -> int | None:
        return 3 if self.head == "choice" else None

    def record(self, implementation: str) -> ExportedProgram:
        """The program of torch.export for any B, N and K.

        Args:
            implementation: what computes Nyström attention, see `nystrom_attention`.
        """
        layers = [layer for layer in self.model.modules() if isinstance(layer, Mechanism)]
        for layer in layers:
            layer.implementation = implementation
        try:
            batch = self.batch(min(RECORDED_LENGTH, self.config.max_position_embeddings))
            free: dict[int, Any] = dict.fromkeys(range(batch[0].dim()), Dim.DYNAMIC)
            function = _Function(self.model, self.outputs).eval()
            with torch.no_grad():
                return torch.export.export(function, batch, dynamic_shapes=(free,) * len(batch))
        finally:
            for layer in layers:
                layer.implementation = None

    def batch(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random tokens: (2, N), or (2, K, N), the first row and choice without padding."""
        generator = torch.Generator().manual_seed(length)
        shape = (2, length) if self.choices is None else (2, self.choices, length)
        ids = torch.randint(0, self.config.vocab_size, shape, generator=generator)
        rows = ids.view(-1, length)
        real = length - torch.arange(len(rows)) * (length // 3)
        mask = torch.arange(length) < real.clamp(min=1)[:, None]
        types = torch.randint(0, self.config.type_vocab_size, shape, generator=generator)
        return ids, mask.long().view(shape), types

    def lengths(self) -> list[int]:
        """Where a record could go wrong: about the landmarks and neighbours, and where nothing divides."""
        config = self.config
        m, w, most = config.num_landmarks, config.neighbours or 32, config.max_position_embeddings
        wanted = {2, m // 2 + 1, m, m + 1, 2 * w + 1, 3 * m + 5, min(most, 1024)}
        return sorted({min(max(length, 1), most) for length in wanted})

    @torch.no_grad()
    def differences(self, run: Callable[..., tuple[Tensor, ...]]) -> Differences:
        """Of what `run` gives for INPUTS, at real tokens, from what the model gives."""
        function = _Function(self.model, self.outputs)
        largest = squares = expected_squares = scale = 0.0
        for length in self.lengths():
            batch = self.batch(length)
            real = batch[1].bool()
            for found, expected in zip(run(*batch), function(*batch), strict=True):
                if expected.shape[: real.dim()] == real.shape:
                    found, expected = found[real], expected[real]
                off = (found - expected).double()
                worst = off.abs().max().item()
                largest = worst if not worst <= largest else largest  # NaN is the largest
                squares += off.square().sum().item()
                expected_squares += expected.double().square().sum().item()
                scale = max(scale, expected.abs().max().item())
        return Differences(largest, (squares / max(expected_squares, 1e-30)) ** 0.5, scale, self.lengths())


def open_recordable(settings: ExportSettings) -> Recordable:
    """The checkpoint with the head that was asked for.

    Raises:
        UserError: no such checkpoint, or not one of this project, weights that the head lacks, or a mechanism
            that no record can hold.
    """
    name = str(settings.checkpoint)
    kind, config, _ = folder_layout(name, "checkpoint")
    if kind != "Nyströmformer":
        raise UserError(
            f"checkpoint={name} holds a {kind}: make it a Nyströmformer first, by nystromformer convert "
            f"source={name} target=FOLDER"
        )
    if obstacle := why_not_recorded(config, settings.format):
        raise UserError(f"checkpoint={name}: {obstacle}")
    head = settings.head or _head_of(config, name)
    model_class, outputs = _MODELS[head]
    model, report = load_model(
        model_class, name, wrong=f"checkpoint={name}", fix=": write another", dtype=torch.float32
    )
    missing = sorted(report["missing_keys"])
    if head == "encoder" and missing and all(key.startswith("pooler.") for key in missing):
        model.pooler, outputs, missing = None, outputs[:1], []
    if missing:
        raise UserError(
            f"checkpoint={name} has no weights for head={head} ({missing[0]}): write head="
            f"{_head_of(config, name)} or encoder, or train it first"
        )
    model.config.architectures = [model_class.__name__]
    return Recordable(head, model.eval(), outputs)


def why_not_recorded(config: NystromformerConfig, format: str) -> str | None:
    """What keeps the model from being recorded, with what to do instead; None where nothing does."""
    if mechanism_of(config.attention).fixed_length:
        return (
            f"attention={config.attention} is computed in blocks that follow each batch's length, which no "
            "export can: export a model of another attention"
        )
    if config.attention == "nystrom" and config.pinv_iterations is None and format == "onnx":
        return (
            "pinv_iterations=null inverts by singular values, which ONNX has not: set 6 in its config.json, "
            "or write format=torch"
        )
    return None


def _head_of(config: NystromformerConfig, name: str) -> str:
    """The head that the configuration names."""
    named = [str(one) for one in config.architectures or ()]
    for head, (model_class, _) in _MODELS.items():
        if model_class.__name__ in named:
            return head
    raise UserError(
        f"checkpoint={name}: its config.json names no head of this project: write head=, one of "
        f"{', '.join(HEADS)}"
    )
