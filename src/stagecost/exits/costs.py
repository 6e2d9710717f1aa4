"""What leaving early costs: multiply-accumulates by counting, seconds by measuring."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stagecost.exits.engine import EarlyExit
from stagecost.exits.policy import ExitPolicy
from stagecost.network import ResidualNetwork
from stagecost.trajectory import COLLAPSED, evaluation_mode


@dataclass(frozen=True)
class Costs:
    """What the parts of a network cost an image, in one unit.

    Attributes:
        stem: from the image to x_0.
        blocks: block k, k = 0 … N-1.
        reads: y_k of x_k, k = 0 … N: the skip connections that are left, and the head.
        asking: the decision who leaves, and putting the others together, at each depth but the last.
    """

    stem: float
    blocks: tuple[float, ...]
    reads: tuple[float, ...]
    asking: float = 0.0

    @property
    def whole(self) -> float:
        """The whole network."""
        return self.stem + sum(self.blocks) + self.reads[-1]

    def leaving(self, depths: Sequence[int]) -> list[float]:
        """Return what an image costs that leaves at each of the depths, asked at those before."""
        asked = [self.reads[k] for k in depths]
        return [
            self.stem + sum(self.blocks[:k]) + sum(asked[: place + 1]) + self.asking * place
            for place, k in enumerate(depths)
        ]


def mac_costs(network: ResidualNetwork, image_shape: Sequence[int]) -> Costs:
    """Count the MACs of the parts of a network for one image of shape (C, H, W), on meta tensors."""
    twin = copy.deepcopy(network).to("meta").eval()
    rollout = twin.rollout()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:

        def counted(compute: Callable[[], Tensor]) -> tuple[Tensor, float]:
            before = counter.get_total_flops()
            value = compute()
            return value, (counter.get_total_flops() - before) // 2

        state, stem = counted(lambda: twin.stem(twin.sample(image_shape)))
        blocks, reads = [], [counted(lambda: rollout.read(state, 0))[1]]
        for k in range(twin.num_blocks):
            state, macs = counted(lambda: rollout.advance(state, k, k + 1))  # noqa: B023
            blocks.append(macs)
            reads.append(counted(lambda: rollout.read(state, k + 1))[1])  # noqa: B023
    return Costs(stem, tuple(blocks), tuple(reads))


def time_costs(network: ResidualNetwork, images: Tensor, *, rounds: int = 7) -> Costs:
    """Measure the seconds that the parts of a network take for an image, the median of rounds.

    Args:
        network: is left in the mode it was in.
        images: a batch where the network is; its size is that of the measurement.
        rounds: how often each part is measured.
    """
    n = network.num_blocks
    with evaluation_mode(network), torch.inference_mode():
        # Nobody is ever as sure as that: all are asked at every depth.
        asked = EarlyExit(network, ExitPolicy(tuple(range(n + 1)), (2.0,) * n))
        _parts(network, images)  # warm
        rows = [(_seconds(asked, images), *_parts(network, images)) for _ in range(rounds)]
    together, stem, *rest = (median(column) / len(images) for column in zip(*rows, strict=True))
    return Costs(stem, tuple(rest[:n]), tuple(rest[n:]), max(0.0, together - stem - sum(rest)) / n)


def _parts(network: ResidualNetwork, images: Tensor) -> list[float]:
    """Measure stem, blocks and reads once, in the order in which they follow each other."""
    rollout, clock = network.rollout(COLLAPSED), Clock(images.device)
    state = network.stem(images)
    stem = clock.lap()
    rollout.read(state, 0)
    reads, blocks = [clock.lap()], []
    for k in range(network.num_blocks):
        state = rollout.advance(state, k, k + 1)
        blocks.append(clock.lap())
        rollout.read(state, k + 1)
        reads.append(clock.lap())
    return [stem, *blocks, *reads]


def _seconds(answer: Callable[[Tensor], object], images: Tensor) -> float:
    clock = Clock(images.device)
    answer(images)
    return clock.lap()


class Clock:
    """Seconds from one look at it to the next; what is asked of a device is done by then.

    One thread on a CPU is measured by the seconds that it had of its core, so that what else the machine
    does is left out: interruptions would make long passes look longer than they are.
    """

    def __init__(self, device: torch.device) -> None:
        """Start on a device."""
        self.device = device
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self.now = time.thread_time if alone else time.perf_counter
        self.last = self.now()

    def lap(self) -> float:
        """Return the seconds since the start or the last lap."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        before, self.last = self.last, self.now()
        return self.last - before


@dataclass(frozen=True)
class Timing:
    """How long early exit takes beside the whole network.

    Attributes:
        batch_size: images answered together.
        num_images: that were answered, in each round.
        seconds_full: for an image, by the whole network.
        seconds_exit: for an image, with exits, on average.
        ratio: the second by the first.
        interval: the least and the largest ratio of the rounds.
    """

    batch_size: int
    num_images: int
    seconds_full: float
    seconds_exit: float
    ratio: float
    interval: tuple[float, float]


def measure_ratio(
    network: ResidualNetwork, images: Tensor, policy: ExitPolicy, batch_size: int, *, rounds: int = 5
) -> Timing:
    """Measure a policy and the whole network in turns, batch by batch, by the same engine.

    The time of a batch is its least in the rounds: what interrupts a machine only ever adds.

    Args:
        network: in eval mode.
        images: (n, …), where the network is; whole batches of it are measured.
        policy: where images leave.
        batch_size: at most n.
        rounds: how often each batch is answered by both.
    """
    whole_batches = range(0, len(images) - batch_size + 1, batch_size)
    batches = [images[at : at + batch_size] for at in whole_batches]
    whole = EarlyExit(network, ExitPolicy((network.num_blocks,)))
    both = (whole, EarlyExit(network, policy))
    times = torch.zeros(rounds, 2, len(batches), dtype=torch.float64)
    for batch in batches[:3]:  # warm
        for answer in both:
            answer(batch)
    for turn in range(rounds):
        for place, batch in enumerate(batches):
            for which in (0, 1) if turn % 2 else (1, 0):
                times[turn, which, place] = _seconds(both[which], batch)
    count = len(batches) * batch_size
    full, exits = (times.amin(dim=0).sum(dim=1) / count).tolist()
    ratios = (times[:, 1].sum(dim=1) / times[:, 0].sum(dim=1)).tolist()
    return Timing(batch_size, count, full, exits, exits / full, (min(ratios), max(ratios)))
