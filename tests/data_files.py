"""Small data sets on disk, whose pictures tell by their brightness which class and image they are."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stagecost.data.config import DataConfig
from stagecost.data.images import ImageSplit
from stagecost.data.loading import DataBundle, load_data
from stagecost.errors import StageCostError

STEP = 20  # grey levels between one class and the next


def refuse(match: str, config: DataConfig | Path | str, **options: Any) -> str:
    """Expect a one-line refusal."""
    config = config if isinstance(config, DataConfig) else DataConfig(str(config))
    with pytest.raises(StageCostError, match=match) as caught:
        load_data(config, **({"seed": 0} | options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load(
    data: Path | str, *, seed: int = 0, splits: Any = None, like: Any = None, **config: Any
) -> DataBundle:
    return load_data(DataConfig(str(data), **config), seed=seed, splits=splits, like=like)


def grey(number: int, index: int, size: int = 6) -> np.ndarray:
    """A picture of class `number`: its first pixel tells the class, the others differ by image."""
    pixels = np.full((size, size), number * STEP, np.uint8)
    pixels[1:] += np.random.default_rng(1000 * number + index).integers(
        0, STEP, (size - 1, size), np.uint8
    )
    return pixels


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def fill(directory: Path, number: int, count: int, first: int = 0) -> None:
    """Put pictures of class `number` into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        (directory / f"{index:03d}.png").write_bytes(png(grey(number, index)))


def tree(folder: Path, counts: Mapping[str, int]) -> Path:
    """Make directories of pictures; the class is the last part of the path, by its place in order."""
    names = sorted({path.split("/")[-1] for path in counts})
    for first, (path, count) in enumerate(counts.items()):
        (folder / path).mkdir(parents=True, exist_ok=True)
        fill(folder / path, names.index(path.split("/")[-1]), count, 100 * first)
    return folder


def classes_seen(split: ImageSplit) -> list[int]:
    """The class of each image, by its brightness."""
    return (split.images[:, 0, 0, 0] // STEP).tolist()


def counts(bundle: DataBundle) -> dict[str, int]:
    return {name: len(split) for name, split in bundle.splits.items()}


def parquet(
    path: Path,
    values: Sequence[Any] | None,
    *,
    names: Sequence[str] | None = None,
    pictures: Sequence[bytes | None] | None = None,
    label: str = "label",
    image: str = "image",
    rows: int | None = None,
    **columns: Any,
) -> Path:
    """Write a parquet file as `datasets` does; with `names` the values are those of a ClassLabel."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = len(values if values is not None else pictures or next(iter(columns.values())))
    if pictures is None:
        pictures = [png(grey(0, index)) for index in range(count)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {
        key: pa.array(value) if isinstance(value, list) else value for key, value in columns.items()
    }
    features: dict[str, Any] = {}
    if image:
        content = [picture and {"bytes": picture, "path": None} for picture in pictures]
        table[image], features[image] = pa.array(content, struct), {"_type": "Image"}
    if values is not None:
        table[label] = pa.array(values) if isinstance(values, list) else values
    if names is not None:
        features[label] = {"_type": "ClassLabel", "names": list(names)}
    noted = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table).replace_schema_metadata(noted), path, row_group_size=rows)
    return path
