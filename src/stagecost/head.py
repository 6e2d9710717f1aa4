"""The output head H and its normalisation, which sees the states of every depth.

A head BatchNorm that serves N+1 outputs meets N+1 distributions. One set of running statistics, updated
once an output, fits none of them in eval mode. So the policy is explicit:

`per_output` (default)
    Each output has running statistics of its own (buffers; the affine weights are shared, so no
    parameter is added). Eval mode is exact for every depth, and a truncated network takes along
    the row of its own last state.
`terminal`
    One set, updated by the terminal output alone: the terminal output is exactly that of plain
    training, intermediate outputs are normalised in eval mode as if they came from x_N.

In training mode both normalise each output by the statistics of its own batch.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stagecost.errors import StageCostError

StatisticsPolicy = Literal["per_output", "terminal"]


class OutputBatchNorm2d(_BatchNorm):
    """Batch normalisation of states whose running statistics know the depth (see the module's text).

    Buffers `running_mean` and `running_var` have shape (R, C) and `num_batches_tracked` (R,), where
    R is N+1 for the policy `per_output` and 1 for the others.
    """

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        statistics: StatisticsPolicy = "per_output",
    ) -> None:
        """Create the normalisation of `num_features` channels for the outputs y_0 … y_N."""
        super().__init__(num_features)
        if statistics not in get_args(StatisticsPolicy):
            raise StageCostError(
                f"head statistics {statistics!r} is unknown: choose from {get_args(StatisticsPolicy)}"
            )
        self.num_outputs = num_outputs
        self.statistics: StatisticsPolicy = statistics
        rows = num_outputs if statistics == "per_output" else 1
        self.register_buffer("running_mean", torch.zeros(rows, num_features))
        self.register_buffer("running_var", torch.ones(rows, num_features))
        self.register_buffer("num_batches_tracked", torch.zeros(rows, dtype=torch.long))

    def forward(self, state: Tensor, depth: int) -> Tensor:  # type: ignore[override]
        """Normalise the state of one depth.

        Args:
            state: (B, C, H, W), x_k after its skip chain.
            depth: k, from 0 to N.
        """
        mean, variance, factor = self.count_batch(depth)
        return F.batch_norm(
            state, mean, variance, self.weight, self.bias, self.training, factor, self.eps
        )

    def count_batch(self, depth: int) -> tuple[Tensor | None, Tensor | None, float]:
        """Count a batch in training; return the statistics (C,) that it moves, and its weight in them.

        In evaluation they are those that normalise. In training there may be none that a batch moves.
        """
        moves = self.statistics != "terminal" or depth == self.num_outputs - 1
        if self.training and not (moves and self.track_running_stats):
            return None, None, 0.0
        assert self.running_mean is not None
        assert self.running_var is not None
        row = self.row(depth)
        factor = self._averaging_factor(row) if self.training else 0.0
        return self.running_mean[row], self.running_var[row], factor

    def row(self, depth: int) -> int:
        """Return where the statistics of a depth stand."""
        return depth if self.statistics == "per_output" else 0

    def _averaging_factor(self, row: int) -> float:
        """Count the batch, and return the weight it gets; as in `torch.nn.BatchNorm2d`."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked[row].add_(1)
        if self.momentum is None:  # a cumulative average, used when statistics are estimated anew
            return 1.0 / float(self.num_batches_tracked[row])
        return float(self.momentum)

    def select_outputs(self, depths: Sequence[int]) -> None:
        """Keep the statistics of these depths only, in this order: they become y_0, y_1, …."""
        self.num_outputs = len(depths)
        if self.statistics == "per_output":
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                buffer = getattr(self, name)
                # Rows by [list] import seconds of torch's symbols where the buffer is on meta.
                rows = torch.tensor(depths, dtype=torch.long, device=buffer.device)
                setattr(self, name, buffer.index_select(0, rows))


class OutputHead(nn.Module):
    """H: normalisation, ReLU, global average pooling, linear map to the logits.

    Example:
        >>> head = sc.OutputHead(width=8, num_classes=10, num_outputs=5)
        >>> head(torch.rand(2, 8, 4, 4), 4).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        num_outputs: int,
        statistics: StatisticsPolicy = "per_output",
    ) -> None:
        """Create the head of a network with `num_outputs` = N+1 outputs."""
        super().__init__()
        self.norm = OutputBatchNorm2d(width, num_outputs, statistics)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, state: Tensor, depth: int) -> Tensor:
        """Map a state that went through its skip chain, (B, C, H, W), to logits (B, classes)."""
        # In place on what the norm made, never on the state. A sum, since the gradient of `mean` comes
        # in another memory format, which makes the head three times slower with channels last.
        summed = F.relu(self.norm(state, depth), inplace=True).sum(dim=(2, 3))
        return self.logits(summed, state.shape[2] * state.shape[3])

    def logits(self, summed: Tensor, num_pixels: int) -> Tensor:
        """Map what the pooling summed up over so many pixels, (…, C), to logits (…, classes)."""
        logits: Tensor = self.linear(summed / num_pixels)
        return logits

    def select_outputs(self, depths: Sequence[int]) -> None:
        """Keep what belongs to these depths only (called when blocks are removed)."""
        self.norm.select_outputs(depths)
