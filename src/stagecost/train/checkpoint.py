"""The state of a training in one file: weights, optimiser, average, progress, settings. No pickle.

Optimiser tensors are stored under the name of their parameter, so they outlive the removal of blocks and
a change of device; learning rates follow from the step, so they are not stored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stagecost.errors import StageCostError, refusing
from stagecost.models.catalogue import check_finite, check_fit, read_description, rebuild, restore
from stagecost.network import ResidualNetwork, first_tensor
from stagecost.records import read_typed
from stagecost.storage import read_tensors, write_tensors
from stagecost.train.history import Progress
from stagecost.train.parsing import parse_settings
from stagecost.train.settings import RunSettings
from stagecost.train.state import State

FORMAT = "stagecost-checkpoint-2"
SCALE = ("scale", "_growth_tracker")  # what changes of torch's scaler of losses


def save_checkpoint(
    path: Path, state: State, settings: RunSettings, details: Mapping[str, object]
) -> None:
    """Write the state of a training with its settings and further JSON values, atomically."""
    network = state.network
    tensors = _prefixed("network", network.state_dict())
    tensors |= _prefixed("optimizer", optimizer_tensors(state.optimizer, network))
    tensors["rng"] = torch.get_rng_state()
    if state.average is not None:
        tensors |= _prefixed("average", state.average.module.state_dict())
    assert network.description is not None
    metadata = {
        "format": FORMAT,
        "description": network.description.to_json(),
        "progress": state.progress.to_json(),
        "settings": settings.to_flat(),
        "weight_decay": max(group["weight_decay"] for group in state.optimizer.param_groups),
        "unmoved": [n for n, p in network.named_parameters() if p not in state.optimizer.state],
        "loss_scale": _loss_scale(state),
        **details,
    }
    write_tensors(path, tensors, metadata)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: Mapping[str, Any]

    @property
    def gamma(self) -> float:
        """The stage weight of the run."""
        return self._number("gamma")

    @property
    def weight_decay(self) -> float:
        """Lambda as the optimiser used it."""
        return self._number("weight_decay")

    @property
    def own_stage_cost(self) -> bool:
        """Whether a caller's stage cost was minimised, which the settings do not know."""
        return bool(self.metadata.get("own_stage_cost"))

    def _number(self, name: str) -> float:
        value = self.metadata.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise StageCostError(f"{self.path} does not tell {name}: restore it from a copy")
        return float(value)

    @property
    def settings(self) -> RunSettings:
        """The settings that it belongs to."""
        errors = AttributeError, KeyError, TypeError, ValueError
        with refusing(f"{self.path} does not tell its settings", "restore it from a copy", *errors):
            settings = parse_settings(self.metadata["settings"])
            settings.check()
            return settings

    @property
    def progress(self) -> Progress:
        """How far the training had come."""
        errors = KeyError, TypeError, ValueError
        with refusing(f"{self.path} holds no training progress", "delete it", *errors):
            progress = Progress.from_json(self.metadata["progress"])
            epochs = self.settings.training.epochs
            if progress.epoch > epochs:
                raise ValueError(f"epoch {progress.epoch} of {epochs}")
            return progress

    @property
    def kept_blocks(self) -> tuple[int, ...] | None:
        """The paper's indices of the blocks that were there; None if all were."""
        return read_description(self.metadata.get("description"), self.path).kept_blocks

    @property
    def initial_blocks(self) -> tuple[int, ...] | None:
        """Which blocks the training began with; None is all, or not told by an earlier version.

        Raises:
            StageCostError: it is damaged.
        """
        what = "with which blocks the training began"
        blocks: tuple[int, ...] | None = self._told("initial_blocks", tuple[int, ...] | None, what)
        return blocks

    @property
    def unmoved(self) -> tuple[str, ...] | None:
        """Names of parameters that had no gradient yet; None is not told by an earlier version.

        Raises:
            StageCostError: it is damaged.
        """
        what = "which parameters had no gradient yet"
        names: tuple[str, ...] | None = self._told("unmoved", tuple[str, ...] | None, what)
        return names

    @property
    def loss_scale(self) -> tuple[float, int] | None:
        """By what fp16 multiplies the loss, and since how many steps; None otherwise, or not told.

        Raises:
            StageCostError: it is damaged.
        """
        what = "by what the loss is multiplied"
        scale: tuple[float, int] | None = self._told("loss_scale", tuple[float, int] | None, what)
        if scale is not None and not 0 < scale[0] < math.inf:
            raise StageCostError(f"{self.path} does not say {what}: restore it from a copy")
        return scale

    def _told(self, name: str, kind: Any, what: str) -> Any:
        """Return what the file tells, of its type; None where it tells nothing."""
        errors = TypeError, ValueError
        with refusing(f"{self.path} does not say {what}", "restore it from a copy", *errors):
            return read_typed(kind, self.metadata.get(name), name)

    def initial_network(self) -> ResidualNetwork:
        """Rebuild the network that the training began with, as it was cut; its numbers mean nothing.

        Raises:
            StageCostError: it is damaged, or an earlier version did not tell how the network was cut.
        """
        description = read_description(self.metadata.get("description"), self.path)
        if "initial_blocks" not in self.metadata and description.kept_blocks is not None:
            raise StageCostError(
                f"{self.path} is of an earlier version and does not say with which blocks the training "
                "began: go on with that version, or start anew into another --output"
            )
        numbers = sum(tensor.numel() for tensor in self.tensors.values())
        began = replace(description, kept_blocks=self.initial_blocks, target_norms=())
        network = rebuild(began, numbers)
        on_meta = first_tensor(network).is_meta
        return network.to_empty(device="cpu") if on_meta else network

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
        weights = self.part("average" if self.settings.training.ema_decay else "network")
        return restore(description, weights, self.path).eval()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file.

    Raises:
        StageCostError: it is missing, damaged, or no checkpoint of a run.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") == "stagecost-checkpoint":
        raise StageCostError(f"{path} was written by an earlier version of stagecost: train anew")
    if metadata.get("format") != FORMAT:
        raise StageCostError(f"{path} is no checkpoint of a stagecost run: check the path")
    return Checkpoint(path, tensors, metadata)


def restore_state(checkpoint: Checkpoint, state: State) -> None:
    """Put network, optimiser, average, progress and random numbers back to where they were.

    Raises:
        StageCostError: the file does not fit the network.
    """
    _load(state.network, checkpoint.part("network"), checkpoint.path)
    _check_optimizer_tensors(checkpoint, state)
    load_optimizer_tensors(state.optimizer, state.network, checkpoint.part("optimizer"))
    state.progress = checkpoint.progress
    if state.scaler is not None and (told := checkpoint.loss_scale) is not None:
        scale = dict(zip(SCALE, told, strict=True))
        state.scaler.load_state_dict({**state.scaler.state_dict(), **scale})
    if state.average is not None:
        _load(state.average.module, checkpoint.part("average"), checkpoint.path)
        state.average.n_averaged.fill_(state.progress.averaged)
    try:
        torch.set_rng_state(checkpoint.tensors["rng"])
    except (KeyError, TypeError, RuntimeError):
        raise StageCostError(
            f"{checkpoint.path} holds no state of the random numbers: delete it to start afresh"
        ) from None


def _loss_scale(state: State) -> list[float] | None:
    """Return by what fp16 multiplies the loss, and since how many steps."""
    if state.scaler is None:
        return None
    told = state.scaler.state_dict()
    return [told[name] for name in SCALE]


def _load(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    check_finite(tensors, path)
    what, remedy = f"{path} does not fit the run's network", "delete it to start afresh"
    with refusing(what, remedy, StageCostError):
        check_fit(module, tensors)
    state = module.state_dict()
    state.update(tensors)  # it also says in what versions modules name their tensors
    module.load_state_dict(state)


def optimizer_tensors(optimizer: Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Return the optimiser's state as tensors named "parameter/slot"."""
    return {
        f"{name}/{slot}": value
        for name, parameter in network.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


SLOTS = {"SGD": ("momentum_buffer",), "AdamW": ("step", "exp_avg", "exp_avg_sq")}
"""What an optimiser keeps of each parameter."""


def _check_optimizer_tensors(checkpoint: Checkpoint, state: State) -> None:
    """Refuse a state of the optimiser that is not of all parameters; there is none before a step."""
    tensors, path = checkpoint.part("optimizer"), checkpoint.path
    slots = SLOTS["SGD" if "momentum" in state.optimizer.param_groups[0] else "AdamW"]
    shapes = {
        f"{name}/{slot}": torch.Size([]) if slot == "step" else parameter.shape
        for name, parameter in state.network.named_parameters()
        if parameter.requires_grad
        for slot in slots
    }
    wrong = [key for key, value in tensors.items() if value.shape != shapes.get(key)]
    wrong += [key for key, value in tensors.items() if not value.is_floating_point()]
    unmoved = checkpoint.unmoved
    if unmoved is None:  # norms of a target that no step has drawn
        unmoved = tuple(key.rpartition("/")[0] for key in shapes if key.startswith("norms."))
    needed = {key for key in shapes.keys() - tensors.keys() if key.rpartition("/")[0] not in unmoved}
    wrong += sorted(needed) if tensors else []
    wrong += [key for key, value in tensors.items() if key.endswith("_sq") and bool((value < 0).any())]
    if wrong:
        raise StageCostError(
            f"{path} does not fit the run's network (optimizer state {wrong[0]}): delete it to start "
            "afresh"
        )
    check_finite(tensors, path)


def load_optimizer_tensors(
    optimizer: Optimizer, network: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimiser the state of those parameters that the network has."""
    parameters = dict(network.named_parameters())
    for key, value in tensors.items():
        name, slot = key.rsplit("/", 1)
        if name in parameters:
            # A step count stays on the CPU, where torch's optimisers keep it; slots follow the weights.
            device = value.device if value.dim() == 0 else parameters[name].device
            optimizer.state[parameters[name]][slot] = value.to(device).clone()


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
