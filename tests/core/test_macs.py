"""MACs: counted by hand, by layers and by torch agree, and what fuses or has no layer counts."""

import pytest
import torch
from torch import Tensor, nn

import stagecost as sc
from helpers import BUILDERS, build, images
from stagecost.cut import Cut
from stagecost.macs import macs_by_branch, macs_by_part


def test_macs_are_those_of_a_count_by_hand() -> None:
    network = build("staged")
    x, parts = images(1), macs_by_part(network, (3, 16, 16))
    by_hand = [3 * 4 * 9 * 256]
    width_in, size = 4, 16
    for stage, width in zip(network.stages, (4, 6, 8), strict=True):
        for position, _ in enumerate(stage):
            size //= 2 if width != 4 and position == 0 else 1
            projection = width_in * width if width_in != width else 0
            by_hand.append((9 * width_in * width + 9 * width * width + projection) * size * size)
            width_in = width
    by_hand.append(8 * 5)
    assert parts == by_hand
    assert sc.count_macs(network, x.shape[1:]) == sum(by_hand)


class LinearHead(nn.Linear):
    """The same for every depth."""

    def forward(self, state: Tensor, depth: int) -> Tensor:
        return super().forward(state)


class Bilinear(nn.Module):
    """A branch whose product torch's counter does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Bilinear(4, 4, 4)

    def forward(self, rows: Tensor) -> Tensor:
        return self.map(rows, rows)


class ByVectors(nn.Module):
    """The same: a matrix times each vector."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4))

    def forward(self, rows: Tensor) -> Tensor:
        added = rows.new_ones(4) * torch.dot(rows[0], rows[0])
        return torch.stack([torch.addmv(added, self.matrix, self.matrix.mv(row)) for row in rows])


class BySums(ByVectors):
    """The same: a product for each of two halves, which are summed."""

    def forward(self, rows: Tensor) -> Tensor:
        halves = torch.stack([rows[:, :2], rows[:, 2:]])
        return torch.addbmm(rows, halves, self.matrix.view(2, 2, 4))


class OverTime(ByVectors):
    """The same: a convolution whose first dimension is time, three steps long."""

    def forward(self, rows: Tensor) -> Tensor:
        return torch.conv_tbc(rows[:, None], self.matrix.expand(3, 4, 4), rows.new_zeros(4), 1)[:, 0]


@pytest.mark.parametrize(
    ("branch", "macs"),
    [
        (Bilinear, 4 * 4 * 4),
        (ByVectors, 2 * 4 * 4 + 4),
        (BySums, 2 * 2 * 4),
        (OverTime, 3 * 4 * 4),
    ],
)
def test_products_that_are_no_layers_count(branch: type[nn.Module], macs: int) -> None:
    network = sc.ResidualNetwork(nn.Linear(3, 4), [sc.ResidualBlock(branch())], LinearHead(4, 5))
    assert macs_by_part(network, (3,)) == [12, macs, 20]


class Tabled(nn.Module):
    """A layer behind a table on the CPU, which meta tensors do not go together with."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, rows: Tensor) -> Tensor:
        outputs = self.layer(rows[None] + torch.arange(4))
        return (outputs if isinstance(outputs, Tensor) else outputs[0])[0]


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.LSTM(4, 4, batch_first=True), 8 * 4 * 4),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 4 * 4 * 4 + 2 * 4 + 2 * 4 * 8),
    ],
)
def test_what_the_cpu_fuses_counts(layer: nn.Module, macs: int) -> None:
    network = sc.ResidualNetwork(nn.Linear(3, 4), [sc.ResidualBlock(Tabled(layer))], LinearHead(4, 5))
    assert macs_by_part(network, (3,)) == [12, macs, 20]
    assert torch.backends.mha.get_fastpath_enabled(), "as it was"


class Called(nn.Sequential):
    """A module of somebody else's code, which may do more than call its layers."""


@pytest.mark.parametrize("name", BUILDERS)
def test_macs_are_those_of_the_counter_of_torch(name: str) -> None:
    """A network of plain layers is counted by their calls, any other one by torch's own counter."""
    network, other, shape = build(name), build(name), (3, 32, 32)
    other.stem = Called(other.stem)
    assert macs_by_part(network, shape) == macs_by_part(other, shape)
    cut = Cut.first(2)
    assert sc.count_macs(network, shape, cut) == sc.count_macs(other, shape, cut)
    skips, *branches = macs_by_branch(network, shape)  # of y_0: all skips, no branch
    for each in (Cut.first(0), cut, Cut.without(0).among(network.stage_positions)):
        assert sc.count_macs(network, shape, each) == skips + sum(branches[k] for k in each.blocks)


class OfItself(nn.Module):
    """Products without a weight."""

    def forward(self, state: Tensor) -> Tensor:
        return state @ state.mT @ state


def test_what_was_traced_is_code_of_somebody_else() -> None:
    network, other, shape = build("homogeneous"), build("homogeneous"), (3, 32, 32)
    network.stem = torch.fx.symbolic_trace(nn.Sequential(network.stem, OfItself()))
    other.stem = Called(other.stem, OfItself())
    assert macs_by_part(network, shape) == macs_by_part(other, shape)
