"""`stagecost models`: which networks can be trained by name."""

from dataclasses import dataclass

from stagecost.models.catalogue import list_models
from stagecost.runs.results import Result


@dataclass(frozen=True)
class ModelList(Result):
    """Names of networks.

    Attributes:
        pattern: that they match.
        models: in order.
    """

    pattern: str
    models: tuple[str, ...]


def list_or_check(pattern: str = "*") -> ModelList:
    """List the networks whose names match a shell pattern."""
    return ModelList(pattern, tuple(list_models(pattern)))
