"""Cuts of finished networks, without training after them."""

from collections.abc import Sequence
from dataclasses import replace

from stagecost.calibration import recalibrate
from stagecost.data.batches import eval_batches
from stagecost.prune import kept_indices
from stagecost.surgery import copy_with_blocks
from stagecost.training.trained import Trained

CALIBRATION_IMAGES = 2048
"""Training images from which BatchNorm statistics are estimated anew."""


def first_blocks(trained: Trained, keep: int) -> Trained:
    """Return the first blocks of a network; in a homogeneous one this is exact."""
    network = trained.network
    return replace(trained, network=copy_with_blocks(network, network.block_indices[:keep]))


def first_of_each_stage(trained: Trained, keep: Sequence[int]) -> Trained:
    """Return the first blocks of each stage, with BatchNorm statistics estimated anew."""
    small = copy_with_blocks(trained.network, kept_indices(trained.network, keep))
    some = trained.load("train").splits["train"].first(CALIBRATION_IMAGES)
    recalibrate(small, eval_batches(some, trained.image_format, device=trained.device))
    return replace(trained, network=small.eval())
