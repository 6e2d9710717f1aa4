"""Cuts and the roll-out: every cut is the network that would be left, and cuts share what they can."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from helpers import BUILDERS, build, images, labels
from stagecost.bound import zero_extend
from stagecost.cut import Cut, stage_counts
from stagecost.dynamics import Pass, is_identity
from stagecost.errors import StageCostError
from stagecost.network import ResidualNetwork
from stagecost.objective import StageCost
from stagecost.paths import plan_paths

every_builder = pytest.mark.parametrize("name", BUILDERS)
STAGES = ((0, 1), (2, 3, 4), (5, 6))
masks = st.lists(st.booleans(), min_size=1, max_size=9)


def possible(network: ResidualNetwork, seed: int) -> Cut:
    """Return a random cut that keeps the projections."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(network.num_blocks, generator=generator) < 0.5
    forced = [not is_identity(skip) for skip in network.skips]
    kept = [k for k in range(network.num_blocks) if bool(drawn[k]) or forced[k]]
    return Cut(tuple(kept or [0]))


@pytest.mark.parametrize(
    ("cut", "blocks", "text"),
    [
        (Cut.first(0), (), "0"),
        (Cut.first(3), (0, 1, 2), "3"),
        (Cut.whole(), (0, 1, 2, 3, 4, 5, 6), "whole"),
        (Cut.without(4), (0, 1, 2, 3, 5, 6), "whole without 4"),
        (Cut.stages(1, 2, 1), (0, 2, 3, 5), "1+2+1"),
        (Cut((5, 0, 2, 2)), (0, 2, 5), "[0 2 5]"),
        (Cut((1,)), (1,), "[1]"),
        (Cut(np.array([3, 4])), (3, 4), "[3-4]"),
    ],
)
def test_the_ways_to_name_a_cut(cut: Cut, blocks: tuple[int, ...], text: str) -> None:
    resolved = cut.among(STAGES)
    assert resolved == Cut(blocks)
    assert hash(resolved) == hash(Cut(blocks))
    assert resolved.to_json() == list(blocks)
    assert str(cut) == text
    assert resolved.among(STAGES) is resolved


@given(first=masks, second=masks)
def test_order_and_union_are_those_of_sets(first: list[bool], second: list[bool]) -> None:
    a, b = (Cut(tuple(k for k, acts in enumerate(mask) if acts)) for mask in (first, second))
    assert set((a | b).blocks) == set(a.blocks) | set(b.blocks)
    assert (a <= b) == (set(a.blocks) <= set(b.blocks))
    assert a <= a | b
    assert a.depth == max((k + 1 for k in a.blocks), default=0)
    assert a.is_prefix == (a.blocks == tuple(range(len(a.blocks))))
    assert a.remaining(range(10, 20)) == tuple(10 + k for k in a.blocks)


@pytest.mark.parametrize(
    "cut", [Cut.first(4), Cut.whole(), Cut.stages(3, 3, 4), Cut((1,)), Cut((0, 1, 2, 5))]
)
def test_the_printed_form_is_read_again(cut: Cut) -> None:
    assert Cut.parse(str(cut)) == cut


@pytest.mark.parametrize(
    "text",
    [
        *("", "four", "3+", "-1", "3,4", "²", "[5-2]", "[]", "[", "[1", "99999999999", "9" * 5000),
        *("[0-23-5]", "[12345678]", "[0-99999999]", "[1 2-]", f"[{'1' * 40}x]", f"[{'1 ' * 40}x]"),
    ],
)
def test_what_is_not_a_cut_is_refused(text: str) -> None:
    with pytest.raises(StageCostError, match="is not a cut"):
        Cut.parse(text)


def test_impossible_cuts_are_refused() -> None:
    with pytest.raises(StageCostError, match="block 7 is impossible"):
        Cut.first(8).among(STAGES)
    with pytest.raises(StageCostError, match=r"impossible in stages of \[2, 3, 2\]"):
        Cut.stages(1, 4, 1).among(STAGES)
    for number in (-1, 1.5, True, np.True_, torch.tensor(True), torch.tensor(1.5), torch.ones(2).long()):
        with pytest.raises(StageCostError, match="whole number"):
            Cut((number,))  # type: ignore[arg-type]
    assert Cut(torch.tensor([2, 0])) == Cut(np.array([0, 2])) == Cut((0, 2))
    with pytest.raises(StageCostError, match="is no list of blocks"):
        Cut(torch.tensor(1))
    with pytest.raises(StageCostError, match="needs counts"):
        Cut.stages()
    with pytest.raises(StageCostError, match="4 is no text"):
        Cut.parse(4)  # type: ignore[arg-type]
    network = build("homogeneous").eval()
    one, several = network(images(), depths=torch.tensor(2)), network(images(), depths=torch.tensor([2]))
    assert torch.equal(one, network(images(), depths=2))
    assert torch.equal(several, one[None])
    with pytest.raises(StageCostError, match="is not an integer"):
        network(images(), depths=torch.tensor([True, False]))
    with pytest.raises(StageCostError, match="cuts is empty"):
        network(images(), [])
    with pytest.raises(StageCostError, match="exclude each other"):
        network(images(), Cut.whole(), depths=2)


def test_what_is_no_cut_is_refused_where_one_is_meant() -> None:
    network = build("homogeneous")
    for one in (2, "2", [1]):
        for ask in (network.keep, network.resolve):
            with pytest.raises(StageCostError, match="is no cut"):
                ask(one)
    with pytest.raises(StageCostError, match="1 is no cut"):
        network(images(), 1)
    with pytest.raises(StageCostError, match="2 is no list of blocks"):
        Cut(2)  # type: ignore[arg-type]
    for ask in (
        Cut.stages(1, 1).to_json,
        lambda: Cut.whole().acts(0),
        lambda: Cut.first(1) <= Cut.whole(),
        lambda: Cut.whole().depth,
    ):
        with pytest.raises(StageCostError, match="does not name its blocks"):
            ask()
    with pytest.raises(StageCostError, match="-1 in a cut is not a whole number"):
        Cut.first(-1)


def test_scales_are_one_a_block() -> None:
    with pytest.raises(StageCostError, match=r"scales of shape \(5,\) for 4 blocks"):
        build("homogeneous")(images(), scales=torch.ones(5))
    for shape, count in (((4, 7), 3), ((4, 7), 1), ((4, 3, 1), 3)):
        with pytest.raises(StageCostError, match=f"4 blocks and {count} images: give one a block, or"):
            build("homogeneous")(images(count), scales=torch.ones(shape))


def test_counts_of_stages() -> None:
    assert stage_counts(Cut((0, 2, 3, 5)), STAGES) == (1, 2, 1)
    assert stage_counts(Cut((1, 2, 3, 5)), STAGES) is None


@every_builder
def test_every_cut_is_the_network_that_would_be_left(name: str) -> None:
    """To the last bit: values, and in training mode the gradients, too."""
    for seed in range(3):
        network = build(name).eval()
        cut = possible(network, seed)
        left = network.keep(cut)
        assert torch.equal(network(images(), cut), left(images()))
        network.train()
        left.train()
        F.cross_entropy(network(images(), cut), labels()).backward()
        F.cross_entropy(left(images()), labels()).backward()
        gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
        for key, parameter in left.named_parameters():
            torch.testing.assert_close(gradients.pop(key), parameter.grad)
        assert all(gradient is None or not gradient.any() for gradient in gradients.values())


@every_builder
def test_a_depth_is_a_cut(name: str) -> None:
    network = build(name).eval()
    cuts = [Cut.first(k) for k in range(network.num_blocks + 1)]
    everything = network(images(), depths="all")
    assert torch.equal(network(images(), cuts), everything)
    assert torch.equal(network(images(), Cut.first(2)), everything[2])
    assert torch.equal(network(images(), [Cut.whole()]), everything[-1:])


@every_builder
def test_further_cuts_leave_the_whole_network_as_it_is(name: str) -> None:
    """Output and running statistics are as without them, in training mode."""
    network, alone = build(name).train(), build(name).train()
    cuts = [possible(network, seed) for seed in range(4) if not possible(network, seed).is_prefix]
    outputs = network(images(), [*cuts, Cut.whole()])
    assert torch.equal(outputs[-1], alone(images()))
    for (key, value), other in zip(network.named_buffers(), alone.buffers(), strict=True):
        assert torch.equal(value, other), key


@every_builder
def test_further_cuts_leave_an_intermediate_output_as_it_is(name: str) -> None:
    """Its running statistics follow it also where the whole network is not asked for."""
    network, alone = build(name).train(), build(name).train()
    outputs = network(images(), [Cut((0, 2)), Cut.first(1)])
    assert torch.equal(outputs[-1], alone(images(), Cut.first(1)))
    for (key, value), other in zip(network.named_buffers(), alone.buffers(), strict=True):
        assert torch.equal(value, other), key


def test_further_cuts_draw_no_random_number_of_the_whole_network() -> None:
    """Dropout in branches and head is that of a plain pass, where other cuts draw numbers, too."""
    network = build("homogeneous").train()
    network.head.linear = torch.nn.Sequential(torch.nn.Dropout(), network.head.linear)
    for block in network.blocks.values():
        block.residual.append(torch.nn.Dropout())
    torch.manual_seed(0)
    alone = network(images())
    for cuts in ([Cut.first(1)], [Cut((1,)), Cut((0, 2))]):
        torch.manual_seed(0)
        assert torch.equal(network(images(), [*cuts, Cut.whole()])[-1], alone)


def test_cuts_share_their_states() -> None:
    """No block is computed twice on the same state: 3·(1 + 3 + 2) stage cuts, one pass."""
    network, calls = build("staged").eval(), Counter()
    for k, block in network.blocks.items():
        block.register_forward_hook(lambda *_, k=k: calls.update([int(k)]))
    cuts = [Cut.stages(a, b, c) for a in (1, 2) for b in (1, 2, 3) for c in (1, 2)]
    together = network(images(), cuts)
    assert calls == {0: 1, 1: 1, 2: 2, 3: 2, 4: 2, 5: 6, 6: 6}
    for cut, output in zip(cuts, together, strict=True):
        assert torch.equal(output, network(images(), cut))


def test_identity_skips_are_never_called() -> None:
    network, calls = build("homogeneous", num_blocks=9).eval(), []
    for block in network.blocks.values():
        block.skip.register_forward_hook(lambda *_: calls.append(1))
    network(images(), depths="all")
    assert len(calls) == 9, "each in its own block"


def test_paths_are_few() -> None:
    depths = tuple(Cut.first(k) for k in range(55))
    (path,) = plan_paths(depths)
    assert path.whole
    assert path.stop == 54
    removals = tuple(Cut(tuple(k for k in range(9) if k != j)) for j in range(9))
    assert len(plan_paths((Cut.first(9), *removals))) == 9


def test_states_are_not_overwritten_by_tails() -> None:
    """Outputs of several cuts at once are those of one at a time, in both modes."""
    for training in (True, False):
        network = build("staged").train(training)
        cuts = [Cut.first(3), Cut.without(1), Cut.stages(1, 2, 2), Cut.whole()]
        together = network(images(), cuts)
        for cut, output in zip(cuts, together, strict=True):
            torch.testing.assert_close(output, build("staged").train(training)(images(), cut))


def test_checkpointing_and_scales_change_nothing_but_what_they_should() -> None:
    cuts = [Cut.stages(1, 2, 1), Cut.first(4), Cut.whole()]
    scales = torch.ones(7, 4)
    scales[1] = scales[6] = 0.0  # blocks that the first cut leaves out
    plain, kept, scaled = (build("staged").train() for _ in range(3))
    expected = plain(images(), cuts)
    outputs = kept(images(), cuts, how=Pass(checkpointing=True))
    assert torch.equal(outputs, expected)
    outputs.square().sum().backward()
    expected.square().sum().backward()
    for ours, others in zip(kept.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, others.grad)
    for ours, others in zip(kept.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, others)
    some = scaled(images(), cuts, scales=scales)
    torch.testing.assert_close(some[0], expected[0])
    assert not torch.allclose(some[-1], expected[-1])


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_scales_are_those_of_the_branches(scale: float) -> None:
    network = build("homogeneous").double().eval()
    scales = torch.full((4,), scale, dtype=torch.float64)
    state = network.stem(images().double())
    for block in network.blocks.values():
        state = block.skip(state) + scale * block.residual(state)
    torch.testing.assert_close(network(images().double(), scales=scales), network.head(state, 4))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 4.0])
def test_the_bound_for_a_target_is_an_identity(gamma: float) -> None:
    """J of the zero-extended sub-network is (1 + gamma)·Lbar: its output comes twice."""
    sub = build("staged", blocks_per_stage=(1, 2, 1)).train()
    extended = zero_extend(sub, blocks_per_stage=(2, 3, 2)).train()
    stage_cost = StageCost.targets([Cut.stages(1, 2, 1)], weight=gamma)
    total = stage_cost(extended(images(), stage_cost.outputs), labels()).total
    bar = F.cross_entropy(sub(images()), labels())
    torch.testing.assert_close(total, (1 + gamma) * bar)
