"""Networks whose forward calls one block twice: what can be kept, and what is offered."""

import pytest
import torch
from torch import Tensor, nn

import stagecost as sc
from stagecost.errors import StageCostError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("calls", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Moving(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.calls.mul_(1.01)  # type: ignore[operator]
        return x + self.calls * self.branch(x)


class Network(nn.Module):
    def __init__(self, block: type[Block], order: tuple[int, ...]) -> None:
        super().__init__()
        self.order, self.blocks = order, nn.ModuleList(block() for _ in range(3))
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        for place in self.order:
            x = self.blocks[place](x)
        return self.head(x.mean(dim=(2, 3)))


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_block_that_is_called_twice_stays_for_both_calls() -> None:
    view = sc.adapt(Network(Block, (0, 1, 1, 2)).eval(), IMAGES)
    assert view.num_blocks == 4
    whole = view.keep(sc.Cut.whole())
    assert torch.equal(whole(IMAGES), view(IMAGES))
    assert view.can_keep(sc.Cut.whole())
    for blocks in ((0, 1, 3), (0, 2), (1,)):
        assert not view.can_keep(sc.Cut(blocks))
        with pytest.raises(StageCostError, match="called several times"):
            view.keep(sc.Cut(blocks))


def test_a_branch_that_is_called_twice_stays_for_both_calls() -> None:
    class Sums(Network):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x)
            return self.head(x.mean(dim=(2, 3)))

    model = Sums(Block, ()).eval()
    model.blocks[1] = model.blocks[0] = model.blocks[0].branch
    view = sc.adapt(model, IMAGES)
    for cut in (sc.Cut((0, 2)), sc.Cut((1,))):
        assert not view.can_keep(cut)
        with pytest.raises(StageCostError, match="called several times"):
            view.keep(cut)
    assert view.can_keep(sc.Cut((0, 1)))
    small = view.keep(sc.Cut((0, 1)))
    assert torch.equal(small(IMAGES), view(IMAGES, sc.Cut((0, 1))))
    assert torch.equal(small.model(IMAGES), small(IMAGES))


def test_the_whole_of_a_network_that_moves_buffers_can_be_kept() -> None:
    model = Network(Moving, (0, 1, 2)).eval()
    view = sc.adapt(model, IMAGES)
    assert view.keep(sc.Cut.whole()).num_blocks == 3
