"""One seed of one cell: steps, looks at the held-out examples, checkpoints; then its result.

The same checkpoints, signals and guard as pretraining: a killed seed goes on from its last checkpoint, on a
CPU bit for bit. The checkpoint with the best held-out score is the result; a test set is looked at after
that, once.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file

from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.machine import machine
from nystromformer.model import NystromformerForSequenceClassification as Classifier
from nystromformer.settings import TrainingSettings
from nystromformer.tasks.batches import TaskBatches, ordered_batches
from nystromformer.tasks.encoding import Encoded, facts
from nystromformer.tasks.export import export
from nystromformer.tasks.jobs import Job
from nystromformer.tasks.metrics import figures_of, figures_of_sets
from nystromformer.tasks.plots import draw_confusion, draw_learning_curve
from nystromformer.tasks.setup import TaskSetup
from nystromformer.tasks.start import build_classifier, max_length_of
from nystromformer.training import devices
from nystromformer.training.checkpoint import load_latest, save_checkpoint, saved_steps
from nystromformer.training.computation import note_computation
from nystromformer.training.devices import on_device
from nystromformer.training.guard import Guard, NotFinite
from nystromformer.training.metrics import MetricsLog
from nystromformer.training.optimizer import build_optimizer, learning_rate, set_learning_rate, update
from nystromformer.training.parallel import load_weights
from nystromformer.training.step import GradientFault, gradient_norms, last_fault, with_gradient

Logits = NDArray[np.float32]


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
        batch_size=job.batch_size,
        micro_batch_size=recipe.micro_batch_size,
        seed=job.seed,
        steps=recipe.steps,
        pad_token_id=setup.pad_token_id,
        regression=task.regression,
    )
    guard = Guard(model, batches, autocast)
    job.folder.mkdir(parents=True, exist_ok=True)
    metrics = MetricsLog(job.folder / "metrics.jsonl")
    metrics.rewind(progress.step)
    say(
        f"{recipe.steps} steps of {job.batch_size}, rate {job.learning_rate:g}"
        + (f", resumed at step {progress.step}" if progress.step else f"\n{report}")
    )
    looks = evaluation_steps(recipe.steps, job.task.epochs or 1, training.evaluations_per_epoch)
    began = time.perf_counter() - progress.seconds
    losses = []
    model.train()
    while progress.step < recipe.steps:
        rate = learning_rate(progress.step, recipe)
        set_learning_rate(optimizer, rate)
        loss, norm, fault = classification_step(
            model, optimizer, batches.of_step(progress.step), accelerator.device, autocast, recipe
        )
        losses.append(loss)
        progress.step += 1
        guard.note(progress.step, fault)
        stopping = setup.stop.decide(setup.stop.votes())
        look = progress.step in looks
        if look or stopping or progress.step % training.log_every == 0:
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
        if look:
            figures, _ = look_at(model, setup, setup.dev, autocast)
            score = figures["score"]
            metrics.append({"kind": "validation", "step": progress.step, **figures})
            shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            say(f"step {progress.step}/{recipe.steps}: training loss {mean_loss:.4f}; held out: {shown}")
        if look or stopping:
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
    """After which steps the held-out examples are looked at: evenly, and after the last."""
    looks = max(round(epochs * per_epoch), 1)
    return {max(round(number * steps / looks), 1) for number in range(1, looks + 1)}


def classification_step(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    device: torch.device,
    autocast: torch.autocast,
    recipe: TrainingSettings,
) -> tuple[torch.Tensor, torch.Tensor, GradientFault]:
    """Loss (mean over the batch's rows), gradient norm and fault of one step, on the device.

    However the batch is cut into micro-batches, the gradient is that of the whole. A gradient that is not
    finite changes nothing; its `fault` says where it began.
    """
    rows = sum(len(batch["input_ids"]) for batch in micro_batches)
    total = torch.zeros((), device=device)
    for batch in micro_batches:
        batch = on_device(batch, device)
        with autocast:
            loss = model(**batch).loss * (len(batch["input_ids"]) / rows)
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


def look_at(
    model: Classifier, setup: TaskSetup, parts: dict[str, Encoded], autocast: torch.autocast
) -> tuple[dict[str, float], dict[str, Logits]]:
    """Figures of labelled sets, with their mean `loss`, and the logits of each."""
    task = setup.splits.task
    logits = {
        name: predict(model, part, setup.settings.training.eval_batch_size, setup.pad_token_id, autocast)
        for name, part in parts.items()
    }
    figures = figures_of_sets(
        {
            name: figures_of(task, part.labels or [], answers(logits[name], regression=task.regression))
            for name, part in parts.items()
        }
    )
    all_losses = [
        _losses(logits[name], part.labels or [], regression=task.regression) for name, part in parts.items()
    ]
    return {**figures, "loss": float(torch.cat(all_losses).mean())}, logits


@torch.no_grad()
def predict(
    model: Classifier, part: Encoded, batch_size: int, pad_token_id: int, autocast: torch.autocast
) -> Logits:
    """(examples, labels), in the examples' own order."""
    was_training = model.training
    model.eval()
    found = np.zeros((len(part), model.config.num_labels), np.float32)
    for rows, batch in ordered_batches(part, batch_size, pad_token_id):
        with autocast:
            output = model(**on_device(batch, model.device))
        found[rows] = output.logits.float().cpu().numpy()
    model.train(was_training)
    return found


def answers(logits: Logits, *, regression: bool) -> list[float]:
    """The likeliest label id of each row, or the number itself."""
    return (logits[:, 0] if regression else logits.argmax(axis=1)).tolist()


def _losses(logits: Logits, labels: list[float], *, regression: bool) -> torch.Tensor:
    if regression:
        return F.mse_loss(torch.from_numpy(logits[:, 0]), torch.tensor(labels), reduction="none")
    targets = torch.tensor(labels, dtype=torch.int64)
    return F.cross_entropy(torch.from_numpy(logits), targets, reduction="none")


def _finish(
    setup: TaskSetup,
    job: Job,
    model: Classifier,
    recipe: TrainingSettings,
    metrics: MetricsLog,
    autocast: torch.autocast,
    seconds: float,
) -> None:
    """Go back to the best checkpoint, write the result and the model, and remove the checkpoints."""
    checkpoints, task = job.folder / "checkpoints", setup.splits.task
    best = _best_step(checkpoints)
    load_weights(model, load_file(checkpoints / f"step-{best}" / "model.safetensors"))
    figures, logits = look_at(model, setup, setup.dev, autocast)
    test = look_at(model, setup, setup.test, autocast)[0] if setup.test else None
    curve = metrics.events("validation")
    export(model, setup, job, figures, job.folder / "model")
    draw_learning_curve(metrics, job.folder / "curve.png", job.label)
    confusion = None
    if not task.regression:
        name, part = next(iter(setup.dev.items()))
        confusion = draw_confusion(
            task,
            part.labels or [],
            answers(logits[name], regression=False),
            job.folder / "confusion.png",
            job.label,
        )
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
        "confusion": confusion,
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
