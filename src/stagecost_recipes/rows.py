"""Rows about test accuracy: the same keys for every experiment that compares accuracies."""

import statistics
from collections.abc import Sequence
from typing import Any

from stagecost_recipes.experiment import Row
from stagecost_recipes.paper import paper_accuracy


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


def sample_std(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None
