"""`nystromformer finetune`: this file is the table of contents.

checkpoint → for each task: data, what there is to say about them, every seed of every cell → best model →
(submission) → one table

Several processes share the seeds: each takes the next one that nobody holds. A lock on a seed goes when its
process does, however that ended, so a killed run leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from transformers.utils import logging as transformers_logging

from nystromformer.errors import UserError
from nystromformer.settings import TrainingSettings
from nystromformer.settings.finetune import FinetuneSettings, TaskSettings
from nystromformer.tasks.encoding import describe, encode
from nystromformer.tasks.evaluate import open_classifier
from nystromformer.tasks.jobs import (
    Job,
    check_or_note,
    forget_unstarted,
    identity,
    jobs_of,
    run_folder,
    tasks_of,
)
from nystromformer.tasks.load import load_splits
from nystromformer.tasks.outcome import keep_best, prune_models, summarise, write_table
from nystromformer.tasks.start import Checkpoint, max_length_of, read_checkpoint
from nystromformer.tasks.submission import write_predictions, zip_submission
from nystromformer.tasks.training import TaskSetup, answers, predict, train_seed
from nystromformer.threads import watch_for_other_work
from nystromformer.training import devices
from nystromformer.training.signals import StopRequest

_CRASHED = 1


def finetune(settings: FinetuneSettings) -> None:
    """Train what is not done yet, keep the best models, and write and print the table.

    Raises:
        UserError: a setting, the data, the checkpoint or the disk is not usable.
        SystemExit: a signal came; every process wrote a checkpoint first.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "finetune starts its own processes, one a seed at a time: write processes=N, no launcher"
        )
    transformers_logging.disable_progress_bar()
    tasks = tasks_of(settings)
    for task in tasks:
        check_or_note(run_folder(settings) / task.name, identity(settings, task))
    jobs = [job for task in tasks for job in jobs_of(settings, task)]
    done = sum(job.finished for job in jobs)
    if done:
        print(f"{done} of {len(jobs)} seeds are done already", flush=True)
    if done < len(jobs):
        try:
            _train_all(settings, len(jobs) - done)
        except UserError:
            for task in tasks:
                forget_unstarted(run_folder(settings) / task.name)
            raise
    waiting = [job for job in jobs if not job.finished]
    if waiting:
        print(
            f"{len(waiting)} seeds are still trained by another command; this one again shows the table then"
        )
        return
    for task in tasks:
        folder = run_folder(settings) / task.name
        summarise(folder)
        keep_best(folder, keep_all=settings.keep_models == "all")
        for job in jobs_of(settings, task):
            job.tidy()
    if settings.submission:
        submit(settings, tasks)
    print(f"\n{write_table(run_folder(settings), [Path(folder) for folder in settings.beside])}")
    for task in tasks:
        print(run_folder(settings) / task.name / "model")
    print(run_folder(settings) / "results.md")


def work(settings: FinetuneSettings) -> None:
    """Take one seed after the other that is neither done nor held by another process."""
    accelerator = devices.open_accelerator(TrainingSettings(precision=settings.training.precision))
    checkpoint: Checkpoint | None = None
    with StopRequest() as stop:
        for task in tasks_of(settings):
            setup: TaskSetup | None = None
            for job in jobs_of(settings, task):
                with _held(job) as mine:
                    if not mine:
                        continue
                    checkpoint = checkpoint or read_checkpoint(settings)
                    if setup is None:
                        setup = prepare_task(settings, task, checkpoint, accelerator, stop)
                    train_seed(setup, job, partial(_say, job.label))
                    if settings.keep_models == "best":
                        prune_models(job.task_folder)
                if stop.decide(stop.votes()):
                    stop.exit()


def prepare_task(
    settings: FinetuneSettings,
    task: TaskSettings,
    checkpoint: Checkpoint,
    accelerator: Accelerator,
    stop: StopRequest,
) -> TaskSetup:
    """Load and tokenize a task's data, and print what there is to say about them."""
    splits = load_splits(task, settings.data)
    max_length = max_length_of(checkpoint, settings.model)
    labelled_test = {name: part for name, part in splits.test.items() if part.labels is not None}
    parts = {"train": splits.train, **splits.dev, **labelled_test}
    encoded = {name: encode(part, checkpoint.tokenizer, max_length) for name, part in parts.items()}
    landmarks = checkpoint.config.num_landmarks if checkpoint.config.attention == "nystrom" else None
    _say(
        splits.task.title, "\n".join([splits.origin, *describe(splits.task, encoded, max_length, landmarks)])
    )
    if splits.skipped:
        rows = splits.skipped
        _say(splits.task.title, f"{len(rows):,} malformed rows were left out, the first: {rows[0]}")
    return TaskSetup(
        settings,
        checkpoint,
        splits,
        train=encoded["train"],
        dev={name: encoded[name] for name in splits.dev},
        test={name: encoded[name] for name in labelled_test},
        accelerator=accelerator,
        stop=stop,
    )


def submit(settings: FinetuneSettings, tasks: list[TaskSettings]) -> None:
    """Predict the unlabelled test sets with each task's best model, and zip the files.

    Raises:
        UserError: no task has such a set, or a file would be refused.
    """
    folder = run_folder(settings) / "submission"
    recipe = TrainingSettings(precision=settings.training.precision)
    accelerator = devices.open_accelerator(recipe)
    autocast = devices.autocast(devices.precision(recipe, accelerator.device), accelerator.device)
    checkpoint = read_checkpoint(settings)
    written = 0
    for task_settings in tasks:
        splits = load_splits(task_settings, settings.data)
        task = splits.task
        model, tokenizer = open_classifier(run_folder(settings) / task.name / "model", task)
        model.to(accelerator.device)
        for name, file in task.submissions:
            examples = splits.test.get(name)
            if examples is None or examples.labels is not None:
                print(f"{task.title}: no unlabelled test set {name!r}, so no {file}")
                continue
            part = encode(examples, tokenizer, max_length_of(checkpoint, settings.model))
            size, pad = settings.training.eval_batch_size, int(tokenizer.pad_token_id)
            logits = predict(model, part, size, pad, autocast)
            write_predictions(folder / file, task, examples, answers(logits, regression=task.regression))
            written += 1
    if not written:
        raise UserError(
            "submission=true: there is no unlabelled test set: write data.root=FOLDER with test.tsv"
        )
    path = run_folder(settings) / "submission.zip"
    for remark in zip_submission(folder, path):
        print(f"submission: {remark}")
    print(path)


def _train_all(settings: FinetuneSettings, waiting: int) -> None:
    gpus = torch.cuda.device_count()
    processes = min(settings.processes or max(gpus, 1), waiting)
    if processes == 1:
        work(settings)
        return
    context = torch.multiprocessing.get_context("spawn")
    reports = context.SimpleQueue()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    children = []
    with StopRequest() as stop:
        for number in range(processes):
            if gpus:  # each process sees one GPU, its own
                names = visible.split(",") if visible else [str(gpu) for gpu in range(gpus)]
                os.environ["CUDA_VISIBLE_DEVICES"] = names[number % gpus]
            threads = max(torch.get_num_threads() // processes, 1)
            children.append(context.Process(target=_work_in_process, args=(settings, threads, reports)))
            children[-1].start()
        if gpus:
            os.environ.pop("CUDA_VISIBLE_DEVICES")
            if visible is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = visible
        told = False
        while any(child.is_alive() for child in children):
            for child in children:
                child.join(0.2)
            if not told and stop.decide(stop.votes()):
                told = True
                for child in children:
                    child.terminate()
        if told:
            stop.exit()
    if not reports.empty():
        raise UserError(reports.get())
    crashed = [child.exitcode for child in children if child.exitcode]
    if crashed:
        raise RuntimeError(
            f"a process of {len(children)} ended with exit code {crashed[0]}; its words are above"
        )


def _work_in_process(settings: FinetuneSettings, threads: int, reports: Any) -> None:
    """What a spawned process runs: a user's mistake goes to the one that started it."""
    torch.set_num_threads(threads)
    watch_for_other_work()
    transformers_logging.disable_progress_bar()
    try:
        work(settings)
    except UserError as error:
        reports.put(str(error))
        raise SystemExit(_CRASHED) from None


@contextmanager
def _held(job: Job) -> Iterator[bool]:
    """Hold a seed while it is trained; False where it is done, or another process holds it."""
    if job.finished:
        yield False
        return
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield not job.finished
    finally:
        lock.release()


def _say(label: str, text: str) -> None:
    for line in text.splitlines():
        print(f"{label}: {line}", flush=True)
