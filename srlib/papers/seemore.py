"""SeemoRe (Zamfir et al., ICML 2024): its recipe, its evaluation, and which configuration each printed row is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from functools import partial
from itertools import combinations
from typing import Any

from srlib.metrics import Protocol
from srlib.models.safmn import CONFIGS as SAFMN
from srlib.models.seemore import CONFIGS, SeemoReConfig
from srlib.papers import Paper, Recipe, Row
from srlib.train import TrainConfig

PROTOCOL = Protocol(
    name="seemore",
    about="SeemoRe says only: Y channel. Its release is built on BasicSR: output clamped and rounded to 8 bits, luma"
    " not rounded; the released test settings of T and B cut a border of scale pixels.",
)
PROTOCOL_L = replace(
    PROTOCOL,
    name="seemore-l",
    about="As seemore, but the released x4 test settings of SeemoRe-L cut a border of 3 pixels.",
    border_at=((4, 3),),
)

# srlib train seemore-t --scale 4 --data DF2K --budget paper
# Printed for T at x4: 32.31 dB on Set5 (Table 1). 1/50 of the steps with a quarter of the batch take 42 minutes on two
# CPU cores and give 31.22 dB. The release trains T at x4 from the weights of x3; ours starts afresh.
TRAIN = TrainConfig(
    steps=500_000,  # Section 4, Table 6
    batch=32,  # Section 4, Table 6
    patch=64,  # Section 4; release: LR pixels a side
    optimizer="adam",  # Section 4, Table 6
    betas=(0.9, 0.99),  # release
    weight_decay=0.0,  # release: none
    lr=1e-3,  # Section 4
    lr_final=1e-5,  # not used: the schedule has milestones
    schedule="multistep",  # Section 4, Table 6
    milestones=(250_000, 400_000, 450_000, 475_000),  # Section 4, Table 6
    lr_decay=0.5,  # Table 6
    fft_weight=0.1,  # Table 6, Table 12
    ema_decay=0.0,  # release: no average
    degradation="bicubic",  # Section 4
    queries=0,  # whole patches
    scales=(1.0, 4.0),  # not used: it is trained at one scale
    l1_weight=1.0,  # Table 12
    balance_weight=0.0,  # no balance loss
    expert_weights=(),  # no balance loss
)


def macs(row: Row, line: Mapping[str, Any], size: tuple[int, int], counted: Callable[[], int]) -> tuple[float, str]:
    """A route's multiply-adds, and a note that names the route and gives the range over all of them.

    The route is one that uses all ranks alike, as nearly as can be, if its count rounds to the printed one, else the
    one whose count is nearest to print.
    """
    config, digit = row.config, Decimal(line["value"])
    unit = {"G": 10**9}[line["unit"]]
    printed, half = int(digit * unit), Decimal(1).scaleb(int(digit.as_tuple().exponent)) * unit / 2
    by_ranks = macs_by_ranks(config, size, counted())
    if len(by_ranks) == 1:
        return counted(), ""
    alike = config.groups * config.top_k * sum(config.ranks) / config.experts
    ranks = min(by_ranks, key=lambda ranks: (abs(ranks - alike), ranks))
    if abs(by_ranks[ranks] - printed) > half:
        ranks = min(by_ranks, key=lambda ranks: abs(by_ranks[ranks] - printed))
    least, most = (f"{limit(by_ranks.values()) / 1e9:.2f}" for limit in (min, max))
    which = "all ranks alike" if abs(ranks - alike) < 1 else "not all alike"
    return by_ranks[ranks], f"{least} to {most} G over all routes; here: ranks that add up to {ranks}, {which}"


def macs_by_ranks(config: SeemoReConfig, size: tuple[int, int], counted: int) -> dict[int, int]:
    """Sum of the ranks of the experts on a route -> the multiply-adds of an LR image of ``size`` (height, width).

    An expert of rank R costs 3 C R multiply-adds a pixel: two convolutions from C channels to R, one back. ``counted``
    is what ``complexity.count`` finds in training mode, where every expert is computed.
    """
    if config.rme == "plain":
        return {0: counted}
    rank = 3 * config.channels * size[0] * size[1]
    sums = {0}
    for _ in range(config.groups):
        sums = {before + sum(chosen) for before in sums for chosen in combinations(config.ranks, config.top_k)}
    return {ranks: counted - rank * (config.groups * sum(config.ranks) - ranks) for ranks in sorted(sums)}


TINY, BASE, LARGE = (replace(CONFIGS[f"seemore-{size}"], scale=2) for size in "tbl")  # x2, at which all ablations are
WIDE = replace(TINY, groups=5, channels=48)  # Appendix A, for Table 7
row = partial(Row, model="seemore-t")
tiny = partial(row, "SeemoRe-T")
ablation = partial(replace, TINY)

ROWS = {
    "1": tuple(
        one
        for scale in (2, 3, 4)
        for one in (
            Row("SAFMN", replace(SAFMN["safmn"], scale=scale), "safmn"),
            row("SeemoRe-T (ours)", ablation(scale=scale)),
        )
    ),
    "2": tuple(Row("SeemoRe-L (ours)", replace(LARGE, scale=scale), "seemore-l") for scale in (2, 4)),
    "3b": (tiny(TINY),),
    "4a": (
        row("Baseline", ablation(rme="plain", sme="plain")),
        tiny(ablation(sme="plain"), variant="RME=1;SME=0"),
        tiny(ablation(rme="plain"), variant="RME=0;SME=1"),
        tiny(TINY, variant="RME=1;SME=1"),
    ),
    "4b": (
        tiny(ablation(order="spatial-rank"), variant="macro_expert_order=Spatial-Rank"),
        tiny(TINY, variant="macro_expert_order=Rank-Spatial"),
    ),
    "4c": tuple(tiny(ablation(kernel=kernel), variant=f"kernel={kernel}") for kernel in (3, 7, 11)),
    "5a": (
        tiny(ablation(growth="i+2", experts=6), variant="growth=i+2;experts=6;ranks=2,3,4,5,6,7"),
        tiny(ablation(growth="2*i+2", experts=4), variant="growth=2*i+2;experts=4;ranks=2,4,6,8"),
        tiny(ablation(experts=4), variant="growth=2^i;experts=4;ranks=2,4,8,16"),
        tiny(TINY, variant="growth=2^i;experts=3;ranks=2,4,8"),
        tiny(ablation(experts=2), variant="growth=2^i;experts=2;ranks=2,4"),
        tiny(ablation(experts=1), variant="growth=2^i;experts=1;ranks=2"),
    ),
    "5b": tuple(tiny(ablation(recursion=t), variant=f"recursive_steps={t}") for t in (1, 2, 3)),
    "7": (
        row("Baseline*", replace(WIDE, rme="plain", sme="plain")),
        tiny(replace(WIDE, sme="none", experts=4), variant="RME=1;SME=0"),
        tiny(replace(WIDE, rme="plain", sme="striped"), variant="RME=0;SME=1"),
        tiny(TINY, variant="RME=1;SME=1"),
    ),
    "8": (Row("SeemoRe-L (ours)", replace(LARGE, scale=3), "seemore-l"),),
    "9": tuple(row(f"k = {k}", ablation(top_k=k)) for k in (1, 2, 3)),
    "10": (
        row("FusedMB", ablation(sme="fused_mb")),
        row("C2F", ablation(sme="conv2former")),
        row("SEE (ours)", TINY),
    ),
    "11": (
        tiny(ablation(residual="none"), variant="residual=No aggregation"),
        tiny(ablation(residual="aggregation"), variant="residual=Aggregation output"),
        tiny(TINY, variant="residual=DConv output"),
    ),
    "12": tuple(tiny(TINY, variant=f"L1=1.0;FFT={weight}", train={"fft_weight": weight}) for weight in (0.0, 0.1, 0.2)),
    "13": (tiny(TINY), Row("SeemoRe-B", BASE, "seemore-b"), Row("SeemoRe-L", LARGE, "seemore-l")),
    "14": (
        tiny(ablation(growth="2*i+2", experts=8), variant="growth=2*i+2;experts=8"),
        tiny(ablation(experts=4), variant="growth=2^i;experts=4"),
        tiny(TINY, variant="growth=2^i;experts=3"),
    ),
}

PAPER = Paper(
    slug="seemore",
    name="SeemoRe",
    title="See More Details: Efficient Image Super-Resolution by Experts Mining",
    citation="zamfir2024seemore",
    venue="ICML 2024",
    order=2,
    colour="#b23f18",
    marker="s",
    main="seemore-t",
    titles={"seemore-t": "SeemoRe-T", "seemore-b": "SeemoRe-B", "seemore-l": "SeemoRe-L"},
    recipes={
        "seemore-t": Recipe(TRAIN, PROTOCOL, smoke={"steps": 650}),
        "seemore-b": Recipe(TRAIN, PROTOCOL),
        "seemore-l": Recipe(TRAIN, PROTOCOL_L),
    },
    rows=ROWS,
    baselines={
        "4a": "Baseline",
        "4b": "SeemoRe-T (macro_expert_order=Rank-Spatial)",
        "4c": "SeemoRe-T (kernel=11)",
        "5a": "SeemoRe-T (growth=2^i;experts=3;ranks=2,4,8)",
        "5b": "SeemoRe-T (recursive_steps=2)",
        "7": "Baseline*",
        "9": "k = 1",
        "10": "SEE (ours)",
        "11": "SeemoRe-T (residual=DConv output)",
        "12": "SeemoRe-T (L1=1.0;FFT=0.1)",
        "14": "SeemoRe-T (growth=2^i;experts=3)",
    },
    peer_tables=("1", "2", "3a", "3b", "8"),
    own_rows=r"^SeemoRe",
    train_data="DF2K",
    hardware="RTX 4090",
    protocols=(PROTOCOL, PROTOCOL_L),
    not_run={"15": "needs RealSRSet, DIV2K type I and II, and a fine-tuning on DF2K_OST"},
    macs=macs,
)
