"""The model's configuration, in transformers' format."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import PreTrainedConfig

ATTENTIONS = ("nystrom", "softmax", "linformer", "longformer", "performer")
LANDMARKS = ("segment_means", "uniform", "kmeans")
SHORT_ROWS = ("exact", "exact_without_convolution", "landmark_per_token", "segments")


class NystromformerConfig(PreTrainedConfig):
    """Shape of a Nyströmformer, saved as `config.json`.

    The keys are those of transformers' own Nystromformer, so that its checkpoints open here. It has no
    `segment_means_seq_len` to set: any length works, and the key is only written, equal to
    `num_landmarks`, because that is the one setting in which transformers' class accepts any length
    (it then computes exact attention plus the convolution).

    Args:
        attention: `nystrom`; `softmax` for exact attention (BERT's); or `linformer`, `longformer`,
            `performer`, the other rows of the paper's efficiency table.
        num_landmarks: landmarks of Nyström attention.
        landmarks: how they are chosen: `segment_means`, `uniform` or `kmeans`.
        pinv_iterations: steps of its iterative inverse; None for the exact pseudoinverse.
        neighbours: tokens of a block; a token attends exactly to its own block, the two beside it and the
            salient tokens, through landmarks to what is far. None for the paper's attention, landmarks alone.
        salient_tokens: with neighbours, tokens that all attend to exactly, of each row and head: the first,
            and the others that the landmarks attend to most.
        short_rows: what is computed for rows of at most num_landmarks tokens: `exact` attention with the
            convolution, `exact_without_convolution`, `landmark_per_token`, or `segments` of
            short_row_segment tokens; see `short_rows.py`.
        linformer_projected: how many mixtures of tokens Linformer attends to.
        linformer_share_heads: one projection a layer for all heads, or one a head.
        longformer_window: positions that a token of Longformer sees, itself in the middle, odd.
        performer_features: random features of Performer.
        conv_kernel_size: width of the residual convolution over the values, odd; None for none.
        max_position_embeddings: longest input, special tokens included.
        attention_probs_dropout_prob: dropout on the attention matrix; exact attention only.
    """

    model_type = "nystromformer"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        attention: str = "nystrom",
        num_landmarks: int = 64,
        landmarks: str = "segment_means",
        pinv_iterations: int | None = 6,
        neighbours: int | None = None,
        salient_tokens: int = 1,
        short_rows: str = "exact",
        short_row_segment: int = 8,
        linformer_projected: int = 256,
        linformer_share_heads: bool = True,
        longformer_window: int = 257,
        performer_features: int = 256,
        conv_kernel_size: int | None = 33,
        hidden_act: str = "gelu_new",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        classifier_dropout: float | None = None,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-5,
        pad_token_id: int | None = 0,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("segment_means_seq_len", None)
        if attention not in ATTENTIONS:
            raise ValueError(f"attention={attention!r} is unknown: use one of {', '.join(ATTENTIONS)}")
        if landmarks not in LANDMARKS:
            raise ValueError(f"landmarks={landmarks!r} is unknown: use one of {', '.join(LANDMARKS)}")
        if short_rows not in SHORT_ROWS:
            raise ValueError(f"short_rows={short_rows!r} is unknown: use one of {', '.join(SHORT_ROWS)}")
        if neighbours is not None and neighbours < 0:
            raise ValueError(f"neighbours={neighbours}: use at least 1, or None or 0 for landmarks alone")
        if salient_tokens < 1:
            raise ValueError(f"salient_tokens={salient_tokens}: use at least 1, the row's first token")
        if short_row_segment < 1:
            raise ValueError(f"short_row_segment={short_row_segment}: use at least 1")
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"num_attention_heads={num_attention_heads} does not divide hidden_size={hidden_size}"
            )
        if conv_kernel_size is not None and conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size={conv_kernel_size} cannot be centred: use an odd width")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.attention = attention
        self.num_landmarks = num_landmarks
        self.segment_means_seq_len = num_landmarks
        self.landmarks = landmarks
        self.pinv_iterations = pinv_iterations
        self.neighbours = neighbours or None
        self.salient_tokens = salient_tokens
        self.short_rows = short_rows
        self.short_row_segment = short_row_segment
        self.linformer_projected = linformer_projected
        self.linformer_share_heads = linformer_share_heads
        self.longformer_window = longformer_window
        self.performer_features = performer_features
        self.conv_kernel_size = conv_kernel_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.classifier_dropout = classifier_dropout
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        super().__init__(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.pad_token_id = pad_token_id
        self.tie_word_embeddings = tie_word_embeddings


def near_in_words(neighbours: int | None, salient_tokens: int) -> str:
    """What stands behind `… landmarks` where attention has exact neighbours."""
    if neighbours is None:
        return ""
    salient = "" if salient_tokens == 1 else f" and {salient_tokens} salient tokens"
    return f" and exact neighbours in blocks of {neighbours}{salient}"


CONFIGURATION = tuple(
    name
    for name in inspect.signature(NystromformerConfig.__init__).parameters
    if name not in ("self", "kwargs")
)
"""Every field of the configuration that decides what a model computes."""
