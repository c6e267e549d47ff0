"""Copying a checkpoint's tensors into a model, and saying what came of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

from nystromformer.errors import UserError
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.conversion.positions import grow_positions
from nystromformer.model.conversion.source import OUTPUT_BIAS, POSITIONS, WORDS, Source
from nystromformer.model.heads import NystromformerForPreTraining

CONVOLUTION = "attention.self.conv.weight"
_LARGEST_PADDING = 64


@dataclass
class Transfer:
    """Names of the parameters that were taken, are new, or were left out."""

    taken: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def new_convolution(self) -> bool:
        return any(name.endswith(CONVOLUTION) for name in self.new)

    def __str__(self) -> str:
        """A short table: what became of the tensors, and which parts of a model they are."""
        rows = (("taken", self.taken), ("new", self.new), ("left out", self.left_out))
        return "\n".join(f"  {title:<9}{len(names):>4}  {_parts(names)}" for title, names in rows if names)


def transfer(model: NystromformerForPreTraining, source: Source, *, positions: str = "tile") -> Transfer:
    """Copy what has a place of the same shape; vocabularies may differ by padding rows only.

    A convolution that the source has not is set to zero: what attention computes without it is what
    the other weights were trained for.

    Args:
        positions: how a position table of another length is made, see `grow_positions`.
    """
    done = Transfer(left_out=list(source.left_out))
    weights = dict(source.weights)
    weights[POSITIONS] = grow_positions(weights[POSITIONS], model.config.max_position_embeddings, positions)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = weights.pop(name, None)
            if tensor is not None and name in (WORDS, OUTPUT_BIAS):  # padded to a round size in the model
                parameter[: tensor.shape[0]].copy_(tensor[: parameter.shape[0]])
            elif tensor is not None and tensor.shape == parameter.shape:
                parameter.copy_(tensor)
            else:
                if name.endswith(CONVOLUTION):
                    parameter.zero_()
                done.new.append(name)
                continue
            done.taken.append(name)
    done.left_out.extend(sorted(weights))
    return done


def check_shape(ours: NystromformerConfig, source: Source, setting: str = "init.path") -> None:
    """Raise UserError where the source's tensors would not fit, with the override that makes them fit."""
    theirs = source.config
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if getattr(ours, key) != getattr(theirs, key):
            raise UserError(
                f"{setting}={source.path} has {key}={getattr(theirs, key)}, and model.{key}="
                f"{getattr(ours, key)}: write model.{key}={getattr(theirs, key)}"
            )
    if not 0 <= ours.vocab_size - theirs.vocab_size < _LARGEST_PADDING:
        raise UserError(
            f"{setting}={source.path} has a vocabulary of {theirs.vocab_size}, the tokenizer one of about "
            f"{ours.vocab_size}: write tokenizer.path={source.path}"
        )


def _parts(names: list[str]) -> str:
    """The parts of a model that names belong to, each with how many: layers and kinds are put together."""
    counts: Counter[str] = Counter(_part(name) for name in names)
    return ", ".join(part if count == 1 else f"{part} × {count}" for part, count in counts.items())


def _part(name: str) -> str:
    words = [word for word in name.split(".") if not word.isdigit()]
    if words[0] == "nystromformer":
        words = words[1:]
    if ".".join(words).endswith(CONVOLUTION):
        return "convolutions"
    if words[:2] == ["cls", "predictions"]:
        return "MLM head"
    if words[:2] == ["cls", "seq_relationship"]:
        return "sentence-order head"
    return words[0]
