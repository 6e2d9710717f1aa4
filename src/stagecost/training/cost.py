"""What a training cost in multiply-accumulate operations, which no neighbour on the machine disturbs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stagecost.macs import macs_by_part
from stagecost.models import create_model
from stagecost.training.folder import RunFolder
from stagecost.training.shrink import cut_of
from stagecost.training.trained import open_trained


def training_macs(run: str | Path, history: Sequence[Mapping[str, Any]]) -> int:
    """Count the MACs of a run: three passes for a training image, one for a validation image.

    The network counts with the blocks that it had in each epoch, and with its terminal output; the
    head's work for further outputs is left out.

    Args:
        run: its folder, with a checkpoint; its images are loaded.
        history: of the run, one entry an epoch.
    """
    opened = open_trained(run, device="cpu")
    settings, image = RunFolder(Path(run)).settings(), opened.image_format
    splits = opened.load("train", *(["val"] if settings.data.val_fraction > 0 else [])).splits
    batch_size = min(settings.training.batch_size, len(splits["train"]))
    images = len(splits["train"]) // batch_size * batch_size
    arguments = {**settings.model.arguments(), "num_classes": len(image.class_names)}
    whole = create_model(settings.model.model, **arguments, in_channels=image.channels)
    parts = macs_by_part(whole, (image.channels, image.size, image.size))
    passes = 3 * images + (len(splits["val"]) if "val" in splits else 0)
    total, kept = 0, list(whole.block_indices)
    for entry in history:
        total += passes * (parts[0] + sum(parts[1 + k] for k in kept) + parts[-1])
        cut = cut_of(entry)
        kept = kept if cut is None else cut["kept_blocks"]
    return total
