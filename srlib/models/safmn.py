"""SAFMN: Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution (Sun et al., ICCV 2023).

The file reads like Section 3 of the paper: the configuration, the modulation layer SAFM (Section 3.1), the channel
mixer CCM and the block FMM that holds both (Section 3.2), and the network (Figure 3). Where paper and released code
differ, the released code's behaviour is built. Names of attributes give the released files' state-dict keys.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.errors import InputError
from srlib.models.layers import LayerNorm, check_images, strips, strips_pay

SCALES = (2, 3, 4)
STRIP = 48  # rows that are normalised and pooled at a time


@dataclass(frozen=True)
class SAFMNConfig:
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
        kinds = get_type_hints(type(self))
        for field in fields(self):
            value, kind = getattr(self, field.name), kinds[field.name]
            if kind is bool and not isinstance(value, bool):
                raise InputError(f"SAFMN's {field.name} is {value!r}; give True or False")
            if kind is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"SAFMN's {field.name} is {value!r}; give a whole number from 1 up")
            if get_args(kind) and value not in get_args(kind):
                raise InputError(f"SAFMN's {field.name} is {value!r}; choose one of: {', '.join(get_args(kind))}")
        if self.scale not in SCALES:
            raise InputError(f"SAFMN has no scale {self.scale}; choose one of: {', '.join(map(str, SCALES))}")
        if self.channels % self.levels:
            raise InputError(
                f"SAFMN's {self.channels} channels do not split into {self.levels} levels; "
                f"give a multiple of {self.levels}"
            )


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
        case "none":
            return nn.Identity()
        case "batch":
            return nn.BatchNorm2d(config.channels)
        case "frozen_batch":
            return FrozenBatchNorm(config.channels)
        case "l2":
            return L2Norm()


def pool(x: Tensor, size: tuple[int, int], kind: str) -> Tensor:
    """Bring (B, C, H, W) to a smaller ``size`` (Equation 1, the down arrow)."""
    match kind:
        case "max":
            return F.adaptive_max_pool2d(x, size)
        case "average":
            return F.adaptive_avg_pool2d(x, size)
        case _:
            return F.interpolate(x, size, mode="nearest")


def row_index(rows: int, height: int) -> Tensor:
    """Which of ``rows`` rows nearest-neighbour enlarging to ``height`` puts at each row."""
    return F.interpolate(torch.arange(rows, dtype=torch.float32)[None, None], height, mode="nearest")[0, 0].long()


class SAFM(nn.Module):
    """Spatially-adaptive feature modulation (Section 3.1, Figure 4, Equations 1 to 3).

    The channels are split into groups; group i is pooled to 1 / 2^i of the size, goes through a depth-wise 3x3
    convolution and is enlarged again by nearest neighbour. A 1x1 convolution aggregates the groups, and its result,
    through GELU, multiplies the input. (B, C, H, W) in and out.
    """

    def __init__(self, config: SAFMNConfig) -> None:
        super().__init__()
        width = config.channels // config.levels
        self.config = config
        self.mfr = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(config.levels))
        self.aggr = nn.Conv2d(config.channels, config.channels, 1) if config.aggregation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        groups = x.chunk(self.config.levels, dim=1)
        coarse = [pool(groups[i], self.size(i, x), self.config.pooling) for i in self.coarse_levels]
        return self.modulate(x, [self.enlarge(small, x.shape[-2:]) for small in self.filtered(coarse)])

    @property
    def coarse_levels(self) -> range:
        """The groups that work below the full size."""
        return range(1, self.config.levels) if self.config.multi_scale else range(0)

    def size(self, level: int, x: Tensor) -> tuple[int, int]:
        """The size that a group of ``x`` is pooled to: its sides over 2^level, at least 1."""
        return max(1, x.shape[-2] // 2**level), max(1, x.shape[-1] // 2**level)

    def filtered(self, coarse: list[Tensor]) -> list[Tensor]:
        """The pooled groups after their depth-wise convolutions."""
        return [self.mfr[level](small) for level, small in zip(self.coarse_levels, coarse, strict=True)]

    def enlarge(self, small: Tensor, size: tuple[int, int]) -> Tensor:
        """A pooled group brought back to the full size (Equation 1, the up arrow)."""
        return F.interpolate(small, size, mode="nearest")

    def modulate(self, x: Tensor, enlarged: list[Tensor]) -> Tensor:
        """Equations 2 and 3 on whole features or on some of their rows, given those rows of the enlarged groups."""
        groups = x.chunk(self.config.levels, dim=1)
        fine = [self.mfr[i](groups[i]) for i in range(self.config.levels - len(enlarged))]
        attention = self.aggr(torch.cat(fine + enlarged, dim=1))
        match self.config.gate:
            case "gelu":
                attention = F.gelu(attention)
            case "sigmoid":
                attention = torch.sigmoid(attention)
        return attention * x if self.config.modulation else attention


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
    """Feature mixing module (Section 3.2, Equation 4): Y = SAFM(LN(X)) + X, then Z = CCM(LN(Y)) + Y.

    (B, C, H, W) in and out. A layer that the configuration removes takes its norm with it, as the printed
    parameters say.
    """

    def __init__(self, config: SAFMNConfig) -> None:
        super().__init__()
        self.config = config
        if config.safm == "safm":
            self.norm1, self.safm = norm(config), SAFM(config)
        if config.ccm != "none":
            self.norm2, self.ccm = norm(config), CCM(config)

    def forward(self, x: Tensor) -> Tensor:
        if self.config.safm == "safm" and self.config.ccm != "se" and strips_pay(self, x):
            return self.in_strips(x)
        if self.config.safm == "safm":
            x = self.safm(self.norm1(x)) + x
        if self.config.ccm != "none":
            x = self.ccm(self.norm2(x)) + x
        return x

    def in_strips(self, x: Tensor) -> Tensor:
        """``forward`` with everything at full size done a strip of rows at a time; see ``layers.strips_pay``.

        Only the pooled groups need the whole image. They are small, and pooling is separable: strips are pooled along
        their rows first, the results together along the columns.
        """
        safm, (height, width) = self.safm, x.shape[-2:]
        coarse = safm.filtered(self.pooled_in_strips(x))
        lines = [row_index(small.shape[-2], height) for small in coarse]

        result = torch.empty_like(x)
        halo = 1 + {"none": 0, "inverted_residual": 2}.get(self.config.ccm, 1)
        for strip in strips(result, halo):
            part = x[:, :, strip.rows]  # (B, C, rows, W)
            small = [c.index_select(2, line[strip.rows]) for c, line in zip(coarse, lines, strict=True)]
            small = [s.contiguous(memory_format=torch.channels_last) for s in small]
            enlarged = [safm.enlarge(s, (part.shape[2], width)) for s in small]
            part = safm.modulate(self.norm1(part), enlarged).add_(part)
            mixed = torch.zeros_like(part) if self.config.ccm == "none" else self.ccm(self.norm2(part))
            torch.add(mixed[:, :, strip.inner], part[:, :, strip.inner], out=strip.out)
        return result

    def pooled_in_strips(self, x: Tensor) -> list[Tensor]:
        """The pooled groups of SAFM's normalised input."""
        safm, kind, levels = self.safm, self.config.pooling, self.safm.coarse_levels
        narrow = [[] for _ in levels]
        for first in range(0, x.shape[-2] if levels else 0, STRIP):
            strip = self.norm1(x[:, :, first : first + STRIP])
            groups = strip.chunk(self.config.levels, dim=1)
            for parts, level in zip(narrow, levels, strict=True):
                parts.append(pool(groups[level], (strip.shape[-2], safm.size(level, x)[1]), kind))
        return [pool(torch.cat(parts, 2), safm.size(i, x), kind) for parts, i in zip(narrow, levels, strict=True)]


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
        y = self.feats(x)
        if not strips_pay(self, x):
            return self.to_img(y + x)
        scale = self.config.scale
        sr = x.new_empty(x.shape[0], 3, scale * x.shape[2], scale * x.shape[3])
        for strip in strips(sr, halo=1, scale=scale):
            strip.out.copy_(self.to_img(y[:, :, strip.rows] + x[:, :, strip.rows])[:, :, strip.inner])
        return sr
