"""Own modules whose forward, and that of every cut, is written out by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecost.cut import Cut

WIDTH, BLOCKS = 6, 4
EXAMPLE = torch.zeros(1, WIDTH)


def rows(count: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def branch(width: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))


class Loop(nn.Module):
    """Branches in a list; the sums stand in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.branches = nn.ModuleList(branch() for _ in range(BLOCKS))

    def forward(self, state: Tensor) -> Tensor:
        state = self.first(state)
        for one in self.branches:
            state = state + one(state)
        return self.last(state)

    def cut(self, state: Tensor, cut: Cut) -> Tensor:
        state = self.first(state)
        for k, one in enumerate(self.branches):
            state = state + one(state) if cut.acts(k) else state
        return self.last(state)


class Block(nn.Module):
    """A block with relu after the sum, in place; its skip is a projection where the width changes."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Linear(width_in, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)
        )
        self.projection = nn.Linear(width_in, width) if width != width_in else None

    def forward(self, state: Tensor) -> Tensor:
        following = self.branch(state)
        following += state if self.projection is None else self.projection(state)
        return F.relu(following, inplace=True)

    def skip(self, state: Tensor) -> Tensor:
        return F.relu(state if self.projection is None else self.projection(state))


class Staged(nn.Module):
    """Two stages of such blocks, a transition between them, and a head with BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU())
        self.stage_1 = nn.Sequential(Block(8, 8), Block(8, 8))
        self.between = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU())
        self.stage_2 = nn.Sequential(Block(8, 5), Block(5, 5))
        self.head = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3))

    def forward(self, state: Tensor) -> Tensor:
        return self.head(self.stage_2(self.between(self.stage_1(self.stem(state)))))

    def cut(self, state: Tensor, cut: Cut) -> Tensor:
        state = self.stem(state)
        for k, block in enumerate([*self.stage_1, *self.stage_2]):
            state = self.between(state) if k == 2 else state
            state = block(state) if cut.acts(k) else block.skip(state)
        return self.head(state)
