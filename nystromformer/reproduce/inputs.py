"""What a result's figures depend on beside its settings, by content: weights, reviews, tasks' data, corpora.

It is written into result.json. A result whose inputs have changed since is measured anew; one whose inputs
are not there now is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nystromformer.data.plan import plan
from nystromformer.data.text_files import imdb
from nystromformer.errors import UserError
from nystromformer.files import sha256_of_file, sha256_of_json
from nystromformer.model.source import content_of_checkpoint, open_tokenizer
from nystromformer.reproduce.lra.examples import content_of, load_task
from nystromformer.reproduce.result import trained_bert
from nystromformer.reproduce.runs import composed_finetune, composed_run, task_of
from nystromformer.reproduce.scaling.curves import words_at
from nystromformer.settings.reproduce import RESULTS, ReproduceSettings
from nystromformer.tasks.collection import Collection
from nystromformer.tasks.identity import content_of_tokenizer, contents_of_data, short
from nystromformer.tasks.reading import load_splits

Inputs = dict[str, str | None]
"""What it is, for people → its content, None where it is not there or cannot be read."""


def inputs_of(settings: ReproduceSettings, name: str) -> Inputs:
    """All inputs of a result, as they are now."""
    return {title: _read(read) for title, read in _inputs(settings, name)}


def changed_inputs(result: Mapping[str, Any], now: Inputs) -> list[str]:
    """What has changed since a result was measured, or has come to be there."""
    then: Inputs = result.get("inputs", {})
    return [
        title
        for title, content in now.items()
        if title in then and content is not None and content != then[title]
    ]


def measured_on(before: Inputs, after: Inputs) -> Inputs:
    """What a measurement is of: what it found, and what came to be while it went on, such as its own runs."""
    return {**after, **{title: content for title, content in before.items() if content is not None}}


def _inputs(settings: ReproduceSettings, name: str) -> Iterator[tuple[str, Callable[[], str | None]]]:
    heads = RESULTS[name].section == "heads"
    if heads or name in ("glue", "swap", "finetune", "retrieval"):
        yield "weights", lambda: content_of_checkpoint(trained_bert(settings))
        yield "tokenizer", lambda: content_of_tokenizer(open_tokenizer(None, trained_bert(settings)))
    if name == "retrieval":
        yield "collection", partial(_collection, settings)
    if heads or name == "starts":
        yield "reviews", _reviews
    for words in _pretrainings(settings, name):
        run = _name_of(words)
        yield f"corpus of {run}", partial(_corpus, settings, words)
        yield f"start of {run}", partial(_start, settings, words)
    if name == "scaling" and settings.step:
        yield "step", partial(sha256_of_file, Path(settings.step).expanduser())
    if name == "lra":
        for task in settings.scale.lra.tasks:
            if task == "text" or (task != "listops" and settings.lra_root):
                yield f"data of {task}", partial(_lra_data, settings, task)
        return
    section: Any = getattr(settings.scale, name, None)
    for text in getattr(section, "tasks", ()):
        words = [*section.every, *text.split()]
        yield f"data of {task_of(words)}", partial(_task_data, settings, words)


def _pretrainings(settings: ReproduceSettings, name: str) -> list[list[str]]:
    """The words of each pretraining run behind a result; of one that goes on from another, where that is."""
    scale = settings.scale
    found = {
        "longer": [scale.longer.first, scale.longer.second],
        "small": [scale.small.bert, scale.small.nystromformer],
        "warmstart": [scale.warmstart.nystrom, scale.warmstart.neighbours, scale.warmstart.exact],
        "starts": [["experiment=warmstart"]],
        "scaling": [
            [*words_at(scale.scaling, length), f"name=scaling_{length}"] for length in scale.scaling.lengths
        ],
        "glue": [scale.glue.bert, scale.glue.nystromformer, scale.glue.longer],
    }.get(name, [])
    runs = [list(words) for words in found if words]
    if name in ("longer", "glue") and len(runs) > 1:
        before = composed_run(settings, runs[-2])
        runs[-1].append(f"init.path={Path(before.runs_folder) / before.name / 'model'}")
    return runs


def _name_of(words: Sequence[str]) -> str:
    named = [word.partition("=")[2] for word in words if word.startswith(("name=", "experiment="))]
    return named[-1] if named else " ".join(words)


def _collection(settings: ReproduceSettings) -> str:
    collection = Collection(Path(str(settings.collection)).expanduser(), "collection")
    return sha256_of_json([sha256_of_file(path) for path in collection.files("test")])


def _reviews() -> str:
    return sha256_of_file(imdb().files[0])


def _lra_data(settings: ReproduceSettings, task: str) -> str:
    return content_of(load_task(task, settings.scale.lra, settings.lra_root))


def _corpus(settings: ReproduceSettings, words: Sequence[str]) -> str:
    """The name of the prepared folder, which says what it is made from; nothing is prepared."""
    return plan(composed_run(settings, words).preparation).folder.name


def _start(settings: ReproduceSettings, words: Sequence[str]) -> str | None:
    init = composed_run(settings, words).init
    return None if init.source == "scratch" else content_of_checkpoint(str(init.path))


def _task_data(settings: ReproduceSettings, words: Sequence[str]) -> str:
    run = composed_finetune(settings, [*words, "checkpoint=any"])
    contents = contents_of_data(load_splits(run.task, run.data))
    return short(sha256_of_json(contents))


def _read(read: Callable[[], str | None]) -> str | None:
    try:
        return read()
    except (UserError, OSError):
        return None
