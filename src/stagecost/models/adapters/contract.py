"""The contract of every view: what is true of it, in evaluation and in training.

- the terminal output is the model's own, to the last bit;
- the output of a cut equals the model's own forward with the other branches replaced by zeros, by an
  oracle that knows nothing of the view, and moves with the cut;
- gradients are the model's own, finite and flowing; running statistics are those of the whole network;
- deepcopy works;
- after a cut the model's own forward runs, with the same output and a subset of the keys.
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.models.adapters.oracle import branches_of, zeroed
from stagecost.models.adapters.parts import resampled, same, shake
from stagecost.models.adapters.view import AdaptedNetwork, adapt

TOLERANCE = 1e-5  # relative, where the order of operations is not the same
Inputs = tuple[Tensor, ...]
Oracle = Callable[[Sequence[int]], AbstractContextManager[None]]
"""Positions of blocks → a context in which the model's own forward has zeros for their branches."""


class UnknownBranchesError(StageCostError):
    """The oracle does not know which modules are the branches of a block."""


def violations(
    model: nn.Module, example: Inputs, oracle: Oracle | None = None, *, seed: int = 0
) -> Iterator[str]:
    """Go through what a view of a model does not keep of the contract.

    Args:
        model: gets random weights that hide nothing, and stays in training mode.
        example: inputs that it takes.
        oracle: None is that of `stagecost.models.adapters.oracle`.

    Raises:
        StageCostError: the model cannot be viewed, or the oracle does not know its blocks.
    """
    torch.manual_seed(seed)
    shake(model)
    view = adapt(model.eval(), example)
    inputs = tuple(resampled(tensor, 2) for tensor in example)
    oracle = oracle or _by_name(view)
    chance = random.Random(seed)
    yield from _evaluation(view, inputs, oracle, chance)
    yield from _training(view, inputs)
    yield from _removal(view.eval(), inputs, oracle, chance)


def _by_name(view: AdaptedNetwork) -> Oracle:
    for path in view.paths:
        if "#" in path or view.paths.count(path) > 1:
            raise UnknownBranchesError(f"no oracle for {path}: not a module that is called once")
    blocks = dict(zip(view.paths, map(view.model.get_submodule, view.paths), strict=True))
    unknown = [path for path, block in blocks.items() if not branches_of(block)]
    if unknown:
        kind = type(blocks[unknown[0]])
        raise UnknownBranchesError(f"no oracle for {unknown[0]} ({kind.__module__}.{kind.__name__})")
    return lambda positions: zeroed([blocks[view.paths[k]] for k in positions])


def _error(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


@torch.no_grad()
def _evaluation(
    view: AdaptedNetwork, inputs: Inputs, oracle: Oracle, chance: random.Random
) -> Iterator[str]:
    model, n = view.model.eval(), view.num_blocks
    whole = model(*inputs)
    if not torch.isfinite(whole).all():
        yield "the model's output is not finite"
    depths = sorted({0, 1, n // 2, n - 1} & set(range(n)))
    subsets = [Cut(tuple(k for k in range(n) if chance.random() < 0.5)) for _ in range(4)]
    cuts = [*map(Cut.first, depths), *(cut for cut in subsets if len(cut.blocks) < n)]
    outputs = view(inputs, [*cuts, Cut.whole()])
    if not same(outputs[-1], whole):
        yield "evaluation: the terminal output is not the model's own"
    for cut, output in zip(cuts, outputs, strict=False):
        with oracle([k for k in range(n) if not cut.acts(k)]):
            expected = model(*inputs)
        if _error(output, expected) > TOLERANCE:
            yield f"evaluation: cut {cut} is off by {_error(output, expected):.1e}"
        if same(output, whole):
            yield f"evaluation: cut {cut} moves nothing"
    if not same(copy.deepcopy(view)(inputs), whole):
        yield "a deep copy has another output"


def _training(view: AdaptedNetwork, inputs: Inputs) -> Iterator[str]:
    """Compare a step of the model with one of the view in which other outputs are computed, too."""
    model, cuts = view.model.train(), [Cut.first(0), Cut.first(view.num_blocks // 2), Cut.whole()]
    before = copy.deepcopy(model.state_dict())
    expected, gradients, statistics = _step(model, lambda: model(*inputs))
    model.load_state_dict(before)
    output, own_gradients, own_statistics = _step(model, lambda: view(inputs, cuts)[-1])
    if not same(output, expected):
        yield "training: the terminal output is not the model's own"
    if any(not same(gradients[name], own_gradients[name]) for name in gradients):
        worst = max(_error(own_gradients[name], gradient) for name, gradient in gradients.items())
        if worst > TOLERANCE:
            yield f"training: gradients are off by {worst:.1e}"
    if any(not same(statistics[name], own_statistics[name]) for name in statistics):
        yield "training: other outputs move the model's statistics"
    model.load_state_dict(before)
    _, gradients, _ = _step(model, lambda: view(inputs, cuts).sum(dim=0))
    if not all(torch.isfinite(gradient).all() for gradient in gradients.values()):
        yield "training: gradients of all outputs are not finite"


def _step(
    model: nn.Module, forward: Callable[[], Tensor]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(7)
    model.zero_grad(set_to_none=True)
    output = forward()
    output.float().square().mean().backward()  # type: ignore[no-untyped-call]
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return output.detach(), gradients, {n: b.clone() for n, b in model.named_buffers()}


@torch.no_grad()
def _removal(
    view: AdaptedNetwork, inputs: Inputs, oracle: Oracle, chance: random.Random
) -> Iterator[str]:
    """Take random blocks out for real."""
    gone = [k for k in range(view.num_blocks) if chance.random() < 0.5][: view.num_blocks - 1] or [0]
    if len(set(view.paths)) < view.num_blocks or view.num_blocks == 1:
        return
    cut = Cut.without(*gone)
    with oracle(gone):
        expected = view.model(*inputs)
    smaller = view.keep(cut)
    output = smaller.model(*inputs)
    if _error(output, expected) > TOLERANCE:
        yield f"after the cut {cut} the model is off by {_error(output, expected):.1e}"
    if not same(output, smaller(inputs)):
        yield f"after the cut {cut} the view and its model differ"
    if not smaller.state_dict().keys() < view.state_dict().keys():
        yield f"after the cut {cut} the keys are no subset"
    if smaller.block_indices != tuple(k for k in range(view.num_blocks) if k not in gone):
        yield f"after the cut {cut} other blocks are left"
