"""What the results in a task's folder are of: noted beside them, and compared with what a command is of.

    settings.json    every setting that decides a seed's result, and `contents`: the examples as they were
                     read, the weights, the tokenizer

A setting that did not exist when the file was written has had its default then. Paths are compared only
where the content behind them is not known on both sides. Neither names nor dates of files are in a content: a
copied or touched file is the same, an edited one is another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from nystromformer.data.tokenizer import content_hash
from nystromformer.errors import UserError
from nystromformer.files import sha256_of_json, write_atomically
from nystromformer.settings.finetune import FinetuneSettings, TaskDataSettings, TaskSettings
from nystromformer.settings.identity import difference, paths_of, read_stored
from nystromformer.settings.identity import identity as decisive
from nystromformer.tasks.task import Examples, Splits, Task

_PATHS = paths_of(FinetuneSettings)
_CONTENTS = "contents"


class OtherResults(UserError):
    """A folder holds results of other settings or contents; what to write instead is the message's end."""

    def __init__(self, found: str, instead: str) -> None:
        super().__init__(f"{found}: {instead}")
        self.found = found


def identity(settings: FinetuneSettings, task: TaskSettings) -> dict[str, Any]:
    """Every setting that decides a seed's result, beside its rate, batch and seed."""
    return decisive(replace(settings, task=task))


def compare(task_folder: Path, now: dict[str, Any], contents: Contents | None = None) -> None:
    """Compare a command with what the folder's results and stopped seeds are of.

    Args:
        now: the command's `identity`.
        contents: what it reads, as far as that is there; None compares the settings that are no paths.

    Raises:
        OtherResults: they are of something else; both are named, and what to write.
    """
    before = _noted(task_folder)
    noted: Contents = before.pop(_CONTENTS, {})
    if before:
        _compare_settings(task_folder, before, now, noted, contents)
    for place, then in ((str(task_folder), noted), *_of_seeds(task_folder)):
        if then and contents and (changed := _changed(then, contents, now)):
            raise OtherResults(
                f"{place} holds results of what has changed since: {'; '.join(changed)}",
                f"write name=OTHER to train on what is there now, or remove {task_folder}",
            )


def note(task_folder: Path, now: dict[str, Any], contents: Contents) -> None:
    """Write down what the folder's results are going to be of; raises OSError."""
    task_folder.mkdir(parents=True, exist_ok=True)
    content = {**now, _CONTENTS: contents}
    write_atomically(task_folder / "settings.json", json.dumps(content, indent=2) + "\n")


def is_noted(task_folder: Path) -> bool:
    """Whether the folder says what its results are of."""
    return bool(_noted(task_folder))


def _noted(task_folder: Path) -> dict[str, Any]:
    """What settings.json holds; nothing where there is none."""
    path = task_folder / "settings.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(f"{path} is no JSON: write name=OTHER, or remove {task_folder}") from None


def _compare_settings(
    task_folder: Path,
    saved: dict[str, Any],
    now: dict[str, Any],
    noted: Contents,
    contents: Contents | None,
) -> None:
    place = str(task_folder / "settings.json")
    before = decisive(read_stored(FinetuneSettings, saved, place, "write name=OTHER for a new run"))
    known = set() if contents is None else noted.keys() & contents.keys()
    by_content = {key for key, content in _PATHS.items() if contents is None or content in known}
    if differing := difference(before, now, ignored=by_content):
        then, today = differing
        raise OtherResults(
            f"{task_folder} holds results with {then}, and now {today}",
            f"write {then} to add to them, or name=OTHER for a new run",
        )


def _changed(then: Contents, now: Contents, settings: dict[str, Any]) -> list[str]:
    """A line for each content that is another one; what is not there now is not compared."""
    start = ("checkpoint", "tokenizer")
    names = [name for name in start if name in then and name in now]
    if "train" in now:
        names += [name for name in dict.fromkeys([*then, *now]) if name not in start]
    return [
        f"{_title(name)}{_written(name, settings)}: {before} then, {today} now"
        for name in names
        if (before := then.get(name, "none")) != (today := now.get(name, "none"))
    ]


def _title(name: str) -> str:
    titles = {"train": "training examples", "checkpoint": "weights", "tokenizer": "tokenizer"}
    return titles.get(name, f"{name} examples")


def _written(name: str, settings: dict[str, Any]) -> str:
    """The setting that names a content, in brackets: held-out examples may be a part of data.train."""
    own = [key for key, content in _PATHS.items() if content == name and key != "data.source"]
    otherwise = ["checkpoint"] if name == "tokenizer" else ["data.train", "data.root"]
    key = next((key for key in (*own, *otherwise) if settings.get(key)), None)
    return f" ({key}={settings[key]})" if key else ""


def _of_seeds(task_folder: Path) -> Iterator[tuple[str, Contents]]:
    """The contents that each finished seed's own result tells."""
    for path in sorted(task_folder.glob("rate*/seed-*.json")):
        yield str(path), json.loads(path.read_text(encoding="utf-8")).get(_CONTENTS, {})


# --- what a task is trained on and from, by content ---------------------------------------------------


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
