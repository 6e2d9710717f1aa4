"""Statistics of norms that are estimated anew: of all images alike, and nothing else is touched."""

import pytest
import torch

import stagecost as sc
from helpers import build, images, labels, loader
from stagecost.cut import Cut
from stagecost.errors import StageCostError


@pytest.mark.parametrize("sizes", [(16, 16), (16, 1), (7, 30, 3), (16, 0, 16)])
def test_recalibration_estimates_batchnorm_from_images_that_count_alike(sizes: tuple[int, ...]) -> None:
    network, data = build("staged"), [(images(n, seed=n), labels(n)) for n in sizes]
    weights = {n: p.clone() for n, p in network.named_parameters()}
    sc.recalibrate(network, data)
    assert all(torch.equal(p, weights[n]) for n, p in network.named_parameters())
    first = network.blocks["0"].residual[0]
    with torch.no_grad():
        states = network.stem(torch.cat([x for x, _ in data]))
    torch.testing.assert_close(first.running_mean, states.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(first.running_var, states.var(dim=(0, 2, 3)), rtol=1e-2, atol=1e-3)
    assert network.head.norm.num_batches_tracked.tolist() == [sum(map(bool, sizes))] * 8


def test_recalibration_reaches_the_norms_of_targets() -> None:
    network, cut, data = build("staged"), Cut.stages(1, 2, 1), [(images(16), labels(16))]
    network.give_norms(cut)
    small = network.keep(cut)
    sc.recalibrate(network, data)
    sc.recalibrate(small, data)
    network.take_norms_of(network.resolve(cut))
    for name, buffer in small.named_buffers():
        if not name.startswith("head."):  # a small network has fewer rows there
            torch.testing.assert_close(buffer, network.get_buffer(name))
    rows = [0, 1, 3, 4, 6]
    torch.testing.assert_close(
        small.head.norm.running_mean[-1], network.head.norm.running_mean[rows][-1]
    )


def test_what_is_refused_leaves_the_statistics_as_they_were() -> None:
    network = build("staged")
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    for estimate in (sc.recalibrate, lambda net, data: sc.calibrate_outputs(net, data, [0])):
        with pytest.raises(StageCostError):
            estimate(network, [(images(16), labels(16)), "broken"])
        assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())


def test_a_norm_that_several_blocks_share_knows_all_of_its_calls() -> None:
    network, data = build("homogeneous"), [(images(16, seed=n), labels(16)) for n in range(3)]
    shared = network.blocks["0"].residual[0]
    for block in network.blocks.values():
        block.residual[0] = shared
    sc.recalibrate(network, data)
    seen: list[torch.Tensor] = []
    handle = shared.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():  # as there: this norm by batches, all others as they were
        for norm in network.modules():
            norm.training = norm is shared or isinstance(norm, type(shared))
        before = shared.momentum
        shared.momentum = 0.0
        for x, _ in data:
            network(x)
        shared.momentum = before
    handle.remove()
    assert len(seen) == 3 * network.num_blocks
    everything = torch.cat(seen)
    torch.testing.assert_close(shared.running_mean, everything.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(shared.running_var, everything.var((0, 2, 3)), rtol=1e-3, atol=1e-3)


def test_without_images_nothing_is_estimated() -> None:
    for estimate in (sc.recalibrate, lambda net, data: sc.calibrate_outputs(net, data, [0])):
        with pytest.raises(StageCostError, match="no images"):
            estimate(build("staged"), [])


def test_calibrating_some_outputs_changes_nothing_else() -> None:
    network, data = build("homogeneous").train(), loader(batches=4, count=16)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    sc.calibrate_outputs(network, data, range(4))
    for key, value in network.state_dict().items():
        if key.startswith("head.norm.running") or key.endswith("num_batches_tracked"):
            continue
        assert torch.equal(value, before[key]), key
    assert torch.equal(network.head.norm.running_mean[4], before["head.norm.running_mean"][4])
    assert network.head.norm.num_batches_tracked[:4].tolist() == [4] * 4
    assert network.training
    assert network.head.norm.momentum == 0.1
    with torch.no_grad():
        network.eval()
        states = torch.cat([list(network.states(x))[2] for x, _ in data])
    torch.testing.assert_close(network.head.norm.running_mean[2], states.mean(dim=(0, 2, 3)))
