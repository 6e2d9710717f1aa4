"""Modules whose own code a view does in their place: the model, containers of blocks, blocks with sums.

Their parts are called, so these may change as they like. Of the code itself a view knows what it did
when it was recorded: with the fractions that the modules held, such as a drop rate, in the model's mode.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress

import torch
from torch import nn

from stagecost.errors import StageCostError
from stagecost.models.adapters.parts import Inputs, same


class Opened:
    """What must stay as it was when a view was made."""

    def __init__(self, model: nn.Module, uses: Iterable[str], asks_mode: bool = False) -> None:
        """Note the fractions of modules.

        Args:
            model: that is viewed.
            uses: paths of the modules that the view calls, and of the tensors that it reads.
            asks_mode: the code of a module within the model goes by the module's own mode.
        """
        holders = {use.rpartition(".")[0] for use in uses}
        self.paths = sorted({path for holder in holders for path in _beginnings(holder)})
        self.asks_mode = asks_mode
        self.fractions: dict[str, dict[str, float]] = {}
        for path, module in _there(model, self.paths):
            held = {name: value for name, value in vars(module).items() if type(value) is float}
            if held:
                self.fractions[path] = held

    def check(self, model: nn.Module) -> None:
        """Refuse to go on with what is no longer the model's.

        Raises:
            StageCostError: a fraction is another one, or a module is in another mode than the model.
        """
        for path, module in _there(model, self.paths if self.asks_mode else ()):
            if module.training != model.training:
                mode = "training" if module.training else "eval"
                raise StageCostError(
                    f"{path} is in {mode} mode and the model is not, which its own code would go by: "
                    "give all of it one mode, or freeze parameters alone"
                )
        for path, module in _there(model, self.fractions):
            for name, then in self.fractions[path].items():
                now = vars(module).get(name, then)
                if now != then and not math.isnan(then):
                    raise StageCostError(
                        f"{name} of {path or 'the model'} was {then} when the view was made, and is "
                        f"{now} now: adapt the model once more"
                    )

    @torch.no_grad()
    def asks(self, model: nn.Module, inputs: Inputs) -> bool:
        """Tell whether modules within a model, which this moves, go by modes of their own."""
        inner = [module for path, module in _there(model, self.paths) if path]
        buffers, outputs = [(b, b.clone()) for b in model.buffers()], []
        for mode in (True, False):
            model.train()
            for module in inner:
                module.training = mode
            with torch.random.fork_rng(devices=[]):
                outputs.append(model(*inputs))
            for buffer, before in buffers:
                buffer.copy_(before)
        return not same(*outputs)


def _there(model: nn.Module, paths: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    """Go through those modules that a cut has left in the model."""
    for path in paths:
        with suppress(AttributeError):
            yield path, model.get_submodule(path)


def _beginnings(path: str) -> Iterator[str]:
    """Return the path of a module, and of all that it is in; "" is the model."""
    names = path.split(".") if path else []
    return (".".join(names[:count]) for count in range(len(names) + 1))
