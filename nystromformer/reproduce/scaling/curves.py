"""The runs of the figure as curves: held-out loss by tokens, model FLOPs and seconds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from nystromformer.errors import UserError
from nystromformer.model import NystromformerConfig, NystromformerForPreTraining
from nystromformer.reproduce.pretraining import check_same_batches
from nystromformer.reproduce.runs import composed_run, finished_run, validations
from nystromformer.reproduce.scaling.law import Floats
from nystromformer.settings import PretrainSettings
from nystromformer.settings.reproduce import ReproduceSettings
from nystromformer.settings.scale import ScalingScale
from nystromformer.training.metrics import MetricsLog
from nystromformer.training.run_folder import RunFolder

EXACT, NYSTROM = "exact", "Nyström"
Curve = dict[str, Any]
"""What one run left: see `curve_of`."""


def words_of(scale: ScalingScale) -> Iterator[tuple[int, dict[str, list[str]]]]:
    """The words of the two runs of each size and length, and the length."""
    for number, size in enumerate(scale.sizes, start=1):
        for length in scale.lengths:
            words = [*words_at(scale, length), *size.split()]
            exact = [*words, *scale.exact, f"name=scaling_{number}_{length}_exact"]
            nystrom = [*words, *scale.nystrom, f"name=scaling_{number}_{length}_nystrom"]
            yield length, {EXACT: exact, NYSTROM: nystrom}


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
    planned, sizes = list(words_of(scale)), set()
    for _, words in planned:  # all of them before the first trains
        pair = [composed_run(settings, each) for each in words.values()]
        check_same_batches(*pair, of="scale.scaling")
        sizes.add(size_of(pair[0]))
    for what, given, different, least in (
        ("sizes", len(scale.sizes), len(sizes), 3),
        ("lengths", len(scale.lengths), len(set(scale.lengths)), 2),
    ):
        if different < max(given, least):
            raise UserError(
                f"scale={settings.scale.name} has {different} different scale.scaling.{what}: write at least "
                f"{least} for a fit, each once"
            )
    found = []
    for length, words in planned:
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
    uniform = math.log(config.vocab_size)
    return {
        "size": size_of(run),
        "length": run.model.max_length,
        "attention": attention,
        "parameters": everything - embeddings,
        "parameters_with_embeddings": everything,
        "convolution": run.model.conv_kernel_size,
        "warmup_steps": run.training.warmup_steps,
        "tokens_per_second": speed,
        "first_loss": points[-1]["unigram_loss"] if run.init.output_bias == "unigram" else uniform,
        "predictions": points[-1]["tokens"],
        "points": [
            {"step": point["step"], "tokens": d, "flops": c, "seconds": d / speed, "loss": point["mlm_loss"]}
            for point, d, c in zip(points, tokens.tolist(), flops.tolist(), strict=True)
        ],
    }


def column(curve: Curve, name: str) -> Floats:
    """One figure of all points of a curve."""
    return np.array([point[name] for point in curve["points"]], np.float64)


def size_of(run: PretrainSettings) -> str:
    """Layers and width, as tables name a size."""
    return f"{run.model.num_hidden_layers} × {run.model.hidden_size}"


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

    The loss is the best one that both reach; where a curve reaches it is interpolated between validations,
    from the loss of its first weights. None where a run learned nothing.
    """
    found = []
    exact, nystrom = (
        {(one["size"], one["length"]): one for one in curves if one["attention"] == attention}
        for attention in (EXACT, NYSTROM)
    )
    for key, one in exact.items():
        pair = (one, nystrom[key])
        loss = max(column(each, "loss").min() for each in pair)
        ratios = {}
        for name in ("tokens", "flops", "seconds"):
            first, second = (reached(each, loss, name) for each in pair)
            ratios[name] = first / second if first and second else None
        found.append({"size": key[0], "length": key[1], "loss": float(loss), **ratios})
    return found


def reached(curve: Curve, loss: float, name: str) -> float:
    """How many tokens, FLOPs or seconds a curve takes to a loss."""
    losses = np.array([curve["first_loss"], *column(curve, "loss")])
    amounts = np.array([0.0, *column(curve, name)])
    best: Floats = np.minimum.accumulate(losses)
    better = np.concatenate([[True], best[1:] < best[:-1]])
    return float(np.interp(-loss, -best[better], amounts[better]))
