"""`stagecost exit`: thresholds for a drop or a budget from validation images, then the test images."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stagecost.data.batches import sample_batches
from stagecost.errors import StageCostError, refusing
from stagecost.exits.costs import Costs, Timing, mac_costs, measure_ratio, time_costs
from stagecost.exits.curve import (
    ExitCurve,
    ExitPoint,
    Outputs,
    all_outputs,
    curve_of,
    oracle_curve,
    tried,
)
from stagecost.exits.engine import EarlyExit, check_norms
from stagecost.exits.policy import CRITERIA, POLICY_FILE, Criterion, ExitPolicy
from stagecost.records import read_record
from stagecost.runs.certainty import Interval, check_points, paired_drop, warnings_on, wilson
from stagecost.runs.folder import RunFolder
from stagecost.runs.lock import locked
from stagecost.runs.results import Result
from stagecost.runs.trained import CheckpointName, Judged, Trained, open_trained
from stagecost.storage import read_json, write_json

TIMED_IMAGES = 256
"""Test images that are answered one by one, or four batches of them, to measure the time."""
LOG = logging.getLogger("stagecost")


@dataclass(frozen=True)
class ExitRow:
    """A point of a curve on the test images."""

    depths: tuple[int, ...]  #: at which the head is asked; one alone is a fixed cut
    threshold: float | None  #: at which an image leaves at the first of them; None for a fixed cut
    thresholds: tuple[float, ...]  #: the same at each of them but the last
    criterion: Criterion  #: what is compared with it
    accuracy: float  #: percent
    val_accuracy: float  #: percent, on the validation images that chose it
    mean_blocks: float  #: that an image goes through
    mean_macs_ratio: float  #: of the whole network's MACs
    expected_time_ratio: float  #: of its time, from the measured times of its parts
    combine: bool = False  #: whether the depths asked answer together


@dataclass(frozen=True)
class OracleRow:
    """What could be had by knowing the labels: each image leaves at the first depth that is right."""

    aliases: ClassVar[Mapping[str, str]] = {"last": "depth"}

    depth: int  #: the depth at which the others leave
    accuracy: float  #: percent
    mean_macs_ratio: float  #: of the whole network's MACs, the head being asked once


@dataclass(frozen=True)
class Exits(Result):
    """Early exit of a network."""

    aliases: ClassVar[Mapping[str, str]] = {"combined": "combine"}

    run: str  #: folder that the policy was saved in
    criterion: Criterion  #: how an image is found to be sure
    threshold: float | None  #: at which it leaves at the first depth; None if all leave at one depth
    thresholds: tuple[float, ...]  #: at which it leaves at each depth but the last
    depths: tuple[int, ...]  #: at which the head is asked
    combine: bool  #: whether the depths asked answer together
    accuracy_full: float  #: percent of the test images, of the whole network
    accuracy_exit: float  #: the same with exits
    interval_full: Interval | None  #: Wilson's, of the first
    interval_exit: Interval | None  #: of the second
    drop_interval: Interval  #: of the drop, in points, from the same images
    num_images: int  #: test images
    val_accuracy_full: float  #: percent of the validation images, of the whole network
    val_accuracy_exit: float  #: with exits
    num_val_images: int  #: validation images
    mean_blocks: float  #: that a test image goes through
    mean_macs_ratio: float  #: of the whole network's MACs, all heads that are asked included
    measured_time_ratio: float  #: of the whole network's time; the largest of `timings`
    expected_time_ratio: float  #: the same as it was expected from validation images
    timings: tuple[Timing, ...]  #: measured on test images, for each batch size
    leaving: tuple[float, ...]  #: part of the test images that leaves at each of `depths`
    #: policies that no other one beat on validation images, the cheapest first
    curve: tuple[ExitRow, ...]
    cuts: tuple[ExitRow, ...]  #: all leave at depth 0, 1, …, N
    oracle: tuple[OracleRow, ...]  #: the bound that knows the labels
    warnings: tuple[str, ...]  #: what makes the choice doubtful
    weights: str = ""  #: digest of the network's weights; empty in earlier versions

    def check(self, trained: Trained) -> None:
        """Refuse another network, or other weights of this one.

        Raises:
            ValueError: the exits were chosen for these.
        """
        if [row.depths for row in self.cuts] != [(k,) for k in range(trained.network.num_blocks + 1)]:
            raise ValueError("they were chosen for another number of blocks")
        if len(self.leaving) != len(self.depths):
            raise ValueError("it does not say how many images leave at each depth")
        if self.weights not in ("", trained.weights_digest):
            raise ValueError("they were chosen for other weights")
        policy = ExitPolicy(self.depths, self.thresholds, self.criterion, self.combine)
        if (trained.path / POLICY_FILE).is_file() and ExitPolicy.load(trained.path) != policy:
            raise ValueError(f"{POLICY_FILE} holds other ones")


def exit_early(
    run: str | Path,
    *,
    max_drop: float | None = None,
    max_macs: float | None = None,
    max_time: float | None = None,
    criterion: Criterion | Literal["all"] = "max-probability",
    combine: bool = False,
    batch: Sequence[int] = (1, 256),
    checkpoint: CheckpointName = "last",
    device: str = "auto",
    data: str | None = None,
    allow_trained: bool = False,
) -> Exits:
    """Choose where images may leave a network, save the policy beside it, and measure it.

    Args:
        run: folder of a run or a saved network.
        max_drop: points of validation accuracy that may be lost; the fastest such policy is taken.
        max_macs: part of the whole network's MACs that may be spent on average.
        max_time: part of its time; of the batch size that gains less.
        criterion: how an image is found to be sure, or all ways, of which the best is taken.
        combine: let the depths asked answer together.
        batch: batch sizes to measure; at most the number of test images is taken.
        data: where the images of the training are now, if they moved.
        allow_trained: go on where images of these splits were trained on.

    Raises:
        StageCostError: impossible limits or none, no policy within them, or images that are not there;
            nothing is saved then.
    """
    _check(max_drop, max_macs, max_time, batch)
    batch = tuple(dict.fromkeys(batch))
    trained = open_trained(run, checkpoint=checkpoint, device=device)
    with locked(trained.path, "is in use"):  # or say at once that nothing can be written there
        check_norms(trained.network, range(trained.network.num_blocks))
        val = _loaded(trained, "val", data, allow_trained=allow_trained)
        times = [_times(trained, val, size) for size in batch]
        LOG.info("choosing exits on %s validation images", f"{val.num_images:,}")
        outputs = all_outputs(trained.network, val.batches)
        macs = mac_costs(trained.network, trained.image_shape)
        criteria = CRITERIA if criterion == "all" else (criterion,)
        depths = trained_depths(trained)
        curve = curve_of(outputs, macs, times, criteria=criteria, combine=combine, depths=depths)
        chosen = curve.choose(max_drop=max_drop, max_macs=max_macs, max_time=max_time)
        LOG.info("reading the test images")
        judged = _loaded(trained, "test", data, allow_trained=allow_trained)
        timings = tuple(_timing(trained, judged, chosen.policy, size) for size in batch)
        doubts = warnings_on(curve.accuracy_full, curve.num_images, val.chance, max_drop)
        warnings = (*val.warnings, *judged.warnings, *doubts)
        result = _measured(trained, curve, chosen, macs, times, judged, timings, warnings)
        spent = {"macs": result.mean_macs_ratio, "time": result.measured_time_ratio}
        over = overspent(spent, {"macs": max_macs, "time": max_time})
        drop = result.accuracy_full - result.accuracy_exit
        lost = lost_more(drop, max_drop, result.num_val_images)
        result = replace(result, warnings=(*warnings, *over, *lost))
        write_json(RunFolder(trained.path).exits, result.to_json())
        chosen.policy.save(trained.path)
    return result


def overspent(spent: Mapping[str, float], budgets: Mapping[str, float | None]) -> list[str]:
    """Say where test images took a larger part of the whole network's cost than was allowed."""
    return [
        f"test images took {spent[what]:.3f} of the whole network's {what}, more than --max-{what} "
        f"{budget}: the limit was kept by what validation images let expect"
        for what, budget in budgets.items()
        if budget is not None and spent[what] > budget
    ]


def lost_more(drop: float, max_drop: float | None, num_val_images: int) -> list[str]:
    """Say that test images lost more points of accuracy than was allowed."""
    if max_drop is None or drop <= max_drop + 1e-9:
        return []
    return [
        f"test images lost {drop:.2f} points of accuracy, more than --max-drop {max_drop:g}: the limit "
        f"was kept on {num_val_images:,} validation images"
    ]


def trained_depths(trained: Trained) -> tuple[int, ...]:
    """Return the depths that a training was for; none if it was for all, or for other cuts."""
    indices, targets = trained.network.block_indices, trained.targets
    if indices != tuple(range(len(indices))) or not all(cut.is_prefix for cut in targets):
        return ()
    return tuple(cut.depth for cut in targets)


def saved_exits(trained: Trained) -> Exits | None:
    """Read what the verb last said of a network; None if it never did.

    Raises:
        StageCostError: it was said of another network, of other weights, or of another policy.
    """
    file = RunFolder(trained.path).exits
    if not file.is_file():
        return None
    remedy = (
        "run `stagecost exit` again, name the --checkpoint that it was for, or delete it and "
        f"{POLICY_FILE}"
    )
    with refusing(f"{file} does not tell of exits of this network", remedy, ValueError):
        exits = read_record(Exits, read_json(file))
        exits.check(trained)
    return exits


def _check(
    max_drop: float | None, max_macs: float | None, max_time: float | None, batch: Sequence[int]
) -> None:
    if max_drop is not None:
        check_points("--max-drop", max_drop)
    for name, budget in (("--max-macs", max_macs), ("--max-time", max_time)):
        if budget is not None and not 0 < budget <= 1:
            raise StageCostError(f"{name} is {budget}: give a part of the whole, up to 1")
    if max_drop is max_macs is max_time is None:
        raise StageCostError("say what may be lost or spent: give --max-drop, --max-macs or --max-time")
    if not batch or min(batch) < 1:
        written = ",".join(map(str, batch))
        raise StageCostError(f"--batch is '{written}': give batch sizes of at least 1, such as 1,256")


def _loaded(
    trained: Trained, split: Literal["val", "test"], data: str | None, *, allow_trained: bool
) -> Judged:
    if split == "val" and not trained.has_validation(data):
        raise StageCostError(
            f"{trained.path} was trained without validation images, which choose thresholds: train "
            "with --val-fraction 0.1"
        )
    bundle = trained.load(split, data=data)
    other = data is not None
    return trained.judged_on(bundle, split, other=other, allow_trained=allow_trained)


def _sample(trained: Trained, judged: Judged, batch_size: int) -> tuple[Tensor, int]:
    """Draw images to measure on, whole batches in random order; and images of a batch."""
    images = judged.batches.split
    size = min(batch_size, len(images))
    count = min(len(images), max(TIMED_IMAGES, 4 * size)) // size * size
    batches = sample_batches(
        images, trained.image_format, count=count, seed=0, batch_size=count, device=trained.device
    )
    return torch.cat([each for each, _ in batches]), size


def _times(trained: Trained, val: Judged, batch_size: int) -> Costs:
    LOG.info("measuring the parts of the network at batch size %d", batch_size)
    return time_costs(trained.network, *_sample(trained, val, batch_size))


def _timing(trained: Trained, test: Judged, policy: ExitPolicy, batch_size: int) -> Timing:
    LOG.info("measuring early exit at batch size %d", batch_size)
    images, size = _sample(trained, test, batch_size)
    return measure_ratio(trained.network, images, policy, size)


def _measured(
    trained: Trained,
    curve: ExitCurve,
    chosen: ExitPoint,
    macs: Costs,
    times: Sequence[Costs],
    judged: Judged,
    timings: tuple[Timing, ...],
    warnings: tuple[str, ...],
) -> Exits:
    """Read the test images: the curve from the outputs of all depths, the policy by the engine."""
    outputs = all_outputs(trained.network, judged.batches)
    early, policy = EarlyExit(trained.network, chosen.policy), chosen.policy
    answers = [early(images.to(trained.device)) for images, _ in judged.batches]
    right = torch.cat([a.labels for a in answers]).cpu() == outputs.targets
    depths, before = torch.cat([a.depths for a in answers]).cpu(), outputs.right[-1]
    shares = [float((depths == k).double().mean()) for k in policy.depths]
    full, exits = (100 * float(each.double().mean()) for each in (before, right))
    count, row = len(right), partial(_row, outputs, macs, times)
    return Exits(
        run=str(trained.path),
        criterion=policy.criterion,
        threshold=policy.thresholds[0] if policy.thresholds else None,
        thresholds=policy.thresholds,
        depths=policy.depths,
        combine=policy.combine,
        accuracy_full=full,
        accuracy_exit=exits,
        interval_full=wilson(full, count),
        interval_exit=wilson(exits, count),
        drop_interval=paired_drop(int((before & ~right).sum()), int((right & ~before).sum()), count),
        num_images=count,
        val_accuracy_full=curve.accuracy_full,
        val_accuracy_exit=chosen.accuracy,
        num_val_images=curve.num_images,
        mean_blocks=float(depths.double().mean()),
        mean_macs_ratio=sum(s * c for s, c in zip(shares, macs.leaving(policy.depths), strict=True))
        / macs.whole,
        measured_time_ratio=max(timing.ratio for timing in timings),
        expected_time_ratio=chosen.time_ratio,
        timings=timings,
        leaving=tuple(shares),
        curve=tuple(map(row, curve.points)),
        cuts=tuple(map(row, curve.cuts)),
        oracle=tuple(
            OracleRow(depth, accuracy, ratio)
            for depth, (ratio, accuracy) in enumerate(oracle_curve(outputs, macs))
        ),
        warnings=warnings,
        weights=trained.weights_digest,
    )


def _row(outputs: Outputs, macs: Costs, times: Sequence[Costs], point: ExitPoint) -> ExitRow:
    policy = point.policy
    ways = (policy.depths, policy.criterion, policy.combine)
    (test,) = tried(outputs, macs, times, *ways, thresholds=[policy.thresholds])
    return ExitRow(
        depths=policy.depths,
        threshold=policy.thresholds[0] if policy.thresholds else None,
        thresholds=policy.thresholds,
        criterion=policy.criterion,
        accuracy=test.accuracy,
        val_accuracy=point.accuracy,
        mean_blocks=test.mean_blocks,
        mean_macs_ratio=test.macs_ratio,
        expected_time_ratio=test.time_ratio,
        combine=policy.combine,
    )
