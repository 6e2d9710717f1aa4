"""Theorem 3.1 in numbers: J_N of a trained network against the bound from networks of M blocks.

Command     stagecost reproduce bound --tier cpu (or gpu) [--data-root DIR]
Machine     cpu: one core, one thread; gpu: one GPU of 16 GiB or more
Runtime     cpu: one to three minutes a run, five runs a seed; gpu: not run yet
Seeds       0, 1, 2

ResNet-N and every SubResNet-M are trained alone by the same recipe, with the paper's uniform, constant
stage cost, gamma = 1/N, and without augmentation, as the theorem speaks of the images that the training
minimises over. All losses are those of the training images in eval mode. The theorem assumes that w^N is
optimal, so where the bound does not hold, optimisation fell short; and so it may have done for the
SubResNet-M, which loosens the bound.
"""

from collections.abc import Mapping
from typing import Any

from stagecost.verbs.bound import bound_of_runs
from stagecost_recipes.experiment import Context, Experiment, Row, Tier
from stagecost_recipes.runs import trained_run
from stagecost_recipes.tiers import SEEDS, base_recipe

BOUND_BLOCKS: dict[Tier, tuple[int, ...]] = {"cpu": (2, 4, 6, 8), "gpu": (6, 12, 24, 36)}
"""The M that are trained alone."""


def trainings(tier: Tier, dataset: str) -> dict[str, dict[str, Any]]:
    """Return the settings of ResNet-N and of each SubResNet-M."""
    plain = base_recipe(tier, dataset)
    full = {**plain, "gamma": 1 / plain["num_blocks"], "augment": "none"}
    subs = {f"blocks-{m}": {**full, "num_blocks": m} for m in BOUND_BLOCKS[tier]}
    return {f"blocks-{full['num_blocks']}": full, **subs}


def run(context: Context) -> list[Row]:
    """Train what is missing, and compute both sides for every seed and M."""
    kinds = trainings(context.tier, context.dataset)
    rows = []
    for seed in context.seeds:
        full, *subs = (trained_run(context, name, kinds[name], seed) for name in kinds)
        context.report(f"{context.dataset}: losses of the training images, seed {seed}")
        others = [str(sub.folder) for sub in subs]
        found = bound_of_runs(str(full.folder), others, device=full.settings["device"])
        rows += [_row(context.dataset, seed, found, entry) for entry in found["bounds"]]
    return rows


def _row(dataset: str, seed: int, found: Mapping[str, Any], entry: Mapping[str, Any]) -> Row:
    return {
        "dataset": dataset,
        "num_blocks": found["num_blocks"],
        "sub_blocks": entry["num_blocks"],
        "objective": found["objective"],
        "right_hand_side": entry["right_hand_side"],
        "holds": entry["holds"],
        "tightness": entry["tightness"],
        "normalized_loss": found["normalized_loss"],
        "normalized_bound": entry["normalized_bound"],
        "predicted_blocks": found["predicted_blocks"],
        "gamma": found["gamma"],
        "weight_decay": found["weight_decay"],
        "seed": seed,
    }


BOUND = Experiment(
    name="bound",
    title="Theorem 3.1: J_N against its bound, on the training images",
    datasets={"cpu": ("mnist", "cifar10"), "gpu": ("mnist", "cifar10")},
    seeds=SEEDS,
    run=run,
    settings=trainings,
    row_keys=frozenset({"dataset", "num_blocks", "sub_blocks", "objective", "right_hand_side", "holds"})
    | {"tightness", "normalized_loss", "normalized_bound", "predicted_blocks", "seed"},
)
