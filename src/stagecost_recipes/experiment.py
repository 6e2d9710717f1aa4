"""What an experiment is: a name, its data sets on each tier, and a function that runs one of them.

An experiment trains its runs in a work folder, where everything resumes, and returns rows. What writes
them to `results/` with the circumstances, and prints them beside the paper's figures, is the same for
all (`stagecost reproduce`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Tier = Literal["cpu", "gpu"]
Row = dict[str, Any]
Parts = dict[str, list[Row]]

ACCURACY_KEYS = frozenset({"dataset", "arm", "num_blocks", "test_accuracies", "mean", "std"})


@dataclass(frozen=True)
class Context:
    """What a run of an experiment is given.

    Attributes:
        tier: "cpu", which two cores finish overnight, or "gpu", the paper's full size.
        dataset: name of the data set, such as "mnist".
        data: what `--data` of a training names: the data set, or a folder with a local copy of it.
        seeds: of the runs; the same for every arm.
        work: folder of the trainings; those that are finished there are not trained again.
        report: is told in a few words what is being done.
    """

    tier: Tier
    dataset: str
    data: str
    seeds: Sequence[int]
    work: Path
    report: Callable[[str], None]


def only_rows(rows: list[Row]) -> Parts:
    """Return the rows as the one list of a record."""
    return {"rows": rows}


def no_figures(rows: Sequence[Row]) -> dict[str, str]:
    """Draw nothing."""
    return {}


@dataclass(frozen=True)
class Experiment:
    """One of the tables or figures of `stagecost reproduce`.

    Attributes:
        name: as on the command line.
        title: of its table.
        datasets: of each tier, in the order of the table.
        seeds: that are run if none are asked for.
        run: trains what is missing and returns the rows of one data set.
        settings: returns what defines the runs on a data set, for the record.
        parts: sorts the rows into the lists of a record, "rows" among them.
        figures: draws the "rows" of one data set: SVG by name.
        row_keys: what each of the "rows" has at least; a record without them is damaged.
    """

    name: str
    title: str
    datasets: Mapping[Tier, Sequence[str]]
    seeds: Sequence[int]
    run: Callable[[Context], list[Row]]
    settings: Callable[[Tier, str], dict[str, Any]]
    parts: Callable[[list[Row]], Parts] = only_rows
    figures: Callable[[Sequence[Row]], dict[str, str]] = no_figures
    row_keys: frozenset[str] = ACCURACY_KEYS
