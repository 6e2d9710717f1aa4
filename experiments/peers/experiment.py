"""Peers on the same work: what else one would do to get a network of M blocks, or of as many MACs.

Command     python -m experiments run peers --tier cpu [--data-root DIR]
Machine     cpu: one core, one thread
Runtime     cpu: eight trainings and five short ones after them for each data set and seed
Seeds       0, 1, 2

One backbone, one order of images, one optimiser and schedule, and the same number of epochs in all
(`experiments.peers.protocol`). By arm:

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
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from experiments.peers.exits import exits
from experiments.peers.packages import is_installed, prune_channels
from experiments.peers.protocol import Cost, Outcome, Protocol, cached, finetuned, outcome_of
from experiments.peers.twins import network_of_twin, output_layer, plain_twin
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Columns, accuracy, rows_of, table
from experiments.trainings import Run, Training, accuracy_row, trained_run
from stagecost.cut import Cut
from stagecost.macs import count_macs
from stagecost.network import ResidualNetwork

TEXT = """\
What each arm is, and what is not comparable, is in [docs/peers.md](../docs/peers.md). One backbone, one
schedule, the same number of epochs in all; the most accurate arm first. MACs of an image and MACs of
training are parts of those of `plain_full`. `control_cut` is what `ours_cut` has to beat, and
`plain_cut_finetuned` what `ours_finetuned` has to beat."""


def as_trained(protocol: Protocol, run: Run) -> list[Outcome]:
    """Measure a network as its training left it."""
    trained = run.open()
    return [outcome_of(trained, trained.network, Cost.of(run))]


def truncated(protocol: Protocol, run: Run) -> list[Outcome]:
    """Measure the first M blocks and the head of a network."""
    trained = run.open()
    return [outcome_of(trained, trained.network.keep(Cut.first(protocol.sub_blocks)), Cost.of(run))]


def truncated_and_finetuned(protocol: Protocol, run: Run) -> list[Outcome]:
    """Measure the first M blocks and the head of a network after some more epochs."""
    trained = run.open()
    small = trained.network.keep(Cut.first(protocol.sub_blocks))
    return [finetuned(trained, small, protocol, Cost.of(run))]


def channels(ranking: str, protocol: Protocol, run: Run) -> list[Outcome]:
    """Prune channels by Torch-Pruning, and train on."""
    trained = run.open()
    small = with_fewer_channels(trained.network, trained.image_shape, protocol.sub_blocks, ranking)
    return [finetuned(trained, small, protocol, Cost.of(run))]


def with_fewer_channels(
    network: ResidualNetwork, shape: tuple[int, int, int], sub_blocks: int, ranking: str
) -> ResidualNetwork:
    """Return a copy of a homogeneous network with at most the MACs of its first `sub_blocks` blocks."""
    target = count_macs(network.keep(Cut.first(sub_blocks)), shape)
    images = torch.zeros(1, *shape, device=next(network.parameters()).device)
    twin = plain_twin(network)
    return network_of_twin(prune_channels(twin, images, target, ranking, [output_layer(twin)]))


@dataclass(frozen=True)
class Arm:
    """One way to the goal.

    Attributes:
        rows: names of what it brings, mostly one.
        training: kind of training that it begins with.
        after: what is done then; returns an outcome for each row.
        package: distribution that it needs.
    """

    rows: tuple[str, ...]
    training: str
    after: Callable[[Protocol, Run], list[Outcome]] = as_trained
    package: str | None = None


ARMS = (
    Arm(("plain_full",), "plain"),
    Arm(("plain_sub",), "plain-sub"),
    Arm(("stochastic_depth",), "stochastic-depth"),
    Arm(("stochastic_depth_cut",), "stochastic-depth", truncated),
    Arm(("plain_cut",), "plain", truncated),
    Arm(("plain_cut_finetuned",), "plain-first", truncated_and_finetuned),
    Arm(("control_cut",), "plain-cut"),
    Arm(("torch_pruning",), "plain-first", partial(channels, "uniform"), "torch-pruning"),
    Arm(("torch_pruning_global",), "plain-first", partial(channels, "global"), "torch-pruning"),
    Arm(("earlyon", "earlyon_policy"), "plain-first", exits, "earlyon"),
    Arm(("ours_pruned",), "pruned", truncated),
    Arm(("ours_finetuned",), "pruned-first", truncated_and_finetuned),
    Arm(("ours_cut",), "stage-cut"),
)


def run(context: Context) -> dict[str, Any]:
    """Go every way with every seed, as far as that was not done, and return a row for each outcome."""
    protocol = Protocol.of(context.tier, context.dataset)
    arms = [arm for arm in ARMS if arm.package is None or is_installed(arm.package)]
    for arm in ARMS:
        if arm not in arms:
            context.report(
                f"{arm.package} is left out: pip install 'stagecost[peers]' to compare with it"
            )
    outcomes: dict[str, list[Outcome]] = {name: [] for arm in arms for name in arm.rows}
    for seed in context.seeds:
        for arm in arms:
            for name, outcome in zip(arm.rows, _outcomes(context, protocol, arm, seed), strict=True):
                outcomes[name].append(outcome)
    return {"rows": [_row(context, name, found) for name, found in outcomes.items()]}


def _outcomes(context: Context, protocol: Protocol, arm: Arm, seed: int) -> list[Outcome]:
    training = protocol.trainings()[arm.training]

    def make() -> list[Outcome]:
        done = trained_run(context, arm.training, training, seed)
        context.report(f"{context.dataset}: {arm.rows[0]}, seed {seed}")
        return arm.after(protocol, done)

    version = None if arm.package is None else importlib.metadata.version(arm.package)
    defining = {
        "data": context.images(context.dataset),
        "settings": training.to_json(),
        "protocol": asdict(protocol),
    }
    folder = context.work / "outcomes"
    return cached(folder, arm.rows[0], seed, {**defining, "version": version}, make)


def _row(context: Context, name: str, outcomes: Sequence[Outcome]) -> Row:
    def mean(key: str) -> float:
        return float(statistics.mean(getattr(outcome, key) for outcome in outcomes))

    row = accuracy_row(
        context,
        name,
        [outcome.test_accuracy for outcome in outcomes],
        num_blocks=outcomes[0].num_blocks,
        val_accuracies=[outcome.val_accuracy for outcome in outcomes],
        **{key: round(mean(key)) for key in ("parameters", "macs", "training_macs")},
        seconds=round(mean("seconds"), 1),
    )
    return {**row, "paper": None}  # the paper compares with no peer, and its networks are others


def trainings(tier: Tier, dataset: str) -> dict[str, Training]:
    """Return each kind of training."""
    return Protocol.of(tier, dataset).trainings()


def section(records: Sequence[Record]) -> list[str]:
    """Return one table for each data set, the most accurate arm first."""
    return [TEXT, *map(_table, records)]


def _table(record: Record) -> str:
    plain = next((row for row in record["rows"] if row["arm"] == "plain_full"), record["rows"][0])
    columns: Columns = {
        record.name: "{arm}",
        "test accuracy": accuracy,
        "validation": lambda row: f"{statistics.mean(row['val_accuracies']):.2f}",
        "blocks": "{num_blocks}",
        "parameters": "{parameters:,}",
        "MACs": lambda row: f"{row['macs'] / plain['macs']:.3f}×",
        "training MACs": lambda row: f"{row['training_macs'] / plain['training_macs']:.2f}×",
        "time": "{seconds:.0f} s",
    }
    return table(sorted(rows_of([record]), key=lambda row: -row["mean"]), columns)


PEERS = Experiment(
    name="peers",
    title="Peers on the same work",
    datasets={"cpu": ("mnist", "fashion-mnist", "cifar10"), "quick": ("digits",)},
    run=run,
    section=section,
    trainings=trainings,
)
