"""Early exit: decisions against a literal loop over all outputs, policies, what is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stagecost as sc
from helpers import BUILDERS, build, images, loader
from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.exits.costs import mac_costs
from stagecost.exits.curve import (
    all_outputs,
)
from stagecost.exits.policy import CRITERIA, Criterion, votes_at
from stagecost.fast.reading import FoldedHead
from stagecost.head import StatisticsPolicy
from stagecost.macs import count_macs, macs_by_part
from stagecost.network import ResidualNetwork


class Foreign(nn.Module):
    """A network of another make, seen through `adapt`; its second block changes the width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])
        self.shortcut, self.wider = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv in self.inner[:2]:
            x = x + conv(x.relu())
        x = self.shortcut(x) + self.wider(x.relu())
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class Turning(nn.Module):
    """Weighs its branch by a table, which its state holds beside the images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return x + self.linear(x) * table.mean(0)


class Tabled(nn.Module):
    """Makes a table on its device, of as many rows as the tests' batches have images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3 * 16 * 16, 8), nn.Linear(8, 5)
        self.blocks = nn.ModuleList(Turning() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, table = self.stem(x.flatten(1)), torch.linspace(0, 1, 24 * 8, device="cpu").view(24, 8)
        for block in self.blocks:
            x = block(x, table)
        return self.head(x)  # type: ignore[no-any-return]


class Late(Tabled):
    """Makes the table behind the first block, so that not all states hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        x = x + self.first(x)
        table = torch.linspace(0, 1, 24 * 8, device="cpu").view(24, 8)
        for block in self.blocks:
            x = block(x, table)
        return self.head(x)  # type: ignore[no-any-return]


def every_network() -> dict[str, ResidualNetwork]:
    torch.manual_seed(0)
    example = torch.zeros(2, 3, 16, 16)
    made = {"adapted": Foreign(), "tabled": Tabled(), "late": Late()}
    foreign = {name: sc.adapt(model, example) for name, model in made.items()}
    return {name: each.eval() for name, each in foreign.items()} | {
        name: build(name).eval() for name in list(BUILDERS)[:3]
    }


NETWORKS = every_network()


def literally(outputs: Tensor, policy: sc.ExitPolicy) -> tuple[list[int], list[int]]:
    """Decide for each image by itself, from the outputs of all depths."""
    labels, depths = [], []
    for i in range(outputs.shape[1]):
        seen: list[Tensor] = []
        agreeing, last = 0, -1
        for place, k in enumerate(policy.depths):
            seen.append(outputs[k, i].log_softmax(0))
            voting = torch.stack(seen).mean(0).softmax(0) if policy.combine else seen[-1].exp()
            best = voting.topk(2)
            answer = int(best.indices[0])
            agreeing, last = agreeing + 1 if answer == last else 1, answer
            score = {
                "max-probability": float(best.values[0]),
                "margin": float(best.values[0] - best.values[1]),
                "patience": float(agreeing),
            }[policy.criterion]
            if place == len(policy.depths) - 1 or score >= policy.thresholds[place]:
                labels.append(answer)
                depths.append(k)
                break
    return labels, depths


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("combine", [False, True])
def test_every_image_leaves_where_a_literal_loop_says(
    name: str, criterion: Criterion, combine: bool
) -> None:
    network, x = NETWORKS[name], images(24)
    n = network.num_blocks
    depths = tuple(sorted({0, 1, n // 2, n}))
    with torch.no_grad():
        outputs = network(x, depths="all")
    _, scores = votes_at(outputs, depths, criterion, combine=combine)
    middle = 2.0 if criterion == "patience" else float(scores[:-1].median()) + 1e-5
    for threshold in (-1.0, middle, 99.0):
        policy = sc.ExitPolicy(depths, (threshold,) * (len(depths) - 1), criterion, combine)
        answers = sc.run_with_exits(network, x, policy)
        assert (answers.labels.tolist(), answers.depths.tolist()) == literally(outputs, policy)
        alone = [sc.run_with_exits(network, x[i : i + 1], policy) for i in range(4)]
        assert torch.equal(torch.cat([each.labels for each in alone]), answers.labels[:4])
        assert torch.equal(torch.cat([each.depths for each in alone]), answers.depths[:4])
    assert set(sc.run_with_exits(network, x[:1], policy).depths.tolist()) == {n}


def test_a_state_may_hold_a_table_beside_the_images() -> None:
    network = NETWORKS["tabled"]
    state = network.stem(images(24))
    assert isinstance(state, tuple)
    assert [len(part) for part in state] == [24, 24]
    assert count_macs(network, (3, 16, 16)) == 3 * 16 * 16 * 8 + 3 * 8 * 8 + 8 * 5


def test_images_of_a_network_with_two_inputs_leave() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(6, 8), nn.Linear(3, 8), nn.Linear(8, 5)
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x = self.one(x) + self.two(y)
            for block in self.blocks:
                x = x + block(x).relu()
            return self.head(x)  # type: ignore[no-any-return]

    inputs = torch.randn(20, 6), torch.randn(20, 3)
    network = sc.adapt(Two(), inputs).eval()
    with torch.no_grad():
        early, last = network(inputs, depths=[1, 3]).softmax(dim=-1)  # type: ignore[arg-type]
    threshold = float(early.amax(dim=1).median()) - 1e-5
    sure, policy = early.amax(dim=1) >= threshold, sc.ExitPolicy((1, 3), (threshold,))
    answers = sc.run_with_exits(network, inputs, policy)  # type: ignore[arg-type]
    assert torch.equal(answers.depths == 1, sure)
    assert torch.equal(answers.labels, torch.where(sure, early.argmax(dim=1), last.argmax(dim=1)))


@pytest.mark.parametrize("statistics", ["per_output", "terminal"])
def test_a_folded_head_reads_what_the_head_reads(statistics: StatisticsPolicy) -> None:
    head = sc.OutputHead(6, 5, num_outputs=3, statistics=statistics)
    for depth in (0, 1, 2, 0, 1, 2):
        head(torch.randn(4, 6, 3, 5) + depth, depth)  # moves the statistics
    nn.init.normal_(head.norm.weight)
    nn.init.normal_(head.norm.bias)
    with torch.no_grad():  # channels that the norm makes constant, open and shut
        head.norm.weight[:3], head.norm.bias[:3] = 0.0, torch.tensor([1.0, -1.0, 0.0])
    state = torch.randn(7, 6, 3, 5).contiguous(memory_format=torch.channels_last)
    for depth in range(3):
        assert torch.allclose(FoldedHead(head)(state, depth), head.eval()(state, depth), atol=1e-5)


def test_where_an_image_leaves_does_not_depend_on_the_others() -> None:
    """Nor where its outputs are no numbers."""
    network, policy = build("homogeneous").eval(), sc.ExitPolicy((1, 2, 4), (0.9, 0.9))
    batch = images(2)
    batch[0] = torch.nan
    together = sc.run_with_exits(network, batch, policy).depths.tolist()
    assert together == [int(sc.run_with_exits(network, batch[i : i + 1], policy).depths) for i in (0, 1)]


def test_blocks_behind_an_exit_see_those_alone_that_are_left() -> None:
    network, x = build("homogeneous").eval(), images(24)
    with torch.no_grad():
        _, scores = votes_at(network(x, depths="all"), (1, 3), "max-probability")
    policy = sc.ExitPolicy((1, 3, 4), (float(scores[0].median()), float(scores[1].median())))
    assert float(scores[1][scores[0] < scores[0].median()].max()) > float(scores[1].median())
    seen: dict[int, int] = {}
    for k, block in enumerate(network.blocks.values()):
        block.register_forward_pre_hook(lambda m, inputs, k=k: seen.update({k: len(inputs[0])}))
    left = sc.run_with_exits(network, x, policy).depths
    assert seen[0] == 24
    assert seen[1] == seen[2] == int((left > 1).sum()) == 11
    assert 0 < seen[3] == int((left > 3).sum()) < 11
    assert not network.training


def test_depths_with_norms_of_their_own_let_nobody_leave() -> None:
    """One pass cannot serve them: what it would read at such a depth is not the output of that cut."""
    network = build("homogeneous").eval()
    network.give_norms(Cut.first(1))
    last = network.num_blocks
    for ask in (
        lambda: sc.exit_curve(network, loader(), (3, 8, 8)),
        lambda: sc.run_with_exits(network, images(), sc.ExitPolicy((1, last), (0.5,))),
    ):
        with pytest.raises(StageCostError, match="depth 1 has norms of its own"):
            ask()
    sc.run_with_exits(network, images(), sc.ExitPolicy((0, last), (0.5,)))


def test_a_fixed_cut_is_a_policy() -> None:
    for network in NETWORKS.values():
        x = images(5)
        for k in range(network.num_blocks + 1):
            answers = sc.run_with_exits(network, x, sc.ExitPolicy((k,)))
            assert answers.labels.tolist() == network(x, Cut.first(k)).argmax(1).tolist()
            assert answers.depths.tolist() == [k] * 5


def test_a_network_keeps_its_mode_and_an_engine_refuses_training() -> None:
    network = build("homogeneous").train()
    sc.run_with_exits(network, images(), sc.ExitPolicy((1, 4), (0.5,)))
    assert network.training
    with pytest.raises(StageCostError, match="training mode"):
        sc.EarlyExit(network, sc.ExitPolicy((4,)))
    with pytest.raises(StageCostError, match="depth 5 is impossible with 4 blocks"):
        sc.run_with_exits(network, images(), sc.ExitPolicy((5,)))


def test_an_image_at_the_threshold_leaves_alone_and_among_others() -> None:
    """A threshold is compared in the precision of the scores, whoever else is in the batch."""

    class Itself(nn.Linear):
        def forward(self, state: Tensor, depth: int) -> Tensor:  # type: ignore[override]
            return state

    blocks = [sc.ResidualBlock(nn.Identity()) for _ in range(2)]
    network, x = sc.ResidualNetwork(nn.Identity(), blocks, Itself(5, 5)).eval(), torch.randn(24, 5)
    _, scores = votes_at(torch.stack((2 * x, 4 * x)), (0, 1), "max-probability")
    for i, score in enumerate(scores[0].tolist()):
        for threshold, depth in ((score, 1), (score + 1e-12, 1), (score + 1e-6, 2)):
            policy = sc.ExitPolicy((1, 2), (threshold,))
            assert int(sc.run_with_exits(network, x, policy).depths[i]) == depth
            assert int(sc.run_with_exits(network, x[i : i + 1], policy).depths) == depth


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x, y: y.fill_(5), "labels from 5 to 5, and the network has 5 classes"),
        (lambda x, y: y.fill_(-1), "labels from -1 to -1, and the network has 5 classes"),
        (lambda x, y: x[3].fill_(torch.nan), "outputs at depth 0 are no finite numbers"),
    ],
)
def test_images_that_choose_no_exits(spoil: Callable[[Tensor, Tensor], Tensor], words: str) -> None:
    x, labels = images(8), torch.arange(8) % 5
    spoil(x, labels)
    with pytest.raises(StageCostError, match=words):
        all_outputs(NETWORKS["homogeneous"], [(x, labels)])


@pytest.mark.parametrize("name", ["adapted", "homogeneous"])
def test_images_of_another_shape_are_refused(name: str) -> None:
    """A view's sizes are those of its example, and stems do not look."""
    network = NETWORKS[name]
    x = torch.zeros(4, 3, 8, 8) if name == "adapted" else torch.zeros(4, 1, 8, 8)
    for use in (
        lambda: sc.run_with_exits(network, x, sc.ExitPolicy((1, network.num_blocks), (0.5,))),
        lambda: all_outputs(network, [(x, torch.zeros(4, dtype=torch.long))]),
        lambda: mac_costs(network, x.shape[1:]),
    ):
        with pytest.raises(StageCostError, match=r"samples of shapes|images have 1 channels"):
            use()


@pytest.mark.parametrize("shape", [(), (1,), (4, 3)])
def test_what_are_no_classes_lets_nobody_leave(shape: tuple[int, ...]) -> None:
    """Regression, and several answers a sample."""

    class Head(nn.Linear):
        def forward(self, state: Tensor, depth: int) -> Tensor:  # type: ignore[override]
            return super().forward(state).reshape(len(state), *shape)

    blocks = [sc.ResidualBlock(nn.Linear(5, 5)) for _ in range(2)]
    network = sc.ResidualNetwork(nn.Identity(), blocks, Head(5, math.prod(shape)))
    with pytest.raises(StageCostError, match="exits need outputs"):
        sc.run_with_exits(network, torch.randn(6, 5), sc.ExitPolicy((1, 2), (0.5,)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((),), "exits at depths []"),
        (((3, 2), (0.5,)), "exits at depths [3, 2]"),
        (((True,),), "ascending numbers"),
        (((2, 4),), "a number for each depth but the last"),
        (((2, 4), (float("nan"),)), "thresholds [nan]"),
        (((2, 4), ("high",)), "thresholds ('high',)"),
        (((2, 4), (None,)), "give lists of numbers"),
        (((2, 4), 0.5), "thresholds 0.5"),
        ((4,), "exits at depths 4 "),
        (((4,), (), "entropy"), "criterion 'entropy' is unknown: choose from max-probability"),
    ],
)
def test_what_is_no_policy(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(StageCostError) as caught:
        sc.ExitPolicy(*arguments)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_a_policy_is_saved_beside_a_network_and_read_strictly(tmp_path: Path) -> None:
    policy = sc.ExitPolicy((2, 4), (0.75,), "margin", combine=True)
    policy.save(tmp_path)
    file = tmp_path / "exit_policy.json"
    assert [each.name for each in tmp_path.iterdir()] == [file.name]
    assert sc.ExitPolicy.load(tmp_path) == policy
    content = json.loads(file.read_text())
    damages = {"depths": [4, 2], "thresholds": ["a"], "criterion": "x", "combine": 1, "more": 0}
    for key, value in damages.items():
        file.write_text(json.dumps({**content, key: value}))
        with pytest.raises(StageCostError, match="exit"):
            sc.ExitPolicy.load(tmp_path)
    with pytest.raises(StageCostError, match="no exit policy"):
        sc.ExitPolicy.load(tmp_path / "elsewhere")


def test_a_policy_takes_numbers_of_numpy_and_torch(tmp_path: Path) -> None:
    policy = sc.ExitPolicy(np.array([1, 3, 4]), [torch.tensor(0.75), np.float32(0.5)])  # type: ignore[arg-type]
    assert policy == sc.ExitPolicy((1, 3, 4), (0.75, 0.5))
    policy.save(tmp_path)
    assert sc.ExitPolicy.load(tmp_path) == policy
    assert {policy: 1}[sc.ExitPolicy.load(tmp_path)] == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_those_of_the_one_counter(name: str) -> None:
    network = NETWORKS[name]
    costs, parts = mac_costs(network, (3, 16, 16)), macs_by_part(network, (3, 16, 16))
    assert costs.asking[-1] == parts[-1]
    for k in (0, network.num_blocks // 2, network.num_blocks):
        assert costs.cuts[k] == count_macs(network, (3, 16, 16), Cut.first(k))
        assert costs.cuts[k] - costs.asking[k] == sum(parts[: k + 1])


def test_a_part_in_training_mode_is_refused() -> None:
    network = build("homogeneous").eval()
    network.head.train()
    with pytest.raises(StageCostError, match="a part is in training mode"):
        sc.EarlyExit(network, sc.ExitPolicy((1, 3), (0.0,)))


def test_an_engine_refuses_a_network_that_went_back_to_training() -> None:
    """It answered by statistics of the batch, and moved those of the network."""
    network = build("homogeneous").eval()
    early = sc.EarlyExit(network, sc.ExitPolicy((2, 4), (0.5,)))
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train()
    with pytest.raises(StageCostError, match="a part is in training mode"):
        early(images())
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())
    network.eval()
    assert len(early(images()).labels) == 4


def test_images_leave_a_network_that_was_cut_in_evaluation_mode() -> None:
    small = build("homogeneous").eval().keep(Cut.first(3))
    early = sc.EarlyExit(small, sc.ExitPolicy((1, 3), (2.0,)))
    assert early(images()).depths.eq(3).all()


@pytest.mark.parametrize("combine", [False, True])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_short_numbers_are_those_of_single_precision(
    dtype: torch.dtype, criterion: Criterion, combine: bool
) -> None:
    torch.manual_seed(0)
    outputs = torch.randn(3, 40, 5).to(dtype)
    short, single = (sc.exits.policy.Votes(criterion, combine=combine) for _ in range(2))
    for output in outputs:
        for one, other in zip(short.add(output), single.add(output.float()), strict=True):
            assert torch.equal(one, other)
