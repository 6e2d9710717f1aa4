"""A staged network, cut in the training: three stages of nine blocks, 3 + 3 + 4 of them kept.

Command     stagecost reproduce staged --tier cpu (or gpu) [--data-root DIR]
Machine     cpu: one core, one thread; gpu: one GPU of 16 GiB or more
Runtime     cpu: one to four minutes a run, five kinds of run; gpu: not run yet
Seeds       0, 1, 2

plain_full     gamma = 0, all blocks
plain_final    gamma = 0, a network of the final shape, trained alone
stage_cut      with a stage cost on the last stage, cut to the final shape after a fifth of the epochs,
               then trained on with gamma = 0
control_cut    gamma = 0, cut to the same shape at the same moment, trained on
vector_full    with a stage cost on the output of the final shape (a vector of depths), not cut
vector_pruned  cut from it to the final shape at the end, no training after the cut
plain_pruned   the same cut of plain_full

The stage cost of stage_cut is on the last stage alone. Outputs before it skip the projections too, which
no cut of this kind does. (One trial on validation images of another seed, not recorded, agreed.) That of
vector_full was chosen on validation images of another seed (`scripts/staged_trials.py`).

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
VECTOR_GAMMA = 1.0
"""gamma of the stage cost on the output of the final shape."""
ARMS = {
    "plain_full": "plain",
    "plain_final": "plain-final",
    "stage_cut": "stage-cut",
    "control_cut": "plain-cut",
    "vector_full": "vector",
    "vector_pruned": "vector",
    "plain_pruned": "plain",
}
"""Arm → kind of training."""
PRUNED = ("vector_pruned", "plain_pruned")
"""Arms that are cut when they are finished."""
COMPARED = ("stage_cut", "vector_pruned", "plain_pruned")
"""Arms whose differences from others are told."""


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
        "vector": {
            **plain,
            **normalized_stage_cost(VECTOR_GAMMA, 1),
            "depth_vector": after,
            "stage_loss": "distilled",
        },
    }


def run(context: Context) -> list[Row]:
    """Train every kind with every seed, then read the test images."""
    kinds = trainings(context.tier, context.dataset)
    found: dict[str, list[Run]] = {kind: [] for kind in kinds}
    for seed in context.seeds:
        for kind, settings in kinds.items():
            found[kind].append(trained_run(context, f"staged-{kind}", settings, seed))
    context.report(f"{context.dataset}: test images")
    after = BLOCKS[context.tier][1]
    rows = [
        row_of_runs(context, arm, found[kind], keep=after if arm in PRUNED else None)
        for arm, kind in ARMS.items()
    ]
    # The paper cuts homogeneous networks alone, so its figures stand beside none of these.
    return [{**row, "paper": None} for row in rows]


def parts(rows: list[Row]) -> Parts:
    """Return the rows, and how far the cut networks are from the others."""
    by_arm = {row["arm"]: row for row in rows}
    full = by_arm["plain_full"]
    differences = [
        {
            "dataset": full["dataset"],
            "arm": arm,
            **{
                f"to_{other}": by_arm[arm]["mean"] - by_arm[other]["mean"]
                for other in ("plain_full", "plain_final", "control_cut")
            },
            "macs_saved": 1 - by_arm[arm]["macs"] / full["macs"],
        }
        for arm in COMPARED
    ]
    return {"rows": rows, "differences": differences}


STAGED = Experiment(
    name="staged",
    title="A staged network cut in the training: test accuracy in percent",
    datasets={"cpu": ("cifar10",), "gpu": ("cifar10",)},
    seeds=SEEDS,
    run=run,
    settings=trainings,
    parts=parts,
)
