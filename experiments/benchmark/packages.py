"""Torch-Pruning and earlyon beside truncation: what a user of the small network pays in time.

Channels are removed until as many MACs are left as our cut leaves. earlyon's trainers run whole epochs;
here an epoch is a few batches, and its own trainer of the bare backbone is the reference. Accuracies are
not compared: the weights are the initial ones, so exits are made to fire by their thresholds.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from experiments.benchmark.configurations import KEPT_BLOCKS, NUM_CLASSES, Configuration
from experiments.benchmark.measure import Arm, Ratio, clock_of, ratio, take_turns
from experiments.benchmark.ratios import BATCHES, forward_seconds
from experiments.benchmark.steps import LAMBDA, LEARNING_RATE, Step, step
from experiments.peers.packages import (
    STEPS,
    halve_channels,
    is_installed,
    prune_channels,
    with_exits,
    with_version,
)
from experiments.peers.twins import module_macs, output_layer, plain_twin
from experiments.records import Row
from stagecost.cut import Cut
from stagecost.network import ResidualNetwork

OURS, WHOLE = "stagecost truncation", "whole"
# Where 8 channels or 16 are left: more MACs than the target, but a width that processors like.
HALF = "uniform, half the channels"
# The first costs what our truncation to as many blocks costs; then one half and three quarters.
EXITS = (KEPT_BLOCKS, 27, 40)
EPOCH_BATCHES = 2
LIMITS = {
    "torch-pruning": {
        "blocks removed": "channels only: all blocks stay, however few channels they have",
        "latency by its own helper": "it times by CUDA events and fails on a CPU; ours times both here",
    },
    "earlyon": {
        "a smaller network": "removes nothing: all blocks stay, and exits are added",
        "images of a batch that exit apart": "a batch exits together, when its last image is sure",
    },
}
"""What a package cannot do, so that there is no figure for it."""


def row(peer: str, configuration: str, quantity: str, value: object, note: str = "") -> Row:
    """Return one figure of a peer, a `Ratio` or a number; where there is none, the note says why."""
    measured = value.median if isinstance(value, Ratio) else value
    return {
        "peer": peer,
        "configuration": configuration,
        "quantity": quantity,
        "value": round(measured, 4) if isinstance(measured, float) else None,
        "spread": value.quartiles if isinstance(value, Ratio) else None,
        "note": note,
    }


def separate_heads(spread: Row) -> list[Row]:
    """Return the figures of separate heads by hooks, which were measured with the other steps."""
    name = "separate_heads"
    of = partial(row, "separate heads by hooks", spread["configuration"])
    step_row = of("training step / plain step", spread["medians"][name])
    memory = of("memory / plain step", spread["memory"][name])
    return [{**step_row, "spread": spread[f"{name}_step_ratio"]}, memory]


def compare_packages(
    configurations: Iterable[Configuration],
    device: torch.device,
    rounds: int,
    report: Callable[[str], None],
) -> list[Row]:
    """Run the packages that are installed on the homogeneous networks, with batches of 1 and 64.

    A package that is missing gets one row that says so.
    """
    # The first configuration of every homogeneous network.
    networks = {str(c.arguments): c for c in reversed([*configurations]) if c.model == "homogeneous"}
    rows = []
    for package, measure in {"torch-pruning": _channels, "earlyon": _exits}.items():
        if not is_installed(package):
            rows.append(row(package, "", "all", None, "not installed: pip install 'stagecost[peers]'"))
            continue
        for configuration in reversed(networks.values()):
            report(f"{package} on {configuration.name}")
            rows += measure(configuration, device, rounds)
            refuse = partial(row, with_version(package), configuration.name)
            rows += [refuse(what, None, why) for what, why in LIMITS[package].items()]
    return rows


def _cut_twin(network: ResidualNetwork) -> nn.Sequential:
    return plain_twin(network.keep(Cut.first(KEPT_BLOCKS)).eval())


def _channels(configuration: Configuration, device: torch.device, rounds: int) -> list[Row]:
    images, targets = configuration.batch(device)
    network, peer = configuration.network(device).eval(), with_version("torch-pruning")
    models = {WHOLE: plain_twin(network), OURS: _cut_twin(network)}
    before, target = (module_macs(model, images) for model in models.values())
    for ranking in STEPS:
        twin = plain_twin(network)
        small = prune_channels(twin, images, target, ranking, [output_layer(twin)])
        models[f"{peer}, {ranking}"] = small
    models[f"{peer}, {HALF}"] = halve_channels(plain_twin(network), images)
    others = [name for name in models if name != WHOLE]
    of = partial(row, configuration=configuration.name)
    rows = []
    for name in others:
        note = f"{len(models[name]) - 2} blocks, {_widths(models[name])} channels"
        kept = module_macs(models[name], images) / before
        rows.append(of(name, quantity="MACs kept", value=kept, note=note))
    for batch in BATCHES:
        evaluated = {name: model.eval() for name, model in models.items()}
        seconds = forward_seconds(evaluated, images[:batch], device, rounds)
        quantity = f"speed-up of inference, batch {batch}"
        rows += [of(n, quantity=quantity, value=ratio(seconds[WHOLE], seconds[n])) for n in others]
    steps = {name: plain_module_step(model, images, targets) for name, model in models.items()}
    seconds = take_turns(steps, rounds, clock_of(device))
    quantity = "fine-tuning step / step of the whole network"
    return rows + [of(n, quantity=quantity, value=ratio(seconds[n], seconds[WHOLE])) for n in others]


def _widths(model: nn.Module) -> str:
    widths = {module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)}
    low, high = min(widths), max(widths)
    return str(low) if low == high else f"{low} to {high}"


def plain_module_step(model: nn.Module, images: Tensor, targets: Tensor) -> Step:
    """Return a plain training step of any module, with decay on all parameters."""
    optimizer = SGD(model.parameters(), LEARNING_RATE, 0.9, weight_decay=LAMBDA, nesterov=True)
    model.train()
    return step(lambda: F.cross_entropy(model(images), targets), optimizer)


def _exits(configuration: Configuration, device: torch.device, rounds: int) -> list[Row]:
    return [*_training(configuration, device, rounds), *_inference(configuration, device, rounds)]


def _training(configuration: Configuration, device: torch.device, rounds: int) -> list[Row]:
    from earlyon import training

    network = configuration.network(device)
    images, _ = configuration.batch(device)
    width, every = configuration.arguments["width"], range(1, network.num_blocks)
    batches = [configuration.batch(device, place) for place in range(EPOCH_BATCHES)]
    quiet: dict[str, Any] = {"on_epoch_end": lambda log: None, "device": str(device)}

    def arm(train: Callable[..., object], exits: Sequence[int]) -> Arm:
        backbone = plain_twin(network)
        model = with_exits(backbone, exits, images, width, NUM_CLASSES) if exits else backbone
        return partial(train, model, batches, epochs=1, lr=LEARNING_RATE, **quiet)

    joint, second = training.joint_train_backbone_and_exits, training.stage2_train_exits
    arms = {
        "plain": arm(training.stage1_train_backbone, ()),
        f"joint training step, {len(EXITS)} exits": arm(joint, EXITS),
        "joint training step, exits at all blocks": arm(joint, every),
        f"second-stage step (frozen backbone), {len(EXITS)} exits": arm(second, EXITS),
    }
    seconds = take_turns(arms, rounds, clock_of(device))
    plain = seconds.pop("plain")
    note = "relative to its first stage, which trains the bare network"
    of = partial(row, with_version("earlyon"), configuration.name, note=note)
    return [of(quantity=f"{name} / plain step", value=ratio(t, plain)) for name, t in seconds.items()]


def _inference(configuration: Configuration, device: torch.device, rounds: int) -> list[Row]:
    network = configuration.network(device).eval()
    images, _ = configuration.batch(device)
    peer, ours = with_version("earlyon"), f"{OURS}, beside earlyon"
    rows = []
    for batch in BATCHES:
        models: dict[str, Any] = {WHOLE: plain_twin(network), "cut": _cut_twin(network)}
        for place, block in enumerate(EXITS):
            models[f"exit behind block {block}"] = _routed(network, images, configuration, place, batch)
        models["no exit taken"] = _routed(network, images, configuration, None, batch)
        seconds = forward_seconds(models, images[:batch], device, rounds)
        whole = seconds.pop(WHOLE)
        for name, times in seconds.items():
            cut = name == "cut"
            quantity = f"speed-up of inference{'' if cut else f', {name}'}, batch {batch}"
            note = "" if cut or batch == 1 else "the whole batch exits together"
            rows.append(
                row(ours if cut else peer, configuration.name, quantity, ratio(whole, times), note)
            )
    return rows


def _routed(
    network: ResidualNetwork,
    images: Tensor,
    configuration: Configuration,
    place: int | None,
    batch: int,
) -> Callable[[Tensor], object]:
    """Return earlyon's inference whose exit at `place` fires at once, or none if there is no place.

    The exits before it stay enabled, as in use, but never fire.
    """
    width = configuration.arguments["width"]
    model = with_exits(plain_twin(network), EXITS, images, width, NUM_CLASSES).eval()
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
