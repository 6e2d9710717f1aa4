"""`stagecost predict`: classes and probabilities of images that nobody has labelled."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from stagecost.data.decoding import progress
from stagecost.prediction import BATCH, Prediction, image_files, predict
from stagecost.runs.results import Result
from stagecost.runs.trained import CheckpointName, open_trained
from stagecost.storage import check_replaceable, write_atomically


@dataclass(frozen=True)
class Predictions(Result):
    """What a network says of images."""

    aliases: ClassVar[Mapping[str, str]] = {"classes": "class_names"}

    predictions: tuple[Prediction, ...]  #: of each image, in order
    num_images: int  #: how many
    class_names: tuple[str, ...]  #: that the network tells apart
    warnings: tuple[str, ...]  #: which images were left out or cut off


def predict_files(
    network: str | Path,
    images: Sequence[str | Path],
    *,
    top_k: int = 3,
    csv_file: str | Path | None = None,
    skip_broken: bool = False,
    checkpoint: CheckpointName = "last",
    device: str = "auto",
) -> Predictions:
    """Classify image files.

    Args:
        network: of a run or a saved network.
        images: files, and folders of them.
        top_k: how many classes to tell of each.
        csv_file: gets a row an image, too.
        skip_broken: leave images out that cannot be decoded.

    Raises:
        StageCostError: nothing trained is there, no such images, or `csv_file` holds something else.
    """
    trained = open_trained(network, checkpoint=checkpoint, device=device)
    files = image_files(images)
    if csv_file is not None:
        check_replaceable(Path(csv_file), b"path,label,probability")
    with progress("classifying images", len(files), BATCH) as advance:
        predictions, doubts = predict(
            trained.network, files, top_k=top_k, skip_broken=skip_broken, advance=advance
        )
    if csv_file is not None:
        _write_csv(Path(csv_file), predictions)
    return Predictions(
        predictions=tuple(predictions),
        num_images=len(predictions),
        class_names=trained.image_format.class_names,
        warnings=tuple(doubts),
    )


def _write_csv(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write path, label and probability of each image, and the same of its further classes."""
    text = io.StringIO()
    writer = csv.writer(text)
    further = range(2, len(predictions[0].top) + 1)
    names = [f"{word}_{k}" for k in further for word in ("label", "probability")]
    writer.writerow(["path", "label", "probability", *names])
    for one in predictions:
        numbers = [value for each in one.top for value in (each.label, each.probability)]
        writer.writerow([one.path, *numbers])
    write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))
