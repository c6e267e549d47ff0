"""`nystromformer finetune`: this file is the table of contents.

checkpoint → for each task: data, what there is to say about them, every seed of every cell → best model →
(submission) → one table

Several processes, of one command or of several of one name, share the seeds: each takes the next one that
nobody holds (jobs.py). Those of a launcher train each seed together instead.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers.utils import logging as transformers_logging

from nystromformer.errors import UserError
from nystromformer.files import ContentHashes
from nystromformer.settings import TrainingSettings
from nystromformer.settings.finetune import FinetuneSettings, TaskSettings
from nystromformer.tasks.benchmarks import write_predictions, zip_submission
from nystromformer.tasks.export import open_model, to_device
from nystromformer.tasks.identity import compare, identity
from nystromformer.tasks.jobs import (
    Job,
    forget_unstarted,
    has_traces,
    holder_of,
    jobs_of,
    run_folder,
    run_held,
    settle,
    taken,
    tasks_of,
)
from nystromformer.tasks.kinds.sequence import SequenceTask
from nystromformer.tasks.reading import load_splits
from nystromformer.tasks.results import keep_best, prune_models, summarise, write_table
from nystromformer.tasks.setup import (
    Checkpoint,
    TaskSetup,
    contents_there,
    max_length_of,
    prepare_task,
    read_checkpoint,
    say,
)
from nystromformer.tasks.training import outputs_of, train_seed
from nystromformer.threads import watch_for_other_work
from nystromformer.training import devices
from nystromformer.training.signals import StopRequest
from nystromformer.training.together import Together, joined

_CRASHED = 1


def finetune(settings: FinetuneSettings) -> None:
    """Train what is not done yet, keep the best models, and write and print the table.

    Raises:
        UserError: a setting, the data, the checkpoint or the disk is not usable.
        SystemExit: a signal came; every process wrote a checkpoint first.
    """
    transformers_logging.disable_progress_bar()
    accelerator = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        accelerator = devices.open_accelerator(TrainingSettings())
    with joined(accelerator) as together:
        waiting, told = together.on_main(lambda: begin(settings, together.count))
        if waiting:
            try:
                if accelerator:
                    work(settings, accelerator, together)
                else:
                    _train_all(settings, waiting)
            except UserError:
                for task in tasks_of(settings):
                    together.on_main(partial(forget_unstarted, settings, task))
                raise
        together.on_main(lambda: conclude(settings, told))


def begin(settings: FinetuneSettings, processes: int) -> tuple[int, set[str]]:
    """Look at what is there; how many seeds are still to be trained, and what was said about their holders.

    Args:
        processes: that a launcher started to train each seed together.

    Raises:
        UserError: what is there is of other settings, or so many processes cannot share a batch.
    """
    tasks = tasks_of(settings)
    _check_processes(settings, tasks, processes)
    check_unchanged(settings, tasks)
    jobs = [job for task in tasks for job in jobs_of(settings, task)]
    done = sum(job.finished for job in jobs)
    if done:
        print(f"{done} of {len(jobs)} seeds are done already", flush=True)
    return len(jobs) - done, _tell_holders(settings, jobs, set())


def _check_processes(settings: FinetuneSettings, tasks: list[TaskSettings], processes: int) -> None:
    if processes == 1:
        return
    if settings.processes is not None:
        raise UserError(
            f"processes={settings.processes} shares the seeds out, and the {processes} processes of a "
            "launcher train each seed together: write processes=null, or start it without a launcher"
        )
    if settings.training.cuda_graphs:
        raise UserError(f"training.cuda_graphs=true is for one process, not for {processes}: write false")
    for size in (size for task in tasks for size in task.batch_sizes):
        share, left = divmod(size, processes)
        micro = settings.training.micro_batch_size or share
        if left or share % micro:
            unit = processes * (settings.training.micro_batch_size or 1)
            raise UserError(
                f"task.batch_sizes holds {size}, which {processes} processes cannot share: write a multiple "
                f"of {unit}" + (" or training.micro_batch_size=null" if unit > processes else "")
            )


def conclude(settings: FinetuneSettings, told: set[str]) -> None:
    """The best models, the submission and the table, where every seed is done."""
    tasks = tasks_of(settings)
    jobs = [job for task in tasks for job in jobs_of(settings, task)]
    waiting = [job for job in jobs if not job.finished]
    if waiting:
        _tell_holders(settings, jobs, told)
        print(
            f"{len(waiting)} seeds are still trained by another command; this one again shows the table then"
        )
        return
    for task in tasks:
        folder = run_folder(settings) / task.name
        with run_held(settings):
            summarise(folder)
            keep_best(folder, keep_all=settings.keep_models == "all")
            for job in jobs_of(settings, task):
                job.tidy()
    if settings.submission:
        with run_held(settings, "submission."):
            submit(settings, tasks)
    with run_held(settings):
        page = write_table(run_folder(settings), [Path(folder) for folder in settings.beside])
    print(f"\n{page}")
    for task in tasks:
        print(run_folder(settings) / task.name / "model")
    print(run_folder(settings) / "results.md")


def check_unchanged(settings: FinetuneSettings, tasks: list[TaskSettings]) -> None:
    """Look whether what is done, or was stopped, is of this command's settings, data and checkpoint.

    What is gone altogether is not compared, and said: its results are still there to be shown.

    Raises:
        UserError: it is of others, each of which is named.
    """
    begun = [task for task in tasks if has_traces(run_folder(settings) / task.name)]
    for task in begun:  # before what takes long
        compare(run_folder(settings) / task.name, identity(settings, task))
    hashes = ContentHashes()
    for task in begun:
        folder, now = run_folder(settings) / task.name, identity(settings, task)
        contents, gone = contents_there(settings, task, hashes)
        compare(folder, now, contents)
        if gone:
            say(task.name, f"{', '.join(gone)} is not there any more: what was trained from it is as it was")


def work(settings: FinetuneSettings, accelerator: Accelerator, together: Together) -> None:
    """Take one seed after the other that is neither done nor held by another command."""
    devices.check_graphs(settings.training.cuda_graphs, accelerator.device)
    checkpoint: Checkpoint | None = None
    with StopRequest() as stop:
        for task in tasks_of(settings):
            setup: TaskSetup | None = None
            for job in jobs_of(settings, task):
                with ExitStack() as lock:
                    if not together.on_main(partial(lock.enter_context, taken(settings, job))):
                        continue
                    checkpoint = checkpoint or together.on_all(partial(read_checkpoint, settings))
                    if setup is None:
                        shared = (accelerator, together, stop)
                        setup = together.on_all(partial(prepare_task, settings, task, checkpoint, *shared))
                        together.on_main(partial(settle, setup, task, job))
                    train_seed(setup, job)
                    if settings.keep_models == "best":
                        together.on_main(partial(_prune, settings, job))
                votes = zip(*together.gathered(stop.votes()), strict=True)
                if stop.decide([sum(of_signal) for of_signal in votes]):
                    stop.exit()


def _prune(settings: FinetuneSettings, job: Job) -> None:
    with run_held(settings):
        prune_models(job.task_folder)


def submit(settings: FinetuneSettings, tasks: list[TaskSettings]) -> None:
    """Predict the unlabelled test sets with each task's best model, and zip the files.

    Raises:
        UserError: no task has such a set, or a file would be refused.
    """
    folder = run_folder(settings) / "submission"
    checkpoint = read_checkpoint(settings)
    written = 0
    for task_settings in tasks:
        splits = load_splits(task_settings, settings.data)
        task = splits.task
        assert isinstance(task, SequenceTask), "its kind refused the setting"
        with run_held(settings):  # another command may put a better one in its place
            model, tokenizer = open_model(run_folder(settings) / task.name / "model", task)
        autocast = to_device(model, settings.training.precision)
        for name, file in task.submissions:
            (folder / file).unlink(missing_ok=True)  # of an earlier command, its model or its test set
            examples = splits.test.get(name)
            if examples is None or examples.labels is not None:
                print(f"{task.title}: no unlabelled test set {name!r}, so no {file}")
                continue
            part = task.encode(examples, tokenizer, max_length_of(checkpoint, settings.model))
            size, pad = settings.training.eval_batch_size, int(tokenizer.pad_token_id)
            outputs = outputs_of(task, model, part, size, pad, autocast)
            write_predictions(folder / file, task, examples, task.predict(part, outputs))
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
        _work_alone(settings)
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


def _work_alone(settings: FinetuneSettings) -> None:
    accelerator = devices.open_accelerator(TrainingSettings())
    work(settings, accelerator, Together(accelerator))


def _work_in_process(settings: FinetuneSettings, threads: int, reports: Any) -> None:
    """What a spawned process runs: a user's mistake goes to the one that started it."""
    torch.set_num_threads(threads)
    watch_for_other_work()
    transformers_logging.disable_progress_bar()
    try:
        _work_alone(settings)
    except UserError as error:
        reports.put(str(error))
        raise SystemExit(_CRASHED) from None


def _tell_holders(settings: FinetuneSettings, jobs: list[Job], told: set[str]) -> set[str]:
    """Name who trains the seeds that are neither done nor free, those of `told` left out."""
    if not run_folder(settings).exists():
        return told
    with run_held(settings):
        holders = [holder_of(job) for job in jobs if not job.finished and job.lock.exists()]
    lines = {line for line in holders if line is not None}
    for line in sorted(lines - told):
        print(line, flush=True)
    return told | lines
