"""Answers for single images: classes and probabilities, from pixels that are those of the training.

What a network needs for this travels with it, in `network.details["image_format"]`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagecost.data.class_names import listed, shown
from stagecost.data.decoding import Pixels, read_pixels
from stagecost.data.encoded import ByteArray, Images, image_suffixes
from stagecost.data.folders import list_folder
from stagecost.data.images import ImageFormat, normalise
from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork, first_tensor
from stagecost.text import counted
from stagecost.trajectory import device_of, evaluation_mode

BATCH = 256  # images that are decoded and computed at a time, as in an evaluation


@dataclass(frozen=True)
class ClassProbability:
    """A class, and how probable the network holds it."""

    label: str  #: the name of the class
    probability: float  #: from 0 to 1


@dataclass(frozen=True)
class Prediction:
    """What a network says of an image."""

    path: str  #: of the image; the place in the list of one that is no file
    label: str  #: the most probable class
    probability: float  #: of this class, from 0 to 1
    top: tuple[ClassProbability, ...]  #: the most probable classes, in order


def image_format_of(network: ResidualNetwork) -> ImageFormat:
    """Return how the images of a network are prepared.

    Raises:
        StageCostError: it does not say.
    """
    if "image_format" not in network.details:
        raise StageCostError(
            "this network does not say how its images are prepared: set "
            "network.details['image_format'] = ImageFormat(…).to_json(), or save it by `stagecost prune`"
        )
    return ImageFormat.from_json(network.details["image_format"])


def predict(
    network: ResidualNetwork,
    images: Sequence[Any],
    *,
    top_k: int = 3,
    skip_broken: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[list[Prediction], list[str]]:
    """Classify images.

    Args:
        network: is left in the mode it was in.
        images: paths, pictures of Pillow, or arrays of bytes (H, W) or (H, W, channels).
        top_k: how many classes to tell of each, at most as many as there are.
        skip_broken: leave images out that cannot be decoded.
        advance: is told how many images were done, again and again.

    Returns:
        The predictions, and what is doubtful: a line for each image that was left out, and one where
        pixels were cut off.

    Raises:
        StageCostError: there is no image, some cannot be decoded, their preparation is not known or that
            of a network of other classes, or outputs are no numbers.
    """
    image_format = image_format_of(network)
    if top_k < 1:
        raise StageCostError(f"--top-k is {top_k}: give at least 1")
    if not images:
        raise StageCostError("there are no images to classify: give at least one")
    predictions: list[Prediction] = []
    broken: list[str] = []
    clipped = False
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        pixels = decode(batch, image_format, start)
        broken += pixels.broken
        clipped |= pixels.clipped
        if len(pixels.kept):
            names = [_name(start + place, batch[place]) for place in pixels.kept.tolist()]
            rows = probabilities(network, torch.from_numpy(pixels.array), image_format)
            predictions += _named(names, rows, image_format.class_names, top_k)
        advance(len(batch))
    if broken and not (skip_broken and predictions):
        remedy = "give one that can" if skip_broken else "leave them out by --skip-broken"
        raise StageCostError(
            f"{counted(len(broken), 'image')} cannot be decoded: {listed(broken, 20)}: replace or "
            f"remove such files, or {remedy}"
        )
    cut_off = ["some have brighter or darker pixels than the training images: cut off"] * clipped
    return predictions, [*(f"left out {line}" for line in broken), *cut_off]


def image_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return files as they are, and folders as the image files that lie below them, in order.

    Raises:
        StageCostError: a folder without any image, or an empty path, which would be the folder at hand.
    """
    if "" in paths:
        raise StageCostError("the path of an image is empty: give a file or a folder")
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        found = [path / name for name in list_folder(path).ending_in(image_suffixes())]
        if not found:
            raise StageCostError(
                f"{shown(path)} has no image files (such as .png or .jpg): give a folder of images"
            )
        files += found
    return files


def decode(images: Sequence[Any], image_format: ImageFormat, start: int = 0) -> Pixels:
    """Decode images as those of the training were.

    An image of more than 8 bits among a network's images of 8 bits counts as broken: its scale would
    depend on the images beside it.

    Args:
        images: see `predict`.
        image_format: of the network.
        start: number of the first one, for messages.
    """
    records = [Path(image) if isinstance(image, str) else image for image in images]
    source = Images(
        lambda rows: [records[row] for row in rows], lambda row: _name(start + row, images[row]), str
    )
    read = partial(read_pixels, source, channels=image_format.channels, size=image_format.size)
    read = partial(read, interpolation=image_format.interpolation)
    pixels = read(np.arange(len(records)), levels=image_format.levels)
    if pixels.levels == image_format.levels:
        return pixels
    kept: list[int] = []
    arrays, broken = list[ByteArray](), list[str]()
    for row in range(len(records)):
        one = read(np.array([row]))
        deep = [f"{source.name(row)} (more than 8 bits, and the training images had 8)"]
        broken += deep if one.levels is not None else list(one.broken)
        if one.levels is None and len(one.kept):
            kept.append(row)
            arrays.append(one.array)
    array = np.concatenate([pixels.array[:0], *arrays])
    return Pixels(array, np.array(kept, np.int64), None, tuple(broken))


def probabilities(network: ResidualNetwork, pixels: Tensor, image_format: ImageFormat) -> Tensor:
    """Compute the probabilities (n, classes) of bytes (n, channels, size, size), on the CPU.

    Raises:
        StageCostError: they are no numbers, or those of other classes than the format's.
    """
    with evaluation_mode(network):
        images = normalise(pixels.to(device_of(network)), image_format)
        outputs = network(images.to(first_tensor(network).dtype))
        shares: Tensor = outputs.float().softmax(dim=1).cpu()
    check_classes(shares, image_format)
    if bool(shares.isnan().any()):
        raise StageCostError("the outputs of the network are no numbers: look at its weights")
    return shares


def check_classes(outputs: Tensor, image_format: ImageFormat) -> None:
    """Refuse outputs (n, classes) of other classes than an image format names, by a StageCostError."""
    if outputs.shape[1] != len(image_format.class_names):
        raise StageCostError(
            f"the network has {outputs.shape[1]} outputs, and its image format names "
            f"{len(image_format.class_names)} classes: name each in network.details['image_format']"
        )


def _named(
    names: Sequence[str], rows: Tensor, classes: Sequence[str], top_k: int
) -> Iterator[Prediction]:
    # Of equal ones the first class comes first, as everywhere: bfloat16 has many.
    values, places = (each[:, :top_k] for each in rows.sort(dim=1, descending=True, stable=True))
    for name, some, where in zip(names, values.tolist(), places.tolist(), strict=True):
        top = tuple(ClassProbability(classes[k], p) for k, p in zip(where, some, strict=True))
        yield Prediction(name, top[0].label, top[0].probability, top)


def _name(place: int, image: Any) -> str:
    return str(image) if isinstance(image, str | Path) else f"image {place}"
