"""SAFMN (Sun et al., ICCV 2023): its recipe and its evaluation."""

from __future__ import annotations

from srlib.metrics import Protocol
from srlib.papers import Paper, Recipe
from srlib.train import TrainConfig

PROTOCOL = Protocol(
    name="safmn",
    about="SAFMN says only: Y channel. Its release is built on BasicSR: output clamped and rounded to 8 bits, luma not"
    " rounded; the released test settings cut a border of scale pixels.",
)

# srlib train safmn --scale 4 --data DF2K --budget paper
# Printed for x4: 32.18 dB on Set5 (Table 1). 1/25 of the steps with a quarter of the batch and half the patch take
# 1.8 hours on two CPU cores, in bf16, and give 31.52 dB.
TRAIN = TrainConfig(
    steps=500_000,  # Section 4.1
    batch=64,  # Section 4.1
    patch=64,  # LR pixels a side, Section 4.1
    optimizer="adam",  # Section 4.1
    betas=(0.9, 0.99),  # Section 4.1
    weight_decay=0.0,  # release: none
    lr=1e-3,  # Section 4.1
    lr_final=1e-5,  # Section 4.1
    schedule="cosine",  # Section 4.1; release: one cosine, no restarts
    fft_weight=0.05,  # release; the paper says "the same as ShuffleMixer"
    ema_decay=0.999,  # release; the average is what is evaluated
    degradation="bicubic",  # Section 4.1
)

PAPER = Paper(
    slug="safmn",
    name="SAFMN",
    title="Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution",
    order=1,
    colour="#3a4eff",
    marker="o",
    main="safmn",
    titles={"safmn": "SAFMN"},
    recipes={"safmn": Recipe(TRAIN, PROTOCOL)},
    peer_tables=("1", "2"),
    own_rows=r"^SAFMN",
)
