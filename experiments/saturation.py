"""How many blocks stay active, and how many are needed, as a network is made deeper.

Command     python -m experiments run saturation
Machine     the record names it; one thread
Runtime     about a quarter of an hour on one core
Seeds       0, 1, 2

Digits, homogeneous blocks of width 8, N = 6, 12, 24, 48, normalised objective, one lambda: with
c = gamma·N = 1 at every N, with gamma = 1/12 at every N, and plainly. What is measured is said in
`experiments.digits`. Only training and validation images are read.
"""

import statistics
from collections.abc import Sequence
from itertools import product
from typing import Any

from experiments.digits import THRESHOLD, TOLERANCE, active_blocks, base, measured, needed_by_loss
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Column, grouped, spread, table
from stagecost.report.charts import Axis, Chart, Series, line_chart

SIZES: dict[Tier, tuple[int, ...]] = {"cpu": (6, 12, 24, 48), "quick": (2, 3)}
WEIGHT_DECAY = 1e-2
TEXT = """\
Digits, homogeneous networks of N blocks of width 8, normalised objective, 15 epochs. Active and needed blocks as
above: mean (of each seed)."""
CONSTANT_SHARE, CONSTANT_GAMMA, PLAIN = "gamma·N = 1", "gamma = 1/12", "plain"


def run(context: Context) -> dict[str, Any]:
    """Train and measure, one seed of everything first."""
    kinds = product(context.seeds, SIZES[context.tier], (CONSTANT_SHARE, CONSTANT_GAMMA, PLAIN))
    runs = [_measured(context, training, size, seed) for seed, size, training in kinds]
    return {"tolerance": TOLERANCE, "threshold": THRESHOLD, "runs": runs}


def _measured(context: Context, training: str, num_blocks: int, seed: int) -> Row:
    gamma = {CONSTANT_SHARE: 1 / num_blocks, CONSTANT_GAMMA: 1 / 12, PLAIN: 0.0}[training]
    settings = {**base(context.tier, 15), "gamma": gamma, "weight_decay": WEIGHT_DECAY}
    found = measured(context, "saturation", {**settings, "num_blocks": num_blocks}, seed)
    return {
        "training": training,
        "num_blocks": num_blocks,
        "seed": seed,
        "gamma": gamma,
        "needed": needed_by_loss(found.losses),
        "active": active_blocks(found.residual_ratios),
        "val_accuracy": found.val_accuracies[-1],
        **found.to_json(),
    }


def section(records: Sequence[Record]) -> list[str]:
    """Return the table of the first record."""

    def counts(key: str) -> Column:
        return lambda row: f"{statistics.mean(row[key]):.1f} ({', '.join(map(str, row[key]))})"

    columns = {
        "training": "{training}",
        "N": "{num_blocks}",
        "active": counts("active"),
        "needed": counts("needed"),
        "validation accuracy": lambda row: spread(row["val_accuracy"]),
    }
    rows = grouped(records[0]["runs"], "training", "num_blocks")
    return [TEXT, table(sorted(rows, key=lambda row: (row["training"], row["num_blocks"])), columns)]


def figures(record: Record) -> dict[str, Chart]:
    """Draw the numbers of blocks over N, a curve for each way of training (means over the seeds)."""
    rows = grouped(record["runs"], "training", "num_blocks")
    names = dict.fromkeys(row["training"] for row in rows)
    sizes = sorted({float(row["num_blocks"]) for row in rows})
    charts = {}
    for kind, title in {"active": "active blocks", "needed": "needed blocks, by loss"}.items():
        series = [
            Series(name, [(r["num_blocks"], statistics.mean(r[kind])) for r in rows if r["training"] == name])
            for name in names
        ]
        axes = {"x": Axis("blocks N", ticks=tuple(sizes)), "y": Axis(title, zero=True)}
        charts[kind] = line_chart(series, **axes, summary=f"{title} over N")
    return charts


SATURATION = Experiment(
    name="saturation",
    title="Saturation",
    datasets={"cpu": ("digits",), "quick": ("digits",)},
    run=run,
    section=section,
    rows="runs",
    facts=("tolerance", "threshold"),
    figures=figures,
)
