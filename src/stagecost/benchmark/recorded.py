"""What was recorded of shrinking in training: it takes hours, so a benchmark reads it."""

from pathlib import Path
from typing import Any

from stagecost.errors import StageCostError
from stagecost.storage import read_json

_CHECKOUT = Path(__file__).resolve().parents[3]


def results_folder(folder: str | None) -> Path:
    """Return the folder of recorded results: the one given, the repository's, or ./results.

    Raises:
        StageCostError: the folder given is not there.
    """
    if folder is None:
        in_checkout = (_CHECKOUT / "pyproject.toml").is_file()
        return (_CHECKOUT if in_checkout else Path()) / "results"
    if not Path(folder).is_dir():
        raise StageCostError(f"{folder} is no folder: give the folder of recorded results")
    return Path(folder)


def shrink_rows(results: Path) -> list[dict[str, Any]]:
    """Return the rows about shrinking, one for each file in the folder `shrink`; none if there are none.

    Raises:
        StageCostError: a file is not such a record.
    """
    return [_shrink_row(file) for file in sorted((results / "shrink").glob("*.json"))]


def _shrink_row(file: Path) -> dict[str, Any]:
    record = read_json(file)
    try:
        summary = record["summary"]
        return {
            "dataset": str(record["dataset"] if "dataset" in record else record["name"]),
            "total_ratio": float(summary["total_ratio"]),
            "accuracy_difference": float(summary["accuracy_difference"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise StageCostError(
            f"{file} is no record of shrinking ({error!r}): restore or delete it"
        ) from None
