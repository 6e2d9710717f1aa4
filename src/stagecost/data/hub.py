"""Labelled images by way of Hugging Face `datasets`, kept quiet."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from stagecost.data.encoded import EncodedImages, Part, Source, index_labels
from stagecost.errors import StageCostError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
LABEL_COLUMNS = ("label", "labels", "fine_label")


def load_quietly(path: str, *, bars: bool, **options: Any) -> Any:
    """Call `datasets.load_dataset`, with progress bars at most."""
    import datasets

    with _quiet(bars=bars):
        return datasets.load_dataset(path, **options)


@contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """Keep `datasets` and `huggingface_hub` from writing on standard error within the block."""
    import datasets

    hub: Any = import_module("huggingface_hub.utils")  # its stubs hide the public functions
    restore: list[Callable[[], None]] = []
    for verbosity in (datasets.logging, hub.logging):
        level = verbosity.get_verbosity()
        restore.append(lambda set_level=verbosity.set_verbosity, level=level: set_level(level))  # type: ignore[misc]
        verbosity.set_verbosity(logging.CRITICAL)
    # Both libraries warn when told to change bars that the user has set by environment variable.
    if not bars and datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is None:
        restore += [datasets.enable_progress_bars] if datasets.is_progress_bar_enabled() else []
        datasets.disable_progress_bars()
    if not bars and os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
        restore += [] if hub.are_progress_bars_disabled() else [hub.enable_progress_bars]
        hub.disable_progress_bars()
    try:
        yield
    finally:
        for undo in restore:
            undo()


def source_from_dataset(found: Any, name: str, origin: str) -> Source:
    """Read the labels of a `datasets.DatasetDict`, whose origin is named in messages."""
    import datasets

    splits = _canonical_splits(found, origin)
    first = next(iter(splits.values()))
    image, label = _columns(first.features, origin)
    feature = first.features[label]
    values = {split: _label_values(part, label, origin) for split, part in splits.items()}
    if isinstance(feature, datasets.ClassLabel):
        names = tuple(str(name) for name in feature.names)
        indexed = {split: labels.astype(np.int64) for split, labels in values.items()}
    else:
        names, indexed = index_labels(values)
    parts = {}
    for split, part in splits.items():
        undecoded = part.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        parts[split] = Part(indexed[split], EncodedImages(undecoded, image, split))
    return Source(name, None, names, parts)


def _canonical_splits(found: Any, origin: str) -> dict[str, Any]:
    """Return the splits by the names 'train', 'val' and 'test'; a lone other one is 'train'."""
    splits: dict[str, Any] = {}
    for name, part in found.items():
        split = canonical_split(name) or ("train" if len(found) == 1 else None)
        if split and len(part):
            splits.setdefault(split, part)
    if not splits:
        raise StageCostError(
            f"{origin} has no split of a known name with images in it (found: "
            f"{', '.join(found) or 'none'}): name its splits train, validation and test"
        )
    return splits


def canonical_split(name: str) -> str | None:
    """Return 'train', 'val' or 'test' for a name that means it."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def _columns(features: Any, origin: str) -> tuple[str, str]:
    """Return the names of the image column and of the label column."""
    image = next((key for key in features if type(features[key]).__name__ == "Image"), None)
    kinds = {key: _label_kind(features[key]) for key in features}
    preferred = [key for key in LABEL_COLUMNS if kinds.get(key)]
    classes = [key for key in features if kinds[key] == "class"]
    numbers = [key for key in features if kinds[key] == "int"]
    labels = preferred + classes + numbers
    if image is None or not labels:
        raise StageCostError(
            f"{origin} has no column of {'images' if image is None else 'class labels'} (its "
            f"columns: {', '.join(features)}): it needs an image column and a label column"
        )
    return image, labels[0]


def _label_kind(feature: Any) -> str | None:
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return "class"
    dtype = feature.dtype if isinstance(feature, datasets.Value) else ""
    if dtype in ("string", "large_string"):
        return "str"
    return "int" if dtype.startswith(("int", "uint")) else None


def _label_values(part: Any, column: str, origin: str) -> npt.NDArray[Any]:
    table = part.select_columns([column]).with_format("arrow")[:]
    values = table.column(column)
    if values.null_count:
        raise StageCostError(
            f"{origin} has {values.null_count} images without a '{column}': remove these rows"
        )
    return np.asarray(values.to_pylist())
