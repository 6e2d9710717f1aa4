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
from stagecost.text import counted


def num_batches(split_len: int, batch_size: int) -> int:
    """Return the number of training batches in an epoch; only whole ones, but at least one.

    Raises:
        StageCostError: `batch_size` is less than 1, or there are no images.
    """
    _check_batch_size(batch_size)
    if split_len < 1:
        raise StageCostError(f"a split of {split_len} images has no batches: give more images")
    return max(1, split_len // batch_size)


@dataclass(frozen=True)
class ImageBatches:
    """Labelled images, shuffled and augmented for training, in another order each epoch.

    The images left over after the last whole batch of an epoch are dropped; a split smaller than one
    batch is one batch.

    Raises:
        StageCostError: there are no images, the batch size is less than 1, or a batch has fewer images
            than there are processes.
    """

    split: ImageSplit  #: the training images
    image_format: ImageFormat  #: how they are normalised
    augmentation: Augmentation  #: of the bytes, before they are normalised
    wanted_size: int  #: images of a batch, over all processes together; there may be fewer images
    seed: int  #: ≥ 0; with the epoch, decides the order; with the batch's place, the augmentation
    rank: int = 0  #: of this process, which gets every `world_size`-th image of a batch from here on
    world_size: int = 1  #: number of processes
    device: torch.device | None = None  #: where the batches are to be; None: where the split is

    def __post_init__(self) -> None:
        """Refuse what has no batches."""
        num_batches(len(self.split), self.wanted_size)
        check_shares(len(self.split), self.wanted_size, self.world_size)

    @property
    def batch_size(self) -> int:
        """Images of a batch, over all processes together."""
        return min(self.wanted_size, len(self.split))

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return num_batches(len(self.split), self.wanted_size)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch, counted from 0, from one of them on.

        Yields:
            Normalised float32 images (n, channels, height, width) and int64 targets (n,).
        """
        split, size = self.split, self.batch_size
        order = torch.randperm(len(split), generator=torch_generator(self.seed, Stream.ORDER, epoch))
        for batch in range(first_batch, len(self)):
            rows = order[batch * size : (batch + 1) * size].to(split.images.device)
            # Drawn for the whole batch, so that the processes together see what one would see.
            generator = torch_generator(self.seed, Stream.AUGMENT, epoch, batch)
            draws = self.augmentation.draw(size, generator)[self.rank :: self.world_size]
            shared = rows[self.rank :: self.world_size]
            images = self.augmentation.apply(split.images[shared].to(self.device), draws)
            yield normalise(images, self.image_format), split.targets[shared].to(self.device)


@dataclass(frozen=True)
class FixedBatches:
    """The same batches of a split each time that they are iterated over, without augmentation.

    Yields normalised float32 images (n, channels, height, width) and int64 targets (n,).
    """

    split: ImageSplit  #: all images
    image_format: ImageFormat  #: how to normalise them
    rows: Sequence[slice | Tensor]  #: the images of each batch, by their places in the split
    device: torch.device | str | None  #: where the batches are to be; None: where the split is

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
    """Refuse batches that have fewer images than there are processes."""
    size = min(batch_size, split_len)
    if size < world_size:
        raise StageCostError(
            f"a batch of {counted(size, 'image')} cannot be shared by {world_size} processes: "
            "raise the batch size or use fewer processes"
        )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise StageCostError(f"batch size {batch_size} is less than 1: give at least 1")
