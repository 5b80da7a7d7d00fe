"""SAFMN: Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution (Sun et al., ICCV 2023).

The file reads like Section 3 of the paper: the configuration, the modulation layer SAFM (Section 3.1), the channel
mixer CCM and the block FMM that holds both (Section 3.2), and the network (Figure 3). Where paper and released code
differ, the released code's behaviour is built. Names of attributes give the released files' state-dict keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.models.layers import Config, LayerNorm, check_images


@dataclass(frozen=True)
class SAFMNConfig(Config):
    """Every choice that the paper makes or ablates (Tables 3 and 4); the defaults are SAFMN as printed in Table 1.

    ``scale``: 2, 3 or 4. ``blocks``: number of FMMs. ``channels``: width, a multiple of ``levels``. ``levels``: groups
    of SAFM, group i working at 1 / 2^i of the size. Raises ``InputError`` for any other value.
    """

    scale: int = 4
    blocks: int = 8
    channels: int = 36
    levels: int = 4
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
        self.require(self.scale in (2, 3, 4), "scale", "choose 2, 3 or 4")
        self.require(self.channels % self.levels == 0, "channels", f"give a multiple of the {self.levels} levels")

    def build(self) -> SAFMN:
        return SAFMN(self)


CONFIGS = {"safmn": SAFMNConfig()}


class L2Norm(nn.Module):
    """Each pixel's channels divided by their L2 norm (Table 3, "LN -> L2 normalization"); nothing is learnt."""

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1, eps=self.eps)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation whose statistics and affine parameters never change (Table 3, "LN -> FBN").

    They are buffers that start as the identity (weight 1, bias 0, mean 0, variance 1), so it has no parameters.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        slope = self.weight * (self.running_var + self.eps).rsqrt()
        offset = self.bias - self.running_mean * slope
        return x * slope.view(-1, 1, 1) + offset.view(-1, 1, 1)


def norm(config: SAFMNConfig) -> nn.Module:
    """The normalisation before SAFM and before CCM (Equation 4; Table 3, "Normalization")."""
    match config.norm:
        case "layer":
            return LayerNorm(config.channels)
        case "batch":
            return nn.BatchNorm2d(config.channels)
        case "frozen_batch":
            return FrozenBatchNorm(config.channels)
        case "l2":
            return L2Norm()
    return nn.Identity()


def pool(x: Tensor, size: tuple[int, int], kind: str) -> Tensor:
    """Bring (B, C, H, W) to a smaller ``size`` (Equation 1, the down arrow; Table 3 for kinds other than "max")."""
    match kind:
        case "max":
            return F.adaptive_max_pool2d(x, size)
        case "average":
            return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size, mode="nearest")


class SAFM(nn.Module):
    """Spatially-adaptive feature modulation (Section 3.1, Figure 4, Equations 1 to 3). (B, C, H, W) in and out.

    The channels are split into groups; group i is pooled to 1 / 2^i of the size, goes through a depth-wise 3x3
    convolution and is enlarged again by nearest neighbour. A 1x1 convolution aggregates the groups, and its result,
    through GELU, multiplies the input.
    """

    def __init__(self, config: SAFMNConfig) -> None:
        super().__init__()
        width = config.channels // config.levels
        self.config = config
        self.mfr = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(config.levels))
        self.aggr = nn.Conv2d(config.channels, config.channels, 1) if config.aggregation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        groups = x.chunk(self.config.levels, dim=1)
        filtered = [self.mfr[0](groups[0])]
        for level in range(1, self.config.levels):
            if self.config.multi_scale:  # Eq. (1)
                small = self.mfr[level](pool(groups[level], self.size(level, x), self.config.pooling))
                filtered.append(F.interpolate(small, x.shape[-2:], mode="nearest"))
            else:
                filtered.append(self.mfr[level](groups[level]))
        attention = self.aggr(torch.cat(filtered, dim=1))  # Eq. (2)
        match self.config.gate:
            case "gelu":
                attention = F.gelu(attention)
            case "sigmoid":
                attention = torch.sigmoid(attention)
        return attention * x if self.config.modulation else attention  # Eq. (3)

    def size(self, level: int, x: Tensor) -> tuple[int, int]:
        """The size that a group of ``x`` is pooled to: its sides over 2^level, at least 1."""
        return max(1, x.shape[-2] // 2**level), max(1, x.shape[-1] // 2**level)


class SqueezeExcitation(nn.Module):
    """Channel attention (Hu et al., 2018) on the hidden features (Table 3, "w/ SE"): 72 channels squeezed to 18."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.GELU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class CCM(nn.Module):
    """Convolutional channel mixer (Section 3.2): a 3x3 convolution to twice the channels, GELU, a 1x1 convolution back.

    (B, C, H, W) in and out. The variants of Table 3 put squeeze-excitation behind GELU, make the first convolution
    1x1 (channel MLP), or put a depth-wise 3x3 convolution and GELU in between (inverted residual block: its printed
    parameters, FLOPs and activations are met when the expansion stays 3x3).
    """

    def __init__(self, config: SAFMNConfig) -> None:
        super().__init__()
        channels, hidden = config.channels, 2 * config.channels
        kernel = 1 if config.ccm == "channel_mlp" else 3
        layers = [nn.Conv2d(channels, hidden, kernel, padding=kernel // 2), nn.GELU()]
        if config.ccm == "se":
            layers += [SqueezeExcitation(hidden)]
        if config.ccm == "inverted_residual":
            layers += [nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.GELU()]
        self.ccm = nn.Sequential(*layers, nn.Conv2d(hidden, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.ccm(x)


class FMM(nn.Module):
    """Feature mixing module (Section 3.2). (B, C, H, W) in and out.

    A layer that the configuration removes takes its norm with it, as the printed parameters say.
    """

    def __init__(self, config: SAFMNConfig) -> None:
        super().__init__()
        self.config = config
        if config.safm == "safm":
            self.norm1, self.safm = norm(config), SAFM(config)
        if config.ccm != "none":
            self.norm2, self.ccm = norm(config), CCM(config)

    def forward(self, x: Tensor) -> Tensor:
        if self.config.safm == "safm":
            x = self.safm(self.norm1(x)) + x  # Eq. (4), Y
        if self.config.ccm != "none":
            x = self.ccm(self.norm2(x)) + x  # Eq. (4), Z
        return x


class SAFMN(nn.Module):
    """The network (Figure 3): a 3x3 convolution, the FMMs with a global residual, a 3x3 convolution and pixel shuffle.

    Maps RGB images (B, 3, H, W), values in [0, 1], any size from 1 x 1 up, to (B, 3, scale H, scale W), not clamped.
    Raises ``InputError`` for a tensor of another shape.
    """

    def __init__(self, config: SAFMNConfig) -> None:
        super().__init__()
        self.config = config
        self.to_feat = nn.Conv2d(3, config.channels, 3, padding=1)
        self.feats = nn.Sequential(*[FMM(config) for _ in range(config.blocks)])
        self.to_img = nn.Sequential(
            nn.Conv2d(config.channels, 3 * config.scale**2, 3, padding=1),
            nn.PixelShuffle(config.scale),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_images(x)
        x = self.to_feat(x.contiguous(memory_format=torch.channels_last))
        return self.to_img(self.feats(x) + x)
