"""Programs: parts of a recorded forward pass as functions that call the live model's modules.

A recipe is what a program does, with local numbers for values. Recipes of two batch sizes are merged, so
that a number that is proportional to the batch is taken from the tensors; then `torch.fx` writes the
function.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from stagecost.errors import StageCostError
from stagecost.models.adapters.tracing import READERS, Operation, Trace, Value, leaves, map_leaves

State = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Slot:
    """A value by its number in a recipe."""

    number: int


@dataclass(frozen=True)
class OfModel:
    """A parameter or buffer of the model by its path."""

    path: str


@dataclass(frozen=True)
class PerSample:
    """A whole number that is `factor` times the batch size."""

    factor: int


@dataclass(frozen=True)
class Line:
    """One call: target, its arguments with slots, its result's slots, and slots that changed their names."""

    target: Callable[..., Any] | str | None
    args: Any
    kwargs: Any
    result: Any
    renamed: tuple[tuple[Slot, Slot], ...]


@dataclass(frozen=True)
class Recipe:
    """What a program does.

    Attributes:
        shapes: of the inputs, which have the first slots.
        copied: values that are changed in place and not the program's to change: it takes a copy.
        lines: the calls, in order.
        output: a structure of slots.
        batch: the batch size of the trace.
    """

    shapes: tuple[tuple[int, ...], ...]
    copied: frozenset[Slot]
    lines: tuple[Line, ...]
    output: Any
    batch: int


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


def write_recipe(
    trace: Trace,
    operations: Iterable[Operation],
    given: Sequence[Value],
    output: Any,
    batch: int,
) -> Recipe:
    """Write down how an output is computed from given values.

    Args:
        trace: what the operations come from.
        operations: in order; those that the output does not need are left out.
        given: the inputs.
        output: a structure with values.
        batch: the batch size of the trace.

    Raises:
        StageCostError: something in it cannot be done again.
    """
    kept = needed(operations, leaves(output, Value), given)
    slots = {value: Slot(number) for number, value in enumerate(given)}

    def slot(leaf: Any) -> Any:
        if not isinstance(leaf, Value):
            return leaf
        if leaf in slots:
            return slots[leaf]
        if not trace.sources.get(leaf):
            raise StageCostError(
                "uses a tensor that is neither an argument nor an attribute of the model"
            )
        return OfModel(trace.sources[leaf])

    lines = []
    # With branches left out, a sum is its skip term itself: one more thing not to be changed in place.
    alias = {value for operation in kept if operation.target is None for value in operation.makes}
    for operation in kept:
        _check(trace, operation)
        arguments = map_leaves(slot, (operation.args, operation.kwargs))
        renamed = [(slot(old), new) for old, new in operation.changed.items() if old in slots]
        for value in operation.makes:
            slots.setdefault(value, Slot(len(slots)))
        renames = tuple((old, slots[new]) for old, new in renamed)
        result = map_leaves(slot, operation.result)
        lines.append(Line(operation.target, *arguments, result, renames))
    changed = {value for operation in kept for value in operation.changed}
    copied = frozenset(slots[value] for value in changed if value in given or value in alias)
    shapes = tuple(trace.shapes[value] for value in given)
    return Recipe(shapes, copied, tuple(lines), map_leaves(slot, output), batch)


def _check(trace: Trace, operation: Operation) -> None:
    """Refuse what would not be the same a second time."""
    name = operation.name or f"module {operation.target}"
    if operation.name == "_unseen":
        raise StageCostError("calls something that is no function of torch")
    if operation.context != trace.root.context:
        raise StageCostError(f"switches gradients or autocast ({name})")
    if operation.is_module:
        inner = trace.functions[operation.start : operation.end]
        captured = {v for f in inner for v in f.uses if v.number < operation.first_value}
        hidden = captured.intersection(trace.varying).difference(operation.uses)
        if hidden:
            raise StageCostError(f"{name} reads a tensor of the pass that is none of its arguments")


def refuse_readings(trace: Trace, operations: Iterable[Operation]) -> None:
    """Refuse what goes on by the values of its tensors.

    Raises:
        StageCostError: an operation that is no module call gave Python a value.
    """
    calls = [(o.start, o.end) for o in operations if o.is_module]
    for name, when in trace.readings:
        if name in READERS and not any(start <= when < end for start, end in calls):
            raise StageCostError(f"goes on by the values of its tensors ({name})")


def merge(first: Recipe, second: Recipe) -> Recipe:
    """Merge the recipes of two batch sizes.

    Raises:
        StageCostError: they do different things, or a number follows the batch size otherwise.
    """
    batches = first.batch, second.batch

    def both(a: Any, b: Any) -> Any:
        if isinstance(a, Line) and isinstance(b, Line):
            merged = [both(getattr(a, n), getattr(b, n)) for n in a.__dataclass_fields__]
            return Line(*merged)
        if isinstance(a, tuple | list) and type(a) is type(b) and len(a) == len(b):
            return type(a)(both(p, q) for p, q in zip(a, b, strict=True))
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: both(a[key], b[key]) for key in a}
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(both(a.start, b.start), both(a.stop, b.stop), both(a.step, b.step))
        if type(a) is type(b) and (a is b or a == b):
            return a
        if type(a) is type(b) is int and a * batches[1] == b * batches[0] and a % batches[0] == 0:
            return PerSample(a // batches[0])
        raise StageCostError(f"does something else for another batch size ({a!r}, {b!r})")

    lines = both(first.lines, second.lines)
    output = both(first.output, second.output)
    return Recipe(first.shapes, first.copied | second.copied, lines, output, first.batch)


class _Writer:
    """Writes the function of a recipe."""

    def __init__(self, recipe: Recipe, other_shapes: Sequence[tuple[int, ...]]) -> None:
        self.recipe, self.other_shapes, self.graph = recipe, other_shapes, fx.Graph()
        self.batch: fx.Node | None = None
        self.nodes: dict[Slot, fx.Node] = {}
        self.inputs = [self.graph.placeholder(f"x{n}") for n in range(len(recipe.shapes))]

    def write(self) -> FunctionType:
        for number, node in enumerate(self.inputs):
            self._name(Slot(number), node)
        for line in self.recipe.lines:
            self._line(line)
        self.graph.output(self._arguments(self.recipe.output))
        code = self.graph.python_code("self")
        namespace = dict(code.globals)
        exec(compile(code.src, "<a part of the model's forward>", "exec"), namespace)
        function = namespace["forward"]
        assert isinstance(function, FunctionType)
        return function

    def _line(self, line: Line) -> None:
        args, kwargs = self._arguments(line.args), self._arguments(line.kwargs)
        if line.target is None:  # a sum of which the skip terms are left
            node = args[0]
            for term in args[1:]:
                node = self.graph.call_function(operator.add, (node, term))
        elif isinstance(line.target, str):
            node = self.graph.call_module(line.target, args, kwargs)
        elif getattr(Tensor, line.target.__name__, None) is line.target:
            node = self.graph.call_method(line.target.__name__, args, kwargs)
        else:
            node = self.graph.call_function(line.target, args, kwargs)
        for old, new in line.renamed:
            self.nodes[new] = self.nodes[old]
        self._bind(line.result, node)

    def _name(self, slot: Slot, node: fx.Node) -> None:
        copied = slot in self.recipe.copied
        self.nodes[slot] = self.graph.call_method("clone", (node,)) if copied else node

    def _bind(self, result: Any, node: fx.Node) -> None:
        """Name the parts of a result."""
        if isinstance(result, Slot):
            self._name(result, node)
        elif isinstance(result, dict):
            for key, part in result.items():
                self._bind(part, self.graph.call_function(operator.getitem, (node, key)))
        elif isinstance(result, tuple | list):
            for number, part in enumerate(result):
                self._bind(part, self.graph.call_function(operator.getitem, (node, number)))

    def _arguments(self, structure: Any) -> Any:
        return map_leaves(self._argument, structure)

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, Slot):
            return self.nodes[leaf]
        if isinstance(leaf, OfModel):
            return self.graph.get_attr(leaf.path)
        if isinstance(leaf, torch.device):
            return self.graph.call_function(getattr, (self.inputs[0], "device"))
        if isinstance(leaf, PerSample):
            return self.graph.call_function(operator.mul, (self._batch_size(), leaf.factor))
        return leaf

    def _batch_size(self) -> fx.Node:
        """Read the batch size from the first input that has a dimension proportional to it."""
        if self.batch is None:
            number, dimension, multiple = next(self._proportional())
            size = self.graph.call_method("size", (self.inputs[number], dimension))
            self.batch = self.graph.call_function(operator.floordiv, (size, multiple))
        return self.batch

    def _proportional(self) -> Iterator[tuple[int, int, int]]:
        for number, shape in enumerate(self.recipe.shapes):
            for dimension, (a, b) in enumerate(zip(shape, self.other_shapes[number], strict=True)):
                if a != b and a % self.recipe.batch == 0:
                    yield number, dimension, a // self.recipe.batch
        raise StageCostError("needs the batch size, but none of its inputs tells it")


def write_function(first: Recipe, second: Recipe) -> FunctionType:
    """Write the function of a program, from its recipes for two batch sizes.

    Raises:
        StageCostError: see `merge`.
    """
    return _Writer(merge(first, second), second.shapes).write()


class Program(nn.Module):
    """A part of a live model's forward: maps a state to a state, or to the output.

    It holds nothing: modules and tensors are looked up in the model at each call. Its `modules()` and
    `parameters()` are those of the model that it uses.
    """

    def __init__(
        self, model: nn.Module, functions: tuple[FunctionType, FunctionType], uses: Iterable[str]
    ) -> None:
        """Take the functions for evaluation and training, and the paths of what they use."""
        super().__init__()
        self.functions, self.uses = functions, tuple(uses)
        self.bind(model)

    def bind(self, model: nn.Module) -> None:
        """Work on this model. It is not registered here: its parameters keep their names."""
        self.__dict__["model"] = model

    def forward(self, state: State) -> Any:
        """Do this part."""
        inputs = state if isinstance(state, tuple) else (state,)
        return self.functions[self.model.training](self.model, *inputs)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Go through this module and those of the model that it uses."""
        memo = set() if memo is None else memo
        yield from super().named_modules(memo, prefix, remove_duplicate)
        alone = []
        for path in self.uses:
            part = operator.attrgetter(path)(self.model)
            if isinstance(part, nn.Module):
                yield from part.named_modules(memo, f"{prefix}.{path}", remove_duplicate)
            elif isinstance(part, nn.Parameter):
                alone.append(part)
        if alone:
            yield f"{prefix}.parameters", nn.ParameterList(alone)


def used_by(recipes: Iterable[Recipe]) -> list[str]:
    """Return the paths of modules and tensors of the model that recipes use."""
    paths: dict[str, None] = {}
    for recipe in recipes:
        for line in recipe.lines:
            modules = [line.target] if isinstance(line.target, str) else []
            tensors = leaves((line.args, line.kwargs), OfModel)
            paths |= dict.fromkeys([*modules, *(tensor.path for tensor in tensors)])
        paths |= dict.fromkeys(tensor.path for tensor in leaves(recipe.output, OfModel))
    return list(paths)
