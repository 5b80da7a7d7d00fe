"""SSIU: structural-similarity-inspired unfolding network for lightweight image super-resolution (Ni et al., 2025).

The file reads like Section III of the paper: the mixed-scale gating module MSGM (III-D), the efficient sparse attention
module ESAM (III-E), the stage SSReM that unfolds one iteration (III-C), the selector MoEFS (III-F), and the network
(Figure 2). Modules map (B, C, H, W) to (B, C, H, W).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.models.layers import Config, LayerNorm, check_images, conv, merge, pad_reflect, windows

HEADS = 4
BLOCK = 8  # side of ESAM's blocks of queries
HALO = 1  # what a block's keys and values reach beyond it on every side
WINDOW = BLOCK + 2 * HALO


@dataclass(frozen=True)
class SSIUConfig(Config):
    """Every choice that the paper makes or ablates in the network; the defaults are SSIU as released."""

    scale: Literal[2, 3, 4] = 4
    stages: int = 9  # N SS-ReMs; with MoE-FS a multiple of 3
    channels: int = 64  # C, a multiple of 8
    attention: Literal["esam", "sam"] = "esam"  # Table III: sparse, or dense at full size without what goes with it
    moe_fs: bool = True  # Table III: the selector over three stages' outputs, or the last one's alone
    s3b: Literal["v-b", "v+b"] = "v-b"  # the operator's argument in step S3.b: as released, or as Eq. (13) prints it

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.channels % (2 * HEADS) == 0, "channels", f"give a multiple of {2 * HEADS}")
        self.require(not self.moe_fs or self.stages % 3 == 0, "stages", "give a multiple of 3, as MoE-FS takes thirds")

    def build(self) -> SSIU:
        return SSIU(self)


CONFIGS = {"ssiu": SSIUConfig()}


def conv3x3(channels: int, out: int, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that pads by reflection."""
    return nn.Conv2d(channels, out, 3, padding=1, groups=groups, padding_mode="reflect")


class MSGM(nn.Module):
    """Mixed-scale gating module (Section III-D, Figure 3), for a soft threshold S_tau."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project_in1 = conv(channels, channels)
        narrow, spread = conv(channels, channels), conv3x3(channels, channels, groups=channels)
        self.project_in2 = nn.Sequential(narrow, spread, conv(channels, channels))
        self.project_out = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.project_out(F.gelu(self.project_in1(x)) * self.project_in2(x))  # Eq. (15)


class ESAM(nn.Module):
    """Efficient sparse attention module (Section III-E); H and W are multiples of 16.

    2x2 max pooling; self-attention of blocks of 8x8 queries to the 10x10 pixels around them, in 4 heads, with a learnt
    embedding of a key's row and column in its window; a depth-wise 3x3 convolution; bilinear enlargement. Beyond the
    image's border keys have the embedding alone, and values are 0. ``attention="sam"`` (Table III) is dense: nothing is
    pooled or enlarged, and the 3x3 convolution goes with it, as the printed parameters say.
    """

    def __init__(self, config: SSIUConfig) -> None:
        super().__init__()
        self.sparse = config.attention == "esam"
        half = config.channels // HEADS // 2
        self.rel_h = nn.Parameter(torch.randn(1, WINDOW, 1, half))
        self.rel_w = nn.Parameter(torch.randn(1, 1, WINDOW, half))
        self.qkv_conv = nn.Conv2d(config.channels, 3 * config.channels, 1, bias=False)
        if self.sparse:
            self.LocalProp = nn.Sequential(conv3x3(config.channels, config.channels, groups=config.channels))

    def forward(self, x: Tensor) -> Tensor:
        if not self.sparse:
            return self.attend(x)
        y = self.LocalProp(self.attend(F.max_pool2d(x, 2)))  # Eqs. (16) to (18)
        return F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention of each block to its window (Equation 17)."""
        q, k, v = self.qkv_conv(x).permute(0, 2, 3, 1).chunk(3, dim=-1)  # (B, H, W, C) each
        k, v = (F.pad(part, (0, 0, HALO, HALO, HALO, HALO)) for part in (k, v))
        cut = (windows(part, side, BLOCK).flatten(0, 1) for part, side in ((q, BLOCK), (k, WINDOW), (v, WINDOW)))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in cut)  # (B N, heads, pixels, C / heads)
        embedding = torch.cat([self.rel_h.expand(1, WINDOW, WINDOW, -1), self.rel_w.expand(1, WINDOW, WINDOW, -1)], -1)
        y = F.scaled_dot_product_attention(q, k + embedding.flatten(1, 2), v).transpose(1, 2).flatten(2)
        return merge(y.unflatten(0, (x.shape[0], -1)), BLOCK, x.shape[2:]).permute(0, 3, 1, 2)


class SSReM(nn.Module):
    """Structural similarity-inspired recurrent module (Section III-C): one unfolded iteration, from ``a`` and the
    shallow features ``f`` to the next ``a``."""

    def __init__(self, config: SSIUConfig) -> None:
        super().__init__()
        self.s3b = config.s3b
        self.norm = nn.Sequential(OrderedDict(body=LayerNorm(config.channels)))
        self.s1, self.s2 = MSGM(config.channels), MSGM(config.channels)
        self.s3 = ESAM(config)
        self.s4, self.ffn = MSGM(config.channels), MSGM(config.channels)

    def forward(self, a: Tensor, f: Tensor) -> Tensor:
        a = self.norm(a)
        z = self.s1(a)  # Step S1, Eq. (10)
        b = self.s2(a)  # Step S2, Eq. (11)
        u = a + z + f
        v = self.s3(u) + u  # Step S3.a, Eq. (12)
        a = self.s4(v - b if self.s3b == "v-b" else v + b) + b  # Step S3.b, Eq. (13)
        return self.ffn(a) + a  # in the place of a transformer's feed-forward network, Eq. (14)


class MoEFS(nn.Module):
    """Mixture-of-experts-based feature selector (Section III-F, Figure 4): three stages' outputs, weighted by what a
    1x1 convolution makes of each, in a softmax over the three at each channel and pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc_a, self.fc_b, self.fc_c = (conv(channels, channels) for _ in range(3))
        self.fuse = conv(channels, channels)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        gates = torch.stack([self.fc_a(a), self.fc_b(b), self.fc_c(c)]).softmax(0)  # Eq. (19), (3, B, C, H, W)
        s = a * gates[0] + b * gates[1] + c * gates[2]
        return s + self.fuse(s)  # Eq. (20)


class SSIU(nn.Module):
    """The network (Section III-B, Figure 2): a 3x3 convolution, the stages, the selector, and the reconstruction.
    Images are padded by reflection to a multiple of 16 at the right and at the bottom, and the output is cropped."""

    def __init__(self, config: SSIUConfig) -> None:
        super().__init__()
        self.config = config
        channels, steps = config.channels, {2: (2,), 3: (3,), 4: (2, 2)}[config.scale]
        self.head = conv3x3(3, channels)
        self.body = nn.ModuleList(SSReM(config) for _ in range(config.stages))
        if config.moe_fs:
            self.moe = MoEFS(channels)
        enlarge = [(conv(channels, channels * r * r), nn.PixelShuffle(r), nn.GELU()) for r in steps]
        self.tail = nn.Sequential(*[layer for step in enlarge for layer in step], conv3x3(channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        check_images(x)
        height, width = (self.config.scale * side for side in x.shape[-2:])
        x = pad_reflect(x, 2 * BLOCK)  # pooling halves it, and blocks must fit
        a = f = self.head(x.contiguous(memory_format=torch.channels_last))
        outputs = [a := stage(a, f) for stage in self.body]
        if self.config.moe_fs:
            third = self.config.stages // 3
            a = self.moe(*outputs[third - 1 :: third])
        sr = self.tail(a + f) + F.interpolate(x, scale_factor=self.config.scale, mode="bilinear", align_corners=False)
        return sr[:, :, :height, :width]
