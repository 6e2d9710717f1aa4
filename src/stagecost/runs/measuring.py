"""`stagecost measure`: time, memory and sizes of networks, measured in turns in one run."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from stagecost.errors import StageCostError
from stagecost.export.graphs import open_graph, segments_of, trace, write
from stagecost.fast.reading import check_compiler
from stagecost.latency import Forward, Inputs, measure_latency, peak_memory
from stagecost.macs import count_macs, count_parameters
from stagecost.runs.results import Result
from stagecost.runs.trained import CheckpointName, Trained, open_trained

Backend = Literal["eager", "compiled", "onnx"]


@dataclass(frozen=True)
class NetworkSize:
    """What a network is made of.

    Attributes:
        network: the path that was given.
        num_blocks: that it has.
        parameters: trainable numbers.
        macs: multiply-accumulate operations for one image.
        file_bytes: of its weights.
    """

    network: str
    num_blocks: int
    parameters: int
    macs: int
    file_bytes: int


@dataclass(frozen=True)
class Timing:
    """How long a network took for a batch, by one way of computing.

    Attributes:
        network: the path that was given.
        backend: eager, compiled by torch, or ONNX Runtime on the CPU.
        batch: images in a call.
        threads: that computed.
        p50_ms: median time of a call, in milliseconds.
        p90_ms: nine of ten calls took no longer.
        p99_ms: 99 of 100 calls took no longer.
        images_per_second: over all calls.
        calls: that were timed.
        memory_bytes: that tensors of a call take at most beside weights and images; of eager alone.
    """

    network: str
    backend: str
    batch: int
    threads: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    calls: int
    memory_bytes: int | None


@dataclass(frozen=True)
class Measurements(Result):
    """What was measured, in turns.

    Attributes:
        device: on which.
        networks: their sizes.
        timings: of each network, backend and batch size.
    """

    device: str
    networks: tuple[NetworkSize, ...]
    timings: tuple[Timing, ...]


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
        checkpoint: of runs.
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
    forwards = {
        (path, backend): _forward(trained, backend, threads)
        for path, trained in opened.items()
        for backend in backends
    }
    timings = [row for size in batch for row in _timings(opened, forwards, size, threads, seconds)]
    return Measurements(
        device=str(place),
        networks=tuple(_size(path, trained) for path, trained in opened.items()),
        timings=tuple(timings),
    )


def _size(path: str, trained: Trained) -> NetworkSize:
    network = trained.network
    return NetworkSize(
        network=path,
        num_blocks=network.num_blocks,
        parameters=count_parameters(network),
        macs=count_macs(network, trained.image_shape),
        file_bytes=sum(tensor.nbytes for tensor in network.state_dict().values()),
    )


def _forward(trained: Trained, backend: str, threads: int) -> Forward:
    network = trained.network
    if backend == "eager":
        return network
    if backend == "compiled":
        check_compiler(trained.device.type)
        compiled: Forward = torch.compile(network, dynamic=False)
        return compiled
    (segment,) = segments_of(network, [network.num_blocks])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        write(trace(segment, (_images(trained, 2),)), path, {})
        run = open_graph(path, threads)

    def forward(images: Inputs) -> object:
        return run(images if isinstance(images, tuple) else (images,))

    return forward


def _images(trained: Trained, count: int) -> Tensor:
    """Return images of a network's shape; how long they take does not depend on what is on them."""
    return torch.zeros(count, *trained.image_shape, device=trained.device)


def _timings(
    opened: dict[str, Trained],
    forwards: dict[tuple[str, str], Forward],
    size: int,
    threads: int,
    seconds: float,
) -> list[Timing]:
    """Time one batch size; each network gets images of its own shape."""
    images = {path: _images(trained, size) for path, trained in opened.items()}

    def on(path: str, forward: Forward) -> Forward:
        return lambda _: forward(images[path])

    names = {f"{path} {backend}": (path, backend) for path, backend in forwards}
    measured = measure_latency(
        {name: on(key[0], forwards[key]) for name, key in names.items()},
        next(iter(images.values())),
        threads=threads,
        seconds=seconds,
    )
    return [
        Timing(
            network=names[name][0],
            backend=names[name][1],
            memory_bytes=_memory(opened, names[name], images),
            **asdict(latency),
        )
        for name, latency in measured.items()
    ]


def _memory(opened: dict[str, Trained], key: tuple[str, str], images: dict[str, Tensor]) -> int | None:
    path, backend = key
    return peak_memory(opened[path].network, images[path]) if backend == "eager" else None
