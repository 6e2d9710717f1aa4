"""Cuts of finished networks, without training after them."""

from collections.abc import Sequence
from dataclasses import replace

from stagecost.calibration import recalibrate
from stagecost.data.batches import eval_batches
from stagecost.network import ResidualNetwork
from stagecost.prune import kept_indices
from stagecost.surgery import copy_with_blocks
from stagecost.training.session import CALIBRATION_IMAGES
from stagecost.training.trained import Trained


def first_blocks(network: ResidualNetwork, count: int) -> ResidualNetwork:
    """Return a copy of the first blocks and the head."""
    return copy_with_blocks(network, network.block_indices[:count])


def first_of_each_stage(trained: Trained, keep: Sequence[int]) -> Trained:
    """Return the first blocks of each stage, with BatchNorm statistics estimated anew."""
    small = copy_with_blocks(trained.network, kept_indices(trained.network, keep))
    some = trained.load("train").splits["train"].first(CALIBRATION_IMAGES)
    recalibrate(small, eval_batches(some, trained.image_format, device=trained.device))
    return replace(trained, network=small.eval())
