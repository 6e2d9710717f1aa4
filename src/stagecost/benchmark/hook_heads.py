"""What early-exit libraries do: a classifier of its own at every depth, attached by forward hooks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecost.head import OutputHead
from stagecost.network import ResidualNetwork
from stagecost.trajectory import evaluation_mode


class HookHeads(nn.Module):
    """A network with a separate head (BatchNorm, ReLU, pooling, linear map) at x_0 … x_{N-1}.

    The heads are those of the network, so that nothing but their number and their hooks differs: no
    projection is passed, and each brings parameters of its own.
    """

    def __init__(self, network: ResidualNetwork, images: Tensor, num_classes: int) -> None:
        """Attach a head to every state but the last, whose shapes a few images tell."""
        super().__init__()
        self.network = network
        with evaluation_mode(network):
            widths = [state.shape[1] for state in network.states(images[:1])][:-1]
        heads = (OutputHead(width, num_classes, num_outputs=1) for width in widths)
        self.heads = nn.ModuleList(heads).to(images.device)
        self._outputs: list[Tensor] = []
        tapped = [network.stem, *list(network.blocks.values())[:-1]]
        for module, head in zip(tapped, self.heads, strict=True):
            module.register_forward_hook(self._hook(head))

    def _hook(self, head: nn.Module) -> Any:
        def hook(module: nn.Module, inputs: object, state: Tensor) -> None:
            self._outputs.append(head(state, 0))

        return hook

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs of all heads, (N+1, B, classes), the network's own last."""
        self._outputs = []
        terminal = self.network(images)
        outputs = torch.stack([*self._outputs, terminal])
        self._outputs = []  # a hook holds on to what it saw
        return outputs


def weighted_loss(outputs: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Return the terminal loss plus gamma times the loss of every other head, as the stage cost does."""
    losses = torch.stack([F.cross_entropy(output, targets) for output in outputs])
    return losses[-1] + gamma * losses[:-1].sum()
