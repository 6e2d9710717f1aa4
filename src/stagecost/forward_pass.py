"""One pass through the blocks: which outputs are read on the way, by which path, and what is kept.

With activation checkpointing the blocks are passed in about √N pieces. Of a piece only its first state
is kept; the rest is computed again when the gradient comes, so memory grows with √N instead of N.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import TracebackType

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from stagecost.drop_path import scaled_step
from stagecost.fast_outputs import FastOutputs, fast_outputs
from stagecost.outputs import intermediate_output


@dataclass(frozen=True)
class ForwardPass:
    """How to go through a network.

    Attributes:
        blocks: the residual blocks, in order.
        head: H.
        wanted: the depths whose outputs are read.
        constant_head: intermediate outputs send no gradient to head and skip connections.
        fused: read intermediate outputs by `stagecost.fast_outputs`, where it fits.
        checkpointing: keep the first state of each piece only, and compute the rest again.
        branch_scales: (N, B), what the branch of each block is multiplied with; None leaves them alone.
    """

    blocks: Sequence[nn.Module]
    head: nn.Module
    wanted: Collection[int]
    constant_head: bool = False
    fused: bool = False
    checkpointing: bool = False
    branch_scales: Tensor | None = None

    @property
    def skips(self) -> list[nn.Module]:
        """S_0, …, S_{N-1}."""
        return [block.get_submodule("skip") for block in self.blocks]

    def outputs(self, state: Tensor) -> dict[int, Tensor]:
        """Return the outputs of the wanted depths, from x_0 of shape (B, C, H, W).

        Blocks that none of them depends on are not computed.
        """
        last = max(self.wanted)
        outputs: dict[int, Tensor] = {}
        for piece in self._pieces(last):
            depths = [k for k in piece if k in self.wanted]
            go = self._checkpointed if self.checkpointing else self._piece
            state, *some = go(state, piece)
            outputs |= zip(depths, some, strict=True)
        constant = self.constant_head and last < len(self.blocks)
        outputs[last] = intermediate_output(self.skips, self.head, state, last, constant_head=constant)
        return outputs

    def output_of_some(self, state: Tensor, positions: Sequence[int]) -> Tensor:
        """Return the terminal output of the network that some of the blocks would be, from x_0.

        States on this way are others than those of the whole network, so no running statistics follow
        them: in training mode the norms use the batch, and the whole network's statistics stay its own.
        """
        blocks = [self.blocks[position] for position in positions]
        scales = None if self.branch_scales is None else self.branch_scales[list(positions)]
        last = len(blocks)
        smaller = replace(self, blocks=blocks, wanted={last}, branch_scales=scales)
        with FrozenStatistics([*blocks, self.head]):
            return smaller.outputs(state)[last]

    def _pieces(self, last: int) -> list[range]:
        """Cut the depths 0 … last−1 into runs."""
        length = math.isqrt(last - 1) + 1 if self.checkpointing and last else max(1, last)
        return [range(a, min(a + length, last)) for a in range(0, last, length)]

    def _piece(self, state: Tensor, piece: range) -> tuple[Tensor, ...]:
        """Go through some blocks; return the state behind them, and the wanted outputs before them."""
        fast = self._fast() if any(k in self.wanted for k in piece) else None
        if fast is None:
            return self._literal_piece(state, piece)
        for depth in piece:
            if depth not in self.wanted:
                state = self._step(state, depth)
            elif self.branch_scales is None:
                state = fast.step(self.blocks[depth], state, depth)
            else:  # the fused step knows no scales
                fast.read(state, depth)
                state = self._step(state, depth)
        outputs = fast.outputs()
        return state, *(outputs[k] for k in piece if k in self.wanted)

    def _literal_piece(self, state: Tensor, piece: range) -> tuple[Tensor, ...]:
        skips, outputs = self.skips, []
        for depth in piece:
            if depth in self.wanted:
                constant = self.constant_head
                output = intermediate_output(skips, self.head, state, depth, constant_head=constant)
                outputs.append(output)
            state = self._step(state, depth)
        return state, *outputs

    def _step(self, state: Tensor, depth: int) -> Tensor:
        if self.branch_scales is not None:
            return scaled_step(self.blocks[depth], state, self.branch_scales[depth])
        following: Tensor = self.blocks[depth](state)
        return following

    def _fast(self) -> FastOutputs | None:
        if not self.fused:
            return None
        return fast_outputs(self.head, self.skips, constant_head=self.constant_head)

    def _checkpointed(self, state: Tensor, piece: range) -> tuple[Tensor, ...]:
        frozen = FrozenStatistics([*(self.blocks[k] for k in piece), *self.skips, self.head])
        found: tuple[Tensor, ...] = checkpoint(
            self._piece, state, piece, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen)
        )
        return found


class FrozenStatistics:
    """A context in which BatchNorms do all that they do, but leave their running statistics as they are.

    What is computed a second time must not be counted a second time. (The norms still go through the
    motions, with a momentum of 0: a second computation has to save the same tensors as the first.)
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Take the BatchNorms among the modules and their parts."""
        parts = (part for module in modules for part in module.modules())
        self.norms = [
            m for m in parts if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None
        ]

    def __enter__(self) -> None:
        """Stop tracking."""
        self.before = [(n.momentum, n.num_batches_tracked.clone()) for n in self.norms]  # type: ignore[union-attr]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Track again."""
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
