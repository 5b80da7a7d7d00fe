"""SSIU (Ni et al., IEEE TIP 2025): its recipe, its evaluation, and how its multiply-adds are counted.

Its tables are numbered I to IV in print, 1 to 4 here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from srlib.metrics import Protocol
from srlib.papers import Paper, Recipe, Row
from srlib.train import TrainConfig

PROTOCOL = Protocol(
    name="ssiu",
    about="SSIU's released evaluation neither clamps nor rounds the output, cuts a border of scale pixels and rounds"
    " the means up. An error in its luma multiplies the offset by 255, so that luma lies in 4080..4299: SSIM's"
    " luminance term is then close to 1 whatever the images are. Its single-precision window sums to a little less"
    " than 1, which adds about 1 to every variance, and as variances are differences of numbers near 17 million,"
    " digits are lost. Luma itself is in double precision here, in single there, which moves SSIM by 0.0002 or less.",
    luma_offset=16.0 * 255,
    clamp=False,
    round_image=False,
    ssim_precision="float32",
    means="up",
)

# srlib train ssiu --scale 4 --data DF2K --budget paper
# Printed for x4: 32.64 dB on Set5 (Table I). 1/100 of the steps with a tenth of the batch and half the patch take two
# hours on one CPU core, and give 31.61 dB.
TRAIN = TrainConfig(
    steps=290 * 40 * 3450 // 40,  # release: 290 epochs of 40 passes over DF2K's 3,450 images
    batch=40,  # Section IV-A2
    patch=64,  # LR pixels a side, Section IV-A2
    optimizer="adamw",  # release; Section IV-A2 says Adam
    betas=(0.9, 0.99),  # release
    weight_decay=1e-4,  # release
    lr=1e-3,  # Section IV-A2
    lr_final=1e-6,  # Section IV-A2
    schedule="cosine",  # Section IV-A2; the release lowers it once an epoch
    fft_weight=0.01,  # lambda, Section IV-A2
    ema_decay=0.0,  # neither paper nor release has an average
    degradation="bicubic",  # Section IV-A1
)


def macs(row: Row, line: Mapping[Any, Any], size: tuple[int, int], counted: Callable[[], int]) -> tuple[float, str]:
    """Multiply-adds on the padded image, as the network computes, and a note that gives those of the image itself."""
    height, width = size
    padded = (height + -height % 16) * (width + -width % 16)  # every square of 16x16 pixels costs the same
    own = counted() * height * width / padded
    return counted(), f"padded to 16; {own / 1e9:.2f} G on the image's own pixels"


PAPER = Paper(
    slug="ssiu",
    name="SSIU",
    title="Structural Similarity-Inspired Unfolding for Lightweight Image Super-Resolution",
    order=3,
    colour="#43a55e",
    marker="D",
    main="ssiu",
    titles={"ssiu": "SSIU"},
    recipes={"ssiu": Recipe(TRAIN, PROTOCOL, smoke={"steps": 300})},
    peer_tables=("1", "2"),
    own_rows=r"^(Ours|SSIU)",
    macs=macs,
)
