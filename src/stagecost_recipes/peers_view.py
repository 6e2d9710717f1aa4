"""The comparison with peers as a table, the most accurate arm of each data set first."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from stagecost_recipes.experiment import Row

COLUMNS = ("test accuracy", "validation", "blocks", "parameters", "MACs", "training MACs", "time")
"""What `cells` tells."""
NARROW = ("test accuracy", "blocks", "MACs", "training MACs")
"""Those of them that fit into a narrow terminal."""
WIDE = 110
OWN = ("ours_", "control_")
"""How the names of those arms begin that nothing but this library makes; they are set in bold."""


def show(console: Console, rows: Sequence[Row]) -> None:
    """Print one table for each data set.

    Args:
        console: where to.
        rows: as `stagecost_recipes.peers.run` returns them, those of a data set in a row.
    """
    for dataset, group in groupby(rows, key=lambda row: str(row["dataset"])):
        console.print(_table(dataset, list(group), COLUMNS if console.width >= WIDE else NARROW))


def _table(dataset: str, rows: Sequence[Row], columns: Sequence[str]) -> Table:
    table = Table(title=dataset, title_justify="left")
    table.add_column("arm", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=name == "test accuracy")
    plain = next((row for row in rows if row["arm"] == "plain_full"), rows[0])
    for row in by_accuracy(rows):
        style = "bold" if row["arm"].startswith(OWN) else ""
        shown = dict(zip(COLUMNS, cells(row, plain), strict=True))
        table.add_row(row["arm"], *(shown[name] for name in columns), style=style)
    return table


def by_accuracy(rows: Sequence[Row]) -> list[Row]:
    """Sort the rows of one data set by their mean accuracy, the highest first."""
    return sorted(rows, key=lambda row: -row["mean"])


def cells(row: Row, plain: Row) -> list[str]:
    """Return the cells behind an arm's name; costs as parts of those of the plain, whole network."""
    spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
    validation = sum(row["val_accuracies"]) / len(row["val_accuracies"])
    return [
        f"{row['mean']:.2f}{spread}",
        f"{validation:.2f}",
        str(row["num_blocks"]),
        f"{row['parameters']:,}",
        f"{row['macs'] / plain['macs']:.3f}×",
        f"{row['training_macs'] / plain['training_macs']:.2f}×",
        f"{row['seconds']:.0f} s",
    ]
