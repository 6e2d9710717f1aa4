"""Norms of their own for target cuts: what is shared, what is not, and that a cut is exact."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stagecost as sc
from helpers import build, images, labels, loader
from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.models.adapters.parts import shake
from stagecost.network import ResidualNetwork
from stagecost.norms import norms_in
from stagecost.objective import residual_parameters

ADAPTED = "timm/test_resnet"
CUTS = {"homogeneous": Cut.first(2), "staged": Cut.stages(1, 2, 1), ADAPTED: Cut((0, 2))}


def built(builder: str) -> ResidualNetwork:
    if builder != ADAPTED:
        return build(builder)
    torch.manual_seed(0)
    network = sc.create_model(ADAPTED, num_classes=5, image_size=16)
    shake(network)
    return network


def with_own_norms(builder: str) -> tuple[ResidualNetwork, Cut]:
    """Return a network one target of which has norms unlike those of the whole network."""
    network = built(builder).train()
    cut = network.resolve(CUTS[builder])
    network.give_norms(cut)
    optimizer = torch.optim.SGD(sc.parameter_groups(network, 1e-3), lr=0.1)
    stage_cost = sc.StageCost.targets([cut])
    for seed in range(2):
        stage_cost(
            network(images(8, seed=seed), stage_cost.outputs), labels(8, seed=seed)
        ).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval(), cut


@pytest.mark.parametrize("builder", CUTS)
def test_a_cut_is_an_ordinary_network_to_the_last_bit(builder: str, tmp_path: Path) -> None:
    network, cut = with_own_norms(builder)
    plain = built(builder).keep(cut)
    kept = network.keep(cut)
    assert kept.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(kept.eval()(images()), network(images(), cut))
    assert not torch.equal(network(images(), cut), network.keep(Cut.whole())(images(), cut))
    kept.save_pretrained(tmp_path / "kept")
    assert torch.equal(sc.load(tmp_path / "kept")(images()), network(images(), cut))
    score = sc.loss_trajectory(network, loader(), cuts=[cut]).rows[-1]
    assert score.loss == sc.loss_trajectory(kept, loader()).whole.loss


@pytest.mark.parametrize("builder", CUTS)
def test_only_norms_are_of_its_own(builder: str) -> None:
    """The target's gradients are those of the small network by itself, and no other norm moves."""
    network, cut = with_own_norms(builder)
    small = network.keep(cut).train()
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    outputs = network.train()(images(), [cut])
    F.cross_entropy(outputs[0], labels()).backward()
    F.cross_entropy(small(images()), labels()).backward()
    own = set(norms_in(network.norms[0]))
    assert own
    for name, parameter in small.named_parameters():
        path = f"norms.0.{name}" if name.rpartition(".")[0] in own else name
        torch.testing.assert_close(network.get_parameter(path).grad, parameter.grad)
    unmoved = [n for n, t in network.named_buffers() if torch.equal(t, before[n])]
    stem = {id(tensor) for tensor in network.stem.buffers()}  # one pass, shared by all
    others = {n for n, t in network.named_buffers() if not n.startswith("norms.") and id(t) not in stem}
    assert set(unmoved) >= others
    small_buffers = dict(small.named_buffers())
    for path in own:
        mean = network.get_buffer(f"norms.0.{path}.running_mean")
        torch.testing.assert_close(
            mean if mean.dim() == 1 else mean[cut.depth],
            small_buffers[f"{path}.running_mean"].reshape(-1, mean.shape[-1])[-1],
        )


@pytest.mark.parametrize("builder", CUTS)
def test_the_whole_network_and_its_other_outputs_do_not_know_of_them(builder: str) -> None:
    network, cut = with_own_norms(builder)
    without = network.keep(Cut.whole())
    cuts = [c for c in map(Cut.first, range(network.num_blocks + 1)) if c != cut]
    assert torch.equal(network(images(), [cut, *cuts])[1:], without(images(), cuts))


@pytest.mark.parametrize("builder", CUTS)
def test_a_pass_of_its_own_calls_hooks_and_copies_nothing_behind_them(builder: str) -> None:
    network, cut = with_own_norms(builder)
    block = next(iter(network.blocks.values()))
    listened = [block] if builder != ADAPTED else [block, network.get_submodule("model.layer1.0")]
    calls = Calls(network)
    for module in listened:
        module.register_forward_hook(calls.count)
    network(images(), [cut])
    assert calls.number == len(listened)


class Calls:
    """Counts; a copy of it would copy a network."""

    def __init__(self, network: ResidualNetwork) -> None:
        self.network, self.number = network, 0

    def count(self, *_: object) -> None:
        self.number += 1

    def __deepcopy__(self, memo: dict[int, object]) -> "Calls":
        raise AssertionError("copied")


@pytest.mark.parametrize("builder", CUTS)
def test_saved_whole_it_comes_back_with_its_targets(builder: str, tmp_path: Path) -> None:
    network, cut = with_own_norms(builder)
    network.save_pretrained(tmp_path)
    loaded = sc.load(tmp_path)
    assert loaded.targets == (cut,)
    assert torch.equal(loaded(images(), [cut, Cut.whole()]), network(images(), [cut, Cut.whole()]))


@pytest.mark.parametrize("builder", CUTS)
def test_checkpointing_changes_no_gradient_and_no_statistics(builder: str) -> None:
    results = []
    for checkpointing in (False, True):
        network, cut = with_own_norms(builder)
        how = sc.Pass(checkpointing=checkpointing)
        network.train()(images(), [cut, Cut.whole()], how=how).square().sum().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        results.append([*gradients, *network.buffers()])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("builder", CUTS)
def test_decay_and_momentum_go_with_them(builder: str) -> None:
    network, cut = with_own_norms(builder)
    groups = sc.parameter_groups(network, 0.1)
    own = [(n, p) for n, p in network.norms[0].named_parameters()]
    decayed = {id(p) for p in groups[0]["params"]}
    branches = {id(p) for branch in residual_parameters(network) for p in branch}
    for name, parameter in own:  # as the whole network's in whose place it is
        assert (id(parameter) in decayed) == (id(network.get_parameter(name)) in branches)
    assert any(id(p) in decayed for _, p in own)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    network(images(), [cut, Cut.whole()]).square().sum().backward()
    optimizer.step()
    small = network.keep(cut)
    carried = sc.carry_optimizer(optimizer, network, small)
    names = dict(network.named_parameters())
    for name, parameter in small.named_parameters():
        source = names.get(f"norms.0.{name}", names[name])
        state = carried.state[parameter]["momentum_buffer"]
        assert torch.equal(state, optimizer.state[source]["momentum_buffer"])


@pytest.mark.parametrize("training", [True, False])
def test_norms_of_its_own_begin_in_the_mode_of_the_network(training: bool) -> None:
    network = build("staged").train(training)
    network.give_norms(Cut.stages(1, 1, 1))
    assert {module.training for module in network.modules()} == {training}


def test_there_must_be_norms_to_give() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Plain(), Plain(), nn.Linear(4, 2))
    with pytest.raises(StageCostError, match="no norms to give"):
        sc.adapt(model, torch.zeros(1, 3)).give_norms(Cut.first(1))


class Plain(nn.Module):
    """A residual block without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        branch: torch.Tensor = self.outer(self.inner(state).tanh())
        return state + branch


@pytest.mark.parametrize("cut", [Cut.whole(), Cut.first(0), Cut.first(1)])
def test_cuts_that_cannot_have_them(cut: Cut) -> None:
    network = build("homogeneous")
    network.give_norms(Cut.first(1))
    with pytest.raises(StageCostError, match="cannot have norms of its own"):
        network.give_norms(cut)
