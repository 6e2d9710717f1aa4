"""Early exit from one training for several depths: how much time it saves, and what it loses.

Command     python -m experiments run exits --tier cpu [--data-root DIR]
Machine     one core, one thread; times are seconds of that core
Runtime     the trainings of `joint` of the experiment targets, and about five minutes for each seed
Seeds       0, 1, 2

whole      the whole network
cut-M      the first M blocks alone
drop       exits chosen for a drop of at most 0.2 points of validation accuracy
time       the most accurate exits within 0.48 of the time, by validation images
earlyon-S  earlyon's exits on the same frozen network, behind the depths that were trained for, with
           its own heads, training and calibration, for a share S of the MACs

Everything but the test accuracies, the shares and the times is chosen on validation images.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.peers.exits import EpochLoader, black_image
from experiments.peers.packages import is_installed, with_exits
from experiments.peers.protocol import EXITS_LR, Protocol
from experiments.peers.twins import plain_twin
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Columns, accuracy, rows_of, spread, table
from experiments.targets import trainings as trainings_of_targets
from experiments.trainings import Run, Training, accuracy_row, digest, trained_run
from stagecost.data.batches import sample_batches
from stagecost.exits.costs import seconds_of, streams_of
from stagecost.runs.exiting import Exits, exit_early
from stagecost.runs.trained import Trained
from stagecost.storage import read_json, write_json
from stagecost.train.setup import prepare

BATCHES = (1, 256)
SHARES = (0.45, 0.6)
ASKED: dict[str, dict[str, Any]] = {
    "drop": {"max_drop": 0.2},
    "time": {"max_time": 0.48},
}
TEXT = """\
Early exit from the networks of `joint` ([above](#one-training-several-depths)), without further heads
and without training, beside the whole network, fixed cuts of it, and earlyon's exits on its weights.
Times are parts of the whole network's, answered one by one and in batches of 256, in seconds of one
core. earlyon lets a batch leave only where all of it is sure."""


def trainings(tier: Tier, dataset: str) -> dict[str, Training]:
    """Return the one training, which the experiment `targets` shares."""
    return {"joint": trainings_of_targets(tier, dataset)["joint"]}


def run(context: Context) -> dict[str, Any]:
    """Measure every seed, as far as that was not done."""
    ((name, training),) = trainings(context.tier, context.dataset).items()
    found: dict[str, list[Row]] = {}
    for seed in context.seeds:
        done = trained_run(context, name, training, seed)
        key = digest({"asked": ASKED, "shares": SHARES, "batches": BATCHES})
        file = context.work / "exits" / f"{done.folder.name}-{key}.json"
        if not file.is_file():
            write_json(file, _measured(context, done, seed))
        for arm, row in read_json(file).items():
            found.setdefault(arm, []).append(row)
    rows = []
    for arm, measured in found.items():
        lists = {name: [row[name] for row in measured] for name in measured[0] if name != "accuracy"}
        rows.append(accuracy_row(context, arm, [row["accuracy"] for row in measured], **lists))
    return {"rows": rows}


def _measured(context: Context, done: Run, seed: int) -> dict[str, Row]:
    """Return a row for each arm, of one network."""
    rows: dict[str, Row] = {}
    for name, asked in ASKED.items():
        context.report(f"{context.dataset}: {name}, seed {seed}")
        exits = exit_early(done.folder, batch=BATCHES, device="cpu", **asked)
        rows[name] = _row_of(exits)
    whole = {
        "accuracy": exits.accuracy_full,
        "mean_macs_ratio": 1.0,
        "depths": [exits.cuts[-1].depths[0]],
    }
    cuts = {f"cut-{k}": exits.cuts[k] for k in target_depths(done)}
    fixed = {
        name: {
            "accuracy": cut.accuracy,
            "mean_macs_ratio": cut.mean_macs_ratio,
            "depths": list(cut.depths),
        }
        for name, cut in cuts.items()
    }
    later = _earlyon(context, done, seed) if is_installed("earlyon") else {}
    return {"whole": whole, **fixed, **rows, **later}


def target_depths(done: Run) -> list[int]:
    """Return the depths that a training was for, beside the whole one."""
    return [int(cut) for cut in done.training.settings["targets"]]


def _row_of(exits: Exits) -> Row:
    return {
        "accuracy": exits.accuracy_exit,
        "mean_macs_ratio": exits.mean_macs_ratio,
        "depths": list(exits.depths),
        "thresholds": list(exits.thresholds),
        "criterion": exits.criterion,
        "drop_interval": list(exits.drop_interval),
        "time_ratios": [timing.ratio for timing in exits.timings],
    }


def _earlyon(context: Context, done: Run, seed: int) -> dict[str, Row]:
    """Train earlyon's exits on the frozen network, and let it calibrate them for some shares."""
    from earlyon.core.thresholds import (
        calibrate_thresholds_for_budget,
        collect_head_logits,
        simulate_policy,
    )

    trained = done.open()
    context.report(f"{context.dataset}: earlyon, seed {seed}")
    model = _with_trained_exits(trained, target_depths(done), context)
    rows = {}
    for share in SHARES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says so when the share cannot be reached; the row, too
            calibrate_thresholds_for_budget(
                model, trained.batches("val"), target_computation=share, device="cpu"
            )
        found = simulate_policy(collect_head_logits(model, trained.batches("test"), "cpu"), model)
        rows[f"earlyon-{share:g}"] = {
            "accuracy": 100 * found.accuracy,
            "mean_macs_ratio": None,
            "depths": list(target_depths(done)),
            "time_ratios": [_time_ratio(trained, model, size) for size in BATCHES],
        }
    return rows


def _with_trained_exits(trained: Trained, depths: Sequence[int], context: Context) -> Any:
    """Return a frozen twin with exits, trained by earlyon's second stage as the peers' are."""
    from earlyon.training import stage2_train_exits

    linear: Any = trained.network.head.linear
    sizes = (linear.in_features, linear.out_features)
    epochs = Protocol.of(context.tier, context.dataset).later_epochs
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = EpochLoader(prepare(trained.settings, trained.load("train", "val")).batches)
        torch.manual_seed(trained.settings.training.seed)
        model = with_exits(plain_twin(trained.network), depths, black_image(trained), *sizes)
        stage2_train_exits(
            model, batches, epochs=epochs, lr=EXITS_LR, device="cpu", on_epoch_end=lambda log: None
        )
        _ = model.flops_estimate  # made once
    return model.eval()


def _time_ratio(trained: Trained, model: Any, batch_size: int, rounds: int = 5) -> float:
    """Measure earlyon's own inference beside the plain network, as our own is measured."""
    split = trained.load("test").splits["test"]
    count = min(len(split), max(256, 4 * batch_size))
    sample = sample_batches(split, trained.image_format, count=count, seed=0, batch_size=count)
    streams = streams_of(next(iter(sample))[0], min(batch_size, count))
    answer: Callable[[Tensor], object] = model if batch_size == 1 else model.forward_inference_batched

    @torch.inference_mode()
    def whole(images: Tensor) -> object:
        return model.backbone(images)

    def seconds(ask: Callable[[Tensor], object]) -> list[float]:
        return [seconds_of(ask, stream) for stream in streams]

    times = torch.tensor([[seconds(whole), seconds(answer)] for _ in range(rounds + 1)][1:])
    full, early = times.median(dim=0).values.sum(dim=1).tolist()
    return float(early / full)


def section(records: Sequence[Record]) -> list[str]:
    """Return the table."""
    rows = rows_of(records)
    whole = {row["record"]: row["test_accuracies"] for row in rows if row["arm"] == "whole"}

    def drop(row: Row) -> str:
        pairs = zip(whole[row["record"]], row["test_accuracies"], strict=True)
        return spread(before - after for before, after in pairs)

    def time(place: int) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: spread((each[place] for each in row.get("time_ratios", [])), 3)

    columns: Columns = {
        "tier, data": "{record}",
        "arm": "{arm}",
        "test accuracy": accuracy,
        "drop": drop,
        "MACs": lambda row: spread(row["mean_macs_ratio"], 3),
        **{f"time, batch size {size}": time(place) for place, size in enumerate(BATCHES)},
        "depths asked": lambda row: "; ".join(", ".join(map(str, each)) for each in row["depths"]),
    }
    return [TEXT, table(rows, columns)]


EXITS = Experiment(
    name="exits",
    title="Early exit",
    datasets={"cpu": ("mnist", "cifar10"), "quick": ("digits",)},
    run=run,
    section=section,
    trainings=trainings,
)
