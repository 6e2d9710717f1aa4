"""The stage costs of the layer-pruning table: one for the full depth, one for the pruned network.

Which settings serve which end was chosen on validation images of other seeds than those of the
recorded comparisons (`scripts/schedule_trials.py`). Both are functions of N and M, so that a tier of
another depth follows from the same rule.
"""

from collections.abc import Callable
from typing import Any

from stagecost.training.settings import TrainingSettings

FULL_DEPTH_SCHEDULE = "full-depth"
"""Serves the row `stage_full`."""
PRUNED_SCHEDULE = "pruned"
"""Serves the row `stage_pruned`."""


def normalized_stage_cost(gamma: float, outputs: int) -> dict[str, Any]:
    """Return a normalised stage cost on so many outputs whose weight decay is that of plain training.

    J/(1 + c) with c = Σ gamma·c_k has the decay lambda/(1 + c) too. With lambda·(1 + c) it is that of
    the plain arms, so that what differs is the stage cost and not the decay.
    """
    decay = TrainingSettings.weight_decay * (1 + gamma * outputs)
    return {"gamma": gamma, "normalize_objective": True, "weight_decay": decay}


def full_depth(num_blocks: int, sub_blocks: int) -> dict[str, Any]:
    """Press late and little, on the last third of the outputs alone: Σ gamma·c_k = 0.1."""
    first = 2 * num_blocks // 3
    return {
        "gamma": 0.1 / (num_blocks - first),
        "first_depth": first,
        "gamma_schedule": "late",
        "normalize_objective": True,
    }


def pruned(num_blocks: int, sub_blocks: int) -> dict[str, Any]:
    """Press hard on y_M alone, once features have formed: gamma = 30 from 30 % of the training on."""
    return {
        **normalized_stage_cost(gamma=30.0, outputs=1),
        "first_depth": sub_blocks,
        "depth_weights": "first",
        "gamma_schedule": "early",
    }


SCHEDULES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    FULL_DEPTH_SCHEDULE: full_depth,
    PRUNED_SCHEDULE: pruned,
}
"""Name → settings by flag name, from N and M."""
