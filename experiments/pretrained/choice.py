"""Which blocks stay in the cut that is a target: candidates, and their losses on validation images.

`SEARCHED` has the way of each model. All are done before any training, with a seed of its own.
"""

from collections.abc import Callable, Sequence
from itertools import chain, combinations, product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.records import Row
from stagecost.cut import Cut
from stagecost.data.batches import eval_batches
from stagecost.macs import count_macs
from stagecost.network import ResidualNetwork
from stagecost.probes import fit_linear
from stagecost.search import search_cuts
from stagecost.trajectory import (
    Loader,
    Score,
    count_correct,
    device_of,
    evaluate_cuts,
    evaluation_mode,
)

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


def two_thirds(case: "Case") -> list[Score]:
    """Return the best cuts to any two thirds of each stage's blocks; a ResNet-20 is what a 32 leaves."""
    network = case.network(case.fitted(SEED_OF_CHOICE))
    scores = evaluate_cuts(network, _validation(case, SEARCH_IMAGES), _ways(network))
    return sorted(scores, key=lambda score: score.rank)[:RECORDED]


def two_thirds_with_heads(case: "Case") -> list[Score]:
    """Return the best cuts to any two thirds of the blocks, each by the loss with a head of its own.

    Without so many blocks a transformer's outputs mean nothing to the whole network's head.
    """
    network, bundle = case.network(case.fitted(SEED_OF_CHOICE)), case.bundle(SEED_OF_CHOICE)
    cuts = _ways(network)
    seen, labels = _features(network, eval_batches(bundle.splits["train"], bundle.format), cuts)
    unseen, truth = _features(network, _validation(case), cuts)
    scores = list[Score]()
    for cut, given, others in zip(cuts, seen, unseen, strict=True):
        outputs = fit_linear(given, labels, bundle.num_classes)(others)
        right = 100 * float(count_correct(outputs[None], truth)) / len(truth)
        scores.append(Score(cut, float(F.cross_entropy(outputs, truth)), right, len(truth)))
    return sorted(scores, key=lambda score: score.rank)[:RECORDED]


def _features(network: ResidualNetwork, batches: Loader, cuts: list[Cut]) -> tuple[Tensor, Tensor]:
    """Return what the classifier is given in each cut, (cuts, n, F), and the classes, (n,)."""
    (classifier,) = (m for m in network.head.modules() if isinstance(m, nn.Linear))
    handle = classifier.register_forward_hook(lambda _, given, output: given[0])
    features, classes = list[Tensor](), list[Tensor]()
    try:
        with evaluation_mode(network):
            for images, labels in batches:
                features.append(network(images.to(device_of(network)), cuts).cpu())
                classes.append(labels.cpu())
    finally:
        handle.remove()
    return torch.cat(features, dim=1), torch.cat(classes)


def _ways(network: ResidualNetwork) -> list[Cut]:
    """Return the cuts to any two thirds of each stage's blocks that can be made."""
    stages = [combinations(blocks, 2 * len(blocks) // 3) for blocks in network.stages]
    cuts = (Cut(tuple(chain(*kept))) for kept in product(*stages))
    return [cut for cut in cuts if network.can_keep(cut)]


def first_two_thirds(case: "Case") -> list[Score]:
    """Return the cut to the first two thirds of each stage's blocks, where there are too many others."""
    network = case.network(case.fitted(SEED_OF_CHOICE))
    cut = Cut(tuple(k for blocks in network.stages for k in blocks[: 2 * len(blocks) // 3]))
    return evaluate_cuts(network, _validation(case, SEARCH_IMAGES), [cut])


SEARCHED: dict[str, Callable[["Case"], list[Score]]] = {
    "vit": two_thirds_with_heads,
    **dict.fromkeys(("resnet20", "resnet32"), two_thirds),
    **dict.fromkeys(("resnet44", "resnet56"), first_two_thirds),
}


def _validation(case: "Case", images: int | None = None) -> Loader:
    bundle = case.bundle(SEED_OF_CHOICE)
    split = bundle.splits["val"] if images is None else bundle.splits["val"].first(images)
    return eval_batches(split, bundle.format, batch_size=64)
