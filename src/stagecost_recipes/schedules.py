"""The stage costs of the layer-pruning table: one for the full depth, one for the pruned network.

Which settings serve which end best is chosen on validation images. Both are functions of N and M, so
that a tier of another depth follows from the same rule.
"""

from collections.abc import Callable
from typing import Any

FULL_DEPTH_SCHEDULE = "full-depth"
"""Serves the row `stage_full`."""
PRUNED_SCHEDULE = "pruned"
"""Serves the row `stage_pruned`."""


def full_depth(num_blocks: int, sub_blocks: int) -> dict[str, Any]:
    """Weigh the outputs from y_M on, gamma·(N − M) = 1, and begin late."""
    return {
        "gamma": 1 / (num_blocks - sub_blocks),
        "first_depth": sub_blocks,
        "gamma_schedule": "late",
    }


def pruned(num_blocks: int, sub_blocks: int) -> dict[str, Any]:
    """Weigh the outputs from y_M on, gamma·(N − M) = 1, and begin late."""
    return {
        "gamma": 1 / (num_blocks - sub_blocks),
        "first_depth": sub_blocks,
        "gamma_schedule": "late",
    }


SCHEDULES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    FULL_DEPTH_SCHEDULE: full_depth,
    PRUNED_SCHEDULE: pruned,
}
"""Name → settings by flag name, from N and M."""
