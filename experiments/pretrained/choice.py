"""Which blocks stay in the cut that is a target: candidates, and their losses on validation images.

`SEARCHED` has the way of each model. All are done before any training, with a seed of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, combinations, product
from typing import TYPE_CHECKING

from experiments.records import Row
from stagecost.cut import Cut
from stagecost.data.batches import eval_batches
from stagecost.macs import count_macs
from stagecost.search import search_cuts
from stagecost.trajectory import Loader, Score, evaluate_cuts, terminal_score

if TYPE_CHECKING:
    from experiments.pretrained.case import Case

LARGEST_PART = 0.67
"""Of the whole network's MACs, that a cut may have."""
SEED_OF_CHOICE, HELD_OUT, SEARCH_IMAGES = 10, 1 / 3, 256
"""Cut and recipe are chosen on validation images of this seed, of which more are held out."""
RECORDED = 20
"""So many of the best are recorded where all ways are tried."""

Scores = list[tuple[Score, float]]
"""Candidates, with their part of the whole network's MACs."""


def candidates(case: "Case") -> Scores:
    """Return the candidates of a case that holds out the images of the choice."""
    network, shape = case.network(case.fitted(SEED_OF_CHOICE)), case.bundle(SEED_OF_CHOICE).format.shape
    whole, scores = count_macs(network, shape), SEARCHED.get(case.model, searched)(case)
    return [(score, count_macs(network, shape, score.cut) / whole) for score in scores]


def best(tried: Sequence[Row]) -> Cut:
    """Return the one of least loss among those that have few enough MACs."""
    few = (row for row in tried if row["macs"] <= LARGEST_PART)
    return Cut(tuple(min(few, key=lambda row: float(row["loss"]))["blocks"]))


def searched(case: "Case") -> list[Score]:
    """Return the best cut found of each size, by the loss with the whole network's head."""
    return search_cuts(case.network(case.fitted(SEED_OF_CHOICE)), _validation(case, SEARCH_IMAGES))


def stretches(case: "Case") -> list[Score]:
    """Return the cuts without a third of the blocks in a row, each by the loss with a head of its own.

    Without so many blocks a transformer's outputs mean nothing to the whole network's head.
    """
    num_blocks = case.network(case.fitted(SEED_OF_CHOICE)).num_blocks
    gone, scores = -(-num_blocks // 3), []
    for first in range(num_blocks - gone + 1):
        cut = Cut(tuple(k for k in range(num_blocks) if not first <= k < first + gone))
        fitted = case.network(case.fitted(SEED_OF_CHOICE, cut))
        scores.append(replace(terminal_score(fitted, _validation(case)), cut=cut))
    return scores


def two_thirds(case: "Case") -> list[Score]:
    """Return the cuts to any two thirds of each stage's blocks; a ResNet-20 is what a 32 leaves."""
    network = case.network(case.fitted(SEED_OF_CHOICE))
    stages = [combinations(blocks, 2 * len(blocks) // 3) for blocks in network.stages]
    cuts = (Cut(tuple(chain(*kept))) for kept in product(*stages))
    possible = [cut for cut in cuts if network.can_keep(cut)]
    scores = evaluate_cuts(network, _validation(case, SEARCH_IMAGES), possible)
    return sorted(scores, key=lambda score: score.rank)[:RECORDED]


def first_two_thirds(case: "Case") -> list[Score]:
    """Return the cut to the first two thirds of each stage's blocks, where there are too many others."""
    network = case.network(case.fitted(SEED_OF_CHOICE))
    cut = Cut(tuple(k for blocks in network.stages for k in blocks[: 2 * len(blocks) // 3]))
    return evaluate_cuts(network, _validation(case, SEARCH_IMAGES), [cut])


SEARCHED: dict[str, Callable[["Case"], list[Score]]] = {
    "vit": stretches,
    **dict.fromkeys(("resnet20", "resnet32"), two_thirds),
    **dict.fromkeys(("resnet44", "resnet56"), first_two_thirds),
}


def _validation(case: "Case", images: int | None = None) -> Loader:
    bundle = case.bundle(SEED_OF_CHOICE)
    split = bundle.splits["val"] if images is None else bundle.splits["val"].first(images)
    return eval_batches(split, bundle.format, batch_size=64)
