"""Networks that others trained, made shallower on new images: one training for both, or two?

Command     python -m experiments run pretrained --weights DIR [--dataset flowers-1500-lite0] …
Machine     cpu: one core, one thread; gpu: one GPU, all training images, 10 or 30 epochs
Runtime     lite0: four minutes a run on an idle core; vit: ten; resnet32: 25 to 70; other ResNets: two;
            vit on waste: up to 18, beside other work
Seeds       0, 1, 2; cpu: 0 to 5 for EfficientNet-Lite0

`python -m experiments.pretrained.files DIR` fetches the weights. Every arm starts from the pretrained
network with a linear head fitted to the training images (the ResNets of CIFAR-10 keep their own), and
learns for the same number of epochs:

linear      not trained at all: the head alone is fitted
whole       plain fine-tuning; its cut is made afterwards, without training
joint       the whole network, and a target cut that learns from it (half labels, half distillation)
joint_norms the same, the target with norms of its own (the ResNets of CIFAR-10)
cut_first   the same cut made first, its head fitted, then plain fine-tuning
cut_first_taught  the same, with the plainly fine-tuned whole network as its teacher
torch_pruning  as many MACs by fewer channels (resnet32, with the extra `peers`), then plain fine-tuning

`--arms joint_norms,cut_first` is of these alone.

The cut is chosen before any training on validation images of a seed of its own: of those with at least
a third fewer MACs that the search finds, the one with the least loss; of a transformer, a third of the
blocks in a row goes, by the loss with heads fitted anew; a ResNet of CIFAR-10 keeps two thirds of each
stage, those of least loss (resnet44 and resnet56 the first ones: their ways are too many). The recipes
were chosen on the same images (`experiments.pretrained.trials`).
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from experiments.peers.packages import is_installed
from experiments.pretrained.case import Case, settings_of
from experiments.pretrained.channels import with_channels_pruned
from experiments.records import Record, Row
from experiments.runner import Context, Experiment, Tier
from experiments.tables import Columns, accuracy, rows_of, table
from experiments.trainings import Run, Training, cut_from
from stagecost.cut import Cut
from stagecost.data.batches import eval_batches, num_batches
from stagecost.errors import StageCostError
from stagecost.latency import measure_latency
from stagecost.macs import count_macs, count_parameters, macs_by_part
from stagecost.network import ResidualNetwork
from stagecost.runs.certainty import Z
from stagecost.runs.pruning import right_answers
from stagecost.runs.trained import Trained
from stagecost.text import format_indices

NAMES = {
    "cpu": (
        "flowers-1500-lite0",
        "trashnet-112-lite0",
        "flowers-1500-vit",
        "trashnet-112-vit",
        *(f"cifar10-resnet{layers}" for layers in (20, 32, 44, 56)),
    ),
    "gpu": (
        *("flowers-1500-lite0", "trashnet-112-lite0", "flowers-1500-vit", "trashnet-112-vit"),
        "cifar10-resnet32",
    ),
    "quick": ("digits-tiny",),
}
TEXT = """\
Networks that others trained, fine-tuned on new images: plainly (`whole`), with a target cut that learns
from the whole network (`joint`, and `joint_norms` with norms of its own), and cut first (`cut_first`),
each for the same number of epochs. `cut_first_taught` learns from `whole` as well; the training of this
teacher is not in its MACs. `linear` is not trained but for its head; on CIFAR-10 it is the network as
given. The cut has the least loss on validation images of those tried with at most 0.67 of the MACs; of
resnet20, resnet44, resnet56 and `pretrained-first-blocks` only the first blocks of each stage were. The
difference is to the plainly fine-tuned whole network on the same test images, over all seeds, with its
95 % interval. `torch_pruning` removes channels within blocks instead, to at most as many MACs."""


TRIALS = "trials.jsonl"
TRIED = """\
Trials of recipes on validation images of a seed of their own, in their order
(`python -m experiments.pretrained.trials`); "norms anew": the cut with BatchNorm statistics estimated
anew."""


DEPTHS = "Validation accuracy at every depth at the end of the training, before any cut."
PRUNED, TAUGHT = "torch_pruning", "cut_first_taught"


Key = tuple[str, str]
"""Of a network that is judged: its arm, and which cut of it."""


def compared(joint: str) -> tuple[tuple[Key, Key], ...]:
    """Return what the aims are about: a network beside another one, on the same test images."""
    return (
        ((joint, "whole"), ("whole", "whole")),
        ((joint, "cut"), (joint, "whole")),
        ((joint, "cut"), ("cut_first", "cut")),
        ((joint, "cut"), (TAUGHT, "cut")),
        ((joint, "cut"), (PRUNED, "channels")),
    )


def run(context: Context) -> Row:
    """Train every arm with every seed, then read the test images."""
    case = Case.of(context)
    arms = arms_of(case)
    runs = {
        seed: {arm: case.run(arm, seed) for arm in case.arms if arm in arms} for seed in context.seeds
    }
    right: dict[Key, list[Tensor]] = {}
    judged: dict[Key, ResidualNetwork] = {}
    for seed in context.seeds:
        context.report(f"{context.dataset}: test images, seed {seed}")
        for key, network in networks(case, seed, arms, runs[seed]).items():
            right.setdefault(key, []).append(_right(case, seed, network))
            judged.setdefault(key, network.cpu())
    size = case.bundle(context.seeds[0]).format.size
    one_each = {cut: network for (_, cut), network in judged.items()}
    times = measure_latency(one_each, torch.randn(1, 3, size, size))
    rows = [
        {
            **_row(case, arm, cut, right),
            "macs": (macs := count_macs(network, (3, size, size))),
            "training_macs": training_macs(case, arm, macs),
            "parameters": count_parameters(network),
            "latency_ms": times[cut].p50_ms,
        }
        for (arm, cut), network in judged.items()
    ]
    bundle = case.bundle(context.seeds[0])
    named, num_val = {key: rows[0][key] for key in ("dataset", "model")}, len(bundle.splits["val"])
    return {
        "rows": rows,
        "comparisons": [
            {**named, **_compared(right, *pair)}
            for pair in compared(case.joint)
            if right.keys() >= {*pair}
        ],
        "trajectories": [
            {
                **named,
                "arm": arm,
                "seed": seed,
                "accuracies": arms[arm].val_accuracies,
                "num_val": num_val,
            }
            for seed, arms in runs.items()
            for arm in ("whole", case.joint)
            if arm in arms
        ],
        "search": json.loads((context.work / "cut.json").read_text())["tried"],
        "num_train": len(bundle.splits["train"]),
        "num_val": num_val,
    }


def arms_of(case: Case) -> list[str]:
    """Return the arms that are asked for, or all.

    Raises:
        StageCostError: an arm is unknown here, or cannot be without another.
    """
    prunes = case.model == "resnet32" and is_installed("torch-pruning")
    known = ["linear", *case.arms, TAUGHT, *([PRUNED] if prunes else [])]
    arms = case.context.arms(known, known)
    if TAUGHT in arms and "whole" not in arms:
        raise StageCostError(f"--arms has {TAUGHT}, which learns from whole: add whole to it")
    return arms


def networks(
    case: Case, seed: int, arms: Sequence[str], runs: dict[str, Run]
) -> dict[Key, ResidualNetwork]:
    """Return what is judged, by arm and cut."""
    opened: dict[str, Trained] = {arm: run.open() for arm, run in runs.items()}
    cut, name = case.cut, "cut"
    found: dict[Key, ResidualNetwork] = {}
    if "linear" in arms:
        found["linear", "whole"] = case.network(case.fitted(seed))
        found["linear", name] = case.network(case.fitted(seed, cut))
    for arm in ("whole", case.joint):
        if arm in arms:
            found[arm, "whole"] = opened[arm].network
            found[arm, name] = cut_from(opened[arm], cut)
    if "cut_first" in arms:
        found["cut_first", name] = opened["cut_first"].network
    if TAUGHT in arms:
        small, teacher = case.network(case.fitted(seed, cut)), opened["whole"].network
        found[TAUGHT, name] = case.trained_in_memory(TAUGHT, seed, small, teacher)
    if PRUNED in arms:
        found[PRUNED, "channels"] = with_channels_pruned(case, seed)
    return {key: network.to(case.settings["device"]) for key, network in found.items()}


def _right(case: Case, seed: int, network: ResidualNetwork) -> Tensor:
    bundle = case.bundle(seed)
    return right_answers(network, eval_batches(bundle.splits["test"], bundle.format))


def _row(case: Case, arm: str, cut: str, right: dict[Key, list[Tensor]]) -> Row:
    answers = right[arm, cut]
    accuracies = [100 * float(each.double().mean()) for each in answers]
    difference, interval = None, None
    if ("whole", "whole") in right:
        difference, interval = paired_difference(answers, right["whole", "whole"])
    return {
        "dataset": case.context.dataset.rpartition("-")[0],
        "model": case.named,
        "arm": arm,
        "cut": format_indices(case.cut.blocks) if cut == "cut" else cut,
        "seeds": list(case.context.seeds),
        "test_accuracies": accuracies,
        "mean": statistics.mean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "difference_to_whole": difference,
        "interval": interval,
        "num_test": len(answers[0]),
    }


def _compared(right: Mapping[Key, list[Tensor]], first: Key, second: Key) -> Row:
    difference, interval = paired_difference(right[first], right[second])
    return {
        "first": ", ".join(first),
        "second": ", ".join(second),
        "difference": difference,
        "interval": interval,
    }


def paired_difference(
    answers: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[float, tuple[float, float]]:
    """Return by how many points of accuracy answers are above others on the same images, and 95 % of it.

    Args:
        answers: which images are right, (n,), for each seed.
        others: the same.
    """
    each = torch.stack(list(answers)).double().mean(dim=0) - torch.stack(list(others)).double().mean(
        dim=0
    )
    mean, half = float(each.mean()), Z * float(each.std()) / len(each) ** 0.5
    return 100 * mean, (100 * (mean - half), 100 * (mean + half))


def training_macs(case: Case, arm: str, macs: int) -> int:
    """Count the MACs of all passes of a training: three for an image; shared beginnings count once.

    Args:
        case: of the arm.
        arm: its name.
        macs: of its own network, where that is no cut of the given one.
    """
    if arm == "linear":
        return 0
    seed, settings = case.context.seeds[0], case.settings
    bundle, network = case.bundle(seed), case.network(case.fitted(seed)).cpu()
    shape = bundle.format.shape
    cuts = {"whole": [Cut.whole()], "joint": [case.cut, Cut.whole()]}
    cuts |= {first: [case.cut] for first in ("cut_first", TAUGHT)}
    images = len(bundle.splits["train"])
    seen: int = settings["batch_size"] * num_batches(images, settings["batch_size"])
    epochs: int = settings["epochs"]
    if arm in cuts:
        macs = count_macs(network, shape, cuts[arm])
    elif arm == "joint_norms":  # a pass of its own for each, from x_0 on
        macs = sum(count_macs(network, shape, cut) for cut in cuts["joint"])
        macs -= macs_by_part(network, shape)[0]
    told = count_macs(network, shape) if arm == TAUGHT else 0  # forward alone; its training is `whole`
    return seen * epochs * (3 * macs + told)


def section(records: Sequence[Record]) -> list[str]:
    """Return the tables: the arms, what the aims are about, and the trials before."""

    def interval(row: Row, key: str = "difference_to_whole") -> str:
        if row["interval"] is None:
            return ""
        low, high = row["interval"]
        return f"{row[key]:+.2f} ({low:+.2f} to {high:+.2f})"

    columns: Columns = {
        "data": "{dataset}",
        "model": "{model}",
        "arm": "{arm}",
        "cut": "{cut}",
        "test accuracy": accuracy,
        "above whole, points": interval,
        "MACs": "{macs:,}",
        "ms an image": "{latency_ms:.1f}",
        "MACs of training": "{training_macs:.3g}",
        "test images": "{num_test}",
    }
    compared: Columns = {
        "data": "{dataset}",
        "model": "{model}",
        "arm, network": "{first}",
        "beside": "{second}",
        "points": lambda row: interval(row, "difference"),
    }
    over_depth: Columns = {
        "data": "{dataset}",
        "model": "{model}",
        "arm": "{arm}",
        "seed": "{seed}",
        "accuracy of y_0, y_1 … y_N": lambda row: " ".join(f"{a:.0f}" for a in row["accuracies"]),
        "images": "{num_val}",
    }
    parts = [TEXT, table(rows_of(records), columns)]
    if pairs := rows_of(records, "comparisons"):
        parts.append(table(pairs, compared))
    if trajectories := rows_of(records, "trajectories"):
        parts += [DEPTHS, table(trajectories, over_depth)]
    return parts + trials_tried(records[0].file.with_name(TRIALS))


def trials_tried(file: Path) -> list[str]:
    """Return a table of the trials of recipes, if there were some."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def settings(row: Row) -> str:
        return ", ".join(f"{key} {value}" for key, value in row["settings"].items())

    def accuracies(row: Row) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in row["val_accuracy"].items())

    columns: Columns = {
        "trial on": "{dataset}",
        "arm": "{arm}",
        "cut": lambda row: format_indices(row["blocks"]),
        "settings": settings,
        "validation accuracy": accuracies,
        "images": "{num_val}",
    }
    return [TRIED, table(lines, columns)] if lines else []


def trainings(tier: Tier, dataset: str) -> dict[str, Training]:
    """Return plain fine-tuning, for the record."""
    return {"whole": Training(settings_of(dataset, tier))}


PRETRAINED = Experiment(
    name="pretrained",
    title="Networks that others trained",
    datasets=NAMES,
    run=run,
    section=section,
    trainings=trainings,
    options=frozenset({"weights", "arms"}),
)
