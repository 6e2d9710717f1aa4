"""Models that a view would get wrong, and what is no model: each is refused in one line."""

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stagecost as sc
from models.own import EXAMPLE, WIDTH, Loop, branch, rows
from stagecost.errors import StageCostError


def _refusing(forward: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    class Odd(Loop):
        def forward(self, state: Tensor) -> Tensor:
            return forward(self, state)

    return Odd()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


def _without_gradients(model: nn.Module, state: Tensor) -> Tensor:
    with torch.no_grad():
        state = model.first(state)
    return model.last(state + model.branches[0](state))


def _in_half_precision(model: nn.Module, state: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = model.first(state)
    return model.last(state.float() + model.branches[0](state.float()))


def _by_values(model: nn.Module, state: Tensor) -> Tensor:
    if state.sum() > 0:
        state = model.first(state)
    return model.last(state + model.branches[0](state))


def _by_chance(model: nn.Module, state: Tensor) -> Tensor:
    if not model.training or torch.rand(()) < 1:  # a layer that is dropped now and then
        state = state + model.branches[0](state)
    return model.last(state)


def _by_chance_of_python(model: nn.Module, state: Tensor) -> Tensor:
    if not model.training or random.random() < 1:
        state = state + model.branches[0](state)
    return model.last(state)


def _by_chance_of_numpy(model: nn.Module, state: Tensor) -> Tensor:
    if not model.training or np.random.uniform() < 1:  # noqa: NPY002 (as models of others do)
        state = state + model.branches[0](state)
    return model.last(state)


def _by_a_question(model: nn.Module, state: Tensor) -> Tensor:
    """The answer is the same for every input but the one that matters."""
    state = state + model.branches[0](state)
    return model.last(state) if torch.is_nonzero(state.sum()) else model.first(state)


def _by_a_member(model: nn.Module, state: Tensor) -> Tensor:
    state = state + model.branches[0](state)
    return model.first(state) if 7.0 in state else model.last(state)


def _by_another_rule(model: nn.Module, state: Tensor) -> Tensor:
    state = Doubled.apply(state)
    return model.last(state + model.branches[0](state))


def _pairs(model: nn.Module, state: Tensor) -> Tensor:
    state = state + model.branches[0](state)
    return model.last(state), state  # type: ignore[return-value]


def _alike(model: nn.Module, state: Tensor) -> Tensor:
    return model.last(model.branches[0](state) + model.branches[1](state))


def _by_the_batch(model: nn.Module, state: Tensor) -> Tensor:
    state = state * (1.0 + 1.0 / len(state))
    return model.last(state + model.branches[0](state))


def _by_a_weight(model: nn.Module, state: Tensor) -> Tensor:
    """The number would stay what it was when the view was made."""
    return model.last(state + model.last.bias[0].item() * model.branches[0](state))


def _by_one_sample(model: nn.Module, state: Tensor) -> Tensor:
    state = model.first(state) if len(state) > 1 else state
    return model.last(state + model.branches[0](state))


def _by_many_samples(model: nn.Module, state: Tensor) -> Tensor:
    state = model.first(state) if len(state) < 4 else state
    return model.last(state + model.branches[0](state))


class ByItsGain(nn.Module):
    """A block that goes by the number of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.gain = branch(), nn.Parameter(torch.ones(()))

    def forward(self, state: Tensor) -> Tensor:
        return (state + self.branch(state)) * self.gain.item()


def test_a_block_that_goes_by_the_number_of_a_weight_is_refused() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), ByItsGain(), ByItsGain(), nn.Linear(WIDTH, 3))
    with pytest.raises(StageCostError, match=r"1 goes on by the values of its tensors \(item\)"):
        sc.adapt(model, EXAMPLE)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (_by_a_weight, "values of its tensors"),
        (_by_one_sample, "for a batch of 1"),
        (_by_many_samples, "for a batch of 5"),
        (_without_gradients, "switches gradients"),
        (_in_half_precision, "autocast"),
        (_by_values, "values of its tensors"),
        (_by_chance, "values of its tensors"),
        (_by_chance_of_python, "random numbers of Python"),
        (_by_chance_of_numpy, "random numbers of NumPy"),
        (_by_a_question, r"values of its tensors \(is_nonzero\)"),
        (_by_a_member, r"values of its tensors \(__contains__\)"),
        (_by_another_rule, "switches gradients"),
        (_pairs, "no single tensor"),
        (_alike, "ambiguous"),
        (_by_the_batch, "another batch size"),
    ],
)
def test_what_a_view_would_get_wrong_is_refused_in_a_line(
    forward: Callable[[nn.Module, Tensor], Tensor], reason: str
) -> None:
    with pytest.raises(StageCostError, match=reason) as caught:
        sc.adapt(_refusing(forward), EXAMPLE)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("Odd cannot be viewed as a residual network: ")


@pytest.mark.parametrize("name", ["in", "class", 'a"b', "a\\b", "a\nb"])
def test_names_that_no_code_can_say_are_refused_in_a_line(name: str) -> None:
    model = Loop()
    model.branches = nn.Sequential(OrderedDict((other, branch()) for other in ("2", "a b", name)))
    with pytest.raises(StageCostError, match="a name that cannot stand in code: rename it") as caught:
        sc.adapt(model, EXAMPLE)
    assert "\n" not in str(caught.value)


class Table(Loop):
    """Its first pass makes a table for all others: an attribute, or one of the entries of a dict."""

    def __init__(self, *, hidden: bool) -> None:
        super().__init__()
        self.table = None
        self.hidden: dict[str, Tensor] | None = {} if hidden else None

    def forward(self, state: Tensor) -> Tensor:
        held = vars(self) if self.hidden is None else self.hidden
        if held.get("table") is None:
            held["table"] = torch.arange(WIDTH) / WIDTH
        return super().forward(state * held["table"])


def test_tables_that_the_first_pass_makes_are_named_with_a_remedy() -> None:
    for hidden in (False, True):
        model = Table(hidden=hidden).eval()
        with pytest.raises(StageCostError, match="call the model once before"):
            sc.adapt(model, EXAMPLE)
        model(rows())
        if hidden:
            with pytest.raises(StageCostError, match="nor an attribute of the model: make it a buffer"):
                sc.adapt(model, EXAMPLE)
        else:
            assert torch.equal(sc.adapt(model, EXAMPLE)(rows()), model(rows()))


def test_a_cell_of_deep_branches_is_no_residual_block() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Sequential(branch(), nn.Tanh(), branch()) for _ in range(3))

        def forward(self, state: Tensor) -> Tensor:
            a, b, c = (part(state) for part in self.parts)
            return torch.cat([a + state, b + c], dim=1)

    with pytest.raises(StageCostError, match=r"ambiguous|no residual block"):
        sc.adapt(nn.Sequential(Cell(), nn.Linear(2 * WIDTH, 2)), EXAMPLE)


def test_other_shapes_need_another_view() -> None:
    view = sc.adapt(Loop(), EXAMPLE)
    with pytest.raises(StageCostError, match="adapt the model once more"):
        view(torch.zeros(2, WIDTH + 1))


def test_what_cannot_be_copied_or_run_is_refused_in_a_line() -> None:
    model = Loop()
    model.kept = model(rows()) * 2  # a tensor with a history
    with pytest.raises(StageCostError, match="cannot be copied"):
        sc.adapt(model, EXAMPLE)
    with pytest.raises(StageCostError, match=r"fails on inputs of \(2, 5\)"):
        sc.adapt(Loop(), torch.zeros(1, 5))


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (lambda x: x, torch.zeros(2, 3), "a function is no network: give a torch.nn.Module"),
        (nn.Linear(3, 3), torch.zeros(0, 3), "the example holds no numbers"),
        (nn.Linear(3, 3), None, "inputs hold a NoneType: give a tensor"),
        (nn.Linear(3, 3), torch.zeros(2, 3, device="meta"), "the example holds no numbers"),
        (nn.Linear(3, 3), torch.ones(2, 3).to_sparse(), r"the example is sparse: give its to_dense\(\)"),
        (
            nn.LazyLinear(3),
            torch.zeros(2, 3),
            "weight has no shape yet: call the model once with a batch",
        ),
        (nn.Sequential(nn.LazyBatchNorm1d()), torch.zeros(2, 3), "0.weight has no shape yet"),
    ],
)
def test_what_is_no_model_or_no_example(model: Any, example: Tensor, words: str) -> None:
    with pytest.raises(sc.StageCostError, match=words):
        sc.adapt(model, example)
