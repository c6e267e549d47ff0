"""Other checkpoints as the start of a model of this project.

Every function returns what it did, so that the caller can show it: nothing is left out in silence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForPreTraining, PreTrainedConfig

from nystromformer.errors import UserError
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.encoder import POSITION_OFFSET
from nystromformer.model.heads import NystromformerForPreTraining

_POSITIONS = "nystromformer.embeddings.position_embeddings.weight"
_WORDS = "nystromformer.embeddings.word_embeddings.weight"
_VOCABULARY = (_WORDS, "cls.predictions.bias")


@dataclass
class Transfer:
    """Names of the parameters that were taken, are new, or were left out."""

    taken: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.taken)} tensors taken"]
        if self.new:
            parts.append(f"new: {_families(self.new)}")
        if self.left_out:
            parts.append(f"left out: {_families(self.left_out)}")
        return "; ".join(parts)


def start_from_bert(model: NystromformerForPreTraining, path: str) -> Transfer:
    """Copy a BERT's encoder, embeddings, pooler and MLM head into a model of the same shape.

    The residual convolution starts at zero, so that rows of at most `num_landmarks` tokens come out
    as BERT gives them. Positions beyond BERT's table are tiled from it.

    Args:
        path: folder or hub name of a BERT in transformers' layout, safetensors.

    Raises:
        UserError: no such checkpoint, not a BERT, or another shape.
    """
    config = _config(path)
    if config.model_type != "bert":
        raise UserError(f"init.path={path} holds a {config.model_type}, not a BERT: write a BERT checkpoint")
    _check_shape(model.config, config, path)
    loaded = _weights(AutoModelForPreTraining, path)
    weights = {name.replace("bert.", "nystromformer.", 1): tensor for name, tensor in loaded.items()}
    positions = weights[_POSITIONS]
    weights[_POSITIONS] = torch.cat([positions[:POSITION_OFFSET], positions])
    for name, parameter in model.named_parameters():
        if name.endswith("attention.self.conv.weight"):
            torch.nn.init.zeros_(parameter)
    return _copy(model, weights)


def start_from_checkpoint(model: NystromformerForPreTraining, path: str) -> Transfer:
    """Copy a Nyströmformer of the same shape; a shorter position table is tiled to the new length.

    Raises:
        UserError: no such checkpoint, not a Nyströmformer, or another shape.
    """
    config = _config(path)
    if config.model_type != "nystromformer":
        raise UserError(
            f"init.path={path} holds a {config.model_type}, not a Nyströmformer: write init=bert for a BERT"
        )
    _check_shape(model.config, config, path)
    return _copy(model, _weights(NystromformerForPreTraining, path))


def tile_positions(table: Tensor, positions: int) -> Tensor:
    """Grow or cut a position table to `positions`, repeating the trained rows (the authors' way).

    Args:
        table: (POSITION_OFFSET + trained positions, hidden).

    Returns:
        (POSITION_OFFSET + positions, hidden); the trained rows keep their places.
    """
    head, trained = table[:POSITION_OFFSET], table[POSITION_OFFSET:]
    repeats = -(-positions // trained.shape[0])
    return torch.cat([head, trained.repeat(repeats, 1)[:positions]])


def _copy(model: NystromformerForPreTraining, weights: dict[str, Tensor]) -> Transfer:
    """Copy what has a place of the same shape; vocabularies may differ by padding rows only."""
    transfer = Transfer()
    weights = dict(weights)
    weights[_POSITIONS] = tile_positions(weights[_POSITIONS], model.config.max_position_embeddings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            source = weights.pop(name, None)
            if source is None:
                transfer.new.append(name)
                continue
            if name in _VOCABULARY:  # the model's vocabulary is padded to a round size
                parameter[: source.shape[0]].copy_(source[: parameter.shape[0]])
            elif source.shape == parameter.shape:
                parameter.copy_(source)
            else:
                transfer.new.append(name)
                continue
            transfer.taken.append(name)
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    transfer.left_out.extend(sorted(weights.keys() - tied))
    return transfer


def _config(path: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"init.path={path}: no checkpoint there and none on the hub within reach "
            f"({str(error).splitlines()[0]}); write a folder in transformers' layout"
        ) from None


def _weights(model_class: Any, path: str) -> dict[str, Tensor]:
    """Tensors that the checkpoint holds; what the class would have made up is not among them."""
    try:
        model, report = model_class.from_pretrained(path, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"init.path={path}: cannot load the weights ({str(error).splitlines()[0]}); write a folder "
            "that holds model.safetensors"
        ) from None
    made_up = set(report["missing_keys"])
    return {name: tensor for name, tensor in model.state_dict().items() if name not in made_up}


def _check_shape(ours: NystromformerConfig, theirs: PreTrainedConfig, path: str) -> None:
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    for key in keys:
        if getattr(ours, key) != getattr(theirs, key):
            raise UserError(
                f"init.path={path} has {key}={getattr(theirs, key)}, and model.{key}={getattr(ours, key)}: "
                f"write model.{key}={getattr(theirs, key)}"
            )
    difference = ours.vocab_size - theirs.vocab_size
    if not 0 <= difference < 64:
        raise UserError(
            f"init.path={path} has a vocabulary of {theirs.vocab_size}, the tokenizer one of about "
            f"{ours.vocab_size}: write tokenizer.path={path}"
        )


def _families(names: list[str]) -> str:
    """Parameter names, one for each kind: layers' numbers become `*`."""
    kinds = {".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names}
    return ", ".join(sorted(kinds))
