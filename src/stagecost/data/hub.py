"""Labelled images by way of Hugging Face `datasets`, kept quiet."""

import logging
import os
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any

from stagecost.data.class_names import listed, shown
from stagecost.data.encoded import Images
from stagecost.data.split_names import split_of
from stagecost.data.tables import Table
from stagecost.errors import StageCostError

if TYPE_CHECKING:
    import pyarrow as pa


def load_quietly(path: str, *, bars: bool) -> Any:
    """Call `datasets.load_dataset`; nothing but progress bars, if wanted, is seen on standard error."""
    import datasets

    hub: Any = import_module("huggingface_hub.utils")  # its stubs hide the public functions
    with ExitStack() as undo:
        for verbosity in (datasets.logging, hub.logging):
            undo.callback(verbosity.set_verbosity, verbosity.get_verbosity())
            verbosity.set_verbosity(logging.CRITICAL)
        # Both libraries warn when told to change bars that the user has set by environment variable.
        if not bars and datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is None:
            if datasets.is_progress_bar_enabled():
                undo.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        if not bars and os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
            if not hub.are_progress_bars_disabled():
                undo.callback(hub.enable_progress_bars)
            hub.disable_progress_bars()
        return datasets.load_dataset(path)


def tables_of(dataset: Any, origin: str) -> tuple[dict[str, list[Table]], tuple[str, ...]]:
    """Return the splits of a `datasets.DatasetDict`, a lone one as 'train', and what was left out.

    Raises:
        StageCostError: no split has a known name and images in it.
    """
    tables: dict[str, list[Table]] = {}
    unknown = []
    for name, part in dataset.items():
        split = split_of(name) or ("train" if len(dataset) == 1 else None)
        if split and split not in tables and len(part):
            tables[split] = [_table(part, name, origin)]
        else:
            unknown.append(f"{name} ({len(part)})")
    if not tables:
        raise StageCostError(
            f"{shown(origin)} has no split of a known name with images in it (found: "
            f"{listed(unknown) or 'none'}): name its splits train, validation and test"
        )
    text = (
        f"left out splits that have no known name, that of another one, or no images: {listed(unknown)}"
    )
    return tables, (text,) if unknown else ()


def _table(part: Any, split: str, origin: str) -> Table:
    import datasets

    def column(name: str) -> "pa.ChunkedArray":
        return part.select_columns([name]).with_format("arrow")[:].column(name)

    def images(name: str) -> Images:
        undecoded = part.select_columns([name]).cast_column(name, datasets.Image(decode=False))
        return Images(
            lambda rows: undecoded[list(rows)][name],
            lambda row: f"image {row} of split '{split}'",
            lambda row: f"{split} {row}",
        )

    return Table(f"{shown(origin)} ({split})", part.features.arrow_schema, column, images)
