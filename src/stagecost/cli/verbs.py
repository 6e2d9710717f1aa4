"""The verbs: what each takes, and the function of `stagecost.runs` that does it.

Heavy imports happen when a verb runs, so that the command line can show its help at once.
"""

import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stagecost.cli.flags import Flag, setting_flags
from stagecost.cut import Cut
from stagecost.errors import StageCostError

if TYPE_CHECKING:
    from stagecost.runs.results import Result

Options = dict[str, Any]
"""The values of the flags that were given, by name; whoever does a verb takes them out."""
Split = Literal["val", "test", "train", "all"]

EXIT_CRITERIA = Literal["max-probability", "margin", "patience", "all"]

CHECKPOINT = Flag("checkpoint", Literal["last", "best"], "which checkpoint of a run", "last")
DEVICE = Flag("device", str, "auto, cpu, cuda or mps", "auto")
TOLERANCE = Flag("tolerance", float, "points of accuracy that may be missing to the full depth", 0.5)
ALLOWED = Flag("allow_trained", bool, "judge also on images that the network was trained on")
LIBRARIES = ("timm", "torchvision")
MOVED = Flag("data", str, "where the images of the training are now, if they moved")


def _place(name: str, text: str, *, several: bool = False) -> Flag:
    """Return an argument that is given by its place."""
    return Flag(name, str, text, positional=True, required=True, several=several)


@dataclass(frozen=True)
class Verb:
    """One verb of the command line."""

    summary: str  #: what it does, in a sentence
    flags: tuple[Flag, ...]  #: what it takes
    run: "Callable[[Options], Result]"  #: does it


def _calls(function: str, *places: str) -> "Callable[[Options], Result]":
    """Return what calls a function of `stagecost.runs`, with the options at `places` first."""
    module, _, name = function.rpartition(".")

    def run(options: Options) -> "Result":
        first = [options.pop(place) for place in places]
        result: Result = getattr(import_module(f"stagecost.runs.{module}"), name)(*first, **options)
        return result

    return run


def _train(options: Options) -> "Result":
    from stagecost.runs.folder import read_yaml
    from stagecost.runs.training import train

    output, resume = options.pop("output"), options.pop("resume", False)
    config = options.pop("config", None)
    settings = {} if config is None else read_yaml(Path(config))
    return train({**settings, **options}, output, resume=resume)


def _analyze(options: Options) -> "Result":
    from stagecost.runs.analysis import analyze
    from stagecost.runs.inspection import inspect_model

    run = options.pop("run")
    is_run = "weights" not in options and (run.partition("/")[0] not in LIBRARIES or Path(run).exists())
    heeded = options.keys() - {"image_size"} if is_run else {"weights", "data", "image_size", "device"}
    if unheeded := sorted(options.keys() - heeded):
        name, kinds = unheeded[0].replace("_", "-"), ("model", "run") if is_run else ("run", "model")
        raise StageCostError(f"--{name} is about a {kinds[0]}, and {run} is a {kinds[1]}: leave it out")
    return analyze(run, **options) if is_run else inspect_model(run, **options)


def _prune(options: Options) -> "Result":
    from stagecost.runs.pruning import prune

    names = [name for name in ("keep", "keep_blocks", "keep_per_stage") if name in options]
    if len(names) > 1:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in names[:2])
        raise StageCostError(f"{flags} exclude each other: give one of them")
    keep: Any = options.pop(names[0]) if names else None
    if names == ["keep_per_stage"]:
        keep = Cut.stages(*keep)
    return prune(options.pop("run"), options.pop("output"), keep=keep, **options)


def _predict(options: Options) -> "Result":
    from stagecost.runs.prediction import predict_files

    paths = options.pop("images")
    images = [line for path in paths for line in (_listed() if path == "-" else [path])]
    return predict_files(options.pop("network"), images, csv_file=options.pop("csv", None), **options)


def _listed() -> list[str]:
    """Read paths from standard input, one a line, whatever bytes are in them."""
    if sys.stdin is None:
        raise StageCostError("standard input is closed, and - reads paths from it: give them otherwise")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    lines = [line for line in sys.stdin.read().split("\n") if line.strip()]
    # Of Windows, where no name ends so; and Path.exists fails for names that are too long.
    paths = [line if os.path.exists(line) else line.removesuffix("\r") for line in lines]  # noqa: PTH110
    if not paths:
        raise StageCostError("standard input names no image: give paths, one a line")
    return paths


OFTEN = (
    *("data", "model", "num_blocks", "blocks_per_stage", "widths"),
    *("gamma", "targets", "epochs", "seed"),
)

VERBS: dict[str, Verb] = {
    "demo": Verb(
        "Show the whole way on scikit-learn's digits in a few minutes; no network is needed.",
        (
            Flag("output", str, "folder for everything that the demo writes", "stagecost-demo"),
            Flag("seed", int, "of the trainings", 0),
        ),
        _calls("demo.demo"),
    ),
    "train": Verb(
        "Train a residual network with a stage cost on images.",
        (
            Flag("output", str, "folder of the run", required=True),
            Flag("config", str, "YAML file of settings, by the names of the flags; flags win over it"),
            Flag("resume", bool, "go on with the run in the folder"),
            *setting_flags(OFTEN),
        ),
        _train,
    ),
    "analyze": Verb(
        "Show loss and accuracy over depth, and how many blocks are needed.",
        (
            _place("run", "folder of a run or of a saved network; or a model"),
            Flag("split", Split, "the images; choose depths on val, never on test", "val"),
            Flag(
                "weights", str, "of a model, such as timm/resnet18: what each block is worth untrained"
            ),
            Flag("image_size", int, "of a model: side in pixels"),
            *(TOLERANCE, MOVED, ALLOWED, CHECKPOINT, DEVICE),
        ),
        _analyze,
    ),
    "prune": Verb(
        "Cut off the blocks that are not needed, and save the small network.",
        (
            _place("run", "folder of a run"),
            Flag("output", str, "folder of the small network", required=True),
            Flag("max_drop", float, "points of validation accuracy that may be lost"),
            Flag("max_loss_increase", float, "by how much the validation loss may rise"),
            Flag("search", bool, "look among cuts of any blocks, not only for the ends of stages"),
            Flag("keep", tuple[int, ...], "which blocks to keep, by their k, such as 0,1,4,5"),
            Flag("keep_blocks", int, "how many blocks to keep"),
            Flag("keep_per_stage", tuple[int, ...], "how many to keep in each stage, such as 3,2,4"),
            Flag("finetune_epochs", int, "epochs of training after the cut, at a tenth of the rate", 0),
            Flag("teacher", bool, "train after the cut with the whole network as teacher"),
            *(MOVED, ALLOWED, CHECKPOINT, DEVICE),
        ),
        _prune,
    ),
    "evaluate": Verb(
        "Measure the accuracy of a run's network or of a saved one.",
        (
            _place("network", "folder of a run or of a saved network"),
            Flag("data", str, "other images; those of the training if not given"),
            Flag("split", Split, "the images", "test"),
            *(ALLOWED, CHECKPOINT, DEVICE),
        ),
        _calls("evaluation.evaluate", "network"),
    ),
    "predict": Verb(
        "Classify images: class, probability and the nearest other classes of each.",
        (
            _place("network", "folder of a run or of a saved network"),
            _place(
                "images",
                "files, folders of them, or - for a list of paths on standard input, one a line",
                several=True,
            ),
            Flag("top_k", int, "how many classes to tell of each image", 3),
            Flag("csv", str, "file that gets a row an image, too"),
            Flag("skip_broken", bool, "leave images out that cannot be decoded"),
            *(CHECKPOINT, DEVICE),
        ),
        _predict,
    ),
    "exit": Verb(
        "Choose where easy images may leave the network, and measure what that saves.",
        (
            _place("run", "folder of a run or of a saved network"),
            Flag("max_drop", float, "points of validation accuracy that may be lost"),
            Flag("max_macs", float, "part of the whole network's MACs that may be spent, such as 0.5"),
            Flag("max_time", float, "part of the whole network's time that may be spent"),
            Flag("criterion", EXIT_CRITERIA, "how an image is found to be sure", "max-probability"),
            Flag("combine", bool, "let the depths asked answer together"),
            Flag("batch", tuple[int, ...], "batch sizes to measure", (1, 256)),
            *(MOVED, ALLOWED, CHECKPOINT, DEVICE),
        ),
        _calls("exiting.exit_early", "run"),
    ),
    "export": Verb(
        "Write a network as files that run without this project, and compare them with it.",
        (
            _place("network", "a run or a saved network"),
            Flag("format", Literal["onnx", "pt2"], "for ONNX Runtime, or for torch alone", "onnx"),
            Flag("segments", str, "a file for each exit: depths such as 4,8,12, or exits: those chosen"),
            Flag("threshold", float, "probability from which an image leaves at one of the segments"),
            Flag("int8", bool, "write a graph of eight bits, too, and measure its accuracy"),
            Flag("output", str, "a new folder; if not given, onnx or pt2 in the folder of the network"),
            *(MOVED, ALLOWED, CHECKPOINT),
        ),
        _calls("exporting.export", "network"),
    ),
    "measure": Verb(
        "Measure time, memory and sizes of networks, in turns.",
        (
            _place("networks", "runs or saved networks", several=True),
            Flag("batch", tuple[int, ...], "numbers of images in a call", (1, 32)),
            Flag("threads", int, "that compute", 1),
            Flag("backends", tuple[str, ...], "eager, compiled, onnx, or some of these", ("eager",)),
            Flag("seconds", float, "for each network, backend and batch size", 1.0),
            Flag("depths", bool, "measure the output at every depth, too, for the report"),
            *(CHECKPOINT, DEVICE),
        ),
        _calls("measuring.measure", "networks"),
    ),
    "bound": Verb(
        "Compare the objective of a run with the bound of Theorem 3.1 from shallower runs.",
        (
            _place("run", "the run of ResNet-N"),
            Flag(
                "sub",
                str,
                "runs of SubResNets of fewer blocks, trained alone by the same recipe",
                required=True,
                several=True,
            ),
            *(MOVED, CHECKPOINT, DEVICE),
        ),
        _calls("bound.bound", "run", "sub"),
    ),
    "report": Verb(
        "Write report.html into a run folder: figures, tables, and how to use the result.",
        (
            _place("run", "folder of a run"),
            *(TOLERANCE, MOVED, ALLOWED, CHECKPOINT, DEVICE),
        ),
        _calls("reporting.report", "run"),
    ),
    "compare": Verb(
        "Write one page on several runs: their curves beside each other, and what differs.",
        (
            _place("runs", "folders of runs", several=True),
            Flag("output", str, "the page", "comparison.html"),
            *(TOLERANCE, MOVED, ALLOWED, CHECKPOINT, DEVICE),
        ),
        _calls("reporting.compare", "runs"),
    ),
    "models": Verb(
        "List the networks that can be trained by name, or check views of foreign ones.",
        (
            Flag("pattern", str, "shell pattern, such as 'timm/*resnet*'", "*", positional=True),
            Flag("check", bool, "view each as blocks, with random weights, and test every cut of it"),
            Flag("output", str, "JSON file of the check; one that was stopped goes on there"),
            Flag("limit", int, "how many models are checked in all, families in turns"),
            Flag("max_parameters", float, "larger models are not checked", 9e7),
        ),
        _calls("models.models"),
    ),
}
