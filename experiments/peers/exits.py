"""earlyon's arms: exits with heads of their own, trained in its second stage on a frozen network.

Its first stage is the plain training that all arms share. The second one is its own, with its heads and
its optimiser (Adam, a constant learning rate). Two outcomes come from one such model: all images leave
behind block M; or each leaves where earlyon's policy says, whose thresholds its own calibration sets so
that validation images spend at most the share of M blocks. earlyon removes nothing, so the whole network
and all exits count as parameters.
"""

import time
import warnings
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor

from experiments.peers.packages import with_exits
from experiments.peers.protocol import EXITS_LR, Cost, Outcome, Protocol
from experiments.peers.twins import module_macs, plain_twin
from experiments.trainings import Run, images_of_an_epoch
from stagecost.data.batches import ImageBatches
from stagecost.macs import count_parameters, macs_by_part
from stagecost.runs.trained import Split, Trained
from stagecost.train.setup import prepare


def exits(protocol: Protocol, run: Run) -> list[Outcome]:
    """Train exits on a frozen network; all images leave behind block M, then by earlyon's policy."""
    trained, started = run.open(), time.monotonic()
    model = train_exits(trained, protocol)
    seconds = time.monotonic() - started
    costs = ExitCosts(trained, model, protocol)
    images, _ = images_of_an_epoch(trained)
    cost = Cost.of(run) + Cost(protocol.later_epochs * images * costs.of_training(), seconds)
    outcomes = []
    for num_blocks, set_policy in (
        (protocol.sub_blocks, leave_behind_block_m),
        (trained.network.num_blocks, calibrate),
    ):
        set_policy(model, trained, protocol)
        val, _ = routed(model, trained, "val", costs)
        test, macs = routed(model, trained, "test", costs)
        kept = count_parameters(model)
        outcomes.append(Outcome(num_blocks, test, val, kept, macs, cost.macs, round(cost.seconds, 1)))
    return outcomes


def train_exits(trained: Trained, protocol: Protocol) -> Any:
    """Put exits behind some blocks of a copy of a network, and train them by earlyon's second stage."""
    from earlyon.training import stage2_train_exits

    linear: Any = trained.network.head.linear
    twin, sizes = plain_twin(trained.network), (linear.in_features, linear.out_features)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = prepare(trained.settings, trained.load("train", "val")).batches
        torch.manual_seed(trained.settings.training.seed)  # initial weights and dropout of the exits
        model = with_exits(twin, protocol.exit_blocks, black_image(trained), *sizes)
        stage2_train_exits(
            model,
            EpochLoader(batches),
            epochs=protocol.later_epochs,
            lr=EXITS_LR,
            device=str(trained.device),
            on_epoch_end=lambda log: None,
        )
        _ = model.flops_estimate  # made once
    return model.eval()


class EpochLoader:
    """The training batches that all arms see; each iteration is the next epoch."""

    def __init__(self, batches: ImageBatches) -> None:
        """Begin with the first epoch."""
        self.batches, self.epochs = batches, count()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of the next epoch."""
        return self.batches.epoch(next(self.epochs))


def leave_behind_block_m(model: Any, trained: Trained, protocol: Protocol) -> None:
    """Let every image leave behind block M, and ask no other exit."""
    place = protocol.exit_blocks.index(protocol.sub_blocks)
    model.config.enabled_exits = [i == place for i in range(len(protocol.exit_blocks))]
    model.config.confidence_thresholds = [0.0] * len(protocol.exit_blocks)


def calibrate(model: Any, trained: Trained, protocol: Protocol) -> None:
    """Let earlyon choose thresholds on validation images, for the share of MACs that M blocks have."""
    from earlyon.core.thresholds import calibrate_thresholds_for_budget

    parts = macs_by_part(trained.network, trained.image_shape)
    share = (sum(parts[: 1 + protocol.sub_blocks]) + parts[-1]) / sum(parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so when the share cannot be reached; the row does, too
        calibrate_thresholds_for_budget(
            model, trained.batches("val"), target_computation=share, device=str(trained.device)
        )


def routed(model: Any, trained: Trained, split: Split, costs: "ExitCosts") -> tuple[float, int]:
    """Return accuracy (percent) and mean MACs of a split, with each image leaving by itself."""
    from earlyon.core.thresholds import collect_head_logits, simulate_policy

    logits = collect_head_logits(model, trained.batches(split), str(trained.device))
    found = simulate_policy(logits, model)
    macs = sum(part * costs.of_leaving(label) for label, part in found.exit_distribution.items())
    return 100 * found.accuracy, round(macs)


class ExitCosts:
    """What an image costs in MACs, by where it leaves."""

    def __init__(self, trained: Trained, model: Any, protocol: Protocol) -> None:
        """Count the parts of a network and its exits."""
        self.parts = macs_by_part(trained.network, trained.image_shape)
        self.blocks, self.config = protocol.exit_blocks, model.config
        with torch.no_grad():
            state = next(trained.network.states(black_image(trained)))
        self.heads = [module_macs(head, state) for head in model.exit_heads.values()]

    def of_leaving(self, label: str) -> int:
        """Return the MACs up to an exit, "exit_0", … or "final", and of the heads asked till then."""
        final = label == "final"
        place = len(self.blocks) if final else int(label.removeprefix("exit_"))
        asked = zip(self.heads[: place + 1], self.config.enabled_exits, strict=False)
        backbone = sum(self.parts) if final else sum(self.parts[: 1 + self.blocks[place]])
        return backbone + sum(head for head, enabled in asked if enabled)

    def of_training(self) -> int:
        """Return the MACs of a step for one image: forwards through all, backwards through exits."""
        return sum(self.parts) + 3 * sum(self.heads)


def black_image(trained: Trained) -> Tensor:
    """Return a black image, (1, C, H, W), where the network is."""
    return torch.zeros(1, *trained.image_shape, device=trained.device)
