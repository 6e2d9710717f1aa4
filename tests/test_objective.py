"""The objective as a pure function: any loss, gamma = 0 to the last bit, and the optimiser's groups."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import stagecost as sc
from helpers import BUILDERS, build, images, labels
from stagecost.errors import StageCostError
from stagecost.objective import objective_scale, residual_parameters, stage_weights


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
    terms = sc.stage_cost_objective(outputs, targets, gamma=0.3, loss=loss)
    losses = [loss(output, targets).mean() for output in outputs]
    torch.testing.assert_close(terms.losses, torch.stack(losses))
    torch.testing.assert_close(terms.stage, 0.3 * sum(losses[:-1]))
    torch.testing.assert_close(terms.terminal, losses[-1])
    torch.testing.assert_close(terms.total, 0.3 * sum(losses[:-1]) + losses[-1])
    assert not terms.losses.requires_grad
    terms.total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_gradcheck_in_double_precision() -> None:
    outputs = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    targets = labels(3)
    assert torch.autograd.gradcheck(
        lambda y: sc.stage_cost_objective(y, targets, gamma=0.7, depth_weights=[1, 0, 2]).total, outputs
    )


@given(
    gamma=st.floats(0, 10),
    weights=st.lists(st.floats(0, 5), min_size=1, max_size=6),
    normalized=st.booleans(),
)
def test_depth_weights_and_normalisation(gamma: float, weights: list[float], normalized: bool) -> None:
    n = len(weights)
    outputs = torch.randn(n + 1, 4, 5, generator=torch.Generator().manual_seed(n)).double()
    terms = sc.stage_cost_objective(
        outputs, labels(), gamma, depth_weights=weights, normalized=normalized
    )
    losses = [float(F.cross_entropy(y, labels())) for y in outputs]
    expected = gamma * sum(c * loss for c, loss in zip(weights, losses, strict=False)) + losses[-1]
    scale = 1 + gamma * sum(weights) if normalized else 1
    assert float(terms.total) == pytest.approx(expected / scale, rel=1e-9)
    assert objective_scale(stage_weights(gamma, n, weights)) == pytest.approx(1 + gamma * sum(weights))


def test_uniform_weights_are_the_default_and_scale_is_one_plus_gamma_n() -> None:
    outputs = torch.randn(5, 4, 5)
    plain = sc.stage_cost_objective(outputs, labels(), 0.25)
    weighted = sc.stage_cost_objective(outputs, labels(), 0.25, depth_weights=[1.0] * 4)
    assert torch.equal(plain.total, weighted.total)
    assert objective_scale(stage_weights(0.25, 4)) == 2.0


@pytest.mark.parametrize("normalized", [False, True])
def test_gamma_zero_is_the_terminal_loss_to_the_last_bit(normalized: bool) -> None:
    a, b = build("staged").train(), build("staged").train()
    sc.stage_cost_objective(
        a(images(), depths="all"), labels(), gamma=0.0, normalized=normalized
    ).total.backward()
    F.cross_entropy(b(images()), labels()).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_the_terminal_output_alone_is_enough_for_gamma_zero() -> None:
    network = build("homogeneous").train()
    terms = sc.stage_cost_objective(network(images(), depths=[-1]), labels(), gamma=0)
    assert float(terms.stage) == 0
    assert terms.losses.shape == (1,)


@pytest.mark.parametrize("gamma", [-1.0, math.nan, math.inf])
def test_impossible_gamma_is_refused(gamma: float) -> None:
    with pytest.raises(StageCostError, match="gamma"):
        sc.stage_cost_objective(torch.randn(3, 4, 5), labels(), gamma)


def test_shapes_and_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(StageCostError, match="samples"):
        sc.stage_cost_objective(torch.randn(3, 4, 5), labels(6), 0.1)
    with pytest.raises(StageCostError, match="depth weights"):
        sc.stage_cost_objective(torch.randn(3, 4, 5), labels(), 0.1, depth_weights=[1.0])
    with pytest.raises(StageCostError, match="depth weights"):
        sc.stage_cost_objective(torch.randn(2, 4, 5), labels(), 0.1, depth_weights=[-1.0])


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
            total = sc.stage_cost_objective(outputs, labels(), 0.1).total
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
def test_a_subset_of_depths_with_weights(subset: set[int]) -> None:
    """Outputs of some depths, the terminal one last, give the objective with other weights zero."""
    network = build("homogeneous").eval()
    depths = sorted(subset)
    some = network(images(), depths=[*depths, 4])
    everything = network(images(), depths="all")
    few = sc.stage_cost_objective(some, labels(), 0.5)
    masked = sc.stage_cost_objective(
        everything, labels(), 0.5, depth_weights=[float(k in subset) for k in range(4)]
    )
    torch.testing.assert_close(few.total, masked.total)
