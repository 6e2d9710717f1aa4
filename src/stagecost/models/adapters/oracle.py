"""Which modules' outputs are the residual branches of other libraries' blocks: read from their sources.

The contract test compares a view with the model's own forward in which these outputs are zeros. Nothing
here knows of traces, sums or programs.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

DROP_PATH = re.compile(r"(\w+_)?drop_path\d*|stochastic_depth")

# "module.Class": branches; "a|b" is a, or b where a block has no a. Any other class: what drops paths.
_TIMM = """
    resnet.BasicBlock: se|bn2
    resnet.Bottleneck: se|bn3
    res2net.Bottle2neck: se|bn3
    resnest.ResNestBottleneck: bn3
    sknet.SelectiveKernelBasic: se|conv2
    sknet.SelectiveKernelBottleneck: se|conv3
    senet.SEResNetBlock: se_module
    senet.SEBottleneck: se_module
    senet.SEResNetBottleneck: se_module
    senet.SEResNeXtBottleneck: se_module
    ghostnet.GhostBottleneck: ghost2
    ghostnet.GhostBottleneckV3: ghost2
    repghost.RepGhostBottleneck: ghost2
    dla.DlaBasic: bn2
    dla.DlaBottleneck: bn3
    dla.DlaBottle2neck: bn3
    inception_resnet_v2.Block35: conv2d
    inception_resnet_v2.Block17: conv2d
    inception_resnet_v2.Block8: conv2d
    efficientvit_msra.ResidualDrop: m
    efficientvit_mit.ResidualBlock: main
    shvit.Residual: m
    repvit.RepViTBlock: channel_mixer token_mixer.conv token_mixer.conv1
    repvit.RepVitDownsample: ffn
    convmixer.Residual: fn
    xception.Block: rep
    xception_aligned.XceptionModule: stack
    xception_aligned.PreXceptionModule: stack
    fastvit.RepMixerBlock: token_mixer.layer_scale drop_path
    fastvit.AttentionBlock: drop_path1 drop_path2
    fastvit.RepConditionalPosEnc: pos_enc
    lowformer.ResidualBlock: main
    cpubone.ResidualBlock: main
    gcvit.MbConvBlock: conv_pw
    efficientvim.PatchMerging: dwconv1 dwconv2
    efficientformer_v2.Downsample: attn
    lcnetv2.RepDepthwiseSeparable: pw_conv
    davit.SpatialBlock: cpe1.proj cpe2.proj drop_path1 drop_path2
    davit.ChannelBlock: cpe1.proj cpe2.proj drop_path1 drop_path2
    vovnet.OsaBlock: attn
    dpn.DualPathBlock: c1x1_c c1x1_c1 c1x1_c2
    coat.ConvPosEnc: proj
    coat.SerialBlock: cpe.proj drop_path
    tnt.Block: drop_path norm2_proj|proj
    rexnet.LinearBottleneck: conv_pwl
    twins.PosConv: proj
"""
_TORCHVISION = """
    resnet.BasicBlock: bn2
    resnet.Bottleneck: bn3
    vision_transformer.EncoderBlock: dropout mlp
    mobilenetv2.InvertedResidual: conv
    mobilenetv3.InvertedResidual: block
    mnasnet._InvertedResidual: layers
    regnet.ResBottleneckBlock: f
    maxvit.PartitionAttentionLayer: attn_layer mlp_layer
"""


def _read(library: str, table: str) -> dict[str, list[str]]:
    lines = (line.strip().split(": ") for line in table.strip().splitlines())
    return {f"{library}.models.{name}": branches.split() for name, branches in lines}


BRANCHES = {"timm.layers.attention_pool.AttentionPoolLatent": ["mlp"]}
BRANCHES |= _read("timm", _TIMM) | _read("torchvision", _TORCHVISION)


def branches_of(block: nn.Module) -> list[nn.Module]:
    """Return the modules whose outputs are the branches of a block, those of blocks inside it included.

    Empty where that is not known.
    """
    branches: list[nn.Module] = []
    for module in block.modules():
        names = BRANCHES.get(f"{type(module).__module__}.{type(module).__name__}")
        if names is None:
            branches += [part for name, part in module.named_children() if DROP_PATH.fullmatch(name)]
            continue
        for choice in names:
            parts = [_part(module, path) for path in choice.split("|")]
            branches += [part for part in parts if part is not None][:1]
    return list(dict.fromkeys(branches))


def _part(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = getattr(module, name, None)  # type: ignore[assignment]
    return module


@contextmanager
def zeroed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Put zeros in the place of the branches of some blocks of a model, for a while.

    Only while the block runs: a branch may be shared with other blocks.
    """
    running: list[nn.Module] = []

    def start(block: nn.Module, _: Any) -> None:
        running.append(block)

    def stop(block: nn.Module, _: Any, __: Any) -> None:
        running.remove(block)

    def zeros(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(output) if running else output

    branches = dict.fromkeys(branch for block in blocks for branch in branches_of(block))
    handles: list[RemovableHandle] = [b.register_forward_hook(zeros, prepend=True) for b in branches]
    for block in blocks:
        handles += [block.register_forward_pre_hook(start), block.register_forward_hook(stop)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
