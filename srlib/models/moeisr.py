"""MoEISR: mixture-of-experts implicit super-resolution (Oh et al.), on LIIF (Chen et al., 2021) and LTE (Lee and Jin,
2022).

One network serves every scale: an encoder turns the LR image into features z (Equation 1), and a decoder, an MLP,
predicts each output pixel from the features of an LR pixel nearby and the offset from it (Equation 2). MoEISR has
several decoders, the experts, of different depths, and a mapper that sends each LR pixel to one of them (Equations 3 to
5). With one expert it is LIIF or LTE itself, under whose released names the weights are kept.

A query is an output pixel together with one of its D neighbours among the LR pixels: 4 with the local ensemble, else 1.
Offsets and cells have LIIF's unit, half an LR pixel: image coordinates in [-1, 1] times the LR height and width.

MoEISR has no released code. What its paper leaves open is chosen here, and listed in the ledger of ``srlib.papers``.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.errors import InputError
from srlib.models.encoders import ENCODERS
from srlib.models.layers import Config, check_images

CHANNELS = 64  # width of every encoder's features
FREQUENCIES = 256  # LTE's coefficients, and its frequencies, for each LR pixel
MAPPER_WIDTH = 24  # not printed; what the printed multiply-adds come closest to
LARGEST_TRAINED = 4  # LTE decodes larger scales with the cell of this one
EPSILON = 1e-6  # LIIF's shift of neighbours, so that none lies on the border between two LR pixels
CHUNK = {"cpu": 1 << 11}  # output pixels decoded at once: few enough for a CPU's cache
CHUNK_ELSEWHERE = 1 << 16


@dataclass(frozen=True)
class MoEISRConfig(Config):
    """Every choice that MoEISR and its backbones make or ablate; the defaults are MoEISR(LIIF)-b with EDSR-baseline."""

    decoder: Literal["liif", "lte"] = "liif"
    encoder: Literal["edsr", "rdn", "swinir"] = "edsr"
    depths: tuple[int, ...] = (2, 3, 4, 5)
    """Layers of each expert, from shallow to deep; one depth is the backbone itself, without a mapper."""
    hidden: int = 256
    """Width of the experts: 256 (-b) or 128 (-s)."""
    mapper_layers: int = 5
    """3x3 convolutions of the mapper."""
    temperature: float = 1.0
    """tau of the Gumbel softmax."""
    unfold: bool = True
    """LIIF's feature unfolding; LTE has none to leave out."""
    ensemble: bool = True
    """Local ensemble: four neighbours answer, weighted by area."""
    cell: bool = True
    """Cell decoding: the decoder is told the size of an output pixel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending = list(self.depths) == sorted(set(self.depths)) and self.depths[0] > 1
        self.require(ascending, "depths", "give whole numbers from 2 up, each once, from shallow to deep")
        self.require(self.unfold or self.decoder == "liif", "unfold", "LTE has no feature unfolding; give True")

    def build(self) -> MoEISR:
        return {"liif": LIIF, "lte": LTE}[self.decoder](self)


def _configs() -> Iterator[tuple[str, MoEISRConfig]]:
    depths = {"liif": (2, 3, 4, 5), "lte": (2, 3, 4)}
    for decoder, encoder in product(depths, ENCODERS):
        yield f"{decoder}-{encoder}", MoEISRConfig(decoder, encoder, depths[decoder][-1:])
        yield f"moeisr-{decoder}-b-{encoder}", MoEISRConfig(decoder, encoder, depths[decoder], hidden=256)
        yield f"moeisr-{decoder}-s-{encoder}", MoEISRConfig(decoder, encoder, depths[decoder], hidden=128)


CONFIGS = dict(_configs())


def inputs(config: MoEISRConfig) -> int:
    """How many numbers an expert's first layer reads."""
    if config.decoder == "lte":
        return FREQUENCIES
    return (9 if config.unfold else 1) * CHANNELS + 2 + 2 * config.cell


class MLP(nn.Module):
    """A decoder: ``depth`` linear layers with ReLU between them, to R, G and B in [-1, 1]."""

    def __init__(self, inputs: int, hidden: int, depth: int) -> None:
        super().__init__()
        layers = [(nn.Linear(a, b), nn.ReLU(inplace=True)) for a, b in pairwise([inputs, *[hidden] * (depth - 1), 3])]
        self.layers = nn.Sequential(*[layer for pair in layers for layer in pair][:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Mapper(nn.Sequential):
    """The mapper M (Equation 3): 3x3 convolutions with ReLU between them, from features (B, 64, h, w) to a score for
    each expert (B, J, h, w)."""

    def __init__(self, config: MoEISRConfig) -> None:
        widths = [CHANNELS, *[MAPPER_WIDTH] * (config.mapper_layers - 1), len(config.depths)]
        layers = [(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(widths)]
        super().__init__(*[layer for pair in layers for layer in pair][:-1])


class Answers(NamedTuple):
    """What a network answers to queries: ``rgb`` (B, Q, 3) in [-1, 1], and ``gates`` (B, J, h, w), the weight of each
    expert at each LR pixel, None where there is one expert."""

    rgb: Tensor
    gates: Tensor | None


class Queries(NamedTuple):
    """The queries of n output pixels: the neighbour's index among all LR pixels of the batch, ``pixel`` (D n); the
    ``offset`` (D n, 2) from its centre to the output pixel's; its ``weight`` (D, n) in the answer, of sum 1."""

    pixel: Tensor
    offset: Tensor
    weight: Tensor


class MoEISR(nn.Module, ABC):
    """The framework (Section 3.2, Figure 2): encoder, mapper, experts and local ensemble. ``LIIF`` and ``LTE`` say what
    an expert reads."""

    def __init__(self, config: MoEISRConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ENCODERS[config.encoder]()
        experts = [MLP(inputs(config), config.hidden, depth) for depth in config.depths]
        if len(experts) == 1:
            self.imnet = experts[0]
        else:
            self.mapper = Mapper(config)
            self.experts = nn.ModuleList(experts)

    def forward(
        self, x: Tensor, size: Sequence[int] | None = None, *, coord: Tensor | None = None, cell: Tensor | None = None
    ) -> Tensor | Answers:
        """Enlarge images (B, 3, h, w) in [0, 1] to ``size``, or answer queries.

        With ``size`` = (H, W), of any scale by axis: (B, 3, H, W), not clamped, each LR pixel served by its likeliest
        expert alone (Equation 4). With ``coord`` (B, Q, 2), places of output pixels as (y, x) in [-1, 1], and ``cell``
        (B, 2), their height and width in the same unit: ``Answers`` of all experts, weighted by the gates (Equation 5).
        Raises ``InputError`` for tensors of other shapes and unless one of the two is asked for.
        """
        check_images(x)
        if x.dtype.itemsize < 4:
            raise InputError(f"coordinates need float32, not {x.dtype}: give that, and use torch.autocast for speed")
        if size is not None and coord is None and cell is None:
            return self.render(x, (0, 0), x.shape[-2:], _pair(size), slice(None), slice(None))
        if size is None and coord is not None and cell is not None:
            return self.answer((x - 0.5) / 0.5, coord, cell)
        raise InputError("give a network for every scale size, as in network(lr, size=(480, 320)), or coord and cell")

    @property
    def decoders(self) -> Sequence[MLP]:
        """The experts, from shallow to deep."""
        return self.experts if len(self.config.depths) > 1 else (self.imnet,)

    def expert_map(self, x: Tensor) -> Tensor:
        """Which expert serves each LR pixel of images (B, 3, h, w) in [0, 1]: (B, h, w), 0 for the shallowest."""
        check_images(x)
        return self.choices(self.encoder((x - 0.5) / 0.5))

    def choices(self, z: Tensor) -> Tensor:
        """The likeliest expert at each pixel of features z (Equation 4): (B, h, w)."""
        if len(self.config.depths) == 1:
            return z.new_zeros(z[:, 0].shape, dtype=torch.long)
        return self.mapper(z).argmax(1)

    def gates(self, z: Tensor) -> Tensor | None:
        """Each expert's weight at each LR pixel (B, J, h, w): in training a Gumbel softmax (Equation 5), else one-hot;
        None where there is one expert."""
        if len(self.config.depths) == 1:
            return None
        if self.training:
            return F.gumbel_softmax(self.mapper(z), tau=self.config.temperature, dim=1)
        return F.one_hot(self.choices(z), len(self.config.depths)).permute(0, 3, 1, 2).to(z.dtype)

    # --- which LR pixels an output pixel asks -------------------------------------------------------------------------

    def neighbours(self, coord: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """The neighbours of coordinates (n) in [-1, 1] along an axis of ``side`` LR pixels: their indices and the
        offsets from them, (2, n) each, or (1, n) without the local ensemble."""
        steps = [step / side + EPSILON for step in (-1, 1)] if self.config.ensemble else [0.0]
        near = torch.stack([coord + step for step in steps]).clamp_(-1 + EPSILON, 1 - EPSILON)
        index = (((near + 1) * side - 1) / 2).round().long()
        return index, (coord - _centres(index, side)) * side

    @staticmethod
    def queries(
        rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], width: int, first: Tensor, dtype: torch.dtype
    ) -> Queries:
        """The queries of output pixels from their neighbours along both axes. ``width`` is that of the LR image and
        ``first`` (n) the index of its first pixel. A neighbour has the area of the opposite rectangle as its weight."""
        (y, down), (x, right) = rows, columns
        pixel = (first + y[:, None] * width + x).flatten()
        offset = torch.stack(torch.broadcast_tensors(down[:, None], right), -1).flatten(0, 1)  # (D, n, 2)
        area = (offset[..., 0] * offset[..., 1]).abs() + 1e-9
        return Queries(pixel, offset.flatten(0, 1).to(dtype), area.flip(0) / area.sum(0))

    # --- inference: experts only where they are chosen ----------------------------------------------------------------

    def render(
        self,
        part: Tensor,
        corner: Sequence[int],
        whole: Sequence[int],
        size: Sequence[int],
        rows: slice,
        columns: slice,
    ) -> Tensor:
        """``rows`` and ``columns`` of the output images of ``size`` (H, W) for LR images of size ``whole`` (h, w), from
        the ``part`` (B, 3, h', w') of these, in [0, 1], that starts at ``corner`` (y, x): (B, 3, n, m), not clamped.

        Output pixels ask the LR pixels that they ask in the whole image; for one outside the part, the nearest inside
        answers. What the encoder doesn't see beyond the part is missing as it is beyond an image's border.
        """
        x = (part - 0.5) / 0.5
        z = self.encoder(x)
        batch, _, height, width = z.shape
        axes, places = [], []
        for start, small, large, span, side in zip(corner, whole, size, (rows, columns), (height, width), strict=True):
            output = torch.arange(large, device=z.device)[span]
            index, offset = self.neighbours(_centres(output, large), small)
            inside = (index - start).clamp(0, side - 1)
            axes.append((inside, offset + 2 * (index - start - inside)))
            places.append(((2 * output.to(x.dtype) + 1) * (small / large) - 2 * start) / side - 1)
        places = torch.stack(torch.meshgrid(*places, indexing="ij"), -1)  # (n, m, 2), of the part in [-1, 1]
        shape = places.shape[:2]
        cell = x.new_tensor([[2 * small / large for small, large in zip(whole, size, strict=True)]])
        tables, chosen = list(self.tables(z)), self.choices(z).flatten()
        answers = []
        for some in torch.arange(batch * shape.numel(), device=z.device).split(
            CHUNK.get(z.device.type, CHUNK_ELSEWHERE)
        ):
            pixel = some % shape.numel()
            at = (pixel // shape[1], pixel % shape[1])
            near = [[one.index_select(1, i) for one in axis] for axis, i in zip(axes, at, strict=True)]
            asked = self.queries(*near, width, some // shape.numel() * height * width, _precise(z))
            answers.append((self.ask(tables, chosen, asked, cell) * asked.weight[..., None]).sum(0))
        rgb = torch.cat(answers).unflatten(0, (batch, -1)) + self.skip(x, places.flatten(0, 1).expand(batch, -1, -1))
        return rgb.mT.unflatten(2, shape) * 0.5 + 0.5

    def ask(self, tables: Sequence[Tensor], chosen: Tensor, asked: Queries, cell: Tensor) -> Tensor:
        """The answers (D, n, 3), each from the expert of the LR pixel asked (Equation 4)."""
        pixel, offset, _ = asked
        if len(tables) == 1:
            rgb = self.predict(0, tables[0].index_select(0, pixel), offset, cell)
        else:
            expert = chosen.index_select(0, pixel)
            order = expert.argsort()
            groups = order.split(expert.bincount(minlength=len(tables)).tolist())
            parts = [
                self.predict(j, table.index_select(0, pixel[group]), offset[group], cell)
                for j, (table, group) in enumerate(zip(tables, groups, strict=True))
            ]
            rgb = torch.cat(parts)[order.argsort()]
        return rgb.unflatten(0, asked.weight.shape)

    # --- training: all experts at all queries -------------------------------------------------------------------------

    def answer(self, x: Tensor, coord: Tensor, cell: Tensor) -> Answers:
        """All experts' answers to the queries of images in [-1, 1], weighted by the gates (Equation 5)."""
        batch = len(x)
        if coord.ndim != 3 or coord.shape[::2] != (batch, 2) or cell.shape != (batch, 2):
            given = f"coord {tuple(coord.shape)} and cell {tuple(cell.shape)}"
            raise InputError(f"{batch} images got {given}; give shapes ({batch}, queries, 2) and ({batch}, 2)")
        z = self.encoder(x)
        height, width = z.shape[-2:]
        coord, cell = coord.float(), cell.float()
        near = [self.neighbours(coord[..., axis].flatten(), side) for axis, side in enumerate((height, width))]
        image = torch.arange(batch, device=x.device).repeat_interleave(coord.shape[1])
        pixel, offset, weight = self.queries(*near, width, image * height * width, _precise(z))
        cell = (cell * cell.new_tensor([height, width]))[image].to(offset.dtype).repeat(len(weight), 1)  # (D B Q, 2)
        gates = self.gates(z)
        answers = [
            self.predict(j, table.index_select(0, pixel), offset, cell) for j, table in enumerate(self.tables(z))
        ]
        if gates is not None:
            shares = gates.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, pixel)  # (D B Q, J)
            answers = [shares[:, j : j + 1] * one for j, one in enumerate(answers)]
        rgb = torch.stack(answers).sum(0).unflatten(0, weight.shape)
        rgb = (rgb * weight[..., None]).sum(0).unflatten(0, coord.shape[:2])
        return Answers(rgb + self.skip(x, coord), gates)

    # --- what a backbone fills in -------------------------------------------------------------------------------------

    @abstractmethod
    def tables(self, z: Tensor) -> Iterator[Tensor]:
        """For each expert, what it reads of the features at each LR pixel: (B h w, C)."""

    @abstractmethod
    def predict(self, expert: int, features: Tensor, offset: Tensor, cell: Tensor) -> Tensor:
        """An expert's answers (n, 3), from rows (n, C) of its table, offsets (n, 2) and cells, (n, 2) or (1, 2)."""

    def skip(self, x: Tensor, coord: Tensor) -> Tensor | float:
        """What is added to the answers at places (B, Q, 2) of images in [-1, 1]: (B, Q, 3)."""
        return 0.0


class LIIF(MoEISR):
    """MoEISR on the local implicit image function, or that itself: an expert reads the 3x3 features around an LR pixel
    (unfolding), the offset from it, and the cell.

    The first layer is linear in the features, so that its part in them is computed once for each LR pixel, as a 3x3
    convolution, and no query sees features unfolded.
    """

    def tables(self, z: Tensor) -> Iterator[Tensor]:
        """The first layer's part in the features: (B h w, hidden) for each expert."""
        side = 3 if self.config.unfold else 1
        for first in (decoder.layers[0] for decoder in self.decoders):
            weight = first.weight[:, : CHANNELS * side**2].unflatten(1, (CHANNELS, side, side))
            yield F.conv2d(z, weight, first.bias, padding=side // 2).permute(0, 2, 3, 1).flatten(0, 2)

    def predict(self, expert: int, features: Tensor, offset: Tensor, cell: Tensor) -> Tensor:
        first, *rest = self.decoders[expert].layers
        given = torch.cat([offset, cell.expand_as(offset)], 1) if self.config.cell else offset
        x = torch.addmm(features, given, first.weight[:, -given.shape[1] :].T)
        for layer in rest:
            x = layer(x)
        return x


class LTE(MoEISR):
    """MoEISR on the local texture estimator, or that itself: an expert reads 128 cosines and 128 sines, whose
    amplitudes and frequencies come from an LR pixel's features and whose phases come from the cell. The answers are
    added to the LR image, enlarged by bilinear interpolation.
    """

    def __init__(self, config: MoEISRConfig) -> None:
        super().__init__(config)
        self.coef = nn.Conv2d(CHANNELS, FREQUENCIES, 3, padding=1)
        self.freq = nn.Conv2d(CHANNELS, FREQUENCIES, 3, padding=1)
        if config.cell:
            self.phase = nn.Linear(2, FREQUENCIES // 2, bias=False)

    def tables(self, z: Tensor) -> Iterator[Tensor]:
        """Amplitudes, frequencies along rows, frequencies along columns: (B h w, 512), the same for all experts."""
        layers = (self.coef, slice(None)), (self.freq, slice(0, None, 2)), (self.freq, slice(1, None, 2))
        weight = torch.cat([layer.weight[some] for layer, some in layers])
        bias = torch.cat([layer.bias[some] for layer, some in layers])
        table = F.conv2d(z, weight, bias, padding=1).permute(0, 2, 3, 1).flatten(0, 2)
        yield from [table] * len(self.decoders)

    def predict(self, expert: int, features: Tensor, offset: Tensor, cell: Tensor) -> Tensor:
        return self.decoders[expert](self.texture(features, offset, cell))

    def texture(self, features: Tensor, offset: Tensor, cell: Tensor) -> Tensor:
        """Amplitude times cosine and sine of pi (frequency . offset + phase) (LTE, Equation 8): (n, 256)."""
        amplitude, rows, columns = features.split([FREQUENCIES, FREQUENCIES // 2, FREQUENCIES // 2], 1)
        down, right = (math.pi * offset).split(1, 1)
        angle = torch.addcmul(rows * down, columns, right)
        if self.config.cell:
            angle = angle + math.pi * self.phase(cell.clamp(min=2 / LARGEST_TRAINED))
        return amplitude * torch.cat([angle.cos(), angle.sin()], 1)

    def skip(self, x: Tensor, coord: Tensor) -> Tensor:
        grid = coord.flip(-1)[:, :, None].to(x.dtype)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)[..., 0].mT


def _pair(size: Sequence[int]) -> tuple[int, int]:
    """The height and width of an output image, checked."""
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise InputError(f"size {size!r} is not a height and a width in pixels; give two whole numbers above 0")
    return height, width


def _centres(index: Tensor, side: int) -> Tensor:
    """The centres in [-1, 1] of pixels along an axis of ``side``, rounded as LIIF rounds them: beyond the last LR
    pixel's centre both neighbours are that pixel, and their weights depend on the last digit."""
    return -1 + 1 / side + 2 / side * index.float()


def _precise(x: Tensor) -> torch.dtype:
    """The type of offsets beside ``x``: its own, or float32 where that is more."""
    return torch.promote_types(x.dtype, torch.float32)
