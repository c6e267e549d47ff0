"""A folder that transformers' own Nystromformer reads.

Names of parameters are the same already. Two things differ: transformers' class has no pooler and no
sentence-order head in its MLM model, and it runs Nyström attention only on inputs of exactly
`segment_means_seq_len` tokens. Where that equals the number of landmarks, it runs exact attention plus the
convolution, at any length.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from nystromformer.attention.mechanism import mechanism_of
from nystromformer.errors import UserError
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.heads import NystromformerForPreTraining
from nystromformer.settings.model import declared_fields

_OURS_ALONE = {"attention", "auto_map", *(one.name for one in declared_fields())} - {"num_landmarks"}
_NO_PLACE = ("nystromformer.pooler.", "cls.seq_relationship.")
_ALIASES = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}


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
        elif name not in _ALIASES:
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
