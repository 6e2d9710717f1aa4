"""A folder that runs elsewhere: graphs, what describes them, and a runner; compared with the network."""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stagecost.data.images import normalise
from stagecost.errors import StageCostError, refusing
from stagecost.exits.engine import check_norms, parts_of_images
from stagecost.exits.policy import ExitPolicy
from stagecost.export.graphs import ANSWERS, EXAMPLE, Format, open_graph, segments_of, trace, write
from stagecost.export.int8 import INT8_FILE, quantise
from stagecost.network import ResidualNetwork, first_tensor
from stagecost.prediction import check_classes, image_format_of
from stagecost.storage import held, naming, write_json
from stagecost.trajectory import evaluation_mode

SPEC_FILE, RUNNER_FILES = "model.json", {"runner.py": "run.py", "pictures.py": "pictures.py"}
LARGEST_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the network."""

    files: tuple[str, ...]  #: the graphs, in order
    depths: tuple[int, ...]  #: of their answers
    largest_difference: float  #: of an output of theirs to the network's, on the images
    num_images: int  #: that they were compared on


def export_network(
    network: ResidualNetwork,
    folder: str | Path,
    images: Tensor,
    *,
    format: Format = "onnx",  # noqa: A002
    policy: ExitPolicy | None = None,
    calibration: Iterable[Tensor] | None = None,
) -> Exported:
    """Write a network as graphs that take any number of images; the folder is there whole or not at all.

    Args:
        network: native or adapted, on the CPU, with `image_format` in its details.
        folder: must not be there, or be empty.
        images: bytes (n, C, H, W), n ≥ 3, of the network's size, to compare both on.
        format: for ONNX Runtime, or for torch.
        policy: of early exit, which makes one graph for each of its depths; None is one graph.
        calibration: batches of training images as bytes, which make a further graph, of eight bits.

    Raises:
        ModuleNotFoundError: a package is missing that writes or runs ONNX.
        StageCostError: the folder holds something, the images are too few, the precision is not single,
            other classes are named than the network has, a depth is not the network's or has norms of
            its own, torch cannot export it, or the graphs and the network disagree.
    """
    if format not in ("onnx", "pt2"):
        raise StageCostError(f"format {format!r} is unknown: give onnx or pt2")
    if calibration is not None and (format != "onnx" or (policy and len(policy.depths) > 1)):
        raise StageCostError(
            "a graph of eight bits is one whole graph of ONNX: leave calibration out, or exits and "
            f"{format}"
        )
    if format == "onnx":
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    dtype = first_tensor(network).dtype
    if len(images) <= EXAMPLE or dtype != torch.float32:
        raise StageCostError(
            f"{len(images)} images for weights of {dtype}: give at least {EXAMPLE + 1}, and "
            "network.float()"
        )
    policy, image_format = policy or ExitPolicy((network.num_blocks,)), image_format_of(network)
    policy.check(network.num_blocks)
    check_norms(network, policy.depths)
    names = ["model"] if len(policy.depths) == 1 else [f"segment-{k}" for k in range(len(policy.depths))]
    files = [f"{name}.{format}" for name in names]
    with new_folder(Path(folder)) as target, evaluation_mode(network):
        # What a runner has to know: files, exits, how images are prepared, names of classes.
        spec = {"files": files, **policy.to_json(), **image_format.to_json()}
        state: tuple[Tensor, ...] = (normalise(images[:EXAMPLE], image_format).contiguous(),)
        check_classes(network(state[0]), image_format)
        handed = parts_of_images(network, network.rollout(), state[0], policy.depths[:-1])
        rows = [(True,), *handed.values()]
        for segment, file, of_images in zip(segments_of(network, policy), files, rows, strict=True):
            votes = (True,) * (len(state) - len(of_images))
            graph = trace(segment, state, (*of_images, *votes))
            write(graph, target / file, spec, first=file == files[0])
            state = segment(*state)[: -len(ANSWERS)]
        difference = compare(network, [target / file for file in files], policy.depths, images)
        write_json(target / SPEC_FILE, spec)
        if format == "onnx":
            for source, name in RUNNER_FILES.items():
                shutil.copyfile(Path(__file__).with_name(source), target / name)
        if calibration is not None:
            prepared = (normalise(batch, image_format) for batch in calibration)
            quantise(target / files[0], target / INT8_FILE, prepared)
    return Exported(tuple(files), policy.depths, difference, len(images))


def compare(
    network: ResidualNetwork, graphs: Sequence[Path], depths: Sequence[int], images: Tensor
) -> float:
    """Return the largest difference of an output of the graphs, for batches of several sizes.

    Raises:
        StageCostError: it is above 1e-4 of the largest output, if that is above 1, or no number.
    """
    runs, largest, scale = [open_graph(path) for path in graphs], 0.0, 1.0
    for batch in (images[:1], images[1:]):
        state: tuple[Tensor, ...] = (normalise(batch, image_format_of(network)),)
        outputs = network(state[0], depths=list(depths))
        for run, expected in zip(runs, outputs, strict=True):
            *following, logits, _, _, _ = run(state)
            state = tuple(following)
            largest = max(largest, float((logits - expected).abs().max().nan_to_num(torch.inf)))
            scale = max(scale, float(expected.abs().max()))
    if not largest <= LARGEST_DIFFERENCE * scale < torch.inf:
        raise StageCostError(
            f"the exported graphs differ by {largest:.2g} from the network, more than "
            f"{LARGEST_DIFFERENCE * scale:.2g}: nothing is written; try another --format"
        )
    return largest


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder, which takes its place when all is done and is deleted if that fails.

    What a process that was killed left of one goes.

    Raises:
        StageCostError: something is in its place, it is the folder where this runs, or its name is no
            UTF-8.
    """
    given, path = path, Path(os.path.realpath(path))  # which takes rings of links
    if path == Path.cwd():
        raise StageCostError(f"--output {given} is the current folder: give the name of a new one")
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise StageCostError(f"{path} holds something already: give another --output")
    with refusing(f"graphs in {path} cannot be opened", "give another --output", UnicodeEncodeError):
        str(path).encode()  # ONNX Runtime and torch take no other
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with held(leftover) as alone:
            if alone:
                shutil.rmtree(leftover, ignore_errors=True)
    with naming(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            with held(temporary):
                yield temporary
                temporary.chmod(0o755)
                temporary.replace(path)
        finally:
            with suppress(FileNotFoundError):
                shutil.rmtree(temporary)
