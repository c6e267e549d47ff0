"""The runs of the figure as curves: held-out loss by tokens, model FLOPs and seconds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nystromformer.errors import UserError
from nystromformer.model import NystromformerConfig, NystromformerForPreTraining
from nystromformer.reproduce.pretraining import check_same_batches
from nystromformer.reproduce.runs import composed_run, finished_run, validations
from nystromformer.settings import PretrainSettings
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.settings.scale import ScalingScale
from nystromformer.training.metrics import MetricsLog
from nystromformer.training.run_folder import RunFolder

EXACT, NYSTROM = "exact", "Nyström"
Curve = dict[str, Any]
"""What one run left: see `curve_of`."""


def words_of(scale: ScalingScale) -> Iterator[tuple[str, int, dict[str, list[str]]]]:
    """Each size and length with the words of its two runs."""
    for number, size in enumerate(scale.sizes, start=1):
        for length in scale.lengths:
            words = words_at(scale, length) + size.split()
            name = f"name=scaling_{number}_{length}"
            yield (
                size,
                length,
                {
                    EXACT: [*words, *scale.exact, f"{name}_exact"],
                    NYSTROM: [*words, *scale.nystrom, f"{name}_nystrom"],
                },
            )


def words_at(scale: ScalingScale, length: int) -> list[str]:
    """Words that all runs at a length have: they decide its corpus."""
    rows = max(scale.tokens // length, 1)
    return [*scale.every, f"model.max_length={length}", f"training.global_batch_size={rows}"]


def curves(settings: ReproduceSettings) -> list[Curve]:
    """Train or read every run; those of both attentions at a size and length take the same batches.

    Raises:
        UserError: words ask for different batches, or a run cannot be trained.
    """
    scale = settings.scale.scaling
    if len(scale.sizes) < 3 or len(scale.lengths) < 2:
        raise UserError(
            f"scale={settings.scale.name} has {len(scale.sizes)} scale.scaling.sizes and "
            f"{len(scale.lengths)} scale.scaling.lengths: write at least three sizes and two lengths for a "
            "fit"
        )
    planned = list(words_of(scale))
    for _, _, words in planned:  # all of them before the first trains
        check_same_batches(*(composed_run(settings, each) for each in words.values()), of="scale.scaling")
    found = []
    for _, length, words in planned:
        for attention, each in words.items():
            print(f"\n== {attention}, {length} tokens: {each[-1].removeprefix('name=')}", flush=True)
            found.append(curve_of(finished_run(settings, each), attention))
    return found


def curve_of(run: PretrainSettings, attention: str) -> Curve:
    """One finished run: parameters, tokens a second, and its validations as points.

    Tokens and FLOPs of a point are those of the steps before it, each as the run recorded it (real tokens;
    `training.flops`); its seconds are its tokens at the run's median speed, so that validations, checkpoints
    and what else the machine did in between count nothing.
    """
    folder = RunFolder(run)
    events, points = MetricsLog(folder.metrics).events("train"), validations(run)
    speed = statistics.median(event["tokens_per_second"] for event in events)
    steps = np.array([0, *(event["step"] for event in events)])
    at = np.array([point["step"] for point in points])
    tokens, flops = (
        np.interp(at, steps, np.cumsum([0.0, *_sums(events, name)]))
        for name in ("tokens_per_second", "model_flops_per_second")
    )
    config = NystromformerConfig.from_pretrained(folder.model)
    everything, embeddings = parameters_of(config)
    return {
        "size": f"{run.model.num_hidden_layers} × {run.model.hidden_size}",
        "length": run.model.max_length,
        "attention": attention,
        "parameters": everything - embeddings,
        "parameters_with_embeddings": everything,
        "warmup_steps": run.training.warmup_steps,
        "tokens_per_second": speed,
        "unigram_loss": points[-1]["unigram_loss"],
        "predictions": points[-1]["tokens"],
        "step": at.tolist(),
        "tokens": tokens.tolist(),
        "flops": flops.tolist(),
        "seconds": (tokens / speed).tolist(),
        "loss": [point["mlm_loss"] for point in points],
    }


def _sums(events: Sequence[dict[str, Any]], name: str) -> Iterator[float]:
    """Of each stretch between two events, its steps times what a step had."""
    for before, event in pairwise([{"step": 0}, *events]):
        yield (event["step"] - before["step"]) * event[name] / event["steps_per_second"]


def parameters_of(config: NystromformerConfig) -> tuple[int, int]:
    """Parameters of a model to pretrain, and how many of them are embedding tables."""
    with torch.device("meta"):
        model = NystromformerForPreTraining(config)
    tables = (each for each in model.modules() if isinstance(each, torch.nn.Embedding))
    return sum(p.numel() for p in model.parameters()), sum(table.weight.numel() for table in tables)


def equal_loss(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """What exact attention needs against Nyström for the same loss, by size and length.

    The loss is the better one that both reach; where a curve reaches it is interpolated between validations,
    from the unigram loss that it begins with.
    """
    found = []
    exact, nystrom = (
        {(one["size"], one["length"]): one for one in curves if one["attention"] == attention}
        for attention in (EXACT, NYSTROM)
    )
    for key, one in exact.items():
        pair = (one, nystrom[key])
        loss = max(min(each["loss"]) for each in pair)
        ratios = {}
        for name in ("tokens", "flops", "seconds"):
            first, second = (reached(each, loss, name) for each in pair)
            ratios[name] = first / second
        found.append({"size": key[0], "length": key[1], "loss": loss, **ratios})
    return found


def reached(curve: Curve, loss: float, name: str) -> float:
    """How many tokens, FLOPs or seconds a curve takes to a loss."""
    losses = np.array([curve["unigram_loss"], *curve["loss"]])
    amounts = np.array([0.0, *curve[name]])
    best: NDArray[np.float64] = np.minimum.accumulate(losses)
    better = np.concatenate([[True], best[1:] < best[:-1]])
    return float(np.interp(-loss, -best[better], amounts[better]))
