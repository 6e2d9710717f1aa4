"""`stagecost reproduce`: an experiment of the recipes, run or read from its records, as one table.

The experiments are in a package of their own, `stagecost_recipes`, which is imported when one is asked
for; of the library only this verb and its view know of it.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from stagecost.benchmark.recorded import results_folder
from stagecost.errors import StageCostError
from stagecost.storage import read_json, write_atomically, write_json

if TYPE_CHECKING:
    from stagecost_recipes.experiment import Context, Experiment

EXPERIMENTS = {
    "layer-pruning": "stagecost_recipes.layer_pruning:LAYER_PRUNING",
    "loss-trajectory": "stagecost_recipes.loss_trajectory:LOSS_TRAJECTORY",
    "bound": "stagecost_recipes.bound:BOUND",
    "peers": "stagecost_recipes.peers:PEERS",
    "staged": "stagecost_recipes.staged:STAGED",
}
"""Name → module:attribute."""

WORK = Path("runs") / "reproduce"
_ABOUT = ("seeds", "command", "commit", "machine", "threads", "versions")


def run_reproduce(
    name: str,
    *,
    tier: str = "cpu",
    dataset: str | None = None,
    seeds: Sequence[int] | None = None,
    data_root: str | None = None,
    work: str | None = None,
    results: str | None = None,
    from_results: bool = False,
) -> dict[str, Any]:
    """Run an experiment, or read what was recorded of it.

    Returns:
        The object that `stagecost reproduce --json` prints.

    Raises:
        StageCostError: an unknown experiment, tier or data set, no GPU for the tier that needs one, a
            record that is damaged or that would be replaced by one of fewer seeds.
    """
    experiment = find_experiment(name)
    datasets = _datasets(experiment, tier, dataset)
    folder = (results_folder(None) if results is None else Path(results)) / name
    if from_results:
        if seeds is not None:
            raise StageCostError("--seeds has no say in what is recorded: leave it out")
        files = [record_file(folder, tier, each) for each in datasets]
        found = [file for file in files if file.is_file()]
        if not found:
            raise StageCostError(
                f"nothing is recorded of {name} on the {tier} tier in {folder}: run it without "
                "--from-results, or name another folder by --results"
            )
        return _joined(experiment, tier, found)
    chosen = _checked_seeds(tuple(experiment.seeds if seeds is None else seeds))
    _check_device(tier)
    _check_data_root(data_root)
    files = [record_file(folder, tier, each) for each in datasets]
    for file in files:
        _check_replaceable(file, experiment, chosen)
    for each, file in zip(datasets, files, strict=True):
        place = Path(WORK if work is None else work) / f"{tier}-{each}"
        _record(experiment, _context(tier, each, _data(each, data_root), chosen, place), file)
    return _joined(experiment, tier, files)


def find_experiment(name: str) -> "Experiment":
    """Return the experiment of this name.

    Raises:
        StageCostError: there is none.
    """
    if name not in EXPERIMENTS:
        raise StageCostError(f"experiment {name!r} is unknown: choose from {', '.join(EXPERIMENTS)}")
    module, _, attribute = EXPERIMENTS[name].partition(":")
    found: Experiment = getattr(import_module(module), attribute)
    return found


def record_file(folder: Path, tier: str, dataset: str) -> Path:
    """Name the record of one data set in the experiment's folder of results."""
    return folder / f"{tier}-{dataset}.json"


def _datasets(experiment: "Experiment", tier: str, dataset: str | None) -> list[str]:
    known = {str(each): list(names) for each, names in experiment.datasets.items()}
    if tier not in known:
        raise StageCostError(f"tier {tier!r} is unknown: choose from {', '.join(known)}")
    if dataset is None:
        return known[tier]
    if dataset not in known[tier]:
        raise StageCostError(
            f"data set {dataset!r} is not in {experiment.name} on the {tier} tier: choose from "
            f"{', '.join(known[tier])}"
        )
    return [dataset]


def _checked_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        text = ",".join(map(str, seeds))
        raise StageCostError(f"seeds are '{text}': give different numbers of at least 0, such as 0,1,2")
    return seeds


def _check_device(tier: str) -> None:
    if tier == "gpu" and not torch.cuda.is_available():
        raise StageCostError(
            "the gpu tier needs a CUDA GPU, and there is none on this machine: use --tier cpu, or "
            "--from-results for what is recorded"
        )


def _check_data_root(data_root: str | None) -> None:
    if data_root is not None and not Path(data_root).is_dir():
        raise StageCostError(f"{data_root} is no folder: give one that holds local copies of data sets")


def _data(dataset: str, data_root: str | None) -> str:
    """Return the local copy of a data set if there is one, else its name."""
    local = None if data_root is None else Path(data_root) / dataset
    return str(local) if local is not None and local.is_dir() else dataset


def _check_replaceable(file: Path, experiment: "Experiment", seeds: Sequence[int]) -> None:
    """Refuse to put a record of fewer seeds in the place of one of more."""
    if not file.is_file():
        return
    before = [seed for seed in read_record(file, experiment)["seeds"] if seed not in seeds]
    if before:
        raise StageCostError(
            f"{file} holds seed {before[0]}, which a record of the seeds "
            f"{','.join(map(str, seeds))} would lose: add it to --seeds, or give another --results"
        )


def _context(tier: Any, dataset: str, data: str, seeds: Sequence[int], work: Path) -> "Context":
    from stagecost_recipes.experiment import Context

    console = Console(stderr=True, highlight=False)

    def report(what: str) -> None:
        console.print(what, soft_wrap=True)

    return Context(tier, dataset, data, seeds, work, report)


def _record(experiment: "Experiment", context: "Context", file: Path) -> None:
    """Run one data set, and write its record and its figures."""
    from stagecost_recipes.circumstances import circumstances

    rows = experiment.run(context)
    parts = experiment.parts(rows)
    stem = file.stem
    drawn = {f"{stem}-{name}.svg": svg for name, svg in experiment.figures(parts["rows"]).items()}
    seeds = ",".join(map(str, context.seeds))
    about = circumstances(
        f"stagecost reproduce {experiment.name} --tier {context.tier} --dataset {context.dataset} "
        f"--seeds {seeds}"
    )
    if context.tier == "gpu":
        about["machine"] = f"{torch.cuda.get_device_name()}, {about['machine']}"
    content = {
        "name": context.dataset,
        "experiment": experiment.name,
        "tier": context.tier,
        "dataset": context.dataset,
        "seeds": list(context.seeds),
        **about,
        "threads": torch.get_num_threads(),
        "settings": experiment.settings(context.tier, context.dataset),
        **parts,
        "figures": list(drawn),
    }
    for name, svg in drawn.items():
        write_atomically(file.parent / name, svg + "\n")
    write_json(file, content)


def read_record(file: Path, experiment: "Experiment") -> dict[str, Any]:
    """Read the record of one data set.

    Raises:
        StageCostError: it is damaged, or no record of this experiment.
    """
    record = read_json(file)
    keys = {*_ABOUT, "experiment", "dataset", "rows", "figures"}
    if (
        isinstance(record, dict)
        and keys <= set(record)
        and record["experiment"] == experiment.name
        and "rows" in _row_lists(record)
        and record["rows"]
        and all(experiment.row_keys <= set(row) for row in record["rows"])
    ):
        return record
    raise StageCostError(
        f"{file} is no record of {experiment.name}, or an incomplete one: restore it from a copy, or "
        "delete it and run the experiment again"
    )


def _joined(experiment: "Experiment", tier: str, files: Sequence[Path]) -> dict[str, Any]:
    """Join the records of several data sets; each list holds the rows of all of them, in order."""
    records = [read_record(file, experiment) for file in files]
    lists = list(dict.fromkeys(key for record in records for key in _row_lists(record)))
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "tier": tier,
        **{key: [row for record in records for row in record.get(key, [])] for key in lists},
        "figures": [
            str(file.parent / name)
            for file, record in zip(files, records, strict=True)
            for name in record["figures"]
        ],
        "records": [
            {"path": str(file), "dataset": record["dataset"], **{key: record[key] for key in _ABOUT}}
            for file, record in zip(files, records, strict=True)
        ],
    }


def _row_lists(record: dict[str, Any]) -> list[str]:
    return [
        key
        for key, value in record.items()
        if key != "figures" and isinstance(value, list) and all(isinstance(row, dict) for row in value)
    ]
