"""Records: what was measured, and its circumstances, in `results/<experiment>/<tier>-<data>.json`.

A record that a better one has taken the place of is kept in `results/archive`. Nobody edits one.
"""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stagecost.errors import StageCostError
from stagecost.storage import read_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
ABOUT = ("seeds", "command", "commit", "machine", "threads", "versions")
"""What every record says of its circumstances."""

Row = dict[str, Any]
"""A row of a record, as JSON has it."""


@dataclass(frozen=True)
class Record:
    """What was measured on one data set: a file whose name says tier and data set, and its content."""

    file: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, file: Path, rows: str = "rows") -> "Record":
        """Read a record that has a list of rows of some name, or any record if that is empty.

        Raises:
            StageCostError: it is damaged or incomplete.
        """
        content = read_json(file)
        known = isinstance(content, dict) and set(ABOUT) <= set(content)
        if known and (not rows or (content.get(rows) and _is_rows(content[rows]))):
            return cls(file, content)
        raise StageCostError(
            f"{file} is no record of {file.parent.name}, or an incomplete one: restore it from a copy, "
            "or delete it and run the experiment again"
        )

    def __getitem__(self, key: str) -> Any:
        """Return an entry."""
        return self.content[key]

    @property
    def tier(self) -> str:
        """Of its networks and trainings."""
        return self.file.stem.partition("-")[0]

    @property
    def dataset(self) -> str:
        """Its data set; empty where there is none."""
        return self.file.stem.partition("-")[2]

    @property
    def name(self) -> str:
        """How tables call it: tier and data set."""
        return f"{self.tier}, {self.dataset}" if self.dataset else self.tier

    def lists(self) -> dict[str, list[Row]]:
        """Return all lists of rows by name."""
        return {k: v for k, v in self.content.items() if k != "figures" and _is_rows(v)}

    def figures(self) -> list[Path]:
        """Return the figures beside it."""
        return sorted(self.file.parent.glob(f"{self.file.stem}-*.svg"))


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def record_name(tier: str, dataset: str) -> str:
    """Return the name of a record's file."""
    return f"{tier}-{dataset}.json" if dataset else f"{tier}.json"


def grown(before: Mapping[str, Any], measured: Row) -> Row:
    """Return a record with the rows that were measured now, and those of other arms from before.

    `before` in it says of what was kept which arms these are, and the circumstances of each.
    """
    now, older = {row["arm"] for row in measured["rows"]}, before.get("before", [])
    inherited = {arm for part in older for arm in part["arms"]}
    own = dict.fromkeys(row["arm"] for row in before["rows"] if row["arm"] not in inherited)
    parts = [*older, {"arms": [*own], **{key: before[key] for key in ABOUT}}]
    left = [{**part, "arms": [arm for arm in part["arms"] if arm not in now]} for part in parts]
    return {
        **measured,
        "settings": {**before["settings"], **measured["settings"]},
        "rows": [*(row for row in before["rows"] if row["arm"] not in now), *measured["rows"]],
        "before": [part for part in left if part["arms"]],
    }


def commit() -> str:
    """Return the commit of the repository, "none" where there is no repository."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(git, cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "none"


def circumstances(command: str, seeds: Sequence[int], *, gpu: bool = False) -> Row:
    """Return what a record says beside what was measured."""
    return {
        "seeds": list(seeds),
        "command": command,
        "commit": commit(),
        "machine": f"{torch.cuda.get_device_name()}, {machine()}" if gpu else machine(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def machine() -> str:
    """Name the processor and how many cores there are."""
    model, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Return the versions of this package, of what it computes with, and of Python."""
    packages = {name: importlib.metadata.version(name) for name in ("stagecost", "torch", "numpy")}
    return {**packages, "python": platform.python_version()}
