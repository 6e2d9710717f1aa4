"""Peers on the same work: what else one would do to get a network of M blocks, or of as many MACs.

Command     stagecost reproduce peers --tier cpu [--data-root DIR]
Machine     cpu: one core, one thread
Runtime     cpu: eight trainings and five short ones after them for each data set and seed
Seeds       0, 1, 2

One backbone, one order of images, one optimiser and schedule, and the same number of epochs in all
(`stagecost_recipes.peer_arms.protocol`). By arm:

plain_full            gamma = 0, N blocks
plain_sub             gamma = 0, M blocks, trained alone
stochastic_depth      N blocks with stochastic depth
stochastic_depth_cut  its first M blocks and the head
plain_cut             the first M blocks and the head of plain_full
plain_cut_finetuned   the same after a shorter training, trained on
control_cut           gamma = 0, cut to M blocks in the training, by the schedule of ours_cut
torch_pruning         channels pruned to at most the MACs of M blocks, uniformly, trained on
torch_pruning_global  the same with the weakest channels of all layers
earlyon               exits on the frozen network, all images leave behind block M
earlyon_policy        the same, images leave by its calibrated policy
ours_pruned           the first M blocks and the head of a network with a stage cost
ours_finetuned        the same after a shorter training, trained on
ours_cut              with a stage cost, cut to M blocks in the training

Depth and rates are no arm's own choice, and test images are read once an arm is finished.
"""

import importlib.metadata
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stagecost_recipes.experiment import Context, Experiment, Row, Tier
from stagecost_recipes.peer_arms.channels import global_channels, uniform_channels
from stagecost_recipes.peer_arms.cuts import as_trained, truncated, truncated_and_finetuned
from stagecost_recipes.peer_arms.exits import exits
from stagecost_recipes.peer_arms.outcome import Outcome, cached
from stagecost_recipes.peer_arms.protocol import Protocol
from stagecost_recipes.rows import accuracy_row
from stagecost_recipes.runs import Run, trained_run
from stagecost_recipes.tiers import SEEDS


@dataclass(frozen=True)
class Arm:
    """One way to the goal.

    Attributes:
        rows: names of what it brings, mostly one.
        training: kind of training that it begins with.
        after: what is done then; returns an outcome for each row.
        package: distribution that it needs; its module has the same name, with underscores.
    """

    rows: tuple[str, ...]
    training: str
    after: Callable[[Protocol, Run], list[Outcome]] = as_trained
    package: str | None = None

    def is_installed(self) -> bool:
        """Tell whether the package is there."""
        module = None if self.package is None else self.package.replace("-", "_")
        return module is None or importlib.util.find_spec(module) is not None

    def version(self) -> str | None:
        """Return the version of the package, if one is needed."""
        return None if self.package is None else importlib.metadata.version(self.package)


ARMS = (
    Arm(("plain_full",), "plain"),
    Arm(("plain_sub",), "plain-sub"),
    Arm(("stochastic_depth",), "stochastic-depth"),
    Arm(("stochastic_depth_cut",), "stochastic-depth", truncated),
    Arm(("plain_cut",), "plain", truncated),
    Arm(("plain_cut_finetuned",), "plain-first", truncated_and_finetuned),
    Arm(("control_cut",), "plain-cut"),
    Arm(("torch_pruning",), "plain-first", uniform_channels, "torch-pruning"),
    Arm(("torch_pruning_global",), "plain-first", global_channels, "torch-pruning"),
    Arm(("earlyon", "earlyon_policy"), "plain-first", exits, "earlyon"),
    Arm(("ours_pruned",), "stage", truncated),
    Arm(("ours_finetuned",), "stage-first", truncated_and_finetuned),
    Arm(("ours_cut",), "stage-cut"),
)


def run(context: Context) -> list[Row]:
    """Go every way with every seed, as far as that was not done, and return a row for each outcome."""
    protocol = Protocol.of(context.tier, context.dataset)
    arms = [arm for arm in ARMS if arm.is_installed()]
    for arm in ARMS:
        if arm not in arms:
            context.report(
                f"{arm.package} is left out: pip install 'stagecost[peers]' to compare with it"
            )
    found: dict[str, list[Outcome]] = {name: [] for arm in arms for name in arm.rows}
    for seed in context.seeds:
        for arm in arms:
            outcomes = _outcomes(context, protocol, arm, seed)
            for name, outcome in zip(arm.rows, outcomes, strict=True):
                found[name].append(outcome)
    return [_row(context, name, outcomes) for name, outcomes in found.items()]


def _outcomes(context: Context, protocol: Protocol, arm: Arm, seed: int) -> list[Outcome]:
    settings = protocol.trainings()[arm.training]

    def make() -> list[Outcome]:
        done = trained_run(context, arm.training, settings, seed)
        context.report(f"{context.dataset}: {arm.rows[0]}, seed {seed}")
        return arm.after(protocol, done)

    defining = {
        "data": context.data,
        "settings": settings,
        "protocol": asdict(protocol),
        "version": arm.version(),
    }
    return cached(context.work / "outcomes", arm.rows[0], seed, defining, make)


def _row(context: Context, name: str, outcomes: Sequence[Outcome]) -> Row:
    def mean(key: str) -> float:
        return float(statistics.mean(getattr(outcome, key) for outcome in outcomes))

    row = accuracy_row(
        context.dataset,
        name,
        [outcome.test_accuracy for outcome in outcomes],
        context.seeds,
        num_blocks=outcomes[0].num_blocks,
        val_accuracies=[outcome.val_accuracy for outcome in outcomes],
        **{key: round(mean(key)) for key in ("parameters", "macs", "training_macs")},
        seconds=round(mean("seconds"), 1),
    )
    return {**row, "paper": None}  # the paper compares with no peer, and its networks are others


def settings_of(tier: Tier, dataset: str) -> dict[str, Any]:
    """Return the settings of each kind of training."""
    return Protocol.of(tier, dataset).trainings()


PEERS = Experiment(
    name="peers",
    title="Peers on the same work: test accuracy in percent",
    datasets={"cpu": ("mnist", "fashion-mnist", "cifar10")},
    seeds=SEEDS,
    run=run,
    settings=settings_of,
)
