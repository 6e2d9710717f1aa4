"""The loss trajectory: loss and accuracy of every output y_0 … y_N on a data set, in one pass.

In a homogeneous network y_M of the full network is exactly the output of its first M blocks, so the
trajectory tells the accuracy of every candidate depth before anything is cut.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecost.errors import StageCostError
from stagecost.fast_outputs import FastOutputs, fast_outputs
from stagecost.network import ResidualNetwork
from stagecost.norms import sample_norms, step, weight_norms
from stagecost.objective import LossFunction, losses_row_by_row
from stagecost.outputs import intermediate_output

Loader = Iterable[tuple[Tensor, Tensor]]
"""Batches of (images (B, C, H, W), targets (B, …)), such as a `DataLoader`."""


@dataclass(frozen=True)
class Trajectory:
    """What a pass over a data set tells of every depth; all means are weighted by sample.

    Attributes:
        losses: L_k, k = 0 … N.
        accuracies: percent, k = 0 … N; NaN where targets are not class labels.
        residual_ratios: mean of ‖F_k(x_k)‖/‖x_k‖, k = 0 … N-1.
        weight_norms: ‖w_F,k‖, k = 0 … N-1.
        stage_starts: positions of the blocks that begin a stage; (0,) if homogeneous.
        num_samples: size of the data set.
        image_shape: (C, H, W) of the images.
    """

    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    residual_ratios: tuple[float, ...]
    weight_norms: tuple[float, ...]
    stage_starts: tuple[int, ...]
    num_samples: int
    image_shape: tuple[int, int, int]

    @property
    def num_blocks(self) -> int:
        """N."""
        return len(self.losses) - 1

    def needed_blocks(self, tolerance: float) -> int:
        """Return the least M ≥ 1 whose output is within `tolerance` points of the terminal one."""
        return needed_blocks(self.accuracies, tolerance)


def needed_blocks(accuracies: Sequence[float], tolerance: float) -> int:
    """Return the least M ≥ 1 with accuracy_M ≥ accuracy_N − tolerance.

    Args:
        accuracies: of the outputs y_0 … y_N, in percent.
        tolerance: points, ≥ 0.

    Raises:
        StageCostError: the tolerance is negative or not a number, or the accuracies are no numbers.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise StageCostError(f"tolerance is {tolerance}: give points of accuracy, at least 0")
    if len(accuracies) < 2 or math.isnan(accuracies[-1]):
        raise StageCostError("needed blocks are found from accuracies: the targets must be class labels")
    # A hair of slack, so that a drop of just the tolerance passes in spite of rounding.
    least = accuracies[-1] - tolerance - 1e-9
    return next(depth for depth in range(1, len(accuracies)) if accuracies[depth] >= least)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode without gradients, and back into its own modes afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's parameters."""
    return next(network.parameters()).device


@dataclass
class _Sums:
    """Sums over the samples seen so far, in double precision, for each depth."""

    losses: Tensor
    correct: Tensor
    ratios: Tensor
    num_samples: int = 0

    @classmethod
    def of(cls, num_outputs: int) -> "_Sums":
        losses, correct, ratios = torch.zeros(3, num_outputs, dtype=torch.float64)
        return cls(losses, correct, ratios)


def loss_trajectory(
    network: ResidualNetwork, loader: Loader, *, loss: LossFunction = F.cross_entropy
) -> Trajectory:
    """Measure every output on a data set, in eval mode, holding one batch at a time.

    Args:
        network: is left in the mode it was in.
        loader: batches of (images, targets); moved to the network's device.
        loss: maps (output, target) to a mean loss or one loss a sample.

    Raises:
        StageCostError: the loader gives no batch.
    """
    sums = _Sums.of(network.num_blocks + 1)
    image_shape: tuple[int, ...] = ()
    with evaluation_mode(network):
        for images, targets in loader:
            image_shape = tuple(images.shape[1:])
            device = device_of(network)
            _add_batch(network, images.to(device), targets.to(device), loss, sums)
    if sums.num_samples == 0:
        raise StageCostError("the data set is empty: give at least one image")
    starts = tuple(network.block_indices.index(stage[0]) for stage in network.stages)
    classified = not bool(torch.isnan(sums.correct).any())
    accuracies = 100 * sums.correct / sums.num_samples
    return Trajectory(
        losses=tuple((sums.losses / sums.num_samples).tolist()),
        accuracies=tuple(accuracies.tolist()) if classified else (math.nan,) * len(sums.losses),
        residual_ratios=tuple((sums.ratios / sums.num_samples)[1:].tolist()),
        weight_norms=tuple(weight_norms(network)),
        stage_starts=starts,
        num_samples=sums.num_samples,
        image_shape=(image_shape[0], image_shape[1], image_shape[2]),
    )


def _add_batch(
    network: ResidualNetwork, images: Tensor, targets: Tensor, loss: LossFunction, sums: _Sums
) -> None:
    outputs, ratios = _visit(network, images)
    # Row by row, so that every one is, to the last bit, what the truncated network would have.
    losses = losses_row_by_row(outputs, targets, loss)
    sums.losses += losses.double().cpu() * len(images)
    sums.correct += count_correct(outputs, targets)
    sums.ratios[1:] += ratios.double().sum(dim=1).cpu()
    sums.num_samples += len(images)


def _visit(network: ResidualNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return all outputs, (N+1, B, …), and ‖F_k(x_k)‖/‖x_k‖, (N, B), of a batch from one pass."""
    skips, head = network.skips, network.head
    fast = fast_outputs(head, skips)
    state: Tensor = network.stem(images)
    outputs, controls, sizes = [], [], [sample_norms(state)]
    for depth, block in enumerate(network.blocks.values()):
        outputs.append(_output(fast, skips, head, state, depth))
        state, control, size = step(block, state)
        controls.append(control)
        sizes.append(size)
    outputs.append(intermediate_output(skips, head, state, network.num_blocks))
    scales = torch.stack(sizes[:-1]).clamp_min(torch.finfo(state.dtype).tiny)
    return torch.stack(outputs), torch.stack(controls) / scales


def _output(
    fast: FastOutputs | None, skips: list[nn.Module], head: nn.Module, state: Tensor, depth: int
) -> Tensor:
    if fast is None:
        return intermediate_output(skips, head, state, depth)
    return fast.read(state, depth)


def count_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Count the right answers of outputs (…, B, classes), in double precision on the CPU.

    NaN where there is no accuracy: regression, or several labels a sample.
    """
    if outputs.dim() < 2 or targets.dim() != 1 or targets.is_floating_point():
        return torch.full(outputs.shape[:-2], math.nan, dtype=torch.float64)
    return (outputs.argmax(dim=-1) == targets).sum(dim=-1).double().cpu()


def terminal_score(
    network: ResidualNetwork, loader: Loader, *, loss: LossFunction = F.cross_entropy
) -> tuple[float, float]:
    """Measure accuracy (percent) and loss of the terminal output alone, in eval mode.

    Raises:
        StageCostError: the loader gives no batch.
    """
    total, correct, num_samples = 0.0, 0.0, 0
    with evaluation_mode(network):
        device = device_of(network)
        for images, on_host in loader:
            output, targets = network(images.to(device)), on_host.to(device)
            total += float(losses_row_by_row(output[None], targets, loss)) * len(images)
            correct += float(count_correct(output, targets))
            num_samples += len(images)
    if num_samples == 0:
        raise StageCostError("the data set is empty: give at least one image")
    return 100 * correct / num_samples, total / num_samples
