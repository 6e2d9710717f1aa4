"""Views of own modules: every cut written out by hand, real cuts, refusals, training."""

import copy
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import stagecost as sc
from helpers import build
from processes import CONTEXT, PRELOAD
from stagecost.calibration import recalibrate
from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.probes import state_features

WIDTH, BLOCKS = 6, 4
EXAMPLE = torch.zeros(1, WIDTH)


def rows(count: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def branch(width: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))


class Loop(nn.Module):
    """Branches in a list; the sums stand in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.branches = nn.ModuleList(branch() for _ in range(BLOCKS))

    def forward(self, state: Tensor) -> Tensor:
        state = self.first(state)
        for one in self.branches:
            state = state + one(state)
        return self.last(state)

    def cut(self, state: Tensor, cut: Cut) -> Tensor:
        state = self.first(state)
        for k, one in enumerate(self.branches):
            state = state + one(state) if cut.acts(k) else state
        return self.last(state)


class Block(nn.Module):
    """A block with relu after the sum, in place; its skip is a projection where the width changes."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Linear(width_in, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)
        )
        self.projection = nn.Linear(width_in, width) if width != width_in else None

    def forward(self, state: Tensor) -> Tensor:
        following = self.branch(state)
        following += state if self.projection is None else self.projection(state)
        return F.relu(following, inplace=True)

    def skip(self, state: Tensor) -> Tensor:
        return F.relu(state if self.projection is None else self.projection(state))


class Staged(nn.Module):
    """Two stages of such blocks, a transition between them, and a head with BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU())
        self.stage_1 = nn.Sequential(Block(8, 8), Block(8, 8))
        self.between = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU())
        self.stage_2 = nn.Sequential(Block(8, 5), Block(5, 5))
        self.head = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3))

    def forward(self, state: Tensor) -> Tensor:
        return self.head(self.stage_2(self.between(self.stage_1(self.stem(state)))))

    def cut(self, state: Tensor, cut: Cut) -> Tensor:
        state = self.stem(state)
        for k, block in enumerate([*self.stage_1, *self.stage_2]):
            state = self.between(state) if k == 2 else state
            state = block(state) if cut.acts(k) else block.skip(state)
        return self.head(state)


class Tokens(nn.Module):
    """Whole numbers come in; the blocks are those of torch, the output is a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True, norm_first=True)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(3))
        self.last = nn.Linear(8, 11)

    def forward(self, text: Tensor) -> Tensor:
        state = self.embedding(text)
        for layer in self.layers:
            state = layer(state)
        return self.last(state)


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


def test_training_is_the_models_own_whatever_else_is_asked_for() -> None:
    """Random numbers, running statistics and gradients of the terminal output, step by step."""
    results = []
    for asked in ("model", "view", "all"):
        torch.manual_seed(3)
        model = Staged()
        view = sc.adapt(model, EXAMPLE).train()
        forward = {"model": model, "view": view, "all": lambda x, view=view: view(x, depths="all")[-1]}[
            asked
        ]
        for seed in range(3):
            model.zero_grad()
            torch.manual_seed(seed)
            output = forward(rows(8, seed))
            output.square().mean().backward()
        results.append((output, [p.grad for p in model.parameters()], list(model.buffers())))
    for output, gradients, buffers in results[1:]:
        assert torch.equal(output, results[0][0])
        assert all(map(torch.equal, gradients, results[0][1]))
        assert all(map(torch.equal, buffers, results[0][2]))


def test_the_mode_is_the_models() -> None:
    model = Staged().eval()
    view = sc.adapt(model, EXAMPLE)
    assert not view.training
    model.train()
    assert view.training
    view.eval()
    assert not any(module.training for module in model.modules())


def test_a_step_with_a_stage_cost_moves_every_branch() -> None:
    view = sc.adapt(Staged(), EXAMPLE).train()
    stage_cost = sc.StageCost.uniform(view.num_blocks, gamma=0.5)
    outputs = view(rows(8), stage_cost.outputs)
    stage_cost(outputs, torch.arange(8) % 3).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in view.parameters() if p.dim() > 1)


def test_statistics_after_a_cut_are_those_of_the_images() -> None:
    small = sc.adapt(Staged(), EXAMPLE).keep(Cut((0, 2)))
    loader = [(rows(16, seed), torch.zeros(16)) for seed in range(3)]
    recalibrate(small, loader)
    everything = torch.cat([x for x, _ in loader])
    norm = small.model.stage_1[0].branch[1]
    seen = small.model.stage_1[0].branch[0](small.model.stem(everything))
    torch.testing.assert_close(norm.running_mean, seen.mean(0))


@pytest.mark.parametrize("sizes", [(2,) * 32, (4,) * 16, (30, 34), (64,)])
def test_variances_do_not_depend_on_the_batches(sizes: tuple[int, ...]) -> None:
    view, everything = sc.adapt(Staged(), EXAMPLE), rows(64)
    recalibrate(view, [(x, torch.zeros(len(x))) for x in everything.split(sizes)])
    norm = view.model.stage_1[0].branch[1]
    seen = view.model.stage_1[0].branch[0](view.model.stem(everything))
    torch.testing.assert_close(norm.running_var, seen.var(0))


def test_a_batch_without_a_variance_is_refused() -> None:
    with pytest.raises(StageCostError, match="a batch of 1 leaves one value a channel"):
        recalibrate(sc.adapt(Staged(), EXAMPLE), [(rows(1), torch.zeros(1))])


class Masked(nn.Module):
    """Attention written out, with a mask that stands before the state in what blocks are given."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.ModuleList(branch() for _ in range(3))

    def mask(self, state: Tensor) -> Tensor:
        ones = torch.ones(state.shape[1], state.shape[1], dtype=torch.bool).triu(1)
        far = {"infinite": -torch.inf, "large": -1e9}
        return ones if self.kind == "bool" else torch.zeros(ones.shape).masked_fill(ones, far[self.kind])

    def forward(self, tokens: Tensor) -> Tensor:
        mask, state = self.mask(tokens), self.first(tokens)
        for layer in self.layers:
            state = state + F.scaled_dot_product_attention(state, layer(state), state, attn_mask=mask)
        return self.last(state).mean(1)


@pytest.mark.parametrize("kind", ["bool", "infinite", "large"])
@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_what_blocks_hand_on_is_no_part_of_the_state(kind: str, batch_size: int) -> None:
    """Neither in how large controls are, nor in what linear probes read."""
    model, tokens = Masked(kind), torch.randn(12, 4, WIDTH, generator=torch.Generator().manual_seed(3))
    view = sc.adapt(model, tokens[:2])
    data = [(x, torch.arange(len(x)) % 3) for x in tokens.split(batch_size)]
    found = sc.loss_trajectory(view, data).residual_ratios
    mask, state, expected = model.mask(tokens), model.first(tokens), []
    for layer in model.layers:
        control = F.scaled_dot_product_attention(state, layer(state), state, attn_mask=mask)
        ratio = control.flatten(1).norm(dim=1) / state.flatten(1).norm(dim=1)
        expected.append(ratio.mean().item())
        state = state + control
    assert found == pytest.approx(expected, rel=1e-4)
    features, _ = state_features(view, data)
    torch.testing.assert_close(features[-1], state.detach().mean(1))


def test_macs_of_attention_count_where_meta_tensors_do_not_work() -> None:
    class Tabled(Masked):
        def __init__(self) -> None:
            super().__init__("large")
            self.table = torch.zeros(4, 4)  # not a buffer, so it stays where it is

        def mask(self, state: Tensor) -> Tensor:
            return self.table

    example = torch.zeros(1, 4, WIDTH)
    by_hand = 4 * WIDTH * WIDTH + 3 * (2 * 4 * WIDTH * WIDTH + 2 * 4 * 4 * WIDTH) + 4 * WIDTH * 3
    for model in (Masked("large"), Tabled()):
        assert sc.count_macs(sc.adapt(model, example), (4, WIDTH)) == by_hand


def test_controls_of_a_state_that_holds_one_tensor_twice() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = branch()

        def forward(self, context: Tensor, state: Tensor, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return context, state + self.f(state), old

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.context, self.first = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.blocks = nn.ModuleList(Remembering() for _ in range(2))
            self.last = nn.Linear(3 * WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = self.first(x)
            states = 30 * self.context(x), state, state
            for block in self.blocks:
                states = block(*states)
            return self.last(torch.cat(states, 1))

    model, x = Net(), rows()
    found = sc.loss_trajectory(sc.adapt(model, EXAMPLE), [(x, torch.arange(5) % 3)]).residual_ratios
    state, expected = model.first(x), []
    for block in model.blocks:
        expected.append((block.f(state).norm(dim=1) / state.norm(dim=1)).mean().item())
        state = state + block.f(state)
    assert found == pytest.approx(expected, rel=1e-4)


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


def test_instance_norms_count_the_whole_network_alone() -> None:
    norm = nn.InstanceNorm1d(WIDTH, track_running_stats=True)
    model = nn.Sequential(*(Residual() for _ in range(2)), norm, nn.AdaptiveAvgPool1d(1), nn.Flatten())
    twin, x = copy.deepcopy(model), torch.randn(3, WIDTH, 5)
    sc.adapt(model, x).train()(x, depths="all")
    sc.adapt(twin, x).train()(x)
    torch.testing.assert_close(norm.running_mean, twin[2].running_mean)
    torch.testing.assert_close(norm.running_var, twin[2].running_var)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, state: Tensor) -> Tensor:
        return state + torch.relu(self.conv(state))


def test_scaled_branches_lie_between_with_and_without() -> None:
    view = sc.adapt(Loop().eval(), EXAMPLE)
    ones, x = torch.ones(BLOCKS), rows()
    torch.testing.assert_close(view(x, scales=ones), view(x))
    ones[2] = 0
    torch.testing.assert_close(view(x, scales=ones), view(x, Cut.without(2)))


def test_scaled_branches_count_a_batch_once() -> None:
    """Their skips are computed twice, by themselves and within the blocks."""
    view = sc.create_model("timm/test_resnet", num_classes=5, image_size=32).train()
    plain = copy.deepcopy(view)
    x = torch.randn(4, 3, 32, 32)
    plain(x)
    view(x, scales=torch.ones(view.num_blocks))
    for (name, buffer), other in zip(view.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=name)


def test_states_of_several_tensors() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = branch(), branch()

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return a + self.left(a * b), b + self.right(b)

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Pair() for _ in range(3))
            self.last = nn.Linear(WIDTH, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            for block in self.blocks:
                a, b = block(a, b)
            return self.last(a - b)

    model = Pairs().eval()
    view, inputs = sc.adapt(model, (EXAMPLE, EXAMPLE)), (rows(), rows(seed=2))
    assert view.paths == ("blocks.0", "blocks.1", "blocks.2")
    assert view.is_homogeneous
    a, b = model.blocks[1](*inputs)
    torch.testing.assert_close(view(inputs, Cut((1,))), model.last(a - b))
    trajectory = sc.loss_trajectory(view, [(inputs, torch.tensor([0, 1, 0, 1, 1]))])
    assert all(0 < ratio < 10 for ratio in trajectory.residual_ratios)
    assert sc.removal_cost(view, [(inputs, torch.tensor([0, 1, 0, 1, 1]))], 0.1)


def test_sequences_of_tokens() -> None:
    model, text = Tokens().eval(), torch.randint(11, (4, 7))
    view = sc.adapt(model, torch.arange(11)[None, :7])
    assert view.paths == ("layers.0", "layers.1", "layers.2")
    assert view(text, depths="all").shape == (4, 4, 7, 11)
    with torch.no_grad():
        assert torch.equal(view(text, Cut()), model.last(model.embedding(text)))
    assert sc.count_macs(view, ()) > sc.count_macs(view, (), Cut.first(1)) > 0


class Conditioned(Loop):
    """To whose state a map of another input is added, before each block or behind it."""

    def __init__(self, *, behind: bool) -> None:
        super().__init__()
        self.time, self.behind = nn.Linear(2, WIDTH), behind

    def forward(self, state: Tensor, time: Tensor) -> Tensor:
        state, shift = self.first(state), self.time(time)
        for one in self.branches:
            if self.behind:
                state = torch.relu(state + one(state) + shift)
            else:
                state = state + shift
                state = state + one(state)
        return self.last(state)


def test_another_input_that_is_added_is_not_taken_for_the_skip() -> None:
    model, x, time = Conditioned(behind=False).eval(), rows(), rows(seed=2)[:, :2]
    view = sc.adapt(model, (x, time))
    assert [block.branches for block in view.adapted] == [(f"branches.{BLOCKS - 1}",)]
    assert torch.equal(view((x, time)), model(x, time))
    with pytest.raises(StageCostError, match="ambiguous: the terms of the sum in its forward are alike"):
        sc.adapt(Conditioned(behind=True), (x, time))


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


@pytest.mark.filterwarnings("ignore:Dynamo detected")
def test_a_compiled_model_is_unwrapped_and_a_view_compiles() -> None:
    model, x = Loop().eval(), rows()
    view = sc.adapt(torch.compile(model), EXAMPLE)
    assert view.model is model
    compiled = torch.compile(view, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_autocast_around_a_view_acts_as_around_the_model() -> None:
    model, x = Staged().eval(), rows()
    view = sc.adapt(model, EXAMPLE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(view(x, depths="all")[-1], model(x))


def test_channels_last_gives_what_the_model_gives() -> None:
    model = nn.Sequential(Pictures(), Pictures(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    view = sc.adapt(model, torch.zeros(1, 4, 6, 6))
    view.to(memory_format=torch.channels_last)
    x = torch.randn(3, 4, 6, 6).to(memory_format=torch.channels_last)
    assert torch.equal(view(x, depths="all")[-1], model(x))
    torch.testing.assert_close(view(x, Cut((1,))), model[2:](model[1](x)).flatten(1))


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, state: Tensor) -> Tensor:
        return state + self.convolution(state).relu()


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    """DistributedDataParallel around a view: each process has half of the samples."""
    CONTEXT.set_forkserver_preload(PRELOAD)
    shares = [CONTEXT.Process(target=_share, args=(rank, tmp_path)) for rank in range(2)]
    for share in shares:
        share.start()
    view = sc.adapt(seeded(), EXAMPLE)
    _backward(view, rows(8), torch.arange(8) % 3)
    for rank, share in enumerate(shares):
        share.join(120)
        assert share.exitcode == 0
        gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, parameter in view.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad)


def seeded() -> Loop:
    torch.manual_seed(0)
    return Loop()


def _backward(network: nn.Module, x: Tensor, targets: Tensor) -> None:
    stage_cost = sc.StageCost.uniform(BLOCKS, gamma=0.5)
    stage_cost(network(x, stage_cost.outputs), targets).total.backward()


def _share(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    view = sc.adapt(seeded(), EXAMPLE)
    parallel = nn.parallel.DistributedDataParallel(view)
    _backward(parallel, rows(8)[rank::2], (torch.arange(8) % 3)[rank::2])
    torch.save({name: p.grad for name, p in view.named_parameters()}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_numbers_and_words_of_a_table_are_two_inputs() -> None:
    class Mixed(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(7, WIDTH)

        def forward(self, numbers: Tensor, words: Tensor) -> Tensor:
            state = self.first(numbers) + self.words(words).mean(1)
            for one in self.branches:
                state = state + one(state)
            return self.last(state)

    view = sc.adapt(Mixed(), (EXAMPLE, torch.arange(7)[None, :2]))
    inputs = [(rows(8, seed), torch.randint(7, (8, 2))) for seed in range(2)]
    loader = [(each, torch.rand(8, 3)) for each in inputs]
    options = {"loss": F.binary_cross_entropy_with_logits}
    cuts = [score.cut for score in sc.search_cuts(view, loader, **options)]
    trajectory = sc.loss_trajectory(view, loader, cuts=cuts, **options)
    plan = sc.plan_pruning(view, trajectory, max_loss_increase=0.05)
    assert (view.num_blocks, plan.num_blocks) == (BLOCKS, BLOCKS)
    assert "nan" not in str(plan).lower()
    small = plan.apply(view).eval()
    assert torch.equal(small.model(*inputs[0]), small(inputs[0]))
    with pytest.raises(StageCostError, match="max_drop needs accuracies"):
        sc.plan_pruning(view, trajectory, max_drop=1.0)
    endless = sc.loss_trajectory(view, loader, loss=lambda output, _: output.sum() * float("nan"))
    with pytest.raises(StageCostError, match="loss of the whole network is nan"):
        sc.plan_pruning(view, endless, max_loss_increase=0.1)
    with pytest.raises(StageCostError, match=r"loss cannot be computed of an output \(8, 3\)"):
        sc.loss_trajectory(view, [(inputs[0], torch.rand(8))])
    with pytest.raises(StageCostError, match=r"loss cannot be computed of an output \(8, 3\)"):
        sc.loss_trajectory(view, loader, loss=lambda output, _: output.mean().item())
    with pytest.raises(StageCostError, match=r"loss cannot be computed of an output \(8, 3\)"):
        sc.removal_cost(view, [(inputs[0], torch.rand(8))], 0.1)
    with pytest.raises(StageCostError, match="inputs hold a list: give a tensor or a tuple"):
        view(list(inputs[0]))
    assert view(tuple(inputs[0])).shape == (8, 3)
    with pytest.raises(StageCostError, match="inputs hold a str"):
        sc.adapt(Mixed(), {"numbers": EXAMPLE})


def test_a_mean_over_tokens_that_count_hides_no_block() -> None:
    class Masked(Loop):
        def forward(self, state: Tensor, counts: Tensor) -> Tensor:
            state = self.first(state)
            for one in self.branches:
                state = state + one(state)
            weights = counts.unsqueeze(2).to(state)
            return self.last((state * weights).sum(1) / weights.sum(1).clamp_min(1))

    model, tokens = Masked().eval(), torch.randn(3, 4, EXAMPLE.shape[1])
    inputs = tokens, torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    view = sc.adapt(model, inputs)
    assert view.num_blocks == BLOCKS
    output = view(inputs, Cut.first(1))
    for branch in model.branches[1:]:
        branch.register_forward_hook(lambda *given: torch.zeros_like(given[2]))
    assert torch.equal(output, model(*inputs))


def _refusing(forward: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    class Odd(Loop):
        def forward(self, state: Tensor) -> Tensor:
            return forward(self, state)

    return Odd()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


def _without_gradients(model: nn.Module, state: Tensor) -> Tensor:
    with torch.no_grad():
        state = model.first(state)
    return model.last(state + model.branches[0](state))


def _in_half_precision(model: nn.Module, state: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = model.first(state)
    return model.last(state.float() + model.branches[0](state.float()))


def _by_values(model: nn.Module, state: Tensor) -> Tensor:
    if state.sum() > 0:
        state = model.first(state)
    return model.last(state + model.branches[0](state))


def _by_chance(model: nn.Module, state: Tensor) -> Tensor:
    if not model.training or torch.rand(()) < 1:  # a layer that is dropped now and then
        state = state + model.branches[0](state)
    return model.last(state)


def _by_chance_of_python(model: nn.Module, state: Tensor) -> Tensor:
    if not model.training or random.random() < 1:
        state = state + model.branches[0](state)
    return model.last(state)


def _by_another_rule(model: nn.Module, state: Tensor) -> Tensor:
    state = Doubled.apply(state)
    return model.last(state + model.branches[0](state))


def _pairs(model: nn.Module, state: Tensor) -> Tensor:
    state = state + model.branches[0](state)
    return model.last(state), state  # type: ignore[return-value]


def _alike(model: nn.Module, state: Tensor) -> Tensor:
    return model.last(model.branches[0](state) + model.branches[1](state))


def _by_the_batch(model: nn.Module, state: Tensor) -> Tensor:
    state = state * (1.0 + 1.0 / len(state))
    return model.last(state + model.branches[0](state))


def _by_a_weight(model: nn.Module, state: Tensor) -> Tensor:
    """The number would stay what it was when the view was made."""
    return model.last(state + model.last.bias[0].item() * model.branches[0](state))


def _by_one_sample(model: nn.Module, state: Tensor) -> Tensor:
    state = model.first(state) if len(state) > 1 else state
    return model.last(state + model.branches[0](state))


def _by_many_samples(model: nn.Module, state: Tensor) -> Tensor:
    state = model.first(state) if len(state) < 4 else state
    return model.last(state + model.branches[0](state))


class ByItsGain(nn.Module):
    """A block that goes by the number of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.gain = branch(), nn.Parameter(torch.ones(()))

    def forward(self, state: Tensor) -> Tensor:
        return (state + self.branch(state)) * self.gain.item()


def test_a_block_that_goes_by_the_number_of_a_weight_is_refused() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), ByItsGain(), ByItsGain(), nn.Linear(WIDTH, 3))
    with pytest.raises(StageCostError, match=r"1 goes on by the values of its tensors \(item\)"):
        sc.adapt(model, EXAMPLE)


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


class Rates(Loop):
    """The drop rate of a branch goes by its place in the list, so an entry of it cannot be deleted."""

    def forward(self, state: Tensor) -> Tensor:
        state = self.first(state)
        for rate, one in zip((0.0, 0.2, 0.4, 0.9), self.branches, strict=False):
            state = state + F.dropout(one(state), rate, self.training)
        return self.last(state)


@torch.no_grad()
def test_after_a_cut_the_forward_of_a_model_trains_as_the_view_does() -> None:
    small, x = sc.adapt(Rates(), EXAMPLE).keep(Cut((2, 3))), rows(2000)
    assert torch.equal(small.eval()(x), small.model(x))
    states: list[Tensor] = []
    small.model.last.register_forward_pre_hook(lambda _, given: states.append(given[0]))
    for one in small.model.branches[2:]:
        one.register_forward_hook(lambda *given: torch.ones_like(given[2]))
    for network in (small.train(), small.model):
        network(x)
        added = states[-1] - small.model.first(x)
        assert added.var().item() == pytest.approx(0.4 / 0.6 + 0.9 / 0.1, rel=0.1)


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


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (_by_a_weight, "values of its tensors"),
        (_by_one_sample, "for a batch of 1"),
        (_by_many_samples, "for a batch of 5"),
        (_without_gradients, "switches gradients"),
        (_in_half_precision, "autocast"),
        (_by_values, "values of its tensors"),
        (_by_chance, "values of its tensors"),
        (_by_chance_of_python, "random numbers of Python"),
        (_by_another_rule, "switches gradients"),
        (_pairs, "no single tensor"),
        (_alike, "ambiguous"),
        (_by_the_batch, "another batch size"),
    ],
)
def test_what_a_view_would_get_wrong_is_refused_in_a_line(
    forward: Callable[[nn.Module, Tensor], Tensor], reason: str
) -> None:
    with pytest.raises(StageCostError, match=reason) as caught:
        sc.adapt(_refusing(forward), EXAMPLE)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("Odd cannot be viewed as a residual network: ")


@pytest.mark.parametrize("name", ["in", "class", 'a"b', "a\\b", "a\nb"])
def test_names_that_no_code_can_say_are_refused_in_a_line(name: str) -> None:
    model = Loop()
    model.branches = nn.Sequential(OrderedDict((other, branch()) for other in ("2", "a b", name)))
    with pytest.raises(StageCostError, match="a name that cannot stand in code: rename it") as caught:
        sc.adapt(model, EXAMPLE)
    assert "\n" not in str(caught.value)


def test_a_cell_of_deep_branches_is_no_residual_block() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Sequential(branch(), nn.Tanh(), branch()) for _ in range(3))

        def forward(self, state: Tensor) -> Tensor:
            a, b, c = (part(state) for part in self.parts)
            return torch.cat([a + state, b + c], dim=1)

    with pytest.raises(StageCostError, match=r"ambiguous|no residual block"):
        sc.adapt(nn.Sequential(Cell(), nn.Linear(2 * WIDTH, 2)), EXAMPLE)


def test_other_shapes_need_another_view() -> None:
    view = sc.adapt(Loop(), EXAMPLE)
    with pytest.raises(StageCostError, match="adapt the model once more"):
        view(torch.zeros(2, WIDTH + 1))


def test_a_cut_model_is_exported_copied_and_trained_as_its_own_class() -> None:
    small, x = sc.cut_model(Staged().eval(), EXAMPLE, Cut((0, 3))), rows()
    exported = torch.export.export(small, (x,)).module()
    torch.testing.assert_close(exported(x), small(x))
    twin = copy.deepcopy(small)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    assert not torch.equal(twin(x), small(x))
    assert "stage_2.0.projection.weight" in small.state_dict()  # of a block without its branch
    small.train()(x).sum().backward()
    assert small.stage_2[0].projection.weight.grad.abs().sum() > 0


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


class Thinned(Loop):
    """Dropout on the skips, so that in training a state is there twice: as it was, and with dropout."""

    def forward(self, state: Tensor) -> Tensor:
        state = self.first(state)
        for one in self.branches:
            state = F.dropout(state, 0.3, self.training) + one(state)
        return self.last(state)


@pytest.mark.parametrize("mode", [False, True])
def test_a_skip_with_dropout_is_no_identity(mode: bool) -> None:
    model, cut = Thinned(), Cut((1, 3))
    view, x = sc.adapt(model, EXAMPLE).train(mode), rows()
    assert not view.is_homogeneous
    torch.manual_seed(0)
    output = model(x)
    torch.manual_seed(0)
    assert torch.equal(view(x), output)
    torch.manual_seed(0)
    of_cut = view(x, cut)
    torch.manual_seed(0)
    torch.testing.assert_close(view.keep(cut).model(x), of_cut)
    if not mode:
        torch.testing.assert_close(of_cut, model.cut(x, cut))


def test_a_view_follows_what_is_replaced_in_its_model() -> None:
    model, x = Staged().eval(), rows()
    view = sc.adapt(model, EXAMPLE)
    model.head[2] = nn.Linear(5, 7)
    assert view(x, Cut((1,))).shape == (5, 7)
    assert torch.equal(view.double()(x.double()), model(x.double()))


def test_what_cannot_be_copied_or_run_is_refused_in_a_line() -> None:
    model = Loop()
    model.kept = model(rows()) * 2  # a tensor with a history
    with pytest.raises(StageCostError, match="cannot be copied"):
        sc.adapt(model, EXAMPLE)
    with pytest.raises(StageCostError, match=r"fails on inputs of \(2, 5\)"):
        sc.adapt(Loop(), torch.zeros(1, 5))


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (lambda x: x, torch.zeros(2, 3), "a function is no network: give a torch.nn.Module"),
        (nn.Linear(3, 3), torch.zeros(0, 3), "the example holds no numbers"),
        (nn.Linear(3, 3), None, "inputs hold a NoneType: give a tensor"),
        (nn.Linear(3, 3), torch.zeros(2, 3, device="meta"), "the example holds no numbers"),
        (nn.Linear(3, 3), torch.ones(2, 3).to_sparse(), r"the example is sparse: give its to_dense\(\)"),
        (
            nn.LazyLinear(3),
            torch.zeros(2, 3),
            "weight has no shape yet: call the model once with a batch",
        ),
        (nn.Sequential(nn.LazyBatchNorm1d()), torch.zeros(2, 3), "0.weight has no shape yet"),
    ],
)
def test_what_is_no_model_or_no_example(model: Any, example: Tensor, words: str) -> None:
    with pytest.raises(sc.StageCostError, match=words):
        sc.adapt(model, example)
