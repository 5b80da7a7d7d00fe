"""Encoders of arbitrary-scale networks: EDSR-baseline (Lim et al., 2017), RDN (Zhang et al., 2018) and SwinIR (Liang
et al., 2021), without their upsamplers and in the sizes that LIIF and LTE train and MoEISR takes over.

Each maps images (B, 3, h, w) in [-1, 1] to features (B, 64, h, w), for any h and w from 1 up. Attributes have the names
of the released files' state-dict keys; ``UNUSED`` lists the keys of these files that a module has no use for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.models.layers import conv, merge, pad_reflect, windows

CHANNELS = 64  # of the features


class ResBlock(nn.Module):
    """Residual block (Lim et al., Section 3.1): x + 3x3(ReLU(3x3(x))), without batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(CHANNELS, CHANNELS, 3), nn.ReLU(), conv(CHANNELS, CHANNELS, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class EDSR(nn.Module):
    """EDSR-baseline (Lim et al., Section 3.2, Figure 3)."""

    UNUSED = ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias")  # the mean colour

    def __init__(self, blocks: int = 16) -> None:
        super().__init__()
        self.head = nn.Sequential(conv(3, CHANNELS, 3))
        self.body = nn.Sequential(*(ResBlock() for _ in range(blocks)), conv(CHANNELS, CHANNELS, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return x + self.body(x)


class RDB(nn.Module):
    """Residual dense block (Zhang et al., Equations 5 to 7): each layer adds ``growth`` channels to all before it."""

    def __init__(self, growth: int, layers: int) -> None:
        super().__init__()
        convs = (nn.Sequential(conv(CHANNELS + i * growth, growth, 3), nn.ReLU()) for i in range(layers))
        self.convs = nn.ModuleList(nn.Sequential(OrderedDict(conv=layer)) for layer in convs)
        self.LFF = conv(CHANNELS + layers * growth, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        grown = x
        for layer in self.convs:
            grown = torch.cat([grown, layer(grown)], dim=1)
        return x + self.LFF(grown)


class RDN(nn.Module):
    """RDN (Zhang et al., Section 3.1, Figure 2) in LIIF's size: D = 16 blocks of C = 8 layers, G = G0 = 64 channels."""

    def __init__(self, blocks: int = 16, layers: int = 8, growth: int = 64) -> None:
        super().__init__()
        self.SFENet1, self.SFENet2 = conv(3, CHANNELS, 3), conv(CHANNELS, CHANNELS, 3)
        self.RDBs = nn.ModuleList(RDB(growth, layers) for _ in range(blocks))
        self.GFF = nn.Sequential(conv(blocks * CHANNELS, CHANNELS), conv(CHANNELS, CHANNELS, 3))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.SFENet1(x)  # Eq. (1)
        x = self.SFENet2(shallow)  # Eq. (2)
        outputs = [x := block(x) for block in self.RDBs]  # Eq. (3)
        return shallow + self.GFF(torch.cat(outputs, dim=1))  # Eqs. (8), (9)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows (B, N, window^2, C), with a learnt bias for relative positions (Liang et
    al., Equation 9). ``mask`` (N, window^2, window^2), or None, is added to the scores."""

    UNUSED = ("relative_position_index",)  # computed here

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        position = torch.arange(window)
        apart = position[:, None] - position + window - 1  # from query to key along one axis
        index = apart[:, None, :, None] * (2 * window - 1) + apart[None, :, None, :]
        self.index = nn.Buffer(index.reshape(window**2, window**2), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).flatten(0, 1).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(x.shape[0], 1, 1, 1)  # (B N, heads, window^2, window^2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B N, heads, window^2, C / heads)
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class STL(nn.Module):
    """Swin Transformer layer (Liang et al., Section 3.2, Equation 10) on features (B, h, w, C).

    Its windows lie ``shift`` pixels further down and right. ``drop`` is the probability that a branch is left out for
    an image in training (stochastic depth, Huang et al., 2016): the released code has it, the paper doesn't mention it.
    """

    UNUSED = ("attn_mask",)  # released for one image size, computed here for each

    def __init__(self, channels: int, heads: int, window: int, shift: int, drop: float) -> None:
        super().__init__()
        self.window, self.shift, self.drop = window, shift, drop
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        fc1, fc2 = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))

    def forward(self, x: Tensor) -> Tensor:
        rolled = self.norm1(x).roll((-self.shift, -self.shift), (1, 2))
        mask = shift_mask(x.shape[1:3], self.window, x) if self.shift else None
        attended = merge(self.attn(windows(rolled, self.window, self.window), mask), self.window, x.shape[1:3])
        x = x + self.drop_path(attended.roll((self.shift, self.shift), (1, 2)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def drop_path(self, branch: Tensor) -> Tensor:
        """``branch`` without some of its images in training, the others scaled up to make up for it."""
        return branch * F.dropout(branch.new_ones(len(branch), 1, 1, 1), self.drop, self.training)


def shift_mask(size: Sequence[int], window: int, like: Tensor) -> Tensor:
    """What is added to the scores of shifted windows: -100 between pixels that are neighbours only because the image
    of that ``size`` was rolled, else 0. (N, window^2, window^2), of the type and on the device of ``like``."""
    rows, columns = (torch.arange(side, device=like.device) - (side - window) for side in size)
    rows, columns = ((axis >= 0).to(like.dtype) + (axis >= window // 2) for axis in (rows, columns))  # 0, 1 or 2
    region = windows((3 * rows[:, None] + columns)[None, :, :, None], window, window)[0, :, :, 0]  # (N, window^2)
    return (region[:, :, None] != region[:, None]).to(like.dtype) * -100


class RSTB(nn.Module):
    """Residual Swin Transformer block (Liang et al., Equation 8) on features (B, h, w, C): Swin Transformer layers, a
    3x3 convolution, and a skip."""

    def __init__(self, channels: int, heads: int, window: int, drops: list[float]) -> None:
        super().__init__()
        layers = (STL(channels, heads, window, i % 2 * window // 2, drop) for i, drop in enumerate(drops))
        self.residual_group = nn.ModuleDict({"blocks": nn.Sequential(*layers)})
        self.conv = conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.residual_group["blocks"](x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SwinIR(nn.Module):
    """SwinIR (Liang et al., Section 3.1, Figure 2) in LTE's size, residual blocks of ``depths`` layers, ``embed`` wide.

    Images are padded by reflection to multiples of the ``window`` and their features cropped back (LTE's release pads
    images before it evaluates). ``STL``'s ``drop`` rises from 0 to this one, layer by layer.
    """

    def __init__(
        self, *, depths: Sequence[int] = (6,) * 6, embed: int = 180, heads: int = 6, window: int = 8, drop: float = 0.1
    ) -> None:
        super().__init__()
        self.window = window
        self.conv_first = conv(3, embed, 3)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(embed)})
        drops = torch.linspace(0, drop, sum(depths), device="cpu").split(list(depths))
        self.layers = nn.Sequential(*(RSTB(embed, heads, window, part.tolist()) for part in drops))
        self.norm = nn.LayerNorm(embed)
        self.conv_after_body = conv(embed, embed, 3)
        self.conv_before_upsample = nn.Sequential(conv(embed, CHANNELS, 3), nn.LeakyReLU())
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        shallow = self.conv_first(pad_reflect(x, self.window))
        x = self.patch_embed["norm"](shallow.permute(0, 2, 3, 1))  # (B, h, w, embed)
        x = shallow + self.conv_after_body(self.norm(self.layers(x)).permute(0, 3, 1, 2))
        return self.conv_before_upsample(x)[:, :, :height, :width]


ENCODERS: dict[str, type[nn.Module]] = {"edsr": EDSR, "rdn": RDN, "swinir": SwinIR}
