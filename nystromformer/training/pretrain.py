"""`nystromformer pretrain`: this file is the table of contents of a run.

data → model → (resume) → checks → steps, validations, checkpoints (`loop`) → export and report
"""

from __future__ import annotations

import errno
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from nystromformer.data.storage import PreparedData
from nystromformer.errors import UserError
from nystromformer.model import NystromformerForPreTraining
from nystromformer.model.attention import NystromformerSelfAttention
from nystromformer.settings import PretrainSettings
from nystromformer.training import devices, run_data
from nystromformer.training.batches import RunBatches
from nystromformer.training.branch import branch_of
from nystromformer.training.checkpoint import whole_checkpoint
from nystromformer.training.curves import draw_approximation, draw_curves, draw_speed
from nystromformer.training.guard import check_finite
from nystromformer.training.loop import Run, train
from nystromformer.training.metrics import open_tracker
from nystromformer.training.objective import Measured, Measurement, every
from nystromformer.training.parallel import load_weights, whole_weights
from nystromformer.training.phases import plan_of
from nystromformer.training.pretraining import (
    Pretraining,
    ValidationResult,
    measure_approximation,
    unigram_losses,
    validate,
)
from nystromformer.training.report import finish_run
from nystromformer.training.run_folder import RunFolder
from nystromformer.training.signals import StopRequest
from nystromformer.training.start import build_model, fit, settled
from nystromformer.training.together import Together, joined


def pretrain(settings: PretrainSettings) -> None:
    """Pretrain, or go on with a run that was stopped.

    Raises:
        UserError: a setting, the data, the run folder or a checkpoint is not usable, the disk is
            full, or training comes to numbers that are not finite.
    """
    accelerator = devices.open_accelerator(settings.training)
    with joined(accelerator) as together, ExitStack() as held:
        settings = together.on_all(lambda: _checked(settings, accelerator))
        together.on_main(lambda: held.enter_context(RunFolder(settings).held()))
        job = setup(settings, accelerator, together)
        held.callback(job.run.close)
        together.on_all(lambda: check(job))
        with StopRequest() as stop:
            train(job.run, stop)
        finish(job, together)


@dataclass
class PretrainingJob:
    """What one command works with."""

    settings: PretrainSettings
    folder: RunFolder
    prepared: PreparedData
    tokenizer: PreTrainedTokenizerBase
    batches: RunBatches
    model: NystromformerForPreTraining
    unigram_loss: torch.Tensor
    run: Run

    @property
    def title(self) -> str:
        return f"{self.settings.name}: pretraining"


def setup(settings: PretrainSettings, accelerator: Accelerator, together: Together) -> PretrainingJob:
    """Everything up to the first step; on a resumed run, up to the step it had reached."""
    folder, training = RunFolder(settings), settings.training
    branch = together.on_main(lambda: branch_of(settings))
    known = branch.folder if branch else folder
    prepared = together.on_main(lambda: run_data.prepared_for(known, settings, show_progress=True))
    prepared = together.on_all(lambda: PreparedData.open(prepared.folder))  # does every machine see it?
    tokenizer = prepared.tokenizer()
    batches = together.on_all(
        lambda: RunBatches(
            settings, prepared, rank=accelerator.process_index, world_size=accelerator.num_processes
        )
    )
    start = together.on_all(lambda: build_model(settings, tokenizer, prepared.unigram_counts))
    model = start.model
    together.on_main(lambda: _begin(folder, settings, prepared))
    saved = together.on_main(
        partial(branch.begin, settings, prepared, batches.plan)
        if branch
        else partial(whole_checkpoint, folder.checkpoints)
    )
    model.to(accelerator.device)
    if start.fits_convolution and saved is None:
        fit(start, settings.init, batches.some_training_rows(settings.init.convolution_rows))
    run = Run(
        training,
        folder.path,
        model,
        model.config,
        Pretraining(model.config, sentence_order=settings.data.sentence_order),
        batches,
        accelerator,
        together,
        saved=saved,
        logs_after=every(training.log_every),
        saves_after=every(training.checkpoint_every),
        plan=batches.plan,
    )
    run.progress.finished &= branch is None
    unigram_loss = unigram_losses(prepared.unigram_counts, model.config.vocab_size).to(accelerator.device)
    job = PretrainingJob(settings, folder, prepared, tokenizer, batches, model, unigram_loss, run)
    run.measurements = measurements(job)
    if accelerator.is_main_process:
        run.tracker = open_tracker(settings.tracking, folder.path, settings.name, asdict(settings))
        if changed := run_data.changed_start(folder, settings):
            print(f"{changed}: the run keeps its own; name=OTHER begins from those", file=sys.stderr)
        _announce(job, start.description)
    return job


def measurements(job: PretrainingJob) -> list[Measurement]:
    """What is looked at between the steps."""
    training, run = job.settings.training, job.run

    def approximation(step: int) -> Measured:
        batches = job.batches.validation(training.approximation_error_examples)
        return measure_approximation(job.model, batches, run.accelerator, run.autocast, step)

    def draw() -> None:
        draw_curves(run.metrics, job.folder.curves, job.title, run.plan)

    validation = Measurement(
        "validation", every(training.validate_every), lambda step: held_out(job).measured(step), draw
    )
    if not training.approximation_error_every:
        return [validation]
    return [
        Measurement("approximation", every(training.approximation_error_every), approximation),
        validation,
    ]


def held_out(job: PretrainingJob, count: int | None = None) -> ValidationResult:
    """Losses on the held-out examples, or on so many of them."""
    run = job.run
    return validate(job.model, job.batches.validation(count), job.unigram_loss, run.accelerator, run.autocast)


def check(job: PretrainingJob) -> None:
    """Raise UserError for what would otherwise show after hours, or never.

    One batch of the validation is computed: what the device, the number format or the memory cannot
    do, it cannot do at once.
    """
    config, progress, prepared = job.model.config, job.run.progress, job.prepared
    progress.data = prepared.folder.name
    if len(job.tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer of {prepared.folder} has {len(job.tokenizer)} tokens and the model "
            f"{config.vocab_size}: write init=scratch, or the tokenizer.path that the weights belong to"
        )
    if progress.finished:
        return
    for batch in job.batches.of_step(progress.step):
        length, largest = batch["input_ids"].shape[1], int(batch["input_ids"].max())
        if length > config.max_position_embeddings:
            raise UserError(
                f"{prepared.folder} holds rows of {length} tokens and the model has "
                f"{config.max_position_embeddings} positions: write model.max_length={length} or more"
            )
        if largest >= len(job.tokenizer):
            raise UserError(
                f"{prepared.folder} holds token {largest} and its tokenizer has {len(job.tokenizer)}: "
                "remove the folder, and the same command prepares it again"
            )
    result = held_out(job, job.batches.examples_at_once)
    check_finite(
        "the loss of one held-out batch, before any training,",
        *(loss for loss in (result.mlm_loss, result.sop_loss) if loss is not None),
        newest=job.run.newest_checkpoint,
        remedy=job.run.remedy,
    )


def finish(job: PretrainingJob, together: Together) -> None:
    """Export the model, draw the curves, and say how it went."""
    model = _whole_model(job)
    together.on_main(lambda: _export(job, model))


def _export(job: PretrainingJob, model: NystromformerForPreTraining) -> None:
    folder, metrics = job.folder, job.run.metrics
    try:
        draw_curves(metrics, folder.curves, job.title, job.run.plan)
        draw_speed(metrics, folder.speed, job.title, job.run.plan)
        draw_approximation(metrics, folder.approximation, job.title)
        finish_run(job.settings, folder, model, job.tokenizer, job.prepared, metrics, job.run.plan)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"training is over and {job.run.newest_checkpoint} holds it, but {folder.model} cannot be "
            f"written ({error.strerror}): free space, and the same command writes it"
        ) from None


def _whole_model(job: PretrainingJob) -> NystromformerForPreTraining:
    """The model to be exported: itself, or a new one with all processes' slices put together."""
    run = job.run
    if run.wrapped is not run.model or run.accelerator.num_processes == 1:
        return job.model
    weights = whole_weights(job.model, keep=run.accelerator.is_main_process)
    model = NystromformerForPreTraining(job.model.config)
    if weights:
        load_weights(model, weights)
    return model


def _checked(settings: PretrainSettings, accelerator: Accelerator) -> PretrainSettings:
    """The settings, all known, before what takes long: whether the run can be, as far as they tell."""
    if complaints := list(settings.training.complaints_on(accelerator.num_processes)):
        raise UserError(complaints[0])
    devices.check_graphs(settings.training.cuda_graphs, accelerator.device)
    if not settings.training.in_tokens:
        plan_of(settings.training)
    settings = settled(settings)
    RunFolder(settings).check(settings)
    branch_of(settings)
    return settings


def _begin(folder: RunFolder, settings: PretrainSettings, prepared: PreparedData) -> None:
    """The run's folder with its settings and what data it is trained on."""
    folder.create(settings)
    run_data.remember(folder, prepared, settings)


def _announce(job: PretrainingJob, start: str) -> None:
    settings, run, step = job.settings, job.run, job.run.progress.step
    parameters = sum(parameter.numel() for parameter in job.model.parameters())
    goes_on = f", from {settings.branch}" if settings.branch and run.newest_checkpoint is None else ""
    print(f"run      {job.folder.path}" + (goes_on or (f", resumed at step {step}" if step else "")))
    print(f"data     {job.prepared.folder}")
    print(
        f"model    {parameters / 1e6:.1f} M parameters, {settings.model.attention} attention"
        + ("" if step else f", {start}")
    )
    layer: NystromformerSelfAttention = job.model.nystromformer.encoder.layer[0].get_submodule(
        "attention.self"
    )  # type: ignore[assignment]
    how = layer.describe(settings.model.max_length, run.dtype)
    if len(run.plan.phases) > 1:
        for number, phase in enumerate(run.plan.phases, start=1):
            print(f"{'phases' if number == 1 else '':9}{number}: {phase.told}")
    print(f"device   {devices.describe(run.accelerator, run.dtype)}; attention: {how}", flush=True)
