"""A staged network, cut in the training or at its end: 3 + 3 + 4 of three times nine blocks are kept.

Command     python -m experiments run staged --tier cpu [--data-root DIR]
Machine     cpu: one core, one thread; gpu: one GPU of 16 GiB or more
Runtime     cpu: one to four minutes a run, five kinds of run
Seeds       0, 1, 2

plain_full     gamma = 0, all blocks
plain_final    gamma = 0, a network of the final shape, trained alone
stage_cut      with a stage cost on the last stage, cut to the final shape after a fifth of the epochs,
               then trained on with gamma = 0
control_cut    gamma = 0, cut to the same shape at the same moment, trained on
vector_full    with a stage cost on the output of the final shape, not cut
vector_pruned  cut from it to the final shape at the end, no training after the cut
plain_pruned   the same cut of plain_full

The stage cost of stage_cut is on the last stage alone: outputs before it skip the projections too, which
no cut of this kind does. That of vector_full was chosen on validation images of another seed
(`show staged-trials`). All arms have the same number of epochs, so both cuts cost a fraction of
plain_full's operations.
"""

from collections.abc import Sequence
from typing import Any

from experiments.recipes import normalized_stage_cost, staged_recipe
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Column, Columns, accuracy, rows_of, table
from experiments.trainings import Training, row_of_runs, runs_of
from stagecost.cut import Cut

SHAPES: dict[Tier, tuple[list[int], list[int], list[int]]] = {
    "cpu": ([9, 9, 9], [3, 3, 4], [8, 16, 32]),
    "gpu": ([18, 18, 18], [6, 6, 7], [16, 32, 64]),
    "quick": ([3, 3], [1, 2], [4, 6]),
}
"""Blocks of each stage before and after the cut, and widths."""
CUT_SHARE = 0.2
"""Part of the epochs after which blocks leave."""
STAGE_WEIGHT = 0.3
"""Σ gamma·c_k of the stage cost until the cut; it was not tuned."""
ARMS = {
    "plain_full": "staged-plain",
    "plain_final": "staged-plain-final",
    "stage_cut": "staged-stage-cut",
    "control_cut": "staged-plain-cut",
    "vector_full": "staged-vector",
    "vector_pruned": "staged-vector",
    "plain_pruned": "staged-plain",
}
"""Arm → kind of training; those called pruned are cut when they are finished."""
COMPARED = ("stage_cut", "vector_pruned", "plain_pruned")
OTHERS = ("plain_full", "plain_final", "control_cut")
TEXT = """\
27 blocks in three stages, ten of them left: of `stage_cut` and `control_cut` after a fifth of the
epochs, of `vector_pruned` and `plain_pruned` at the end, without training after the cut. `vector_full`
has the stage cost on the output of the shape that is kept. MACs as parts of those of the plain, whole
network."""


def trainings(tier: Tier, dataset: str) -> dict[str, Training]:
    """Return each kind of training."""
    before, after, widths = SHAPES[tier]
    plain = staged_recipe(tier, dataset, {"blocks_per_stage": before, "widths": widths})
    shape = "+".join(map(str, after))
    cut = {"cut_at": f"{max(1, round(CUT_SHARE * plain['epochs']))}:{shape}"}
    stage = normalized_stage_cost(STAGE_WEIGHT / before[-1], before[-1])
    stage |= {"first_depth": sum(before[:-1]), "plain_after_cuts": True}
    vector = {**normalized_stage_cost(1.0, 1), "targets": [shape], "stage_loss": "distilled"}
    return {
        "staged-plain": Training(plain),
        "staged-plain-final": Training({**plain, "blocks_per_stage": after}),
        "staged-stage-cut": Training({**plain, **stage, **cut}),
        "staged-plain-cut": Training({**plain, **cut}),
        "staged-vector": Training({**plain, **vector}),
    }


def run(context: Context) -> dict[str, Any]:
    """Train every kind with every seed, then read the test images."""
    runs = runs_of(context, trainings(context.tier, context.dataset))
    after = Cut.stages(*SHAPES[context.tier][1])
    rows = []
    for arm, kind in ARMS.items():
        row = row_of_runs(context, arm, runs[kind], after if arm.endswith("pruned") else None)
        rows.append({**row, "paper": None})  # the paper cuts homogeneous networks alone
    return {"rows": rows, "differences": differences(rows)}


def differences(rows: Sequence[Row]) -> list[Row]:
    """Return how far the cut networks are from the others."""
    by_arm = {row["arm"]: row for row in rows}
    return [
        {
            "dataset": by_arm[arm]["dataset"],
            "arm": arm,
            **{f"to_{other}": by_arm[arm]["mean"] - by_arm[other]["mean"] for other in OTHERS},
            "macs_saved": 1 - by_arm[arm]["macs"] / by_arm["plain_full"]["macs"],
        }
        for arm in COMPARED
    ]


def section(records: Sequence[Record]) -> list[str]:
    """Return the two tables."""
    full = {record.name: record["rows"][0] for record in records}

    def part(key: str) -> Column:
        return lambda row: f"{row[key] / full[row['record']][key]:.2f}×"

    counts: Columns = {"blocks": "{num_blocks}", "accuracy": accuracy}
    costs: Columns = {"MACs": part("macs"), "MACs of training": part("training_macs")}
    points: Columns = {name: f"{{to_{name}:+.2f}}" for name in OTHERS}
    names: Columns = {"tier, data": "{record}", "arm": "{arm}"}
    return [
        TEXT,
        table(rows_of(records), {**names, **counts, **costs}),
        "Points of the cut networks above the others, differences of the means:",
        table(rows_of(records, "differences"), {**names, **points, "MACs saved": "{macs_saved:.0%}"}),
    ]


STAGED = Experiment(
    name="staged",
    title="A staged network, cut in the training",
    datasets={"cpu": ("cifar10",), "gpu": ("cifar10",), "quick": ("digits",)},
    run=run,
    section=section,
    trainings=trainings,
)
