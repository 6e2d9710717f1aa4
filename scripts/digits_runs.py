"""What the scripts about theory share: short trainings on digits, and what is measured of them.

Depth is measured in two ways, both on the images that were trained on, since the theory is about them:
`needed_by_loss`, the blocks behind which the loss no longer falls, and `active_blocks`, those that still
move the state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOLERANCE = 0.05
"""How much more loss than the terminal one, in nats, an output may have and count as good enough."""
THRESHOLD = 0.1
"""A block whose ‖F_k(x_k)‖/‖x_k‖ is above this is active."""

BASE: dict[str, Any] = {
    "data": "digits",
    "model": "homogeneous",
    "width": 8,
    "batch_size": 64,
    "val_fraction": 0.2,
    "normalize_objective": True,
    "device": "cpu",
    "fused": "no",
}


def trained(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train by `BASE` and these settings, or find the run in the folder done, and measure it.

    Returns:
        `losses` (L_0 … L_N), `squared_norms` (‖w_F,k‖²) and `residual_ratios` on the training images,
        and `val_accuracies` of y_0 … y_N in percent.
    """
    from stagecost.norms import squared_weight_norms
    from stagecost.training.loop import train
    from stagecost.training.trained import open_trained
    from stagecost.trajectory import loss_trajectory

    train({**BASE, **settings}, folder, resume=True)
    run = open_trained(folder, device="cpu")
    found = loss_trajectory(run.network, run.batches("train"), loss=run.loss)
    held_out = loss_trajectory(run.network, run.batches("val"), loss=run.loss)
    return {
        "losses": list(found.losses),
        "squared_norms": squared_weight_norms(run.network),
        "residual_ratios": list(found.residual_ratios),
        "val_accuracies": list(held_out.accuracies),
    }


def needed_by_loss(losses: Sequence[float], tolerance: float = TOLERANCE) -> int:
    """Return the least M ≥ 1 with L_M ≤ L_N + tolerance."""
    return next(m for m in range(1, len(losses)) if losses[m] <= losses[-1] + tolerance)


def active_blocks(residual_ratios: Sequence[float], threshold: float = THRESHOLD) -> int:
    """Count the blocks whose ‖F_k(x_k)‖/‖x_k‖ is above the threshold."""
    return sum(ratio > threshold for ratio in residual_ratios)
