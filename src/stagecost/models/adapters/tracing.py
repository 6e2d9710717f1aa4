"""One recorded forward pass: which functions and modules were called, on what, and what they changed.

Values are numbered. A tensor that is changed in place gets a new number, and so does every view of it:
each number stands for one value.
"""

import random
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stagecost.errors import StageCostError


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


READERS = words(
    """__bool__ __int__ __float__ __index__ __array__ __contains__ item tolist numpy equal allclose
    is_nonzero"""
)


@dataclass(frozen=True)
class Value:
    """The number of a value."""

    number: int


def map_leaves(function: Callable[[Any], Any], structure: Any) -> Any:
    """Apply a function to what is no tuple, list, dict or slice."""
    recurse = partial(map_leaves, function)
    if isinstance(structure, tuple) and not isinstance(structure, torch.Size):
        parts = map(recurse, structure)
        return type(structure)(*parts) if hasattr(structure, "_fields") else tuple(parts)
    if isinstance(structure, list):
        return [recurse(part) for part in structure]
    if isinstance(structure, dict):
        return {key: recurse(part) for key, part in structure.items()}
    if isinstance(structure, slice):
        return slice(recurse(structure.start), recurse(structure.stop), recurse(structure.step))
    return function(structure)


def leaves(structure: Any, kind: type) -> list[Any]:
    """Return the leaves of a kind, in order."""
    collected: list[Any] = []

    def collect(leaf: Any) -> None:
        if isinstance(leaf, kind):
            collected.append(leaf)

    map_leaves(collect, structure)
    return collected


@dataclass(eq=False)
class Operation:
    """A call of a function, or of a module with all that it calls."""

    #: the function; the path of the module; or None for a sum that became its skip terms
    target: Callable[..., Any] | str | None
    args: Any  #: with `Value` in the place of tensors, as are `kwargs` and `result`
    kwargs: Any
    start: int = 0  #: how many functions were called before it
    end: int = 0  #: how many were called when it returned
    first_value: int = 0  #: values with smaller numbers existed before it
    result: Any = None
    #: values that it changed in place → what they became
    changed: dict[Value, Value] = field(default_factory=dict)
    inside: "list[Operation]" = field(default_factory=list)  #: the calls of a module
    context: Hashable = None  #: whether gradients were on, and autocast: a replay must find the same
    parent: "Operation | None" = None  #: the module call that called it

    @property
    def name(self) -> str:
        """The function's, "" of a module."""
        return "" if isinstance(self.target, str) else getattr(self.target, "__name__", "")

    @property
    def is_module(self) -> bool:
        """Whether a module was called."""
        return isinstance(self.target, str)

    @cached_property
    def uses(self) -> list[Value]:
        """Values that it depends on; those given twice stand twice."""
        given = leaves((self.args, self.kwargs), Value)
        return given + [value for value in self.changed if value not in given]

    @cached_property
    def makes(self) -> list[Value]:
        """Values that it made; not those that it was given and hands on."""
        results = (v for v in leaves(self.result, Value) if v.number >= self.first_value)
        return list(dict.fromkeys([*results, *self.changed.values()]))

    def holders(self) -> "Iterator[Operation]":
        """Go through the module calls that it is inside of, the innermost first."""
        if self.parent is not None:
            yield self.parent
            yield from self.parent.holders()

    def calls(self) -> "Iterator[Operation]":
        """Go through the module calls, this one first."""
        if self.is_module:
            yield self
        for operation in self.inside:
            yield from operation.calls()


@dataclass
class Trace:
    """What a forward pass did."""

    root: Operation  #: the call of the model
    functions: list[Operation] = field(default_factory=list)  #: all function calls, in order
    producers: dict[Value, Operation] = field(default_factory=dict)  #: value → the function that made it
    varying: set[Value] = field(default_factory=set)  #: values that depend on the model's inputs
    #: value → the path of the parameter or other tensor of the model that it is
    sources: dict[Value, str] = field(default_factory=dict)
    shapes: dict[Value, tuple[int, ...]] = field(default_factory=dict)  #: value → its shape
    weights: set[Value] = field(default_factory=set)  #: values that the model's tensors are in
    #: names of functions that gave Python the value of a tensor that can change, and by what call
    readings: list[tuple[str, Operation]] = field(default_factory=list)

    @property
    def inputs(self) -> list[Value]:
        """What the model was given."""
        return leaves(self.root.args, Value)


class _Recorder(TorchFunctionMode):
    """Writes down the calls of functions (as a mode) and of modules (by hooks)."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.names = _names_of_tensors(model)
        self.current: dict[int, Value] = {}
        self.alive: list[Tensor] = []  # so that no id is given twice
        self.sharing: dict[int, list[Tensor]] = {}
        self.trace = Trace(Operation("", (), {}))
        self.stack: list[Operation] = []
        self.drawn: set[Value] = set()  # values that random numbers are in
        self.trace.varying.update(self._number(tensor) for tensor in inputs)

    def _number(self, tensor: Tensor) -> Value:
        """Give a tensor a new number."""
        value = Value(len(self.trace.shapes))
        self.trace.shapes[value] = tuple(tensor.shape)
        if id(tensor) not in self.current:
            self.alive.append(tensor)
            self.sharing.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        self.current[id(tensor)] = value
        return value

    def _named(self, leaf: Any) -> Any:
        """Put its value in the place of a tensor."""
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in self.current:
            value = self._number(leaf)
            self.trace.sources[value] = self.names.get(id(leaf), "")
            if self.trace.sources[value]:
                self.trace.weights.add(value)
        return self.current[id(leaf)]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = leaves((args, kwargs), Tensor)
        versions = [tensor._version for tensor in given]
        target, named = func, map_leaves(self._named, args)
        if func.__name__ == "__get__":
            target, named = getattr, (*named[:1], func.__self__.__name__)  # type: ignore[attr-defined]
        operation = self._open(target, named, map_leaves(self._named, kwargs))
        state = torch.get_rng_state()
        result = func(*args, **kwargs)
        changed = [t for t, version in zip(given, versions, strict=True) if t._version != version]
        if func.__name__ in READERS and any(map(self._can_change, operation.uses)):
            self.trace.readings.append((func.__name__, self.stack[-1]))
        if leaves(result, Tensor) or changed:
            self._close(operation, result, changed)
            if self.drawn.intersection(operation.uses) or not state.equal(torch.get_rng_state()):
                self.drawn.update(operation.makes)
        return result

    def _can_change(self, value: Value) -> bool:
        """Tell whether a value may be another one in another pass: by inputs, chance, or training."""
        return value in self.trace.varying or value in self.drawn or value in self.trace.weights

    def _open(self, target: Any, args: Any, kwargs: Any) -> Operation:
        context = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        start, first = len(self.trace.functions), len(self.trace.shapes)
        return Operation(target, args, kwargs, start, first_value=first, context=context)

    def _close(self, operation: Operation, result: Any, changed: list[Tensor]) -> None:
        """Number what a function made and changed, and write it down."""
        first = len(self.trace.shapes)
        for tensor in changed:
            for view in self.sharing.get(tensor.untyped_storage().data_ptr(), [tensor]):
                self._note_change(operation, self.current[id(view)], self._number(view))
        for tensor in leaves(result, Tensor):
            if id(tensor) not in self.current:
                self._number(tensor)
        made = [Value(number) for number in range(first, len(self.trace.shapes))]
        operation.result = map_leaves(self._named, result)
        operation.end = operation.start + 1
        operation.parent = self.stack[-1]
        self.trace.functions.append(operation)
        self.stack[-1].inside.append(operation)
        self.trace.producers.update(dict.fromkeys(made, operation))
        for kind in (self.trace.varying, self.trace.weights):
            if kind.intersection(operation.uses):
                kind.update(made)

    def _note_change(self, function: Operation, before: Value, after: Value) -> None:
        for operation in (*self.stack, function):
            first = next((old for old, new in operation.changed.items() if new == before), before)
            if first.number < operation.first_value:
                operation.changed[first] = after

    def enter(self, path: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Begin the call of a module (a pre-forward hook)."""
        call = self._open(path, map_leaves(self._named, args), map_leaves(self._named, kwargs))
        if self.stack:
            call.parent = self.stack[-1]
            self.stack[-1].inside.append(call)
        else:
            self.trace.root = call
        self.stack.append(call)

    def leave(self, _: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        """End the call of a module (a forward hook)."""
        call = self.stack[-1]
        if any(id(tensor) not in self.current for tensor in leaves(result, Tensor)):
            self._close(self._open(unseen, call.args, call.kwargs), result, [])
        self.stack.pop()
        call.end = len(self.trace.functions)
        call.result = map_leaves(self._named, result)


def unseen(*_: Any, **__: Any) -> None:
    """Stand for what no function of torch made: C++ extensions, for example."""


def _names_of_tensors(model: nn.Module) -> dict[int, str]:
    names: dict[int, str] = {}
    for path, module in model.named_modules():
        plain = ((k, v) for k, v in vars(module).items() if isinstance(v, Tensor))
        registered = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, tensor in (*registered, *plain):
            names.setdefault(id(tensor), f"{path}.{name}" if path else name)
    return names


def record(model: nn.Module, inputs: tuple[Tensor, ...]) -> Trace:
    """Run a model once and write down what it does; its buffers and torch's random numbers move on.

    Raises:
        StageCostError: it draws random numbers that are not torch's.
    """
    recorder = _Recorder(model, inputs)
    handles = []
    for path, module in model.named_modules():
        enter = partial(recorder.enter, path)
        handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(recorder.leave, with_kwargs=True))
    before = _other_random_numbers()
    try:
        with torch.enable_grad(), recorder:
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    for library, state in _other_random_numbers().items():
        if state != before[library]:
            raise StageCostError(f"it draws random numbers of {library}: draw torch's, one a sample")
    return recorder.trace


def _other_random_numbers() -> dict[str, object]:
    """Return where the random numbers that are not torch's stand, by who draws them."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 (that of models, which draw as they like)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    return {"Python": random.getstate(), "NumPy": numpy}
