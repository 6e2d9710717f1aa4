"""The folder of a training run: what is in it, who may write to it, and what it tells.

config.yaml        all settings, merged           last.safetensors   the newest checkpoint
metrics.csv        one row an epoch               best.safetensors   the best on validation data
trajectory.csv     loss and accuracy, one row for each epoch and depth
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stagecost.data.known import KNOWN_NAMES
from stagecost.errors import StageCostError
from stagecost.storage import remove_leftovers, write_atomically
from stagecost.training.parsing import parse_settings
from stagecost.training.settings import FREE_ON_RESUME, RunSettings


@dataclass(frozen=True)
class RunFolder:
    """The files of a run.

    Attributes:
        path: of the folder.
        outer: of the run for which this one is trained, and which is to be resumed in its place.
    """

    path: Path
    outer: Path | None = None

    @property
    def config(self) -> Path:
        """All settings, merged."""
        return self.path / "config.yaml"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        """The checkpoint of the epoch with the best validation accuracy."""
        return self.path / "best.safetensors"

    @property
    def pruning(self) -> Path:
        """The outcome of the latest pruning."""
        return self.path / "pruning.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    def settings(self) -> RunSettings:
        """Read the settings of the run.

        Raises:
            StageCostError: this is no run, or its configuration is damaged.
        """
        if not self.config.is_file():
            raise StageCostError(f"{self.path} holds no run: give a folder that `stagecost train` wrote")
        return parse_settings(read_yaml(self.config))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping of settings.

    Raises:
        StageCostError: the file is missing or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise StageCostError(f"configuration {path} does not exist: check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise StageCostError(f"configuration {path} is not valid YAML: {reason}") from None
    if not isinstance(content, dict):
        raise StageCostError(f"configuration {path} is no mapping of settings to values: rewrite it")
    return content


def claim(folder: RunFolder, given: Mapping[str, Any], resume: bool) -> RunSettings:
    """Make a folder the run of these settings, or find the run that is to go on there.

    Args:
        folder: is created; one that holds a run already is refused unless it is resumed.
        given: settings that the user gave, by flag name.
        resume: go on with the run in the folder; where it holds none, start one.

    Raises:
        StageCostError: the folder holds a run, or another one than the given settings describe.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise StageCostError(f"{folder.path} is a file: give a folder as --output")
    if folder.config.is_file() and not resume:
        raise StageCostError(
            f"{folder.path} already holds a run: go on with it by --resume, or give another --output"
        )
    settings = settings_for(folder, given)
    if resume:
        remove_leftovers(folder.path)
    return settings


def settings_for(folder: RunFolder, given: Mapping[str, Any]) -> RunSettings:
    """Return the settings of the run in a folder, or of the one that is about to start there.

    Raises:
        StageCostError: the settings are impossible, or the folder holds another run.
    """
    located = _located(given)
    settings = _merge(folder, located) if folder.config.is_file() else parse_settings(located)
    settings.training.check()
    return settings


def _located(given: Mapping[str, Any]) -> dict[str, Any]:
    """Make the paths of local folders absolute, so that the run can be used from anywhere."""
    if reference := given.get("gamma_reference"):
        given = {**given, "gamma_reference": str(Path(reference).expanduser().resolve())}
    data = str(given.get("data") or "")
    if data in ("", *KNOWN_NAMES) or not Path(data).expanduser().exists():
        return dict(given)
    return {**given, "data": str(Path(data).expanduser().resolve())}


def _merge(folder: RunFolder, given: Mapping[str, Any]) -> RunSettings:
    stored = folder.settings().to_flat()
    wanted = parse_settings({**stored, **given}).to_flat()
    for name, value in wanted.items():
        if value != stored[name] and name not in FREE_ON_RESUME:
            raise StageCostError(
                f"{name} is {stored[name]} in {folder.path}, not {value}: leave it out to go on with "
                "that run, or give another --output"
            )
    return parse_settings(wanted)


def write_config(folder: RunFolder, settings: RunSettings) -> None:
    """Write the merged settings; from now on the folder holds a run."""
    write_atomically(folder.config, yaml.safe_dump(settings.to_flat(), sort_keys=False))


METRICS = (
    "epoch",
    "seconds",
    "learning_rate",
    "train_objective",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "num_blocks",
    "gamma",
)


def write_metrics(folder: RunFolder, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the CSV files anew from the history, so that they agree with the checkpoint after a kill."""
    rows = [{name: entry.get(name) for name in METRICS} for entry in history]
    write_atomically(folder.path / "metrics.csv", _csv(METRICS, rows))
    names = ("epoch", "depth", "val_loss", "val_accuracy")
    points = [
        dict(zip(names, (entry["epoch"], depth, loss, accuracy), strict=True))
        for entry in history
        if entry["val_losses"] is not None
        for depth, (loss, accuracy) in enumerate(
            zip(entry["val_losses"], entry["val_accuracies"], strict=True)
        )
    ]
    write_atomically(folder.path / "trajectory.csv", _csv(names, points))


def _csv(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
