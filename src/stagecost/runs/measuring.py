"""`stagecost measure`: time, memory and sizes of networks, measured in turns in one run."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from stagecost.errors import StageCostError
from stagecost.exits.policy import ExitPolicy
from stagecost.export.graphs import Run, open_graph, segments_of, trace, write
from stagecost.fast.reading import check_compiler
from stagecost.latency import Forward, Inputs, measure_latency, peak_memory
from stagecost.macs import count_macs, count_parameters
from stagecost.runs.results import Result
from stagecost.runs.trained import CheckpointName, Trained, open_trained

Backend = Literal["eager", "compiled", "onnx"]


@dataclass(frozen=True)
class NetworkSize:
    """What a network is made of."""

    network: str  #: the path that was given
    num_blocks: int  #: that it has
    parameters: int  #: trainable numbers
    macs: int  #: multiply-accumulate operations for one image
    file_bytes: int  #: of its weights


@dataclass(frozen=True)
class Timing:
    """How long a network took for a batch, by one way of computing."""

    network: str  #: the path that was given
    backend: str  #: eager, compiled by torch, or ONNX Runtime on the CPU
    batch: int  #: images in a call
    threads: int  #: that computed
    p50_ms: float  #: median time of a call, in milliseconds
    p90_ms: float  #: nine of ten calls took no longer
    p99_ms: float  #: 99 of 100 calls took no longer
    images_per_second: float  #: over all calls
    calls: int  #: that were timed
    #: that tensors of a call take at most beside weights and images; of eager alone
    memory_bytes: int | None


@dataclass(frozen=True)
class Measurements(Result):
    """What was measured, in turns."""

    device: str  #: on which
    networks: tuple[NetworkSize, ...]  #: their sizes
    timings: tuple[Timing, ...]  #: of each network, backend and batch size


def measure(
    networks: Sequence[str | Path],
    *,
    batch: Sequence[int] = (1, 32),
    threads: int = 1,
    backends: Sequence[str] = ("eager",),
    seconds: float = 1.0,
    checkpoint: CheckpointName = "last",
    device: str = "auto",
) -> Measurements:
    """Measure networks in turns, so that whatever else the machine does meets all of them.

    Args:
        networks: of runs or saved networks; each once.
        batch: numbers of images in a call.
        threads: that compute.
        backends: eager, compiled, onnx.
        seconds: for each network, backend and batch size.
        device: where to compute; ONNX Runtime does on the CPU.

    Raises:
        StageCostError: nothing trained is there, an unknown backend, or no batch.
    """
    unknown = [name for name in backends if name not in get_args(Backend)]
    if unknown or not backends:
        raise StageCostError(f"--backends names {unknown or 'none'}: give some of eager, compiled, onnx")
    if not batch or min(batch) < 1:
        raise StageCostError(f"--batch is {list(batch)}: give numbers of images of at least 1")
    if len(set(map(str, networks))) < len(networks):
        raise StageCostError("a network is given twice: give each once")
    opened = {str(path): open_trained(path, checkpoint=checkpoint, device=device) for path in networks}
    place = next(iter(opened.values())).device
    if "onnx" in backends and place.type != "cpu":
        raise StageCostError("onnx is measured on the CPU: give --device cpu, or leave it out")
    timings = []
    forwards = {(p, b): _forward(opened[p], b, threads) for p in opened for b in backends}
    for size in batch:
        # How long images take does not depend on what is on them; each network gets some of its shape.
        images = {key: _images(opened[key[0]], size) for key in forwards}
        calls = {" ".join(key): partial(_call, forwards[key], images[key]) for key in forwards}
        measured = measure_latency(calls, next(iter(images.values())), threads=threads, seconds=seconds)
        for (path, backend), latency in zip(forwards, measured.values(), strict=True):
            eager, key = backend == "eager", (path, backend)
            memory = peak_memory(forwards[key], images[key]) if eager else None
            timings.append(Timing(path, backend, memory_bytes=memory, **asdict(latency)))
    sizes = tuple(_size(path, trained) for path, trained in opened.items())
    return Measurements(str(place), sizes, tuple(timings))


def _call(forward: Forward, images: Inputs, _: Inputs) -> object:
    return forward(images)


def _size(path: str, trained: Trained) -> NetworkSize:
    network = trained.network
    return NetworkSize(
        network=path,
        num_blocks=network.num_blocks,
        parameters=count_parameters(network),
        macs=count_macs(network, trained.image_shape),
        file_bytes=sum(tensor.nbytes for tensor in network.state_dict().values()),
    )


def _images(trained: Trained, count: int) -> Tensor:
    return torch.zeros(count, *trained.image_shape, device=trained.device)


def _forward(trained: Trained, backend: str, threads: int) -> Forward:
    network = trained.network
    if backend == "eager":
        return network
    if backend == "compiled":
        check_compiler(trained.device.type)
        compiled: Forward = torch.compile(network, dynamic=False)
        return compiled
    (segment,) = segments_of(network, ExitPolicy((network.num_blocks,)))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        write(trace(segment, (_images(trained, 2),)), path, {})
        return called(open_graph(path, threads))


def called(run: Run) -> Forward:
    """Return a graph as `measure_latency` calls it."""
    return lambda images: run(images if isinstance(images, tuple) else (images,))
