"""A staged network, cut in the training: three stages of nine blocks, 3 + 3 + 4 of them kept.

Command     stagecost reproduce staged --tier cpu (or gpu) [--data-root DIR]
Machine     cpu: one core, one thread; gpu: one GPU of 16 GiB or more
Runtime     cpu: one to four minutes a run, four kinds of run; gpu: not run yet
Seeds       0, 1, 2

plain_full     gamma = 0, all blocks
plain_final    gamma = 0, a network of the final shape, trained alone
stage_cut      with a stage cost on the last stage, cut to the final shape after a fifth of the epochs,
               then trained on with gamma = 0
control_cut    gamma = 0, cut to the same shape at the same moment, trained on

The stage cost is on the last stage alone. Outputs before it skip the projections too, which no cut of
this kind does. (One trial on validation images of another seed, not recorded, agreed.)

All arms have the same number of epochs in all, so that both cuts cost a fraction of plain_full's
operations. Test images are read once all runs are trained.
"""

from typing import Any

from stagecost_recipes.experiment import Context, Experiment, Parts, Row, Tier
from stagecost_recipes.rows import row_of_runs
from stagecost_recipes.runs import Run, trained_run
from stagecost_recipes.schedules import normalized_stage_cost
from stagecost_recipes.tiers import SEEDS, base_recipe

BLOCKS: dict[Tier, tuple[list[int], list[int]]] = {
    "cpu": ([9, 9, 9], [3, 3, 4]),
    "gpu": ([18, 18, 18], [6, 6, 7]),
}
"""Blocks of each stage, before and after the cut."""
WIDTHS: dict[Tier, list[int]] = {"cpu": [8, 16, 32], "gpu": [16, 32, 64]}
CUT_SHARE = 0.2
"""Part of the epochs after which blocks leave."""
STAGE_WEIGHT = 0.3
"""Σ gamma·c_k of the stage cost until the cut; it was not tuned."""
ARMS = {
    "plain_full": "plain",
    "plain_final": "plain-final",
    "stage_cut": "stage-cut",
    "control_cut": "plain-cut",
}
"""Arm → kind of training."""


def trainings(tier: Tier, dataset: str) -> dict[str, dict[str, Any]]:
    """Return the settings of each kind of training."""
    base = base_recipe(tier, dataset)
    shared = {key: value for key, value in base.items() if key not in {"num_blocks", "width"}}
    before, after = BLOCKS[tier]
    plain = {**shared, "model": "staged", "blocks_per_stage": before, "widths": WIDTHS[tier]}
    cut = {"cut_at": f"{max(1, round(CUT_SHARE * base['epochs']))}:{'+'.join(map(str, after))}"}
    stage = {
        **normalized_stage_cost(STAGE_WEIGHT / before[-1], before[-1]),
        "first_depth": sum(before[:-1]),
        "plain_after_cuts": True,
    }
    return {
        "plain": plain,
        "plain-final": {**plain, "blocks_per_stage": after},
        "stage-cut": {**plain, **stage, **cut},
        "plain-cut": {**plain, **cut},
    }


def run(context: Context) -> list[Row]:
    """Train every kind with every seed, then read the test images."""
    kinds = trainings(context.tier, context.dataset)
    found: dict[str, list[Run]] = {kind: [] for kind in kinds}
    for seed in context.seeds:
        for kind, settings in kinds.items():
            found[kind].append(trained_run(context, f"staged-{kind}", settings, seed))
    context.report(f"{context.dataset}: test images")
    # The paper cuts homogeneous networks alone, so its figures stand beside none of these.
    return [{**row_of_runs(context, arm, found[kind]), "paper": None} for arm, kind in ARMS.items()]


def parts(rows: list[Row]) -> Parts:
    """Return the rows, and how far the cut network is from both plain ones."""
    by_arm = {row["arm"]: row for row in rows}
    cut, full = by_arm["stage_cut"], by_arm["plain_full"]
    differences = {
        f"to_{arm}": cut["mean"] - by_arm[arm]["mean"]
        for arm in ("plain_full", "plain_final", "control_cut")
    }
    fewer = 1 - cut["macs"] / full["macs"]
    return {
        "rows": rows,
        "differences": [{"dataset": full["dataset"], **differences, "macs_saved": fewer}],
    }


STAGED = Experiment(
    name="staged",
    title="A staged network cut in the training: test accuracy in percent",
    datasets={"cpu": ("cifar10",), "gpu": ("cifar10",)},
    seeds=SEEDS,
    run=run,
    settings=trainings,
    parts=parts,
)
