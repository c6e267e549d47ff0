"""What is computed, not measured, for the 12 layers of 768: tokens a second and days on several GPUs."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nystromformer.benchmark.models import EXACT as EXACT_MODEL
from nystromformer.benchmark.models import OURS, PREDICTED, our_config
from nystromformer.errors import UserError
from nystromformer.model import NystromformerConfig
from nystromformer.reproduce.scaling.curves import EXACT, NYSTROM, parameters_of
from nystromformer.settings import PretrainSettings
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.settings.compose import compose
from nystromformer.settings.scale import ScalingScale
from nystromformer.training.flops import TRAINING_FACTOR, peak_of, training_flops

LENGTHS = (512, 1024, 2048, 4096, 8192)
GPUS = (1, 8, 64)
GRADIENT_BYTES = 4
"""Weights and gradients are float32, whatever the autocast."""
_MODELS = {EXACT: (EXACT_MODEL, "softmax"), NYSTROM: (OURS, "nystrom")}

Utilisation = dict[str, dict[int, float]]
"""Attention → length → measured share of the peak (MFU)."""


def all_reduce_seconds(parameters: int, gpus: int, bandwidth: float) -> float:
    """A ring's all-reduce of the gradients: 2 (g − 1) / g · 4 bytes · P over the bandwidth of one GPU.

    Each GPU sends and receives (g − 1) / g of the gradients twice: once to add them up, once to spread the
    sums (Patarasuk and Yuan 2009). Latency counts nothing.

    Args:
        bandwidth: bytes a second that a GPU sends while it receives as many.
    """
    return 2 * (gpus - 1) / gpus * GRADIENT_BYTES * parameters / bandwidth


def step_seconds(compute: float, parameters: int, gpus: int, scale: ScalingScale) -> float:
    """A step on several GPUs: max(compute, forward + all-reduce), forward a third of the compute.

    The all-reduce overlaps with the backward pass; within a node it goes over its links, beyond over the
    network.

    Args:
        compute: seconds of one GPU's share without it.
    """
    gigabytes = scale.node_bandwidth if gpus <= scale.gpus_per_node else scale.network_bandwidth
    forward = compute / TRAINING_FACTOR
    return max(compute, forward + all_reduce_seconds(parameters, gpus, 1e9 * gigabytes))


def base_config(length: int, attention: str) -> NystromformerConfig:
    """The model of `experiment=base_512` at a length, as `benchmark what=step` measures it."""
    model = _pretraining("base_512").model
    same = BenchmarkSettings(
        what="step", layers=model.num_hidden_layers, hidden=model.hidden_size,
        landmarks=model.num_landmarks, kernel=model.conv_kernel_size,
    )  # fmt: skip
    return our_config(same, length, _MODELS[attention][1])


def flops_per_token(config: NystromformerConfig, length: int) -> float:
    """Model FLOPs of training on a token of full rows, 15 % of them predicted."""
    rows = 64
    predicted = round(PREDICTED * rows * length)
    return training_flops(config, np.full(rows, length), predicted) / (rows * length)


def read_step(path: str) -> tuple[Utilisation, float, str]:
    """The MFU that `benchmark what=step` measured, the peak that it is of, and the device.

    Raises:
        UserError: the file is no such result, has no MFU, or is of another size than base.
    """
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        settings, lengths, peak = content["settings"], content["lengths"], content["peak_flops"]
        what, size = settings["what"], (settings["layers"], settings["hidden"])
        device = content["machine"]["device"]
    except (OSError, ValueError, KeyError, TypeError):
        what, size = None, (0, 0)
    if what != "step":
        raise UserError(
            f"step={path} is no result of `nystromformer benchmark what=step`: write its JSON file"
        )
    model = _pretraining("base_512").model
    if size != (model.num_hidden_layers, model.hidden_size):
        raise UserError(
            f"step={path} is of {size[0]} layers of {size[1]}: write one of layers={model.num_hidden_layers} "
            f"hidden={model.hidden_size}"
        )
    found: Utilisation = {
        attention: {
            int(length): row[name]["model_flop_utilisation"]
            for length, row in sorted(lengths.items(), key=lambda pair: int(pair[0]))
            if row.get(name, {}).get("model_flop_utilisation")
        }
        for attention, (name, _) in _MODELS.items()
    }
    if absent := [_MODELS[attention][0] for attention, known in found.items() if not known]:
        raise UserError(f"step={path} has no MFU of {' and '.join(absent)}: write one that a GPU measured")
    return found, peak, device


def utilisation_at(known: Mapping[int, float], length: int) -> tuple[float, str]:
    """The MFU at a length and where it is from: between lengths by their logarithms, beyond the nearest."""
    if length in known:
        return known[length], "measured"
    share = float(np.interp(np.log(length), np.log(list(known)), list(known.values())))
    within = min(known) < length < max(known)
    return share, "interpolated" if within else "of the nearest length"


def predictions(scale: ScalingScale, step: str | None) -> dict[str, Any]:
    """Tokens a second of base at each length, attention and number of GPUs, and days.

    Raises:
        UserError: the file cannot be taken, or the GPU of the scale is unknown.
    """
    import torch

    known: Utilisation | None = None
    if step:
        known, peak, device = read_step(step)
    else:
        device = scale.gpu
        found = peak_of(device, torch.bfloat16)
        if found is None:
            raise UserError(f"scale.scaling.gpu={device} is not in the table of peaks: write e.g. H100")
        peak = found
    paper = _pretraining("bert_base_512")
    batch = paper.training.global_batch_size * paper.model.max_length
    tokens = paper.training.steps * batch
    rows = list(_rows(scale, known, peak))
    for row in rows:
        row["days"] = {g: tokens / speed / 86_400 for g, speed in row["tokens_per_second"].items()}
    return {
        "device": device,
        "peak_flops": peak,
        "assumed": step is None,
        "tokens_per_gpu": scale.tokens_per_gpu,
        "gpus_per_node": scale.gpus_per_node,
        "node_bandwidth": scale.node_bandwidth,
        "network_bandwidth": scale.network_bandwidth,
        "paper": {"steps": paper.training.steps, "batch_tokens": batch, "tokens": tokens},
        "rows": {f"{row['length']} tokens, {row['attention']}": row for row in rows},
        "paper_batch": {
            row["attention"]: _with_batch(row, scale, batch, tokens)
            for row in rows
            if row["length"] == LENGTHS[0]
        },
    }


def _rows(scale: ScalingScale, known: Utilisation | None, peak: float) -> Iterator[dict[str, Any]]:
    """Every GPU takes `tokens_per_gpu` a step."""
    for length in LENGTHS:
        for attention in (EXACT, NYSTROM):
            config = base_config(length, attention)
            share, source = utilisation_at(known[attention], length) if known else (scale.mfu, "assumed")
            flops, (parameters, _) = flops_per_token(config, length), parameters_of(config)
            alone = share * peak / flops
            compute = scale.tokens_per_gpu / alone
            speeds = {g: g * scale.tokens_per_gpu / step_seconds(compute, parameters, g, scale) for g in GPUS}
            yield {
                "length": length,
                "attention": attention,
                "parameters": parameters,
                "flops_per_token": flops,
                "mfu": share,
                "mfu_source": source,
                "tokens_per_second": speeds,
            }


def _with_batch(row: Mapping[str, Any], scale: ScalingScale, batch: int, tokens: int) -> dict[int, float]:
    """Days where the GPUs share the paper's batch, each as fast on its part as on a whole one."""
    alone = row["tokens_per_second"][1]
    seconds = {g: step_seconds(batch / g / alone, row["parameters"], g, scale) for g in GPUS}
    return {g: tokens / batch * each / 86_400 for g, each in seconds.items()}


@functools.cache
def _pretraining(experiment: str) -> PretrainSettings:
    run = compose("pretrain", [f"experiment={experiment}"])
    assert isinstance(run, PretrainSettings)
    return run
