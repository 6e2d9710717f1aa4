"""Distillation from another network: batches that know what it says of their images."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stagecost.losses import LossFunction, distilled
from stagecost.train.recipe import Batches


@dataclass
class Taught:
    """Training data, and a loss of which one half is the divergence from a teacher's output."""

    batches: Batches  #: the training data
    teacher: nn.Module  #: in eval mode, where the batches are
    own_loss: LossFunction  #: of the other half
    _answers: Tensor = field(default_factory=lambda: torch.empty(0), init=False)

    @property
    def batch_size(self) -> int:
        """Samples of a batch, over all processes together."""
        return self.batches.batch_size

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.batches)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the (images, targets) of an epoch; each batch is taught before it is handed out."""
        for images, targets in self.batches.epoch(epoch, first_batch):
            with torch.no_grad():
                self._answers = self.teacher(images)
            yield images, targets

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of an output for the batch that was handed out last, scalar."""
        return distilled(self.own_loss)(output, target, self._answers)
