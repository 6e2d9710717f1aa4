"""Diagnosis and pruning: truncation is exact, plans say what happens, staged cuts are searched."""

import math
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import stagecost as sc
from helpers import BUILDERS, build, images, labels, loader
from stagecost.cut import Cut, stage_counts
from stagecost.errors import StageCostError
from stagecost.macs import macs_by_branch, macs_by_part
from stagecost.prune import possible_cuts
from stagecost.text import format_indices
from stagecost.trajectory import Score, evaluate_cuts, terminal_score


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (images(), "a batch is a Tensor, not a pair"),
        ((images().numpy(), labels()), "inputs are of type ndarray: give a tensor"),
        ((images(), labels().tolist()), "targets are of type list: give a tensor"),
    ],
)
def test_a_batch_of_something_else_is_named(batch: object, words: str) -> None:
    with pytest.raises(StageCostError, match=words):
        sc.loss_trajectory(build("homogeneous"), [batch])  # type: ignore[list-item]


@pytest.mark.parametrize("how", ["other images", "another loss"])
def test_cuts_are_not_compared_over_other_images_or_another_loss(how: str) -> None:
    network, data = build("homogeneous"), loader()
    smooth = partial(F.cross_entropy, label_smoothing=0.5)
    trajectory = sc.loss_trajectory(network, data, loss=smooth)
    keep = Cut((0, 2))
    assert sc.plan_pruning(network, trajectory, keep=keep, loader=data, loss=smooth).cut == keep
    other = {"loader": [(1 - x, y) for x, y in data], "loss": smooth}
    given = other if how == "other images" else {"loader": data}
    with pytest.raises(StageCostError, match="give the loader and the loss of the trajectory"):
        sc.plan_pruning(network, trajectory, keep=keep, **given)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_trajectory_is_weighted_by_sample(name: str) -> None:
    """Losses, accuracies and ratios agree with one pass over all images at once."""
    network, data = build(name).train(), loader()
    trajectory = sc.loss_trajectory(network, data)
    assert network.training, "the network is left in its mode"
    x, y = torch.cat([a for a, _ in data]), torch.cat([b for _, b in data])
    network.eval()
    with torch.no_grad():
        outputs, states = network(x, depths="all"), list(network.states(x))
    losses = [float(F.cross_entropy(output, y)) for output in outputs]
    correct = [100 * float((output.argmax(1) == y).double().mean()) for output in outputs]
    assert trajectory.losses == pytest.approx(losses, rel=1e-5)
    assert trajectory.accuracies == pytest.approx(correct)
    for k, block in enumerate(network.blocks.values()):
        branch = block.residual(states[k]).detach().flatten(1).norm(dim=1)
        ratio = (branch / states[k].flatten(1).norm(dim=1)).mean()
        assert trajectory.residual_ratios[k] == pytest.approx(ratio.item(), rel=1e-3)
    assert trajectory.num_samples == 13
    assert trajectory.stage_starts == tuple(stage[0] for stage in network.stages)
    score = terminal_score(network, data)
    assert score.accuracy == pytest.approx(trajectory.accuracies[-1])
    assert score.loss == pytest.approx(trajectory.losses[-1])


def test_regression_has_losses_but_no_accuracies() -> None:
    data = [(images(), torch.randn(4, 5))]
    trajectory = sc.loss_trajectory(build("homogeneous"), data, loss=F.mse_loss)
    assert all(math.isfinite(loss) for loss in trajectory.losses)
    assert all(math.isnan(accuracy) for accuracy in trajectory.accuracies)
    with pytest.raises(StageCostError, match="class labels"):
        trajectory.needed_blocks(0.5)


def test_one_output_for_two_classes_has_no_accuracy() -> None:
    """Its largest output is always the first, which would be right for one class at any depth."""
    network = build("homogeneous", num_classes=1)
    data = [(images(), torch.tensor([0, 1, 1, 0]))]

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(output.squeeze(1), target.float())

    trajectory = sc.loss_trajectory(network, data, loss=loss)
    assert all(math.isnan(accuracy) for accuracy in trajectory.accuracies)
    with pytest.raises(StageCostError, match="max_drop needs accuracies"):
        sc.plan_pruning(network, trajectory, max_drop=1.0)


def test_samples_that_a_loss_leaves_out_leave_no_accuracy() -> None:
    data = [(images(), torch.tensor([0, -100, 2, -100]))]
    score = terminal_score(build("homogeneous"), data)
    assert math.isfinite(score.loss)
    assert math.isnan(score.accuracy)


@pytest.mark.parametrize("measure", [sc.loss_trajectory, partial(sc.block_importance, gamma=0.5)])
def test_samples_that_a_loss_leaves_out_do_not_count_in_a_mean(measure: Any) -> None:
    """However the samples are batched; a batch may have nothing that counts, or no sample."""
    network, x, y = build("homogeneous").double(), images(6).double(), labels(6)
    y[:3] = -100
    whole, parts = (
        measure(network, [(x[3:], y[3:])]),
        measure(network, [(x[:2], y[:2]), (x[2:4], y[2:4]), (x[4:], y[4:]), (x[:0], y[:0])]),
    )
    one, other = (found if isinstance(found, list) else found.losses for found in (whole, parts))
    assert other == pytest.approx(one)
    with pytest.raises(StageCostError, match="leaves every target out"):
        measure(network, [(x[:3], y[:3])])


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(torch.tensor([1.0, 3.0, 0.5, 0.0, 2.0]), label_smoothing=0.1),
        nn.CrossEntropyLoss(ignore_index=2),
        partial(F.cross_entropy, reduction="mean", ignore_index=2),
        partial(F.cross_entropy, weight=torch.tensor([1.0, 3.0, 0.5, 1.0, 2.0])),
        partial(F.nll_loss, weight=torch.tensor([1.0, 3.0, 0.5, 1.0, 2.0])),
        nn.NLLLoss(ignore_index=2),
    ],
)
def test_a_mean_loss_does_not_depend_on_the_batches(loss: Any) -> None:
    network, x, y = build("homogeneous"), images(8), torch.tensor([0, 1, 2, 3, 4, 1, 2, 2])
    whole = sc.loss_trajectory(network, [(x, y)], loss=loss).losses
    parts = sc.loss_trajectory(network, [(x[:2], y[:2]), (x[2:], y[2:])], loss=loss).losses
    assert parts == pytest.approx(whole)
    with torch.no_grad():
        assert whole[-1] == pytest.approx(float(loss(network.eval()(x), y)))


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(reduction="none"), partial(F.cross_entropy, reduction="none")]
)
def test_one_loss_a_sample_is_averaged_over_all(loss: Any) -> None:
    """Also over those that it leaves out, however the samples are batched."""
    network, x, y = build("homogeneous"), images(8), torch.tensor([0, -100, 2, 3, 4, 1, 2, 2])
    parts = sc.loss_trajectory(network, [(x[:2], y[:2]), (x[2:], y[2:])], loss=loss).losses
    with torch.no_grad():
        assert parts[-1] == pytest.approx(float(loss(network.eval()(x), y).mean()))


def test_a_loss_of_tokens_leaves_out_those_of_no_class() -> None:
    """As language models have it: the loss is one's own, as it brings the tokens into rows."""
    network = nn.Linear(6, 5)
    blocks = [sc.ResidualBlock(nn.Linear(6, 6)) for _ in range(2)]

    class Head(nn.Module):
        def forward(self, state: Tensor, depth: int) -> Tensor:
            return network(state)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    tokens, classes = torch.randn(9, 4, 6), torch.randint(5, (9, 4))
    classes[:4, 1:] = -100
    model = sc.ResidualNetwork(nn.Identity(), blocks, Head()).eval()
    parts = [(tokens[:4], classes[:4]), (tokens[4:], classes[4:])]
    with torch.no_grad():
        expected = [float(loss(output, classes)) for output in model(tokens, depths="all")]
    assert sc.loss_trajectory(model, parts, loss=loss).losses == pytest.approx(expected)


def test_there_is_no_accuracy_of_samples_that_a_loss_leaves_out() -> None:
    network, x, y = build("homogeneous").eval(), images(8), torch.tensor([0, 1, 2, 3, 4, 1, 2, 255])
    by_sample = nn.CrossEntropyLoss(ignore_index=255, reduction="none")
    losses = (partial(F.cross_entropy, ignore_index=255), nn.CrossEntropyLoss(ignore_index=255))
    for loss in (*losses, by_sample, nn.NLLLoss(ignore_index=255)):
        assert math.isnan(sc.loss_trajectory(network, [(x, y)], loss=loss).whole.accuracy)
        assert not math.isnan(sc.loss_trajectory(network, [(x[:7], y[:7])], loss=loss).whole.accuracy)


def test_a_count_that_the_rows_of_the_trajectory_have() -> None:
    network, data = build("staged").eval(), loader()
    cut = sc.Cut((network.num_blocks - 1,))
    trajectory = sc.loss_trajectory(network, data, cuts=[cut])
    if network.can_keep(cut):
        assert sc.plan_pruning(network, trajectory, keep=1, loader=data).cut == cut
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


def test_outputs_that_are_no_numbers_are_never_right() -> None:
    network, data = build("homogeneous"), [(images(), torch.zeros(4, dtype=torch.long))]
    torch.nn.init.constant_(network.blocks["1"].residual[-1].weight, torch.nan)
    trajectory = sc.loss_trajectory(network, data)
    assert trajectory.accuracies[2:] == (0.0, 0.0, 0.0)
    with pytest.raises(StageCostError, match="loss of the whole network is nan"):
        sc.plan_pruning(network, trajectory, max_drop=1.0)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(StageCostError, match="empty"):
        sc.loss_trajectory(build("homogeneous"), [])
    with pytest.raises(StageCostError, match="empty"):
        evaluate_cuts(build("staged"), [], [Cut.whole()])


@given(
    accuracies=st.lists(st.floats(0, 100), min_size=2, max_size=30),
    tolerances=st.tuples(st.floats(0, 100), st.floats(0, 100)),
)
def test_needed_blocks(accuracies: list[float], tolerances: tuple[float, float]) -> None:
    small, large = sorted(tolerances)
    needed = sc.needed_blocks(accuracies, small)
    assert 1 <= needed <= len(accuracies) - 1
    assert accuracies[needed] >= accuracies[-1] - small - 1e-6
    assert all(a < accuracies[-1] - small for a in accuracies[1:needed])
    assert sc.needed_blocks(accuracies, large) <= needed


@pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf])
def test_impossible_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(StageCostError, match="tolerance"):
        sc.needed_blocks([10.0, 20.0], tolerance)


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


def test_too_many_vectors_are_thinned_but_keep_their_ends() -> None:
    network = build("staged", blocks_per_stage=(9, 9, 9))
    counts = [stage_counts(cut, network.stage_positions) for cut in possible_cuts(network, limit=100)]
    assert 27 <= len(counts) <= 100
    assert {(1, 1, 1), (9, 9, 9), (1, 9, 1), (9, 1, 9)} <= set(counts)
    assert len(possible_cuts(network)) == 9**3


def test_macs_are_those_of_a_count_by_hand() -> None:
    network = build("staged")
    x, parts = images(1), macs_by_part(network, (3, 16, 16))
    by_hand = [3 * 4 * 9 * 256]
    width_in, size = 4, 16
    for stage, width in zip(network.stages, (4, 6, 8), strict=True):
        for position, _ in enumerate(stage):
            size //= 2 if width != 4 and position == 0 else 1
            projection = width_in * width if width_in != width else 0
            by_hand.append((9 * width_in * width + 9 * width * width + projection) * size * size)
            width_in = width
    by_hand.append(8 * 5)
    assert parts == by_hand
    assert sc.count_macs(network, x.shape[1:]) == sum(by_hand)


class LinearHead(nn.Linear):
    """The same for every depth."""

    def forward(self, state: Tensor, depth: int) -> Tensor:
        return super().forward(state)


class Bilinear(nn.Module):
    """A branch whose product torch's counter does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Bilinear(4, 4, 4)

    def forward(self, rows: Tensor) -> Tensor:
        return self.map(rows, rows)


class ByVectors(nn.Module):
    """The same: a matrix times each vector."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4))

    def forward(self, rows: Tensor) -> Tensor:
        added = rows.new_ones(4) * torch.dot(rows[0], rows[0])
        return torch.stack([torch.addmv(added, self.matrix, self.matrix.mv(row)) for row in rows])


@pytest.mark.parametrize(("branch", "macs"), [(Bilinear, 4 * 4 * 4), (ByVectors, 2 * 4 * 4 + 4)])
def test_products_that_are_no_layers_count(branch: type[nn.Module], macs: int) -> None:
    network = sc.ResidualNetwork(nn.Linear(3, 4), [sc.ResidualBlock(branch())], LinearHead(4, 5))
    assert macs_by_part(network, (3,)) == [12, macs, 20]


class Tabled(nn.Module):
    """A layer behind a table on the CPU, which meta tensors do not go together with."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, rows: Tensor) -> Tensor:
        outputs = self.layer(rows[None] + torch.arange(4))
        return (outputs if isinstance(outputs, Tensor) else outputs[0])[0]


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.LSTM(4, 4, batch_first=True), 8 * 4 * 4),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 4 * 4 * 4 + 2 * 4 + 2 * 4 * 8),
    ],
)
def test_what_the_cpu_fuses_counts(layer: nn.Module, macs: int) -> None:
    network = sc.ResidualNetwork(nn.Linear(3, 4), [sc.ResidualBlock(Tabled(layer))], LinearHead(4, 5))
    assert macs_by_part(network, (3,)) == [12, macs, 20]
    assert torch.backends.mha.get_fastpath_enabled(), "as it was"


class Called(nn.Sequential):
    """A module of somebody else's code, which may do more than call its layers."""


@pytest.mark.parametrize("name", BUILDERS)
def test_macs_are_those_of_the_counter_of_torch(name: str) -> None:
    """A network of plain layers is counted by their calls, any other one by torch's own counter."""
    network, other, shape = build(name), build(name), (3, 32, 32)
    other.stem = Called(other.stem)
    assert macs_by_part(network, shape) == macs_by_part(other, shape)
    cut = Cut.first(2)
    assert sc.count_macs(network, shape, cut) == sc.count_macs(other, shape, cut)
    skips, *branches = macs_by_branch(network, shape)  # of y_0: all skips, no branch
    for each in (Cut.first(0), cut, Cut.without(0).among(network.stage_positions)):
        assert sc.count_macs(network, shape, each) == skips + sum(branches[k] for k in each.blocks)


class OfItself(nn.Module):
    """Products without a weight."""

    def forward(self, state: Tensor) -> Tensor:
        return state @ state.mT @ state


def test_what_was_traced_is_code_of_somebody_else() -> None:
    network, other, shape = build("homogeneous"), build("homogeneous"), (3, 32, 32)
    network.stem = torch.fx.symbolic_trace(nn.Sequential(network.stem, OfItself()))
    other.stem = Called(other.stem, OfItself())
    assert macs_by_part(network, shape) == macs_by_part(other, shape)


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
