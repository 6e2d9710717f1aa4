"""The paper's figure: loss and accuracy over the depth of a staged network, with and without stage cost.

Command     python -m experiments run loss-trajectory --tier cpu [--data-root DIR]
Machine     cpu: one core, one thread; gpu: one GPU of 16 GiB or more
Runtime     cpu: about four minutes a run, two kinds of run
Seeds       0, 1, 2

The paper shows plateaus within a stage and jumps where the next one begins. Both are measured here: the
mean fall L_k − L_{k+1} over the blocks that begin a later stage (`jump`) and over all blocks that begin
no stage (`plateau`). The first block of the first stage is in neither: before it there is no plateau.
The stage cost is the paper's, uniform and constant, gamma = 1/N. Losses are those of the test images,
from which nothing is chosen.
"""

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from experiments.recipes import staged_recipe
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Figures, Tier
from experiments.tables import Columns, grouped, rows_of, table
from experiments.trainings import Run, Training, runs_of
from stagecost.trajectory import Trajectory, loss_trajectory

NAMES = {"plain": "plain training", "stage": "with a stage cost"}
TEXT = """\
A staged network, plain and with a uniform stage cost, on test images: by how much the loss falls from
one output to the next, on average within stages (without the very first block), and at the blocks that
begin a later stage."""


def trainings(tier: Tier, dataset: str) -> dict[str, Training]:
    """Return plain training, and training with a stage cost."""
    plain = staged_recipe(tier, dataset)
    gamma = 1 / sum(plain["blocks_per_stage"])
    return {"plain": Training(plain), "stage": Training({**plain, "gamma": gamma})}


def run(context: Context) -> dict[str, Any]:
    """Train what is missing, then look at the test images."""
    runs = runs_of(context, trainings(context.tier, context.dataset))
    pairs = [(arm, *pair) for arm in runs for pair in zip(context.seeds, runs[arm], strict=True)]
    return {"rows": [_row(context.dataset, arm, seed, done) for arm, seed, done in pairs]}


def _row(dataset: str, arm: str, seed: int, done: Run) -> Row:
    trained = done.open()
    trajectory = loss_trajectory(trained.network, trained.batches("test"), loss=trained.loss)
    return {
        "dataset": dataset,
        "arm": arm,
        "seed": seed,
        "num_blocks": trajectory.num_blocks,
        "stage_starts": list(trajectory.stage_starts),
        **falls(trajectory),
        "losses": list(trajectory.losses),
        "accuracies": list(trajectory.accuracies),
        "seconds": done.seconds,
    }


def falls(trajectory: Trajectory) -> dict[str, float]:
    """Return the mean fall of the loss within stages, `plateau`, and where later ones begin, `jump`."""
    fall = [before - after for before, after in pairwise(trajectory.losses)]
    later = set(trajectory.stage_starts[1:])
    within = [value for k, value in enumerate(fall) if k not in later and k > 0]
    return {
        "plateau": statistics.mean(within),
        "jump": statistics.mean(fall[k] for k in sorted(later)),
    }


def section(records: Sequence[Record]) -> list[str]:
    """Return the table."""
    columns: Columns = {
        "tier, data": "{record}",
        "arm": "{arm}",
        "seed": "{seed}",
        "terminal accuracy": lambda row: f"{row['accuracies'][-1]:.2f}",
        "fall within stages": "{plateau:.4f}",
        "fall where a stage begins": "{jump:.4f}",
    }
    return [TEXT, table(rows_of(records), columns)]


def figures(record: Record) -> Figures:
    """Draw loss and accuracy over depth, the mean over seeds."""
    from stagecost.report.charts import Axis, Series, line_chart

    kinds = {"loss": ("losses", "loss L_k"), "accuracy": ("accuracies", "accuracy of y_k (%)")}
    charts = {}
    for name, (key, title) in kinds.items():
        series = []
        for row in grouped(record["rows"], "arm"):
            means = map(statistics.mean, zip(*row[key], strict=True))
            series.append(Series(NAMES.get(row["arm"], str(row["arm"])), list(enumerate(means))))
        starts, x = record["rows"][0]["stage_starts"], Axis("depth k (blocks)")
        charts[name] = line_chart(
            series, x=x, y=Axis(title), summary=f"{title} over depth k", stage_starts=starts
        )
    return charts


LOSS_TRAJECTORY = Experiment(
    name="loss-trajectory",
    title="Loss over depth",
    datasets={"cpu": ("cifar10",), "gpu": ("cifar10",), "quick": ("digits",)},
    run=run,
    section=section,
    trainings=trainings,
    figures=figures,
)
