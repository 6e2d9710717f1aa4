"""The paper's table: full depth and pruned network, with and without a stage cost.

Command     python -m experiments run layer-pruning --tier cpu [--data-root DIR]
Machine     cpu: one core, one thread; gpu: one GPU of 16 GiB or more
Runtime     cpu: one to three minutes a run, four kinds of run
Seeds       0, 1, 2

plain_full     gamma = 0, N blocks
plain_sub      gamma = 0, M blocks, trained alone
stage_full     with a stage cost, N blocks
stage_pruned   the first M blocks and the head of such a network, not trained on

The two stage rows come from two schedules of the stage cost (`experiments.contrib.schedules`); what each
does at its other end is kept in `other_rows`.
"""

from collections.abc import Sequence
from typing import Any

from experiments.contrib.schedules import full_depth_training, pruned_training
from experiments.recipes import SUB_BLOCKS, base_recipe
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Columns, accuracy, rows_of, table
from experiments.trainings import Training, paper_difference, row_of_runs, runs_of
from stagecost.cut import Cut

SERVED = {"stage_full": "full-depth", "stage_pruned": "pruned"}
"""Arm → the schedule that serves it."""
TEXT = """\
`stage_pruned` is `stage_full` cut to its first blocks, without training after it. Each schedule of the
stage cost is shown at both ends; the ones in brackets are not those that the differences compare. The
paper's figures are of networks of 54 and 12 blocks by a recipe that is not known: on the cpu tier, of
other networks than these. See [docs/reproduce.md](../docs/reproduce.md)."""


def trainings(tier: Tier, dataset: str) -> dict[str, Training]:
    """Return each kind of training: plain, plain with M blocks, each schedule."""
    plain, m = base_recipe(tier, dataset), SUB_BLOCKS[tier]
    return {
        "plain": Training(plain),
        "plain-sub": Training({**plain, "num_blocks": m}),
        "full-depth": full_depth_training(plain),
        "pruned": pruned_training(plain, m),
    }


def run(context: Context) -> dict[str, Any]:
    """Train every kind with every seed, then read the test images."""
    runs, cut = runs_of(context, trainings(context.tier, context.dataset)), SUB_BLOCKS[context.tier]
    rows = [row_of_runs(context, "plain_full", runs["plain"])]
    rows.append(row_of_runs(context, "plain_sub", runs["plain-sub"]))
    for schedule in SERVED.values():
        for arm, kept in {"stage_full": None, "stage_pruned": Cut.first(cut)}.items():
            rows.append(row_of_runs(context, arm, runs[schedule], kept, schedule=schedule))
    served = [row for row in rows if row.get("schedule") == SERVED.get(row["arm"])]
    other = [row for row in rows if row not in served]
    return {"rows": served, "other_rows": other, "differences": [differences(served)]}


def differences(rows: Sequence[Row]) -> Row:
    """Return by how many points the stage rows are above the plain ones, and above them in the paper."""
    mean, dataset = {row["arm"]: row["mean"] for row in rows}, rows[0]["dataset"]
    return {
        "dataset": dataset,
        "full_depth": mean["stage_full"] - mean["plain_full"],
        "pruned": mean["stage_pruned"] - mean["plain_sub"],
        "paper_full_depth": paper_difference(dataset, "stage_full", "plain_full"),
        "paper_pruned": paper_difference(dataset, "stage_pruned", "plain_sub"),
    }


def section(records: Sequence[Record]) -> list[str]:
    """Return the two tables."""
    rows = []
    for record in records:
        shown = [(row, "{}") for row in rows_of([record])]
        shown += [(row, "({})") for row in rows_of([record], "other_rows")]
        for row, form in shown:
            name = f"{row['arm']}, {row['schedule']}" if row.get("schedule") else row["arm"]
            rows.append({**row, "shown": form.format(name)})
    columns: Columns = {
        "tier, data": "{record}",
        "arm": "{shown}",
        "blocks": "{num_blocks}",
        "accuracy": accuracy,
    }
    points: Columns = {
        "tier, data": "{record}",
        "stage_full − plain_full": "{full_depth:+.2f}",
        "in the paper": "{paper_full_depth:+.2f}",
        "stage_pruned − plain_sub": "{pruned:+.2f}",
        "there": "{paper_pruned:+.2f}",
    }
    return [
        TEXT,
        table(rows, {**columns, "paper": "{paper:.2f}", "seconds of training": "{seconds:.0f}"}),
        "Differences of the means, in points:",
        table(rows_of(records, "differences"), points),
    ]


LAYER_PRUNING = Experiment(
    name="layer-pruning",
    title="Layer pruning",
    datasets={
        "cpu": ("mnist", "fashion-mnist", "cifar10"),
        "gpu": ("mnist", "cifar10", "cifar100"),
        "quick": ("digits",),
    },
    run=run,
    section=section,
    trainings=trainings,
)
