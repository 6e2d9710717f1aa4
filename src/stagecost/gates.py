"""Gates: a larger network wants something of a target's weights, and gets beta times its way.

Values pass unchanged, bit for bit; gradients that come back are multiplied. Where gates stand in a pass,
`stagecost.dynamics.Pass` says.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.norms import NORMS


class _Gate(torch.autograd.Function):
    """Input: values (…), beta; output: the values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, beta: float) -> Tensor:
        ctx.beta = beta
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.beta * grads[0], None


def gated(values: Tensor, beta: float) -> Tensor:
    """Return the same values (…), bit for bit; the gradient that comes back is multiplied by beta.

    They may be those of a tuple.
    """
    if isinstance(values, tuple):
        return tuple(gated(each, beta) for each in values)
    passed: Tensor = _Gate.apply(values, beta) if values.is_floating_point() else values
    return passed


@contextmanager
def gated_weights(parts: Iterable[nn.Module], beta: float, *, norms: bool = True) -> Iterator[None]:
    """Give the weights of some parts beta times the gradient of what is computed meanwhile.

    They stand in the modules of a part, or in those that a module of it names as its `parameter_owners`.
    Without `norms` those of norms are left out.
    """
    if beta == 1:
        yield
        return
    modules = list(dict.fromkeys(module for part in parts for module in part.modules()))
    wanted = {id(p) for module in modules for p in module.parameters()}
    if not norms:
        wanted -= {id(p) for m in modules if isinstance(m, NORMS) for p in m.parameters()}
    owners = {owner for module in modules for owner in getattr(module, "parameter_owners", (module,))}
    held = [(o._parameters, name, p) for o in owners for name, p in o.named_parameters(recurse=False)]
    held = [(place, name, p) for place, name, p in held if id(p) in wanted]
    try:
        for place, name, parameter in held:
            place[name] = gated(parameter, beta)  # type: ignore[assignment]
        yield
    finally:
        for place, name, parameter in held:
            place[name] = parameter


def check_gates(gates: Iterable[Cut], cuts: Sequence[Cut]) -> None:
    """Refuse a gate that is not nested with a cut.

    Raises:
        StageCostError: it holds blocks that the cut does not, and the other way round.
    """
    for gate, cut in product(gates, cuts):
        if not (gate <= cut or cut <= gate):
            raise StageCostError(
                f"a gate of cut {gate} beside cut {cut}: give gates that hold the blocks of other "
                "cuts, or are held by them"
            )
