"""A residual network as a dynamical system: states, skip connections, residual branches, head.

    x_0 = stem(images),   x_{k+1} = S_k(x_k) + F_k(x_k),   y_k = H(S_{N-1} ∘ … ∘ S_k (x_k))

Source: Püttschneider, Heilig, Fischer, Faulwasser, "Towards an Optimal Control Perspective of ResNet
Training", arXiv 2506.21453; the states are the trajectory, the weights of F_k the control.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stagecost.errors import StageCostError
from stagecost.forward_pass import ForwardPass
from stagecost.outputs import Depths, resolve_depths
from stagecost.stages import first_blocks
from stagecost.storage import write_json, write_tensors

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class NetworkDescription:
    """What rebuilds a network's structure: its builder, the builder's arguments, the blocks kept.

    `kept_blocks` are the paper's indices k of the blocks that are still there; None means all.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    kept_blocks: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        kept = None if self.kept_blocks is None else list(self.kept_blocks)
        return {"name": self.name, "arguments": dict(self.arguments), "kept_blocks": kept}


class ResidualNetwork(nn.Module):
    """ResNet-N: a stem, N residual blocks and a head, with every output y_0 … y_N at hand.

    The keys of the state dict are a contract: `stem.*`, `blocks.{k}.residual.*`, `blocks.{k}.skip.*`,
    `head.*`, where k is the paper's index. Removing blocks leaves a subset of the keys; a block keeps
    its k for life.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Mapping[int, nn.Module] | Sequence[nn.Module],
        head: nn.Module,
        description: NetworkDescription | None = None,
    ) -> None:
        """Put a network together.

        Args:
            stem: maps images (B, C, H, W) to x_0.
            blocks: the residual blocks, in order; a mapping names each by the paper's index k.
            head: called as `head(state, depth)`; see `stagecost.head.OutputHead`.
            description: what rebuilds the structure; needed to save the network.
        """
        super().__init__()
        items = blocks.items() if isinstance(blocks, Mapping) else enumerate(blocks)
        self.stem = stem
        self.blocks = nn.ModuleDict({str(k): block for k, block in items})
        self.head = head
        self.description = description
        if len(self.blocks) == 0:
            raise StageCostError("a network needs at least one block, got 0: raise num_blocks")

    def forward(
        self,
        images: Tensor,
        depths: Depths = None,
        *,
        constant_head: bool = False,
        fused: bool = False,
        checkpointing: bool = False,
        branch_scales: Tensor | None = None,
        depth_vector: Sequence[int] | None = None,
    ) -> Tensor:
        """Compute the terminal output, or the outputs of the depths asked for, in one pass.

        Args:
            images: (B, C, H, W).
            depths: None for the terminal output y_N; k for y_k; "all" for y_0 … y_N; a sequence of
                depths for some of them. Depths count the blocks of this network: 0 … N.
            constant_head: intermediate outputs send no gradient to head and skip connections.
            fused: compute intermediate outputs by the fast twin of the literal definition, where it
                fits (`stagecost.fast_outputs`); they agree to rounding. In training mode its kernels
                are compiled at the first step.
            checkpointing: keep about √N states for the gradient and compute the others again.
            branch_scales: (N, B), s_k of x_{k+1} = S_k(x_k) + s_k·F_k(x_k) for each sample; None is 1,
                to the last bit (`stagecost.drop_path`).
            depth_vector: M_1, …, M_S: also compute, from the same x_0, the output of the network that
                the first M_s blocks of each stage would be. It comes before the others. In training
                mode alone, since it has no running statistics; `constant_head` does not concern it.

        Returns:
            (B, classes) for None or one depth, else (number of depths, B, classes). Blocks that no
            output asked for depends on are not computed. With a vector of depths, (1 + number of
            depths, B, classes), its output first.

        Raises:
            StageCostError: a depth that this network does not have, images of another shape, no
                compiler for fused kernels, or a vector of depths in eval mode.
        """
        self._check_images(images)
        wanted = resolve_depths(depths, self.num_blocks)
        way = ForwardPass(
            list(self.blocks.values()),
            self.head,
            set(wanted),
            constant_head,
            fused,
            checkpointing,
            branch_scales,
        )
        start = self.stem(images)
        some = [] if depth_vector is None else [way.output_of_some(start, self._positions(depth_vector))]
        outputs = way.outputs(start)
        if not some and (depths is None or isinstance(depths, int)):
            return outputs[wanted[0]]
        return torch.stack(some + [outputs[depth] for depth in wanted])

    def states(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the trajectory x_0, …, x_N of a batch, one state at a time.

        For looking at states. Training goes through `forward`, which alone is seen by distributed
        and compiled wrappers.
        """
        state: Tensor = self.stem(images)
        yield state
        for block in self.blocks.values():
            state = block(state)
            yield state

    @property
    def num_blocks(self) -> int:
        """N, the number of blocks that this network has now."""
        return len(self.blocks)

    @property
    def block_indices(self) -> tuple[int, ...]:
        """The paper's index k of each block, in order; 0 … N-1 before anything is removed."""
        return tuple(int(k) for k in self.blocks)

    @property
    def skips(self) -> list[nn.Module]:
        """S_0, …, S_{N-1}."""
        return [block.get_submodule("skip") for block in self.blocks.values()]

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """The paper's indices of the blocks, grouped: a skip that is no identity begins a stage."""
        stages: list[list[int]] = []
        for k, skip in zip(self.block_indices, self.skips, strict=True):
            if not stages or not isinstance(skip, nn.Identity):
                stages.append([])
            stages[-1].append(k)
        return tuple(tuple(stage) for stage in stages)

    @property
    def blocks_per_stage(self) -> tuple[int, ...]:
        """How many blocks each stage has now."""
        return tuple(len(stage) for stage in self.stages)

    @property
    def is_homogeneous(self) -> bool:
        """Whether every skip connection is an identity, so that truncation is exact."""
        return all(isinstance(skip, nn.Identity) for skip in self.skips)

    def save_pretrained(self, folder: str | Path, **details: object) -> None:
        """Save weights and structure to a folder that `stagecost.load` reads.

        Args:
            folder: gets `model.safetensors` and `config.json`; created if missing.
            details: JSON values to keep beside the structure, such as how images are prepared.

        Raises:
            StageCostError: the network was put together by hand and has no description.
        """
        if self.description is None:
            raise StageCostError(
                "this network has no description to rebuild it from: build it with create_model, or "
                "register its builder with register_model"
            )
        folder, description = Path(folder), self.description.to_json()
        # The weights carry the description too: whatever a crash leaves, the two cannot be mixed up.
        write_tensors(folder / WEIGHTS_FILE, self.state_dict(), {"description": description})
        write_json(folder / CONFIG_FILE, {"format": "stagecost", **description, **details})

    def _positions(self, depth_vector: Sequence[int]) -> list[int]:
        """Return where the first M_s blocks of each stage stand."""
        if not self.training:
            raise StageCostError(
                f"the output of depths {list(depth_vector)} has no running statistics for eval mode: "
                "cut a copy (stagecost.surgery.copy_with_blocks) and recalibrate it"
            )
        return [self.block_indices.index(k) for k in first_blocks(self.stages, depth_vector)]

    def _check_images(self, images: Tensor) -> None:
        if images.dim() != 4:
            raise StageCostError(
                f"images must have shape (B, C, H, W), got {tuple(images.shape)}: add the missing "
                "dimensions"
            )
        arguments = self.description.arguments if self.description else {}
        channels = arguments.get("in_channels", images.shape[1])
        if images.shape[1] != channels:
            raise StageCostError(
                f"images have {images.shape[1]} channels, but the network was built with "
                f"in_channels={channels}: convert the images or build another network"
            )
