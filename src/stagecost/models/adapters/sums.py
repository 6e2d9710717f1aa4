"""Residual sums: where a module adds something to a skip of its input, and which term is the skip.

From what a module returns we walk back. The terms of a sum end where their ways meet; the skip is the
simplest of them: the state itself, else an affine map of it (projection, pooling, norm) beside terms
with a nonlinearity and parameters. Where terms are alike, the sum is left alone: nothing is guessed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from stagecost.models.adapters.kinds import JOINS, KINDS, PRODUCTS, SUMS, Kind, Term, choose_skips
from stagecost.models.adapters.tracing import Operation, Trace, Value, leaves


@dataclass(eq=False)
class ResidualSum:
    """A sum of skip terms and branches."""

    operation: Operation  #: that adds, last
    skips: list[Value]  #: terms that stay when the branches go; none where a concatenation loses a part
    branches: list[Value]  #: terms that go
    region: set[Operation] = field(repr=False)  #: functions on the ways of the branches
    owner: Operation  #: the innermost module call that holds the branches and the sum

    @property
    def start(self) -> int:
        """When the first branch begins."""
        return min((o.start for o in self.region), default=self.operation.start)

    def covers(self, call: Operation) -> bool:
        """Tell whether a call is made on the way of the branches, or has begun when the first one does.

        A module may begin with what does not depend on the state, such as the norm of its weights.
        """
        return max(call.end, call.start + 1) > self.start and call.start < self.operation.end


class Analysis:
    """The residual sums of a trace."""

    def __init__(self, trace: Trace) -> None:
        """Take a trace."""
        self.trace = trace
        self.undecided: dict[Operation, None] = {}  # sums whose terms are alike
        self.num_uses: dict[Value, int] = {}
        self.origins = {value: frozenset([value]) for value in trace.inputs}  # inputs of the model
        for function in trace.functions:
            before = (self.origins.get(value, frozenset()) for value in function.uses)
            self.origins.update(dict.fromkeys(function.makes, frozenset[Value]().union(*before)))
            for value in function.uses:
                self.num_uses[value] = self.num_uses.get(value, 0) + 1

    def kind(self, function: Operation, inner: set[Value]) -> Kind:
        """Tell what a function does to the values that depend on the state (`inner`)."""
        if function.name in PRODUCTS:
            factors = sum(value in inner for value in function.uses)
            return Kind.AFFINE if factors <= 1 else Kind.NONLINEAR
        return KINDS.get(function.name, Kind.NONLINEAR)

    def is_weight(self, value: Value) -> bool:
        """Tell whether a value is made of the model's tensors alone."""
        return value in self.trace.weights and value not in self.trace.varying

    def term(self, region: Iterable[Operation], inner: set[Value]) -> Term:
        """Describe what happens on the way from the state to a term of a sum."""
        functions = list(region)
        weighted = any(self.is_weight(value) for f in functions for value in f.uses)
        return Term(max((self.kind(f, inner) for f in functions), default=Kind.TRIVIAL), weighted)

    def innermost(self, start: int, end: int) -> Operation:
        """Return the innermost module call that holds some functions."""
        call = self.trace.root
        while True:
            inner = (o for o in call.inside if o.is_module and o.start <= start and end <= o.end)
            deeper = next(inner, None)
            if deeper is None:
                return call
            call = deeper

    def sums(self, call: Operation) -> list[ResidualSum]:
        """Return the residual sums on the way from what a module returns to what it is given.

        Empty where none of its inputs is reached.
        """
        return _Walk(self, call).sums()


class _Walk:
    """The way back through one call of a module, with the dominators of its values.

    The dominator of a value is the last one through which everything that it depends on has come.
    """

    def __init__(self, analysis: Analysis, call: Operation) -> None:
        self.analysis, self.trace, self.call = analysis, analysis.trace, call
        given = leaves((call.args, call.kwargs), Value)
        self.roots = {value for value in given if not self.trace.sources.get(value)}
        self.inner = set(self.roots)  # what depends on the inputs
        self.dominator: dict[Value, Value | None] = dict.fromkeys(self.roots)
        self.depth: dict[Value | None, int] = {None: 0, **dict.fromkeys(self.roots, 1)}
        for function in self.trace.functions[call.start : call.end]:
            self._dominate(function)

    def _dominate(self, function: Operation) -> None:
        uses = self.dependent(function)
        if not uses:
            return
        for value in uses:
            if value not in self.dominator:  # comes from outside, past the module's inputs
                self.dominator[value], self.depth[value] = None, 1
        self.inner.update(uses, function.makes)
        common = self.meet(uses)
        for value in function.makes:
            if value not in self.dominator and self.trace.producers[value] is function:
                self.dominator[value], self.depth[value] = common, self.depth[common] + 1

    def dependent(self, function: Operation) -> list[Value]:
        """Return what a function uses that depends on the inputs."""
        varying = (v for v in function.uses if v in self.trace.varying or v in self.inner)
        return list(dict.fromkeys(varying))

    def meet(self, values: Sequence[Value | None]) -> Value | None:
        """Return where the ways of some values part, seen from the inputs."""
        common = values[0]
        for value in values[1:]:
            other = value
            while common != other:
                if common is not None and self.depth[common] >= self.depth[other]:
                    common = self.dominator[common]
                else:
                    assert other is not None
                    other = self.dominator[other]
        return common

    def region(self, value: Value, stop: Value | None) -> set[Operation]:
        """Return the functions on the ways from `stop`, or from all inputs, to a value."""
        ends = self.roots if stop is None else {stop}
        region: set[Operation] = set()
        waiting = [value]
        while waiting:
            v = waiting.pop()
            function = self.maker(v)
            if v not in ends and function is not None and function not in region:
                region.add(function)
                waiting += self.dependent(function)
        return region

    def ways(self, start: Value, value: Value) -> set[Operation]:
        """Return the functions on the ways from one value to another, without what joins them."""
        made, behind = {start}, set[Operation]()
        for function in self.trace.functions[self.call.start : self.call.end]:
            if made.intersection(function.uses):
                made.update(function.makes)
                behind.add(function)
        return self.region(value, start) & behind

    def maker(self, value: Value) -> Operation | None:
        """Return the function of this call that made a value."""
        function = self.trace.producers.get(value)
        return function if function and self.call.start <= function.start < self.call.end else None

    def sums(self) -> list[ResidualSum]:
        sums: list[ResidualSum] = []
        joins: list[tuple[list[Value], Value | None]] = []
        reached, seen = False, set[Value]()
        waiting: list[Value | None] = [v for v in leaves(self.call.result, Value) if v in self.inner]
        while waiting:
            value = waiting.pop()
            if value is None:  # where ways from several inputs of the model meet
                reached = reached or len(self.trace.inputs) > 1
            if value is None or value in seen:
                continue
            seen.add(value)
            reached = reached or value in self.roots
            function = self.maker(value)
            if value in self.roots or function is None:
                continue
            uses = self.dependent(function)
            if self._is_sum(function):
                residual = self._residual_sum(function)
                sums += [residual] if residual else []
                single = residual is not None and len(residual.skips) == 1
                waiting.append(residual.skips[0] if residual and single else self.dominator[value])
            elif len(uses) > 1 and function.name in JOINS:
                joins.append((uses, self.meet(uses)))
                waiting += uses
            else:
                common = self.dominator[value]
                apart = common is None and self.call is self.trace.root  # such as a state and its mask
                waiting += uses if len(uses) == 1 or apart else [common]
        return sums + self._lost_parts(sums, joins) if reached else []

    def _is_sum(self, function: Operation) -> bool:
        plain = function.name in SUMS and "alpha" not in function.kwargs
        return plain and len(self._operands(function)) == 2

    def _operands(self, function: Operation) -> list[Value]:
        return [v for v in leaves((function.args, function.kwargs), Value) if v in self.inner]

    def _terms(self, function: Operation) -> list[Value]:
        """Return the terms of a sum; those of sums that only serve this one are its own."""
        terms: list[Value] = []
        waiting = [function]
        while waiting:
            for value in self._operands(waiting.pop()):
                maker = self.maker(value)
                single = self.analysis.num_uses.get(value, 0) == 1 and value not in self.roots
                if maker is not None and single and self._is_sum(maker):
                    waiting.append(maker)
                else:
                    terms.append(value)
        return terms

    def _residual_sum(self, function: Operation) -> ResidualSum | None:
        terms = self._terms(function)
        if len(set(terms)) < len(terms):
            return None
        stop = self.meet(terms)
        state = self._state_among(terms) if stop is None else None
        regions = [self.region(t, stop) if state is None else self.ways(state, t) for t in terms]
        chosen = choose_skips([self.analysis.term(region, self.inner) for region in regions])
        if not chosen:
            self.analysis.undecided[function] = None
            return None
        shapes = self.trace.shapes
        left = torch.broadcast_shapes(*(shapes[terms[i]] for i in chosen))  # type: ignore[no-untyped-call]
        if left != shapes[function.makes[0]]:
            return None  # without its branches the state would have another shape
        branches = [i for i in range(len(terms)) if i not in chosen]
        origins = [self.analysis.origins.get(term, frozenset()) for term in terms]
        skipped = frozenset[Value]().union(*(origins[i] for i in chosen))
        if skipped and any(skipped.isdisjoint(origins[i]) for i in branches):
            return None  # a sum of different inputs of the model
        if stop is None and self.call is self.trace.root:
            ways = set[Operation]().union(*(regions[i] for i in branches))
            if any(self._carries_on(inner, skipped) for inner in ways if self._is_sum(inner)):
                self.analysis.undecided[function] = None
                return None  # the state itself, to which another input is added
        region = set[Operation]().union(*(regions[i] for i in branches))
        start = min((f.start for f in region), default=function.start)
        owner = self.analysis.innermost(start, function.end)
        named = [terms[i] for i in chosen], [terms[i] for i in branches]
        return ResidualSum(function, *named, region, owner)

    def _state_among(self, terms: Sequence[Value]) -> Value | None:
        """Return the term of which all others are made, where these are given another input as well.

        The first input comes through it alone: what else is given, such as a condition or the states of
        an encoder, is not the state.
        """
        given = leaves((self.call.args, self.call.kwargs), Value)
        first = next((value for value in given if value in self.roots), None)
        for term in terms:
            others = [self.region(other, term) for other in terms if other != term]
            used = [{value for function in region for value in function.uses} for region in others]
            before = {value for function in self.region(term, None) for value in function.uses}
            through = first == term or (first in before and not any(first in values for values in used))
            if through and all(term in values for values in used):
                return term
        return None

    def _carries_on(self, function: Operation, skipped: frozenset[Value]) -> bool:
        """Tell whether a sum is residual, of a state that depends on more inputs than those skipped."""
        terms = self._operands(function)
        stop = self.meet(terms)
        origins = self.analysis.origins.get(terms[0], frozenset())
        kinds = [self.analysis.term(self.region(term, stop), self.inner) for term in terms]
        return stop is not None and skipped < origins and bool(choose_skips(kinds))

    def _lost_parts(
        self, sums: list[ResidualSum], joins: list[tuple[list[Value], Value | None]]
    ) -> list[ResidualSum]:
        """Return parts of concatenations that are made of nothing but a branch (rexnet, dpn)."""
        lost = []
        for parts, stop in joins:
            for part in parts:
                region = self.region(part, stop)
                term = self.analysis.term(region, self.inner)
                touched = next((s for s in sums if s.region & region), None)
                summed = any(s.operation in region for s in sums)
                maker = self.maker(part)
                if touched and maker and not summed and term.kind == Kind.NONLINEAR:
                    lost.append(ResidualSum(maker, [], [part], region, touched.owner))
        return lost
