"""Stochastic depth: how often branches are left out, and that they are all there on average."""

import pytest
import torch

from stagecost.dynamics import step
from stagecost.models.catalogue import create_model
from stagecost.random_streams import Stream, torch_generator
from stagecost.train.drop_path import draw_branch_scales, drop_rates


def test_rates_grow_linearly() -> None:
    assert drop_rates(0.8, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert drop_rates(0.0, 3) == [0, 0, 0]


def test_the_expectation_over_all_drops_is_the_branch() -> None:
    """Σ over s ∈ {0, 1/(1 − p)} of its probability times the step is the plain step."""
    network = create_model("staged", blocks_per_stage=(2, 3), widths=(4, 6)).double().eval()
    state = network.stem(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    for rate, block in zip(drop_rates(0.6, 5), network.blocks.values(), strict=True):
        without = step(block, state, torch.zeros(4))
        scaled = step(block, state, torch.full((4,), 1 / (1 - rate), dtype=torch.float64))
        assert torch.equal(without, block.skip(state))
        state = block(state)
        torch.testing.assert_close(rate * without + (1 - rate) * scaled, state)


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
def test_branches_are_dropped_as_often_as_said(rate: float) -> None:
    rates = drop_rates(rate, 3)
    scales = draw_branch_scales(rates, 20_000, torch_generator(0, Stream.BRANCHES, 1, 2))
    for p, drawn in zip(rates, scales, strict=True):
        assert drawn[drawn != 0].unique().tolist() == pytest.approx([1 / (1 - p)])
        assert (drawn == 0).double().mean().item() == pytest.approx(p, abs=0.02)
    torch.testing.assert_close(scales.mean(dim=1), torch.ones(3), atol=0.1, rtol=0)


def test_a_rate_that_is_1_in_single_precision_leaves_its_branch_out() -> None:
    scales = draw_branch_scales([0.5, 1 - 1e-9], 100, torch_generator(0, Stream.BRANCHES, 0, 0))
    assert scales[0].unique().tolist() == [0, 2]
    assert not scales[1].any()
