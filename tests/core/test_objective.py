"""The objective as a pure function: any loss, gamma = 0 to the last bit, and the optimiser's groups."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import stagecost as sc
from helpers import BUILDERS, build, images, labels, objective
from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.losses import LossFunction, distilled, losses_of
from stagecost.objective import StageCost, residual_parameters


def smooth(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, label_smoothing=0.1)


def per_sample(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


def per_sample_mse(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target, reduction="none").mean(dim=1)


LOSSES = {
    "cross_entropy": (F.cross_entropy, labels()),
    "label_smoothing": (smooth, labels()),
    "cross_entropy, one a sample": (per_sample, labels()),
    "mse": (F.mse_loss, torch.randn(4, 5, generator=torch.Generator().manual_seed(0))),
    "mse, one a sample": (per_sample_mse, torch.randn(4, 5, generator=torch.Generator().manual_seed(0))),
    "bce, several labels": (
        F.binary_cross_entropy_with_logits,
        torch.rand(4, 5, generator=torch.Generator().manual_seed(0)).round(),
    ),
}


@pytest.mark.parametrize("builder", ["homogeneous", "staged"])
@pytest.mark.parametrize("loss_name", LOSSES)
def test_every_loss_with_every_builder(loss_name: str, builder: str) -> None:
    """total = gamma·Σ_{k<N} L_k + L_N, written out, and its gradient reaches every parameter."""
    loss, targets = LOSSES[loss_name]
    network = build(builder).train()
    outputs = network(images(), depths="all")
    terms = objective(outputs, targets, 0.3, loss=loss)
    losses = [loss(output, targets).mean() for output in outputs]
    torch.testing.assert_close(terms.losses, torch.stack(losses))
    torch.testing.assert_close(terms.stage, 0.3 * sum(losses[:-1]))
    torch.testing.assert_close(terms.terminal, losses[-1])
    torch.testing.assert_close(terms.total, 0.3 * sum(losses[:-1]) + losses[-1])
    assert not terms.losses.requires_grad
    terms.total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize(
    "loss",
    [F.mse_loss, partial(F.huber_loss, delta=0.5), nn.L1Loss(), F.poisson_nll_loss, nn.PoissonNLLLoss()],
)
def test_outputs_of_one_number_are_not_compared_with_all_targets(loss: LossFunction) -> None:
    with pytest.raises(StageCostError, match=r"shape \(4, 1\) and targets \(4,\)"):
        losses_of(torch.zeros(3, 4, 1), torch.arange(4.0), loss)
    expected = loss(torch.zeros(4), torch.arange(4.0))
    assert torch.equal(losses_of(torch.zeros(3, 4), torch.arange(4.0), loss), expected.expand(3))


def test_gradcheck_in_double_precision() -> None:
    outputs = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    targets, cuts = labels(3), tuple(map(Cut.first, range(3)))
    stage_cost = StageCost(cuts, (0.7, 0.0, 1.4))
    assert torch.autograd.gradcheck(lambda y: stage_cost(y, targets).total, outputs)


@given(
    gamma=st.floats(0, 10),
    weights=st.lists(st.floats(0, 5), min_size=1, max_size=6),
    normalized=st.booleans(),
)
def test_depth_weights_and_normalisation(gamma: float, weights: list[float], normalized: bool) -> None:
    n = len(weights)
    outputs = torch.randn(n + 1, 4, 5, generator=torch.Generator().manual_seed(n)).double()
    cuts = tuple(map(Cut.first, range(n)))
    stage_cost = StageCost(cuts, tuple(gamma * c for c in weights), normalized=normalized)
    terms = stage_cost(outputs, labels())
    losses = [float(F.cross_entropy(y, labels())) for y in outputs]
    expected = gamma * sum(c * loss for c, loss in zip(weights, losses, strict=False)) + losses[-1]
    scale = 1 + gamma * sum(weights) if normalized else 1
    assert float(terms.total) == pytest.approx(expected / scale, rel=1e-9)
    assert stage_cost.scale == pytest.approx(1 + gamma * sum(weights))


def test_uniform_weights_are_the_default_and_scale_is_one_plus_gamma_n() -> None:
    assert StageCost.uniform(4, 0.25).scale == 2.0
    assert StageCost.uniform(4, 0.25).cuts == tuple(map(Cut.first, range(4)))
    assert StageCost.uniform(4, 0.25, first=2).weights == (0.25, 0.25)
    assert StageCost.uniform(4, 0.0).outputs == (Cut.whole(),)


@pytest.mark.parametrize("normalized", [False, True])
def test_gamma_zero_is_the_terminal_loss_to_the_last_bit(normalized: bool) -> None:
    a, b = build("staged").train(), build("staged").train()
    outputs = a(images(), depths="all")
    objective(outputs, labels(), 0.0, normalized=normalized).total.backward()
    F.cross_entropy(b(images()), labels()).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_the_terminal_output_alone_is_enough_for_gamma_zero() -> None:
    network = build("homogeneous").train()
    terms = objective(network(images(), depths=[-1]), labels(), 0.0)
    assert float(terms.stage) == 0
    assert terms.losses.shape == (1,)


@pytest.mark.parametrize("gamma", [-1.0, math.nan, math.inf, "x", None])
def test_impossible_gamma_is_refused(gamma: float) -> None:
    with pytest.raises(StageCostError, match="gamma"):
        StageCost.uniform(2, gamma)


def test_shapes_and_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(StageCostError, match="samples"):
        StageCost.uniform(2, 0.1)(torch.randn(3, 4, 5), labels(6))
    with pytest.raises(StageCostError, match="bear a stage cost"):
        StageCost.uniform(3, 0.1)(torch.randn(3, 4, 5), labels())
    with pytest.raises(StageCostError, match="one weight a cut"):
        StageCost((Cut.first(1),), ())
    with pytest.raises(StageCostError, match="stage weight -1"):
        StageCost.targets([Cut.first(1)], weight=-1.0)


@pytest.mark.parametrize("name", BUILDERS)
def test_lambda_is_on_the_residual_branches_only(name: str) -> None:
    network = build(name)
    residual, other = sc.parameter_groups(network, 0.01)
    assert (residual["weight_decay"], other["weight_decay"]) == (0.01, 0.0)
    assert (residual["name"], other["name"]) == ("residual", "other")
    names = {id(p): n for n, p in network.named_parameters()}
    assert all(".residual." in names[id(p)] for p in residual["params"])
    assert not any(".residual." in names[id(p)] for p in other["params"])
    assert len(residual["params"]) + len(other["params"]) == len(names)


def test_sgd_weight_decay_is_the_gradient_of_half_lambda_norm_squared() -> None:
    """Two steps: by the optimiser's decay, and by adding (lambda/2)·Σ‖w_F,k‖² to the loss."""
    weight_decay = 0.02
    a, b = build("staged").double(), build("staged").double()
    optimizers = [
        torch.optim.SGD(sc.parameter_groups(a, weight_decay), lr=0.1, momentum=0.9),
        torch.optim.SGD(sc.parameter_groups(b, 0.0), lr=0.1, momentum=0.9),
    ]
    for _ in range(2):
        for network, optimizer in zip((a, b), optimizers, strict=True):
            outputs = network(images().double(), depths="all")
            total = objective(outputs, labels(), 0.1).total
            if network is b:
                squares = [p.square().sum() for branch in residual_parameters(b) for p in branch]
                total = total + weight_decay / 2 * torch.stack(squares).sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weight_decay", [-1.0, math.nan])
def test_impossible_lambda_is_refused(weight_decay: float) -> None:
    with pytest.raises(StageCostError, match="weight decay"):
        sc.parameter_groups(build("homogeneous"), weight_decay)


@settings(deadline=None, max_examples=10)
@given(subset=st.sets(st.integers(0, 3), min_size=1))
def test_a_subset_of_outputs_is_the_objective_with_other_weights_zero(subset: set[int]) -> None:
    network = build("homogeneous").eval()
    few = StageCost.targets(map(Cut.first, sorted(subset)), weight=0.5)
    weights = tuple(0.5 * (k in subset) for k in range(4))
    masked = StageCost(tuple(map(Cut.first, range(4))), weights)
    totals = [one(network(images(), one.outputs), labels()).total for one in (few, masked)]
    torch.testing.assert_close(*totals)


@given(
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=9),
    samples=st.integers(1, 10),
)
def test_sampling_is_unbiased(weights: list[float], samples: int) -> None:
    """Over many draws every cut gets its own weight back, and cuts of weight 0 are never drawn."""
    whole = StageCost(tuple(map(Cut.first, range(len(weights)))), tuple(weights))
    generator, draws = torch.Generator().manual_seed(0), 400
    sums = dict.fromkeys(whole.cuts, 0.0)
    for _ in range(draws):
        drawn = whole.sampled(samples, generator)
        assert len(drawn.cuts) == min(samples, sum(map(bool, weights)))
        for cut, weight in zip(drawn.cuts, drawn.weights, strict=True):
            sums[cut] += weight / draws
    for cut, weight in zip(whole.cuts, weights, strict=True):
        assert sums[cut] == pytest.approx(weight, abs=0.2 * len(weights) * weight)
        assert weight or sums[cut] == 0


@given(share=st.floats(0.05, 0.95), weights=st.lists(st.floats(0.1, 2), min_size=1, max_size=5))
def test_sampling_in_a_part_of_the_draws_is_unbiased(share: float, weights: list[float]) -> None:
    whole = StageCost(tuple(map(Cut.first, range(len(weights)))), tuple(weights))
    generator, draws = torch.Generator().manual_seed(0), 2000
    drawn = [whole.sampled(share, generator) for _ in range(draws)]
    assert {len(each.cuts) for each in drawn} == {0, 1}
    weight, most = sum(sum(each.weights) for each in drawn) / draws, max(weights) * len(weights)
    assert weight == pytest.approx(sum(weights), abs=5 * most / (share * draws) ** 0.5)


@pytest.mark.parametrize("place", [0, 2])
def test_an_infinite_loss_of_weight_zero_counts_for_nothing(place: int) -> None:
    """Neither in the sum nor in a gradient."""
    weights = [float(k != place) for k in range(3)]
    cost = StageCost((Cut.first(0), Cut.first(1)), tuple(weights[:2]), weights[2], loss=logarithm)
    outputs = torch.full((3, 4), 0.5)
    outputs[place] = 0.0
    outputs.requires_grad_()
    terms = cost(outputs, labels())
    terms.total.backward()
    assert terms.losses[place] == math.inf
    assert terms.total.item() == pytest.approx(-2 * math.log(0.5))
    assert outputs.grad.abs().sum(dim=1).tolist() == pytest.approx([2 * w for w in weights])
    assert cost.objective(terms.losses.tolist(), [0.0], 0.0) == pytest.approx(-2 * math.log(0.5))


def logarithm(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -output.log().mean()


def test_all_samples_are_the_whole() -> None:
    whole = StageCost.uniform(5, 0.3, loss=smooth)
    assert whole.sampled(5, torch.Generator()) == whole


@pytest.mark.parametrize("samples", [0, -1, 1.5, math.nan, math.inf])
def test_impossible_numbers_of_samples_are_refused(samples: float) -> None:
    with pytest.raises(StageCostError, match="give a whole number from 1 on"):
        StageCost.uniform(5, 0.3).sampled(samples, torch.Generator())


def test_a_normalised_objective_is_not_sampled_in_a_part_of_the_draws() -> None:
    with pytest.raises(StageCostError, match="mean of a normalised objective"):
        StageCost.uniform(5, 0.3, normalized=True).sampled(0.5, torch.Generator())


def test_the_mean_over_draws_of_a_normalised_objective_is_the_whole() -> None:
    cuts, outputs = tuple(map(Cut.first, range(3))), torch.randn(4, 4, 5)
    whole = StageCost(cuts, (1.0, 4.0, 0.5), terminal_weight=2.0, normalized=True)
    by_cut = dict(zip(cuts, outputs, strict=False))
    for draw in (lambda g: whole.sampled(1, g), whole.sandwiched):
        draws = {draw(torch.Generator().manual_seed(seed)) for seed in range(40)}
        totals = [
            float(one(torch.stack([*map(by_cut.get, one.cuts), outputs[-1]]), labels()).total)
            for one in draws
        ]
        assert sum(totals) / len(totals) == pytest.approx(float(whole(outputs, labels()).total))


@pytest.mark.parametrize(("num_blocks", "first"), [(0, 0), (3, 3), (3, -1)])
def test_a_uniform_cost_without_any_output_is_refused(num_blocks: int, first: int) -> None:
    with pytest.raises(StageCostError, match="give first from 0"):
        StageCost.uniform(num_blocks, 0.3, first=first)


def test_a_normalised_objective_needs_a_weight() -> None:
    with pytest.raises(StageCostError, match="all weights are 0"):
        StageCost(terminal_weight=0.0, normalized=True)


def test_targets_bear_weight_one_and_the_terminal_weight_counts() -> None:
    assert StageCost.targets(Cut.first(2)) == StageCost.targets([Cut.first(2)])
    network = build("staged").eval()
    targets = StageCost.targets([Cut.stages(1, 2, 1), Cut.stages(2, 2, 2)])
    heavier = replace(targets, terminal_weight=3.0, normalized=True)
    outputs = network(images(), targets.outputs).detach()
    first, second, last = (float(F.cross_entropy(y, labels())) for y in outputs)
    assert float(targets(outputs, labels()).total) == pytest.approx(first + second + last)
    mean = (first + second + 3 * last) / 5
    assert float(heavier(outputs, labels()).total) == pytest.approx(mean)
    assert heavier.objective([first, second, last], [2.0], 0.1) == pytest.approx(5 * mean + 0.1)


def test_distilled_is_the_mixture_of_its_definition() -> None:
    outputs, target = torch.randn(3, 4, 5).double(), labels()
    stage_cost = StageCost.uniform(2, 0.5, stage_loss=distilled(F.cross_entropy, 0.3, 2.0))
    teacher = F.softmax(outputs[-1] / 2, dim=1)
    expected = F.cross_entropy(outputs[-1], target)
    for output in outputs[:-1]:
        divergence = (teacher * (teacher.log() - F.log_softmax(output / 2, dim=1))).sum(1).mean()
        expected = expected + 0.5 * (0.7 * F.cross_entropy(output, target) + 0.3 * 4 * divergence)
    torch.testing.assert_close(stage_cost(outputs, target).total, expected)
    outputs.requires_grad_()
    values = stage_cost(outputs, target)
    (grad,) = torch.autograd.grad(values.stage, outputs)
    assert not grad[-1].any(), "the teacher learns nothing from its pupils"


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_distilled_refuses_a_temperature_that_says_nothing(temperature: float) -> None:
    with pytest.raises(StageCostError, match=f"temperature is {temperature}: give a finite number"):
        distilled(F.cross_entropy, temperature=temperature)


def test_distilled_is_for_outputs_of_classes_alone() -> None:
    maps, truth = torch.randn(2, 4, 5, 3, 3), torch.zeros(4, 3, 3, dtype=torch.long)
    with pytest.raises(
        StageCostError, match=r"shape \(4, 5, 3, 3\) do not tell where their classes are"
    ):
        StageCost.uniform(1, 0.5, stage_loss=distilled(F.cross_entropy))(maps, truth)


def test_a_stage_loss_of_each_sample_is_its_mean() -> None:
    outputs, target = torch.randn(3, 4, 5).double(), labels()

    def singly(output: Tensor, targets: Tensor, last: Tensor) -> Tensor:
        return F.cross_entropy(output, targets, reduction="none")

    found = StageCost.uniform(2, 0.5, stage_loss=singly)(outputs, target)
    torch.testing.assert_close(found.total, StageCost.uniform(2, 0.5)(outputs, target).total)


@pytest.mark.parametrize(
    "loss", [torch.nn.CrossEntropyLoss(reduction="sum"), partial(F.cross_entropy, reduction="sum")]
)
def test_a_loss_that_sums_over_the_batch_is_refused(loss: LossFunction) -> None:
    with pytest.raises(StageCostError, match='"sum" grows with the batch'):
        losses_of(torch.zeros(2, 4, 3), torch.tensor([0, 1, 2, 0]), loss)
    with pytest.raises(StageCostError, match='"sum" grows with the batch'):
        distilled(loss)


def test_losses_of_all_depths_at_once_are_those_one_by_one() -> None:
    outputs, targets = torch.randn(5, 8, 3, dtype=torch.float64), labels(8, 3)
    targets[2] = -100  # left out, as torch's mean leaves it out
    together = objective(outputs, targets, 0.5).losses
    torch.testing.assert_close(together, torch.stack([F.cross_entropy(o, targets) for o in outputs]))
