"""Which blocks stay in the cut that is a target: candidates, and their losses on validation images.

`SEARCHED` has the way of each model. All are done before any training, with a seed of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from experiments.records import Row
from stagecost.cut import Cut
from stagecost.data.batches import eval_batches
from stagecost.macs import count_macs
from stagecost.search import search_cuts
from stagecost.text import format_indices
from stagecost.trajectory import Loader, Score, evaluate_cuts, terminal_score

if TYPE_CHECKING:
    from experiments.pretrained.case import Case

LARGEST_PART = 0.67
"""Of the whole network's MACs, that a cut may have."""
SEED_OF_CHOICE, HELD_OUT, SEARCH_IMAGES = 10, 1 / 3, 256
"""Cut and recipe are chosen on validation images of this seed, of which more are held out."""

HALVED = frozenset({"trashnet-112-vit"})
"""Where attention and MLP of a transformer's block are two blocks, so that cuts are finer."""

Scores = list[tuple[Score, float]]
"""Candidates, with their part of the whole network's MACs."""


def candidates(case: "Case") -> Scores:
    """Return the candidates of a case that holds out the images of the choice."""
    network, shape = case.network(case.fitted(SEED_OF_CHOICE)), case.bundle(SEED_OF_CHOICE).format.shape
    search = halves if case.context.dataset in HALVED else SEARCHED.get(case.model, searched)
    whole, scores = count_macs(network, shape), search(case)
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
    gone = -(-num_blocks // 3)
    return [_without(case, num_blocks, removed) for removed in _in_a_row(range(num_blocks), gone)]


def halves(case: "Case") -> list[Score]:
    """Return cuts without some MLPs in a row, and beside the best such row some attentions in a row.

    Of twelve blocks, six MLPs and one attention, four of both, or three MLPs and six attentions are a
    third of the MACs.
    """
    num_blocks = case.network(case.fitted(SEED_OF_CHOICE)).num_blocks
    attentions, mlps = range(0, num_blocks, 2), range(1, num_blocks, 2)
    scores: list[Score] = []
    for parts_of_mlps, parts_of_attentions in ((1 / 2, 1 / 12), (1 / 3, 1 / 3), (1 / 4, 1 / 2)):
        rows = list(_in_a_row(mlps, round(parts_of_mlps * len(mlps))))
        alone = [_without(case, num_blocks, row) for row in rows]
        _, best_row = min(zip(alone, rows, strict=True), key=lambda pair: pair[0].rank)
        beside = _in_a_row(attentions, max(1, round(parts_of_attentions * len(attentions))))
        scores += alone + [_without(case, num_blocks, [*best_row, *row]) for row in beside]
    return scores


def _in_a_row(blocks: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    """Return every run of so many neighbours."""
    return (blocks[first : first + count] for first in range(len(blocks) - count + 1))


def _without(case: "Case", num_blocks: int, removed: Sequence[int]) -> Score:
    """Score the network without some blocks, with a head of its own."""
    cut = Cut(tuple(k for k in range(num_blocks) if k not in removed))
    case.context.report(f"{case.context.dataset}: without {format_indices(removed)}")
    network = case.with_head(SEED_OF_CHOICE, cut)
    return replace(terminal_score(network, _validation(case)), cut=cut)


def two_thirds(case: "Case") -> list[Score]:
    """Return the cut to two thirds of each stage's blocks at most; a ResNet-20 is what a 32 leaves."""
    network = case.network(case.fitted(SEED_OF_CHOICE))
    cut = network.resolve(Cut.stages(*(2 * count // 3 for count in network.blocks_per_stage)))
    return evaluate_cuts(network, _validation(case, SEARCH_IMAGES), [cut])


SEARCHED: dict[str, Callable[["Case"], list[Score]]] = {
    "vit": stretches,
    **dict.fromkeys(("resnet20", "resnet32", "resnet44", "resnet56"), two_thirds),
}


def _validation(case: "Case", images: int | None = None) -> Loader:
    bundle = case.bundle(SEED_OF_CHOICE)
    split = bundle.splits["val"] if images is None else bundle.splits["val"].first(images)
    return eval_batches(split, bundle.format, batch_size=64)
