"""A view does the code of some modules in their place: it refuses to go on where that has changed."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stagecost as sc
from models.own import EXAMPLE, WIDTH, Loop, branch, rows
from stagecost.cut import Cut
from stagecost.errors import StageCostError


class Encoder(nn.Module):
    """Code of its own that goes by its own mode, or by a number that it holds."""

    def __init__(self, share: float, *, by_mode: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(branch() for _ in range(2))
        self.share, self.by_mode = share, by_mode

    def forward(self, state: Tensor) -> Tensor:
        for layer in self.layers:
            change = F.dropout(layer(state), 0.5, self.training) if self.by_mode else layer(state)
            state = state + self.share * change
        return state


def test_a_view_refuses_a_model_that_has_changed_in_its_own_code() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Encoder(1.0, by_mode=True), nn.Linear(WIDTH, 3))
    view, x = sc.adapt(model, EXAMPLE), rows()
    for mode in (True, False):
        view.train(mode)
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        assert torch.equal(view(x), expected)
    view.train()
    model[1].eval()
    with pytest.raises(StageCostError, match="1 is in eval mode and the model is not"):
        view(x)
    model.eval()
    model[1].share = 0.5
    with pytest.raises(
        StageCostError, match=r"share of 1 was 1.0 when the view was made, and is 0.5 now"
    ):
        view.keep(Cut.first(1))(x)
    torch.testing.assert_close(sc.adapt(model, EXAMPLE)(x), model(x))


class Switched(Loop):
    """Code that goes by a switch and a list of rates."""

    def __init__(self) -> None:
        super().__init__()
        self.doubled, self.rates, self.grad_checkpointing = False, [1.0, 0.5, 0.25, 0.125], False

    def forward(self, state: Tensor) -> Tensor:
        state = self.first(state)
        for rate, one in zip(self.rates, self.branches, strict=True):
            state = state + (2 * rate if self.doubled else rate) * one(state)
        return self.last(state)


def test_switches_and_lists_are_watched() -> None:
    model, x = Switched().eval(), rows()
    view = sc.adapt(model, EXAMPLE)
    model.grad_checkpointing = True  # which changes no number
    assert torch.equal(view(x), model(x))
    model.doubled = True
    with pytest.raises(StageCostError, match=r"doubled of the model was False .* and is True now"):
        view(x)
    model.doubled = False
    model.rates[1] = 1.0
    with pytest.raises(StageCostError, match=r"rates of the model was \(1.0, 0.5, .* \[1.0, 1.0, "):
        view(x)
    model.rates[1] = 0.5
    assert torch.equal(view(x), model(x))


class Gained(nn.Module):
    """A block whose skip calls nothing: the view does all of its code for y_k."""

    def __init__(self, gain: object) -> None:
        super().__init__()
        self.gain, self.branch = gain, branch()

    def forward(self, state: Tensor) -> Tensor:
        return F.dropout(state * self.gain + self.branch(state), 0.2, self.training)


@pytest.mark.parametrize("gain", [0.5, 1, np.float64(0.5), np.float32(0.5)])
def test_code_of_a_block_that_is_done_for_its_skip_is_watched(gain: object) -> None:
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), Gained(gain), Gained(gain), nn.Linear(WIDTH, 3)
    ).eval()
    view, x = sc.adapt(model, EXAMPLE), rows()
    expected = model[3](model[0](x) * gain * gain)
    torch.testing.assert_close(view(x, depths=0), expected)
    model[2].gain = 0.9
    with pytest.raises(StageCostError, match=r"gain of 2 was .* and is 0.9 now: adapt"):
        view(x, depths=0)
    model[2].gain = gain
    view.train()
    model[1].eval()
    with pytest.raises(StageCostError, match="1 is in eval mode and the model is not"):
        view(x, depths=0)


class Scaled(nn.Module):
    """Its result is a sum with dropout by its own mode, and what follows the sum is in a part of it."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = branch(), nn.LayerNorm(WIDTH)

        def forward(self, state: Tensor) -> Tensor:
            return self.norm(state + F.dropout(self.layer(state), 0.5, self.training))

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.Inner()

    def forward(self, state: Tensor) -> Tensor:
        return self.inner(state) * (0.5 if self.training else 1.0)


def test_what_is_left_of_a_block_is_in_its_mode() -> None:
    blocks = nn.Sequential(*(Scaled() for _ in range(3)))
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), blocks, nn.Linear(WIDTH, 3)).eval()
    view, x, cut = sc.adapt(model, EXAMPLE), rows(), Cut((0, 2))
    small = view.keep(cut)
    assert not any(module.training for module in small.model.modules())
    torch.testing.assert_close(small(x), view(x, cut))


def test_what_a_forward_notes_for_others_is_not_watched() -> None:
    class Notes(Loop):
        def forward(self, state: Tensor) -> Tensor:
            self.seconds, self.calls = time.perf_counter(), getattr(self, "calls", 0) + 1
            return super().forward(state)

    view = sc.adapt(Notes(), EXAMPLE)
    view.model(rows())
    assert torch.equal(view(rows()), view.model(rows()))


def test_words_that_a_model_holds_are_watched() -> None:
    class Pooled(Loop):
        pool = "mean"

        def __init__(self) -> None:
            super().__init__()
            self.pool = "mean"

        def forward(self, state: Tensor) -> Tensor:
            output = super().forward(state)
            return output if self.pool == "mean" else 2 * output

    view = sc.adapt(Pooled(), EXAMPLE)
    view.model.pool = "twice"
    with pytest.raises(StageCostError, match="pool of the model was mean"):
        view(rows())


def test_a_frozen_part_that_knows_no_mode_of_its_own_may_be_in_another() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Encoder(0.5, by_mode=False), nn.Linear(WIDTH, 3))
    view = sc.adapt(model, EXAMPLE).train()
    model[1].eval()
    assert torch.equal(view(rows()), model(rows()))
