"""Tiny models of every head, with a tokenizer beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

from nystromformer import NystromformerConfig
from nystromformer.export.heads import _MODELS
from nystromformer.export.onnx_file import missing_packages

WORDS = ("the film was good", "a bad one", "nobody liked it at all", "i have never seen such a film")
NEEDED = pytest.mark.skipif(
    bool(missing_packages()), reason="needs the packages onnx, onnxscript and onnxruntime: the extra onnx"
)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory) -> Callable[..., Path]:
    """Writes a model of a head, and of changes of its configuration; the folder."""

    def make(head: str = "masked_lm", **changes) -> Path:
        folder = tmp_path_factory.mktemp(head)
        trained = BertWordPieceTokenizer()
        trained.train_from_iterator(WORDS, vocab_size=120, min_frequency=1, show_progress=False)
        trained.save(str(folder / "trained.json"))
        tokenizer = BertTokenizerFast(tokenizer_file=str(folder / "trained.json"))
        (folder / "trained.json").unlink()
        config = NystromformerConfig(
            **{
                "vocab_size": len(tokenizer),
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 48,
                "num_landmarks": 8,
                "conv_kernel_size": 5,
                "max_position_embeddings": 100,
                "initializer_range": 0.2,
                **changes,
            }
        )
        torch.manual_seed(0)
        _MODELS[head][0](config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make
