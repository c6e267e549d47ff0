"""From the seeds' JSON files to the best cell of each task and one table, the paper's rows beside.

seed-0.json, seed-1.json …  →  summary.json (median, mean, standard deviation)  →  results.md
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from nystromformer.files import replacing, replacing_folder, write_atomically
from nystromformer.tables import table
from nystromformer.tasks.benchmarks import TASKS
from nystromformer.tasks.scores import shown

PAPER: dict[str, dict[tuple[str, str], float]] = {
    "paper: BERT-base": {
        ("sst2", "accuracy"): 90.0, ("mrpc", "f1"): 88.4, ("qnli", "accuracy"): 90.3, ("qqp", "f1"): 87.3,
        ("mnli", "accuracy_matched"): 82.4, ("mnli", "accuracy_mismatched"): 82.4, ("imdb", "accuracy"): 93.3,
    },
    "paper: Nyströmformer (512)": {
        ("sst2", "accuracy"): 91.4, ("mrpc", "f1"): 88.1, ("qnli", "accuracy"): 88.7, ("qqp", "f1"): 86.3,
        ("mnli", "accuracy_matched"): 80.9, ("mnli", "accuracy_mismatched"): 82.2, ("imdb", "accuracy"): 93.2,
    },
    "paper: Nyströmformer (1024)": {
        ("sst2", "accuracy"): 91.4, ("mrpc", "f1"): 87.5, ("qnli", "accuracy"): 88.7, ("qqp", "f1"): 86.3,
        ("mnli", "accuracy_matched"): 80.9, ("mnli", "accuracy_mismatched"): 81.4, ("imdb", "accuracy"): 93.0,
    },
}  # fmt: skip
"""Published figures, per cent (arXiv 2102.03902, table 3)."""

Result = dict[str, Any]
Answers = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Of each held-out set labels and predictions, (examples,) each."""
_ANSWERS = "held_out.npz"


def results_in(task_folder: Path) -> list[Result]:
    """Every finished seed of a task, in order of cell and seed."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in task_folder.glob("rate*/seed-*.json")]
    return sorted(found, key=lambda r: (r["batch_size"], r["learning_rate"], r["seed"]))


def keep_answers(folder: Path, answers: Mapping[str, tuple[Sequence[Any], Sequence[Any]]]) -> None:
    """Write a seed's labels and predictions of each held-out set, where they are numbers: what a test of two
    models on the same examples needs."""
    arrays: dict[str, Any] = {
        f"{name}_{kind}": np.asarray(values, np.float64)
        for name, pair in answers.items()
        for kind, values in zip(("labels", "predictions"), pair, strict=True)
        if all(isinstance(value, (int, float, np.number)) for value in values)
    }
    if len(arrays) == 2 * len(answers):
        with replacing(folder / _ANSWERS) as file:
            np.savez_compressed(file, **arrays)


def kept_answers(task_folder: Path, result: Result) -> Answers | None:
    """What `keep_answers` wrote for a seed; None where nothing can be read, as of an earlier version."""
    try:
        with np.load(_seed_folder(task_folder, result) / _ANSWERS) as found:
            names = [name.removesuffix("_labels") for name in found if name.endswith("_labels")]
            return {name: (found[f"{name}_labels"], found[f"{name}_predictions"]) for name in names}
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def summarise(task_folder: Path) -> dict[str, Any]:
    """Median, mean and spread of each figure for each cell; the best cell has the highest median score."""
    cells: dict[tuple[int, float], list[Result]] = {}
    for result in results_in(task_folder):
        cells.setdefault((result["batch_size"], result["learning_rate"]), []).append(result)
    summaries = [_cell(results) for results in cells.values()]
    best = max(summaries, key=lambda cell: cell["dev"]["score"]["median"])
    first = next(iter(cells.values()))[0]
    shared = {key: first[key] for key in ("task", "title", "metrics", "model", "data", "machine")}
    summary = {**shared, "contents": first.get("contents", {}), "best": best, "cells": summaries}
    write_atomically(task_folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _cell(results: list[Result]) -> dict[str, Any]:
    tests = [result["test"] for result in results if result["test"]]
    return {
        **{key: results[0][key] for key in ("learning_rate", "batch_size", "epochs")},
        "seeds": [result["seed"] for result in results],
        "dev": _spreads([result["dev"] for result in results]),
        "test": _spreads(tests) if tests else None,
        "seconds": sum(result["seconds"] for result in results),
    }


def _spreads(figures: list[dict[str, float]]) -> dict[str, dict[str, float | None]]:
    return {name: spread([found[name] for found in figures]) for name in figures[0]}


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median, mean, sample standard deviation (None for one value), least and most."""
    return {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
    }


def prune_models(task_folder: Path) -> None:
    """Remove the models of all finished seeds but the best so far: none of the others can become the best."""
    results = results_in(task_folder)
    best = _best_of(results)
    _remove_models(task_folder, [result for result in results if result is not best])


def _remove_models(task_folder: Path, results: list[Result]) -> None:
    for result in results:
        shutil.rmtree(_seed_folder(task_folder, result) / "model", ignore_errors=True)


def _best_of(results: list[Result]) -> Result:
    return max(results, key=lambda result: result["dev"]["score"])


def _seed_folder(task_folder: Path, result: Result) -> Path:
    cell = f"rate{result['learning_rate']:g}_batch{result['batch_size']}"
    return task_folder / cell / f"seed-{result['seed']}"


def keep_best(task_folder: Path, *, keep_all: bool) -> Path:
    """Copy the model with the highest score of all seeds and cells, and its pictures, into the task's folder.

    The finished seeds' own copies are removed unless `keep_all`; one that another command is still writing
    is left to it. A model that is in place stays until a better one, of seeds added later, comes.
    """
    results = results_in(task_folder)
    source = _seed_folder(task_folder, _best_of(results))
    place = task_folder / "model"
    if (source / "model").exists():
        with replacing_folder(place) as beside:
            shutil.copytree(source / "model", beside, dirs_exist_ok=True)
        for drawn in source.glob("*.png"):
            shutil.copyfile(drawn, task_folder / drawn.name)
    if not keep_all and place.exists():
        _remove_models(task_folder, results)
    return place


def write_table(run: Path, beside: Sequence[Path]) -> str:
    """Write `run/results.md` and return it: every run's figures of every task, and the paper's."""
    runs = {folder: _summaries(folder) for folder in (run, *beside)}
    columns = sorted(
        {
            (name, figure)
            for summaries in runs.values()
            for name, s in summaries.items()
            for figure in _shown(s)
        },
        key=lambda column: (_place(column[0]), column[1]),
    )
    titles = [_title(name, figure, runs) for name, figure in columns]
    rows: list[list[str]] = []
    for folder, summaries in runs.items():
        rows.append([_run_title(folder, summaries), *(_entry(summaries, *column) for column in columns)])
    for title, figures in PAPER.items():
        if any(column in figures for column in columns):
            rows.append([title, *(f"{figures[c]:.1f}" if c in figures else "" for c in columns)])
    page = [
        f"# {run.name}: held-out figures, per cent",
        "",
        "Median (mean ± sample standard deviation of the seeds). The paper's are of its own "
        "pretraining, and of GLUE's dev sets; for IMDB of its test set.",
        "",
        *table(("model", *titles), rows),
        "",
        *_other_data(runs),
    ]
    for folder, summaries in runs.items():
        page += _details(folder, summaries)
    text = "\n".join(page)
    write_atomically(run / "results.md", text)
    return text


def _other_data(runs: dict[Path, dict[str, Any]]) -> list[str]:
    """Lines that name what stands beside each other and was not trained or measured on the same examples."""
    (own, mine), *others = runs.items()
    lines = []
    for folder, summaries in others:
        for name in mine.keys() & summaries.keys():
            one, other = (_data_of(each[name]) for each in (mine, summaries))
            if differing := [part for part in one if other and one[part] != other.get(part)]:
                lines.append(
                    f"**{mine[name]['title']} of {folder.name} is of other data than {own.name}'s: "
                    f"{', '.join(differing)}. Their figures compare nothing.**"
                )
    return [line for text in sorted(lines) for line in (text, "")]


def _data_of(summary: dict[str, Any]) -> dict[str, str]:
    contents = summary.get("contents", {})
    return {name: value for name, value in contents.items() if name not in ("checkpoint", "tokenizer")}


def _summaries(run: Path) -> dict[str, dict[str, Any]]:
    found = (json.loads(path.read_text(encoding="utf-8")) for path in run.glob("*/summary.json"))
    ordered = sorted(found, key=lambda summary: _place(summary["task"]))
    return {summary["task"]: summary for summary in ordered}


def _place(task: str) -> tuple[int, str]:
    """Benchmarks in their own order, then the user's tasks."""
    names = list(TASKS)
    return (names.index(task) if task in names else len(names), task)


def _shown(summary: dict[str, Any]) -> list[str]:
    return [name for name in summary["best"]["dev"] if name not in ("loss", "score")]


def _title(name: str, figure: str, runs: dict[Path, dict[str, Any]]) -> str:
    title = next(summaries[name]["title"] for summaries in runs.values() if name in summaries)
    return f"{title} {figure.replace('_', ' ')}"


def _run_title(folder: Path, summaries: dict[str, dict[str, Any]]) -> str:
    kinds = {summary["model"]["attention"] for summary in summaries.values()}
    return f"{folder.name} ({', '.join(sorted(kinds))})" if kinds else folder.name


def _entry(summaries: dict[str, dict[str, Any]], name: str, figure: str) -> str:
    found = summaries.get(name, {}).get("best", {}).get("dev", {}).get(figure)
    if found is None:
        return ""
    if found["sd"] is None:
        return shown(figure, found["median"])
    median, mean, deviation = (shown(figure, found[name]) for name in ("median", "mean", "sd"))
    return f"{median} ({mean} ± {deviation})"


def _details(folder: Path, summaries: dict[str, dict[str, Any]]) -> list[str]:
    """What each figure comes from: recipe, sizes, cuts, time; and the test figures and grids, if any."""
    if not summaries:
        return []
    head = ("task", "rate", "batch", "epochs", "seeds", "training", "held out", "tokens", "cut", "minutes")
    rows, lines = [], [f"## {folder.name}", ""]
    for summary in summaries.values():
        best, data = summary["best"], summary["data"]
        held_out = [part for name, part in data.items() if isinstance(part, dict) and name != "train"]
        rows.append(
            (
                summary["title"], f"{best['learning_rate']:g}", best["batch_size"], f"{best['epochs']:g}",
                len(best["seeds"]), f"{data['train']['examples']:,}",
                " + ".join(f"{part['examples']:,}" for part in held_out), summary["model"]["max_length"],
                f"{data['train']['truncated']:.1%}", f"{best['seconds'] / 60:.1f}",
            )
        )  # fmt: skip
    first = next(iter(summaries.values()))
    model, machine = first["model"], first["machine"]
    lines += [
        f"`{'/'.join(Path(model['checkpoint']).parts[-2:])}` ({model['kind']}), "
        f"{model['attention']} attention, {model['num_landmarks']} landmarks. "
        "The best checkpoint of a seed is chosen by the held-out examples that the "
        "figures are of.",
        "",
        *table(head, rows),
        "",
        f"On {machine['device']}, torch {machine['torch']}, commit {machine['commit']}, {machine['date']}.",
        "",
    ]
    for summary in summaries.values():
        if len(summary["cells"]) > 1:
            lines += _grid(summary)
        if summary["best"]["test"]:
            test = summary["best"]["test"]
            told = ", ".join(
                f"{name} {shown(name, test[name]['median'])}"
                for name in test
                if name not in ("loss", "score")
            )
            lines += [
                f"{summary['title']}, test set, looked at once with each seed's checkpoint: {told} (median).",
                "",
            ]
    return lines


def _grid(summary: dict[str, Any]) -> list[str]:
    rates = sorted({cell["learning_rate"] for cell in summary["cells"]})
    sizes = sorted({cell["batch_size"] for cell in summary["cells"]})
    scores = {
        (cell["batch_size"], cell["learning_rate"]): f"{100 * cell['dev']['score']['median']:.1f}"
        for cell in summary["cells"]
    }
    rows = [[size, *(scores.get((size, rate), "") for rate in rates)] for size in sizes]
    head = (f"{summary['title']}: batch", *(f"{rate:g}" for rate in rates))
    return ["Median score of each cell of the grid:", "", *table(head, rows), ""]
