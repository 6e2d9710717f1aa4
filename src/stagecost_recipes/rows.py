"""Rows about test accuracy: the same keys for every experiment that compares accuracies."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stagecost.training.cost import training_macs
from stagecost.training.trained import Trained
from stagecost.verbs.summaries import evaluation
from stagecost_recipes.cuts import first_blocks, first_of_each_stage
from stagecost_recipes.experiment import Context, Row
from stagecost_recipes.paper import paper_accuracy
from stagecost_recipes.runs import Run


def accuracy_row(
    dataset: str, arm: str, accuracies: Sequence[float], seeds: Sequence[int], **more: Any
) -> Row:
    """Return a row of one arm.

    Args:
        dataset: name of the data set.
        arm: name of the arm.
        accuracies: on the test images in percent, one a seed.
        seeds: in the same order.
        more: further entries.
    """
    return {
        "dataset": dataset,
        "arm": arm,
        **more,
        "seeds": list(seeds),
        "test_accuracies": list(accuracies),
        "mean": statistics.mean(accuracies),
        "std": sample_std(accuracies),
        "paper": paper_accuracy(dataset, arm),
    }


def row_of_runs(
    context: Context,
    arm: str,
    runs: Sequence[Run],
    keep: int | Sequence[int] | None = None,
    **more: Any,
) -> Row:
    """Return the row of an arm: trained networks, or what is left of them, on the test images.

    Args:
        context: says which data set and seeds.
        arm: name of the arm.
        runs: one a seed.
        keep: how many of the first blocks are judged, or of each stage's; all of them if None.
        more: further entries.
    """
    judged = [_kept(one.open(), keep) for one in runs]
    tests = [evaluation(trained, "test") for trained in judged]
    costs = [training_macs(one.folder, one.result.history) for one in runs]
    return accuracy_row(
        context.dataset,
        arm,
        [test["accuracy"] for test in tests],
        context.seeds,
        num_blocks=tests[0]["num_blocks"],
        **more,
        val_accuracies=[_val_accuracy(*pair, keep) for pair in zip(runs, judged, strict=True)],
        parameters=tests[0]["parameters"],
        macs=tests[0]["macs"],
        training_macs=round(statistics.mean(costs)),
        seconds=round(statistics.mean(one.result.seconds for one in runs), 1),
    )


def _kept(trained: Trained, keep: int | Sequence[int] | None) -> Trained:
    if keep is None:
        return trained
    if isinstance(keep, int):
        return replace(trained, network=first_blocks(trained.network, keep))
    return first_of_each_stage(trained, keep)


def _val_accuracy(run: Run, judged: Trained, keep: int | Sequence[int] | None) -> float:
    """Return the accuracy on validation images; the trajectory tells that of a truncation."""
    if keep is None or isinstance(keep, int):
        accuracy: float = run.result.history[-1]["val_accuracies"][-1 if keep is None else keep]
        return accuracy
    return float(evaluation(judged, "val")["accuracy"])


def sample_std(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None
