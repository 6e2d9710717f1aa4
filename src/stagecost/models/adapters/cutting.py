"""Taking blocks out of a live model, so that its own forward does without them.

A block with an identity skip is deleted from its Sequential or ModuleList. Any other becomes a module
that holds what its skip path needs, under the old names; a branch in a container's forward becomes
zeros. So the keys of the state dict stay a subset. All is tried on a twin first: its output must be that
of the cut, to the last bit.
"""

import copy
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stagecost.cut import Cut
from stagecost.dynamics import is_identity
from stagecost.errors import StageCostError
from stagecost.models.adapters.parts import BATCHES, AdaptedBlock, resampled, same, shake
from stagecost.models.adapters.program import Program
from stagecost.models.adapters.tracing import leaves

if TYPE_CHECKING:
    from stagecost.models.adapters.view import AdaptedNetwork


class SkipOnly(nn.Module):
    """What is left of a block without its branches: its skip path, with the modules that it needs."""

    program: Program

    def __init__(self, program: Program, block: nn.Module, path: str) -> None:
        """Keep what the skip path needs of a block of the program's model, under the old names."""
        super().__init__()
        self.training = block.training
        self.__dict__["program"] = program  # not registered: its modules have their names here
        inside = f"{path}."
        _keep(self, block, [use.removeprefix(inside) for use in program.uses if use.startswith(inside)])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Do what is left of the block."""
        return self.program(tuple(leaves((args, kwargs), Tensor)))


class Zeros(nn.Module):
    """What is left of a branch: zeros like the first tensor that it is given."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(leaves((args, kwargs), Tensor)[0])


def _keep(target: nn.Module, source: nn.Module, uses: Iterable[str]) -> None:
    """Give a module those parts of another that are used, by their paths."""
    pairs = sorted((use.partition(".")[0], use.partition(".")[2]) for use in uses)
    for name, group in groupby(pairs, key=lambda pair: pair[0]):
        part, rest = getattr(source, name), [rest for _, rest in group]
        if isinstance(part, nn.Module) and "" not in rest:
            hollow = nn.Module()
            hollow.training = part.training
            _keep(hollow, part, rest)
            part = hollow
        if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
            target.register_buffer(name, part, persistent=name in source.state_dict())
        else:
            setattr(target, name, part)


def remove_blocks(view: "AdaptedNetwork", kept: Cut) -> None:
    """Take all blocks but those of a cut out of the model of a view; the view is left as it is.

    Raises:
        StageCostError: the model's own forward cannot do without them.
    """
    gone = [k for k in range(view.num_blocks) if not kept.acts(k)]
    if not gone:
        return
    if twice := called_again(view, kept):
        raise StageCostError(f"{twice[0]} is called several times and cannot leave for one: keep it")
    with torch.random.fork_rng(devices=[]):
        delete = _can_be_deleted(view, kept, gone)
    _take_out(view, gone, delete=delete)


def called_again(view: "AdaptedNetwork", kept: Cut) -> list[str]:
    """Return the modules that a cut both keeps and lets go, as they are called several times."""
    calls = [(block.path, *block.branches) for block in view.adapted]
    stay = {path for k in kept.blocks for path in calls[k]}
    return [path for k, paths in enumerate(calls) if not kept.acts(k) for path in paths if path in stay]


@torch.no_grad()
def _can_be_deleted(view: "AdaptedNetwork", kept: Cut, gone: Sequence[int]) -> bool:
    """Tell whether blocks can be deleted or only be emptied, by the output of a twin."""
    twin = copy.deepcopy(view).cpu()
    twin.take_norms_of(kept)
    shake(twin.model)
    inputs = tuple(resampled(tensor, BATCHES[0]) for tensor in twin.example)
    state = torch.get_rng_state()

    def works(*, delete: bool, training: bool) -> bool:
        trials = [copy.deepcopy(twin).train(training) for _ in range(2)]  # a call may move buffers
        _take_out(trials[1], gone, delete=delete)
        _look_up(trials[1], kept)
        torch.set_rng_state(state)
        expected = trials[0](inputs, kept)
        torch.set_rng_state(state)
        return same(trials[1].model(*inputs), expected)

    for delete in (True, False):
        with suppress(AttributeError, IndexError, KeyError, RuntimeError, TypeError):
            # In training a drop rate may go by the place of a block. Zeros draw numbers of their own.
            if works(delete=delete, training=False) and (
                not delete or works(delete=True, training=True)
            ):
                return delete
    raise StageCostError(
        f"{type(view.model).__name__} itself does not work without {view.paths[gone[0]]}: keep it, or "
        "use the cut of the view"
    )


def _look_up(view: "AdaptedNetwork", kept: Cut) -> None:
    """Look up all that a cut uses of the model: blocks that share a tensor find it in the first of them.

    Raises:
        AttributeError: some of it has left.
    """
    blocks = (block if kept.acts(k) else block.skip for k, block in enumerate(view.adapted))
    for part in (view.stem, *blocks, view.head):
        list(part.modules())


def _take_out(view: "AdaptedNetwork", gone: Iterable[int], *, delete: bool) -> None:
    """Take blocks out of the model: delete those with an identity skip, or leave what they need."""
    entries = dict[str, None]()
    for block in (view.adapted[k] for k in gone):
        entry = _entry(view.model, block)
        if delete and entry is not None and is_identity(block.skip):
            entries[entry] = None
            continue
        for path in block.branches:
            parent, name = _place(view.model, path)
            setattr(parent, name, Zeros().train(getattr(parent, name).training))
        if block.emptied is not None:
            parent, name = _place(view.model, block.path)
            setattr(parent, name, SkipOnly(block.emptied, getattr(parent, name), block.path))
    for entry in entries:
        delattr(*_place(view.model, entry))


def _entry(model: nn.Module, block: AdaptedBlock) -> str | None:
    """Return the entry of a Sequential or ModuleList that a block is, or that its branch is in."""
    paths = [block.path] if block.emptied is not None else block.branches
    entries = {_innermost_entry(model, path) for path in paths}
    entry = entries.pop() if len(entries) == 1 else None
    return entry if block.emptied is None or entry == block.path else None


def _innermost_entry(model: nn.Module, path: str) -> str | None:
    while path:
        parent, _ = _place(model, path)
        if isinstance(parent, nn.Sequential | nn.ModuleList):
            return path
        path = path.rpartition(".")[0]
    return None


def _place(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the parent of a module and the name that it has there."""
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name
