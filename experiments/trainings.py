"""Trainings in a work folder, what is cut from them, what they cost, and their rows."""

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from experiments.recipes import Settings
from experiments.records import Row
from experiments.runner import Context
from stagecost.calibration import recalibrate
from stagecost.cut import Cut
from stagecost.data.batches import num_batches
from stagecost.macs import count_macs, count_parameters, macs_by_part
from stagecost.models.catalogue import create_model
from stagecost.network import ResidualNetwork
from stagecost.objective import StageCost, mean_log_probabilities
from stagecost.paths import plan_paths
from stagecost.runs.trained import Split, Trained, open_trained
from stagecost.runs.training import TrainingResult, train
from stagecost.train.loop import OnStep
from stagecost.train.recipe import Moment
from stagecost.train.validation import CALIBRATION_IMAGES
from stagecost.trajectory import count_correct, evaluation_mode, terminal_score

PAPER: dict[str, dict[str, float]] = {
    "mnist": {"plain_full": 99.64, "plain_sub": 99.63, "stage_full": 99.62, "stage_pruned": 99.54},
    "cifar10": {"plain_full": 93.05, "plain_sub": 91.43, "stage_full": 91.59, "stage_pruned": 91.02},
    "cifar100": {"plain_full": 71.94, "plain_sub": 68.77, "stage_full": 69.97, "stage_pruned": 66.55},
}
"""The paper's own figures: test accuracy of homogeneous networks of 54 and 12 blocks, by an unpublished
recipe. They stand beside the rows for comparison; no row here repeats one."""


class Rule(Protocol):
    """A stage cost as a function of the moment that can say, as plain types, what it is."""

    def __call__(self, moment: Moment) -> StageCost: ...  # noqa: D102
    def to_json(self) -> Row: ...  # noqa: D102


@dataclass(frozen=True)
class Training:
    """What defines a training but for its images and its seed.

    Attributes:
        settings: by flag name.
        stage_cost: instead of the one that the settings describe.
        on_step: is told each step; `also` has what defines it.
        also: further values that define the training.
    """

    settings: Settings
    stage_cost: Rule | None = None
    on_step: OnStep | None = None
    also: Mapping[str, Any] | None = None

    def to_json(self) -> Row:
        """Return what defines it, as plain types."""
        cost = {} if self.stage_cost is None else {"stage_cost": self.stage_cost.to_json()}
        return {**self.settings, **cost, **(self.also or {})}


@dataclass(frozen=True)
class Run:
    """A finished training: its folder, what it told, and what defines it."""

    folder: Path
    result: TrainingResult
    training: Training

    def open(self) -> Trained:
        """Open its last checkpoint, on the device of its training."""
        return open_trained(self.folder, device=self.training.settings.get("device", "auto"))

    @property
    def seconds(self) -> float:
        """Spent in it."""
        return self.result.history[-1].seconds

    @property
    def val_accuracies(self) -> list[float]:
        """Percent, of y_0 … y_N on validation images at the end."""
        return list(self.result.history[-1].val_accuracies or ())


def digest(defining: Mapping[str, Any]) -> str:
    """Return eight letters and figures that follow from values for JSON."""
    return hashlib.sha256(json.dumps(dict(defining), sort_keys=True).encode()).hexdigest()[:8]


def trained_run(
    context: Context, name: str, training: Training, seed: int, data: str | None = None
) -> Run:
    """Train with one seed, go on with a training that was stopped, or find the finished one.

    The folder is named after what defines the training, its images among it: a recipe that was changed
    is trained anew beside the old runs, and an experiment finds the plain trainings of another one.
    """
    data = context.images(context.dataset) if data is None else data
    defining = {**training.to_json(), "data": data}
    folder = context.work / f"{name}-{digest(defining)}-seed{seed}"
    context.report(f"{context.dataset}: {name}, seed {seed}")
    given = {**training.settings, "data": data, "seed": seed}
    label, cost, watch = f"{context.dataset} {name} {seed}", training.stage_cost, training.on_step
    result = train(given, folder, resume=True, label=label, stage_cost=cost, on_step=watch)
    return Run(folder, result, training)


def runs_of(
    context: Context, kinds: Mapping[str, Training], data: str | None = None
) -> dict[str, list[Run]]:
    """Train every kind with every seed, one seed of all kinds first."""
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    for seed in context.seeds:
        for kind, training in kinds.items():
            runs[kind].append(trained_run(context, kind, training, seed, data))
    return runs


def cut_from(trained: Trained, cut: Cut) -> ResidualNetwork:
    """Return what a cut leaves; in a staged network statistics not of its own are estimated anew.

    Statistics that stayed as they were in training are those of its cuts, too.
    """
    small = trained.network.keep(cut)
    network, frozen = trained.network, trained.settings.training.freeze_norms
    if not (frozen or network.is_homogeneous or network.resolve(cut) in network.targets):
        recalibrate(small, trained.random_images(trained.load("train"), CALIBRATION_IMAGES))
    return small.eval()


def images_of_an_epoch(trained: Trained) -> tuple[int, int]:
    """Count the training images in the whole batches of an epoch, and the validation images."""
    splits = trained.load("train", "val").splits
    images = len(splits["train"])
    batch_size = min(trained.settings.training.batch_size, images)
    return batch_size * num_batches(images, batch_size), len(splits["val"])


def training_macs(run: Run) -> int:
    """Count the MACs of all passes of a run: three for a training image, one for a validation image.

    The network counts with the blocks that it had in each epoch. Where target cuts bear the stage cost,
    blocks that are computed again for them count again; the head's work for further outputs does not.
    """
    trained = run.open()
    settings, shape = trained.settings, trained.image_shape
    classes = len(trained.image_format.class_names)
    arguments = {**settings.model.arguments(), "num_classes": classes, "in_channels": shape[0]}
    whole = create_model(settings.model.model, **arguments)
    parts, targets = macs_by_part(whole, shape), [whole.resolve(cut) for cut in settings.stage.cuts()]
    images, validated = images_of_an_epoch(trained)
    total, left = 0, whole.resolve(Cut.whole())
    own = settings.stage.target_norms == "own"  # and passes of their own from x_0 on
    for entry in run.result.history:
        cuts = [left, *(Cut(tuple(k for k in cut.blocks if left.acts(k))) for cut in targets)]
        step = macs_of_cuts(parts, cuts)
        if own:
            bodies = [macs_of_cuts(parts, [cut]) - parts[0] - parts[-1] for cut in cuts]
            drawn = (settings.sampled_depths or len(targets)) / max(len(targets), 1)
            step = parts[0] + parts[-1] + bodies[0] + round(drawn * sum(bodies[1:]))
        total += 3 * images * step + validated * macs_of_cuts(parts, [left])
        left = left if entry.cut is None else Cut(tuple(entry.cut.kept_blocks))
    return total


def macs_of_cuts(parts: Sequence[int], cuts: Sequence[Cut]) -> int:
    """Count the MACs of one pass that computes some cuts: shared beginnings once, the head once.

    Args:
        parts: MACs of stem, blocks and head.
        cuts: by the positions of their acting blocks.
    """
    paths = plan_paths(tuple(cuts))
    blocks = (parts[1 + k] for path in paths for k in range(path.start, path.stop) if path.acts[k])
    return parts[0] + sum(blocks) + parts[-1]


def accuracy_of(trained: Trained, split: Split = "test") -> float:
    """Return the accuracy of a trained network on a split, in percent."""
    return terminal_score(trained.network, trained.batches(split), loss=trained.loss).accuracy


def accuracy_of_answers(trained: Trained, cuts: Sequence[Cut], split: Split = "test") -> float:
    """Return the accuracy, in percent, of the mean log-probabilities of several cuts' outputs."""
    correct, images = 0.0, 0
    with evaluation_mode(trained.network):
        for batch, targets in trained.batches(split):
            answers = mean_log_probabilities(trained.network(batch, cuts))
            correct += float(count_correct(answers[None], targets))
            images += len(targets)
    return 100 * correct / images


def row_of_runs(
    context: Context, arm: str, runs: Sequence[Run], cut: Cut | None = None, **more: Any
) -> Row:
    """Return the row of an arm: trained networks, or what a cut leaves of them, on the test images."""
    context.report(f"{context.dataset}: test images of {arm}")
    opened = [run.open() for run in runs]
    judged = [t if cut is None else replace(t, network=cut_from(t, cut)) for t in opened]
    return accuracy_row(
        context,
        arm,
        [accuracy_of(trained) for trained in judged],
        num_blocks=judged[0].network.num_blocks,
        **more,
        val_accuracies=[accuracy_of(trained, "val") for trained in judged],
        parameters=count_parameters(judged[0].network),
        macs=count_macs(judged[0].network, judged[0].image_shape),
        training_macs=round(statistics.mean(map(training_macs, runs))),
        seconds=round(statistics.mean(run.seconds for run in runs), 1),
    )


def accuracy_row(context: Context, arm: str, accuracies: Sequence[float], **more: Any) -> Row:
    """Return a row of one arm from its test accuracies, one a seed."""
    return {
        "dataset": context.dataset,
        "arm": arm,
        **more,
        "seeds": list(context.seeds),
        "test_accuracies": list(accuracies),
        "mean": statistics.mean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "paper": PAPER.get(context.dataset, {}).get(arm),
    }


def paper_difference(dataset: str, arm: str, other: str) -> float | None:
    """Return by how many points an arm is above another one in the paper; None where it does not say."""
    first, second = (PAPER.get(dataset, {}).get(name) for name in (arm, other))
    return None if first is None or second is None else round(first - second, 2)
