"""What the tables of fine-tuned models share: tasks, of which some have no data, and facts of their seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from nystromformer.errors import UserError
from nystromformer.reproduce.runs import Seeds, task_of, why_absent
from nystromformer.settings.reproduce import ReproduceSettings


class TasksOfScale(Protocol):
    """A section of the scale that has tasks."""

    tasks: list[str]
    every: list[str]


def on_every_task(
    settings: ReproduceSettings, scale: TasksOfScale, measure: Callable[[str, list[str]], dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What `measure(task, words of its fine-tuning)` gives for each task, and why the others are absent.

    Raises:
        UserError: no task has data, or one cannot be measured.
    """
    measured: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    for text in scale.tasks:
        words = [*scale.every, *text.split()]
        task = task_of(words)
        if reason := why_absent(settings, words):
            absent[task] = reason
            print(f"{task} is absent: {reason}", flush=True)
        else:
            measured[task] = measure(task, words)
    if not measured:
        raise UserError("\n".join(f"{task}: {reason}" for task, reason in absent.items()))
    return measured, absent


def absent_lines(absent: Mapping[str, str]) -> list[str]:
    """A list of what is absent, if anything is."""
    return [*(f"- {task}: absent, {reason}" for task, reason in absent.items()), *([""] if absent else [])]


def shown_figures(figures: Iterable[str]) -> list[str]:
    """Of a seed's held-out figures those that a table shows."""
    return [name for name in figures if name not in ("loss", "score")]


def figures_of_seeds(seeds: Seeds) -> dict[str, list[float]]:
    """Each held-out figure, one value a seed."""
    return {name: [result["dev"][name] for result in seeds] for name in shown_figures(seeds[0]["dev"])}


def seconds_of_seeds(seeds: Seeds) -> float:
    return sum(result["seconds"] for result in seeds)


def examples_of(seeds: Seeds) -> dict[str, int]:
    """How many examples each part of the data has."""
    parts = seeds[0]["data"].items()
    return {name: part["examples"] for name, part in parts if isinstance(part, dict)}


def recipe_of(seeds: Seeds, *more: str) -> dict[str, Any]:
    return {name: seeds[0][name] for name in ("learning_rate", "batch_size", "epochs", *more)}


def cells_of_examples(examples: Mapping[str, int]) -> tuple[str, str]:
    """Cells of a table: how many examples are trained on, and how many are held out."""
    held_out = " + ".join(f"{count:,}" for part, count in examples.items() if part != "train")
    return f"{examples['train']:,}", held_out


def cells_of_recipe(recipe: Mapping[str, Any]) -> tuple[str, int, str]:
    """Cells of a table: rate, batch, epochs."""
    return f"{recipe['learning_rate']:g}", recipe["batch_size"], f"{recipe['epochs']:g}"
