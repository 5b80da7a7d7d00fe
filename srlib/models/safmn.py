"""SAFMN: Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution (Sun et al., ICCV 2023).

The file reads like Section 3 of the paper: the modulation layer SAFM (Section 3.1), the channel mixer CCM and the block
FMM that holds both (Section 3.2), and the network (Figure 3). Blocks map (B, C, H, W) to (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.models.layers import Config, LayerNorm, check_images, conv


@dataclass(frozen=True)
class SAFMNConfig(Config):
    """Every choice that the paper makes or ablates (Tables 3 and 4); the defaults are SAFMN as printed in Table 1."""

    scale: Literal[2, 3, 4] = 4
    blocks: int = 8  # FMMs
    channels: int = 36  # a multiple of the levels
    levels: int = 4  # groups of SAFM, group i working at 1 / 2^i of the size
    safm: Literal["safm", "none"] = "safm"  # "none" removes the layer and the norm before it
    modulation: bool = True  # the product with the input, Eq. (3)
    multi_scale: bool = True  # group i at 1 / 2^i of the size, Eq. (1); otherwise every group at full size
    aggregation: bool = True  # the 1x1 convolution over all groups, Eq. (2)
    pooling: Literal["max", "average", "nearest"] = "max"
    gate: Literal["gelu", "none", "sigmoid"] = "gelu"
    ccm: Literal["ccm", "none", "se", "channel_mlp", "inverted_residual"] = "ccm"  # "none" removes its norm as well
    norm: Literal["layer", "none", "batch", "frozen_batch", "l2"] = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.channels % self.levels == 0, "channels", f"give a multiple of the {self.levels} levels")

    def build(self) -> SAFMN:
        return SAFMN(self)


CONFIGS = {"safmn": SAFMNConfig()}


class L2Norm(nn.Module):
    """Each pixel's channels divided by their L2 norm (Table 3, "LN -> L2 normalization"); nothing is learnt."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1, eps=1e-6)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation whose statistics and affine parameters stay the identity's (Table 3, "LN -> FBN"); nothing is
    learnt."""

    UNUSED = ("weight", "bias", "running_mean", "running_var")  # which files of weights may hold

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 1e-5) ** -0.5


# What Table 3 puts in the place of a norm, of Equation 1's down arrow and of Equation 3's function.
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": LayerNorm,
    "none": nn.Identity,
    "batch": nn.BatchNorm2d,
    "frozen_batch": lambda channels: FrozenBatchNorm(),
    "l2": lambda channels: L2Norm(),
}
POOLS: dict[str, Any] = {"max": F.adaptive_max_pool2d, "average": F.adaptive_avg_pool2d, "nearest": F.interpolate}
GATES: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "none": lambda x: x, "sigmoid": torch.sigmoid}


class SAFM(nn.Module):
    """Spatially-adaptive feature modulation (Section 3.1, Figure 4, Equations 1 to 3).

    The channels are split into groups; group i is pooled to 1 / 2^i of the size, goes through a depth-wise 3x3
    convolution and is enlarged again by nearest neighbour. A 1x1 convolution aggregates the groups, and its result,
    through GELU, multiplies the input.
    """

    def __init__(self, config: SAFMNConfig) -> None:
        super().__init__()
        width = config.channels // config.levels
        self.config = config
        self.mfr = nn.ModuleList(conv(width, width, 3, groups=width) for _ in range(config.levels))
        self.aggr = conv(config.channels, config.channels) if config.aggregation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        groups = x.chunk(self.config.levels, dim=1)
        parts = [self.mfr[0](groups[0])]
        for level in range(1, self.config.levels):
            if self.config.multi_scale:  # Eq. (1)
                small = self.mfr[level](self.pool(groups[level], 2**level))
                parts.append(F.interpolate(small, x.shape[-2:], mode="nearest"))
            else:
                parts.append(self.mfr[level](groups[level]))
        attention = self.aggr(torch.cat(parts, dim=1))  # Eq. (2)
        attention = GATES[self.config.gate](attention)
        return attention * x if self.config.modulation else attention  # Eq. (3)

    def pool(self, x: Tensor, factor: int) -> Tensor:
        """Equation 1's down arrow: (B, C, H, W) to 1 / ``factor`` of the size, rounded down, at least 1 x 1."""
        # ONNX has no adaptive pooling to a size that is free; where the factor divides the sides this is the same.
        if torch.compiler.is_exporting() and self.config.pooling == "max" and not any(n % factor for n in x.shape[-2:]):
            return F.max_pool2d(x, factor)
        return POOLS[self.config.pooling](x, [max(1, side // factor) for side in x.shape[-2:]])


class SqueezeExcitation(nn.Module):
    """Channel attention (Hu et al., 2018) on the hidden features (Table 3, "w/ SE"): 72 channels squeezed to 18."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 4)
        bottleneck = conv(channels, squeezed), nn.GELU(), conv(squeezed, channels)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), *bottleneck, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class CCM(nn.Module):
    """Convolutional channel mixer (Section 3.2): a 3x3 convolution to twice the channels, GELU, a 1x1 convolution back.

    The variants of Table 3 put squeeze-excitation behind GELU, make the first convolution 1x1 (channel MLP), or put a
    depth-wise 3x3 convolution and GELU in between (inverted residual block: its printed parameters, FLOPs and
    activations are met when the expansion stays 3x3).
    """

    def __init__(self, config: SAFMNConfig) -> None:
        super().__init__()
        channels, hidden = config.channels, 2 * config.channels
        kernel = 1 if config.ccm == "channel_mlp" else 3
        layers: list[nn.Module] = [conv(channels, hidden, kernel), nn.GELU()]
        if config.ccm == "se":
            layers += [SqueezeExcitation(hidden)]
        if config.ccm == "inverted_residual":
            layers += [conv(hidden, hidden, 3, groups=hidden), nn.GELU()]
        self.ccm = nn.Sequential(*layers, conv(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.ccm(x)


class FMM(nn.Module):
    """Feature mixing module (Section 3.2). A layer that is removed takes its norm with it, as printed counts say."""

    def __init__(self, config: SAFMNConfig) -> None:
        super().__init__()
        self.config = config
        if config.safm == "safm":
            self.norm1, self.safm = NORMS[config.norm](config.channels), SAFM(config)
        if config.ccm != "none":
            self.norm2, self.ccm = NORMS[config.norm](config.channels), CCM(config)

    def forward(self, x: Tensor) -> Tensor:
        if self.config.safm == "safm":
            x = self.safm(self.norm1(x)) + x  # Eq. (4), Y
        if self.config.ccm != "none":
            x = self.ccm(self.norm2(x)) + x  # Eq. (4), Z
        return x


class SAFMN(nn.Module):
    """The network (Figure 3): a 3x3 convolution, FMMs with a global residual, a 3x3 convolution and pixel shuffle."""

    def __init__(self, config: SAFMNConfig) -> None:
        super().__init__()
        self.config = config
        self.to_feat = conv(3, config.channels, 3)
        self.feats = nn.Sequential(*[FMM(config) for _ in range(config.blocks)])
        self.to_img = nn.Sequential(conv(config.channels, 3 * config.scale**2, 3), nn.PixelShuffle(config.scale))

    def forward(self, x: Tensor) -> Tensor:
        check_images(x)
        x = self.to_feat(x.contiguous(memory_format=torch.channels_last))
        return self.to_img(self.feats(x) + x)
