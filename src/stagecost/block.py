"""One residual block: x_{k+1} = S_k(x_k) + F_k(x_k)."""

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """One step of the dynamics: x_{k+1} = S_k(x_k) + F_k(x_k).

    Any module with `skip`, the block with its branch removed, and `residual`, which holds the weights of
    the branch, can stand in its place.
    """

    def __init__(self, residual: nn.Module, skip: nn.Module | None = None) -> None:
        """Create a block; without `skip` the skip connection is the identity."""
        super().__init__()
        self.residual = residual
        self.skip = nn.Identity() if skip is None else skip

    def forward(self, state: Tensor) -> Tensor:
        """Map x_k, (B, C, H, W), to x_{k+1}."""
        following: Tensor = self.skip(state) + self.residual(state)
        return following
