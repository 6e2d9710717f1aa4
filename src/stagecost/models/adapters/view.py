"""`adapt`: a live model as a residual network, without copying or renaming a weight.

    view = stagecost.adapt(model, torch.zeros(1, 3, 224, 224))
    outputs = view(images, depths="all")

The view is a `ResidualNetwork` whose stem, blocks and head call the live model's own modules; its state dict
is the live model's. What it cannot view it refuses with a reason; nothing is guessed.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stagecost.cut import Cut
from stagecost.dynamics import is_identity
from stagecost.errors import StageCostError
from stagecost.models.adapters.cutting import remove_blocks
from stagecost.models.adapters.parts import BATCHES, Parts, resampled, same, take_apart
from stagecost.models.adapters.program import Program
from stagecost.network import NetworkDescription, ResidualNetwork


class AdaptedNetwork(ResidualNetwork):
    """A live model seen as stem, N residual blocks and head.

    Attributes:
        model: the live model, the only registered module.
        example: inputs of one sample, which tell the shape that the view is for.
        paths: of the blocks in the model.
        details: JSON values that are saved beside the structure.
    """

    def __init__(self, model: nn.Module, parts: Parts, example: tuple[Tensor, ...]) -> None:
        """Put the parts together; see `adapt`."""
        nn.Module.__init__(self)
        self.model, self.example = model, example
        # Not registered, so that every parameter has one name: the model's.
        self.__dict__["stem"], self.__dict__["head"] = parts.stem, parts.head
        self.__dict__["blocks"] = nn.ModuleDict({str(k): b for k, b in enumerate(parts.blocks)})
        self.description: NetworkDescription | None = None
        self.details: dict[str, object] = {}
        self.training = model.training
        for program in self._programs():
            program.bind(model)
        self.register_state_dict_post_hook(_own_names)
        self.register_load_state_dict_pre_hook(_registered_names)

    @property
    def paths(self) -> tuple[str, ...]:
        """Where each block is in the model, or "container#2" for one without a module of its own."""
        return tuple(block.path for block in self.blocks.values())

    def keep(self, cut: Cut) -> "AdaptedNetwork":
        """Return a copy, model and view, without the blocks that do not act; see `remove_all_but`."""
        smaller = copy.deepcopy(self)
        smaller.remove_all_but(cut)
        return smaller

    def train(self, mode: bool = True) -> "AdaptedNetwork":
        """Set the mode of the model."""
        super().train(mode)
        return self

    def sample(self, image_shape: Sequence[int]) -> Any:
        """Return inputs of one sample, where the weights are; the shape is that of the example."""
        device = next(self.parameters()).device
        inputs = tuple(tensor.to(device) for tensor in self.example)
        return inputs if len(inputs) > 1 else inputs[0]

    def can_keep(self, cut: Cut) -> bool:
        """Tell whether blocks are left: a skip that is no identity stays behind without its branch."""
        return bool(self.resolve(cut).blocks)

    def save_pretrained(self, folder: str | Path, **details: object) -> None:
        """Save weights and structure; see `ResidualNetwork.save_pretrained`."""
        super().save_pretrained(folder, **(self.details | details))

    def remove_all_but(self, cut: Cut) -> None:
        """Take the blocks that do not act out of the live model; see `stagecost.models.adapters.cutting`.

        A block whose skip is no identity leaves that behind.

        Raises:
            StageCostError: no block acts, or the model's own forward cannot do without the others.
        """
        kept = self.resolve(cut)
        if not kept.blocks:
            raise StageCostError("a cut without any block cannot be kept: keep at least one")
        remove_blocks(self, kept)
        if self.description is not None:
            self.description = replace(self.description, kept_blocks=self.block_indices)

    def join_skips(self, gone: Sequence[int]) -> None:
        """Drop blocks from the view; each skip that is no identity joins what follows."""
        before: list[nn.Module] = []
        for position, (name, block) in enumerate(list(self.blocks.items())):
            if position in gone:
                before += [] if is_identity(block.skip) else [block.skip]
                del self.blocks[name]
            elif before:
                skip = [] if is_identity(block.skip) else [block.skip]
                block.skip = nn.Sequential(*before, *skip)
                block.step, before = nn.Sequential(*before, block.step), []
        self.head.select_outputs(range(self.num_blocks + 1))  # type: ignore[operator]
        self.head.parts = nn.Sequential(*before, *self.head.parts)  # type: ignore[misc]

    def _programs(self) -> list[Program]:
        parts = [self.stem, *self.blocks.values(), self.head]
        removals = [block.removal.skip for block in self.blocks.values()]
        found = [m for part in parts for m in part.modules() if isinstance(m, Program)]
        return found + [skip for skip in removals if skip is not None]

    def _check_images(self, images: Any) -> None:
        given = images if isinstance(images, tuple) else (images,)
        shapes = [tuple(tensor.shape[1:]) for tensor in given]
        wanted = [tuple(tensor.shape[1:]) for tensor in self.example]
        if shapes != wanted:
            raise StageCostError(
                f"inputs have shapes (B, …) with … = {shapes}, but this view was made for {wanted}: "
                "adapt the model once more, with an example of the new shape"
            )


def _own_names(
    view: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any]
) -> None:
    """Name the tensors of a view as the live model does."""
    registered = f"{prefix}model."
    for key in [key for key in state_dict if key.startswith(registered)]:
        state_dict[prefix + key.removeprefix(registered)] = state_dict.pop(key)


def _registered_names(view: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Undo `_own_names` before loading."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[f"{prefix}model.{key.removeprefix(prefix)}"] = state_dict.pop(key)


def adapt(
    model: nn.Module, example: Tensor | Sequence[Tensor], *, split_branches: bool = False
) -> AdaptedNetwork:
    """View a live model as a residual network; its own forward stays as it is.

    Args:
        model: any module that maps a batch to one tensor (B, …). A compiled one is unwrapped.
        example: a batch that it takes, (B, …), or several tensors; only shape and kind matter, and a
            sequence of whole numbers shows which numbers are possible.
        split_branches: count the branches of a block (attention, MLP) as blocks of their own.

    Returns:
        A view of the same model: whoever trains one trains the other.

    Raises:
        StageCostError: the model cannot be viewed; the message names the place and the reason.
    """
    model = getattr(model, "_orig_mod", model)
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    scripted = [path for path, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    name = type(model).__name__
    if scripted:
        raise StageCostError(
            f"{name} cannot be viewed: {scripted[0] or 'it'} is scripted, and what happens in it is "
            "hidden: build it without torch.jit"
        )
    twin = copy.deepcopy(model)
    try:
        parts = take_apart(twin, inputs, split_branches=split_branches)
        check(AdaptedNetwork(twin, parts, inputs))
    except StageCostError as error:
        raise StageCostError(f"{name} cannot be viewed as a residual network: {error}") from None
    kept = tuple(tensor[:1].detach().clone() for tensor in inputs)
    return AdaptedNetwork(model, parts, kept)


def cut_model(model: nn.Module, example: Tensor | Sequence[Tensor], cut: Cut) -> nn.Module:
    """Return a copy of a live model without the blocks that do not act in a cut.

    It is of the model's own class, and its own forward does without these blocks.

    Raises:
        StageCostError: the model cannot be viewed, or cannot do without these blocks.
    """
    return adapt(model, example).keep(cut).model


@torch.no_grad()
def check(view: AdaptedNetwork) -> None:
    """Compare the view with its model in both modes, on two inputs and two batch sizes.

    Raises:
        StageCostError: its terminal output is not the model's own, to the last bit.
    """
    with torch.random.fork_rng(devices=[]):
        for batch in BATCHES:
            for training in (False, True):
                inputs = tuple(resampled(tensor, batch) for tensor in view.example)
                view.train(training)
                state = torch.get_rng_state()
                expected = view.model(*inputs)
                torch.set_rng_state(state)
                if not same(view(inputs), expected):
                    mode = "training" if training else "evaluation"
                    raise StageCostError(f"its parts together give another output in {mode} mode")
        view.eval()
        view(tuple(resampled(tensor, BATCHES[0]) for tensor in view.example), depths=0)
