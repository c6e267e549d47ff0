"""What one of several CPU processes runs for `test_together`; writes what it saw to OUT/rank.json."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from nystromformer.errors import UserError
from nystromformer.settings import TrainingSettings
from nystromformer.training import checkpoint, devices
from nystromformer.training.together import Together

seen: dict[str, Any] = {}


def caught(name: str, call: Callable[[], Any]) -> None:
    try:
        seen[name] = call()
    except UserError as error:
        seen[name] = f"UserError: {error}"
    except ZeroDivisionError:
        seen[name] = "ZeroDivisionError"


def mistake(rank: int) -> int:
    if accelerator.process_index == rank:
        raise UserError(f"of process {rank}")
    return accelerator.process_index


def wait_for_main() -> str:
    if accelerator.is_main_process:
        time.sleep(6)
    return "waited"


def exchange_without_the_other() -> str:
    """Process 1 hangs: 0 must not wait for it for days."""
    if accelerator.process_index == 1:
        time.sleep(20)
        return "slept"
    began = time.monotonic()
    try:
        accelerator.reduce(torch.ones(1), "sum")
    except RuntimeError:
        return "ended" if time.monotonic() - began < 15 else "late"
    return "exchanged"


out = Path(sys.argv[1])
devices.TRAINING_TIMEOUT = timedelta(seconds=4)
accelerator = devices.open_accelerator(TrainingSettings())
together = Together(accelerator)
hashed: list[str] = []
sha256 = checkpoint.sha256_of_file


def noted(path: Path) -> str:
    hashed.append(path.name)
    return sha256(path)


checkpoint.sha256_of_file = noted

caught("value", lambda: together.on_main(lambda: accelerator.process_index))
caught("mistake of main", lambda: together.on_main(lambda: mistake(0)))
caught("fault of main", lambda: together.on_main(lambda: 1 // 0))
caught("mistake of one", lambda: together.on_all(lambda: mistake(1)))
caught("own values", lambda: together.on_all(lambda: accelerator.process_index))
caught("long work", lambda: together.on_main(wait_for_main))
caught("checkpoint", lambda: str(together.on_main(lambda: checkpoint.whole_checkpoint(out / "checkpoints"))))
seen["hashed"] = hashed
caught("exchange", exchange_without_the_other)
(out / f"{accelerator.process_index}.json").write_text(json.dumps(seen))
os._exit(0)  # the group is broken by now, as it was meant to be
