"""The state of a training, which the loop moves on: network, optimiser, average, device, progress."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stagecost.cut import Cut, Stages
from stagecost.dynamics import Pass
from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork
from stagecost.objective import parameter_groups
from stagecost.train.history import Progress
from stagecost.train.settings import TrainingSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Asked(nn.Module):
    """A network beside what it is asked for: wrappers hand on tensors, and know nothing of cuts."""

    def __init__(self, network: ResidualNetwork) -> None:
        """Take a network."""
        super().__init__()
        self.network = network
        self.cuts: tuple[Cut, ...] = (Cut.whole(),)
        self.how = Pass()

    def forward(self, images: Tensor, scales: Tensor | None = None) -> Tensor:
        """Return the outputs (number of cuts, B, classes)."""
        outputs: Tensor = self.network(images, self.cuts, how=self.how, scales=scales)
        return outputs


@dataclass
class State:
    """What a running training holds."""

    fabric: "Fabric"  #: device, precision and processes
    network: ResidualNetwork  #: the bare network
    asked: Asked  #: the network beside the cuts that it is asked for
    model: nn.Module  #: the same as Fabric wraps it, through which training calls go
    optimizer: Optimizer  #: of its parameters
    average: AveragedModel | None  #: the moving average, if one is kept
    indices: tuple[int, ...]  #: the paper's indices k of the blocks at the start, whatever has left
    stages: Stages  #: positions of the blocks at the start, grouped
    progress: Progress = field(default_factory=Progress)  #: how far it has come
    targets: tuple[Cut, ...] = ()  #: cuts of the network at the start that are trained for
    _mark: float = field(default_factory=monotonic)

    @property
    def evaluated(self) -> ResidualNetwork:
        """The network that is judged and used in the end."""
        return self.network if self.average is None else self.average.module  # type: ignore[return-value]

    @property
    def networks(self) -> list[ResidualNetwork]:
        """The network that is trained, and the moving average if there is one."""
        return [self.network] if self.average is None else [self.network, self.evaluated]

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """What scales the loss in fp16, so that small gradients are not lost; None otherwise."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    @property
    def left(self) -> tuple[int, ...]:
        """Positions, as they were at the start, of the blocks that are left."""
        places = {k: position for position, k in enumerate(self.indices)}
        return tuple(places[k] for k in self.network.block_indices)

    def outputs(
        self, images: Tensor, cuts: Sequence[Cut], how: Pass, scales: Tensor | None = None
    ) -> Tensor:
        """Compute the outputs of some cuts, (number of cuts, B, classes), for training."""
        self.asked.cuts, self.asked.how = tuple(cuts), how
        outputs: Tensor = self.model(images, scales)
        return outputs

    def start_clock(self) -> None:
        """Let no time count that was before."""
        self._mark = monotonic()

    def count_time(self) -> None:
        """Add the time since the clock was last looked at."""
        now = monotonic()
        self.progress.seconds += now - self._mark
        self._mark = now


def start(
    fabric: "Fabric",
    network: ResidualNetwork,
    training: TrainingSettings,
    *,
    weight_decay: float,
    kept_blocks: Sequence[int] | None = None,
    targets: Sequence[Cut] = (),
) -> State:
    """Put a network on its device, with an optimiser and, if asked for, an average.

    Args:
        fabric: launched.
        network: as it is at the start of the training; it is not copied.
        training: says which optimiser, and whether compiled and averaged.
        weight_decay: lambda, as the optimiser is to use it.
        kept_blocks: the paper's k of the blocks that are left in a training that goes on; None: all.
        targets: cuts of the network at the start that are trained for, see `by_layer`.
    """
    indices, stages = network.block_indices, network.stage_positions
    left = tuple(k for k, i in enumerate(indices) if kept_blocks is None or i in kept_blocks)
    if len(left) < len(indices):  # else norms of target cuts, which are of the whole one, stay
        network.remove_all_but(Cut(left))
    # On CPUs, too, convolutions of few channels are much faster with channels last.
    network.to(memory_format=torch.channels_last)
    freeze(network, stem=training.freeze_stem, norms=training.freeze_norms)
    if training.compile:  # when it first meets a shape; parameters keep their names
        network.compile(dynamic=False)
    now = [cut.among_left(left) for cut in targets]
    optimizer = make_optimizer(network, training, weight_decay, now)
    asked, model, optimizer = wrap(fabric, network, optimizer)
    average = None
    if training.ema_decay:
        average_of = get_ema_multi_avg_fn(training.ema_decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(network, multi_avg_fn=average_of, use_buffers=True)
    return State(
        fabric, network, asked, model, optimizer, average, indices, stages, targets=tuple(targets)
    )


def make_optimizer(
    network: ResidualNetwork,
    training: TrainingSettings,
    weight_decay: float,
    targets: Sequence[Cut] = (),
) -> Optimizer:
    """Build the optimiser; lambda goes to the residual branches alone (see `parameter_groups`)."""
    groups = by_layer(network, parameter_groups(network, weight_decay), training.layer_decay, targets)
    if training.optimizer == "sgd":
        return SGD(groups, lr=training.peak_lr, momentum=0.9, nesterov=True)
    return AdamW(groups, lr=training.peak_lr)


def by_layer(
    network: ResidualNetwork,
    groups: list[dict[str, Any]],
    decay: float,
    targets: Sequence[Cut] = (),
) -> list[dict[str, Any]]:
    """Split groups of parameters by layer, each with its part of the learning rate, `lr_scale`.

    Layers are the stem, each block, and the head: the head learns at the full rate, the last block at
    `decay` of it, the one before at decay², and so on. Those of a target learn at the rates that they
    have in the target alone; of several targets, in the smallest.
    """
    if decay == 1:
        return groups
    cuts = [*targets, network.resolve(Cut.whole())]
    behind = {id(p): 0 for p in network.head.parameters()}
    for k, block in reversed(list(enumerate(network.blocks.values()))):
        # Of two that are the smallest, the one with fewer blocks behind.
        places = ((len(cut.blocks), sum(j >= k for j in cut.blocks)) for cut in cuts if cut.acts(k))
        _, layer = min(places)
        behind = {id(p): layer for p in block.parameters()} | behind
    for norm, other in (pair for cut in network.targets for pair in network.norms_of(cut).items()):
        pairs = zip(norm.parameters(), other.parameters(), strict=True)
        behind |= {id(own): behind[id(p)] for p, own in pairs if id(p) in behind}
    layers: dict[tuple[int, int], list[nn.Parameter]] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            layer = behind.get(id(parameter), 1 + min(len(cut.blocks) for cut in cuts))
            layers.setdefault((number, layer), []).append(parameter)
    return [
        {**groups[number], "params": parameters, "lr_scale": decay**layer}
        for (number, layer), parameters in layers.items()
    ]


def freeze(network: ResidualNetwork, *, stem: bool, norms: bool) -> None:
    """Leave the stem out of the training, or the running statistics of all norms, which act then.

    To be called again whenever the network was put into training mode.
    """
    if stem:
        network.stem.requires_grad_(False)
    parts = [network] if norms else [network.stem] if stem else []
    for module in (module for part in parts for module in part.modules()):
        if isinstance(module, _BatchNorm):
            module.eval()


def freeze_unused(network: ResidualNetwork, cuts: Sequence[Cut], image_shape: Sequence[int]) -> None:
    """Leave parameters out of the training that none of the outputs depends on, as of an unused pooler.

    Several processes would wait for their gradients.

    Args:
        network: is asked for its outputs in eval mode.
        cuts: whose outputs are trained.
        image_shape: (C, H, W).
    """
    moved = [p for p in network.parameters() if p.requires_grad]
    training, image = network.training, torch.zeros(1, *image_shape, device=moved[0].device)
    outputs = network.eval()(image, cuts)
    gradients = torch.autograd.grad(outputs.sum(), moved, allow_unused=True)
    network.train(training)
    for parameter, gradient in zip(moved, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def wrap(
    fabric: "Fabric", network: ResidualNetwork, optimizer: Optimizer
) -> tuple[Asked, nn.Module, Optimizer]:
    """Let Fabric wrap a network and its optimiser."""
    asked = Asked(network)
    model, wrapped = fabric.setup(asked, optimizer)
    return asked, model, wrapped


@torch.no_grad()
def check_batch(network: ResidualNetwork, image_shape: Sequence[int], batch_size: int) -> None:
    """Refuse a batch of which a BatchNorm would see one value a channel, so that there is no variance.

    Args:
        network: is left as it is.
        image_shape: (C, H, W).
        batch_size: images that are normalised together.
    """
    if batch_size > 1:
        return
    twin = copy.deepcopy(network).to("meta").eval()
    pixels: list[int] = []
    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(lambda _, given: pixels.append(given[0][0, 0].numel()))
    twin(torch.empty(1, *image_shape, device="meta"), depths="all")
    if min(pixels, default=2) < 2:
        raise StageCostError(
            "a batch of one image gives a BatchNorm one value a channel, which has no variance: give "
            "more images, a larger --batch-size, or larger images"
        )
