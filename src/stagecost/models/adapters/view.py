"""`adapt`: a live model as a residual network, without copying or renaming a weight.

    view = stagecost.adapt(model, torch.zeros(1, 3, 224, 224))
    outputs = view(images, depths="all")

The view is a `ResidualNetwork` whose stem, blocks and head call the live model's own modules; its state
dict is the live model's. What cannot be viewed is refused with a reason; nothing is guessed.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stagecost.cut import Cut
from stagecost.dynamics import is_identity
from stagecost.errors import StageCostError
from stagecost.models.adapters.cutting import called_again, remove_blocks
from stagecost.models.adapters.opened import Opened
from stagecost.models.adapters.parts import (
    BATCHES,
    MODES,
    AdaptedBlock,
    AdaptedHead,
    Inputs,
    Parts,
    resampled,
    same,
    take_apart,
)
from stagecost.models.adapters.program import Program
from stagecost.network import NetworkDescription, ResidualNetwork, first_tensor
from stagecost.norms import hooks_of, with_norms
from stagecost.records import JsonObject
from stagecost.text import one_line

OTHER_BATCHES = 1, 5
"""Sizes of batches that a view is tried with beside those it was made from."""


class AdaptedNetwork(ResidualNetwork):
    """A live model seen as stem, N residual blocks and head.

    Attributes:
        model: the live model; beside it, norms of their own of targets alone are registered.
        example: inputs of one sample, which tell the shape that the view is for.

    Example:
        >>> from torchvision.models import resnet18
        >>> view = sc.adapt(resnet18(), torch.rand(2, 3, 64, 64))
        >>> view.num_blocks, type(view.model).__name__
        (8, 'ResNet')
    """

    def __init__(self, model: nn.Module, parts: Parts, example: Inputs) -> None:
        """Put the parts together; see `adapt`."""
        nn.Module.__init__(self)
        self.model, self.example = model, example
        self.description: NetworkDescription | None = None
        self.details: JsonObject = {}
        blocks = nn.ModuleDict({str(k): block for k, block in enumerate(parts.blocks)})
        # Not registered, so that every parameter has one name: the model's.
        self.__dict__ |= {"stem": parts.stem, "blocks": blocks, "head": parts.head}
        self.norms = nn.ModuleList()
        emptied = [block.emptied for block in parts.blocks]
        modules = [m for part in (parts.stem, blocks, parts.head) for m in part.modules()]
        programs = [part for part in (*modules, *emptied) if isinstance(part, Program)]
        for program in programs:
            program.bind(model)
        self.opened = Opened(model, (path for each in programs for path in each.holders))
        self.register_state_dict_post_hook(_model_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_registered_names)  # type: ignore[no-untyped-call]

    @property
    def training(self) -> bool:
        """The mode is the model's, whoever sets it."""
        model = self.__dict__.get("_modules", {}).get("model")
        return model is None or bool(model.training)

    @training.setter
    def training(self, mode: bool) -> None:
        model = self.__dict__.get("_modules", {}).get("model")
        if model is not None:
            model.training = mode

    @property
    def adapted(self) -> list[AdaptedBlock]:
        """The blocks."""
        return [block for block in self.blocks.values() if isinstance(block, AdaptedBlock)]

    @property
    def paths(self) -> tuple[str, ...]:
        """Where each block is in the model, or "container#2" for one without a module of its own."""
        return tuple(block.path for block in self.adapted)

    def sample(self, image_shape: Sequence[int]) -> Any:
        """Return inputs of one sample, as the weights are and where.

        Raises:
            StageCostError: the one input has a shape, and not the example's.
        """
        like = first_tensor(self)
        if len(self.example) == 1 and len(image_shape):  # there is none where samples are no images
            self.check_images(like.new_empty((1, *image_shape), device="meta"))
        inputs = tuple(t.to(like if t.is_floating_point() else like.device) for t in self.example)
        return inputs if len(inputs) > 1 else inputs[0]

    def can_keep(self, cut: Cut) -> bool:
        """Tell whether blocks are left, and no module is called again that goes.

        Of a block that goes, a skip that is no identity stays.
        """
        resolved = self.resolve(cut)
        return bool(resolved.blocks) and not called_again(self, resolved)

    def parts_of(self, cut: Cut) -> tuple[list[nn.Module], nn.Module]:
        """Return blocks and head as a cut uses them: on a twin of the model that has its own norms."""
        own = self.norms_of(cut)
        if not own:
            return super().parts_of(cut)
        for norm, other in own.items():
            other.train(norm.training)
        shared = hooks_of(self.blocks) | hooks_of(self.head)
        twin = {id(self.model): with_norms(self.model, own)}
        blocks, head = copy.deepcopy((list(self.blocks.values()), self.head), shared | twin)
        head.select_outputs(())  # type: ignore[operator]  # running statistics in it follow this cut
        return blocks, head

    def remove_all_but(self, cut: Cut) -> None:
        """Take the blocks that do not act out of the live model (`stagecost.models.adapters.cutting`).

        A block whose skip is no identity leaves that behind.

        Raises:
            StageCostError: no block acts, or the model's own forward cannot do without the others.
        """
        kept = self.resolve(cut)
        if not kept.blocks:
            raise StageCostError("a cut without any block cannot be kept: keep at least one")
        remove_blocks(self, kept)
        self.take_norms_of(kept)
        self._join_skips(kept)
        if self.description is not None:
            indices = self.block_indices
            self.description = replace(self.description, kept_blocks=indices, target_norms=())

    def _join_skips(self, kept: Cut) -> None:
        """Drop blocks; each skip of theirs that is no identity joins what follows."""
        before: list[nn.Module] = []
        for position, (name, block) in enumerate(zip(list(self.blocks), self.adapted, strict=True)):
            skip = [] if is_identity(block.skip) else [block.skip]
            if not kept.acts(position):
                before += skip
                del self.blocks[name]
            elif before:
                block.skip = nn.Sequential(*before, *skip)
                block.step, before = nn.Sequential(*before, block.step), []
        head = self.head
        assert isinstance(head, AdaptedHead)
        head.before = nn.Sequential(*before, *head.before)
        head.select_outputs(range(self.num_blocks + 1))

    def check_images(self, images: Any) -> None:
        """Refuse samples of other shapes than the example's: some sizes are part of the view.

        And a model that has changed since in what the view does in its place.
        """
        self.opened.check(self.model)
        shapes = [tuple(tensor.shape[1:]) for tensor in _tensors(images)]
        wanted = [tuple(tensor.shape[1:]) for tensor in self.example]
        if shapes != wanted:
            raise StageCostError(
                f"samples of shapes {shapes} go into a view for {wanted}: adapt the model once more, "
                "with an example of the new shape"
            )


def _tensors(inputs: Any) -> tuple[Tensor, ...]:
    """Return inputs as a tuple."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    if other := [type(each).__name__ for each in given if not isinstance(each, Tensor)]:
        raise StageCostError(f"inputs hold a {other[0]}: give a tensor or a tuple of tensors")
    return given


def _model_names(
    view: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any]
) -> None:
    """Name the tensors of a view as the live model does."""
    registered = f"{prefix}model."
    own = [(key, state_dict.pop(key)) for key in list(state_dict) if key.startswith(registered)]
    state_dict |= ((prefix + key.removeprefix(registered), tensor) for key, tensor in own)


def _registered_names(view: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Undo `_model_names` before loading."""
    own = tuple(f"{prefix}norms.{i}.model." for i in range(len(view.norms)))  # type: ignore[arg-type]
    keys = [key for key in state_dict if key.startswith(prefix) and not key.startswith(own)]
    taken = [(key, state_dict.pop(key)) for key in keys]
    state_dict |= ((f"{prefix}model.{key.removeprefix(prefix)}", tensor) for key, tensor in taken)


def adapt(
    model: nn.Module, example: Tensor | Sequence[Tensor], *, split_branches: bool = False
) -> AdaptedNetwork:
    """View a live model as a residual network; its own forward stays as it is.

    Args:
        model: any module that maps a batch to one tensor (B, …). A compiled one is unwrapped.
        example: a batch that it takes, (B, …), or several tensors; only shapes and types matter, and of
            whole numbers which are possible.
        split_branches: count the branches of a block (attention, MLP) as blocks of their own.

    Returns:
        A view of the same model: whoever trains one trains the other.

    Raises:
        StageCostError: the model cannot be viewed; the message names the place and the reason.

    Example:
        >>> from torchvision.models import resnet18
        >>> model, images = resnet18().eval(), torch.rand(2, 3, 64, 64)
        >>> view = sc.adapt(model, images)
        >>> torch.equal(view(images), model(images))
        True
    """
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.Module):
        raise StageCostError(f"a {type(model).__name__} is no network: give a torch.nn.Module")
    several = isinstance(example, Iterable) and not isinstance(example, Tensor)
    given = _tensors(tuple(example) if several else example)
    if any(tensor.is_meta or not tensor.numel() for tensor in given):
        raise StageCostError("the example holds no numbers: give a batch of at least one sample")
    if any(tensor.layout != torch.strided for tensor in given):
        raise StageCostError("the example is sparse: give its to_dense()")
    inputs = tuple(tensor.detach().cpu() for tensor in given)
    name = f"{type(model).__name__} cannot be viewed as a residual network"
    scripted = [path for path, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if scripted:
        raise StageCostError(f"{name}: {scripted[0] or 'it'} is scripted: build it without torch.jit")
    tensors = (*model.named_parameters(), *model.named_buffers())
    if lazy := [path for path, tensor in tensors if is_lazy(tensor)]:
        raise StageCostError(f"{name}: {lazy[0]} has no shape yet: call the model once with a batch")
    try:
        twin = copy.deepcopy(model).cpu()
    except Exception as error:
        raise StageCostError(f"{name}: it cannot be copied ({one_line(error)})") from error
    try:
        parts = take_apart(twin, inputs, split_branches=split_branches)
        trial = AdaptedNetwork(twin, parts, inputs)
        trial.opened.settle(twin, tuple(resampled(tensor, BATCHES[0]) for tensor in inputs))
        check(trial)
    except StageCostError as error:
        raise StageCostError(f"{name}: {error}") from None
    view = AdaptedNetwork(model, parts, tuple(tensor[:1].clone() for tensor in inputs))
    view.opened = trial.opened.of(model)
    return view


def cut_model(model: nn.Module, example: Tensor | Sequence[Tensor], cut: Cut) -> nn.Module:
    """Return a copy of a live model without the blocks that do not act in a cut.

    It is of the model's own class, and its own forward does without these blocks.

    Raises:
        StageCostError: the model cannot be viewed, or cannot do without these blocks.

    Example:
        >>> from torchvision.models import resnet18
        >>> images = torch.rand(2, 3, 64, 64)
        >>> small = sc.cut_model(resnet18(), images, sc.Cut.without(1, 3))
        >>> type(small).__name__, len(small.layer1)
        ('ResNet', 1)
    """
    return adapt(model, example).keep(cut).model


@torch.no_grad()
def check(view: AdaptedNetwork) -> None:
    """Compare a view with its model in both modes, on batches of several sizes, of one sample as well.

    Raises:
        StageCostError: its terminal output is not the model's own, to the last bit.
    """
    with torch.random.fork_rng(devices=[]):
        for batch, mode in product((*BATCHES, *OTHER_BATCHES), MODES):
            view.train(mode)
            inputs = tuple(resampled(tensor, batch) for tensor in view.example)
            expected = _again(view.model, view.model, inputs)
            if expected is None and batch in OTHER_BATCHES:
                continue  # which the model itself does not take
            found = _again(view.model, view, inputs)
            if expected is None or found is None or not same(found, expected):
                name = "training" if mode else "evaluation"
                raise StageCostError(
                    f"its parts together give another output in {name} mode, for a batch of {batch}"
                )
        view.eval()
        view(tuple(resampled(tensor, BATCHES[0]) for tensor in view.example), depths=0)


def _again(model: nn.Module, network: nn.Module, inputs: Inputs) -> Tensor | None:
    """Return an output, None where there is none; random numbers, buffers and inputs stay."""
    inputs = tuple(tensor.clone() for tensor in inputs)  # a forward may change its own in place
    state, buffers = torch.get_rng_state(), [(b, b.clone()) for b in model.buffers()]
    try:
        output: Tensor = network(*inputs) if network is model else network(inputs)
    except (ValueError, RuntimeError, IndexError):
        return None
    finally:
        torch.set_rng_state(state)
        for buffer, before in buffers:  # of spectral norms, which each pass moves
            buffer.copy_(before)
    return output
