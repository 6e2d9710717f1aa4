"""How sure an accuracy is: intervals, and words for a split that is too small for what it is asked.

Sources: Wilson (1927) for a proportion; Bonett and Price (2012) for the difference of two that were
measured on the same images.
"""

import math
from collections import Counter
from collections.abc import Sequence

from stagecost.errors import StageCostError

Z = 1.959964
"""Quantile of the normal distribution: intervals are of 95 %."""

Interval = tuple[float, float]
"""From … to, in percent or in points of accuracy."""


def check_points(name: str, points: float) -> None:
    """Refuse what is no number of points of accuracy."""
    if not (math.isfinite(points) and points >= 0):
        raise StageCostError(f"{name} is {points}: give points of accuracy, at least 0")


def wilson(accuracy: float, num_images: int) -> Interval | None:
    """Return Wilson's interval of an accuracy, both in percent; None without an accuracy."""
    if num_images < 1 or not math.isfinite(accuracy):
        return None
    share, weight = accuracy / 100, Z**2 / num_images
    centre = (share + weight / 2) / (1 + weight)
    half = (
        Z * math.sqrt(max(0.0, share * (1 - share)) / num_images + (weight / Z / 2) ** 2) / (1 + weight)
    )
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def paired_drop(lost: int, gained: int, num_images: int) -> Interval:
    """Return the interval of a drop of accuracy, in points, from the same images before and after.

    Some were right before and are `lost`, some were wrong and are `gained`.
    """
    total = num_images + 2
    fewer, more = (lost + 1) / total, (gained + 1) / total
    half = Z * math.sqrt((fewer + more - (fewer - more) ** 2) / total)
    return 100 * max(-1.0, fewer - more - half), 100 * min(1.0, fewer - more + half)


def warnings_on(
    accuracy: float, num_images: int, chance: float, tolerance: float | None
) -> tuple[str, ...]:
    """Say what makes a depth that is chosen from accuracies doubtful.

    Args:
        accuracy: of the whole network, percent.
        num_images: that it was measured on.
        chance: accuracy of always guessing the most frequent class, percent.
        tolerance: points of accuracy that may be missing; None if none is asked about.
    """
    said = []
    image = 100 / num_images
    if tolerance is not None and 0 < tolerance < image:
        said.append(
            f"one image of {num_images} is {image:.2f} points, more than the tolerance of "
            f"{tolerance:g}: use more images, or a larger tolerance"
        )
    interval = wilson(accuracy, num_images)
    if interval is not None and interval[0] <= chance:
        said.append(
            f"{accuracy:.1f} % on {num_images} images is hardly above always guessing the most frequent "
            f"class ({chance:.1f} %): no depth can be chosen from it, train the network first"
        )
    return tuple(said)


def chance_of(targets: Sequence[int]) -> float:
    """Return the accuracy of always guessing the most frequent class, in percent."""
    return 100 * max(Counter(targets).values()) / len(targets)
