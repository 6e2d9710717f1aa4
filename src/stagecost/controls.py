"""How large the controls are: of the weights w_F,k, and of F_k(x_k) beside the state x_k.

That later ones vanish is the turnpike of the paper: the state stays where it is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stagecost.dynamics import ResidualBlock, is_identity, skip_of
from stagecost.network import ResidualNetwork
from stagecost.objective import squared_weight_norms

State = Tensor | tuple[Tensor, ...]
"""x_k; that of a view of a live model may be a tuple."""


def weight_norms(network: ResidualNetwork) -> list[float]:
    """Compute ‖w_F,k‖ for k = 0 … N-1."""
    return [float(square**0.5) for square in squared_weight_norms(network)]


def sample_norms(values: Tensor) -> Tensor:
    """Compute the Euclidean norm of each sample, (B, …) → (B,)."""
    norms: Tensor = torch.linalg.vector_norm(values, dim=tuple(range(1, values.dim())))
    return norms


def moving(state: State, other: State) -> tuple[Tensor, ...]:
    """Return the parts of a state, (B, …) each, that another one does not hold as they are.

    What blocks hand on in a tuple, such as masks, tables and positions, is no part of the state. Where
    all is handed on, these are the parts in whose places others are, or its first floating part.
    """
    if isinstance(state, Tensor):
        return (state,)
    others = other if isinstance(other, tuple) else (other,)
    held = {id(part) for part in others}
    floating = tuple(part for part in state if part.is_floating_point())
    left = tuple(part for part in floating if id(part) not in held)
    return left or tuple(part for part, _ in replaced(state, others)) or floating[:1]


def replaced(state: State, other: State) -> list[tuple[Tensor, Tensor]]:
    """Return the floating parts of two states, side by side, that are not one tensor."""
    parts, others = (each if isinstance(each, tuple) else (each,) for each in (state, other))
    pairs = zip(parts, others, strict=False)
    return [(one, two) for one, two in pairs if one is not two and one.is_floating_point()]


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Return parts of a state as one tensor, (B, …)."""
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], dim=1)


class ControlSizes:
    """An observer of a roll-out: how large each control is beside its state, ‖F_k(x_k)‖/‖x_k‖.

    A norm is taken as soon as its tensor is there, while the caches still hold it.
    """

    def __init__(self, network: ResidualNetwork) -> None:
        """Begin with no sample."""
        self.blocks = list(network.blocks.values())
        self.sums: Tensor | None = None  # (N,), of ‖F_k‖/‖x_k‖ over the samples
        self.states: list[Tensor] = []  # of the batch: ‖x_0‖, ‖x_1‖, …
        self.controls: list[Tensor] = []  # of the batch: ‖F_0‖, ‖F_1‖, …
        #: a branch, and shape and norms of its last output
        self.heard: tuple[nn.Module, torch.Size, Tensor] | None = None

    def __call__(self, k: int, state: Tensor, following: Tensor) -> None:
        """Take the norms of a step; behind the last one, add the samples of the batch."""
        if k == 0:
            self.states, self.controls = [], []
        if len(self.states) == k:
            self.states.append(sample_norms(flat(moving(state, following))))
        block, heard = self.blocks[k], self.heard
        is_apart = isinstance(following, Tensor) and type(block) is ResidualBlock
        # One of another shape is spread over the state, and larger there.
        if is_apart and heard is not None and heard[:2] == (block.residual, following.shape):
            self.controls.append(heard[2])
        else:
            self._compare(k, state, following)
        if k + 1 < len(self.blocks):
            if isinstance(following, Tensor):
                self.states.append(sample_norms(following))
            return
        before = torch.stack(self.states)
        ratios = torch.stack(self.controls) / before.clamp_min(torch.finfo(before.dtype).tiny)
        sums = ratios.sum(dim=1, dtype=torch.float64)
        self.sums = sums if self.sums is None else self.sums + sums

    def _compare(self, k: int, state: State, following: State) -> None:
        """Take the control of a branch that is not apart: what the block adds to its skip."""
        skip = skip_of(self.blocks[k])
        skipped = state if is_identity(skip) else skip(state)
        pairs = replaced(skipped, following) or [(part, part) for part in moving(state, following)]
        self.controls.append(sample_norms(flat([two - one for one, two in pairs])))
        if not isinstance(state, Tensor) and not replaced(state, following):  # a part is new in it
            self.states[k] = sample_norms(flat([one for one, _ in pairs]))

    def means(self, num_samples: int) -> tuple[float, ...]:
        """Return the mean of ‖F_k(x_k)‖/‖x_k‖ for k = 0 … N-1."""
        assert self.sums is not None
        return tuple((self.sums / num_samples).tolist())

    def __enter__(self) -> "ControlSizes":
        """Listen to the branches of the blocks that have them apart."""
        apart = (block for block in self.blocks if type(block) is ResidualBlock)
        self.hooks = [block.residual.register_forward_hook(self._listen) for block in apart]
        return self

    def _listen(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.heard = (module, output.shape, sample_norms(output))

    def __exit__(self, *_: object) -> None:
        """Listen no more."""
        for hook in self.hooks:
            hook.remove()
