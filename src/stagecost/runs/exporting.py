"""`stagecost export`: files that run elsewhere, compared with the network on its own images."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stagecost.data.batches import sample_batches
from stagecost.data.images import ImageFormat, ImageSplit, normalise
from stagecost.data.loading import DataBundle
from stagecost.errors import StageCostError
from stagecost.exits.policy import POLICY_FILE, ExitPolicy
from stagecost.export.folder import export_network
from stagecost.export.graphs import Format, open_graph
from stagecost.export.int8 import INT8_FILE
from stagecost.latency import measure_latency
from stagecost.prediction import BATCH
from stagecost.runs.exiting import saved_exits
from stagecost.runs.lock import locked
from stagecost.runs.measuring import called
from stagecost.runs.results import Result
from stagecost.runs.trained import CheckpointName, Split, Trained, open_trained
from stagecost.train.parsing import read_value

COMPARED = 256  # images that graphs and network are compared on
LEAST = 3  # of them: graphs are traced with two
CALIBRATION = 512  # training images that show the ranges of activations
CERTAIN = 1.0
"""Probability at which an image leaves early if nothing else is known: few images are as sure."""


@dataclass(frozen=True)
class Int8:
    """The graph of eight bits beside that of 32."""

    file: str  #: its name
    file_bytes: int  #: its size
    accuracy: float  #: percent
    accuracy_float: float  #: of the graph of 32 bits, on the same images
    num_images: int  #: validation images, or those given
    p50_ms: float  #: median time of one image, in milliseconds
    p50_ms_float: float  #: of the graph of 32 bits, in turns with it


@dataclass(frozen=True)
class Export(Result):
    """What was exported."""

    output: str  #: the folder
    format: Format  #: of the graphs
    files: tuple[str, ...]  #: the graphs, in order
    file_bytes: int  #: their size together
    num_blocks: int  #: of the network
    depths: tuple[int, ...]  #: of the graphs' answers
    criterion: str  #: by which an image leaves early
    thresholds: tuple[float, ...]  #: at which it leaves, at each depth but the last
    largest_difference: float  #: of an output to the network's
    num_images: int  #: that they were compared on
    int8: Int8 | None  #: the graph of eight bits, if it was asked for
    warnings: tuple[str, ...]  #: what makes its accuracy doubtful


def export(
    network: str | Path,
    output: str | Path | None = None,
    *,
    format: Format = "onnx",  # noqa: A002
    segments: str | None = None,
    threshold: float | None = None,
    int8: bool = False,
    data: str | None = None,
    allow_trained: bool = False,
    checkpoint: CheckpointName = "last",
) -> Export:
    """Write a trained network as graphs that run without this project.

    Args:
        network: of a run or a saved network.
        output: a new folder; the format's name in the folder of the network if not given.
        format: onnx, or pt2 for torch.
        segments: depths at which images may leave, such as "4,8,12"; "exits" takes the policy that
            `stagecost exit` saved. One graph is made for each.
        threshold: probability from which an image leaves at one of `segments`.
        int8: write a graph of eight bits, too, and measure it.
        data: where the images of the training are now, if they moved, or others of its classes.
        allow_trained: measure also on images that the network was trained on.

    Raises:
        StageCostError: nothing trained is there, an impossible depth, or graphs that differ.
    """
    if int8 and (format != "onnx" or segments is not None):
        raise StageCostError("--int8 is for one graph of ONNX: leave --segments and --format out")
    trained = open_trained(network, checkpoint=checkpoint, device="cpu")
    target = trained.path / format if output is None else Path(output)
    policy = _policy(trained, segments, threshold)
    bundle, split, shown = _images(trained, data)
    if int8 and split == "train":
        raise StageCostError(
            f"{network} has no {LEAST} validation images, which tell what --int8 costs: give others by "
            "--data"
        )
    judged = bundle.splits[split]
    notes: tuple[str, ...] = ()
    if int8:  # of other images than the training's it is told how many were trained on
        other = data is not None
        notes = trained.notes_on(bundle, split, other=other, allow_trained=allow_trained)
    beside = target.resolve().parent == trained.path.resolve()
    # A run that goes on in its folder takes what is half written there for leftovers.
    with locked(trained.path, "is in use") if beside else nullcontext():
        exported = export_network(
            trained.network,
            target,
            judged.images[:COMPARED],
            format=format,
            policy=policy,
            calibration=_calibration(trained, bundle.splits[shown]) if int8 else None,
        )
    written = [path for file in exported.files for path in target.glob(f"{file}*")]  # weights beside
    return Export(
        output=str(target),
        format=format,
        files=exported.files,
        file_bytes=sum(path.stat().st_size for path in written),
        num_blocks=trained.network.num_blocks,
        depths=exported.depths,
        criterion=policy.criterion,
        thresholds=policy.thresholds,
        largest_difference=exported.largest_difference,
        num_images=exported.num_images,
        int8=_measured(target, exported.files[0], judged, trained.image_format) if int8 else None,
        warnings=notes,
    )


def _policy(trained: Trained, segments: str | None, threshold: float | None) -> ExitPolicy:
    """Return where images may leave: the depths given, and the thresholds given or saved for these."""
    num_blocks = trained.network.num_blocks
    if segments == "exits" and threshold is None:
        saved_exits(trained)
        return ExitPolicy.load(trained.path)
    if segments == "exits":
        raise StageCostError(
            f"--threshold {threshold} and --segments exits, which have thresholds: leave one of them out"
        )
    if threshold is not None and not (segments is not None and 0 < threshold <= 1):
        raise StageCostError(
            f"--threshold is {threshold}: give a probability above 0 and up to 1, beside --segments"
        )
    if segments == "":
        raise StageCostError("--segments is empty: give depths, such as 4,8, or leave it out")
    depths = read_value("--segments", tuple[int, ...], segments or ())
    wrong = [k for k in depths if not 0 <= k <= num_blocks]
    if wrong or list(depths) != sorted(set(depths)):
        raise StageCostError(
            f"--segments is {segments}: give ascending depths from 0 to {num_blocks}, such as "
            f"{num_blocks // 2},{num_blocks}"
        )
    every = (*depths, num_blocks) if num_blocks not in depths else depths
    if depths and threshold is None and (trained.path / POLICY_FILE).is_file():
        saved = ExitPolicy.load(trained.path)
        if saved.depths in (depths, every):
            saved_exits(trained)
            return saved
    return ExitPolicy(every, (CERTAIN if threshold is None else threshold,) * (len(every) - 1))


def _images(trained: Trained, data: str | None) -> tuple[DataBundle, Split, Split]:
    """Return images, the split of them to compare and measure on, and the one with training images.

    They are the validation images; the training images where there are fewer than three of these; or
    all of the data given.

    Raises:
        StageCostError: there are fewer than three.
    """
    shown: Split = "train" if data is None else "all"
    held_out = data is None and trained.has_validation()
    bundle = trained.load(*((shown, "val") if held_out else (shown,)), data=data)
    split: Split = "val" if held_out and len(bundle.splits["val"]) >= LEAST else shown
    if (count := len(bundle.splits[split])) < LEAST:
        raise StageCostError(f"{count} images are too few to compare graphs on: give {LEAST}")
    return bundle, split, shown


def _calibration(trained: Trained, training: ImageSplit) -> Iterator[Tensor]:
    """Yield batches of random training images, or of the data given, as bytes."""
    seed = trained.settings.training.seed
    batches = sample_batches(training, trained.image_format, count=CALIBRATION, seed=seed)
    return (training.images[rows] for rows in batches.rows)


def _measured(folder: Path, name: str, judged: ImageSplit, image_format: ImageFormat) -> Int8:
    """Measure the graph of eight bits beside that of 32."""
    files = {"int8": folder / INT8_FILE, "float": folder / name}
    graphs = {key: open_graph(path) for key, path in files.items()}
    right = dict.fromkeys(graphs, 0)
    for start in range(0, len(judged), BATCH):
        rows = slice(start, start + BATCH)
        for key, run in graphs.items():
            _, labels, _, _ = run((normalise(judged.images[rows], image_format),))
            right[key] += int((labels == judged.targets[rows]).sum())
    forwards = {key: called(run) for key, run in graphs.items()}
    times = measure_latency(forwards, normalise(judged.images[:1], image_format), seconds=0.5)
    return Int8(
        file=INT8_FILE,
        file_bytes=files["int8"].stat().st_size,
        accuracy=100 * right["int8"] / len(judged),
        accuracy_float=100 * right["float"] / len(judged),
        num_images=len(judged),
        p50_ms=times["int8"].p50_ms,
        p50_ms_float=times["float"].p50_ms,
    )
