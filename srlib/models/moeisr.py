"""MoEISR: mixture-of-experts implicit super-resolution (Oh et al.), on LIIF (Chen et al., 2021) and LTE (Lee and Jin,
2022).

One network serves every scale: an encoder turns the LR image into features z (Equation 1), and a decoder, an MLP,
predicts each output pixel from the features of an LR pixel nearby and the offset from it (Equation 2). MoEISR has
several decoders, the experts, and a mapper that sends each LR pixel to one of them (Equations 3 to 5). With one expert
it is LIIF or LTE itself. It has no released code: what its paper leaves open is in the ledger of ``srlib.papers``.

A query is an output pixel together with one of its D neighbours among the LR pixels: 4 with the local ensemble, else 1.
Offsets and cells are measured in LIIF's unit, half an LR pixel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.errors import InputError
from srlib.models.encoders import CHANNELS, ENCODERS
from srlib.models.layers import Config, check_images, conv

Pair = Sequence[int]  # height and width, or y and x
Decoder = Literal["liif", "lte"]
Encoder = Literal["edsr", "rdn", "swinir"]

FREQUENCIES = 256  # LTE's coefficients, and its frequencies, for each LR pixel
MAPPER_WIDTH = 24  # not printed; what the printed multiply-adds come closest to
LARGEST_TRAINED = 4  # LTE decodes larger scales with the cell of this one
EPSILON = 1e-6  # LIIF's shift of neighbours, so that none lies on the border between two LR pixels


@dataclass(frozen=True)
class MoEISRConfig(Config):
    """What tables of the paper, or ours, vary, and the local ensemble; the defaults are EDSR-MoEISR(LIIF)-b."""

    decoder: Decoder = "liif"
    encoder: Encoder = "edsr"
    depths: tuple[int, ...] = (2, 3, 4, 5)  # layers of each expert; a single one is the backbone, without a mapper
    hidden: int = 256  # width of the experts: 256 (-b) or 128 (-s)
    mapper_layers: int = 5  # 3x3 convolutions
    temperature: float = 1.0  # tau of the Gumbel softmax
    balance: Literal["probabilities", "gates"] = "probabilities"  # D of Equation 7, or g(D) of Equation 5, with noise
    ensemble: bool = True  # LIIF's local ensemble

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending = list(self.depths) == sorted(set(self.depths)) and self.depths[0] > 1
        self.require(ascending, "depths", "give whole numbers from 2 up, each once, from shallow to deep")

    @property
    def inputs(self) -> int:
        """How many numbers an expert's first layer reads."""
        return FREQUENCIES if self.decoder == "lte" else 9 * CHANNELS + 4

    @property
    def mapper_widths(self) -> list[int]:
        """The mapper's channels, from the features to a score for each expert; none where there is one expert."""
        return [CHANNELS, *[MAPPER_WIDTH] * (self.mapper_layers - 1), len(self.depths)] if self.depths[1:] else []

    def build(self) -> MoEISR:
        return {"liif": LIIF, "lte": LTE}[self.decoder](self)


DEPTHS: dict[Decoder, tuple[int, ...]] = {"liif": (2, 3, 4, 5), "lte": (2, 3, 4)}
CONFIGS: dict[str, MoEISRConfig] = {}
for _decoder, _encoder in product(DEPTHS, get_args(Encoder)):
    CONFIGS[f"{_decoder}-{_encoder}"] = MoEISRConfig(_decoder, _encoder, DEPTHS[_decoder][-1:])
    for _size, _hidden in (("b", 256), ("s", 128)):
        CONFIGS[f"moeisr-{_decoder}-{_size}-{_encoder}"] = MoEISRConfig(_decoder, _encoder, DEPTHS[_decoder], _hidden)


def stack(layer: Callable[[int, int], nn.Module], widths: Sequence[int]) -> nn.Sequential:
    """A layer from each of the ``widths`` to the next, with a ReLU between each two."""
    steps = [step for a, b in pairwise(widths) for step in (layer(a, b), nn.ReLU(inplace=True))]
    return nn.Sequential(*steps[:-1])


class Queries(NamedTuple):
    """The queries of n output pixels: each neighbour's index among all LR pixels of the batch, ``pixel`` (D n); the
    ``offset`` (D n, 2) from its centre to the output pixel's; its ``weight`` (D, n) in the answer, of sum 1."""

    pixel: Tensor
    offset: Tensor
    weight: Tensor

    def mean(self, rgb: Tensor) -> Tensor:
        """The colours (n, 3) of the output pixels, from all queries' answers (D n, 3)."""
        return (rgb.unflatten(0, self.weight.shape) * self.weight[..., None]).sum(0)


class MoEISR(nn.Module, ABC):
    """The framework (Section 3.2, Figure 2): an encoder, experts, and a mapper from features to a score for each expert
    (Equation 3). ``LIIF`` and ``LTE`` say what an expert reads."""

    def __init__(self, config: MoEISRConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ENCODERS[config.encoder]()
        widths = [[config.inputs, *[config.hidden] * (depth - 1), 3] for depth in config.depths]
        experts = [nn.Sequential(OrderedDict(layers=stack(nn.Linear, each))) for each in widths]
        if len(experts) == 1:
            self.imnet = experts[0]
        else:
            self.mapper = stack(partial(conv, kernel=3), config.mapper_widths)
            self.experts = nn.ModuleList(experts)

    def forward(
        self, x: Tensor, size: Pair | None = None, *, coord: Tensor | None = None, cell: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Enlarge images (B, 3, h, w) in [0, 1] to ``size``, or answer queries.

        With ``size`` = (H, W), of any scale by axis: (B, 3, H, W), not clamped, each LR pixel served by its likeliest
        expert alone (Equation 4). With ``coord`` (B, Q, 2), places of output pixels as (y, x) in [-1, 1], and ``cell``
        (B, 2), their height and width in the same unit: their colours (B, Q, 3) in [-1, 1], all experts' answers
        weighted (Equation 5), and what the balance loss takes (Equation 7): each expert's share at each LR pixel,
        (B, J, h, w), or None where there is one expert. Raises ``InputError`` unless one of the two is asked for.
        """
        check_images(x)
        if x.dtype.itemsize < 4:
            raise InputError(f"coordinates need float32, not {x.dtype}: give that, and use torch.autocast for speed")
        if coord is not None and cell is not None and size is None:
            return self.answer((x - 0.5) / 0.5, coord, cell)
        if size is None or min(size) < 1 or coord is not None or cell is not None:
            raise InputError("tell a network for every scale what to make: size=(480, 320), or coord and cell")
        return self.render(x, (0, 0), x.shape[-2:], size, slice(None), slice(None))

    @property
    def decoders(self) -> list[Any]:
        """The experts, from shallow to deep."""
        return [*self.experts] if len(self.config.depths) > 1 else [self.imnet]

    def expert_map(self, x: Tensor) -> Tensor:
        """Which expert serves each LR pixel of images (B, 3, h, w) in [0, 1]: (B, h, w), 0 for the shallowest."""
        return self.choices(self.encoder((x - 0.5) / 0.5))

    def choices(self, z: Tensor) -> Tensor:
        """The likeliest expert at each pixel of features z (Equation 4): (B, h, w)."""
        if len(self.config.depths) == 1:
            return z.new_zeros(z[:, 0].shape, dtype=torch.long)
        return self.mapper(z).argmax(1)

    def gates(self, scores: Tensor) -> Tensor:
        """Each expert's weight at each LR pixel by the mapper's scores, both (B, J, h, w): in training a Gumbel
        softmax (Equation 5), else one-hot."""
        if self.training:
            return F.gumbel_softmax(scores, tau=self.config.temperature, dim=1)
        return F.one_hot(scores.argmax(1), scores.shape[1]).permute(0, 3, 1, 2).to(scores.dtype)

    def render(self, part: Tensor, corner: Pair, whole: Pair, size: Pair, rows: slice, columns: slice) -> Tensor:
        """A window of the output images: their ``rows`` and ``columns``, (B, 3, n, m), not clamped.

        The output images have ``size`` (H, W), the LR images have ``whole`` (h, w), and ``part`` (B, 3, h', w'), in
        [0, 1], is what starts at ``corner`` (y, x) of them. Output pixels ask the LR pixels that they ask in the whole
        image; for one outside the part the nearest inside answers, as happens at an image's border.
        """
        x = ((part - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)  # rows of tables lie together, too
        z = self.encoder(x)
        tables, chosen = list(self.tables(z)), self.choices(z).flatten()
        cell, axes = x.new_tensor([[2 * lr / hr for lr, hr in zip(whole, size, strict=True)]]), []
        for span, side, lr, start, inside in zip((rows, columns), size, whole, corner, x.shape[-2:], strict=True):
            place = _centres(torch.arange(side, device=x.device)[span], side)
            axes.append(lr / inside * place + (lr - 2 * start - inside) / inside)  # from -1 to 1 in the part
        coord = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)  # (n m, 2)
        colours = []
        for image, some in product(range(len(x)), coord.split(1 << (10 if x.is_cpu else 16))):  # in a CPU's cache
            asked = self.queries(some, image, z)
            colours.append(asked.mean(self.ask(tables, chosen, asked, cell)))
        rgb = torch.cat(colours).unflatten(0, (len(x), -1)) + self.skip(x, coord.expand(len(x), -1, -1))
        return rgb.mT.unflatten(2, [len(axis) for axis in axes]) * 0.5 + 0.5

    def answer(self, x: Tensor, coord: Tensor, cell: Tensor) -> tuple[Tensor, Tensor | None]:
        """All experts' answers to the queries of images in [-1, 1], weighted by the gates (Equation 5), and what is to
        be balanced (Equation 7): the experts' probabilities, or these gates."""
        coord, cell = coord.float(), cell.float()
        z = self.encoder(x)
        image = torch.arange(len(x), device=x.device).repeat_interleave(coord.shape[1])
        asked = self.queries(coord.flatten(0, 1), image, z)
        cell = (cell * cell.new_tensor(z.shape[-2:]))[image].to(asked.offset.dtype).repeat(len(asked.weight), 1)
        shares = None
        answers = self.answers(z, asked, cell)
        if len(answers) > 1:
            scores = self.mapper(z)
            gates = self.gates(scores)
            shares = gates if self.config.balance == "gates" else scores.softmax(1)
            weight = gates.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, asked.pixel)  # (D B Q, J)
            answers = [weight[:, j : j + 1] * one for j, one in enumerate(answers)]
        rgb = asked.mean(torch.stack(answers).sum(0)).unflatten(0, coord.shape[:2])
        return rgb + self.skip(x, coord), shares

    def answers(self, z: Tensor, asked: Queries, cell: Tensor) -> list[Tensor]:
        """Each expert's answers (D n, 3) to queries of features z, with cells (D n, 2)."""
        tables = (table.index_select(0, asked.pixel) for table in self.tables(z))
        return [self.predict(j, features, asked.offset, cell) for j, features in enumerate(tables)]

    def neighbours(self, coord: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """The neighbours of coordinates (n) in [-1, 1] along an axis of ``side`` LR pixels: their indices and the
        offsets from them, (2, n) each, or (1, n) without the local ensemble."""
        steps = [step / side + EPSILON for step in (-1, 1)] if self.config.ensemble else [0.0]
        near = torch.stack([coord + step for step in steps]).clamp_(-1 + EPSILON, 1 - EPSILON)
        index = (((near + 1) * side - 1) / 2).round().long()
        return index, (coord - _centres(index, side)) * side

    def queries(self, coord: Tensor, image: Tensor | int, z: Tensor) -> Queries:
        """The queries of output pixels at ``coord`` (n, 2) to images' features z. Each neighbour has the area of the
        opposite rectangle as its weight."""
        height, width = z.shape[-2:]
        (y, down), (x, right) = self.neighbours(coord[:, 0], height), self.neighbours(coord[:, 1], width)
        pixel = (image * height + y[:, None]) * width + x  # (D^1/2, D^1/2, n)
        offset = torch.stack(torch.broadcast_tensors(down[:, None], right), -1).flatten(0, 1)  # (D, n, 2)
        area = offset.prod(-1).abs() + 1e-9
        precise = torch.promote_types(z.dtype, torch.float32)
        return Queries(pixel.flatten(), offset.flatten(0, 1).to(precise), area.flip(0) / area.sum(0))

    def ask(self, tables: Sequence[Tensor], chosen: Tensor, asked: Queries, cell: Tensor) -> Tensor:
        """The answers (D n, 3), each from the expert ``chosen`` at the LR pixel asked (Equation 4)."""
        pixel, offset, _ = asked
        if len(tables) == 1:
            return self.predict(0, tables[0].index_select(0, pixel), offset, cell)
        expert = chosen.index_select(0, pixel)
        order = expert.argsort()
        groups = order.split(expert.bincount(minlength=len(tables)).tolist())
        parts = (
            self.predict(j, table.index_select(0, pixel[group]), offset[group], cell)
            for j, (table, group) in enumerate(zip(tables, groups, strict=True))
        )
        answers = torch.cat([*parts])
        return answers.index_copy(0, order, answers)  # back in the order of the queries

    @abstractmethod
    def tables(self, z: Tensor) -> Iterator[Tensor]:
        """For each expert, what it reads of the features at each LR pixel: (B h w, C)."""

    @abstractmethod
    def predict(self, expert: int, features: Tensor, offset: Tensor, cell: Tensor) -> Tensor:
        """An expert's answers (n, 3), from rows (n, C) of its table, which it may overwrite, offsets (n, 2) and cells,
        (n, 2) or (1, 2)."""

    def skip(self, x: Tensor, coord: Tensor) -> Tensor | float:
        """What is added to the answers at places (B, Q, 2) of images in [-1, 1]: (B, Q, 3)."""
        return 0.0


class LIIF(MoEISR):
    """The local implicit image function: an expert reads the 3x3 features around an LR pixel (unfolding), the offset
    from it, and the cell. The first layer is linear in the features: its part in them is computed once for each LR
    pixel, as a 3x3 convolution, and no query sees features unfolded."""

    def tables(self, z: Tensor) -> Iterator[Tensor]:
        """The first layer's part in the features: (B h w, hidden) for each expert."""
        for first in (decoder.layers[0] for decoder in self.decoders):
            weight = first.weight[:, :-4].unflatten(1, (CHANNELS, 3, 3))
            yield F.conv2d(z, weight, first.bias, padding=1).permute(0, 2, 3, 1).flatten(0, 2)

    def predict(self, expert: int, features: Tensor, offset: Tensor, cell: Tensor) -> Tensor:
        first, *others = self.decoders[expert].layers
        given = torch.cat([offset, cell.expand_as(offset)], 1)
        x = features.addmm_(given.to(features), first.weight[:, -4:].T.to(features))
        for layer in others:
            x = layer(x)
        return x


class LTE(MoEISR):
    """The local texture estimator: an expert reads 128 cosines and 128 sines, whose amplitudes and frequencies come
    from an LR pixel's features and whose phases come from the cell. The answers are added to the LR image, enlarged by
    bilinear interpolation."""

    def __init__(self, config: MoEISRConfig) -> None:
        super().__init__(config)
        self.coef, self.freq = conv(CHANNELS, FREQUENCIES, 3), conv(CHANNELS, FREQUENCIES, 3)
        self.phase = nn.Linear(2, FREQUENCIES // 2, bias=False)

    def tables(self, z: Tensor) -> Iterator[Tensor]:
        """Amplitudes, frequencies along rows, frequencies along columns: (B h w, 512), the same for all experts."""
        layers = (self.coef, slice(None)), (self.freq, slice(0, None, 2)), (self.freq, slice(1, None, 2))
        weight, bias = (torch.cat([getattr(layer, name)[i] for layer, i in layers]) for name in ("weight", "bias"))
        table = F.conv2d(z, weight, bias, padding=1).permute(0, 2, 3, 1).flatten(0, 2)
        yield from [table] * len(self.decoders)

    def answers(self, z: Tensor, asked: Queries, cell: Tensor) -> list[Tensor]:
        """All experts read the same, which is computed once."""
        read = self.read(next(self.tables(z)).index_select(0, asked.pixel), asked.offset, cell)
        return [decoder(read) for decoder in self.decoders]

    def predict(self, expert: int, features: Tensor, offset: Tensor, cell: Tensor) -> Tensor:
        return self.decoders[expert](self.read(features, offset, cell))

    def read(self, features: Tensor, offset: Tensor, cell: Tensor) -> Tensor:
        """Amplitude times cosine and sine of pi (frequency . offset + phase): (n, 256)."""
        amplitude, rows, columns = features.split([FREQUENCIES, FREQUENCIES // 2, FREQUENCIES // 2], 1)
        down, right = (math.pi * offset).split(1, 1)
        angle = torch.addcmul(rows * down, columns, right)
        angle = angle + math.pi * self.phase(cell.clamp(min=2 / LARGEST_TRAINED))
        return amplitude * torch.cat([angle.cos(), angle.sin()], 1)

    def skip(self, x: Tensor, coord: Tensor) -> Tensor:
        grid = coord.flip(-1)[:, :, None].to(x.dtype)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)[..., 0].mT


def _centres(index: Tensor, side: int) -> Tensor:
    """The centres in [-1, 1] of pixels along an axis of ``side``, rounded as LIIF rounds them: beyond the last LR
    pixel's centre both neighbours are that pixel, and their weights depend on the last digit."""
    return -1 + 1 / side + 2 / side * index.float()
