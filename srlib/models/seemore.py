"""SeemoRe: See More Details, Efficient Image Super-Resolution by Experts Mining (Zamfir et al., ICML 2024).

The file reads like Section 3 of the paper: the mixture of low-rank expertise MoRE (Section 3.1, Algorithm 1) of the
rank modulating expert RME, the spatial enhancement expertise SEE (Section 3.2) of the spatial modulating expert SME,
and the network (Figure 2). Blocks map (B, C, H, W) to (B, C, H, W).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.models.layers import Config, LayerNorm, check_images, conv

STRIDE = 4  # side and stride of the recursive convolution of Equation 1


@dataclass(frozen=True)
class SeemoReConfig(Config):
    """Every choice that the paper makes or ablates in the network; the defaults are SeemoRe-T as released."""

    scale: Literal[2, 3, 4] = 4
    groups: int = 6  # N residual groups
    channels: int = 36  # C
    order: Literal["rank-spatial", "spatial-rank"] = "rank-spatial"  # Table 4b
    rme: Literal["more", "plain"] = "more"  # Tables 4a and 7: MoRE, or a 3x3 convolution and a point-wise one
    growth: Literal["2^i", "2*i+2", "i+2"] = "2^i"  # of the ranks: Tables 5a and 14
    experts: int = 3  # of low rank
    top_k: int = 1  # experts used for an image
    recursion: int = 2  # t, steps of Equation 1
    shuffle: bool = True  # the channels of MoRE's projection, before they are split
    residual: Literal["dconv", "aggregation", "none"] = "dconv"  # Table 11: what the experts' output is added to
    sme: Literal["see", "plain", "striped", "fused_mb", "conv2former", "none"] = "see"  # Tables 4a, 7 and 10
    kernel: int = 11  # side of SEE's striped convolution, odd

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.kernel % 2 == 1, "kernel", "give an odd number")
        self.require(self.top_k <= self.experts, "top_k", f"give no more than the {self.experts} experts")

    @property
    def ranks(self) -> tuple[int, ...]:
        """The experts' ranks, smallest first. Table 5a lists them beside the expressions: i counts experts from 1 in
        2^i (2, 4, 8), but from 0 in 2*i+2 (2, 4, 6) and in i+2 (2, 3, 4)."""
        steps = range(1, self.experts + 1)
        return tuple({"2^i": 2**i, "2*i+2": 2 * i, "i+2": i + 1}[self.growth] for i in steps)

    def build(self) -> SeemoRe:
        return SeemoRe(self)


# The three sizes (Table 6), as released: L has no channel shuffle.
CONFIGS = {
    "seemore-t": SeemoReConfig(),
    "seemore-b": SeemoReConfig(groups=8, channels=48),
    "seemore-l": SeemoReConfig(groups=16, channels=48, recursion=1, shuffle=False),
}


def striped_conv(channels: int, kernel: int) -> nn.Sequential:
    """A depth-wise convolution of k x k as two stripes, 1 x k and then k x 1."""
    row = nn.Conv2d(channels, channels, (1, kernel), padding=(0, kernel // 2), groups=channels)
    column = nn.Conv2d(channels, channels, (kernel, 1), padding=(kernel // 2, 0), groups=channels)
    return nn.Sequential(OrderedDict(conv=nn.Sequential(row, column)))


class Router(nn.Module):
    """The routing function G (Equation 4; Algorithm 1, lines 3 to 6): one linear layer on the image's mean feature, to
    (B, experts): softmax values, those of the ``top_k`` experts kept as they are, the others 0."""

    def __init__(self, channels: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, experts, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.body(x).softmax(dim=1)
        values, chosen = weights.topk(self.top_k, dim=1)
        return torch.zeros_like(weights).scatter(1, chosen, values)


class LowRankExpert(nn.Module):
    """One expert E_i, in ``rank`` channels, of two views."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.conv_1, self.conv_2, self.conv_3 = conv(channels, rank), conv(channels, rank), conv(rank, channels)

    def forward(self, x_a: Tensor, x_b: Tensor) -> Tensor:
        return self.conv_3(self.conv_1(x_a) * self.conv_2(x_b))  # Eq. (3)


class LowRankMixture(nn.Module):
    """The mixture of low-rank experts: sum of G(x_a)_i E_i(x_a, x_b) (Equation 4 without its residual; Algorithm 1).

    In training, and in a graph that has to hold for any image (``torch.compile``, ``torch.export``), every expert
    is computed, the gates of those not chosen being 0. In evaluation mode images of the same route are grouped, and
    only their experts are computed.
    """

    def __init__(self, config: SeemoReConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleList(LowRankExpert(config.channels, rank) for rank in config.ranks)
        self.gate = Router(config.channels, config.experts, config.top_k)

    def forward(self, x_a: Tensor, x_b: Tensor) -> Tensor:
        gates = self.gate(x_a)
        if self.training or torch.compiler.is_compiling():
            return self.mix(x_a, x_b, gates, range(len(self.experts)))
        groups: dict[tuple[int, ...], list[int]] = {}  # route -> images
        for image, gate in enumerate(gates.tolist()):
            groups.setdefault(tuple(i for i, weight in enumerate(gate) if weight), []).append(image)
        if len(groups) == 1:
            return self.mix(x_a, x_b, gates, *groups)
        parts = [self.mix(x_a[images], x_b[images], gates[images], route) for route, images in groups.items()]
        return torch.cat(parts)[torch.tensor(sum(groups.values(), []), device=x_a.device).argsort()]

    def mix(self, x_a: Tensor, x_b: Tensor, gates: Tensor, route: Sequence[int]) -> Tensor:
        """Equation 4 over the experts in ``route``, computed as one expert in which their ranks lie side by side."""
        experts: list[Any] = [self.experts[i] for i in route]
        first, second = (
            F.conv2d(x, torch.cat([conv.weight for conv in convs]), torch.cat([conv.bias for conv in convs]))
            for x, convs in ((x_a, [e.conv_1 for e in experts]), (x_b, [e.conv_2 for e in experts]))
        )  # each (B, sum of ranks, H, W)
        gates = gates[:, route, None].to(x_a.dtype)
        ranked = torch.cat([gates[:, i].expand(-1, e.conv_1.out_channels) for i, e in enumerate(experts)], dim=1)
        y = F.conv2d(first * second * ranked[:, :, None, None], torch.cat([e.conv_3.weight for e in experts], dim=1))
        bias = (gates * torch.stack([e.conv_3.bias for e in experts])).sum(dim=1)  # (B, C)
        return y + bias[:, :, None, None]


class MoRE(nn.Module):
    """Mixture of low-rank expertise (Section 3.1, Figure 3, Equations 1 to 4).

    A projection gives two views. x_a goes through a striped depth-wise convolution; x_b has context added, from the
    same strided depth-wise convolution applied t times, refined and enlarged. The experts combine the two.
    """

    def __init__(self, config: SeemoReConfig) -> None:
        super().__init__()
        channels, self.config = config.channels, config
        self.conv_1 = nn.Sequential(conv(channels, channels, 3), nn.GELU(), conv(channels, 2 * channels))
        self.agg_conv = nn.Sequential(nn.Conv2d(channels, channels, STRIDE, STRIDE, groups=channels), nn.GELU())
        self.conv = nn.Sequential(conv(channels, channels, 3, groups=channels), conv(channels, channels))
        self.conv_2 = nn.Sequential(striped_conv(channels, 3), nn.GELU())
        self.moe_layer = LowRankMixture(config)
        self.proj = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_1(x)  # (B, 2C, H, W)
        if self.config.shuffle:
            x = F.channel_shuffle(x, 2)
        x_a, x_b = x.chunk(2, dim=1)
        x_a, context = self.conv_2(x_a), x_b
        for _ in range(self.config.recursion):  # Eq. (1), to 1 / 4^t of the size, at least 1 x 1
            missing = [max(0, STRIDE - side) for side in context.shape[-2:]]
            context = self.agg_conv(F.pad(context, (0, missing[1], 0, missing[0])) if any(missing) else context)
        x_b = x_b + F.interpolate(self.conv(context), x_b.shape[-2:], mode="bilinear")  # Eq. (2)
        y = self.moe_layer(x_a, x_b)  # Eqs. (3) and (4)
        return self.proj(y + {"dconv": x_a, "aggregation": x_b, "none": 0}[self.config.residual])


class GatedFFN(nn.Module):
    """Gated feed-forward network (Chen et al., 2023; Section 3.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fn_1 = nn.Sequential(conv(channels, 2 * channels), nn.GELU())
        self.gate = conv(channels, channels, 3, groups=channels)
        self.fn_2 = nn.Sequential(conv(channels, channels), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.fn_1(x).chunk(2, dim=1)
        return self.fn_2(x * self.gate(gate))


class SEE(nn.Module):
    """Spatial enhancement expertise (Section 3.2): large-kernel modulation."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.to_qv = nn.Sequential(conv(channels, 2 * channels), nn.GELU())
        self.attn = striped_conv(channels, kernel)
        self.proj = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, v = self.to_qv(x).chunk(2, dim=1)
        return self.proj(self.attn(q) * v)  # Eq. (5)


class Conv2FormerBlock(nn.Module):
    """The convolutional modulation of Conv2Former (Hou et al., 2024) in place of SEE (Table 10, "C2F"): a full k x k
    depth-wise convolution, and GELU on its branch alone."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        spread = conv(channels, channels), nn.GELU(), conv(channels, channels, kernel, groups=channels)
        self.attn, self.to_v = nn.Sequential(*spread), conv(channels, channels)
        self.proj = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.attn(x) * self.to_v(x))


# The first half of RME, by its configuration, and of SME, by width and kernel; with what Tables 4a, 7 and 10 put there.
RANK: dict[str, Callable[[SeemoReConfig], nn.Module]] = {
    "more": MoRE,
    "plain": lambda c: nn.Sequential(conv(c.channels, c.channels, 3), nn.GELU(), conv(c.channels, c.channels)),
}
SPATIAL: dict[str, Callable[[int, int], nn.Module]] = {
    "see": SEE,
    "plain": lambda width, kernel: conv(width, width),
    "striped": lambda width, kernel: nn.Sequential(conv(width, width), striped_conv(width, kernel)),
    "fused_mb": lambda width, kernel: nn.Sequential(conv(width, width + 16, 3), nn.SiLU(), conv(width + 16, width)),
    "conv2former": Conv2FormerBlock,
}


class ModulatingExpert(nn.Module):
    """What RME and SME share (Figure 2): a block and a GatedFFN, each with norm and skip."""

    def __init__(self, channels: int, block: nn.Module) -> None:
        super().__init__()
        self.norm_1, self.block = LayerNorm(channels), block
        self.norm_2, self.ffn = LayerNorm(channels), GatedFFN(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.norm_1(x)) + x
        return self.ffn(self.norm_2(x)) + x


class ResidualGroup(nn.Module):
    """RME, then SME (Figure 2), or the other way round (Table 4b)."""

    def __init__(self, config: SeemoReConfig) -> None:
        super().__init__()
        self.rank_first = config.order == "rank-spatial"
        self.local_block = ModulatingExpert(config.channels, RANK[config.rme](config))  # RME
        self.global_block: nn.Module = nn.Identity()
        if config.sme != "none":  # SME
            self.global_block = ModulatingExpert(config.channels, SPATIAL[config.sme](config.channels, config.kernel))

    def forward(self, x: Tensor) -> Tensor:
        if self.rank_first:
            return self.global_block(self.local_block(x))
        return self.local_block(self.global_block(x))


class SeemoRe(nn.Module):
    """The network (Figure 2): a 3x3 convolution, the residual groups with a global skip, a 3x3 convolution and pixel
    shuffle, around a shift by the RGB mean."""

    def __init__(self, config: SeemoReConfig) -> None:
        super().__init__()
        channels, self.config = config.channels, config
        self.mean = nn.Buffer(torch.tensor([0.4488, 0.4371, 0.4040]).view(3, 1, 1), persistent=False)
        self.conv_1 = conv(3, channels, 3)
        self.body = nn.Sequential(*[ResidualGroup(config) for _ in range(config.groups)])
        self.norm = LayerNorm(channels)
        self.conv_2 = conv(channels, channels, 3)
        self.upsampler = nn.Sequential(conv(channels, 3 * config.scale**2, 3), nn.PixelShuffle(config.scale))

    def forward(self, x: Tensor) -> Tensor:
        check_images(x)
        x = self.conv_1(x.contiguous(memory_format=torch.channels_last) - self.mean)
        y = self.conv_2(self.norm(self.body(x)))
        return self.upsampler(y + x) + self.mean
