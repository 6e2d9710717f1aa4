"""Theorem 3.1 in numbers: J_N of a trained network against the bound from networks of M blocks.

Command     python -m experiments run bound --tier cpu [--data-root DIR]
Machine     cpu: one core, one thread; gpu: one GPU of 16 GiB or more
Runtime     cpu: one to three minutes a run, five runs a seed
Seeds       0, 1, 2

ResNet-N and every SubResNet-M are trained alone by the same recipe, with the paper's uniform, constant
stage cost, gamma = 1/N, and without augmentation, as the theorem speaks of the images that the training
minimises over. All losses are those of the training images in eval mode. The theorem assumes that w^N is
optimal, so where the bound does not hold, optimisation fell short; and so it may have done for the
SubResNet-M, which loosens the bound.
"""

from collections.abc import Sequence
from typing import Any

from experiments.recipes import base_recipe
from experiments.records import Record
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Columns, rows_of, table
from experiments.trainings import Training, runs_of
from stagecost.runs.bound import bound

SUB_BLOCKS: dict[Tier, tuple[int, ...]] = {"cpu": (2, 4, 6, 8), "gpu": (6, 12, 24, 36), "quick": (1, 2)}
"""The M that are trained alone."""
TEXT = """\
J_N of a network with a uniform stage cost, gamma = 1/N, against the bound from networks of M blocks
that were trained alone by the same recipe; losses of the training images. Where J_N is above its bound,
optimisation fell short: the training of N blocks has not found weights as good as those of M blocks
followed by blocks that do nothing. The corollary compares the losses over 1 + gamma·N, and is proved
for lambda = 0."""


def trainings(tier: Tier, dataset: str) -> dict[str, Training]:
    """Return ResNet-N, and each SubResNet-M."""
    plain = base_recipe(tier, dataset)
    full = {**plain, "gamma": 1 / plain["num_blocks"], "augment": "none"}
    sizes = (full["num_blocks"], *SUB_BLOCKS[tier])
    return {f"blocks-{m}": Training({**full, "num_blocks": m}) for m in sizes}


def run(context: Context) -> dict[str, Any]:
    """Train what is missing, and compute both sides for every seed and M."""
    runs = runs_of(context, trainings(context.tier, context.dataset))
    rows = []
    for seed, (full, *subs) in zip(context.seeds, zip(*runs.values(), strict=True), strict=True):
        device = full.training.settings["device"]
        found = bound(full.folder, [sub.folder for sub in subs], device=device).to_json()
        shared = (
            "num_blocks",
            "objective",
            "normalized_loss",
            "predicted_blocks",
            "gamma",
            "weight_decay",
        )
        own = ("right_hand_side", "holds", "tightness", "normalized_bound")
        for entry in found["bounds"]:
            row = {key: found[key] for key in shared} | {key: entry[key] for key in own}
            rows.append(
                {"dataset": context.dataset, "sub_blocks": entry["num_blocks"], **row, "seed": seed}
            )
    return {"rows": rows}


def section(records: Sequence[Record]) -> list[str]:
    """Return the table."""
    columns: Columns = {
        "tier, data": "{record}",
        "seed": "{seed}",
        "M of N": "{sub_blocks} of {num_blocks}",
        "J_N": "{objective:.4f}",
        "right-hand side": "{right_hand_side:.4f}",
        "J_N ≤ it": lambda row: "yes" if row["holds"] else "no, optimisation fell short",
        "J_N / it": "{tightness:.3f}",
        "corollary": "{normalized_loss:.4f} against {normalized_bound:.4f}",
        "predicted M": "{predicted_blocks}",
    }
    return [TEXT, table(rows_of(records), columns)]


BOUND = Experiment(
    name="bound",
    title="Theorem 3.1",
    datasets={"cpu": ("mnist", "cifar10"), "gpu": ("mnist", "cifar10"), "quick": ("digits",)},
    run=run,
    section=section,
    trainings=trainings,
)
