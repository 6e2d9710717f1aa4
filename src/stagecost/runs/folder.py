"""The folder of a training run: what is in it, whose settings these are, and its tables.

config.yaml        all settings, merged           last.safetensors   the newest checkpoint
metrics.csv        one row an epoch               best.safetensors   the best on validation data
trajectory.csv     loss and accuracy, one row for each epoch and depth
images.json        what tells whether the images are still the same
"""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from stagecost.data.fingerprint import FINGERPRINT_FILE
from stagecost.data.sources import local_folder
from stagecost.errors import StageCostError, refusing
from stagecost.runs.results import Result
from stagecost.saved import CONFIG_FILE
from stagecost.storage import write_atomically, write_json
from stagecost.train.checkpoint import Checkpoint, read_checkpoint
from stagecost.train.history import EpochRecord
from stagecost.train.parsing import parse_settings
from stagecost.train.settings import FREE_ON_RESUME, RunSettings, flag

LOG = logging.getLogger("stagecost")


class RunFolder:
    """The files of a run."""

    def __init__(self, path: Path) -> None:
        """Take the folder, which need not be there."""
        self.path = path
        self.config = path / "config.yaml"  #: all settings, merged
        self.last = path / "last.safetensors"  #: the newest checkpoint
        self.best = path / "best.safetensors"  #: that of the best validation accuracy
        self.fingerprint = path / FINGERPRINT_FILE  #: what is remembered of the images
        self.pruning = path / "pruning.json"  #: the outcome of the latest pruning
        self.exits = path / "exit.json"  #: what early exit brings; the policy is beside it
        self.latency = path / "latency.json"  #: what `stagecost measure` found
        self.report = path / "report.html"

    def settings(self) -> RunSettings:
        """Read the settings of the run.

        Raises:
            StageCostError: this is no run, or its configuration is damaged.
        """
        if not self.config.is_file():
            raise StageCostError(f"{self.path} holds no run: give a folder that `stagecost train` wrote")
        try:
            settings = parse_settings(read_yaml(self.config))
            settings.check()
            return settings
        except StageCostError as error:
            raise StageCostError(f"{self.config}: {error}") from None

    def settings_beside(self, checkpoint: Checkpoint) -> RunSettings:
        """Return the settings of the run, which its checkpoint knows, too.

        A folder of images may be another one, as where they moved since: `images.json` tells them.

        Raises:
            StageCostError: they are not the same.
        """
        if not self.config.is_file():
            return checkpoint.settings
        settings, known = self.settings(), checkpoint.settings
        if all(Path(each.data.data or "").is_absolute() for each in (settings, known)):
            known = replace(known, data=replace(known.data, data=settings.data.data))
        check_same(known, settings, self.path)
        return settings


LARGEST_CONFIG = 65_536  # bytes; settings take a thousand


class _FlatLoader(yaml.SafeLoader):
    """Reads what settings are made of; the rest of YAML takes time and memory out of few bytes.

    Numbers and dates stay the texts that they are, as on the command line: to YAML 3:8 is 188.
    """

    depth = 0
    yaml_implicit_resolvers = {  # noqa: RUF012 (as its parent has it)
        first: [(tag, form) for tag, form in resolvers if tag.endswith((":null", ":bool"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases, and lists in lists."""
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("an alias, such as *a, where a value is meant")
        if self.depth > 3:
            raise yaml.YAMLError("lists in lists, where a value is meant")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Refuse a setting that is there twice, of which YAML would take the last."""
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.YAMLError(f"{twice[0]} is there twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping of settings.

    Raises:
        StageCostError: the file is missing or holds something else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_CONFIG + 1)
    except FileNotFoundError:
        raise StageCostError(f"configuration {path} does not exist: check the path") from None
    # The constructors of PyYAML let errors of their own pass: !!timestamp x, !!int x.
    errors = yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError
    with refusing(f"configuration {path} is not valid YAML", "correct it", *errors):
        if len(text) > LARGEST_CONFIG:
            raise ValueError(f"more than {LARGEST_CONFIG} bytes")
        content = yaml.load(text.decode(), _FlatLoader)
    if not isinstance(content, dict):
        raise StageCostError(f"configuration {path} is no mapping of settings to values: rewrite it")
    return content


def settings_for(folder: RunFolder, given: Mapping[str, Any], *, resume: bool) -> RunSettings:
    """Return the settings of the run that is to go on in a folder, or to start there.

    A folder with settings and no checkpoint holds nothing yet: a run may start there anew, with others.

    Args:
        folder: held by this process.
        given: settings that the user gave, by flag name.
        resume: go on with the run in the folder; where it holds none, start one.

    Raises:
        StageCostError: the settings are impossible, or the folder holds a run, or another one.
    """
    given = _located(given)
    if (folder.path / CONFIG_FILE).is_file():  # which every verb would open in the place of the run
        raise StageCostError(f"{folder.path} holds a saved network: give another --output")
    if (folder.last.is_file() or folder.best.is_file()) and not resume:
        raise StageCostError(
            f"{folder.path} already holds a run: go on with it by --resume, or give another --output"
        )
    if folder.last.is_file():
        stored = folder.settings_beside(read_checkpoint(folder.last))
        settings = parse_settings({**stored.to_flat(), **given})
        check_same(stored, settings, folder.path)
    else:
        _check_lost(folder)
        begun = folder.settings().to_flat() if resume and folder.config.is_file() else {}
        settings = parse_settings({**begun, **given})
    settings.check()
    return settings


def _check_lost(folder: RunFolder) -> None:
    """Refuse to train over the best epoch of a run whose last checkpoint is not there any more.

    That of the first epoch is written before any last one, and an interruption can leave it alone.
    """
    if folder.best.is_file() and (epochs := len(read_checkpoint(folder.best).progress.history)) > 1:
        raise StageCostError(
            f"{folder.last} is not there, and {folder.best.name} is of epoch {epochs}: rename it "
            "to go on from there, or give another --output"
        )


def _located(given: Mapping[str, Any]) -> dict[str, Any]:
    """Make the paths of images and weights absolute, so that the run can be used from anywhere."""
    data, weights = str(given.get("data") or ""), str(given.get("weights") or "")
    folder = local_folder(data) if data else None
    located = {} if folder is None else {"data": str(folder.resolve())}
    if weights not in ("", "pretrained") and Path(weights).exists():
        located["weights"] = str(Path(weights).resolve())
    return {**given, **located}


def check_same(stored: RunSettings, wanted: RunSettings, path: Path) -> None:
    """Refuse settings that are not those of a run.

    Free are those that the result does not depend on; and where the images are, if they moved.
    """
    before, after = stored.to_flat(), wanted.to_flat()
    if has_moved(before["data"]):
        before["data"] = after["data"]
    for name, value in after.items():
        if value != before[name] and name not in FREE_ON_RESUME:
            raise StageCostError(
                f"{flag(name)} is {before[name]} in {path}, not {value}: leave it out to go on with "
                "that run, or give another --output"
            )


def has_moved(data: str | None) -> bool:
    """Tell whether images were in a local folder that is there no more."""
    return data is not None and Path(data).is_absolute() and not Path(data).exists()


def refuse_moved(data: str | None, path: Path) -> None:
    """Refuse to go on where the images of a run, or of a saved network, are no longer in their place.

    Raises:
        StageCostError: as described.
    """
    if has_moved(data):
        raise StageCostError(
            f"{data}, with the images of {path}, is there no more: say where they are now with --data"
        )


def write_config(folder: RunFolder, settings: RunSettings) -> None:
    """Write the merged settings.

    Raises:
        StageCostError: they are longer than what `read_yaml` reads again.
    """
    text = yaml.safe_dump(settings.to_flat(), sort_keys=False)
    if len(text) > LARGEST_CONFIG:
        raise StageCostError(
            f"the settings of {folder.path} take {len(text):,} bytes, more than {LARGEST_CONFIG:,}: "
            "give shorter ones, such as fewer --classes"
        )
    write_atomically(folder.config, text)


def keep_for_report(file: Path, result: Result) -> None:
    """Write what a verb has found into a run's folder; it is no less found where that cannot be."""
    try:
        write_json(file, result.to_json())
    except OSError as error:
        not_kept(file, error)


def not_kept(file: Path, error: OSError) -> None:
    """Say that the report will not tell of what a verb has found, and why."""
    LOG.warning("not kept for the report: %s (%s)", file, error.strerror)


METRICS = (
    *("epoch", "seconds", "learning_rate", "train_objective", "train_loss", "train_accuracy"),
    *("val_loss", "val_accuracy", "num_blocks", "gamma"),
)


def write_metrics(folder: RunFolder, history: Sequence[EpochRecord]) -> None:
    """Write the CSV files anew from the history, so that they agree with the checkpoint after a kill."""
    rows = [[getattr(entry, name) for name in METRICS] for entry in history]
    write_atomically(folder.path / "metrics.csv", _csv(METRICS, rows))
    points = [
        (entry.epoch, depth, loss, accuracy)
        for entry in history
        for depth, (loss, accuracy) in enumerate(
            zip(entry.val_losses or (), entry.val_accuracies or (), strict=True)
        )
    ]
    names = ("epoch", "depth", "val_loss", "val_accuracy")
    write_atomically(folder.path / "trajectory.csv", _csv(names, points))


def _csv(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()
