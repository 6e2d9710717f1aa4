"""The training loop: small and explicit; devices, precision and processes are Fabric's job.

A run is a pure function of its settings. Initial weights, order of the images and augmentation follow
from the seed, the epoch and the batch, so a run that is stopped anywhere and resumed ends in the same
weights, bit for bit, as one that was left alone (on a CPU with the same number of threads).
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from stagecost.calibration import calibrate_outputs
from stagecost.data.batches import check_shares, epoch_batches
from stagecost.data.loading import load_data
from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork
from stagecost.objective import ObjectiveTerms, stage_cost_objective
from stagecost.proximal import shrink_branches
from stagecost.training.checkpoint import read_checkpoint, restore_training, save_checkpoint
from stagecost.training.cutting import cut_if_due
from stagecost.training.folder import RunFolder, claim, settings_for, write_config, write_metrics
from stagecost.training.gamma_control import add_to_pieces, complete_pieces
from stagecost.training.gamma_reference import FOLDER, plain_settings, reference_losses
from stagecost.training.interruption import StoppedError, interruption
from stagecost.training.progress import TrainingDisplay
from stagecost.training.schedule import learning_rate_factor
from stagecost.training.session import Session, loss_function, stage_loss_function, start_session
from stagecost.training.settings import RunSettings
from stagecost.training.shrink import cut_of
from stagecost.trajectory import Trajectory, loss_trajectory


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run tells."""

    run: str
    epochs: int
    val_accuracy: float | None
    val_loss: float | None
    num_blocks: int
    kept_blocks: list[int]
    gamma: float
    cuts: list[dict[str, Any]]
    seconds: float
    history: list[dict[str, Any]]


def train(
    given: RunSettings | Mapping[str, Any],
    folder: str | Path,
    *,
    resume: bool = False,
    label: str = "train",
) -> TrainingResult:
    """Train a network in a run folder, or go on with a run there.

    Args:
        given: the settings; or those of them that differ from the defaults, by flag name.
        folder: where everything is written; see `stagecost.training.folder`.
        resume: go on where the run in the folder stopped; start it if it had not come to a checkpoint.
        label: name on the progress display.

    Raises:
        StageCostError: impossible settings, a folder that holds another run, a loss that is no number,
            or an interruption (everything is saved then).
    """
    return _train_in(RunFolder(Path(folder)), given, resume, label)


def _train_in(
    run: RunFolder, given: RunSettings | Mapping[str, Any], resume: bool, label: str
) -> TrainingResult:
    flat = given.to_flat() if isinstance(given, RunSettings) else given
    # Fabric starts further processes by running the same command; the first one alone owns the folder.
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    settings = claim(run, flat, resume) if first else settings_for(run, flat)
    reference = _given_reference(settings)
    data = load_data(settings.data, seed=settings.training.seed, splits=_splits(settings))
    training = settings.training
    check_shares(len(data.splits["train"]), training.batch_size, training.num_processes)
    checkpoint = read_checkpoint(run.last) if run.last.is_file() else None
    kept_blocks = None if checkpoint is None else checkpoint.kept_blocks
    session = start_session(settings, data, _loggers(settings, run), kept_blocks=kept_blocks)
    if checkpoint is not None:
        session.progress = restore_training(
            checkpoint, session.network, session.optimizer, session.average
        )
    if first:
        write_config(run, settings)
    if session.control is not None:
        if not session.progress.reference:
            session.progress.reference = reference or _trained_reference(run, settings)
        session.steer_gamma()
    shown = TrainingDisplay(
        label, training.epochs, quiet=not first, shows_gamma=session.control is not None
    )
    with shown as display:
        _train_epochs(session, run, display)
    history = session.progress.history
    return TrainingResult(
        run=str(run.path),
        epochs=session.progress.epoch,
        val_accuracy=history[-1]["val_accuracy"],
        val_loss=history[-1]["val_loss"],
        num_blocks=session.network.num_blocks,
        kept_blocks=list(session.network.block_indices),
        gamma=session.current_gamma,
        cuts=[entry["cut"] for entry in history if cut_of(entry) is not None],
        seconds=round(session.progress.seconds, 3),
        history=history,
    )


def _given_reference(settings: RunSettings) -> list[float]:
    """Return the losses of the plain run that is given to compare with, if one is needed and given."""
    given = settings.control.gamma_reference
    if settings.training.gamma != "auto" or given is None:
        return []
    return reference_losses(Path(given), settings)


def _trained_reference(run: RunFolder, settings: RunSettings) -> list[float]:
    """Train the plain run to compare with, as far as it is not trained yet, and return its losses."""
    plain = RunFolder(run.path / FOLDER, outer=run.path)
    # As if nothing had been trained in between: random numbers go on where they were.
    with torch.random.fork_rng(devices=[]):
        _train_in(plain, plain_settings(settings), resume=True, label="plain, to compare with")
    return reference_losses(plain.path, settings)


def _splits(settings: RunSettings) -> tuple[str, ...]:
    return ("train", "val") if settings.data.val_fraction > 0 else ("train",)


def _loggers(settings: RunSettings, run: RunFolder) -> list[Any]:
    if not settings.training.tensorboard:
        return []
    try:
        import tensorboard  # type: ignore[import-untyped]  # noqa: F401
        from lightning_fabric.loggers import TensorBoardLogger
    except ImportError:
        raise StageCostError(
            "--tensorboard needs a package: pip install 'stagecost[tensorboard]'"
        ) from None
    return [TensorBoardLogger(run.path, name="tensorboard", version="")]


def _train_epochs(session: Session, run: RunFolder, display: TrainingDisplay) -> None:
    progress = session.progress
    with interruption() as interrupted:
        while progress.epoch < session.settings.epochs:
            display.epoch_begins(progress.epoch, progress.batch, session.num_batches)
            train_epoch(session, run, display, interrupted)
            entry = finish_epoch(session)
            progress.history.append(entry)
            # The best one as it was judged, before a cut. Killed in between, the run repeats this epoch.
            if session.fabric.is_global_zero and _is_best(progress.history):
                _save(session, run.best)
            cut = cut_if_due(session)
            if session.fabric.is_global_zero:
                _save(session, run.last)
                write_metrics(run, progress.history)
            session.fabric.log_dict(
                {k: v for k, v in entry.items() if isinstance(v, int | float)}, step=progress.epoch
            )
            display.epoch_ends(entry)
            if cut is not None:
                display.cut(cut)
    if session.fabric.is_global_zero:
        write_metrics(run, progress.history)


def _is_best(history: Sequence[Mapping[str, Any]]) -> bool:
    *before, latest = (entry["val_accuracy"] for entry in history)
    return latest is not None and latest > max(before, default=-1.0)


def _save(session: Session, path: Path) -> None:
    save_checkpoint(
        path,
        session.network,
        session.optimizer,
        session.average,
        session.progress,
        {"image_format": session.data.format.to_json(), "gamma": session.gamma},
    )


def train_epoch(
    session: Session,
    run: RunFolder | None,
    display: TrainingDisplay,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Do the steps that the epoch under way still lacks; stop and save if interrupted.

    Raises:
        StageCostError: the loss is no number, or the run was interrupted.
    """
    fabric, progress, settings = session.fabric, session.progress, session.settings
    session.network.train()
    saved = started = time.monotonic()
    before = progress.seconds
    batches = epoch_batches(
        session.data.splits["train"],
        session.data.format,
        batch_size=settings.batch_size,
        seed=settings.seed,
        epoch=progress.epoch,
        augmentation=session.data.augmentation,
        first_batch=progress.batch,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        device=fabric.device,
    )
    for images, targets in batches:
        terms, correct = train_step(session, images, targets)
        add_to_pieces(progress.pieces, float(terms.losses[-1]), progress.batch, session.num_batches)
        progress.batch += 1
        _add(progress.sums, terms, correct, len(images))
        if complete_pieces(progress.batch, session.num_batches) == len(progress.pieces):
            session.steer_gamma()
        progress.seconds = before + time.monotonic() - started
        display.step(terms.losses.tolist(), 100 * progress.sums["correct"] / progress.sums["samples"])
        stop = _any_process(fabric, interrupted())
        due = time.monotonic() - saved > 60 * settings.checkpoint_minutes
        if run is not None and (stop or due):
            saved = time.monotonic()
            if fabric.is_global_zero:
                _save(session, run.last)
        if stop:
            raise StoppedError(_farewell(session, run))


def _farewell(session: Session, run: RunFolder | None) -> str:
    where = f"interrupted in epoch {session.progress.epoch + 1} of {session.settings.epochs}"
    if run is None:
        return f"{where}: nothing was saved"
    folder = run.path if run.outer is None else run.outer
    return f"{where}, everything is saved: go on with `stagecost train --resume --output {folder}`"


def _any_process(fabric: Fabric, flag: bool) -> bool:
    if fabric.world_size == 1:
        return flag
    return bool(fabric.all_reduce(torch.tensor(float(flag)), reduce_op="max") > 0)


def train_step(session: Session, images: Tensor, targets: Tensor) -> tuple[ObjectiveTerms, int]:
    """Do one step, and return the terms of the objective and how many images were right.

    With gamma = 0 the intermediate outputs are not even computed: plain training, to the last bit.

    Raises:
        StageCostError: the objective is not finite; the weights are those before the step.
    """
    rate = set_learning_rate(session)
    settings = session.settings
    terms, outputs = _objective(session, images, targets)
    if not torch.isfinite(terms.total):
        raise StageCostError(
            f"the objective is {terms.total.item()} in epoch {session.progress.epoch + 1}, batch "
            f"{session.progress.batch + 1}: lower --lr or --gamma, or use --clip-norm; the last good "
            "checkpoint is kept"
        )
    session.fabric.backward(terms.total)
    if settings.clip_norm:
        session.fabric.clip_gradients(session.model, session.optimizer, max_norm=settings.clip_norm)
    session.optimizer.step()
    session.optimizer.zero_grad()
    if session.variant.group_lasso:
        shrink_branches(session.network, rate * session.variant.group_lasso)
    if session.average is not None:
        session.average.update_parameters(session.network)
        session.progress.averaged = int(session.average.n_averaged)
    return terms, int((outputs[-1].argmax(dim=1) == targets).sum())


def _objective(session: Session, images: Tensor, targets: Tensor) -> tuple[ObjectiveTerms, Tensor]:
    """Compute the objective, and the outputs that it is made of, the terminal one last."""
    settings, stage = session.settings, session.stage_depths()
    vector = session.depth_vector()
    weights = [*([] if vector is None else [1.0]), *(weight for _, weight in stage)]
    depths = [*(k for k, _ in stage), session.network.num_blocks]
    outputs = session.model(
        images,
        depths=depths,
        constant_head=session.variant.constant_head,
        fused=session.fused,
        checkpointing=settings.activation_checkpointing,
        branch_scales=session.branch_scales(),
        depth_vector=vector,
    )
    # J_N with more weight on the terminal loss is a multiple of J_N with a smaller gamma.
    terminal_weight = session.terminal_weight()
    terms = stage_cost_objective(
        outputs,
        targets,
        session.current_gamma / terminal_weight,
        loss=loss_function(settings),
        stage_loss=stage_loss_function(session),
        depth_weights=weights,
        normalized=settings.normalized,
    )
    if terminal_weight != 1 and not settings.normalized:
        terms = replace(terms, total=terminal_weight * terms.total)
    return terms, outputs


def set_learning_rate(session: Session) -> float:
    """Set and return the learning rate of the coming step."""
    rate = learning_rate(session, session.progress.batch)
    for group in session.optimizer.param_groups:
        group["lr"] = rate
    return rate


def learning_rate(session: Session, batch: int) -> float:
    """Return the learning rate of a step of the epoch under way."""
    settings, steps = session.settings, session.num_batches
    return settings.peak_lr * learning_rate_factor(
        step=session.progress.epoch * steps + batch,
        total_steps=settings.epochs * steps,
        warmup_steps=round(settings.warmup_epochs * steps),
    )


def _add(sums: dict[str, float], terms: ObjectiveTerms, correct: int, samples: int) -> None:
    values = {
        "objective": float(terms.total.detach()) * samples,
        "loss": float(terms.losses[-1]) * samples,
        "correct": correct,
        "samples": samples,
    }
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value


def finish_epoch(session: Session) -> dict[str, Any]:
    """Validate, count the epoch as complete, and return its entry for the history.

    Raises:
        StageCostError: a weight is no finite number; nothing that was saved before is touched.
    """
    progress, network = session.progress, session.evaluated
    if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
        raise StageCostError(
            f"a weight is no finite number after epoch {progress.epoch + 1}: lower --lr; the last good "
            "checkpoint is kept"
        )
    started = time.monotonic()
    calibrate_unvisited(network, session)
    trajectory = validate(network, session)
    sums, samples, pieces = progress.sums, progress.sums["samples"], progress.pieces
    # Not what the optimiser holds: resumed behind the last step of an epoch, it has not stepped yet.
    rate = learning_rate(session, progress.batch - 1)
    gamma = session.current_gamma
    progress.epoch, progress.batch, progress.sums, progress.pieces = progress.epoch + 1, 0, {}, []
    progress.seconds += time.monotonic() - started
    return {
        "epoch": progress.epoch,
        "num_blocks": network.num_blocks,
        "seconds": round(progress.seconds, 3),
        "learning_rate": rate,
        "train_objective": sums["objective"] / samples,
        "train_loss": sums["loss"] / samples,
        "train_accuracy": 100 * sums["correct"] / samples,
        "train_pieces": pieces,
        "gamma": gamma,
        "val_loss": trajectory.losses[-1] if trajectory else None,
        "val_accuracy": trajectory.accuracies[-1] if trajectory else None,
        "val_losses": list(trajectory.losses) if trajectory else None,
        "val_accuracies": list(trajectory.accuracies) if trajectory else None,
        "wanted": None,
        "cut": None,
    }


def validate(network: ResidualNetwork, session: Session) -> Trajectory | None:
    """Measure the loss trajectory on the validation split, if there is one."""
    if "val" not in session.data.splits:
        return None
    loss = loss_function(session.settings)
    return loss_trajectory(network, session.validation_batches(), loss=loss)


def calibrate_unvisited(network: ResidualNetwork, session: Session) -> None:
    """Estimate head statistics of the outputs that plain training does not visit."""
    if unvisited := session.unvisited():
        calibrate_outputs(network, session.calibration_batches(), unvisited)
