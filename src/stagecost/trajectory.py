"""The loss trajectory: loss and accuracy of every output y_0 … y_N on a data set, in one pass.

In a homogeneous network y_M of the full network is exactly the output of its first M blocks, so the
trajectory tells the accuracy of every candidate depth before anything is cut. In a staged network the
y_k skip later stages whole; the cuts that can be made there, the first blocks of each stage, are further
rows.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecost.controls import ControlSizes, weight_norms
from stagecost.cut import Cut, resolve_cuts
from stagecost.dynamics import Observer, Pass
from stagecost.errors import StageCostError
from stagecost.losses import LossFunction, counted_samples, leaves_out, losses_of
from stagecost.network import ResidualNetwork, first_tensor
from stagecost.text import html_table, one_line

if TYPE_CHECKING:
    from stagecost.report.charts import Chart

Loader = Iterable[tuple[Tensor, Tensor]]
"""Batches of (images (B, C, H, W), targets (B, …)), such as a `DataLoader`."""

COLLAPSED = Pass(collapsed=True)
NOTHING = (
    "the data set is empty, or the loss leaves every target out: give at least one image that counts"
)


@dataclass(frozen=True)
class Score:
    """How a cut of a network does on a data set.

    Attributes:
        cut: by the positions of its acting blocks.
        loss: mean over the samples that count: cross-entropy leaves out targets of -100.
        accuracy: percent; NaN where targets are not class labels.
        num_samples: on how many samples.
    """

    cut: Cut
    loss: float
    accuracy: float
    num_samples: int

    @property
    def rank(self) -> float:
        """The loss, to compare by: one that is no number is worse than any."""
        return math.inf if math.isnan(self.loss) else self.loss


@dataclass(frozen=True)
class Trajectory:
    """What a pass over a data set tells of every depth; all means are weighted by sample.

    Attributes:
        rows: the scores of y_0 … y_N, then of the further cuts that were asked for.
        residual_ratios: mean of ‖F_k(x_k)‖/‖x_k‖, k = 0 … N-1.
        weight_norms: ‖w_F,k‖, k = 0 … N-1. Alone they mislead: a convolution that feeds a BatchNorm can
            be scaled down a hundredfold and change the block by a tenth.
        stage_starts: positions of the blocks that begin a stage; (0,) if homogeneous.
        image_shape: (C, H, W) of the images.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> loader = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 10)]
        >>> trajectory = sc.loss_trajectory(net, loader)
        >>> len(trajectory.rows), len(trajectory.residual_ratios), trajectory.rows[2].cut.blocks
        (5, 4, (0, 1))
    """

    rows: tuple[Score, ...]
    residual_ratios: tuple[float, ...]
    weight_norms: tuple[float, ...]
    stage_starts: tuple[int, ...]
    image_shape: tuple[int, ...]

    @property
    def num_blocks(self) -> int:
        """N."""
        return len(self.residual_ratios)

    @property
    def num_samples(self) -> int:
        """Size of the data set."""
        return self.rows[0].num_samples

    @property
    def losses(self) -> tuple[float, ...]:
        """L_k, k = 0 … N."""
        return tuple(row.loss for row in self.rows[: self.num_blocks + 1])

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Percent, of y_k, k = 0 … N; NaN where targets are not class labels."""
        return tuple(row.accuracy for row in self.rows[: self.num_blocks + 1])

    @property
    def whole(self) -> Score:
        """The whole network."""
        return self.rows[self.num_blocks]

    @property
    def further(self) -> tuple[Score, ...]:
        """The cuts beside the y_k."""
        return self.rows[self.num_blocks + 1 :]

    def check(self, num_blocks: int) -> None:
        """Refuse a network of another number of blocks, by a StageCostError."""
        if self.num_blocks != num_blocks:
            raise StageCostError(
                f"the trajectory is of {self.num_blocks} blocks, and the network has {num_blocks}: "
                "measure this network by loss_trajectory"
            )

    def plot(self) -> "Chart":
        """Draw accuracy over depth, or the loss where there is no accuracy; a notebook shows it.

        Raises:
            StageCostError: the extra `report` is not installed (when it is shown or saved).
        """
        from stagecost.report.figures import trajectory_figure

        return trajectory_figure(self.losses, self.accuracies, self.stage_starts)

    def _repr_html_(self) -> str:
        """Show every depth, as notebooks do."""
        known = not math.isnan(self.whole.accuracy)
        header = ("depth k", "loss", *(["accuracy"] if known else []), "‖F‖/‖x‖ of block k")
        ratios = [*(f"{ratio:.3g}" for ratio in self.residual_ratios), ""]
        rows = [
            (k, f"{row.loss:.4g}", *([f"{row.accuracy:.2f} %"] if known else []), ratio)
            for k, (row, ratio) in enumerate(zip(self.rows, ratios, strict=False))
        ]
        return html_table(f"every depth on {self.num_samples:,} samples", header, rows)

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

    Example:
        >>> sc.needed_blocks([10.0, 88.1, 91.0, 91.4], tolerance=0.5)
        2
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise StageCostError(f"tolerance is {tolerance}: give points of accuracy, at least 0")
    if len(accuracies) < 2 or math.isnan(accuracies[-1]):
        raise StageCostError("needed blocks are found from accuracies: the targets must be class labels")
    # A hair of slack, so that a drop of just the tolerance passes in spite of rounding.
    least = accuracies[-1] - tolerance - 1e-9
    return next(depth for depth in range(1, len(accuracies)) if accuracies[depth] >= least)


def suggest_targets(
    accuracies: Sequence[float], tolerances: Sequence[float] = (2.0, 0.5)
) -> tuple[int, ...]:
    """Return depths worth training for: the least one within each tolerance, if it leaves a block out.

    Args:
        accuracies: of y_0 … y_N in percent, of a network that was trained with a stage cost on them:
            plain training says little about what a depth could do.
        tolerances: points that a depth may be below the whole network.
    """
    depths = {needed_blocks(accuracies, tolerance) for tolerance in tolerances}
    return tuple(sorted(depths - {len(accuracies) - 1}))


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


def check_gradients() -> None:
    """Refuse to compute gradients under `torch.inference_mode`, by a StageCostError."""
    if torch.is_inference_mode_enabled():
        raise StageCostError("torch.inference_mode has no gradients: use torch.no_grad() here")


def to_device(inputs: Tensor | tuple[Tensor, ...], device: torch.device) -> Tensor:
    """Move a batch to a device; that of a view of another model may be a tuple.

    Raises:
        StageCostError: it is something else.
    """
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if not isinstance(inputs, tuple | list):
        kind = type(inputs).__name__
        raise StageCostError(f"inputs are of type {kind}: give a tensor or a tuple of tensors")
    return tuple(tensor.to(device) for tensor in inputs)  # type: ignore[return-value]


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's parameters."""
    return first_tensor(network).device


def loss_trajectory(
    network: ResidualNetwork,
    loader: Loader,
    *,
    cuts: Sequence[Cut] = (),
    loss: LossFunction = F.cross_entropy,
) -> Trajectory:
    """Measure every output on a data set, in eval mode, holding one batch at a time.

    Args:
        network: is left in the mode it was in.
        loader: batches of (images, targets); moved to the network's device.
        cuts: further ones to measure beside y_0 … y_N.
        loss: maps (output, target) to a mean loss or one loss a sample.

    Raises:
        StageCostError: the loader gives no batch, or this is no network of blocks.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> loader = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 10)]
        >>> trajectory = sc.loss_trajectory(net, loader, cuts=[sc.Cut.without(0)])
        >>> [row.cut.blocks for row in trajectory.rows[-2:]]
        [(0, 1, 2, 3), (1, 2, 3)]
    """
    if not hasattr(network, "num_blocks"):
        raise StageCostError(
            f"{type(network).__name__} is no network of blocks: give a ResidualNetwork itself, not what "
            "wraps it, or a view of another model by stagecost.adapt"
        )
    depths = [Cut.first(k) for k in range(network.num_blocks + 1)]
    shape: tuple[int, ...] = ()

    def watched() -> Loader:
        nonlocal shape
        for images, targets in map(pair, loader):
            shape = tuple(images.shape[1:]) if isinstance(images, Tensor) else ()
            yield images, targets

    with ControlSizes(network) as sizes:
        rows = evaluate_cuts(network, watched(), [*depths, *cuts], loss=loss, observe=sizes)
    return Trajectory(
        rows=tuple(rows),
        residual_ratios=sizes.means(rows[0].num_samples),
        weight_norms=tuple(weight_norms(network)),
        stage_starts=tuple(stage[0] for stage in network.stage_positions),
        image_shape=shape,
    )


def pair(batch: Any) -> tuple[Any, Tensor]:
    """Return inputs and targets of a batch.

    Raises:
        StageCostError: it is something else.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise StageCostError(
            f"a batch is a {type(batch).__name__}, not a pair: give batches of (inputs, targets)"
        )
    if not isinstance(batch[1], Tensor):
        raise StageCostError(f"targets are of type {type(batch[1]).__name__}: give a tensor")
    return batch[0], batch[1]


def evaluate_cuts(
    network: ResidualNetwork,
    loader: Loader,
    cuts: Sequence[Cut],
    *,
    loss: LossFunction = F.cross_entropy,
    observe: Observer | None = None,
) -> list[Score]:
    """Measure cuts of a network on a data set, in eval mode, all in one pass.

    Args:
        network: is left in the mode it was in.
        loader: batches of (images, targets); moved to the network's device.
        cuts: which.
        loss: maps (output, target) to a mean loss or one loss a sample.
        observe: is shown the states of the whole network, if that is among the cuts.

    Raises:
        StageCostError: the loader gives no batch.
    """
    resolved = resolve_cuts(cuts, network.stage_positions)
    losses, correct = torch.zeros(2, len(resolved), dtype=torch.float64)
    num_samples, counted = 0, 0.0
    with evaluation_mode(network):
        device = device_of(network)
        for images, on_host in map(pair, loader):
            targets = on_host.to(device)
            outputs = network(to_device(images, device), resolved, how=COLLAPSED, observe=observe)
            # Row by row, so that every one is, to the last bit, what the truncated network would have.
            if weight := counted_samples(on_host, loss):
                with naming_shapes(outputs, targets):
                    rows = losses_of(outputs, targets, loss, row_by_row=True)
                losses += rows.double().cpu() * weight
            correct += math.nan if leaves_out(targets, loss) else count_correct(outputs, targets)
            num_samples, counted = num_samples + len(targets), counted + weight
    if not counted:
        raise StageCostError(NOTHING)
    means, accuracies = (losses / counted).tolist(), (100 * correct / num_samples).tolist()
    scores = zip(resolved, means, accuracies, strict=True)
    return [Score(cut, mean, accuracy, num_samples) for cut, mean, accuracy in scores]


@contextmanager
def naming_shapes(outputs: Tensor, targets: Tensor) -> Iterator[None]:
    """Say in one line which outputs (K, B, …) and targets a loss cannot be computed of."""
    try:
        yield
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError | StageCostError):
            raise
        one, other = (f"{tuple(t.shape)} of {t.dtype}" for t in (outputs[0], targets))
        raise StageCostError(
            f"the loss cannot be computed of an output {one} and targets {other} ({one_line(error)}): "
            "give loss=, a function of both"
        ) from error


def count_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Count the right answers of outputs (K, B, classes), in double precision on the CPU.

    An output that is no number is never right.

    NaN where there is no accuracy: regression, one output for two classes, several labels a sample, or
    labels below 0, of which a loss leaves the samples out.
    """
    of_classes = outputs.dim() == 3 and outputs.shape[1:2] == targets.shape and outputs.shape[2] > 1
    if not of_classes or targets.is_floating_point() or bool((targets < 0).any()):
        return torch.full(outputs.shape[:1], math.nan, dtype=torch.float64)
    right = (outputs.argmax(dim=-1) == targets) & ~outputs.isnan().any(dim=-1)
    return right.sum(dim=-1).double().cpu()


def terminal_score(
    network: ResidualNetwork, loader: Loader, *, loss: LossFunction = F.cross_entropy
) -> Score:
    """Measure the whole network, in eval mode.

    Raises:
        StageCostError: the loader gives no batch.
    """
    (score,) = evaluate_cuts(network, loader, [Cut.whole()], loss=loss)
    return score
