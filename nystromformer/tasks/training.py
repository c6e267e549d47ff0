"""One seed of one cell: steps, evaluations on the held-out examples, checkpoints; then its result.

The same checkpoints, signals and guard as pretraining: a killed seed goes on from its last checkpoint, on a
CPU bit for bit. The checkpoint with the best held-out score is the result; a test set is evaluated after
that, once.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.machine import machine
from nystromformer.settings import TrainingSettings
from nystromformer.tasks.batches import TaskBatches, ordered_batches
from nystromformer.tasks.export import export
from nystromformer.tasks.jobs import Job
from nystromformer.tasks.plots import draw_learning_curve
from nystromformer.tasks.scores import figures_of_sets
from nystromformer.tasks.setup import TaskSetup, facts
from nystromformer.tasks.start import build_classifier, max_length_of
from nystromformer.tasks.task import Encoded, Examples, Outputs, Task
from nystromformer.training import devices
from nystromformer.training.checkpoint import load_latest, save_checkpoint, saved_steps
from nystromformer.training.computation import note_computation
from nystromformer.training.devices import on_device
from nystromformer.training.guard import Guard, NotFinite
from nystromformer.training.metrics import MetricsLog
from nystromformer.training.optimizer import build_optimizer, learning_rate, set_learning_rate, update
from nystromformer.training.parallel import load_weights
from nystromformer.training.step import GradientFault, gradient_norms, last_fault, with_gradient


def recipe_of(setup: TaskSetup, job: Job) -> TrainingSettings:
    """The seed's recipe in the terms of the training loop."""
    training = setup.settings.training
    assert job.task.epochs is not None
    steps = max(math.ceil(job.task.epochs * len(setup.train) / job.batch_size), 1)
    return TrainingSettings(
        steps=steps,
        global_batch_size=job.batch_size,
        micro_batch_size=training.micro_batch_size,
        learning_rate=job.learning_rate,
        beta1=training.beta1,
        beta2=training.beta2,
        epsilon=training.epsilon,
        weight_decay=training.weight_decay,
        warmup_steps=round(training.warmup_fraction * steps),
        gradient_clipping=training.gradient_clipping,
        precision=training.precision,
        seed=job.seed,
    )


def train_seed(setup: TaskSetup, job: Job, say: Callable[[str], None]) -> None:
    """Train, or go on; leaves `job.result` and a model.

    Raises:
        UserError: too many steps were not finite, or a checkpoint cannot be written.
        SystemExit: a signal came; a checkpoint was written first.
    """
    recipe, accelerator = recipe_of(setup, job), setup.accelerator
    task, training = setup.splits.task, setup.settings.training
    model, report = build_classifier(setup.checkpoint, task, setup.settings.model, setup.train, seed=job.seed)
    model.to(accelerator.device)
    optimizer = build_optimizer(model, recipe)
    checkpoints = job.folder / "checkpoints"
    progress = load_latest(checkpoints, model, optimizer, accelerator)
    if progress.step == 0:
        torch.manual_seed(job.seed)  # dropout
    dtype = devices.precision(recipe, accelerator.device)
    note_computation(progress, model.config, accelerator, dtype, say)
    autocast = devices.autocast(dtype, accelerator.device)
    batches = TaskBatches(
        setup.train,
        partial(task.collate, pad_token_id=setup.pad_token_id, labelled=True),
        batch_size=job.batch_size,
        micro_batch_size=recipe.micro_batch_size,
        seed=job.seed,
        steps=recipe.steps,
    )
    guard = Guard(model, batches, autocast)
    job.folder.mkdir(parents=True, exist_ok=True)
    metrics = MetricsLog(job.folder / "metrics.jsonl")
    metrics.rewind(progress.step)
    say(
        f"{recipe.steps} steps of {job.batch_size}, rate {job.learning_rate:g}"
        + (f", resumed at step {progress.step}" if progress.step else f"\n{report}")
    )
    evaluations = evaluation_steps(recipe.steps, job.task.epochs or 1, training.evaluations_per_epoch)
    began = time.perf_counter() - progress.seconds
    losses = []
    model.train()
    while progress.step < recipe.steps:
        rate = learning_rate(progress.step, recipe)
        set_learning_rate(optimizer, rate)
        loss, norm, fault = training_step(
            task, model, optimizer, batches.of_step(progress.step), accelerator.device, autocast, recipe
        )
        losses.append(loss)
        progress.step += 1
        guard.note(progress.step, fault)
        stopping = setup.stop.decide(setup.stop.votes())
        evaluating = progress.step in evaluations
        if evaluating or stopping or progress.step % training.log_every == 0:
            for found in guard.read():
                progress.skipped += 1
                metrics.append(found.event())
                say(str(found))
            if progress.skipped > training.max_skipped_steps:
                raise NotFinite(
                    f"{job.label}: {progress.skipped} steps had a gradient that is not finite, "
                    f"training.max_skipped_steps={training.max_skipped_steps}: write lower "
                    "task.learning_rates"
                )
            mean_loss = float(torch.stack(losses).mean())
            losses.clear()
            progress.seconds = time.perf_counter() - began
            metrics.append(
                {
                    "kind": "train", "step": progress.step, "loss": mean_loss, "rate": rate,
                    "gradient_norm": float(norm), "seconds": progress.seconds,
                }
            )  # fmt: skip
        score = None
        if evaluating:
            figures, _ = evaluate(task, model, setup, setup.dev, setup.splits.dev, autocast)
            score = figures["score"]
            metrics.append({"kind": "validation", "step": progress.step, **figures})
            shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            say(f"step {progress.step}/{recipe.steps}: training loss {mean_loss:.4f}; held out: {shown}")
        if evaluating or stopping:
            progress.seconds = time.perf_counter() - began
            # The checkpoint with the lowest of these is kept: here the negative of the score.
            save_checkpoint(
                checkpoints, model, optimizer, progress, accelerator,
                keep=1, keep_best=True, validation_loss=None if score is None else -score,
            )  # fmt: skip
        if stopping:
            say(f"stopped at step {progress.step}; the same command goes on from there")
            setup.stop.exit()
    try:
        _finish(setup, job, model, recipe, metrics, autocast, progress.seconds)
    except OSError as error:
        raise UserError(
            f"{job.label} is trained, but {job.folder} cannot be written ({error.strerror or error}): "
            "free space, and the same command writes it"
        ) from None


def evaluation_steps(steps: int, epochs: float, per_epoch: int) -> set[int]:
    """After which steps the model is evaluated on the held-out examples: evenly, and after the last."""
    count = max(round(epochs * per_epoch), 1)
    return {max(round(number * steps / count), 1) for number in range(1, count + 1)}


def training_step(
    task: Task,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    device: torch.device,
    autocast: torch.autocast,
    recipe: TrainingSettings,
) -> tuple[torch.Tensor, torch.Tensor, GradientFault]:
    """Loss (mean over the batch's `task.items`), gradient norm and fault of one step, on the device.

    However the batch is cut into micro-batches, the gradient is that of the whole. A gradient that is not
    finite changes nothing; its `fault` says where it began.
    """
    items = max(sum(task.items(batch) for batch in micro_batches), 1)
    total = torch.zeros((), device=device)
    for batch in micro_batches:
        batch = on_device(batch, device)
        with autocast:
            loss = task.loss(model, batch, items)
        loss.backward()
        total += loss.detach()
    named = with_gradient(model)
    parameters = list(named.values())
    norms = gradient_norms(parameters)
    norm = torch.linalg.vector_norm(norms)
    if recipe.gradient_clipping is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, recipe.gradient_clipping, norm, foreach=True)
    finite = norm.isfinite()
    update(optimizer, finite)
    optimizer.zero_grad(set_to_none=True)
    return total, norm, GradientFault(last_fault(norms, finite), list(named))


def evaluate(
    task: Task,
    model: PreTrainedModel,
    setup: TaskSetup,
    parts: dict[str, Encoded],
    examples: dict[str, Examples],
    autocast: torch.autocast,
) -> tuple[dict[str, float], dict[str, Outputs]]:
    """Figures of labelled sets, with their mean `loss`, and the outputs of each set's rows."""
    size = setup.settings.training.eval_batch_size
    outputs = {
        name: outputs_of(task, model, part, size, setup.pad_token_id, autocast)
        for name, part in parts.items()
    }
    return figures_of_outputs(task, parts, examples, outputs), outputs


def figures_of_outputs(
    task: Task, parts: dict[str, Encoded], examples: dict[str, Examples], outputs: dict[str, Outputs]
) -> dict[str, float]:
    """Figures of labelled sets, with their mean `loss`."""
    figures = {
        name: task.figures(examples[name].labels or [], task.predict(part, outputs[name]))
        for name, part in parts.items()
    }
    losses = torch.cat([task.losses(part, outputs[name]) for name, part in parts.items()])
    return {**figures_of_sets(figures), "loss": float(losses.mean())}


@torch.no_grad()
def outputs_of(
    task: Task,
    model: PreTrainedModel,
    part: Encoded,
    batch_size: int,
    pad_token_id: int,
    autocast: torch.autocast,
    tokens: int | None = None,
) -> Outputs:
    """What `task.outputs` gives for each row, in the rows' own order; at most so many `tokens` at once."""
    was_training = model.training
    model.eval()
    found: list[Any] = [None] * len(part)
    collate = partial(task.collate, pad_token_id=pad_token_id, labelled=False)
    for rows, batch in ordered_batches(part, batch_size, collate, tokens):
        with autocast:
            outputs = task.outputs(model, on_device(batch, model.device))
        for row, output in zip(rows, outputs, strict=True):
            found[row] = output
    model.train(was_training)
    return found


def _finish(
    setup: TaskSetup,
    job: Job,
    model: PreTrainedModel,
    recipe: TrainingSettings,
    metrics: MetricsLog,
    autocast: torch.autocast,
    seconds: float,
) -> None:
    """Go back to the best checkpoint, write the result and the model, and remove the checkpoints."""
    checkpoints, task = job.folder / "checkpoints", setup.splits.task
    best = _best_step(checkpoints)
    load_weights(model, load_file(checkpoints / f"step-{best}" / "model.safetensors"))
    figures, outputs = evaluate(task, model, setup, setup.dev, setup.splits.dev, autocast)
    name, part = next(iter(setup.dev.items()))
    labels = setup.splits.dev[name].labels or []
    fitted = task.fitted(part, labels, outputs[name])
    if fitted != task:
        task = fitted
        figures = figures_of_outputs(task, setup.dev, setup.splits.dev, outputs)
    test = None
    if setup.test:
        test, _ = evaluate(task, model, setup, setup.test, setup.splits.test, autocast)
    curve = metrics.events("validation")
    export(model, task, setup, job, figures, job.folder / "model")
    draw_learning_curve(metrics, job.folder / "curve.png", job.label)
    drawn = task.draw(labels, task.predict(part, outputs[name]), job.folder, job.label)
    config = model.config
    result: dict[str, Any] = {
        "task": task.name,
        "title": task.title,
        "metrics": list(task.metrics),
        "run": setup.settings.name,
        "seed": job.seed,
        "learning_rate": job.learning_rate,
        "batch_size": job.batch_size,
        "epochs": job.task.epochs,
        "steps": recipe.steps,
        "best_step": best,
        "dev": figures,
        "dev_at_the_end": {k: v for k, v in curve[-1].items() if k not in ("kind", "step")},
        "test": test,
        "curve": curve,
        **drawn,
        "skipped_steps": len(metrics.events("skipped")),
        "seconds": seconds,
        "model": {
            "checkpoint": str(setup.settings.checkpoint),
            "kind": setup.checkpoint.source.kind,
            "attention": config.attention,
            "num_landmarks": config.num_landmarks,
            "neighbours": config.neighbours,
            "salient_tokens": config.salient_tokens,
            "conv_kernel_size": config.conv_kernel_size,
            "convolution": setup.settings.model.convolution,
            "max_length": max_length_of(setup.checkpoint, setup.settings.model),
        },
        "data": {
            "origin": setup.splits.origin,
            "train": facts(task, setup.train),
            **{name: facts(task, part) for name, part in {**setup.dev, **setup.test}.items()},
        },
        "contents": setup.contents,
        "machine": machine(setup.accelerator.device),
    }
    write_atomically(job.result, json.dumps(result, indent=2) + "\n")
    shutil.rmtree(checkpoints, ignore_errors=True)


def _best_step(checkpoints: Path) -> int:
    steps = saved_steps(checkpoints)
    best = checkpoints / "best"
    return int(best.read_text().strip().removeprefix("step-")) if best.exists() else steps[-1]
