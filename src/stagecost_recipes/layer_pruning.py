"""The paper's table: full depth and pruned network, with and without a stage cost.

Command     stagecost reproduce layer-pruning --tier cpu (or gpu) [--data-root DIR]
Machine     cpu: one core, one thread; gpu: one GPU of 16 GiB or more
Runtime     cpu: one to three minutes a run, four kinds of run; gpu: not run yet
Seeds       0, 1, 2

plain_full     gamma = 0, N blocks
plain_sub      gamma = 0, M blocks, trained alone
stage_full     with a stage cost, N blocks
stage_pruned   the first M blocks and the head of such a network, not trained on

The two stage rows may come from two schedules of the stage cost (`stagecost_recipes.schedules`); what
each schedule does at its other end is kept in `other_rows`. Test images are read once all runs of a data
set are trained.
"""

from collections.abc import Sequence
from typing import Any

from stagecost_recipes.experiment import Context, Experiment, Parts, Row, Tier
from stagecost_recipes.paper import paper_difference
from stagecost_recipes.rows import row_of_runs
from stagecost_recipes.runs import Run, trained_run
from stagecost_recipes.schedules import FULL_DEPTH_SCHEDULE, PRUNED_SCHEDULE, SCHEDULES
from stagecost_recipes.tiers import SEEDS, SUB_BLOCKS, base_recipe

SCHEDULE_OF_ARM = {"stage_full": FULL_DEPTH_SCHEDULE, "stage_pruned": PRUNED_SCHEDULE}
ARMS = ("plain_full", "plain_sub", *SCHEDULE_OF_ARM)


def trainings(tier: Tier, dataset: str) -> dict[str, dict[str, Any]]:
    """Return the settings of each kind of training: plain, plain with M blocks, each schedule."""
    plain, sub_blocks = base_recipe(tier, dataset), SUB_BLOCKS[tier]
    return {
        "plain": plain,
        "plain-sub": {**plain, "num_blocks": sub_blocks},
        **{
            name: {**plain, **SCHEDULES[name](plain["num_blocks"], sub_blocks)}
            for name in dict.fromkeys(SCHEDULE_OF_ARM.values())
        },
    }


def run(context: Context) -> list[Row]:
    """Train every kind with every seed, then read the test images."""
    kinds = trainings(context.tier, context.dataset)
    found: dict[str, list[Run]] = {kind: [] for kind in kinds}
    for seed in context.seeds:
        for kind, settings in kinds.items():
            name = kind if kind.startswith("plain") else "stage"
            found[kind].append(trained_run(context, name, settings, seed))
    context.report(f"{context.dataset}: test images")
    sub_blocks = SUB_BLOCKS[context.tier]
    rows = [
        row_of_runs(context, "plain_full", found["plain"]),
        row_of_runs(context, "plain_sub", found["plain-sub"]),
    ]
    for schedule in list(kinds)[2:]:
        rows.append(row_of_runs(context, "stage_full", found[schedule], schedule=schedule))
        rows.append(row_of_runs(context, "stage_pruned", found[schedule], sub_blocks, schedule=schedule))
    return rows


def parts(rows: list[Row]) -> Parts:
    """Sort the rows of one data set into the table's four, the schedules' other ends, differences."""
    table = [row for row in rows if row.get("schedule") == SCHEDULE_OF_ARM.get(row["arm"])]
    return {
        "rows": table,
        "other_rows": [row for row in rows if row not in table],
        "differences": [_differences(table)],
    }


def _differences(table: Sequence[Row]) -> Row:
    mean, dataset = {row["arm"]: row["mean"] for row in table}, table[0]["dataset"]
    return {
        "dataset": dataset,
        "full_depth": mean["stage_full"] - mean["plain_full"],
        "pruned": mean["stage_pruned"] - mean["plain_sub"],
        "paper_full_depth": paper_difference(dataset, "stage_full", "plain_full"),
        "paper_pruned": paper_difference(dataset, "stage_pruned", "plain_sub"),
    }


LAYER_PRUNING = Experiment(
    name="layer-pruning",
    title="Layer pruning: test accuracy in percent",
    datasets={
        "cpu": ("mnist", "fashion-mnist", "cifar10"),
        "gpu": ("mnist", "cifar10", "cifar100"),
    },
    seeds=SEEDS,
    run=run,
    settings=trainings,
    parts=parts,
)
