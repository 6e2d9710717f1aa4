"""earlyon beside the stage cost: its own trainers and routing, with its exits and heads.

Its trainers run whole epochs; here an epoch is a few batches, and its own trainer of the bare backbone
is the reference. Its fair use is two stages with about three exits; joint training and an exit at every
block are measured as well, since these are what the stage cost does. Accuracies are not compared: the
weights here are the initial ones, so exits are made to fire by their thresholds.
"""

import importlib.metadata
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stagecost.benchmark.configurations import NUM_CLASSES, Configuration
from stagecost.benchmark.latency import BATCHES, KEPT_BLOCKS, forward_seconds, truncated
from stagecost.benchmark.plain_twin import plain_twin
from stagecost.benchmark.quantities import Quantity, refusals
from stagecost.benchmark.steps import LEARNING_RATE
from stagecost.benchmark.timing import Arm, clock_of, ratio, take_turns

OURS = "stagecost truncation, beside earlyon"
LIMITS = {
    "a smaller network": "removes nothing: all blocks stay, and exits are added",
    "images of a batch that exit apart": "a batch exits together, when its last image is sure",
}
# The first costs what our truncation to as many blocks costs; then one half and three quarters.
EXITS = (KEPT_BLOCKS, 27, 40)
EPOCH_BATCHES = 2


def compare_exits(
    configurations: Sequence[Configuration],
    device: torch.device,
    rounds: int,
    report: Callable[[str], None],
) -> list[Quantity]:
    """Measure earlyon's training steps and its inference for homogeneous configurations."""
    found = []
    for configuration in configurations:
        report(f"earlyon on {configuration.name}")
        found += [*_training(configuration, device, rounds), *_inference(configuration, device, rounds)]
        found += refusals(_peer(), configuration, LIMITS)
    return found


def _peer() -> str:
    return f"earlyon {importlib.metadata.version('earlyon')}"


def with_exits(
    backbone: nn.Sequential,
    exits: Sequence[int],
    images: Tensor,
    width: int,
    num_classes: int = NUM_CLASSES,
) -> Any:
    """Wrap a plain network with earlyon's exits behind these blocks, as its `custom_ee` does."""
    from earlyon import EarlyExitConfig, EarlyExitHead, EarlyExitWrapper, ExitPoint

    points = [ExitPoint(f"e{i}", str(block), width) for i, block in enumerate(exits)]
    heads = {point.name: EarlyExitHead(width, num_classes) for point in points}
    settings = EarlyExitConfig(backbone="custom", num_classes=num_classes, exit_points=points)
    shape = (1, *images.shape[1:])
    wrapper = EarlyExitWrapper(backbone, heads, nn.Identity(), settings, input_shape=shape)
    return wrapper.to(images.device)


def _training(configuration: Configuration, device: torch.device, rounds: int) -> list[Quantity]:
    from earlyon.training import (
        joint_train_backbone_and_exits,
        stage1_train_backbone,
        stage2_train_exits,
    )

    network = configuration.network(device)
    images, _ = configuration.batch(device)
    width, every = configuration.arguments["width"], range(1, network.num_blocks)
    batches = [configuration.batch(device, place) for place in range(EPOCH_BATCHES)]
    options = {"epochs": 1, "lr": LEARNING_RATE, "device": str(device), "on_epoch_end": _be_quiet}

    def arm(train: Callable[..., object], exits: Sequence[int]) -> Arm:
        backbone = plain_twin(network)
        model = with_exits(backbone, exits, images, width) if exits else backbone
        return partial(train, model, batches, **options)

    arms = {
        "plain": arm(stage1_train_backbone, ()),
        f"joint training step, {len(EXITS)} exits": arm(joint_train_backbone_and_exits, EXITS),
        "joint training step, exits at all blocks": arm(joint_train_backbone_and_exits, every),
        f"second-stage step (frozen backbone), {len(EXITS)} exits": arm(stage2_train_exits, EXITS),
    }
    seconds = take_turns(arms, rounds, clock_of(device))
    note = "relative to its first stage, which trains the bare network"
    of_ratio = partial(Quantity.of_ratio, _peer(), configuration.name, note=note)
    return [
        of_ratio(quantity=f"{name} / plain step", ratio=ratio(times, seconds["plain"]))
        for name, times in seconds.items()
        if name != "plain"
    ]


def _be_quiet(log: object) -> None:
    """Take earlyon's report of an epoch."""


def _inference(configuration: Configuration, device: torch.device, rounds: int) -> list[Quantity]:
    network = configuration.network(device).eval()
    images, _ = configuration.batch(device)
    whole = plain_twin(network)
    cut = plain_twin(truncated(network, configuration, device, KEPT_BLOCKS))
    found = []
    for batch in BATCHES:
        models: dict[str, Any] = {"whole": whole, "cut": cut}
        for place, block in enumerate(EXITS):
            models[f"exit behind block {block}"] = _routed(network, images, configuration, place, batch)
        models["no exit taken"] = _routed(network, images, configuration, None, batch)
        seconds = forward_seconds(models, images[:batch], device, rounds)
        found += [
            Quantity.of_ratio(
                OURS if name == "cut" else _peer(),
                configuration.name,
                f"speed-up of inference{'' if name == 'cut' else f', {name}'}, batch {batch}",
                ratio(seconds["whole"], times),
                note="" if batch == 1 or name == "cut" else "the whole batch exits together",
            )
            for name, times in seconds.items()
            if name != "whole"
        ]
    return found


def _routed(
    network: Any, images: Tensor, configuration: Configuration, place: int | None, batch: int
) -> Callable[[Tensor], object]:
    """Return earlyon's inference whose exit at `place` fires at once, or none if there is no place.

    The exits before it stay enabled, as in use, but never fire.
    """
    model = with_exits(plain_twin(network), EXITS, images, configuration.arguments["width"]).eval()
    for parameter in model.exit_parameters():
        # Even confidences below every threshold but 0; initial weights can be sure to the last bit.
        nn.init.zeros_(parameter)
    thresholds = [1.0] * len(EXITS)
    if place is not None:
        thresholds[place] = 0.0
    model.config.confidence_thresholds = thresholds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _ = model.flops_estimate  # made once; not a part of inference
    return model if batch == 1 else model.forward_inference_batched  # type: ignore[no-any-return]
