"""SeemoRe: See More Details, Efficient Image Super-Resolution by Experts Mining (Zamfir et al., ICML 2024).

The file reads like Section 3 of the paper: the configuration with its three sizes, the rank modulating expert RME with
its mixture of low-rank expertise MoRE (Section 3.1, Algorithm 1), the spatial modulating expert SME with its spatial
enhancement expertise SEE (Section 3.2), and the network (Figure 2). Where paper and released code differ, the released
code's behaviour is built. Names of attributes give the released files' state-dict keys.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Literal, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.errors import InputError
from srlib.models.layers import LayerNorm, check_images, fill_in_strips, strips, strips_pay

SCALES = (2, 3, 4)
RGB_MEAN = (0.4488, 0.4371, 0.4040)
LARGE = 4096  # pixels of an image that is worth going through on its own, in strips
STRIDE = 4  # side and stride of the recursive convolution of Equation 1
LARGEST_RANK = 4096  # of an expert; more would be a mistake that fills the memory
FUSED_MB_GROWTH = 16  # channels that ShuffleMixer's Fused-MBConv adds in its middle


@dataclass(frozen=True)
class SeemoReConfig:
    """Every choice that the paper makes or ablates in the network; the defaults are SeemoRe-T as released.

    ``scale``: 2, 3 or 4. ``groups``: number of residual groups N. ``channels``: width C. ``growth``: rank of expert i,
    the expressions as printed. ``experts``: number of low-rank experts, ``top_k`` of them used for an image.
    ``recursion``: steps t of Equation 1. ``kernel``: side of SEE's striped convolution, odd. Raises ``InputError`` for
    any other value, and where the largest rank is above 4096.
    """

    scale: int = 4
    groups: int = 6
    channels: int = 36
    order: Literal["rank-spatial", "spatial-rank"] = "rank-spatial"  # Table 4b
    rme: Literal["more", "plain"] = "more"  # Tables 4a and 7: MoRE, or a 3x3 convolution and a point-wise one
    growth: Literal["2^i", "2*i+2", "i+2", "2^(i+1)"] = "2^i"  # Tables 5a and 14; the last is Algorithm 1's
    experts: int = 3
    top_k: int = 1
    recursion: int = 2
    shuffle: bool = True  # the channels of MoRE's projection, before they are split
    residual: Literal["dconv", "aggregation", "none"] = "dconv"  # Table 11: what the experts' output is added to
    sme: Literal["see", "plain", "striped", "fused_mb", "conv2former", "none"] = "see"  # Tables 4a, 7 and 10
    kernel: int = 11

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for field in fields(self):
            value, kind = getattr(self, field.name), kinds[field.name]
            if kind is bool and not isinstance(value, bool):
                raise InputError(f"SeemoRe's {field.name} is {value!r}; give True or False")
            if kind is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"SeemoRe's {field.name} is {value!r}; give a whole number from 1 up")
            if get_args(kind) and value not in get_args(kind):
                raise InputError(f"SeemoRe's {field.name} is {value!r}; choose one of: {', '.join(get_args(kind))}")
        if self.scale not in SCALES:
            raise InputError(f"SeemoRe has no scale {self.scale}; choose one of: {', '.join(map(str, SCALES))}")
        if self.kernel % 2 == 0:
            raise InputError(f"SeemoRe's kernel is {self.kernel}; give an odd number")
        if self.top_k > self.experts:
            raise InputError(f"SeemoRe's top_k {self.top_k} is more than its {self.experts} experts; give fewer")
        if self.experts > LARGEST_RANK or self.ranks[-1] > LARGEST_RANK:
            raise InputError(
                f"SeemoRe's {self.experts} experts of growth {self.growth} have ranks above {LARGEST_RANK}; give fewer"
            )

    @property
    def ranks(self) -> tuple[int, ...]:
        """The experts' ranks R_i, smallest first (Table 5a)."""
        rank = {
            "2^i": lambda i: 2 ** (i + 1), "2*i+2": lambda i: 2 * i + 2, "i+2": lambda i: i + 2,
            "2^(i+1)": lambda i: 2 ** (i + 2),
        }[self.growth]  # fmt: skip
        return tuple(rank(i) for i in range(self.experts))


# The three sizes (Table 6), as released: L has no channel shuffle.
CONFIGS = {
    "seemore-t": SeemoReConfig(),
    "seemore-b": SeemoReConfig(groups=8, channels=48),
    "seemore-l": SeemoReConfig(groups=16, channels=48, recursion=1, shuffle=False),
}


class StripedConv2d(nn.Module):
    """A depth-wise convolution of k x k as two stripes, 1 x k and then k x 1. (B, C, H, W) in and out."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, (1, kernel), padding=(0, kernel // 2), groups=channels),
            nn.Conv2d(channels, channels, (kernel, 1), padding=(kernel // 2, 0), groups=channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Router(nn.Module):
    """The routing function G (Equation 4; Algorithm 1, lines 3 to 6): one linear layer on the image's mean feature.

    (B, C, H, W) to (B, experts): softmax values, those of the ``top_k`` experts kept as they are, the others 0.
    """

    def __init__(self, channels: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, experts, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.body(x).softmax(dim=1)
        values, chosen = weights.topk(self.top_k, dim=1)
        return torch.zeros_like(weights).scatter(1, chosen, values)


class LowRankExpert(nn.Module):
    """The weights of one expert E_i (Equation 3): W3(W1 x_a * W2 x_b), in ``rank`` channels."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, rank, 1)
        self.conv_2 = nn.Conv2d(channels, rank, 1)
        self.conv_3 = nn.Conv2d(rank, channels, 1)

    def forward(self, x_a: Tensor, x_b: Tensor) -> Tensor:
        return self.conv_3(self.conv_1(x_a) * self.conv_2(x_b))


class LowRankMixture(nn.Module):
    """The mixture of low-rank experts: sum of G(x_a)_i E_i(x_a, x_b) (Equation 4 without its residual; Algorithm 1).

    ``x_a`` and ``x_b``, (B, C, H, W), give (B, C, H, W); each image takes its own route. ``gates``, (B, experts),
    replace the router's where the two are only some rows of the images. In training every expert is computed, as one
    set of wider 1x1 convolutions, and the gates are zero where an expert isn't chosen. In evaluation mode images of the
    same route are grouped and only their experts are computed. A graph that has to hold for any image, that of
    ``torch.compile``, ``torch.export`` and ONNX, computes every expert; ``torch.jit.trace`` keeps the route of the
    image that it traced, and warns of it.
    """

    def __init__(self, config: SeemoReConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleList(LowRankExpert(config.channels, rank) for rank in config.ranks)
        self.gate = Router(config.channels, config.experts, config.top_k)

    def forward(self, x_a: Tensor, x_b: Tensor, gates: Tensor | None = None) -> Tensor:
        gates = self.gate(x_a) if gates is None else gates
        every = tuple(range(len(self.experts)))
        if self.training or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            return self.mix(x_a, x_b, gates, every)
        groups: dict[tuple[int, ...], list[int]] = {}  # route -> images
        for image, gate in enumerate(gates.tolist()):
            groups.setdefault(tuple(i for i in every if gate[i]), []).append(image)
        if len(groups) == 1:
            return self.mix(x_a, x_b, gates, *groups)
        parts = [self.mix(x_a[images], x_b[images], gates[images], route) for route, images in groups.items()]
        order = torch.tensor(sum(groups.values(), []), device=x_a.device).argsort()
        return torch.cat(parts)[order]

    def mix(self, x_a: Tensor, x_b: Tensor, gates: Tensor, route: tuple[int, ...]) -> Tensor:
        """The weighted sum of the experts in ``route``, in one go: their ranks lie side by side."""
        experts = [self.experts[i] for i in route]
        gates = gates[:, route].to(x_a.dtype)
        first, second = (
            F.conv2d(x, torch.cat([conv.weight for conv in convs]), torch.cat([conv.bias for conv in convs]))
            for x, convs in ((x_a, [e.conv_1 for e in experts]), (x_b, [e.conv_2 for e in experts]))
        )  # each (B, sum of ranks, H, W)
        shares = [gates[:, [i]].expand(-1, expert.conv_1.out_channels) for i, expert in enumerate(experts)]
        weighted = first * second * torch.cat(shares, dim=1)[:, :, None, None]
        bias = (gates[:, :, None] * torch.stack([expert.conv_3.bias for expert in experts])).sum(dim=1)  # (B, C)
        return F.conv2d(weighted, torch.cat([e.conv_3.weight for e in experts], dim=1)) + bias[:, :, None, None]


class MoRE(nn.Module):
    """Mixture of low-rank expertise (Section 3.1, Figure 3, Equations 1 to 4). (B, C, H, W) in and out.

    A projection gives two views. x_a goes through a striped depth-wise convolution; x_b has context added, from the
    same strided depth-wise convolution applied t times, refined and enlarged. The experts combine the two.
    """

    def __init__(self, config: SeemoReConfig) -> None:
        super().__init__()
        channels, self.config = config.channels, config
        self.conv_1 = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(), nn.Conv2d(channels, 2 * channels, 1)
        )
        self.agg_conv = nn.Sequential(nn.Conv2d(channels, channels, STRIDE, STRIDE, groups=channels), nn.GELU())
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.Conv2d(channels, channels, 1)
        )
        self.conv_2 = nn.Sequential(StripedConv2d(channels, 3), nn.GELU())
        self.moe_layer = LowRankMixture(config)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x_a, x_b = self.views(x)
        return self.combine(x_a, x_b + self.enlarge(self.context(x_b), x_b.shape[-2:]))

    def combine(self, x_a: Tensor, x_b: Tensor, gates: Tensor | None = None) -> Tensor:
        """The experts on the two views, x_b with its context, or on some rows of them with the images' ``gates``."""
        y = self.moe_layer(x_a, x_b, gates)
        match self.config.residual:
            case "dconv":
                y = y + x_a
            case "aggregation":
                y = y + x_b
        return self.proj(y)

    def views(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_a, through its depth-wise convolution, and x_b, both (B, C, H, W)."""
        x = self.conv_1(x)  # (B, 2C, H, W)
        if self.config.shuffle:
            x = F.channel_shuffle(x, 2)
        x_a, x_b = x.chunk(2, dim=1)
        return self.conv_2(x_a), x_b

    def context(self, x_b: Tensor) -> Tensor:
        """The contextual features before they are enlarged: 1 / 4^t of the size, at least 1 x 1 (Equation 1)."""
        for _ in range(self.config.recursion):
            missing = [max(0, STRIDE - side) for side in x_b.shape[-2:]]
            x_b = self.agg_conv(F.pad(x_b, (0, missing[1], 0, missing[0])) if any(missing) else x_b)
        return self.conv(x_b)

    def enlarge(self, context: Tensor, size: tuple[int, int]) -> Tensor:
        """The contextual features at the full size (Equation 2, the up arrow)."""
        return F.interpolate(context, size, mode="bilinear", align_corners=False)


class GatedFFN(nn.Module):
    """Gated feed-forward network (Chen et al., 2023; Section 3.1). (B, C, H, W) in and out.

    A point-wise convolution to 2C channels; one half, through a depth-wise 3x3 convolution, gates the other.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fn_1 = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1), nn.GELU())
        self.gate = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.fn_2 = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.fn_1(x).chunk(2, dim=1)
        return self.fn_2(x * self.gate(gate))


class SEE(nn.Module):
    """Spatial enhancement expertise (Section 3.2, Equation 5): a striped k x k convolution of one projection modulates
    the other. (B, C, H, W) in and out.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.to_qv = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1), nn.GELU())
        self.attn = StripedConv2d(channels, kernel)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, v = self.to_qv(x).chunk(2, dim=1)
        return self.proj(self.attn(q) * v)


class Conv2FormerBlock(nn.Module):
    """The convolutional modulation of Conv2Former (Hou et al., 2024), in place of SEE (Table 10, "C2F").

    As SEE, but with a full k x k depth-wise convolution and GELU on its branch alone. (B, C, H, W) in and out.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.attn = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.GELU(),
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels),
        )
        self.to_v = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.attn(x) * self.to_v(x))


def rank_block(config: SeemoReConfig) -> nn.Module:
    """What stands in RME's first half: MoRE, or the plain convolutions of the baselines (Tables 4a and 7)."""
    if config.rme == "more":
        return MoRE(config)
    channels = config.channels
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(), nn.Conv2d(channels, channels, 1))


def spatial_block(config: SeemoReConfig) -> nn.Module:
    """What stands in SME's first half: SEE, or what Tables 4a, 7 and 10 put in its place."""
    channels = config.channels
    match config.sme:
        case "see":
            return SEE(channels, config.kernel)
        case "plain":
            return nn.Conv2d(channels, channels, 1)
        case "striped":
            return nn.Sequential(nn.Conv2d(channels, channels, 1), StripedConv2d(channels, config.kernel))
        case "fused_mb":
            hidden = channels + FUSED_MB_GROWTH
            return nn.Sequential(nn.Conv2d(channels, hidden, 3, padding=1), nn.SiLU(), nn.Conv2d(hidden, channels, 1))
        case "conv2former":
            return Conv2FormerBlock(channels, config.kernel)


class ModulatingExpert(nn.Module):
    """What RME and SME share (Figure 2): layer norm, a block and a skip, then layer norm, GatedFFN and a skip.

    (B, C, H, W) in and out.
    """

    def __init__(self, channels: int, block: nn.Module) -> None:
        super().__init__()
        self.norm_1, self.block = LayerNorm(channels), block
        self.norm_2, self.ffn = LayerNorm(channels), GatedFFN(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.norm_1(x)) + x
        return self.ffn(self.norm_2(x)) + x

    def in_strips(self, x: Tensor, free: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``forward`` a strip of rows at a time; see ``layers.strips_pay``.

        It works in ``x`` and two ``free`` maps of the same shape, and overwrites all three: the result is one of them,
        and the others come back as free.
        """
        y, free = self.first_half(x, free)
        fill_in_strips(free[0], lambda rows: self.ffn(self.norm_2(y[:, :, rows])).add_(y[:, :, rows]), halo=1)
        return free[0], (y, free[1])

    def first_half(self, x: Tensor, free: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The block with its norm and skip, as ``in_strips``; of its convolutions only one may look at other rows."""
        halo = max(conv.kernel_size[0] // 2 for conv in self.block.modules() if isinstance(conv, nn.Conv2d))
        fill_in_strips(free[0], lambda rows: self.block(self.norm_1(x[:, :, rows])).add_(x[:, :, rows]), halo)
        return free[0], (x, free[1])


class RME(ModulatingExpert):
    """Rank modulating expert (Section 3.1): MoRE and GatedFFN."""

    def __init__(self, config: SeemoReConfig) -> None:
        super().__init__(config.channels, rank_block(config))

    def first_half(self, x: Tensor, free: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """MoRE's routes and context need the whole views. These fill the free maps; what follows is done in ``x``.

        Enlarging is separable and linear: a matrix gives each row of the result from the rows of the context.
        """
        if not isinstance(more := self.block, MoRE):
            return super().first_half(x, free)
        x_a, x_b = free
        for pair in zip(strips(x_a, halo=2), strips(x_b, halo=2), strict=True):
            views = more.views(self.norm_1(x[:, :, pair[0].rows]))
            for strip, view in zip(pair, views, strict=True):
                strip.out.copy_(view[:, :, strip.inner])

        gates, context, width = more.moe_layer.gate(x_a), more.context(x_b), x.shape[3]
        context = more.enlarge(context, (context.shape[2], width)).permute(0, 2, 3, 1).flatten(2)  # (B, h, W C)
        matrix = F.interpolate(torch.eye(context.shape[1]).to(context)[None], x.shape[2], mode="linear")[0].T  # (H, h)

        def combined(rows: slice) -> Tensor:
            near = matrix[rows].any(dim=0)
            enlarged = matrix[rows][:, near] @ context[:, near]  # (B, rows, W C)
            enlarged = enlarged.unflatten(2, (width, -1)).permute(0, 3, 1, 2)
            return more.combine(x_a[:, :, rows], enlarged.add_(x_b[:, :, rows]), gates).add_(x[:, :, rows])

        fill_in_strips(x, combined, halo=0)
        return x, free


class SME(ModulatingExpert):
    """Spatial modulating expert (Section 3.2): SEE and GatedFFN."""

    def __init__(self, config: SeemoReConfig) -> None:
        super().__init__(config.channels, spatial_block(config))


class ResidualGroup(nn.Module):
    """RME, then SME (Figure 2), or the other way round (Table 4b). (B, C, H, W) in and out."""

    def __init__(self, config: SeemoReConfig) -> None:
        super().__init__()
        self.config = config
        self.local_block = RME(config)
        self.global_block = nn.Identity() if config.sme == "none" else SME(config)

    @property
    def halves(self) -> list[ModulatingExpert]:
        """RME and, where there is one, SME, in their order."""
        halves = [half for half in (self.local_block, self.global_block) if isinstance(half, ModulatingExpert)]
        return halves if self.config.order == "rank-spatial" else halves[::-1]

    def forward(self, x: Tensor) -> Tensor:
        for half in self.halves:
            x = half(x)
        return x


class SeemoRe(nn.Module):
    """The network (Figure 2): a 3x3 convolution, the residual groups with a global skip, a 3x3 convolution and pixel
    shuffle, around a shift by the RGB mean.

    Maps RGB images (B, 3, H, W), values in [0, 1], any size from 1 x 1 up, to (B, 3, scale H, scale W), not clamped.
    Raises ``InputError`` for a tensor of another shape.
    """

    def __init__(self, config: SeemoReConfig) -> None:
        super().__init__()
        channels, self.config = config.channels, config
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(3, 1, 1), persistent=False)
        self.conv_1 = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*[ResidualGroup(config) for _ in range(config.groups)])
        self.norm = LayerNorm(channels)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(channels, 3 * config.scale**2, 3, padding=1),
            nn.PixelShuffle(config.scale),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_images(x)
        x = self.conv_1(x.contiguous(memory_format=torch.channels_last) - self.mean)
        if strips_pay(self, x) and x[0, 0].numel() >= LARGE:
            return self.in_strips(x)
        return self.enlarged(x, self.body(x))

    def enlarged(self, x: Tensor, y: Tensor, rows: slice = slice(None)) -> Tensor:
        """The image, or what ``rows`` give of it, from the body's input ``x`` and result ``y``."""
        x, y = x[:, :, rows], y[:, :, rows]
        return self.upsampler(self.conv_2(self.norm(y)) + x) + self.mean

    def in_strips(self, x: Tensor) -> Tensor:
        """``forward`` from the body on, image by image and a strip of rows at a time; see ``layers.strips_pay``.

        Three maps of the size of an image's features take turns, as fresh memory costs more than filling it again.
        """
        scale = self.config.scale
        sr = self.mean.new_empty(x.shape[0], 3, scale * x.shape[2], scale * x.shape[3])
        for image, out in zip(x.split(1), sr.split(1), strict=True):
            y, free = image.clone(), (torch.empty_like(image), torch.empty_like(image))
            for group in self.body:
                for half in group.halves:
                    y, free = half.in_strips(y, free)
            fill_in_strips(out, partial(self.enlarged, image, y), halo=2, scale=scale)
        return sr
