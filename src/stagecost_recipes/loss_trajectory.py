"""The paper's figure: loss and accuracy over the depth of a staged network, with and without stage cost.

Command     stagecost reproduce loss-trajectory --tier cpu (or gpu) [--data-root DIR]
Machine     cpu: one core, one thread; gpu: one GPU of 16 GiB or more
Runtime     cpu: about four minutes a run, two kinds of run; gpu: not run yet
Seeds       0, 1, 2

The paper shows plateaus within a stage and jumps where the next one begins. Both are measured here: the
mean fall L_k − L_{k+1} over the blocks that begin a later stage (`jump`) and over all blocks that begin
no stage (`plateau`). The first block of the first stage is in neither: before it there is no plateau.
The stage cost is the paper's, uniform and constant, gamma = 1/N. Losses are those of the test images,
from which nothing is chosen.
"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from stagecost.trajectory import Trajectory, loss_trajectory
from stagecost_recipes.experiment import Context, Experiment, Row, Tier
from stagecost_recipes.runs import Run, trained_run
from stagecost_recipes.tiers import SEEDS, base_recipe
from stagecost_recipes.trajectory_figures import trajectory_figures

STAGED: dict[Tier, dict[str, Any]] = {
    "cpu": {"model": "staged", "blocks_per_stage": [4, 4, 4], "widths": [16, 32, 64]},
    "gpu": {"model": "staged", "blocks_per_stage": [18, 18, 18], "widths": [16, 32, 64]},
}
_HOMOGENEOUS = ("num_blocks", "width")


def trainings(tier: Tier, dataset: str) -> dict[str, dict[str, Any]]:
    """Return the settings of plain training, and of training with a stage cost."""
    shared = {key: v for key, v in base_recipe(tier, dataset).items() if key not in _HOMOGENEOUS}
    plain = {**shared, **STAGED[tier], "gamma": 0.0}
    return {"plain": plain, "stage": {**plain, "gamma": 1 / sum(STAGED[tier]["blocks_per_stage"])}}


def run(context: Context) -> list[Row]:
    """Train what is missing, then look at the test images."""
    kinds = trainings(context.tier, context.dataset)
    runs = {
        (arm, seed): trained_run(context, arm, settings, seed)
        for seed in context.seeds
        for arm, settings in kinds.items()
    }
    context.report(f"{context.dataset}: loss over depth of the test images")
    return [_row(context.dataset, arm, seed, runs[arm, seed]) for arm in kinds for seed in context.seeds]


def _row(dataset: str, arm: str, seed: int, trained: Run) -> Row:
    opened = trained.open()
    found = loss_trajectory(opened.network, opened.batches("test"), loss=opened.loss)
    return {
        "dataset": dataset,
        "arm": arm,
        "seed": seed,
        "num_blocks": found.num_blocks,
        "stage_starts": list(found.stage_starts),
        **falls(found),
        "losses": list(found.losses),
        "accuracies": list(found.accuracies),
        "seconds": trained.result.seconds,
    }


def falls(found: Trajectory) -> Mapping[str, float]:
    """Return the mean fall of the loss within stages, `plateau`, and where later ones begin, `jump`."""
    fall = [before - after for before, after in pairwise(found.losses)]
    later = set(found.stage_starts[1:])
    within = [value for k, value in enumerate(fall) if k not in later and k > 0]
    return {
        "plateau": statistics.mean(within),
        "jump": statistics.mean(fall[k] for k in sorted(later)),
    }


def figures(rows: Sequence[Row]) -> dict[str, str]:
    """Draw loss and accuracy over depth, the mean over seeds."""
    return trajectory_figures(
        {
            name: {
                arm: _means([row[name] for row in rows if row["arm"] == arm])
                for arm in dict.fromkeys(row["arm"] for row in rows)
            }
            for name in ("losses", "accuracies")
        },
        rows[0]["stage_starts"],
    )


def _means(curves: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.mean(values) for values in zip(*curves, strict=True)]


LOSS_TRAJECTORY = Experiment(
    name="loss-trajectory",
    title="Loss over depth of a staged network, test images",
    datasets={"cpu": ("cifar10",), "gpu": ("cifar10",)},
    seeds=SEEDS,
    run=run,
    settings=trainings,
    figures=figures,
    row_keys=frozenset({"dataset", "arm", "seed", "num_blocks", "stage_starts", "plateau", "jump"})
    | {"losses", "accuracies"},
)
