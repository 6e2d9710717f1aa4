"""The catalogue in which builders enter themselves by name."""

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork

Builder = Callable[..., ResidualNetwork]
_builders: dict[str, Builder] = {}
catalogue: Mapping[str, Builder] = MappingProxyType(_builders)


def register_model(name: str) -> Callable[[Builder], Builder]:
    """Enter a builder into the catalogue, as a decorator: its networks can be saved and loaded.

    The builder takes keyword arguments that JSON can hold and returns a `ResidualNetwork`.

    Example:
        >>> @sc.register_model("example")
        ... def example(num_blocks: int = 2, num_classes: int = 10) -> sc.ResidualNetwork:
        ...     stem, head = torch.nn.Conv2d(3, 8, 3), sc.OutputHead(8, num_classes, num_blocks + 1)
        ...     convolutions = [torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(num_blocks)]
        ...     return sc.ResidualNetwork(stem, [sc.ResidualBlock(c) for c in convolutions], head)
        >>> sc.create_model("example", num_blocks=3)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    def register(builder: Builder) -> Builder:
        if name in _builders:
            raise StageCostError(f"model {name!r} is registered already: choose another name")
        _builders[name] = builder
        return builder

    return register


def find_builder(name: str) -> Builder:
    """Return the builder of this name; one with a slash is a model of another library.

    Raises:
        StageCostError: no such name; the message offers the nearest.
    """
    if "/" in name:
        from stagecost.models.adapters.libraries import LibraryBuilder

        return LibraryBuilder(name)
    if name not in catalogue:
        near = difflib.get_close_matches(name, catalogue, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(catalogue)}"
        raise StageCostError(f"model {name!r} is unknown: {hint}")
    return catalogue[name]
