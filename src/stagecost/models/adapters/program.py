"""Programs: parts of a recorded forward pass as functions that call the live model's modules.

A part is written from two passes with different batch sizes, side by side. They must do the same, and a
whole number that follows the batch size is taken from the tensors. `torch.fx` writes the function.
"""

import copy
import keyword
import operator
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from stagecost.errors import StageCostError
from stagecost.models.adapters.tracing import Operation, Trace, Value, leaves

State = Tensor | tuple[Tensor, ...]


def needed(
    operations: Iterable[Operation], wanted: Iterable[Value], given: Iterable[Value]
) -> list[Operation]:
    """Return those operations on which wanted values depend, in order."""
    have, need, kept = set(given), set(wanted), []
    need -= have
    for operation in reversed(list(operations)):
        if need.intersection(operation.makes):
            kept.append(operation)
            need.difference_update(operation.makes)
            need.update(value for value in operation.uses if value not in have)
    return kept[::-1]


@dataclass(frozen=True)
class Part:
    """What is computed in a pass, from what."""

    trace: Trace  #: of the pass
    batch: int  #: its batch size
    operations: Sequence[Operation]  #: in order; those that the output does not need are left out
    given: Sequence[Value]  #: the inputs
    output: Any  #: a structure of values

    @property
    def kept(self) -> list[Operation]:
        """The operations that are needed.

        Raises:
            StageCostError: one of them cannot be done again.
        """
        kept = needed(self.operations, leaves(self.output, Value), self.given)
        for operation in kept:
            self._check(operation)
        return kept

    def _check(self, operation: Operation) -> None:
        """Refuse what would not be the same a second time."""
        name = operation.name or f"module {operation.target}"
        if operation.name == "unseen":
            raise StageCostError("it calls something that is no function of torch")
        if operation.context != self.trace.root.context:
            raise StageCostError(f"it switches gradients or autocast ({name})")
        if operation.is_module:
            inner = self.trace.functions[operation.start : operation.end]
            earlier = {v for f in inner for v in f.uses if v.number < operation.first_value}
            if not earlier.intersection(self.trace.varying) <= set(operation.uses):
                raise StageCostError(
                    f"{name} reads a tensor of the pass that is not among its arguments"
                )


def refuse_readings(trace: Trace, opened: Container[Operation]) -> None:
    """Refuse modules that are done in their place and go on by the values of tensors."""
    for name, call in trace.readings:
        if call in opened:
            where = call.target or "its forward"
            raise StageCostError(f"{where} goes on by the values of its tensors ({name})")


def _can_be_written(name: str) -> bool:
    """Tell whether code can name a module or tensor so: as an attribute, or between quotes."""
    return name.isprintable() and not keyword.iskeyword(name) and '"' not in name and "\\" not in name


class _Writer:
    """Writes a function from the same part of two passes with different batch sizes."""

    def __init__(self, first: Part, second: Part) -> None:
        self.first, self.second, self.graph = first, second, fx.Graph()
        self.kept = first.kept, second.kept
        self.uses: dict[str, None] = {}  # paths of modules and tensors of the model
        self.holders: dict[str, None] = {}  # paths of modules whose own code is done in their place
        self.nodes: dict[Value, fx.Node] = {}
        self.partner: dict[Value, Value] = {}  # a value of the first pass → the same one of the second
        self.batch: fx.Node | None = None
        # With branches left out, a sum is its skip term itself, which is not to be changed in place.
        sums = {value for o in self.kept[0] if o.target is None for value in o.makes}
        changed = {value for operation in self.kept[0] for value in operation.changed}
        self.copied = changed & (sums | set(first.given))

    def write(self) -> FunctionType:
        self.inputs = [self.graph.placeholder(f"x{number}") for number in range(len(self.first.given))]
        for pair, node in zip(
            zip(self.first.given, self.second.given, strict=True), self.inputs, strict=True
        ):
            self._name(*pair, node)
        if len(self.kept[0]) != len(self.kept[1]):
            raise StageCostError(
                "it takes other steps for another batch size or in another pass: if the first one makes "
                "what the others use, call the model once before"
            )
        for one, other in zip(*self.kept, strict=True):
            self._call(one, other)
        self.graph.output(self._both(self.first.output, self.second.output))
        for path in self.uses:
            if not all(map(_can_be_written, path.split("."))):
                raise StageCostError(f"it uses {path!r}, a name that cannot stand in code: rename it")
        code = self.graph.python_code("self")
        namespace = dict(code.globals)
        exec(compile(code.src, "<a part of the model's forward>", "exec"), namespace)
        function = namespace["forward"]
        assert isinstance(function, FunctionType)
        return function

    def _name(self, one: Value, other: Value, node: fx.Node) -> None:
        copied = one in self.copied
        self.nodes[one] = self.graph.call_method("clone", (node,)) if copied else node
        self.partner[one] = other

    def _call(self, one: Operation, other: Operation) -> None:
        target = self._both(one.target, other.target)
        if one.parent is not None and isinstance(one.parent.target, str):
            self.holders[one.parent.target] = None
        args, kwargs = self._both((one.args, one.kwargs), (other.args, other.kwargs))
        if target is None:  # a sum of which the skip terms are left
            node = args[0]
            for term in args[1:]:
                node = self.graph.call_function(operator.add, (node, term))
        elif isinstance(target, str):
            self.uses[target] = None
            node = self.graph.call_module(target, args, kwargs)
        elif getattr(Tensor, one.name, None) is target:
            node = self.graph.call_method(one.name, args, kwargs)
        else:
            node = self.graph.call_function(target, args, kwargs)
        for (old, new), partner in zip(one.changed.items(), other.changed.values(), strict=True):
            if old in self.nodes:
                self.nodes[new], self.partner[new] = self.nodes[old], partner
        self._bind(one.result, other.result, node)

    def _bind(self, one: Any, other: Any, node: fx.Node) -> None:
        """Name the parts of a result."""
        if isinstance(one, Value):
            self._name(one, other, node)
        keys = (
            list(one)
            if isinstance(one, dict)
            else range(len(one) if isinstance(one, tuple | list) else 0)
        )
        for key in keys:
            if leaves(one[key], Value):
                self._bind(one[key], other[key], self.graph.call_function(operator.getitem, (node, key)))

    def _both(self, one: Any, other: Any) -> Any:  # noqa: PLR0911 (one return a type)
        """Return what stands for the same thing in both passes."""
        if isinstance(one, Value):
            return self._value(one, other)
        if type(one) is type(other):
            if isinstance(one, tuple | list) and len(one) == len(other):
                parts = map(self._both, one, other)
                return list(parts) if isinstance(one, list) else tuple(parts)
            if isinstance(one, dict) and one.keys() == other.keys():
                return {key: self._both(part, other[key]) for key, part in one.items()}
            if isinstance(one, slice):
                ends = ((one.start, other.start), (one.stop, other.stop), (one.step, other.step))
                return slice(*(self._both(*pair) for pair in ends))
            if isinstance(one, torch.device):
                return self.graph.call_function(getattr, (self.inputs[0], "device"))
            if one is other or one == other:  # NumPy's numbers are not written as they are read
                return one.item() if isinstance(one, np.generic) else one
            factor, rest = divmod(one, self.first.batch) if type(one) is int else (0, 1)
            if rest == 0 and factor * self.second.batch == other:
                return self.graph.call_function(operator.mul, (self._batch_size(), factor))
        raise StageCostError(f"it does something else for another batch size ({one!r}, {other!r})")

    def _value(self, one: Value, other: Value) -> fx.Node:
        if one in self.nodes and self.partner[one] == other:
            return self.nodes[one]
        path = self.first.trace.sources.get(one)
        if path and path == self.second.trace.sources.get(other):
            self.uses[path] = None
            return self.graph.get_attr(path)
        raise StageCostError(
            "it uses a tensor that is neither an argument nor an attribute of the model: make it a "
            "buffer"
        )

    def _batch_size(self) -> fx.Node:
        """Read the batch size from the first input with a dimension that is a multiple of it."""
        if self.batch is None:
            number, dimension, multiple = next(self._multiples(), (0, 0, 0))
            if not multiple:
                raise StageCostError("it needs the batch size, but none of its inputs tells that")
            size = self.graph.call_method("size", (self.inputs[number], dimension))
            self.batch = self.graph.call_function(operator.floordiv, (size, multiple))
        return self.batch

    def _multiples(self) -> Iterator[tuple[int, int, int]]:
        for number, (one, other) in enumerate(zip(self.first.given, self.second.given, strict=True)):
            shapes = zip(self.first.trace.shapes[one], self.second.trace.shapes[other], strict=True)
            for dimension, (a, b) in enumerate(shapes):
                if a != b and a % self.first.batch == 0:
                    yield number, dimension, a // self.first.batch


class Program(nn.Module):
    """A part of a live model's forward: maps a state to a state, or to the output.

    It holds nothing: modules and tensors are looked up in the model at each call. Its `modules()` and
    `parameters()` are those of the model that it uses.
    """

    model: nn.Module

    def __init__(self, model: nn.Module, evaluation: Sequence[Part], training: Sequence[Part]) -> None:
        """Write the part of a model that is recorded in two passes of each mode.

        Raises:
            StageCostError: the passes differ, or something in them cannot be done again.
        """
        super().__init__()
        writers = _Writer(*evaluation), _Writer(*training)
        self.functions = tuple(writer.write() for writer in writers)
        self.uses = tuple(writers[0].uses | writers[1].uses)
        self.holders = tuple(writers[0].holders | writers[1].holders)
        self.bind(model)

    def bind(self, model: nn.Module) -> None:
        """Work on this model. It is not registered here: its parameters keep their names."""
        self.__dict__["model"] = model

    @property
    def parameter_owners(self) -> Iterator[nn.Module]:
        """Modules among which are those that hold its parameters."""
        return self.model.modules()

    def forward(self, state: State) -> Any:
        """Do this part, in the mode that the model is in."""
        inputs = state if isinstance(state, tuple) else (state,)
        return self.functions[self.model.training](self.model, *inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        """Copy all but the functions, which are no one's own."""
        twin = memo[id(self)] = self.__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __getstate__(self) -> Any:
        """Refuse to be pickled: functions that were written here have no name elsewhere.

        Raises:
            StageCostError: always.
        """
        raise StageCostError(
            "views, and what they leave of blocks, are not pickled: pickle the whole model and adapt it"
        )

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Go through this module and those of the model that it uses."""
        memo = set() if memo is None else memo
        yield from super().named_modules(memo, prefix, remove_duplicate)
        parts = {path: operator.attrgetter(path)(self.model) for path in self.uses}
        for path, part in parts.items():
            if isinstance(part, nn.Module):
                yield from part.named_modules(memo, f"{prefix}.{path}", remove_duplicate)
        if alone := [part for part in parts.values() if isinstance(part, nn.Parameter)]:
            yield f"{prefix}.parameters", nn.ParameterList(alone)
