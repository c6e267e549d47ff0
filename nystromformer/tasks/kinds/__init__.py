"""Kinds of task, a file each; `settings.finetune.KINDS` names them, `tasks.task.Task` is what they answer."""
