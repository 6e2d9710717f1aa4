"""`stagecost evaluate`: how a trained network does on images, as it is."""

from dataclasses import dataclass
from pathlib import Path

from stagecost.macs import count_macs, count_parameters
from stagecost.runs.certainty import Interval, wilson
from stagecost.runs.results import Result
from stagecost.runs.trained import CheckpointName, Split, Trained, open_trained
from stagecost.trajectory import terminal_score


@dataclass(frozen=True)
class Evaluation(Result):
    """How a network does."""

    accuracy: float  #: percent
    loss: float  #: that of its training
    num_blocks: int  #: that it has
    parameters: int  #: trainable numbers
    macs: int  #: multiply-accumulate operations for one image
    split: Split  #: the images
    num_images: int  #: how many
    interval: Interval | None  #: Wilson's, of the accuracy
    warnings: tuple[str, ...]  #: what has changed of the images since the training


def evaluate(
    path: str | Path,
    *,
    split: Split = "test",
    data: str | None = None,
    checkpoint: CheckpointName = "last",
    device: str = "auto",
    allow_trained: bool = False,
) -> Evaluation:
    """Measure the network of a run, or a saved one.

    Args:
        path: of a run or a saved network.
        split: train, val or test, or all of them together.
        data: other images, or where those of the training are now.
        allow_trained: measure it also on images that it was trained on.

    Raises:
        StageCostError: nothing trained is there, or no such images.
    """
    trained = open_trained(path, checkpoint=checkpoint, device=device)
    return evaluation_of(trained, split, data, allow_trained=allow_trained)


def evaluation_of(
    trained: Trained, split: Split = "test", data: str | None = None, *, allow_trained: bool = False
) -> Evaluation:
    """Measure an opened network."""
    images = trained.judged(split, data, allow_trained=allow_trained)
    score = terminal_score(trained.network, images.batches, loss=trained.loss)
    return Evaluation(
        accuracy=score.accuracy,
        loss=score.loss,
        num_blocks=trained.network.num_blocks,
        parameters=count_parameters(trained.network),
        macs=count_macs(trained.network, trained.image_shape),
        split=split,
        num_images=score.num_samples,
        interval=wilson(score.accuracy, score.num_samples),
        warnings=images.warnings,
    )
