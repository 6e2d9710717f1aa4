"""Diagnosis: losses and accuracies over depth, means whatever the batches are, needed blocks."""

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import stagecost as sc
from helpers import BUILDERS, build, images, labels, loader
from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.probes import linear_probes
from stagecost.prune import Limits
from stagecost.trajectory import Score, evaluate_cuts, terminal_score


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (images(), "a batch is a Tensor, not a pair"),
        ((images().numpy(), labels()), "inputs are of type ndarray: give a tensor"),
        ((images(), labels().tolist()), "targets are of type list: give a tensor"),
    ],
)
@pytest.mark.parametrize(
    "measure",
    [
        sc.loss_trajectory,
        sc.recalibrate,
        partial(sc.block_importance, gamma=0.5),
        partial(sc.exit_curve, image_shape=(3, 8, 8)),
        lambda network, data: linear_probes(network, data, data),
    ],
)
def test_a_batch_of_something_else_is_named(measure: Any, batch: object, words: str) -> None:
    with pytest.raises(StageCostError, match=words):
        measure(build("homogeneous"), [batch])


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
    with pytest.raises(StageCostError, match=r"max_drop needs accuracies.*: give max_drop=None and"):
        sc.plan_pruning(network, trajectory, max_drop=1.0, max_loss_increase=0.1)


@pytest.mark.parametrize("samples", [3, 4])
def test_several_outputs_a_sample_have_no_accuracy(samples: int) -> None:
    """Whether or not there are as many as samples."""
    network = build("homogeneous", num_classes=4 * 5)
    network.head.linear = nn.Sequential(network.head.linear, nn.Unflatten(-1, (4, 5)))

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output.mean(dim=1), target)

    trajectory = sc.loss_trajectory(network, [(images(samples), labels(samples))], loss=loss)
    assert all(math.isnan(accuracy) for accuracy in trajectory.accuracies)


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


def test_outputs_that_are_no_numbers_are_never_right() -> None:
    network, data = build("homogeneous"), [(images(), torch.zeros(4, dtype=torch.long))]
    torch.nn.init.constant_(network.blocks["1"].residual[-1].weight, torch.nan)
    trajectory = sc.loss_trajectory(network, data)
    assert trajectory.accuracies[2:] == (0.0, 0.0, 0.0)
    with pytest.raises(StageCostError, match="loss of the whole network is nan"):
        sc.plan_pruning(network, trajectory, max_drop=1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_coarse_outputs_are_summed_finely(dtype: torch.dtype) -> None:
    network, x, y = build("homogeneous").eval().to(dtype), images(64).to(dtype), labels(64)
    with torch.no_grad():
        outputs = network(x, depths="all")
    expected = [F.cross_entropy(o, y, reduction="none").double().mean().item() for o in outputs]
    assert sc.loss_trajectory(network, [(x, y)]).losses == pytest.approx(expected, rel=1e-6)
    many = torch.zeros(2, 100, 2, 1000, dtype=dtype)  # sums beyond the largest number of float16
    terms = sc.StageCost.targets(Cut.first(0))(many, torch.zeros(100, 1000, dtype=torch.long))
    assert float(terms.total) == pytest.approx(2 * math.log(2), rel=3e-3)


@pytest.mark.parametrize("wrong", [nn.DataParallel(build("homogeneous")), nn.Linear(2, 2)])
def test_what_is_no_network_of_blocks_is_refused(wrong: nn.Module) -> None:
    with pytest.raises(StageCostError, match=f"{type(wrong).__name__} is no network of blocks: give"):
        sc.loss_trajectory(wrong, loader())  # type: ignore[arg-type]


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


def test_a_drop_of_just_the_tolerance_is_within_it() -> None:
    """Three images of a thousand are 0.3 points, and by rounding a little more."""
    none, fewer, all_blocks = (100 * right / 1000 for right in (100, 498, 501))
    assert all_blocks - fewer > 0.3
    assert sc.needed_blocks([none, fewer, all_blocks], 0.3) == 1
    assert sc.needed_blocks([none, fewer, all_blocks], 0.29) == 2
    whole, cut = Score(Cut((0, 1)), 0.5, all_blocks, 1000), Score(Cut((0,)), 0.5, fewer, 1000)
    assert Limits(whole, max_drop=0.3).allow(cut)
    assert not Limits(whole, max_drop=0.29).allow(cut)


@pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf])
def test_impossible_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(StageCostError, match="tolerance"):
        sc.needed_blocks([10.0, 20.0], tolerance)
