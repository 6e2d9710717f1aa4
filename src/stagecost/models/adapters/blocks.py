"""A model's forward as a flat list of calls in which each residual block is one item.

A block is a module that holds residual sums (the outermost one), or a stretch of a container's forward.
Everything else between blocks always acts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from stagecost.errors import StageCostError
from stagecost.models.adapters.kinds import WEIGHTED, Kind
from stagecost.models.adapters.program import needed, refuse_readings
from stagecost.models.adapters.sums import Analysis, ResidualSum
from stagecost.models.adapters.tracing import Operation, Trace, Value, leaves

MAX_LAYERS = 2  # that a skip path may not have, one after the other
MAX_SUMS = 6  # a forward with more residual sums is a loop over branches, not one block


@dataclass(eq=False)
class Stretch:
    """A residual block in the flow."""

    path: str  #: of its module, or "container#2" for the third sum in a container's forward
    step: list[Operation]  #: what it does
    skip: list[Operation]  #: what is left of that without the branches
    call: Operation | None  #: of its module; None where it is a part of a container's forward
    branches: list[str]  #: modules that serve a branch and nothing else, by path


@dataclass
class Flow:
    """A model's forward: `between[k]` comes before block k, `between[N]` is the head."""

    trace: Trace
    blocks: list[Stretch]
    between: list[list[Operation]]

    @property
    def output(self) -> Value:
        """What the model returns."""
        result = self.trace.root.result
        assert isinstance(result, Value)
        return result

    def live(self) -> list[list[Value]]:
        """Return the values that each state x_0 … x_N consists of, as they are made."""
        made, states = list(self.trace.inputs), []
        for k, between in enumerate(self.between):
            if k == 0:
                made += _made(between)
            later = self.after(k)
            uses = {value for operation in later for value in operation.uses} | {self.output}
            states.append([value for value in dict.fromkeys(made) if value in uses])
            made += [] if k == 0 else _made(between)
            made += _made(self.blocks[k].step) if k < len(self.blocks) else []
        return states

    def after(self, k: int) -> list[Operation]:
        """Return all that follows x_k and matters for the output."""
        later = list(self.between[k]) if k else []
        for block, between in zip(self.blocks[k:], self.between[k + 1 :], strict=True):
            later += [*block.step, *between]
        return needed(later, [self.output], ())


def _made(operations: Iterable[Operation]) -> list[Value]:
    return [value for operation in operations for value in operation.makes]


def flow_of(trace: Trace, *, split_branches: bool) -> Flow:
    """Find the residual blocks of a forward pass; `split_branches` takes each residual sum for a block.

    Raises:
        StageCostError: the model returns no tensor, there is no block, or one cannot be taken apart.
    """
    if not isinstance(trace.root.result, Value):
        raise StageCostError("it returns no single tensor: wrap it in a module that does")
    analysis = Analysis(trace)
    whole, loose = _owners(analysis, split_branches)
    if not whole and not loose:
        raise StageCostError(_why_none(analysis))
    opened = {holder for call in (*whole, *loose) for holder in call.holders()} | set(loose)
    items = list(_flatten(trace.root, opened))
    refuse_readings(trace, opened)
    stretches = {call: _block_of_module(analysis, call) for call in whole}
    line: list[Operation | Stretch] = [stretches.get(item, item) for item in items]
    for call, sums in loose.items():
        for number, residual in enumerate(sorted(sums, key=lambda s: s.operation.start)):
            _insert(trace, line, f"{call.target or 'model'}#{number}", residual)
    return _split(trace, line)


def _why_none(analysis: Analysis) -> str:
    if not analysis.undecided:
        return "it has no residual block: nothing in it is added to a skip of what it is given"
    places = {analysis.innermost(o.start, o.end).target or "its forward" for o in analysis.undecided}
    place = min(map(str, places))
    return f"it is ambiguous: the terms of the sum in {place} are alike, so none is plainly the skip"


def _split(trace: Trace, line: Sequence[Operation | Stretch]) -> Flow:
    blocks: list[Stretch] = []
    between: list[list[Operation]] = [[]]
    for item in line:
        if isinstance(item, Stretch):
            blocks.append(item)
            between.append([])
        else:
            between[-1].append(item)
    return Flow(trace, blocks, between)


def _owners(
    analysis: Analysis, split_branches: bool
) -> tuple[list[Operation], dict[Operation, list[ResidualSum]]]:
    """Return calls that are blocks, and the sums that stand loosely in the forward of a container."""
    owners: dict[Operation, list[ResidualSum]] = {}
    for call in analysis.trace.root.calls():
        sums = [s for s in analysis.sums(call) if s.owner is call]
        if sums and (call is analysis.trace.root or _leaves_a_skip(analysis, call)):
            owners[call] = sums
    root = analysis.trace.root
    loose = {c: sums for c, sums in owners.items() if c is root or _is_loop(c, sums)}
    whole = [c for c in owners if c not in loose]
    whole = [c for c in whole if not set(whole).intersection(c.holders())]
    loose = {c: sums for c, sums in loose.items() if not set(whole).intersection(c.holders())}
    if split_branches:
        loose |= {c: owners[c] for c in whole if sum(bool(s.skips) for s in owners[c]) > 1}
        whole = [c for c in whole if c not in loose]
    outer = {c: [s for s in sums if not _spans(s, whole)] for c, sums in loose.items()}
    return whole, {c: sums for c, sums in outer.items() if sums}


def _is_loop(call: Operation, sums: Sequence[ResidualSum]) -> bool:
    """Tell whether a forward goes through a list of branches, so that it is more than one block.

    Two sums then have modules of one list: of a parent that is not called itself.
    """
    lists = []
    for residual in sums:
        inside = [o for o in call.inside if o.is_module and residual.covers(o)]
        parents = {str(o.target).rpartition(".")[0] for o in inside}
        lists.append(parents - {str(call.target)})
    shared = any(a & b for i, a in enumerate(lists) for b in lists[:i])
    return shared or len(sums) > MAX_SUMS


def _spans(residual: ResidualSum, blocks: Iterable[Operation]) -> bool:
    """Tell whether blocks stand inside the branch of a sum: a long skip, which stays as it is."""
    return any(residual.start <= b.start and b.end <= residual.operation.end for b in blocks)


def _flatten(call: Operation, opened: set[Operation]) -> Iterator[Operation]:
    for operation in call.inside:
        if operation in opened:
            yield from _flatten(operation, opened)
        else:
            yield operation


def _block_of_module(analysis: Analysis, call: Operation) -> Stretch:
    refuse_readings(analysis.trace, _opened(analysis, call))
    return Stretch(str(call.target), [call], _skip_of_module(analysis, call), call, [])


def _opened(analysis: Analysis, call: Operation) -> set[Operation]:
    """Return the module calls around the sums of a block: its skip path does their code."""
    return {holder for s in analysis.sums(call) for holder in s.operation.holders()}


def _skip_of_module(analysis: Analysis, call: Operation) -> list[Operation]:
    sums, opened = analysis.sums(call), _opened(analysis, call)
    given = leaves((call.args, call.kwargs), Value)
    like = next(value for value in given if not analysis.trace.sources.get(value))
    return _without_branches(analysis.trace, _flatten(call, opened), sums, like)


def _leaves_a_skip(analysis: Analysis, call: Operation) -> bool:
    """Tell whether what is left of a module without its branches is plainer than a network.

    A cell of NASNet, in which several deep branches are summed by pairs, is no residual block.
    """
    results = leaves(call.result, Value)
    return len(results) > 1 or layers_on(analysis, _skip_of_module(analysis, call), results) < MAX_LAYERS


def layers_on(analysis: Analysis, operations: Iterable[Operation], wanted: Sequence[Value]) -> int:
    """Count the layers, a nonlinearity and then weights, one after the other on the way to values."""
    depth: dict[Value, tuple[int, bool]] = {}  # layers so far, and whether a nonlinearity came last
    for function in _functions(analysis.trace, needed(operations, wanted, ())):
        layers, bent = max((depth.get(value, (0, False)) for value in function.uses), default=(0, False))
        if (
            function.target is not None
            and analysis.kind(function, analysis.trace.varying) == Kind.NONLINEAR
        ):
            bent = True
        elif bent and function.name in WEIGHTED:
            layers, bent = layers + 1, False
        depth.update(dict.fromkeys(function.makes, (layers, bent)))
    return max(depth.get(value, (0, False))[0] for value in wanted)


def _functions(trace: Trace, operations: Iterable[Operation]) -> Iterator[Operation]:
    for operation in operations:
        if operation.is_module:
            yield from trace.functions[operation.start : operation.end]
        else:
            yield operation


def _without_branches(
    trace: Trace, operations: Iterable[Operation], sums: Iterable[ResidualSum], like: Value | None
) -> list[Operation]:
    """Put the skip terms in the place of sums, and zeros in that of what is a branch alone."""
    replaced = {s.operation: s for s in sums}

    def left_of(operation: Operation) -> Operation:
        if operation not in replaced:
            return operation
        skips, result = replaced[operation].skips, operation.result
        if skips:
            return replace(operation, target=None, args=tuple(skips), kwargs={}, changed={})
        if like is None or not isinstance(result, Value):
            raise StageCostError(
                "it concatenates a branch with something else, in the forward of a container"
            )
        zeros = (like, trace.shapes[result])
        return replace(operation, target=Tensor.new_zeros, args=zeros, kwargs={}, changed={})

    return [left_of(operation) for operation in operations]


def _insert(trace: Trace, line: list[Operation | Stretch], path: str, residual: ResidualSum) -> None:
    """Make one item of the stretch of calls that computes a residual sum."""
    inside = [i for i, o in enumerate(line) if isinstance(o, Operation) and residual.covers(o)]
    stretch = line[inside[0] : inside[-1] + 1] if inside else []
    step = [o for o in stretch if isinstance(o, Operation)]
    if len(step) < len(stretch) or residual.operation not in step:
        return  # another block stands in it
    skip = _without_branches(trace, step, [residual], None)
    # Not from its branches: of one that ends in a sum of its own they are within its module.
    ways = needed(step, residual.operation.uses, residual.skips)
    branches = [str(o.target) for o in ways if o.is_module]
    line[inside[0] : inside[-1] + 1] = [Stretch(path, step, skip, None, branches)]
