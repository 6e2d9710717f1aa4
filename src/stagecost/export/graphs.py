"""Graphs of a network: traced by torch.export with any batch size, written for ONNX Runtime or torch."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from stagecost.dynamics import ResidualBlock, Rollout, SkipChain
from stagecost.network import ResidualNetwork

Format = Literal["onnx", "pt2"]
State = tuple[Tensor, ...]
Run = Callable[[State], State]
"""Runs a graph: from the tensors of x_k, or images, to those of x_stop and y_stop."""

EXAMPLE = 2  # images that a graph is traced with: one alone would be taken for a constant
EXTERNAL_FROM = 2**30  # bytes of weights, from which ONNX keeps them in a file beside the graph


class Segment(nn.Module):
    """A stretch of a network: from the images, or from x_k, to x_stop and y_stop."""

    def __init__(self, network: ResidualNetwork, k: int, stop: int, *, begins: bool) -> None:
        """Take a network in eval mode; branches that do not act here leave its copy, where they can."""
        super().__init__()
        # In the plain order of memory: files of torch do not hold another one.
        twin = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        for position, block in enumerate(twin.blocks.values()):
            if not k <= position < stop and isinstance(block, ResidualBlock):
                block.residual = nn.Identity()
        self.network, self.k, self.stop, self.begins = twin, k, stop, begins

    def forward(self, *tensors: Tensor) -> State:
        """Map images or the tensors of x_k to the tensors of x_stop, if blocks are left, and y_stop."""
        blocks = list(self.network.blocks.values())
        rollout = Rollout(blocks, self.network.head, SkipChain(blocks))
        given: Any = tensors[0] if len(tensors) == 1 else tensors
        state = rollout.advance(self.network.stem(given) if self.begins else given, self.k, self.stop)
        output = rollout.read(state, self.stop)
        if self.stop == len(blocks):
            return (output,)
        return (*state, output) if isinstance(state, tuple) else (state, output)


def segments_of(network: ResidualNetwork, depths: Sequence[int]) -> list[Segment]:
    """Return the stretches of a network between the depths at which images may leave."""
    pairs = pairwise((0, *depths))
    return [Segment(network, k, stop, begins=not i).eval() for i, (k, stop) in enumerate(pairs)]


def trace(segment: Segment, example: State) -> ExportedProgram:
    """Trace a graph that takes batches of any size; what has no row for each image keeps its shape."""
    rows = len(example[0])
    shapes = tuple({0: Dim("batch")} if len(part) == rows else None for part in example)
    return torch.export.export(segment, example, dynamic_shapes=(shapes,))


def write(program: ExportedProgram, path: Path, spec: Mapping[str, Any]) -> None:
    """Write a graph in the format that the ending of the path says, and in it what describes it."""
    if path.suffix == ".pt2":
        torch.export.save(program, path, extra_files={"stagecost.json": json.dumps(spec)})
        return
    tensors = program.example_inputs[0]
    graph = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["images"] if len(tensors) == 1 else [f"state_{k}" for k in range(len(tensors))],
    )
    assert graph is not None
    graph.model.metadata_props.update({key: json.dumps(value) for key, value in spec.items()})
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    graph.save(path, external_data=size > EXTERNAL_FROM)


def open_graph(path: Path, threads: int | None = None) -> Run:
    """Open a graph that was written; ONNX Runtime computes with so many threads, or as it likes."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda state: module(*state)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(state: State) -> State:
        feed = {name: tensor.numpy() for name, tensor in zip(names, state, strict=True)}
        return tuple(map(torch.from_numpy, session.run(None, feed)))

    return run
