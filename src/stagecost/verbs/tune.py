"""`stagecost tune`: search gamma and lambda for depth against accuracy, and show the Pareto front."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from stagecost.data.loading import load_data
from stagecost.errors import StageCostError
from stagecost.storage import write_atomically
from stagecost.training.folder import read_yaml
from stagecost.training.parsing import parse_settings
from stagecost.training.session import create_network
from stagecost.trajectory import needed_blocks
from stagecost.tuning.figure import pareto_figure
from stagecost.tuning.space import SEARCHED, Objective, Score
from stagecost.tuning.study import Search, run_trials

CONFIG = "tune.yaml"
COLUMNS = (
    "number",
    "gamma",
    *SEARCHED,
    "needed_blocks",
    "val_accuracy",
    "pruned_val_accuracy",
    "state",
    "reason",
    "run",
)


def tune_runs(
    output: Path,
    given: Mapping[str, Any],
    *,
    trials: int,
    jobs: int,
    resume: bool,
    objective: Objective | None,
    tolerance: float | None,
) -> dict[str, Any]:
    """Search, or go on with a search, and write trials.csv and pareto.svg.

    Args:
        output: folder of the search.
        given: settings of the trials, by flag name; what is missing is varied or takes its default.
        trials: how many trials there are to be in all; the first is plain training.
        jobs: processes that train at the same time.
        resume: go on with the search in the folder.
        objective: which accuracy stands against the depth; `full` if not given.
        tolerance: points of accuracy that may be missing to the full depth; 0.5 if not given.

    Returns:
        The object that `stagecost tune --json` prints.

    Raises:
        StageCostError: impossible settings, another search in the folder, or an interruption.
    """
    for name, value in (("trials", trials), ("jobs", jobs)):
        if value < 1:
            raise StageCostError(f"{name} is {value}: give at least 1")
    asked = {"settings": dict(given), "objective": objective, "tolerance": tolerance}
    config = _claimed(output, asked, resume)
    needed_blocks((0.0, 0.0), config["tolerance"])  # refuse an impossible tolerance before the long work
    search = _search(output, config)
    write_atomically(output / CONFIG, yaml.safe_dump(config, sort_keys=False))
    console = Console(stderr=True)

    def report(trial: FrozenTrial) -> None:
        console.print(_line(_row(search, trial)), highlight=False, soft_wrap=True)

    rows = [_row(search, trial) for trial in run_trials(search, trials, jobs, report)]
    return _written(search, rows)


def _claimed(output: Path, asked: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Return what the search in the folder is about, or is to be about."""
    file = output / CONFIG
    if not file.is_file():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise StageCostError(f"{output} holds something else: give a new or an empty folder")
        defaults = {"objective": "full", "tolerance": 0.5}
        return asked | {key: value for key, value in defaults.items() if asked[key] is None}
    if not resume:
        raise StageCostError(
            f"{output} already holds a search: go on with it by --resume, or give another --output"
        )
    stored = read_yaml(file)
    if not {"settings", "objective", "tolerance"} <= set(stored):
        raise StageCostError(f"{file} does not describe a search: restore it from a copy")
    before = {**stored["settings"], "objective": stored["objective"], "tolerance": stored["tolerance"]}
    again = {**asked["settings"], "objective": asked["objective"], "tolerance": asked["tolerance"]}
    for name, value in again.items():
        if value is not None and value != before.get(name):
            raise StageCostError(
                f"{name} is {before.get(name, 'not given')} in {output}, not {value}: leave it out to "
                "go on with that search, or give another --output"
            )
    return stored


def _search(output: Path, config: Mapping[str, Any]) -> Search:
    """Check that the trials can be trained, before the first one begins."""
    given = config["settings"]
    if "gamma" in given:
        raise StageCostError(f"gamma is {given['gamma']}, but tune varies it: leave it out")
    settings = parse_settings(given)
    settings.training.check()
    settings.variant.check()
    settings.shrink.check(settings.training.epochs)
    if settings.data.val_fraction == 0:
        raise StageCostError("tune needs validation images to judge by: raise --val-fraction above 0")
    if settings.training.num_processes > 1:
        raise StageCostError("tune trains each run in one process: use --jobs, not --num-processes")
    data = load_data(settings.data, seed=settings.training.seed, splits=("train", "val"))
    network = create_network(settings, data)
    if len(network.stages) > 1:
        raise StageCostError(
            f"tune needs a homogeneous network, where a cut is a truncation; {settings.model.model} has "
            f"{len(network.stages)} stages: use --model homogeneous"
        )
    if settings.variant.first_depth >= network.num_blocks:
        raise StageCostError(
            f"first_depth is {settings.variant.first_depth}, but there are {network.num_blocks} blocks: "
            "give a smaller number"
        )
    seed, num_blocks = settings.training.seed, network.num_blocks
    return Search(output, given, num_blocks, seed, config["objective"], config["tolerance"])


def _row(search: Search, trial: FrozenTrial) -> dict[str, Any]:
    defaults = parse_settings(search.given).to_flat()
    found = trial.user_attrs
    return {
        "number": trial.number,
        "gamma": found.get("gamma"),
        **{name: trial.params.get(name, defaults[name]) for name in SEARCHED},
        **{name: found.get(name) for name in Score.__dataclass_fields__},
        "state": "complete" if trial.state == TrialState.COMPLETE else "failed",
        "reason": found.get("reason"),
        "run": str(search.run(trial.number)),
    }


def _line(row: Mapping[str, Any]) -> str:
    name = f"trial {row['number']}: gamma {row['gamma']:.3g}"
    if row["state"] == "failed":
        return f"{name} failed: {row['reason']}"
    return f"{name}, lambda {row['weight_decay']:.2g} → {row['needed_blocks']} blocks needed, " + (
        f"{row['val_accuracy']:.2f} % with all"
    )


def _written(search: Search, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the table and the figure, and return what the verb prints."""
    done = [row for row in rows if row["state"] == "complete"]
    accuracy = "val_accuracy" if search.objective == "full" else "pruned_val_accuracy"
    front = pareto_front([(row["needed_blocks"], row[accuracy]) for row in done])
    pareto = [done[place]["number"] for place in front]
    points = {row["number"]: (row["needed_blocks"], row[accuracy]) for row in done}
    baseline = rows[0] if rows and rows[0]["state"] == "complete" else None
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(search.folder / "trials.csv", text.getvalue())
    plot = search.folder / "pareto.svg"
    chosen = [points[number] for number in pareto]
    write_atomically(plot, pareto_figure(list(points.values()), chosen, points.get(0)))
    return {
        "output": str(search.folder),
        "objective": search.objective,
        "tolerance": search.tolerance,
        "num_blocks": search.num_blocks,
        "trials": rows,
        "pareto": pareto,
        "baseline": baseline,
        "plot": str(plot),
    }


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the points that none beats: fewer blocks at no less accuracy, or the reverse.

    Args:
        points: needed blocks and accuracy.

    Returns:
        Places in order of the blocks; of equal points the first.
    """
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1], place))
    front: list[int] = []
    for place in order:
        if not front or points[place][1] > points[front[-1]][1]:
            front.append(place)
    return front
