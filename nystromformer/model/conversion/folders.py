"""Folders and hub names in transformers' layout: BERT, RoBERTa and Nystromformer. Safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    PreTrainedConfig,
)
from transformers.utils import logging as transformers_logging

from nystromformer.errors import UserError
from nystromformer.model.configuration import CONFIGURATION, NystromformerConfig
from nystromformer.model.conversion.source import POSITIONS, Source
from nystromformer.model.encoder import POSITION_OFFSET
from nystromformer.model.heads import NystromformerForPreTraining

ROBERTAS = ("roberta", "xlm-roberta", "camembert")
KINDS = ("bert", *ROBERTAS, "nystromformer")

Read: TypeAlias = tuple[dict[str, Tensor], list[str]]
"""Tensors under the names of NystromformerForPreTraining, and names that have no place there."""

_ROBERTA_HEAD = {
    "lm_head.dense.": "cls.predictions.transform.dense.",
    "lm_head.layer_norm.": "cls.predictions.transform.LayerNorm.",
    "lm_head.bias": "cls.predictions.bias",
    "lm_head.decoder.": "cls.predictions.decoder.",
}


def read_folder(path: str, *, setting: str = "init.path") -> Source:
    """Read a folder or hub name.

    Raises:
        UserError: no such checkpoint, no safetensors in it, or a model of another kind.
    """
    shape = shape_of_folder(path, setting=setting)
    read = {"Nyströmformer": _read_nystromformer, "BERT": _read_bert, "RoBERTa": _read_roberta}[shape.kind]
    weights, left_out = read(path, setting)
    return Source(path, shape.kind, shape.config, weights, left_out)


def shape_of_folder(path: str, *, setting: str = "init.path") -> Source:
    """What `read_folder` reads, without its tensors.

    Raises:
        UserError: no such checkpoint, or a model of another kind.
    """
    config = read_config(path, setting=setting)
    if isinstance(config, NystromformerConfig):
        return Source(path, "Nyströmformer", config)
    if config.model_type == "bert":
        return Source(path, "BERT", _shape_of(config, config.max_position_embeddings))
    if config.model_type in ROBERTAS:
        return Source(path, "RoBERTa", _shape_of(config, config.max_position_embeddings - POSITION_OFFSET))
    raise UserError(
        f"{setting}={path} holds a {config.model_type}, not a BERT, RoBERTa or Nyströmformer: write one of "
        "those"
    )


def read_config(path: str, *, setting: str = "init.path") -> PreTrainedConfig:
    """The configuration alone; raises UserError where there is none."""
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        where = "no checkpoint there and none on the hub within reach"
        if Path(path).is_dir():
            where = "that folder holds no checkpoint"
        raise UserError(
            f"{setting}={path}: {where} ({_first_line(error)}); write a folder in transformers' layout"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _read_nystromformer(path: str, setting: str) -> Read:
    return _weights(NystromformerForPreTraining, path, setting)


def _read_bert(path: str, setting: str) -> Read:
    loaded, left_out = _weights(AutoModelForPreTraining, path, setting)
    weights = {name.replace("bert.", "nystromformer.", 1): tensor for name, tensor in loaded.items()}
    table = weights[POSITIONS]
    weights[POSITIONS] = torch.cat([table[:POSITION_OFFSET], table])
    return weights, left_out


def _read_roberta(path: str, setting: str) -> Read:
    """RoBERTa counts positions from 2 as well, has no segments, and keeps its pooler out of its MLM model."""
    loaded, left_out = _weights(AutoModelForMaskedLM, path, setting)
    encoder, _ = _weights(AutoModel, path, setting)
    pooler = {f"roberta.{name}": tensor for name, tensor in encoder.items() if name.startswith("pooler.")}
    loaded |= pooler
    weights: dict[str, Tensor] = {}
    for name, tensor in loaded.items():
        for theirs, ours in {"roberta.": "nystromformer.", **_ROBERTA_HEAD}.items():
            if name.startswith(theirs):
                weights[name.replace(theirs, ours, 1)] = tensor
    return weights, [name for name in left_out if name not in pooler]


def _shape_of(config: PreTrainedConfig, positions: int) -> NystromformerConfig:
    """What BERT's and RoBERTa's configuration has in common with ours, and their exact attention."""
    shared = {name: getattr(config, name) for name in CONFIGURATION if hasattr(config, name)}
    theirs = {"attention": "softmax", "conv_kernel_size": None, "max_position_embeddings": positions}
    return NystromformerConfig(**{**shared, **theirs})


def _weights(model_class: Any, path: str, setting: str) -> Read:
    """Tensors that the checkpoint holds, and names that the class has no place for.

    What the class would have made up where the checkpoint has nothing is not among them.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report on missing tensors; ours says the same in a table
    try:
        model, report = model_class.from_pretrained(path, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting}={path}: cannot load the weights ({_first_line(error)}); write a folder "
            "that holds model.safetensors"
        ) from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    made_up = set(report["missing_keys"])
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in made_up}
    return kept, sorted(report["unexpected_keys"])
