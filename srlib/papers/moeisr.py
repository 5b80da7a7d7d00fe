"""MoEISR (Oh et al., arXiv 2023), and LIIF and LTE, which it builds on: recipes, evaluation, and how FLOPs are counted.

Tables 3 and 4 count the decoder alone: the mean over the images of Set14 (as distributed) or Urban100 (cropped to
multiples of 4), whose sizes are in the folder data. LIIF's and LTE's counts are fixed by that; MoEISR's depend on where
its trained mapper sends each pixel, and lie between ``bounds``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pandas as pd
import torch

from srlib import papers
from srlib.data import Store
from srlib.metrics import LIIF_LUMA, Protocol
from srlib.models.moeisr import CONFIGS, MoEISR, MoEISRConfig
from srlib.papers import Paper, Recipe, Row
from srlib.train import TrainConfig

LIIF = Protocol(
    name="liif",
    about="LIIF's released evaluation (which LTE shares; MoEISR has none) on the benchmarks: clamped, not rounded to 8"
    " bits, luma from its own coefficients over 256, a border of scale pixels. It measures no SSIM: the window and"
    " the offset 16 are assumed, as in the literature. Beyond x4 it makes the LR images itself, with another bicubic"
    " than MATLAB's.",
    luma=LIIF_LUMA,
    luma_gain=255 / 256,
    round_image=False,
)
LIIF_DIV2K = Protocol(
    name="liif-div2k",
    about="LIIF's released evaluation on DIV2K: RGB, a border of scale + 6 pixels, clamped, not rounded to 8 bits. It"
    " measures no SSIM: the window, and the mean over channels, are assumed.",
    channel="rgb",
    border_extra=6,
    round_image=False,
)

# srlib train liif-edsr --data DIV2K_train --budget paper
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
)
# LIIF's and LTE's releases with SwinIR as the encoder: half the steps of twice the batch, epochs 500, 800, 900 and 950
SWINIR = replace(TRAIN, steps=1000 * 20 * 800 // 32, batch=32, milestones=(250_000, 400_000, 450_000, 475_000))

SMOKE = {"steps": 400, "patch": 24, "queries": 576, "lr": 1e-3}  # 3,000 steps at 1e-4 end 0.28 dB lower


# srlib train moeisr-lte-s-edsr --data DIV2K_train --budget paper
# Printed for EDSR-MoEISR(LTE)-s at x4: 29.04 dB on DIV2K's validation images, in RGB (Table 1). 1/333 of the steps with
# a quarter of the batch and half the patch take 15 minutes on one CPU core, and give 30.61 dB on Set5, in luma.
def recipe(model: str) -> Recipe:
    """How a network for every scale is trained: as its backbone, and MoEISR with its own losses."""
    train = SWINIR if model.endswith("swinir") else TRAIN
    if model.startswith("moeisr"):  # alpha and beta, Section 4; w_j = 1 for all (Section 3.3)
        train = replace(train, l1_weight=3000.0, balance_weight=1.0)
    return Recipe(train, LIIF, protocols={"DIV2K_val": LIIF_DIV2K}, smoke=SMOKE)


def title(model: str) -> str:
    """A network's name in print: "LIIF", "MoEISR(LTE)-s"; its encoder comes first where it isn't EDSR."""
    *kind, encoder = model.split("-")
    name = f"MoEISR({kind[1].upper()})-{kind[2]}" if kind[0] == "moeisr" else kind[0].upper()
    return {"edsr": "", "rdn": "RDN-", "swinir": "SwinIR-"}[encoder] + name


def decoder_macs(config: MoEISRConfig) -> list[int]:
    """Multiply-adds of one query of each expert as Tables 3 and 4 count them: the MLP's, all layers at every query."""
    width = config.hidden
    return [config.inputs * width + (depth - 2) * width**2 + 3 * width for depth in config.depths]


def mapper_macs(config: MoEISRConfig) -> int:
    """Multiply-adds of the mapper at one LR pixel; 0 for a backbone, which has none."""
    return sum(9 * a * b for a, b in pairwise(config.mapper_widths))


@cache
def pixels(dataset: str, scale: int) -> float:
    """How many pixels an LR image has on average: Set14's images are the LR images themselves (Table 3), those of
    Urban100 are reduced (Table 4), from sides cropped to a multiple of ``scale``."""
    sides = papers.read("moeisr", dataset.lower())[["width", "height"]].astype(int)
    return float((sides // (1 if dataset == "Set14" else scale)).prod(axis=1).mean())


def bounds(config: MoEISRConfig, lr_pixels: float, scale: int) -> tuple[float, float]:
    """The decoder's multiply-adds by the paper's rule, for an LR image of so many pixels: the mapper's, and four
    queries at each output pixel, all of them of the shallowest expert or all of the deepest."""
    macs = decoder_macs(config)
    least, most = (lr_pixels * (mapper_macs(config) + 4 * scale**2 * each) for each in (macs[0], macs[-1]))
    return least, most


def macs(
    row: Row, line: Mapping[Any, Any], size: tuple[int, int], counted: Callable[[], int]
) -> tuple[float | None, str]:
    """A row's multiply-adds by the paper's rule; None, and a note with their bounds, for a network whose trained mapper
    chooses."""
    unit = {"G": 1e9, "T": 1e12}.get(line["unit"])
    if "percent_of_backbone" in line["variant"] and len(row.config.depths) == 1:
        return 100, "the backbone itself"
    if not unit or line["dataset"] not in ("Set14", "Urban100"):
        return None, "depends on the trained mapper"
    lr = pixels(line["dataset"], line["scale"])
    least, most = bounds(row.config, lr, line["scale"])
    if least == most:
        return least, f"4 queries at each of {line['scale'] ** 2 * lr:,.0f} pixels"
    digits = papers.decimals(line["printed"]) + 1
    return None, (
        f"depends on the trained mapper: {least / unit:.{digits}f} {line['unit']} with the shallowest expert"
        f" everywhere, {most / unit:.{digits}f} with the deepest"
    )


def routing(network: MoEISR) -> pd.DataFrame:
    """Which share of the LR pixels of each held-out photograph each expert serves (Figure 1), one a line: place (the
    photograph), part, expert, share. Parts are all pixels, and the quarters of them with the largest ("steep") and the
    smallest gradient ("flat"). LR images are MATLAB's bicubic at x2; an expert map is the same for every scale."""
    store, lines = Store.open("photos/held-out"), []
    for i, name in enumerate(store.names):
        lr = store.lr(i, 2)[None] / 255
        with torch.inference_mode():
            chosen = network.expert_map(lr)[0, :-1, :-1]
        grey = lr[0].mean(0)
        slope = (grey.diff(dim=0)[:, :-1].square() + grey.diff(dim=1)[:-1].square()).sqrt()
        low, high = slope.flatten().quantile(slope.new_tensor([0.25, 0.75]))
        for part, pixels in {"all": slope >= 0, "steep": slope >= high, "flat": slope <= low}.items():
            shares = chosen[pixels].bincount(minlength=len(network.decoders)) / pixels.sum()
            experts = (f"{depth} layers" for depth in network.config.depths)
            lines += [(name, part, *each) for each in zip(experts, shares.tolist(), strict=True)]
    return pd.DataFrame(lines, columns=["place", "part", "expert", "share"])


def contrast(routed: pd.DataFrame) -> pd.Series:
    """How far expert maps follow the image, by photograph, from a run's ``routing``: the share of the deepest expert on
    the steep quarter of the pixels less that on the flat one; 1 where it serves all of the one and none of the other,
    0 where it doesn't tell them apart."""
    deepest = routed[routed.expert == routed.expert.iloc[-1]].pivot(index="place", columns="part", values="share")
    return deepest.steep - deepest.flat


PAPER = Paper(
    slug="moeisr",
    name="MoEISR",
    title="Balancing Efficiency and Quality: MoEISR for Arbitrary-Scale Image Super-Resolution",
    order=4,
    colour="#e17702",
    marker="P",
    main="moeisr-lte-s-edsr",
    titles={model: title(model) for model in CONFIGS},
    recipes={model: recipe(model) for model in CONFIGS},
    peer_tables=("1", "2", "3"),
    own_rows=r"MoEISR|LIIF|LTE",
    bicubic="liif-div2k",
    macs=macs,
    routing=routing,
)
