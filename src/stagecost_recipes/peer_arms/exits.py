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
from typing import Any

import torch
from torch import Tensor

from stagecost.benchmark.peer_exits import with_exits
from stagecost.benchmark.plain_twin import module_macs, plain_twin
from stagecost.data.batches import epoch_batches
from stagecost.data.loading import DataBundle
from stagecost.macs import count_parameters, macs_by_part
from stagecost.training.cost import images_of_an_epoch
from stagecost.training.trained import Trained
from stagecost_recipes.peer_arms.outcome import Cost, Outcome
from stagecost_recipes.peer_arms.protocol import Protocol
from stagecost_recipes.runs import Run


def exits(protocol: Protocol, run: Run) -> list[Outcome]:
    """Train exits on a frozen network; all images leave behind block M, then by earlyon's policy."""
    trained = run.open()
    bundle = trained.load("train", "val")
    started = time.monotonic()
    model = train_exits(trained, bundle, protocol)
    seconds = time.monotonic() - started
    images = protocol.later_epochs * images_of_an_epoch(trained.settings, bundle.splits)
    costs = ExitCosts(trained, model, protocol)
    cost = Cost.of(run) + Cost(images * costs.of_training(), seconds)
    found = []
    for num_blocks, set_policy in (
        (protocol.sub_blocks, leave_behind_block_m),
        (trained.network.num_blocks, calibrate),
    ):
        set_policy(model, trained, protocol)
        val, _ = routed(model, trained, "val", costs)
        test, macs = routed(model, trained, "test", costs)
        parameters = count_parameters(model)
        found.append(Outcome(num_blocks, test, val, parameters, macs, cost.macs, round(cost.seconds, 1)))
    return found


def train_exits(trained: Trained, bundle: DataBundle, protocol: Protocol) -> Any:
    """Put exits behind some blocks of a copy of a network, and train them by earlyon's second stage."""
    from earlyon.training import stage2_train_exits

    linear: Any = trained.network.head.linear
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(trained.settings.training.seed)  # initial weights and dropout of the exits
        model = with_exits(
            plain_twin(trained.network),
            protocol.exit_blocks,
            one_image(trained),
            linear.in_features,
            linear.out_features,
        )
        stage2_train_exits(
            model,
            EpochLoader(trained, bundle),
            epochs=protocol.later_epochs,
            lr=protocol.exits_lr,
            device=str(trained.device),
            on_epoch_end=lambda log: None,
        )
        _ = model.flops_estimate  # made once
    return model.eval()


class EpochLoader:
    """The training batches that all arms see; each iteration is the next epoch."""

    def __init__(self, trained: Trained, bundle: DataBundle) -> None:
        """Begin with the first epoch."""
        self.settings, self.bundle, self.device = trained.settings.training, bundle, trained.device
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of the next epoch."""
        self.epoch += 1
        return epoch_batches(
            self.bundle.splits["train"],
            self.bundle.format,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            epoch=self.epoch - 1,
            augmentation=self.bundle.augmentation,
            device=self.device,
        )


def leave_behind_block_m(model: Any, trained: Trained, protocol: Protocol) -> None:
    """Let every image leave behind block M, and ask no other exit."""
    place = protocol.exit_blocks.index(protocol.sub_blocks)
    model.config.enabled_exits = [i == place for i in range(len(protocol.exit_blocks))]
    model.config.confidence_thresholds = [0.0] * len(protocol.exit_blocks)


def calibrate(model: Any, trained: Trained, protocol: Protocol) -> None:
    """Let earlyon choose thresholds on validation images, for the share of MACs that M blocks have."""
    from earlyon.core.thresholds import calibrate_thresholds_for_budget

    parts = network_macs(trained)
    share = (sum(parts[: 1 + protocol.sub_blocks]) + parts[-1]) / sum(parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so when the share cannot be reached; the row does, too
        calibrate_thresholds_for_budget(
            model, trained.batches("val"), target_computation=share, device=str(trained.device)
        )


def routed(model: Any, trained: Trained, split: str, costs: "ExitCosts") -> tuple[float, int]:
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
        self.parts, self.blocks = network_macs(trained), protocol.exit_blocks
        self.config = model.config
        with torch.no_grad():
            state = next(trained.network.states(one_image(trained)))
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


def network_macs(trained: Trained) -> list[int]:
    """Count the MACs of stem, blocks and head for one image."""
    image = trained.image_format
    return macs_by_part(trained.network, (image.channels, image.size, image.size))


def one_image(trained: Trained) -> Tensor:
    """Return a black image, (1, C, H, W), where the network is."""
    image = trained.image_format
    return torch.zeros(1, image.channels, image.size, image.size, device=trained.device)
