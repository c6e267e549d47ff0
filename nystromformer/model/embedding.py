"""A text's vector: the mean of what the encoder makes of its real tokens.

The saved folder is also sentence-transformers' (`sentence_transformers_files`): its Transformer, mean pooling
and normalisation give the same vectors.

Shapes: B rows, N positions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import ModelOutput

from nystromformer.model.arguments import model_forward
from nystromformer.model.configuration import NystromformerConfig
from nystromformer.model.encoder import NystromformerModel, NystromformerPreTrainedModel


@dataclass
class EmbeddingOutput(ModelOutput):
    """Vectors of a batch, float32."""

    embeddings: Tensor | None = None
    """(B, hidden), of length 1: their products are cosines."""
    means: Tensor | None = None
    """(B, hidden), before that."""
    hidden_states: tuple[Tensor, ...] | None = None


class NystromformerForEmbedding(NystromformerPreTrainedModel):
    """Vectors of whole texts; a row's is the same alone and in any batch."""

    _keys_to_ignore_on_load_unexpected = [r"^cls\.", r"pooler\."]  # noqa: RUF012 (transformers reads it)

    def __init__(self, config: NystromformerConfig) -> None:
        super().__init__(config)
        self.nystromformer = NystromformerModel(config, add_pooling_layer=False)
        self.post_init()

    @model_forward
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        pieces: Sequence[Mapping[str, Tensor]] = (),
        recompute: bool = False,
    ) -> EmbeddingOutput:
        """Vectors of the rows.

        Args:
            pieces: the rows in several parts, each padded to its own longest: `input_ids` and, if there are
                such, `attention_mask` and `token_type_ids` of each. Their vectors come in the order of the
                parts.
            recompute: keep nothing of a part but its vectors, and compute it again for the backward pass: a
                loss over all vectors of a batch then costs the memory of one part (gradient caching,
                Gao et al. 2021), and the gradient is the same.
            The others are those of NystromformerModel.
        """
        if pieces:
            return self._of_pieces(pieces, recompute)
        encoded = self.nystromformer(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions, output_hidden_states, return_dict=True,
        )  # fmt: skip
        means = mean_of_real(encoded.last_hidden_state, attention_mask)
        return EmbeddingOutput(
            embeddings=F.normalize(means, dim=-1), means=means, hidden_states=encoded.hidden_states
        )

    def _of_pieces(self, pieces: Sequence[Mapping[str, Tensor]], recompute: bool) -> EmbeddingOutput:
        means = []
        for piece in pieces:
            names, tensors = tuple(piece), tuple(piece.values())
            if recompute and torch.is_grad_enabled():
                means.append(checkpoint(self._means, names, *tensors, use_reentrant=False))
            else:
                means.append(self._means(names, *tensors))
        together = torch.cat(means)
        return EmbeddingOutput(embeddings=F.normalize(together, dim=-1), means=together)

    def _means(self, names: tuple[str, ...], *tensors: Tensor) -> Tensor:
        """(rows, hidden) of one part."""
        given = dict(zip(names, tensors, strict=True))
        found = self.nystromformer(**given, return_dict=True)
        return mean_of_real(found.last_hidden_state, given.get("attention_mask"))


def mean_of_real(states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mean over each row's real tokens, in float32: (B, N, hidden) and (B, N) → (B, hidden).

    A row without a real token has none: its vector is zero.
    """
    states = states.float()
    if attention_mask is None:
        return states.mean(dim=1)
    weights = attention_mask.to(states.dtype)
    sums = (states * weights[..., None]).sum(dim=1)
    return sums / weights.sum(dim=1).clamp(min=1)[:, None]


def sentence_transformers_files(config: NystromformerConfig, max_length: int) -> dict[str, Any]:
    """What `SentenceTransformer(FOLDER)` reads beside weights and tokenizer: path → content, as JSON.

    `add_pooling_layer` keeps this project's encoder from making up a pooler that nobody reads. It also stops
    transformers' own class, which has no such argument and computes other attention: whoever forgets to
    import `nystromformer.model` gets an error, never other vectors.
    """
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    return {
        "modules.json": [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
            for number, (path, name) in enumerate(modules)
        ],
        "sentence_bert_config.json": {
            "max_seq_length": max_length,
            "do_lower_case": False,
            "model_args": {"add_pooling_layer": False},
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": config.hidden_size,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "2_Normalize/config.json": {},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
    }


def other_vectors(folder: Path) -> str | None:
    """What a model of sentence-transformers makes its vectors with that this project has not, in words.

    Raises:
        ValueError: a file there is no JSON.
    """
    modules = folder / "modules.json"
    for module in json.loads(modules.read_text(encoding="utf-8")) if modules.is_file() else []:
        kind = module["type"].rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            return f"a module {kind}"
        config = folder / module["path"] / "config.json"
        if kind == "Pooling" and config.is_file():
            told = json.loads(config.read_text(encoding="utf-8"))
            flags = [
                name for name, chosen in told.items() if name.startswith("pooling_mode_") and chosen is True
            ]
            modes = told.get("pooling_mode") or [name.removeprefix("pooling_mode_") for name in flags]
            modes = [modes] if isinstance(modes, str) else modes
            if modes not in (["mean"], ["mean_tokens"]):
                return f"pooling by {' and '.join(modes)}"
    return None
