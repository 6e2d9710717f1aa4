"""The dynamics x_{k+1} = S_k(x_k) + s_k·F_k(x_k), and the one roll-out of it.

`Rollout` is the only place where states follow each other. It computes the terminal outputs of several
cuts in one pass that shares every common beginning of states:

    y_k = H(S_{N-1} ∘ … ∘ S_k (x_k))   is the output of Cut.first(k).

A block is any module that maps x_k to x_{k+1} and has a `skip`, the block with its residual branch
removed. A state is a tensor; in views of other models it may be a tuple of tensors.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Real

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.frozen_statistics import FrozenStatistics
from stagecost.gates import gated, gated_weights
from stagecost.paths import Path, plan_paths


class ResidualBlock(nn.Module):
    """One step of the dynamics: x_{k+1} = S_k(x_k) + F_k(x_k).

    Any module with `skip` can stand in its place; `residual`, where it is there, holds the weights of
    the branch.

    Example:
        >>> block = sc.ResidualBlock(residual=torch.nn.Conv2d(8, 8, 3, padding=1))
        >>> x = torch.rand(2, 8, 4, 4)
        >>> torch.equal(block(x), x + block.residual(x))
        True
    """

    def __init__(self, residual: nn.Module, skip: nn.Module | None = None) -> None:
        """Create a block; without `skip` the skip connection is the identity."""
        super().__init__()
        self.residual = residual
        self.skip = nn.Identity() if skip is None else skip

    def forward(self, state: Tensor) -> Tensor:
        """Map x_k, (B, C, H, W), to x_{k+1}."""
        following: Tensor = self.skip(state) + self.residual(state)
        return following


class StridedProjection(nn.Conv2d):
    """S_k where the width or the resolution changes: a stride picks pixels, then each meets one matrix.

    In two steps, since some CPUs' strided convolutions of fewer than 8 channels write beyond their
    memory when the gradient of the weights is computed (oneDNN in torch 2.14, channels last).
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        """Create it without bias."""
        super().__init__(width_in, width_out, 1, stride=stride, bias=False)

    def forward(self, state: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ⌈H/stride⌉, ⌈W/stride⌉)."""
        vertical, horizontal = self.stride
        return F.conv2d(state[:, :, ::vertical, ::horizontal], self.weight)


def skip_of(block: nn.Module) -> nn.Module:
    """Return S_k: the block with its residual branch removed."""
    return block.get_submodule("skip")


def is_identity(skip: nn.Module) -> bool:
    """Tell whether a skip connection is the identity, so that it need not be called."""
    return isinstance(skip, nn.Identity)


def step(block: nn.Module, state: Tensor, scale: Tensor | None = None) -> Tensor:
    """Compute x_{k+1} = S_k(x_k) + s_k·F_k(x_k).

    Args:
        block: block k; F_k of one that is no `ResidualBlock` is what it adds to its skip path.
        state: x_k, (B, …).
        scale: s_k of the batch, (), or of each sample, (B,); None is 1, to the last bit.
    """
    if scale is None:
        whole: Tensor = block(state)
        return whole
    skip = skip_of(block)
    if type(block) is ResidualBlock:
        return _add_scaled(skip(state), block.residual(state), scale)
    with FrozenStatistics([skip]) if block.training else nullcontext():
        skipped = skip(state)  # once more within the block
    following = block(state)
    if isinstance(following, tuple):  # what the block hands on untouched is no control
        pairs = zip(skipped, following, strict=True)
        return tuple(s if f is s else _add_scaled(s, f - s, scale) for s, f in pairs)  # type: ignore[return-value]
    return _add_scaled(skipped, following - skipped, scale)


def _add_scaled(skipped: Tensor, control: Tensor, scale: Tensor) -> Tensor:
    factor = scale.to(control.dtype)
    if factor.dim():
        factor = factor.view(-1, *[1] * (control.dim() - 1))
    return skipped + factor * control


Tail = Callable[[Tensor, int], Tensor]
"""Maps x_k, and k, to what the head expects: through the skips that are left, S_{N-1} ∘ … ∘ S_k."""


class SkipChain:
    """The tails of a network, literally: every skip connection that is no identity is called in turn.

    Running statistics of norms in them stay as they are: they belong to the whole network, which passes
    these norms inside its blocks.
    """

    def __init__(self, blocks: Sequence[nn.Module], *, own: bool = False) -> None:
        """Note the skip connections of the blocks; `own` norms in them belong to what passes here."""
        skips = ((k, skip_of(block)) for k, block in enumerate(blocks))
        self.skips = [(k, skip) for k, skip in skips if not is_identity(skip)]
        self.frozen = FrozenStatistics(skip for _, skip in self.skips if not own)

    def __call__(self, state: Tensor, k: int) -> Tensor:
        """Map x_k to the state that the head expects; itself where every skip is an identity."""
        with self.frozen:
            for position, skip in self.skips:
                if position >= k:
                    state = skip(state)
        return state


@dataclass(frozen=True)
class Pass:
    """How a pass through the blocks is done; what it computes is the same.

    Attributes:
        checkpointing: keep about √N states for the gradient and compute the others again.
        collapsed: send states through collapsed skip chains (`stagecost.fast.chains`), where the skips
            are linear projections, and read them without keeping anything of their size
            (`stagecost.fast.reading`): equal up to rounding, and cheaper.
        gates: cuts that come first, each nested with all others of the pass; k is `Cut.first(k)`.
        beta: for each gate that is a part of an output's cut, the gradient of this output is multiplied
            by it in all that the gate uses: its blocks, the skips of all others, stem and head; but not
            in their norms, where the gate or the cut has some of its own. Outputs stay as they are, bit
            for bit.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> images = torch.rand(2, 3, 8, 8)
        >>> lean = net(images, depths="all", how=sc.Pass(collapsed=True))
        >>> torch.allclose(lean, net(images, depths="all"), atol=1e-5)
        True
    """

    checkpointing: bool = False
    collapsed: bool = False
    gates: tuple[Cut, ...] = ()
    beta: float = 1.0

    def __post_init__(self) -> None:
        """Take depths as cuts.

        Raises:
            StageCostError: beta is negative or not finite.
        """
        if not (isinstance(self.beta, Real) and 0 <= self.beta < math.inf):
            raise StageCostError(f"beta is {self.beta!r}: give a finite number of at least 0")
        gates = (gate if isinstance(gate, Cut) else Cut.first(gate) for gate in self.gates)
        object.__setattr__(self, "gates", tuple(gates))


Observer = Callable[[int, Tensor, Tensor], None]
"""Sees k, x_k and x_{k+1} of the whole network."""


@dataclass(frozen=True)
class _End:
    """x_k behind the last acting block of a cut that goes by several numbers."""

    k: int
    state: Tensor
    numbers: tuple[int, ...]
    whole: bool


@dataclass(frozen=True)
class Rollout:
    """One pass through the blocks: the only place where states follow each other.

    Attributes:
        blocks: the residual blocks, in order.
        head: H, called as `head(state, depth)`: it may keep statistics for each depth.
        tail: the skip connections that are left.
        scales: (N,) or (N, B), s_k of the blocks that act; None is 1, to the last bit.
        observe: sees the states of the whole network.
        training: running statistics of norms follow the whole network and its y_k alone.
        read_late: outputs come after the states of their path, so that random numbers of the whole
            network stay its own. On the way, the gradients of the states need not wait for each other
            in memory.
        checkpointing: see `Pass`; outputs come on the way.
        gates: see `Pass`; nested with all cuts (`stagecost.gates.check_gates`).
        beta: see `Pass`.
        apart: gates that are parts of all cuts of the pass and have other norms than it.
    """

    blocks: Sequence[nn.Module]
    head: nn.Module
    tail: Tail
    scales: Tensor | None = None
    observe: Observer | None = None
    training: bool = False
    read_late: bool = False
    checkpointing: bool = False
    gates: tuple[Cut, ...] = ()
    beta: float = 1.0
    apart: tuple[Cut, ...] = ()

    def outputs(self, x_0: Tensor, cuts: Sequence[Cut]) -> list[Tensor]:
        """Return the terminal output of every cut from x_0, (B, …), in one pass.

        Args:
            x_0: the first state.
            cuts: by the positions of their acting blocks. Blocks that none depends on are not computed.
        """
        x_0 = gated(x_0, self.beta ** len(self.apart)) if self.apart else x_0
        starts: dict[int, Tensor] = {0: x_0}
        outputs: dict[int, Tensor] = {}
        ends: list[_End] = []

        def read(end: _End) -> None:
            outputs.update(self._read(end, cuts))

        for number, path in enumerate(plan_paths(tuple(cuts))):
            state = starts.pop(number)
            for k, stop in self._segments(path):
                if self.checkpointing:
                    state = self._checkpointed(path, k, stop, state, cuts, starts, outputs)
                else:
                    emit = ends.append if self.read_late else read
                    state = self._run(path, k, stop, state, starts, emit)
            # The whole network has the first path, and its output comes before all others: its random
            # numbers, also those of the head, are those of a plain pass.
            for end in sorted(ends, key=lambda end: not (end.whole and end.k == len(self.blocks))):
                read(end)
            ends.clear()
        return [outputs[number] for number in range(len(cuts))]

    def advance(self, state: Tensor, k: int, stop: int) -> Tensor:
        """Go on from x_k to x_stop along the whole network: for states that are asked for one at a time.

        Rows of a state, (B, …), may leave on the way: what is left of a batch goes on alone.
        """
        for position in range(k, stop):
            state = self._step(position, state, whole=True)
        return state

    def read(self, state: Tensor, k: int) -> Tensor:
        """Return y_k of x_k: through the skip connections that are left, and the head."""
        output: Tensor = self.head(self.tail(state, k), k)
        return output

    def _segments(self, path: Path) -> Iterator[tuple[int, int]]:
        """Cut a path into runs of blocks: one, or about √N of them with checkpointing."""
        length = max(1, path.stop - path.start)
        if self.checkpointing:
            length = math.isqrt(length - 1) + 1
        for k in range(path.start, max(path.stop, path.start + 1), length):
            yield k, min(k + length, path.stop)

    def _run(
        self,
        path: Path,
        k: int,
        stop: int,
        state: Tensor,
        starts: dict[int, Tensor],
        emit: Callable[[_End], None],
    ) -> Tensor:
        """Go along a path from x_k to x_stop; hand out the states at which others leave or cuts end."""
        gates = [(gate, path.leaves_behind(gate)) for gate in self.gates]
        for position in range(k, stop):
            self._hand_out(path, position, state, starts, emit)
            behind = [gate for gate, place in gates if -1 < place <= position]
            with self._held_back(position, behind) if behind or self.apart else nullcontext():
                if not path.acts[position]:
                    state = self._bypass(position, state)
                    continue
                if here := sum(place == position for _, place in gates):
                    state = gated(state, self.beta**here)
                following = self._step(position, state, whole=position < path.whole)
            if self.observe is not None and position < path.whole:
                self.observe(position, state, following)
            state = following
        if stop == path.stop:
            self._hand_out(path, stop, state, starts, emit)
        return state

    def _hand_out(
        self,
        path: Path,
        k: int,
        state: Tensor,
        starts: dict[int, Tensor],
        emit: Callable[[_End], None],
    ) -> None:
        if k in path.leaves:
            starts[path.leaves[k]] = state
        if k in path.ends:
            emit(_End(k, state, path.ends[k], k <= path.whole))

    @contextmanager
    def _held_back(self, k: int, gates: Sequence[Cut]) -> Iterator[None]:
        """Gate block k for all gates in which it acts, and its skip, which every gate has, for all."""
        block, skip = [self.blocks[k]], [skip_of(self.blocks[k])]
        acting, apart = (sum(gate.acts(k) for gate in some) for some in (gates, self.apart))
        with (
            gated_weights(block, self.beta**acting),
            gated_weights(skip, self.beta ** (len(gates) - acting)),
            gated_weights(block, self.beta**apart, norms=False),
            gated_weights(skip, self.beta ** (len(self.apart) - apart), norms=False),
        ):
            yield

    @contextmanager
    def _reading_held_back(self, k: int, cut: Cut) -> Iterator[None]:
        """Gate the head, and the skips on the way to it from x_k, for the gates of a cut."""
        parts = [self.head, *map(skip_of, self.blocks[k:])]
        shared = gated_weights(parts, self.beta ** sum(gate < cut for gate in self.gates))
        with shared, gated_weights(parts, self.beta ** len(self.apart), norms=False):
            yield

    def _step(self, k: int, state: Tensor, *, whole: bool) -> Tensor:
        block, scale = self.blocks[k], None if self.scales is None else self.scales[k]
        with nullcontext() if whole or not self.training else FrozenStatistics([block]):
            return step(block, state, scale)

    def _bypass(self, k: int, state: Tensor) -> Tensor:
        skip = skip_of(self.blocks[k])
        if is_identity(skip):
            return state
        with FrozenStatistics([skip]) if self.training else nullcontext():
            bypassed: Tensor = skip(state)
        return bypassed

    def _read(self, end: _End, cuts: Sequence[Cut]) -> dict[int, Tensor]:
        """Send a state through its tail and the head."""
        cut, gated_at_all = cuts[end.numbers[0]], self.gates or self.apart
        frozen = nullcontext() if end.whole or not self.training else FrozenStatistics([self.head])
        with self._reading_held_back(end.k, cut) if gated_at_all else nullcontext():
            state = self.tail(end.state, end.k)
            with frozen:
                output: Tensor = self.head(state, cut.depth)
        return dict.fromkeys(end.numbers, output)

    def _checkpointed(
        self,
        path: Path,
        k: int,
        stop: int,
        state: Tensor,
        cuts: Sequence[Cut],
        starts: dict[int, Tensor],
        outputs: dict[int, Tensor],
    ) -> Tensor:
        """Run a segment, outputs included, of which only the first state is kept for the gradient."""
        names: list[tuple[dict[int, Tensor], int]] = []

        def segment(first: Tensor) -> tuple[Tensor, ...]:
            left: dict[int, Tensor] = {}
            read: dict[int, Tensor] = {}
            last = self._run(path, k, stop, first, left, lambda end: read.update(self._read(end, cuts)))
            names[:] = [*((starts, name) for name in left), *((outputs, name) for name in read)]
            return last, *left.values(), *read.values()

        frozen = FrozenStatistics([*self.blocks[k:], self.head])  # a tail goes through all skips left
        last, *values = checkpoint(
            segment, state, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen)
        )
        for (target, name), value in zip(names, values, strict=True):
            target[name] = value
        reached: Tensor = last
        return reached
