"""The training variants: each piece against its definition, and all of them in a short run."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import stagecost as sc
from helpers import build, images, labels
from stagecost.train.drop_path import draw_branch_scales, drop_rates, scaled_step
from stagecost.errors import StageCostError
from stagecost.objective import residual_parameters
from stagecost.proximal import shrink_branches
from stagecost.random_streams import Stream, torch_generator
from stagecost.sampling import sample_depths, strata
from stagecost.stage_losses import distilled, hinged
from stagecost.training import loop
from stagecost.training.checkpoint import read_checkpoint
from stagecost.training.loop import train, train_step
from stagecost.training.schedule import gamma_factor
from stagecost.training.settings import VariantSettings
from stagecost.training.trained import open_trained
from stagecost.verbs.pruning import finetune_settings


@given(progress=st.floats(0, 1))
def test_schedules_of_gamma(progress: float) -> None:
    assert gamma_factor("constant", progress) == 1
    assert gamma_factor("warmup", progress) == min(1, 2 * progress)
    assert gamma_factor("late", progress) == pytest.approx(min(1, max(0, (progress - 0.4) / 0.3)))
    assert gamma_factor("early", progress) == pytest.approx(min(1, max(0, (progress - 0.2) / 0.1)))
    assert gamma_factor("falling", progress) == pytest.approx((1 + math.cos(math.pi * progress)) / 2)


def test_depth_weights() -> None:
    assert VariantSettings().weights(4) == [1, 1, 1, 1]
    assert VariantSettings(depth_weights="growing").weights(4) == [0.25, 0.5, 0.75, 1]
    assert VariantSettings(depth_weights="first", first_depth=2).weights(4) == [0, 0, 1, 0]
    assert VariantSettings(first_depth=2).weights(4) == [0, 0, 1, 1]


@given(
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=9),
    samples=st.integers(1, 10),
)
def test_sampling_is_unbiased(weights: list[float], samples: int) -> None:
    """The exhaustive expectation over all draws gives every depth its own weight back."""
    bearing = [k for k, weight in enumerate(weights) if weight]
    runs = strata(bearing, samples)
    assert [k for run in runs for k in run] == bearing
    assert len(runs) == min(samples, len(bearing))
    assert max(map(len, runs), default=0) - min(map(len, runs), default=0) <= 1
    draws = list(itertools.product(*runs))
    expectation = [0.0] * len(weights)
    for draw in draws:
        for k, run in zip(draw, runs, strict=True):
            expectation[k] += weights[k] * len(run) / len(draws)
    assert expectation == pytest.approx(weights)
    drawn = sample_depths(weights, samples, torch.Generator().manual_seed(samples))
    assert [k for k, _ in drawn] == sorted(k for k, _ in drawn)
    for (k, weight), run in zip(drawn, runs, strict=True):
        assert k in run
        assert weight == weights[k] * len(run)


def test_drawing_from_runs_varies_less_than_drawing_freely() -> None:
    """For losses that fall with depth, as they do; both are exhaustive expectations."""
    losses = [2.0, 1.2, 0.8, 0.6, 0.5, 0.45, 0.42, 0.4]
    total = sum(losses)
    by_runs = [4 * (a + b) for a, b in itertools.product(losses[:4], losses[4:])]
    freely = [8 / 2 * (a + b) for a, b in itertools.combinations(losses, 2)]
    assert sum(by_runs) / len(by_runs) == pytest.approx(total)
    assert sum(freely) / len(freely) == pytest.approx(total)

    def variance(values: list[float]) -> float:
        return sum((value - total) ** 2 for value in values) / len(values)

    assert variance(by_runs) < variance(freely)


def test_distillation_is_its_formula_and_teaches_nothing_to_the_teacher() -> None:
    student = torch.randn(4, 5, requires_grad=True)
    teacher = torch.randn(4, 5)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = 0.7 * F.cross_entropy(student, labels()) + 0.3 * 4 * divergence
    value = distilled(F.cross_entropy, share=0.3, temperature=2.0)(student, labels(), teacher)
    torch.testing.assert_close(value, expected)
    outputs = torch.randn(3, 4, 5, requires_grad=True)
    terms = sc.stage_cost_objective(
        outputs, labels(), 0.5, stage_loss=distilled(F.cross_entropy, share=1.0)
    )
    (gradient,) = torch.autograd.grad(terms.stage, outputs)
    assert gradient[:2].abs().sum() > 0
    assert gradient[2].abs().sum() == 0


def test_the_hinge_forgives_what_is_good_enough() -> None:
    good, bad = torch.eye(5)[labels()] * 5, torch.zeros(4, 5)
    loss = hinged(F.cross_entropy, margin=0.1)
    assert loss(good, labels(), bad) == 0
    expected = F.cross_entropy(bad, labels()) - F.cross_entropy(good, labels()) - 0.1
    torch.testing.assert_close(loss(bad, labels(), good), expected)


def test_the_training_loss_as_stage_loss_is_the_default() -> None:
    outputs = torch.randn(4, 4, 5)
    same = sc.stage_cost_objective(
        outputs, labels(), 0.5, stage_loss=lambda y, t, _: F.cross_entropy(y, t)
    )
    assert torch.equal(same.total, sc.stage_cost_objective(outputs, labels(), 0.5).total)


@pytest.mark.parametrize("name", ["homogeneous", "staged"])
def test_a_constant_head_gets_its_gradient_from_the_terminal_output_alone(name: str) -> None:
    a, b = build(name).train(), build(name).train()
    outputs = a(images(), depths="all", constant_head=True)
    torch.testing.assert_close(outputs, b(images(), depths="all"))
    outputs[:-1].square().sum().backward()
    shared = [*a.head.parameters(), *(p for skip in a.skips for p in skip.parameters())]
    # A projection is a constant behind its own block only: it still makes the states before the head.
    constants = list(a.head.parameters()) if name == "staged" else shared
    assert all(p.grad is None or not p.grad.any() for p in constants)
    assert all(p.grad.any() for p in a.blocks["0"].residual.parameters())
    a.zero_grad()
    a(images(), depths="all", constant_head=True)[-1].square().sum().backward()
    assert all(p.grad is not None for p in shared)


@given(threshold=st.floats(0, 20))
def test_the_proximal_step_shrinks_norms_by_the_threshold(threshold: float) -> None:
    network = build("homogeneous")
    before = [nn.utils.parameters_to_vector(b).norm().item() for b in residual_parameters(network)]
    zero = shrink_branches(network, threshold)
    after = [nn.utils.parameters_to_vector(b).norm().item() for b in residual_parameters(network)]
    assert after == pytest.approx([max(0.0, norm - threshold) for norm in before], abs=1e-4)
    assert zero == [k for k, norm in enumerate(after) if norm == 0]


def test_a_branch_at_zero_is_its_skip_exactly() -> None:
    network = build("staged").eval()
    assert shrink_branches(network, 1e6) == list(range(7))
    outputs = network(images(), depths="all")
    states = list(network.states(images()))
    for k, block in enumerate(network.blocks.values()):
        assert torch.equal(states[k + 1], block.skip(states[k]))
    torch.testing.assert_close(outputs.shape[0], 8)


@pytest.mark.parametrize("size", [7, 8])
def test_average_projections_are_linear_and_of_the_same_shape(size: int) -> None:
    strided, average = build("staged").eval(), build("staged", projection="average").eval()
    for a, b in zip(strided.states(images(size=size)), average.states(images(size=size)), strict=True):
        assert a.shape == b.shape
    x, skip = torch.randn(2, 4, size, size), average.blocks["2"].skip
    torch.testing.assert_close(skip(3 * x), 3 * skip(x))
    pooled = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(skip(x), F.conv2d(pooled, skip[1].weight))


@pytest.mark.parametrize(
    "variant",
    [
        {"gamma_schedule": "late", "first_depth": 1},
        {"gamma_schedule": "falling", "stage_loss": "hinged", "depth_weights": "growing"},
        {"gamma_schedule": "warmup", "stage_loss": "distilled", "constant_head": True},
        {"sampled_depths": 2},
        {"drop_path": 0.5},
        {"drop_path": 0.5, "activation_checkpointing": True},
        {"group_lasso": 0.01, "model": "staged", "blocks_per_stage": [1, 2], "widths": [4, 6]}
        | {"projection": "average", "num_blocks": None, "width": None},
    ],
)
def test_every_variant_trains_and_leaves_statistics_for_every_output(
    variant: dict[str, object], tmp_path: Path
) -> None:
    tiny = {"data": "digits", "num_blocks": 3, "width": 4, "epochs": 2, "limit_train": 200}
    settings = {**tiny, "batch_size": 64, "gamma": 0.3, "device": "cpu", **variant}
    result = train({k: v for k, v in settings.items() if v is not None}, tmp_path / "run")
    assert all(math.isfinite(loss) for loss in result.history[-1]["val_losses"])
    network = read_checkpoint(tmp_path / "run" / "last.safetensors").network()
    assert (network.head.norm.num_batches_tracked > 0).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"first_depth": 3}, "first_depth is 3"),
        ({"first_depth": -1}, "first_depth is -1"),
        ({"sampled_depths": -1}, "sampled_depths is -1"),
        ({"group_lasso": -0.1}, "group_lasso"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"drop_path": -0.1}, "drop_path is -0.1"),
        ({"gamma_schedule": "sometimes"}, "gamma-schedule"),
        ({"projection": "max"}, "projection"),
    ],
)
def test_impossible_variants_are_refused(change: dict[str, object], match: str, tmp_path: Path) -> None:
    with pytest.raises(StageCostError, match=match):
        train({"data": "digits", "num_blocks": 3, **change}, tmp_path / "run")


def test_rates_of_stochastic_depth_grow_linearly() -> None:
    assert drop_rates(0.8, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert drop_rates(0.0, 3) == [0, 0, 0]


def test_the_expectation_over_all_drops_is_the_branch() -> None:
    """Σ over s ∈ {0, 1/(1 − p)} of its probability times the step is the plain step."""
    network, rates = build("staged").double().eval(), drop_rates(0.6, 7)
    state = network.stem(images().double())
    for rate, block in zip(rates, network.blocks.values(), strict=True):
        without = scaled_step(block, state, torch.zeros(4))
        scaled = scaled_step(block, state, torch.full((4,), 1 / (1 - rate), dtype=torch.float64))
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


def test_a_block_of_another_kind_is_scaled_by_what_it_adds() -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.skip, self.residual = nn.Identity(), nn.Linear(3, 3)

        def forward(self, state: torch.Tensor) -> torch.Tensor:
            return torch.relu(state + self.residual(state))

    block, state = Foreign(), torch.rand(2, 3)
    expected = state + 0.5 * (block(state) - state)
    torch.testing.assert_close(scaled_step(block, state, torch.full((2,), 0.5)), expected)


@pytest.mark.parametrize("fused", [False, True])
def test_scales_reach_the_outputs(fused: bool) -> None:
    """Zero from block 2 on: all later outputs are those of block 2, whichever path computes them."""
    network = build("homogeneous", head_statistics="terminal").eval()
    scales = torch.ones(4, 4)
    scales[2:] = 0.0
    plain = network(images(), depths="all")
    outputs = network(images(), depths="all", fused=fused, branch_scales=scales)
    torch.testing.assert_close(outputs[:3], plain[:3])
    torch.testing.assert_close(outputs[3:], plain[2].expand(2, -1, -1))
    torch.testing.assert_close(network(images(), branch_scales=torch.ones(4, 4)), plain[-1])


def weights_after_training(folder: Path, **changes: object) -> dict[str, torch.Tensor]:
    tiny = {"data": "digits", "num_blocks": 3, "width": 4, "epochs": 2, "limit_train": 200}
    train({**tiny, "batch_size": 64, "gamma": 0.0, "device": "cpu", **changes}, folder)
    return read_checkpoint(folder / "last.safetensors").network().state_dict()


def test_a_rate_of_zero_is_plain_training_to_the_last_bit(tmp_path: Path) -> None:
    plain = weights_after_training(tmp_path / "plain")
    off = weights_after_training(tmp_path / "off", drop_path=0.0)
    on = weights_after_training(tmp_path / "on", drop_path=0.5)
    again = weights_after_training(tmp_path / "again", drop_path=0.5)
    assert all(torch.equal(off[name], tensor) for name, tensor in plain.items())
    assert not torch.equal(on["stem.weight"], plain["stem.weight"])
    assert all(torch.equal(again[name], tensor) for name, tensor in on.items())


def test_dropped_branches_do_not_depend_on_where_a_run_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights_after_training(tmp_path / "whole", drop_path=0.5)
    steps = iter(range(100))

    def stop_once(session: object, images: object, targets: object) -> object:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return train_step(session, images, targets)

    monkeypatch.setattr(loop, "train_step", stop_once)
    with pytest.raises(KeyboardInterrupt):
        weights_after_training(tmp_path / "stopped", drop_path=0.5)
    train({}, tmp_path / "stopped", resume=True)
    resumed = read_checkpoint(tmp_path / "stopped" / "last.safetensors").network().state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_impossible_pieces_are_refused() -> None:
    for make in (
        lambda: distilled(F.cross_entropy, share=2),
        lambda: distilled(F.cross_entropy, temperature=0),
        lambda: hinged(F.cross_entropy, margin=-1),
        lambda: shrink_branches(build("homogeneous"), -1),
        lambda: sc.create_model("staged", projection="max"),
    ):
        with pytest.raises(StageCostError):
            make()


@pytest.mark.parametrize(("normalized", "decay"), [(True, 0.01 / (1 + 2 * 3.0)), (False, 0.01)])
def test_training_after_a_cut_keeps_the_decay_of_the_run(
    tmp_path: Path, normalized: bool, decay: float
) -> None:
    """Or a lambda that was raised for a normalised objective would be far too large without it."""
    given = {"data": "digits", "limit_train": 100, "num_blocks": 2, "width": 4, "device": "cpu"}
    stage = {"gamma": 3.0, "normalize_objective": normalized, "weight_decay": 0.01, "cut_at": "1:1"}
    train({**given, **stage, "epochs": 2}, tmp_path / "run")
    after = finetune_settings(open_trained(tmp_path / "run"), epochs=1).training
    assert after.weight_decay == pytest.approx(decay)
    assert after.gamma == 0
    assert not after.normalized
