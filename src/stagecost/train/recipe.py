"""What a training follows: its moments, its learning rate, its batches, and how a step is done.

Everything is a function of the step alone, so that resuming needs no state.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stagecost.data.augmentation import Augmentation
from stagecost.data.batches import epoch_batches, num_batches
from stagecost.data.images import ImageFormat, ImageSplit
from stagecost.dynamics import Pass
from stagecost.network import LITERALLY
from stagecost.train.settings import RunSettings


@dataclass(frozen=True)
class Moment:
    """A step of a training, before it is done.

    Attributes:
        epoch: counted from 0.
        batch: of the epoch, counted from 0.
        steps_per_epoch: batches of each epoch.
        epochs: of the whole training.
    """

    epoch: int
    batch: int
    steps_per_epoch: int
    epochs: int

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
    """How the steps of a training are done.

    Attributes:
        epochs: passes over the images.
        lr: the highest learning rate.
        warmup_epochs: of linear warm-up, before the cosine to zero.
        clip_norm: largest norm of the gradient; 0 does not clip.
        sampled_depths: how many outputs bear the stage cost in a step; 0 is all.
        sandwich: the smallest cut and one that is drawn bear the stage cost in a step.
        equilibrium: gradients are means of the losses behind a block, not sums.
        gate: what comes back from beyond a cut that bears the stage cost is multiplied by it.
        drop_path: rate of the last branch; 0 leaves none out.
        freeze_stem: leave the stem as it is.
        freeze_norms: leave running statistics as they are.
        seed: of what is drawn in a step.
        how: a pass through the network is done.
    """

    epochs: int
    lr: float
    warmup_epochs: float = 0.0
    clip_norm: float = 0.0
    sampled_depths: int = 0
    sandwich: bool = False
    equilibrium: bool = False
    gate: float = 1.0
    drop_path: float = 0.0
    freeze_stem: bool = False
    freeze_norms: bool = False
    seed: int = 0
    how: Pass = LITERALLY

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
    """Return the factor of the highest learning rate: linear warm-up, then half a cosine to zero.

    Args:
        step: 0 … total_steps − 1.
        total_steps: steps of the whole run.
        warmup_steps: steps of the warm-up; the highest rate is reached at its last one.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


class Batches(Protocol):
    """The training data, batch by batch; a batch is a function of its place alone."""

    @property
    def batch_size(self) -> int:
        """Samples of a batch, over all processes together."""

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the (images, targets) of an epoch, from a batch on."""


@dataclass(frozen=True)
class ImageBatches:
    """`Batches` of labelled images in memory: shuffled and augmented, in another order each epoch.

    Attributes:
        split: the images.
        image_format: how they are normalised.
        augmentation: of the bytes.
        wanted_size: images a batch, over all processes together; there may be fewer images.
        seed: of order and augmentation.
        rank: of this process.
        world_size: number of processes.
        device: where the batches are to be.
    """

    split: ImageSplit
    image_format: ImageFormat
    augmentation: Augmentation
    wanted_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    device: torch.device | None = None

    @property
    def batch_size(self) -> int:
        """Images of a batch, over all processes together."""
        return min(self.wanted_size, len(self.split))

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return num_batches(len(self.split), self.wanted_size)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the (images, targets) of an epoch, from a batch on."""
        return epoch_batches(
            self.split,
            self.image_format,
            batch_size=self.wanted_size,
            seed=self.seed,
            epoch=epoch,
            augmentation=self.augmentation,
            first_batch=first_batch,
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
        )
