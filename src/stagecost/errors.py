"""The one error that a user's input can cause."""

from collections.abc import Iterator
from contextlib import contextmanager

from stagecost.text import one_line

LONGEST = 600  # characters of a message; what is longer loses its middle


class StageCostError(ValueError):
    """Something that was asked for cannot be done.

    The message is one line that names the offending value and the remedy; the command line prints it
    on standard error and exits with status 2, without a traceback. It is a `ValueError`, so callers
    of the library may catch either.

    Whatever the value holds, the message stays one line of moderate length: line ends and other
    characters that cannot be printed are written out, as in `\\n`.

    Example:
        >>> sc.create_model("homogenous")
        Traceback (most recent call last):
            ...
        stagecost.errors.StageCostError: model 'homogenous' is unknown: did you mean 'homogeneous'?
    """

    def __init__(self, message: object = "") -> None:
        """Take the message."""
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message))
        if len(text) > LONGEST:
            text = f"{text[: LONGEST - 202]} … {text[-199:]}"
        super().__init__(text)


@contextmanager
def refusing(what: str, remedy: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn errors into the one of the project: what is wrong, the reason in brackets, and the remedy."""
    try:
        yield
    except errors as error:
        raise StageCostError(f"{what} ({one_line(error)}): {remedy}") from error


@contextmanager
def report_extra() -> Iterator[None]:
    """Guard imports of what reports and figures need besides the required packages."""
    try:
        yield
    except ImportError as error:
        raise StageCostError(
            f"reports and figures need the package {error.name}: pip install 'stagecost[report]'"
        ) from None


_EXTRAS = {
    "report": ("vl_convert", "jinja2", "markupsafe"),
    "timm": ("timm", "torchvision"),
    "tensorboard": ("tensorboard",),
    "hub": ("huggingface_hub",),
    "lightning": ("lightning",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
}


def missing_extra(error: ModuleNotFoundError) -> StageCostError:
    """Say in one line which extra of this project brings a package that is not there."""
    package = (error.name or "").partition(".")[0]
    extra = next((extra for extra, names in _EXTRAS.items() if package in names), "train")
    return StageCostError(f"the package {package} is missing: pip install 'stagecost[{extra}]'")
