"""What a running training holds, built from the settings: network, optimiser, average, device."""

import logging
import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stagecost.data.batches import eval_batches, num_batches
from stagecost.data.loading import DataBundle
from stagecost.drop_path import draw_branch_scales, drop_rates
from stagecost.errors import StageCostError
from stagecost.kernels import can_compile, compiled_kernels
from stagecost.macs import count_macs
from stagecost.models import create_model
from stagecost.network import ResidualNetwork
from stagecost.objective import LossFunction, objective_scale, parameter_groups, stage_weights
from stagecost.random_streams import Stream, torch_generator
from stagecost.sampling import sample_depths
from stagecost.stage_losses import StageLoss, distilled, hinged
from stagecost.stages import first_blocks
from stagecost.surgery import keep_blocks
from stagecost.training.checkpoint import Progress
from stagecost.training.compiling import compile_in_place
from stagecost.training.devices import make_fabric, select_device
from stagecost.training.gamma_control import (
    START,
    GammaSettings,
    complete_pieces,
    pieces_of,
    strength_after,
)
from stagecost.training.schedule import gamma_factor
from stagecost.training.settings import RunSettings, TrainingSettings, VariantSettings
from stagecost.training.shrink import ShrinkSettings, at_most_half
from stagecost.trajectory import Loader

CALIBRATION_IMAGES = 2048
FEW_CALIBRATION_IMAGES = 512

# Multiply-accumulate operations, forwards and backwards; a few minutes on one core.
LONG_TRAINING = 10**13

_log = logging.getLogger("stagecost")


@dataclass
class Session:
    """What a running training holds.

    `network` is the bare network; `model` the same one as Fabric wraps it, through which training calls
    go; `average` the moving average, if one is kept. `num_blocks` is N at the start, whatever has left.
    `fused` tells whether intermediate outputs come from compiled kernels. `control` is there if gamma is
    steered; `gamma` is then the one that acts now.
    """

    fabric: Fabric
    settings: TrainingSettings
    variant: VariantSettings
    shrink: ShrinkSettings
    gamma: float
    num_blocks: int
    data: DataBundle
    network: ResidualNetwork
    model: nn.Module
    optimizer: Optimizer
    average: AveragedModel | None
    progress: Progress
    fused: bool = False
    control: GammaSettings | None = None

    @property
    def evaluated(self) -> ResidualNetwork:
        """The network that is judged and used in the end."""
        return self.network if self.average is None else self.average.module  # type: ignore[return-value]

    @property
    def current_gamma(self) -> float:
        """The stage weight of the coming step, by the schedule."""
        done = self.progress.epoch * self.num_batches + self.progress.batch
        progress = done / (self.settings.epochs * self.num_batches)
        return self.gamma * gamma_factor(self.variant.gamma_schedule, progress)

    def steer_gamma(self) -> None:
        """Set gamma from all complete pieces, by the rule of `stagecost.training.gamma_control`.

        A normalised objective divides lambda, too, by 1 + gamma·Σ c_k, so lambda moves with gamma.
        """
        if self.control is None:
            return
        progress = self.progress
        complete = progress.pieces[: complete_pieces(progress.batch, self.num_batches)]
        losses = [loss for entry in progress.history for loss in entry["train_pieces"]] + complete
        guess, epsilon = math.log(self.data.num_classes), self.control.gamma_epsilon
        pieces = self.settings.epochs * pieces_of(self.num_batches)
        strength = strength_after(losses, progress.reference, guess, epsilon, pieces)
        # Losses differ among processes: the first one decides for all.
        strength = self.fabric.broadcast(strength)
        self.gamma = strength / self.variant.total_weight(self.num_blocks)
        decay = residual_decay(self.settings, self.variant, self.gamma, self.num_blocks)
        for group in self.optimizer.param_groups:
            if group["name"] == "residual":
                group["weight_decay"] = decay

    def depth_weights(self) -> list[float]:
        """Return c_0 … c_M of the network as it is now; c_M is what outputs that left add to the last.

        A block that left counts as one that does nothing, so its output is that of the block before it.
        The weights of both fall together, and J_N stays the objective that it was. When the rule of
        `stagecost.training.shrink` cuts, outputs to which the next cut cannot go bear no stage cost, and
        when no cut can follow, no output does.
        """
        folded = [0.0] * (self.network.num_blocks + 1)
        kept = self.network.block_indices
        for depth, weight in enumerate(self.variant.weights(self.num_blocks)):
            folded[bisect_left(kept, depth)] += weight  # how many blocks are left before it
        least = at_most_half([1], [self.network.num_blocks])[0] if self.shrink.shrink else 0
        if not self.shrink.presses(self.progress.epoch, self.settings.epochs):
            least = self.network.num_blocks
        folded[:least] = [0.0] * least
        if self._vector_left() == self.network.blocks_per_stage:
            folded[-1] += 1.0  # what the vector names is all that is left
        return folded

    def _vector_left(self) -> tuple[int, ...] | None:
        """Return the vector of depths that bears the stage cost, in the network as it is now."""
        vector, sizes = self.variant.depth_vector, self.network.blocks_per_stage
        return None if vector is None else tuple(map(min, vector, sizes))

    def depth_vector(self) -> tuple[int, ...] | None:
        """Return the vector of depths whose output bears a stage cost in the coming step, or None."""
        vector = self._vector_left()
        presses = self.shrink.presses(self.progress.epoch, self.settings.epochs)
        idle = not self.current_gamma or vector == self.network.blocks_per_stage
        return None if idle or not presses else vector

    def stage_depths(self) -> list[tuple[int, float]]:
        """Return the depths that bear a stage cost in the coming step, with their c_k."""
        if not self.current_gamma:
            return []
        weights = self.depth_weights()[:-1]
        if not self.variant.sampled_depths:
            return [(k, weight) for k, weight in enumerate(weights) if weight]
        place = (self.progress.epoch, self.progress.batch)
        generator = torch_generator(self.settings.seed, Stream.DEPTHS, *place)
        return sample_depths(weights, self.variant.sampled_depths, generator)

    def branch_scales(self) -> Tensor | None:
        """Return s_k of each block for this process's images of the coming step, (N, B); None for 1."""
        if not self.variant.drop_path:
            return None
        rates = drop_rates(self.variant.drop_path, self.num_blocks)
        size = min(self.settings.batch_size, len(self.data.splits["train"]))
        place = (self.progress.epoch, self.progress.batch)
        generator = torch_generator(self.settings.seed, Stream.BRANCHES, *place)
        # Drawn for the whole batch, so that the processes together see what one would see.
        scales = draw_branch_scales([rates[k] for k in self.network.block_indices], size, generator)
        fabric = self.fabric
        return scales[:, fabric.global_rank :: fabric.world_size].to(fabric.device)

    def terminal_weight(self) -> float:
        """Return the weight of the terminal loss in J_N: 1, and gamma for each output that left."""
        return 1.0 + self.current_gamma * self.depth_weights()[-1]

    def unvisited(self) -> list[int]:
        """Return the depths whose head statistics training does not keep up to date."""
        sampled = self.variant.sampled_depths > 0
        kept = set() if sampled else {k for k, _ in self.stage_depths()}
        return [k for k in range(self.network.num_blocks) if k not in kept]

    @property
    def num_batches(self) -> int:
        """Steps of an epoch."""
        return num_batches(len(self.data.splits["train"]), self.settings.batch_size)

    def validation_batches(self) -> Loader:
        """Load the validation images, in order."""
        return eval_batches(self.data.splits["val"], self.data.format, device=self.fabric.device)

    def calibration_batches(self) -> Loader:
        """Load some training images, without augmentation, to estimate BatchNorm statistics from.

        Fewer where blocks leave by the rule: it does not look at the outputs that need them.
        """
        count = FEW_CALIBRATION_IMAGES if self.shrink.shrink else CALIBRATION_IMAGES
        some = self.data.splits["train"].first(count)
        return eval_batches(some, self.data.format, device=self.fabric.device)


def start_session(
    settings: RunSettings,
    data: DataBundle,
    loggers: list[Any] | None = None,
    network: ResidualNetwork | None = None,
    kept_blocks: tuple[int, ...] | None = None,
) -> Session:
    """Build network, optimiser and average as the settings say, on their device.

    Args:
        settings: of the run.
        data: its images.
        loggers: Fabric's loggers.
        network: the network to train, if it is there already; else it is created from the seed.
        kept_blocks: those that are left in a run that goes on; None if all are. What depends on N, as
            gamma does, depends on the N at the start.
    """
    training = settings.training
    training.check()
    settings.variant.check()
    settings.shrink.check(training.epochs)
    settings.control.check()
    if training.gamma == "auto" and settings.variant.gamma_schedule != "constant":
        raise StageCostError(
            f"gamma auto follows no schedule, but gamma_schedule is {settings.variant.gamma_schedule}: "
            "leave one of them out"
        )
    if settings.shrink.shrink and "val" not in data.splits:
        raise StageCostError("shrink needs validation images to decide by: raise --val-fraction above 0")
    fabric = make_fabric(training.device, training.precision, training.num_processes, loggers)
    torch.manual_seed(training.seed)
    if network is None:
        network = create_network(settings, data)
    fabric.launch()  # further processes are started only for a network that can be built
    num_blocks = network.num_blocks
    if settings.variant.first_depth >= num_blocks:
        raise StageCostError(
            f"first_depth is {settings.variant.first_depth}, but there are {num_blocks} blocks: "
            "give a smaller number"
        )
    settings.shrink.check_cuts([len(stage) for stage in network.stages])
    _check_depth_vector(settings, network)
    gamma = _first_gamma(settings, num_blocks)
    fused = gamma > 0 and wants_fused(training, network, data)
    if kept_blocks is not None:
        keep_blocks(network, kept_blocks)
    needs_no_gamma = ("group_lasso", "drop_path")
    others = {name: getattr(settings.variant, name) for name in needs_no_gamma}
    if gamma == 0 and settings.variant != VariantSettings(**others):
        _log.warning("gamma is 0: the variants of the stage cost have nothing to act on")
    # On CPUs, too, convolutions of few channels are much faster with channels last.
    network.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, training, settings.variant, gamma, num_blocks)
    if training.compile:
        compile_in_place(network, fabric.device)
    if training.data_on_device:
        data = data.to(fabric.device)
    model, optimizer = fabric.setup(network, optimizer)
    average = None
    if training.ema_decay:
        average_of = get_ema_multi_avg_fn(training.ema_decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(network, multi_avg_fn=average_of, use_buffers=True)
    return Session(
        fabric=fabric,
        settings=training,
        variant=settings.variant,
        shrink=settings.shrink,
        gamma=gamma,
        num_blocks=num_blocks,
        data=data,
        network=network,
        model=model,
        optimizer=optimizer,
        average=average,
        progress=Progress(),
        fused=fused,
        control=settings.control if training.gamma == "auto" else None,
    )


def _check_depth_vector(settings: RunSettings, network: ResidualNetwork) -> None:
    vector = settings.variant.depth_vector
    if vector is None:
        return
    if settings.shrink.shrink:
        raise StageCostError(
            "shrink looks for the depth that depth_vector gives: leave one out, or cut with cut_at"
        )
    if len(first_blocks(network.stages, vector)) == network.num_blocks:
        raise StageCostError(
            f"depth_vector {','.join(map(str, vector))} is the whole network: give fewer blocks"
        )


def _first_gamma(settings: RunSettings, num_blocks: int) -> float:
    gamma = settings.training.gamma
    if gamma != "auto":
        return 1 / num_blocks if gamma is None else gamma
    return START / settings.variant.total_weight(num_blocks)


def wants_fused(training: TrainingSettings, network: ResidualNetwork, data: DataBundle) -> bool:
    """Decide whether intermediate outputs come from kernels that are compiled at the first step.

    "auto" is for long trainings on a CPU with a compiler: compiling takes some twenty seconds. It
    follows from settings and machine alone, so that a run that goes on decides as it did before.

    Raises:
        StageCostError: they are asked for, and nothing can compile here.
    """
    if training.fused != "auto":
        if training.fused == "yes":
            compiled_kernels()
        return training.fused == "yes"
    if select_device(training.device).type != "cpu" or training.precision != "32":
        return False
    if training.compile:
        return False  # the literal loop is compiled as a part of the whole
    shape = (data.format.channels, data.format.size, data.format.size)
    images = training.epochs * len(data.splits["train"])
    return 3 * images * count_macs(network, shape) >= LONG_TRAINING and can_compile()


def create_network(settings: RunSettings, data: DataBundle) -> ResidualNetwork:
    """Build the network that the settings name for these images."""
    arguments = settings.model.arguments()
    arguments |= {"num_classes": data.num_classes, "in_channels": data.format.channels}
    return create_model(settings.model.model, **arguments)


def make_optimizer(
    network: ResidualNetwork,
    training: TrainingSettings,
    variant: VariantSettings,
    gamma: float,
    num_blocks: int,
) -> Optimizer:
    """Build the optimiser; lambda goes to the residual branches alone (see `parameter_groups`)."""
    groups = parameter_groups(network, residual_decay(training, variant, gamma, num_blocks))
    if training.optimizer == "sgd":
        return SGD(groups, lr=training.peak_lr, momentum=0.9, nesterov=True)
    return AdamW(groups, lr=training.peak_lr)


def residual_decay(
    training: TrainingSettings, variant: VariantSettings, gamma: float, num_blocks: int
) -> float:
    """Return lambda as the optimiser is to use it.

    A normalised objective divides lambda, too, by its scale, which is that of all `num_blocks` at the
    start even if some have left.
    """
    if not training.normalized:
        return training.weight_decay
    weights = stage_weights(gamma, num_blocks, variant.weights(num_blocks))
    weights += [] if variant.depth_vector is None else [gamma]
    return training.weight_decay / objective_scale(weights)


def stage_loss_function(session: Session) -> StageLoss | None:
    """Return what intermediate outputs are punished for; None if it is the training loss."""
    loss = loss_function(session.settings)
    kinds = {"same": None, "distilled": distilled(loss), "hinged": hinged(loss)}
    return kinds[session.variant.stage_loss]


def loss_function(settings: TrainingSettings) -> LossFunction:
    """Return the cross-entropy of the settings."""
    if settings.label_smoothing == 0:
        return F.cross_entropy
    return partial(F.cross_entropy, label_smoothing=settings.label_smoothing)
