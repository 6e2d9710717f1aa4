"""The training loop against loops written independently here."""

import copy
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import stagecost as sc
from stagecost.cut import Cut
from stagecost.data.batches import ImageBatches
from stagecost.data.config import DataConfig
from stagecost.data.loading import load_data
from stagecost.errors import StageCostError
from stagecost.objective import StageCost
from stagecost.runs.training import train
from stagecost.train.checkpoint import read_checkpoint
from stagecost.train.loop import Epoch, Step, fit, train_step
from stagecost.train.parsing import parse_settings
from stagecost.train.recipe import Moment, learning_rate_factor
from stagecost.train.setup import Setup, prepare
from stagecost.train.stage_cost import after_cuts
from stagecost.train.state import State, check_batch

TINY: dict[str, Any] = {
    "data": "digits",
    "num_blocks": 3,
    "width": 4,
    "epochs": 2,
    "limit_train": 300,
    "batch_size": 64,
    "device": "cpu",
}
STAGED: dict[str, Any] = {
    **{key: value for key, value in TINY.items() if key not in {"num_blocks", "width"}},
    "model": "staged",
    "blocks_per_stage": [2, 3],
    "widths": [4, 6],
}


def setup_of(**settings: Any) -> Setup:
    parsed = parse_settings({**TINY, **settings})
    splits = ("train", "val")
    return prepare(parsed, load_data(parsed.data, seed=parsed.training.seed, splits=splits))


def fitted(setup: Setup, *, stage_cost: Any = None, **callbacks: Any) -> State:
    state = setup.start()
    fit(state, setup.batches, stage_cost or setup.stage_cost, setup.recipe, **callbacks)
    return state


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(tensor, states[1][name]) for name, tensor in states[0].items()
    )


def plain_loop() -> dict[str, torch.Tensor]:
    """Plain training as anybody would write it, without the objective and without the loop."""
    data = load_data(DataConfig(data="digits", limit_train=300), seed=7, splits=("train", "val"))
    torch.manual_seed(7)
    network = sc.create_model("homogeneous", num_blocks=3, width=4, num_classes=10, in_channels=1)
    network = network.to(memory_format=torch.channels_last)
    decayed = [p for n, p in network.named_parameters() if ".residual." in n]
    others = [p for n, p in network.named_parameters() if ".residual." not in n]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 1e-3}, {"params": others}],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    steps = 270 // 64
    batches = ImageBatches(data.splits["train"], data.format, data.augmentation, 64, seed=7)
    for epoch in range(2):
        network.train()
        for batch, (x, y) in enumerate(batches.epoch(epoch)):
            step = epoch * steps + batch
            rate = (
                (step + 1) / steps
                if step < steps
                else 0.5 * (1 + math.cos(math.pi * (step / steps - 1)))
            )
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * rate
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return network.state_dict()


@pytest.mark.parametrize("change", [{}, {"sampled_depths": 0}, {"drop_path": 0.0}])
def test_gamma_zero_is_plain_training_to_the_last_bit(tmp_path: Path, change: dict[str, Any]) -> None:
    train({**TINY, "gamma": 0.0, "weight_decay": 1e-3, "seed": 7, **change}, tmp_path / "run")
    trained = read_checkpoint(tmp_path / "run" / "last.safetensors").network().state_dict()
    for name, expected in plain_loop().items():
        if name.startswith("head.norm.") and expected.dim() and len(expected) == 4:
            # Rows of intermediate outputs are estimated for the analysis; the terminal one is trained.
            assert torch.equal(trained[name][-1], expected[-1]), name
        else:
            assert torch.equal(trained[name], expected), name


def test_gamma_zero_draws_the_same_random_numbers(tmp_path: Path) -> None:
    states = []
    for gamma in (0.0, 0.3):
        train({**TINY, "gamma": gamma, "epochs": 1}, tmp_path / str(gamma))
        states.append(read_checkpoint(tmp_path / str(gamma) / "last.safetensors").tensors["rng"])
    assert torch.equal(*states)


def stage_cost_loop(
    setup: Setup, objective: Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.nn.Module:
    """Train with SGD as the paper says, by passes of the network that know nothing of the loop."""
    torch.manual_seed(0)
    arguments = setup.settings.model.arguments()
    network = sc.create_model(setup.settings.model.model, **arguments, num_classes=10, in_channels=1)
    network = network.to(memory_format=torch.channels_last).train()
    groups = sc.parameter_groups(network, setup.weight_decay)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    steps = len(setup.batches)
    for epoch in range(setup.settings.training.epochs):
        for batch, (x, y) in enumerate(setup.batches.epoch(epoch)):
            moment = Moment(epoch, batch, steps, setup.settings.training.epochs)
            for group in optimizer.param_groups:
                group["lr"] = setup.recipe.learning_rate(moment)
            objective(network, x, y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return network


@pytest.mark.parametrize("normalized", [False, True])
def test_the_stage_cost_is_that_of_the_paper(normalized: bool) -> None:
    """gamma·Σ L_k + L_N, each output by a pass of its own truncated network's skips."""
    setup = setup_of(gamma=0.3, sampled_depths=0, normalize_objective=normalized, epochs=1)

    def objective(network: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        losses = [F.cross_entropy(output, y) for output in network(x, depths="all")]
        total = 0.3 * sum(losses[:-1]) + losses[-1]
        return total / (1 + 0.3 * 3) if normalized else total

    expected = stage_cost_loop(setup, objective)
    trained = fitted(setup).network
    for ours, others in zip(trained.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, others, atol=1e-4, rtol=1e-3)


def test_target_cuts_are_losses_of_the_networks_that_the_cuts_leave() -> None:
    """One step by two passes of two networks that share their weights."""
    target = {"targets": ["1+2"], "gamma": 2.0, "normalize_objective": True}
    setup = setup_of(**{**STAGED, "num_blocks": None, "width": None, "epochs": 1, **target})
    state = setup.start()
    x, y = next(iter(setup.batches.epoch(0)))
    whole = state.network.keep(Cut.whole()).train()
    cut = whole.keep(Cut.stages(1, 2)).train()
    losses = [F.cross_entropy(net(x), y) for net in (whole, cut)]
    ((losses[0] + 2 * losses[1]) / 3).backward()
    expected = {name: p.grad.clone() for name, p in whole.named_parameters()}
    for name, p in cut.named_parameters():
        expected[name] += p.grad
    outputs = state.outputs(x, setup.stage_cost.outputs, setup.recipe.how)
    assert outputs.shape == (2, len(y), 10)
    names, parameters = zip(*state.network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(setup.stage_cost(outputs, y).total, parameters)
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(gradient, expected[name])


Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def first_step(**settings: Any) -> tuple[Any, Any, Step, torch.Tensor, torch.Tensor]:
    """Do one step at the full learning rate; return the network before and after it, and its batch."""
    setup = setup_of(warmup_epochs=0.0, sampled_depths=0, **settings)
    state, (x, y) = setup.start(), next(iter(setup.batches.epoch(0)))
    before, moment = copy.deepcopy(state.network), Moment(0, 0, len(setup.batches), 2)
    step = train_step(state, setup.batches, lambda _: setup.stage_cost, setup.recipe, moment, x, y)
    return before.train(), state.network, step, x, y


def halves(output: torch.Tensor, y: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Half of the label, half of what the whole network says."""
    said = last.softmax(dim=1)
    divergence = (said * (said.log() - output.log_softmax(dim=1))).sum(dim=1).mean()
    return 0.5 * F.cross_entropy(output, y) + 0.5 * divergence


def smoothed(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    wanted = 0.7 * F.one_hot(y, 10) + 0.3 / 10
    return -(wanted * output.log_softmax(dim=1)).sum(dim=1).mean()


@pytest.mark.parametrize(
    ("settings", "objective"),
    [
        ({"label_smoothing": 0.3}, lambda o, y: smoothed(o[3], y) + sum(smoothed(z, y) for z in o[:3])),
        ({"first_depth": 2}, lambda o, y: F.cross_entropy(o[3], y) + F.cross_entropy(o[2], y)),
        (
            {"stage_loss": "distilled"},
            lambda o, y: F.cross_entropy(o[3], y) + sum(halves(z, y, o[3]) for z in o[:3]),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_minimised_is_what_the_settings_say(settings: dict[str, Any], objective: Losses) -> None:
    before, _, step, x, y = first_step(gamma=1.0, **settings)
    torch.testing.assert_close(step.terms.total, objective(before(x, depths="all"), y))


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, (1.0, 1.0)),
        ({"gate": 0.25}, (1.0, 0.25)),
        ({"equilibrium": True}, (0.5, 0.5)),
        ({"gate": 0.25, "equilibrium": True}, (0.8, 0.2)),
    ],
    ids=str,
)
def test_what_a_target_learns_from_itself_and_from_the_whole(
    settings: dict[str, Any], shares: tuple[float, float]
) -> None:
    """Its block, stem and head; the blocks behind it learn from the whole network alone."""
    before, after, _, x, y = first_step(targets="1", weight_decay=0.0, **settings)
    names, parameters = zip(*before.named_parameters(), strict=True)
    gradients = [
        torch.autograd.grad(F.cross_entropy(before(x, depths=k), y), parameters, materialize_grads=True)
        for k in (1, 3)
    ]
    for name, own, whole in zip(names, *gradients, strict=True):
        of_both = not name.startswith(("blocks.1.", "blocks.2."))
        wanted = shares[0] * own + shares[1] * whole if of_both else whole
        moved = before.get_parameter(name) - after.get_parameter(name)
        # The first step of Nesterov's momentum.
        torch.testing.assert_close(moved / (0.1 * 1.9), wanted, rtol=1e-3, atol=1e-5)


def test_a_gradient_is_shortened_to_the_largest_norm() -> None:
    moves = []
    for clip_norm in (0.0, 1e6, 0.01):
        before, after, *_ = first_step(clip_norm=clip_norm, weight_decay=0.0)
        pairs = zip(before.parameters(), after.parameters(), strict=True)
        moves.append(torch.cat([(p - q).detach().flatten() for p, q in pairs]))
    free, loose, short = moves
    assert torch.equal(free, loose)
    assert float(short.norm()) == pytest.approx(0.1 * 1.9 * 0.01, rel=1e-3)
    torch.testing.assert_close(short / short.norm(), free / free.norm(), rtol=1e-2, atol=1e-4)


def test_adamw_decays_the_branches_alone() -> None:
    before, after, _, x, y = first_step(optimizer="adamw", lr=0.01, weight_decay=0.5, gamma=0.0)
    decayed = [p for name, p in before.named_parameters() if ".residual." in name]
    others = [p for name, p in before.named_parameters() if ".residual." not in name]
    groups = [{"params": decayed, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    F.cross_entropy(before(x), y).backward()
    optimizer.step()
    for ours, expected in zip(after.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_warm_up_takes_as_long_as_it_is_said_to() -> None:
    rates: list[float] = []
    setup = setup_of(warmup_epochs=0.5, epochs=2, lr=0.2)
    assert len(setup.batches) == 4
    fitted(setup, on_step=lambda state, _: rates.append(state.optimizer.param_groups[0]["lr"]))
    falling = [0.1 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert rates == pytest.approx([0.1, 0.2, *falling])


def test_a_golden_short_run(tmp_path: Path) -> None:
    """Loose enough for another processor, tight enough to notice a changed recipe."""
    recipe = {"data": "digits", "num_blocks": 3, "width": 8, "batch_size": 32, "epochs": 3, "gamma": 0.2}
    result = train({**recipe, "device": "cpu"}, tmp_path / "run")
    losses = [entry.train_loss for entry in result.history]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(GOLDEN_LOSS, rel=0.2)
    assert result.epochs == 3
    assert len(result.history[-1].val_losses or ()) == 4


GOLDEN_LOSS = 0.707


@given(total=st.integers(1, 500), warmup=st.integers(0, 500))
def test_the_learning_rate_warms_up_and_falls_to_zero(total: int, warmup: int) -> None:
    warmup = min(warmup, total)
    factors = [learning_rate_factor(step, total, warmup) for step in range(total)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    if warmup < total:
        assert factors[warmup] == 1.0


def test_default_gamma_is_one_over_n(tmp_path: Path) -> None:
    train({**TINY, "epochs": 1}, tmp_path / "run")
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").gamma == 1 / 3


def test_what_is_minimised_may_be_a_function_of_the_moment() -> None:
    """A stage cost that begins late: plain training until then, to the last bit."""
    setups = [setup_of(gamma=gamma, epochs=3) for gamma in (0.0, 0.5)]
    seen: list[float] = []
    weights: list[torch.Tensor] = []

    def late(moment: Moment) -> StageCost:
        seen.append(moment.progress)
        return setups[1].stage_cost.scaled(float(moment.epoch >= 2))

    def note(state: State, epoch: Epoch) -> None:
        weights.append(state.network.stem.weight.detach().clone())

    fitted(setups[0], on_epoch=note)
    fitted(setups[1], stage_cost=late, on_epoch=note)
    assert min(seen) == 0
    assert max(seen) < 1
    assert torch.equal(weights[1], weights[4])
    assert not torch.equal(weights[2], weights[5])


def test_callers_are_told_steps_and_epochs_and_may_stop() -> None:
    setup = setup_of(epochs=3)
    steps: list[Step] = []
    epochs: list[Epoch] = []

    class Enough(Exception):  # noqa: N818
        pass

    def on_epoch(state: State, epoch: Epoch) -> None:
        epochs.append(epoch)
        if epoch.number == 2:
            raise Enough

    with pytest.raises(Enough):
        fitted(setup, on_step=lambda state, step: steps.append(step), on_epoch=on_epoch)
    per_epoch = len(setup.batches)
    assert [step.moment.step for step in steps] == list(range(2 * per_epoch))
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert epochs[0].sums.samples == per_epoch * 64
    correct = sum(step.correct for step in steps[:per_epoch])
    assert epochs[0].sums.accuracy == pytest.approx(100 * correct / (per_epoch * 64))


@pytest.mark.parametrize("sampled_depths", [2, 0.25])
def test_sampled_depths_are_the_whole_stage_cost_on_average(sampled_depths: float) -> None:
    """Over all draws the gradient is that of all outputs; here: over many steps, nearly."""
    setup = setup_of(num_blocks=6, gamma=0.3, sampled_depths=sampled_depths)
    state, rule = setup.start(), lambda _: setup.stage_cost
    x, y = next(iter(setup.batches.epoch(0)))
    still, moments = replace(setup.recipe, lr=0.0), [Moment(0, batch, 300, 1) for batch in range(300)]
    steps = (train_step(state, setup.batches, rule, still, moment, x, y) for moment in moments)
    visited = [step.terms.stage.item() for step in steps]
    exact = setup.stage_cost(state.outputs(x, setup.stage_cost.outputs, setup.recipe.how), y)
    spread = torch.tensor(visited).std().item() / math.sqrt(len(visited))
    assert sum(visited) / len(visited) == pytest.approx(exact.stage.item(), abs=5 * spread)
    assert len(set(visited)) > 3


@given(data=st.data())
def test_a_block_that_left_counts_as_one_that_does_nothing(data: st.DataObject) -> None:
    """J of the cut network is J of the whole one whose branches are zero there: the same sum."""
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    stages = [range(sum(sizes[:s]), sum(sizes[: s + 1])) for s in range(len(sizes))]
    total = sum(sizes)
    left = sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=1)))
    acting = st.lists(st.frozensets(st.integers(0, total - 1)), max_size=4, unique=True)
    cuts = tuple(Cut(tuple(chosen)) for chosen in data.draw(acting))
    weights = tuple(data.draw(st.floats(0, 2)) for _ in cuts)
    folded = after_cuts(StageCost(cuts, weights), stages, left)
    assert folded.scale == pytest.approx(1 + sum(weights))
    # An output that depends on which of the blocks that are left act, and on nothing else.
    draw = random.Random(data.draw(st.integers(0, 999)))
    values = {frozenset(subset): draw.random() for subset in _subsets(left)}
    before = values[frozenset(left)] + sum(
        weight * values[frozenset(cut.blocks) & frozenset(left)]
        for cut, weight in zip(cuts, weights, strict=True)
    )
    after = folded.terminal_weight * values[frozenset(left)] + sum(
        weight * values[frozenset(left[k] for k in cut.blocks)]
        for cut, weight in zip(folded.cuts, folded.weights, strict=True)
    )
    assert after == pytest.approx(before)
    assert len(set(folded.cuts)) == len(folded.cuts)


def _subsets(items: list[int]) -> list[list[int]]:
    return [[k for i, k in enumerate(items) if mask >> i & 1] for mask in range(1 << len(items))]


def test_an_objective_that_is_no_number_leaves_the_weights_before_the_step() -> None:
    setup = setup_of(epochs=1)
    state = setup.start()
    before = {name: p.clone() for name, p in state.network.named_parameters()}
    rule = replace(
        setup.stage_cost, loss=lambda output, target: F.cross_entropy(output, target) * math.nan
    )
    with pytest.raises(StageCostError, match=r"objective is nan in epoch 1, batch 1: lower --lr"):
        fit(state, setup.batches, rule, setup.recipe)
    assert all(torch.equal(p, before[name]) for name, p in state.network.named_parameters())


def test_activation_checkpointing_trains_to_the_same_weights() -> None:
    states = [
        fitted(setup_of(num_blocks=5, epochs=1, activation_checkpointing=chosen))
        for chosen in (False, True)
    ]
    for ours, others in zip(*(state.network.parameters() for state in states), strict=True):
        torch.testing.assert_close(ours, others, atol=1e-4, rtol=1e-3)


def test_a_rate_of_drop_path_leaves_branches_out() -> None:
    plain, off, on, again = (
        fitted(setup_of(gamma=0.0, drop_path=rate)).network for rate in (0.0, 0.0, 0.5, 0.5)
    )
    assert same_weights(plain, off)
    assert same_weights(on, again)
    assert not torch.equal(on.stem.weight, plain.stem.weight)


def test_the_average_is_an_average_of_the_weights() -> None:
    setup = setup_of(epochs=1, ema_decay=0.5)
    state = setup.start()
    expected: dict[str, torch.Tensor] = {}

    def follow(state: State, step: Step) -> None:
        for name, p in state.network.named_parameters():
            now = p.detach().clone()
            expected[name] = now if name not in expected else 0.5 * expected[name] + 0.5 * now

    fit(state, setup.batches, setup.stage_cost, setup.recipe, on_step=follow)
    for name, p in state.evaluated.named_parameters():
        torch.testing.assert_close(p, expected[name])


@pytest.mark.parametrize(("count", "fits"), [(1, False), (2, True)])
def test_a_batch_without_a_variance_is_refused_before_it_is_trained(count: int, fits: bool) -> None:
    network = sc.create_model("staged", blocks_per_stage=(1, 1), widths=(4, 6), in_channels=1)
    if fits:
        check_batch(network, (1, 2, 2), count)
    else:
        with pytest.raises(StageCostError, match="--batch-size"):
            check_batch(network, (1, 2, 2), count)
    check_batch(network, (1, 8, 8), 1)  # some pixels are left: they have a variance


def test_frozen_norms_take_single_images(tmp_path: Path) -> None:
    sc.create_model("homogeneous", num_blocks=3, width=4, in_channels=1).save_pretrained(tmp_path)
    small = {"image_size": 2, "stem_stride": 2, "limit_train": 20, "batch_size": 1}
    setup = setup_of(**small, weights=str(tmp_path), freeze_norms=True)
    assert fitted(setup).progress.epoch == 2


def late(moment: Moment) -> StageCost:
    """The stage cost of the second half of the last epoch."""
    full = StageCost.uniform(3, 0.2)
    return full if moment.step >= moment.total_steps - moment.steps_per_epoch / 2 else full.scaled(0)


@pytest.mark.parametrize(
    ("settings", "rule", "always"),
    [
        ({"targets": "1,2"}, None, {1, 2}),
        ({"num_blocks": 5, "targets": "1,2,3,4", "sandwich": True}, None, {1}),
        ({"num_blocks": 6, "sampled_depths": 2}, None, set()),
        ({}, late, set()),
    ],
)
def test_head_statistics_of_what_not_every_step_visits_are_estimated(
    settings: dict[str, Any], rule: Any, always: set[int]
) -> None:
    setup, told = setup_of(**{"gamma": 0.2, "epochs": 1, **settings}), list[Epoch]()
    state = fitted(setup, stage_cost=rule, on_epoch=lambda _, epoch: told.append(epoch))
    assert told[0].visited == {Cut(tuple(range(k))) for k in always}
    norm = state.network.head.get_submodule("norm")
    before = norm.running_mean.clone()
    setup.validation.calibrate(state.network, told[0], setup.recipe)
    changed = {
        k for k in range(setup.network.num_blocks) if not torch.equal(norm.running_mean[k], before[k])
    }
    assert changed == set(range(setup.network.num_blocks)) - always


def test_a_gradient_whose_norm_is_no_number_is_refused_where_it_would_be_clipped() -> None:
    setup = setup_of(epochs=1, gamma=1e20, clip_norm=1.0, sampled_depths=0)
    with pytest.raises(StageCostError, match=r"norm of the gradient is inf in epoch 1, batch 1: lower"):
        fitted(setup)


def test_training_leaves_the_random_numbers_of_the_caller(tmp_path: Path) -> None:
    drawn = []
    for seed in (5, 77):
        torch.manual_seed(seed)
        expected = torch.rand(2)
        torch.manual_seed(seed)
        train({**TINY, "epochs": 1}, tmp_path / str(seed))
        drawn.append(torch.rand(2))
        assert torch.equal(drawn[-1], expected)
    assert not torch.equal(*drawn)
