"""Pruning: truncation is exact, plans say what happens, stages are searched, optimisers go along."""

import math
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stagecost as sc
from helpers import build, images, labels, loader
from stagecost.cut import Cut, stage_counts
from stagecost.errors import StageCostError
from stagecost.prune import Limits, choose, possible_cuts
from stagecost.text import format_indices
from stagecost.trajectory import Score, evaluate_cuts, terminal_score


def test_a_count_that_the_rows_of_the_trajectory_have() -> None:
    """Also one that is less than the number of stages: of the first the skips are identities."""
    network, data = build("staged", blocks_per_stage=(1, 1, 1)).eval(), loader()
    cut = sc.Cut((1, 2))
    trajectory = sc.loss_trajectory(network, data, cuts=[cut])
    assert sc.plan_pruning(network, trajectory, keep=2).cut == cut
    with pytest.raises(StageCostError, match="keeping True of"):
        sc.plan_pruning(network, trajectory, keep=True, loader=data)


def test_what_to_keep_is_a_number_or_a_cut() -> None:
    network, data = build("homogeneous"), loader()
    trajectory = sc.loss_trajectory(network, data)
    assert sc.plan_pruning(network, trajectory, keep=np.int64(1)).kept_blocks == (0,)
    with pytest.raises(StageCostError, match="of 4 blocks, and the network has 2: measure"):
        sc.plan_pruning(network.keep(sc.Cut.first(2)), trajectory, keep=1)
    for keep in (1.5, [0], "1"):
        with pytest.raises(StageCostError, match="give how many blocks stay, or a cut"):
            sc.plan_pruning(network, trajectory, keep=keep)
    for batch in ({"images": 1, "labels": 2}, (1, 2, 3)):
        for read in (sc.loss_trajectory, sc.recalibrate, partial(sc.block_importance, gamma=0.5)):
            with pytest.raises(StageCostError, match=r"give batches of \(inputs, targets\)"):
                read(network, [batch])


def test_a_plan_is_of_one_network() -> None:
    """What it has cut has other blocks at the same positions."""
    network, data = build("homogeneous"), loader()
    plan = sc.plan_pruning(network, sc.loss_trajectory(network, data), keep=sc.Cut((0, 2)), loader=data)
    with pytest.raises(StageCostError, match="plan is of 4 blocks, and the network has 3: plan anew"):
        plan.apply(network.keep(sc.Cut.without(0)))


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_truncation_is_exact_to_the_last_bit(kept: int) -> None:
    network, data = build("homogeneous"), loader()
    trajectory = sc.loss_trajectory(network, data)
    plan = sc.plan_pruning(network, trajectory, keep=kept)
    small = plan.apply(network)
    assert plan.kept_blocks == tuple(range(kept))
    with torch.no_grad():
        assert torch.equal(small.eval()(images()), network.eval()(images(), depths=kept))
    score = terminal_score(small, data)
    assert (plan.accuracy_predicted, plan.loss_predicted) == (score.accuracy, score.loss)
    assert plan.parameters_after == sc.count_parameters(small)
    assert plan.macs_after == sc.count_macs(small, (3, 16, 16))
    assert plan.parameters_before == sc.count_parameters(network)
    assert plan.macs_before == sc.count_macs(network, (3, 16, 16))
    assert network.num_blocks == 4, "the network itself stays whole"
    assert f"keep {kept} of 4 blocks" in str(plan)


def test_max_drop_keeps_the_fewest_blocks_within() -> None:
    network = build("homogeneous")
    trajectory = sc.Trajectory(
        rows=tuple(
            Score(Cut.first(k), loss, accuracy, 10)
            for k, (loss, accuracy) in enumerate(
                zip((2.0, 1.0, 0.5, 0.4, 0.4), (10.0, 70.0, 89.5, 89.9, 90.0), strict=True)
            )
        ),
        residual_ratios=(1.0,) * 4,
        weight_norms=(1.0,) * 4,
        stage_starts=(0,),
        image_shape=(3, 16, 16),
    )
    for max_drop, kept in [(0.0, 4), (0.1, 3), (0.5, 2), (20.0, 1)]:
        assert len(sc.plan_pruning(network, trajectory, max_drop=max_drop).kept_blocks) == kept
    with pytest.raises(StageCostError, match="more than max_drop"):
        sc.plan_pruning(network, trajectory, max_drop=0.3, keep=2)
    assert len(sc.plan_pruning(network, trajectory, max_drop=0.5, keep=3).kept_blocks) == 3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "say how much"),
        ({"keep": 0}, "impossible"),
        ({"keep": 5}, "impossible"),
        ({"keep": -1}, "impossible"),
        ({"keep": True}, "impossible"),
        ({"keep": Cut.stages(1, 1)}, "impossible"),
        ({"keep": Cut.stages(0)}, "impossible"),
        ({"keep": Cut.first(0)}, "without any block"),
        ({"keep": Cut.first(5)}, "block 4 is impossible"),
        ({"max_drop": -1.0}, "max_drop"),
        ({"max_drop": math.nan}, "max_drop"),
    ],
)
def test_impossible_plans_are_refused(arguments: dict[str, object], match: str) -> None:
    network = build("homogeneous")
    trajectory = sc.loss_trajectory(network, loader())
    with pytest.raises(StageCostError, match=match):
        sc.plan_pruning(network, trajectory, **arguments)  # type: ignore[arg-type]


def test_staged_search_gives_every_vector_as_if_it_were_cut() -> None:
    network, data = build("staged").eval(), loader()
    scores = evaluate_cuts(network, data, possible_cuts(network))
    by_stages = {stage_counts(score.cut, network.stage_positions): score for score in scores}
    assert set(by_stages) == set(product(range(1, 3), range(1, 4), range(1, 3)))
    for score in scores:
        alone = terminal_score(network.keep(score.cut), data)
        assert score.accuracy == pytest.approx(alone.accuracy)
        assert score.loss == pytest.approx(alone.loss, rel=1e-5)
    whole = by_stages[2, 3, 2]
    assert whole.loss == pytest.approx(sc.loss_trajectory(network, data).losses[-1])


def test_staged_plans() -> None:
    network, data = build("staged"), loader()
    trajectory = sc.loss_trajectory(network, data)
    with pytest.raises(StageCostError, match="loader"):
        sc.plan_pruning(network, trajectory, max_drop=1.0)
    plan = sc.plan_pruning(network, trajectory, keep=Cut.stages(1, 2, 1), loader=data)
    assert plan.kept_blocks == (0, 2, 3, 5)
    small = plan.apply(network)
    assert plan.parameters_after == sc.count_parameters(small)
    assert plan.macs_after == sc.count_macs(small, (3, 16, 16))
    assert plan.accuracy_predicted == pytest.approx(terminal_score(small, data).accuracy)
    scores = evaluate_cuts(network, data, possible_cuts(network))
    five = sc.plan_pruning(network, trajectory, keep=5, loader=data)
    best = max(score.accuracy for score in scores if len(score.cut.blocks) == 5)
    assert five.accuracy_predicted == best
    assert len(five.kept_blocks) == 5
    free = sc.plan_pruning(network, trajectory, max_drop=100.0, loader=data)
    assert free.kept_blocks == (0, 2, 5), "anything goes, so the cheapest vector is chosen"
    with pytest.raises(StageCostError, match="from 3 to 7"):
        sc.plan_pruning(network, trajectory, keep=2, loader=data)


@pytest.mark.parametrize("limits", [{}, {"max_drop": 2.0}, {"max_loss_increase": 0.5}])
@pytest.mark.parametrize("best", [Cut((0, 1, 2)), Cut((0, 2, 3))])
def test_of_the_cuts_to_as_many_blocks_the_best_stays(best: Cut, limits: dict[str, float]) -> None:
    """A limit beside their number refuses, and does not choose the cheapest."""
    network = build("staged", blocks_per_stage=(2, 2), widths=(4, 4))
    trajectory = sc.loss_trajectory(network, loader(), cuts=[Cut((0, 1, 2)), Cut((0, 2, 3))])
    scores = [
        replace(row, loss=0.5 if row.cut == best else 0.8, accuracy=90.0 if row.cut == best else 89.0)
        for row in trajectory.rows
    ]
    plan = sc.plan_pruning(network, replace(trajectory, rows=tuple(scores)), keep=3, **limits)
    assert plan.cut == best


def scored(blocks: tuple[int, ...], loss: float, accuracy: float = 90.0) -> Score:
    return Score(Cut(blocks), loss, accuracy, 100)


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        ({"max_drop": 2.0}, (0, 1)),  # two blocks that take less than one
        ({"max_drop": 0.5}, (0, 2)),  # of two that take as much the one that loses less
        ({"max_drop": 5.0}, (0,)),
        ({"max_loss_increase": 0.15}, (0, 2)),
        ({"max_drop": 0.0}, (0, 1, 2, 3)),
        ({}, (0, 1, 2, 3)),
    ],
)
def test_the_cheapest_cut_is_that_of_the_fewest_macs(
    limits: dict[str, float], chosen: tuple[int, ...]
) -> None:
    whole = scored((0, 1, 2, 3), 0.5)
    others = [
        scored((3,), 0.55, 89.9),
        scored((0,), 1.0, 85.0),
        scored((0, 1), 0.8, 88.5),
        scored((1, 2), 0.63, 89.5),
        scored((0, 2), 0.6, 89.6),
    ]
    macs = [7, 10, 10, 20, 90]  # of y_0, and of each branch
    assert choose([*others, whole], macs, Limits(whole, **limits)).cut == Cut(chosen)


def test_a_refusal_names_the_limit_that_is_exceeded() -> None:
    """And not a drop of just what may be lost, which rounding makes a little larger."""
    limits = Limits(scored((0, 1), 0.5), max_drop=0.2, max_loss_increase=0.1)
    score = scored((0,), 0.9, 89.8)
    assert not limits.allow(score)
    assert limits.exceeded(score) == "0.4 of loss, more than max_loss_increase 0.1"


def test_too_many_vectors_are_thinned_but_keep_their_ends() -> None:
    network = build("staged", blocks_per_stage=(9, 9, 9))
    counts = [stage_counts(cut, network.stage_positions) for cut in possible_cuts(network, limit=100)]
    assert 27 <= len(counts) <= 100
    assert {(1, 1, 1), (9, 9, 9), (1, 9, 1), (9, 1, 9)} <= set(counts)
    assert len(possible_cuts(network)) == 9**3


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_optimizer_outlives_the_cut(kind: str) -> None:
    """A step after the cut is the step that the surviving parameters would have made anyway."""
    whole = build("homogeneous").train()
    make = {"sgd": lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9), "adamw": torch.optim.AdamW}[kind]
    optimizer = make(sc.parameter_groups(whole, 1e-3))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(whole(images(), depths=2), labels()).backward()
        optimizer.step()
    plan = sc.plan_pruning(whole, sc.loss_trajectory(whole, loader()), keep=2)
    small = plan.apply(whole)
    carried = sc.carry_optimizer(optimizer, whole, small)
    assert [group["name"] for group in carried.param_groups] == ["residual", "other"]
    for network, optim in ((whole, optimizer), (small, carried)):
        network.train()
        optim.zero_grad()
        F.cross_entropy(network(images(), depths=2), labels()).backward()
        optim.step()
    survivors = dict(whole.named_parameters())
    for name, parameter in small.named_parameters():
        assert torch.equal(parameter, survivors[name]), name


def test_an_optimizer_keeps_parameters_that_are_not_the_networks() -> None:
    whole, temperature = build("homogeneous").train(), nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*whole.parameters(), temperature], lr=0.1, momentum=0.9)
    (temperature * F.cross_entropy(whole(images()), labels())).backward()
    optimizer.step()
    small = whole.keep(Cut.first(1))
    carried = sc.carry_optimizer(optimizer, whole, small)
    held = [p for group in carried.param_groups for p in group["params"]]
    assert {*map(id, held)} == {*map(id, [*small.parameters(), temperature])}
    assert torch.equal(
        carried.state[temperature]["momentum_buffer"], optimizer.state[temperature]["momentum_buffer"]
    )


@pytest.mark.parametrize(
    "make", [partial(torch.optim.SGD, momentum=0.9), torch.optim.AdamW, torch.optim.RMSprop]
)
def test_a_carried_optimizer_takes_new_groups_as_before(make: Any) -> None:
    whole = build("homogeneous")
    before = make(whole.parameters(), lr=0.3)
    carried = sc.carry_optimizer(before, whole, whole.keep(Cut.first(2)))
    for optimizer in (before, carried):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    first, second = (
        {k: v for k, v in o.param_groups[-1].items() if k != "params"} for o in (before, carried)
    )
    assert first == second


def test_an_optimizer_that_cannot_be_carried_is_refused() -> None:
    whole = build("homogeneous")
    small = whole.keep(Cut.first(2))
    with pytest.raises(StageCostError, match="no parameter of this network"):
        sc.carry_optimizer(torch.optim.SGD(build("homogeneous").parameters(), lr=0.1), whole, small)
    with pytest.raises(StageCostError, match="state of LBFGS"):
        sc.carry_optimizer(torch.optim.LBFGS(whole.parameters()), whole, small)


def test_what_blocks_share_outlives_a_cut_of_the_first() -> None:
    whole = build("homogeneous").train()
    whole.blocks["1"].residual = whole.blocks["0"].residual
    optimizer = torch.optim.SGD(sc.parameter_groups(whole, 1e-3), lr=0.1, momentum=0.9)
    F.cross_entropy(whole(images()), labels()).backward()
    optimizer.step()
    small = whole.keep(Cut((1, 2)))
    carried = sc.carry_optimizer(optimizer, whole, small)
    held = [p for group in carried.param_groups for p in group["params"]]
    assert {*map(id, held)} == {*map(id, small.parameters())}
    assert len(carried.state) == len(held)


def test_cuts_are_written_shortly() -> None:
    assert format_indices((0, 1, 2, 9, 18, 19)) == "0-2, 9, 18-19"
    assert build("staged").resolve(Cut.stages(1, 2, 1)) == Cut((0, 2, 3, 5))


@pytest.mark.parametrize("by_name", [False, True])
def test_a_carried_optimizer_names_what_it_holds(by_name: bool) -> None:
    whole = build("homogeneous")
    given = whole.named_parameters() if by_name else whole.parameters()
    optimizer = torch.optim.AdamW(given, lr=1e-3)
    small = whole.keep(Cut.first(2))
    group = sc.carry_optimizer(optimizer, whole, small).param_groups[0]
    names = {id(p): name for name, p in small.named_parameters()}
    assert ("param_names" in group) == by_name
    assert group.get("param_names", [*names.values()]) == [names[id(p)] for p in group["params"]]
