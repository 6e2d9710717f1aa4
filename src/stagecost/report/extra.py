"""The packages that reports and figures need besides the required ones."""

from collections.abc import Iterator
from contextlib import contextmanager

from stagecost.errors import StageCostError


@contextmanager
def report_extra() -> Iterator[None]:
    """Guard imports.

    Raises:
        StageCostError: a package is missing; the message says how to install it.
    """
    try:
        yield
    except ImportError as error:
        raise StageCostError(
            f"reports and figures need the package {error.name}: pip install 'stagecost[report]'"
        ) from None
