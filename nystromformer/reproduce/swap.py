"""Classifiers and taggers of exact attention, and what they lose when it is exchanged without training."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from nystromformer.intervals import bootstrap, in_percent, mcnemar, middle_of, proportion_interval
from nystromformer.machine import device_of
from nystromformer.model import NystromformerConfig
from nystromformer.model.layouts import load_model
from nystromformer.model.source import NEW_CONVOLUTION
from nystromformer.reproduce.finetuning import absent_lines, on_every_task
from nystromformer.reproduce.result import trained_bert
from nystromformer.reproduce.runs import finetune_run, finetuned
from nystromformer.results import Result
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.tables import Block, percent, table
from nystromformer.tasks.benchmarks import TASKS
from nystromformer.tasks.export import open_model
from nystromformer.tasks.jobs import jobs_of
from nystromformer.tasks.reading import load_splits
from nystromformer.tasks.scores import figures_of_sets
from nystromformer.tasks.setup import fit_on_longest
from nystromformer.tasks.task import Encoded, Task
from nystromformer.tasks.training import outputs_of

EXACT = "exact"
_NEIGHBOURS = {"attention": "nystrom", "num_landmarks": 64, "neighbours": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    EXACT: {"attention": "softmax"},
    "Nyström, m = 64": {"attention": "nystrom", "num_landmarks": 64},
    "Nyström, m = 64, fitted": {"attention": "nystrom", "num_landmarks": 64, "how": "fitted"},
    "neighbours, m = w = 64": _NEIGHBOURS,
    "neighbours, fitted": {**_NEIGHBOURS, "how": "fitted"},
    "neighbours, reconstructed": {**_NEIGHBOURS, "how": "reconstructed"},
    "neighbours, m = 32, 128 salient": {**_NEIGHBOURS, "num_landmarks": 32, "salient_tokens": 128},
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
    blocks = [
        "The trained BERT of the samples (or `checkpoint=`) fine-tuned with exact attention; then its "
        "attention is exchanged and the held-out examples are predicted again, without training. In per "
        "cent, the median of the seeds; in brackets points lost. Accuracies have 95 % intervals: Wilson's of "
        "exact attention's, the paired bootstrap's of the points lost, over examples. A tagger's accuracy is "
        "of words, its examples are documents. `fitted` and `reconstructed`: in closed form on the "
        f"{scale.rows} longest training rows, without their labels.",
        table(
            ("task and figure", *VARIANTS),
            [
                (
                    f"{found['title']}: {name.replace('_', ' ')}",
                    _exact_entry(found, name),
                    *(_entry(found, variant, name) for variant in swapped),
                )
                for found in measured.values()
                for name in found["figures"][EXACT]
                if name != "score"
            ],
        ),
        table(
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
        absent_lines(absent),
        "Rows of at most 64 tokens get exact attention from landmarks alone too, rows of at most 128 with "
        "neighbours; what a fitted convolution or projection does there is its own doing.",
        *_tests(measured, swapped),
    ]
    best = "neighbours, m = w = 64"
    return Result(
        title="Classifiers and taggers of exact attention, their attention exchanged without training",
        measured={"tasks": measured, "lost": lost, "absent": absent},
        blocks=blocks,
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
    own = NystromformerConfig.from_pretrained(jobs[0].folder / "model").conv_kernel_size is not None
    variants = {name: changes for name, changes in VARIANTS.items() if not (own and "how" in changes)}
    figures: dict[str, dict[str, list[float]]] = {variant: {} for variant in variants}
    right: dict[str, list[list[int]]] = {variant: [] for variant in variants}
    asked: list[int] = []
    task, device = splits.task, device_of(settings.device)
    for job in jobs:
        folder = job.folder / "model"
        _, tokenizer = open_model(folder, task)
        length = tokenizer.model_max_length
        train = task.encode(splits.train, tokenizer, length)
        dev = {name: task.encode(part, tokenizer, length) for name, part in splits.dev.items()}
        labels = {name: part.labels or [] for name, part in splits.dev.items()}
        asked = [_answers(label) for part in labels.values() for label in part]
        for variant, changes in variants.items():
            model = swapped_model(task, folder, train, settings.scale.swap.rows, device, **changes)
            predictions = {name: _predicted(task, model, part) for name, part in dev.items()}
            of_sets = {name: task.figures(labels[name], found) for name, found in predictions.items()}
            for name, value in figures_of_sets(of_sets).items():
                figures[variant].setdefault(name, []).append(value)
            pairs = (zip(labels[name], found, strict=True) for name, found in predictions.items())
            right[variant].append([_right(*pair) for pair in chain.from_iterable(pairs)])
            print(f"  {task.title}, seed {job.seed}, {variant}: {figures[variant]}", flush=True)
    lengths = np.concatenate([part.lengths for part in dev.values()])
    return {
        "title": task.title if task.name in TASKS else f"{task.name}, {task.title}",
        "figures": figures,
        **({} if getattr(task, "regression", False) else _compared(right, asked)),
        "seeds": len(jobs),
        "held_out": len(asked),
        "length": float(np.median(lengths)),
        "longer": {str(limit): float((lengths > limit).mean()) for limit in (64, 128)},
    }


def swapped_model(
    task: Task,
    folder: Path,
    train: Encoded,
    rows: int,
    device: torch.device,
    *,
    how: str | None = None,
    **changes: Any,
) -> PreTrainedModel:
    """A fine-tuned model with another attention; what is fitted is fitted on the longest training rows."""
    if how:
        changes["conv_kernel_size"] = NEW_CONVOLUTION
    wrong, fix = f"checkpoint={folder}", ": train it again"
    model = load_model(task.head, str(folder), wrong=wrong, fix=fix, **changes)[0].eval().to(device)
    if how:
        collate = partial(task.collate, labelled=False)
        print(f"  {fit_on_longest(model, train, rows, how, collate)}", flush=True)
    return model


def _predicted(task: Task, model: PreTrainedModel, part: Encoded) -> list[Any]:
    """The prediction of each example, in float32."""
    plain = torch.autocast(model.device.type, enabled=False)
    return task.predict(part, outputs_of(task, model, part, BATCH, model.config.pad_token_id or 0, plain))


def _answers(label: Any) -> int:
    """How many answers an example asks for: one, or a tag for each word of a document's sentences."""
    return sum(map(len, label)) if _is_document(label) else 1


def _right(label: Any, prediction: Any) -> int:
    """How many of them are right."""
    if _is_document(label):
        pairs = zip(chain.from_iterable(label), chain.from_iterable(prediction), strict=True)
        return sum(tag == found for tag, found in pairs)
    return int(np.all(np.equal(label, prediction)))


def _is_document(label: Any) -> bool:
    return isinstance(label, list) and bool(label) and isinstance(label[0], list)


def _compared(right: Mapping[str, list[list[int]]], asked: list[int]) -> dict[str, Any]:
    """The intervals of exact attention's accuracy and of what each variant loses of it; McNemar's p."""
    seeds, exact = len(right[EXACT]), right[EXACT]
    others = {variant: of_seeds for variant, of_seeds in right.items() if variant != EXACT}
    sums = [np.sum(of_seeds, axis=0)[None] for of_seeds in (exact, *others.values())]
    drawn = bootstrap(lambda of, counts: counts.sum() / of.sum() / seeds, np.asarray(asked), sums, draws=2000)
    lost = {variant: middle_of(drawn[:, 0] - drawn[:, n]) for n, variant in enumerate(others, start=1)}
    p_values: dict[str, list[float]] = {}
    for variant, of_seeds in others.items() if max(asked) == 1 else ():
        pairs = zip(exact, of_seeds, strict=True)
        p_values[variant] = [mcnemar(one, other) for one, other in pairs]  # type: ignore[arg-type]
    middle = statistics.median(sum(counts) / sum(asked) for counts in exact)
    # Words of a document are not independent of each other, as Wilson's interval takes examples to be.
    own = {"accuracy": proportion_interval(middle, len(asked))} if p_values else {}
    return {"intervals": {**own, "lost": lost}, "mcnemar": p_values}


def _tests(measured: Mapping[str, Mapping[str, Any]], variants: list[str]) -> list[Block]:
    """Of each variant, whether it is right as often as exact attention on the same examples."""
    tested = [found for found in measured.values() if found.get("mcnemar")]
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
    return [told, table(("task", *variants), rows)]


def _lost(figures: Mapping[str, Mapping[str, list[float]]], variant: str, name: str) -> float:
    """Median over the seeds of what each seed's model loses."""
    pairs = zip(figures[EXACT][name], figures[variant][name], strict=True)
    return statistics.median(exact - found for exact, found in pairs)


def _exact_entry(found: Mapping[str, Any], name: str) -> str:
    shown = percent([statistics.median(found["figures"][EXACT][name])])
    interval = found.get("intervals", {}).get(name)
    return f"{shown} {in_percent(interval)}" if interval else shown


def _entry(found: Mapping[str, Any], variant: str, name: str) -> str:
    figures = found["figures"]
    if variant not in figures:
        return "–"
    value = statistics.median(figures[variant][name])
    lost = f"{100 * _lost(figures, variant, name):+.1f}"
    if name == "accuracy" and "intervals" in found:
        lost += f" {in_percent(found['intervals']['lost'][variant])}"
    return f"{100 * value:.1f} ({lost})"
