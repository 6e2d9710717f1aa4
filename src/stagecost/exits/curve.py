"""The curve of early exit: how accurate for how much, and the policy for a budget.

Outputs of all depths are computed once; every policy is then tried on them without the network. A fixed
cut is a policy, too: it asks at one depth alone. So on the images that policies are chosen on, the curve
is never below the cuts.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from operator import attrgetter

import torch
from torch import Tensor

from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.exits.costs import Costs, mac_costs, tried_depths
from stagecost.exits.engine import check_norms
from stagecost.exits.policy import CRITERIA, Criterion, ExitPolicy, votes_at
from stagecost.network import ResidualNetwork
from stagecost.trajectory import COLLAPSED, Loader, device_of, evaluation_mode, pair, to_device

MOST_EXITS = 4
"""Depths at which a policy asks, at most: each costs the head."""
NUM_THRESHOLDS = 100
BEAM = 8
"""Sets of depths that grow by one more, at most: those with the most points on the curve."""
SWEEPS = 2
"""How often the thresholds of the best policies are moved one by one."""


@dataclass(frozen=True)
class Outputs:
    """What every depth says of some images."""

    logits: Tensor  #: (N+1, n, classes), y_0 … y_N, on the CPU
    targets: Tensor  #: (n,), class labels

    @property
    def num_blocks(self) -> int:
        """N."""
        return len(self.logits) - 1

    @property
    def right(self) -> Tensor:
        """Whether each depth is right, (N+1, n)."""
        return self.logits.argmax(dim=2) == self.targets


def all_outputs(network: ResidualNetwork, loader: Loader) -> Outputs:
    """Compute y_0 … y_N of a data set.

    Raises:
        StageCostError: it is empty, its images have another shape, its targets are no class labels, or a
            depth has norms of its own.
    """
    check_norms(network, range(network.num_blocks))
    logits, targets = [], []
    cuts = [Cut.first(k) for k in range(network.num_blocks + 1)]
    with evaluation_mode(network):
        rollout = network.rollout(COLLAPSED)
        for images, labels in map(pair, loader):
            inputs = to_device(images, device_of(network))
            network.check_images(inputs)
            logits.append(torch.stack(rollout.outputs(network.stem(inputs), cuts)).float().cpu())
            targets.append(labels.cpu())
    if not targets:
        raise StageCostError("there are no images to choose exits on: give at least one")
    outputs, labels = torch.cat(logits, dim=1), torch.cat(targets)
    if not len(labels):
        raise StageCostError("there are no images to choose exits on: give at least one")
    whole = not (labels.is_floating_point() or labels.dtype is torch.bool)
    fits = labels.dim() == 1 and outputs.dim() == 3 and outputs.shape[2] > 1
    if not (whole and fits and outputs.shape[1] == len(labels)):
        raise StageCostError("exits are chosen by accuracy: the targets must be class labels")
    if not 0 <= int(labels.min()) <= int(labels.max()) < outputs.shape[2]:
        raise StageCostError(
            f"labels from {int(labels.min())} to {int(labels.max())}, and the network has "
            f"{outputs.shape[2]} classes: leave out images that have no class of it"
        )
    if not bool(torch.isfinite(outputs).all()):
        depth = int((~torch.isfinite(outputs)).flatten(1).any(dim=1).nonzero()[0])
        raise StageCostError(
            f"outputs at depth {depth} are no finite numbers, so nobody can leave by them: look at the "
            "images, or train with a lower --lr"
        )
    return Outputs(outputs, labels)


@dataclass(frozen=True)
class ExitPoint:
    """A policy and what it brings on the images that policies are chosen on."""

    policy: ExitPolicy  #: where images leave
    accuracy: float  #: percent
    mean_blocks: float  #: that an image goes through
    macs_ratio: float  #: of the whole network's MACs
    #: expected part of the whole network's time, from the measured times of its parts; that of the batch
    #: size with the larger part. Without times, that of the MACs
    time_ratio: float


@dataclass(frozen=True)
class ExitCurve:
    """The policies that no other one beats in both accuracy and time, the cheapest first.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> loader = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 10)]
        >>> curve = sc.exit_curve(net, loader, (3, 8, 8))
        >>> curve.choose(max_macs=0.5).macs_ratio <= 0.5
        True
    """

    points: tuple[ExitPoint, ...]  #: the policies
    cuts: tuple[ExitPoint, ...]  #: all leave at depth 0, 1, …, N
    accuracy_full: float  #: percent, of the whole network
    num_images: int  #: that both rest on
    #: the policies that no other one beats in both accuracy and MACs, where these are other ones
    by_macs: tuple[ExitPoint, ...] = ()

    def choose(
        self,
        *,
        max_drop: float | None = None,
        max_macs: float | None = None,
        max_time: float | None = None,
    ) -> ExitPoint:
        """Choose the cheapest policy within a drop; without one, the most accurate within the budget.

        Args:
            max_drop: points of accuracy that may be lost against the whole network.
            max_macs: part of the whole network's MACs that may be spent on average, above 0.
            max_time: the same of the expected time.

        Raises:
            StageCostError: impossible limits, or no policy within them.
        """
        if max_drop is not None and not 0 <= max_drop < math.inf:
            raise StageCostError(f"max_drop is {max_drop}: give points of accuracy, at least 0")
        for name, budget in (("max_macs", max_macs), ("max_time", max_time)):
            if budget is not None and not 0 < budget < math.inf:
                raise StageCostError(f"{name} is {budget}: give a part of the whole, such as 0.5")
        if max_drop is max_macs is max_time is None:
            raise StageCostError("say what may be lost or spent: give max_drop, max_macs or max_time")
        known = (*self.points, *self.by_macs, *self.cuts)  # of equal ones the first counts
        cheap = [
            p
            for p in known
            if p.macs_ratio <= (max_macs or math.inf) and p.time_ratio <= (max_time or math.inf)
        ]
        if not cheap:
            asked = {"MACs": max_macs, "time": max_time}
            limits = " and ".join(f"{part:g} of the {what}" for what, part in asked.items() if part)
            macs, time = (min(map(cost, known)) for cost in (BY_MACS, BY_TIME))
            raise StageCostError(
                f"no exits cost as little as {limits}; the least is {macs:.3f} of the MACs, and "
                f"{time:.3f} of the time: allow more"
            )
        if max_drop is None:
            return max(cheap, key=lambda p: (p.accuracy, -p.time_ratio))
        floor = self.accuracy_full - max_drop - 1e-9
        good = [p for p in cheap if p.accuracy >= floor]
        if not good:
            best = max(p.accuracy for p in cheap)
            raise StageCostError(
                f"no threshold keeps within {max_drop:g} points of {self.accuracy_full:.2f} % in that "
                f"budget, {best:.2f} % at best: allow a larger drop or a larger budget"
            )
        return min(good, key=lambda p: p.time_ratio)


def exit_curve(
    network: ResidualNetwork,
    loader: Loader,
    image_shape: Sequence[int],
    *,
    criteria: Sequence[Criterion] = CRITERIA,
    combine: bool = False,
    times: Sequence[Costs] = (),
    depths: Sequence[int] = (),
) -> ExitCurve:
    """Try early exit from a network.

    Args:
        network: trained so that its outputs at smaller depths are good.
        loader: validation images and labels.
        image_shape: (C, H, W).
        criteria: how an image is found to be sure.
        combine: answer by all depths asked.
        times: measured for some batch sizes (`stagecost.exits.costs.time_costs`).
        depths: at which images may leave, such as those that the training was for; all if none is given.
            The fewer policies there are to choose from, the less the choice owes to luck.

    Raises:
        StageCostError: there are no images, or no class labels, or a depth is not one of the network's.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> loader = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 10)]
        >>> curve = sc.exit_curve(net, loader, (3, 8, 8), depths=[2, 4])
        >>> [point.policy.depths for point in curve.cuts]
        [(0,), (1,), (2,), (3,), (4,)]
    """
    outputs, macs = all_outputs(network, loader), mac_costs(network, image_shape)
    return curve_of(outputs, macs, times, criteria=criteria, combine=combine, depths=depths)


def curve_of(
    outputs: Outputs,
    macs: Costs,
    times: Sequence[Costs] = (),
    *,
    criteria: Sequence[Criterion] = CRITERIA,
    combine: bool = False,
    depths: Sequence[int] = (),
) -> ExitCurve:
    """Make the curve from outputs; see `exit_curve`.

    Sets of depths grow by one at a time, from those that no other policy beats, with one threshold for
    all of their depths. Then each threshold is moved by itself.
    """
    depths = sorted({*depths, outputs.num_blocks}) if depths else tried_depths(outputs.num_blocks)
    ExitPolicy(tuple(depths), (0.0,) * (len(depths) - 1)).check(outputs.num_blocks)
    cuts = [p for k in range(outputs.num_blocks + 1) for p in tried(outputs, macs, times, (k,))]
    front = leading(cuts)
    for criterion in criteria:
        seen, found = set[tuple[int, ...]](), leading(cuts)
        # Depths that agree are told from three depths on: patience begins with evenly spaced ones.
        new = list(_progressions(depths)) if criterion == "patience" else []
        for _ in range(MOST_EXITS):
            more = (tried(outputs, macs, times, s, criterion, combine) for s in new if s not in seen)
            found = leading([*found, *(point for points in more for point in points)])
            seen.update(new)
            asked = (p.policy.depths for p in found)
            counts = Counter(s for s in asked if len(s) < MOST_EXITS and set(s) <= set(depths))
            sets = [each for each, _ in counts.most_common(BEAM)]
            new = [tuple(sorted({*each, k})) for each in sets for k in depths if k not in each]
        for _ in range(SWEEPS):
            several = [p.policy for p in found if len(p.policy.thresholds) > 1]
            found = leading([*found, *(q for p in several for q in _varied(outputs, macs, times, p))])
        front = leading([*front, *found])
    points, fewest = frontier(front), frontier(front, BY_MACS)
    others = tuple(point for point in fewest if point not in points)
    return ExitCurve(tuple(points), tuple(cuts), cuts[-1].accuracy, len(outputs.targets), others)


def _progressions(depths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for stride in (1, 2, 3, 4):
        for start, count in product(range(len(depths)), range(3, MOST_EXITS + 3)):
            if start + stride * (count - 1) < len(depths):
                yield tuple(depths[start : start + stride * (count - 1) + 1 : stride])


def tried(
    outputs: Outputs,
    macs: Costs,
    times: Sequence[Costs],
    depths: tuple[int, ...],
    criterion: Criterion = "max-probability",
    combine: bool = False,
    thresholds: Sequence[Sequence[float]] | None = None,
) -> list[ExitPoint]:
    """Try policies that ask at some depths.

    Args:
        outputs: of every depth.
        macs: of the parts of the network.
        times: of the same, for some batch sizes.
        depths: k_1 < … < k_m.
        criterion: what the score is.
        combine: see `ExitPolicy`.
        thresholds: to try, m-1 in each; if not given, chosen from the scores, one for all depths.
    """
    labels, scores = votes_at(outputs.logits, depths, criterion, combine=combine)
    if thresholds is None:
        grid = _grid(scores[:-1], criterion)[:, None].expand(-1, len(depths) - 1)
    else:
        grid = torch.tensor(thresholds, dtype=torch.float32)
    staying = torch.ones(len(grid), len(outputs.targets), dtype=torch.bool)
    numbers, right = [], torch.zeros(len(grid), dtype=torch.float64)
    for place, (answers, score) in enumerate(zip(labels, scores, strict=True)):
        leaving = staying if place == len(depths) - 1 else staying & (score >= grid[:, place, None])
        numbers.append(leaving.sum(dim=1))
        right += (leaving & (answers == outputs.targets)).sum(dim=1)
        staying = staying & ~leaving
    shares = torch.stack(numbers, dim=1).double() / len(outputs.targets)  # (T, m)

    def mean(values: Sequence[float]) -> Tensor:
        return shares @ torch.tensor(values, dtype=torch.float64)

    by_macs = mean(macs.leaving(depths)) / macs.whole
    by_time = [mean(each.leaving(depths)) / each.whole for each in times] or [by_macs]
    rows = zip(
        grid.tolist(),
        (100 * right / len(outputs.targets)).tolist(),
        mean(depths).tolist(),
        by_macs.tolist(),
        torch.stack(by_time).amax(dim=0).tolist(),
        strict=True,
    )
    return [ExitPoint(ExitPolicy(depths, tuple(ts), criterion, combine), *row) for ts, *row in rows]


def _varied(
    outputs: Outputs, macs: Costs, times: Sequence[Costs], policy: ExitPolicy
) -> list[ExitPoint]:
    """Try a policy with each of its thresholds moved by itself."""
    ways = (policy.depths, policy.criterion, policy.combine)
    _, scores = votes_at(outputs.logits, *ways[:2], combine=policy.combine)
    moved = [
        (*policy.thresholds[:i], t, *policy.thresholds[i + 1 :])
        for i in range(len(policy.thresholds))
        for t in _grid(scores[i : i + 1], policy.criterion).tolist()
    ]
    return tried(outputs, macs, times, *ways, thresholds=moved) if moved else []


def _grid(scores: Tensor, criterion: Criterion) -> Tensor:
    """Return thresholds worth trying, (T,), from the scores at the depths that let images leave.

    They lie halfway between scores, so that rounding does not decide who leaves.
    """
    if not len(scores):  # a fixed cut
        return torch.zeros(1)
    if criterion == "patience":
        return torch.arange(2.0, float(scores.max()) + 1)
    ordered = torch.unique(scores)
    between = torch.cat([ordered[:1], (ordered[1:] + ordered[:-1]) / 2])
    places = torch.linspace(0, len(between) - 1, min(len(between), NUM_THRESHOLDS)).round().long()
    return between[places]


Cost = Callable[[ExitPoint], float]
BY_TIME: Cost = attrgetter("time_ratio")
BY_MACS: Cost = attrgetter("macs_ratio")


def leading(points: Sequence[ExitPoint]) -> list[ExitPoint]:
    """Return the points that no other one beats in accuracy and time, or in accuracy and MACs."""
    return [*dict.fromkeys([*frontier(points), *frontier(points, BY_MACS)])]


def frontier(points: Iterable[ExitPoint], cost: Cost = BY_TIME) -> list[ExitPoint]:
    """Return the points that no other one beats in both accuracy and a cost, the cheapest first."""
    best, front = -math.inf, []
    for point in sorted(points, key=lambda p: (cost(p), -p.accuracy, len(p.policy.depths))):
        if point.accuracy > best:
            best = point.accuracy
            front.append(point)
    return front


def oracle_curve(outputs: Outputs, macs: Costs) -> list[tuple[float, float]]:
    """Return what knowing the labels would bring: each image leaves at the first depth that is right.

    Returns:
        Part of the MACs and accuracy in percent if it leaves at 0, 1, …, N at the latest. It asks once.
    """
    right, n = outputs.right, outputs.num_blocks
    first = torch.where(right.any(dim=0), right.long().argmax(dim=0), n)
    costs = torch.tensor([macs.leaving((k,))[0] for k in range(n + 1)], dtype=torch.float64)
    return [
        (
            float(costs[first.clamp_max(last)].mean()) / macs.whole,
            100 * float(right[: last + 1].any(dim=0).double().mean()),
        )
        for last in range(n + 1)
    ]
