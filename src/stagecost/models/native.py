"""Native builders of pre-activation residual networks: homogeneous, staged, and ImageNet-sized.

Every residual branch begins with a normalisation (so its ReLU never works in place on x_k) and ends
with a convolution without bias, so that zero weights make F_k exactly zero. Every projection is a 1×1
convolution without bias that takes x_k itself, so it is linear in x_k as in the paper.

Sources: He et al., "Identity Mappings in Deep Residual Networks" (2016) for pre-activation;
arXiv 2506.21453 for homogeneous networks and for skip projections from the state.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from torch import nn

from stagecost.dynamics import ResidualBlock, StridedProjection
from stagecost.errors import StageCostError
from stagecost.head import OutputHead, StatisticsPolicy
from stagecost.models.initial_weights import draw_seed, initialise
from stagecost.models.registry import register_model
from stagecost.network import ResidualNetwork

MAX_BLOCKS = 2_000  # a slip of the keyboard should not build blocks until memory runs out
MAX_SIZE = 2**20  # of a width, of the number of classes …: beyond, torch cannot count the weights

BranchBuilder = Callable[[int, int, int], nn.Module]
"""Builds F_k from (channels in, channels out, stride)."""


def basic_branch(width_in: int, width_out: int, stride: int) -> nn.Sequential:
    """Build F_k of two 3×3 convolutions, each after BatchNorm and ReLU."""
    return nn.Sequential(
        nn.BatchNorm2d(width_in),
        nn.ReLU(inplace=True),
        nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(width_out, width_out, 3, padding=1, bias=False),
    )


def bottleneck_branch(width_in: int, width_out: int, stride: int) -> nn.Sequential:
    """Build F_k of 1×1, 3×3 and 1×1 convolutions, narrowed to a quarter of `width_out`."""
    inner = width_out // 4
    return nn.Sequential(
        nn.BatchNorm2d(width_in),
        nn.ReLU(inplace=True),
        nn.Conv2d(width_in, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, width_out, 1, bias=False),
    )


Projection = Literal["strided", "average"]


def residual_block(
    width_in: int,
    width_out: int,
    stride: int,
    branch: BranchBuilder = basic_branch,
    projection: Projection = "strided",
) -> ResidualBlock:
    """Build a block; its skip is a 1×1 projection where width or resolution changes.

    The strided projection of the paper drops three of four pixels; the average one pools them first.
    Both are linear in x_k.
    """
    skip: nn.Module | None = None
    if stride != 1 and projection == "average":
        pooling = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        skip = nn.Sequential(pooling, nn.Conv2d(width_in, width_out, 1, bias=False))
    elif stride != 1 or width_in != width_out:
        skip = StridedProjection(width_in, width_out, stride)
    return ResidualBlock(branch(width_in, width_out, stride), skip)


@register_model("homogeneous")
def homogeneous(
    *,
    num_blocks: int = 16,
    width: int = 16,
    num_classes: int = 10,
    in_channels: int = 3,
    stem_stride: int = 1,
    head_statistics: StatisticsPolicy = "per_output",
) -> ResidualNetwork:
    """Build a homogeneous ResNet-N: every state has the same width and size, every S_k is I.

    Args:
        num_blocks: N.
        width: channels of every state.
        num_classes: outputs of the head.
        in_channels: channels of the images.
        stem_stride: stride of the stem's 3×3 convolution.
        head_statistics: see `stagecost.head`.
    """
    return staged(
        blocks_per_stage=(num_blocks,),
        widths=(width,),
        num_classes=num_classes,
        in_channels=in_channels,
        stem_stride=stem_stride,
        head_statistics=head_statistics,
    )


@register_model("staged")
def staged(
    *,
    blocks_per_stage: Sequence[int] = (3, 3, 3),
    widths: Sequence[int] = (16, 32, 64),
    num_classes: int = 10,
    in_channels: int = 3,
    stem_stride: int = 1,
    projection: Projection = "strided",
    head_statistics: StatisticsPolicy = "per_output",
) -> ResidualNetwork:
    """Build a staged network for small images: each later stage halves the resolution.

    Args:
        blocks_per_stage: blocks of each stage, such as (9, 9, 9).
        widths: channels of each stage, such as (16, 32, 64).
        num_classes: outputs of the head.
        in_channels: channels of the images.
        stem_stride: stride of the stem's 3×3 convolution.
        projection: "strided" as in the paper, or "average".
        head_statistics: see `stagecost.head`.
    """
    _check_sizes(blocks_per_stage, widths, num_classes, in_channels, stem_stride)
    if projection not in get_args(Projection):
        raise StageCostError(f"projection {projection!r} is unknown: choose from {get_args(Projection)}")
    seed = draw_seed()
    stem = nn.Conv2d(in_channels, widths[0], 3, stride=stem_stride, padding=1, bias=False)
    blocks = _stages(widths[0], blocks_per_stage, widths, basic_branch, projection)
    return _assemble(seed, stem, blocks, widths[-1], num_classes, head_statistics)


def _bottleneck(layers: int, *blocks_per_stage: int) -> Callable[..., ResidualNetwork]:
    """Register the ImageNet-sized network of bottleneck blocks that has so many layers."""

    @register_model(f"preact_resnet{layers}")
    def build(
        *,
        width: int = 64,
        num_classes: int = 1000,
        in_channels: int = 3,
        head_statistics: StatisticsPolicy = "per_output",
    ) -> ResidualNetwork:
        _check_sizes(blocks_per_stage, [width] * len(blocks_per_stage), num_classes, in_channels, 2)
        widths = tuple(4 * width * 2**stage for stage in range(len(blocks_per_stage)))
        seed = draw_seed()
        stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        blocks = _stages(width, blocks_per_stage, widths, bottleneck_branch)
        return _assemble(seed, stem, blocks, widths[-1], num_classes, head_statistics)

    return build


preact_resnet50 = _bottleneck(50, 3, 4, 6, 3)  #: N = 16
preact_resnet101 = _bottleneck(101, 3, 4, 23, 3)  #: N = 33
preact_resnet152 = _bottleneck(152, 3, 8, 36, 3)  #: N = 50


def _stages(
    width_in: int,
    blocks_per_stage: Sequence[int],
    widths: Sequence[int],
    branch: BranchBuilder,
    projection: Projection = "strided",
) -> list[ResidualBlock]:
    blocks = []
    for stage, (num_blocks, width) in enumerate(zip(blocks_per_stage, widths, strict=True)):
        for position in range(num_blocks):
            stride = 2 if stage > 0 and position == 0 else 1
            blocks.append(residual_block(width_in, width, stride, branch, projection))
            width_in = width
    return blocks


def _assemble(
    seed: int | None,
    stem: nn.Module,
    blocks: list[ResidualBlock],
    width: int,
    num_classes: int,
    statistics: StatisticsPolicy,
) -> ResidualNetwork:
    head = OutputHead(width, num_classes, len(blocks) + 1, statistics)
    network = ResidualNetwork(stem, blocks, head)
    initialise(network, seed)
    return network


def _check_sizes(
    blocks_per_stage: Sequence[int],
    widths: Sequence[int],
    num_classes: int,
    in_channels: int,
    stem_stride: int,
) -> None:
    for name, counts in (("blocks_per_stage", blocks_per_stage), ("widths", widths)):
        if isinstance(counts, str) or not isinstance(counts, Sequence):
            raise StageCostError(f"{name} is {counts!r}: give one whole number for each stage")
    if len(blocks_per_stage) != len(widths) or not widths:
        raise StageCostError(
            f"{len(blocks_per_stage)} stages of blocks {tuple(blocks_per_stage)} but {len(widths)} "
            f"widths {tuple(widths)}: give one width a stage"
        )
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "stem_stride": stem_stride}
    sizes |= {f"number of blocks in stage {s}": n for s, n in enumerate(blocks_per_stage, 1)}
    sizes |= {f"width of stage {s}": width for s, width in enumerate(widths, 1)}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise StageCostError(f"{name} is {size!r}: give a whole number of at least 1")
    if sum(blocks_per_stage) > MAX_BLOCKS:
        raise StageCostError(f"{sum(blocks_per_stage)} blocks are too many: give at most {MAX_BLOCKS}")
    for name, size in sizes.items():
        if size > MAX_SIZE:
            raise StageCostError(f"{name} is {size}: give at most {MAX_SIZE}")
