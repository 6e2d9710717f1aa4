"""`stagecost analyze timm/NAME --weights … --data …`: which blocks do something on these images.

Nothing is trained but linear heads. Where the weights have no classifier for the classes of the data,
one is fitted to the training images; then each block is left out in turn, on validation images, and a
linear head is fitted on the state at every depth.
"""

import logging
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch

from stagecost.cut import Cut
from stagecost.data.batches import FixedBatches, sample_batches
from stagecost.data.loading import DataBundle, load_data
from stagecost.errors import StageCostError
from stagecost.macs import count_macs
from stagecost.models.catalogue import pretrained_model
from stagecost.network import ResidualNetwork
from stagecost.probes import fit_classifier, linear_probes
from stagecost.runs.certainty import Interval, chance_of, warnings_on, wilson
from stagecost.runs.results import Result
from stagecost.train.devices import select_device
from stagecost.train.parsing import parse_settings
from stagecost.train.setup import data_config, network_arguments
from stagecost.trajectory import evaluate_cuts

logger = logging.getLogger("stagecost")

HEAD_IMAGES = 2048  # that heads are fitted to, at most
JUDGED_IMAGES = 512  # that blocks are left out on, at most
BATCH = 64


@dataclass(frozen=True)
class BlockScore:
    """The network without one block.

    Attributes:
        block: k.
        path: of the block in the model; empty in a native network.
        removal_cost: by how much the loss rises without it.
        loss: without it.
        accuracy: without it, percent.
        macs: that go with it, for one image.
    """

    block: int
    path: str
    removal_cost: float
    loss: float
    accuracy: float
    macs: int


@dataclass(frozen=True)
class DepthScore:
    """A linear head, fitted on x_k.

    Attributes:
        depth: k.
        loss: on validation images.
        accuracy: percent.
        interval: Wilson's, of the accuracy.
    """

    depth: int
    loss: float
    accuracy: float
    interval: Interval | None


@dataclass(frozen=True)
class Inspection(Result):
    """What the blocks of a network do on images, before any training.

    Attributes:
        model: its name.
        weights: whose they are.
        num_blocks: N.
        head: own, or fitted where the weights have none for these classes.
        loss: of the whole network, on validation images.
        accuracy: percent.
        interval: Wilson's, of the accuracy.
        macs: of the whole network, for one image.
        blocks: the network without each block.
        depths: linear heads on x_0 … x_N.
        num_images: validation images.
        num_train: training images that heads were fitted to.
        seconds: that it took.
        warnings: what makes it doubtful.
    """

    model: str
    weights: str
    num_blocks: int
    head: str
    loss: float
    accuracy: float
    interval: Interval | None
    macs: int
    blocks: tuple[BlockScore, ...]
    depths: tuple[DepthScore, ...]
    num_images: int
    num_train: int
    seconds: float
    warnings: tuple[str, ...]


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
        device: where to compute.

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
    torch.manual_seed(settings.training.seed)
    network, fresh = pretrained_model(model, weights, **network_arguments(settings, bundle))
    network.eval().to(device=place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    train, val = (
        _batches(bundle, "train", HEAD_IMAGES, place),
        _batches(bundle, "val", JUDGED_IMAGES, place),
    )
    if fresh:
        logger.info("fitting a head to %d training images", _count(train))
        fit_classifier(network, train, bundle.num_classes)
    measured = _measured(network, bundle, train, val)
    return Inspection(
        model=model,
        weights=weights,
        num_blocks=network.num_blocks,
        head="fitted" if fresh else "own",
        num_train=_count(train),
        seconds=round(monotonic() - began, 1),
        **measured,
    )


def _batches(bundle: DataBundle, split: str, count: int, device: torch.device) -> FixedBatches:
    images = bundle.splits[split]
    return sample_batches(images, bundle.format, count=count, seed=0, batch_size=BATCH, device=device)


def _count(batches: FixedBatches) -> int:
    places = torch.arange(len(batches.split))
    return sum(len(places[rows]) for rows in batches.rows)


def _measured(
    network: ResidualNetwork, bundle: DataBundle, train: FixedBatches, val: FixedBatches
) -> dict[str, Any]:
    count, shape = _count(val), (bundle.format.channels, bundle.format.size, bundle.format.size)
    logger.info("leaving out each of %d blocks on %d images", network.num_blocks, count)
    blocks = range(network.num_blocks)
    whole, *without = evaluate_cuts(network, val, [Cut.whole(), *map(Cut.without, blocks)])
    macs = count_macs(network, shape)
    paths = getattr(network, "paths", ("",) * network.num_blocks)
    logger.info("fitting linear heads on the states at %d depths", network.num_blocks + 1)
    probes = linear_probes(network, train, val)
    chance = chance_of(bundle.splits["val"].targets.tolist())
    return {
        "loss": whole.loss,
        "accuracy": whole.accuracy,
        "interval": wilson(whole.accuracy, count),
        "macs": macs,
        "blocks": tuple(
            BlockScore(
                block=k,
                path=paths[k],
                removal_cost=score.loss - whole.loss,
                loss=score.loss,
                accuracy=score.accuracy,
                macs=macs - count_macs(network, shape, score.cut),
            )
            for k, score in enumerate(without)
        ),
        "depths": tuple(
            DepthScore(k, score.loss, score.accuracy, wilson(score.accuracy, count))
            for k, score in enumerate(probes)
        ),
        "num_images": count,
        "warnings": warnings_on(whole.accuracy, count, chance, None),
    }
