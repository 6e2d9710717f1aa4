"""Which blocks go, whatever their place: a search over subsets by the loss on validation data.

The tails of stages are few of the 2^N cuts. Sequential floating search (Pudil 1994) goes backward:
it removes the block whose removal costs least, and looks back after each removal: where a block put back
gives a better cut of that size than the one known, it goes on from there.
"""

from collections.abc import Callable, Iterable

import torch.nn.functional as F

from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.losses import LossFunction
from stagecost.network import ResidualNetwork
from stagecost.trajectory import Loader, Score, evaluate_cuts


def search_cuts(
    network: ResidualNetwork,
    loader: Loader,
    *,
    loss: LossFunction = F.cross_entropy,
    least: int = 1,
    observe: Callable[[Score], None] = lambda score: None,
) -> list[Score]:
    """Search for the best cut of each number of blocks, by measured loss, in eval mode.

    About N²/2 cuts are measured, those of a step in one pass; a few hundred images do. The cuts are
    candidates for `plan_pruning`: `loss_trajectory(network, loader, cuts=[s.cut for s in scores])`.

    Args:
        network: is left in the mode it was in.
        loader: batches of (inputs, targets) of validation data; they are held in memory.
        loss: maps (output, target) to a mean loss or one loss a sample.
        least: number of blocks at which the search ends.
        observe: is told each best cut of one block fewer.

    Returns:
        The score of the best cut known of N, N-1, … blocks, down to `least` or to the fewest with which
        a network exists.

    Raises:
        StageCostError: the loader gives no batch, or `least` is impossible.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> loader = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 10)]
        >>> [len(score.cut.blocks) for score in sc.search_cuts(net, loader)]
        [4, 3, 2, 1]
    """
    if not 1 <= least <= network.num_blocks:
        raise StageCostError(f"least is {least}: give a number from 1 to {network.num_blocks}")
    batches = list(loader)

    def best(cuts: Iterable[Cut]) -> Score | None:
        possible = [cut for cut in cuts if network.can_keep(cut)]
        scores = evaluate_cuts(network, batches, possible, loss=loss) if possible else []
        return min(scores, key=lambda score: score.rank, default=None)

    current = best([Cut.whole()])
    assert current is not None
    known = {network.num_blocks: current}
    while len(current.cut.blocks) > least:
        fewer = best(_without_one(current.cut))
        if fewer is None:
            break
        current = _better(known, fewer)
        observe(current)
        while (more := best(_with_one_more(current.cut, network.num_blocks))) is not None:
            if more.rank >= known[len(more.cut.blocks)].rank:
                break
            current = _better(known, more)
    return [known[count] for count in sorted(known, reverse=True)]


def _better(known: dict[int, Score], score: Score) -> Score:
    """Note a score where it is the best of its number of blocks, and return the best of that number."""
    count = len(score.cut.blocks)
    if count not in known or score.rank < known[count].rank:
        known[count] = score
    return known[count]


def _without_one(cut: Cut) -> list[Cut]:
    return [Cut(tuple(b for b in cut.blocks if b != block)) for block in cut.blocks]


def _with_one_more(cut: Cut, num_blocks: int) -> list[Cut]:
    return [cut | Cut((block,)) for block in range(num_blocks) if not cut.acts(block)]
