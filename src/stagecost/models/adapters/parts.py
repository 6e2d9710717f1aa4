"""A model taken apart into stem, blocks and head: programs that call its own modules.

The skip path of a block is the block with its residual branch removed. What always acts between two
blocks belongs to both paths of the later one.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stagecost.errors import StageCostError
from stagecost.frozen_statistics import FrozenStatistics
from stagecost.models.adapters.blocks import Flow, flow_of
from stagecost.models.adapters.kinds import CLIPS, KINDS, Kind
from stagecost.models.adapters.program import Part, Program, State, needed
from stagecost.models.adapters.tracing import Operation, Trace, Value, leaves, map_leaves, record
from stagecost.text import one_line

Inputs = tuple[Tensor, ...]
BATCHES = 2, 3
MODES = False, True
SEED = 20250621


class AdaptedBlock(nn.Module):
    """A block of a live model: maps x_k to x_{k+1}, and knows its skip path.

    Attributes:
        path: of the block in the model, or "container#2" for one without a module of its own.
        step: the program of the block.
        skip: the block with its branch removed.
        emptied: the skip path from the module's arguments to its result; None without such a module.
        branches: paths of the modules of the branch, where there is no such module.
    """

    skip: nn.Module
    emptied: Program | None

    def __init__(self, path: str, step: nn.Module, skip: nn.Module) -> None:
        """Take the path and both programs."""
        super().__init__()
        self.path, self.step, self.skip = path, step, skip
        self.__dict__["emptied"] = None  # not registered: it is no part of the step
        self.branches: tuple[str, ...] = ()

    def forward(self, state: State) -> State:
        """Map x_k to x_{k+1}."""
        following: State = self.step(state)
        return following


class AdaptedHead(nn.Module):
    """All that follows the last block. Running statistics in it follow the terminal output alone."""

    def __init__(self, program: Program, num_outputs: int) -> None:
        """Take the program and N+1."""
        super().__init__()
        self.program, self.num_outputs = program, num_outputs
        self.before = nn.Sequential()  # skips of blocks that were removed

    def forward(self, state: State, depth: int) -> Tensor:
        """Map a state that went through its skip connections to the model's output."""
        secondary = self.program.model.training and depth < self.num_outputs - 1
        with FrozenStatistics([self]) if secondary else nullcontext():
            output: Tensor = self.program(self.before(state))
        return output

    def select_outputs(self, depths: Sequence[int]) -> None:
        """Note how many outputs are left."""
        self.num_outputs = len(depths)


@dataclass(frozen=True)
class Parts:
    """What a model was taken apart into."""

    stem: Program
    blocks: list[AdaptedBlock]
    head: AdaptedHead


def take_apart(model: nn.Module, example: Inputs, *, split_branches: bool) -> Parts:
    """Take a model apart into stem, blocks and head. It is changed: give a twin.

    Raises:
        StageCostError: it cannot be done; the message says why.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        shake(model)
        return _Builder(model, example, split_branches).build()


@dataclass
class _Pass:
    """A recorded pass, and the values that the state at hand, x_k, consists of."""

    flow: Flow
    batch: int
    live: list[list[Value]]
    state: list[Value]
    k: int = 0

    def part(self, operations: Sequence[Operation], given: list[Value], output: Any) -> Part:
        return Part(self.flow.trace, self.batch, operations, given, output)

    def stem(self) -> Part:
        return self.part(self.flow.between[0], self.flow.trace.inputs, _state(self.state))

    def skip(self) -> Part:
        operations = [*self._before(), *self.flow.blocks[self.k].skip]
        return self.part(operations, self.state, _state(self.live[self.k + 1]))

    def step(self, following: list[Value]) -> Part:
        operations = [*self._before(), *self.flow.blocks[self.k].step]
        return self.part(operations, self.state, _state(following))

    def emptied(self) -> Part:
        call = self.flow.blocks[self.k].call
        assert call is not None
        given, live = leaves((call.args, call.kwargs), Value), self.live[self.k + 1]

        def left(leaf: Any) -> Any:  # in the place of what nobody needs, which a branch may have made
            return given[0] if isinstance(leaf, Value) and leaf not in live else leaf

        return self.part(self.flow.blocks[self.k].skip, given, map_leaves(left, call.result))

    def head(self) -> Part:
        return self.part(self.flow.between[-1], self.state, self.flow.output)

    def _before(self) -> list[Operation]:
        """What stands before the block and always acts; before block 0 that is the stem."""
        return self.flow.between[self.k] if self.k else []

    def following(self, places: list[int] | None) -> list[Value]:
        """Return the values of x_{k+1}: in the order of x_k where the skip is the identity."""
        live, state = self.live[self.k + 1], list(self.state)
        if places is None:
            return live
        for place, value in zip(places, live, strict=True):
            state[place] = value
        return state


class _Builder:
    """Goes through the blocks of four passes, two batch sizes in two modes, and writes programs."""

    def __init__(self, model: nn.Module, example: Inputs, split_branches: bool) -> None:
        self.model = model
        self.inputs = {batch: tuple(resampled(t, batch) for t in example) for batch in BATCHES}
        self.passes: list[_Pass] = []
        for mode in MODES:
            for batch, inputs in self.inputs.items():
                flow = flow_of(_recorded(model.train(mode), inputs), split_branches=split_branches)
                live = flow.live()
                self.passes.append(_Pass(flow, batch, live, live[0]))
        paths = [[block.path for block in one.flow.blocks] for one in self.passes]
        if any(other != paths[0] for other in paths):
            raise StageCostError("it has other blocks in training mode, or for another batch size")

    def build(self) -> Parts:
        stem = self.program("before its blocks", _Pass.stem)
        states = {mode: self.run(stem, self.inputs[BATCHES[0]], mode) for mode in MODES}
        blocks = []
        for _ in self.passes[0].flow.blocks:
            blocks.append(self.block(states))
            states = {mode: self.run(blocks[-1], state, mode) for mode, state in states.items()}
        head = self.program("behind its blocks", _Pass.head)
        return Parts(stem, blocks, AdaptedHead(head, len(blocks) + 1))

    def program(self, place: str, part: Callable[[_Pass], Part]) -> Program:
        parts = [part(one) for one in self.passes]
        try:
            return Program(self.model, parts[:2], parts[2:])
        except StageCostError as error:
            raise StageCostError(f"{place} {error}") from None

    def run(self, program: nn.Module, state: State, mode: bool) -> Any:
        """Run a program on the twin, without moving torch's random numbers."""
        self.model.train(mode)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return program(state)

    def block(self, states: dict[bool, State]) -> AdaptedBlock:
        """Write the block at which all passes are, and move them on."""
        first = self.passes[0]
        stretch = first.flow.blocks[first.k]
        place = f"in {stretch.path}"
        skip: nn.Module = self.program(place, _Pass.skip)
        places = self.identity(skip, states)
        step = self.program(place, lambda one: one.step(one.following(places)))
        block = AdaptedBlock(stretch.path, step, skip if places is None else nn.Identity())
        if stretch.call is not None:
            block.__dict__["emptied"] = self.program(place, _Pass.emptied)
        block.branches = tuple(stretch.branches)
        for one in self.passes:
            one.state, one.k = one.following(places), one.k + 1
        return block

    def identity(self, skip: nn.Module, states: dict[bool, State]) -> list[int] | None:
        """Return the place in x_k of each value of x_{k+1} if the skip is the identity, else None.

        That is so in both modes: x_k may hold more values in training, such as one with dropout.
        """
        found = list[list[int]]()
        for mode, state in states.items():
            before, after = _tensors(state), _tensors(self.run(skip, state, mode))
            found.append([next((i for i, x in enumerate(before) if same(x, y)), -1) for y in after])
        places = found[0]
        if len(set(places)) < len(places) or -1 in places or any(other != places for other in found):
            return None
        first = self.passes[0]
        part = first.skip()
        pairs = [
            (first.state[place], value)
            for place, value in zip(places, first.live[first.k + 1], strict=True)
        ]
        handed = all(_hands_on(first.flow.trace, part.operations, *pair) for pair in pairs)
        return places if handed else None


def _recorded(model: nn.Module, inputs: Inputs) -> Trace:
    try:
        return record(model, inputs)
    except StageCostError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
        mode = "training" if model.training else "evaluation"
        raise StageCostError(
            f"in {mode} mode it fails on inputs of {shapes} ({one_line(error)})"
        ) from error


def _state(values: list[Value]) -> Any:
    """A state of one value is a tensor, else a tuple."""
    return values[0] if len(values) == 1 else tuple(values)


def _tensors(state: State) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def _hands_on(trace: Trace, operations: Sequence[Operation], given: Value, value: Value) -> bool:
    """Tell whether what is done to a value leaves it as it is, whatever its numbers are."""
    for operation in needed(operations, [value], [given]):
        inner = trace.functions[operation.start : operation.end] if operation.target else []
        for function in inner:
            shapes = KINDS.get(function.name) == Kind.TRIVIAL or function.name == "dropout"
            if not shapes and not (function.name in CLIPS and _clipped(trace, given, function)):
                return False
    return True


def _clipped(trace: Trace, value: Value, clip: Operation) -> bool:
    """Tell whether a value comes from a ReLU or the like, so that a further one changes nothing."""
    least, most = _limits(clip)
    while value in trace.producers:
        function = trace.producers[value]
        if function.name in CLIPS:
            low, high = _limits(function)
            return least <= low and high <= most
        uses = [v for v in function.uses if v in trace.varying]
        if len(uses) != 1 or KINDS.get(function.name) not in {Kind.TRIVIAL, Kind.POOL}:
            return False
        value = uses[0]
    return False


def _limits(clip: Operation) -> tuple[float, float]:
    """Return the least and the largest number that a ReLU or the like lets through."""
    if clip.name.startswith("relu"):
        return 0.0, 6.0 if clip.name == "relu6" else math.inf
    given = dict(zip(("min_val", "max_val"), clip.args[1:3], strict=False)) | clip.kwargs
    return given.get("min_val", -1.0), given.get("max_val", 1.0)


def same(first: Tensor, second: Tensor) -> bool:
    """Tell whether two tensors are equal to the last bit; NaN equals NaN."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


def resampled(example: Tensor, batch: int) -> Tensor:
    """Draw inputs like an example: from its own numbers, or noise where it is constant."""
    shape = (batch, *example.shape[1:])
    numbers = example.flatten()
    if example.is_floating_point() and (numbers == numbers[:1]).all():
        return torch.randn(shape).to(example.dtype)
    return numbers[torch.randint(len(numbers), shape)]


@torch.no_grad()
def shake(model: nn.Module) -> None:
    """Give a model weights that hide nothing: gains of zero or one and layer scales become random."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and (parameter == parameter.flatten()[:1].view(())).all():
            parameter.add_(torch.rand_like(parameter) * 0.4 + 0.1)
