"""Early exit: costs by hand, the curve over thresholds, what is chosen on it, times."""

from collections import Counter

import pytest
import torch
from torch import nn

import stagecost as sc
from helpers import build, images, loader
from stagecost.errors import StageCostError
from stagecost.exits.costs import Costs, measure_ratio, time_costs, tried_depths
from stagecost.exits.curve import (
    Outputs,
    all_outputs,
    curve_of,
    oracle_curve,
    tried,
)

EVEN = Costs(cuts=(2.0, 4.0, 6.0, 8.0), asking=(1.0,) * 4)

SEVEN = Costs(tuple(map(float, range(2, 10))), asking=(0.1,) * 8)


def test_what_leaving_costs_counts_every_head_that_was_asked() -> None:
    assert EVEN.whole == 8
    assert EVEN.leaving((1, 3)) == [4, 8 + 1]
    assert Costs(EVEN.cuts, (0.5, 2.0, 3.0, 4.0)).leaving((0, 1, 3)) == [2, 4 + 0.5, 8 + 0.5 + 2]


def made_outputs(seed: int = 0, blocks: int = 3) -> Outputs:
    """Make outputs that are right the more often, the deeper they are, and surer when right."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(4, (400,), generator=generator)
    right = nn.functional.one_hot(targets, 4).float()
    noise = torch.randn(blocks + 1, 400, 4, generator=generator)
    return Outputs(torch.linspace(0.2, 3, blocks + 1)[:, None, None] * right + noise, targets)


@pytest.mark.parametrize("combine", [False, True])
def test_the_curve_is_never_below_the_cuts(combine: bool) -> None:
    outputs = made_outputs()
    curve = curve_of(outputs, EVEN, combine=combine)
    times, accuracies = [p.time_ratio for p in curve.points], [p.accuracy for p in curve.points]
    assert times == sorted(set(times))
    assert accuracies == sorted(set(accuracies))
    for cut in curve.cuts:
        assert max(p.accuracy for p in curve.points if p.time_ratio <= cut.time_ratio) >= cut.accuracy
    assert curve.accuracy_full == 100 * float(outputs.right[-1].double().mean())
    assert any(len(point.policy.depths) > 1 for point in curve.points)
    for point in curve.points:
        assert point == tried(outputs, EVEN, (), *_ways(point.policy))[0]


def _ways(policy: sc.ExitPolicy) -> tuple[object, ...]:
    return policy.depths, policy.criterion, policy.combine, [policy.thresholds]


def test_each_number_of_depths_that_agree_is_moved_by_itself() -> None:
    curve = curve_of(made_outputs(blocks=7), SEVEN, criteria=("patience",))
    several = [point.policy.thresholds for point in curve.points if len(point.policy.thresholds) > 1]
    assert any(len(set(thresholds)) > 1 for thresholds in several)


def test_images_leave_at_the_depths_that_are_given() -> None:
    outputs = made_outputs()
    curve = curve_of(outputs, EVEN, depths=(2, 1))
    asked = {point.policy.depths for point in curve.points if len(point.policy.depths) > 1}
    assert asked
    assert set().union(*asked) <= {1, 2, outputs.num_blocks}
    assert len(curve.cuts) == outputs.num_blocks + 1
    for depths in ((1, 9), (-1,)):
        with pytest.raises(StageCostError, match="depth"):
            curve_of(outputs, EVEN, depths=depths)


def test_a_point_of_the_curve_is_what_leaving_brings() -> None:
    outputs = made_outputs()
    (point,) = tried(
        outputs, EVEN, [EVEN, Costs((1.0, 2, 2, 2), (1.0,) * 4)], (1, 3), thresholds=[(0.6,)]
    )
    sure = outputs.logits[1].softmax(1).amax(1) >= 0.6
    right = torch.where(sure, outputs.right[1], outputs.right[3])
    share = float(sure.double().mean())
    assert 0.1 < share < 0.9
    assert point.accuracy == pytest.approx(100 * float(right.double().mean()))
    assert point.mean_blocks == pytest.approx(share + 3 * (1 - share))
    assert point.macs_ratio == pytest.approx((4 * share + 9 * (1 - share)) / 8)
    # Of two times the one counts of which the larger part is spent.
    assert point.time_ratio == pytest.approx(max(point.macs_ratio, (2 * share + 3 * (1 - share)) / 2))


def test_a_policy_is_chosen_for_a_drop_or_a_budget() -> None:
    outputs = made_outputs()
    curve = curve_of(outputs, EVEN)
    within = curve.choose(max_drop=2)
    assert within.accuracy >= curve.accuracy_full - 2 - 1e-9
    cheaper = [p for p in curve.points if p.time_ratio < within.time_ratio]
    assert cheaper
    assert all(p.accuracy < curve.accuracy_full - 2 for p in cheaper)
    for limit in ({"max_macs": 0.7}, {"max_time": 0.7}):
        best = curve.choose(**limit)  # type: ignore[arg-type]
        assert best.macs_ratio <= 0.7
        assert best.accuracy == max(p.accuracy for p in curve.points if p.macs_ratio <= 0.7)
    for limits, words in (
        ({}, "max_drop, max_macs or max_time"),
        ({"max_drop": -1.0}, "max_drop is -1.0"),
        ({"max_macs": 0.0}, "max_macs is 0.0"),
        ({"max_time": float("nan")}, "max_time is nan"),
        ({"max_macs": 0.01}, "no exits cost as little as 0.01"),
        ({"max_drop": 0.0, "max_macs": 0.3}, "no threshold keeps within 0 points"),
    ):
        with pytest.raises(StageCostError, match=words):
            curve.choose(**limits)  # type: ignore[arg-type]


def test_a_budget_of_macs_takes_what_leads_in_macs_and_not_in_time() -> None:
    """Two blocks take the longest here: no policy that leads in time leaves there for all."""
    outputs = made_outputs()
    slow = Costs((1.0, 1.0, 9.0, 8.0), (0.1,) * 4)
    curve = curve_of(outputs, EVEN, [slow])
    two = curve.cuts[2]
    alike = [p.accuracy for p in curve.points if p.macs_ratio <= two.macs_ratio]
    chosen = curve.choose(max_macs=two.macs_ratio)
    assert max(alike) < two.accuracy <= chosen.accuracy
    assert chosen.macs_ratio <= two.macs_ratio
    assert chosen in curve.by_macs
    assert curve_of(outputs, EVEN).by_macs == ()
    times = [p.time_ratio for p in curve.points]
    assert times == sorted(set(times))


def test_a_cut_within_two_budgets_is_found_where_others_lead_in_each() -> None:
    """Without any blocks it takes fewer MACs, with two less time, and both are better."""
    right = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    outputs = Outputs(torch.stack([1 - right, right], dim=2).float(), torch.ones(4, dtype=torch.long))
    curve = curve_of(outputs, EVEN, [Costs((9.0, 5.0, 3.0, 10.0), (9.0,) * 4)])
    chosen = curve.choose(max_macs=0.6, max_time=0.6)
    assert (chosen.policy.depths, chosen.accuracy) == ((1,), 50)


def test_the_oracle_leaves_at_the_first_depth_that_is_right() -> None:
    logits = torch.zeros(4, 3, 2)  # right at depths 1 and 3; never; at 2
    logits[:, :, 1] = 1
    logits[1, 0, 0] = logits[3, 0, 0] = logits[2, 2, 0] = 2
    found = oracle_curve(Outputs(logits, torch.tensor([0, 0, 0])), EVEN)
    assert [round(accuracy, 1) for _, accuracy in found] == [0, 33.3, 66.7, 66.7]
    assert [ratio * 8 for ratio, _ in found] == pytest.approx([2, 4, (4 + 6 + 6) / 3, (4 + 8 + 6) / 3])


def test_few_depths_of_a_deep_network_are_tried() -> None:
    assert tried_depths(4) == [0, 1, 2, 3, 4]
    many = tried_depths(200)
    assert (many[0], many[-1], len(many)) == (0, 200, 17)


def test_the_curve_of_a_network_and_images() -> None:
    network = build("staged")
    curve = sc.exit_curve(network, loader(), (3, 16, 16), criteria=("margin",))
    assert curve.num_images == 13
    assert curve.cuts[-1].policy.depths == (7,)
    assert curve.cuts[-1].macs_ratio == 1
    assert network.training
    with pytest.raises(StageCostError, match="no images to choose exits on"):
        sc.exit_curve(network, [], (3, 16, 16))
    with pytest.raises(StageCostError, match="class labels"):
        all_outputs(network, [(images(4), torch.zeros(4))])


def test_leaving_early_takes_less_time() -> None:
    network = sc.create_model("homogeneous", num_blocks=12, width=16).eval()
    x = torch.randn(8, 3, 24, 24)
    times = time_costs(network, x, 4, rounds=3)
    assert len(times.cuts) == len(times.asking) == 13
    assert 0 < times.cuts[2] < 0.6 * times.whole
    assert 0 < times.asking[0] < times.cuts[3]
    early = measure_ratio(network, x, sc.ExitPolicy((2,)), 4, rounds=3)
    assert (early.batch_size, early.num_images) == (4, 8)
    assert early.latency_ms_exit < early.latency_ms_full
    assert early.ratio_range[0] <= early.ratio_range[1] < 0.8
    assert early.ratio < 0.6


def test_the_ratio_of_times_is_in_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each round another stream of the whole network is interrupted, which the medians leave out."""
    calls, interrupted = Counter[int](), {1: 2, 2: 2, 3: 3}  # the first stream warms up once

    def seconds(engine: sc.EarlyExit, stream: list[torch.Tensor]) -> float:
        whole, place = engine.policy.depths == (7,), int(stream[0].flatten()[0])
        calls[place] += whole
        return 3.0 if whole and calls[place] == interrupted[place] else 1.0

    monkeypatch.setattr("stagecost.exits.costs.seconds_of", seconds)
    x = torch.arange(1.0, 4.0).repeat_interleave(32).view(96, 1, 1, 1)
    timing = measure_ratio(build("staged").eval(), x, sc.ExitPolicy((2,)), 32, rounds=3)
    assert (timing.ratio, timing.ratio_range) == (1.0, (0.6, 1.0))
