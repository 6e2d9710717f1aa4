"""Batches of normalised images: shuffled and augmented for training, in order for evaluation.

A training batch is a function of the seed, of the epoch and of its place in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stagecost.data.augmentation import Augmentation
from stagecost.data.images import ImageFormat, ImageSplit, normalise
from stagecost.errors import StageCostError
from stagecost.random_streams import Stream, torch_generator


def num_batches(split_len: int, batch_size: int) -> int:
    """Return the number of training batches in an epoch; only whole ones, but at least one.

    Raises:
        StageCostError: `batch_size` is less than 1, or there are no images.
    """
    _check_batch_size(batch_size)
    if split_len < 1:
        raise StageCostError(f"a split of {split_len} images has no batches: give more images")
    return max(1, split_len // batch_size)


def epoch_batches(
    split: ImageSplit,
    image_format: ImageFormat,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    augmentation: Augmentation,
    first_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return an iterator over one epoch's shuffled training batches.

    A batch depends on `seed`, `epoch` and its place in the epoch only: a run that is resumed at
    `first_batch` sees what it would have seen. The images left over after the last whole batch
    are dropped (others in each epoch); a split smaller than one batch is one batch.

    Args:
        split: the training images.
        image_format: how to normalise them.
        batch_size: images in a batch, over all processes together.
        seed: ≥ 0; with `epoch`, decides the order; with the batch's place too, the augmentation.
        epoch: counted from 0.
        augmentation: applied to the bytes, before they are normalised.
        first_batch: the first batch to yield, counted from 0.
        rank: this process, which gets every `world_size`-th image of a batch from number `rank`.
        world_size: the number of processes.
        device: where the batches are to be; None: where the split is.

    Yields:
        Normalised float32 images (n, channels, height, width) and int64 targets (n,).

    Raises:
        StageCostError: the batch size is less than 1, or a batch has fewer images than there are
            processes.
    """
    count = num_batches(len(split), batch_size)
    check_shares(len(split), batch_size, world_size)
    size = min(batch_size, len(split))
    order = torch.randperm(len(split), generator=torch_generator(seed, Stream.ORDER, epoch))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in range(first_batch, count):
            rows = order[batch * size : (batch + 1) * size].to(split.images.device)
            # Drawn for the whole batch, so that the processes together see what one would see.
            draws = augmentation.draw(size, torch_generator(seed, Stream.AUGMENT, epoch, batch))
            shared = rows[rank::world_size]
            images = augmentation.apply(split.images[shared].to(device), draws[rank::world_size])
            yield normalise(images, image_format), split.targets[shared].to(device)

    return batches()


@dataclass(frozen=True)
class FixedBatches:
    """The same batches of a split each time that they are iterated over, without augmentation.

    Yields normalised float32 images (n, channels, height, width) and int64 targets (n,).

    Attributes:
        split: all images.
        image_format: how to normalise them.
        rows: the images of each batch, by their places in the split.
        device: where the batches are to be; None: where the split is.
    """

    split: ImageSplit
    image_format: ImageFormat
    rows: Sequence[slice | Tensor]
    device: torch.device | str | None

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.rows)

    @property
    def num_images(self) -> int:
        """Of all batches together."""
        places = range(len(self.split))
        return sum(len(places[rows] if isinstance(rows, slice) else rows) for rows in self.rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches."""
        for rows in self.rows:
            images = self.split.images[rows].to(self.device)
            yield normalise(images, self.image_format), self.split.targets[rows].to(self.device)


def eval_batches(
    split: ImageSplit,
    image_format: ImageFormat,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> FixedBatches:
    """Return the batches of `split` in order, the short last one included.

    Raises:
        StageCostError: `batch_size` is less than 1.
    """
    _check_batch_size(batch_size)
    rows = [slice(at, at + batch_size) for at in range(0, len(split), batch_size)]
    return FixedBatches(split, image_format, rows, device)


def sample_batches(
    split: ImageSplit,
    image_format: ImageFormat,
    *,
    count: int,
    seed: int,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> FixedBatches:
    """Return batches of a random sample of `split`, to estimate statistics from.

    The sample is drawn without replacement: the order of the split does not matter. The batches are
    of even size, one image more or less; none has a single image, unless the sample has no more.

    Args:
        split: the images to draw from.
        image_format: how to normalise them.
        count: how many images to draw; all of them, if there are no more.
        seed: ≥ 0.
        batch_size: images in a batch, at most; but at least 2.
        device: where the batches are to be; None: where the split is.

    Raises:
        StageCostError: `count` or `batch_size` is less than 1, or there are no images.
    """
    _check_batch_size(batch_size)
    if min(count, len(split)) < 1:
        raise StageCostError(f"a sample of {count} of {len(split)} images is empty: give at least 1")
    order = torch.randperm(len(split), generator=torch_generator(seed, Stream.SAMPLE))[:count]
    parts = max(1, min(-(-len(order) // batch_size), len(order) // 2))
    return FixedBatches(split, image_format, order.to(split.images.device).tensor_split(parts), device)


def check_shares(split_len: int, batch_size: int, world_size: int) -> None:
    """Refuse batches that have fewer images than there are processes.

    Raises:
        StageCostError: as described.
    """
    size = min(batch_size, split_len)
    if size < world_size:
        raise StageCostError(
            f"a batch of {size} image(s) cannot be shared by {world_size} processes: "
            "raise the batch size or use fewer processes"
        )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise StageCostError(f"batch size {batch_size} is less than 1: give at least 1")
