"""SSIU: structural-similarity-inspired unfolding network for lightweight image super-resolution (Ni et al., 2025).

The file reads like Section III of the paper: the configuration, the mixed-scale gating module MSGM (Section III-D), the
efficient sparse attention module ESAM (Section III-E), the stage SSReM that unfolds one iteration (Section III-C), the
selector MoEFS (Section III-F), and the network (Figure 2). Where paper and released code differ, the released code's
behaviour is built. Names of attributes give the released files' state-dict keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.errors import InputError
from srlib.models.layers import LayerNorm, at_liberty, check_images, enlarged_rows, strips, strips_pay

SCALES = (2, 3, 4)
HEADS = 4
BLOCK = 8  # side of ESAM's blocks of queries
HALO = 1  # what a block's keys and values reach beyond it on every side
MULTIPLE = 2 * BLOCK  # images are padded to a multiple of this: pooling halves them, and blocks must fit
STRIP = 32  # rows of a strip in the stages; even, as two convolutions look at other rows
TILE = (16, 64)  # rows and columns that are reconstructed at once, to maps of up to 16 times the pixels
LARGE = 4096  # pixels of an image that is worth going through on its own, in strips


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


class Pointwise(nn.Conv2d):
    """A 1x1 convolution; as a linear layer where gradients are wanted on a CPU, which computes them faster so."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and at_liberty(self, x)):
            return super().forward(x)
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class MSGM(nn.Module):
    """Mixed-scale gating module (Section III-D, Figure 3, Equation 15): what stands for a soft threshold S_tau.

    f1 = 1x1(f), f2 = 1x1(DWConv(1x1(f))), result 1x1(GELU(f1) f2). (B, C, H, W) in and out; ``rows`` says which of
    the result's rows are wanted.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project_in1 = Pointwise(channels, channels)
        self.project_in2 = nn.Sequential(
            Pointwise(channels, channels),
            conv3x3(channels, channels, groups=channels),
            Pointwise(channels, channels),
        )
        self.project_out = Pointwise(channels, channels)

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        narrow, spread, mix = self.project_in2
        f2 = mix(spread(narrow(x))[:, :, rows])
        return self.project_out(F.gelu(self.project_in1(x[:, :, rows])) * f2)


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
        x = self.attend(self.small(x))
        if not self.sparse:
            return x
        return F.interpolate(self.LocalProp(x), scale_factor=2, mode="bilinear", align_corners=True)

    def small(self, x: Tensor) -> Tensor:
        """What blocks are cut from."""
        return F.max_pool2d(x, 2) if self.sparse else x

    def attend(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """Self-attention of each block to its neighbourhood (Equation 17); ``rows`` as in ``MSGM``."""
        q, k, v = self.qkv_conv(x).chunk(3, dim=1)
        margins = (HALO, HALO, 0 if rows.start else HALO, 0 if rows.stop else HALO)
        k, v = (self.blocks(F.pad(t, margins), BLOCK + 2 * HALO) for t in (k, v))
        q = self.blocks(q[:, :, rows], BLOCK)  # (B, rows, columns, heads, 8, 8, C / heads)
        k = k + torch.cat([self.rel_h.expand(-1, -1, k.shape[5], -1), self.rel_w.expand(-1, k.shape[4], -1, -1)], -1)
        y = F.scaled_dot_product_attention(*(t.flatten(0, 2).flatten(2, 3) for t in (q, k, v)))
        return y.reshape(q.shape).permute(0, 3, 6, 1, 4, 2, 5).flatten(1, 2).flatten(2, 3).flatten(3, 4)

    @staticmethod
    def blocks(x: Tensor, side: int) -> Tensor:
        """The square of ``side`` pixels about each block of (B, C, H, W): (B, rows, columns, heads, side, side,
        C / heads)."""
        x = x.unflatten(1, (HEADS, -1)).unfold(3, side, BLOCK).unfold(4, side, BLOCK)
        return x.permute(0, 3, 4, 1, 5, 6, 2)

    def in_strips(self, x: Tensor, size: tuple[int, int]) -> Callable[[slice], Tensor]:
        """``forward`` some rows of blocks at a time, from what ``small`` makes of the input; see ``layers.strips_pay``.

        What comes back gives rows of the result, which has the ``size``, when they are asked for.
        """
        y = torch.empty_like(x)
        for strip in strips(y, HALO, step=4 * BLOCK):
            strip.out.copy_(self.attend(x[:, :, strip.rows], strip.ends_off))
        if not self.sparse:
            return lambda rows: y[:, :, rows]
        return enlarged_rows(self.LocalProp(y), size, align_corners=True)


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
        u, b = self.observe(a, f)
        return self.combine(u, b, self.s3(u))

    def observe(self, a: Tensor, f: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Steps S1 and S2 and what S3.a starts from: u and b; ``rows`` as in ``MSGM``."""
        a = self.norm(a)
        return a[:, :, rows] + self.s1(a, rows) + f[:, :, rows], self.s2(a, rows)

    def combine(self, u: Tensor, b: Tensor, attended: Tensor, rows: slice = slice(None)) -> Tensor:
        """Steps S3.a, given ESAM(u), and S3.b and what follows; ``rows`` are cut off twice, after each of two MSGMs."""
        v = attended + u
        a = self.s4(v - b if self.s3b == "v-b" else v + b, rows) + b[:, :, rows]
        return self.ffn(a, rows) + a[:, :, rows]

    def in_strips(self, a: Tensor, f: Tensor, u: Tensor, b: Tensor, result: Tensor) -> Tensor:
        """``forward`` a strip of rows at a time; see ``layers.strips_pay``.

        It works in the maps ``u`` and ``b`` and fills ``result``, which may be ``a``. Attention needs the whole of u.
        """
        small = []
        for strip, of_b in zip(strips(u, 1, step=STRIP), strips(b, 1, step=STRIP), strict=True):
            near_u, near_b = self.observe(a[:, :, strip.rows], f[:, :, strip.rows], strip.ends_off)
            strip.out.copy_(near_u)
            of_b.out.copy_(near_b)
            small.append(self.s3.small(near_u))
        attended = self.s3.in_strips(torch.cat(small, dim=2), u.shape[-2:])
        for strip in strips(result, 2, step=STRIP):
            near = (t[:, :, strip.rows] for t in (u, b))
            strip.out.copy_(self.combine(*near, attended(strip.rows), strip.ends_off))
        return result


class MoEFS(nn.Module):
    """Mixture-of-experts-based feature selector (Section III-F, Figure 4, Equations 19 and 20).

    Three stages' outputs, (B, C, H, W) each, are weighted by their gates: what a 1x1 convolution makes of each, in a
    softmax over the three at each channel and pixel. The weighted sum s becomes s + 1x1(s).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc_a = Pointwise(channels, channels)
        self.fc_b = Pointwise(channels, channels)
        self.fc_c = Pointwise(channels, channels)
        self.fuse = Pointwise(channels, channels)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        gates = torch.stack([self.fc_a(a), self.fc_b(b), self.fc_c(c)]).softmax(0)  # (3, B, C, H, W)
        s = a * gates[0] + b * gates[1] + c * gates[2]
        return s + self.fuse(s)


class Tail(nn.Sequential):
    """The reconstruction (Figure 2): 1x1 convolution, pixel shuffle and GELU, twice for x4, and a 3x3 convolution.

    (B, C, H, W) to (B, 3, scale H, scale W). A CPU in eager mode shuffles nothing before the end: a pixel's parts lie
    side by side, as all is point-wise but the last sum. The 3x3 convolution's nine taps of three channels are one 1x1
    convolution; they alone are shuffled and padded by reflection, and ``F.fold`` sums them where they meet.
    """

    def __init__(self, channels: int, scale: int) -> None:
        steps = {2: (2,), 3: (3,), 4: (2, 2)}[scale]
        enlarge = [(nn.Conv2d(channels, channels * r * r, 1), nn.PixelShuffle(r), nn.GELU()) for r in steps]
        super().__init__(*[layer for step in enlarge for layer in step], conv3x3(channels, 3))
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        if not at_liberty(self, x):
            return super().forward(x)
        *enlarging, last = (layer for layer in self if isinstance(layer, nn.Conv2d))
        batch, channels, height, width = x.shape
        x = x.permute(0, 2, 3, 1)
        for conv, r in zip(enlarging, self.steps, strict=True):
            parts = (t.unflatten(0, (-1, r * r)).transpose(0, 1) for t in (conv.weight, conv.bias))  # (r r, C, ...)
            weight, bias = (t.flatten(0, 1) for t in parts)
            x = F.gelu(F.linear(x, weight.flatten(1), bias)).reshape(batch, height, -1, channels)  # (B, H, W r r, C)
        taps = F.linear(x, last.weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2))
        taps = taps.reshape(batch, height, width, *(r for r in self.steps for _ in "ij"), -1)
        rows, columns = range(3, taps.ndim - 1, 2), range(4, taps.ndim - 1, 2)
        taps = taps.permute(0, -1, 1, *rows, 2, *columns).flatten(3 + len(rows)).flatten(2, 2 + len(rows))
        taps = F.pad(taps, (1, 1, 1, 1), mode="reflect")  # (B, 27, scale H + 2, scale W + 2)
        size = [side - 2 for side in taps.shape[-2:]]
        return F.fold(taps.flatten(2), size, 3, padding=2) + last.bias[:, None, None]


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
        self.tail = Tail(channels, config.scale)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x)
        height, width = (self.config.scale * side for side in x.shape[-2:])
        x = padded(x)
        sr = F.interpolate(x, scale_factor=self.config.scale, mode="bilinear", align_corners=False)
        x = x.contiguous(memory_format=torch.channels_last)
        if strips_pay(self, x) and x[0, 0].numel() >= LARGE:
            self.add_in_strips(sr, x)
        else:
            sr = sr + self.residual(x)
        return sr[:, :, :height, :width]

    @property
    def third(self) -> int:
        """After how many stages an output goes on: MoE-FS takes three of them, without it the last alone does."""
        return self.config.stages // 3 if self.config.moe_fs else self.config.stages

    def residual(self, x: Tensor) -> Tensor:
        """What is added to the images ``x`` as they are enlarged by interpolation: (B, 3, scale H, scale W)."""
        f = self.head(x)
        a, outputs = f, []
        for stage in self.body:
            a = stage(a, f)
            outputs.append(a)
        return self.reconstruct(f, outputs[self.third - 1 :: self.third])

    def reconstruct(self, f: Tensor, outputs: list[Tensor]) -> Tensor:
        """The residual from the shallow features and the outputs of those stages that go on."""
        a = self.moe(*outputs) if self.config.moe_fs else outputs[0]
        return self.tail(a + f)

    def add_in_strips(self, sr: Tensor, x: Tensor) -> None:
        """Add the residual to ``sr``, image by image and in strips and tiles; see ``layers.strips_pay``."""
        for image, whole in zip(x.split(1), sr.split(1), strict=True):
            a = f = self.head(image)
            u, b, outputs = torch.empty_like(f), torch.empty_like(f), []
            for number, stage in enumerate(self.body):
                if number % self.third == 0:
                    outputs.append(torch.empty_like(f))
                a = stage.in_strips(a, f, u, b, outputs[-1])
            for column in strips(whole.mT, 1, self.config.scale, TILE[1]):
                for strip in strips(column.out.mT, 1, self.config.scale, TILE[0]):
                    near = (t[:, :, strip.rows, column.rows] for t in (f, *outputs))
                    strip.out.add_(self.reconstruct(next(near), list(near))[:, :, strip.inner, column.inner])


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
