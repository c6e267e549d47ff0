"""One seed of one cell: steps, evaluations on the held-out examples, checkpoints; then its result.

The same checkpoints, signals and guard as pretraining: a killed seed goes on from its last checkpoint, on a
CPU bit for bit. The checkpoint with the best held-out score is the result; a test set is evaluated after
that, once.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from nystromformer.data.layout import Batch
from nystromformer.errors import UserError
from nystromformer.files import write_atomically
from nystromformer.machine import machine
from nystromformer.model import NystromformerConfig
from nystromformer.settings import TrainingSettings
from nystromformer.tasks.batches import TaskBatches, ordered_batches
from nystromformer.tasks.export import export
from nystromformer.tasks.jobs import Job
from nystromformer.tasks.plots import RELIABILITY, draw_learning_curve, draw_reliability
from nystromformer.tasks.results import keep_answers
from nystromformer.tasks.rows import Encoded
from nystromformer.tasks.scores import figures_of_sets, reliability
from nystromformer.tasks.setup import TaskSetup, build_classifier, facts, max_length_of
from nystromformer.tasks.task import Examples, Outputs, Task
from nystromformer.training.checkpoint import best_step, whole_checkpoint
from nystromformer.training.devices import on_device
from nystromformer.training.flops import training_flops
from nystromformer.training.loop import Run, train
from nystromformer.training.metrics import open_tracker
from nystromformer.training.objective import Measured, Measurement
from nystromformer.training.parallel import load_weights
from nystromformer.training.together import Together


class Finetuning:
    """The objective: the loss of a task's head, the mean over what the task counts."""

    losses = ("loss",)

    def __init__(self, task: Task, config: NystromformerConfig) -> None:
        self._task = task
        self._config = config

    def counts(self, batch: Batch) -> tuple[int]:
        return (self._task.items(batch),)

    def means(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor]:
        return (self._task.loss(model, batch),)

    def flops(self, lengths: NDArray[np.int64], counts: list[int]) -> float:
        return training_flops(self._config, lengths, predicted=0)


def recipe_of(setup: TaskSetup, job: Job) -> TrainingSettings:
    """The seed's recipe in the terms of the training loop."""
    training = setup.settings.training
    assert job.task.epochs is not None
    steps = max(math.ceil(job.task.epochs * len(setup.train) / job.batch_size), 1)
    shared = {
        field.name: getattr(training, field.name)
        for field in fields(TrainingSettings)
        if hasattr(training, field.name)
    }
    return TrainingSettings(
        **shared,
        steps=steps,
        global_batch_size=job.batch_size,
        learning_rate=job.learning_rate,
        warmup_steps=round(training.warmup_fraction * steps),
        keep_checkpoints=1,
        seed=job.seed,
    )


def train_seed(setup: TaskSetup, job: Job) -> None:
    """Train, or go on, on all processes together; leaves `job.result` and a model.

    Raises:
        UserError: too many steps were not finite, or a checkpoint cannot be written.
        SystemExit: a signal came; a checkpoint was written first.
    """
    run, report = open_seed(setup, job)
    resumed = f", resumed at step {run.progress.step}" if run.progress.step else f"\n{report}"
    run.say(f"{run.settings.steps} steps of {job.batch_size}, rate {job.learning_rate:g}{resumed}")
    try:
        train(run, setup.stop)
        _finish(setup, job, run)
    finally:
        run.close()


def open_seed(setup: TaskSetup, job: Job) -> tuple[Run, str]:
    """Everything up to the first step, or to the one that was reached; and what the model starts from."""
    recipe, accelerator, together = recipe_of(setup, job), setup.accelerator, setup.together
    task, training = setup.splits.task, setup.settings.training
    model, report = together.on_all(
        lambda: build_classifier(setup.checkpoint, task, setup.settings.model, setup.train, seed=job.seed)
    )
    model.to(accelerator.device)
    together.on_main(lambda: job.folder.mkdir(parents=True, exist_ok=True))
    evaluations = evaluation_steps(recipe.steps, job.task.epochs or 1, training.evaluations_per_epoch)
    run = Run(
        recipe,
        job.folder,
        model,
        model.config,
        Finetuning(task, model.config),
        TaskBatches(
            setup.train,
            partial(task.training_batch, pad_token_id=setup.pad_token_id, at_once=recipe.micro_batch_size),
            batch_size=job.batch_size,
            micro_batch_size=None if task.joint else recipe.micro_batch_size,
            seed=job.seed,
            steps=recipe.steps,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        ),
        accelerator,
        together,
        saved=together.on_main(lambda: whole_checkpoint(job.folder / "checkpoints")),
        logs_after=lambda step: step in evaluations or step % training.log_every == 0,
        saves_after=evaluations.__contains__,
        label=job.label,
        remedy=f"{job.label}: write lower task.learning_rates",
    )

    def held_out(step: int) -> Measured:
        figures, _ = evaluate(task, model, setup, setup.dev, setup.splits.dev, run.autocast)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        return Measured(figures, f"held out at step {step}: {shown}", best_by=-figures["score"])

    run.measurements = [Measurement("validation", evaluations.__contains__, held_out)]
    if accelerator.is_main_process:
        name, config = f"{setup.settings.name} {job.label}", asdict(setup.settings)
        run.tracker = open_tracker(setup.settings.tracking, job.folder, name, config)
    return run, report


def evaluation_steps(steps: int, epochs: float, per_epoch: int) -> set[int]:
    """After which steps the model is evaluated on the held-out examples: evenly, and after the last."""
    count = max(round(epochs * per_epoch), 1)
    return {max(round(number * steps / count), 1) for number in range(1, count + 1)}


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
        name: outputs_of(task, model, part, size, setup.pad_token_id, autocast, setup.together)
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
    together: Together | None = None,
    *,
    tokens: int | None = None,
) -> Outputs:
    """What `task.outputs` gives for each row, in the rows' own order.

    Args:
        together: processes that take a part of the batches each; every one gets the outputs of all rows.
        tokens: most tokens at once, see `ordered_batches`.
    """
    was_training = model.training
    model.eval()
    found: dict[int, Any] = {}
    collate = partial(task.collate, pad_token_id=pad_token_id, labelled=False)
    share = (together.rank, together.count) if together else (0, 1)
    for rows, batch in ordered_batches(part, batch_size, collate, tokens, share=share):
        with autocast:
            outputs = task.outputs(model, on_device(batch, model.device))
        found.update(zip(rows, outputs, strict=True))
    model.train(was_training)
    for theirs in together.gathered(found) if together else []:
        found.update(theirs)
    return [found[row] for row in range(len(part))]


def _finish(setup: TaskSetup, job: Job, run: Run) -> None:
    """Go back to the best checkpoint, write the result and the model, and remove the checkpoints."""
    task, model = setup.splits.task, run.model
    assert isinstance(model, PreTrainedModel)
    best = best_step(run.checkpoints)
    weights = run.checkpoints / f"step-{best}" / "model.safetensors"
    setup.together.on_all(lambda: load_weights(model, load_file(weights)))
    figures, outputs = evaluate(task, model, setup, setup.dev, setup.splits.dev, run.autocast)
    name, part = next(iter(setup.dev.items()))
    labels = setup.splits.dev[name].labels or []
    fitted = task.fitted(part, labels, outputs[name])
    if fitted != task:
        task = fitted
        figures = figures_of_outputs(task, setup.dev, setup.splits.dev, outputs)
    test = None
    if setup.test:
        test, _ = evaluate(task, model, setup, setup.test, setup.splits.test, run.autocast)

    answers = {
        name: (setup.splits.dev[name].labels or [], task.predict(part, outputs[name]))
        for name, part in setup.dev.items()
    }

    def write() -> None:
        try:
            export(model, task, setup, job, figures, job.folder / "model")
            draw_learning_curve(run.metrics, job.folder / "curve.png", job.label)
            keep_answers(job.folder, answers)
            drawn = task.draw(*answers[name], job.folder, job.label)
            if certain := task.certainty(labels, outputs[name]):
                found, place = reliability(*certain), job.folder / RELIABILITY
                drawn["reliability"] = draw_reliability(found, place, job.label)
            result = _result(setup, job, run, task)
            result |= {"best_step": best, "dev": figures, "test": test, **drawn}
            write_atomically(job.result, json.dumps(result, indent=2) + "\n")
        except OSError as error:
            raise UserError(
                f"{job.label} is trained, but {job.folder} cannot be written ({error.strerror or error}): "
                "free space, and the same command writes it"
            ) from None
        shutil.rmtree(run.checkpoints, ignore_errors=True)

    setup.together.on_main(write)


def _result(setup: TaskSetup, job: Job, run: Run, task: Task) -> dict[str, Any]:
    """What a seed's JSON file holds beside its figures."""
    config, events = run.config, run.metrics.events("validation")
    curve = [{key: value for key, value in event.items() if key != "seconds"} for event in events]
    return {
        "task": task.name,
        "title": task.title,
        "metrics": list(task.metrics),
        "run": setup.settings.name,
        "seed": job.seed,
        "learning_rate": job.learning_rate,
        "batch_size": job.batch_size,
        "epochs": job.task.epochs,
        "steps": run.settings.steps,
        "dev_at_the_end": {k: v for k, v in curve[-1].items() if k not in ("kind", "step")},
        "curve": curve,
        "skipped_steps": len(run.metrics.events("skipped")),
        "seconds": run.progress.seconds,
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
