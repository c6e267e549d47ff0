"""`nystromformer reproduce`: published results and this project's own, one module a result.

A new result is a module here with a function that takes the settings and ends in `write_result`, one line
in RESULTS, and its name in FIGURES or TABLES of `settings.reproduce`.
"""

from __future__ import annotations

from importlib import import_module

from nystromformer.errors import UserError
from nystromformer.settings.reproduce import ReproduceSettings

__all__ = ["RESULTS", "reproduce"]

RESULTS = {
    "longer": "nystromformer.reproduce.longer:longer",
    "starts": "nystromformer.reproduce.starts:starts",
    "warmstart": "nystromformer.reproduce.warmstart:warmstart",
}
"""What produces each figure and table, imported when it is asked for."""


def reproduce(settings: ReproduceSettings) -> None:
    """Produce one result and write it.

    Raises:
        UserError: a setting is impossible, or a run behind the result is.
    """
    if complaints := list(settings.complaints()):
        raise UserError("\n".join(complaints))
    module, _, function = RESULTS[settings.result].partition(":")
    getattr(import_module(module), function)(settings)
