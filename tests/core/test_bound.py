"""Theorem 3.1: the zero-extension identity, the corollaries, and the predicted depth."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import stagecost as sc
from helpers import build, images, labels, loader
from stagecost.bound import (
    average_loss_bound,
    excess_constant,
    extended_outputs,
    normalized_bound,
    objective,
    predicted_blocks,
    right_hand_side,
    staged_right_hand_side,
    truncation_right_hand_sides,
    zero_extend,
)
from stagecost.controls import weight_norms
from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.objective import StageCost, squared_weight_norms

LOSSES = st.lists(st.floats(0, 10), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("homogeneous", {"num_blocks": 11}),
        ("staged", {"blocks_per_stage": (5, 4, 2)}),
        ("staged", {"blocks_per_stage": (2, 3, 6)}),
    ],
)
def test_zero_extension_computes_the_same_to_the_last_bit(
    name: str, arguments: dict[str, object]
) -> None:
    sub = build(name).eval()
    full = zero_extend(sub, **arguments)
    x = images()
    with torch.no_grad():
        y_sub, y_full = sub(x, depths="all"), full(x, depths="all")
    assert full.num_blocks > sub.num_blocks
    assert torch.equal(y_full[-1], y_sub[-1])
    # Every output of the extension equals an output of the SubResNet: that of the last block it has.
    position, latest = {}, 0
    for small, large in zip(sub.stages, full.stages, strict=True):
        position |= {k: sub.block_indices.index(j) + 1 for j, k in zip(small, large, strict=False)}
    by_hand = [0]
    for k in full.block_indices:
        latest = position.get(k, latest)
        by_hand.append(latest)
    assert extended_outputs(sub.blocks_per_stage, full.blocks_per_stage) == by_hand
    for depth, source in enumerate(by_hand):
        assert torch.equal(y_full[depth], y_sub[source])


@pytest.mark.parametrize(
    "arguments", [{"widths": (8, 16)}, {"num_classes": 7}, {"stem_stride": 2}, {"projection": "average"}]
)
def test_zero_extension_changes_nothing_but_blocks(arguments: dict[str, object]) -> None:
    sub = build("staged", blocks_per_stage=(1, 2), widths=(4, 8))
    assert zero_extend(sub, blocks_per_stage=(2, 2), widths=(4, 8)).num_blocks == 4
    with pytest.raises(StageCostError, match=f"{next(iter(arguments))} is .*: change only the number"):
        zero_extend(sub, blocks_per_stage=(2, 2), **arguments)


def test_zero_extension_keeps_precision_and_random_state() -> None:
    sub, state = build("staged").double().eval(), torch.get_rng_state()
    full = zero_extend(sub, blocks_per_stage=(2, 3, 6))
    assert torch.equal(full(images().double()), sub(images().double()))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("gamma", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-3])
def test_the_right_hand_side_is_the_objective_of_the_extended_weights(
    gamma: float, weight_decay: float
) -> None:
    sub = build("homogeneous").double()
    full = zero_extend(sub, num_blocks=13).double()
    data = [(x.double(), y) for x, y in loader()]
    small, large = sc.loss_trajectory(sub, data), sc.loss_trajectory(full, data)
    j_n = objective(large.losses, squared_weight_norms(full), gamma, weight_decay)
    rhs = right_hand_side(small.losses, squared_weight_norms(sub), gamma, weight_decay, 13)
    assert j_n == pytest.approx(rhs, rel=1e-13)


@settings(max_examples=12)
@given(
    sub_stages=st.tuples(*[st.integers(1, 3)] * 3),
    added=st.tuples(*[st.integers(0, 3)] * 3),
    gamma=st.sampled_from([0.0, 0.05, 1.0]),
    weight_decay=st.sampled_from([0.0, 5e-3]),
)
def test_the_staged_right_hand_side_is_the_objective_of_the_extended_weights(
    sub_stages: tuple[int, ...], added: tuple[int, ...], gamma: float, weight_decay: float
) -> None:
    stages = tuple(small + more for small, more in zip(sub_stages, added, strict=True))
    sub = build("staged", blocks_per_stage=sub_stages).double()
    full = zero_extend(sub, blocks_per_stage=stages).double()
    data = [(images(3, 8).double(), labels(3))]
    small, large = sc.loss_trajectory(sub, data), sc.loss_trajectory(full, data)
    j_n = objective(large.losses, squared_weight_norms(full), gamma, weight_decay)
    norms = squared_weight_norms(sub)
    rhs = staged_right_hand_side(small.losses, norms, gamma, weight_decay, sub_stages, stages)
    assert j_n == pytest.approx(rhs, rel=1e-12)
    # Counting all added outputs as terminal ones is right only if they are in the last stage.
    as_one = right_hand_side(small.losses, norms, gamma, weight_decay, sum(stages))
    assert (as_one == pytest.approx(rhs, rel=1e-9)) == (gamma == 0 or added[:2] == (0, 0))


def test_a_staged_network_without_its_last_controls_is_a_feasible_point() -> None:
    """F_k = 0 for k ≥ M, across the borders of stages: J_N is the right-hand side of truncation M."""
    network = build("staged", head_statistics="terminal").double()
    data = [(images(3, 8).double(), labels(3))]
    losses, norms = sc.loss_trajectory(network, data).losses, squared_weight_norms(network)
    sides = truncation_right_hand_sides(losses, norms, 0.3, 5e-3)
    for k in reversed(range(1, network.num_blocks)):
        for parameter in network.blocks[str(k)].residual.parameters():
            parameter.data.zero_()
        found = sc.loss_trajectory(network, data).losses
        value = objective(found, squared_weight_norms(network), 0.3, 5e-3)
        assert value == pytest.approx(sides[k], rel=1e-12)


def test_the_identity_holds_in_float32_for_each_loss_exactly() -> None:
    sub = build("homogeneous")
    full = zero_extend(sub, num_blocks=9)
    small, large = sc.loss_trajectory(sub, loader()), sc.loss_trajectory(full, loader())
    assert large.losses[: len(small.losses)] == small.losses
    assert set(large.losses[len(small.losses) :]) == {small.losses[-1]}
    assert large.residual_ratios[4:] == (0.0,) * 5
    assert large.weight_norms[4:] == (0.0,) * 5


def test_a_pruned_staged_network_extends_back() -> None:
    sub = build("staged").eval().keep(Cut.stages(1, 2, 1))
    full = zero_extend(sub)
    assert full.num_blocks == 7
    assert torch.equal(full(images()), sub(images()))


def test_extension_needs_as_many_blocks_in_every_stage() -> None:
    with pytest.raises(StageCostError, match="cannot be extended"):
        zero_extend(build("staged"), blocks_per_stage=(1, 9, 9))
    with pytest.raises(StageCostError, match="cannot be extended"):
        extended_outputs((1, 1), (2,))
    with pytest.raises(StageCostError, match="give one a block"):
        staged_right_hand_side([1.0, 1.0], [1.0], 0.1, 0.0, (1, 1), (2, 2))


def test_norms_that_a_cut_has_of_its_own_are_not_lost_in_an_extension() -> None:
    sub = build("homogeneous").eval()
    sub.give_norms(Cut.first(2))
    with pytest.raises(StageCostError, match="cut 2 has norms of its own"):
        zero_extend(sub, num_blocks=6)
    small = sub.keep(Cut.first(2))
    assert torch.equal(zero_extend(small, num_blocks=6)(images()), small(images()))


@given(losses=LOSSES, extra=st.integers(0, 50), gamma=st.floats(0, 5), decay=st.floats(0, 1))
def test_corollaries_follow_from_the_bound(
    losses: list[float], extra: int, gamma: float, decay: float
) -> None:
    m = len(losses) - 1
    n, norms = m + extra, [1.0] * m
    rhs = right_hand_side(losses, norms, gamma, 0.0, n)
    assert rhs / (1 + gamma * n) == pytest.approx(normalized_bound(losses, gamma, n), abs=1e-9)
    unit = right_hand_side(losses, norms, 1.0, 0.0, n)
    assert unit / (n + 1) == pytest.approx(average_loss_bound(losses, n), abs=1e-9)
    with_decay = right_hand_side(losses, norms, gamma, decay, n)
    assert with_decay == pytest.approx(rhs + decay / 2 * m, abs=1e-9)
    # RHS(M) = (1 + gamma·N)·Lbar + gamma·C + (lambda/2)·W
    expected = (1 + gamma * n) * losses[-1] + gamma * excess_constant(losses) + decay / 2 * m
    assert with_decay == pytest.approx(expected, abs=1e-9)


@given(losses=LOSSES, gamma=st.floats(0, 5), decay=st.floats(0, 1))
def test_for_m_equal_n_the_bound_is_the_objective(
    losses: list[float], gamma: float, decay: float
) -> None:
    n, norms = len(losses) - 1, [2.0] * (len(losses) - 1)
    sides = truncation_right_hand_sides(losses, norms, gamma, decay)
    assert list(sides) == list(range(1, n + 1))
    assert sides[n] == pytest.approx(objective(losses, norms, gamma, decay))


def test_a_block_pays_for_itself_or_not() -> None:
    """Block M is worth it only if (1+gamma·N)·ΔLbar > gamma·ΔC + (lambda/2)·ΔW."""
    losses, norms = [2.0, 0.5, 0.1, 0.1], [1.0, 1.0, 1.0]
    assert predicted_blocks(truncation_right_hand_sides(losses, norms, 1.0, 0.0)) == 2
    assert predicted_blocks(truncation_right_hand_sides(losses, norms, 1.0, 2.0)) == 1
    assert predicted_blocks({3: 1.0, 2: 1.0, 5: 0.5, 4: 0.5}) == 4
    assert predicted_blocks({1: math.nan, 2: 1.0}) == predicted_blocks({2: 1.0, 3: math.nan}) == 2
    with pytest.raises(StageCostError, match="there is no right-hand side"):
        predicted_blocks({})


def test_losses_of_weight_0_do_not_count() -> None:
    """As in J_N: of plain training, outputs that it never visits may be infinite."""
    losses, norms = [2.0, math.inf, math.inf, 0.5], [1.0] * 3
    assert objective(losses, norms, 0.0, 2.0) == 3.5
    assert staged_right_hand_side(losses, norms, 0.0, 2.0, (1, 2), (3, 2)) == 3.5
    assert normalized_bound(losses, 0.0, 5) == 0.5
    assert truncation_right_hand_sides(losses, norms, 0.0, 2.0) == {1: math.inf, 2: math.inf, 3: 3.5}


def test_numbers_that_the_theorem_does_not_speak_of() -> None:
    for wrong in (-5.0, math.nan, math.inf):
        with pytest.raises(StageCostError, match=f"weight decay is {wrong}"):
            objective([1.0, 2.0], [1.0], 0.1, wrong)
        with pytest.raises(StageCostError, match=f"gamma is {wrong}"):
            normalized_bound([2.0, 1.0], wrong, 3)
    for num_blocks in (1, 3.7):
        for ask in (
            lambda n: average_loss_bound([3.0, 2.0, 1.0], n),
            lambda n: normalized_bound([3.0, 2.0, 1.0], 0.5, n),
            lambda n: right_hand_side([3.0, 2.0, 1.0], [1.0, 1.0], 0.1, 0.0, n),
        ):
            with pytest.raises(StageCostError, match=f"cannot be extended to .{num_blocks}"):
                ask(num_blocks)


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(StageCostError, match="losses"):
        objective([1.0], [1.0], 0.1, 0.0)
    with pytest.raises(StageCostError, match="give M ≤ N"):
        right_hand_side([1.0, 1.0, 1.0], [1.0, 1.0], 0.1, 0.0, 1)


def test_a_corollary_needs_losses() -> None:
    with pytest.raises(StageCostError, match="there is no loss"):
        average_loss_bound([], 3)
    with pytest.raises(StageCostError, match="there is no loss"):
        normalized_bound([], 1.0, 3)


def test_truncating_the_trained_network_is_a_feasible_subresnet() -> None:
    """The losses of the first M blocks alone are the first M+1 losses of the whole: to the bit."""
    network = build("homogeneous").eval()
    whole = sc.loss_trajectory(network, loader())
    for m in range(1, 5):
        part = network.keep(Cut.first(m))
        assert sc.loss_trajectory(part, loader()).losses == whole.losses[: m + 1]


def test_weight_norms_are_those_of_the_whole_branch() -> None:
    network = build("staged")
    by_hand = [
        sum(float(p.detach().double().pow(2).sum()) for p in block.residual.parameters())
        for block in network.blocks.values()
    ]
    assert squared_weight_norms(network) == pytest.approx(by_hand)
    assert weight_norms(network) == pytest.approx([value**0.5 for value in by_hand])


def test_the_objective_is_the_training_objective_plus_weight_decay() -> None:
    network = build("homogeneous").eval()
    with torch.no_grad():
        stage_cost = StageCost.uniform(network.num_blocks, 0.2)
        terms = stage_cost(network(images(), stage_cost.outputs), labels())
        losses = [float(F.cross_entropy(y, labels())) for y in network(images(), depths="all")]
    norms = squared_weight_norms(network)
    value = objective(losses, norms, 0.2, 1e-3)
    assert value == pytest.approx(float(terms.total) + 5e-4 * sum(norms), rel=1e-5)
