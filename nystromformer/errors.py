"""What a user can get wrong, as one exception."""


class UserError(Exception):
    """A mistake in the input, the configuration or the machine that its user can mend.

    The message is one line that names what was wrong, where, and what to write instead. The command
    line prints it without a traceback and exits with code 2; library callers catch it like any
    exception.
    """
