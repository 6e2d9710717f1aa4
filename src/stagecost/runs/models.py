"""`stagecost models`: networks that can be trained by name, and the check of foreign ones."""

import logging
from dataclasses import dataclass
from pathlib import Path

from stagecost.errors import StageCostError
from stagecost.models.adapters.check import MAX_PARAMETERS, check_models
from stagecost.models.catalogue import list_models
from stagecost.runs.results import Result

logger = logging.getLogger("stagecost")


@dataclass(frozen=True)
class ModelList(Result):
    """Names of networks."""

    pattern: str  #: that they match
    models: tuple[str, ...]  #: in order


@dataclass(frozen=True)
class ModelReport(Result):
    """What the contract says of models of other libraries."""

    supported: tuple[str, ...]  #: names of those that keep it
    refused: dict[str, str]  #: name → why it cannot be viewed as blocks
    wrong: dict[str, str]  #: name → what it does not keep
    unchecked: dict[str, str]  #: name → why it was not tried
    versions: dict[str, str]  #: of the libraries


def models(
    pattern: str = "*",
    *,
    check: bool = False,
    output: str | Path | None = None,
    limit: int | None = None,
    max_parameters: float = MAX_PARAMETERS,
) -> ModelList | ModelReport:
    """List the networks whose names match a shell pattern, or check those of other libraries.

    Args:
        pattern: such as `timm/*resnet*`; without a slash it is of native networks, or, with `check`, of
            all models of other libraries.
        check: view each as blocks, with random weights, and test its outputs and every kind of cut.
        output: a JSON file of the check, written after each model; what is in it is not tried again.
        limit: how many models are tried in all, families in turns.
        max_parameters: larger models are not tried.

    Raises:
        StageCostError: no model has such a name, or something is said of a check that is not asked for.
    """
    of_check = {
        "--output": output is not None,
        "--limit": limit is not None,
        "--max-parameters": max_parameters != MAX_PARAMETERS,
    }
    given = [flag for flag, said in of_check.items() if said]
    if given and not check:
        raise StageCostError(f"{given[0]} is about a check: give --check, or leave it out")
    if limit is not None and limit < 1:
        raise StageCostError(f"--limit is {limit}: give at least 1")
    if not check:
        names = tuple(list_models(pattern))
        if not names:
            raise StageCostError(
                f"no model is called {pattern!r}: give a pattern such as '*resnet*', or 'timm/*resnet*' "
                "for one of another library"
            )
        return ModelList(pattern, names)

    def tell(name: str, said: str, seconds: float) -> None:
        logger.info("%s: %s (%.1f s)", name, said, seconds)

    path = None if output is None else Path(output)
    foreign = pattern if "/" in pattern else f"*/{pattern}"
    outcome = check_models(foreign, path=path, limit=limit, max_parameters=max_parameters, observe=tell)
    return ModelReport(**outcome.to_json() | {"supported": tuple(outcome.supported)})
