"""Views of own modules in training: modes, statistics, gradients, precisions, compilers, processes."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stagecost as sc
from models.own import BLOCKS, EXAMPLE, WIDTH, Loop, Staged, rows
from processes import CONTEXT, PRELOAD
from stagecost.calibration import recalibrate
from stagecost.cut import Cut
from stagecost.errors import StageCostError


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


def test_scaled_branches_count_a_batch_once() -> None:
    """Their skips are computed twice, by themselves and within the blocks."""
    view = sc.create_model("timm/test_resnet", num_classes=5, image_size=32).train()
    plain = copy.deepcopy(view)
    x = torch.randn(4, 3, 32, 32)
    plain(x)
    view(x, scales=torch.ones(view.num_blocks))
    for (name, buffer), other in zip(view.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=name)


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
