"""How blocks leave a running training: network, optimiser, average and wrapper, all of them or none.

When they leave is decided in `stagecost.training.shrink`. In a homogeneous network the tail goes, which
is exact: the loss after the cut is one that the trajectory already tells. In a staged network each stage
loses its tail; what that costs is tried on validation data, and a cut that costs too much is refused.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagecost.calibration import recalibrate
from stagecost.macs import macs_by_part
from stagecost.network import ResidualNetwork
from stagecost.prune import kept_indices
from stagecost.search import candidate_depths, search_stage_depths
from stagecost.surgery import copy_with_blocks
from stagecost.training.checkpoint import load_optimizer_tensors, optimizer_tensors
from stagecost.training.compiling import compile_in_place
from stagecost.training.session import Session, loss_function, make_optimizer
from stagecost.training.shrink import (
    allowed_loss,
    at_most_half,
    enough_blocks,
    may_shrink,
    missing_part,
    next_cut,
    tolerance_left,
)
from stagecost.trajectory import terminal_score

SEARCHED_VECTORS = 27
"""How many vectors of stage depths an epoch tries: all of three depths in each of three stages."""


@dataclass(frozen=True)
class Cut:
    """What a cut did, or would have done.

    Attributes:
        epoch: after which it was made.
        num_blocks_before: blocks that there were.
        kept_blocks: the paper's indices k of those that stay.
        made: whether it was made; one that costs too much on validation data is refused.
        val_loss_before: of the network before it; None without validation images.
        val_loss_after: of the network after it.
        val_accuracy_before: percent.
        val_accuracy_after: percent.
        missing: the part of what all blocks do that is missing without them.
    """

    epoch: int
    num_blocks_before: int
    kept_blocks: tuple[int, ...]
    made: bool
    val_loss_before: float | None
    val_loss_after: float | None
    val_accuracy_before: float | None
    val_accuracy_after: float | None
    missing: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {**vars(self), "kept_blocks": list(self.kept_blocks)}


def cut_if_due(session: Session) -> dict[str, Any] | None:
    """Cut the network if the schedule or the rule says so after the epoch that has just ended.

    What the epoch could do with is noted in its entry in the history, and so is the cut.

    Returns:
        The cut as plain types, made or refused; None if none was due.
    """
    started = time.monotonic()
    history = session.progress.history
    entry = history[-1]
    due = session.shrink.schedule().get(session.progress.epoch)
    if may_shrink(history, session.shrink, session.settings.epochs, guess_loss(session)):
        entry["wanted"] = _wanted_blocks(session, entry)
        sizes = [len(stage) for stage in session.network.stages]
        due = next_cut(history, session.shrink, session.settings.epochs, sizes)
    # Running statistics, and with them losses, differ among processes: the first one decides for all.
    due = session.fabric.broadcast(due)
    if due is not None:
        entry["cut"] = _cut_to(session, entry, kept_indices(session.network, due)).to_json()
    session.progress.seconds += time.monotonic() - started
    return entry["cut"]  # type: ignore[no-any-return]


def guess_loss(session: Session) -> float:
    """Return the loss of knowing nothing, with any label smoothing."""
    return math.log(session.data.num_classes)


def _allowed_loss(session: Session, entry: Mapping[str, Any], num_blocks: int) -> float:
    """Return the highest loss that a cut to so many blocks may leave."""
    gone = 1 - num_blocks / session.num_blocks
    tolerance = tolerance_left(session.progress.history, session.shrink.shrink_tolerance, gone)
    loss: float = entry["val_loss"]
    return allowed_loss(loss, tolerance, guess_loss(session))


def _wanted_blocks(session: Session, entry: Mapping[str, Any]) -> list[int]:
    """Return how many blocks of each stage this epoch's validation could do with."""
    network = session.evaluated
    allowed = [_allowed_loss(session, entry, m) for m in range(network.num_blocks + 1)]
    if len(network.stages) == 1:  # truncation: the trajectory tells the loss of every cut exactly
        (least,) = at_most_half([1], [network.num_blocks])
        return [enough_blocks(entry["val_losses"], allowed, least)]
    depths = candidate_depths(network, limit=SEARCHED_VECTORS)
    loss = loss_function(session.settings)
    cuts = search_stage_depths(network, session.validation_batches(), loss=loss, depths=depths)
    enough = [cut for cut in cuts if cut.loss <= allowed[sum(cut.keep_per_stage)]]
    image = session.data.format
    macs = macs_by_part(network, (image.channels, image.size, image.size))[1:-1]
    cost = dict(zip(network.block_indices, macs, strict=True))
    return min(
        [list(cut.keep_per_stage) for cut in enough] or [[len(stage) for stage in network.stages]],
        key=lambda keep: sum(cost[k] for k in kept_indices(network, keep)),
    )


def _cut_to(session: Session, entry: Mapping[str, Any], kept: tuple[int, ...]) -> Cut:
    """Make a cut, or refuse it if it costs too much on validation data."""
    num_blocks = session.network.num_blocks
    networks = [_without_blocks(network, kept) for network in _networks(session)]
    accuracy, loss, made = None, None, True
    if len(session.network.stages) == 1:  # exact
        if entry["val_losses"] is not None:
            accuracy, loss = entry["val_accuracies"][len(kept)], entry["val_losses"][len(kept)]
    else:
        for network in networks:
            recalibrate(network, session.calibration_batches())
        if entry["val_losses"] is not None:
            accuracy, loss = terminal_score(
                networks[-1], session.validation_batches(), loss=loss_function(session.settings)
            )
        if session.shrink.shrink and loss is not None:
            made = session.fabric.broadcast(loss <= _allowed_loss(session, entry, len(kept)))
    if made:
        _replace_networks(session, networks)
    return Cut(
        epoch=session.progress.epoch,
        num_blocks_before=num_blocks,
        kept_blocks=kept,
        made=made,
        val_loss_before=entry["val_loss"],
        val_loss_after=loss,
        val_accuracy_before=entry["val_accuracy"],
        val_accuracy_after=accuracy,
        missing=None if loss is None else missing_part(entry["val_loss"], loss, guess_loss(session)),
    )


def _networks(session: Session) -> list[ResidualNetwork]:
    """Return the network that is trained, and the moving average if there is one."""
    return [session.network] if session.average is None else [session.network, session.evaluated]


def _without_blocks(network: ResidualNetwork, kept: tuple[int, ...]) -> ResidualNetwork:
    """Return a copy without the other blocks, compiled if the network was.

    A copy, because hooks of a distributed wrapper would stay behind on the old parameters.
    """
    smaller = copy_with_blocks(network, kept)
    if network._compiled_call_impl is not None:  # what was compiled knows the old blocks
        compile_in_place(smaller, next(network.parameters()).device)
    return smaller


def _replace_networks(session: Session, networks: Sequence[ResidualNetwork]) -> None:
    """Go on with smaller networks; every parameter that stays keeps its optimiser state.

    The optimiser is built and filled as after a restart, so that a resumed run is no different.
    """
    network = networks[0]
    state = optimizer_tensors(session.optimizer, session.network)
    staying = dict(network.named_parameters())
    optimizer = make_optimizer(
        network, session.settings, session.variant, session.gamma, session.num_blocks
    )
    model, optimizer = session.fabric.setup(network, optimizer)
    kept_state = {key: value for key, value in state.items() if key.rpartition("/")[0] in staying}
    load_optimizer_tensors(optimizer, network, kept_state)
    session.network, session.model, session.optimizer = network, model, optimizer
    if session.average is not None:
        session.average.module = networks[1]
