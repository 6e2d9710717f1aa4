"""The output head H and its normalisation, which sees the states of every depth.

A head BatchNorm that serves N+1 outputs meets N+1 distributions. One set of running statistics,
updated once an output, fits none of them in eval mode. So the policy is explicit:

`per_output` (default)
    Each output has running statistics of its own (buffers; the affine weights are shared, so no
    parameter is added). Eval mode is exact for every depth, and a truncated network takes along
    the row of its own last state.
`shared`
    One set for all outputs, updated once an output: what an ordinary `BatchNorm2d` would do.
    Its statistics are a mixture. Kept for comparison.
`terminal`
    One set, updated by the terminal output alone: the terminal output is exactly that of plain
    training, intermediate outputs are normalised in eval mode as if they came from x_N.

In training mode all three normalise each output by the statistics of its own batch.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stagecost.chains import hooked
from stagecost.errors import StageCostError
from stagecost.kernels import per_channel
from stagecost.native import pooled

StatisticsPolicy = Literal["per_output", "shared", "terminal"]


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
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        """Create the normalisation of `num_features` channels for the outputs y_0 … y_N."""
        super().__init__(num_features, eps=eps, momentum=momentum)
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
        if not self.training and state.dtype == self.weight.dtype:
            scale, shift = self.running_affine()
            row = self.row(depth)
            return affine(state, scale[row], shift[row])
        if self.training and not self.tracks(depth):
            return F.batch_norm(state, None, None, self.weight, self.bias, training=True, eps=self.eps)
        assert self.running_mean is not None
        assert self.running_var is not None
        row = self.row(depth)
        return F.batch_norm(
            state,
            self.running_mean[row],
            self.running_var[row],
            self.weight,
            self.bias,
            training=self.training,
            momentum=self._averaging_factor(row) if self.training else 0.0,
            eps=self.eps,
        )

    def row(self, depth: int) -> int:
        """Return where the statistics of a depth stand."""
        return depth if self.statistics == "per_output" else 0

    def tracks(self, depth: int) -> bool:
        """Tell whether training at this depth moves running statistics."""
        terminal = depth == self.num_outputs - 1
        return self.track_running_stats and (self.statistics != "terminal" or terminal)

    def running_affine(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift, (R, C), that make up the normalisation in eval mode."""
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    @torch.no_grad()
    def track(self, depths: Sequence[int], means: Tensor, variances: Tensor) -> None:
        """Move the running statistics of some depths, as `forward` would for one after the other.

        Args:
            depths: K different depths, ascending.
            means: (K, C), of their batches.
            variances: (K, C), unbiased.
        """
        kept = [i for i, depth in enumerate(depths) if self.tracks(depth)]
        if not kept:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        # As BatchNorm's own updates, these are no changes that autograd has to mind (`.data`).
        running_mean, running_var = self.running_mean.data, self.running_var.data
        if self.statistics == "per_output" and self.momentum is not None:
            rows = torch.tensor([depths[i] for i in kept], device=means.device)
            self.num_batches_tracked[rows] += 1
            for running, values in (
                (running_mean, means[kept]),
                (running_var, variances[kept]),
            ):
                running[rows] = torch.lerp(running[rows], values.to(running.dtype), self.momentum)
            return
        for i in kept:
            row = self.row(depths[i])
            factor = self._averaging_factor(row)
            for running, values in ((running_mean, means[i]), (running_var, variances[i])):
                running[row].lerp_(values.to(running.dtype), factor)

    def _averaging_factor(self, row: int) -> float:
        """Count the batch, and return the weight it gets; as in `torch.nn.BatchNorm2d`."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked[row] += 1
        if self.momentum is None:  # a cumulative average, used when statistics are estimated anew
            return 1.0 / float(self.num_batches_tracked[row])
        return float(self.momentum)

    def select_outputs(self, depths: Sequence[int]) -> None:
        """Keep the statistics of these depths only, in this order: they become y_0, y_1, …."""
        self.num_outputs = len(depths)
        if self.statistics == "per_output":
            rows = list(depths)
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(self, name, getattr(self, name)[rows].clone())


def affine(state: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Compute scale·x + shift a channel, as F.batch_norm does in eval mode, in half its time."""
    return torch.addcmul(per_channel(shift), state, per_channel(scale))


class OutputHead(nn.Module):
    """H: normalisation, ReLU, global average pooling, linear map to the logits."""

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
        norm = self.norm
        own = type(norm) is OutputBatchNorm2d and not hooked(norm)
        if not own or norm.training or state.dtype != norm.weight.dtype:
            return self.logits(norm(state, depth))
        scale, shift = norm.running_affine()
        row = norm.row(depth)
        return self.evaluate(state, scale[row], shift[row])

    def evaluate(self, state: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Map a state, (B, C, H, W), to logits by the norm of eval mode, scale·x + shift, (C,) each.

        Every output in eval mode comes from here, so that those of an analysis and of a truncated
        network agree to the last bit, whether C is used or not.
        """
        if pooled.fits(state, scale, shift):
            logits: Tensor = self.linear(pooled.pool_affine(state, scale, shift))
            return logits
        return self.logits(affine(state, scale, shift))

    def logits(self, normalised: Tensor) -> Tensor:
        """Map a state that is normalised already, (B, C, H, W), to logits; its memory is used again."""
        height, width = normalised.shape[2:]
        # In place on what the norm made, never on the state. A sum, since the gradient of `mean` comes
        # in another memory format, which makes the head three times slower with channels last.
        summed = F.relu(normalised, inplace=True).sum(dim=(2, 3))
        logits: Tensor = self.linear(summed / (height * width))
        return logits

    def select_outputs(self, depths: Sequence[int]) -> None:
        """Keep what belongs to these depths only (called when blocks are removed)."""
        self.norm.select_outputs(depths)
