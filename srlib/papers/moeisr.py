"""MoEISR (Oh et al., arXiv 2023), and LIIF and LTE, which it builds on: recipes, evaluation, printed rows, counts.

Tables 3 and 4 count the decoder alone, the mean over Set14's and Urban100's images, whose sizes are
data/moeisr_set14.csv (as distributed) and data/moeisr_urban100.csv (cropped to multiples of 4): the four queries of the
local ensemble at each output pixel. LIIF's and LTE's counts are fixed by that; MoEISR's depend on where its trained
mapper sends each pixel, and lie between ``bounds``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any

from srlib import papers
from srlib.metrics import LIIF_LUMA, Protocol
from srlib.models.moeisr import CHANNELS, CONFIGS, FREQUENCIES, MAPPER_WIDTH, MoEISRConfig
from srlib.papers import Paper, Recipe, Row
from srlib.train import TrainConfig

LIIF_ABOUT = (
    "LIIF's released evaluation (which LTE shares) on the benchmarks: clamped, not rounded to 8 bits, luma from its own"
    " coefficients over 256, a border of scale pixels. It measures no SSIM: the window and the offset 16 are assumed,"
    " as in the literature. Beyond x4 it makes the LR images itself, with another bicubic than MATLAB's."
)
LIIF = Protocol(name="liif", about=LIIF_ABOUT, luma=LIIF_LUMA, luma_gain=255 / 256, round_image=False)
LIIF_DIV2K = Protocol(
    name="liif-div2k",
    about="LIIF's released evaluation on DIV2K: RGB, a border of scale + 6 pixels, clamped, not rounded to 8 bits. It"
    " measures no SSIM: the window, and the mean over channels, are assumed.",
    channel="rgb",
    border_extra=6,
    round_image=False,
)
MOEISR = replace(
    LIIF,
    name="moeisr",
    about="MoEISR has no released code; it is assumed to be measured as LIIF, whose rows it repeats. Its Table 5 prints"
    " SSIM without saying how. " + LIIF_ABOUT,
)

# srlib train liif-edsr --data DIV2K --budget paper
TRAIN = TrainConfig(
    steps=1000 * 20 * 800 // 16,  # LIIF's release: 1000 epochs of 20 passes over DIV2K's 800 images
    batch=16,  # LIIF's release
    patch=48,  # LR pixels a side, Section 4
    optimizer="adam",  # Section 4
    betas=(0.9, 0.999),  # LIIF's release: torch's defaults
    weight_decay=0.0,  # LIIF's release: none
    lr=1e-4,  # LIIF's release; Section 4: as the backbone's
    lr_final=1e-5,  # not used: the schedule has milestones
    schedule="multistep",  # LIIF's release
    milestones=(200_000, 400_000, 600_000, 800_000),  # LIIF's release: epochs 200, 400, 600 and 800
    lr_decay=0.5,  # LIIF's release
    fft_weight=0.0,  # single pixels have no spectrum
    ema_decay=0.0,  # LIIF's release: no average
    degradation="bicubic",  # Section 3.4
    queries=2304,  # output pixels a patch, LIIF's release
    scales=(1.0, 4.0),  # Section 3.4
    l1_weight=1.0,  # LIIF's release
    balance_weight=0.0,  # LIIF and LTE have one decoder
    expert_weights=(),  # LIIF and LTE have one decoder
)
SWINIR = {  # LIIF's and LTE's releases with SwinIR as the encoder: half the steps of twice the batch
    "steps": 1000 * 20 * 800 // 32,
    "batch": 32,
    "milestones": (250_000, 400_000, 450_000, 475_000),  # epochs 500, 800, 900 and 950
}
# srlib train moeisr-lte-s-edsr --data DIV2K --budget paper
# Printed for EDSR-MoEISR(LTE)-s at x4: 29.04 dB on DIV2K's validation images, in RGB (Table 1). 1/333 of the steps with
# a quarter of the batch take 28 minutes on one CPU core.
EXPERTS = {  # Section 4: alpha = 3000, beta = 1; w_j = 1 for every expert (Section 3.3)
    "l1_weight": 3000.0,
    "balance_weight": 1.0,
    "expert_weights": (),
}
SMOKE = {"steps": 400, "patch": 24, "queries": 576, "lr": 1e-3}  # at 1e-4 a few hundred steps lead nowhere


def recipe(model: str) -> Recipe:
    """How a network for every scale is trained: as its backbone, and MoEISR with its own losses."""
    own = (SWINIR if model.endswith("swinir") else {}) | (EXPERTS if model.startswith("moeisr") else {})
    return Recipe(replace(TRAIN, **own), LIIF, protocols={"DIV2K_val": LIIF_DIV2K}, smoke=SMOKE)


def title(model: str) -> str:
    """A network's name in print: "LIIF", "MoEISR(LTE)-s"; its encoder comes first where it isn't EDSR."""
    *kind, encoder = model.split("-")
    name = f"MoEISR({kind[1].upper()})-{kind[2]}" if kind[0] == "moeisr" else kind[0].upper()
    return {"edsr": "", "rdn": "RDN-", "swinir": "SwinIR-"}[encoder] + name


# How Tables 3 and 4 count

QUERIES = 4  # of the local ensemble, at each output pixel
RDN_MACS = 21_964_480  # multiply-adds of the encoder RDN at one LR pixel: the weights of its convolutions
PERCENT = "quantity=percent_of_backbone"


def decoder_macs(config: MoEISRConfig) -> tuple[int, ...]:
    """Multiply-adds of one query of each expert as the tables count them: the MLP's, all layers at every query."""
    first = FREQUENCIES if config.decoder == "lte" else (9 if config.unfold else 1) * CHANNELS + 2 + 2 * config.cell
    width = config.hidden
    return tuple(first * width + (depth - 2) * width**2 + 3 * width for depth in config.depths)


def executed_macs(config: MoEISRConfig) -> tuple[int, tuple[int, ...]]:
    """Multiply-adds of the decoder as this library computes it: those of one LR pixel, and of one query of each expert.

    LIIF's first layer is computed at LR pixels but for the two relative coordinates, and LTE's coefficients and
    frequencies are, which the paper does not count. The mapper's come on top.
    """
    width, first = config.hidden, 2 * config.hidden
    pixel = (9 if config.unfold else 1) * CHANNELS * width
    if config.decoder == "lte":
        pixel = 2 * 9 * CHANNELS * FREQUENCIES
        first = FREQUENCIES + FREQUENCIES * width  # the frequencies' products with the coordinates come first
    return pixel, tuple(first + (depth - 2) * width**2 + 3 * width for depth in config.depths)


def mapper_macs(config: MoEISRConfig) -> int:
    """Multiply-adds of the mapper at one LR pixel; 0 for a backbone, which has none."""
    widths = [CHANNELS, *[MAPPER_WIDTH] * (config.mapper_layers - 1), len(config.depths)]
    return 0 if len(config.depths) == 1 else sum(9 * a * b for a, b in zip(widths, widths[1:], strict=False))


@cache
def pixels(dataset: str, scale: int) -> Fraction:
    """How many pixels an LR image has on average: Set14's images are the LR images themselves (Table 3), those of
    Urban100 are reduced (Table 4), from sides cropped to a multiple of ``scale``."""
    step = 1 if dataset == "Set14" else scale
    sizes = papers.read(f"moeisr_{dataset.lower()}.csv").astype({"width": int, "height": int})
    return Fraction(int(((sizes.width // step) * (sizes.height // step)).sum()), len(sizes))


def bounds(config: MoEISRConfig, lr_pixels: Fraction, scale: int) -> tuple[Fraction, Fraction]:
    """The decoder's multiply-adds by the paper's rule, for an LR image of so many pixels: the mapper's, and four
    queries at each output pixel, all of them of the shallowest expert or all of the deepest."""
    return _between(mapper_macs(config), decoder_macs(config), lr_pixels, scale)


def executed(config: MoEISRConfig, lr_pixels: Fraction, scale: int) -> tuple[Fraction, Fraction]:
    """The same as this library computes it."""
    pixel, queries = executed_macs(config)
    return _between(mapper_macs(config) + pixel, queries, lr_pixels, scale)


def _between(once: int, queries: tuple[int, ...], lr_pixels: Fraction, scale: int) -> tuple[Fraction, Fraction]:
    asked = QUERIES * lr_pixels * scale**2
    return lr_pixels * once + asked * queries[0], lr_pixels * once + asked * queries[-1]


def macs(
    row: Row, line: Mapping[str, Any], size: tuple[int, int], counted: Callable[[], int]
) -> tuple[float | None, str]:
    """A row's multiply-adds by the paper's rule; None, and a note that says where the printed ones lie, for a network
    whose trained mapper chooses."""
    scale, unit = line["scale"], 10**12
    printed = Fraction(line["value"]) * unit
    if PERCENT in line["variant"]:
        alone = len(row.config.depths) == 1
        return (100, "the backbone itself") if alone else (None, _percent(row.label, line["variant"], scale))
    if line["dataset"] not in ("Set14", "Urban100"):
        return None, _with_encoder(row.config, scale)
    lr = pixels(line["dataset"], scale)
    least, most = bounds(row.config, lr, scale)
    told = [_shown(one, line["value"]) for one in (least, most, *executed(row.config, lr, scale))]
    if least == most:
        output = f"{QUERIES} queries at each of {float(scale**2 * lr):,.0f} pixels"
        return float(least), f"{output}; this library executes {told[2]} T"
    place = round(100 * (printed - least) / (most - least))
    between = f"{place} % of the way" if 0 <= place <= 100 else f"{'above' if place > 100 else 'below'} both"
    return None, (
        f"depends on the trained mapper: {told[0]} T with the shallowest expert everywhere, {told[1]} with the deepest;"
        f" printed: {between}; this library executes {told[2]} to {told[3]}"
    )


def _percent(label: str, variant: str, scale: int) -> str:
    """What the printed multiply-adds of Table 3 make of a printed percentage."""
    block = variant.partition(";")[0]
    cells = papers.printed("moeisr", "3").query("scale == @scale and variant == @block").set_index("row").value
    own, backbone = Decimal(cells[label]), Decimal(cells[block.removeprefix("block=")])
    return f"depends on the trained mapper; {own} of {backbone} T, as printed, are {100 * own / backbone:.2f} %"


def _with_encoder(config: MoEISRConfig, scale: int) -> str:
    """What Table 5's counts must hold: more than the decoder's, and RDN's with it fits."""
    square, usual = Fraction(2040**2, scale**2), Fraction(2040 * 1356, scale**2)
    whole = [macs + RDN_MACS * usual for macs in bounds(config, usual, scale)]
    most, low, high = (f"{float(macs) / 1e12:.2f}" for macs in (bounds(config, square, scale)[1], *whole))
    return (
        f"depends on the trained mapper; the decoder takes at most {most} T even on 2040x2040 pixels, with RDN {low} to"
        f" {high} T on 2040x1356"
    )


def _shown(value: Fraction, printed: str) -> str:
    """A number in T with a digit more than the printed one has."""
    return f"{float(value) / 1e12:.{len(printed.partition('.')[2]) + 1}f}"


def _row(encoder: str, decoder: str, size: str = "", gap: str = "", label: str = "", variant: str = "") -> Row:
    usual = f"{encoder}-MoEISR({decoder}){gap}-{size}" if size else f"{encoder}-{decoder}"
    name = (f"moeisr-{decoder}-{size}-{encoder}" if size else f"{decoder}-{encoder}").lower()
    return Row(label or usual, CONFIGS[name], name, variant)


ENCODERS, DECODERS = ("EDSR", "RDN", "SwinIR"), ("LIIF", "LTE")
MISPRINTED = {  # Table 3 prints RDN's label in EDSR's part, too
    (encoder, "LIIF", "s"): _row(encoder, "LIIF", "s", label="RDN-MoEISR(LIIF)-s", variant=f"block={encoder}-LIIF")
    for encoder in ("EDSR", "RDN")
}
FIXED, USUAL = _row("RDN", "LIIF"), _row("RDN", "LIIF", "b", label="MoEISR(LIIF) -b")

ROWS = {  # None has a scale: a row is printed at several. Tables 4 and 5 have RDN as their encoder.
    "1": tuple(_row(e, d, size, gap=" ") for e in ENCODERS for size in ("", "s", "b") for d in DECODERS),
    "2": tuple(_row(e, d, size) for e in ENCODERS[1:] for d in DECODERS for size in ("", "s", "b")),
    "3": tuple(
        MISPRINTED.get((e, d, size)) or _row(e, d, size) for e in ENCODERS for d in DECODERS for size in ("", "b", "s")
    ),
    "4": (
        *(_row("RDN", "LIIF", size, gap=" ") for size in ("b", "s")),
        *(
            replace(FIXED, label=f"LIIF -{depth}layer", config=replace(FIXED.config, depths=(depth,)))
            for depth in (5, 4, 3, 2)
        ),
    ),
    "5": (
        USUAL,
        *(
            replace(USUAL, label=f"{USUAL.label} - tau {tau}", config=replace(USUAL.config, temperature=float(tau)))
            for tau in (3, 5)
        ),
        replace(USUAL, label=f"{USUAL.label} -m1", config=replace(USUAL.config, mapper_layers=1)),
    ),
}

PAPER = Paper(
    slug="moeisr",
    name="MoEISR",
    title="Balancing Efficiency and Quality: MoEISR for Arbitrary-Scale Image Super-Resolution",
    citation="oh2023moeisr",
    venue="arXiv 2023",
    order=4,
    colour="#e17702",
    marker="P",
    main="moeisr-lte-s-edsr",
    titles={model: title(model) for model in CONFIGS},
    recipes={model: recipe(model) for model in CONFIGS},
    rows=ROWS,
    baselines={"4": "LIIF -5layer", "5": "MoEISR(LIIF) -b"},
    peer_tables=("1", "2", "3"),
    own_rows=r"MoEISR|LIIF|LTE",
    train_data="DIV2K",
    hardware="GPU",
    protocols=(LIIF, LIIF_DIV2K, MOEISR),
    bicubic="liif-div2k",
    macs=macs,
)
