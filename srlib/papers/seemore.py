"""SeemoRe (Zamfir et al., ICML 2024): its recipe, its evaluation, and how its multiply-adds are counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from srlib.data import Store
from srlib.metrics import Protocol
from srlib.models.seemore import LowRankMixture, SeemoRe, SeemoReConfig
from srlib.papers import Paper, Recipe, Row, decimals
from srlib.train import TrainConfig

PROTOCOL = Protocol(
    name="seemore",
    about="SeemoRe says only: Y channel. Its release is built on BasicSR: output clamped and rounded to 8 bits, luma"
    " not rounded; the released test settings of T and B cut a border of scale pixels.",
)
ABOUT_L = "As seemore, but the released x4 test settings of SeemoRe-L cut a border of 3 pixels."
PROTOCOL_L = replace(PROTOCOL, name="seemore-l", about=ABOUT_L, border_at=((4, 3),))

# srlib train seemore-t --scale 4 --data DF2K --budget paper
# Printed for T at x4: 32.31 dB on Set5 (Table 1). 1/25 of the steps with half the batch and half the patch take 87
# minutes on two CPU cores, and give 31.57 dB. The release trains T at x4 from the weights of x3; ours starts afresh.
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
)
# What differs in a training that goes on from x4 for real-world images. The paper names no learning rate for it
REAL_WORLD: dict[str, Any] = {
    "steps": 250_000,  # Appendix B.2
    "milestones": tuple(step // 2 for step in TRAIN.milestones),  # ours: at the same fractions
    "fft_weight": 0.0,  # Appendix B.2: the L1 loss alone
    "degradation": "real-esrgan",  # Appendix B.2
}


def macs(row: Row, line: Mapping[Any, Any], size: tuple[int, int], counted: Callable[[], int]) -> tuple[float, str]:
    """A route's multiply-adds, and a note that names the route and gives the range over all of them.

    The route is one that uses all ranks alike, as nearly as can be, if its count rounds to the printed one, else the
    one whose count is nearest to print.
    """
    by_ranks, config = macs_by_ranks(row.config, size, counted()), row.config
    if len(by_ranks) == 1:
        return counted(), ""
    printed, digits = float(line["printed"]), decimals(line["printed"])  # in G
    alike = config.groups * config.top_k * sum(config.ranks) / config.experts
    ranks = min(by_ranks, key=lambda ranks: (abs(ranks - alike), ranks))
    if round(by_ranks[ranks] / 1e9, digits) != printed:
        ranks = min(by_ranks, key=lambda ranks: abs(by_ranks[ranks] / 1e9 - printed))
    least, most = (limit(by_ranks.values()) / 1e9 for limit in (min, max))
    which = "as if all were used alike" if abs(ranks - alike) < 1 else "not all used alike"
    return by_ranks[ranks], f"{least:.2f} to {most:.2f} G over all routes; here: ranks that add up to {ranks}, {which}"


def macs_by_ranks(config: SeemoReConfig, size: tuple[int, int], counted: int) -> dict[int, int]:
    """Sum of the ranks of the experts on a route -> the multiply-adds of an LR image of ``size`` (height, width).

    An expert of rank R costs 3 C R multiply-adds a pixel: two convolutions from C channels to R, one back. ``counted``
    is what ``complexity.count`` finds in training mode, where every expert is computed.
    """
    if config.rme == "plain":
        return {0: counted}
    sums = {0}
    for _ in range(config.groups):
        sums = {before + sum(chosen) for before in sums for chosen in combinations(config.ranks, config.top_k)}
    rank, every = 3 * config.channels * size[0] * size[1], config.groups * sum(config.ranks)
    return {ranks: counted - rank * (every - ranks) for ranks in sorted(sums)}


def router_weights(network: SeemoRe) -> dict[str, Tensor]:
    """The softmax of each group's router (Equation 3), (patches, experts), by the name "group 1", on all patches of
    48x48 of the photographs' LR images, MATLAB's bicubic at the network's scale; empty for one without MoRE."""
    mixtures = [module for module in network.modules() if isinstance(module, LowRankMixture)]
    if not mixtures:
        return {}
    found: dict[str, list[Tensor]] = {f"group {i}": [] for i in range(1, len(mixtures) + 1)}
    patches: list[Tensor] = []
    for store in (Store.open("photos/held-out"), Store.open("photos/train")):
        for i in range(len(store)):
            lr = store.lr(i, network.config.scale)
            patches += lr.unfold(1, 48, 48).unfold(2, 48, 48).permute(1, 2, 0, 3, 4).flatten(0, 1).unbind()
    with ExitStack() as hooks, torch.inference_mode():
        for mixture, seen in zip(mixtures, found.values(), strict=True):
            keep = lambda module, given, scores, seen=seen: seen.append(scores.softmax(1))  # noqa: E731
            hooks.enter_context(mixture.gate.body.register_forward_hook(keep))
        for batch in torch.stack(patches).split(16):
            network(batch / 255)
    return {group: torch.cat(weights) for group, weights in found.items()}


def routing(network: SeemoRe) -> pd.DataFrame:
    """Which share of the patches each group's router sends to each expert (Figure 5a), one a line: place (the group),
    part ("patches"), expert, share."""
    lines = []
    for group, weights in router_weights(network).items():
        shares = weights.argmax(1).bincount(minlength=len(network.config.ranks)) / len(weights)
        experts = (f"rank {rank}" for rank in network.config.ranks)
        lines += [(group, "patches", *each) for each in zip(experts, shares.tolist(), strict=True)]
    return pd.DataFrame(lines, columns=["place", "part", "expert", "share"])


PAPER = Paper(
    slug="seemore",
    name="SeemoRe",
    title="See More Details: Efficient Image Super-Resolution by Experts Mining",
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
    peer_tables=("1", "2", "3a", "3b", "8"),
    own_rows=r"^SeemoRe",
    not_run={"15": "needs RealSRSet, DIV2K type I and II, and a fine-tuning on DF2K_OST"},
    macs=macs,
    routing=routing,
)
