"""`nystromformer benchmark what=step`: whole training steps beside transformers' models.

Forward, backward, clipping and optimizer, of models of one size on the same tokens, 15 % of which every
model predicts, with the same optimizer. This project's step is `training.step.train_step`, the one that
pretraining runs: it learns sentence order too, and computes vocabulary logits where tokens are predicted;
transformers' models learn masked tokens alone and compute them everywhere.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nystromformer.benchmark.contenders import COMPOSED
from nystromformer.benchmark.lengths import figures_by_length, mechanism_of, ratios_by_length
from nystromformer.benchmark.measure import in_turn, peak_of
from nystromformer.benchmark.models import (
    BERT,
    BERT_WITH_DROPOUT,
    DROPOUT,
    EXACT,
    MODERNBERT,
    NEAR,
    OURS,
    PEER,
    batch_of,
    masked_lm_peer,
    our_config,
    transformers_bert,
    transformers_modernbert,
)
from nystromformer.data.layout import Batch, Layout
from nystromformer.errors import UserError
from nystromformer.heap import keep_freed_memory
from nystromformer.model import NystromformerConfig, NystromformerForPreTraining
from nystromformer.model.attention import NystromformerSelfAttention
from nystromformer.model.heads import IGNORED
from nystromformer.settings import TrainingSettings
from nystromformer.settings.benchmark import BenchmarkSettings
from nystromformer.tables import Block
from nystromformer.training import devices
from nystromformer.training.flops import peak_flops, training_flops
from nystromformer.training.graphs import Graphs
from nystromformer.training.optimizer import build_optimizer
from nystromformer.training.pretraining import Pretraining
from nystromformer.training.step import train_step

CLIPPING = 1.0
T = TypeVar("T")


@dataclass
class Contender:
    """One model with its optimizer."""

    name: str
    model: PreTrainedModel
    step: Callable[[], Tensor]
    """Trains one step; the loss, on the device."""
    flops: float | None
    """Model FLOPs of a step, see `training.flops`; None of a model that is not counted there."""
    attention: str = ""
    """What computes it, where there is a choice."""
    replays: bool = False
    """Whether the passes are CUDA graphs."""


def measure(settings: BenchmarkSettings, device: torch.device) -> dict[str, Any]:
    """Seconds, tokens a second and bytes of every model at every length.

    Raises:
        UserError: no model fits into memory at any length, or CUDA graphs are asked of another device.
    """
    if settings.cuda_graphs and device.type != "cuda":
        raise UserError(f"cuda_graphs=true: a {device.type} has none: write false, or device=cuda")
    if device.type == "cpu":
        keep_freed_memory()  # as a training does; the peers gain by it too
    lengths: dict[int, dict[str, Any]] = {}
    for length in settings.lengths:
        print(f"{length} tokens", flush=True)
        lengths[length] = _measure_what_fits(settings, length, device)
    if not any(lengths.values()):
        raise UserError("no model fits into memory at any length: write a smaller tokens=")
    return {
        "peak_flops": peak_flops(device, getattr(torch, settings.dtype)),
        "steps_together": _together(device),
        "lengths": lengths,
    }


def _measure_what_fits(settings: BenchmarkSettings, length: int, device: torch.device) -> dict[str, Any]:
    """One length; a model that runs out of memory is left out, and what was measured before is kept."""
    torch._dynamo.reset()  # each length has graphs of its own, and what is compiled is limited
    without: set[str] = set()
    while makes := {n: make for n, make in makers(settings, length, device).items() if n not in without}:
        try:
            found = [_named(name, make) for name, make in makes.items()]
            return _measure(found, settings, length, device)
        except _OutOfMemory as error:
            name = str(error)
        # Outside the handler, whose traceback would keep the tensors of the failed call.
        print(f"{length} tokens of {name} do not fit into memory: it is left out", flush=True)
        without.add(name)
        found = []
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {}


class _OutOfMemory(Exception):
    """The contender of this name asked for more memory than there is."""


def _named(contender: str, call: Callable[[], T]) -> T:
    """What the call gives; running out of memory names the contender."""
    try:
        return call()
    except (MemoryError, torch.OutOfMemoryError):
        # Not chained: the first error's traceback holds the tensors of the failed call.
        raise _OutOfMemory(contender) from None


def makers(
    settings: BenchmarkSettings, length: int, device: torch.device
) -> dict[str, Callable[[], Contender]]:
    """What makes each model at this length, by its name."""
    batch = batch_of(settings, length)
    nystrom, exact = our_config(settings, length, "nystrom"), our_config(settings, length, "softmax")
    near = copy.deepcopy(nystrom)
    near.neighbours, near.salient_tokens = settings.neighbours, settings.salient_tokens

    def ours(name: str, config: NystromformerConfig, settings: BenchmarkSettings = settings) -> None:
        found[name] = lambda: _ours(name, config, settings, batch, device)

    def peer(
        name: str, make: Callable[..., PreTrainedModel], like: NystromformerConfig | None, *more: float
    ) -> None:
        found[name] = lambda: _peer(name, make(settings, length, *more), like, settings, batch, device)

    found: dict[str, Callable[[], Contender]] = {}
    ours(OURS, nystrom)
    if device.type == "cuda" and settings.implementation != "composed":
        ours(COMPOSED, nystrom, dataclasses.replace(settings, implementation="composed"))
    if near.neighbours is not None:
        ours(NEAR, near)
    ours(EXACT, exact)
    peer(PEER, masked_lm_peer, nystrom)
    peer(BERT, transformers_bert, exact)
    peer(BERT_WITH_DROPOUT, transformers_bert, exact, DROPOUT)
    if settings.modernbert:
        peer(MODERNBERT, transformers_modernbert, None)
    if unknown := set(settings.models) - found.keys():
        raise UserError(
            f"models contains {', '.join(sorted(unknown))}: write names of {', '.join(map(repr, found))}"
        )
    return {name: make for name, make in found.items() if not settings.models or name in settings.models}


def _ours(
    name: str,
    config: NystromformerConfig,
    settings: BenchmarkSettings,
    batch: Batch,
    device: torch.device,
) -> Contender:
    torch.manual_seed(settings.seed)
    model = NystromformerForPreTraining(config).to(device).train()
    layers = [module for module in model.modules() if isinstance(module, NystromformerSelfAttention)]
    for layer in layers:
        layer.attend.implementation = settings.implementation
    optimizer = build_optimizer(model, TrainingSettings())
    accelerator = devices.accelerator_of(cpu=device.type == "cpu")
    dtype = getattr(torch, settings.dtype)
    autocast = devices.autocast(dtype, device)
    if settings.compile:
        devices.compile_in_place(model)
    graphs = Graphs(list(model.parameters()), device) if settings.cuda_graphs else None
    laid_out, objective = Layout(pad_id=0)(batch), Pretraining(config)

    def step() -> Tensor:
        figures = train_step(
            model, objective, optimizer, [laid_out], accelerator, autocast,
            gradient_clipping=CLIPPING, graphs=graphs,
        )  # fmt: skip
        return figures.losses[0]

    how = layers[0].describe(config.max_position_embeddings, dtype)
    return Contender(name, model, step, _flops(config, batch), attention=how, replays=graphs is not None)


def _peer(
    name: str,
    model: PreTrainedModel,
    like: NystromformerConfig | None,
    settings: BenchmarkSettings,
    batch: Batch,
    device: torch.device,
) -> Contender:
    """A model of transformers; `like` is the configuration here that computes the same, if there is one."""
    model.to(device).train()
    optimizer = build_optimizer(model, TrainingSettings())
    autocast = devices.autocast(getattr(torch, settings.dtype), device)
    if settings.compile and name != PEER:
        devices.compile_in_place(model)
    # Without a mask, as every token is real: transformers' Nystromformer cannot take one that hides some.
    names = ("input_ids", "labels") if name == MODERNBERT else ("input_ids", "token_type_ids", "labels")
    inputs = {key: batch[key].to(device) for key in names}

    def step() -> Tensor:
        with autocast:
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Contender(name, model, step, None if like is None else _flops(like, batch))


def _flops(config: NystromformerConfig, batch: Batch) -> float:
    lengths = batch["attention_mask"].sum(1).numpy()
    return training_flops(config, lengths, int((batch["labels"] != IGNORED).sum()))


def _measure(
    found: list[Contender], settings: BenchmarkSettings, length: int, device: torch.device
) -> dict[str, Any]:
    """Each model once to warm up, then all of them in turn, `repeats` times."""
    steps = {contender.name: partial(_named, contender.name, contender.step) for contender in found}
    together = _together(device)
    for step in steps.values():
        step()  # allocates the optimizer's moments, and compiles where that was asked for
    # Of a GPU alone: a CPU's allocator tells none. Nor does a replay, whose memory its graph keeps.
    told = {each.name for each in found if device.type == "cuda" and not each.replays}
    peak = {name: peak_of(step, device) if name in told else None for name, step in steps.items()}
    runs = {name: partial(_repeat, step, together) for name, step in steps.items()}
    seconds = {
        name: [each / together for each in of_run]
        for name, of_run in in_turn(runs, settings.repeats, device).items()
    }
    tokens = max(1, settings.tokens // length) * length
    fastest = peak_flops(device, getattr(torch, settings.dtype))
    row = {}
    for contender in found:
        median = statistics.median(seconds[contender.name])
        row[contender.name] = {
            "seconds": seconds[contender.name],
            "median": median,
            "tokens_per_second": tokens / median,
            "model_flops": contender.flops,
            "model_flop_utilisation": fastest and contender.flops and contender.flops / median / fastest,
            "peak_bytes": peak[contender.name],
            "attention": contender.attention,
        }
    return row


def _together(device: torch.device) -> int:
    """Steps that are timed as one: a GPU computes a step while the CPU launches the next."""
    return 4 if device.type == "cuda" else 1


def _repeat(step: Callable[[], object], times: int) -> None:
    for _ in range(times):
        step()


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """What the targets speak of, at one length; below 1 means slower than the other.

    Without what did not fit into memory.
    """
    if OURS not in row:
        return {}
    mine = row[OURS]["median"]
    faster = {
        f"times faster than {name}": row[name]["median"] / mine
        for name in (PEER, BERT, BERT_WITH_DROPOUT, EXACT, COMPOSED, MODERNBERT)
        if name in row
    }
    if NEAR in row:
        faster["times the time with exact neighbours"] = row[NEAR]["median"] / mine
    return faster


def page(result: dict[str, Any]) -> tuple[str, list[Block]]:
    """What was measured, in words, and the tables."""
    settings, rows = result["settings"], result["lengths"]
    precision = settings["dtype"] + (" autocast" if settings["dtype"] != "float32" else "")
    compiled = f", torch.compile but for {PEER}" if settings["compile"] else ""
    compiled += ", CUDA graphs of this project's passes" if settings.get("cuda_graphs") else ""
    times = result.get("steps_together", 1)  # pages from before there was such a thing had one
    together = f", {times} steps together" if times > 1 else ""
    about = (
        f"{settings['layers']} layers of {settings['hidden']}, heads of {settings['head_dim']}, feed-forward "
        f"{4 * settings['hidden']}, vocabulary {settings['vocab_size']}, {mechanism_of(settings)}, "
        f"{settings['tokens']} tokens a batch (at least one row) without padding, 15 % of them "
        f"predicted, {precision}{compiled}. A step is forward, backward, clipping and fused AdamW, with "
        f"dropout {DROPOUT} on hidden states, and on attention where that is said; all in turn, medians of "
        f"{settings['repeats']} after one step to warm up{together}. This project's steps learn sentence "
        "order too."
    )
    blocks = figures_by_length(
        rows,
        (OURS, NEAR, COMPOSED, EXACT, PEER, BERT, BERT_WITH_DROPOUT, MODERNBERT),
        (
            ("Milliseconds a step", "median", lambda x: f"{1e3 * x:,.1f}"),
            ("Tokens a second", "tokens_per_second", lambda x: f"{x:,.0f}"),
            ("Model FLOP utilisation", "model_flop_utilisation", lambda x: f"{x:.1%}"),
            (
                "Peak of the allocator in a step beyond all models' weights and moments, MB",
                "peak_bytes",
                lambda x: f"{x / 1e6:,.0f}",
            ),
        ),
    )
    if any(not row or len(row) < len(max(rows.values(), key=len)) for row in rows.values()):
        blocks.append("–: did not fit into memory.")
    return about, blocks + ratios_by_length("Ratios", rows, [ratios(row) for row in rows.values()])


def facts(result: dict[str, Any]) -> list[str]:
    """What computed this project's attention at each length, and the machine's peak."""
    rows = result["lengths"]
    ways = {length: row[OURS]["attention"] for length, row in rows.items() if OURS in row}
    lines = [f"- {OURS} at {length} tokens: {ways[length]}" for length in sorted(ways, key=int)]
    if result["peak_flops"]:
        lines.append(f"- peak: {result['peak_flops'] / 1e12:.4g} TFLOP/s")
    return lines
