"""A model taken apart into stem, blocks and head: programs that call its own modules.

The skip path of a block is the block with its residual branch removed. What always acts between two blocks
belongs to both paths of the later one.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stagecost.dynamics import FrozenStatistics
from stagecost.errors import StageCostError
from stagecost.models.adapters.blocks import Flow, flow_of
from stagecost.models.adapters.program import (
    Program,
    State,
    needed,
    used_by,
    write_function,
    write_recipe,
)
from stagecost.models.adapters.sums import IDEMPOTENT, KINDS, Kind
from stagecost.models.adapters.tracing import Operation, Trace, Value, leaves, record

Inputs = tuple[Tensor, ...]
BATCHES = 2, 3
SEED = 20250621


class AdaptedBlock(nn.Module):
    """A block of a live model: maps x_k to x_{k+1}, and knows its skip path."""

    def __init__(self, path: str, step: nn.Module, skip: nn.Module, removal: "Removal") -> None:
        """Take the block's path in the model, its two programs, and how it is removed."""
        super().__init__()
        self.path, self.removal = path, removal
        self.step, self.skip = step, skip

    def forward(self, state: State) -> State:
        """Map x_k to x_{k+1}."""
        following: State = self.step(state)
        return following


class AdaptedHead(nn.Module):
    """All that follows the last block. Running statistics in it follow the terminal output alone."""

    def __init__(self, program: Program, num_outputs: int) -> None:
        """Take the program and N+1."""
        super().__init__()
        self.parts, self.num_outputs = nn.Sequential(program), num_outputs

    def forward(self, state: State, depth: int) -> Tensor:
        """Map a state that went through its skip connections to the model's output."""
        secondary = self.parts[-1].model.training and depth < self.num_outputs - 1
        with FrozenStatistics([self.parts]) if secondary else nullcontext():
            output: Tensor = self.parts(state)
        return output

    def select_outputs(self, depths: Sequence[int]) -> None:
        """Note how many outputs are left."""
        self.num_outputs = len(depths)


@dataclass(frozen=True)
class Removal:
    """What takes a block out of the live model.

    Attributes:
        skip: the block's own skip path, from its module's arguments to its result; None where it has no
            module of its own.
        branches: paths of the modules in its branch, where it has no module of its own.
    """

    skip: Program | None
    branches: tuple[str, ...]


@dataclass(frozen=True)
class Parts:
    """What a model was taken apart into."""

    stem: Program
    blocks: list[AdaptedBlock]
    head: AdaptedHead


@dataclass
class _Pass:
    """A recorded pass, and the values that the state at hand consists of."""

    flow: Flow
    batch: int
    training: bool
    live: list[list[Value]]
    state: list[Value]


def take_apart(model: nn.Module, example: Inputs, *, split_branches: bool) -> Parts:
    """Take a model apart into stem, blocks and head.

    Args:
        model: is changed: give a twin.
        example: inputs, as many samples as there are.
        split_branches: count attention and MLP of a block as two.

    Raises:
        StageCostError: it cannot be done; the message names the model and the reason.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        shake(model)
        return _Builder(model, example, split_branches).build()


class _Builder:
    def __init__(self, model: nn.Module, example: Inputs, split_branches: bool) -> None:
        self.model = model
        self.inputs = {batch: tuple(resampled(t, batch) for t in example) for batch in BATCHES}
        self.passes = []
        for training in (False, True):
            for batch, inputs in self.inputs.items():
                flow = flow_of(record(model.train(training), inputs), split_branches=split_branches)
                live = flow.live()
                self.passes.append(_Pass(flow, batch, training, live, live[0]))
        paths = [[block.path for block in one.flow.blocks] for one in self.passes]
        if any(other != paths[0] for other in paths):
            raise StageCostError("it has other blocks in training mode, or for another batch size")

    def build(self) -> Parts:
        stem = self.program(lambda p: p.flow.between[0], lambda p: p.flow.trace.inputs, _state)
        states = self.states(stem)
        blocks = []
        for k in range(len(self.passes[0].flow.blocks)):
            blocks.append(self.block(k, states))
            states = {
                training: self.run(blocks[k], state, training) for training, state in states.items()
            }
        head = self.program(lambda p: p.flow.between[-1], _given, lambda p: p.flow.output)
        return Parts(stem, blocks, AdaptedHead(head, len(blocks) + 1))

    def states(self, stem: Program) -> dict[bool, State]:
        return {
            training: self.run(stem, self.inputs[BATCHES[0]], training) for training in (False, True)
        }

    def run(self, program: nn.Module, state: State, training: bool) -> Any:
        """Run a program on the twin, without moving torch's random numbers."""
        self.model.train(training)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return program(state)

    def block(self, k: int, states: dict[bool, State]) -> AdaptedBlock:
        def bypass(p: _Pass) -> list[Operation]:
            return [*_between(p, k), *p.flow.blocks[k].skip]

        def act(p: _Pass) -> list[Operation]:
            return [*_between(p, k), *p.flow.blocks[k].step]

        stretch = self.passes[0].flow.blocks[k]
        skip: nn.Module = self.program(bypass, _given, lambda p: _one(p.live[k + 1]))
        places = self.identity(k, skip, bypass(self.passes[0]), states)
        following = [_following(p, k, places) for p in self.passes]
        step = self.program(act, _given, lambda p: _one(following[self.passes.index(p)]))
        removal = Removal(self.own_skip(k), tuple(stretch.branches))
        for one, state in zip(self.passes, following, strict=True):
            one.state = state
        return AdaptedBlock(stretch.path, step, nn.Identity() if places is not None else skip, removal)

    def own_skip(self, k: int) -> Program | None:
        """Return a block's skip path from its module's arguments to its result."""
        if self.passes[0].flow.blocks[k].call is None:
            return None

        def given(p: _Pass) -> list[Value]:
            call = p.flow.blocks[k].call
            return [] if call is None else leaves((call.args, call.kwargs), Value)

        def result(p: _Pass) -> Any:
            call = p.flow.blocks[k].call
            return None if call is None else call.result

        return self.program(lambda p: p.flow.blocks[k].skip, given, result)

    def identity(
        self, k: int, skip: nn.Module, operations: list[Operation], states: dict[bool, State]
    ) -> list[int] | None:
        """Return the place in x_k of each value of x_{k+1} if the skip is the identity, else None."""
        first = self.passes[0]
        places: list[int] | None = None
        for training, state in states.items():
            before = _tensors(state)
            after = _tensors(self.run(skip, state, training))
            places = [next((i for i, x in enumerate(before) if same(x, y)), -1) for y in after]
            if len(set(places)) < len(places) or -1 in places:
                return None
        for place, value in zip(places or [], first.live[k + 1], strict=True):
            if not _passes(first.flow.trace, operations, first.state[place], value):
                return None
        return places

    def program(
        self,
        operations: Callable[[_Pass], list[Operation]],
        given: Callable[[_Pass], list[Value]],
        output: Callable[[_Pass], Any],
    ) -> Program:
        recipes = [
            write_recipe(p.flow.trace, operations(p), given(p), output(p), p.batch) for p in self.passes
        ]
        functions = write_function(*recipes[:2]), write_function(*recipes[2:])
        return Program(self.model, functions, used_by(recipes))


def _between(one: _Pass, k: int) -> list[Operation]:
    """Return what stands before block k and always acts; before block 0 that is the stem."""
    return one.flow.between[k] if k else []


def _given(one: _Pass) -> list[Value]:
    return one.state


def _state(one: _Pass) -> Any:
    return _one(one.state)


def _one(values: list[Value]) -> Any:
    """A state of one value is a tensor, else a tuple."""
    return values[0] if len(values) == 1 else tuple(values)


def _following(one: _Pass, k: int, places: list[int] | None) -> list[Value]:
    """Return the values of x_{k+1}: in the order of x_k where the skip is the identity."""
    if places is None:
        return one.live[k + 1]
    state = list(one.state)
    for place, value in zip(places, one.live[k + 1], strict=True):
        state[place] = value
    return state


def _passes(trace: Trace, operations: list[Operation], given: Value, value: Value) -> bool:
    """Tell whether a value is handed on unchanged by what is done, whatever its numbers are."""
    for operation in needed(operations, [value], [given]):
        inner = trace.functions[operation.start : operation.end] if operation.target else []
        for function in inner:
            kind = KINDS.get(function.name, Kind.NONLINEAR)
            rectifies = function.name in IDEMPOTENT and _rectified(trace, given)
            if kind != Kind.TRIVIAL and function.name != "dropout" and not rectifies:
                return False
    return True


def _rectified(trace: Trace, value: Value) -> bool:
    """Tell whether a state comes from a ReLU, so that another one changes nothing."""
    while value in trace.producers:
        function = trace.producers[value]
        if function.name in IDEMPOTENT:
            return True
        uses = [v for v in function.uses if v in trace.varying]
        if len(uses) != 1 or KINDS.get(function.name) not in {Kind.TRIVIAL, Kind.POOL}:
            return False
        value = uses[0]
    return False


def _tensors(state: State) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def same(first: Tensor, second: Tensor) -> bool:
    """Tell whether two tensors are equal to the last bit; NaN equals NaN."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


def resampled(example: Tensor, batch: int) -> Tensor:
    """Draw inputs like an example: from its own numbers, or noise where it is constant."""
    shape = (batch, *example.shape[1:])
    numbers = example.detach().flatten()
    if example.is_floating_point() and (numbers == numbers[:1]).all():
        return torch.randn(shape, device=example.device).to(example.dtype)
    return numbers[torch.randint(len(numbers), shape, device=example.device)]


@torch.no_grad()
def shake(model: nn.Module) -> None:
    """Give a model weights that hide nothing: gains of zero or one and layer scales become random."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and (parameter == parameter.flatten()[:1].view(())).all():
            parameter.add_(torch.rand_like(parameter) * 0.4 + 0.1)
