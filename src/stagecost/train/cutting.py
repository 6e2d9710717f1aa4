"""How blocks leave a running training: network, optimiser, average and wrapper, all of them or none.

When they leave is the caller's business. In a homogeneous network the tail goes, which is exact: the
trajectory tells the loss after it. In a staged network each stage loses its tail, and BatchNorm
statistics are estimated anew, if they are not frozen.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate

from stagecost.calibration import calibrate_outputs, recalibrate
from stagecost.cut import Cut, stage_counts
from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork
from stagecost.train.checkpoint import load_optimizer_tensors, optimizer_tensors
from stagecost.train.history import CutRecord, EpochRecord
from stagecost.train.settings import TrainingSettings
from stagecost.train.state import State, make_optimizer, wrap
from stagecost.train.validation import Validation
from stagecost.trajectory import Score, terminal_score


def check_schedule(schedule: dict[int, Cut], network: ResidualNetwork) -> None:
    """Refuse cuts that a network, as it is at the start, cannot make one after the other."""
    sizes = network.blocks_per_stage
    for epoch, cut in schedule.items():
        stages = [range(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
        counts = None
        with suppress(StageCostError):
            counts = stage_counts(cut.among(stages), stages)
        if counts is None or counts == sizes:
            raise StageCostError(
                f"--cut-at keeps {cut} blocks of {'+'.join(map(str, sizes))} after epoch {epoch}: give "
                "fewer, but at least 1 in each stage"
            )
        sizes = counts


def cut_network(
    state: State, cut: Cut, record: EpochRecord, validation: Validation, training: TrainingSettings
) -> EpochRecord:
    """Go on with the acting blocks of a cut alone; return the record of the epoch with what that did.

    A staged network is judged again, on the validation images.
    """
    kept = state.network.resolve(cut)
    networks = [network.keep(kept) for network in state.networks]
    if len(networks[0].stages) > 1 and not training.freeze_norms:
        for network in networks:
            recalibrate(network, validation.calibration)
    elif state.average is not None and not training.freeze_norms:  # which alone was calibrated so far
        calibrate_outputs(networks[0], validation.calibration, [networks[0].num_blocks])
    score = _score_after(kept, networks[-1], record, validation)
    before = state.network.num_blocks
    replace_networks(state, networks, training)
    done = CutRecord(
        epoch=record.epoch,
        num_blocks_before=before,
        kept_blocks=state.network.block_indices,
        val_loss_before=record.val_loss,
        val_loss_after=score.loss if score else None,
        val_accuracy_before=record.val_accuracy,
        val_accuracy_after=score.accuracy if score else None,
    )
    return replace(record, cut=done)


def _score_after(
    kept: Cut, network: ResidualNetwork, record: EpochRecord, validation: Validation
) -> Score | None:
    if len(network.stages) == 1:  # exact: what the trajectory says
        if record.val_losses is None or record.val_accuracies is None:
            return None
        return Score(kept, record.val_losses[kept.depth], record.val_accuracies[kept.depth], 0)
    if validation.val is None:
        return None
    return terminal_score(network, validation.val, loss=validation.loss)


def replace_networks(
    state: State, networks: Sequence[ResidualNetwork], training: TrainingSettings
) -> None:
    """Go on with smaller networks; every parameter that stays keeps its optimiser state.

    The optimiser is built and filled as after a restart, so that one which goes on is no different.
    The networks are copies, because hooks of a distributed wrapper would stay behind on old parameters.
    """
    network = networks[0]
    if training.compile:  # what was compiled knows the old blocks
        network.compile(dynamic=False)
    kept = optimizer_tensors(state.optimizer, state.network)
    staying = dict(network.named_parameters())
    decay = {group["name"]: group["weight_decay"] for group in state.optimizer.param_groups}
    left = [state.indices.index(k) for k in network.block_indices]
    targets = [cut.among_left(left) for cut in state.targets]
    optimizer = make_optimizer(network, training, decay["residual"], targets)
    asked, model, optimizer = wrap(state.fabric, network, optimizer)
    kept = {key: value for key, value in kept.items() if key.rpartition("/")[0] in staying}
    load_optimizer_tensors(optimizer, network, kept)
    state.network, state.asked, state.model, state.optimizer = network, asked, model, optimizer
    if state.average is not None:
        state.average.module = networks[1]
