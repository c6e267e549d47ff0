"""From files to examples, and what is done to all data before training: checked, cut, divided."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nystromformer.data.documents import text_hash
from nystromformer.errors import UserError
from nystromformer.hub import first_line, look_for
from nystromformer.settings.finetune import TaskDataSettings, TaskSettings, kind_named
from nystromformer.tasks.row_files import Asked, Fault, Row, Unusable, listed, shortened, to_learn
from nystromformer.tasks.table_files import TableFile
from nystromformer.tasks.task import Examples, Found, Splits, Task, Texts

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def load_splits(settings: TaskSettings, data: TaskDataSettings) -> Splits:
    """Read, check and, where asked, cut the data of one task.

    Raises:
        UserError: something is missing, malformed or empty.
    """
    with as_files(data) as (files, names):
        try:
            splits = check(kind_named(settings.kind).load(settings, files))
        except UserError as error:
            raise type(error)(_renamed(str(error), names)) from None
    splits.origin = _renamed(splits.origin, names)
    splits.skipped = [_renamed(row, names) for row in splits.skipped]
    return limited(splits, data.max_train_examples, data.max_dev_examples)


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """A message about files that a split of the hub is in as one about that split."""
    for path, name in names.items():
        text = text.replace(path, name)
    return text


def own_splits(
    task: Task,
    data: TaskDataSettings,
    *,
    opened: Callable[[Asked], Any] | None = None,
    read: Callable[[Any], Examples] | None = None,
) -> Splits:
    """The files of data.train, data.dev and data.test; without a second, a part of the first is held out.

    Args:
        opened, read: a file, and its examples; without them as the task says.

    Raises:
        UserError: of opening and reading; or there are too few examples to hold some back.
    """
    parts: dict[str, Examples] = {}
    files: list[Any] = []
    for name in ("train", "dev", "test"):
        if getattr(data, name) is not None:
            file = (opened or task.opened)(to_learn(data, name))
            parts[name] = read(file) if read else task.collected.of(task.rows(file, labelled=True))
            if name == "test" and not len(parts[name]):
                raise UserError(f"{file.path} holds no examples: bring some, or write data.test=null")
            files.append(file)
    train = parts.pop("train")
    if "dev" not in parts:
        strata = task.strata(train.labels or [])
        if len(train) < 2 * max(len(set(strata)), 1):
            few = f"{files[0].path} has {len(train)} rows, too few to hold some back"
            raise UserError(f"{few}: write data.dev=FILE")
        parts["dev"], train = divide(train, data.dev_fraction, strata)
    skipped = [row for file in files for row in file.skipped]
    return Splits(task, train, {"dev": parts.pop("dev")}, parts, str(data.train), skipped)


def usable_rows(
    file: TableFile,
    texts: Callable[[Row], Texts],
    label: Callable[[Row], Any] | None,
    id_column: str | None = None,
) -> Iterator[Found | Fault]:
    """Texts, label and name of each row of a table, and the rows that the file reports.

    Args:
        texts, label: what a row holds, raising Unusable for one that cannot be used.
        id_column: what names a row; its number, from 0, where there is none.

    Raises:
        Malformed: naming file and line, for a row that cannot be used, unless the file skips or reports it.
    """

    def found(row: Row, number: int) -> Iterator[Found]:
        yield texts(row), label(row) if label else None, row.name(id_column, number)

    return file.usable(file.rows_and_faults(), found)


def number_of(text: str) -> float | None:
    """The finite number that a text is, in ASCII digits as any program writes them, or None.

    Python's own `float` also takes 1_000, ２, nan and infinity, which other programs do not, or not as
    numbers to learn.
    """
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def check(splits: Splits) -> Splits:
    """Raise UserError for data that nothing can be learned from or measured on."""
    parts = {
        "training examples": splits.train,
        **{f"{name} examples": part for name, part in splits.dev.items()},
    }
    for name, part in parts.items():
        if not len(part):
            raise UserError(f"{splits.origin}: there are no {name} of {splits.task.title}: bring some")
    splits.task.check(splits)
    return splits


def limited(splits: Splits, most_train: int | None, most_dev: int | None) -> Splits:
    """The same with at most so many examples, those with the lowest hash of each class."""
    return replace(
        splits,
        train=_at_most(splits.train, most_train, splits.task),
        dev={name: _at_most(part, most_dev, splits.task) for name, part in splits.dev.items()},
    )


def _at_most(examples: Examples, most: int | None, task: Task) -> Examples:
    if most is None or len(examples) <= most:
        return examples
    kept, _ = divide(examples, most / len(examples), task.strata(examples.labels or []), at_most=most)
    return kept


def divide(
    examples: Examples,
    share: float,
    strata: Sequence[Hashable] | None = None,
    *,
    at_most: int | None = None,
) -> tuple[Examples, Examples]:
    """The `share` of each class whose texts have the lowest hashes, and the rest, both in file order.

    Depends on nothing but the texts: the same for any seed and any order of the file. Equal texts of one
    class go to the same side, unless the border falls between them.

    Args:
        strata: the class of each example; its label when absent.
    """
    strata = (examples.labels or []) if strata is None else strata
    classes: dict[Hashable, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        classes[stratum].append(index)
    chosen: set[int] = set()
    for members in classes.values():
        members.sort(key=lambda index: (text_hash("\t".join(examples.texts[index])), index))
        chosen.update(members[: max(round(share * len(members)), 1)])
    picked = sorted(chosen)
    if at_most is not None:
        picked = picked[:at_most] if len(classes) > at_most else _trimmed(picked, at_most, strata)
    inside = set(picked)
    return examples.take(picked), examples.take(i for i in range(len(examples)) if i not in inside)


def _trimmed(picked: list[int], at_most: int, strata: Sequence[Hashable]) -> list[int]:
    """Rounding may have taken a few too many: the last ones of classes that have others go."""
    counts = Counter(strata[index] for index in picked)
    kept = list(picked)
    for index in reversed(picked):
        if len(kept) <= at_most:
            break
        if counts[strata[index]] > 1:
            counts[strata[index]] -= 1
            kept.remove(index)
    return kept


def in_order(values: Iterable[str]) -> list[str]:
    """Numbers by size where all of them are numbers, else all of them by their letters."""
    numbers = {value: number_of(value) for value in values}
    if None in numbers.values():
        return sorted(numbers)
    return sorted(numbers, key=lambda value: (numbers[value], value))


def id_of(value: str, ids: dict[str, int]) -> int:
    if value not in ids:
        raise Unusable(f"has the label {shortened(value)}, which is none of {listed(ids)}")
    return ids[value]


def number_in(value: str, column: str) -> float:
    if (number := number_of(value)) is None:
        raise Unusable(f"has {shortened(value)} in {column!r}, which is no number")
    return number


def unlike(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "_"
    return name


# --- data sets of the hub, and folders of the same layout: as JSON lines ------------------------------


_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
"""What each setting's split is called there."""


def load_from_hub(repository: str, configuration: str | None, otherwise: str) -> Any:
    """A DatasetDict of the hub, or of a folder; raises UserError with what to write `otherwise`."""
    look_for(repository)
    import datasets  # heavy; it goes by what was found

    folder = Path(repository).expanduser()
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            found = datasets.load_from_disk(str(folder))
            return found if isinstance(found, datasets.DatasetDict) else datasets.DatasetDict(train=found)
        return datasets.load_dataset(str(folder) if folder.is_dir() else repository, configuration)
    except Exception as error:  # the library and the hub's client raise a dozen kinds
        where = "as a data set" if folder.is_dir() else "from the hub"
        raise UserError(f"{repository} cannot be loaded {where} ({first_line(error)}): {otherwise}") from None


@contextmanager
def as_files(data: TaskDataSettings) -> Iterator[tuple[TaskDataSettings, dict[str, str]]]:
    """The settings with the splits of data.hub as files, and what people know each file as.

    Raises:
        UserError: the data set or a split is not there.
    """
    if data.hub is None:
        yield data, {}
        return
    loaded = load_from_hub(
        data.hub, data.hub_config, "connect to the network, correct data.hub or data.hub_config, or write "
        "data.train=FILE",
    )  # fmt: skip
    if data.hub_splits:
        chosen = dict(zip(_SPLITS, data.hub_splits, strict=False))
    else:
        chosen = {part: name for part, name in _SPLITS.items() if name in loaded or part == "train"}
    for name in chosen.values():
        if name not in loaded:
            raise UserError(
                f"data.hub={data.hub} has no split {name!r}: write data.hub_splits=[…] with names of "
                f"{', '.join(loaded)}"
            )
    if "test" in chosen and not data.hub_splits and _is_unlabelled(loaded[chosen["test"]]):
        del chosen["test"]  # as in GLUE: for a submission
    with TemporaryDirectory(prefix="nystromformer-") as folder:
        paths = {part: Path(folder) / f"{part}.jsonl" for part in chosen}
        for part, path in paths.items():
            _write(loaded[chosen[part]], path)
        named = {str(path): f"{data.hub}, {chosen[part]}" for part, path in paths.items()}
        files: dict[str, Any] = {part: str(path) for part, path in paths.items()}
        yield replace(data, **files), named


def _is_unlabelled(rows: Any) -> bool:
    """Whether a class of every row is −1, which stands for none there."""
    columns = [name for name, feature in rows.features.items() if hasattr(feature, "int2str")]
    return any(len(rows) and set(rows.unique(name)) == {-1} for name in columns)


def _write(rows: Any, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            named = {name: _named(value, rows.features[name]) for name, value in row.items()}
            file.write(json.dumps(named, default=str) + "\n")


def _named(value: Any, feature: Any) -> Any:
    """The value with the names of classes for their numbers."""
    if hasattr(feature, "int2str"):
        return None if value is None or value == -1 else feature.int2str(value)
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
    if inner is not None and isinstance(value, list):
        return [_named(entry, inner) for entry in value]
    fields = inner if isinstance(inner, dict) else feature
    if isinstance(fields, dict) and isinstance(value, dict):
        return {name: _named(entry, fields.get(name)) for name, entry in value.items()}
    if isinstance(value, list) and isinstance(feature, dict):
        return [_named(entry, feature) for entry in value]
    return value
