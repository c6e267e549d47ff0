"""Fine-tuned models side by side: the paper's table 3, and a trained BERT with Nyström and exact attention.

Every seed is a run of `nystromformer finetune` that goes on where it was stopped; what is compared has the
same recipe, seeds and batches. A task without data is in the table as absent.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nystromformer.errors import UserError
from nystromformer.pictures import STYLES, legend_below, picture
from nystromformer.reproduce.paired import (
    INTERVALS,
    TESTS,
    compared,
    difference_in_words,
    examples_of,
    in_words,
)
from nystromformer.reproduce.result import trained_bert
from nystromformer.reproduce.runs import Seeds, finetuned, finished_run, task_of, why_absent
from nystromformer.results import Result
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.settings.scale import FinetuneScale, GlueScale, SwapScale
from nystromformer.tables import Block, table
from nystromformer.tasks.benchmarks import TASKS
from nystromformer.tasks.results import PAPER
from nystromformer.training.run_folder import RunFolder

NEIGHBOURS = 64
ATTENTIONS = {
    "Nyström": ("nystrom", ["model.attention=nystrom"]),
    "neighbours": ("neighbours", ["model.attention=nystrom", f"model.neighbours={NEIGHBOURS}"]),
    "exact": ("softmax", ["model.attention=softmax"]),
}
"""In the names of the runs, and the words, of each side of `finetune`."""


@dataclass(frozen=True)
class Model:
    """A row of the table."""

    title: str
    run: str
    """In the names of its fine-tuning runs."""
    checkpoint: str
    words: tuple[str, ...]
    """Of its fine-tuning."""
    origin: str
    """Where the weights are from, for the page."""


def glue(settings: ReproduceSettings) -> Result:
    """Fine-tune every model on every task that has data; the table with the paper's rows."""
    models = models_of(settings)

    def measure(task: str, words: list[str]) -> dict[str, Any]:
        seeds = {}
        for model in models:
            print(f"\n== {task}, {model.title}", flush=True)
            name = f"glue_{settings.scale.name}_{model.run}"
            seeds[model.title] = finetuned(settings, [*words, *model.words], model.checkpoint, name=name)
        figures = compared(seeds)
        return {title: {**figures[title], **_about(found)} for title, found in seeds.items()}

    measured, absent = on_every_task(settings, settings.scale.glue, measure)
    return Result(
        title="GLUE and IMDB, fine-tuned",
        measured={"tasks": measured, "absent": absent, "models": {m.title: m.origin for m in models}},
        blocks=_blocks(models, measured, absent),
        headline=_headline(models, measured, absent),
    )


def models_of(settings: ReproduceSettings) -> list[Model]:
    """BERT, Nyströmformer at the shorter length, Nyströmformer at the longer one."""
    scale = settings.scale.glue
    short, long = scale.lengths
    exact, nystrom = "model.attention=softmax", "model.attention=nystrom"
    bert = trained_bert(settings) if not (scale.bert and scale.nystromformer) else ""
    found: list[Model] = []
    for title, name, pretraining, attention, length in (
        ("BERT", "bert", scale.bert, exact, short),
        (f"Nyströmformer {short}", f"nystromformer_{short}", scale.nystromformer, nystrom, short),
        (f"Nyströmformer {long}", f"nystromformer_{long}", scale.longer, nystrom, long),
    ):
        words = (attention, f"model.max_length={length}")
        if pretraining:
            source = [f"init.path={found[-1].checkpoint}"] if title.endswith(str(long)) else []
            run = finished_run(settings, [*pretraining, *source])
            origin = f"pretrained: {' '.join(pretraining)}"
            found.append(Model(title, name, str(RunFolder(run).model), words, origin))
        else:
            checkpoint = found[-1].checkpoint if scale.nystromformer and found else bert
            origin = "the trained BERT" + (
                "" if attention == exact else " as a Nyströmformer, not trained on before fine-tuning"
            )
            found.append(Model(title, name, checkpoint, words, origin))
    return found


def _blocks(models: list[Model], measured: dict[str, Any], absent: dict[str, str]) -> list[Block]:
    columns = [
        (task, figure)
        for task in [*measured, *absent]
        for figure in (next(iter(measured[task].values()))["figures"] if task in measured else ("",))
    ]
    rows: list[list[str]] = [
        [
            model.title,
            *(
                in_words(measured[task][model.title], figure) if task in measured else "absent"
                for task, figure in columns
            ),
        ]
        for model in models
    ]
    for title, figures in PAPER.items():
        rows.append([title, *(_published(figures, task, figure) for task, figure in columns)])
    titles = [f"{TASKS[task].title} {figure.replace('_', ' ')}".strip() for task, figure in columns]
    first = {task: next(iter(found.values())) for task, found in measured.items()}
    return [
        "Held-out figures in per cent, median of the seeds (mean ± standard deviation where there are "
        f"several). {INTERVALS} The paper's are of its own pretraining on BookCorpus and Wikipedia.",
        table(("model", *titles), rows),
        f"Above BERT, points. {TESTS}",
        table(
            ("task and figure", *(model.title for model in models[1:])),
            [
                (title, *(difference_in_words(measured[task][model.title], figure) for model in models[1:]))
                for title, (task, figure) in zip(titles, columns, strict=True)
                if figure
            ],
        ),
        absent_lines({TASKS[task].title: reason for task, reason in absent.items()}),
        [f"- {model.title}: {model.origin}." for model in models],
        table(
            (
                "task", "training", "held out", "rate", "batch", "epochs",
                *(f"minutes, {model.title}" for model in models),
            ),
            [
                (
                    TASKS[task].title, *_examples(facts),
                    *_recipe(facts),
                    *(f"{measured[task][model.title]['seconds'] / 60:.1f}" for model in models),
                )
                for task, facts in first.items()
            ],
        ),
    ]  # fmt: skip


def _headline(models: list[Model], measured: dict[str, Any], absent: dict[str, str]) -> str:
    bert, nystrom = models[0].title, models[1].title
    shown = []
    for task, found in measured.items():
        figure = next(iter(found[bert]["figures"]))
        pair = " / ".join(
            f"{100 * statistics.median(found[title]['figures'][figure]):.1f}" for title in (bert, nystrom)
        )
        shown.append(f"{TASKS[task].title} {pair}")
    told = f"BERT / {nystrom}: {', '.join(shown)}"
    return told + (f"; absent: {', '.join(TASKS[task].title for task in absent)}" if absent else "")


def _published(figures: dict[tuple[str, str], float], task: str, figure: str) -> str:
    if figure:
        return f"{figures[task, figure]:.1f}" if (task, figure) in figures else ""
    return "/".join(f"{value:.1f}" for (name, _), value in figures.items() if name == task)


def finetune(settings: ReproduceSettings) -> Result:
    """The trained BERT as it is and as a Nyströmformer, on every task of the scale."""

    def measure(task: str, words: list[str]) -> dict[str, Any]:
        sides = {}
        for side, (name, own) in ATTENTIONS.items():
            run = f"finetune_{name}"
            sides[side] = finetuned(settings, [*words, *own], trained_bert(settings), name=run)
        first, figures = sides["Nyström"], compared({"exact": sides["exact"], **sides})
        told = {side: {**_side(seeds), **figures[side]} for side, seeds in sides.items()}
        scores = {side: statistics.median(one["score"]) for side, one in told.items()}
        return {
            **told,
            "title": first[0]["title"],
            "gap": scores["exact"] - scores["Nyström"],
            "gap_with_neighbours": scores["exact"] - scores["neighbours"],
            **_about(first, "steps"),
            "tokens": first[0]["model"]["max_length"],
        }

    measured, absent = on_every_task(settings, settings.scale.finetune, measure)
    gaps = ", ".join(
        f"{found['title']} {100 * found['gap']:+.1f} ({100 * found['gap_with_neighbours']:+.1f})"
        for found in measured.values()
    )
    blocks = [
        "The trained BERT of the samples (or `checkpoint=`), fine-tuned as it is and as a Nyströmformer, "
        f"without and with exact neighbours in blocks of {NEIGHBOURS}, "
        "with the same recipe, seeds and batches. Held-out figures in per cent, the median of the seeds "
        f"(mean ± standard deviation). {INTERVALS} {TESTS} A seed's checkpoint is chosen by the same "
        "held-out examples.",
        table(
            ("task and figure", *ATTENTIONS, "Nyström − exact", "neighbours − exact", "seeds"),
            [
                (
                    f"{found['title']} {name.replace('_', ' ')}",
                    *(in_words(found[side], name) for side in ATTENTIONS),
                    *(difference_in_words(found[side], name) for side in ATTENTIONS if side != "exact"),
                    len(found["exact"]["seeds"]),
                )
                for found in measured.values()
                for name in found["exact"]["figures"]
            ],
        ),
        table(
            (
                "task", "training", "held out", "tokens", "cut", "rate", "batch", "epochs",
                *(f"minutes, {side}" for side in ATTENTIONS),
            ),
            [
                (
                    found["title"], *_examples(found), found["tokens"],
                    f"{found['cut']:.1%}", *_recipe(found),
                    *(f"{found[side]['seconds'] / 60:.1f}" for side in ATTENTIONS),
                )
                for found in measured.values()
            ],
        ),
        absent_lines(absent),
        "Rows of at most 64 tokens, the number of landmarks, get exact attention in all, of at most "
        f"{2 * NEIGHBOURS} with neighbours, so that on GLUE's short sentences Nyström attention differs by "
        "its convolution; IMDB's reviews are what landmarks work on. "
        f"{_origin(measured)}",
    ]  # fmt: skip
    return Result(
        title="Fine-tuned from a trained BERT, Nyström beside exact attention",
        measured={"tasks": measured, "absent": absent},
        blocks=blocks,
        headline=f"Exact attention above Nyström attention (with neighbours), points: {gaps}",
        plots={"finetune": _draw},
    )


def on_every_task(
    settings: ReproduceSettings,
    scale: GlueScale | FinetuneScale | SwapScale,
    measure: Callable[[str, list[str]], dict[str, Any]],
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
    return [f"- {task}: absent, {reason}" for task, reason in absent.items()]


def _about(seeds: Seeds, *more: str) -> dict[str, Any]:
    """What the seeds are of: examples, the share of them that is cut, recipe."""
    first = seeds[0]
    parts = {name: part for name, part in first["data"].items() if isinstance(part, dict)}
    return {
        "examples": examples_of(first),
        "cut": parts["train"]["truncated"],
        "recipe": {name: first[name] for name in ("learning_rate", "batch_size", "epochs", *more)},
    }


def _examples(about: Mapping[str, Any]) -> tuple[str, str]:
    """Cells of a table: how many examples are trained on, and how many are held out."""
    held_out = " + ".join(f"{count:,}" for part, count in about["examples"].items() if part != "train")
    return f"{about['examples']['train']:,}", held_out


def _recipe(about: Mapping[str, Any]) -> tuple[str, int, str]:
    """Cells of a table: rate, batch, epochs."""
    recipe = about["recipe"]
    return f"{recipe['learning_rate']:g}", recipe["batch_size"], f"{recipe['epochs']:g}"


def _side(seeds: Seeds) -> dict[str, Any]:
    """One attention on a task, as the page and JSON hold it."""
    machine = seeds[0]["machine"]
    return {
        "seeds": [result["seed"] for result in seeds],
        "score": [result["dev"]["score"] for result in seeds],
        "commit": machine["commit"],
        "threads": machine.get("threads"),
    }


def _origin(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """When the page is made of seeds that were finished before: what they were trained by."""
    told = [found[side] for found in measured.values() for side in ATTENTIONS]
    commits = sorted({one["commit"] for one in told})
    threads = sorted({str(one["threads"]) for one in told})
    minutes = sum(one["seconds"] for one in told) / 60
    return (
        f"All seeds together trained for {minutes:.0f} minutes, threads {' or '.join(threads)}, commit "
        f"{', '.join(commits)}."
    )


def _draw(measured: dict[str, Any], path: Path) -> None:
    """Each task's score, every seed a point, Nyström beside exact."""
    tasks = measured["tasks"].values()
    with picture(path, height=2.6) as (figure, axis):
        for number, (side, shift) in enumerate(zip(ATTENTIONS, (-0.2, 0, 0.2), strict=True)):
            style = {**STYLES[number], "linestyle": "none"}
            for place, task in enumerate(tasks):
                scores = [100 * score for score in task[side]["score"]]
                axis.plot([place + shift] * len(scores), scores, **style, label=None if place else side)
                middle = statistics.median(scores)
                axis.hlines(middle, place + shift - 0.1, place + shift + 0.1, color=style["color"])
        axis.set_xticks(range(len(tasks)), [task["title"] for task in tasks])
        axis.set(ylabel="held-out score, per cent", xlim=(-0.5, len(tasks) - 0.5))
        legend_below(figure, axis, columns=3)
