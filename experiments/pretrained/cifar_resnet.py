"""The ResNets of CIFAR-10 as He et al. (2016) describe them: a module of somebody's own, adapted."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stagecost as sc


class BasicBlock(nn.Module):
    """relu(S(x) + F(x)); S picks every second pixel and adds channels of zeros on both sides."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        """Create it."""
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.more = stride, (width - width_in) // 2

    def forward(self, state: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ⌈H/stride⌉, ⌈W/stride⌉)."""
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(state)))))
        if self.more:
            state = F.pad(
                state[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more)
            )
        return F.relu(state + branch)


class CifarResNet(nn.Module):
    """A post-activation ResNet for images of 32×32."""

    def __init__(self, blocks_per_stage: Sequence[int], num_classes: int) -> None:
        """Create it, 16, 32 and 64 channels wide."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        width = 16
        stages = []
        for stage, count in enumerate(blocks_per_stage):
            blocks = []
            for position in range(count):
                first = stage > 0 and position == 0
                blocks.append(BasicBlock(width, 16 << stage, 2 if first else 1))
                width = 16 << stage
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, 32, 32) to (B, classes)."""
        state = F.relu(self.bn1(self.conv1(images)))
        state = self.layer3(self.layer2(self.layer1(state)))
        return self.linear(state.mean(dim=(2, 3)))  # type: ignore[no-any-return]


@sc.register_model("cifar_resnet")
def cifar_resnet(
    *, blocks_per_stage: Sequence[int] = (5, 5, 5), num_classes: int = 10, in_channels: int = 3
) -> sc.ResidualNetwork:
    """Build the view of one."""
    model = CifarResNet(blocks_per_stage, num_classes)
    return sc.adapt(model, torch.zeros(1, in_channels, 32, 32))
