"""The state of a training run in one file: weights, optimiser, average, progress. No pickle.

Optimiser tensors are stored under the name of their parameter, so they outlive the removal of blocks and
a change of device; learning rates follow from the step, so they are not stored.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from stagecost.errors import StageCostError
from stagecost.models import load_weights, read_description, restore
from stagecost.network import ResidualNetwork
from stagecost.storage import read_tensors, write_tensors

FORMAT = "stagecost-checkpoint"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: complete epochs.
        batch: steps done in the epoch under way.
        sums: of the epoch under way: objective, loss, correct, samples.
        seconds: spent in training, over all sessions.
        history: one entry an epoch, see `stagecost.training.loop`.
        averaged: how often the moving average was updated.
        pieces: mean terminal loss of each piece of the epoch under way, see
            `stagecost.training.gamma_control`.
        reference: those of the plain run in every epoch, by which gamma is steered; else empty.
    """

    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    averaged: int = 0
    pieces: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    network: ResidualNetwork,
    optimizer: Optimizer,
    average: AveragedModel | None,
    progress: Progress,
    details: dict[str, Any],
) -> None:
    """Write the state of a run, atomically.

    Args:
        path: a file that is replaced only when the new one is whole.
        network: the network without any wrapper.
        optimizer: of its parameters.
        average: the moving average of the network, if one is kept.
        progress: how far the run has come.
        details: JSON values to store beside it, such as the format of the images.
    """
    tensors = _prefixed("network", network.state_dict())
    tensors |= _prefixed("optimizer", optimizer_tensors(optimizer, network))
    tensors["rng"] = torch.get_rng_state()
    if average is not None:
        tensors |= _prefixed("average", average.module.state_dict())
    assert network.description is not None
    metadata = {
        "format": FORMAT,
        "description": network.description.to_json(),
        "progress": asdict(progress),
        **details,
    }
    write_tensors(path, tensors, metadata)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    @property
    def gamma(self) -> float:
        """The stage weight of the run."""
        try:
            return float(self.metadata["gamma"])
        except (KeyError, TypeError, ValueError):
            raise StageCostError(f"{self.path} does not tell gamma: restore it from a copy") from None

    @property
    def progress(self) -> Progress:
        """How far the run had come."""
        try:
            return Progress(**self.metadata["progress"])
        except (KeyError, TypeError):
            raise StageCostError(f"{self.path} holds no training progress: delete it") from None

    @property
    def kept_blocks(self) -> tuple[int, ...] | None:
        """The paper's indices of the blocks that were there; None if all were."""
        return read_description(self.metadata.get("description"), self.path).kept_blocks

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors of one part, such as "network", under their own names."""
        start = prefix + "."
        return {k.removeprefix(start): t for k, t in self.tensors.items() if k.startswith(start)}

    def network(self) -> ResidualNetwork:
        """Rebuild the network that is to be used: the moving average if there is one.

        Raises:
            StageCostError: the file is damaged.
        """
        description = read_description(self.metadata.get("description"), self.path)
        weights = self.part("average") or self.part("network")
        return restore(description, weights, self.path).eval()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file.

    Raises:
        StageCostError: it is missing, damaged, or no checkpoint of a run.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise StageCostError(f"{path} is no checkpoint of a stagecost run: check the path")
    return Checkpoint(path, tensors, metadata)


def restore_training(
    checkpoint: Checkpoint,
    network: ResidualNetwork,
    optimizer: Optimizer,
    average: AveragedModel | None,
) -> Progress:
    """Put network, optimiser, average and random numbers back to where they were.

    Raises:
        StageCostError: the file does not fit the network.
    """
    _load(network, checkpoint.part("network"), checkpoint.path)
    optimizer_part = checkpoint.part("optimizer")
    _check_optimizer_tensors(optimizer_part, network, checkpoint.path)
    load_optimizer_tensors(optimizer, network, optimizer_part)
    progress = checkpoint.progress
    if average is not None:
        _load(average.module, checkpoint.part("average"), checkpoint.path)
        average.n_averaged.fill_(progress.averaged)
    try:
        torch.set_rng_state(checkpoint.tensors["rng"])
    except (KeyError, TypeError, RuntimeError):
        raise StageCostError(
            f"{checkpoint.path} holds no state of the random numbers: delete it to start afresh"
        ) from None
    return progress


def _load(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        load_weights(module, tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise StageCostError(
            f"{path} does not fit the run's network ({reason}): delete it to start afresh"
        ) from None


def optimizer_tensors(optimizer: Optimizer, network: ResidualNetwork) -> dict[str, Tensor]:
    """Return the optimiser's state as tensors named "parameter/slot"."""
    return {
        f"{name}/{slot}": value
        for name, parameter in network.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _check_optimizer_tensors(tensors: dict[str, Tensor], network: ResidualNetwork, path: Path) -> None:
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        if not slot or name not in shapes or value.shape not in (shapes[name], torch.Size([])):
            raise StageCostError(
                f"{path} does not fit the run's network (optimizer state {key}): delete it to start "
                "afresh"
            )


def load_optimizer_tensors(
    optimizer: Optimizer, network: ResidualNetwork, tensors: dict[str, Tensor]
) -> None:
    """Give the optimiser the state of those parameters that the network has."""
    parameters = dict(network.named_parameters())
    for key, value in tensors.items():
        name, slot = key.rsplit("/", 1)
        if name in parameters:
            # A step count stays on the CPU, where torch's optimisers keep it; slots follow the weights.
            device = value.device if value.dim() == 0 else parameters[name].device
            optimizer.state[parameters[name]][slot] = value.to(device).clone()


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
