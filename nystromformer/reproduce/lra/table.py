"""All cells of the table, the page about them and their learning curves."""

from __future__ import annotations

import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from nystromformer.intervals import in_percent, proportion_interval
from nystromformer.machine import device_of
from nystromformer.pictures import legend_below, picture, plot_events, style_of
from nystromformer.reproduce.lra.examples import content_of, load_task
from nystromformer.reproduce.lra.released import Absent
from nystromformer.reproduce.lra.task import LraTask
from nystromformer.reproduce.lra.training import Cell, finished, forget_cell, train_cell
from nystromformer.reproduce.runs import without_folders
from nystromformer.results import Result
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.settings.scale import LRA_TASKS, LraScale
from nystromformer.tables import Block, table

PUBLISHED: dict[str, tuple[float, ...]] = {
    "Standard": (37.10, 65.02, 79.35, 38.20, 74.16),
    "Reformer": (19.05, 64.88, 78.64, 43.29, 69.36),
    "Linformer": (37.25, 55.91, 79.37, 37.84, 67.60),
    "Performer": (18.80, 63.81, 78.62, 37.07, 69.87),
    "Nyströmformer": (37.15, 65.52, 79.56, 41.58, 70.94),
}
"""The paper's accuracies in percent, by LRA_TASKS."""
NAMES = {
    "softmax": "Standard",
    "nystrom": "Nyströmformer",
    "neighbours": "Nyströmformer, exact neighbours",
    "linformer": "Linformer",
    "performer": "Performer",
    "longformer": "Longformer",
}
"""What the paper calls each mechanism; it has no row of Longformer, and none with neighbours."""
_NORMED = "The pooled means are normalised by their running mean and deviation. "
TITLES = {
    "listops": "ListOps",
    "text": "Text",
    "retrieval": "Retrieval",
    "image": "Image",
    "pathfinder": "Pathfinder",
}


def lra(settings: ReproduceSettings) -> Result:
    """Train what is not trained yet, cell by cell, and tell all.

    Raises:
        UserError: no task's examples are within reach, or a folder cannot be written.
    """
    scale, device = settings.scale.lra, device_of(settings.device)
    tasks, absent = _loaded(settings)
    contents = {name: content_of(task) for name, task in tasks.items()}
    pretrained_too = (scale.pretrained or scale.attentions) if settings.pretrain else ()
    cells = [
        Cell(task, attention, seed, pretrained)
        for task in tasks
        for attention in scale.attentions
        for pretrained in ((False, True) if attention in pretrained_too else (False,))
        for seed in scale.seeds
    ]
    found: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for cell in cells:
        folder = cell.folder(settings.runs_folder, scale, device.type, contents[cell.task])
        if settings.again:
            forget_cell(folder)
        measured = finished(folder) or train_cell(cell, tasks[cell.task], scale, device, folder)
        found.setdefault((cell.task, cell.attention, cell.pretrained), []).append(measured)
    measured = {
        "tasks": {name: _about(task) for name, task in tasks.items()},
        "rows": [_row(*of, cells, len(tasks[of[0]].test)) for of, cells in found.items()],
        "published": {name: dict(zip(LRA_TASKS, row, strict=True)) for name, row in PUBLISHED.items()},
        "absent": absent,
    }
    return Result(
        "Long Range Arena",
        measured,
        _blocks(measured, scale),
        _headline(measured),
        {f"{name}_curves": partial(_draw, task=name) for name in tasks},
    )


def _loaded(settings: ReproduceSettings) -> tuple[dict[str, LraTask], dict[str, str]]:
    """The tasks whose examples are within reach, and why the others are absent."""
    tasks: dict[str, LraTask] = {}
    absent: dict[str, str] = {}
    for name in settings.scale.lra.tasks:
        try:
            tasks[name] = load_task(name, settings.scale.lra, settings.lra_root)
        except Absent as error:  # what is there and malformed is a mistake to mend
            absent[name] = without_folders(settings, str(error))
    return tasks, absent


def _about(task: LraTask) -> dict[str, Any]:
    return {
        "origin": task.origin,
        "train": len(task.train),
        "validation": len(task.validation),
        "test": len(task.test),
        "mean_tokens": float(task.train.lengths.mean()),
        "cut": task.train.truncated,
        "class_shares": task.balance,
        "chance": task.chance,
    }


def _row(
    task: str, attention: str, pretrained: bool, cells: list[dict[str, Any]], examples: int
) -> dict[str, Any]:
    """One attention on one task, over the seeds."""
    scores = [cell["accuracy"] for cell in cells]
    middle = statistics.median(scores)
    masked = [cell["masked"] for cell in cells] if pretrained else []
    return {
        "task": task,
        "attention": attention,
        "pretrained": pretrained,
        "accuracy": middle,
        "interval": proportion_interval(middle, examples),
        "lowest": min(scores),
        "highest": max(scores),
        "accuracies": scores,
        "seeds": [cell["seed"] for cell in cells],
        "steps": cells[0]["steps"],
        "best_steps": [cell["best_step"] for cell in cells],
        "milliseconds_per_step": statistics.median(cell["milliseconds_per_step"] for cell in cells),
        "seconds": sum(cell["seconds"] for cell in cells),
        "parameters": cells[0]["parameters"],
        "curves": [cell["curve"] for cell in cells],
        "masked_seconds": sum(part["seconds"] for part in masked),
        "masked": masked,
    }


def _blocks(measured: dict[str, Any], scale: LraScale) -> list[Block]:
    count = len(scale.seeds)
    told = f"the median of {count} seeds, in brackets the lowest and highest" if count > 1 else "of one seed"
    blocks: list[Block] = [
        f"Accuracy in percent on the test examples ({told}) after the step that the validation examples "
        "choose, in square brackets its 95 % interval over test examples (Wilson's), beside the paper's. Two "
        "layers of width 64, feed-forward 128, 2 heads, mean pooling over the real tokens.",
        _accuracies(measured),
        *_pretraining(measured, scale),
        [f"- {TITLES[name]} is absent: {reason}" for name, reason in measured["absent"].items()],
        "Reformer is not of this project.",
    ]
    for name, about in measured["tasks"].items():
        blocks += [
            f"## {TITLES[name]}",
            f"{about['train']:,} examples to train on, {about['validation']:,} to choose the step by and "
            f"{about['test']:,} to measure on, {about['origin']}; "
            f"{about['mean_tokens']:.0f} tokens on average, {about['cut']:.0%} cut. Always answering the "
            f"commonest class gives {about['chance']:.1%}.",
            _times(measured, name),
            _at_chance(measured, name),
        ]
    return [*blocks, _differences(scale)]


def _accuracies(measured: dict[str, Any]) -> list[str]:
    tasks = list(measured["tasks"])
    rows = _by_cell(measured)
    kinds = sorted({pretrained for _, _, pretrained in rows})
    told = [["here", "pretrained"][pretrained] for pretrained in kinds]
    head = ["model"]
    chance, reformer = ["commonest class"], ["Reformer"]
    for name in tasks:
        head += [f"{TITLES[name]}, {told[0]}", *told[1:], "paper"]
        chance += [f"{100 * measured['tasks'][name]['chance']:.1f}", *[""] * len(kinds)]
        reformer += [*["not of this project"] * len(kinds), _published("Reformer", name)]
    body = []
    for attention in dict.fromkeys(attention for _, attention, _ in rows):
        line = [NAMES[attention]]
        for name in tasks:
            cells = (rows.get((name, attention, kind)) for kind in kinds)
            line += [_percent(row) if row else "not trained" for row in cells]
            line.append(_published(NAMES[attention], name))
        body.append(line)
    return table(head, [*body, reformer, chance])


def _published(model: str, task: str) -> str:
    return f"{PUBLISHED[model][LRA_TASKS.index(task)]:.2f}" if model in PUBLISHED else "not in the table"


def _by_cell(measured: dict[str, Any]) -> dict[tuple[str, str, bool], dict[str, Any]]:
    return {(row["task"], row["attention"], row["pretrained"]): row for row in measured["rows"]}


def _pretraining(measured: dict[str, Any], scale: LraScale) -> list[Block]:
    """What self-pretraining is, what it gives and what it costs; nothing without it."""
    rows = _by_cell(measured)
    pretrained = [row for row in rows.values() if row["pretrained"]]
    if not pretrained:
        return []
    body = []
    for row in pretrained:
        without = rows[row["task"], row["attention"], False]["accuracy"]
        right = statistics.median(part["curve"][-1]["mlm_accuracy"] for part in row["masked"])
        body.append(
            (
                TITLES[row["task"]],
                NAMES[row["attention"]],
                f"{100 * (row['accuracy'] - without):+.1f}",
                f"{right:.1%}",
                f"{row['masked_seconds'] / 60:.1f}",
                f"{row['seconds'] / 60:.1f}",
            )
        )
    return [
        f"Pretrained: for each step on the task {scale.pretrain_share:g} before it on masked tokens, "
        f"{scale.pretrain_masked:.0%} of the task's own training inputs, with a highest rate of "
        f"{scale.pretrain_learning_rate:g}; the rest is the same. The paper's figures are without it.",
        table(
            ("task", "model", "points gained", "masked tokens right", "minutes on them", "on the task"), body
        ),
    ]


def _at_chance(measured: dict[str, Any], task: str) -> str:
    """Names the models that learned nothing that the test examples can tell from chance."""
    about = measured["tasks"][task]
    chance = about["chance"]
    least = chance + 2 * math.sqrt(chance * (1 - chance) / about["test"])
    rows = [row for row in measured["rows"] if row["task"] == task]
    below = [_name(row) for row in rows if row["accuracy"] <= least]
    if not below:
        return ""
    told = f"not above chance by two standard errors ({least:.1%}) after so few steps"
    return f"{', '.join(below)}: {told}, so these rows compare times, not accuracies."


def _name(row: dict[str, Any]) -> str:
    return NAMES[row["attention"]] + (", pretrained" if row["pretrained"] else "")


def _percent(row: dict[str, Any]) -> str:
    spread = f" ({100 * row['lowest']:.1f}–{100 * row['highest']:.1f})" if len(row["seeds"]) > 1 else ""
    return f"{100 * row['accuracy']:.1f}{spread} {in_percent(row['interval'])}"


def _times(measured: dict[str, Any], task: str) -> list[str]:
    rows = [row for row in measured["rows"] if row["task"] == task and not row["pretrained"]]
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


def _differences(scale: LraScale) -> str:
    text = "official test set" if scale.text_source == "hub" else "no official test set at this source"
    return (
        "What differs from the arena and the paper: the arena's ListOps has 96,000 training and 2,000 test "
        "expressions of 500 to 2,000 tokens, its Text 25,000 and 25,000 reviews at 4,000 bytes; here it is "
        f"as said above ({text}). Standard is fused exact attention without dropout on its matrix. The "
        "layers are post-norm, as in this project's encoder. "
        f"Nyström attention has {scale.landmarks} landmarks and the residual convolution "
        f"({scale.kernel or 'none'} wide), the others none. "
        f"{_NORMED if scale.pooled_norm else ''}"
        f"Linformer attends to {scale.linformer_projected} mixtures, Longformer's window is "
        f"{scale.longformer_window}, Performer has {scale.performer_features} features. AdamW, "
        f"{scale.batch_size} rows a step, highest rate {scale.learning_rate:g}, linear warm-up over "
        f"{scale.warmup_share:.0%} of the steps and linear decay: rates, steps and these sizes are this "
        "project's choice, not the paper's. Times are by the clock: beside other work on the machine they "
        "compare nothing."
    )


def _headline(measured: dict[str, Any]) -> str:
    parts = []
    for name, about in measured["tasks"].items():
        scores = ", ".join(
            f"{_name(row)} {100 * row['accuracy']:.1f}" for row in measured["rows"] if row["task"] == name
        )
        parts.append(f"{TITLES[name]}: {scores} (commonest class {100 * about['chance']:.1f})")
    return "Accuracy in percent. " + "; ".join(parts) + "."


def _draw(measured: dict[str, Any], path: Path, *, task: str) -> None:
    """Training loss and accuracy by step, of pretrained models beside; of several seeds the first one's."""
    rows = [row for row in measured["rows"] if row["task"] == task]
    kinds = sorted({row["pretrained"] for row in rows})
    names = list(dict.fromkeys(row["attention"] for row in rows))
    chance = 100 * measured["tasks"][task]["chance"]
    with picture(path, 1, 1 + len(kinds), width="page", height=2.7) as (figure, (loss, *qualities)):
        for row in rows:
            curve, style = row["curves"][0], style_of(names.index(row["attention"]))
            quality = qualities[kinds.index(row["pretrained"])]
            plot_events(quality, curve, "accuracy", factor=100, **style, label=NAMES[row["attention"]])
            if not row["pretrained"]:
                plot_events(loss, curve, "loss", **style)
        loss.set(title=f"{TITLES[task]}, training", xlabel="step", ylabel="loss (nats)")
        for quality, pretrained in zip(qualities, kinds, strict=True):
            quality.axhline(chance, color="0.4", linewidth=0.8, label="commonest class")
            title = "pretrained, validation" if pretrained else "validation"
            quality.set(title=f"{TITLES[task]}, {title}", xlabel="step", ylabel="accuracy (%)")
        low, high = zip(*(quality.get_ylim() for quality in qualities), strict=True)
        for quality in qualities:
            quality.set_ylim(min(low), max(high))
        legend_below(figure, qualities[0], columns=3)
