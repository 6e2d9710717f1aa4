"""Pruning: first a plan that says what goes and what it costs, then its application.

In a homogeneous network the tail is cut off, and the plan's accuracy is exact: y_M of the full network
is the output of the first M blocks. In a staged network each stage loses its tail, the projections stay,
and the cut is chosen on validation data; the plan's accuracy is then that of the network whose other
blocks are bypassed.
"""

import copy
import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Integral
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from stagecost.cut import Cut, stage_counts
from stagecost.errors import StageCostError
from stagecost.losses import LossFunction
from stagecost.macs import count_macs, count_parameters, macs_by_branch
from stagecost.network import ResidualNetwork
from stagecost.records import JsonObject, writable
from stagecost.text import format_indices, html_table
from stagecost.trajectory import Loader, Score, Trajectory, evaluate_cuts

MAX_CUTS = 4096

LOG = logging.getLogger("stagecost")


@dataclass(frozen=True)
class PruningPlan:
    """What goes, and what it will cost; nothing is changed before `apply`.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> loader = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 10)]
        >>> plan = sc.plan_pruning(net, sc.loss_trajectory(net, loader), keep=2)
        >>> plan.kept_blocks, plan.apply(net).num_blocks
        ((0, 1), 2)
    """

    num_blocks: int  #: N, before
    cut: Cut  #: by the positions of the blocks that stay
    kept_blocks: tuple[int, ...]  #: the paper's indices k of the blocks that stay
    accuracy_before: float  #: percent, of the whole network on the data that the plan was made from
    accuracy_predicted: float  #: percent, of the network without the other blocks
    loss_before: float  #: of the whole network
    loss_predicted: float  #: of the network without the other blocks
    parameters_before: int  #: trainable numbers; norms that only target cuts use do not count
    parameters_after: int  #: the same without the other blocks
    macs_before: int  #: multiply-accumulate operations for one image
    macs_after: int  #: the same without the other blocks

    @property
    def drop(self) -> float:
        """Points of accuracy that the plan expects to lose; negative if it gains."""
        return self.accuracy_before - self.accuracy_predicted

    def apply(self, network: ResidualNetwork) -> ResidualNetwork:
        """Return a copy of the network without the blocks that go; the network itself stays whole.

        Raises:
            StageCostError: it has another number of blocks than the one that was planned for.
        """
        if network.num_blocks != self.num_blocks:
            raise StageCostError(
                f"the plan is of {self.num_blocks} blocks, and the network has {network.num_blocks}: "
                "plan anew for this network"
            )
        return network.keep(self.cut)

    def to_json(self) -> JsonObject:
        """Return plain types for JSON; accuracies are None where there are none."""
        return {**writable(self, lambda _: None), "cut": self.cut.to_json()}

    @property
    def summary(self) -> str:
        """Which blocks stay, in a line."""
        kept = format_indices(self.kept_blocks)
        return f"keep {len(self.kept_blocks)} of {self.num_blocks} blocks: {kept}"

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """What is measured, before and after; the loss where there is no accuracy."""
        quality = ("loss", f"{self.loss_before:.4g}", f"{self.loss_predicted:.4g}")
        if not math.isnan(self.accuracy_before):
            before, after = self.accuracy_before, self.accuracy_predicted
            quality = ("accuracy", f"{before:.2f} %", f"{after:.2f} %")
        return [
            quality,
            ("parameters", f"{self.parameters_before:,}", f"{self.parameters_after:,}"),
            ("MACs", f"{self.macs_before:,}", f"{self.macs_after:,}"),
        ]

    def __str__(self) -> str:
        """Say in a few lines what goes and what it will cost."""
        rows = (f"  {name:<11} {before} → {after}" for name, before, after in self.rows)
        return "\n".join([self.summary, *rows])

    def _repr_html_(self) -> str:
        """Show the same as a table, as notebooks do."""
        return html_table(self.summary, ("", "before", "after"), self.rows)


def plan_pruning(
    network: ResidualNetwork,
    trajectory: Trajectory,
    *,
    max_drop: float | None = None,
    max_loss_increase: float | None = None,
    keep: Cut | int | None = None,
    loader: Loader | None = None,
    loss: LossFunction = F.cross_entropy,
) -> PruningPlan:
    """Plan which blocks stay: the cheapest cut within what may be lost, or the one asked for.

    Cuts with which a live model's own forward does not work are passed over, and named in the log.

    Args:
        network: the whole network.
        trajectory: its `loss_trajectory` on validation data; its rows are the cuts to choose from.
        max_drop: points of accuracy that may be lost. Alone it chooses the smallest network that
            loses no more; beside a wanted cut it refuses a plan that loses more.
        max_loss_increase: by how much the loss may rise; the same, where there are no accuracies or
            beside them.
        keep: what stays: a cut, or M, how many blocks; in a staged network the best cut to M blocks.
        loader: validation data, on which cuts are tried that are not among the rows of the trajectory;
            needed for a staged network.
        loss: that of the trajectory.

    Raises:
        StageCostError: an impossible cut, nothing to go by, a trajectory of another number of blocks, of
            other data or another loss, or more lost than is allowed.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> loader = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 10)]
        >>> plan = sc.plan_pruning(net, sc.loss_trajectory(net, loader), max_drop=100)
        >>> small = plan.apply(net)
        >>> small.num_blocks
        1
    """
    if not isinstance(keep, Cut | Integral | None):
        raise StageCostError(
            f"keep is {keep!r}: give how many blocks stay, or a cut such as Cut((0, 2))"
        )
    trajectory.check(network.num_blocks)
    before = trajectory.whole
    limits = Limits(before, max_drop, max_loss_increase)
    if limits.are_none and keep is None:
        raise StageCostError("say how much to prune: give max_drop, or the blocks to keep")
    candidates = _candidates(network, trajectory, keep, loader, loss)
    if keep is not None:  # the best of what may stay, and not the cheapest
        candidates = list(filter(limits.allow, candidates)) or candidates
    macs = macs_by_branch(network, trajectory.image_shape)
    chosen, pruned = _chosen(network, candidates, macs, limits if keep is None else Limits(before))
    if not limits.allow(chosen):
        counts = stage_counts(chosen.cut, network.stage_positions)
        raise StageCostError(
            f"keeping {list(counts or chosen.cut.blocks)} blocks would lose {limits.exceeded(chosen)}: "
            "keep more blocks or allow more"
        )
    return _plan(network, trajectory.image_shape, before, chosen, pruned)


@dataclass(frozen=True)
class Limits:
    """What a cut may lose."""

    before: Score  #: the score of the whole network
    max_drop: float | None = None  #: points of accuracy that may be lost; None is no limit
    max_loss_increase: float | None = None  #: by how much the loss may rise; None is no limit

    def __post_init__(self) -> None:
        """Refuse impossible limits.

        Raises:
            StageCostError: a limit is negative or no number, or there is nothing to limit by: no
                accuracies, or the loss of the whole network is no number.
        """
        for name in ("max_drop", "max_loss_increase"):
            limit = getattr(self, name)
            if limit is not None and not 0 <= limit < math.inf:
                raise StageCostError(f"{name} is {limit}: give a number of at least 0")
        infinite = self.max_loss_increase is not None and math.isinf(self.before.loss)
        if infinite or (math.isnan(self.before.loss) and not self.are_none):
            raise StageCostError(
                f"the loss of the whole network is {self.before.loss}: look at data and loss, or train "
                "anew with a lower learning rate"
            )
        if self.max_drop is not None and math.isnan(self.before.accuracy):
            raise StageCostError(
                "max_drop needs accuracies, and the targets are no class labels: give max_drop=None "
                "and max_loss_increase"
            )

    @property
    def are_none(self) -> bool:
        """Whether anything may be lost."""
        return self.max_drop is None and self.max_loss_increase is None

    def allow(self, score: Score) -> bool:
        """Tell whether a cut loses no more."""
        return not self.exceeded(score)

    def exceeded(self, score: Score) -> str:
        """Say what a cut loses beyond what it may, with a hair of slack for rounding; "" if nothing."""
        drop, rise = self.before.accuracy - score.accuracy, score.loss - self.before.loss
        if self.max_drop is not None and not drop <= self.max_drop + 1e-9:  # NaN is too much
            return f"{drop:.2f} points, more than max_drop {self.max_drop}"
        if self.max_loss_increase is not None and not rise <= self.max_loss_increase + 1e-9:
            return f"{rise:.4g} of loss, more than max_loss_increase {self.max_loss_increase}"
        return ""


def possible_cuts(network: ResidualNetwork, limit: int = MAX_CUTS) -> list[Cut]:
    """Return the cuts that can be made: the first M_s ≥ 1 blocks of each stage, thinned if too many.

    Thinning drops every other number of blocks of the longest list, the ends excepted.
    """
    counts = [list(range(1, size + 1)) for size in network.blocks_per_stage]
    while math.prod(len(options) for options in counts) > limit:
        longest = max(counts, key=len)
        if len(longest) <= 2:
            break
        longest[:] = [*longest[:-1][::2], longest[-1]]
    return [network.resolve(Cut.stages(*chosen)) for chosen in product(*counts)]


def _candidates(
    network: ResidualNetwork,
    trajectory: Trajectory,
    keep: Cut | int | None,
    loader: Loader | None,
    loss: LossFunction,
) -> list[Score]:
    """Return the cuts to choose from, each with its score."""
    if isinstance(keep, Integral):  # those of NumPy, too
        keep = keep if isinstance(keep, bool) else int(keep)
    known = [row for row in trajectory.rows if network.can_keep(row.cut)]
    wanted = list(dict.fromkeys([*possible_cuts(network), *(row.cut for row in known)]))
    if isinstance(keep, Cut):
        wanted = [network.resolve(keep)]
        network.keep(wanted[0])  # or say that it is impossible
    if isinstance(keep, int):
        fewest = min(len(cut.blocks) for cut in wanted)
        wanted = [cut for cut in wanted if len(cut.blocks) == keep and not isinstance(keep, bool)]
        if not wanted:
            check_count(network, keep, fewest)
            raise StageCostError(f"no cut to {keep} blocks was tried: give the blocks of each stage")
    rows = {row.cut: row for row in known}
    missing = [cut for cut in wanted if cut not in rows]
    if missing and loader is None:
        raise StageCostError(
            f"cut {missing[0]} is not among the rows of the trajectory: give a loader of validation data"
        )
    if missing and loader is not None:
        whole, *scores = evaluate_cuts(network, loader, [Cut.whole(), *missing], loss=loss)
        _check_same(trajectory.whole, whole)
        rows |= {score.cut: score for score in scores}
    return [rows[cut] for cut in wanted]


def _check_same(before: Score, again: Score) -> None:
    """Refuse cuts that are measured by other images or another loss than the trajectory was."""
    numbers = not (math.isnan(before.loss) and math.isnan(again.loss))
    if numbers and not math.isclose(before.loss, again.loss, rel_tol=0.01, abs_tol=1e-6):
        raise StageCostError(
            f"the whole network has the loss {before.loss:.4g} in the trajectory and {again.loss:.4g} "
            "here, so a drop would compare two things: give the loader and the loss of the trajectory"
        )


def check_count(network: ResidualNetwork, count: int, fewest: int) -> None:
    """Refuse a number of blocks that cannot be kept.

    Args:
        network: that is cut.
        count: of blocks to keep.
        fewest: of the cuts that were tried.

    Raises:
        StageCostError: it is less, or more than there are.
    """
    if isinstance(count, bool) or not fewest <= count <= network.num_blocks:
        raise StageCostError(
            f"keeping {count} of {network.num_blocks} blocks is impossible: give a number "
            f"from {fewest} to {network.num_blocks}"
        )


def choose(candidates: Sequence[Score], macs: Sequence[int], limits: Limits) -> Score:
    """Choose the cheapest cut within the limits; failing that or without limits, the best one.

    Args:
        candidates: cuts that can be made.
        macs: of y_0, and of each branch (`macs_by_branch`).
        limits: what may be lost.
    """

    def cost(score: Score) -> int:
        return sum(macs[1 + k] for k in score.cut.blocks)

    def goodness(score: Score) -> tuple[float, float]:
        return 0.0 if math.isnan(score.accuracy) else score.accuracy, -score.rank

    within = [] if limits.are_none else list(filter(limits.allow, candidates))
    if within:
        return min(within, key=lambda one: (cost(one), *(-value for value in goodness(one))))
    return max(candidates, key=goodness)


def _chosen(
    network: ResidualNetwork, candidates: Sequence[Score], macs: Sequence[int], limits: Limits
) -> tuple[Score, ResidualNetwork]:
    """Choose a cut and make it: that a model's own forward needs a block shows when it is tried."""
    left = list(candidates)
    while True:
        chosen = choose(left, macs, limits)
        try:
            return chosen, network.keep(chosen.cut)
        except StageCostError as error:
            left.remove(chosen)
            if not left:
                raise
            LOG.warning("cut %s cannot be made: %s", chosen.cut, error)


def _plan(
    network: ResidualNetwork,
    image_shape: Sequence[int],
    before: Score,
    chosen: Score,
    pruned: ResidualNetwork,
) -> PruningPlan:
    return PruningPlan(
        num_blocks=network.num_blocks,
        cut=chosen.cut,
        kept_blocks=chosen.cut.remaining(network.block_indices),
        accuracy_before=before.accuracy,
        accuracy_predicted=chosen.accuracy,
        loss_before=before.loss,
        loss_predicted=chosen.loss,
        parameters_before=count_parameters(network),
        parameters_after=count_parameters(pruned),
        macs_before=count_macs(network, image_shape),
        macs_after=count_macs(network, image_shape, chosen.cut),
    )


def carry_optimizer(
    optimizer: Optimizer, network: ResidualNetwork, pruned: ResidualNetwork
) -> Optimizer:
    """Return an optimiser of the pruned network that goes on where the given one stopped.

    Hyper-parameters and groups stay as they are, and every parameter that survives keeps its state
    (momentum, moments, step count); what belonged to removed blocks is gone. Parameters that are not the
    network's stay as they are.

    Args:
        optimizer: of the whole network.
        network: the whole network.
        pruned: what `PruningPlan.apply` made of it.

    Raises:
        StageCostError: the optimiser has no parameter of the network, or its state is of all of them
            together, as that of LBFGS.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> optimizer = torch.optim.SGD(sc.parameter_groups(net, 5e-4), lr=0.1, momentum=0.9)
        >>> small = net.keep(sc.Cut.first(2))
        >>> optimizer = sc.carry_optimizer(optimizer, net, small)
        >>> {p for group in optimizer.param_groups for p in group["params"]} == {*small.parameters()}
        True
    """
    if isinstance(optimizer, LBFGS):
        raise StageCostError("the state of LBFGS is of all parameters together: make a new optimiser")
    survivors = dict(pruned.named_parameters())
    # Of the names of what several blocks share, one that is left.
    every = list(network.named_parameters(remove_duplicate=False))
    names = {id(p): name for name, p in sorted(every, key=lambda pair: pair[0] in survivors)}
    for i, target in enumerate(network.targets):  # its norms are now those of the pruned network
        if target.remaining(network.block_indices) == pruned.block_indices:
            own = {f"norms.{i}.{name}": name for name in survivors}
            replaced = {own[name] for name in names.values() if name in own}
            names = {key: own.get(n, "") if n in own or n in replaced else n for key, n in names.items()}

    def left(parameter: Tensor) -> Tensor | None:
        name = names.get(id(parameter))
        return parameter if name is None else survivors.get(name)

    if not any(id(p) in names for group in optimizer.param_groups for p in group["params"]):
        raise StageCostError("the optimiser has no parameter of this network: give its own")
    groups = [_group_left(group, left, survivors) for group in optimizer.param_groups]
    accepted = inspect.signature(type(optimizer)).parameters
    carried = type(optimizer)(groups, **{k: v for k, v in optimizer.defaults.items() if k in accepted})
    carried.defaults = copy.deepcopy(optimizer.defaults)
    for parameter, state in optimizer.state.items():
        if (survivor := left(parameter)) is not None:
            carried.state[survivor] = copy.deepcopy(state)
    return carried


def _group_left(
    group: Mapping[str, Any],
    left: Callable[[Tensor], Tensor | None],
    survivors: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Return a group of an optimiser with the parameters that are left, and their names if known."""
    kept = [(place, p) for place, p in enumerate(map(left, group["params"])) if p is not None]
    now = {**group, "params": [p for _, p in kept]}
    if "param_names" in group:
        names = {id(p): name for name, p in survivors.items()}
        now["param_names"] = [names.get(id(p), group["param_names"][place]) for place, p in kept]
    return now
