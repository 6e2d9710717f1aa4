"""Graphs of a network: traced by torch.export with any batch size, written for ONNX Runtime or torch."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from stagecost.cut import Cut
from stagecost.dynamics import ResidualBlock, Rollout, SkipChain
from stagecost.errors import refusing
from stagecost.exits.policy import ExitPolicy, Votes
from stagecost.network import ResidualNetwork, copied
from stagecost.storage import write_atomically

Format = Literal["onnx", "pt2"]
State = tuple[Tensor, ...]
Run = Callable[[State], State]
"""Runs a graph: from images, or what the graph before it handed on, to what it hands on and answers."""
ANSWERS = ("logits", "label", "probability", "score")
"""The last outputs of a graph."""

EXAMPLE = 2  # images that a graph is traced with: one alone would be taken for a constant
EXTERNAL_FROM = 2**30  # bytes of weights, from which ONNX keeps them in a file beside the graph


class Segment(nn.Module):
    """A stretch of a network: from images, or from what the stretch before it hands on, to answers.

    Handed on are the tensors of x_stop, and what `stagecost.exits.policy.Votes` holds of earlier depths.
    All that an answer takes is in here: criterion, agreement, combined answers.
    """

    def __init__(self, network: ResidualNetwork, policy: ExitPolicy, place: int) -> None:
        """Take a network in eval mode; branches that do not act here leave its copy, where they can.

        Args:
            network: native or adapted.
            policy: where images leave.
            place: of the depth among the policy's at which the stretch ends.
        """
        super().__init__()
        self.k, self.stop = (0, *policy.depths)[place], policy.depths[place]
        # In the plain order of memory: files of torch do not hold another one.
        twin = copied(network).to(memory_format=torch.contiguous_format)
        twin.take_norms_of(Cut.whole())
        for position, block in enumerate(twin.blocks.values()):
            if not self.k <= position < self.stop and isinstance(block, ResidualBlock):
                block.residual = nn.Identity()
        self.network, self.policy, self.place = twin, policy, place
        of_patience = ("labels", "agreeing") if policy.criterion == "patience" else ()
        self.held = (*(("total",) if policy.combine else ()), *of_patience)

    def forward(self, *tensors: Tensor) -> State:
        """Map images (B, C, H, W), or what was handed on, to what is handed on and the answers.

        Returns:
            What goes on, unless no depth is left; logits (B, classes); labels, their probabilities, and
            how sure they are, (B,) each.
        """
        blocks, policy = list(self.network.blocks.values()), self.policy
        rollout = Rollout(blocks, self.network.head, SkipChain(blocks))
        votes = Votes(policy.criterion, combine=policy.combine)
        if self.place == 0:
            state: Any = self.network.stem(tensors[0])
        else:
            parts = tensors[: len(tensors) - len(self.held)]
            state = parts[0] if len(parts) == 1 else parts
            votes.asked = self.place
            for name, part in zip(self.held, tensors[len(parts) :], strict=True):
                setattr(votes, name, part)
        state = rollout.advance(state, self.k, self.stop)
        logits = rollout.read(state, self.stop)
        labels, scores = votes.add(logits)
        logs = (votes.total / votes.asked if policy.combine else logits).log_softmax(dim=1)
        answers = (logits, labels, logs.amax(dim=1).exp(), scores)
        if self.stop == policy.depths[-1]:
            return answers
        parts = state if isinstance(state, tuple) else (state,)
        return (*parts, *(getattr(votes, name) for name in self.held), *answers)


def segments_of(network: ResidualNetwork, policy: ExitPolicy) -> list[Segment]:
    """Return the stretches of a network between the depths at which images may leave."""
    return [Segment(network, policy, place).eval() for place in range(len(policy.depths))]


def trace(segment: Segment, example: State, of_images: Sequence[bool] = (True,)) -> ExportedProgram:
    """Trace a graph, with `EXAMPLE` images, that takes batches of any size.

    What has no row for each image, as `of_images` tells, keeps its shape.

    Raises:
        StageCostError: torch cannot.
    """
    shapes = tuple({0: Dim("batch")} if rows else None for rows in of_images)
    what = "torch.export makes no graph of the network for batches of any size"
    with refusing(what, "use the network by torch", Exception):
        return torch.export.export(segment, example, dynamic_shapes=(shapes,))


def write(program: ExportedProgram, path: Path, spec: Mapping[str, Any], *, first: bool = True) -> None:
    """Write a graph in the format that the ending of the path says, and in it what describes it.

    Raises:
        StageCostError: torch has no ONNX for a part of it.
    """
    if path.suffix == ".pt2":
        content = io.BytesIO()  # torch itself aborts the process where a disk is full
        torch.export.save(program, content, extra_files={"stagecost.json": json.dumps(spec)})
        write_atomically(path, content.getvalue())
        return
    tensors = program.example_inputs[0]
    handed = len(program.graph_signature.user_outputs) - len(ANSWERS)
    with refusing("torch cannot write the network as ONNX", "give --format pt2", RuntimeError):
        graph = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=["images"] if first else [f"state_{k}" for k in range(len(tensors))],
            output_names=[*(f"next_{k}" for k in range(handed)), *ANSWERS],
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
