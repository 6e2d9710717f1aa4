"""What the GPU tier trains: its arms, the recipe that they share, and the plan of each data set.

Arms, all of homogeneous networks of N = 54 blocks or the first M = 12:
    plain_full   N blocks, gamma = 0
    plain_sub    M blocks, trained alone, gamma = 0
    stage        gamma = 1/N on every y_k, J/(1 + gamma·N); its first M blocks need no more training
    joint        one training for two depths: a pass through N blocks, and one through the first M with
                 the same convolutions and linear map but norms of its own; costs as much as both apart
    joint_light  the same with 0.3 of the second pass's loss
    several      one pass through N blocks, and the head's outputs after 12, 36 and N count alike; norms
                 are shared, and it trains for as many block passes as the three networks apart
    several_light  the same, with 0.3 of the losses after 12 and 36
    plain_mid    36 blocks, trained alone, gamma = 0
    plain_long   plain_full for as many MACs as joint
    plain_longer plain_full for as many block passes as several
    cut_first    plain_sub for as many MACs as joint
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stagecost.cut import Cut
from stagecost.objective import StageCost

ARMS = (
    *("plain_full", "plain_sub", "stage", "joint", "joint_light", "plain_long", "cut_first"),
    *("several", "several_light", "plain_mid", "plain_longer"),
)
TARGET_WEIGHTS = {"joint": 1.0, "joint_light": 0.3}
ONE_PASS = {"several": 1.0, "several_light": 0.3}
"""The weight of each target in one pass for all depths."""
SEEDS, PILOT_SEEDS, PILOT_EPOCHS = (0, 1, 2), (100, 101), 6
LEARNING_RATES = (0.1, 0.2, 0.4)
VARIANTS = tuple((distilled, beta) for beta in (1.0, 0.3) for distilled in (False, True))


@dataclass(frozen=True)
class Recipe:
    """What all arms have in common; the pilot chose the last five.

    Attributes:
        warmup: part of the steps in which the learning rate rises.
        distilled: the second pass's loss is ½ cross-entropy + ½ KL to the detached whole output, else
            cross-entropy alone.
        beta: factor of the first pass's gradient on all weights that both passes share.
        compiled: compile blocks.
        at_once: how many jobs share the GPU.
    """

    num_blocks: int = 54
    kept: int = 12
    middle: int = 36
    width: int = 32
    stem_stride: int = 2
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.15
    learning_rate: float = 0.4
    distilled: bool = False
    beta: float = 1.0
    compiled: bool = True
    at_once: int = 3

    @property
    def gamma(self) -> float:
        """The paper's uniform stage weight, here 1/N."""
        return 1 / self.num_blocks

    def epoch_factor(self, arm: str) -> float:
        """Return how many epochs an arm trains in one of plain_full's."""
        both, whole = self.num_blocks + self.kept, self.num_blocks
        longer = {"plain_long": both / whole, "cut_first": both / self.kept}
        three = (both + self.middle) / whole
        return {**longer, **dict.fromkeys((*ONE_PASS, "plain_longer"), three)}.get(arm, 1.0)

    def blocks(self, arm: str) -> int:
        """Return how many blocks an arm trains."""
        fewer = {"plain_sub": self.kept, "cut_first": self.kept, "plain_mid": self.middle}
        return fewer.get(arm, self.num_blocks)

    def stage_cost(self, arm: str) -> StageCost:
        """Return the objective on one pass: every y_k, a few of them, or the last alone."""
        if arm in ONE_PASS:
            cuts = [Cut.first(self.kept), Cut.first(self.middle)]
            return StageCost.targets(cuts, ONE_PASS[arm], normalized=True)
        gamma = self.gamma if arm == "stage" else 0.0
        return StageCost.uniform(self.blocks(arm), gamma, normalized=True)


@dataclass(frozen=True)
class Plan:
    """What is trained on a data set: what fitted into a quarter of an hour of the device.

    Attributes:
        epochs: of plain_full.
        arms: in their order.
        changes: of the recipe, by name.
    """

    epochs: int
    arms: tuple[str, ...] = ARMS
    changes: Mapping[str, Any] = field(default_factory=dict)


_PLAIN = ("plain_full", "plain_sub")
PLAN: dict[str, Plan] = {
    "cifar10": Plan(10, tuple(arm for arm in ARMS if arm != "several_light")),
    "cifar100": Plan(5, (*_PLAIN, "stage", "joint_light", "several", "plain_mid")),
    "mnist": Plan(1, (*_PLAIN, "stage", "joint", "several", "plain_mid")),
    "cifar10-long": Plan(
        30,
        (*_PLAIN, "plain_mid", *ONE_PASS, "plain_longer"),
        {"num_blocks": 12, "kept": 4, "middle": 8, "at_once": 6},
    ),
}
"""By name: of its images, and perhaps "-long" for 12 blocks and three times the epochs."""


def images_of(dataset: str) -> str:
    """Return the name of a plan's images."""
    return dataset.partition("-")[0]
