"""SSIU: structural-similarity-inspired unfolding network for lightweight image super-resolution (Ni et al., 2025).

The file reads like Section III of the paper: the configuration, the mixed-scale gating module MSGM (Section III-D), the
efficient sparse attention module ESAM (Section III-E), the stage SSReM that unfolds one iteration (Section III-C), the
selector MoEFS (Section III-F), and the network (Figure 2). Where paper and released code differ, the released code's
behaviour is built. Names of attributes give the released files' state-dict keys.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.errors import InputError
from srlib.models.layers import LayerNorm, check_images

SCALES = (2, 3, 4)
HEADS = 4
BLOCK = 8  # side of ESAM's blocks of queries
HALO = 1  # what a block's keys and values reach beyond it on every side
MULTIPLE = 2 * BLOCK  # images are padded to a multiple of this: pooling halves them, and blocks must fit


@dataclass(frozen=True)
class SSIUConfig:
    """Every choice that the paper makes or ablates in the network; the defaults are SSIU as released.

    ``scale``: 2, 3 or 4. ``stages``: number N of SS-ReMs, a multiple of 3 where ``moe_fs`` selects among thirds of
    them. ``channels``: width C, a multiple of 8. Raises ``InputError`` for any other value.
    """

    scale: int = 4
    stages: int = 9
    channels: int = 64
    attention: Literal["esam", "sam"] = "esam"  # Table III: sparse, or dense at full size without what goes with it
    moe_fs: bool = True  # Table III: the selector over three stages' outputs, or the last one's alone
    s3b: Literal["v-b", "v+b"] = "v-b"  # the operator's argument in step S3.b: as released, or as Eq. (13) prints it

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for field in fields(self):
            value, kind = getattr(self, field.name), kinds[field.name]
            if kind is bool and not isinstance(value, bool):
                raise InputError(f"SSIU's {field.name} is {value!r}; give True or False")
            if kind is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"SSIU's {field.name} is {value!r}; give a whole number from 1 up")
            if get_args(kind) and value not in get_args(kind):
                raise InputError(f"SSIU's {field.name} is {value!r}; choose one of: {', '.join(get_args(kind))}")
        if self.scale not in SCALES:
            raise InputError(f"SSIU has no scale {self.scale}; choose one of: {', '.join(map(str, SCALES))}")
        if self.channels % (2 * HEADS):
            raise InputError(
                f"SSIU's {self.channels} channels do not split into {HEADS} heads of two halves; "
                f"give a multiple of {2 * HEADS}"
            )
        if self.moe_fs and self.stages % 3:
            raise InputError(f"SSIU's {self.stages} stages do not split into 3 for MoE-FS; give a multiple of 3")


CONFIGS = {"ssiu": SSIUConfig()}


def conv3x3(channels: int, out: int, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that pads by reflection."""
    return nn.Conv2d(channels, out, 3, padding=1, groups=groups, padding_mode="reflect")


class MSGM(nn.Module):
    """Mixed-scale gating module (Section III-D, Figure 3, Equation 15): what stands for a soft threshold S_tau.

    f1 = 1x1(f), f2 = 1x1(DWConv(1x1(f))), result 1x1(GELU(f1) f2). (B, C, H, W) in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project_in1 = nn.Conv2d(channels, channels, 1)
        self.project_in2 = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            conv3x3(channels, channels, groups=channels),
            nn.Conv2d(channels, channels, 1),
        )
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project_out(F.gelu(self.project_in1(x)) * self.project_in2(x))


class ESAM(nn.Module):
    """Efficient sparse attention module (Section III-E, Equations 16 to 18).

    2x2 max pooling; self-attention of blocks of 8x8 queries to the 10x10 pixels around them, in 4 heads, with a learnt
    embedding of a key's row and column in its block; a depth-wise 3x3 convolution; bilinear enlargement. Beyond the
    image's border keys have the embedding alone, and values are 0. ``attention="sam"`` (Table III) is dense: nothing is
    pooled or enlarged, and the 3x3 convolution goes with it, as the printed parameters say. (B, C, H, W) in and out,
    H and W multiples of 16.
    """

    def __init__(self, config: SSIUConfig) -> None:
        super().__init__()
        self.sparse = config.attention == "esam"
        reach, half = BLOCK + 2 * HALO, config.channels // HEADS // 2
        self.rel_h = nn.Parameter(torch.randn(1, reach, 1, half))
        self.rel_w = nn.Parameter(torch.randn(1, 1, reach, half))
        self.qkv_conv = nn.Conv2d(config.channels, 3 * config.channels, 1, bias=False)
        if self.sparse:
            self.LocalProp = nn.Sequential(conv3x3(config.channels, config.channels, groups=config.channels))

    def forward(self, x: Tensor) -> Tensor:
        if not self.sparse:
            return self.attend(x)
        x = self.LocalProp(self.attend(F.max_pool2d(x, 2)))
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention of each block to its neighbourhood (Equation 17)."""
        batch, channels, height, width = x.shape
        rows, columns, depth = height // BLOCK, width // BLOCK, channels // HEADS
        q, k, v = self.qkv_conv(x).chunk(3, dim=1)
        q = q.reshape(batch, HEADS, depth, rows, BLOCK, columns, BLOCK).permute(0, 3, 5, 1, 4, 6, 2)
        k, v = (self.neighbourhoods(t) for t in (k, v))  # (B, rows, columns, heads, 10, 10, C / heads)
        k = k + torch.cat([self.rel_h.expand(-1, -1, k.shape[5], -1), self.rel_w.expand(-1, k.shape[4], -1, -1)], -1)
        q, k, v = (t.flatten(0, 2).flatten(2, 3) for t in (q, k, v))  # (blocks, heads, 64 or 100, C / heads)
        y = F.scaled_dot_product_attention(q, k, v)
        y = y.reshape(batch, rows, columns, HEADS, BLOCK, BLOCK, depth).permute(0, 3, 6, 1, 4, 2, 5)
        return y.reshape(x.shape)

    @staticmethod
    def neighbourhoods(x: Tensor) -> Tensor:
        """The 10x10 pixels about each block of (B, C, H, W): (B, rows, columns, heads, 10, 10, C / heads)."""
        x = F.pad(x, (HALO,) * 4).unflatten(1, (HEADS, -1))
        x = x.unfold(3, BLOCK + 2 * HALO, BLOCK).unfold(4, BLOCK + 2 * HALO, BLOCK)
        return x.permute(0, 3, 4, 1, 5, 6, 2)


class Norm(nn.Module):
    """The layer norm before a stage, under the name that the release gives it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class SSReM(nn.Module):
    """Structural similarity-inspired recurrent module (Section III-C, Equations 10 to 14): one unfolded iteration.

    ``a`` and the shallow features ``f``, (B, C, H, W), give the next ``a``: z = MSGM(LN(a)) (step S1), b = MSGM(LN(a))
    (S2), v = ESAM(u) + u with u = LN(a) + z + f (S3.a), a = MSGM(v - b) + b (S3.b) and, in the place of a transformer's
    feed-forward network, MSGM(a) + a.
    """

    def __init__(self, config: SSIUConfig) -> None:
        super().__init__()
        self.s3b = config.s3b
        self.norm = Norm(config.channels)
        self.s1 = MSGM(config.channels)
        self.s2 = MSGM(config.channels)
        self.s3 = ESAM(config)
        self.s4 = MSGM(config.channels)
        self.ffn = MSGM(config.channels)

    def forward(self, a: Tensor, f: Tensor) -> Tensor:
        a = self.norm(a)
        b = self.s2(a)
        u = a + self.s1(a) + f
        v = self.s3(u) + u
        a = self.s4(v - b if self.s3b == "v-b" else v + b) + b
        return self.ffn(a) + a


class MoEFS(nn.Module):
    """Mixture-of-experts-based feature selector (Section III-F, Figure 4, Equations 19 and 20).

    Three stages' outputs, (B, C, H, W) each, are weighted by their gates: what a 1x1 convolution makes of each, in a
    softmax over the three at each channel and pixel. The weighted sum s becomes s + 1x1(s).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc_a = nn.Conv2d(channels, channels, 1)
        self.fc_b = nn.Conv2d(channels, channels, 1)
        self.fc_c = nn.Conv2d(channels, channels, 1)
        self.fuse = nn.Conv2d(channels, channels, 1)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        gates = torch.stack([self.fc_a(a), self.fc_b(b), self.fc_c(c)]).softmax(0)  # (3, B, C, H, W)
        s = a * gates[0] + b * gates[1] + c * gates[2]
        return s + self.fuse(s)


class SSIU(nn.Module):
    """The network (Section III-B, Figure 2): a 3x3 convolution, the stages, the selector, and the reconstruction.

    Maps RGB images (B, 3, H, W), values in [0, 1], any size from 1 x 1 up, to (B, 3, scale H, scale W), not clamped.
    Images are padded by reflection to a multiple of 16 at the right and at the bottom, and the output is cropped.
    Raises ``InputError`` for a tensor of another shape.
    """

    def __init__(self, config: SSIUConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.head = conv3x3(3, channels)
        self.body = nn.ModuleList(SSReM(config) for _ in range(config.stages))
        if config.moe_fs:
            self.moe = MoEFS(channels)
        steps = {2: (2,), 3: (3,), 4: (2, 2)}[config.scale]
        enlarge = [(nn.Conv2d(channels, channels * r * r, 1), nn.PixelShuffle(r), nn.GELU()) for r in steps]
        self.tail = nn.Sequential(*[layer for step in enlarge for layer in step], conv3x3(channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        check_images(x)
        height, width = x.shape[-2:]
        x = padded(x)
        f = self.head(x.contiguous(memory_format=torch.channels_last))
        a, outputs = f, []
        for stage in self.body:
            a = stage(a, f)
            outputs.append(a)
        if self.config.moe_fs:
            third = self.config.stages // 3
            a = self.moe(*outputs[third - 1 :: third])
        scale = self.config.scale
        sr = self.tail(a + f) + F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
        return sr[:, :, : scale * height, : scale * width]


def padded(x: Tensor) -> Tensor:
    """Images (B, C, H, W) padded by reflection to multiples of 16; those too small for one reflection go on with the
    next, as in a hall of mirrors."""
    down, right = (-side % MULTIPLE for side in x.shape[-2:])
    if down < x.shape[-2] and right < x.shape[-1]:
        return F.pad(x, (0, right, 0, down), mode="reflect") if down or right else x
    for axis, more in ((-2, down), (-1, right)):
        side = x.shape[axis]
        place = torch.arange(side + more, device=x.device) % max(1, 2 * side - 2)
        x = x.index_select(axis, torch.minimum(place, 2 * side - 2 - place))
    return x
