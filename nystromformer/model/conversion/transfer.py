"""Copying a checkpoint's tensors into a model, and saying what came of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

from nystromformer.model.conversion.positions import grow_positions
from nystromformer.model.conversion.source import POSITIONS, VOCABULARY, Source
from nystromformer.model.heads import NystromformerForPreTraining

CONVOLUTION = "attention.self.conv.weight"


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
        # Performer's random features are no parameters, and its weights were trained with them.
        saved = model.state_dict().keys()
        buffers = (item for item in model.named_buffers() if item[0] in saved)
        for name, parameter in (*model.named_parameters(), *buffers):
            tensor = weights.pop(name, None)
            if tensor is not None and name in VOCABULARY:  # padded to a round size in the model
                parameter[: tensor.shape[0]].copy_(tensor[: parameter.shape[0]])
            elif tensor is not None and tensor.shape == parameter.shape:
                parameter.copy_(tensor)
            else:
                if name.endswith(CONVOLUTION):
                    parameter.zero_()
                if tensor is not None:  # of another shape, e.g. Linformer's mixtures of another length
                    done.left_out.append(name)
                done.new.append(name)
                continue
            done.taken.append(name)
    done.left_out.extend(sorted(weights))
    return done


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
