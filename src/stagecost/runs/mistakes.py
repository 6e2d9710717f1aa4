"""What a cut gets wrong that the whole network gets right: counts by class, and a few of the images."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stagecost.cut import Cut
from stagecost.data.batches import FixedBatches
from stagecost.data.images import ImageFormat
from stagecost.errors import StageCostError
from stagecost.models.catalogue import cut_to, load
from stagecost.network import ResidualNetwork
from stagecost.report.data import THUMBNAIL, Confusion, WrongImage
from stagecost.runs.folder import RunFolder
from stagecost.runs.trained import Trained
from stagecost.saved import CONFIG_FILE
from stagecost.storage import read_json
from stagecost.trajectory import COLLAPSED, evaluation_mode

MOST_SHOWN, MOST_CLASSES = 12, 100
THUMBNAIL_SIZE = 96  # pixels


@dataclass(frozen=True)
class Mistakes:
    """What a cut gets wrong."""

    confusion: Confusion | None  #: its answers by class; None of more classes than can be shown
    #: images that the whole network gets right and the cut wrong, a few of them
    newly_wrong: tuple[WrongImage, ...]
    newly_wrong_count: int  #: how many there are in all


def mistakes_of(
    trained: Trained, batches: FixedBatches, kept_blocks: Sequence[int], saved: str = ""
) -> Mistakes:
    """Compare a cut with the whole network, image by image.

    Args:
        trained: the whole network.
        batches: the images, in order.
        kept_blocks: the paper's k of the blocks that stay.
        saved: folder of the small network, if there is one, which may have been trained on.
    """
    network, small = trained.network, saved_network(saved, trained, kept_blocks)
    cuts = [Cut.whole(), cut_to(network, kept_blocks)] if small is None else [Cut.whole()]
    answers = []
    with evaluation_mode(network):
        for images, _ in batches:
            outputs = [*network(images, cuts, how=COLLAPSED)]
            outputs += [] if small is None else [small(images)]
            answers.append(torch.stack(outputs).argmax(dim=2).cpu())
    (before, after), right = torch.cat(answers, dim=1), batches.split.targets.cpu()
    rows = ((before == right) & (after != right)).nonzero().flatten().tolist()
    names = trained.image_format.class_names
    count = min(len(rows), MOST_SHOWN)
    chosen = [rows[place * len(rows) // count] for place in range(count)]
    images = batches.split.images
    wrong = tuple(
        WrongImage(thumbnail(images[row]), names[right[row]], names[after[row]]) for row in chosen
    )
    return Mistakes(_confusion(right, after, names), wrong, len(rows))


def saved_network(folder: str, trained: Trained, kept_blocks: Sequence[int]) -> ResidualNetwork | None:
    """Load the small network, unless it is there no more, or another one is by now."""
    if not folder or not (Path(folder) / CONFIG_FILE).is_file():
        return None
    try:
        small = load(folder)
        images = ImageFormat.from_json(small.details.get("image_format", {}))
    except StageCostError:
        return None
    alike = images == trained.image_format and small.block_indices == (*kept_blocks,)
    told, latest = read_json(Path(folder) / CONFIG_FILE).get("pruning"), RunFolder(trained.path).pruning
    if told is not None and latest.is_file():  # the same folder may hold a cut of another run by now
        alike = alike and isinstance(told, dict) and _outcome(told) == _outcome(read_json(latest))
    return small.to(trained.device) if alike else None


def _outcome(pruning: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a pruning came to; its folder may be spelt otherwise."""
    return {key: value for key, value in pruning.items() if key not in ("network", "path")}


def _confusion(targets: Tensor, answers: Tensor, names: tuple[str, ...]) -> Confusion | None:
    count = len(names)
    if count > MOST_CLASSES:
        return None
    counts = torch.bincount(targets * count + answers, minlength=count**2).view(count, count)
    return Confusion(names, tuple(tuple(row) for row in counts.tolist()))


def thumbnail(pixels: Tensor) -> str:
    """Return an image, bytes (C, H, W) with C of 1 or 3, as an address that holds it."""
    from PIL import Image

    array = pixels.cpu().permute(1, 2, 0).numpy()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"{THUMBNAIL}png;base64,{base64.b64encode(file.getvalue()).decode()}"
