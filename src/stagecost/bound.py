"""Theorem 3.1 in numbers: the asymptotic loss bound, its constant, its corollary, its predicted depth.

    J_N(w^N) ≤ Σ_{k<M} [gamma·L_k^M + (lambda/2)·‖w_F,k^M‖²] + (1 + gamma·(N−M))·Lbar,  Lbar = L_M^M

Proof: extend the trained SubResNet-M by blocks with F_k ≡ 0. Every later state is a pure skip of x_M, so
every later output equals y_M, and the right-hand side *is* J_N of the extended weights (`zero_extend`);
w^N is assumed optimal. So J_N above the bound means "not optimised far enough", never an error.

The same with a vector of depths, one a stage: a SubResNet of M_1, …, M_S blocks is extended at the tail
of each stage, where the skips are identities, to N_1, …, N_S blocks (docs/theory.md has the proof)::

    J_N(w^N) ≤ J_M(w^M) + gamma·Σ_s (N_s − M_s)·L_{M_1+…+M_s}^M

The bound limits *how many* blocks can stay active, not *which*; and where Lbar is not near the infimum
of the loss it grows with N and promises nothing. Cross-entropy never attains its infimum.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch

from stagecost.cut import whole_number
from stagecost.errors import StageCostError
from stagecost.models.catalogue import create_model
from stagecost.network import ResidualNetwork, first_tensor
from stagecost.objective import StageCost


def objective(
    losses: Sequence[float], squared_norms: Sequence[float], gamma: float, weight_decay: float
) -> float:
    """Compute the paper's J_N from numbers (`StageCost.objective`).

    Args:
        losses: L_0 … L_N.
        squared_norms: ‖w_F,k‖², k = 0 … N-1.
        gamma: the stage weight.
        weight_decay: lambda.

    Raises:
        StageCostError: lambda or gamma is negative or not finite, or there are not N norms.
    """
    _check_lengths(losses, squared_norms)
    stage_cost = StageCost.uniform(len(squared_norms), gamma)
    visited = losses[-len(stage_cost.outputs) :]
    return stage_cost.objective(visited, squared_norms, weight_decay)


def right_hand_side(
    losses: Sequence[float],
    squared_norms: Sequence[float],
    gamma: float,
    weight_decay: float,
    num_blocks: int,
) -> float:
    """Compute the right-hand side of Theorem 3.1 for a SubResNet-M, M < N or M = N.

    Args:
        losses: L_0^M … L_M^M of the trained SubResNet-M.
        squared_norms: ‖w_F,k^M‖², k = 0 … M-1.
        gamma: the stage weight of ResNet-N.
        weight_decay: lambda of ResNet-N.
        num_blocks: N.

    Raises:
        StageCostError: the SubResNet has more blocks than N.
    """
    sub_stages, stages = (len(squared_norms),), (num_blocks,)
    return staged_right_hand_side(losses, squared_norms, gamma, weight_decay, sub_stages, stages)


def staged_right_hand_side(
    losses: Sequence[float],
    squared_norms: Sequence[float],
    gamma: float,
    weight_decay: float,
    sub_stages: Sequence[int],
    stages: Sequence[int],
) -> float:
    """Compute the right-hand side for a SubResNet of several stages; one stage is Theorem 3.1.

    An added block repeats the output at the end of its stage: of the SubResNet's intermediate output
    there, not of its terminal one, unless the stage is the last.

    Args:
        losses: L_0^M … L_M^M of the trained SubResNet, M = M_1 + … + M_S.
        squared_norms: ‖w_F,k^M‖², k = 0 … M-1.
        gamma: the stage weight of the larger network.
        weight_decay: lambda of the larger network.
        sub_stages: M_1, …, M_S.
        stages: N_1, …, N_S.

    Raises:
        StageCostError: a stage has more blocks than in the larger network, or the numbers do not fit.
    """
    _check_stages(sub_stages, stages)
    if sum(sub_stages) != len(squared_norms):
        raise StageCostError(
            f"stages {tuple(sub_stages)} have {sum(sub_stages)} blocks, but there are "
            f"{len(squared_norms)} norms: give one a block"
        )
    value = objective(losses, squared_norms, gamma, weight_decay)
    ends = accumulate(sub_stages)
    added = (large - small for small, large in zip(sub_stages, stages, strict=True))
    repeated = zip(ends, added, strict=True)
    # Those of weight 0 are left out, as in J_N: 0 times infinity is no number.
    return value + sum(gamma * count * losses[end] for end, count in repeated if gamma * count)


def extended_outputs(sub_stages: Sequence[int], stages: Sequence[int]) -> list[int]:
    """Tell which output of a SubResNet each output of its zero-extension equals.

    Args:
        sub_stages: M_1, …, M_S.
        stages: N_1, …, N_S, with N_s ≥ M_s.

    Returns:
        N+1 numbers i_k: y_k of the extension equals y_{i_k} of the SubResNet.

    Raises:
        StageCostError: a stage has more blocks than in the larger network, or the stages do not fit.
    """
    _check_stages(sub_stages, stages)
    outputs = [0]
    for small, large in zip(sub_stages, stages, strict=True):
        start = outputs[-1]
        outputs += [start + min(position, small) for position in range(1, large + 1)]
    return outputs


def excess_constant(losses: Sequence[float]) -> float:
    """Compute C = Σ_{k<M} (L_k^M − Lbar), what the first M outputs lose against the terminal one."""
    return sum(loss - losses[-1] for loss in losses[:-1])


def average_loss_bound(losses: Sequence[float], num_blocks: int) -> float:
    """Compute Lbar + C/(N+1), which bounds mean_{k=0..N} L_k (corollary: lambda = 0, gamma = 1).

    Raises:
        StageCostError: N is less than M, or there is no loss.
    """
    _check_corollary(losses, num_blocks)
    return losses[-1] + excess_constant(losses) / (num_blocks + 1)


def normalized_bound(losses: Sequence[float], gamma: float, num_blocks: int) -> float:
    """Compute Lbar + gamma·C/(1 + gamma·N), which bounds J_N/(1 + gamma·N) (lambda = 0, any gamma).

    Raises:
        StageCostError: N is less than M, there is no loss, or gamma is negative or not finite.
    """
    _check_corollary(losses, num_blocks)
    scale = StageCost.uniform(num_blocks, gamma).scale
    return losses[-1] + (gamma * excess_constant(losses) / scale if gamma else 0.0)


def predicted_blocks(right_hand_sides: Mapping[int, float]) -> int:
    """Return the M with the least right-hand side, the depth that the theory predicts.

    Args:
        right_hand_sides: M → right-hand side for the SubResNet-M; of equal ones the least M wins. What
            is no number counts as infinite.

    Raises:
        StageCostError: there is none.
    """
    if not right_hand_sides:
        raise StageCostError("there is no right-hand side: give that of one SubResNet at least")
    sides = {m: math.inf if math.isnan(side) else side for m, side in right_hand_sides.items()}
    return min(sorted(sides), key=lambda m: sides[m])


def truncation_right_hand_sides(
    losses: Sequence[float], squared_norms: Sequence[float], gamma: float, weight_decay: float
) -> dict[int, float]:
    """Compute the right-hand side for every truncation M = 1 … N of one trained network.

    With F_k ≡ 0 for k ≥ M, every output from y_M on equals y_M, whatever the skips are. So this is J_N
    of a feasible point, and one trajectory gives a bound for every M without training a second network,
    also if there are several stages. For M = N it is J_N itself.
    """
    _check_lengths(losses, squared_norms)
    num_blocks = len(squared_norms)
    return {
        m: right_hand_side(losses[: m + 1], squared_norms[:m], gamma, weight_decay, num_blocks)
        for m in range(1, num_blocks + 1)
    }


def zero_extend(sub: ResidualNetwork, **arguments: object) -> ResidualNetwork:
    """Extend a SubResNet by blocks with F_k ≡ 0 to the network of the given arguments.

    Each stage is extended at its tail, projections stay where they are. The result computes what
    the SubResNet computes, where and in the precision that it does: every output of an added block
    equals the output before it. No random number is drawn.

    Args:
        sub: a native network; its own arguments are taken where none is given here.
        arguments: of the larger network, such as `num_blocks=54` or `blocks_per_stage=(9, 9, 9)`.

    Raises:
        StageCostError: the larger network has fewer blocks in some stage, other stages, or differs in
            more than its blocks; or cuts have norms of their own, which it would not have.
    """
    if sub.description is None:
        raise StageCostError("this network has no description to extend it from: use create_model")
    if sub.targets:
        raise StageCostError(
            f"cut {sub.targets[0]} has norms of its own, which no extension has: extend "
            "network.keep(cut), or a network that shares them"
        )
    with torch.random.fork_rng(devices=[]):  # every number that is drawn gives way to another
        full = create_model(sub.description.name, **{**sub.description.arguments, **arguments})
    _check_same_parts(sub.description.arguments, full)
    full.to(first_tensor(sub))
    pairs = _corresponding_blocks(sub, full)
    with torch.no_grad():
        for block in full.blocks.values():
            for parameter in block.get_submodule("residual").parameters():
                parameter.zero_()
    full.stem.load_state_dict(sub.stem.state_dict())
    for k_sub, k_full in pairs.items():
        full.blocks[str(k_full)].load_state_dict(sub.blocks[str(k_sub)].state_dict())
    full.head.load_state_dict(_extended_head(sub, full))
    return full.train(sub.training)


def _check_same_parts(arguments: Mapping[str, object], full: ResidualNetwork) -> None:
    """Refuse a larger network that differs in more than its number of blocks."""
    given = {} if full.description is None else full.description.arguments
    for name, value in given.items():
        before = arguments.get(name, value)
        if name not in ("num_blocks", "blocks_per_stage") and value != before:
            raise StageCostError(
                f"{name} is {value}, and {before} in the network to extend: "
                "change only the number of blocks"
            )


def _corresponding_blocks(sub: ResidualNetwork, full: ResidualNetwork) -> dict[int, int]:
    """Map each block of `sub` to the block of `full` at the same place of the same stage."""
    _check_stages(sub.blocks_per_stage, full.blocks_per_stage)
    return {
        k_sub: k_full
        for small, large in zip(sub.stages, full.stages, strict=True)
        for k_sub, k_full in zip(small, large, strict=False)
    }


def _extended_head(sub: ResidualNetwork, full: ResidualNetwork) -> dict[str, torch.Tensor]:
    """Give each output of the larger network the statistics of the output that it equals."""
    sources = extended_outputs(sub.blocks_per_stage, full.blocks_per_stage)
    state = dict(sub.head.state_dict())
    outputs = sub.num_blocks + 1
    for name, buffer in sub.head.named_buffers():
        if buffer.dim() > 0 and buffer.shape[0] == outputs:
            state[name] = buffer[sources]
    return state


def _check_corollary(losses: Sequence[float], num_blocks: int) -> None:
    if not losses:
        raise StageCostError("there is no loss: give L_0 … L_M of the SubResNet")
    _check_stages([len(losses) - 1], [num_blocks])


def _check_stages(sub_stages: Sequence[int], stages: Sequence[int]) -> None:
    counts = [whole_number(count) for count in (*sub_stages, *stages)]
    alike = len(sub_stages) == len(stages) and None not in counts
    if not (alike and all(small <= large for small, large in zip(sub_stages, stages, strict=True))):
        raise StageCostError(
            f"stages of {list(sub_stages)} blocks cannot be extended to {list(stages)}: give M ≤ N "
            "blocks in as many stages"
        )


def _check_lengths(losses: Sequence[float], squared_norms: Sequence[float]) -> None:
    if len(losses) != len(squared_norms) + 1:
        raise StageCostError(
            f"{len(losses)} losses and {len(squared_norms)} norms: give M+1 losses and M norms"
        )
