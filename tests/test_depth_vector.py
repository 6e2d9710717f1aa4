"""The output of a vector of depths: that of the network which a cut of each stage would leave."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import stagecost as sc
from helpers import BUILDERS, build, images, labels
from stagecost.bound import zero_extend
from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork
from stagecost.stages import first_blocks
from stagecost.surgery import copy_with_blocks
from stagecost.training import loop
from stagecost.training.checkpoint import read_checkpoint
from stagecost.training.cost import images_of_an_epoch, passes_of_an_epoch, training_macs
from stagecost.training.folder import RunFolder
from stagecost.training.loop import train, train_step
from stagecost.training.trained import open_trained

TINY = {"data": "digits", "limit_train": 200, "batch_size": 64, "device": "cpu", "epochs": 2}
STAGED = {"model": "staged", "blocks_per_stage": [2, 3], "widths": [4, 6], "depth_vector": [1, 2]}


def halves(network: ResidualNetwork) -> tuple[int, ...]:
    return tuple(math.ceil(size / 2) for size in network.blocks_per_stage)


@pytest.mark.parametrize("name", BUILDERS)
def test_it_is_the_output_of_the_cut_network(name: str) -> None:
    """Values and gradients, and the whole network's own output and statistics are as without it."""
    network, alone = build(name).train(), build(name).train()
    vector = halves(network)
    cut = copy_with_blocks(network, first_blocks(network.stages, vector))
    both = network(images(), depth_vector=vector)
    assert torch.equal(both[0], cut(images()))
    assert torch.equal(both[1], alone(images()))
    for (key, value), other in zip(network.named_buffers(), alone.buffers(), strict=True):
        assert torch.equal(value, other), key
    F.cross_entropy(both[0], labels()).backward()
    F.cross_entropy(cut(images()), labels()).backward()
    gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
    for key, parameter in cut.named_parameters():
        torch.testing.assert_close(gradients.pop(key), parameter.grad)
    assert not any(gradient.any() for gradient in gradients.values())


def test_it_comes_before_the_depths_asked_for() -> None:
    network = build("staged").train()
    outputs = network(images(), depths=[0, 7], depth_vector=(1, 2, 1))
    assert outputs.shape == (3, 4, 5)
    assert torch.equal(outputs[1:], build("staged").train()(images(), depths=[0, 7]))
    assert network(images(), depths=3, depth_vector=(1, 2, 1)).shape == (2, 4, 5)


def test_in_one_stage_it_is_an_intermediate_output() -> None:
    network = build("homogeneous").train()
    outputs = network(images(), depths=[3, 4], depth_vector=(3,))
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.parametrize("statistics", ["per_output", "shared", "terminal"])
def test_no_policy_of_the_head_counts_it(statistics: str) -> None:
    networks = [build("staged", head_statistics=statistics).train() for _ in range(2)]
    networks[0](images(), depth_vector=(1, 1, 1))
    networks[1](images())
    for ours, others in zip(networks[0].buffers(), networks[1].buffers(), strict=True):
        assert torch.equal(ours, others)


def test_checkpointing_and_scales_change_nothing_but_what_they_should() -> None:
    scales = torch.ones(7, 4)
    scales[1] = scales[6] = 0.0  # blocks that the vector leaves out
    plain, kept, scaled = (build("staged").train() for _ in range(3))
    expected = plain(images(), depth_vector=(1, 2, 1))
    outputs = kept(images(), depth_vector=(1, 2, 1), checkpointing=True)
    assert torch.equal(outputs, expected)
    outputs.square().sum().backward()
    expected.square().sum().backward()
    for ours, others in zip(kept.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, others.grad)
    for ours, others in zip(kept.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, others)
    some = scaled(images(), depth_vector=(1, 2, 1), branch_scales=scales)
    torch.testing.assert_close(some[0], expected[0])
    assert not torch.allclose(some[1], expected[1])


@pytest.mark.parametrize("gamma", [0.0, 0.3, 4.0])
def test_the_bound_for_its_stage_cost_is_an_identity(gamma: float) -> None:
    """J of the zero-extended sub-network is (1 + gamma)·Lbar: its output comes twice."""
    arguments = {**BUILDERS["staged"], "blocks_per_stage": (1, 2, 1)}
    torch.manual_seed(0)
    sub = sc.create_model("staged", **arguments).train()
    extended = zero_extend(sub, blocks_per_stage=(2, 3, 2)).train()
    outputs = extended(images(), depth_vector=(1, 2, 1))
    total = sc.stage_cost_objective(outputs, labels(), gamma).total
    bar = F.cross_entropy(sub(images()), labels())
    torch.testing.assert_close(total, (1 + gamma) * bar)


def test_what_is_impossible_is_refused() -> None:
    network = build("staged")
    with pytest.raises(StageCostError, match=r"recalibrate"):
        network.eval()(images(), depth_vector=(1, 1, 1))
    for vector in ((1, 1), (0, 1, 1), (3, 1, 1)):
        with pytest.raises(StageCostError, match=r"impossible in stages of \[2, 3, 2\]"):
            network.train()(images(), depth_vector=vector)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"depth_vector": [1]}, r"keeping \[1\] blocks is impossible"),
        ({"depth_vector": [1, 4]}, r"keeping \[1, 4\] blocks is impossible"),
        ({"depth_vector": [2, 3]}, r"depth_vector 2,3 is the whole network"),
        ({"depth_vector": "1,x"}, r"--depth-vector is '1,x'"),
        ({"first_depth": 1}, r"first_depth is about the outputs y_k"),
        ({"sampled_depths": 1}, r"sampled_depths is about"),
        ({"depth_weights": "growing"}, r"depth_weights is about"),
        ({"constant_head": True}, r"constant_head is about"),
        ({"shrink": True}, r"shrink looks for the depth that depth_vector gives"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], match: str, tmp_path: Path) -> None:
    with pytest.raises(StageCostError, match=match):
        train({**TINY, **STAGED, **change}, tmp_path / "run")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "last.safetensors").network().state_dict()


def test_a_step_is_that_of_a_loop_written_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of SGD on (L_N + gamma·L_M)/(1 + gamma), by two passes of two networks."""
    gamma, seen = 2.0, []
    settings = {**TINY, **STAGED, "gamma": gamma, "normalize_objective": True, "epochs": 1}

    def look(session: loop.Session, batch: torch.Tensor, targets: torch.Tensor) -> object:
        if not seen:
            whole = copy_with_blocks(session.network, session.network.block_indices)
            cut = copy_with_blocks(whole, first_blocks(whole.stages, (1, 2)))
            losses = [F.cross_entropy(net(batch), targets) for net in (whole, cut)]
            ((losses[0] + gamma * losses[1]) / (1 + gamma)).backward()
            expected = {key: p.grad.clone() for key, p in whole.named_parameters()}
            for key, p in cut.named_parameters():
                expected[key] += p.grad
            terms, outputs = loop._objective(session, batch, targets)
            assert outputs.shape == (2, len(targets), 10)
            names, parameters = zip(*session.network.named_parameters(), strict=True)
            found = torch.autograd.grad(terms.total, parameters)
            seen.append(dict(zip(names, found, strict=True)))
            for key, gradient in seen[0].items():
                torch.testing.assert_close(gradient, expected[key])
        return train_step(session, batch, targets)

    monkeypatch.setattr(loop, "train_step", look)
    train(settings, tmp_path / "run")
    assert len(seen) == 1


def test_once_the_cut_is_made_training_is_plain(tmp_path: Path) -> None:
    """What the vector names is all that is left: its output is the terminal one, whatever gamma says."""
    given = {**TINY, **STAGED, "gamma": 2.0, "normalize_objective": True, "cut_at": "1:1+2"}
    train(given, tmp_path / "run")
    train({**given, "plain_after_cuts": True}, tmp_path / "plain")
    ours, plain = weights_of(tmp_path / "run"), weights_of(tmp_path / "plain")
    assert all(torch.equal(ours[key], value) for key, value in plain.items())
    assert [key.split(".")[1] for key in ours if key.endswith("residual.0.weight")] == ["0", "2", "3"]


def test_a_run_that_was_stopped_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**TINY, **STAGED, "gamma": 1.0, "cut_at": "2:1+2", "epochs": 3, "stage_loss": "distilled"}
    train(given, tmp_path / "whole")
    steps = iter(range(100))

    def stop_once(session: object, batch: object, targets: object) -> object:
        if next(steps) == 4:
            raise KeyboardInterrupt
        return train_step(session, batch, targets)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_step", stop_once)
    with pytest.raises(KeyboardInterrupt):
        train(given, tmp_path / "stopped")
    train({}, tmp_path / "stopped", resume=True)
    whole, stopped = weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped")
    assert all(torch.equal(stopped[key], value) for key, value in whole.items())


def test_gamma_auto_steers_it(tmp_path: Path) -> None:
    found = train({**TINY, **STAGED, "gamma": "auto"}, tmp_path / "run")
    assert 0.03 <= found.gamma <= 0.3


def test_its_blocks_count_in_the_cost_of_the_training(tmp_path: Path) -> None:
    given = {**TINY, **STAGED, "gamma": 1.0, "cut_at": "2:1+2", "epochs": 4}
    runs = {
        "vector": given,
        "none": {**given, "depth_vector": None},
        "early": {**given, "gamma_schedule": "early"},  # none in the first of four epochs
    }
    costs = {}
    for name, settings in runs.items():
        result = train(settings, tmp_path / name)
        costs[name] = training_macs(tmp_path / name, result.history)
    opened = open_trained(tmp_path / "vector", device="cpu")
    settings, splits = RunFolder(tmp_path / "vector").settings(), opened.load("train", "val").splits
    assert passes_of_an_epoch(settings, splits) > 3 * images_of_an_epoch(settings, splits)
    again = costs["vector"] - costs["none"]
    assert costs["early"] - costs["none"] == again // 2
    assert again % (2 * 3 * images_of_an_epoch(settings, splits)) == 0
    assert 0 < again < costs["none"] / 2
