"""What a user can get wrong, as one exception."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """A mistake in the input, the configuration or the machine that its user can mend.

    The message is one line that names what was wrong, where, and what to write instead. The command
    line prints it without a traceback and exits with code 2; library callers catch it like any
    exception.
    """


def check_installed(missing: Sequence[str], setting: str, extra: str) -> None:
    """Raise UserError where packages of an extra are missing that a setting needs."""
    if missing:
        raise UserError(
            f"{setting} needs {' and '.join(missing)}, not installed here: "
            f"pip install 'nystromformer[{extra}]'"
        )
