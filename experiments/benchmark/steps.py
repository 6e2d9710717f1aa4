"""One training step of each kind on one batch: forward, loss, backward, the optimiser's step."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from experiments.benchmark.configurations import NUM_CLASSES, SEED, Configuration
from stagecost.dynamics import Pass
from stagecost.head import OutputHead
from stagecost.network import ResidualNetwork
from stagecost.objective import StageCost, parameter_groups
from stagecost.trajectory import evaluation_mode

Step = Callable[[], None]

LAMBDA = 5e-4
# So small that a few hundred steps on one batch change no activation's order of magnitude.
LEARNING_RATE = 1e-3
SAMPLED_DEPTHS = 3
"""As `stagecost train` samples them."""
PASSES: dict[str, Pass] = {
    "checkpointed": Pass(collapsed=True, checkpointing=True),
    "literal": Pass(),
    "collapsed": Pass(collapsed=True),
}
"""How a pass with all outputs can be done."""
EXACT = "collapsed"
"""The pass by which training computes the exact cost."""


def plain_step(configuration: Configuration, device: torch.device) -> Step:
    """Return plain training: the terminal output and its loss."""
    network = configuration.network(device)
    images, targets = configuration.batch(device)
    return step(lambda: F.cross_entropy(network(images), targets), optimizer_of(network))


def exact_step(configuration: Configuration, device: torch.device, how: str) -> Step:
    """Return training with the whole, uniform stage cost; `how` is a key of `PASSES`."""
    network = configuration.network(device)
    images, targets = configuration.batch(device)
    cost = StageCost.uniform(network.num_blocks, 1 / network.num_blocks)

    def loss() -> Tensor:
        return cost(network(images, cost.outputs, how=PASSES[how]), targets).total

    return step(loss, optimizer_of(network))


def sampled_step(configuration: Configuration, device: torch.device) -> Step:
    """Return training with a stage cost at a few depths, drawn anew for each step."""
    network = configuration.network(device)
    images, targets = configuration.batch(device)
    generator = torch.Generator().manual_seed(SEED)
    cost = StageCost.uniform(network.num_blocks, 1 / network.num_blocks)

    def loss() -> Tensor:
        drawn = cost.sampled(SAMPLED_DEPTHS, generator)
        return drawn(network(images, drawn.outputs, how=PASSES["collapsed"]), targets).total

    return step(loss, optimizer_of(network))


def separate_heads_step(configuration: Configuration, device: torch.device) -> Step:
    """Return training with a head of its own at every depth, attached by hooks."""
    network = configuration.network(device)
    images, targets = configuration.batch(device)
    model = HookHeads(network, images, NUM_CLASSES)
    optimizer = optimizer_of(network)
    optimizer.add_param_group({"params": list(model.heads.parameters()), "weight_decay": 0.0})
    cost = StageCost.uniform(network.num_blocks, 1 / network.num_blocks)
    return step(lambda: cost(model(images), targets).total, optimizer)


def step(loss: Callable[[], Tensor], optimizer: Optimizer) -> Step:
    """Return one training step; no gradient is left behind, as in training."""

    def run() -> None:
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return run


def optimizer_of(network: ResidualNetwork) -> SGD:
    """Return training's default optimiser, with lambda on the residual branches alone."""
    groups = parameter_groups(network, LAMBDA)
    return SGD(groups, lr=LEARNING_RATE, momentum=0.9, nesterov=True)


class HookHeads(nn.Module):
    """What early-exit libraries do: a head of its own at x_0 … x_{N-1}, attached by forward hooks.

    The heads are those of the network, so that nothing but their number and their hooks differs: no
    projection is passed, and each brings parameters of its own.
    """

    def __init__(self, network: ResidualNetwork, images: Tensor, num_classes: int) -> None:
        """Attach a head to every state but the last, whose shapes a few images tell."""
        super().__init__()
        self.network = network
        with evaluation_mode(network):
            widths = [state.shape[1] for state in network.states(images[:1])][:-1]
        heads = (OutputHead(width, num_classes, num_outputs=1) for width in widths)
        self.heads = nn.ModuleList(heads).to(images.device)
        self._outputs: list[Tensor] = []
        tapped = [network.stem, *list(network.blocks.values())[:-1]]
        for module, head in zip(tapped, self.heads, strict=True):
            module.register_forward_hook(self._hook(head))

    def _hook(self, head: nn.Module) -> Any:
        def hook(module: nn.Module, inputs: object, state: Tensor) -> None:
            self._outputs.append(head(state, 0))

        return hook

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs of all heads, (N+1, B, classes), the network's own last."""
        self._outputs = []
        terminal = self.network(images)
        outputs = torch.stack([*self._outputs, terminal])
        self._outputs = []  # a hook holds on to what it saw
        return outputs
