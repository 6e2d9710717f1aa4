"""Recorded results, run again by the code of today: do they reproduce?

Command     python -m experiments run again --dataset EXPERIMENT-DATA [--seeds 0] [--data-root DIR]
Machine     cpu: one core, one thread; quick: beside what `run EXPERIMENT --quick` measured
Runtime     that of one seed of the experiment: five minutes to an hour
Seeds       0, beside all those of the record

An experiment's rows are measured anew with one seed, and a reading of each stands beside the recorded
one of the same seed, and beside mean and deviation over all recorded seeds.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from experiments.records import RESULTS, Record, Row, record_name
from experiments.runner import Context, Experiment, find_experiment
from experiments.tables import Columns, rows_of, spread, table
from stagecost.errors import StageCostError

TEXT = """\
Seeds of older records, measured anew by the code of the commit that is named below. The same seed
need not give the same bits: random numbers and roundings have changed since. {} of {} readings whose
record has a spread lie within two of its standard deviations of its mean; the others: {}."""


@dataclass(frozen=True)
class Reading:
    """What of an experiment's rows is compared.

    Attributes:
        rows: name of the list that holds them; empty where the record itself is the one row.
        label: what a row is called, a format over its entries.
        values: what is read off a row, one value a seed.
        what: that value in words.
    """

    rows: str
    label: str
    values: Callable[[Row], Sequence[float]]
    what: str

    def of(self, content: Mapping[str, object]) -> dict[str, list[float]]:
        """Return the values of a record's content by label, in the order of its seeds."""
        rows = content[self.rows] if self.rows else [content]
        assert isinstance(rows, list)
        values: dict[str, list[float]] = {}
        for row in rows:
            values.setdefault(self.label.format_map(row), []).extend(self.values(row))
        return values


ARMS = Reading("rows", "{arm}", lambda row: row["test_accuracies"], "test accuracy")
READINGS = {
    "layer-pruning": ARMS,
    "peers": ARMS,
    "staged": ARMS,
    "bound": Reading("rows", "M = {sub_blocks}", lambda row: [row["tightness"]], "J_N / bound"),
    "loss-trajectory": Reading(
        "rows", "{arm}", lambda row: [row["accuracies"][-1]], "validation accuracy"
    ),
    "runs": Reading("", "whole", lambda row: [row["test_full"]["accuracy"]], "test accuracy"),
    "importance": Reading(
        "runs", "{training}", lambda row: [row["rank_correlations"]["costate"]], "rank correlation"
    ),
    "saturation": Reading(
        "runs", "{training}, N = {num_blocks}", lambda row: [row["needed"]], "needed blocks"
    ),
    "predicted-depth": Reading(
        "points",
        "gamma·N = {stage_share:g}, lambda = {weight_decay:g}",
        lambda row: [row["measured"]["needed"]],
        "needed blocks",
    ),
    "ablation": Reading(
        "runs", "{variant}", lambda row: [row["val_accuracies"][-1]], "validation accuracy"
    ),
}
"""What is compared, by experiment."""


def run(context: Context) -> Row:
    """Measure one experiment on one data set anew, and compare.

    Raises:
        StageCostError: nothing is recorded of it, or not with these seeds.
    """
    name = next(name for name in READINGS if context.dataset.startswith(f"{name}-"))
    data = context.dataset.removeprefix(f"{name}-")
    experiment = find_experiment(name)
    assert experiment.run is not None
    results = context.work.parent / "results" if context.tier == "quick" else RESULTS
    file = experiment.folder(results) / record_name(context.tier, data)
    if not file.is_file():
        command = f"python -m experiments run {name} --tier {context.tier} --dataset {data}"
        raise StageCostError(f"{file} is not there to be compared with: make it by `{command}`")
    recorded = Record.read(file, experiment.rows)
    if other := [seed for seed in context.seeds if seed not in recorded["seeds"]]:
        known = ",".join(map(str, recorded["seeds"]))
        raise StageCostError(f"{file} has no seed {other[0]} to compare with: give --seeds of {known}")
    work = context.work.with_name(f"{context.tier}-{data}")
    measured = experiment.run(replace(context, dataset=data, work=work))
    rows = compared(READINGS[name], recorded.content, measured, context.seeds)
    return {"rows": [{"experiment": name, "data": data, **row} for row in rows]}


def compared(
    reading: Reading, recorded: Mapping[str, object], measured: Row, seeds: Sequence[int]
) -> list[Row]:
    """Return a row for each reading that was made again, beside what is recorded of it."""
    before, known = reading.of(recorded), recorded["seeds"]
    assert isinstance(known, list)
    return [
        {
            "row": label,
            "reading": reading.what,
            "recorded": before[label],
            "recorded_seeds": known,
            "same_seeds": [before[label][known.index(seed)] for seed in seeds],
            "again": again,
        }
        for label, again in reading.of(measured).items()
        if label in before
    ]


def distance(row: Row) -> float | None:
    """Return how many recorded standard deviations the mean of what was measured again is off.

    None where one seed is recorded, or all of them agree.
    """
    recorded = row["recorded"]
    deviation = statistics.stdev(recorded) if len(recorded) > 1 else 0.0
    apart = statistics.mean(row["again"]) - statistics.mean(recorded)
    return apart / deviation if deviation else None


def section(records: Sequence[Record]) -> list[str]:
    """Return the table."""
    rows = [{**row, "distance": distance(row)} for row in rows_of(records)]
    known = [row for row in rows if row["distance"] is not None]
    far = [row for row in known if abs(row["distance"]) > 2]
    named = ", ".join(f"{row['row']} of {row['data']}" for row in far) or "none"
    columns: Columns = {
        "experiment, data": "{data}",
        "row": "{row}",
        "reading": "{reading}",
        "recorded": lambda row: f"{spread(row['recorded'])} ({len(row['recorded'])})",
        "recorded, same seed": lambda row: spread(row["same_seeds"]),
        "again": lambda row: spread(row["again"]),
        "off, in deviations": "{distance:+.1f}",
    }
    return [TEXT.format(len(known) - len(far), len(known), named), table(rows, columns)]


AGAIN = Experiment(
    name="again",
    title="Recorded results, run again",
    datasets={
        tier: tuple(
            f"{name}-{data}" for name in READINGS for data in find_experiment(name).datasets[tier]
        )
        for tier in ("cpu", "quick")
    },
    seeds=(0,),
    run=run,
    section=section,
)
