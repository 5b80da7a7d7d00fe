"""MoEISR: mixture-of-experts implicit super-resolution (Oh et al.), on LIIF (Chen et al., 2021) and LTE (Lee and Jin,
2022).

One network serves every scale: an encoder turns the LR image into features z (Equation 1), and a decoder, an MLP,
answers for each output pixel from the features of an LR pixel nearby and the way from there (Equation 2). MoEISR has
several decoders, the experts, of different depths, and a mapper that sends each LR pixel to one of them (Equations 3 to
5). With one expert it is its backbone, LIIF or LTE, under whose released names its weights are kept.

MoEISR has no released code. What its paper leaves open is chosen here, and named in the ledger of ``srlib.papers``.
"""

from __future__ import annotations

import math
import numbers
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Literal, NamedTuple, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.errors import InputError
from srlib.models.encoders import ENCODERS
from srlib.models.layers import at_liberty, check_images

CHANNELS = 64  # width of every encoder's features
FREQUENCIES = 256  # LTE's coefficients and frequencies of an LR pixel; experts of any width read them
MAPPER_WIDTH = 24  # not printed; what the printed multiply-adds come closest to
LARGEST_TRAINED = 4  # LTE: the cell of a larger scale is taken for that of this one
STEP = 1e-6  # what LIIF adds to a neighbour's place, so that none lies on the border between two LR pixels
CACHED = 8 << 20  # bytes of queries' features at once on a CPU, so that they stay in its cache
AT_ONCE = 1 << 30  # and at most on other devices
FREE_SHARE = 16  # what part of the free memory they may take, several times over as layers need it


@dataclass(frozen=True)
class MoEISRConfig:
    """Every choice that MoEISR and its backbones make or ablate; the defaults are MoEISR(LIIF)-b with EDSR-baseline.

    ``depths``: layers of each expert, from shallow to deep; one depth is the backbone itself, without a mapper.
    ``hidden``: width of the experts, 256 (-b) or 128 (-s). ``mapper_layers``: 3x3 convolutions of the mapper.
    ``temperature``: tau of the Gumbel softmax. ``unfold``, ``ensemble`` and ``cell`` are LIIF's feature unfolding,
    local ensemble and cell decoding; LTE has no unfolding to leave out. Raises ``InputError`` for any other value.
    """

    decoder: Literal["liif", "lte"] = "liif"
    encoder: Literal["edsr", "rdn", "swinir"] = "edsr"
    depths: tuple[int, ...] = (2, 3, 4, 5)
    hidden: int = 256
    mapper_layers: int = 5
    temperature: float = 1.0
    unfold: bool = True
    ensemble: bool = True
    cell: bool = True

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        if isinstance(self.depths, list):  # as JSON has it
            object.__setattr__(self, "depths", tuple(self.depths))
        for field in fields(self):
            value, kind = getattr(self, field.name), kinds[field.name]
            if kind is bool and not isinstance(value, bool):
                raise InputError(f"MoEISR's {field.name} is {value!r}; give True or False")
            if kind is int and not _whole(value, 1):
                raise InputError(f"MoEISR's {field.name} is {value!r}; give a whole number from 1 up")
            if get_args(kind) and field.name != "depths" and value not in get_args(kind):
                raise InputError(f"MoEISR's {field.name} is {value!r}; choose one of: {', '.join(get_args(kind))}")
        if not (isinstance(self.depths, tuple) and self.depths and all(_whole(depth, 2) for depth in self.depths)):
            raise InputError(f"MoEISR's depths are {self.depths!r}; give one or more whole numbers from 2 up")
        if list(self.depths) != sorted(set(self.depths)):
            raise InputError(f"MoEISR's depths are {self.depths!r}; give each once, from shallow to deep")
        temperature = self.temperature
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
            raise InputError(f"MoEISR's temperature is {temperature!r}; give a number above 0")
        if self.decoder == "lte" and not self.unfold:
            raise InputError("LTE has no feature unfolding to leave out; give unfold=True")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _configs() -> dict[str, MoEISRConfig]:
    usual = {"liif": (2, 3, 4, 5), "lte": (2, 3, 4)}
    found = {}
    for decoder, encoder in product(usual, get_args(get_type_hints(MoEISRConfig)["encoder"])):
        depths = usual[decoder]
        found[f"{decoder}-{encoder}"] = MoEISRConfig(decoder, encoder, depths[-1:])
        for size, hidden in (("b", 256), ("s", 128)):
            found[f"moeisr-{decoder}-{size}-{encoder}"] = MoEISRConfig(decoder, encoder, depths, hidden)
    return found


CONFIGS = _configs()


def decoder_macs(config: MoEISRConfig) -> tuple[int, ...]:
    """Multiply-adds of one query of each expert as the paper's tables count them: the MLP's, all layers at every query.

    Each output pixel makes four queries with the local ensemble, else one.
    """
    width = config.hidden
    return tuple(inputs(config) * width + (depth - 2) * width**2 + 3 * width for depth in config.depths)


def executed_macs(config: MoEISRConfig) -> tuple[int, tuple[int, ...]]:
    """Multiply-adds of the decoder as this file computes it: those of one LR pixel, and of one query of each expert.

    An LR pixel is sent to one expert. LIIF's first layer is computed there but for the two relative coordinates, and
    LTE's coefficients and frequencies are, which the paper does not count. The mapper's come on top.
    """
    width, (kernel, first) = config.hidden, (9, 2)
    if config.decoder == "liif":
        pixel = (9 if config.unfold else 1) * CHANNELS * width
        first *= width
    else:
        pixel = 2 * kernel * CHANNELS * FREQUENCIES
        first = FREQUENCIES + FREQUENCIES * width  # the frequencies' products with the coordinates come first
    return pixel, tuple(first + (depth - 2) * width**2 + 3 * width for depth in config.depths)


def mapper_macs(config: MoEISRConfig) -> int:
    """Multiply-adds of the mapper at one LR pixel; 0 for a backbone, which has none."""
    if len(config.depths) == 1:
        return 0
    widths = _mapper_widths(config)
    return sum(9 * a * b for a, b in zip(widths, widths[1:], strict=False))


def inputs(config: MoEISRConfig) -> int:
    """How many numbers an expert's first layer reads."""
    if config.decoder == "lte":
        return FREQUENCIES
    return (9 if config.unfold else 1) * CHANNELS + 2 + 2 * config.cell


def _mapper_widths(config: MoEISRConfig) -> list[int]:
    return [CHANNELS, *[MAPPER_WIDTH] * (config.mapper_layers - 1), len(config.depths)]


class Scratch:
    """Memory for queries' features that serves one portion after the other, as a CPU is slow to fetch fresh memory."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, width: int) -> Tensor:
        """Room of that name for (n, ``width``) values, n the length of ``like``; what was in it is gone."""
        needed = len(like) * width
        if name not in self.kept or self.kept[name].numel() < needed:
            self.kept[name] = like.new_empty(needed)
        return self.kept[name][:needed].view(len(like), width)


class MLP(nn.Module):
    """A decoder: ``depth`` linear layers with ReLU between them, from ``inputs`` numbers to R, G and B in [-1, 1]."""

    def __init__(self, inputs: int, hidden: int, depth: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (depth - 1), 3]
        steps = [(nn.Linear(a, b), nn.ReLU(inplace=True)) for a, b in zip(widths, widths[1:], strict=False)]
        self.layers = nn.Sequential(*[layer for step in steps for layer in step][:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def after_first(self, x: Tensor, scratch: Scratch | None) -> Tensor:
        """What the MLP puts out, from what its first layer does; ``x`` is overwritten."""
        if scratch is None:
            return self.layers[1:](x)
        for number, layer in enumerate(self.layers[2::2]):
            out = scratch.take(f"layer {number % 2}", x, layer.out_features)
            x = torch.addmm(layer.bias, x.relu_(), layer.weight.T, out=out)
        return x.clone()


class Mapper(nn.Sequential):
    """The mapper M (Equation 3): 3x3 convolutions with ReLU between them, from features to a score for each expert.

    (B, 64, h, w) to (B, J, h, w). The softmax over J comes after it, with or without Gumbel's noise.
    """

    def __init__(self, config: MoEISRConfig) -> None:
        widths = _mapper_widths(config)
        steps = [(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in zip(widths, widths[1:], strict=False)]
        super().__init__(*[layer for step in steps for layer in step][:-1])


class Answers(NamedTuple):
    """What a network answers to queries: ``rgb`` (B, Q, 3) in [-1, 1], and ``gates`` (B, J, h, w), the weight of each
    expert at each LR pixel, None where there is one expert."""

    rgb: Tensor
    gates: Tensor | None


class Queries(NamedTuple):
    """Queries of n output pixels, each to D neighbours among the LR pixels (4 in a local ensemble, else 1).

    ``pixel`` (D, n): the neighbour's place among all LR pixels of the batch. ``way`` (D, n, 2): down and right from its
    centre to the output pixel's, in LR pixels. ``weight`` (D, n): the share of its answer; they sum to 1.
    """

    pixel: Tensor
    way: Tensor
    weight: Tensor


class MoEISR(nn.Module, ABC):
    """The framework (Section 3.2, Figure 2): encoder, mapper, experts, and who asks whom; LIIF and LTE do the rest.

    ``forward(x, size=(H, W))`` maps RGB images (B, 3, h, w) in [0, 1] to (B, 3, H, W), not clamped, at any size and any
    scale, by axis; each LR pixel is answered for by its likeliest expert alone (Equation 4). With ``coord`` (B, Q, 2),
    places of output pixels as (y, x) in [-1, 1], and ``cell`` (B, 2), an output pixel's height and width in the same
    units, it gives ``Answers``: all experts at every query, weighted by the gates (Equation 5), which are Gumbel
    softmax in training mode and one-hot in evaluation mode. Raises ``InputError`` for a tensor of another shape, and
    unless ``size`` or both of the others are given.
    """

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
        check_images(x)
        if x.dtype.itemsize < 4:
            raise InputError(
                f"places need single precision, not {x.dtype}: give float32, and use torch.autocast for speed"
            )
        x = (x - 0.5) / 0.5
        if size is not None and coord is None and cell is None:
            return self.enlarge(x, _checked(size)).mul_(0.5).add_(0.5)
        if size is None and coord is not None and cell is not None:
            return self.answer(x, coord, cell)
        raise InputError(
            "the network was asked for nothing, or two things; give size, or coord and cell, as in "
            "network(lr, size=(480, 320))"
        )

    @property
    def decoders(self) -> Sequence[MLP]:
        """The experts, from shallow to deep."""
        return self.experts if len(self.config.depths) > 1 else (self.imnet,)

    def expert_map(self, x: Tensor) -> Tensor:
        """Which expert answers for each LR pixel of images (B, 3, h, w) in [0, 1]: (B, h, w), 0 for the shallowest."""
        check_images(x)
        return self.choices(self.encoder((x - 0.5) / 0.5))

    def choices(self, z: Tensor) -> Tensor:
        """The likeliest expert at each pixel of features z (Equation 4): (B, h, w)."""
        if len(self.config.depths) == 1:
            return z.new_zeros(z[:, 0].shape, dtype=torch.long)
        return self.mapper(z).argmax(1)

    # --- queries ------------------------------------------------------------------------------------------------------

    def neighbours(self, place: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Along one axis of ``side`` LR pixels: the neighbours of places in [-1, 1], their numbers and the ways from
        their centres in LR pixels, (2, ...) each, or (1, ...) without the local ensemble."""
        steps = [step / side + STEP for step in (-1, 1)] if self.config.ensemble else [0.0]
        near = torch.stack([place + step for step in steps]).clamp_(-1 + STEP, 1 - STEP)
        number = (((near + 1) * side - 1) / 2).round().long()
        return number, (place - _centres(number, side)) * side

    def grid(self, lr: tuple[int, int], hr: tuple[int, int], device: torch.device) -> tuple[tuple[Tensor, Tensor], ...]:
        """``neighbours`` of all rows and of all columns of an output image."""
        axes = []
        for small, large in zip(lr, hr, strict=True):
            axes.append(self.neighbours(_centres(torch.arange(large, device=device), large), small))
        return tuple(axes)

    @staticmethod
    def queries(
        rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], width: int, first: Tensor | int
    ) -> Queries:
        """The queries of output pixels whose neighbours along both axes, (2, n) each, are given; ``width`` is that of
        the LR image, and ``first`` the place of its first pixel. A neighbour's share is the area of the rectangle
        opposite to it."""
        (y, down), (x, right) = rows, columns
        pixel = (first + y[:, None] * width + x).flatten(0, 1)
        way = torch.stack(torch.broadcast_tensors(down[:, None], right), -1).flatten(0, 1)
        area = (way[..., 0] * way[..., 1]).abs() + 1e-9
        return Queries(pixel, way, area.flip(0) / area.sum(0))

    # --- inference: experts only where they are chosen ----------------------------------------------------------------

    def enlarge(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Images in [-1, 1] to ``size``: each LR pixel's part once, then queries, grouped by expert, some at a time."""
        z = self.encoder(x)
        height, width = z.shape[-2:]
        chosen = self.choices(z).flatten()
        cell = x.new_tensor([2 * height / size[0], 2 * width / size[1]])  # in LR pixels, twice: LIIF's measure
        table = self.table(z, chosen, cell)
        plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not at_liberty(self, x)
        scratch = None if plain else Scratch()
        rows, columns = self.grid((height, width), size, z.device)

        def one(number: int) -> Tensor:
            parts = []
            for some in self.portions(size[0] * size[1], z):
                down, right = some // size[1], some % size[1]
                near = ([part.index_select(1, at) for part in axis] for axis, at in ((rows, down), (columns, right)))
                asked = self.queries(*near, width, number * height * width)
                rgb = self.ask(table, chosen, asked, cell, scratch)  # (D, n, 3)
                parts.append((rgb * asked.weight[..., None]).sum(0).T)
            return torch.cat(parts, 1).unflatten(1, size)

        return self.finish(torch.stack([one(number) for number in range(len(x))]), x)

    def ask(
        self, table: Tensor, chosen: Tensor, asked: Queries, cell: Tensor, scratch: Scratch | None = None
    ) -> Tensor:
        """The answers (D, n, 3) to queries, each from the expert of the LR pixel that is asked."""
        pixel, way = asked.pixel.flatten(), asked.way.flatten(0, 1).to(_precise(table))

        def answers(expert: int, pixel: Tensor, way: Tensor) -> Tensor:
            room = None if scratch is None else scratch.take("rows", way, table.shape[1])
            rows = torch.index_select(table, 0, pixel, out=room)
            return self.decoders[expert].after_first(self.first(expert, rows, way, cell, scratch), scratch)

        if len(self.config.depths) == 1:
            return answers(0, pixel, way).unflatten(0, asked.pixel.shape)
        expert = chosen.index_select(0, pixel)
        groups = [(expert == j).nonzero()[:, 0] for j in range(len(self.config.depths))]
        rgb = torch.cat([answers(j, pixel[group], way.index_select(0, group)) for j, group in enumerate(groups)])
        return rgb.index_select(0, _inverse(torch.cat(groups))).unflatten(0, asked.pixel.shape)

    def portions(self, pixels: int, z: Tensor) -> Iterator[Tensor]:
        """The numbers of an image's output pixels, as many at a time as memory has room for."""
        room = min(_free_memory(z.device) // FREE_SHARE, CACHED if z.is_cpu else AT_ONCE)
        step = max(1, room // (self.width * z.element_size()) // (4 if self.config.ensemble else 1))
        for start in range(0, pixels, step):
            yield torch.arange(start, min(start + step, pixels), device=z.device)

    # --- training: all experts at all queries -------------------------------------------------------------------------

    def answer(self, x: Tensor, coord: Tensor, cell: Tensor) -> Answers:
        """The answers of all experts to queries, weighted by the gates: Equation 5, and in evaluation mode 4."""
        batch = len(x)
        if coord.ndim != 3 or coord.shape[::2] != (batch, 2) or cell.shape != (batch, 2):
            raise InputError(
                f"queries have coord of shape {tuple(coord.shape)} and cell of shape {tuple(cell.shape)} for {batch} "
                f"images; give ({batch}, queries, 2) and ({batch}, 2)"
            )
        z = self.encoder(x)
        height, width = z.shape[-2:]
        coord, cell = coord.float(), cell.float()
        near = [self.neighbours(coord[..., axis].flatten(), z.shape[2 + axis]) for axis in (0, 1)]
        image = torch.arange(batch, device=x.device).repeat_interleave(coord.shape[1])
        asked = self.queries(*near, width, image * height * width)
        pixel, way = asked.pixel.flatten(), asked.way.flatten(0, 1).to(_precise(z))
        cell = (cell * cell.new_tensor([height, width]))[image].to(_precise(z))
        cells = cell.repeat(len(asked.pixel), 1)  # (D B Q, 2)
        gates = self.gates(z)
        shares = None if gates is None else gates.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, pixel)  # (D B Q, J)
        parts = []
        for j, table in enumerate(self.tables(z)):
            one = self.decoders[j].after_first(self.first(j, table.index_select(0, pixel), way, cells, None), None)
            parts.append(one if shares is None else shares[:, j : j + 1] * one)
        rgb = torch.stack(parts).sum(0)
        mixed = (rgb.unflatten(0, asked.pixel.shape) * asked.weight[..., None]).sum(0)
        return Answers(self.finish_at(mixed.unflatten(0, coord.shape[:2]), x, coord), gates)

    def gates(self, z: Tensor) -> Tensor | None:
        """Each expert's weight at each LR pixel, (B, J, h, w): Gumbel softmax (Equation 5), or one-hot; None where
        there is one expert."""
        if len(self.config.depths) == 1:
            return None
        if self.training:
            return F.gumbel_softmax(self.mapper(z), tau=self.config.temperature, dim=1)
        return F.one_hot(self.choices(z), len(self.config.depths)).permute(0, 3, 1, 2).to(z.dtype)

    # --- what a backbone fills in -------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """How many numbers of a query are worked on at a time."""
        return self.config.hidden

    @abstractmethod
    def table(self, z: Tensor, chosen: Tensor, cell: Tensor) -> Tensor:
        """What each LR pixel has for its queries, by its chosen expert and for one cell (2): (B h w, C)."""

    @abstractmethod
    def tables(self, z: Tensor) -> Iterator[Tensor]:
        """The same for every expert, and for any cell."""

    @abstractmethod
    def first(self, expert: int, rows: Tensor, way: Tensor, cell: Tensor, scratch: Scratch | None) -> Tensor:
        """What an expert's first layer puts out for queries: from their rows of ``table`` and their ways (n, 2), with
        the one cell (2); or of one of ``tables``, with their cells (n, 2). Cells are in LR pixels, twice."""

    def finish(self, image: Tensor, x: Tensor) -> Tensor:
        """The whole output images in [-1, 1], from the answers, which are overwritten."""
        return image

    def finish_at(self, rgb: Tensor, x: Tensor, coord: Tensor) -> Tensor:
        """The same at some places (B, Q, 2)."""
        return rgb


class LIIF(MoEISR):
    """MoEISR on the local implicit image function, or that itself: an expert reads the 3x3 features around an LR pixel,
    the way from it, and the cell.

    The first layer is linear in the features: its part in them is computed once for each LR pixel, as a 3x3
    convolution, and no query sees them unfolded.
    """

    def parts(self, expert: int) -> tuple[Tensor, Tensor]:
        """The first layer's weights of the features, (hidden, 64, 3, 3), and those of way and cell, (hidden, 4)."""
        side = 3 if self.config.unfold else 1
        weight = self.decoders[expert].layers[0].weight
        features, rest = weight[:, : CHANNELS * side**2], weight[:, CHANNELS * side**2 :]
        return features.unflatten(1, (CHANNELS, side, side)), rest

    def tables(self, z: Tensor) -> Iterator[Tensor]:
        """The first layer's part in the features, (B h w, hidden) for each expert."""
        for j, decoder in enumerate(self.decoders):
            weight = self.parts(j)[0]
            first = F.conv2d(z, weight, decoder.layers[0].bias, padding=weight.shape[-1] // 2)
            yield first.permute(0, 2, 3, 1).flatten(0, 2)

    def table(self, z: Tensor, chosen: Tensor, cell: Tensor) -> Tensor:
        """The same of the chosen expert, and its part in the cell: (B h w, hidden)."""
        margin = 1 if self.config.unfold else 0
        padded = F.pad(z, (margin,) * 4).permute(0, 2, 3, 1).flatten(0, 2)  # (B (h + 2) (w + 2), 64)
        batch, _, height, width = z.shape
        wide = width + 2 * margin
        place = torch.arange(batch * height * width, device=z.device)
        corner = place + place // width * 2 * margin + place // (height * width) * 2 * margin * wide
        around = torch.tensor([y * wide + x for y, x in product(range(2 * margin + 1), repeat=2)], device=z.device)
        rows, groups = [], [(chosen == j).nonzero()[:, 0] for j in range(len(self.config.depths))]
        for j, group in enumerate(groups):
            weight, rest = self.parts(j)
            bias = self.decoders[j].layers[0].bias
            if self.config.cell:
                bias = bias + rest[:, 2:] @ cell
            for some in group.split(max(1, CACHED // (4 * inputs(self.config)))):
                near = padded[corner[some][:, None] + around]  # (n, 9, 64)
                rows.append(F.linear(near.flatten(1), weight.permute(0, 2, 3, 1).flatten(1), bias))
        return torch.cat(rows).index_select(0, _inverse(torch.cat(groups)))

    def first(self, expert: int, rows: Tensor, way: Tensor, cell: Tensor, scratch: Scratch | None) -> Tensor:
        """A row, the first layer's part in the way, and its part in the cell where that isn't in the row."""
        rest = self.parts(expert)[1]
        if cell.ndim == 1 or not self.config.cell:  # one cell is in the rows already
            return torch.addmm(rows, way, rest[:, :2].T, out=None if scratch is None else rows)
        return torch.addmm(rows, torch.cat([way, cell], 1), rest.T)


class LTE(MoEISR):
    """MoEISR on the local texture estimator, or that itself: an expert reads 128 cosines and 128 sines, whose
    amplitudes and frequencies come from an LR pixel's features and whose phases come from the cell.

    What it puts out is added to the LR image, enlarged by bilinear interpolation.
    """

    def __init__(self, config: MoEISRConfig) -> None:
        super().__init__(config)
        self.coef = nn.Conv2d(CHANNELS, FREQUENCIES, 3, padding=1)
        self.freq = nn.Conv2d(CHANNELS, FREQUENCIES, 3, padding=1)
        if config.cell:
            self.phase = nn.Linear(2, FREQUENCIES // 2, bias=False)

    @property
    def width(self) -> int:
        return 4 * FREQUENCIES  # amplitudes and frequencies, waves, and what the first layer makes of them

    def table(self, z: Tensor, chosen: Tensor, cell: Tensor) -> Tensor:
        """What ``tables`` has, which all experts share."""
        return next(self.tables(z))

    def tables(self, z: Tensor) -> Iterator[Tensor]:
        """Amplitudes, then the frequencies along rows and along columns, which the release has in turns."""
        parts = [self.coef, self.freq, self.freq]
        turns = [slice(None), slice(0, None, 2), slice(1, None, 2)]
        weight, bias = (
            torch.cat([getattr(part, name)[turn] for part, turn in zip(parts, turns, strict=True)])
            for name in ("weight", "bias")
        )
        shared = F.conv2d(z, weight, bias, padding=1).permute(0, 2, 3, 1).flatten(0, 2)
        for _ in self.decoders:
            yield shared

    def first(self, expert: int, rows: Tensor, way: Tensor, cell: Tensor, scratch: Scratch | None) -> Tensor:
        """The first layer itself, of cosines and sines."""
        texture, layer = self.texture(rows, way, cell, scratch), self.decoders[expert].layers[0]
        if scratch is None:
            return layer(texture)
        return torch.addmm(layer.bias, texture, layer.weight.T, out=scratch.take("layer 1", way, layer.out_features))

    def texture(self, rows: Tensor, way: Tensor, cell: Tensor, scratch: Scratch | None = None) -> Tensor:
        """Cosines and sines of pi (frequency . way + phase), times the amplitudes: (n, 256)."""
        half = FREQUENCIES // 2
        amplitude, down, right = rows.split([FREQUENCIES, half, half], 1)
        down_way, right_way = (math.pi * way).split(1, 1)
        angle = torch.mul(down, down_way, out=None if scratch is None else down)
        angle = torch.addcmul(angle, right, right_way, out=None if scratch is None else down)
        if self.config.cell:
            phase = math.pi * self.phase(cell.clamp(min=2 / LARGEST_TRAINED))
            angle = torch.add(angle, phase, out=None if scratch is None else down)
        if scratch is None:
            return amplitude * torch.cat([angle.cos(), angle.sin()], 1)
        waves = scratch.take("waves", way, FREQUENCIES)
        torch.cos(angle, out=waves[:, :half])
        torch.sin(angle, out=waves[:, half:])
        return waves.mul_(amplitude)

    def finish(self, image: Tensor, x: Tensor) -> Tensor:
        """The answers, and the LR images enlarged."""
        return image.add_(F.interpolate(x, image.shape[-2:], mode="bilinear", align_corners=False))

    def finish_at(self, rgb: Tensor, x: Tensor, coord: Tensor) -> Tensor:
        """The answers, and the LR images' colours at their places."""
        place = coord.flip(-1)[:, :, None].to(x.dtype)
        near = F.grid_sample(x, place, padding_mode="border", align_corners=False)  # (B, 3, Q, 1)
        return rgb + near[..., 0].mT


def build(config: MoEISRConfig) -> MoEISR:
    """The network of a configuration, on the backbone that it names."""
    return {"liif": LIIF, "lte": LTE}[config.decoder](config)


def _checked(size: Sequence[int]) -> tuple[int, int]:
    """A size of an output image as a pair; raises ``InputError`` for any other value."""
    if isinstance(size, Sequence) and not isinstance(size, str):  # numpy's whole numbers are whole numbers, too
        size = [
            int(side) if isinstance(side, numbers.Integral) and not isinstance(side, bool) else side for side in size
        ]
    if not isinstance(size, Sequence) or len(size) != 2 or not all(_whole(side, 1) for side in size):
        raise InputError(f"size {size!r} is not a height and a width in pixels; give two whole numbers above 0")
    return size[0], size[1]


def _centres(number: Tensor, side: int) -> Tensor:
    """The centres in [-1, 1] of pixels along an axis of ``side``, rounded as LIIF rounds them: beyond the last LR
    pixel's centre, both neighbours are that pixel, and their shares hang on the last digit."""
    return -1 + 1 / side + 2 / side * number.float()


def _precise(x: Tensor) -> torch.dtype:
    """The type of places and ways beside ``x``: that of ``x``, or single precision where that is more."""
    return torch.promote_types(x.dtype, torch.float32)


def _inverse(order: Tensor) -> Tensor:
    """Where each of n numbers stands in an ``order`` of them."""
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return back


def _free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # a system that does not say
        return 1 << 30
