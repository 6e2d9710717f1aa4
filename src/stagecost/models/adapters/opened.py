"""Modules whose own code a view does in their place: the model, containers of blocks, blocks with sums.

Their parts are called, so these may change as they like. Of the code itself a view knows what it did
when it was recorded: with the values that the modules held, such as a drop rate, in the model's mode.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from numbers import Integral, Real
from typing import Self

import torch
from torch import nn

from stagecost.errors import StageCostError
from stagecost.models.adapters.parts import Inputs, same

Held = Real | str | tuple[Real | str, ...]
"""What a module holds that its code may go by: a number, a switch, a word, or a row of them."""


class Opened:
    """What must stay as it was when a view was made: numbers, words, and modes if code goes by them.

    Whole numbers may become other ones, as passes count in them.
    """

    def __init__(self, model: nn.Module, holders: Iterable[str]) -> None:
        """Note what modules of a model hold.

        Args:
            model: that is viewed.
            holders: paths of the modules whose code is done in their place; those around them are, too.
        """
        self.paths = sorted({path for holder in holders for path in _beginnings(holder)})
        self.asks_mode = False  #: the code of a module within the model goes by the module's own mode
        self.held: dict[str, dict[str, Held]] = {}
        for path, module in _there(model, self.paths):
            held = {name: _held(value) for name, value in vars(module).items() if _is_told(name, value)}
            self.held[path] = {name: value for name, value in held.items() if value is not None}

    def of(self, model: nn.Module) -> Self:
        """Return the same with what another model holds."""
        twin = type(self)(model, self.paths)
        twin.asks_mode = self.asks_mode
        for path, held in twin.held.items():
            twin.held[path] = {name: held[name] for name in held if name in self.held[path]}
        return twin

    @torch.no_grad()
    def settle(self, model: nn.Module, inputs: Inputs) -> None:
        """Find out by passes of a model, which move it, what changes by itself, and if modes count."""
        inner = [module for path, module in _there(model, self.paths) if path]
        buffers, outputs = [(b, b.clone()) for b in model.buffers()], []
        for mode in (True, False):
            model.train()
            for module in inner:
                module.training = mode
            with torch.random.fork_rng(devices=[]):
                outputs.append(model(*(tensor.clone() for tensor in inputs)))
            for buffer, before in buffers:
                buffer.copy_(before)
        model.train()
        self.asks_mode = not same(*outputs)
        for path, name, _, _ in list(self._changes(model)):
            del self.held[path][name]

    def check(self, model: nn.Module) -> None:
        """Refuse to go on with what is no longer the model's.

        Raises:
            StageCostError: a value is another one, or a module is in another mode than the model.
        """
        for path, module in _there(model, self.paths if self.asks_mode else ()):
            if module.training != model.training:
                mode = "training" if module.training else "eval"
                raise StageCostError(
                    f"{path} is in {mode} mode and the model is not, which its own code would go by: "
                    "give all of it one mode, or freeze parameters alone"
                )
        for path, name, then, now in self._changes(model):
            raise StageCostError(
                f"{name} of {path or 'the model'} was {then} when the view was made, and is {now} now: "
                "adapt the model once more"
            )

    def _changes(self, model: nn.Module) -> Iterator[tuple[str, str, object, object]]:
        """Go through what has changed: path and name, what it was and what it is."""
        for path, module in _there(model, self.held):
            values = vars(module)
            for name, then in self.held[path].items():
                now = values.get(name, then)
                if now is not then and not _is_same(then, now):
                    yield path, name, then, now


def _is_told(name: str, value: object) -> bool:
    """Tell whether a module's code may go by an attribute.

    Words and switches of frameworks change, as the name of the hook that is called now; what is computed
    twice to save memory is the same.
    """
    own = name.startswith("_") or name == "training" or "checkpointing" in name
    return not (own and isinstance(value, str | bool))


def _held(value: object) -> Held | None:
    """Return a number or word, or a copy of a row of them; None of anything else."""
    if isinstance(value, list | tuple) and value and all(isinstance(v, Real | str) for v in value):
        return tuple(value)
    return value if isinstance(value, Real | str) else None


def _is_same(then: Held, now: object) -> bool:
    if isinstance(then, Integral) and isinstance(now, Integral) and not isinstance(then, bool):
        return True  # it counts
    other = _held(now)
    return other is not None and (other == then or str(other) == str(then))  # nan is nan


def _there(model: nn.Module, paths: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    """Go through those modules that a cut has left in the model."""
    for path in paths:
        with suppress(AttributeError):
            yield path, model.get_submodule(path)


def _beginnings(path: str) -> Iterator[str]:
    """Return the path of a module, and of all that it is in; "" is the model."""
    names = path.split(".") if path else []
    return (".".join(names[:count]) for count in range(len(names) + 1))
