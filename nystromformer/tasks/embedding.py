"""Vectors of texts, from any checkpoint known here: with the settings of its training, or as it is.

embedder = Embedder.load("runs/search/embed/model")
vectors = embedder.encode(["one text", "another"])          (2, hidden), of length 1
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from nystromformer.errors import UserError
from nystromformer.model.embedding import NystromformerForEmbedding, other_vectors
from nystromformer.model.source import open_source, open_tokenizer, place_of, written
from nystromformer.settings.finetune import SwapSettings
from nystromformer.tasks.batches import ordered_batches
from nystromformer.tasks.export import taught, to_device
from nystromformer.tasks.rows import padded, rows_of_texts
from nystromformer.training.devices import on_device

_AT_ONCE = 2048
"""Texts whose rows are sorted by length together."""


class Embedder:
    """A model that makes vectors, on its device."""

    def __init__(
        self,
        model: NystromformerForEmbedding,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        device: str | torch.device | None = None,
        precision: str = "float32",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._autocast = to_device(model, precision, device)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        max_length: int | None = None,
        positions: str = "tile",
        tokenizer_path: str | None = None,
        device: str | torch.device | None = None,
        precision: str = "float32",
        **changes: Any,
    ) -> Embedder:
        """From a model of this project with any head or none, a BERT or a RoBERTa.

        Args:
            checkpoint: a folder, a hub name, or a file of the authors' code.
            max_length: tokens of one text, what is beyond is cut; by default those that the model was
                fine-tuned with, or all its positions. More than those makes its table longer.
            positions: how, `tile` or `interpolate`.
            tokenizer_path: where the checkpoint has no tokenizer of its own.
            device: by default a GPU if there is one.
            precision: `float32`, `bf16`, or `auto`.
            changes: of the model's configuration, such as `attention="nystrom", neighbours=64`. Without any
                a BERT keeps its own exact attention.

        Raises:
            UserError: no such checkpoint or tokenizer, no model has such a configuration, or the checkpoint
                is an embedder whose vectors are no means.
        """
        path = str(checkpoint)
        source = open_source(path, setting="checkpoint")
        if (place := place_of(path)) and (other := other_vectors(place)):
            raise UserError(
                f"checkpoint={path} makes its vectors with {other}, and this project with the mean over all "
                "tokens: fine-tune it with task=embed first"
            )
        tokenizer = open_tokenizer(tokenizer_path, path)
        source.check_tokenizer(tokenizer, tokenizer_path or path)
        length = max_length or own_length(path)
        positions_needed = max(length, source.config.max_position_embeddings)
        wanted = {"attention": source.config.attention, "max_position_embeddings": positions_needed}
        config = source.configuration({**wanted, **changes}, section="model.")
        model, _ = source.model_with_head(NystromformerForEmbedding, config, positions=positions)
        return cls(model, tokenizer, length, device=device, precision=precision)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.model.config.hidden_size)

    def encode(
        self,
        texts: Iterable[str],
        batch_size: int = 64,
        *,
        tokens_per_batch: int = 16384,
        normalise: bool = True,
    ) -> NDArray[np.float32]:
        """A vector for each text, in their order: (texts, width); none depends on the others.

        Rows of like length go through the model together.

        Args:
            batch_size: most texts at once.
            tokens_per_batch: most tokens at once, padding included; a longer text goes by itself.
            normalise: to length 1, so that products are cosines.
        """
        waiting = iter(texts)
        found = [np.zeros((0, self.width), np.float32)]
        while part := list(islice(waiting, _AT_ONCE)):
            found.append(self._vectors(part, batch_size, tokens_per_batch, normalise))
        return np.concatenate(found)

    @torch.no_grad()
    def _vectors(self, texts: list[str], size: int, tokens: int, normalise: bool) -> NDArray[np.float32]:
        encoded = rows_of_texts([texts], self.tokenizer, self.max_length)
        vectors = np.empty((len(texts), self.width), np.float32)
        collate = partial(padded, pad_token_id=int(self.tokenizer.pad_token_id or 0))
        for rows, batch in ordered_batches(encoded, size, collate, tokens):
            with self._autocast:
                found = self.model(**on_device(batch, self.model.device))
            vectors[rows] = (found.embeddings if normalise else found.means).cpu().numpy()
        return vectors


def own_length(checkpoint: str) -> int:
    """Tokens that the model was fine-tuned with, or else all its positions; raises UserError for no model."""
    folder = Path(checkpoint).expanduser()
    if (folder / "task.json").is_file():
        return taught(folder)[1]
    return open_source(checkpoint, setting="checkpoint").config.max_position_embeddings


def swap(settings: SwapSettings) -> dict[str, Any]:
    """What is changed of a checkpoint, as `Embedder.load` takes it."""
    changes = {name: value for name, value in written(settings).items() if value is not None}
    return {"max_length": settings.max_length, "positions": settings.positions, **changes}
