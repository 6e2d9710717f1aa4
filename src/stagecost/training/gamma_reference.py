"""The plain run that `--gamma auto` compares with: which one it is, and what it tells.

It has the settings of the run that is steered, the seed among them, but gamma = 0. So both see the same
images in the same order, and the terminal losses of a few steps can be compared.
"""

from dataclasses import replace
from pathlib import Path

from stagecost.errors import StageCostError
from stagecost.training.checkpoint import read_checkpoint
from stagecost.training.folder import RunFolder
from stagecost.training.gamma_control import GammaSettings
from stagecost.training.settings import FREE_ON_RESUME, RunSettings, VariantSettings
from stagecost.training.shrink import ShrinkSettings

FOLDER = "plain"
"""Where a run keeps the plain run that was trained for it."""

# What makes a run faster or smaller, and not different.
_NO_MATTER = FREE_ON_RESUME | {"fused", "activation_checkpointing"}


def plain_settings(settings: RunSettings) -> RunSettings:
    """Return the settings of plain training: the same without anything that concerns the stage cost."""
    plain = replace(
        settings,
        variant=VariantSettings(group_lasso=settings.variant.group_lasso),
        shrink=ShrinkSettings(),
        control=GammaSettings(),
    )
    return plain.with_training(gamma=0.0, normalize_objective=False)


def reference_losses(folder: Path, settings: RunSettings) -> list[float]:
    """Return the terminal training loss of each piece of every epoch of a plain run.

    Args:
        folder: of the plain run.
        settings: of the run that is to be compared with it.

    Raises:
        StageCostError: it is no plain run of these settings, or it is not finished.
    """
    run = RunFolder(folder)
    found = run.settings()
    if found.training.gamma != 0:
        raise StageCostError(
            f"the reference {folder} was trained with gamma {found.training.gamma}: give a plain run, "
            "trained with --gamma 0"
        )
    wanted, there = plain_settings(settings).to_flat(), plain_settings(found).to_flat()
    for name, value in wanted.items():
        if value != there[name] and name not in _NO_MATTER:
            raise StageCostError(
                f"{name} is {there[name]} in the reference {folder}, not {value}: give a plain run of "
                "the same settings, or leave --gamma-reference out to have one trained"
            )
    history = read_checkpoint(run.last).progress.history if run.last.is_file() else []
    epochs = settings.training.epochs
    if len(history) < epochs:
        raise StageCostError(
            f"the reference {folder} has {len(history)} of {epochs} epochs: let it finish, `stagecost "
            f"train --resume --output {folder}`"
        )
    if any("train_pieces" not in entry for entry in history):
        raise StageCostError(
            f"the reference {folder} does not tell its loss within an epoch: train it again"
        )
    return [loss for entry in history for loss in entry["train_pieces"]]
