"""Losses of outputs: what a loss is, its mean over a batch, and the distilled one of a stage cost."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecost.errors import StageCostError

IGNORED_CLASS = -100  # torch's cross-entropy leaves out targets of this number

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(output (B, …), target (B, …)) → the mean loss, or one loss a sample (any shape: it is averaged)."""

_OF_CLASSES = (F.cross_entropy, F.nll_loss)
_BY_ELEMENT: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.HuberLoss: F.huber_loss,
    nn.PoissonNLLLoss: F.poisson_nll_loss,
    nn.KLDivLoss: F.kl_div,
    nn.HingeEmbeddingLoss: F.hinge_embedding_loss,
    nn.MultiLabelSoftMarginLoss: F.multilabel_soft_margin_loss,
}

StageLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(output (B, …), target (B, …), terminal output without gradient (B, …)) → scalar."""


def losses_of(
    outputs: Tensor, targets: Tensor, loss: LossFunction, *, row_by_row: bool = False
) -> Tensor:
    """Compute the mean loss of each of several outputs.

    Args:
        outputs: (K, B, …).
        targets: (B, …), the same for all.
        loss: maps (output, target) to a mean loss or to one loss a sample.
        row_by_row: so that no bit of one depends on how many others there are.

    Returns:
        (K,).

    Raises:
        StageCostError: a loss of torch that sums over the batch, or one that compares number by number
            and targets of another shape.
    """
    _check_reduction(loss)
    _check_shapes(outputs.shape[1:], targets.shape, loss)
    if not _is_cross_entropy(loss) or (len(outputs) == 1 and not row_by_row):
        return torch.stack([loss(output, targets).mean() for output in outputs])
    # All outputs in one call: dozens of small ones take as long as a block does.
    repeated = targets.expand(len(outputs), *targets.shape).flatten(0, 1)
    singles = loss(outputs.flatten(0, 1), repeated, reduction="none")  # type: ignore[call-arg]
    if singles.dtype in (torch.float16, torch.bfloat16):  # too coarse, or too small, for a sum
        singles = singles.float()
    singles = singles.reshape(len(outputs), -1)
    sums = torch.stack([row.sum() for row in singles]) if row_by_row else singles.sum(dim=1)
    of_classes = not targets.is_floating_point()
    return sums / (targets.ne(IGNORED_CLASS).sum() if of_classes else singles.shape[1])


def _check_reduction(loss: LossFunction) -> None:
    """Refuse a loss that sums over the batch: taken for a mean, it would grow with the batch."""
    told = (
        loss.keywords.get("reduction") if isinstance(loss, partial) else getattr(loss, "reduction", None)
    )
    if told == "sum":
        raise StageCostError('a loss with reduction="sum" grows with the batch: give "mean" or "none"')


def _check_shapes(output: torch.Size, target: torch.Size, loss: LossFunction) -> None:
    """Refuse outputs (B, 1) beside targets (B,), of which torch would compare all with all."""
    function = loss.func if isinstance(loss, partial) else loss
    by_element = function in _BY_ELEMENT.values() or isinstance(function, tuple(_BY_ELEMENT))
    if by_element and output != target:
        raise StageCostError(
            f"outputs have shape {tuple(output)} and targets {tuple(target)}: give both one shape, in a "
            "loss of your own"
        )


def counted_samples(targets: Tensor, loss: LossFunction) -> float:
    """Return the samples that a mean loss is over, each by its weight.

    Torch's cross-entropy leaves out those of a class, -100 if not told otherwise, and may weigh classes.
    Another loss of whole numbers is taken to leave out those of -100, as one that calls it does. The
    mean of `reduction="none"` is over all.
    """
    options = _options_of_cross_entropy(loss) or {}
    if targets.is_floating_point() or not len(targets) or options.get("reduction") == "none":
        return len(targets)
    weight, ignored = options.get("weight"), options.get("ignore_index", IGNORED_CLASS)
    counts = targets.ne(ignored).double()
    if weight is not None:
        counts *= weight.to(targets.device).double()[targets.where(counts > 0, 0)]
    return len(targets) * float(counts.mean())


def leaves_out(targets: Tensor, loss: LossFunction) -> bool:
    """Tell whether a cross-entropy of torch leaves samples out, as those of class -100."""
    options = _options_of_cross_entropy(loss) or {}
    return bool(targets.eq(options.get("ignore_index", IGNORED_CLASS)).any())


def _options_of_cross_entropy(loss: LossFunction) -> Mapping[str, Any] | None:
    """Return what a cross-entropy of torch, a function or a module, is told; None for another loss.

    That of log-probabilities, `nll_loss`, is one as well.
    """
    if type(loss) in (nn.CrossEntropyLoss, nn.NLLLoss):
        return {name: getattr(loss, name) for name in ("weight", "ignore_index", "reduction")}
    if loss in _OF_CLASSES:
        return {}
    if isinstance(loss, partial) and loss.func in _OF_CLASSES and not loss.args:
        known = {"weight", "ignore_index", "label_smoothing", "reduction"}
        return loss.keywords if set(loss.keywords) <= known else None
    return None


def _is_cross_entropy(loss: LossFunction) -> bool:
    """Tell whether a loss is a function of torch for cross-entropy, at most with smoothed labels."""
    options = _options_of_cross_entropy(loss)
    return options is not None and set(options) <= {"label_smoothing"}


def distilled(loss: LossFunction, share: float = 0.5, temperature: float = 1.0) -> StageLoss:
    """Mix the loss with the Kullback-Leibler divergence from the detached terminal output.

    (1 − share)·L(y_k, target) + share·T²·KL(softmax(y_N/T) ‖ softmax(y_k/T)), as in Hinton et al. 2015;
    with share = 0.5 as in "Be Your Own Teacher" (Zhang et al. 2019). For classifiers, whose outputs are
    (B, classes); it refuses others.

    Args:
        loss: the training loss.
        share: of the divergence, from 0 to 1.
        temperature: T > 0.

    Raises:
        StageCostError: an impossible share or temperature, or a loss that sums over the batch.
    """
    _check_reduction(loss)
    if not 0 <= share <= 1:
        raise StageCostError(f"share is {share}: give a number from 0 to 1")
    if not 0 < temperature < math.inf:
        raise StageCostError(f"temperature is {temperature}: give a finite number above 0")

    def stage_loss(output: Tensor, target: Tensor, terminal: Tensor) -> Tensor:
        if output.dim() != 2:
            raise StageCostError(
                f"outputs of shape {tuple(output.shape)} do not tell where their classes are: give "
                "(B, classes), or a stage loss of your own"
            )
        student = F.log_softmax(output / temperature, dim=-1)
        teacher = F.log_softmax(terminal / temperature, dim=-1)
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - share) * loss(output, target).mean() + share * temperature**2 * divergence

    return stage_loss
