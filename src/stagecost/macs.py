"""Parameters and multiply-accumulate operations (MACs), the one counter used everywhere.

MACs are half of the floating-point operations that `torch.utils.flop_counter` counts: convolutions
and matrix products, for one image. Normalisations and activations are not counted, as is the custom.

Torch's counter, and meta tensors, import its compiler: seconds in which nothing is counted. Where all
matrices belong to layers that torch and this package call, their calls are counted instead, to the same
number.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stagecost.cut import Cut
from stagecost.network import ResidualNetwork, copied


def count_parameters(network: torch.nn.Module) -> int:
    """Count the numbers that training may change, or might if they were not frozen.

    Norms that target cuts have of their own do not count: the whole network does without them.

    Example:
        >>> sc.count_parameters(torch.nn.Linear(8, 10))
        90
    """
    own = set(network.norms.parameters()) if isinstance(network, ResidualNetwork) else ()
    return sum(parameter.numel() for parameter in network.parameters() if parameter not in own)


WHOLE = Cut.whole()


def count_macs(
    network: ResidualNetwork, image_shape: Sequence[int], cut: Cut | Sequence[Cut] = WHOLE
) -> int:
    """Count the MACs of the output of a cut, or of several in one pass, for one image (C, H, W).

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> sc.count_macs(net, (3, 8, 8), sc.Cut.first(2)) < sc.count_macs(net, (3, 8, 8))
        True
    """
    with counting(network, image_shape) as (twin, image, count):
        twin(image, cut)
        return count()


def macs_by_part(network: ResidualNetwork, image_shape: Sequence[int]) -> list[int]:
    """Count MACs for one image: of the stem, of each block k = 0 … N-1, and of the head (N+2 numbers).

    The network is left alone.
    """
    counts: list[int] = []
    with counting(network, image_shape) as (twin, image, count):

        def note(k: int, state: Tensor, following: Tensor) -> None:
            counts.append(count())

        twin.stem.register_forward_hook(lambda *_: counts.append(count()))
        twin(image, observe=note)
        counts.append(count())
    return [counts[0], *(after - before for before, after in pairwise(counts))]


def macs_by_branch(network: ResidualNetwork, image_shape: Sequence[int]) -> list[int]:
    """Count MACs for one image: of y_0, and of each branch F_k (N+1 numbers).

    A cut has the first, with every skip connection, and those of its acting blocks.
    """
    skips: list[int] = []
    with counting(network, image_shape) as (twin, image, count):
        connections = twin.skips

        def note(k: int, state: Tensor, following: Tensor) -> None:
            before = count()
            connections[k](state)
            skips.append(count() - before)

        twin(image, observe=note)
    stem, *blocks, head = macs_by_part(network, image_shape)
    branches = (block - skip for block, skip in zip(blocks, skips, strict=True))
    return [stem + sum(skips) + head, *branches]


LAYERS = (nn.Conv2d, nn.Linear)


def _bilinear_flops(*shapes: Any, **_: object) -> int:
    """Count a sum over products of three tensors, in which dimensions of 1 are put: a bilinear map."""
    sizes = list[list[int]]()
    for shape, places in zip(shapes[:3], shapes[3:6], strict=True):
        sizes.append(list(shape))
        for place in sorted(places):
            sizes[-1].insert(place, 1)
    one, two, three = sizes
    return 2 * math.prod(map(max, one, two, three))


FURTHER: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: lambda matrix, vector, **_: 2 * math.prod(matrix),
    torch.ops.aten.addmv: lambda added, matrix, vector, **_: 2 * math.prod(matrix),
    torch.ops.aten.dot: lambda one, other, **_: 2 * math.prod(one),
    torch.ops.aten.addbmm: lambda added, one, other, **_: 2 * math.prod(one) * other[-1],
    torch.ops.aten.conv_tbc: lambda state, weight, *_, out_shape, **__: (
        2 * math.prod(out_shape) * math.prod(weight[:2])
    ),
    torch.ops.aten._trilinear: _bilinear_flops,
}
"""Floating-point operations of products that torch's counter does not know, from their shapes."""


@contextmanager
def counting(
    network: ResidualNetwork, image_shape: Sequence[int]
) -> Iterator[tuple[ResidualNetwork, Tensor, Callable[[], int]]]:
    """Give a copy of a network in eval mode, an image for it, and what tells the MACs of its calls."""
    twin = copied(network).eval().requires_grad_(False)  # a weight may be a part of a view's state
    with torch.no_grad():
        if _has_plain_layers(twin):
            calls: list[int] = []

            def note(layer: nn.Module, inputs: object, output: Tensor) -> None:
                calls.append(output.numel() * layer.weight[0].numel())  # type: ignore[index]

            for module in twin.modules():
                if isinstance(module, LAYERS):
                    module.register_forward_hook(note)
            yield twin, twin.sample(image_shape), lambda: sum(calls)
            return
        from torch.utils.flop_counter import FlopCounterMode

        twin = _on_meta(twin, image_shape)
        counter = FlopCounterMode(display=False, custom_mapping=FURTHER)
        with _unfused(), counter:
            yield twin, twin.sample(image_shape), lambda: int(counter.get_total_flops()) // 2


@contextmanager
def _unfused() -> Iterator[None]:
    """Compute matrix products one by one: the counter knows them, and not what devices fuse of them."""
    mha = torch.backends.mha
    libraries: Sequence[Any] = torch.backends.mkldnn, torch.backends.cudnn
    with sdpa_kernel(SDPBackend.MATH), ExitStack() as undo:
        undo.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        mha.set_fastpath_enabled(False)
        for library in libraries:
            undo.callback(setattr, library, "enabled", library.enabled)
            library.enabled = False
        yield


def _on_meta(network: ResidualNetwork, image_shape: Sequence[int]) -> ResidualNetwork:
    """Return a copy that computes nothing, or the network itself where it makes tables on its device."""
    twin = copied(network).to("meta")
    try:
        twin(twin.sample(image_shape))
    except RuntimeError:
        return network
    return twin


def _has_plain_layers(network: ResidualNetwork) -> bool:
    """Tell whether every matrix is a layer's, which no code but torch's and the package's calls.

    What `torch.fx` traced is another's code in a module of torch.
    """
    homes = {type(module).__module__ for module in network.modules()}
    return (
        type(network) is ResidualNetwork
        and all(home.startswith(("torch.nn.", "stagecost.")) for home in homes)
        and all(
            isinstance(module, LAYERS) or all(p.dim() < 2 for p in module.parameters(recurse=False))
            for module in network.modules()
        )
    )
