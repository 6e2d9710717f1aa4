"""What a training follows: its moments, its learning rate, its batches, and how a step is done.

Everything is a function of the step alone, so that resuming needs no state.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from stagecost.dynamics import Pass
from stagecost.network import LITERALLY
from stagecost.train.settings import RunSettings


@dataclass(frozen=True)
class Moment:
    """A step of a training, before it is done."""

    epoch: int  #: counted from 0
    batch: int  #: of the epoch, counted from 0
    steps_per_epoch: int  #: batches of each epoch
    epochs: int  #: of the whole training

    @property
    def step(self) -> int:
        """Steps that were done before."""
        return self.epoch * self.steps_per_epoch + self.batch

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """The part of the training that is done, from 0 to below 1."""
        return self.step / self.total_steps


@dataclass(frozen=True)
class Recipe:
    """How the steps of a training are done."""

    epochs: int  #: passes over the images
    lr: float  #: the highest learning rate
    warmup_epochs: float = 0.0  #: of linear warm-up, before the cosine to zero
    clip_norm: float = 0.0  #: largest norm of the gradient; 0 does not clip
    #: how many outputs bear the stage cost in a step, or in which part of the steps one; 0 is all
    sampled_depths: float = 0
    sandwich: bool = False  #: the smallest cut and one that is drawn bear the stage cost in a step
    equilibrium: bool = False  #: gradients are means of the losses behind a block, not sums
    gate: float = 1.0  #: what larger networks want of a target's blocks is multiplied by it
    drop_path: float = 0.0  #: rate of the last branch; 0 leaves none out
    freeze_stem: bool = False  #: leave the stem as it is
    freeze_norms: bool = False  #: leave running statistics as they are
    seed: int = 0  #: of what is drawn in a step
    how: Pass = LITERALLY  #: a pass through the network is done

    @classmethod
    def of(cls, settings: RunSettings) -> "Recipe":
        """Return what the settings of a run say."""
        training = settings.training
        return cls(
            epochs=training.epochs,
            lr=training.peak_lr,
            warmup_epochs=training.warmup_epochs,
            clip_norm=training.clip_norm,
            sampled_depths=settings.sampled_depths,
            sandwich=settings.stage.sandwich,
            equilibrium=settings.stage.equilibrium,
            gate=settings.stage.gate,
            drop_path=settings.stage.drop_path,
            freeze_stem=training.freeze_stem,
            freeze_norms=training.freeze_norms,
            seed=training.seed,
            how=Pass(checkpointing=training.activation_checkpointing, collapsed=True),
        )

    def learning_rate(self, moment: Moment) -> float:
        """Return the learning rate of a step."""
        warmup = round(self.warmup_epochs * moment.steps_per_epoch)
        return self.lr * learning_rate_factor(moment.step, moment.total_steps, warmup)


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Return the factor of the highest learning rate at a step, counted from 0.

    It grows linearly to 1 at the last step of the warm-up, then falls as half a cosine to zero.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


class Batches(Protocol):
    """The training data, such as `ImageBatches`; a batch is a function of its place alone."""

    @property
    def batch_size(self) -> int:
        """Samples of a batch, over all processes together."""

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the (images, targets) of an epoch, from a batch on."""
