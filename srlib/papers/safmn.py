"""SAFMN's tables (Sun et al., ICCV 2023): which configuration each printed row is, and what has to be explained.

The printed numbers lie in data/safmn_table1.csv to safmn_table5.csv, the settings in data/safmn_settings.csv.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from srlib.errors import InputError
from srlib.papers import Explanation, Row, difference

if TYPE_CHECKING:
    from srlib.complexity import OperatorTime
    from srlib.models.safmn import SAFMNConfig

OURS = ("SAFMN (Ours)", "SAFMN")
PROTOCOLS = {"safmn": "safmn"}  # the paper's networks, and how their rows were scored
BICUBIC_PROTOCOL = "matlab-luma"  # how the bicubic rows that papers copy from one another were scored
TRAIN = {"lr": 1e-3}  # the paper's usual value of each setting of the training that some row changes
TABLE5_OPERATORS = {  # Table 5's operations -> torch's operators, as torch.profiler names them; none calls another
    "LayerNorm": "aten::layer_norm",
    "Channel Splitting": "aten::chunk",
    "Adaptive MaxPool": "aten::adaptive_max_pool2d",
    "Nearest Interpolation": "aten::upsample_nearest2d",
    "Element-wise Product": "aten::mul",
    "Element-wise Addition": "aten::add",
}


def table5_times(times: Mapping[str, OperatorTime]) -> dict[str, float]:
    """Microseconds that each of Table 5's operations took, in the paper's order.

    ``times`` are those of ``complexity.operator_times`` for one layer norm, SAFM and the sum with the input, called
    one after the other (FMM itself works in strips on a CPU). An operation's time includes all that it calls: layer
    norm the fused kernel, pooling the copies that it needs. Splitting makes views, so it costs only the calls, which a
    GPU's figure, time in kernels, shows as 0. Raises ``InputError`` if an operation didn't run.
    """
    missing = [label for label, operator in TABLE5_OPERATORS.items() if operator not in times]
    if missing:
        raise InputError(
            f"the profile lacks {', '.join(missing)}; profile a layer norm, SAFM and the sum with the input"
        )
    return {label: 1e6 * times[operator].total for label, operator in TABLE5_OPERATORS.items()}


def rows() -> dict[int, tuple[Row, ...]]:
    """Table number -> the rows that are configurations of SAFMN, in the paper's order (imports torch)."""
    from srlib.models.safmn import SAFMNConfig

    base, row = SAFMNConfig(), partial(Row, model="safmn")
    return {
        1: (
            row("SAFMN (Ours)", replace(base, scale=2)),
            row("SAFMN (Ours)", replace(base, scale=3)),
            row("SAFMN (Ours)", replace(base, scale=4)),
        ),
        3: (
            row("Baseline", base),
            row("SAFM -> None", replace(base, safm="none")),
            row("CCM -> None", replace(base, ccm="none")),
            row("(a): w/o FM", replace(base, modulation=False)),
            row("(b): w/o MR", replace(base, multi_scale=False)),
            row("(c): w/o FA", replace(base, aggregation=False)),
            row("(a) + (b)", replace(base, modulation=False, multi_scale=False)),
            row("(a) + (c)", replace(base, modulation=False, aggregation=False)),
            row("(a) + (b) + (c)", replace(base, modulation=False, multi_scale=False, aggregation=False)),
            row("AdaptiveMaxPool -> AdaptiveAvgPool", replace(base, pooling="average")),
            row("AdaptiveMaxPool -> Nearest interpolate", replace(base, pooling="nearest")),
            row("GELU -> None", replace(base, gate="none")),
            row("GELU -> Sigmoid", replace(base, gate="sigmoid")),
            row("w/ SE", replace(base, ccm="se")),
            row("CCM -> Channel MLP", replace(base, ccm="channel_mlp")),
            row("CCM -> Inverted residual block", replace(base, ccm="inverted_residual")),
            row("LN -> None, lr=1x10^-3 *", replace(base, norm="none"), train={"lr": 1e-3}),
            row("LN -> None, lr=1x10^-4", replace(base, norm="none"), train={"lr": 1e-4}),
            row("LN -> BN", replace(base, norm="batch")),
            row("LN -> FBN*", replace(base, norm="frozen_batch")),
            row("LN -> L2 normalization", replace(base, norm="l2")),
        ),
        4: (
            row("#N = 4", replace(base, blocks=4)),
            row("#N = 6", replace(base, blocks=6)),
            row("#N = 8", replace(base, blocks=8)),
            row("#N = 12", replace(base, blocks=12)),
        ),
    }


def macs(config: SAFMNConfig, lr_size: tuple[int, int], counted: int, printed: Decimal) -> tuple[Decimal, str]:
    """A row's multiply-adds beside the printed ones, and a note: as counted, since every image costs the same."""
    return Decimal(counted), ""


def not_run(number: int | str, row: str, dataset: str, metric: str) -> str:
    """Why a printed cell has no number of ours."""
    if number == 1 and row == "Bicubic":
        return f"needs a record of {dataset}, made by: srlib evaluate bicubic --luma --data {dataset}"
    if number in (1, 2) and row not in OURS:
        return "peer, as printed"
    if metric in ("time", "gpu_memory", "runtime"):
        return "needs the paper's RTX 3090 (the page has its own measurement)"
    if metric in ("psnr", "ssim"):
        return "not run at the paper's budget (500,000 steps on DF2K)"
    return "not counted in this call"


WHOLE_MILLIONS = "The figure of fvcore's flop_count_table, three decimals, turned into millions."
ROUNDED_TWICE = Explanation(
    table=3,
    rows=("Baseline", "(a): w/o FM", "GELU -> None", "GELU -> Sigmoid"),
    scale=4,
    metric="flops",
    text="Printed a hundredth too high. Perhaps rounded twice: fvcore's flop_count_table shows 13.555G. A guess, as "
    "the rows without layer norm have the same count and are printed as 13.55.",
    evidence="58 convolutions make 13,542,474,240 multiply-adds and 24 nearest upsamplings 12,441,600: 13.5549G. "
    "flop_count_str, which the paper names, shows 13.55G.",
)

SET14 = Explanation(
    table=1,
    rows=("Bicubic",),
    scale=4,
    metric="ssim",
    dataset="Set14",
    text="The printed SSIM seems to be taken over whole images, without cutting the border that PSNR leaves out.",
    evidence="Without cutting a border, bicubic on the luma of Set14 is within 0.0001 of the printed SSIM at x2, "
    "x3 and x4; with it, it is up to 0.0008 lower. PSNR with the border cut is met to 0.01 dB.",
)

EXPLANATIONS = (
    SET14,
    ROUNDED_TWICE,
    replace(ROUNDED_TWICE, table=4, rows=("#N = 8",)),
    Explanation(
        table=3,
        rows=("AdaptiveMaxPool -> AdaptiveAvgPool",),
        scale=4,
        metric="flops",
        text="Perhaps truncated, or the baseline's figure; a guess. Average pooling counts one a value read, max "
        "pooling nothing.",
        evidence="The baseline's 13,554,915,840 and 24 poolings of 9 x 57,600 values, 12,441,600: 13.5674G.",
    ),
    Explanation(
        table=3,
        rows=("SAFM -> None",),
        scale=4,
        metric="acts",
        text="Printed a hundredth too high. Probably rounded twice: fvcore's flop_count_table shows 54.605M.",
        evidence="Convolutions put out 36 + 8 x (72 + 36) + 48 = 948 values a pixel; 948 x 57,600 is 54,604,800. The "
        "row's parameters and FLOPs are met. flop_count_str shows 54.6M.",
    ),
    Explanation(
        table=3,
        rows=("CCM -> Inverted residual block",),
        scale=4,
        metric="acts",
        text=f"{WHOLE_MILLIONS} Above 100 million it changes to G: 0.11G, so 110.00M.",
        evidence="The baseline's 76,700,160 and 8 x 72 x 57,600 of the depth-wise convolutions: 109,877,760. Section 5 "
        "says that the activations rise by nearly 33M: they rise by 33.18M. 245.28K and 13.85G are met.",
    ),
    Explanation(
        table=4,
        rows=("#N = 6",),
        scale=4,
        metric="acts",
        text="Perhaps a misprint of 58.74, which is flop_count_table's 58.735M rounded once more; a guess.",
        evidence="Activations are linear in N. N = 4 and N = 8 are met, 40.77 and 76.70, and N = 6 is halfway: "
        "58,734,720, which flop_count_str shows as 58.73M.",
    ),
    Explanation(
        table=4,
        rows=("#N = 12",),
        scale=4,
        metric="params",
        text="Perhaps truncated: 350,976 parameters are 350.98K. A guess, as other parameters are rounded.",
        evidence="Parameters are linear in N, 27,864 a block. N = 4, 6 and 8 are met; 183,792 and 239,520 don't tell "
        "the two apart, but w/ SE, 260,976, is printed as 260.98K.",
    ),
    Explanation(
        table=4,
        rows=("#N = 12",),
        scale=4,
        metric="acts",
        text=f"{WHOLE_MILLIONS} Above 100 million it changes to G: 0.113G, so 113.00M.",
        evidence="Activations are linear in N. N = 4 and N = 8 are met, 40.77 and 76.70, and N = 12 is as far again: "
        "112,631,040. flop_count_str shows 0.11G, which would be 110.00M.",
    ),
)

DIFFERENCES = (
    difference(
        "release", "Weight of the frequency loss", "not stated (the same as ShuffleMixer)", "0.05",
        "The paper gives no weight. The release adds 0.05 times the L1 distance of the real and imaginary parts of "
        "rfft2 to the L1 loss.",
        "Section 4.1; the released training settings.",
    ),
    difference(
        "release", "Moving average of the weights", "not stated", "decay 0.999",
        "What the release evaluates is an exponential moving average of the weights.",
        "Section 4.1 doesn't mention it; the released settings and weights (params_ema) have it.",
    ),
    difference(
        "release", "Global residual", "a global residual connection to learn high-frequency details",
        "from the first convolution's features to the last FMM's",
        "The skip joins features. No enlarged input is added to the output image.",
        "Section 3; outputs of the release are met to 1e-5 without an image-space skip.",
    ),
    difference(
        "release", "Epsilon of layer norm", "not stated", "1e-6",
        "Layer norm is over the channels of each pixel, with eps 1e-6 (torch's default is 1e-5).",
        "Outputs of the release are met to 1e-5.",
    ),
    difference(
        "release", "Cosine schedule", "cosine annealing, 1e-3 to 1e-5, 500,000 iterations", "one cosine, no restarts",
        "The paper cites warm restarts (SGDR); the release anneals once over all iterations.",
        "Section 4.1; the released training settings.",
    ),
    difference(
        "release", "Layer norm's FLOPs", "13.56G with layer norm, 13.72G with batch norm",
        "layer norm not counted, batch norm counted",
        "The release writes layer norm out by hand, where fvcore sees sums and products and counts nothing. Ours is "
        "one fused operator, which is left out of the count.",
        "Counted with fvcore's five operations a value, layer norm would give 13.72G for the baseline too.",
        table=3,
    ),
    difference(
        "choice", "Mode that is counted", "13.72G for LN -> BN", "training mode",
        "fvcore counts batch norm with five operations a value in training mode and with two in evaluation mode. Only "
        "the first gives the printed figure, so everything is counted in training mode; no other row depends on it.",
        "16 norms x 36 x 57,600 values x 5 = 165,888,000, which makes 13.72G; x 2 would make 13.62G.",
        table=3,
    ),
    difference(
        "choice", "(a): w/o FM", "without feature modulation", "the product with the input is dropped, GELU stays",
        "The paper doesn't say what stands in for the product. Ours passes the activated map on; the printed counts "
        "can't tell it from an output without GELU or with a sum, since none of them counts.",
        "Same parameters, FLOPs and activations as the baseline's, as printed.",
        table=3,
    ),
    difference(
        "choice", "(b): w/o MR", "one depth-wise convolution, no multi-scale features",
        "four depth-wise convolutions, one a group, all at full size",
        "Four groups of 9 channels at full size compute what one depth-wise convolution of 36 channels computes.",
        "13.64G and 87.78M are met: no upsampling counts, and each group puts out its full size.",
        table=3,
    ),
    difference(
        "choice", "SAFM -> None, CCM -> None", "the module is removed", "its norm is removed with it",
        "Whether the norm in front of a removed module stays isn't said.",
        "225.41K and 30.72K are met only without it: each of the 8 norms has 72 parameters, 0.58K in all.",
        table=3,
    ),
    difference(
        "choice", "w/ SE", "squeeze-and-excitation, no details", "on the 72 hidden channels, squeezed to 18",
        "Where the block sits, its ratio and its biases are found from the counts.",
        "260.98K is met: 8 x (72 x 18 + 18 + 18 x 72 + 72) more parameters. 13.59G is met by counting the global "
        "average pooling, 8 x 72 x 57,600.",
        table=3,
    ),
    difference(
        "choice", "CCM -> Channel MLP", "channel MLP, no details", "the 3x3 convolution becomes 1x1",
        "The expansion stays two-fold.",
        "73.63K, 4.00G and 76.70M are met.",
        table=3,
    ),
    difference(
        "choice", "CCM -> Inverted residual block", "an inverted residual block (MobileNetV2)",
        "3x3 to 72 channels, depth-wise 3x3, 1x1 back",
        "MobileNetV2 expands with a 1x1 convolution. The printed counts need the expansion to stay 3x3.",
        "245.28K is met: the depth-wise convolutions add 8 x 72 x (9 + 1) = 5,760. With a 1x1 expansion it would be "
        "79.39K.",
        table=3,
    ),
    difference(
        "choice", "LN -> FBN*", "frozen batch norm", "identity statistics, nothing learnt",
        "A network trained from scratch has no statistics to freeze. Ours freezes mean 0, variance 1, weight 1 and "
        "bias 0, written as a product and a sum.",
        "238.37K is met only without learnt parameters, 13.55G only if it counts nothing.",
        table=3,
    ),
)
