"""What is tried but not recommended: rules as functions, and short runs by them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from experiments.contrib import gamma_auto, shrink
from experiments.contrib.gamma_auto import FALL, LEAST, MOST, QUIET, RISE, START, Pieces, Steered
from experiments.contrib.group_lasso import group_lasso, shrink_branches
from experiments.contrib.schedules import Scheduled, from_depth, gamma_factor, hinged
from hypothesis import given
from hypothesis import strategies as st

from helpers import build
from stagecost.objective import squared_weight_norms
from stagecost.runs.trained import open_trained
from stagecost.runs.training import train
from stagecost.train.recipe import Moment

GUESS = math.log(10)
losses = st.floats(0, 3)
strengths = st.floats(LEAST, MOST)
shares = st.floats(1e-3, 1)
TINY: dict[str, Any] = {
    "data": "digits",
    "num_blocks": 4,
    "width": 4,
    "epochs": 4,
    "limit_train": 300,
    "limit_test": 50,
    "batch_size": 32,
    "sampled_depths": 0,
    "device": "cpu",
}

# ---------------------------------------------------------------------------------------------
# gamma that steers itself


@given(strength=strengths, gaps=st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1)), share=shares)
def test_a_larger_gap_never_gives_a_larger_strength(
    strength: float, gaps: tuple[float, float], share: float
) -> None:
    small, large = sorted(gaps)
    after = gamma_auto.next_strength(strength, large, share)
    assert after <= gamma_auto.next_strength(strength, small, share)
    assert LEAST <= after <= MOST
    assert -share * FALL - 1e-9 <= math.log(after / strength) <= share * RISE + 1e-9
    assert gamma_auto.next_strength(strength, gamma_auto.EPSILON, share) == pytest.approx(strength)


@given(pairs=st.lists(st.tuples(losses, losses), min_size=1, max_size=40), rise=st.floats(0, 1))
def test_the_whole_rule_is_monotone_and_bounded(pairs: list[tuple[float, float]], rise: float) -> None:
    steered, reference = [a for a, _ in pairs], [b for _, b in pairs]
    strength = gamma_auto.strength_after(steered, reference, GUESS)
    assert LEAST <= strength <= MOST
    worse = gamma_auto.strength_after([loss + rise for loss in steered], reference, GUESS)
    assert worse <= strength * (1 + 1e-9)


def test_the_rule_reaches_both_limits_and_begins_at_its_start() -> None:
    reference, quiet = [1.0] * 500, round(QUIET * 500)
    assert gamma_auto.strength_after([1.5] * quiet, reference, GUESS) == START
    assert gamma_auto.strength_after([1.5] * (quiet + 1), reference, GUESS) < START
    assert gamma_auto.strength_after([0.5] * 500, reference, GUESS) == pytest.approx(MOST)
    assert gamma_auto.strength_after([1.5] * 500, reference, GUESS) == LEAST


def test_a_run_is_steered_beside_a_plain_one(tmp_path: Path) -> None:
    plain = Pieces()
    train({**TINY, "gamma": 0.0}, tmp_path / "plain", on_step=plain)
    steps = 300 * 9 // 10 // 32  # of the images a tenth is for validation
    assert len(plain.losses) == 4 * min(10, steps)
    rule = Steered(plain.losses, num_blocks=4, num_classes=10, weight_decay=5e-4)
    result = train(TINY, tmp_path / "steered", stage_cost=rule, on_step=rule.on_step)
    assert rule.strength == gamma_auto.strength_after(rule.pieces.losses, plain.losses, GUESS)
    gammas = [entry.gamma for entry in result.history]
    assert len(set(gammas)) == 4
    assert all(LEAST <= 4 * gamma <= MOST for gamma in gammas)


# ---------------------------------------------------------------------------------------------
# Depth that shrinks


def test_the_blocks_that_stay_do_nearly_all_of_the_work() -> None:
    curve = [9.0, 1.5, 1.01, 1.02, 1.0]
    assert shrink.enough_blocks(curve, 4, 2.0, 0.0) == 2  # half of the blocks may take 3 % of 1
    assert shrink.enough_blocks(curve, 4, 2.0, 0.025) == 4  # that was spent
    assert shrink.enough_blocks([9.0, 0.1, 0.1, 0.1, 1.0], 4, 2.0, 0.0) == 2  # half at most leave
    assert shrink.enough_blocks([9.0, 9.0, 9.0], 2, 2.0, 0.0) == 1  # nothing is learned yet


@given(before=st.floats(0, 5), after=st.floats(0, 5))
def test_what_is_missing_is_a_part(before: float, after: float) -> None:
    missing = shrink.missing_part(before, after, 2.0)
    assert 0 <= missing <= 1
    assert (missing == 0) == (after <= before)


def test_blocks_leave_a_running_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrink, "TOLERANCE", 0.99)
    rule = shrink.Shrinking(TINY)
    result = train(TINY, tmp_path / "run", stage_cost=rule, after_epoch=rule.after_epoch)
    assert [cut.epoch for cut in result.cuts] == [1]  # in the first half, once
    assert result.num_blocks == rule.blocks == 2
    assert open_trained(tmp_path / "run").network.num_blocks == 2
    assert [entry.num_blocks for entry in result.history] == [4, 2, 2, 2]
    assert [entry.gamma > 0 for entry in result.history] == [True, False, False, False]


# ---------------------------------------------------------------------------------------------
# Schedules, hinge, group lasso


@given(progress=st.floats(0, 1))
def test_schedules_are_factors(progress: float) -> None:
    for schedule in ("constant", "warmup", "early", "late", "falling"):
        assert 0 <= gamma_factor(schedule, progress) <= 1
    assert gamma_factor("late", 0.4) == gamma_factor("early", 0.2) == gamma_factor("falling", 1.0) == 0
    assert gamma_factor("late", 0.71) == gamma_factor("early", 0.31) == gamma_factor("warmup", 0.5) == 1


def test_a_scheduled_stage_cost_at_its_moments() -> None:
    cost = Scheduled(0.25, from_depth(2, 4), "late", factors=(1.0, 2.0))
    assert cost(Moment(0, 0, 10, 10)).cuts == ()
    whole = cost(Moment(8, 0, 10, 10))
    assert whole.weights == (0.25, 0.5)
    assert whole.scale == pytest.approx(1.75)
    assert cost.decay(1.75) == pytest.approx(1.0)


def test_a_hinge_punishes_what_is_lost() -> None:
    torch.manual_seed(0)
    terminal, targets = torch.randn(8, 5), torch.randint(5, (8,))
    assert hinged(terminal, targets, terminal) == 0
    worse = terminal - 3 * F.one_hot(targets, 5)
    difference = F.cross_entropy(worse, targets) - F.cross_entropy(terminal, targets)
    assert hinged(worse, targets, terminal) == pytest.approx(float(difference))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1e6])
def test_the_proximal_step_shrinks_norms_by_the_threshold(threshold: float) -> None:
    network = build("staged")
    before = [square**0.5 for square in squared_weight_norms(network)]
    zero = shrink_branches(network, threshold)
    after = [square**0.5 for square in squared_weight_norms(network)]
    assert after == pytest.approx([max(0.0, norm - threshold) for norm in before], abs=1e-5)
    assert zero == [k for k, norm in enumerate(after) if norm == 0]


def test_a_group_lasso_brings_branches_to_zero(tmp_path: Path) -> None:
    train(TINY, tmp_path / "run", on_step=group_lasso(1e3))
    assert squared_weight_norms(open_trained(tmp_path / "run").network) == [0.0] * 4
