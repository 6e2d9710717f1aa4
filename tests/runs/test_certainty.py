"""Intervals against scipy and against simulation, and what is said of splits that are too small."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from stagecost.runs.certainty import chance_of, paired_drop, warnings_on, wilson


@given(data=st.data(), count=st.integers(1, 5000))
def test_wilson_is_that_of_scipy(data: st.DataObject, count: int) -> None:
    right = data.draw(st.integers(0, count))
    expected = binomtest(right, count).proportion_ci(method="wilson")
    interval = wilson(100 * right / count, count)
    assert interval == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-4)


def test_without_an_accuracy_there_is_no_interval() -> None:
    assert wilson(math.nan, 10) is None
    assert wilson(50.0, 0) is None


@pytest.mark.parametrize(
    ("lost", "gained", "count"), [(0.05, 0.03, 200), (0.2, 0.1, 60), (0.01, 0, 500)]
)
def test_the_interval_of_a_drop_holds_the_true_one(lost: float, gained: float, count: int) -> None:
    """In 95 % of repetitions, give or take what 2000 of them can tell."""
    draw, holds = random.Random(0), 0
    for _ in range(2000):
        fates = [draw.random() for _ in range(count)]
        worse = sum(fate < lost for fate in fates)
        better = sum(lost <= fate < lost + gained for fate in fates)
        low, high = paired_drop(worse, better, count)
        holds += low <= 100 * (lost - gained) <= high
    assert 0.93 < holds / 2000 < 0.98


@given(lost=st.integers(0, 50), gained=st.integers(0, 50), same=st.integers(0, 50))
def test_a_drop_lies_in_its_interval(lost: int, gained: int, same: int) -> None:
    count = max(1, lost + gained + same)
    low, high = paired_drop(lost, gained, count)
    assert -100 <= low <= 100 * (lost - gained) / (count + 2) <= high <= 100
    mirrored = paired_drop(gained, lost, count)
    assert (low, high) == pytest.approx((-mirrored[1], -mirrored[0]))


def test_one_image_more_than_the_tolerance() -> None:
    (said,) = warnings_on(90.0, 144, 10.0, 0.5)
    assert "one image of 144 is 0.69 points" in said
    assert warnings_on(90.0, 144, 10.0, 0.7) == ()
    assert warnings_on(90.0, 144, 10.0, None) == ()


def test_hardly_above_chance() -> None:
    (said,) = warnings_on(14.0, 144, 10.0, 1.0)
    assert "hardly above always guessing the most frequent class (10.0 %)" in said
    assert warnings_on(15.0, 10_000, 10.0, 1.0) == ()
    assert warnings_on(95.5, 400, 95.0, 1.0)  # nearly all images are of one class


@given(targets=st.lists(st.integers(0, 5), min_size=1))
def test_chance_is_that_of_the_most_frequent_class(targets: list[int]) -> None:
    guesses = [100 * sum(label == guess for label in targets) / len(targets) for guess in range(6)]
    assert chance_of(targets) == max(guesses)
