"""One training of an experiment: started, resumed or found finished in the work folder."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagecost.errors import StageCostError
from stagecost.training.folder import RunFolder
from stagecost.training.loop import TrainingResult, train
from stagecost.training.trained import Trained, open_trained
from stagecost_recipes.experiment import Context


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        folder: of the run.
        result: what the training told.
        settings: that it was given, by flag name.
    """

    folder: Path
    result: TrainingResult
    settings: Mapping[str, Any]

    def open(self) -> Trained:
        """Open its last checkpoint, on the device of its training."""
        return open_trained(self.folder, device=self.settings.get("device", "auto"))


def run_folder(context: Context, name: str, settings: Mapping[str, Any], seed: int) -> Path:
    """Name the folder of a run after what defines it: other settings never meet in one folder.

    So a recipe that was changed is trained anew beside the old runs, and two names for the same
    settings are one training.
    """
    return context.work / f"{name}-{digest(settings)}-seed{seed}"


def digest(defining: Mapping[str, Any]) -> str:
    """Return eight letters and figures that follow from values for JSON."""
    text = json.dumps(dict(defining), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def trained_run(context: Context, name: str, settings: Mapping[str, Any], seed: int) -> Run:
    """Train with one seed, go on with a training that was stopped, or find the finished one.

    Args:
        context: says where, and on which images.
        name: kind of run, for its folder and its display.
        settings: by flag name, without data and seed.
        seed: of the run.

    Raises:
        StageCostError: what `stagecost.training.loop.train` raises, or a run on other images.
    """
    folder = run_folder(context, name, settings, seed)
    _check_data(folder, context.data)
    context.report(f"{context.dataset}: {name}, seed {seed}")
    given = {**settings, "data": context.data, "seed": seed}
    result = train(given, folder, resume=True, label=f"{context.dataset} {name} {seed}")
    return Run(folder, result, settings)


def _check_data(folder: Path, data: str) -> None:
    run = RunFolder(folder)
    if not run.config.is_file():
        return
    before = run.settings().data.data
    same = {data, str(Path(data).expanduser().resolve())}
    if before not in same:
        raise StageCostError(
            f"{folder} was trained on {before}, not on {data}: give the same --data-root as then, or "
            "another --work"
        )
