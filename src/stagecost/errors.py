"""The one error that a user's input can cause."""

LONGEST = 600  # characters of a message; what is longer loses its middle


class StageCostError(ValueError):
    """Something that was asked for cannot be done.

    The message is one line that names the offending value and the remedy; the command line prints it
    on standard error and exits with status 2, without a traceback. It is a `ValueError`, so callers
    of the library may catch either.

    Whatever the value holds, the message stays one line of moderate length: line ends and other
    characters that cannot be printed are written out, as in `\\n`.
    """

    def __init__(self, message: object = "") -> None:
        """Take the message."""
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message))
        if len(text) > LONGEST:
            text = f"{text[: LONGEST - 202]} … {text[-199:]}"
        super().__init__(text)
