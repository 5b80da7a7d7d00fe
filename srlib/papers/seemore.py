"""SeemoRe's tables (Zamfir et al., ICML 2024): which configuration each printed row is, and what has to be explained.

The printed numbers lie in data/seemore_table1.csv to seemore_table15.csv, the settings in data/seemore_settings.csv.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from srlib.papers import Entry, Explanation, Row

if TYPE_CHECKING:
    from srlib.models.seemore import SeemoReConfig

PROTOCOLS = {  # the paper's networks, and how their rows were scored
    "seemore-t": "seemore",
    "seemore-b": "seemore",
    "seemore-l": "seemore-l",
}
BICUBIC_PROTOCOL = "matlab-luma"  # how the bicubic rows that papers copy from one another were scored
TRAIN = {"fft_weight": 0.1}  # the paper's usual value of each setting of the training that some row changes
PEERS = ("1", "2", "3a", "3b", "8", "15")  # the tables that hold other papers' networks


def rows() -> dict[int | str, tuple[Row, ...]]:
    """Table number -> the rows that are configurations of SeemoRe, and SAFMN's, in the paper's order (imports torch).

    Ablations are at x2, as the paper's.
    """
    from srlib.models.safmn import SAFMNConfig
    from srlib.models.seemore import CONFIGS

    tiny, base, large = (replace(CONFIGS[f"seemore-{size}"], scale=2) for size in "tbl")
    row = partial(Row, model="seemore-t")
    again = partial(row, "SeemoRe-T")
    wide = replace(tiny, groups=5, channels=48)
    return {
        1: tuple(
            one for scale in (2, 3, 4)
            for one in (Row("SAFMN", SAFMNConfig(scale), "safmn"), row("SeemoRe-T (ours)", replace(tiny, scale=scale)))
        ),
        2: tuple(Row("SeemoRe-L (ours)", replace(large, scale=scale), "seemore-l") for scale in (2, 4)),
        "3b": (again(tiny),),
        "4a": (
            row("Baseline", replace(tiny, rme="plain", sme="plain")),
            again(replace(tiny, sme="plain"), variant="RME=1;SME=0"),
            again(replace(tiny, rme="plain"), variant="RME=0;SME=1"),
            again(tiny, variant="RME=1;SME=1"),
        ),
        "4b": (
            again(replace(tiny, order="spatial-rank"), variant="macro_expert_order=Spatial-Rank"),
            again(tiny, variant="macro_expert_order=Rank-Spatial"),
        ),
        "4c": tuple(again(replace(tiny, kernel=kernel), variant=f"kernel={kernel}") for kernel in (3, 7, 11)),
        "5a": (
            again(replace(tiny, growth="i+2", experts=6), variant="growth=i+2;experts=6;ranks=2,3,4,5,6,7"),
            again(replace(tiny, growth="2*i+2", experts=4), variant="growth=2*i+2;experts=4;ranks=2,4,6,8"),
            again(replace(tiny, experts=4), variant="growth=2^i;experts=4;ranks=2,4,8,16"),
            again(tiny, variant="growth=2^i;experts=3;ranks=2,4,8"),
            again(replace(tiny, experts=2), variant="growth=2^i;experts=2;ranks=2,4"),
            again(replace(tiny, experts=1), variant="growth=2^i;experts=1;ranks=2"),
        ),
        "5b": tuple(again(replace(tiny, recursion=t), variant=f"recursive_steps={t}") for t in (1, 2, 3)),
        7: (
            row("Baseline*", replace(wide, rme="plain", sme="plain")),
            again(replace(wide, sme="plain"), variant="RME=1;SME=0"),
            again(replace(wide, rme="plain"), variant="RME=0;SME=1"),
            again(tiny, variant="RME=1;SME=1"),
        ),
        8: (Row("SeemoRe-L (ours)", replace(large, scale=3), "seemore-l"),),
        9: tuple(row(f"k = {k}", replace(tiny, top_k=k)) for k in (1, 2, 3)),
        10: (
            row("FusedMB", replace(tiny, sme="fused_mb")),
            row("C2F", replace(tiny, sme="conv2former")),
            row("SEE (ours)", tiny),
        ),
        11: (
            again(replace(tiny, residual="none"), variant="residual=No aggregation"),
            again(replace(tiny, residual="aggregation"), variant="residual=Aggregation output"),
            again(tiny, variant="residual=DConv output"),
        ),
        12: tuple(
            again(tiny, variant=f"L1=1.0;FFT={weight}", train={"fft_weight": weight}) for weight in (0.0, 0.1, 0.2)
        ),
        13: (again(tiny), Row("SeemoRe-B", base, "seemore-b"), Row("SeemoRe-L", large, "seemore-l")),
        14: (
            again(replace(tiny, growth="2*i+2", experts=8), variant="growth=2*i+2;experts=8"),
            again(replace(tiny, experts=4), variant="growth=2^i;experts=4"),
            again(tiny, variant="growth=2^i;experts=3"),
        ),
    }  # fmt: skip


def macs(config: SeemoReConfig, lr_size: tuple[int, int], counted: int, printed: Decimal) -> tuple[Decimal, str]:
    """A row's multiply-adds beside the printed ones, and a note: as counted, until routes are told apart."""
    return Decimal(counted), ""


def not_run(number: int | str, row: str, dataset: str, metric: str) -> str:
    """Why a printed cell has no number of ours."""
    if row == "Bicubic" and metric in ("psnr", "ssim") and number != 15:
        return f"needs a record of {dataset}, made by `srlib evaluate bicubic --luma --data {dataset}`"
    if str(number) in PEERS and not row.startswith("SeemoRe"):
        return "peer, as printed"
    if metric in ("time", "gpu_memory"):
        return "needs the paper's RTX 4090; see the page's own measurement"
    if number == 15:
        return "needs RealSRSet, DIV2K type I and II, and a fine-tuning on DF2K_OST"
    if metric in ("psnr", "ssim"):
        return "not run at the paper's budget (500,000 steps on DF2K)"
    return "not counted in this call"


EXPLANATIONS: tuple[Explanation, ...] = ()
DIFFERENCES: tuple[Entry, ...] = ()
