"""What an experiment is, and the one way to run it, to record it and to show it."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from experiments.records import ABOUT, RESULTS, ROOT, Record, Row, circumstances, grown, record_name
from experiments.tables import page
from stagecost.errors import StageCostError
from stagecost.storage import write_atomically, write_json

if TYPE_CHECKING:
    from experiments.trainings import Training
    from stagecost.report.charts import Chart

Tier = Literal["cpu", "gpu", "quick"]
"""Two cores overnight; the paper's size; or seconds, tiny networks on digits, to see that it works."""
TIERS: tuple[Tier, ...] = ("cpu", "gpu", "quick")
WORK = ROOT / "runs" / "experiments"
Figures = Mapping[str, "Chart"]
"""Charts by name."""

EXPERIMENTS = {
    "layer-pruning": "layer_pruning:LAYER_PRUNING",
    "targets": "targets:TARGETS",
    "exits": "exits:EXITS",
    "pretrained": "pretrained.experiment:PRETRAINED",
    "from-scratch": "from_scratch:FROM_SCRATCH",
    "targets-trials": "contrib.targets_trials:TARGETS_TRIALS",
    "loss-trajectory": "loss_trajectory:LOSS_TRAJECTORY",
    "bound": "bound:BOUND",
    "bound-training": "bound_training:BOUND_TRAINING",
    "peers": "peers.experiment:PEERS",
    "staged": "staged:STAGED",
    "benchmark": "benchmark.experiment:BENCHMARK",
    "adapted-steps": "adapted_steps:ADAPTED_STEPS",
    "gpu-speed": "gpu_speed:GPU_SPEED",
    "runs": "runs:RUNS",
    "ablation": "ablation:ABLATION",
    "importance": "theory:IMPORTANCE",
    "predicted-depth": "theory:PREDICTED_DEPTH",
    "saturation": "theory:SATURATION",
    "tuning": "tuning:TUNING",
    "again": "again:AGAIN",
    **dict.fromkeys(("shrink", "shrink-trials", "shrink-other-recipe"), "archive"),
    **dict.fromkeys(("gamma", "gamma-low-start", "gamma-held-start"), "archive"),
    **dict.fromkeys(("schedule-trials", "schedule-trials-first"), "archive"),
    **dict.fromkeys(("layer-pruning-other-schedule", "staged-trials"), "archive"),
    **dict.fromkeys(("c-loops", "kernels", "benchmark-with-c", "benchmark-peers"), "archive"),
    **dict.fromkeys(("pretrained-fewer-epochs", "pretrained-slower-cuts"), "archive"),
    **dict.fromkeys(("pretrained-half-blocks", "pretrained-three-seeds"), "archive"),
    **dict.fromkeys(("pretrained-first-blocks", "pretrained-all-ways"), "archive"),
    **dict.fromkeys(("pretrained-fewer-images", "targets-every-step"), "archive"),
}
"""Name → module:attribute, in the order of results/README.md; "archive" can be shown, and not run."""


@dataclass(frozen=True)
class Context:
    """What a run of an experiment is given.

    Attributes:
        tier: of networks and trainings.
        dataset: name of the data set, such as "mnist"; empty where an experiment has none.
        seeds: of the runs; the same for every arm.
        work: folder of the trainings; those that are finished there are not trained again.
        data_root: folder with local copies of data sets, by name.
        report: is told in a few words what is being done.
        options: those of `Experiment.options` that were given.
    """

    tier: Tier
    dataset: str
    seeds: Sequence[int]
    work: Path
    data_root: Path | None = None
    report: Callable[[str], None] = lambda words: None
    options: Mapping[str, Any] = field(default_factory=dict)

    def images(self, dataset: str) -> str:
        """Return what a training's `data` names: a local copy of a data set if there is one."""
        local = None if self.data_root is None else self.data_root / dataset
        return str(local) if local is not None and local.is_dir() else dataset

    def arms(self, known: Sequence[str], usual: Sequence[str]) -> list[str]:
        """Return the arms that `--arms` names, or the usual ones.

        Raises:
            StageCostError: one is unknown.
        """
        arms = str(self.options.get("arms", ",".join(usual))).split(",")
        if unknown := sorted(set(arms) - set(known)):
            raise StageCostError(f"--arms has {unknown[0]!r}: choose from {', '.join(known)}")
        return arms


def _nothing(*_: object) -> Row:
    return {}


@dataclass(frozen=True)
class Experiment:
    """A measurement that is recorded and shown.

    Attributes:
        name: on the command line, and of its folder.
        title: of its section.
        datasets: of each tier, in order; "" where there is none.
        section: makes paragraphs of its records.
        run: measures what is missing; returns lists of rows, and single values, by name. None: archived.
        seeds: if none are asked for.
        trainings: what is trained, by kind, for the record.
        rows: the list that a record must have, if any.
        facts: single values that the answer shows of each record.
        figures: draws a record: charts by name.
        options: flags that it heeds beside those of all.
        answer: the answer in JSON, where it is another one than that of all.
    """

    name: str
    title: str
    datasets: Mapping[str, Sequence[str]]
    section: Callable[[Sequence[Record]], list[str]]
    run: Callable[[Context], Row] | None = None
    seeds: Sequence[int] = (0, 1, 2)
    trainings: Callable[[Tier, str], "Mapping[str, Training]"] = _nothing
    rows: str = "rows"
    facts: tuple[str, ...] = ()
    figures: Callable[[Record], Figures] = _nothing
    options: frozenset[str] = frozenset()
    answer: Callable[[Record], Row] | None = None

    def folder(self, results: Path) -> Path:
        """Return the folder of its records."""
        return results / self.name if self.run is not None else results / "archive" / self.name

    def records(
        self, results: Path, tier: str | None = None, dataset: str | None = None
    ) -> list[Record]:
        """Read what is recorded, in the order of the data sets."""
        known = [
            self.folder(results) / record_name(t, d) for t, each in self.datasets.items() for d in each
        ]
        others = sorted(set(self.folder(results).glob("*.json")) - set(known))
        found = [Record.read(file, self.rows) for file in (*known, *others) if file.is_file()]
        return [r for r in found if tier in (None, r.tier) and dataset in (None, r.dataset)]


def find_experiment(name: str) -> Experiment:
    """Return the experiment of this name.

    Raises:
        StageCostError: there is none.
    """
    if name not in EXPERIMENTS:
        raise StageCostError(f"experiment {name!r} is unknown: choose from {', '.join(EXPERIMENTS)}")
    module, _, attribute = EXPERIMENTS[name].partition(":")
    found = import_module(f"experiments.{module}")
    experiment: Experiment = getattr(found, attribute) if attribute else found.ARCHIVE[name]
    return experiment


def show(
    name: str, tier: Tier = "cpu", dataset: str | None = None, results: Path = RESULTS
) -> tuple[Experiment, list[Record]]:
    """Read what is recorded of an experiment.

    Raises:
        StageCostError: it is unknown, or nothing is recorded.
    """
    experiment = find_experiment(name)
    records = experiment.records(results, tier, dataset)
    if not records and tier == "cpu" and dataset is None:  # what there is, on whatever tier
        records = experiment.records(results)
    if not records:
        raise StageCostError(
            f"nothing is recorded of {name} on the {tier} tier{f' for {dataset}' if dataset else ''} in "
            f"{experiment.folder(results)}: run it, or name another folder by --results"
        )
    return experiment, records


def run(
    name: str,
    tier: Tier = "cpu",
    *,
    dataset: str | None = None,
    seeds: Sequence[int] | None = None,
    data_root: Path | None = None,
    work: Path = WORK,
    results: Path | None = None,
    options: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda words: None,
) -> tuple[Experiment, list[Record]]:
    """Run an experiment, and write a record for each data set.

    Args:
        name: of the experiment.
        tier: of its networks and trainings.
        dataset: one data set; all of the tier if not given.
        seeds: the experiment's own if not given.
        data_root: folder with local copies of the data sets, by name.
        work: folder of the trainings.
        results: folder of the records: the repository's, or one in `work` for the quick tier.
        options: flags of the experiment alone.
        report: is told in a few words what is being done.

    Raises:
        StageCostError: an impossible request, or a record that one of fewer seeds would replace, or
            that cannot grow by the arms.
    """
    experiment, options = find_experiment(name), options or {}
    _check(experiment, tier, dataset, data_root, options)
    chosen = tuple(experiment.seeds if seeds is None else seeds)
    if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0:
        written = ",".join(map(str, chosen))
        raise StageCostError(
            f"seeds are '{written}': give different numbers of at least 0, such as 0,1,2"
        )
    folder = experiment.folder(results or (work / "results" if tier == "quick" else RESULTS))
    names = experiment.datasets[tier] if dataset is None else [dataset]
    files = {each: folder / record_name(tier, each) for each in names}
    contexts = {
        file: Context(tier, each, chosen, work / file.stem, data_root, report, options)
        for each, file in files.items()
    }
    growing = {file: _growing(experiment, context, file) for file, context in contexts.items()}
    for file, context in contexts.items():
        content, before = _content(experiment, context), growing[file]
        write_json(file, content if before is None else grown(before.content, content))
        draw(experiment, Record.read(file, experiment.rows))
    return experiment, [Record.read(file, experiment.rows) for file in files.values()]


def _content(experiment: Experiment, context: Context) -> Row:
    assert experiment.run is not None
    measured = experiment.run(context)
    tier, dataset = context.tier, context.dataset
    command = f"python -m experiments run {experiment.name} --tier {tier}"
    command += f" --dataset {dataset}" if dataset else ""
    command += f" --seeds {','.join(map(str, context.seeds))}"
    for name, value in context.options.items():
        several = value if isinstance(value, list) else ["DIR" if name == "weights" else value]
        command += "".join(f" --{name} {shlex.quote(str(each))}" for each in several)
    settings = {kind: each.to_json() for kind, each in experiment.trainings(tier, dataset).items()}
    about = {"name": dataset or tier, "experiment": experiment.name, "tier": tier, "dataset": dataset}
    about |= circumstances(command, context.seeds, gpu=tier == "gpu")
    return {**about, "settings": settings, **measured}


def draw(experiment: Experiment, record: Record) -> None:
    """Write the figures of a record beside it."""
    for name, chart in experiment.figures(record).items():
        file = record.file.with_name(f"{record.file.stem}-{name}.svg")
        write_atomically(file, chart.svg(name) + "\n")


def answer(experiment: Experiment, records: Sequence[Record]) -> Row:
    """Return what `--json` prints: each list holds the rows of all data sets, in order."""
    if experiment.answer is not None:
        return experiment.answer(records[0])
    names = list(dict.fromkeys(name for record in records for name in record.lists()))
    keys = (*ABOUT, *experiment.facts)
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "tier": records[0].tier,
        **{name: [row for record in records for row in record.lists().get(name, [])] for name in names},
        "figures": [str(figure) for record in records for figure in record.figures()],
        "records": [
            {"path": str(r.file), "dataset": r.dataset, **{key: r[key] for key in keys}} for r in records
        ],
    }


def render(results: Path = RESULTS) -> str:
    """Return results/README.md as it follows from the records."""
    sections = [(each, each.records(results)) for each in map(find_experiment, EXPERIMENTS)]
    return page([(each, records) for each, records in sections if records], results)


def _check(
    experiment: Experiment,
    tier: Tier,
    dataset: str | None,
    data_root: Path | None,
    options: Mapping[str, Any],
) -> None:
    name, known = experiment.name, experiment.datasets.get(tier, ())
    if experiment.run is None:
        raise StageCostError(f"{name} can no longer be run: `show {name}` names the commit that could")
    if not known:
        raise StageCostError(f"{name} has no {tier} tier: choose from {', '.join(experiment.datasets)}")
    if dataset is not None and dataset not in known:
        raise StageCostError(
            f"data set {dataset!r} is not in {name} on the {tier} tier: choose from {', '.join(known)}"
        )
    if unheeded := sorted(set(options) - experiment.options):
        raise StageCostError(f"{name} does not heed --{unheeded[0]}: leave it out")
    if tier == "gpu" and not torch.cuda.is_available():
        raise StageCostError(
            "the gpu tier needs a CUDA GPU, and there is none on this machine: use --tier cpu, or show "
            "what is recorded"
        )
    if data_root is not None and not data_root.is_dir():
        raise StageCostError(f"{data_root} is no folder: give one that holds local copies of data sets")


def _growing(experiment: Experiment, context: Context, file: Path) -> Record | None:
    """Return the record that keeps its rows of other arms than are asked for, if there is one.

    Raises:
        StageCostError: seeds would be lost, or comparisons of arms, or other arms have other seeds or
            settings than today's.
    """
    if not file.is_file():
        return None
    record = Record.read(file, experiment.rows)
    _refuse_fewer_seeds(record, context.seeds)
    if "arms" not in context.options:
        return None
    asked = str(context.options["arms"]).split(",")
    lost = [row["arm"] for row in record[experiment.rows] if row["arm"] not in asked]
    if lost and record.lists().keys() - {experiment.rows, "before"}:  # these rest on several arms
        raise StageCostError(
            f"{file} compares {lost[0]} with other arms, which --arms {','.join(asked)} would lose: add "
            "it, or give another --results"
        )
    kept = {k: v for k, v in record["settings"].items() if k.partition("-")[0] not in asked}
    today = {k: v.to_json() for k, v in experiment.trainings(context.tier, context.dataset).items()}
    other = [f"settings of {kind}" for kind in kept if kept[kind] != today.get(kind)]
    if kept and (other or record["seeds"] != list(context.seeds)):
        raise StageCostError(
            f"{file} cannot grow by --arms {','.join(asked)}, as it rests on other "
            f"{[*other, 'seeds'][0]}: name all arms, or give another --results"
        )
    return record if kept else None


def _refuse_fewer_seeds(record: Record, seeds: Sequence[int]) -> None:
    """Refuse to put a record of fewer seeds in the place of one of more."""
    if lost := [seed for seed in record["seeds"] if seed not in seeds]:
        raise StageCostError(
            f"{record.file} holds seed {lost[0]}, which a record of the seeds "
            f"{','.join(map(str, seeds))} would lose: add it to --seeds, or give another --results"
        )
