"""Torch-Pruning and earlyon beside truncation: what a user of the small network pays in time.

Channels are removed until as many MACs are left as our cut leaves. earlyon's trainers run whole epochs;
here an epoch is a few batches, and its own trainer of the bare backbone is the reference. Accuracies are
not compared: the weights are the initial ones, so exits are made to fire by their thresholds.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from experiments.benchmark.configurations import KEPT_BLOCKS, NUM_CLASSES, Configuration
from experiments.benchmark.ratios import BATCHES, StepRatios, forward_seconds, truncated
from experiments.benchmark.steps import LAMBDA, LEARNING_RATE, Step, step
from experiments.benchmark.measure import Arm, Ratio, clock_of, ratio, take_turns
from experiments.peers.packages import (
    STEPS,
    halve_channels,
    is_installed,
    prune_channels,
    with_exits,
    with_version,
)
from experiments.peers.twins import module_macs, plain_twin
from experiments.records import Row

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


def row(
    peer: str, configuration: str, quantity: str, value: Ratio | float | None, note: str = ""
) -> Row:
    """Return one figure of a peer; where there is none, the note says why."""
    measured = value.median if isinstance(value, Ratio) else value
    return {
        "peer": peer,
        "configuration": configuration,
        "quantity": quantity,
        "value": None if measured is None else round(measured, 4),
        "spread": value.quartiles if isinstance(value, Ratio) else None,
        "note": note,
    }


def separate_heads(measured: StepRatios) -> list[Row]:
    """Return the figures of separate heads by hooks, which were measured with the other steps."""
    of = partial(row, "separate heads by hooks", measured.configuration)
    return [
        of("training step / plain step", measured.ratios["separate_heads"]),
        of("memory / plain step", measured.memory("separate_heads")),
    ]


def compare_packages(
    configurations: Sequence[Configuration],
    device: torch.device,
    rounds: int,
    report: Callable[[str], None],
) -> list[Row]:
    """Run the packages that are installed on the homogeneous networks, with batches of 1 and 64.

    A package that is missing gets one row that says so.
    """
    rows = []
    compare = {"torch-pruning": _compare_channels, "earlyon": _compare_exits}
    for package, measure in compare.items():
        if not is_installed(package):
            note = "not installed: pip install 'stagecost[peers]'"
            rows.append(row(package, "", "all", None, note))
            continue
        for configuration in _networks(configurations):
            report(f"{package} on {configuration.name}")
            rows += measure(configuration, device, rounds)
            refuse = partial(row, with_version(package), configuration.name)
            rows += [refuse(what, None, why) for what, why in LIMITS[package].items()]
    return rows


def _networks(configurations: Iterable[Configuration]) -> list[Configuration]:
    """Return the first configuration of every homogeneous network."""
    chosen: list[Configuration] = []
    for each in configurations:
        if each.model == "homogeneous" and each.arguments not in [other.arguments for other in chosen]:
            chosen.append(each)
    return chosen


def _compare_channels(configuration: Configuration, device: torch.device, rounds: int) -> list[Row]:
    models = _pruned_models(configuration, device)
    images, targets = configuration.batch(device)
    before = module_macs(models[WHOLE], images)
    others = [name for name in models if name != WHOLE]
    of = partial(row, configuration=configuration.name)
    rows = []
    for name in others:
        kept = module_macs(models[name], images) / before
        note = f"{len(models[name]) - 2} blocks, {_widths(models[name])} channels"
        rows.append(of(name, quantity="MACs kept", value=kept, note=note))
    for batch in BATCHES:
        seconds = forward_seconds(
            {name: model.eval() for name, model in models.items()}, images[:batch], device, rounds
        )
        quantity = f"speed-up of inference, batch {batch}"
        rows += [of(n, quantity=quantity, value=ratio(seconds[WHOLE], seconds[n])) for n in others]
    steps = {name: plain_module_step(model, images, targets) for name, model in models.items()}
    seconds = take_turns(steps, rounds, clock_of(device))
    quantity = "fine-tuning step / step of the whole network"
    return rows + [of(n, quantity=quantity, value=ratio(seconds[n], seconds[WHOLE])) for n in others]


def _pruned_models(configuration: Configuration, device: torch.device) -> dict[str, nn.Sequential]:
    """Return the whole network and what each way of pruning makes of it, by name."""
    images, _ = configuration.batch(device)
    network = configuration.network(device).eval()
    ours = plain_twin(truncated(network, KEPT_BLOCKS))
    peer, target = with_version("torch-pruning"), module_macs(ours, images)
    return {
        WHOLE: plain_twin(network),
        OURS: ours,
        **{f"{peer}, {r}": prune_channels(plain_twin(network), images, target, r) for r in STEPS},
        f"{peer}, {HALF}": halve_channels(plain_twin(network), images),
    }


def _widths(model: nn.Module) -> str:
    widths = {module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)}
    low, high = min(widths), max(widths)
    return str(low) if low == high else f"{low} to {high}"


def plain_module_step(model: nn.Module, images: Tensor, targets: Tensor) -> Step:
    """Return a plain training step of any module, with decay on all parameters."""
    optimizer = SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=LAMBDA
    )
    model.train()
    return step(lambda: F.cross_entropy(model(images), targets), optimizer)


def _compare_exits(configuration: Configuration, device: torch.device, rounds: int) -> list[Row]:
    return [
        *_exits_training(configuration, device, rounds),
        *_exits_inference(configuration, device, rounds),
    ]


def _exits_training(configuration: Configuration, device: torch.device, rounds: int) -> list[Row]:
    from earlyon import training

    network = configuration.network(device)
    images, _ = configuration.batch(device)
    width, every = configuration.arguments["width"], range(1, network.num_blocks)
    batches = [configuration.batch(device, place) for place in range(EPOCH_BATCHES)]
    options = {"epochs": 1, "lr": LEARNING_RATE, "device": str(device), "on_epoch_end": _be_quiet}

    def arm(train: Callable[..., object], exits: Sequence[int]) -> Arm:
        backbone = plain_twin(network)
        model = with_exits(backbone, exits, images, width, NUM_CLASSES) if exits else backbone
        return partial(train, model, batches, **options)

    joint, second = training.joint_train_backbone_and_exits, training.stage2_train_exits
    arms = {
        "plain": arm(training.stage1_train_backbone, ()),
        f"joint training step, {len(EXITS)} exits": arm(joint, EXITS),
        "joint training step, exits at all blocks": arm(joint, every),
        f"second-stage step (frozen backbone), {len(EXITS)} exits": arm(second, EXITS),
    }
    seconds = take_turns(arms, rounds, clock_of(device))
    note = "relative to its first stage, which trains the bare network"
    of = partial(row, with_version("earlyon"), configuration.name, note=note)
    others = [name for name in arms if name != "plain"]
    return [
        of(quantity=f"{name} / plain step", value=ratio(seconds[name], seconds["plain"])) for name in others
    ]


def _be_quiet(log: object) -> None:
    """Take earlyon's report of an epoch."""


def _exits_inference(configuration: Configuration, device: torch.device, rounds: int) -> list[Row]:
    network = configuration.network(device).eval()
    images, _ = configuration.batch(device)
    peer, ours = with_version("earlyon"), f"{OURS}, beside earlyon"
    rows = []
    for batch in BATCHES:
        models: dict[str, Any] = {
            WHOLE: plain_twin(network),
            "cut": plain_twin(truncated(network, KEPT_BLOCKS)),
            **{
                f"exit behind block {block}": _routed(network, images, configuration, place, batch)
                for place, block in enumerate(EXITS)
            },
            "no exit taken": _routed(network, images, configuration, None, batch),
        }
        seconds = forward_seconds(models, images[:batch], device, rounds)
        for name in [name for name in models if name != WHOLE]:
            cut = name == "cut"
            quantity = f"speed-up of inference{'' if cut else f', {name}'}, batch {batch}"
            note = "" if cut or batch == 1 else "the whole batch exits together"
            faster = ratio(seconds[WHOLE], seconds[name])
            rows.append(row(ours if cut else peer, configuration.name, quantity, faster, note))
    return rows


def _routed(
    network: Any, images: Tensor, configuration: Configuration, place: int | None, batch: int
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
