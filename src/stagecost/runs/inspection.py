"""`stagecost analyze timm/NAME --weights … --data …`: which blocks do something on these images.

Nothing is trained but linear heads. Where the weights have no classifier for the classes of the data,
one is fitted to the training images; then each block is left out in turn, on validation images, and a
linear head is fitted on the state at every depth.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import ClassVar

import torch

from stagecost.cut import Cut
from stagecost.data.batches import FixedBatches, sample_batches
from stagecost.data.images import ImageFormat
from stagecost.data.loading import load_data
from stagecost.errors import StageCostError
from stagecost.macs import count_macs
from stagecost.models.catalogue import pretrained_model
from stagecost.network import ResidualNetwork
from stagecost.probes import fit_classifier, linear_probes
from stagecost.runs.certainty import Interval, chance_of, warnings_on, wilson
from stagecost.runs.results import Result
from stagecost.saved import read_config
from stagecost.train.devices import select_device
from stagecost.train.parsing import parse_settings
from stagecost.train.setup import data_config, network_arguments
from stagecost.trajectory import Score, evaluate_cuts

logger = logging.getLogger("stagecost")

HEAD_IMAGES = 2048  # that heads are fitted to, at most
JUDGED_IMAGES = 512  # that blocks are left out on, at most
BATCH = 64


@dataclass(frozen=True)
class BlockScore:
    """The network without one block."""

    block: int  #: k
    path: str  #: of the block in the model; empty in a native network
    removal_cost: float  #: by how much the loss rises without it
    loss: float  #: without it
    accuracy: float  #: without it, percent
    macs: int  #: that go with it, for one image


@dataclass(frozen=True)
class DepthScore:
    """A linear head, fitted on x_k."""

    depth: int  #: k
    loss: float  #: on validation images
    accuracy: float  #: percent
    interval: Interval | None  #: Wilson's, of the accuracy


UNNAMED = (
    "the weights have a classifier of {} classes and do not name them: that they are those of the "
    "images, in their order, is taken for granted"
)


@dataclass(frozen=True)
class Inspection(Result):
    """What the blocks of a network do on images, before any training."""

    aliases: ClassVar[Mapping[str, str]] = {"depths": "heads", "num_train": "num_train_images"}

    model: str  #: its name
    weights: str  #: whose they are
    num_blocks: int  #: N
    head: str  #: own, or fitted where the weights have none for these classes
    loss: float  #: of the whole network, on validation images
    accuracy: float  #: percent
    interval: Interval | None  #: Wilson's, of the accuracy
    macs: int  #: of the whole network, for one image
    blocks: tuple[BlockScore, ...]  #: the network without each block
    heads: tuple[DepthScore, ...]  #: linear heads on x_0 … x_N
    num_images: int  #: validation images
    num_train_images: int  #: training images that heads were fitted to
    seconds: float  #: that it took
    warnings: tuple[str, ...]  #: what makes it doubtful


def inspect_model(
    model: str,
    *,
    weights: str | None = None,
    data: str | None = None,
    image_size: int | None = None,
    device: str = "auto",
) -> Inspection:
    """Measure what each block of a network does on images, without training it.

    Args:
        model: a name, such as "timm/resnet18".
        weights: as of `stagecost train`.
        data: images, as of `stagecost train`; a tenth of the training images are validation images.
        image_size: side in pixels; that of the model's own configuration if not given.

    Raises:
        StageCostError: no such weights or images.
    """
    if weights is None:
        raise StageCostError(f"{model} has random weights: give --weights, a file or pretrained")
    began = monotonic()
    given = {"model": model, "weights": weights, "data": data, "image_size": image_size}
    settings = parse_settings({key: value for key, value in given.items() if value is not None})
    bundle = load_data(data_config(settings), seed=settings.training.seed, splits=("train", "val"))
    place = select_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training.seed)
        network, fresh = pretrained_model(model, weights, **network_arguments(settings, bundle))
    network.eval().to(device=place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    train, val = (
        sample_batches(
            bundle.splits[split], bundle.format, count=count, seed=0, batch_size=BATCH, device=place
        )
        for split, count in (("train", HEAD_IMAGES), ("val", JUDGED_IMAGES))
    )
    known = _class_names(weights)
    fitted = bool(fresh) or (known is not None and known != bundle.format.class_names)
    if fitted:
        logger.info("fitting a head to %d training images", train.num_images)
        fit_classifier(network, train, bundle.num_classes)
    whole, blocks = _block_scores(network, val, bundle.format.shape)
    count, chance = val.num_images, chance_of(bundle.splits["val"].targets.tolist())
    return Inspection(
        model=model,
        weights=weights,
        num_blocks=network.num_blocks,
        head="fitted" if fitted else "own",
        loss=whole.loss,
        accuracy=whole.accuracy,
        interval=wilson(whole.accuracy, count),
        macs=count_macs(network, bundle.format.shape),
        blocks=blocks,
        heads=_depth_scores(network, train, val),
        num_images=count,
        num_train_images=train.num_images,
        seconds=round(monotonic() - began, 1),
        warnings=(
            *((UNNAMED.format(bundle.num_classes),) if known is None and not fitted else ()),
            *warnings_on(whole.accuracy, count, chance, None),
        ),
    )


def _class_names(weights: str) -> tuple[str, ...] | None:
    """Return the classes of a saved network; None where weights do not say what theirs are."""
    saved = read_config(Path(weights)) if Path(weights).is_dir() else {}
    return ImageFormat.from_json(saved["image_format"]).class_names if "image_format" in saved else None


def _block_scores(
    network: ResidualNetwork, val: FixedBatches, shape: Sequence[int]
) -> tuple[Score, tuple[BlockScore, ...]]:
    """Measure the whole network, and what it is worth without each block."""
    blocks = range(network.num_blocks)
    logger.info("leaving out each of %d blocks on %d images", len(blocks), val.num_images)
    whole, *without = evaluate_cuts(network, val, [Cut.whole(), *map(Cut.without, blocks)])
    macs, paths = count_macs(network, shape), getattr(network, "paths", ("",) * len(blocks))
    return whole, tuple(
        BlockScore(
            block=network.block_indices[k],
            path=paths[k],
            removal_cost=score.loss - whole.loss,
            loss=score.loss,
            accuracy=score.accuracy,
            macs=macs - count_macs(network, shape, score.cut),
        )
        for k, score in enumerate(without)
    )


def _depth_scores(
    network: ResidualNetwork, train: FixedBatches, val: FixedBatches
) -> tuple[DepthScore, ...]:
    logger.info("fitting linear heads on the states at %d depths", network.num_blocks + 1)
    return tuple(
        DepthScore(k, score.loss, score.accuracy, wilson(score.accuracy, val.num_images))
        for k, score in enumerate(linear_probes(network, train, val))
    )
