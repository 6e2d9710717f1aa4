"""What an intermediate output is punished for: variants of the loss inside the stage cost.

A stage loss maps (y_k, targets, detached y_N) to a scalar. The paper's is the training loss itself.
Each variant answers one weakness: distillation asks an early output for what the last one knows rather
than for the label; the hinge stops pressing on outputs that are good enough.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from stagecost.errors import StageCostError

StageLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(output (B, …), target (B, …), terminal output without gradient (B, …)) → scalar."""


def distilled(
    loss: Callable[[Tensor, Tensor], Tensor], share: float = 0.5, temperature: float = 1.0
) -> StageLoss:
    """Mix the loss with the Kullback-Leibler divergence from the detached terminal output.

    (1 − share)·L(y_k, target) + share·T²·KL(softmax(y_N/T) ‖ softmax(y_k/T)), as in Hinton et al. 2015;
    with share = 0.5 as in "Be Your Own Teacher" (Zhang et al. 2019). For classifiers.

    Args:
        loss: the training loss.
        share: of the divergence, from 0 to 1.
        temperature: T > 0.

    Raises:
        StageCostError: an impossible share or temperature.
    """
    if not 0 <= share <= 1:
        raise StageCostError(f"share is {share}: give a number from 0 to 1")
    if not temperature > 0:
        raise StageCostError(f"temperature is {temperature}: give a number above 0")

    def stage_loss(output: Tensor, target: Tensor, terminal: Tensor) -> Tensor:
        student = F.log_softmax(output / temperature, dim=-1)
        teacher = F.log_softmax(terminal / temperature, dim=-1)
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - share) * loss(output, target).mean() + share * temperature**2 * divergence

    return stage_loss


def hinged(loss: Callable[[Tensor, Tensor], Tensor], margin: float = 0.0) -> StageLoss:
    """Punish only what an output loses against the terminal one: max(0, L_k − L_N − margin).

    L_N carries no gradient here, so the terminal output is not made worse to look better.

    Args:
        loss: the training loss.
        margin: how much worse an output may be, in units of the loss.

    Raises:
        StageCostError: a negative margin.
    """
    if not margin >= 0:
        raise StageCostError(f"margin is {margin}: give a number of at least 0")

    def stage_loss(output: Tensor, target: Tensor, terminal: Tensor) -> Tensor:
        excess = loss(output, target).mean() - loss(terminal, target).mean() - margin
        return excess.clamp_min(0.0)

    return stage_loss
