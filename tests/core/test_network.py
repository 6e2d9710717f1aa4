"""Contracts that every builder keeps, and the exact identities of states and outputs."""

from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import stagecost as sc
from helpers import BUILDERS, build, images, labels
from stagecost.cut import Cut, resolve_depths
from stagecost.errors import StageCostError
from stagecost.models.catalogue import create_model, load
from stagecost.models.registry import catalogue

every_builder = pytest.mark.parametrize("name", BUILDERS)


def test_every_model_of_the_catalogue_is_under_contract() -> None:
    # Others register their own when they are imported: the classifier for scikit-learn, an experiment.
    native = {
        name for name, builder in catalogue.items() if builder.__module__ == "stagecost.models.native"
    }
    assert native == set(BUILDERS)
    assert set(sc.list_models("preact*")) == {"preact_resnet101", "preact_resnet152", "preact_resnet50"}


class StateItself(nn.Module):
    """A head that hands out the state."""

    def forward(self, state: torch.Tensor, depth: int) -> torch.Tensor:
        return state


def test_a_block_has_a_skip() -> None:
    with pytest.raises(StageCostError, match="block 1 has no module `skip`"):
        sc.ResidualNetwork(nn.Flatten(), [sc.ResidualBlock(nn.Tanh()), nn.Tanh()], StateItself())


def test_details_are_json_of_other_names(tmp_path: Path) -> None:
    network = build("homogeneous")
    for details in ({"name": "mine"}, {"format": "jpeg"}, {"target_norms": []}):
        with pytest.raises(StageCostError, match="is a part of the structure, and no detail"):
            network.save_pretrained(tmp_path, **details)
    deep: list[object] = []
    for _ in range(40):
        deep = [deep]
    for value in (float("nan"), torch.ones(2), deep):
        with pytest.raises(StageCostError, match="the details are no JSON"):
            network.save_pretrained(tmp_path, note=value)
    assert not list(tmp_path.iterdir())


def test_a_crash_between_the_two_files_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("homogeneous")
    network.save_pretrained(tmp_path, class_names=["cat", "dog"])
    assert load(tmp_path).details == {"class_names": ["cat", "dog"]}
    monkeypatch.setattr("stagecost.saved.write_json", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        network.save_pretrained(tmp_path, class_names=["dog", "cat"])
    with pytest.raises(StageCostError, match="are of two savings"):
        load(tmp_path)


def test_a_network_may_have_no_parameters() -> None:
    blocks = [sc.ResidualBlock(nn.Tanh()) for _ in range(2)]
    network, rows = sc.ResidualNetwork(nn.Flatten(), blocks, StateItself()), torch.randn(6, 3)
    batches = [(rows, torch.tensor([0, 1, 2, 0, 1, 2]))]
    trajectory = sc.loss_trajectory(network, batches)
    x_1 = rows + rows.tanh()
    losses = [nn.functional.cross_entropy(x, batches[0][1]) for x in (rows, x_1, x_1 + x_1.tanh())]
    assert trajectory.losses == pytest.approx([float(loss) for loss in losses])
    assert sc.plan_pruning(network, trajectory, keep=1).parameters_after == 0


@every_builder
def test_one_forward_call_gives_every_output(name: str) -> None:
    network, x = build(name).eval(), images()
    n = network.num_blocks
    everything = network(x, depths="all")
    assert everything.shape == (n + 1, 4, 5)
    assert torch.equal(network(x), everything[n])
    assert torch.equal(network(x, depths=0), everything[0])
    assert torch.equal(network(x, depths=-2), everything[n - 1])
    assert torch.equal(network(x, depths=[n, 1, 1]), everything[[n, 1, 1]])


@every_builder
@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_the_literal_definition(name: str, training: bool) -> None:
    """y_k = H(S_{N-1} ∘ … ∘ S_k (x_k)), written out here once more."""
    network, x = build(name).train(training), images()
    outputs = network(x, depths="all")
    blocks = list(network.blocks.values())
    state = network.stem(x)
    for k in range(network.num_blocks + 1):
        skipped = state
        for block in blocks[k:]:
            skipped = block.skip(skipped)
        normed = nn.functional.batch_norm(
            skipped,
            None if training else network.head.norm.running_mean[k],
            None if training else network.head.norm.running_var[k],
            network.head.norm.weight,
            network.head.norm.bias,
            training=training,
        )
        expected = network.head.linear(normed.relu().mean(dim=(2, 3)))
        torch.testing.assert_close(outputs[k], expected)
        if k < network.num_blocks:
            state = blocks[k].skip(state) + blocks[k].residual(state)


@every_builder
def test_states_are_the_trajectory(name: str) -> None:
    network, x = build(name).eval(), images()
    states = list(network.states(x))
    assert len(states) == network.num_blocks + 1
    assert torch.equal(states[0], network.stem(x))
    for block, state, following in zip(network.blocks.values(), states, states[1:], strict=False):
        assert torch.equal(block(state), following)
        assert torch.equal(block.skip(state) + block.residual(state), following)


@every_builder
def test_nothing_overwrites_a_state(name: str) -> None:
    network, x = build(name).train(), images()
    before = x.clone()
    states = [(state, state.detach().clone()) for state in network.states(x)]
    assert torch.equal(x, before)
    assert all(torch.equal(state, copy) for state, copy in states)


@every_builder
def test_zero_weights_make_a_block_its_skip_exactly(name: str) -> None:
    network, x = build(name).eval(), images()
    block = network.blocks["1"]
    state = list(network.states(x))[1]
    for parameter in block.residual.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(block(state), block.skip(state))


@every_builder
def test_projections_are_linear_in_the_state(name: str) -> None:
    network = build(name, seed=3).double().eval()
    for k, state in enumerate(list(network.states(images().double()))[:-1]):
        skip, other = network.skips[k], torch.randn_like(state)
        torch.testing.assert_close(skip(2 * state - other), 2 * skip(state) - skip(other))


@every_builder
def test_state_dict_keys_are_a_contract(name: str) -> None:
    network = build(name)
    for key in network.state_dict():
        parts = key.split(".")
        assert parts[0] in {"stem", "blocks", "head"}
        if parts[0] == "blocks":
            assert int(parts[1]) < network.num_blocks
            assert parts[2] in {"residual", "skip"}


@every_builder
def test_no_parameter_is_added_for_the_outputs(name: str) -> None:
    """The head has one affine norm and one linear map, however many outputs it serves."""
    network = build(name)
    width = network.head.norm.num_features
    assert sc.count_parameters(network.head) == 2 * width + 5 * width + 5


@every_builder
def test_save_and_load_give_the_same_network(name: str, tmp_path: object) -> None:
    network, x = build(name).eval(), images()
    network.save_pretrained(f"{tmp_path}/net", note={"mean": [0.5]})
    loaded = sc.load(f"{tmp_path}/net")
    assert torch.equal(loaded(x, depths="all"), network(x, depths="all"))
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert loaded.description == network.description


def test_a_pruned_network_is_saved_as_what_it_is(tmp_path: object) -> None:
    network, x = build("staged").eval(), images()
    whole = set(network.state_dict())
    network.remove_all_but(Cut.stages(1, 2, 1))
    assert set(network.state_dict()) < whole
    network.save_pretrained(f"{tmp_path}/net")
    loaded = sc.load(f"{tmp_path}/net")
    assert loaded.block_indices == (0, 2, 3, 5)
    assert loaded.stages == ((0,), (2, 3), (5,))
    assert torch.equal(loaded(x, depths="all"), network(x, depths="all"))


def test_loading_draws_no_random_number(tmp_path: object) -> None:
    build("homogeneous").save_pretrained(f"{tmp_path}/net")
    before = torch.get_rng_state()
    sc.load(f"{tmp_path}/net")
    assert torch.equal(before, torch.get_rng_state())


def test_blocks_behind_the_last_depth_are_not_computed() -> None:
    network = build("homogeneous").eval()
    network.blocks["2"].forward = None  # type: ignore[assignment]
    assert network(images(), depths=[0, 2]).shape == (2, 4, 5)
    with pytest.raises(TypeError):
        network(images(), depths=3)


@given(
    n=st.integers(1, 30),
    depths=st.lists(st.integers(-31, 31), min_size=1, max_size=5),
)
def test_depths_are_resolved_or_refused(n: int, depths: list[int]) -> None:
    if all(-n - 1 <= depth <= n for depth in depths):
        assert resolve_depths(depths, n) == tuple(range(n + 1)[depth] for depth in depths)
    else:
        with pytest.raises(StageCostError, match="impossible"):
            resolve_depths(depths, n)


@pytest.mark.parametrize("depths", ["some", [], [1.5], [True], True, 1.5])
def test_depths_that_are_no_depths_are_refused(depths: object) -> None:
    with pytest.raises(StageCostError):
        resolve_depths(depths, 4)  # type: ignore[arg-type]


def test_a_depth_may_be_a_number_of_numpy() -> None:
    network = build("homogeneous").eval()
    assert torch.equal(network(images(), depths=np.int64(2)), network(images(), depths=2))


def test_sizes_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    network = create_model("staged", blocks_per_stage=[np.int64(2), 1], widths=(np.int32(4), 4))
    network.save_pretrained(tmp_path)
    assert load(tmp_path).blocks_per_stage == (2, 1)


@settings(deadline=None, max_examples=20)
@given(
    blocks=st.integers(1, 6),
    width=st.integers(1, 9),
    channels=st.integers(1, 4),
    size=st.integers(5, 13),
    stride=st.integers(1, 2),
    classes=st.integers(1, 7),
)
def test_homogeneous_networks_of_any_shape(
    blocks: int, width: int, channels: int, size: int, stride: int, classes: int
) -> None:
    network = sc.create_model(
        "homogeneous",
        num_blocks=blocks,
        width=width,
        in_channels=channels,
        stem_stride=stride,
        num_classes=classes,
    ).eval()
    assert network.is_homogeneous
    assert network.stages == (tuple(range(blocks)),)
    with torch.no_grad():
        assert network(images(3, size, channels), depths="all").shape == (blocks + 1, 3, classes)


@pytest.mark.parametrize(
    ("name", "blocks", "parameters"),
    [
        ("preact_resnet50", (3, 4, 6, 3), 25.5e6),
        ("preact_resnet101", (3, 4, 23, 3), 44.5e6),
        ("preact_resnet152", (3, 8, 36, 3), 60.2e6),
    ],
)
def test_imagenet_sized_networks(name: str, blocks: tuple[int, ...], parameters: float) -> None:
    with torch.device("meta"):
        network = sc.create_model(name)
    assert tuple(len(stage) for stage in network.stages) == blocks
    assert sc.count_parameters(network) == pytest.approx(parameters, rel=0.01)
    assert sc.count_macs(network, (3, 224, 224)) > 4e9


def test_the_policies_of_head_statistics_differ_only_in_eval_mode() -> None:
    x = images(8)
    outputs = {}
    for policy in ("per_output", "terminal"):
        torch.manual_seed(0)
        network = sc.create_model("homogeneous", num_blocks=3, width=6, head_statistics=policy)
        for _ in range(5):
            trained = network(x, depths="all")
        outputs[policy] = (trained, network.eval()(x, depths="all"), network)
    assert torch.equal(outputs["per_output"][0], outputs["terminal"][0])
    # The terminal row of both is that of an ordinary BatchNorm.
    assert torch.equal(outputs["per_output"][1][-1], outputs["terminal"][1][-1])
    assert outputs["per_output"][2].head.norm.running_mean.shape == (4, 6)
    assert outputs["terminal"][2].head.norm.running_mean.shape == (1, 6)
    assert outputs["terminal"][2].head.norm.num_batches_tracked.item() == 5


def test_a_head_row_is_what_batchnorm_would_keep_for_this_output() -> None:
    network = build("homogeneous").train()
    twins = [nn.BatchNorm2d(6) for _ in range(5)]
    for k, twin in enumerate(twins):
        twin.running_mean.copy_(network.head.norm.running_mean[k])
        twin.running_var.copy_(network.head.norm.running_var[k])
    for seed in range(3):
        x = images(seed=seed)
        states = []
        network(x, depths="all", observe=lambda k, state, following, seen=states: seen.append(following))
        for twin, state in zip(twins, [network.stem(x), *states], strict=True):
            twin(state)
    for k, twin in enumerate(twins):
        torch.testing.assert_close(network.head.norm.running_mean[k], twin.running_mean)
        torch.testing.assert_close(network.head.norm.running_var[k], twin.running_var)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_blocks": 0}, "is 0"),
        ({"num_blocks": -1}, "is -1"),
        ({"width": 0}, "is 0"),
        ({"width": 2.5}, "2.5"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"widht": 3}, "it takes num_blocks, width"),
        ({"head_statistics": "none"}, "per_output"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(StageCostError, match=match) as caught:
        sc.create_model("homogeneous", **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 1, 16, 16), (2, 4, 16, 16)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(StageCostError, match="images"):
        build("homogeneous")(torch.randn(shape))


def test_a_network_put_together_by_hand_works_but_cannot_be_saved(tmp_path: object) -> None:
    native = build("homogeneous")
    network = sc.ResidualNetwork(native.stem, list(native.blocks.values()), native.head)
    assert torch.equal(network.eval()(images()), native.eval()(images()))
    with pytest.raises(StageCostError, match="register_model"):
        network.save_pretrained(f"{tmp_path}/net")


def test_kept_blocks_must_exist_and_keep_projections() -> None:
    for kept, match in [((), "without any block"), ((0, 9), "block 9"), ((0, 1), "projection")]:
        with pytest.raises(StageCostError, match=match):
            build("staged").keep(Cut(kept))


def test_own_builders_can_be_registered_saved_and_loaded(tmp_path: object) -> None:
    from stagecost.models import registry

    @sc.register_model("tiny_test_model")
    def tiny(*, num_classes: int = 2) -> sc.ResidualNetwork:
        return sc.create_model("homogeneous", num_blocks=1, width=2, num_classes=num_classes)

    try:
        network = sc.create_model("tiny_test_model", num_classes=3)
        network.save_pretrained(f"{tmp_path}/net")
        assert sc.load(f"{tmp_path}/net").description.name == "tiny_test_model"
        with pytest.raises(StageCostError, match="registered already"):
            sc.register_model("tiny_test_model")(tiny)
    finally:
        registry._builders.pop("tiny_test_model")


@pytest.mark.parametrize("persistent", [True, False])
def test_random_buffers_are_saved_or_refused(persistent: bool, tmp_path: object) -> None:
    """Features of random directions: of a network that is loaded they would be other ones."""
    from stagecost.models import registry

    @sc.register_model("random_features")
    def random_features(*, num_classes: int = 2) -> sc.ResidualNetwork:
        network = sc.create_model("homogeneous", num_blocks=1, width=2, num_classes=num_classes)
        network.stem.register_buffer("steps", torch.arange(3.0), persistent=False)
        network.stem.register_buffer("directions", torch.randn(3), persistent=persistent)
        return network

    try:
        if not persistent:
            with pytest.raises(StageCostError, match=r"buffer stem\.directions"):
                sc.create_model("random_features")
            return
        torch.manual_seed(1)
        network = sc.create_model("random_features")
        drawn = torch.randn(1)
        torch.manual_seed(1)
        random_features()
        assert torch.equal(torch.randn(1), drawn)  # the check moves no random number
        network.save_pretrained(f"{tmp_path}/net")
        loaded = sc.load(f"{tmp_path}/net")
        assert torch.equal(loaded.stem.get_buffer("directions"), network.stem.get_buffer("directions"))
    finally:
        registry._builders.pop("random_features")


def test_controls_are_measured_beside_blocks_whose_branch_is_not_apart() -> None:
    """What a branch said on the way of another cut, or in another batch, is no control here."""

    class Whole(sc.ResidualBlock):
        pass

    torch.manual_seed(0)
    blocks = [kind(nn.Conv2d(6, 6, 3, padding=1)) for kind in (Whole, sc.ResidualBlock, Whole)]
    network = sc.ResidualNetwork(nn.Conv2d(3, 6, 1), blocks, sc.OutputHead(6, 5, num_outputs=4)).eval()
    loader = [(images(seed=seed), torch.zeros(4, dtype=torch.long)) for seed in range(2)]
    trajectory = sc.loss_trajectory(network, loader, cuts=[sc.Cut((1,))])
    ratios = []
    for x, _ in loader:
        states = list(network.states(x))
        norms = [(b - a).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1) for a, b in pairwise(states)]
        ratios.append(norms)
    expected = [torch.cat(each).mean().item() for each in zip(*ratios, strict=True)]
    assert trajectory.residual_ratios == pytest.approx(expected, rel=1e-5)


def test_a_control_that_is_spread_over_the_state_is_as_large_as_there() -> None:
    """Such as one number a channel, for all places."""
    torch.manual_seed(0)
    branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1))
    blocks, head = [sc.ResidualBlock(branch)], sc.OutputHead(6, 5, num_outputs=2)
    network = sc.ResidualNetwork(nn.Conv2d(3, 6, 1), blocks, head).eval()
    before, after = network.states(images())
    ratio = ((after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)).mean().item()
    found = sc.loss_trajectory(network, [(images(), labels())]).residual_ratios
    assert found == pytest.approx([ratio], rel=1e-5)
