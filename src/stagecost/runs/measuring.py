"""`stagecost measure`: time, memory and sizes of networks, measured in turns in one run."""

import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.exits.policy import ExitPolicy
from stagecost.export.graphs import EXAMPLE, Run, open_graph, segments_of, trace, write
from stagecost.latency import (
    Forward,
    Inputs,
    Latency,
    Machine,
    measure_latency,
    peak_memory,
    this_machine,
)
from stagecost.macs import count_macs, count_parameters
from stagecost.network import ResidualNetwork
from stagecost.records import read_record
from stagecost.runs.folder import RunFolder, keep_for_report, not_kept
from stagecost.runs.results import Result
from stagecost.runs.trained import CheckpointName, Trained, open_trained
from stagecost.storage import held, read_json
from stagecost.text import counted
from stagecost.train.devices import check_compiler

Backend = Literal["eager", "compiled", "onnx"]
LOG = logging.getLogger("stagecost")


@dataclass(frozen=True)
class NetworkSize:
    """What a network is made of."""

    network: str  #: the path that was given
    num_blocks: int  #: that it has
    parameters: int  #: trainable numbers
    macs: int  #: multiply-accumulate operations for one image
    file_bytes: int  #: of its weights


@dataclass(frozen=True)
class Timing(Latency):
    """How long a network, or its output at a depth, took for a batch, by one way of computing."""

    aliases: ClassVar[Mapping[str, str]] = {"batch": "batch_size"}

    network: str  #: the path that was given
    depth: int  #: k: how many of the network's blocks acted
    backend: str  #: eager, compiled by torch, or ONNX Runtime on the CPU
    #: that tensors of a call take at most beside weights and images; of the whole network, eager, alone
    memory_bytes: int | None

    @property
    def latency_ms(self) -> float:
        """Median time of an image, in milliseconds."""
        return self.p50_ms / self.batch_size


@dataclass(frozen=True)
class Measurements(Result):
    """What was measured, in turns."""

    device: str  #: on which
    machine: Machine  #: where, and by what
    networks: tuple[NetworkSize, ...]  #: their sizes
    timings: tuple[Timing, ...]  #: of each network, backend and batch size; of each depth if asked for

    def check(self, trained: Trained) -> None:
        """Refuse what no clock shows; of another network there are no times of depths.

        Raises:
            ValueError: a batch of no images, or one that took no time.
        """
        if not all(row.batch_size > 0 and 0 < row.p50_ms < math.inf for row in self.timings):
            raise ValueError("a batch has no images, or took no time")

    def of_depths(self, trained: Trained) -> tuple[Timing, ...]:
        """Return the timings of depths 0 … N of a network, of the smallest batch.

        Of several numbers of threads the one measured last counts. There are none if a depth lacks, or
        if what was measured is not this network.
        """
        size = _size("", trained)
        if _unnamed(self) != [size]:
            return ()
        kinds = dict.fromkeys((row.batch_size, row.threads) for row in self.timings)
        for kind in sorted(kinds, key=lambda kind: kind[0]):
            rows = {
                row.depth: row
                for row in self.timings
                if row.backend == "eager" and (row.batch_size, row.threads) == kind
            }
            if rows.keys() == set(range(size.num_blocks + 1)):
                return tuple(rows[k] for k in range(size.num_blocks + 1))
        return ()


def measure(
    networks: Sequence[str | Path],
    *,
    batch: Sequence[int] = (1, 32),
    threads: int = 1,
    backends: Sequence[str] = ("eager",),
    seconds: float = 1.0,
    depths: bool = False,
    checkpoint: CheckpointName = "last",
    device: str = "auto",
) -> Measurements:
    """Measure networks in turns, so that whatever else the machine does meets all of them.

    What is found of each is kept in its folder, for `stagecost report`.

    Args:
        networks: of runs or saved networks; each once.
        batch: numbers of images in a call.
        threads: that compute.
        backends: eager, compiled, onnx.
        seconds: for each network, backend and batch size.
        depths: measure the output at every depth, too.
        device: where to compute; ONNX Runtime does on the CPU.

    Raises:
        StageCostError: nothing trained is there, an unknown backend, or no batch.
    """
    unknown = [name for name in backends if name not in get_args(Backend)]
    if unknown or not backends:
        raise StageCostError(f"--backends names {unknown or 'none'}: give some of eager, compiled, onnx")
    if not batch or min(batch) < 1:
        raise StageCostError(f"--batch is {list(batch)}: give numbers of images of at least 1")
    if len({*map(os.path.realpath, networks)}) < len(networks):
        raise StageCostError("a network is given twice: give each once")
    opened = {str(path): open_trained(path, checkpoint=checkpoint, device=device) for path in networks}
    place = next(iter(opened.values())).device
    if "onnx" in backends and place.type != "cpu":
        raise StageCostError("onnx is measured on the CPU: give --device cpu, or leave it out")
    return measure_opened(opened, batch, threads, backends, seconds, depths=depths)


def measure_opened(
    opened: Mapping[str, Trained],
    batch: Sequence[int],
    threads: int,
    backends: Sequence[str],
    seconds: float,
    *,
    depths: bool,
) -> Measurements:
    """Measure opened networks, by their paths, all on one device; see `measure`."""
    timings = []
    forwards = {
        (path, backend, trained.network.num_blocks): _forward(trained, backend, threads)
        for path, trained in opened.items()
        for backend in backends
    }
    for path, trained in opened.items() if depths else ():
        every = range(trained.network.num_blocks + ("eager" not in backends))
        forwards |= {(path, "eager", k): _at_depth(trained.network, Cut.first(k)) for k in every}
    for size in dict.fromkeys(batch):
        # How long images take does not depend on what is on them; each network gets some of its shape.
        images = {key: _images(opened[key[0]], size) for key in forwards}
        calls = {str(key): partial(_call, forwards[key], images[key]) for key in forwards}
        LOG.info("measuring %s at batch size %d", counted(len(calls), "forward pass"), size)
        first = next(iter(images.values()))
        with _compiling(len(opened)) if "compiled" in backends else nullcontext():
            measured = measure_latency(calls, first, threads=threads, seconds=seconds)
        for key, latency in zip(forwards, measured.values(), strict=True):
            path, backend, depth = key
            alone = backend == "eager" and depth == opened[path].network.num_blocks
            memory = peak_memory(forwards[key], images[key]) if alone else None
            named = {"network": path, "depth": depth, "backend": backend}
            timings.append(Timing(**{**vars(latency), **named, "memory_bytes": memory}))
    sizes = tuple(_size(path, trained) for path, trained in opened.items())
    place = str(next(iter(opened.values())).device)
    result = Measurements(place, this_machine(), sizes, tuple(timings))
    for path in opened:
        with held(Path(path), wait=True):  # another process may measure it, too
            _keep(result, path)
    return result


@contextmanager
def _compiling(count: int) -> Iterator[None]:
    """Let torch compile so many networks anew: beyond eight sizes and networks it would do no more."""
    from torch._dynamo import config

    torch.compiler.reset()
    with config.patch(recompile_limit=max(count, config.recompile_limit)):
        yield


def _at_depth(network: ResidualNetwork, cut: Cut) -> Forward:
    """Return what computes the output of a cut; one with norms of its own is timed as it is shipped."""
    if network.resolve(cut) in network.targets:
        return network.keep(cut)
    return partial(network, cuts=cut)


def _keep(result: Measurements, path: str) -> None:
    """Write what is of one network into its folder, beside older timings of other kinds.

    Depths are compared with one another, so what was not measured with them replaces none of theirs.
    """
    found = replace(result, networks=tuple(size for size in result.networks if size.network == path))
    timings = [row for row in result.timings if row.network == path]
    file = RunFolder(Path(path)).latency
    try:
        old = read_record(Measurements, read_json(file))
    except ValueError:  # none, or of an earlier version
        old = result
    except OSError as error:
        not_kept(file, error)
        return
    same = (old.machine, old.device, _unnamed(old)) == (result.machine, result.device, _unnamed(found))
    if same:  # though its folder may be spelt otherwise
        together = _of_depths(old.timings) - _of_depths(timings)
        timings = [row for row in timings if _kind(row)[1:] not in together]
        new = set(map(_kind, timings))
        timings += [replace(row, network=path) for row in old.timings if _kind(row) not in new]
    keep_for_report(file, replace(found, timings=tuple(timings)))


def _unnamed(measured: Measurements) -> list[NetworkSize]:
    return [replace(network, network="") for network in measured.networks]


def _kind(row: Timing) -> tuple[object, ...]:
    return row.depth, row.backend, row.batch_size, row.threads


def _of_depths(timings: Sequence[Timing]) -> set[tuple[object, ...]]:
    """Return the kinds, but for the depth, of which several depths were timed."""
    kinds = [kind[1:] for kind in {*map(_kind, timings)}]
    return {kind for kind in kinds if kinds.count(kind) > 1}


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
        check_compiler(trained.device.type, "compiled of --backends")
        compiled: Forward = torch.compile(network, dynamic=False)
        return compiled
    (segment,) = segments_of(network, ExitPolicy((network.num_blocks,)))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        write(trace(segment, (_images(trained, EXAMPLE),)), path, {})
        return called(open_graph(path, threads))


def called(run: Run) -> Forward:
    """Return a graph as `measure_latency` calls it."""
    return lambda images: run(images if isinstance(images, tuple) else (images,))
