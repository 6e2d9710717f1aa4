"""What a training cost in multiply-accumulate operations, which no neighbour on the machine disturbs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stagecost.data.batches import num_batches
from stagecost.data.images import ImageSplit
from stagecost.macs import macs_by_part
from stagecost.models import create_model
from stagecost.stages import Stages, first_blocks
from stagecost.training.folder import RunFolder
from stagecost.training.schedule import gamma_factor
from stagecost.training.settings import RunSettings
from stagecost.training.shrink import cut_of
from stagecost.training.trained import open_trained


def images_of_an_epoch(settings: RunSettings, splits: Mapping[str, ImageSplit]) -> int:
    """Count the training images in the whole batches of an epoch."""
    images = len(splits["train"])
    batch_size = min(settings.training.batch_size, images)
    return batch_size * num_batches(images, batch_size)


def passes_of_an_epoch(settings: RunSettings, splits: Mapping[str, ImageSplit]) -> int:
    """Count the passes of an epoch: three for a training image, one for a validation image."""
    validated = len(splits["val"]) if "val" in splits else 0
    return 3 * images_of_an_epoch(settings, splits) + validated


def training_macs(run: str | Path, history: Sequence[Mapping[str, Any]]) -> int:
    """Count the MACs of all passes of a run (`passes_of_an_epoch`).

    The network counts with the blocks that it had in each epoch, and with its terminal output; the
    head's work for further outputs is left out. Where the output of a vector of depths bore the stage
    cost, its blocks count a second time.

    Args:
        run: its folder, with a checkpoint; its images are loaded.
        history: of the run, one entry an epoch.
    """
    opened = open_trained(run, device="cpu")
    settings, image = RunFolder(Path(run)).settings(), opened.image_format
    splits = opened.load("train", *(["val"] if settings.data.val_fraction > 0 else [])).splits
    arguments = {**settings.model.arguments(), "num_classes": len(image.class_names)}
    whole = create_model(settings.model.model, **arguments, in_channels=image.channels)
    parts = macs_by_part(whole, (image.channels, image.size, image.size))
    passes = passes_of_an_epoch(settings, splits)
    total, kept = 0, whole.block_indices
    for epoch, entry in enumerate(history):
        total += passes * (parts[0] + sum(parts[1 + k] for k in kept) + parts[-1])
        again = _blocks_again(settings, whole.stages, kept, epoch)
        total += 3 * images_of_an_epoch(settings, splits) * sum(parts[1 + k] for k in again)
        cut = cut_of(entry)
        kept = kept if cut is None else tuple(cut["kept_blocks"])
    return total


def _blocks_again(
    settings: RunSettings, stages: Stages, kept: Sequence[int], epoch: int
) -> tuple[int, ...]:
    """Return the blocks that an epoch computes a second time, for the output of a vector of depths."""
    vector, epochs = settings.variant.depth_vector, settings.training.epochs
    if vector is None or settings.training.gamma == 0 or not settings.shrink.presses(epoch, epochs):
        return ()
    if gamma_factor(settings.variant.gamma_schedule, (epoch + 0.5) / epochs) == 0:
        return ()
    again = tuple(k for k in first_blocks(stages, vector) if k in kept)
    return () if again == tuple(kept) else again
