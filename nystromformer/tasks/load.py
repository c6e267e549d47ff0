"""The data of a task, from wherever the settings say, checked."""

from __future__ import annotations

from nystromformer.settings.finetune import REVIEW_TASKS, TaskDataSettings, TaskSettings
from nystromformer.tasks.custom import custom_splits
from nystromformer.tasks.definitions import custom_task, task_named
from nystromformer.tasks.glue import glue_from_folder, glue_from_hub
from nystromformer.tasks.reviews import reviews_from_hub, reviews_from_samples
from nystromformer.tasks.splits import Splits, check, limited


def load_splits(settings: TaskSettings, data: TaskDataSettings) -> Splits:
    """Read, check and, where asked, cut the data of one task.

    Raises:
        UserError: something is missing, malformed or empty.
    """
    if settings.name == "custom":
        splits = custom_splits(custom_task(settings, data), data)
    else:
        task = task_named(settings.name)
        source = source_of(settings.name, data)
        if settings.name in REVIEW_TASKS:
            splits = reviews_from_samples(task) if source == "samples" else reviews_from_hub(task)
        else:
            splits = glue_from_folder(task, data) if source == "folder" else glue_from_hub(task)
    return limited(check(splits), data.max_train_examples, data.max_dev_examples)


def source_of(task: str, data: TaskDataSettings) -> str:
    """`data.source` with `auto` resolved."""
    if data.source != "auto":
        return data.source
    if task in REVIEW_TASKS:
        return "samples"
    return "folder" if data.root else "hub"
