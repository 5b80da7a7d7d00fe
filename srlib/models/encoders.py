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

from srlib.models.layers import pad_reflect


def conv3x3(channels: int, out: int) -> nn.Conv2d:
    """A 3x3 convolution with zero padding."""
    return nn.Conv2d(channels, out, 3, padding=1)


class ResBlock(nn.Module):
    """Residual block (Lim et al., Section 3.1): x + 3x3(ReLU(3x3(x))), without batch normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(channels, channels), nn.ReLU(), conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class EDSR(nn.Module):
    """EDSR-baseline (Lim et al., Section 3.2, Figure 3): a 3x3 convolution, then residual blocks and a 3x3 convolution
    with a skip around them."""

    UNUSED = ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias")  # the mean colour

    def __init__(self, *, blocks: int = 16, channels: int = 64) -> None:
        super().__init__()
        self.head = nn.Sequential(conv3x3(3, channels))
        self.body = nn.Sequential(*(ResBlock(channels) for _ in range(blocks)), conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return x + self.body(x)


class RDB(nn.Module):
    """Residual dense block (Zhang et al., Equations 5 to 7): each layer adds ``growth`` channels to all before it; LFF
    fuses them by a 1x1 convolution, and the input is added."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        convs = (nn.Sequential(conv3x3(channels + i * growth, growth), nn.ReLU()) for i in range(layers))
        self.convs = nn.ModuleList(nn.ModuleDict({"conv": conv}) for conv in convs)
        self.LFF = nn.Conv2d(channels + layers * growth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        grown = x
        for layer in self.convs.children():
            grown = torch.cat([grown, layer.get_submodule("conv")(grown)], dim=1)
        return x + self.LFF(grown)


class RDN(nn.Module):
    """RDN (Zhang et al., Section 3.1, Figure 2) in LIIF's size: D = 16 blocks of C = 8 layers, G = G0 = 64 channels."""

    def __init__(self, *, blocks: int = 16, layers: int = 8, channels: int = 64, growth: int = 64) -> None:
        super().__init__()
        self.SFENet1 = conv3x3(3, channels)
        self.SFENet2 = conv3x3(channels, channels)
        self.RDBs = nn.ModuleList(RDB(channels, growth, layers) for _ in range(blocks))
        self.GFF = nn.Sequential(nn.Conv2d(blocks * channels, channels, 1), conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.SFENet1(x)  # Eq. (1)
        x = self.SFENet2(shallow)  # Eq. (2)
        outputs = [x := block(x) for block in self.RDBs]  # Eq. (3)
        return shallow + self.GFF(torch.cat(outputs, dim=1))  # Eqs. (8), (9)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learnt bias for relative positions (Liang et al., Equation 9).

    Windows (B, N, window^2, C) in and out; ``mask`` (N, window^2, window^2), or None, is added to the scores.
    """

    UNUSED = ("relative_position_index",)  # computed here
    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        position = torch.arange(window)
        apart = position[:, None] - position + window - 1  # from query to key along one axis
        index = apart[:, None, :, None] * (2 * window - 1) + apart[None, :, None, :]
        self.register_buffer("relative_position_index", index.reshape(window**2, window**2), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, windows, pixels, channels = x.shape
        q, k, v = self.qkv(x).reshape(batch * windows, pixels, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(batch, 1, 1, 1)  # (B N, heads, window^2, window^2)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B N, heads, window^2, C / heads)
        return self.proj(x.transpose(1, 2).reshape(batch, windows, pixels, channels))


class STL(nn.Module):
    """Swin Transformer layer (Liang et al., Section 3.2, Equation 10) on features (B, h, w, C).

    Every other layer shifts its windows by half their side; ``mask`` keeps apart what the shift brings together.
    ``drop`` is the probability that a branch is left out for an image in training (stochastic depth, Huang et al.,
    2016): the released code trains with it, the paper does not mention it.
    """

    UNUSED = ("attn_mask",)  # released for one image size, computed here for each

    def __init__(self, channels: int, heads: int, window: int, shift: int, drop: float) -> None:
        super().__init__()
        self.window, self.shift, self.drop = window, shift, drop
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        layers = OrderedDict(
            fc1=nn.Linear(channels, 2 * channels), act=nn.GELU(), fc2=nn.Linear(2 * channels, channels)
        )
        self.mlp = nn.Sequential(layers)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.drop_path(self.attend(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attention within windows that lie ``shift`` pixels further down and right."""
        windows = split(x.roll((-self.shift, -self.shift), (1, 2)), self.window)
        x = merge(self.attn(windows, mask if self.shift else None), self.window, x.shape)
        return x.roll((self.shift, self.shift), (1, 2))

    def drop_path(self, branch: Tensor) -> Tensor:
        """``branch`` without some of its images in training, the others scaled up to make up for it."""
        if not self.training or not self.drop:
            return branch
        keep = branch.new_empty(len(branch), 1, 1, 1).bernoulli_(1 - self.drop)
        return branch * keep / (1 - self.drop)


def split(x: Tensor, window: int) -> Tensor:
    """(B, h, w, C) cut into windows, row by row: (B, N, window^2, C)."""
    return x.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def merge(windows: Tensor, window: int, shape: torch.Size) -> Tensor:
    """The inverse of ``split``: windows (B, N, window^2, C) to ``shape``, (B, h, w, C)."""
    batch, height, width, channels = shape
    x = windows.reshape(batch, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(shape)


def shift_mask(size: tuple[int, int], window: int, like: Tensor) -> Tensor:
    """What is added to the scores of shifted windows: -100 between pixels that are neighbours only because the image
    of that ``size`` was rolled, else 0. (N, window^2, window^2), of the type and on the device of ``like``."""
    rows, columns = (torch.arange(side, device=like.device) - (side - window) for side in size)
    rows, columns = ((axis >= 0).to(like.dtype) + (axis >= window // 2) for axis in (rows, columns))  # 0, 1 or 2
    region = split((3 * rows[:, None] + columns)[None, :, :, None], window)[0, :, :, 0]  # (N, window^2)
    return (region[:, :, None] != region[:, None]).to(like.dtype) * -100


class RSTB(nn.Module):
    """Residual Swin Transformer block (Liang et al., Equation 8) on features (B, h, w, C): Swin Transformer layers, a
    3x3 convolution, and a skip."""

    def __init__(self, channels: int, heads: int, window: int, drops: list[float]) -> None:
        super().__init__()
        shifts = [window // 2 if i % 2 else 0 for i in range(len(drops))]
        layers = (STL(channels, heads, window, *both) for both in zip(shifts, drops, strict=True))
        self.residual_group = nn.ModuleDict({"blocks": nn.ModuleList(layers)})
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = x
        for layer in self.residual_group["blocks"].children():
            y = layer(y, mask)
        return x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SwinIR(nn.Module):
    """SwinIR (Liang et al., Section 3.1, Figure 2) in LTE's size.

    A 3x3 convolution to ``embed`` channels; residual Swin Transformer blocks of ``depths`` layers and a 3x3
    convolution, with a skip around them; a 3x3 convolution to 64 channels and a leaky ReLU. Images are padded by
    reflection to multiples of the ``window`` and their features cropped back (LTE's release pads images before it
    evaluates). ``STL``'s ``drop`` rises from 0 to this one, layer by layer.
    """

    def __init__(
        self, *, depths: Sequence[int] = (6,) * 6, embed: int = 180, heads: int = 6, window: int = 8, drop: float = 0.1
    ) -> None:
        super().__init__()
        self.window = window
        self.conv_first = conv3x3(3, embed)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(embed)})
        drops = torch.linspace(0, drop, sum(depths), device="cpu").split(list(depths))
        self.layers = nn.ModuleList(RSTB(embed, heads, window, part.tolist()) for part in drops)
        self.norm = nn.LayerNorm(embed)
        self.conv_after_body = conv3x3(embed, embed)
        self.conv_before_upsample = nn.Sequential(conv3x3(embed, 64), nn.LeakyReLU())
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        shallow = self.conv_first(pad_reflect(x, self.window))
        mask = shift_mask(shallow.shape[-2:], self.window, shallow)
        x = self.patch_embed["norm"](shallow.permute(0, 2, 3, 1))  # (B, h, w, embed)
        for layer in self.layers:
            x = layer(x, mask)
        x = shallow + self.conv_after_body(self.norm(x).permute(0, 3, 1, 2))
        return self.conv_before_upsample(x)[:, :, :height, :width]


ENCODERS: dict[str, type[nn.Module]] = {"edsr": EDSR, "rdn": RDN, "swinir": SwinIR}
