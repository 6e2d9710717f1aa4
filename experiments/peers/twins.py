"""A network as other packages expect one: a plain sequence of modules with one output."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stagecost.head import OutputHead
from stagecost.network import ResidualNetwork


class PlainHead(nn.Module):
    """`OutputHead` for the terminal output alone, with an ordinary BatchNorm."""

    def __init__(self, head: OutputHead) -> None:
        """Take over the weights and the last row of the statistics."""
        super().__init__()
        self.norm = nn.BatchNorm2d(head.norm.num_features, eps=head.norm.eps)
        state = head.norm.state_dict()
        self.norm.load_state_dict({n: t if n in ("weight", "bias") else t[-1] for n, t in state.items()})
        self.relu = nn.ReLU(inplace=True)
        self.linear = copy.deepcopy(head.linear)

    def forward(self, state: Tensor) -> Tensor:
        """Map a state (B, C, H, W) to logits (B, classes)."""
        height, width = state.shape[2:]
        logits: Tensor = self.linear(self.relu(self.norm(state)).sum(dim=(2, 3)) / (height * width))
        return logits


def plain_twin(network: ResidualNetwork) -> nn.Sequential:
    """Return a copy that computes the terminal output, as stem, blocks and head in a row.

    Module "0" is the stem and module "k" the k-th block, counted from 1.
    """
    head = network.head
    assert isinstance(head, OutputHead)
    parts = [copy.deepcopy(network.stem), *copy.deepcopy(list(network.blocks.values())), PlainHead(head)]
    twin = nn.Sequential(*parts)
    return twin.to(next(network.parameters()).device).train(network.training)


def output_layer(twin: nn.Sequential) -> nn.Module:
    """Return the linear map to the logits of a plain twin."""
    return twin[-1].get_submodule("linear")


def network_of_twin(twin: nn.Sequential) -> ResidualNetwork:
    """Return a plain twin as a network again, whatever another package did to its widths.

    The modules are shared with the twin. Statistics of intermediate outputs are initial ones; the
    terminal output is the twin's.
    """
    stem, *blocks, plain = twin
    assert isinstance(plain, PlainHead)
    head = OutputHead(plain.linear.in_features, plain.linear.out_features, len(blocks) + 1)
    state = head.norm.state_dict()
    for name, values in plain.norm.state_dict().items():
        if name in ("weight", "bias"):
            state[name] = values
        else:
            state[name][-1] = values
    head.norm.load_state_dict(state)
    head.linear = plain.linear
    network = ResidualNetwork(stem, blocks, head)
    return network.to(next(twin.parameters()).device).train(twin.training)


def module_macs(module: nn.Module, images: Tensor) -> int:
    """Count the MACs of a module for one image, by the same counter as `stagecost.macs.count_macs`."""
    twin = copy.deepcopy(module).to("meta").eval()
    one = torch.empty(1, *images.shape[1:], device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(one)
    return int(counter.get_total_flops()) // 2
