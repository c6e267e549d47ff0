"""What a task is trained on and from, by content: the examples as they were read, the weights, the tokenizer.

Neither names nor dates of files are in it: a copied or touched file is the same, an edited one is another.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from nystromformer.data.tokenizer import content_hash
from nystromformer.files import sha256_of_json
from nystromformer.settings.finetune import TaskDataSettings
from nystromformer.tasks.task import Examples, Splits, Task

Contents = dict[str, str]
"""`checkpoint`, `tokenizer`, `train` and each labelled set → what it holds, in a few letters."""
_NAMED = ("train", "dev", "test", "root", "hub", "vectors", "dev_vectors")
_SHOWN = 16  # hexadecimal digits: 64 bits, which no edit meets by chance


def contents_of_data(splits: Splits) -> Contents:
    """The labelled sets: training, held-out, and test sets that figures are of.

    A test set without labels decides nothing: a submission is predicted anew each time.
    """
    test = {name: part for name, part in splits.test.items() if part.labels is not None}
    parts = {"train": splits.train, **splits.dev, **test}
    return {name: _content(part, splits.task) for name, part in parts.items()}


def content_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that decides how text becomes token ids."""
    if tokenizer.is_fast:
        return short(content_hash(tokenizer))
    words = [sorted(tokenizer.get_vocab().items()), sorted(map(str, tokenizer.all_special_tokens))]
    return short(sha256_of_json(words))


def short(digest: str) -> str:
    """The digits of a SHA-256 that are kept and shown."""
    return digest[:_SHOWN]


def missing_data(data: TaskDataSettings) -> list[str]:
    """The settings that name a file or folder which is not there."""
    named = {name: getattr(data, name) for name in _NAMED}
    return [
        f"data.{name}={path}" for name, path in named.items() if path and not Path(path).expanduser().exists()
    ]


def _content(part: Examples, task: Task) -> str:
    """Texts and labels in their order, which the batches follow; names of classes and their ids."""
    digest = hashlib.sha256(json.dumps(task.labels).encode())
    labels = part.labels or []
    for texts, label in zip(part.texts, labels, strict=True):
        held = float(label) if isinstance(label, int) else label
        digest.update(json.dumps([*texts, held], default=np.ndarray.tolist).encode() + b"\n")
    return f"{len(part):,} examples {short(digest.hexdigest())}"
