"""SSIU's tables (Ni et al., 2025): which configuration each printed row is, and what has to be explained.

The printed numbers lie in data/ssiu_table1.csv to ssiu_table4.csv (the paper's Tables I to IV), the settings in
data/ssiu_settings.csv.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from srlib.papers import Entry, Explanation, Row

if TYPE_CHECKING:
    from srlib.models.ssiu import SSIUConfig

OURS = ("Ours", "SSIU(Ours)")
PROTOCOLS = {"ssiu": "ssiu"}  # the paper's networks, and how their rows were scored
BICUBIC_PROTOCOL = "matlab-luma"  # how the bicubic rows that papers copy from one another were scored
TRAIN = {"fft_weight": 0.01}  # the paper's usual value of each setting of the training that some row changes
PEERS = (1, 2)  # the tables that hold other papers' networks


def rows() -> dict[int, tuple[Row, ...]]:
    """Table number -> the rows that are configurations of SSIU, and SAFMN's, in the paper's order (imports torch).

    Tables 2 to 4 are at x4, as the paper's.
    """
    from srlib.models.safmn import SAFMNConfig
    from srlib.models.ssiu import SSIUConfig

    base, row = SSIUConfig(), partial(Row, model="ssiu")
    return {
        1: tuple(
            one for scale in (2, 3, 4)
            for one in (Row("SAFMN", SAFMNConfig(scale), "safmn"), row("Ours", replace(base, scale=scale)))
        ),
        2: (row("SSIU(Ours)", base),),
        3: (
            row("SSIU", replace(base, moe_fs=False), variant="ESAM=1;SAM=0;MoE-FS=0"),
            row("SSIU", base, variant="ESAM=1;SAM=0;MoE-FS=1"),
            row("SSIU", replace(base, attention="sam"), variant="ESAM=0;SAM=1;MoE-FS=1"),
        ),
        4: (
            row("L1", base, train={"fft_weight": 0.0}),
            row("L1 + lambda Lf", base, train={"fft_weight": 0.01}),
        ),
    }  # fmt: skip


def unpadded_macs(lr_size: tuple[int, int], counted: int) -> int:
    """The share of ``counted`` multiply-adds that falls on the image itself, ``lr_size`` (height, width).

    The network pads its input to a multiple of 16 in height and width, and every square of 16x16 pixels costs the same.
    """
    height, width = lr_size
    return round(Decimal(counted) * height * width / (_padded(height) * _padded(width)))


def _padded(side: int) -> int:
    return -(-side // 16) * 16


def macs(config: SSIUConfig, lr_size: tuple[int, int], counted: int, printed: Decimal) -> tuple[Decimal, str]:
    """A row's multiply-adds as counted, on the padded image, and a note that gives those of the image itself."""
    return Decimal(counted), f"padded to 16; {unpadded_macs(lr_size, counted) / 1e9:.2f} G on the image's own pixels"


def not_run(number: int | str, row: str, dataset: str, metric: str) -> str:
    """Why a printed cell has no number of ours."""
    if number in PEERS and row not in OURS:
        return "peer, as printed"
    if metric in ("time", "gpu_memory"):
        return "needs the paper's RTX 4090; see the page's own measurement"
    if metric in ("psnr", "ssim"):
        return "not run at the paper's budget (1,000,500 steps on DF2K)"
    return "not counted in this call"


EXPLANATIONS: tuple[Explanation, ...] = ()

DIFFERENCES: tuple[Entry, ...] = ()
