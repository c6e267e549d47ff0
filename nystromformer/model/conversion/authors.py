"""The authors' `.model` and `.cp` files (github.com/mlpen/Nystromformer), from both their code lines.

Each is a pickle of {"model_state_dict": names → tensors, …}. It is opened with `weights_only`, which builds
tensors and plain containers and runs nothing.

| | first line, `code/` | second line, `reorganized_code/` |
|---|---|---|
| layers | `model.transformer_I.` | `model.backbone.backbone.encoders.I.` |
| feed-forward | `ff1`, `ff2`, tanh GELU | `ff.0`, `ff.2`, GELU |
| positions | counted from 2 | from 2 with RoBERTa's vocabulary, from 0 with ALBERT's |
| pooler, sentence order | none | with ALBERT's vocabulary: `model.pooler`, `sen_class` |
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

from nystromformer.errors import UserError
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.conversion.source import POSITIONS, Source
from nystromformer.model.encoder import POSITION_OFFSET

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
    "model.embeddings.word_embeddings.weight": "nystromformer.embeddings.word_embeddings.weight",
    "model.embeddings.position_embeddings.weight": POSITIONS,
    "model.embeddings.token_type_embeddings.weight": "nystromformer.embeddings.token_type_embeddings.weight",
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


def read_authors_file(path: Path, *, num_attention_heads: int | None = None, setting: str) -> Source:
    """Read one file.

    Args:
        num_attention_heads: needed where the model has no convolution, whose shape tells it.

    Raises:
        UserError: no such file, code in the pickle, or a model that has no place here.
    """
    state = _state_dict(path, setting)
    weights: dict[str, Tensor] = {}
    left_out: list[str] = []
    for name, tensor in state.items():
        ours = _renamed(name)
        if ours is None or (ours.startswith("cls.seq_relationship") and tensor.shape[0] != 2):
            left_out.append(name)
        else:
            weights[ours] = tensor.float()
    _refuse_what_has_no_place(path, state, weights, setting)
    second_line = any(name.startswith("model.backbone.") for name in state)
    if "model.pooler.weight" in state:  # ALBERT's vocabulary: positions counted from 0
        table = weights[POSITIONS]
        weights[POSITIONS] = torch.cat([table[:POSITION_OFFSET], table])
    return Source(
        str(path),
        "authors' file",
        _shape_of(path, weights, num_attention_heads, "gelu" if second_line else "gelu_new", setting),
        weights,
        left_out,
    )


def _state_dict(path: Path, setting: str) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{setting}={path} does not exist: write a .model or .cp file") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{setting}={path} holds more than tensors and was not opened, for it could run code "
            f"({str(error).splitlines()[0][:120]}): write a file saved from a state_dict"
        ) from None
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{setting}={path} cannot be read ({str(error).splitlines()[0][:120]})") from None
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{setting}={path} has no model_state_dict: write a file of the authors' code")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str | None:
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return _OUTSIDE.get(name)
    number, part, kind = layer.groups()
    if part not in _IN_A_LAYER:
        return None
    return f"nystromformer.encoder.layer.{number}.{_IN_A_LAYER[part]}.{kind}"


def _refuse_what_has_no_place(
    path: Path, state: dict[str, Tensor], weights: dict[str, Tensor], setting: str
) -> None:
    if any(name.startswith("model.backbone.backbone.encoder.") for name in state):
        raise UserError(
            f"{setting}={path} shares one layer's weights (shared_weight): no place for that here"
        )
    if "model.embeddings.dense.weight" in state:
        raise UserError(f"{setting}={path} projects its embeddings (embedding_dim): no place for that here")
    if POSITIONS not in weights or "nystromformer.encoder.layer.0.attention.self.query.weight" not in weights:
        raise UserError(f"{setting}={path} is no encoder of the authors' code: its names are not known here")


def _shape_of(
    path: Path, weights: dict[str, Tensor], heads: int | None, activation: str, setting: str
) -> NystromformerConfig:
    convolution = weights.get("nystromformer.encoder.layer.0.attention.self.conv.weight")
    if convolution is not None:
        heads = convolution.shape[0]
    if heads is None:
        raise UserError(
            f"{setting}={path} has no convolution to tell its heads by: write num_attention_heads=NUMBER"
        )
    layers = {name.split(".")[3] for name in weights if name.startswith("nystromformer.encoder.layer.")}
    words, hidden = weights["nystromformer.embeddings.word_embeddings.weight"].shape
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
        type_vocab_size=weights["nystromformer.embeddings.token_type_embeddings.weight"].shape[0],
        pad_token_id=0 if "nystromformer.pooler.dense.weight" in weights else 1,  # ALBERT's, RoBERTa's
    )
