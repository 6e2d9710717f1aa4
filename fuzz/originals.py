"""The valid files that are mutated: a run under way, a saved network, and small data sets.

They are the same bytes wherever and whenever they are made, so that a seed says what was tried. Paths
in them are relative to the folder that they are in.
"""

import gzip
import io
import json
import logging
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from PIL import Image

from fuzz.tensors import TensorFile

SIZE = 8  # side of the images, in pixels
TRAIN, TEST = 16, 8  # images
DATA = "data"

Files = dict[str, bytes]
"""The content of files by their paths from a folder on."""


def make_originals(folder: Path) -> Files:
    """Make all files in an empty folder, and return them; it is left empty but for the data."""
    from stagecost.runs.pruning import prune
    from stagecost.runs.training import train

    data = {f"{DATA}/{name}": content for name, content in idx_files().items()}
    write(folder, data)
    stopped = RuntimeError("far enough")

    def stop(state: Any, step: Any) -> None:
        if state.progress.epoch == 1:
            raise stopped

    with mock.patch("stagecost.train.state.monotonic", return_value=0.0):
        try:
            train(settings(folder / DATA), folder / "run", on_step=stop)
        except RuntimeError as error:
            if error is not stopped:
                raise
        prune(folder / "run", folder / "saved", keep=2)
    files = read(folder)
    for name in ("run/last.safetensors", "run/best.safetensors"):
        files[name] = _relative(files[name], folder)
    for name in ("run/config.yaml", "saved/config.json", "saved/model.safetensors"):
        if name.endswith(".safetensors"):
            files[name] = _relative(files[name], folder)
        else:
            files[name] = files[name].replace(str(folder / DATA).encode(), DATA.encode())
    return files


def settings(data: Path) -> dict[str, object]:
    """Return settings of a training that takes a fraction of a second."""
    return {
        "data": str(data),
        "val_fraction": 0.25,
        "augment": "none",
        "num_blocks": 3,
        "width": 4,
        "epochs": 2,
        "batch_size": 4,
        "device": "cpu",
        "seed": 1,
    }


def _relative(content: bytes, folder: Path) -> bytes:
    file = TensorFile.parse(content)
    old, new = json.dumps(str(folder / DATA)), json.dumps(DATA)
    file.metadata = {key: text.replace(old, new) for key, text in file.metadata.items()}
    return file.to_bytes()


def read(folder: Path) -> Files:
    """Return every file of a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def pixels(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return grey images of two classes, one darker than the other; (n, 8, 8) and (n,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.uint8) % 2
    return (rng.integers(0, 128, (count, SIZE, SIZE)) + 127 * labels[:, None, None]).astype(
        np.uint8
    ), labels


def idx_files() -> Files:
    """Return a data set in the format of MNIST."""
    files = {}
    for split, count, seed in (("train", TRAIN, 0), ("t10k", TEST, 1)):
        images, labels = pixels(count, seed)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            files[f"{split}-{kind}-ubyte"] = header + array.tobytes()
    return files


def idx_gz_files() -> Files:
    """Return the same, compressed."""
    return {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in idx_files().items()}


ENCODERS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"}, "jpg": {"format": "JPEG"}, "bmp": {"format": "BMP"},
    "gif": {"format": "GIF"}, "webp": {"format": "WEBP", "lossless": True},
    "tif": {"format": "TIFF"}, "ppm": {"format": "PPM"}, "tga": {"format": "TGA"},
    "jp2": {"format": "JPEG2000"}, "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"},
}  # fmt: skip
MODES = ("L", "RGB", "RGBA", "P", "I;16")


def encoded(array: np.ndarray, ending: str, mode: str) -> bytes:
    """Encode a picture; in grey where the format does not know the mode."""
    picture = Image.fromarray(array)
    changed = Image.fromarray(array.astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    for candidate in (changed, picture.convert("RGB"), picture):
        content = io.BytesIO()
        try:
            candidate.save(content, **ENCODERS[ending])
        except (OSError, ValueError, KeyError):
            continue
        return content.getvalue()
    raise AssertionError(ending)


def image_files() -> Files:
    """Return a folder of pictures in two class directories, every format and mode once."""
    images, labels = pixels(len(ENCODERS) * len(MODES), 2)
    kinds = [(ending, mode) for ending in ENCODERS for mode in MODES]
    return {
        f"{'ab'[label]}/{number:02d}.{ending}": encoded(image, ending, mode)
        for number, (image, label, (ending, mode)) in enumerate(zip(images, labels, kinds, strict=True))
    }


def table_files() -> Files:
    """Return pictures with a table of labels beside them."""
    images, labels = pixels(TRAIN, 3)
    files = {f"{k}.png": encoded(image, "png", "L") for k, image in enumerate(images)}
    lines = [f"{k}.png,{'ab'[label]}" for k, label in enumerate(labels)]
    return {**files, "metadata.csv": ("file_name,label\n" + "\n".join(lines) + "\n").encode()}


def parquet_files(labels_as: str = "class") -> Files:
    """Return a data set in one parquet file a split, as on the Hugging Face Hub.

    Args:
        labels_as: class (numbers with names), text, or whole (numbers without names).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = {}
    for split, count, seed in (("train", TRAIN, 0), ("test", TEST, 1)):
        images, labels = pixels(count, seed)
        rows = [{"bytes": encoded(image, "png", "L"), "path": None} for image in images]
        column = ["ab"[label] for label in labels] if labels_as == "text" else labels.astype(np.int64)
        names = {"_type": "ClassLabel", "names": ["a", "b"]} if labels_as == "class" else {}
        features = {"image": {"_type": "Image"}, "label": names or {"_type": "Value"}}
        noted = {"huggingface": json.dumps({"info": {"features": features}})}
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        table = pa.table({"image": pa.array(rows, kind), "label": pa.array(column)})
        content = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(noted), content, row_group_size=6)
        files[f"{split}-00000-of-00001.parquet"] = content.getvalue()
    return files


DATA_SETS: dict[str, Callable[[], Files]] = {
    "idx": idx_files,
    "idx_gz": idx_gz_files,
    "images": image_files,
    "table": table_files,
    "parquet": parquet_files,
    "parquet_text": lambda: parquet_files("text"),
    "parquet_whole": lambda: parquet_files("whole"),
}


def quiet() -> None:
    """Keep the remarks of the project and of libraries off the screen; compute in one thread."""
    import warnings

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    yaml.SafeLoader  # noqa: B018
