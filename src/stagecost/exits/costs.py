"""What leaving early costs: multiply-accumulates by counting, seconds by measuring."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from stagecost.exits.engine import EarlyExit
from stagecost.exits.policy import ExitPolicy
from stagecost.macs import counting
from stagecost.network import ResidualNetwork
from stagecost.trajectory import evaluation_mode

MOST_DEPTHS = 17
"""Depths that are tried, at most: 0, N, and others evenly between them."""
STREAM = 32
"""Images that are answered between two looks at the clock, at least."""


def tried_depths(num_blocks: int) -> list[int]:
    """Return the depths at which images may leave: all, or as many as can be tried."""
    count = min(num_blocks + 1, MOST_DEPTHS)
    return sorted({round(k * num_blocks / (count - 1)) for k in range(count)})


@dataclass(frozen=True)
class Costs:
    """What it costs an image to leave, in one unit."""

    cuts: tuple[float, ...]  #: of leaving at depth k without being asked before, k = 0 … N
    asking: tuple[float, ...]  #: of being asked at depth k, and of going on

    @property
    def whole(self) -> float:
        """The whole network."""
        return self.cuts[-1]

    def leaving(self, depths: Sequence[int]) -> list[float]:
        """Return what an image costs that leaves at each of the depths, asked at those before."""
        asked = accumulate((self.asking[k] for k in depths[:-1]), initial=0.0)
        return [self.cuts[k] + before for k, before in zip(depths, asked, strict=True)]


def mac_costs(network: ResidualNetwork, image_shape: Sequence[int]) -> Costs:
    """Count the MACs of leaving for one image of shape (C, H, W); the network is left alone."""
    counts: list[int] = []
    with counting(network, image_shape) as (twin, image, count):
        twin.check_images(image)
        rollout, state = twin.rollout(), twin.stem(image)
        for k in range(twin.num_blocks + 1):
            state = rollout.advance(state, max(k - 1, 0), k)
            counts.append(count())
            rollout.read(state, k)
            counts.append(count())
    reads = [after - before for before, after in zip(counts[::2], counts[1::2], strict=True)]
    before = accumulate(reads[:-1], initial=0)
    cuts = [total - others for total, others in zip(counts[1::2], before, strict=True)]
    return Costs(tuple(cuts), tuple(reads))


def time_costs(network: ResidualNetwork, images: Tensor, batch_size: int, *, rounds: int = 5) -> Costs:
    """Measure the seconds of leaving for an image, the median of rounds.

    The engine itself is measured, at some fixed depths and being asked at all of them; what lies between
    is interpolated.

    Args:
        network: is left in the mode it was in.
        images: (n, …), where the network is; a part of them is measured.
        batch_size: images answered together, at most n.
        rounds: how often each is measured.
    """
    n, depths = network.num_blocks, tried_depths(network.num_blocks)
    # Nobody is ever as sure as that: all are asked at every depth.
    policies = [
        *(ExitPolicy((k,)) for k in depths),
        ExitPolicy(tuple(depths), (2.0,) * (len(depths) - 1)),
    ]
    with evaluation_mode(network):
        engines = [EarlyExit(network, policy) for policy in policies]
        stream = streams_of(images, batch_size)[0]
        seconds = [[seconds_of(engine, stream) for engine in engines] for _ in range(rounds + 1)][1:]
    *cuts, asked = (median(each) / (len(stream) * batch_size) for each in zip(*seconds, strict=True))
    asking = max(0.0, asked - cuts[-1]) / (len(depths) - 1)
    return Costs(tuple(np.interp(range(n + 1), depths, cuts).tolist()), (asking,) * (n + 1))


def streams_of(images: Tensor, batch_size: int) -> list[list[Tensor]]:
    """Return images as streams of whole batches, at least one."""
    starts = range(0, len(images) - batch_size + 1, batch_size)
    batches = [images[at : at + batch_size] for at in starts]
    length = min(len(batches), -(-STREAM // batch_size))
    return [batches[at : at + length] for at in range(0, len(batches) - length + 1, length)]


def seconds_of(answer: Callable[[Tensor], object], stream: Sequence[Tensor]) -> float:
    """Measure how long it takes to answer a stream of batches.

    One thread on a CPU is measured by the seconds that it had of its core, so that what else the machine
    does is left out: interruptions would make long passes look longer than they are.
    """
    alone = stream[0].device.type == "cpu" and torch.get_num_threads() == 1
    now = time.thread_time if alone else time.perf_counter
    start = now()
    for batch in stream:
        answer(batch)
    if stream[0].device.type != "cpu":
        torch.accelerator.synchronize()
    return now() - start


@dataclass(frozen=True)
class Timing:
    """How long early exit takes beside the whole network."""

    aliases: ClassVar[Mapping[str, str]] = {
        **{name: name for name in ("seconds_full", "seconds_exit")},
        "interval": "ratio_range",
    }

    batch_size: int  #: images answered together
    num_images: int  #: that were answered, in each round
    latency_ms_full: float  #: milliseconds for an image, by the whole network
    latency_ms_exit: float  #: the same with exits, on average
    ratio: float  #: the second by the first
    #: the least and the largest ratio of the rounds; it holds `ratio`, which is of medians
    ratio_range: tuple[float, float]

    @property
    def seconds_full(self) -> float:
        """The first in seconds."""
        return self.latency_ms_full / 1000

    @property
    def seconds_exit(self) -> float:
        """The second in seconds."""
        return self.latency_ms_exit / 1000


def measure_ratio(
    network: ResidualNetwork, images: Tensor, policy: ExitPolicy, batch_size: int, *, rounds: int = 5
) -> Timing:
    """Measure a policy and the whole network in turns, by the same engine.

    Of each stream of batches the median of the rounds counts.

    Args:
        network: in eval mode.
        images: (n, …), where the network is; whole batches of it are measured.
        policy: where images leave.
        batch_size: at most n.
        rounds: how often each batch is answered by both.
    """
    streams = streams_of(images, batch_size)
    engines = (EarlyExit(network, ExitPolicy((network.num_blocks,))), EarlyExit(network, policy))
    times = torch.zeros(rounds, 2, len(streams), dtype=torch.float64)
    for turn in range(-1, rounds):  # the first is to warm up
        for place, stream in enumerate(streams if turn >= 0 else streams[:1]):
            for which in (0, 1) if turn % 2 else (1, 0):
                times[turn, which, place] = seconds_of(engines[which], stream)
    count = len(streams) * len(streams[0]) * batch_size
    full, exits = (times.median(dim=0).values.sum(dim=1) / count).tolist()
    ratios = (times[:, 1].sum(dim=1) / times[:, 0].sum(dim=1)).tolist()
    spread = min(*ratios, exits / full), max(*ratios, exits / full)
    return Timing(batch_size, count, 1000 * full, 1000 * exits, exits / full, spread)
