"""MoEISR's tables (Oh et al.): which configuration each printed row is, and what has to be explained.

The printed numbers lie in data/moeisr_table1.csv to moeisr_table5.csv, the settings in data/moeisr_settings.csv. Tables
3 and 4 count the decoder alone, the mean over Set14's and Urban100's images, whose sizes are data/moeisr_set14.csv (as
distributed) and data/moeisr_urban100.csv (cropped to multiples of 4): the four queries of the local ensemble at each
output pixel. LIIF's and LTE's counts are fixed by that; MoEISR's depend on where its trained mapper sends each pixel,
and lie between ``bounds``. What the mapper itself costs isn't printed: ``mapper_costs`` finds it from the counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING

from srlib.papers import _DATA, SCALING, Explanation, Row, _read, difference, last_digit

if TYPE_CHECKING:
    from srlib.models.moeisr import MoEISRConfig

ENCODERS = ("EDSR", "RDN", "SwinIR")
DECODERS = ("LIIF", "LTE")
PROTOCOLS = {  # the paper's networks and their backbones, and how their rows were scored
    name: "liif"
    for decoder in ("liif", "lte")
    for encoder in ("edsr", "rdn", "swinir")
    for name in (f"{decoder}-{encoder}", f"moeisr-{decoder}-b-{encoder}", f"moeisr-{decoder}-s-{encoder}")
}
DATASET_PROTOCOLS = {"DIV2K_val": "liif-div2k"}  # Tables 1 and 5
BICUBIC_PROTOCOL = "liif-div2k"  # Table 1 alone has bicubic rows
TRAIN: Mapping[str, object] = {"expert_weights": []}  # w_j of the balance loss; [] is 1 for every expert
SIZES = {"Set14": "moeisr_set14", "Urban100": "moeisr_urban100"}  # what Tables 3 and 4 count
PERCENT = "quantity=percent_of_backbone"
RDN_MACS = 21_964_480  # multiply-adds of the encoder RDN at one LR pixel: the weights of its convolutions
MISPRINTED = "RDN-MoEISR(LIIF)-s"  # in EDSR's part of Table 3
QUERIES = 4  # of the local ensemble, at each output pixel


def rows() -> dict[int, tuple[Row, ...]]:
    """Table number -> the rows that are configurations of MoEISR, LIIF or LTE, in the paper's order (imports torch).

    None has a scale: a row is printed at several. Tables 4 and 5 have RDN as their encoder.
    """
    from srlib.models.moeisr import CONFIGS

    def row(encoder: str, decoder: str, size: str = "", gap: str = "", label: str = "", variant: str = "") -> Row:
        usual = f"{encoder}-MoEISR({decoder}){gap}-{size}" if size else f"{encoder}-{decoder}"
        name = (f"moeisr-{decoder}-{size}-{encoder}" if size else f"{decoder}-{encoder}").lower()
        return Row(label or usual, CONFIGS[name], name, variant)

    misprinted = {  # EDSR's row has RDN's label
        (encoder, "LIIF", "s"): row(encoder, "LIIF", "s", label=MISPRINTED, variant=f"block={encoder}-LIIF")
        for encoder in ("EDSR", "RDN")
    }
    table3 = [(e, d, size) for e in ENCODERS for d in DECODERS for size in ("", "b", "s")]
    fixed, usual = row("RDN", "LIIF"), row("RDN", "LIIF", "b", label="MoEISR(LIIF) -b")
    return {
        1: tuple(row(e, d, size, gap=" ") for e in ENCODERS for size in ("", "s", "b") for d in DECODERS),
        2: tuple(row(e, d, size) for e in ("RDN", "SwinIR") for d in DECODERS for size in ("", "s", "b")),
        3: tuple(misprinted.get(which) or row(*which) for which in table3),
        4: (
            row("RDN", "LIIF", "b", gap=" "),
            row("RDN", "LIIF", "s", gap=" "),
            *(
                replace(fixed, label=f"LIIF -{depth}layer", config=replace(fixed.config, depths=(depth,)))
                for depth in (5, 4, 3, 2)
            ),
        ),
        5: (
            usual,
            *(
                replace(usual, label=f"{usual.label} - tau {tau}", config=replace(usual.config, temperature=float(tau)))
                for tau in (3, 5)
            ),
            replace(usual, label=f"{usual.label} -m1", config=replace(usual.config, mapper_layers=1)),
        ),
    }


def cost(row: Row, line: Mapping[str, str]) -> tuple[Decimal | None, str]:
    """A row's printed multiply-adds, a line of a table's CSV file, counted by its rule, in its unit; and a note.

    There are none of ours, and the note says where the printed ones lie, for a network whose trained mapper chooses.
    """
    if PERCENT in line["variant"]:
        return _percent(row, line)
    unit, printed, scale = Fraction(SCALING[line["unit"]]), Decimal(line["value"]), int(line["scale"])
    if line["dataset"] not in SIZES:
        return None, _with_encoder(row.config, scale, unit)
    lr = pixels(line["dataset"], scale)
    least, most = (_exact(macs / unit) for macs in bounds(row.config, lr, scale))
    done = [_exact(macs / unit) for macs in executed(row.config, lr, scale)]
    if least == most:
        output = f"{QUERIES} queries at each of {_exact(scale**2 * lr):,.0f} pixels"
        return least, f"{output}; this library executes {_shown(done[0], line)} {line['unit']}"
    place = 100 * (printed - least) / (most - least)
    between = f"{place:.0f} % of the way" if 0 <= place <= 100 else f"{'above' if place > 100 else 'below'} both"
    return None, (
        f"depends on the trained mapper: {_shown(least, line)} {line['unit']} with the shallowest expert everywhere, "
        f"{_shown(most, line)} with the deepest; printed: {between}; this library executes {_shown(done[0], line)} to "
        f"{_shown(done[1], line)}"
    )


def _percent(row: Row, line: Mapping[str, str]) -> tuple[Decimal | None, str]:
    """The share of the backbone's multiply-adds: 100 for itself, else what the printed ones make it, in a note."""
    if len(row.config.depths) == 1:
        return Decimal(100), "the backbone itself"
    own, backbone = (_printed()[block, int(line["scale"])] for block in _blocks(row.label, line["variant"]))
    return None, f"depends on the trained mapper; {own} of {backbone} T, as printed, are {100 * own / backbone:.2f} %"


def _blocks(label: str, variant: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """A row of Table 3 and its backbone's, as (block, label)."""
    block = variant.partition(";")[0].removeprefix("block=")
    return (block, label), (block, block)


@cache
def _printed() -> dict[tuple[tuple[str, str], int], Decimal]:
    """Table 3's FLOPs in T, by ((block, label), scale)."""
    lines = [line for line in _read(_DATA / "moeisr_table3.csv") if line["unit"] == "T"]
    return {(_blocks(line["row"], line["variant"])[0], int(line["scale"])): Decimal(line["value"]) for line in lines}


def _with_encoder(config: MoEISRConfig, scale: int, unit: Fraction) -> str:
    """What Table 5's counts must hold: more than the decoder's, and RDN's with it fits."""
    square, usual = Fraction(2040**2, scale**2), Fraction(2040 * 1356, scale**2)
    most = bounds(config, square, scale)[1]
    whole = [macs + RDN_MACS * usual for macs in bounds(config, usual, scale)]
    told = [f"{_exact(macs / unit):.2f}" for macs in (most, *whole)]
    return (
        f"depends on the trained mapper; the decoder takes at most {told[0]} T even on 2040x2040 pixels, with RDN "
        f"{told[1]} to {told[2]} T on 2040x1356"
    )


@cache
def pixels(dataset: str, scale: int) -> Fraction:
    """How many pixels an LR image has on average: Set14's images are the LR images themselves (Table 3), those of
    Urban100 are reduced (Table 4), from sides cropped to a multiple of ``scale``. An output image has scale^2 times as
    many."""
    step = 1 if dataset == "Set14" else scale
    sizes = [(int(line["width"]), int(line["height"])) for line in _read(_DATA / f"{SIZES[dataset]}.csv")]
    return Fraction(sum((width // step) * (height // step) for width, height in sizes), len(sizes))


def bounds(config: MoEISRConfig, lr_pixels: Fraction, scale: int) -> tuple[Fraction, Fraction]:
    """The decoder's multiply-adds by the paper's rule, for an LR image of so many pixels: the mapper's, and four
    queries at each output pixel, all of them of the shallowest expert or all of the deepest."""
    from srlib.models.moeisr import decoder_macs, mapper_macs

    macs, once = decoder_macs(config), lr_pixels * mapper_macs(config)
    queries = QUERIES * lr_pixels * scale**2
    return once + queries * macs[0], once + queries * macs[-1]


def executed(config: MoEISRConfig, lr_pixels: Fraction, scale: int) -> tuple[Fraction, Fraction]:
    """The same as this library computes it: the first layer's part in the features once for each LR pixel, and LTE's
    coefficients and frequencies, which the paper leaves out."""
    from srlib.models.moeisr import executed_macs, mapper_macs

    pixel, macs = executed_macs(config)
    once, queries = lr_pixels * (mapper_macs(config) + pixel), QUERIES * lr_pixels * scale**2
    return once + queries * macs[0], once + queries * macs[-1]


def _exact(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / value.denominator


def _shown(value: Decimal, line: Mapping[str, str]) -> str:
    """A number with a digit more than the printed one has."""
    return str(value.quantize(last_digit(line["value"]) / 10))


# What the mapper costs, from Table 3: its LR images are the same at every scale s, and so are their expert maps. FLOPs
# for an LR pixel are a s^2 + m, with a the experts' part on average and m the mapper's.

# How far below and above a printed number the number itself may lie, in units of the last digit: EDSR's rows are
# rounded (a cell of them twice), RDN's truncated, SwinIR's either, as their rows of LIIF and LTE show.
READINGS = {
    "EDSR": (Fraction(55, 100), Fraction(1, 2)),
    "RDN": (Fraction(0), Fraction(1)),
    "SwinIR": (Fraction(1, 2), Fraction(1)),
}


@dataclass(frozen=True)
class MapperCost:
    """What a row of Table 3 says of its mapper: ``least`` to ``most`` multiply-adds at an LR pixel.

    ``network`` is the row's, misprint mended. ``left_out`` are the scales that one expert map can't meet together with
    the others; the fewest are left out, and a row has one entry for each way to do so.
    """

    network: str
    left_out: tuple[int, ...]
    least: float
    most: float


def mapper_costs() -> tuple[MapperCost, ...]:
    """The cost of the mapper that each of Table 3's twelve rows of MoEISR allows, in the paper's order."""
    found = []
    for network, printed in _by_scale().items():
        for count in range(len(printed)):
            ways = [(scales, _interval(scales, printed)) for scales in combinations(printed, count)]
            met = [MapperCost(network, scales, *interval) for scales, interval in ways if interval]
            if met:
                found += met
                break
    return tuple(found)


def cells_met(macs: Mapping[str, int]) -> dict[str, int]:
    """How many of each row's eight printed FLOPs one expert map meets, with a mapper that takes ``macs`` multiply-adds
    at an LR pixel, by decoder ("LIIF", "LTE"); the rows are those of ``mapper_costs``."""
    found = {}
    for network, printed in _by_scale().items():
        mapper = macs["LIIF" if "LIIF" in network else "LTE"]
        experts = [((low - mapper) / scale**2, (high - mapper) / scale**2) for scale, (low, high) in printed.items()]
        found[network] = max(sum(low <= one <= high for low, high in experts) for one, _ in experts)
    return found


def _by_scale() -> dict[str, dict[int, tuple[Fraction, Fraction]]]:
    """Table 3's rows of MoEISR: network -> scale -> the least and the most multiply-adds for an LR pixel in print."""
    found: dict[str, dict[int, tuple[Fraction, Fraction]]] = {}
    for ((block, label), scale), printed in _printed().items():
        if block == label:
            continue
        encoder = block.partition("-")[0]
        below, above = READINGS[encoder]
        digit, macs = Fraction(last_digit(str(printed)) * SCALING["T"]), Fraction(printed * SCALING["T"])
        limits = (macs - below * digit) / pixels("Set14", scale), (macs + above * digit) / pixels("Set14", scale)
        found.setdefault(f"{encoder}-{label.partition('-')[2]}", {})[scale] = limits
    return found


def _interval(
    left_out: tuple[int, ...], printed: Mapping[int, tuple[Fraction, Fraction]]
) -> tuple[float, float] | None:
    """The least and the most m, from 0 up, with which some a meets all other scales; None where there is none.

    low <= a s^2 + m <= high at scales s and t: (low_t - m) / t^2 <= (high_s - m) / s^2 bounds m.
    """
    least, most = Fraction(0), Fraction(10**9)
    kept = {scale: limits for scale, limits in printed.items() if scale not in left_out}
    for s, (_, high) in kept.items():
        for t, (low, _) in kept.items():
            slope, limit = Fraction(1, s**2) - Fraction(1, t**2), high / s**2 - low / t**2
            if slope > 0:
                most = min(most, limit / slope)
            elif slope < 0:
                least = max(least, limit / slope)
    return (float(least), float(most)) if least <= most else None


def not_run(number: int | str, row: str, dataset: str, metric: str) -> str:
    """Why a printed cell has no number of ours."""
    if row == "Bicubic":
        return "needs DIV2K's validation images, and a record of them under protocol liif-div2k"
    if row in ("RDN", "SwinIR"):
        return "peer, as printed"
    if metric in ("psnr", "ssim"):
        steps = "500,000 steps of batch 32" if row.startswith("SwinIR") else "1,000,000 steps"
        return f"not run at the paper's budget ({steps} on DIV2K)"
    return "not counted in this call"


def _explained(row: str, scale: int, table: int, dataset: str, text: str, evidence: str) -> Explanation:
    return Explanation(table, (row,), scale, "flops", text, evidence, dataset)


TRUNCATED = {"RDN-LIIF": (3, 4, 24), "RDN-LTE": (2, 3, 4, 18, 24), "SwinIR-LIIF": (3, 4), "SwinIR-LTE": (2, 3, 18, 24)}
CROPPED = {2: "0.1", 3: "0.18", 6: "0.04"}  # how many per cent ours are below the printed ones of Table 4

EXPLANATIONS = (
    _explained(
        "EDSR-LIIF (block=EDSR-LIIF)", 6, 3, "Set14",
        "Rounded twice: 11.46485 T are 11.465 T with three decimals, and those 11.47 T with two.",
        "RDN's and SwinIR's rows, whose decoder is the same, print 11.46 T.",
    ),
    *(
        _explained(
            f"{row} (block={row})", scale, 3, "Set14",
            "Truncated, not rounded.",
            "EDSR's rows, whose decoder is the same, print the rounded figure of every cell but one. All of RDN's rows "
            "are truncated but LIIF's 45.86 T at x12, SwinIR's in part.",
        )
        for row, scales in TRUNCATED.items() for scale in scales
    ),
    *(
        _explained(
            f"LIIF -{depth}layer", scale, 4, "Urban100",
            f"{below} % below print: our sizes of Urban100's images are those after cropping to multiples of 4, which "
            f"takes off up to 3 rows and columns; the paper's are perhaps cropped to multiples of {scale} alone.",
            "At x4 and x8 all four rows are exact; at x2, x3 and x6 all four are below print by the same share.",
        )
        for depth in (5, 4, 3, 2) for scale, below in CROPPED.items()
    ),
)  # fmt: skip

DIFFERENCES = (
    difference(
        "print", "Label of a row of Table 3", "RDN-MoEISR(LIIF)-s, twice", "EDSR-MoEISR(LIIF)-s, the first time",
        "It stands in EDSR's part of the table; RDN's has a row of this name, too, with other numbers.",
        "Section 4.1 gives 26.2 % of EDSR-LIIF at x30 for EDSR-MoEISR(LIIF)-s: the row's 75.09 of 286.62 T.",
        table=3,
    ),
    difference(
        "print", "The same decoder in three parts of Table 3", "2.87 T for LIIF at x3 with EDSR, 2.86 T with RDN",
        "2.866 T",
        "The decoder of LIIF, or of LTE, is the same whatever the encoder. EDSR's rows are rounded, one cell twice; "
        "RDN's are truncated but for one cell; SwinIR's are mixed.",
        "Of 24 cells each for LIIF and LTE, all lie within one unit of the last digit of ours.",
        table=3,
    ),
    difference(
        "print", "MoEISR's rows at different scales", "eight scales", "no expert map meets six of the twelve rows",
        "Set14's images are the LR images at every scale, so the expert map is the same, and FLOPs grow as the square "
        "of the scale but for the mapper's. In six rows they don't, mostly by about 0.1 %.",
        "EDSR-MoEISR(LIIF)-b prints 194.68 T at x30 where its 124.68 T at x24 make 194.81; SwinIR-MoEISR(LIIF)-b "
        "211.49 T where its 135.51 make 211.73. RDN-MoEISR(LIIF)-b is off at x24, the other three of SwinIR's at one "
        "or two scales.",
        table=3,
    ),
    difference(
        "print", "Percentages of Table 3", "68.0 % for EDSR-MoEISR(LIIF)-b at x30", "67.9 %",
        "194.68 of 286.62 T are 67.92 %. Twelve more of the 96 percentages of MoEISR aren't those of the printed "
        "FLOPs, but are of numbers that are printed so: they were taken before rounding.",
        "27.0 % for RDN-MoEISR(LIIF)-s at x2, for one: 0.34 of 1.27 T are 26.8 %, numbers from 0.34 to 0.35 of "
        "1.2739 T are 26.7 to 27.5 %.",
        table=3,
    ),
    difference(
        "print", "Mapper of SwinIR-MoEISR(LTE)", "5 layers, as everywhere", "a mapper of four times the cost fits",
        "Its two rows fall much further from x3 on than the other ones, from 93.9 and 33.2 to 91.8 and 31.3 % of LTE. "
        "A mapper of 113K to 130K multiply-adds at an LR pixel would explain it; other rows allow 25K to 31K.",
        "At x2 the row of -s prints 0.25 T, more than 0.2428 T of the deepest expert everywhere; 0.2497 T with our "
        "mapper. By the same reckoning its 51.16 T at x30 are 87 % of the way from the shallowest to the deepest.",
        table=3,
    ),
    difference(
        "print", "Scales of the evaluation", "scales like 8x and 32x (Section 3.4)", "x8 on benchmarks; x32 nowhere",
        "DIV2K's largest scale is x30, the benchmarks' x8.",
        "Tables 1 to 4.",
    ),
    difference(
        "print", "FLOPs of Table 5", "6.84 T", "more than the decoder takes",
        "Tables 3 and 4 count the decoder alone; Table 5's caption doesn't say what it counts. With RDN's own, all "
        "four figures fit: the first lies 64 % of the way from shallowest to deepest, and the same network's 60 % in "
        "Table 3 and 66 % in Table 4 at x4.",
        "At x4, 2040x2040 pixels, more than any image of DIV2K has, take at most 5.77 T. RDN takes 3.80 T for "
        "2040x1356 pixels, and 5.45 to 7.63 T with its decoder.",
        table=5,
    ),
    difference(
        "print", "Encoder of Table 5", "not stated", "RDN",
        "The figures of the first row are those of RDN-MoEISR(LIIF)-b.",
        "29.2909 dB is 29.29 dB in Table 1 at x4; EDSR's is 29.01 and SwinIR's 29.49 dB.",
        table=5,
    ),
    difference(
        "print", "Caption of Table 5", "tau 3 refers to a temperature of tau 5, that to tau = 5", "tau = 3 and 5",
        "Words are missing.",
        "Section 4.2 names tau = 3.",
        table=5,
    ),
    difference(
        "print", "Queries of an output pixel", "one, of the matching pixel's expert (Equation 4)", "four",
        "LIIF and LTE ask the four nearest LR pixels and weigh the answers. Equation 4 leaves this out; the printed "
        "FLOPs count it.",
        "LIIF at x2: 4 queries x 4 x 230,203 pixels x 345,856 multiply-adds = 1.274 T, printed as 1.27.",
        table=3,
    ),
    difference(
        "print", "What the FLOPs leave out", "the decoder's FLOPs", "the MLPs' and the mapper's",
        "LTE's coefficients and frequencies, two convolutions at every LR pixel, aren't in its counts.",
        "They would take 294,912 multiply-adds an LR pixel, 0.07 T on Set14: 0.79 T for LTE at x2, printed as 0.73.",
        table=3,
    ),
    difference(
        "release", "Length of the training", "as the backbone's", "1,000,000 steps; with SwinIR 500,000",
        "LIIF and LTE train 1,000 epochs of 20 passes over DIV2K, with batches of 16; with SwinIR of 32.",
        "The released training settings: 1000 x 20 x 800 images / 16, and / 32.",
    ),
    difference(
        "release", "Learning rate", "as the backbone's", "1e-4, halved at epochs 200, 400, 600 and 800",
        "With SwinIR at epochs 500, 800, 900 and 950.",
        "The released training settings of LIIF and LTE.",
    ),
    difference(
        "release", "Training samples", "48x48 patches, a random scale from 1 to 4",
        "2304 pixels of an output of 48 s x 48 s, s uniform",
        "The HR patch has 48 s pixels a side and is reduced to 48x48; random pixels of it are asked for.",
        "The released training settings of LIIF and LTE.",
    ),
    difference(
        "release", "Evaluation", "no colour channels, no border", "protocols liif and liif-div2k",
        "Benchmarks on luma, with a border of scale pixels; DIV2K in RGB, with a border of scale + 6. Clamped, not "
        "rounded to 8 bits.",
        "The released evaluation of LIIF and LTE. The paper repeats their rows.",
    ),
    difference(
        "release", "L1 loss", "the conventional L1 loss", "in the network's range, [-1, 1]",
        "LIIF and LTE compare there. In [0, 1] it would be half as large, and the balance loss twice as strong.",
        "The released training of LIIF and LTE.",
    ),
    difference(
        "release", "Phase of LTE beyond x4", "not stated", "that of x4",
        "The cell of a larger scale, which training hasn't seen, is taken for that of x4.",
        "The released LTE.",
    ),
    difference(
        "choice", "Width of the mapper", "5 convolutional layers", "3x3, 24 channels between them",
        "Neither width nor kernel is printed; the FLOPs of Table 3 allow conclusions.",
        "Of EDSR's and RDN's rows, the six that one expert map meets, and RDN-MoEISR(LIIF)-b without x24, allow 28.1K "
        "to 31.0K multiply-adds an LR pixel on LIIF and 24.6K to 26.3K on LTE. 24 channels take 30,240 and 30,024. "
        "They meet 59 of these rows' 64 printed FLOPs, as 22 and 23 channels do; no width meets more. None lies in "
        "both intervals; 24 lies in LIIF's.",
        table=3,
    ),
    difference(
        "choice", "Activations of the mapper", "not stated", "ReLU between its convolutions",
        "The experts have ReLU, too. No count tells.",
        "Section 3.2.",
    ),
    difference(
        "choice", "Experts of the local ensemble", "not stated", "each of the four LR pixels has its own",
        "Equation 4 chooses by the input pixel k that is asked, and each of the four neighbours is another k.",
        "Section 3.2; with one expert an output pixel the mean cost would be nearly the same, so no count tells.",
    ),
    difference(
        "choice", "Balance loss", "of D (Equation 7)", "of the gates g(D), per image, averaged over the batch",
        "D is the mapper's score and its softmax at once in Section 3.2; a loss that wants K / J takes probabilities. "
        "K is the number of LR pixels of a patch, 48 x 48.",
        "Equations 5 and 7.",
    ),
    difference(
        "choice", "Weight of L1", "3000, with the backbone's learning rate", "the same",
        "Adam's steps don't depend on the size of the loss: 3000 makes the balance loss weak, not the steps large.",
        "Section 4; Adam divides the mean gradient by the root of its mean square.",
    ),
    difference(
        "choice", "Inputs of -s on LTE", "experts with 128 hidden dimensions", "256 inputs, 128 hidden",
        "The estimator stays as wide as LTE's, and all experts share it.",
        "With 128 inputs the deepest expert everywhere would take 25.1 % of LTE's FLOPs; the three rows print 26.8 % "
        "and more.",
        table=3,
    ),
    difference(
        "choice", "LR images at x6 and x8", "not stated", "MATLAB's bicubic, as up to x4",
        "LIIF's evaluation makes them itself, with another bicubic. Scores at these scales can't be compared closely.",
        "The released evaluation of LIIF.",
        table=2,
    ),
    difference(
        "choice", "Ties of the mapper, and noise at inference", "argmax (Equation 4)", "the shallower expert; no noise",
        "Gumbel's noise belongs to training.",
        "Section 3.4.",
    ),
)  # fmt: skip
