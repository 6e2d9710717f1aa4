"""Estimating BatchNorm statistics anew: of outputs that training did not visit, and after a cut.

The loader is to give images drawn at random: data often lie sorted by class, and the first of them are
no sample. Every image counts alike, whatever the sizes of the batches.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from stagecost.cut import Cut
from stagecost.errors import StageCostError
from stagecost.head import OutputBatchNorm2d
from stagecost.network import ResidualNetwork
from stagecost.trajectory import Loader, device_of, evaluation_mode, pair, to_device


def calibrate_outputs(network: ResidualNetwork, loader: Loader, depths: Sequence[int]) -> None:
    """Estimate the head statistics of some outputs from data, and change nothing else.

    Plain training (gamma = 0) visits the terminal output alone, so the statistics of the others must
    be estimated before their losses mean anything. The states come from eval mode, as in analysis.

    Args:
        network: a head without statistics for each output is left as it is.
        loader: batches of (images, targets), a random sample of the training data.
        depths: which outputs; the statistics of all others stay as they are.

    Raises:
        StageCostError: the loader gives no batch, or one with a single value a channel.

    Example:
        >>> net = sc.create_model("homogeneous", num_blocks=4, width=8)
        >>> loader = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 10)]
        >>> sc.calibrate_outputs(net, loader, [0, 1, 2, 3])
    """
    norms = _output_norms(network)
    if not norms or not depths:
        return
    with evaluation_mode(network):
        for norm in norms:
            norm.train()
        _estimate(network, loader, norms, [Cut.first(k) for k in depths])


def recalibrate(network: ResidualNetwork, loader: Loader) -> None:
    """Estimate all BatchNorm statistics anew, after blocks were removed from a staged network.

    Args:
        network: its running statistics are replaced, its weights are not touched.
        loader: batches of (images, targets), a random sample of the training data, not augmented.

    Raises:
        StageCostError: the loader gives no batch, or one with a single value a channel.

    Example:
        >>> net = sc.create_model("staged", blocks_per_stage=(2, 2), widths=(4, 8))
        >>> small = net.keep(sc.Cut.stages(1, 1))
        >>> loader = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 10)]
        >>> sc.recalibrate(small, loader)
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    with evaluation_mode(network):
        for norm in norms:
            norm.train()
        # Norms that know no depth are the whole network's.
        depths = range(network.num_blocks + 1) if _output_norms(network) else [network.num_blocks]
        cuts = dict.fromkeys([*map(Cut.first, depths), *network.targets])  # whose norms are their own
        _estimate(network, loader, norms, tuple(cuts))


def _output_norms(network: ResidualNetwork) -> list[OutputBatchNorm2d]:
    norms = [m for m in network.head.modules() if isinstance(m, OutputBatchNorm2d)]
    return [norm for norm in norms if norm.statistics == "per_output"]


def _estimate(
    network: ResidualNetwork, loader: Loader, norms: Sequence[_BatchNorm], cuts: Sequence[Cut]
) -> None:
    """Set the statistics that a pass visits to those of all images together."""
    estimates = {norm: _Estimate(norm) for norm in norms}
    num_samples = 0
    with ExitStack() as undo:
        for norm in norms:
            undo.callback(setattr, norm, "momentum", norm.momentum)
            norm.momentum = 1.0  # each batch leaves its own statistics behind
            undo.callback(norm.register_forward_hook(estimates[norm].hear).remove)
            undo.callback(estimates[norm].apply)  # or give back what it had
        for images, targets in map(pair, loader):
            if not len(targets):  # their mean is no number
                continue
            try:
                network(to_device(images, device_of(network)), cuts)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise StageCostError(
                    f"a batch of {len(targets)} leaves one value a channel, which has no variance: give "
                    "larger batches, and leave out a last one that is smaller (drop_last)"
                ) from None
            num_samples += len(targets)
        if num_samples == 0:
            raise StageCostError("there are no images to estimate statistics from: give at least one")
        for estimate in estimates.values():
            estimate.is_complete = True


class _Estimate:
    """Mean and variance of what a norm saw, over batches of any size: V = E[v] + E[m²] − E[m]².

    v is a batch's variance over its n values of a channel; the norm keeps v·n/(n − 1), as torch does.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        self.mean, self.var, self.count = norm.running_mean, norm.running_var, norm.num_batches_tracked
        self.before = self.mean.clone(), self.var.clone()
        self.seen, self.first = self.count.clone(), self.count.clone()
        self.sums = torch.zeros(3, *self.mean.shape, dtype=torch.float64, device=self.mean.device)
        self.samples, self.values = torch.zeros_like(self.count), torch.zeros_like(self.count)
        self.is_complete = False

    def hear(self, norm: _BatchNorm, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        """Take the statistics that a call has left, where there are some."""
        if norm.momentum == 0:  # a second pass
            return
        num_samples, size = len(inputs[0]), inputs[0].numel() // inputs[0].shape[1]
        visited = self.count > self.seen
        self.seen = self.count.clone()
        self.samples += visited * num_samples
        self.values += visited * size
        mean = self.mean.double()
        biased = self.var.double() * (size - 1) / size
        weights = _rows(visited) * num_samples
        self.sums += weights * torch.stack([mean, biased, mean.square()])

    def apply(self) -> None:
        """Give the norm its estimates where it was visited, and what it had elsewhere.

        What it had all over if the pass over the images was not completed.
        """
        if not self.is_complete:
            self.samples.zero_()
        visited = _rows(self.samples > 0)
        mean, var, square = self.sums / _rows(self.samples).clamp_min(1)
        unbiased = _rows(self.values / (self.values - 1).clamp_min(1))
        estimates = mean, (var + square - mean.square()) * unbiased
        for buffer, before, estimate in zip((self.mean, self.var), self.before, estimates, strict=True):
            buffer.copy_(torch.where(visited, estimate.to(buffer.dtype), before))
        self.count.copy_(torch.where(self.samples > 0, self.count - self.first, self.first))


def _rows(values: Tensor) -> Tensor:
    """View one value a row of statistics, (R,) or (), so that it broadcasts over (R, C) or (C,)."""
    return values.unsqueeze(-1) if values.dim() else values
