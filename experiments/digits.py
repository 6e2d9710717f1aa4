"""What the experiments about theory share: short trainings on digits, and what is measured of them.

Depth is measured in two ways, both on the images that were trained on, since the theory is about them:
`needed_by_loss`, the blocks behind which the loss no longer falls, and `active_blocks`, those that still
move the state.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from experiments.recipes import Settings
from experiments.records import Row
from experiments.runner import Context, Tier
from experiments.trainings import Training, trained_run
from stagecost.objective import squared_weight_norms
from stagecost.trajectory import loss_trajectory

TOLERANCE = 0.05
"""How much more loss than the terminal one, in nats, an output may have and count as good enough."""
THRESHOLD = 0.1
"""A block whose ‖F_k(x_k)‖/‖x_k‖ is above this is active."""


def base(tier: Tier, epochs: int) -> Settings:
    """Return what all trainings have in common."""
    return {
        "model": "homogeneous",
        "width": 8,
        "batch_size": 64,
        "val_fraction": 0.2,
        "normalize_objective": True,
        "sampled_depths": 0,
        "device": "cpu",
        "epochs": epochs if tier == "cpu" else 1,
        **({} if tier == "cpu" else {"limit_train": 400}),
    }


@dataclass(frozen=True)
class Measured:
    """What is measured of a training.

    Attributes:
        losses: L_0 … L_N of the training images.
        squared_norms: ‖w_F,k‖².
        residual_ratios: ‖F_k(x_k)‖/‖x_k‖ of the training images.
        val_accuracies: percent, of y_0 … y_N on validation images.
    """

    losses: list[float]
    squared_norms: list[float]
    residual_ratios: list[float]
    val_accuracies: list[float]

    def to_json(self) -> Row:
        """Return plain types for JSON."""
        return asdict(self)


def measured(context: Context, name: str, settings: Settings, seed: int) -> Measured:
    """Train, or find the run in the work folder done, and measure it."""
    done = trained_run(context, name, Training(settings), seed)
    trained = done.open()
    trajectory = loss_trajectory(trained.network, trained.batches("train"), loss=trained.loss)
    norms = squared_weight_norms(trained.network)
    ratios = list(trajectory.residual_ratios)
    return Measured(list(trajectory.losses), norms, ratios, done.val_accuracies)


def needed_by_loss(losses: Sequence[float], tolerance: float = TOLERANCE) -> int:
    """Return the least M ≥ 1 with L_M ≤ L_N + tolerance."""
    return next(m for m in range(1, len(losses)) if losses[m] <= losses[-1] + tolerance)


def active_blocks(residual_ratios: Sequence[float], threshold: float = THRESHOLD) -> int:
    """Count the blocks whose ‖F_k(x_k)‖/‖x_k‖ is above the threshold."""
    return sum(ratio > threshold for ratio in residual_ratios)
