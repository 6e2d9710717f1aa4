"""Costates: the estimate is the derivative that it is called, and the measure is a removal."""

import copy

import pytest
import torch
import torch.nn.functional as F

import stagecost as sc
from helpers import BUILDERS, build, images, labels, loader
from helpers import objective as stage_cost_terms
from stagecost.bound import objective
from stagecost.importance import scaled_objective

GAMMA = 0.3


@pytest.mark.parametrize("name", ["homogeneous", "staged"])
def test_the_estimate_is_the_costates_product_with_the_control(name: str) -> None:
    """Written out with p_{k+1} = ∂J/∂x_{k+1} of the states themselves."""
    network = build(name).double().eval()
    batch, targets = images(6).double(), labels(6)
    states = []
    state = network.stem(batch)
    for k, block in enumerate(network.blocks.values()):
        skipped = network.skips[k](state)
        control = block(state) - skipped
        following = (skipped + control).detach().requires_grad_()
        states.append((control, following))
        state = following
    expected = []
    for k, (control, following) in enumerate(states):
        outputs, now = [], following
        for depth in range(k + 1, network.num_blocks + 1):
            reached = now
            for skip in network.skips[depth:]:
                reached = skip(reached)
            outputs.append(F.cross_entropy(network.head(reached, depth), targets))
            if depth < network.num_blocks:
                now = network.blocks[str(depth)](now)
        value = GAMMA * sum(outputs[:-1]) + outputs[-1]
        (costate,) = torch.autograd.grad(value, following)
        expected.append(-float((costate * control.detach()).sum()))
    found = sc.block_importance(network, [(batch, targets)], GAMMA)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_objective_at_full_scale_is_the_objective(name: str) -> None:
    network, batch, targets = build(name).eval(), images(4, 32), labels()
    terms = stage_cost_terms(network(batch, depths="all"), targets, GAMMA)
    value = scaled_objective(network, batch, targets, torch.ones(network.num_blocks), GAMMA)
    torch.testing.assert_close(value, terms.total)


@pytest.mark.parametrize("name", ["homogeneous", "staged"])
def test_the_removal_cost_is_that_of_zero_weights(name: str) -> None:
    """A branch whose last convolution is zero adds nothing (identity 1)."""
    network, data = build(name).eval(), loader()
    found = sc.removal_cost(network, data, GAMMA)

    def value(of: torch.nn.Module) -> float:
        losses = sc.loss_trajectory(of, data).losses
        return objective(losses, [0.0] * network.num_blocks, GAMMA, 0.0)

    for k, cost in enumerate(found):
        without = copy.deepcopy(network)
        torch.nn.init.zeros_(without.blocks[str(k)].residual[-1].weight)
        assert cost == pytest.approx(value(without) - value(network), abs=1e-4)


def test_a_small_control_is_estimated_well() -> None:
    """The estimate is of first order: for a small F_k it is the removal cost."""
    network, data = build("homogeneous").double().eval(), loader()
    data = [(batch.double(), targets) for batch, targets in data]
    with torch.no_grad():
        for block in network.blocks.values():
            block.residual[-1].weight.mul_(1e-4)
    estimates, costs = (f(network, data, GAMMA) for f in (sc.block_importance, sc.removal_cost))
    torch.testing.assert_close(torch.tensor(estimates), torch.tensor(costs), rtol=1e-2, atol=1e-9)


def test_a_block_that_adds_nothing_is_worth_nothing() -> None:
    network, data = build("homogeneous").train(), loader()
    torch.nn.init.zeros_(network.blocks["2"].residual[-1].weight)
    assert sc.block_importance(network, data, GAMMA)[2] == 0.0
    assert sc.removal_cost(network, data, GAMMA)[2] == 0.0
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("measure", [sc.block_importance, sc.removal_cost])
def test_bad_input(measure: object) -> None:
    with pytest.raises(sc.StageCostError, match="empty"):
        measure(build("homogeneous"), [], GAMMA)
    with pytest.raises(sc.StageCostError, match="gamma"):
        measure(build("homogeneous"), loader(), -1.0)
