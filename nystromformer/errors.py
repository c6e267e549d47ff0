"""What a user can get wrong, as one exception."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping


class UserError(Exception):
    """A mistake in the input, the configuration or the machine that its user can mend.

    The message is one line that names what was wrong, where, and what to write instead. The command
    line prints it without a traceback and exits with code 2; library callers catch it like any
    exception.
    """


def check_packages(packages: Mapping[str, str], setting: str, extra: str) -> None:
    """Raise UserError where a package of an extra is missing.

    Args:
        packages: what is imported, and the name that it is installed by.
        setting: what needs them.
    """
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"{setting} needs {' and '.join(missing)}, not installed here: "
            f"pip install 'nystromformer[{extra}]'"
        )
