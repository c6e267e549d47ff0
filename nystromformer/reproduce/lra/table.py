"""All cells of the table, the page about them and their learning curves."""

from __future__ import annotations

import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from nystromformer.intervals import in_percent, proportion_interval
from nystromformer.machine import device_of
from nystromformer.pictures import STYLES, legend_below, picture, plot_events
from nystromformer.reproduce.lra.examples import LraTask, content_of, load_task
from nystromformer.reproduce.lra.training import Cell, finished, forget_cell, train_cell
from nystromformer.results import Result
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.settings.scale import LraScale
from nystromformer.tables import table

COLUMNS = ("listops", "text", "retrieval", "image", "pathfinder")
PUBLISHED: dict[str, tuple[float, ...]] = {
    "Standard": (37.10, 65.02, 79.35, 38.20, 74.16),
    "Reformer": (19.05, 64.88, 78.64, 43.29, 69.36),
    "Linformer": (37.25, 55.91, 79.37, 37.84, 67.60),
    "Performer": (18.80, 63.81, 78.62, 37.07, 69.87),
    "Nyströmformer": (37.15, 65.52, 79.56, 41.58, 70.94),
}
"""The paper's accuracies in percent, by COLUMNS."""
NAMES = {
    "softmax": "Standard",
    "nystrom": "Nyströmformer",
    "linformer": "Linformer",
    "performer": "Performer",
    "longformer": "Longformer",
}
"""What the paper calls each mechanism; it has no row of Longformer."""
TITLES = {"listops": "ListOps", "text": "Text"}


def lra(settings: ReproduceSettings) -> Result:
    """Train what is not trained yet, cell by cell, and tell all.

    Raises:
        UserError: the reviews are out of reach, or a folder cannot be written.
    """
    scale, device = settings.scale.lra, device_of(settings.device)
    cells = [
        Cell(task, attention, seed)
        for task in scale.tasks
        for attention in scale.attentions
        for seed in scale.seeds
    ]
    tasks = {name: load_task(name, scale) for name in scale.tasks}
    contents = {name: content_of(task) for name, task in tasks.items()}
    found = []
    for cell in cells:
        where = (settings.runs_folder, scale, device.type, contents[cell.task])
        if settings.again:
            forget_cell(cell.folder(*where))
        folder = cell.folder(*where)
        found.append(finished(folder) or train_cell(cell, tasks[cell.task], scale, device, folder))
    measured = {
        "tasks": {name: _about(task) for name, task in tasks.items()},
        "rows": [
            _row(
                task,
                attention,
                [c for c in found if (c["task"], c["attention"]) == (task, attention)],
                len(tasks[task].test),
            )
            for task in scale.tasks
            for attention in scale.attentions
        ],
        "published": {name: dict(zip(COLUMNS, row, strict=True)) for name, row in PUBLISHED.items()},
        "absent": ["retrieval", "image", "pathfinder"],
    }
    return Result(
        "Long Range Arena",
        measured,
        _lines(measured, scale),
        _headline(measured),
        {f"{name}_curves": partial(_draw, task=name) for name in scale.tasks},
    )


def _about(task: LraTask) -> dict[str, Any]:
    return {
        "origin": task.origin,
        "train": len(task.train),
        "test": len(task.test),
        "mean_tokens": float(task.train.lengths.mean()),
        "cut": task.train.truncated,
        "class_shares": task.balance,
        "chance": task.chance,
    }


def _row(task: str, attention: str, cells: list[dict[str, Any]], examples: int) -> dict[str, Any]:
    """One attention on one task, over the seeds."""
    scores = [cell["accuracy"] for cell in cells]
    middle = statistics.median(scores)
    return {
        "task": task,
        "attention": attention,
        "accuracy": middle,
        "interval": proportion_interval(middle, examples),
        "lowest": min(scores),
        "highest": max(scores),
        "accuracies": scores,
        "seeds": [cell["seed"] for cell in cells],
        "steps": cells[0]["steps"],
        "milliseconds_per_step": statistics.median(cell["milliseconds_per_step"] for cell in cells),
        "seconds": sum(cell["seconds"] for cell in cells),
        "parameters": cells[0]["parameters"],
        "curves": [cell["curve"] for cell in cells],
    }


def _lines(measured: dict[str, Any], scale: LraScale) -> list[str]:
    count = len(scale.seeds)
    told = f"the median of {count} seeds, in brackets the lowest and highest" if count > 1 else "of one seed"
    lines = [
        f"Accuracy in percent after the last step ({told}; no step is chosen by the test examples), in "
        "square brackets its 95 % interval over test examples (Wilson's), beside the paper's. Two layers of "
        "width 64, feed-forward 128, 2 heads, mean pooling over the real tokens.",
        "",
        *_accuracies(measured),
        "",
        "Retrieval, Image and Pathfinder are not available: their data (AAN, CIFAR-10 as pixels, Pathfinder) "
        "is not part of the project and cannot be generated by it. Reformer is not of this project.",
    ]
    for name, about in measured["tasks"].items():
        lines += [
            "",
            f"## {TITLES[name]}",
            "",
            f"{about['train']:,} examples to train on and {about['test']:,} to measure on, "
            f"{about['origin']}; "
            f"{about['mean_tokens']:.0f} tokens on average, {about['cut']:.0%} cut. Always answering the "
            f"commonest class gives {about['chance']:.1%}.",
            "",
            *_times(measured, name),
            *_at_chance(measured, name),
        ]
    return [*lines, "", *_differences(scale), ""]


def _accuracies(measured: dict[str, Any]) -> list[str]:
    tasks = list(measured["tasks"])
    rows = {(row["task"], row["attention"]): row for row in measured["rows"]}
    head = ["model", *(word for name in tasks for word in (f"{TITLES[name]}, here", "paper"))]
    body = []
    for attention in dict.fromkeys(row["attention"] for row in measured["rows"]):
        line = [NAMES[attention]]
        for name in tasks:
            published = PUBLISHED.get(NAMES[attention])
            line += [
                _percent(rows[name, attention]),
                f"{published[COLUMNS.index(name)]:.2f}" if published else "not in the table",
            ]
        body.append(line)
    chance = ["commonest class"]
    reformer = ["Reformer"]
    for name in tasks:
        chance += [f"{100 * measured['tasks'][name]['chance']:.1f}", ""]
        reformer += ["not of this project", f"{PUBLISHED['Reformer'][COLUMNS.index(name)]:.2f}"]
    return table(head, [*body, reformer, chance])


def _at_chance(measured: dict[str, Any], task: str) -> list[str]:
    """Names the models that learned nothing that the test examples can tell from chance."""
    about = measured["tasks"][task]
    chance = about["chance"]
    least = chance + 2 * math.sqrt(chance * (1 - chance) / about["test"])
    rows = [row for row in measured["rows"] if row["task"] == task]
    below = [NAMES[row["attention"]] for row in rows if row["accuracy"] <= least]
    if not below:
        return []
    told = f"not above chance by two standard errors ({least:.1%}) after so few steps"
    return ["", f"{', '.join(below)}: {told}, so these rows compare times, not accuracies."]


def _percent(row: dict[str, Any]) -> str:
    spread = f" ({100 * row['lowest']:.1f}–{100 * row['highest']:.1f})" if len(row["seeds"]) > 1 else ""
    return f"{100 * row['accuracy']:.1f}{spread} {in_percent(row['interval'])}"


def _times(measured: dict[str, Any], task: str) -> list[str]:
    rows = [row for row in measured["rows"] if row["task"] == task]
    exact = next((row["milliseconds_per_step"] for row in rows if row["attention"] == "softmax"), None)
    return table(
        ("model", "parameters", "steps", "ms a step", "Standard's time : its time"),
        [
            (
                NAMES[row["attention"]],
                f"{row['parameters']:,}",
                f"{row['steps']:,}",
                f"{row['milliseconds_per_step']:.0f}",
                f"{exact / row['milliseconds_per_step']:.2f}" if exact else "—",
            )
            for row in rows
        ],
    )


def _differences(scale: LraScale) -> list[str]:
    text = "official test set" if scale.text_source == "hub" else "no official test set at this source"
    return [
        "What differs from the arena and the paper: the arena's ListOps has 96,000 training and 2,000 test "
        "expressions of 500 to 2,000 tokens, its Text 25,000 and 25,000 reviews at 4,000 bytes; here it is "
        f"as said above ({text}). Standard is fused exact attention without dropout on its matrix. The "
        "layers are post-norm, as in this project's encoder. "
        f"Nyström attention has {scale.landmarks} landmarks and the residual convolution "
        f"({scale.kernel or 'none'} wide), the others none. "
        f"Linformer attends to {scale.linformer_projected} mixtures, Longformer's window is "
        f"{scale.longformer_window}, Performer has {scale.performer_features} features. AdamW, "
        f"{scale.batch_size} rows a step, highest rate {scale.learning_rate:g}, linear warm-up over "
        f"{scale.warmup_share:.0%} of the steps and linear decay: rates, steps and these sizes are this "
        "project's choice, not the paper's.",
    ]


def _headline(measured: dict[str, Any]) -> str:
    parts = []
    for name, about in measured["tasks"].items():
        scores = ", ".join(
            f"{NAMES[row['attention']]} {100 * row['accuracy']:.1f}"
            for row in measured["rows"]
            if row["task"] == name
        )
        parts.append(f"{TITLES[name]}: {scores} (commonest class {100 * about['chance']:.1f})")
    return "Accuracy in percent. " + "; ".join(parts) + "."


def _draw(measured: dict[str, Any], path: Path, *, task: str) -> None:
    """Training loss and accuracy by step; of several seeds the first one's."""
    rows = [row for row in measured["rows"] if row["task"] == task]
    with picture(path, 1, 2, width="page", height=2.7) as (figure, (loss, quality)):
        for row, style in zip(rows, STYLES, strict=False):
            curve, name = row["curves"][0], NAMES[row["attention"]]
            plot_events(loss, curve, "loss", **style, label=name)
            plot_events(quality, curve, "accuracy", factor=100, **style, label=name)
        chance = 100 * measured["tasks"][task]["chance"]
        quality.axhline(chance, color="0.4", linewidth=0.8, label="commonest class")
        loss.set(title=f"{TITLES[task]}, training", xlabel="step", ylabel="loss (nats)")
        quality.set(title=f"{TITLES[task]}, test examples", xlabel="step", ylabel="accuracy (%)")
        legend_below(figure, quality, columns=3)
