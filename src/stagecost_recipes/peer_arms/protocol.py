"""What all arms share: backbone, images, optimiser, schedule, and the number of epochs.

Every arm gets E epochs in all. Where something is done after a first training, the first training gets
70 % of them, with the whole of its schedule, and the rest belongs to what is done. Networks that are
trained on do so by plain training of the terminal output: fresh momentum, a cosine from the highest
learning rate of the first training to zero, no warm-up (`stagecost.verbs.pruning.finetune_settings`).

Both rates below are those of 0.1, 0.3 and 1 times the highest rate, and of 0.001 and 0.01 for earlyon's
exits, that did best on validation images of a small training on MNIST with a seed of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagecost_recipes.experiment import Tier
from stagecost_recipes.schedules import PRUNED_SCHEDULE, SCHEDULES, normalized_stage_cost
from stagecost_recipes.tiers import SUB_BLOCKS, base_recipe

LATER_SHARE = 0.3
"""Part of the epochs that is left for fine-tuning, or for the exits of frozen networks."""
CUT_SHARE = 0.3
"""Part of the epochs after which blocks leave, where they leave during the training."""
DROP_PATH = 0.2
"""Rate of the last block for stochastic depth; a moderate one, as the trainings are short."""


def cut_stage_settings(num_blocks: int) -> dict[str, Any]:
    """Return the stage cost of a network that is cut early in its training."""
    return {**normalized_stage_cost(1 / num_blocks, num_blocks), "plain_after_cuts": True}


@dataclass(frozen=True)
class Protocol:
    """The comparison on a data set; only the number of images differs from one to another.

    Attributes:
        recipe: settings of plain training at full depth, by flag name.
        sub_blocks: M, the blocks that are left after a cut.
        finetune_lr_factor: where the learning rate of fine-tuning starts, as a part of the highest one.
        exits_lr: learning rate of earlyon's exits; ten times its own default, as the epochs are few.
    """

    recipe: Mapping[str, Any]
    sub_blocks: int
    finetune_lr_factor: float = 1.0
    exits_lr: float = 1e-2

    @classmethod
    def of(cls, tier: Tier, dataset: str) -> "Protocol":
        """Return the comparison of a tier on a data set."""
        return cls(base_recipe(tier, dataset), SUB_BLOCKS[tier])

    @property
    def later_epochs(self) -> int:
        """Epochs of what is done after a first training."""
        return max(1, round(LATER_SHARE * int(self.recipe["epochs"])))

    @property
    def exit_blocks(self) -> tuple[int, ...]:
        """Blocks behind which earlyon puts an exit: one is the M-th, one comes before, one after it."""
        m, n = self.sub_blocks, self.recipe["num_blocks"]
        return tuple(sorted({max(1, m // 2), m, (m + n) // 2}))

    def trainings(self) -> dict[str, dict[str, Any]]:
        """Return the settings of each kind of training, without data and seed."""
        plain, m = dict(self.recipe), self.sub_blocks
        n, epochs = plain["num_blocks"], plain["epochs"]
        stage = {**plain, **SCHEDULES[PRUNED_SCHEDULE](n, m)}
        first = {"epochs": epochs - self.later_epochs}
        cut = {"cut_at": f"{max(1, round(CUT_SHARE * epochs))}:{m}"}
        return {
            "plain": plain,
            "plain-sub": {**plain, "num_blocks": m},
            "plain-first": {**plain, **first},
            "plain-cut": {**plain, **cut},
            "stochastic-depth": {**plain, "drop_path": DROP_PATH},
            "stage": stage,
            "stage-first": {**stage, **first},
            "stage-cut": {**plain, **cut_stage_settings(n), **cut},
        }
