"""Training in a run folder: whose folder it is, checkpoints, cuts by a schedule, tables, display."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch.random import fork_rng

from stagecost.cut import Cut
from stagecost.data.fingerprint import check_fingerprint, fingerprint
from stagecost.data.images import ImageFormat
from stagecost.data.loading import has_validation, load_data
from stagecost.errors import StageCostError
from stagecost.objective import StageCost
from stagecost.records import JsonObject
from stagecost.runs.certainty import Interval, wilson
from stagecost.runs.folder import (
    RunFolder,
    refuse_moved,
    settings_for,
    write_config,
    write_metrics,
)
from stagecost.runs.lock import FolderLock, locked
from stagecost.runs.results import Result
from stagecost.storage import remove_leftovers, write_atomically
from stagecost.text import shell_path
from stagecost.train.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from stagecost.train.cutting import cut_network
from stagecost.train.devices import is_first_process, own_environment
from stagecost.train.display import TrainingDisplay
from stagecost.train.history import CutRecord, EpochRecord
from stagecost.train.interruption import StoppedError, interruption
from stagecost.train.loop import Epoch, OnStep, Step, check_weights, fit
from stagecost.train.recipe import Moment
from stagecost.train.settings import RunSettings
from stagecost.train.setup import Setup, data_config, prepare
from stagecost.train.stage_cost import StageCostRule, after_cuts, terminal_only
from stagecost.train.state import State
from stagecost.trajectory import suggest_targets

logger = logging.getLogger("stagecost")

AfterEpoch = Callable[[State, EpochRecord], EpochRecord]
"""Is told what an epoch brought before it is saved; may change the state, and returns the record."""


@dataclass(frozen=True)
class TrainingResult(Result):
    """What a finished run tells."""

    run: str  #: its folder
    epochs: int  #: that were trained
    val_accuracy: float | None  #: percent; None without validation images
    val_loss: float | None  #: L_N
    num_images: int  #: of the validation split; 0 without one
    interval: Interval | None  #: Wilson's, of the accuracy
    num_blocks: int  #: that are left
    kept_blocks: tuple[int, ...]  #: the paper's indices k of these
    gamma: float  #: the stage weight that acted last
    cuts: tuple[CutRecord, ...]  #: during the training
    #: depths worth training for, where every y_k bore a stage cost and could be cut
    suggested_targets: tuple[int, ...]
    seconds: float  #: over all sessions
    history: tuple[EpochRecord, ...]  #: one entry an epoch; not part of the JSON

    def to_json(self) -> JsonObject:
        """Return plain types for JSON."""
        return {key: value for key, value in super().to_json().items() if key != "history"}


def train(
    given: RunSettings | Mapping[str, Any],
    folder: str | Path,
    *,
    resume: bool = False,
    label: str = "train",
    stage_cost: StageCost | StageCostRule | None = None,
    on_step: OnStep | None = None,
    after_epoch: AfterEpoch | None = None,
) -> TrainingResult:
    """Train a network in a run folder, or go on with a run there.

    Args:
        given: the settings; or those of them that differ from the defaults, by flag name.
        folder: where everything is written; see `stagecost.runs.folder`.
        resume: go on where the run in the folder stopped; start it if it had not come to a checkpoint.
        label: name on the progress display.
        stage_cost: instead of the one that the settings describe; see `stagecost.train.loop.fit`. Give
            the same one when the run goes on.
        on_step: is told each step.
        after_epoch: is told each epoch before it is saved.

    Raises:
        StageCostError: impossible settings, a folder that holds another run, a loss that is no number,
            or an interruption (everything is saved then).
    """
    run = RunFolder(Path(folder))
    flat = given.to_flat() if isinstance(given, RunSettings) else given
    with _claimed(run, flat, resume=resume) as (settings, lock), fork_rng(devices=[]):
        checkpoint = read_checkpoint(run.last) if run.last.is_file() else None
        setup = _prepare(run, settings, checkpoint)
        _check_images(run, setup)
        files = RunFiles(run, lock, setup, own_stage_cost=stage_cost is not None)
        files.check_stage_cost(checkpoint)
        files.begin(afresh=checkpoint is None)
        state = setup.start(checkpoint)
        with (
            _closed_after(state.fabric.loggers),
            TrainingDisplay(label, settings.training.epochs, quiet=lock is None) as display,
            interruption() as interrupted,
        ):
            display.say(replace(setup.data, warnings=()).summary())
            stop = Stop(files, interrupted)

            def step_done(state: State, step: Step) -> None:
                if on_step is not None:
                    on_step(state, step)
                display.step_done(state, step)
                stop.save_or_stop(state)

            def epoch_done(state: State, epoch: Epoch) -> None:
                display.epoch_ends(_finish_epoch(state, epoch, setup, files, after_epoch))

            rule = _rule(setup.stage_cost if stage_cost is None else stage_cost, settings, state)
            fit(state, setup.batches, rule, setup.recipe, on_step=step_done, on_epoch=epoch_done)
        files.write_tables(state)
    return _result(run, setup, state, rule)


@contextmanager
def _closed_after(trackers: Sequence[Any]) -> Iterator[None]:
    """Close trackers at the end of a training, which may be an error or an interruption."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for tracker in trackers:
            tracker.finalize(status)


@contextmanager
def _claimed(
    run: RunFolder, given: Mapping[str, Any], *, resume: bool
) -> Iterator[tuple[RunSettings, FolderLock | None]]:
    """Hold the folder, in the first of several processes, and read the settings of the run."""
    if not is_first_process():
        yield settings_for(run, given, resume=True), None
        return
    with locked(run.path) as lock:
        settings = settings_for(run, given, resume=resume)
        remove_leftovers(run.path)
        yield settings, lock


def _prepare(run: RunFolder, settings: RunSettings, checkpoint: Checkpoint | None) -> Setup:
    """Build the training; one that goes on takes its images as it took them before."""
    with own_environment():
        from stagecost.train.trackers import open_trackers

    if checkpoint is None:
        config, like = data_config(settings), None
    else:
        refuse_moved(settings.data.data, run.path)
        config, like = settings.data, ImageFormat.from_json(checkpoint.metadata.get("image_format", {}))
    splits = ("train", "val") if has_validation(config) else ("train",)
    data = load_data(config, seed=settings.training.seed, splits=splits, like=like)
    network = None
    if checkpoint is not None and settings.model.weights:  # they are in the checkpoint by now
        network = checkpoint.initial_network()
    loggers = open_trackers(settings.training.trackers, run.path, settings.to_flat())
    return prepare(settings, data, network=network, loggers=loggers)


def _check_images(run: RunFolder, setup: Setup) -> None:
    """Refuse to go on with a run on other images than it began with."""
    if not run.last.is_file():
        return
    if not run.fingerprint.is_file():
        if is_first_process():
            what = "nothing tells whether the images are those that it began with"
            logger.warning("%s has no %s: %s", run.path, run.fingerprint.name, what)
        return
    changes = check_fingerprint(run.fingerprint.read_text(errors="replace"), setup.data, "train")
    if changes:
        raise StageCostError(
            f"{changes[0]}: a run goes on with the images that it began with; restore them, or train "
            "anew into another --output"
        )


@dataclass(frozen=True)
class RunFiles:
    """Writes the files of a run; does nothing in any but the first of several processes."""

    run: RunFolder  #: its folder
    lock: FolderLock | None  #: on it; None in the other processes
    setup: Setup  #: of the training
    own_stage_cost: bool  #: whether the caller's stage cost is minimised, which the settings do not know

    def check_stage_cost(self, checkpoint: Checkpoint | None) -> None:
        """Refuse to go on with another stage cost than the run began with, as far as that is known."""
        if checkpoint is not None and checkpoint.own_stage_cost != self.own_stage_cost:
            raise StageCostError(
                f"{self.run.path} was trained {'with' if checkpoint.own_stage_cost else 'without'} a "
                "stage cost of the caller: go on from Python with the same one"
            )

    def begin(self, *, afresh: bool) -> None:
        """Make the folder that of this run; what a run without a checkpoint left there goes."""
        if self.lock is None:
            return
        if afresh:
            for name in (self.run.best.name, "metrics.csv", "trajectory.csv"):
                (self.run.path / name).unlink(missing_ok=True)
        write_config(self.run, self.setup.settings)
        if afresh:
            write_atomically(self.run.fingerprint, fingerprint(self.setup.data))

    def save(self, state: State, path: Path) -> None:
        """Write a checkpoint.

        Raises:
            StageCostError: the folder is there no more, or a weight is no finite number.
        """
        if self.lock is None:
            return
        check_weights(state)
        self.lock.check()
        details = {
            "image_format": self.setup.data.format.to_json(),
            "gamma": self.setup.settings.gamma(len(state.indices)),
            "initial_blocks": state.indices,
            "own_stage_cost": self.own_stage_cost,
        }
        save_checkpoint(path, state, self.setup.settings, details)

    def write_tables(self, state: State) -> None:
        """Write the tables of all epochs."""
        if self.lock is not None:
            self.lock.check()
            write_metrics(self.run, state.progress.history)


class Stop:
    """Saves an epoch under way from time to time, and when the run is interrupted."""

    def __init__(self, files: RunFiles, interrupted: Callable[[], bool]) -> None:
        """Take the files and what tells of an interruption."""
        self.files, self.interrupted, self.saved = files, interrupted, monotonic()

    def save_or_stop(self, state: State) -> None:
        """Save if it is time; save and stop if interrupted.

        Raises:
            StoppedError: the run was interrupted, in any process.
        """
        training, run = self.files.setup.settings.training, self.files.run
        stop = _any_process(state, self.interrupted())
        if stop or monotonic() - self.saved > 60 * training.checkpoint_minutes:
            self.saved = monotonic()
            self.files.save(state, run.last)
        if stop:
            state.fabric.barrier()  # who leaves first would have the others killed as they write
            raise StoppedError(
                f"interrupted in epoch {state.progress.epoch + 1} of {training.epochs}, everything is "
                f"saved: go on with `stagecost train --resume --output {shell_path(run.path)}`"
            )


def _any_process(state: State, flag: bool) -> bool:
    if state.fabric.world_size == 1:
        return flag
    return bool(state.fabric.all_reduce(torch.tensor(float(flag)), reduce_op="max") > 0)


def _rule(stage_cost: StageCost | StageCostRule, settings: RunSettings, state: State) -> StageCostRule:
    """Return what is minimised at a moment: the stage cost may end with the last cut."""
    rule = (lambda _: stage_cost) if isinstance(stage_cost, StageCost) else stage_cost
    if not settings.stage.plain_after_cuts:
        return rule
    last = max(settings.stage.schedule())

    def plain_afterwards(moment: Moment) -> StageCost:
        if moment.epoch < last:
            return rule(moment)
        return terminal_only(after_cuts(rule(moment), state.stages, state.left))

    return plain_afterwards


def _finish_epoch(
    state: State, epoch: Epoch, setup: Setup, files: RunFiles, after_epoch: AfterEpoch | None
) -> EpochRecord:
    """Judge the network, save the best one, cut it if that is due, and save the run."""
    validation, history = setup.validation, state.progress.history
    history.append(validation.record(state, epoch, setup.recipe))
    # The best one as it was judged, before a cut. Killed in between, the run repeats this epoch.
    if _is_best(history):
        files.save(state, files.run.best)
    cut = setup.settings.stage.schedule().get(epoch.number)
    if cut is not None:
        history[-1] = cut_network(state, cut, history[-1], validation, setup.settings.training)
    if after_epoch is not None:
        history[-1] = after_epoch(state, history[-1])
    state.count_time()
    files.save(state, files.run.last)
    files.write_tables(state)
    figures = {k: v for k, v in vars(history[-1]).items() if isinstance(v, int | float)}
    state.fabric.log_dict(figures, step=epoch.number)
    return history[-1]


def _is_best(history: list[EpochRecord]) -> bool:
    *before, latest = (entry.val_accuracy for entry in history)
    return latest is not None and latest > max((a for a in before if a is not None), default=-1.0)


def _result(run: RunFolder, setup: Setup, state: State, rule: StageCostRule) -> TrainingResult:
    history = state.progress.history
    last, splits = history[-1], setup.data.splits
    num_images = len(splits["val"]) if "val" in splits else 0
    return TrainingResult(
        run=str(run.path),
        epochs=state.progress.epoch,
        val_accuracy=last.val_accuracy,
        val_loss=last.val_loss,
        num_images=num_images,
        interval=None if last.val_accuracy is None else wilson(last.val_accuracy, num_images),
        num_blocks=state.network.num_blocks,
        kept_blocks=state.network.block_indices,
        gamma=last.gamma,
        cuts=tuple(entry.cut for entry in history if entry.cut is not None),
        suggested_targets=_suggested(setup, state, rule),
        seconds=round(state.progress.seconds, 3),
        history=tuple(history),
    )


def _suggested(setup: Setup, state: State, rule: StageCostRule) -> tuple[int, ...]:
    """Return depths worth training for, if all y_k bore a stage cost in the last step."""
    accuracies, steps = state.progress.history[-1].val_accuracies, len(setup.batches)
    epochs = setup.settings.training.epochs
    last = rule(Moment(epochs - 1, steps - 1, steps, epochs)).among(state.stages)
    told = {cut for cut, weight in zip(last.cuts, last.weights, strict=True) if weight}
    every = told.issuperset(map(Cut.first, range(len(state.indices))))
    whole = state.network.is_homogeneous and state.network.num_blocks == len(state.indices)
    return suggest_targets(accuracies) if every and whole and accuracies else ()
