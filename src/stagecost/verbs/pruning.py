"""`stagecost prune`: from a run to a small saved network, with everything that lies between."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from stagecost.calibration import recalibrate
from stagecost.data.batches import eval_batches
from stagecost.data.loading import DataBundle
from stagecost.errors import StageCostError
from stagecost.network import CONFIG_FILE, ResidualNetwork
from stagecost.prune import PruningPlan, carry_optimizer, plan_pruning
from stagecost.storage import write_json
from stagecost.training.checkpoint import load_optimizer_tensors
from stagecost.training.folder import RunFolder
from stagecost.training.gamma_control import GammaSettings
from stagecost.training.loop import finish_epoch, train_epoch
from stagecost.training.progress import TrainingDisplay
from stagecost.training.session import Session, make_optimizer, residual_decay, start_session
from stagecost.training.settings import RunSettings, Sizes, VariantSettings
from stagecost.training.shrink import ShrinkSettings
from stagecost.training.trained import CheckpointName, Trained, open_trained
from stagecost.trajectory import Loader, loss_trajectory, terminal_score

RECALIBRATION_IMAGES = 8192
FINETUNE_LR_FACTOR = 0.1


def prune_run(
    run: str | Path,
    output: str | Path,
    *,
    max_drop: float | None = None,
    keep_blocks: int | None = None,
    keep_per_stage: Sizes | None = None,
    finetune_epochs: int = 0,
    checkpoint: CheckpointName = "last",
    device: str = "auto",
) -> dict[str, Any]:
    """Plan on validation data, cut, recalibrate or fine-tune if asked for, measure, save.

    Returns:
        The object that `stagecost prune --json` prints.

    Raises:
        StageCostError: an impossible depth, or more accuracy lost than `max_drop` allows; nothing is
            saved then.
    """
    target = check_new_folder(Path(output))
    if finetune_epochs < 0:
        raise StageCostError(f"finetune_epochs is {finetune_epochs}: give a number of at least 0")
    trained = open_trained(run, checkpoint=checkpoint, device=device)
    if trained.checkpoint is None:
        raise StageCostError(f"{run} is a saved network: give the run that it was pruned from")
    bundle = trained.load("train", "val")
    val = eval_batches(bundle.splits["val"], trained.image_format, device=trained.device)
    plan = plan_pruning(
        trained.network,
        loss_trajectory(trained.network, val, loss=trained.loss),
        max_drop=max_drop,
        keep_blocks=keep_blocks,
        keep_per_stage=keep_per_stage,
        loader=val,
        loss=trained.loss,
    )
    pruned = _recalibrated(trained, plan, bundle, val)
    cut_accuracy = None
    if finetune_epochs:
        cut_accuracy, _ = terminal_score(pruned, val, loss=trained.loss)
        pruned = finetune(trained, pruned, bundle, finetune_epochs)
    accuracy, _ = terminal_score(pruned, val, loss=trained.loss)
    if max_drop is not None and plan.accuracy_before - accuracy > max_drop + 1e-9:
        raise StageCostError(
            f"the pruned network has {accuracy:.2f} % on validation data, more than max_drop {max_drop} "
            f"below {plan.accuracy_before:.2f} %: keep more blocks or allow a larger drop"
        )
    tuned = {"finetune_epochs": finetune_epochs, "accuracy_before_finetuning": cut_accuracy}
    found = {**_found(plan, accuracy, target), **tuned}
    pruned.save_pretrained(target, **trained.details(), pruning=found)
    write_json(RunFolder(trained.path).pruning, found)
    return found


def check_new_folder(path: Path) -> Path:
    """Return the path if a saved network can be written there.

    Raises:
        StageCostError: a file, or a folder that holds something, is there.
    """
    if path.exists() and not path.is_dir():
        raise StageCostError(f"{path} is a file: give a folder as --output")
    if (path / CONFIG_FILE).exists() or (path / "config.yaml").exists():
        raise StageCostError(f"{path} holds a network or a run already: give another --output")
    return path


def _found(plan: PruningPlan, accuracy: float, target: Path) -> dict[str, Any]:
    return {
        "kept_blocks": list(plan.kept_blocks),
        "num_blocks_before": plan.num_blocks,
        "accuracy_before": plan.accuracy_before,
        "accuracy_predicted": plan.accuracy_predicted,
        "accuracy_after": accuracy,
        "parameters_before": plan.parameters_before,
        "parameters_after": plan.parameters_after,
        "macs_before": plan.macs_before,
        "macs_after": plan.macs_after,
        "path": str(target),
    }


def _recalibrated(
    trained: Trained, plan: PruningPlan, bundle: DataBundle, val: Loader
) -> ResidualNetwork:
    """Apply the plan; in a staged network, estimate BatchNorm anew if that helps on validation data.

    Truncation changes no state that is left, so a homogeneous network needs no recalibration.
    """
    pruned = plan.apply(trained.network)
    if len(trained.network.stages) == 1:
        return pruned
    anew = plan.apply(trained.network)
    some = bundle.splits["train"].first(RECALIBRATION_IMAGES)
    recalibrate(anew, eval_batches(some, trained.image_format, device=trained.device))
    scores = [terminal_score(network, val, loss=trained.loss)[0] for network in (anew, pruned)]
    return anew.eval() if scores[0] >= scores[1] else pruned


def finetune(
    trained: Trained, pruned: ResidualNetwork, bundle: DataBundle, epochs: int
) -> ResidualNetwork:
    """Train a pruned network a little longer, for its terminal output, with the optimiser's old state.

    The learning rate starts at a tenth of the run's and falls to zero; nothing is written.
    """
    settings = finetune_settings(trained, epochs)
    session = start_session(settings, bundle, network=pruned)
    before = _optimizer_of_run(trained)
    carried = carry_optimizer(before, trained.network, pruned)
    for parameter, state in carried.state.items():
        session.optimizer.state[parameter] = state
    return train_in_memory(session, "fine-tune")


def train_in_memory(session: Session, label: str) -> ResidualNetwork:
    """Do all epochs of a session, write nothing, and return the network."""
    epochs = session.settings.epochs
    with TrainingDisplay(label, epochs) as display:
        for epoch in range(epochs):
            display.epoch_begins(epoch, 0, session.num_batches)
            train_epoch(session, None, display)
            display.epoch_ends(finish_epoch(session))
    return session.evaluated.eval()


def finetune_settings(
    trained: Trained, epochs: int, lr_factor: float = FINETUNE_LR_FACTOR
) -> RunSettings:
    """Return the settings of epochs after a cut, from those of the run that trained the network."""
    settings = trained.settings
    # What is left is trained for its own output, and stays as it is.
    plain = replace(
        settings, variant=VariantSettings(), shrink=ShrinkSettings(), control=GammaSettings()
    )
    return plain.with_training(
        gamma=0.0,
        epochs=epochs,
        lr=lr_factor * settings.training.peak_lr,
        weight_decay=_decay_of_run(trained),
        normalize_objective=False,
        warmup_epochs=0.0,
        ema_decay=0.0,
        num_processes=1,
    )


def _decay_of_run(trained: Trained) -> float:
    """Return the decay that the optimiser of a run had.

    A normalised objective divides lambda by 1 + Σ gamma·c_k. Without the stage cost nothing would divide
    it any more, and a lambda that was raised to make up for it would be as many times too large.
    """
    assert trained.checkpoint is not None
    settings, history = trained.settings, trained.checkpoint.progress.history
    num_blocks = history[0]["num_blocks"] if history else trained.network.num_blocks
    gamma = trained.checkpoint.gamma
    return residual_decay(settings.training, settings.variant, gamma, num_blocks)


def _optimizer_of_run(trained: Trained) -> Optimizer:
    assert trained.checkpoint is not None
    training = trained.settings.training
    optimizer = make_optimizer(
        trained.network, training, VariantSettings(), gamma=0.0, num_blocks=trained.network.num_blocks
    )
    load_optimizer_tensors(optimizer, trained.network, trained.checkpoint.part("optimizer"))
    return optimizer
