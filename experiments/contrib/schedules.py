"""Stage costs whose gamma changes during the training; two of them serve the layer-pruning table.

By the ablation, what they gain over a uniform, constant stage cost is small or within the spread of the
seeds. The two of the table press for one end of the network each: late and little for the full depth,
hard on y_M alone for the pruned network (`show schedule-trials` has what was tried for them).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from experiments.trainings import Training
from stagecost.cut import Cut
from stagecost.losses import distilled
from stagecost.objective import StageCost
from stagecost.train.recipe import Moment
from stagecost.train.settings import TrainingSettings

Schedule = Literal["constant", "warmup", "early", "late", "falling"]


def gamma_factor(schedule: Schedule, progress: float) -> float:
    """Return the factor of gamma after a part of the training, from 0 to 1.

    "warmup" rises over the first half; "early" is 0 until 20 % and rises until 30 %, "late" is 0 until
    40 % and rises until 70 %, so that features form before depth is pressed on; "falling" goes from 1 to
    0 along a cosine.
    """
    match schedule:
        case "constant":
            return 1.0
        case "warmup":
            return min(1.0, 2 * progress)
        case "early":
            return min(1.0, max(0.0, (progress - 0.2) / 0.1))
        case "late":
            return min(1.0, max(0.0, (progress - 0.4) / 0.3))
        case "falling":
            return 0.5 * (1 + math.cos(math.pi * progress))


def hinged(output: Tensor, target: Tensor, terminal: Tensor) -> Tensor:
    """Punish what an output loses against the terminal one: mean of max(0, L_k − L_N) over samples."""
    losses = F.cross_entropy(output, target, reduction="none")
    return (losses - F.cross_entropy(terminal, target, reduction="none")).clamp_min(0).mean()


@dataclass(frozen=True)
class Scheduled:
    """A stage cost as a function of the moment, for `train(…, stage_cost=…)`.

    Attributes:
        gamma: the stage weight at full strength.
        cuts: whose outputs bear it.
        schedule: of gamma.
        factors: c_k of each; 1 if empty.
        stage_loss: what the outputs are punished for.
        normalized: divide the objective by 1 + gamma·Σ c_k of the moment, and lambda by that of full
            strength.
    """

    gamma: float
    cuts: tuple[Cut, ...]
    schedule: Schedule = "constant"
    factors: tuple[float, ...] = ()
    stage_loss: Literal["same", "distilled", "hinged"] = "same"
    normalized: bool = True

    def __call__(self, moment: Moment) -> StageCost:
        """Return the stage cost at a moment."""
        losses = {"same": None, "distilled": distilled(F.cross_entropy), "hinged": hinged}
        weights = tuple(self.gamma * factor for factor in self.factors or (1.0,) * len(self.cuts))
        whole = StageCost(
            self.cuts, weights, stage_loss=losses[self.stage_loss], normalized=self.normalized
        )
        return whole.scaled(gamma_factor(self.schedule, moment.progress))

    def decay(self, weight_decay: float) -> float:
        """Return lambda as the optimiser is to use it."""
        total = self.gamma * (sum(self.factors) if self.factors else len(self.cuts))
        return weight_decay / (1 + total) if self.normalized else weight_decay

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "gamma": self.gamma,
            "outputs": [str(cut) for cut in self.cuts],
            "gamma_schedule": self.schedule,
            "factors": list(self.factors),
            "stage_loss": self.stage_loss,
            "normalize_objective": self.normalized,
        }


def from_depth(first: int, num_blocks: int) -> tuple[Cut, ...]:
    """Return y_first … y_{N-1}."""
    return tuple(map(Cut.first, range(first, num_blocks)))


def with_plain_decay(settings: Mapping[str, Any], cost: Scheduled) -> Training:
    """Return a training with the weight decay of plain training, whatever the stage cost's weight."""
    return Training({**settings, "weight_decay": TrainingSettings.weight_decay}, cost)


def full_depth_training(plain: Mapping[str, Any]) -> Training:
    """Press late and little, on the last third of the outputs alone: Σ gamma·c_k = 0.1."""
    cuts = from_depth(2 * plain["num_blocks"] // 3, plain["num_blocks"])
    cost = Scheduled(0.1 / len(cuts), cuts, "late")
    return Training({**plain, "weight_decay": cost.decay(TrainingSettings.weight_decay)}, cost)


def pruned_training(plain: Mapping[str, Any], sub_blocks: int) -> Training:
    """Press hard on y_M alone, once features have formed: gamma = 30 from 30 % of the training on."""
    return with_plain_decay(plain, Scheduled(30.0, (Cut.first(sub_blocks),), "early"))
