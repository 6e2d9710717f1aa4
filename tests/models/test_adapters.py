"""Views of own modules: every cut written out by hand, real cuts, plans."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import stagecost as sc
from helpers import build
from models.own import BLOCKS, EXAMPLE, WIDTH, Loop, Staged, branch, rows
from stagecost.cut import Cut
from stagecost.errors import StageCostError

subsets = st.sets(st.integers(0, BLOCKS - 1)).map(lambda kept: Cut(tuple(kept)))


@settings(max_examples=20)
@given(cut=subsets, seed=st.integers(0, 9))
@pytest.mark.parametrize("kind", [Loop, Staged])
def test_every_cut_is_the_forward_written_out(kind: type, cut: Cut, seed: int) -> None:
    torch.manual_seed(seed)
    model = _MODELS.setdefault(kind, kind())
    view = _VIEWS.setdefault(kind, sc.adapt(model, EXAMPLE)) if kind not in _VIEWS else _VIEWS[kind]
    model.eval()
    x = rows(seed=seed)
    torch.testing.assert_close(view(x, cut), model.cut(x, cut), rtol=1e-6, atol=1e-7)
    assert torch.equal(view(x), model(x))


_MODELS: dict[type, nn.Module] = {}
_VIEWS: dict[type, sc.AdaptedNetwork] = {}


@pytest.mark.parametrize("kind", [Loop, Staged])
@pytest.mark.parametrize("kept", [(0, 2), (1, 3), (3,), (0,)])
def test_a_cut_model_does_without_the_blocks(kind: type, kept: tuple[int, ...]) -> None:
    model, cut, x = kind().eval(), Cut(kept), rows()
    keys = set(model.state_dict())
    small = sc.cut_model(model, EXAMPLE, cut)
    assert type(small) is kind
    assert set(model.state_dict()) == keys > set(small.state_dict())
    torch.testing.assert_close(small(x), model.cut(x, cut), rtol=1e-6, atol=1e-7)
    again = sc.adapt(small, EXAMPLE)
    assert again.num_blocks == len(kept)
    assert torch.equal(again(x), small(x))


def test_a_forward_may_change_its_inputs_in_place() -> None:
    class Centred(Loop):
        def forward(self, state: Tensor) -> Tensor:
            state -= 0.5
            return super().forward(state)

    model, x = Centred().eval(), rows()
    view = sc.adapt(model, EXAMPLE)
    cut = Cut((0, 2))
    output, small = view(x, cut), view.keep(cut).model
    assert torch.equal(x, rows())
    torch.testing.assert_close(output, model.cut(x - 0.5, cut), rtol=1e-6, atol=1e-7)
    assert torch.equal(small(rows()), output)
    assert torch.equal(view(x), model(x))


def test_a_state_that_only_a_branch_makes_larger_is_no_skip() -> None:
    class Spread(Loop):
        """The first branch is added to one number a sample."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.branches[0] = nn.Linear(WIDTH, 1), nn.Linear(1, WIDTH)

    model = Spread().eval()
    view = sc.adapt(model, EXAMPLE)
    assert view.paths == ("model#0", "model#1", "model#2")
    assert torch.equal(view(rows(), Cut((0, 2))), model.cut(rows(), Cut((0, 1, 3))))


def test_what_a_block_returns_for_nobody_leaves_with_it() -> None:
    class Chatty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.skip, self.branch = nn.Linear(WIDTH, WIDTH), branch()

        def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
            control = self.branch(state)
            return self.skip(state) + control, control

    class Talk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.last = nn.ModuleList(Chatty() for _ in range(3)), nn.Linear(WIDTH, 3)

        def forward(self, state: Tensor) -> Tensor:
            for block in self.blocks:
                state, _ = block(state)
            return self.last(state)

    view = sc.adapt(Talk(), EXAMPLE)
    small = view.keep(Cut.without(1)).model
    assert torch.equal(small(EXAMPLE), view(EXAMPLE, Cut.without(1)))
    left = {name for name, _ in small.named_parameters() if name.startswith("blocks.1.")}
    assert left == {"blocks.1.skip.weight", "blocks.1.skip.bias"}


def test_a_cut_view_keeps_the_indices_and_can_be_cut_again() -> None:
    view = sc.adapt(Staged().eval(), EXAMPLE)
    once = view.keep(Cut.without(1))
    twice = once.keep(Cut.without(1))  # by position: the paper's block 2, whose projection stays
    assert once.block_indices == (0, 2, 3)
    assert twice.block_indices == (0, 3)
    assert torch.equal(twice(rows()), view(rows(), Cut((0, 3))))
    assert torch.equal(twice(rows()), twice.model(rows()))
    with pytest.raises(StageCostError, match="keep at least one"):
        view.keep(Cut())


def test_a_view_has_the_models_own_tensors() -> None:
    model = Staged()
    view = sc.adapt(model, EXAMPLE)
    assert list(view.state_dict()) == list(model.state_dict())
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}
    holder = nn.ModuleDict({"net": copy.deepcopy(view)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    holder.load_state_dict({f"net.{name}": tensor for name, tensor in model.state_dict().items()})
    assert torch.equal(holder["net"].eval()(rows()), view.eval()(rows()))
    residual, other = sc.parameter_groups(view, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in residual["params"]} == {n for n in names.values() if ".branch." in n}
    assert len(residual["params"]) + len(other["params"]) == len(names)


class Holder(nn.Module):
    """A model by the name `model`, and beside it a layer whose name that has as well."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.model = nn.Linear(3, 3), Loop()

    def forward(self, state: Tensor) -> Tensor:
        return self.last(torch.tanh(self.model(state)))


def test_names_that_a_view_itself_uses_are_kept_apart() -> None:
    model, other = Holder(), Holder()
    expected, found = model.state_dict(), sc.adapt(model, EXAMPLE).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    sc.adapt(other, EXAMPLE).load_state_dict(found)
    assert torch.equal(other(rows()), model(rows()))


def test_stages_begin_where_something_always_acts() -> None:
    assert sc.adapt(Loop(), EXAMPLE).stages == ((0, 1, 2, 3),)
    assert sc.adapt(Staged(), EXAMPLE).stages == ((0, 1), (2, 3))


def test_a_view_is_not_pickled_but_its_model_is() -> None:
    view = sc.adapt(Loop().eval(), EXAMPLE)
    with pytest.raises(StageCostError, match="pickle the whole model"):
        pickle.dumps(view)
    again = sc.adapt(pickle.loads(pickle.dumps(view.model)), EXAMPLE)
    assert torch.equal(again(EXAMPLE), copy.deepcopy(view)(EXAMPLE))


class Versioned(Loop):
    _version = 2

    def _load_from_state_dict(self, state: object, prefix: str, metadata: dict, *rest: object) -> None:
        if metadata.get("version") != 2:
            raise ValueError("version should be 2")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_models_that_ask_for_the_version_of_their_weights_are_loaded(tmp_path: Path) -> None:
    sc.register_model("versioned")(lambda: sc.adapt(Versioned(), EXAMPLE))
    saved = sc.create_model("versioned").eval()
    saved.save_pretrained(tmp_path)
    started = sc.create_model("versioned", weights=tmp_path / "model.safetensors").eval()
    for other in (sc.load(tmp_path), started):
        assert torch.equal(other(EXAMPLE), saved(EXAMPLE))


def test_macs_are_the_same_in_double_precision() -> None:
    for network, shape in ((sc.adapt(Loop(), EXAMPLE), (WIDTH,)), (build("homogeneous"), (3, 8, 8))):
        assert sc.count_macs(network.double(), shape) == sc.count_macs(network.float(), shape) > 0


def test_a_plan_is_one_that_can_be_applied() -> None:
    class Two(nn.Module):
        """Layers in two lists, with a shape between them that zeros do not fit."""

        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(3))
            self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(3))
            self.last = nn.Linear(WIDTH, 3)

        def forward(self, state: Tensor) -> Tensor:
            state = state * 2
            for up, down in zip(self.up, self.down, strict=True):
                state = state + down(torch.relu(up(state)).view(-1, 2 * WIDTH))
            return self.last(state)

    view, data = sc.adapt(Two(), EXAMPLE), [(rows(20), torch.arange(20) % 3)]
    plan = sc.plan_pruning(view, sc.loss_trajectory(view, data), max_drop=100)
    assert plan.apply(view).num_blocks == len(plan.cut.blocks)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_left_of_a_branch_has_its_mode(training: bool) -> None:
    class Gains(Loop):
        """The place of a layer matters, so that none can be deleted."""

        def forward(self, state: Tensor) -> Tensor:
            for k, one in enumerate(self.branches):
                state = state + (1 + k) * one(state)
            return self.last(state)

    small = sc.adapt(Gains(), EXAMPLE).train(training).keep(Cut((1, 3)))
    assert len(small.model.branches) == BLOCKS
    assert {module.training for module in small.modules()} == {training}


def test_what_a_module_holds_of_its_last_pass_is_said() -> None:
    class Holds(Loop):
        def forward(self, state: Tensor) -> Tensor:
            self.held = super().forward(state)
            return self.held

    view = sc.adapt(Holds(), EXAMPLE)
    view.model(rows())
    for use in (lambda: view.keep(Cut.first(1)), lambda: sc.count_macs(view, (WIDTH,))):
        with pytest.raises(StageCostError, match=r"call it once under torch.no_grad\(\) before"):
            use()


def test_scaled_branches_lie_between_with_and_without() -> None:
    view = sc.adapt(Loop().eval(), EXAMPLE)
    ones, x = torch.ones(BLOCKS), rows()
    torch.testing.assert_close(view(x, scales=ones), view(x))
    ones[2] = 0
    torch.testing.assert_close(view(x, scales=ones), view(x, Cut.without(2)))


def test_branches_can_be_blocks_of_their_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = branch(), branch()

        def forward(self, state: Tensor) -> Tensor:
            state = state + self.first(state)
            return state + self.second(state)

    model = nn.Sequential(Two(), Two(), nn.Linear(WIDTH, 2)).eval()
    assert sc.adapt(model, EXAMPLE).num_blocks == 2
    halves, x = sc.adapt(model, EXAMPLE, split_branches=True), rows()
    assert halves.num_blocks == 4
    state = x + model[0].second(x)
    expected = model[2](state + model[1].first(state))
    torch.testing.assert_close(halves(x, Cut((1, 2))), expected)
    small = halves.keep(Cut((1, 2)))
    torch.testing.assert_close(small.model(x), expected)
    assert small.state_dict().keys() < halves.state_dict().keys()


class Averaging(nn.Module):
    """Its norm reads how many batches there were: code that is called, and stays the module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.norm = branch(), nn.BatchNorm1d(WIDTH, momentum=None)

    def forward(self, state: Tensor) -> Tensor:
        return state + self.norm(self.branch(state))


def test_readings_within_a_module_that_is_called_are_its_own() -> None:
    model = nn.Sequential(nn.BatchNorm1d(WIDTH, momentum=None), Averaging(), Averaging())
    view, twin = sc.adapt(model, EXAMPLE), copy.deepcopy(model)
    for seed in range(3):
        assert torch.equal(view.train()(rows(seed=seed)), twin.train()(rows(seed=seed)))
    assert torch.equal(view.eval()(rows(), Cut((1,))), model[2](model[0](rows())))


class Gains(Loop):
    """Gains of all branches in one parameter, or each in its own beside them."""

    def __init__(self, *, stacked: bool) -> None:
        super().__init__()
        numbers = torch.rand(BLOCKS, WIDTH)
        self.gains = nn.Parameter(numbers) if stacked else nn.ParameterList(map(nn.Parameter, numbers))

    def forward(self, state: Tensor) -> Tensor:
        state = self.first(state)
        for k, one in enumerate(self.branches):
            state = state + self.gains[k] * one(state)
        return self.last(state)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_plan_counts_the_gains_that_stay_in_a_model(stacked: bool) -> None:
    view, data = sc.adapt(Gains(stacked=stacked), EXAMPLE), [(rows(), torch.tensor([0, 1, 2, 0, 1]))]
    cut = Cut((1, 2))
    plan = sc.plan_pruning(view, sc.loss_trajectory(view, data, cuts=[cut]), keep=cut)
    small = plan.apply(view)
    assert plan.parameters_after == sum(p.numel() for p in small.model.parameters())
    assert torch.equal(small(rows()), view.eval()(rows(), cut))
    assert (plan.macs_before, plan.macs_after) == tuple(
        WIDTH * WIDTH + 2 * blocks * WIDTH * WIDTH + 3 * WIDTH for blocks in (BLOCKS, 2)
    )


class Tied(Loop):
    """All branches have the same gain, which the forward finds in the branch at hand."""

    def __init__(self) -> None:
        super().__init__()
        gain = nn.Parameter(torch.full((WIDTH,), 0.7))
        self.branches = nn.ModuleList(nn.ModuleDict({"map": branch()}) for _ in range(BLOCKS))
        for one in self.branches:
            one.register_parameter("gain", gain)

    def forward(self, state: Tensor) -> Tensor:
        state = self.first(state)
        for one in self.branches:
            state = state + one.gain * one["map"](state)
        return self.last(state)


def test_a_tensor_that_blocks_share_stays_when_the_first_of_them_leaves() -> None:
    view, cut = sc.adapt(Tied(), EXAMPLE), Cut((1, 3))
    small = view.keep(cut)
    assert torch.equal(small(rows()), view(rows(), cut))
    assert torch.equal(small.model(rows()), small(rows()))


class Normed(Loop):
    """Branches that begin with what does not depend on the state: a norm of their weights."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        for part in self.branches:
            part[0] = norm(part[0])


class Recurrent(Loop):
    """Branches of a GRU, whose first state is made before it reads anything."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.GRU(WIDTH, WIDTH, batch_first=True) for _ in range(BLOCKS))

    def forward(self, state: Tensor) -> Tensor:
        state = self.first(state)[:, None].expand(-1, 3, -1)
        for one in self.branches:
            state = state + one(state)[0]
        return self.last(state[:, -1])


class Lent(nn.Module):
    """A linear map beside which another one of low rank learns, as those of LoRA."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.down = base, nn.Linear(WIDTH, 2, bias=False)
        self.up = nn.Linear(2, WIDTH, bias=False)

    def forward(self, state: Tensor) -> Tensor:
        return self.base(state) + 2.0 * self.up(self.down(state))


class Ending(Loop):
    """Branches that end in a sum of their own."""

    def __init__(self) -> None:
        super().__init__()
        for part in self.branches:
            part[2] = Lent(part[2])


@pytest.mark.parametrize(
    "model",
    [
        Ending(),
        Normed(nn.utils.parametrizations.weight_norm),
        Normed(nn.utils.parametrizations.spectral_norm),  # each pass in training mode moves it
        Recurrent(),
    ],
)
def test_all_of_a_branch_belongs_to_its_block(model: Loop) -> None:
    view, x = sc.adapt(model.eval(), EXAMPLE), rows()
    own = {name for name, _ in model.named_parameters() if name.startswith("branches")}
    residual = {name for block in view.blocks.values() for name, _ in block.named_parameters()}
    assert len(view.blocks) == BLOCKS
    assert len(residual) == len(own)
    small = view.keep(Cut((1, 2)))
    torch.testing.assert_close(small.model(x), view(x, Cut((1, 2))))
    assert len(small.model.branches) == 2


def test_a_view_follows_what_is_replaced_in_its_model() -> None:
    model, x = Staged().eval(), rows()
    view = sc.adapt(model, EXAMPLE)
    model.head[2] = nn.Linear(5, 7)
    assert view(x, Cut((1,))).shape == (5, 7)
    assert torch.equal(view.double()(x.double()), model(x.double()))
