"""One training step of each kind on one batch: forward, loss, backward, the optimiser's step."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD, Optimizer

from stagecost.benchmark.configurations import NUM_CLASSES, SEED, Configuration
from stagecost.benchmark.hook_heads import HookHeads, weighted_loss
from stagecost.network import ResidualNetwork
from stagecost.objective import parameter_groups, stage_cost_objective
from stagecost.sampling import sample_depths

Step = Callable[[], None]
Loss = Callable[[], Tensor]

LAMBDA = 5e-4
# So small that a few hundred steps on one batch change no activation's order of magnitude.
LEARNING_RATE = 1e-3
SAMPLED_DEPTHS = 2
WAYS: dict[str, dict[str, bool]] = {
    "exact": {"fused": True},
    "literal": {"fused": False},
    "checkpointed": {"fused": True, "checkpointing": True},
}
"""How the whole stage cost can be computed: options of `ResidualNetwork.forward` that choose the way."""


def plain_step(configuration: Configuration, device: torch.device) -> Step:
    """Return plain training: the terminal output and its loss."""
    network = configuration.network(device)
    images, targets = configuration.batch(device)
    return step(lambda: F.cross_entropy(network(images), targets), optimizer_of(network))


def exact_step(configuration: Configuration, device: torch.device, *, way: str = "exact") -> Step:
    """Return training with the whole stage cost.

    Args:
        configuration: of the network and the batch.
        device: where to compute.
        way: how the outputs are computed, a key of `WAYS`.
    """
    network = configuration.network(device)
    images, targets = configuration.batch(device)
    gamma, options = 1 / network.num_blocks, WAYS[way]

    def loss() -> Tensor:
        outputs = network(images, depths="all", **options)
        return stage_cost_objective(outputs, targets, gamma).total

    return step(loss, optimizer_of(network))


def sampled_step(
    configuration: Configuration, device: torch.device, samples: int = SAMPLED_DEPTHS
) -> Step:
    """Return training with a stage cost at a few depths, drawn anew for each step."""
    network = configuration.network(device)
    images, targets = configuration.batch(device)
    generator = torch.Generator().manual_seed(SEED)
    gamma, last, options = 1 / network.num_blocks, network.num_blocks, WAYS["exact"]

    def loss() -> Tensor:
        drawn = sample_depths([1.0] * last, samples, generator)
        outputs = network(images, depths=[*(k for k, _ in drawn), last], **options)
        weights = [weight for _, weight in drawn]
        return stage_cost_objective(outputs, targets, gamma, depth_weights=weights).total

    return step(loss, optimizer_of(network))


def separate_heads_step(configuration: Configuration, device: torch.device) -> Step:
    """Return training with a head of its own at every depth, attached by hooks."""
    network = configuration.network(device)
    images, targets = configuration.batch(device)
    model = HookHeads(network, images, NUM_CLASSES)
    optimizer = optimizer_of(network)
    optimizer.add_param_group({"params": list(model.heads.parameters()), "weight_decay": 0.0})
    gamma = 1 / network.num_blocks
    return step(lambda: weighted_loss(model(images), targets, gamma), optimizer)


def step(loss: Loss, optimizer: Optimizer) -> Step:
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
