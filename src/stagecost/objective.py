"""The stage-cost objective, as pure functions for anybody's training loop.

    J_N = Σ_{k<N} gamma·c_k·L_k + L_N + (lambda/2)·Σ_{k<N} ‖w_F,k‖²

with uniform c_k = 1 in the paper. The weight-decay term is left to the optimiser: SGD's
`weight_decay` on the group of residual branches is exactly its gradient (`parameter_groups`).

In a loop of your own, two lines change::

    outputs = net(images, depths="all")
    loss = stage_cost_objective(outputs, labels, gamma=0.02).total
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork
from stagecost.stage_losses import StageLoss

IGNORED_CLASS = -100  # torch's cross-entropy leaves out targets of this number

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(output (B, …), target (B, …)) → the mean loss, or one loss a sample (any shape: it is averaged)."""


@dataclass(frozen=True)
class ObjectiveTerms:
    """The parts of J_N without weight decay.

    Attributes:
        total: the scalar to minimise: stage + terminal, divided by 1 + Σ gamma·c_k if normalised.
        stage: Σ_{k<N} gamma·c_k·L_k.
        terminal: L_N.
        losses: (number of outputs,), L_k of every output given, detached; the last is L_N.
    """

    total: Tensor
    stage: Tensor
    terminal: Tensor
    losses: Tensor


def stage_cost_objective(
    outputs: Tensor,
    targets: Tensor,
    gamma: float,
    *,
    loss: LossFunction = F.cross_entropy,
    stage_loss: StageLoss | None = None,
    depth_weights: Sequence[float] | None = None,
    normalized: bool = False,
) -> ObjectiveTerms:
    """Compute gamma·Σ_{k<N} c_k·L_k + L_N from the outputs of a batch (the paper's objective).

    Args:
        outputs: (N+1, B, …), y_0 … y_N, as `net(images, depths="all")` returns them; or those of
            some depths, the terminal one last. With gamma = 0 the terminal one, (1, B, …), is enough.
        targets: (B, …), whatever `loss` expects beside one output.
        gamma: the stage weight, ≥ 0. 0 is plain training, to the last bit.
        loss: maps (output, target) to a mean loss or to one loss a sample.
        stage_loss: what intermediate outputs are punished for instead; see `stagecost.stage_losses`.
        depth_weights: c_k of every output but the last; uniform if None.
        normalized: divide by 1 + Σ gamma·c_k, so that the scale of the gradient does not depend on N.
            The minimisers stay the same if lambda is divided alike (`objective_scale`).

    Raises:
        StageCostError: gamma or a weight is negative or not finite, or the shapes do not fit.
    """
    weights = stage_weights(gamma, len(outputs) - 1, depth_weights)
    if targets.dim() > 0 and outputs.dim() > 1 and outputs.shape[1] != targets.shape[0]:
        raise StageCostError(
            f"outputs {tuple(outputs.shape)} hold {outputs.shape[1]} samples but targets "
            f"{tuple(targets.shape)} hold {targets.shape[0]}: give outputs (N+1, B, …), targets (B, …)"
        )
    losses = losses_of(outputs, targets, loss)
    terminal, values = losses[-1], losses[:-1]
    # Those of weight 0 are left out: 0 times infinity is no number, and gamma = 0 is plain training.
    chosen = [k for k, weight in enumerate(weights) if weight != 0]
    if not chosen:
        return ObjectiveTerms(terminal, torch.zeros_like(terminal), terminal, losses.detach())
    if stage_loss is not None:
        last = outputs[-1].detach()
        values = torch.stack([stage_loss(output, targets, last) for output in outputs[:-1]])
    if len(chosen) < len(weights):
        values = values[chosen]
    stage = (values * values.new_tensor([weights[k] for k in chosen])).sum()
    total = stage + terminal
    if normalized:
        total = total / objective_scale(weights)
    return ObjectiveTerms(total, stage, terminal, losses.detach())


def losses_of(outputs: Tensor, targets: Tensor, loss: LossFunction) -> Tensor:
    """Compute the mean loss of each of several outputs.

    Args:
        outputs: (K, B, …).
        targets: (B, …), the same for all.
        loss: maps (output, target) to a mean loss or to one loss a sample.

    Returns:
        (K,).
    """
    if len(outputs) > 1 and _is_cross_entropy(loss):
        singles, counted = _singles(outputs, targets, loss)
        return singles.sum(dim=1) / counted
    return torch.stack([loss(output, targets).mean() for output in outputs])


def losses_row_by_row(outputs: Tensor, targets: Tensor, loss: LossFunction) -> Tensor:
    """Compute what `losses_of` does so that no bit of one depends on how many others there are."""
    if not _is_cross_entropy(loss):
        return torch.stack([loss(output, targets).mean() for output in outputs])
    singles, counted = _singles(outputs, targets, loss)
    return torch.stack([row.sum() for row in singles]) / counted


def _singles(outputs: Tensor, targets: Tensor, loss: LossFunction) -> tuple[Tensor, Tensor | int]:
    """Return the losses (K, …) of single samples and how many of them count in each mean.

    All outputs in one call: dozens of small ones take as long as a block does.
    """
    repeated = targets.expand(len(outputs), *targets.shape).flatten(0, 1)
    singles = loss(outputs.flatten(0, 1), repeated, reduction="none")  # type: ignore[call-arg]
    singles = singles.reshape(len(outputs), -1)
    of_classes = not targets.is_floating_point()
    return singles, targets.ne(IGNORED_CLASS).sum() if of_classes else singles.shape[1]


def _is_cross_entropy(loss: LossFunction) -> bool:
    """Tell whether a loss is torch's cross-entropy, at most with smoothed labels."""
    if isinstance(loss, partial):
        return (
            loss.func is F.cross_entropy and not loss.args and set(loss.keywords) <= {"label_smoothing"}
        )
    return loss is F.cross_entropy


def stage_weights(
    gamma: float, num_blocks: int, depth_weights: Sequence[float] | None = None
) -> list[float]:
    """Return gamma·c_k for k = 0 … N-1.

    Raises:
        StageCostError: gamma or a weight is negative or not finite, or there are not N weights.
    """
    if not (math.isfinite(gamma) and gamma >= 0):
        raise StageCostError(f"gamma is {gamma}: give a finite number of at least 0")
    weights = [1.0] * num_blocks if depth_weights is None else [float(c) for c in depth_weights]
    if len(weights) != num_blocks:
        raise StageCostError(
            f"{len(weights)} depth weights for {num_blocks} intermediate outputs: give one for each"
        )
    if not all(math.isfinite(c) and c >= 0 for c in weights):
        raise StageCostError(f"depth weights {weights} must be finite and at least 0")
    return [gamma * c for c in weights]


def objective_scale(weights: Sequence[float]) -> float:
    """Return 1 + Σ gamma·c_k, the total weight of all losses in J_N (1 + gamma·N if uniform)."""
    return 1.0 + sum(weights)


def residual_parameters(network: ResidualNetwork) -> list[list[nn.Parameter]]:
    """Return w_F,k for k = 0 … N-1: the parameters of each residual branch, norms included."""
    return [list(block.get_submodule("residual").parameters()) for block in network.blocks.values()]


def parameter_groups(network: ResidualNetwork, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters into named groups for an optimiser, so that its decay is lambda.

    The group "residual" holds all w_F,k with weight decay lambda; "other" holds stem, skips and head
    without. With SGD the decay's gradient is exactly that of (lambda/2)·Σ‖w_F,k‖²; with AdamW it is
    decoupled and the objective only resembles J_N.

    Raises:
        StageCostError: weight_decay is negative or not finite.
    """
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise StageCostError(f"weight decay is {weight_decay}: give a finite number of at least 0")
    residual = [p for branch in residual_parameters(network) for p in branch]
    chosen = {id(p) for p in residual}
    other = [p for p in network.parameters() if id(p) not in chosen]
    return [
        {"name": "residual", "params": residual, "weight_decay": weight_decay},
        {"name": "other", "params": other, "weight_decay": 0.0},
    ]
