"""What `stagecost tune` varies, and what a trained trial is worth. Nothing heavy is imported here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stagecost.training.settings import VariantSettings

if TYPE_CHECKING:
    import optuna

Objective = Literal["full", "pruned"]
"""Which accuracy stands against the depth: that of all blocks, or that of the needed ones alone."""

STRENGTHS = (0.03, 3.0)
"""Limits of c, the weight of the whole stage cost; sampled in logarithm."""
DECAYS = (1e-5, 1e-2)
"""Limits of lambda; sampled in logarithm."""
SCHEDULES = ("constant", "late")
SEARCHED = ("weight_decay", "gamma_schedule", "first_depth")
"""Settings that are varied beside gamma, unless they are given."""


@dataclass(frozen=True)
class Score:
    """What the validation images say of a trial.

    Attributes:
        needed_blocks: the least M ≥ 1 whose accuracy is within the tolerance of the terminal one.
        val_accuracy: percent, of all blocks.
        pruned_val_accuracy: percent, of the needed blocks alone.
    """

    needed_blocks: int
    val_accuracy: float
    pruned_val_accuracy: float

    def values(self, objective: Objective) -> tuple[float, float]:
        """Return what is minimised and what is maximised."""
        accuracy = self.val_accuracy if objective == "full" else self.pruned_val_accuracy
        return float(self.needed_blocks), accuracy


def score(accuracies: Sequence[float], tolerance: float) -> Score:
    """Return the worth of a trial from the validation accuracies of y_0 … y_N, in percent."""
    from stagecost.trajectory import needed_blocks

    needed = needed_blocks(accuracies, tolerance)
    return Score(needed, accuracies[-1], accuracies[needed])


def sampled_settings(trial: "optuna.Trial", given: Mapping[str, Any], num_blocks: int) -> dict[str, Any]:
    """Return what a trial varies, by setting name; the first trial is plain training.

    A trial that was interrupted gets the values that it had.

    Args:
        trial: of the study.
        given: settings that the user gave, which are not varied.
        num_blocks: N.
    """
    if trial.number == 0:
        return {"gamma": 0.0}
    chosen: dict[str, Any] = {}
    strength = trial.suggest_float("c", *STRENGTHS, log=True)
    if "weight_decay" not in given:
        chosen["weight_decay"] = trial.suggest_float("weight_decay", *DECAYS, log=True)
    if "gamma_schedule" not in given:
        chosen["gamma_schedule"] = trial.suggest_categorical("gamma_schedule", SCHEDULES)
    if "first_depth" not in given:
        chosen["first_depth"] = trial.suggest_int("first_depth", 0, num_blocks // 3)
    # c is the weight of all stage costs together, however many depths bear one, and how much.
    names = ("first_depth", "depth_weights")
    variant = VariantSettings(**{k: v for k, v in {**given, **chosen}.items() if k in names})
    return {**chosen, "gamma": strength / variant.total_weight(num_blocks)}
