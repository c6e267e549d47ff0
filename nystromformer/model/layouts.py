"""What other projects write, under this project's names, and back: transformers' folders, the authors' files.

A reader gives the kind, the shape, and a function that reads the tensors: under the names of
NystromformerForPreTraining, the position table with its unused first rows, beside the names that have no
place here. Safetensors, or a pickle opened with `weights_only`, which builds tensors and runs nothing.

Of the authors' `.model` and `.cp` files (github.com/mlpen/Nystromformer), pickles of {"model_state_dict":
names → tensors, …}, both code lines are read:

| | first line, `code/` | second line, `reorganized_code/` |
|---|---|---|
| layers | `model.transformer_I.` | `model.backbone.backbone.encoders.I.` |
| feed-forward | `ff1`, `ff2`, tanh GELU | `ff.0`, `ff.2`, GELU |
| positions | counted from 2 | from 2 with RoBERTa's vocabulary, from 0 with ALBERT's |
| pooler, sentence order | none | with ALBERT's vocabulary: `model.pooler`, `sen_class` |

transformers' own Nystromformer has the same names already, and differs in two things: it has no pooler and no
sentence-order head in its MLM model, and it runs Nyström attention only on inputs of exactly
`segment_means_seq_len` tokens. Where that equals the number of landmarks, it runs exact attention plus the
convolution, at any length.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    PreTrainedConfig,
)
from transformers.models.nystromformer import NystromformerConfig as TransformersConfig
from transformers.utils import logging as transformers_logging

from nystromformer.attention.mechanism import mechanism_of
from nystromformer.errors import UserError
from nystromformer.hub import look_for
from nystromformer.model.configuration import CONFIGURATION, NystromformerConfig
from nystromformer.model.encoder import POSITION_OFFSET
from nystromformer.model.heads import NystromformerForPreTraining

POSITIONS = "nystromformer.embeddings.position_embeddings.weight"
WORDS = "nystromformer.embeddings.word_embeddings.weight"
TOKEN_TYPES = "nystromformer.embeddings.token_type_embeddings.weight"
TIED = frozenset({"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"})
"""What is saved once more where the word embeddings are the MLM head's."""

ROBERTAS = ("roberta", "xlm-roberta", "camembert")

Read: TypeAlias = tuple[dict[str, Tensor], list[str]]
"""Tensors under this project's names, and names that have no place here."""
Layout: TypeAlias = tuple[str, NystromformerConfig, Callable[[], Read]]
"""The kind, the shape, and how to read the tensors."""


# --- folders and hub names in transformers' layout ----------------------------------------------------

_ROBERTA_NAMES = {
    "roberta.": "nystromformer.",
    "lm_head.dense.": "cls.predictions.transform.dense.",
    "lm_head.layer_norm.": "cls.predictions.transform.LayerNorm.",
    "lm_head.bias": "cls.predictions.bias",
    "lm_head.decoder.": "cls.predictions.decoder.",
}


def folder_layout(path: str, setting: str) -> Layout:
    """What a folder or hub name holds.

    Raises:
        UserError: no such checkpoint, or a model of another kind; in reading, no safetensors in it.
    """
    look_for(path)
    try:
        config = AutoConfig.from_pretrained(path)
        if isinstance(config, NystromformerConfig):
            return "Nyströmformer", config, lambda: _read(NystromformerForPreTraining, path, setting)
        if config.model_type == "bert":
            return "BERT", _shape_of(config), lambda: _read_bert(path, setting)
        if config.model_type in ROBERTAS:
            return "RoBERTa", _shape_of(config, POSITION_OFFSET), lambda: _read_roberta(path, setting)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        where = "no checkpoint there and none on the hub within reach"
        if Path(path).is_dir():
            where = "that folder holds no checkpoint"
        if Path(path, "config.json").is_file():
            where = "its config.json makes no model"
        raise UserError(
            f"{setting}={path}: {where} ({_sentence(error)}); write a folder in transformers' layout"
        ) from None
    raise UserError(
        f"{setting}={path} holds a {config.model_type}, not a BERT, RoBERTa or Nyströmformer: write one of "
        "those"
    )


def load_model(
    model_class: Any, path: str, *, wrong: str, fix: str, **changes: Any
) -> tuple[Any, dict[str, Any]]:
    """A model as it was saved, and transformers' report on the names of its tensors.

    Args:
        wrong: what the path is, as the message begins: `checkpoint=FOLDER`.
        fix: the message's end.
        changes: of its configuration.

    Raises:
        UserError: no safetensors there, or none of this model.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report on missing tensors; ours says the same in a table
    try:
        model, report = model_class.from_pretrained(
            path, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **changes
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(f"{wrong}: cannot load the weights ({_sentence(error)}){fix}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    for name, found, wanted in report["mismatched_keys"]:
        raise UserError(
            f"{wrong}: cannot load the weights ({name} is {tuple(found)}, and by its config.json "
            f"{tuple(wanted)}){fix}"
        )
    return model, report


def _read(model_class: Any, path: str, setting: str) -> Read:
    """Tensors that the checkpoint holds, and names that the class has no place for.

    What the class would have made up where the checkpoint has nothing is not among them.
    """
    model, report = load_model(
        model_class, path, wrong=f"{setting}={path}", fix="; write a folder that holds model.safetensors"
    )
    made_up = set(report["missing_keys"])
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in made_up}
    return kept, sorted(report["unexpected_keys"])


def _read_bert(path: str, setting: str) -> Read:
    loaded, left_out = _read(AutoModelForPreTraining, path, setting)
    weights = {name.replace("bert.", "nystromformer.", 1): tensor for name, tensor in loaded.items()}
    return _counted_from_two(weights), left_out


def _read_roberta(path: str, setting: str) -> Read:
    """RoBERTa counts positions from 2 as well, has no segments, and keeps its pooler out of its MLM model."""
    loaded, left_out = _read(AutoModelForMaskedLM, path, setting)
    encoder, _ = _read(AutoModel, path, setting)
    pooler = {f"roberta.{name}": tensor for name, tensor in encoder.items() if name.startswith("pooler.")}
    weights = {
        name.replace(theirs, ours, 1): tensor
        for name, tensor in (loaded | pooler).items()
        for theirs, ours in _ROBERTA_NAMES.items()
        if name.startswith(theirs)
    }
    return weights, [name for name in left_out if name not in pooler]


def _counted_from_two(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The table of a model that counts positions from 0 gets the rows that are never used."""
    table = weights[POSITIONS]
    return weights | {POSITIONS: torch.cat([table[:POSITION_OFFSET], table])}


def _shape_of(config: PreTrainedConfig, unused_positions: int = 0) -> NystromformerConfig:
    """What BERT's and RoBERTa's configuration has in common with ours, and their exact attention."""
    shared = {name: getattr(config, name) for name in CONFIGURATION if hasattr(config, name)}
    positions = config.max_position_embeddings - unused_positions
    theirs = {"attention": "softmax", "conv_kernel_size": None, "max_position_embeddings": positions}
    return NystromformerConfig(**{**shared, **theirs})


def _sentence(error: Exception) -> str:
    """The first line of an exception of others, with the next where that only announces it."""
    if isinstance(error, KeyError):
        return f"nothing is called {error}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 1 + lines[0].rstrip().endswith(":")])


# --- the authors' files -------------------------------------------------------------------------------

_ENDINGS = (".model", ".cp")
_LAYER = re.compile(r"model\.(?:transformer_|backbone\.backbone\.encoders\.)(\d+)\.(.+)\.(weight|bias)")
_IN_A_LAYER = {
    "mha.W_q": "attention.self.query",
    "mha.W_k": "attention.self.key",
    "mha.W_v": "attention.self.value",
    "mha.attn.conv": "attention.self.conv",
    "mha.ff": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "ff1": "intermediate.dense",
    "ff2": "output.dense",
    "ff.0": "intermediate.dense",
    "ff.2": "output.dense",
    "norm2": "output.LayerNorm",
}
_OUTSIDE = {
    "model.embeddings.word_embeddings.weight": WORDS,
    "model.embeddings.position_embeddings.weight": POSITIONS,
    "model.embeddings.token_type_embeddings.weight": TOKEN_TYPES,
    "model.embeddings.norm.weight": "nystromformer.embeddings.LayerNorm.weight",
    "model.embeddings.norm.bias": "nystromformer.embeddings.LayerNorm.bias",
    "model.pooler.weight": "nystromformer.pooler.dense.weight",
    "model.pooler.bias": "nystromformer.pooler.dense.bias",
    "mlm.dense.weight": "cls.predictions.transform.dense.weight",
    "mlm.dense.bias": "cls.predictions.transform.dense.bias",
    "mlm.norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "mlm.norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "mlm.mlm_class.weight": "cls.predictions.decoder.weight",
    "mlm.mlm_class.bias": "cls.predictions.bias",
    "sen_class.weight": "cls.seq_relationship.weight",
    "sen_class.bias": "cls.seq_relationship.bias",
}


def is_authors_file(path: str) -> bool:
    return Path(path).suffix.lower() in _ENDINGS and not Path(path).is_dir()


def authors_layout(path: str, setting: str, num_attention_heads: int | None) -> Layout:
    """What one of the authors' files holds; its tensors tell its shape, and are read at once.

    Args:
        num_attention_heads: needed where the model has no convolution, whose shape tells it.

    Raises:
        UserError: no such file, code in the pickle, or a model that has no place here.
    """
    here = f"{setting}={path}"
    state = _state_dict(path, here)
    weights: dict[str, Tensor] = {}
    left_out: list[str] = []
    for name, tensor in state.items():
        ours = _renamed(name)
        if ours is None or (ours.startswith("cls.seq_relationship") and tensor.shape[0] != 2):
            left_out.append(name)
        else:
            weights[ours] = tensor.float()
    _refuse_what_has_no_place(here, state, weights)
    if "model.pooler.weight" in state:  # ALBERT's vocabulary
        weights = _counted_from_two(weights)
    second_line = any(name.startswith("model.backbone.") for name in state)
    activation = "gelu" if second_line else "gelu_new"
    try:
        config = _shape_of_tensors(here, weights, num_attention_heads, activation)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{here} is no encoder of the authors' code ({_sentence(error)}): write another file"
        ) from None
    return "authors' file", config, lambda: (weights, left_out)


def _state_dict(path: str, here: str) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{here} does not exist: write a .model or .cp file") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{here} holds more than tensors and was not opened, for it could run code "
            f"({_sentence(error)[:120]}): write a file saved from a state_dict"
        ) from None
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{here} cannot be read ({_sentence(error)[:120]})") from None
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{here} has no model_state_dict: write a file of the authors' code")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str | None:
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return _OUTSIDE.get(name)
    number, part, kind = layer.groups()
    if part not in _IN_A_LAYER:
        return None
    return f"nystromformer.encoder.layer.{number}.{_IN_A_LAYER[part]}.{kind}"


def _refuse_what_has_no_place(here: str, state: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    if any(name.startswith("model.backbone.backbone.encoder.") for name in state):
        raise UserError(f"{here} shares one layer's weights (shared_weight): no place for that here")
    if "model.embeddings.dense.weight" in state:
        raise UserError(f"{here} projects its embeddings (embedding_dim): no place for that here")
    if POSITIONS not in weights or "nystromformer.encoder.layer.0.attention.self.query.weight" not in weights:
        raise UserError(f"{here} is no encoder of the authors' code: its names are not known here")


def _shape_of_tensors(
    here: str, weights: dict[str, Tensor], heads: int | None, activation: str
) -> NystromformerConfig:
    convolution = weights.get("nystromformer.encoder.layer.0.attention.self.conv.weight")
    if convolution is not None:
        heads = convolution.shape[0]
    if heads is None:
        raise UserError(f"{here} has no convolution to tell its heads by: write num_attention_heads=NUMBER")
    layers = {name.split(".")[3] for name in weights if name.startswith("nystromformer.encoder.layer.")}
    words, hidden = weights[WORDS].shape
    return NystromformerConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        intermediate_size=weights["nystromformer.encoder.layer.0.intermediate.dense.weight"].shape[0],
        attention="nystrom" if convolution is not None else "softmax",
        conv_kernel_size=None if convolution is None else convolution.shape[2],
        hidden_act=activation,
        max_position_embeddings=weights[POSITIONS].shape[0] - POSITION_OFFSET,
        type_vocab_size=weights[TOKEN_TYPES].shape[0],
        pad_token_id=0 if "nystromformer.pooler.dense.weight" in weights else 1,  # ALBERT's, RoBERTa's
    )


# --- a folder that transformers' own Nystromformer reads ----------------------------------------------

_OURS_ALONE = {*CONFIGURATION, "auto_map"} - {*TransformersConfig().to_dict(), "classifier_dropout"}
"""What transformers' class would not know; it leaves a classifier's dropout alone."""
_NO_PLACE = ("nystromformer.pooler.", "cls.seq_relationship.")


def export_for_transformers(
    model: NystromformerForPreTraining, folder: Path, *, nystrom_length: int | None = None
) -> list[str]:
    """Write config.json and model.safetensors for transformers' NystromformerForMaskedLM.

    Args:
        nystrom_length: the one length at which transformers' class is to run Nyström attention, a multiple
            of the landmarks; None has it run exact attention at any length.

    Returns:
        Names of the tensors that have no place there.

    Raises:
        UserError: attention that transformers' class does not know, or a length it cannot run.
    """
    config: NystromformerConfig = model.config
    if not mechanism_of(config.attention).in_transformers:
        raise UserError(f"transformers' Nystromformer has no {config.attention} attention: nothing to write")
    if nystrom_length is not None:
        _check_length(config, nystrom_length)
    tensors: dict[str, Tensor] = {}
    left_out = []
    for name, tensor in model.state_dict().items():
        if name.startswith(_NO_PLACE):
            left_out.append(name)
        elif name not in TIED:
            tensors[name] = tensor.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shape = config.to_diff_dict() | {
        name: getattr(config, name)
        for name in ("num_landmarks", "conv_kernel_size", "type_vocab_size", "layer_norm_eps", "hidden_act")
    }
    shape = {name: value for name, value in shape.items() if name not in _OURS_ALONE}
    shape["segment_means_seq_len"] = nystrom_length or config.num_landmarks
    shape["architectures"] = ["NystromformerForMaskedLM"]
    (folder / "config.json").write_text(json.dumps(shape, indent=2) + "\n", encoding="utf-8")
    return left_out


def _check_length(config: NystromformerConfig, length: int) -> None:
    if config.attention != "nystrom":
        raise UserError(f"nystrom_length={length}: the model's attention is {config.attention}: write null")
    if length % config.num_landmarks or length <= config.num_landmarks:
        raise UserError(
            f"nystrom_length={length} is no multiple of num_landmarks={config.num_landmarks} above it, and "
            "transformers' segments must be equal: write one, or null for exact attention"
        )
    if length > config.max_position_embeddings:
        raise UserError(
            f"nystrom_length={length} is beyond the {config.max_position_embeddings} positions: write less, "
            "or raise max_length"
        )
