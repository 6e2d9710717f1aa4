"""What the loops in C were chosen by: one depth, forwards and backwards, beside torch's own ways.

    python scripts/kernel_times.py [--rounds 41] [--results DIR]

Machine     the JSON file names it; one core, one thread; record on a quiet one
Runtime     some seconds, and a minute or two more where nothing is compiled yet
Seeds       0

Batches of 64 images. The parts of a depth that `stagecost.native` does, for the shapes of the staged and
homogeneous networks of the benchmark: a block's beginning, relu(norm(x_k)); the same with the head's
pooling of x_k; and the head's pooling behind a projection. Arms by turns in one process, CPU time; the
values are medians of microseconds, the ratios medians within a round.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from circumstances import ROOT, circumstances
from torch import Tensor

from stagecost.allocator import keep_freed_memory
from stagecost.benchmark.timing import cpu_seconds, ratio, take_turns
from stagecost.kernels import Kernels, compiled_kernels
from stagecost.native import projected
from stagecost.native.normalised import fits, with_native
from stagecost.projected_pooling import HeadNorm, pool, pool_gradient
from stagecost.storage import write_json

BATCH, EPS = 64, 1e-5
SHAPES = ((16, 32, 32), (32, 16, 16), (64, 8, 8), (16, 16, 16))
PROJECTED = (((16, 32, 32), 4), ((32, 16, 16), 2))
"""Shape of a state, and the stride of its skip chain to 64 channels of 8×8 pixels."""
Arms = dict[str, Callable[[], object]]


def main() -> None:
    """Time every part, print it and record it."""
    parser = argparse.ArgumentParser(description="What the loops in C were chosen by.")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "kernels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    compiled = compiled_kernels()
    native = with_native(compiled)
    rows = []
    for shape in SHAPES:
        arms = beginnings(shape, compiled, native)
        rows.append(timed("a block's beginning", shape, arms, options.rounds))
        arms = beginnings(shape, compiled, native, pools=True)
        rows.append(timed("the same with the head's pooling", shape, arms, options.rounds))
    for shape, stride in PROJECTED:
        arms = behind_projections(shape, stride, compiled)
        rows.append(timed("the head's pooling behind a projection", shape, arms, options.rounds))
    about = circumstances("python scripts/kernel_times.py")
    content = {
        "name": "cpu",
        "seeds": [0],
        **about,
        "threads": 1,
        "rounds": options.rounds,
        "rows": rows,
    }
    write_json(options.results / "cpu.json", content)


def timed(part: str, shape: tuple[int, ...], arms: Arms, rounds: int) -> dict[str, Any]:
    """Time the arms of one part by turns."""
    seconds = take_turns(arms, rounds, cpu_seconds, repeats=4)
    found = {name: 1e6 * statistics.median(values) for name, values in seconds.items()}
    saved = ratio(seconds["C"], seconds["torch.compile"])
    row = {
        "part": part,
        "shape": list(shape),
        "microseconds": {name: round(value) for name, value in found.items()},
        "ratio": round(saved.median, 4),
        "spread": saved.quartiles,
    }
    print(part, shape, row["microseconds"], f"{saved.median:.2f}", file=sys.stderr)
    return row


def state_of(shape: tuple[int, ...]) -> Tensor:
    """Draw a batch of states, channels last."""
    return torch.randn(BATCH, *shape).contiguous(memory_format=torch.channels_last)


def beginnings(
    shape: tuple[int, ...], compiled: Kernels, native: Kernels, *, pools: bool = False
) -> Arms:
    """Return the ways to begin a block, and to pool for the head if asked."""
    state, grad, other = (state_of(shape) for _ in range(3))
    weight, bias = torch.rand(shape[0]), torch.rand(shape[0])
    norm = (weight, bias, EPS)
    if not fits(state, *norm):
        sys.exit("there is no C compiler here: the loops in C cannot be timed")

    def alone(kernels: Kernels) -> Callable[[], object]:
        def arm() -> None:
            _, *statistics_of_batch = kernels.normalise(state, *norm)
            kernels.normalise_gradient(state, grad, other, *statistics_of_batch, *norm)

        return arm

    def both(kernels: Kernels) -> Callable[[], object]:
        grad_sums = torch.randn(BATCH, shape[0])

        def arm() -> None:
            _, _, count, moment, *found = kernels.normalise_and_pool(state, *norm, *norm)
            given = (state, grad, other, *found, *norm, *norm, grad_sums, count, moment)
            kernels.normalise_and_pool_gradient(*given)

        return arm

    way = both if pools else alone
    arms: Arms = {"torch.compile": way(compiled), "C": way(native)}
    return arms if pools else {"torch's modules": by_modules(state, grad, weight, bias), **arms}


def by_modules(state: Tensor, grad: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], object]:
    """Return BatchNorm and ReLU as plain training computes and differentiates them."""
    given = [tensor.clone().requires_grad_() for tensor in (state, weight, bias)]

    def arm() -> None:
        result = F.batch_norm(given[0], None, None, given[1], given[2], training=True, eps=EPS)
        torch.autograd.grad(F.relu(result, inplace=True), given, grad)

    return arm


def behind_projections(shape: tuple[int, ...], stride: int, compiled: Kernels) -> Arms:
    """Return the ways to pool a state behind a skip chain with a stride and a matrix."""
    state, target = state_of(shape), state_of(shape)
    matrix = torch.randn(64, shape[0], 1, 1) / shape[0] ** 0.5
    norm, grad = HeadNorm(torch.rand(64), torch.rand(64), EPS), torch.randn(BATCH, 64)
    picked, grad_picked = (s[:, :, ::stride, ::stride] for s in (state, target))

    def by_c() -> None:
        assert projected.fits(picked, matrix, norm.weight, norm.bias)
        _, found = pool(picked, matrix, norm, compiled)
        pool_gradient(picked, matrix, norm, compiled, grad, found, grad_picked)

    def by_torch() -> None:
        fits_c, projected.fits = projected.fits, lambda *_: False
        try:
            _, found = pool(picked, matrix, norm, compiled)
            pool_gradient(picked, matrix, norm, compiled, grad, found, grad_picked)
        finally:
            projected.fits = fits_c

    return {"torch.compile": by_torch, "C": by_c}


if __name__ == "__main__":
    main()
