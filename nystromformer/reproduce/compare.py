"""`reproduce compare=[A,B]`: two folders of one table or figure side by side, on one page."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.intervals import difference_of_means
from nystromformer.results import read_result, results_folder
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.tables import Block, page_of, table

SAMPLES = frozenset({"figures", "score", "accuracies", "seconds"})
"""Keys below which a list of numbers holds one a seed or a repetition."""
_NO_FIGURES = frozenset(
    {"published", "published_transformer_over_row", "recipe", "examples", "seeds", "step", "intervals"}
)
_NAMES = ("task", "attention")
"""What names a row that is not named by its key."""


def compare(settings: ReproduceSettings) -> Path:
    """Write compare_A_B.md: every figure of both results, joined by name, and their difference.

    Returns:
        The page.

    Raises:
        UserError: a folder has no result, they are of different tables, or the page cannot be written.
    """
    folders = [Path(name) for name in settings.compare]
    first, second = (_read(folder) for folder in folders)
    if first["result"] != second["result"]:
        raise UserError(
            f"compare: {folders[0]} is of {first['result']} and {folders[1]} of {second['result']}: write "
            "two folders of one table or figure"
        )
    names = _names(*(folder.resolve() for folder in folders))
    page = page_of(_blocks(names, first, second))
    print(page)
    path = results_folder(settings.folder) / f"compare_{'_'.join(names).replace('/', '_')}.md"
    try:
        write_atomically(path, page)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _names(first: Path, second: Path) -> list[str]:
    """The last parts of both paths, as many as tell them apart."""
    if first == second:
        raise UserError(f"compare: both folders are {first.name}: write two different ones")
    for depth in range(1, max(len(first.parts), len(second.parts)) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in (first, second)]
        if names[0] != names[1]:
            break
    return names


def _read(folder: Path) -> dict[str, Any]:
    found = read_result(folder)
    if found is None:
        raise UserError(
            f"compare: {folder} holds no result: write the folder of a table or figure, e.g. "
            "reproduced/efficiency_cpu"
        )
    return found


def _blocks(names: list[str], first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Block]:
    one, other = (dict(figures_of(result["measured"])) for result in (first, second))
    rows = []
    for name in (name for name in one if name in other):
        before, after = (_values(found[name]) for found in (one, other))
        interval = difference_of_means(before, after)
        rows.append(
            (
                name,
                *(f"{statistics.fmean(values):.4g}" for values in (before, after)),
                f"{statistics.fmean(after) - statistics.fmean(before):+.3g}",
                f"[{interval[0]:+.3g}, {interval[1]:+.3g}]" if interval else "",
            )
        )
    about = [
        f"- {name}: {result['machine']['device']}, commit {result['machine']['commit']}, "
        f"{result['machine']['date']}, `{result['command']}`"
        for name, result in zip(names, (first, second), strict=True)
    ]
    return [
        f"# {first['title']}: {names[0]} and {names[1]}",
        [*about, *_changes(first["configuration"], second["configuration"])],
        "Means where there are several seeds or repetitions, and then the 95 % interval of the difference "
        "(Welch's).",
        table(("figure", *names, "difference", "95 % interval"), rows),
        *(
            f"Only in {name}: {', '.join(only)}."
            for name, mine, others in ((names[0], one, other), (names[1], other, one))
            if (only := [figure for figure in mine if figure not in others])
        ),
    ]


def _changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    changed = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    if changed:
        yield f"- of different settings: {', '.join(changed)}"


def figures_of(measured: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Name and value of every figure in what result.json holds: a number, or a list of one a seed.

    Of a curve the last point counts; a row in a list is named by its task and attention.
    """
    if isinstance(measured, Mapping):
        for key, value in measured.items():
            if key not in _NO_FIGURES:
                yield from figures_of(value, (*path, key))
    elif isinstance(measured, list):
        rows = [one for one in measured if isinstance(one, Mapping)]
        if rows and "step" in rows[-1]:
            yield from figures_of(rows[-1], path)
        elif all(any(name in row for name in _NAMES) for row in rows):
            for row in rows:
                yield from figures_of(row, (*path, *(str(row[name]) for name in _NAMES if name in row)))
        if measured and not rows and SAMPLES & set(path) and all(map(_is_number, measured)):
            yield ", ".join(path), measured
    elif _is_number(measured):
        yield ", ".join(path), measured


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _values(value: Any) -> list[float]:
    return [float(one) for one in (value if isinstance(value, list) else [value])]
