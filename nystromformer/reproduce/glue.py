"""The paper's table 3: GLUE and IMDB by BERT and by Nyströmformer at 512 and at 1024 tokens.

Models are pretrained by the words of the scale, or, where it has none, the trained BERT is taken as it is, as
a Nyströmformer, and as one with a longer position table. A task without data is in the table as absent.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from nystromformer.errors import UserError
from nystromformer.markdown import table
from nystromformer.reproduce.result import Result, trained_bert
from nystromformer.reproduce.runs import Seeds, finetuned, finished_run, percent, task_of, why_absent
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.tasks.benchmarks import TASKS
from nystromformer.tasks.results import PAPER
from nystromformer.training.run_folder import RunFolder


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
    scale = settings.scale.glue
    models = models_of(settings)
    measured: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    for text in scale.tasks:
        words = text.split()
        task = task_of(words)
        if reason := why_absent(settings, [*scale.every, *words]):
            absent[task] = reason
            print(f"{task} is absent: {reason}", flush=True)
            continue
        for model in models:
            print(f"\n== {task}, {model.title}", flush=True)
            name = f"glue_{settings.scale.name}_{model.run}"
            seeds = finetuned(settings, [*scale.every, *words, *model.words], model.checkpoint, name=name)
            measured.setdefault(task, {})[model.title] = _told(seeds)
    if not measured:
        raise UserError("\n".join(f"{task}: {reason}" for task, reason in absent.items()))
    return Result(
        title="GLUE and IMDB, fine-tuned",
        measured={"tasks": measured, "absent": absent, "models": {m.title: m.origin for m in models}},
        lines=_lines(models, measured, absent),
        headline=_headline(models, measured, absent),
    )


def _told(seeds: Seeds) -> dict[str, Any]:
    """What the page and JSON hold of a model's seeds on a task."""
    first = seeds[0]
    return {
        "figures": {
            figure: [result["dev"][figure] for result in seeds]
            for figure in first["dev"]
            if figure not in ("loss", "score")
        },
        "seconds": sum(result["seconds"] for result in seeds),
        "examples": {
            part: facts["examples"] for part, facts in first["data"].items() if isinstance(facts, dict)
        },
        "cut": first["data"]["train"]["truncated"],
        "recipe": {key: first[key] for key in ("learning_rate", "batch_size", "epochs")},
    }


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


def _lines(models: list[Model], measured: dict[str, Any], absent: dict[str, str]) -> list[str]:
    columns = [
        (task, figure)
        for task in [*measured, *absent]
        for figure in (next(iter(measured[task].values()))["figures"] if task in measured else ("",))
    ]
    rows: list[list[str]] = [
        [
            model.title,
            *(
                percent(measured[task][model.title]["figures"][figure]) if task in measured else "absent"
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
        "several). The paper's are of its own pretraining on BookCorpus and Wikipedia.",
        "",
        *table(("model", *titles), rows),
        "",
        *(f"- {TASKS[task].title}: absent, {reason}" for task, reason in absent.items()),
        *([""] if absent else []),
        *(f"- {model.title}: {model.origin}." for model in models),
        "",
        *table(
            (
                "task", "training", "held out", "rate", "batch", "epochs",
                *(f"minutes, {model.title}" for model in models),
            ),
            [
                (
                    TASKS[task].title, f"{facts['examples']['train']:,}",
                    " + ".join(f"{n:,}" for part, n in facts["examples"].items() if part != "train"),
                    f"{facts['recipe']['learning_rate']:g}", facts["recipe"]["batch_size"],
                    f"{facts['recipe']['epochs']:g}",
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
