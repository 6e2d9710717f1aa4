"""Which training of ResNet-N reaches the bound of Theorem 3.1? On MNIST the usual one does not.

Command     python -m experiments run bound-training --tier cpu [--data-root DIR]
Machine     one core, one thread
Runtime     cpu: two to four minutes a seed; fewer images than `bound` has
Seeds       0, 1, 2

standard      the recipe of `bound`
longer        three times the epochs
more_decay    ten times lambda in training, judged by lambda
zero_last     the last convolution of every branch begins at zero
warm_start    begins as the trained SubResNet-M, extended by zeros: the bound's own point; then a fifth
              of the epochs at a tenth of the rate

All have the paper's uniform stage cost, gamma = 1/N, and no augmentation; the SubResNet-M is trained
alone by the standard recipe. Both sides are computed on the training images, in eval mode.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from experiments.recipes import SUB_BLOCKS, base_recipe
from experiments.records import Record, Row
from experiments.runner import Context, Experiment
from experiments.tables import Columns, grouped, rows_of, spread, table
from stagecost.bound import objective, right_hand_side, zero_extend
from stagecost.data.batches import eval_batches
from stagecost.data.loading import DataBundle, load_data
from stagecost.network import ResidualNetwork
from stagecost.objective import squared_weight_norms
from stagecost.runs.pruning import train_in_memory
from stagecost.train.parsing import parse_settings
from stagecost.train.settings import RunSettings
from stagecost.train.setup import create_network, prepare
from stagecost.trajectory import Trajectory, loss_trajectory

IMAGES = 2000
LONGER, MORE_DECAY, WARM_PART, WARM_RATE = 3, 10.0, 0.2, 0.1
ARMS = ("standard", "longer", "more_decay", "zero_last", "warm_start")
TEXT = """\
J_N against its bound from a few blocks that were trained alone (M of N), by how ResNet-N was trained. Of
J_N, "losses" are the stage cost with the terminal loss, "decay" is (lambda/2)·Σ‖w_F,k‖², and "idle" the
part of that from blocks k ≥ M, which the bound does not have. Mean ± sample standard deviation over the
seeds."""


def settings_of(context: Context, seed: int) -> RunSettings:
    """Return the standard recipe."""
    plain = base_recipe(context.tier, context.dataset)
    few = min(IMAGES, plain["limit_train"])
    shared = {"gamma": 1 / plain["num_blocks"], "augment": "none", "limit_train": few, "seed": seed}
    return parse_settings({**plain, **shared, "data": context.images(context.dataset)})


def trained(
    settings: RunSettings, data: DataBundle, arm: str, sub: ResidualNetwork | None
) -> ResidualNetwork:
    """Train one arm, in memory."""
    training = settings.training
    torch.manual_seed(training.seed)
    network = create_network(settings, data)
    recipes: dict[str, dict[str, Any]] = {
        "longer": {"epochs": LONGER * training.epochs},
        "more_decay": {"weight_decay": MORE_DECAY * training.weight_decay},
        "warm_start": {
            "epochs": max(1, round(WARM_PART * training.epochs)),
            "lr": WARM_RATE * training.peak_lr,
            "warmup_epochs": 0.0,
        },
    }
    if arm == "zero_last":
        for block in network.blocks.values():
            torch.nn.init.zeros_(list(block.get_submodule("residual").parameters())[-1])
    if arm == "warm_start":
        assert sub is not None
        network = zero_extend(sub, num_blocks=network.num_blocks)
    setup = prepare(settings.with_training(**recipes.get(arm, {})), data, network=network)
    return train_in_memory(setup, setup.start(), f"{arm} {training.seed}")


def run(context: Context) -> dict[str, Any]:
    """Train every arm with every seed, and compute both sides."""
    rows = []
    for seed in context.seeds:
        settings = settings_of(context, seed)
        data = load_data(settings.data, seed=seed, splits=("train", "val"))
        m = SUB_BLOCKS[context.tier]
        fewer = replace(settings, model=replace(settings.model, num_blocks=m))
        small = trained(fewer, data, "small", None)
        found = _measure(small, data)
        gamma, decay = settings.training.gamma, settings.training.weight_decay
        assert gamma is not None
        n, norms = settings.model.num_blocks, squared_weight_norms(small)
        assert n is not None
        side = right_hand_side(found.losses, norms, gamma, decay, n)
        for arm in ARMS:
            context.report(f"{context.dataset}: {arm}, seed {seed}")
            network = trained(settings, data, arm, small)
            measured, norms = _measure(network, data), squared_weight_norms(network)
            value = objective(measured.losses, norms, gamma, decay)
            row = {"arm": arm, "seed": seed, "sub_blocks": m, "num_blocks": n, "objective": value}
            row |= {"right_hand_side": side, "holds": value <= side, "tightness": value / side}
            row |= {"losses": objective(measured.losses, norms, gamma, 0.0)}
            row |= {"decay": decay / 2 * sum(norms), "idle_decay": decay / 2 * sum(norms[m:])}
            rows.append({"dataset": context.dataset, **row, "num_images": measured.num_samples})
    return {"rows": rows}


def _measure(network: ResidualNetwork, data: DataBundle) -> Trajectory:
    return loss_trajectory(network, eval_batches(data.splits["train"], data.format))


def section(records: Sequence[Record]) -> list[str]:
    """Return the table."""

    def column(key: str, digits: int = 4) -> Any:
        return lambda row: spread(row[key], digits)

    def held(row: Row) -> str:
        return f"{sum(row['holds'])} of {len(row['holds'])}"

    columns: Columns = {
        "tier, data": "{record}",
        "training": "{arm}",
        "M of N": lambda row: f"{row['sub_blocks'][0]} of {row['num_blocks'][0]}",
        "J_N": column("objective"),
        "bound": column("right_hand_side"),
        "J_N / it": column("tightness", 3),
        "holds": held,
        "losses": column("losses"),
        "decay": column("decay"),
        "idle": column("idle_decay"),
    }
    return [TEXT, table(grouped(rows_of(records), "record", "arm"), columns)]


BOUND_TRAINING = Experiment(
    name="bound-training",
    title="Which training reaches the bound",
    datasets={"cpu": ("mnist",), "quick": ("digits",)},
    run=run,
    section=section,
)
