"""The one error that a user's input can cause."""


class StageCostError(ValueError):
    """Something that was asked for cannot be done.

    The message is one line that names the offending value and the remedy; the command line prints it
    on standard error and exits with status 2, without a traceback. It is a `ValueError`, so callers
    of the library may catch either.
    """
