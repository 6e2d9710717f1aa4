"""A residual network as a dynamical system: states, skip connections, residual branches, head.

    x_0 = stem(images),   x_{k+1} = S_k(x_k) + F_k(x_k),   y_k = H(S_{N-1} ∘ … ∘ S_k (x_k))

Source: Püttschneider, Heilig, Fischer, Faulwasser, "Towards an Optimal Control Perspective of ResNet
Training", arXiv 2506.21453; the states are the trajectory, the weights of F_k the control.
"""

import copy
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast, overload

import torch
from torch import Tensor, nn

from stagecost.cut import Cut, Depths, are_several, resolve_cuts, resolve_depths
from stagecost.dynamics import Observer, Pass, Rollout, SkipChain, Tail, is_identity, skip_of
from stagecost.errors import StageCostError
from stagecost.fast.chains import collapsed_tails
from stagecost.fast.reading import LeanHead, reader_of
from stagecost.frozen_statistics import FrozenStatistics
from stagecost.gates import check_gates
from stagecost.norms import copies_of_norms, norms_in, with_norms
from stagecost.records import JsonObject
from stagecost.saved import write_saved
from stagecost.text import format_indices, html_table

if TYPE_CHECKING:
    from stagecost.prediction import Prediction

LITERALLY = Pass()


@dataclass(frozen=True)
class NetworkDescription:
    """What rebuilds a network's structure."""

    name: str  #: of its builder
    arguments: Mapping[str, Any] = field(default_factory=dict)  #: of the builder
    #: the paper's indices k of the blocks that are still there; None means all
    kept_blocks: tuple[int, ...] | None = None
    target_norms: tuple[tuple[int, ...], ...] = ()  #: the same of each cut that has norms of its own

    def to_json(self) -> JsonObject:
        """Return plain types for JSON."""
        kept = None if self.kept_blocks is None else list(self.kept_blocks)
        content = {"name": self.name, "arguments": dict(self.arguments), "kept_blocks": kept}
        return content | (
            {"target_norms": list(map(list, self.target_norms))} if self.target_norms else {}
        )


class ResidualNetwork(nn.Module):
    """ResNet-N: a stem, N residual blocks and a head, with the output of every cut at hand.

    The keys of the state dict are a contract: `stem.*`, `blocks.{k}.residual.*`, `blocks.{k}.skip.*`,
    `head.*`, where k is the paper's index. Removing blocks leaves a subset of the keys; a block keeps
    its k for life. Norms of target cut i are `norms.{i}.*` with such a key behind it.

    Attributes:
        description: what rebuilds the structure; None of one that was put together by hand.
        details: JSON values that are saved beside the structure, such as how images are prepared.
        targets: cuts that have norms of their own, by the positions of their acting blocks.

    Example:
        >>> stem, head = torch.nn.Conv2d(3, 8, 3), sc.OutputHead(8, num_classes=10, num_outputs=4)
        >>> blocks = [sc.ResidualBlock(torch.nn.Conv2d(8, 8, 3, padding=1)) for _ in range(3)]
        >>> net = sc.ResidualNetwork(stem, blocks, head)
        >>> net(torch.rand(2, 3, 8, 8), depths="all").shape  # y_0 … y_3
        torch.Size([4, 2, 10])
    """

    targets: tuple[Cut, ...] = ()

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
            head: called as `head(state, depth)`; `select_outputs(depths)`, if it has that, is told which
                depths are left of a cut; see `stagecost.head.OutputHead`.
            description: what rebuilds the structure; needed to save the network.
        """
        super().__init__()
        items = blocks.items() if isinstance(blocks, Mapping) else enumerate(blocks)
        self.stem = stem
        self.blocks = nn.ModuleDict({str(k): block for k, block in items})
        self.head = head
        self.norms = nn.ModuleList()
        self.description = description
        self.details: JsonObject = {}
        if len(self.blocks) == 0:
            raise StageCostError("a network needs at least one block, got 0: raise num_blocks")
        for k, block in self.blocks.items():
            if not isinstance(getattr(block, "skip", None), nn.Module):
                raise StageCostError(f"block {k} has no module `skip`: give it one, or a ResidualBlock")

    def forward(
        self,
        images: Tensor,
        cuts: Cut | Iterable[Cut] | None = None,
        *,
        depths: Depths = None,
        how: Pass = LITERALLY,
        scales: Tensor | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Compute the terminal output of the network, or of some of its cuts, in one pass.

        Args:
            images: (B, C, H, W).
            cuts: one cut, or several; None is the whole network.
            depths: the paper's y_k instead of cuts: k, several of them, or "all" for y_0 … y_N.
            how: the pass is done; nothing is computed differently by default.
            scales: (N,) or (N, B), s_k of x_{k+1} = S_k(x_k) + s_k·F_k(x_k) where block k acts; None is
                1, to the last bit.
            observe: is shown k, x_k and x_{k+1} of the whole network on the way.

        Returns:
            (B, classes) for the whole network, one cut or one depth, else (number of them, B, classes).

        Raises:
            StageCostError: a cut or depth that this network does not have, or images or scales of
                another shape.
        """
        self.check_images(images)
        if cuts is not None and depths is not None:
            raise StageCostError("cuts and depths exclude each other: a depth k is the cut Cut.first(k)")
        if scales is not None:
            self._check_scales(scales, len(images if isinstance(images, Tensor) else images[0]))
        if cuts is None:
            wanted = tuple(Cut.first(k) for k in resolve_depths(depths, self.num_blocks))
        else:
            wanted = resolve_cuts(cuts, self.stage_positions)
        if how.gates:
            how = replace(how, gates=tuple(map(self.resolve, how.gates)))
        x_0 = self.stem(images)
        by_cut: dict[Cut, Tensor] = {}
        for number, together in enumerate(self._passes(wanted, how.gates)):
            again = number > 0 and together[0] not in self.targets  # blocks that the first has counted
            with FrozenStatistics(self.blocks.values()) if again else nullcontext():
                outputs = self._pass(x_0, together, how, scales, None if again else observe)
            by_cut |= zip(together, outputs, strict=True)
        answers = [by_cut[cut] for cut in wanted]
        single = isinstance(cuts, Cut) or (cuts is None and not are_several(depths))
        return answers[0] if single else torch.stack(answers)

    def _check_scales(self, scales: Tensor, batch: int) -> None:
        if tuple(scales.shape) not in ((self.num_blocks,), (self.num_blocks, batch)):
            raise StageCostError(
                f"scales of shape {tuple(scales.shape)} for {self.num_blocks} blocks and {batch} "
                "images: give one a block, or one a block and image"
            )

    def rollout(self, how: Pass = LITERALLY) -> Rollout:
        """Return the roll-out of the whole network, which begins at `stem(images)`.

        Its states can be asked for one at a time. All cuts share them here: norms of their own are those
        of a pass of their own. It holds on to the weights: make it anew after they have changed.
        """
        blocks = list(self.blocks.values())
        return Rollout(blocks, self.head, self._tail(blocks, how), training=self.training)

    def _passes(self, cuts: tuple[Cut, ...], gates: tuple[Cut, ...]) -> list[tuple[Cut, ...]]:
        """Return which cuts share a pass: those without norms of their own, unless a gate has some.

        Of these the largest comes first: the whole network, or y_k before y_{k-1}.
        """
        shared = tuple(dict.fromkeys(cut for cut in cuts if cut not in self.targets))
        split = any(gate in self.targets for gate in gates)
        ordered = sorted(shared, key=lambda cut: -len(cut.blocks))
        passes = [*((cut,) for cut in ordered)] if split else [shared]
        own = ((cut,) for cut in self.targets if cut in cuts)
        return [together for together in (*passes, *own) if together]

    def _pass(
        self,
        x_0: Tensor,
        cuts: tuple[Cut, ...],
        how: Pass,
        scales: Tensor | None,
        observe: Observer | None,
    ) -> list[Tensor]:
        """Return the outputs of one pass: of a cut with norms of its own, or of several without."""
        check_gates(how.gates, cuts)
        own = cuts[0] in self.targets
        blocks, head = self.parts_of(cuts[0])
        tail = self._tail(blocks, how, own=own)
        reader = head if how.gates else reader_of(head, tail)
        lean = reader if isinstance(reader, LeanHead) else None
        apart = tuple(gate for gate in how.gates if own or gate in self.targets)
        rollout = Rollout(
            blocks,
            reader,
            tail if lean is None else (lambda state, _: state),  # which it sends through itself
            scales,
            None if own else observe,
            training=self.training and not own,  # statistics of its own follow the cut
            read_late=self.training and lean is None,  # a lean head draws no random numbers
            checkpointing=how.checkpointing,
            gates=tuple(gate for gate in how.gates if gate not in apart),
            beta=how.beta,
            apart=tuple(gate for gate in apart if gate < cuts[0]),
        )
        outputs = rollout.outputs(x_0, cuts)
        return outputs if lean is None else lean.outputs(outputs, cuts)

    def parts_of(self, cut: Cut) -> tuple[list[nn.Module], nn.Module]:
        """Return blocks and head as a cut uses them: with its own norms in them, if it has some."""
        blocks, own = list(self.blocks.values()), self.norms_of(cut)
        return [with_norms(block, own) for block in blocks], with_norms(self.head, own)

    def norms_of(self, cut: Cut) -> dict[nn.Module, nn.Module]:
        """Return the norms that a target has of its own, by those in whose places they are."""
        if cut not in self.targets:
            return {}
        own = norms_in(self.norms[self.targets.index(cut)])
        return {self.get_submodule(path): norm for path, norm in own.items()}

    def give_norms(self, *cuts: Cut) -> None:
        """Give cuts norms of their own, in the blocks that act, the skips of the others, and the head.

        Scale, shift and statistics begin as those of the whole network. From then on a cut has a pass of
        its own; cut off (`keep`), its norms are those of the small network.

        Raises:
            StageCostError: a network of the acting blocks alone does not exist, it has them already, or
                there are no norms.
        """
        for cut in map(self.resolve, cuts):
            whole = len(cut.blocks) == self.num_blocks
            if whole or cut in self.targets or not self.can_keep(cut):
                raise StageCostError(
                    f"cut {cut} cannot have norms of its own: give each cut once, and such as leave a "
                    "network of fewer blocks"
                )
            blocks = enumerate(self.blocks.values())
            parts = [block if cut.acts(k) else skip_of(block) for k, block in blocks]
            copies = copies_of_norms(self, [*parts, self.head])
            if not norms_in(copies):
                raise StageCostError("this network has no norms to give to a cut: --target-norms shared")
            self.norms.append(copies)
            self.targets = (*self.targets, cut)
        if self.description is not None:
            targets = tuple(cut.remaining(self.block_indices) for cut in self.targets)
            self.description = replace(self.description, target_norms=targets)

    def states(self, images: Tensor) -> Iterator[Tensor]:
        """Return the trajectory x_0, …, x_N of a batch.

        For looking at states. Training goes through `forward`, which alone is seen by distributed
        and compiled wrappers.
        """
        states: list[Tensor] = []

        def keep(k: int, state: Tensor, following: Tensor) -> None:
            states.extend([following] if states else [state, following])

        self(images, observe=keep)
        return iter(states)

    @overload
    def predict(self, images: list[Any], *, top_k: int = 3) -> "list[Prediction]": ...
    @overload
    def predict(self, images: Any, *, top_k: int = 3) -> "Prediction": ...
    def predict(self, images: Any, *, top_k: int = 3) -> "Prediction | list[Prediction]":
        """Classify images: decoded, prepared and named as those of the training were.

        Args:
            images: a path, a picture of Pillow, or an array of bytes (H, W) or (H, W, channels); or a
                list of these.
            top_k: how many classes to tell of each.

        Returns:
            What is said of the image, or of each of the list; what is doubtful is a warning.

        Raises:
            StageCostError: an image cannot be decoded, or the network does not know how to prepare it.
        """
        from stagecost.prediction import predict

        several = isinstance(images, list)
        predictions, doubts = predict(self, images if several else [images], top_k=top_k)
        for doubt in doubts:
            warnings.warn(doubt, stacklevel=2)
        return predictions if several else predictions[0]

    def sample(self, image_shape: Sequence[int]) -> Tensor:
        """Return a batch of one image (C, H, W), as the weights are and where; without values."""
        return first_tensor(self).new_empty(1, *image_shape)

    def can_keep(self, cut: Cut) -> bool:
        """Tell whether a network of the acting blocks alone exists: no projection is lost."""
        kept = self.resolve(cut)
        return bool(kept.blocks) and all(
            kept.acts(k) or is_identity(skip) for k, skip in enumerate(self.skips)
        )

    def resolve(self, cut: Cut) -> Cut:
        """Return a cut by the positions of the blocks of this network that act.

        Raises:
            StageCostError: it is no cut, or this network does not have the blocks that it names.
        """
        (resolved,) = resolve_cuts((cut,), self.stage_positions)
        return resolved

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
        return [skip_of(block) for block in self.blocks.values()]

    @property
    def stage_positions(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the blocks, grouped: a skip that is no identity begins a stage."""
        stages: list[list[int]] = []
        for position, skip in enumerate(self.skips):
            if not stages or not is_identity(skip):
                stages.append([])
            stages[-1].append(position)
        return tuple(tuple(stage) for stage in stages)

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """The paper's indices of the blocks, grouped by stage."""
        indices = self.block_indices
        return tuple(tuple(indices[k] for k in stage) for stage in self.stage_positions)

    @property
    def blocks_per_stage(self) -> tuple[int, ...]:
        """How many blocks each stage has now."""
        return tuple(len(stage) for stage in self.stage_positions)

    @property
    def is_homogeneous(self) -> bool:
        """Whether every skip connection is an identity, so that truncation is exact."""
        return all(map(is_identity, self.skips))

    def keep(self, cut: Cut) -> Self:
        """Return a copy of which only the acting blocks of a cut are left; this network stays whole.

        Its state behind block k takes along the head statistics of output k+1, so a truncated
        homogeneous network computes y_M of the whole one, bit for bit. So does any cut that has norms of
        its own: they take the places of the whole network's, and those of other cuts go.

        Raises:
            StageCostError: no block acts, or a projection would be lost.
        """
        smaller = cast("Self", copied(self))
        smaller.remove_all_but(cut)
        return smaller

    def remove_all_but(self, cut: Cut) -> None:
        """Remove the blocks that do not act, in place; see `keep`.

        Raises:
            StageCostError: no block acts, or a projection would be lost.
        """
        cut = self.resolve(cut)
        kept = cut.blocks
        if not kept:
            raise StageCostError("a cut without any block cannot be kept: keep at least one")
        lost = [k for k, skip in enumerate(self.skips) if k not in kept and not is_identity(skip)]
        if lost:
            raise StageCostError(
                f"block {self.block_indices[lost[0]]} holds a projection: keep it, it begins a stage"
            )
        self.take_norms_of(cut)
        names = list(self.blocks)
        for position, name in enumerate(names):
            if position not in kept:
                del self.blocks[name]
        if callable(select := getattr(self.head, "select_outputs", None)):
            select([0, *(k + 1 for k in kept)])
        if self.description is not None:
            indices = self.block_indices
            self.description = replace(self.description, kept_blocks=indices, target_norms=())

    def take_norms_of(self, cut: Cut) -> None:
        """Put the norms of a cut in the places of the whole network's; those of other cuts go."""
        own = self.norms_of(cut)
        for path, module in list(self.named_modules(remove_duplicate=False)):
            if module in own:
                self.set_submodule(path, own[module])
        del self.norms[:]
        self.targets = ()

    def _repr_html_(self) -> str:
        """Show the stages, as notebooks do."""
        name = type(self).__name__ if self.description is None else self.description.name
        sizes = [sum(p.numel() for p in block.parameters()) for block in self.blocks.values()]
        rows = [
            (number, format_indices(stage), f"{sum(sizes[k] for k in places):,}")
            for number, (stage, places) in enumerate(
                zip(self.stages, self.stage_positions, strict=True), 1
            )
        ]
        whole = sum(p.numel() for p in self.parameters())
        caption = f"{name}: {self.num_blocks} blocks, {whole:,} parameters"
        return html_table(caption, ("stage", "blocks k", "parameters"), rows)

    def save_pretrained(self, folder: str | Path, **details: object) -> None:
        """Save weights and structure to a folder that `stagecost.load` reads.

        Args:
            folder: gets `model.safetensors` and `config.json`; created if missing.
            details: further JSON values to keep beside the structure.

        Raises:
            StageCostError: the network was put together by hand and has no description, or a detail has
                the name of a part of it, or is no JSON.
        """
        if self.description is None:
            raise StageCostError(
                "this network has no description to rebuild it from: build it with create_model, or "
                "register its builder with register_model"
            )
        folder, description = Path(folder), self.description.to_json()
        details = {**self.details, **details}
        write_saved(folder, self.state_dict(), description, details)

    def _tail(self, blocks: Sequence[nn.Module], how: Pass, *, own: bool = False) -> Tail:
        collapsed = collapsed_tails(blocks) if how.collapsed and not how.gates else None
        return SkipChain(blocks, own=own) if collapsed is None else collapsed

    def check_images(self, images: Tensor) -> None:
        """Refuse what this network was not built for; `stem` does not look.

        Raises:
            StageCostError: images have another shape.
        """
        arguments = self.description.arguments if self.description else {}
        if "in_channels" not in arguments:
            return
        if images.dim() != 4:
            raise StageCostError(
                f"images must have shape (B, C, H, W), got {tuple(images.shape)}: add the missing "
                "dimensions"
            )
        channels = arguments["in_channels"]
        if images.shape[1] != channels:
            raise StageCostError(
                f"images have {images.shape[1]} channels, but the network was built with "
                f"in_channels={channels}: convert the images or build another network"
            )


def first_tensor(network: nn.Module) -> Tensor:
    """Return a tensor as the weights are and where: the first parameter, or an empty one without any."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return next(filter(Tensor.is_floating_point, tensors), torch.empty(0))


def copied(network: ResidualNetwork) -> ResidualNetwork:
    """Return a deep copy of a network.

    Raises:
        StageCostError: modules of it hold tensors of a pass with gradients, which cannot be copied.
    """
    try:
        return copy.deepcopy(network)
    except RuntimeError as error:
        if "graph leaves" not in str(error):
            raise
        raise StageCostError(
            "the network cannot be copied, as a module holds a tensor of its last pass with gradients: "
            "call it once under torch.no_grad() before"
        ) from None
