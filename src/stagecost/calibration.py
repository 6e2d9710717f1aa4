"""Estimating BatchNorm statistics anew: of outputs that training did not visit, and after surgery."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from stagecost.head import OutputBatchNorm2d
from stagecost.network import ResidualNetwork
from stagecost.trajectory import Loader, device_of, evaluation_mode


def calibrate_outputs(network: ResidualNetwork, loader: Loader, depths: Sequence[int]) -> None:
    """Estimate the head statistics of some outputs from data, and change nothing else.

    Plain training (gamma = 0) visits the terminal output alone, so the statistics of the others must
    be estimated before their losses mean anything. The states come from eval mode, as in analysis.

    Args:
        network: a head without statistics for each output is left as it is.
        loader: batches of (images, targets) from the training data.
        depths: which outputs; the statistics of all others stay as they are.
    """
    norms = [m for m in network.head.modules() if isinstance(m, OutputBatchNorm2d)]
    norms = [norm for norm in norms if norm.statistics == "per_output"]
    if not norms or not depths:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluation_mode(network):
        for norm in norms:
            norm.train()
            norm.momentum = None  # a cumulative average: every batch counts alike
            _forget(norm, depths)
        for images, _ in loader:
            network(images.to(device_of(network)), depths=list(depths))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _forget(norm: OutputBatchNorm2d, depths: Sequence[int]) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    rows = list(depths)
    norm.running_mean[rows] = 0.0
    norm.running_var[rows] = 1.0
    norm.num_batches_tracked[rows] = 0


class _AllOutputs(nn.Module):
    """Visits every output, so that `update_bn` estimates the statistics of all of them."""

    def __init__(self, network: ResidualNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images, depths="all")
        return outputs


def recalibrate(network: ResidualNetwork, loader: Loader) -> None:
    """Estimate all BatchNorm statistics anew, after blocks were removed from a staged network.

    Args:
        network: its running statistics are replaced, its weights are not touched.
        loader: batches of (images, targets) from the training data, without augmentation.
    """
    batches: Iterable[Tensor] = (images.to(device_of(network)) for images, _ in loader)
    with torch.no_grad():
        update_bn(batches, _AllOutputs(network))
