"""Classifiers of exact attention, and what they lose when their attention is exchanged without training."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nystromformer.intervals import mcnemar
from nystromformer.model import NystromformerForSequenceClassification as Classifier
from nystromformer.model.layouts import load_model
from nystromformer.model.source import NEW_CONVOLUTION
from nystromformer.reproduce.finetuning import absent_lines, on_every_task
from nystromformer.reproduce.result import trained_bert
from nystromformer.reproduce.runs import finetune_run, finetuned
from nystromformer.results import Result
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.tables import percent, table
from nystromformer.tasks.jobs import jobs_of
from nystromformer.tasks.predict import open_model
from nystromformer.tasks.reading import load_splits
from nystromformer.tasks.scores import figures_of_sets
from nystromformer.tasks.start import fit_on_longest
from nystromformer.tasks.task import Encoded, Task
from nystromformer.tasks.training import outputs_of

EXACT = "exact"
_NEIGHBOURS = {"attention": "nystrom", "num_landmarks": 64, "neighbours": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    EXACT: {"attention": "softmax"},
    "Nyström, m = 64": {"attention": "nystrom", "num_landmarks": 64},
    "Nyström, m = 128": {"attention": "nystrom", "num_landmarks": 128},
    "Nyström, m = 64, fitted": {"attention": "nystrom", "num_landmarks": 64, "how": "fitted"},
    "neighbours, m = w = 64": _NEIGHBOURS,
    "neighbours, fitted": {**_NEIGHBOURS, "how": "fitted"},
    "neighbours, reconstructed": {**_NEIGHBOURS, "how": "reconstructed"},
}
"""Changes of the configuration; `how` is what is fitted in closed form on training rows, no labels read."""

BATCH = 16


def swap(settings: ReproduceSettings) -> Result:
    """Fine-tune every task with exact attention, then measure every variant of its model."""
    scale = settings.scale.swap
    measured, absent = on_every_task(
        settings, scale, lambda _, words: _measured(settings, [*words, "model.attention=softmax"])
    )
    swapped = [variant for variant in VARIANTS if variant != EXACT]
    lost = {
        task: {
            variant: _lost(found["figures"], variant, "score")
            for variant in swapped
            if variant in found["figures"]
        }
        for task, found in measured.items()
    }
    lines = [
        "The trained BERT of the samples (or `checkpoint=`) fine-tuned with exact attention; then its "
        "attention is exchanged and the held-out examples are predicted again, without training. In per "
        "cent, the median of the seeds; in brackets points lost. `fitted` and `reconstructed`: in closed "
        f"form on the {scale.rows} longest training rows, without their labels.",
        "",
        *table(
            ("task and figure", *VARIANTS),
            [
                (
                    f"{found['title']} {name.replace('_', ' ')}",
                    percent([statistics.median(found["figures"][EXACT][name])]),
                    *(_entry(found["figures"], variant, name) for variant in swapped),
                )
                for found in measured.values()
                for name in found["figures"][EXACT]
                if name != "score"
            ],
        ),
        "",
        *table(
            ("task", "held out", "median length", "more than 64 tokens", "more than 128", "seeds"),
            [
                (
                    found["title"],
                    f"{found['held_out']:,}",
                    f"{found['length']:.0f}",
                    *(f"{share:.0%}" for share in found["longer"].values()),
                    found["seeds"],
                )
                for found in measured.values()
            ],
        ),
        "",
        *absent_lines(absent),
        "Rows of at most 64 tokens get exact attention from landmarks alone too, rows of at most 128 with "
        "neighbours; what a fitted convolution or projection does there is its own doing.",
        *_tests(measured, swapped),
    ]
    best = "neighbours, m = w = 64"
    return Result(
        title="Classifiers of exact attention, their attention exchanged without training",
        measured={"tasks": measured, "lost": lost, "absent": absent},
        lines=lines,
        headline="Points lost with neighbours (landmarks alone): "
        + ", ".join(
            f"{measured[task]['title']} {100 * points[best]:.1f} ({100 * points['Nyström, m = 64']:.1f})"
            for task, points in lost.items()
        ),
    )


def _measured(settings: ReproduceSettings, words: list[str]) -> dict[str, Any]:
    words = [*words, "keep_models=all"]
    seeds = finetuned(settings, words, trained_bert(settings), name="swap")
    run = finetune_run(settings, words, trained_bert(settings), name="swap")
    splits = load_splits(run.task, run.data)
    wanted = {(seed["learning_rate"], seed["batch_size"], seed["seed"]) for seed in seeds}
    jobs = [job for job in jobs_of(run, run.task) if (job.learning_rate, job.batch_size, job.seed) in wanted]
    # A convolution that was trained with the model stays as it is, and there is nothing to fit.
    own = Classifier.config_class.from_pretrained(jobs[0].folder / "model").conv_kernel_size is not None
    variants = {name: changes for name, changes in VARIANTS.items() if not (own and "how" in changes)}
    figures: dict[str, dict[str, list[float]]] = {variant: {} for variant in variants}
    p_values: dict[str, list[float]] = {}
    lengths, right_of_exact = np.zeros(0), list[bool]()
    for job in jobs:
        folder = job.folder / "model"
        _, tokenizer = open_model(folder, splits.task)
        length = tokenizer.model_max_length
        train = splits.task.encode(splits.train, tokenizer, length)
        dev = {name: splits.task.encode(part, tokenizer, length) for name, part in splits.dev.items()}
        lengths = np.concatenate([part.lengths for part in dev.values()])
        for variant, changes in variants.items():
            model = swapped_classifier(folder, train, settings.scale.swap.rows, **changes)
            found, right = _figures(model, dev, splits.task)
            for name, value in found.items():
                figures[variant].setdefault(name, []).append(value)
            if variant == EXACT:
                right_of_exact = right
            elif not getattr(splits.task, "regression", False):
                p_values.setdefault(variant, []).append(mcnemar(right_of_exact, right))
            print(f"  {splits.task.title}, seed {job.seed}, {variant}: {figures[variant]}", flush=True)
    return {
        "title": splits.task.title,
        "figures": figures,
        "mcnemar": p_values,
        "seeds": len(jobs),
        "held_out": len(lengths),
        "length": float(np.median(lengths)),
        "longer": {str(limit): float((lengths > limit).mean()) for limit in (64, 128)},
    }


def swapped_classifier(
    folder: Path, train: Encoded, rows: int, *, how: str | None = None, **changes: Any
) -> Classifier:
    """A fine-tuned model with another attention; what is fitted is fitted on the longest training rows."""
    if how:
        changes["conv_kernel_size"] = NEW_CONVOLUTION
    wrong, fix = f"checkpoint={folder}", ": train it again"
    model = load_model(Classifier, str(folder), wrong=wrong, fix=fix, **changes)[0].eval()
    if how:
        print(f"  {fit_on_longest(model, train, rows, how)}", flush=True)
    return model


def _tests(measured: Mapping[str, Mapping[str, Any]], variants: list[str]) -> list[str]:
    """Of each variant, whether it is right as often as exact attention on the same examples."""
    tested = [found for found in measured.values() if found["mcnemar"]]
    if not tested:
        return []
    rows = [
        (
            found["title"],
            *(
                f"{statistics.median(found['mcnemar'][name]):.2g}" if name in found["mcnemar"] else "–"
                for name in variants
            ),
        )
        for found in tested
    ]
    told = (
        "Whether the answers are right as often as exact attention's on the same examples: McNemar's exact "
        "p, the median of the seeds. Below 0.05 the difference is more than chance in the examples."
    )
    return ["", told, "", *table(("task", *variants), rows)]


def _figures(
    model: Classifier, dev: Mapping[str, Encoded], task: Task
) -> tuple[dict[str, float], list[bool]]:
    """The task's figures on its held-out sets, float32, and which examples are right."""
    found: dict[str, dict[str, float]] = {}
    right: list[bool] = []
    for name, part in dev.items():
        plain = torch.autocast("cpu", enabled=False)
        outputs = outputs_of(task, model, part, BATCH, model.config.pad_token_id or 0, plain)
        assert part.labels is not None
        predicted = task.predict(part, outputs)
        found[name] = task.figures(part.labels, predicted)
        right += [bool(np.all(np.equal(*pair))) for pair in zip(part.labels, predicted, strict=True)]
    return figures_of_sets(found), right


def _lost(figures: Mapping[str, Mapping[str, list[float]]], variant: str, name: str) -> float:
    """Median over the seeds of what each seed's model loses."""
    pairs = zip(figures[EXACT][name], figures[variant][name], strict=True)
    return statistics.median(exact - found for exact, found in pairs)


def _entry(figures: Mapping[str, Mapping[str, list[float]]], variant: str, name: str) -> str:
    if variant not in figures:
        return "–"
    value = statistics.median(figures[variant][name])
    return f"{100 * value:.1f} ({100 * _lost(figures, variant, name):+.1f})"
