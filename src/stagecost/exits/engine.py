"""The engine of early exit: states one at a time, and batches that really get smaller.

Whoever is sure leaves; the rows that are left are put together, so that the blocks behind work on fewer
images. The states come from the network's own roll-out.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from stagecost.cut import Cut
from stagecost.dynamics import Rollout
from stagecost.errors import StageCostError
from stagecost.exits.policy import ExitPolicy, Votes
from stagecost.fast.reading import reader_of
from stagecost.network import ResidualNetwork
from stagecost.trajectory import COLLAPSED, device_of, evaluation_mode, to_device

State = Tensor | tuple[Tensor, ...]
IN_TRAINING = "a network lets nobody leave while a part is in training mode: call network.eval()"


class Answers(NamedTuple):
    """What images were called, and where they left."""

    labels: Tensor  #: (B,), int64
    depths: Tensor  #: (B,), int64, k of the output that answered


class EarlyExit:
    """A network with a policy, ready to answer batches; its weights must stay as they are.

    Made once, called often.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> exits = sc.EarlyExit(net.eval(), sc.ExitPolicy((2, 4), (0.9,)))
        >>> answers = exits(torch.rand(3, 3, 8, 8))
        >>> answers.labels.shape, set(answers.depths.tolist()) <= {2, 4}
        (torch.Size([3]), True)
    """

    def __init__(self, network: ResidualNetwork, policy: ExitPolicy) -> None:
        """Take a network in eval mode.

        Raises:
            StageCostError: it is in training mode, or not as deep as the policy, or a depth has norms
                of its own.
        """
        policy.check(network.num_blocks)
        check_norms(network, policy.depths)
        if any(module.training for module in network.modules()):
            raise StageCostError(IN_TRAINING)
        self.network, self.policy = network, policy
        self.rollout = network.rollout(COLLAPSED)
        with torch.no_grad():
            self.head = reader_of(network.head, self.rollout.tail)
        thresholds = (*policy.thresholds, None)
        self.stretches = list(zip(pairwise((0, *policy.depths)), thresholds, strict=True))
        self._of_images: dict[int, tuple[bool, ...]] = {}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Answers:
        """Answer a batch.

        Args:
            images: (B, C, H, W), or what else the network takes.

        Raises:
            StageCostError: images of another shape, states without a row for each image, or a network
                that went back to training mode.
        """
        if self.network.training:  # it would answer by the batch, and move its statistics
            raise StageCostError(IN_TRAINING)
        self.network.check_images(images)
        depths = self.policy.depths[:-1]
        if len(_parts(images)[0]) > 1 and depths and not self._of_images:
            two = _first(images, 2)
            self._of_images = parts_of_images(self.network, self.rollout, two, depths)
        state = self.network.stem(images)
        votes, left = Votes(self.policy.criterion, combine=self.policy.combine), Remaining()
        for (k, stop), threshold in self.stretches:
            state = self.rollout.advance(state, k, stop)
            labels, scores = votes.add(self.head(self.rollout.tail(state, stop), stop))
            if threshold is None:
                break
            if len(scores) == 1:  # which is soon told
                if not bool(scores < threshold):  # as below: in the precision of the scores
                    break
                continue
            staying = scores < threshold
            count = int(staying.sum())
            if count == 0:
                break
            if count < len(labels):
                rows = staying.nonzero().flatten()
                left.leave(labels, ~staying, stop)
                left.keep(rows)
                votes.keep(rows)
                state = self._rows_of(state, rows, stop)
        return left.answers(labels, stop)

    def _rows_of(self, state: State, rows: Tensor, depth: int) -> State:
        """Return some rows of a state; of a tuple, of all tensors that have a row for each image."""
        parts = zip(_parts(state), self._of_images[depth], strict=True)
        chosen = tuple(part[rows] if of_images else part for part, of_images in parts)
        return chosen[0] if isinstance(state, Tensor) else chosen


def parts_of_images(
    network: ResidualNetwork, rollout: Rollout, images: State, depths: Sequence[int]
) -> dict[int, tuple[bool, ...]]:
    """Tell which parts of the states at some depths have a row for each image: they differ by depth.

    Args:
        network: in eval mode.
        rollout: of it.
        images: two.
        depths: ascending.

    Raises:
        StageCostError: a part has the images elsewhere than in its rows.
    """
    k, states = 0, [network.stem(_first(images, count)) for count in (1, 2)]
    found: dict[int, tuple[bool, ...]] = {}
    for depth in depths:
        states, k = [rollout.advance(state, k, depth) for state in states], depth
        found[depth] = tuple(map(_is_of_images, *map(_parts, states)))
    return found


def _first(images: State, count: int) -> State:
    return images[:count] if isinstance(images, Tensor) else tuple(part[:count] for part in images)


def _parts(state: State) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else state


def _is_of_images(one: Tensor, two: Tensor) -> bool:
    """Tell whether a part of a state has a row for each image, by what one image and two have.

    The size alone does not tell: a table may be as long as a batch.
    """
    if one.shape == two.shape:
        return False
    if (len(one), len(two)) != (1, 2):
        raise StageCostError(
            f"states of shape {tuple(two.shape)} have no row for each of 2 images: exits need the batch "
            "first"
        )
    return True


def check_norms(network: ResidualNetwork, depths: Iterable[int]) -> None:
    """Refuse depths that have norms of their own: no pass for another depth has their states."""
    own = [k for k in depths if network.resolve(Cut.first(k)) in network.targets]
    if own:
        raise StageCostError(
            f"depth {own[0]} has norms of its own, and with them a pass of its own, so no image can "
            "leave there on its way: cut to it, or train with --target-norms shared"
        )


class Remaining:
    """The rows of a batch that are undecided, and the answers of those that have left."""

    def __init__(self) -> None:
        """Begin with all rows."""
        self.rows: Tensor | None = None
        self.labels = self.depths = torch.empty(0)

    def leave(self, labels: Tensor, leaving: Tensor, depth: int) -> None:
        """Note the answers of the rows that leave, among those that are left."""
        if self.rows is None:
            self.rows = torch.arange(len(labels), device=labels.device)
            self.labels, self.depths = labels.clone(), torch.full_like(labels, depth)
            return
        gone = self.rows[leaving]
        self.labels[gone], self.depths[gone] = labels[leaving], depth

    def keep(self, rows: Tensor) -> None:
        """Go on with these of the rows that are left."""
        assert self.rows is not None
        self.rows = self.rows[rows]

    def answers(self, labels: Tensor, depth: int) -> Answers:
        """Give the rest its answers."""
        if self.rows is None:
            return Answers(labels, torch.full_like(labels, depth))
        self.labels[self.rows], self.depths[self.rows] = labels, depth
        return Answers(self.labels, self.depths)


def run_with_exits(network: ResidualNetwork, images: Tensor, policy: ExitPolicy) -> Answers:
    """Answer a batch, and let each image leave where a policy says; the network keeps its mode.

    Args:
        network: homogeneous, staged or adapted.
        images: (B, C, H, W), moved to the network's device.
        policy: where to ask, and when to leave.

    Returns:
        `labels` and `depths`, (B,) each, on the network's device.

    Raises:
        StageCostError: images of another shape, a policy for a deeper network, or a depth with norms
            of its own.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> images = torch.rand(3, 3, 8, 8)
        >>> sc.run_with_exits(net, images, sc.ExitPolicy((2,))).depths
        tensor([2, 2, 2])
    """
    with evaluation_mode(network):
        return EarlyExit(network, policy)(to_device(images, device_of(network)))
