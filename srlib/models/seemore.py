"""SeemoRe: See More Details, Efficient Image Super-Resolution by Experts Mining (Zamfir et al., ICML 2024).

The file reads like Section 3 of the paper: the configuration with its three sizes, the rank modulating expert RME with
its mixture of low-rank expertise MoRE (Section 3.1, Algorithm 1), the spatial modulating expert SME with its spatial
enhancement expertise SEE (Section 3.2), and the network (Figure 2). Where paper and released code differ, the released
code's behaviour is built. Names of attributes give the released files' state-dict keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.models.layers import Config, LayerNorm, check_images

RGB_MEAN = (0.4488, 0.4371, 0.4040)
STRIDE = 4  # side and stride of the recursive convolution of Equation 1
FUSED_MB_GROWTH = 16  # channels that ShuffleMixer's Fused-MBConv adds in its middle


@dataclass(frozen=True)
class SeemoReConfig(Config):
    """Every choice that the paper makes or ablates in the network; the defaults are SeemoRe-T as released.

    ``scale``: 2, 3 or 4. ``groups``: number of residual groups N. ``channels``: width C. ``growth``: rank of expert i,
    the expressions as printed. ``experts``: number of low-rank experts, ``top_k`` of them used for an image.
    ``recursion``: steps t of Equation 1. ``kernel``: side of SEE's striped convolution, odd. Raises ``InputError`` for
    any other value.
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
        super().__post_init__()
        self.require(self.scale in (2, 3, 4), "scale", "choose 2, 3 or 4")
        self.require(self.kernel % 2 == 1, "kernel", "give an odd number")
        self.require(self.top_k <= self.experts, "top_k", f"give no more than the {self.experts} experts")

    @property
    def ranks(self) -> tuple[int, ...]:
        """The experts' ranks R_i, smallest first (Table 5a)."""
        growth = {
            "2^i": lambda i: 2 ** (i + 1),
            "2*i+2": lambda i: 2 * i + 2,
            "i+2": lambda i: i + 2,
            "2^(i+1)": lambda i: 2 ** (i + 2),
        }
        return tuple(growth[self.growth](i) for i in range(self.experts))

    def build(self) -> SeemoRe:
        return SeemoRe(self)


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


def side_by_side(x: Tensor, convs: list[nn.Conv2d]) -> Tensor:
    """What several 1x1 convolutions make of ``x``, computed as one: their channels one after the other."""
    return F.conv2d(x, torch.cat([conv.weight for conv in convs]), torch.cat([conv.bias for conv in convs]))


class LowRankMixture(nn.Module):
    """The mixture of low-rank experts: sum of G(x_a)_i E_i(x_a, x_b) (Equation 4 without its residual; Algorithm 1).

    ``x_a`` and ``x_b``, (B, C, H, W), give (B, C, H, W); each image takes its own route. In training every expert is
    computed, as one set of wider 1x1 convolutions, and the gates are zero where an expert isn't chosen. In evaluation
    mode images of the same route are grouped and only their experts are computed. A graph that has to hold for any
    image, that of ``torch.compile``, ``torch.export`` and ONNX, computes every expert; ``torch.jit.trace`` keeps the
    route of the image that it traced, and warns of it.
    """

    def __init__(self, config: SeemoReConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleList(LowRankExpert(config.channels, rank) for rank in config.ranks)
        self.gate = Router(config.channels, config.experts, config.top_k)

    def forward(self, x_a: Tensor, x_b: Tensor) -> Tensor:
        gates = self.gate(x_a)
        if self.training or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            return self.mix(x_a, x_b, gates, list(range(len(self.experts))))
        groups: dict[tuple[int, ...], list[int]] = {}  # route -> images
        for image, gate in enumerate(gates.tolist()):
            groups.setdefault(tuple(i for i, weight in enumerate(gate) if weight), []).append(image)
        if len(groups) == 1:
            return self.mix(x_a, x_b, gates, list(*groups))
        parts = [self.mix(x_a[images], x_b[images], gates[images], list(route)) for route, images in groups.items()]
        order = torch.tensor(sum(groups.values(), []), device=x_a.device).argsort()
        return torch.cat(parts)[order]

    def mix(self, x_a: Tensor, x_b: Tensor, gates: Tensor, route: list[int]) -> Tensor:
        """The weighted sum of the experts in ``route``, in one go: their ranks lie side by side."""
        experts = [self.experts[i] for i in route]
        gates = gates[:, route].to(x_a.dtype)  # (B, experts of the route)
        first = side_by_side(x_a, [expert.conv_1 for expert in experts])  # (B, sum of ranks, H, W)
        second = side_by_side(x_b, [expert.conv_2 for expert in experts])
        ranks = torch.tensor([expert.conv_1.out_channels for expert in experts], device=gates.device)
        weighted = first * second * gates.repeat_interleave(ranks, dim=1)[:, :, None, None]
        third = torch.cat([expert.conv_3.weight for expert in experts], dim=1)
        bias = (gates[:, :, None] * torch.stack([expert.conv_3.bias for expert in experts])).sum(dim=1)  # (B, C)
        return F.conv2d(weighted, third) + bias[:, :, None, None]


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
        x = self.conv_1(x)  # (B, 2C, H, W)
        if self.config.shuffle:
            x = F.channel_shuffle(x, 2)
        x_a, x_b = x.chunk(2, dim=1)
        x_a = self.conv_2(x_a)
        x_b = x_b + F.interpolate(self.context(x_b), x_b.shape[-2:], mode="bilinear", align_corners=False)  # Eq. (2)
        y = self.moe_layer(x_a, x_b)  # Eq. (4), the sum of Eq. (3) over the experts
        match self.config.residual:
            case "dconv":
                y = y + x_a
            case "aggregation":
                y = y + x_b
        return self.proj(y)

    def context(self, x_b: Tensor) -> Tensor:
        """The contextual features before they are enlarged: 1 / 4^t of the size, at least 1 x 1 (Equation 1)."""
        for _ in range(self.config.recursion):
            missing = [max(0, STRIDE - side) for side in x_b.shape[-2:]]
            x_b = self.agg_conv(F.pad(x_b, (0, missing[1], 0, missing[0])) if any(missing) else x_b)
        return self.conv(x_b)


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

    (B, C, H, W) in and out. The block of RME, the rank modulating expert (Section 3.1), is MoRE; that of SME, the
    spatial modulating expert (Section 3.2), is SEE.
    """

    def __init__(self, channels: int, block: nn.Module) -> None:
        super().__init__()
        self.norm_1, self.block = LayerNorm(channels), block
        self.norm_2, self.ffn = LayerNorm(channels), GatedFFN(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.norm_1(x)) + x
        return self.ffn(self.norm_2(x)) + x


class ResidualGroup(nn.Module):
    """RME, then SME (Figure 2), or the other way round (Table 4b). (B, C, H, W) in and out."""

    def __init__(self, config: SeemoReConfig) -> None:
        super().__init__()
        self.config = config
        self.local_block = ModulatingExpert(config.channels, rank_block(config))
        no_sme = config.sme == "none"
        self.global_block = nn.Identity() if no_sme else ModulatingExpert(config.channels, spatial_block(config))

    def forward(self, x: Tensor) -> Tensor:
        if self.config.order == "spatial-rank":
            return self.local_block(self.global_block(x))
        return self.global_block(self.local_block(x))


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
        y = self.conv_2(self.norm(self.body(x)))
        return self.upsampler(y + x) + self.mean
