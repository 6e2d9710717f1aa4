"""The search over subsets of blocks against all subsets."""

import math
from itertools import combinations, pairwise

import pytest
import torch

import stagecost as sc
from helpers import build, loader
from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.prune import Limits, choose
from stagecost.search import search_cuts
from stagecost.trajectory import Score, evaluate_cuts


@pytest.mark.parametrize("seed", range(3))
def test_each_step_is_the_best_removal_or_better(seed: int) -> None:
    network, batches = build("homogeneous", seed, num_blocks=4), loader()
    found = search_cuts(network, batches)
    assert [len(score.cut.blocks) for score in found] == [4, 3, 2, 1]
    subsets = [Cut(kept) for count in range(1, 5) for kept in combinations(range(4), count)]
    losses = {score.cut: score.loss for score in evaluate_cuts(network, batches, subsets)}
    assert all(score.loss == pytest.approx(losses[score.cut]) for score in found)
    best_three = min(loss for cut, loss in losses.items() if len(cut.blocks) == 3)
    assert found[1].loss == pytest.approx(best_three)
    for more, fewer in pairwise(found[1:]):
        removals = [
            loss
            for cut, loss in losses.items()
            if cut <= more.cut and len(cut.blocks) == len(fewer.cut.blocks)
        ]
        assert fewer.loss <= min(removals) + 1e-9


class Number(torch.nn.Module):
    """Gives a number, whatever the state."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.tensor([number]))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return torch.exp(state * 0) * self.number


class Sums(torch.nn.Module):
    """Each block adds a number of its own to the state."""

    def __init__(self, numbers: list[float]) -> None:
        super().__init__()
        self.numbers = torch.nn.ModuleList(map(Number, numbers))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        for number in self.numbers:
            state = state + number(state)
        return state


def squared_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output[:, 0] - target).square()


def test_looking_back_finds_what_removals_alone_do_not() -> None:
    # Removals alone reach 9 with three blocks: -2, 2 and -2 are found on the way back from two.
    view = sc.adapt(Sums([-2.0, 2.0, -2.0, -2.0, 5.0]), torch.zeros(1, 1))
    scores = search_cuts(view, [(torch.zeros(4, 1), torch.full((4,), -2.0))], loss=squared_error)
    assert [score.loss for score in scores] == pytest.approx([9, 1, 0, 4, 0], abs=1e-5)
    kept = {score.cut for score in scores}
    trajectory = sc.loss_trajectory(
        view, [(torch.zeros(4, 1), torch.full((4,), -2.0))], cuts=list(kept), loss=squared_error
    )
    plan = sc.plan_pruning(view, trajectory, max_loss_increase=0.0)
    assert len(plan.kept_blocks) == 1
    assert plan.loss_predicted == pytest.approx(0, abs=1e-5)


def test_projections_stay_and_impossible_ends_are_refused() -> None:
    network = build("staged")
    fewest = search_cuts(network, loader())[-1].cut
    assert network.can_keep(fewest)
    assert not any(network.can_keep(Cut(tuple(set(fewest.blocks) - {b}))) for b in fewest.blocks)
    with pytest.raises(StageCostError, match="least"):
        search_cuts(network, loader(), least=0)


def test_a_loss_that_is_no_number_is_the_worst() -> None:
    network = build("homogeneous")
    with torch.no_grad():
        network.blocks["0"].residual[-1].weight.fill_(torch.nan)
    scores = search_cuts(network, loader())
    assert [math.isnan(score.loss) for score in scores] == [True, False, False, False]
    limits = Limits(scores[0])
    assert choose([Score(Cut((0,)), math.nan, math.nan, 1), *scores[1:]], [0] * 6, limits) in scores
