"""Where the figures of each epoch go besides the tables of a run: trackers that others make."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning_fabric.loggers import TensorBoardLogger
from lightning_fabric.loggers.logger import Logger

from stagecost.errors import StageCostError
from stagecost.train.devices import is_first_process

PROJECT = "stagecost"


class RunTracker(Logger):  # type: ignore[misc]
    """A run in trackio or Weights & Biases, which are alike; it begins with its first figures."""

    def __init__(self, package: ModuleType, run: str, settings: Mapping[str, Any]) -> None:
        """Take the package, the name of the run, and its settings."""
        self.package, self.run, self.settings, self.begun = package, run, settings, False

    @property
    def name(self) -> str:
        """The run's."""
        return self.run

    @property
    def version(self) -> None:
        """There is none."""

    def begin(self) -> None:
        """Open the run."""
        self.package.init(project=PROJECT, name=self.run, config=dict(self.settings))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand on the figures of an epoch."""
        if not self.begun:
            self.begin()
            self.begun = True
        self.write(dict(metrics), step)

    def write(self, metrics: dict[str, float], step: int | None) -> None:
        """Hand on figures of the open run."""
        self.package.log(metrics, step=step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Do nothing: the settings are given when the run begins."""

    def finalize(self, status: str) -> None:
        """Close the run."""
        if self.begun:
            self.end(status)

    def end(self, status: str) -> None:
        """Close the open run."""
        self.package.finish()


class MLflowTracker(RunTracker):
    """A run in MLflow."""

    def begin(self) -> None:
        """Open the run."""
        self.package.set_experiment(PROJECT)
        self.package.start_run(run_name=self.run)
        self.package.log_params(dict(self.settings))

    def write(self, metrics: dict[str, float], step: int | None) -> None:
        """Hand on figures of the open run."""
        self.package.log_metrics(metrics, step=step)

    def end(self, status: str) -> None:
        """Close the open run."""
        self.package.end_run("FINISHED" if status == "success" else "FAILED")


def open_trackers(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> list[Logger]:
    """Return Fabric's loggers for `TRACKERS` by name, in the first process; nothing is begun yet.

    A run is called by the name of its folder, into which TensorBoard writes.

    Raises:
        StageCostError: a package is missing.
    """
    loggers: list[Logger] = []
    for name in names if is_first_process() else ():
        try:
            package = import_module(name)
        except ImportError:
            install = "'stagecost[tensorboard]'" if name == "tensorboard" else name
            raise StageCostError(f"--tracker {name} needs a package: pip install {install}") from None
        if name == "tensorboard":
            loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
        else:
            kind = MLflowTracker if name == "mlflow" else RunTracker
            loggers.append(kind(package, folder.name, settings))
    return loggers
