"""SeemoRe's tables (Zamfir et al., ICML 2024): which configuration each printed row is, and what has to be explained.

The printed numbers lie in data/seemore_table1.csv to seemore_table15.csv, the settings in data/seemore_settings.csv.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from srlib.papers import Explanation, Row, difference
from srlib.papers.safmn import SET14

if TYPE_CHECKING:
    from srlib.models.seemore import SeemoReConfig

PROTOCOLS = {  # the paper's networks, and how their rows were scored
    "seemore-t": "seemore",
    "seemore-b": "seemore",
    "seemore-l": "seemore-l",
}
BICUBIC_PROTOCOL = "matlab-luma"  # how the bicubic rows that papers copy from one another were scored
TRAIN = {"fft_weight": 0.1}  # the paper's usual value of each setting of the training that some row changes
PEERS = (1, 2, "3a", "3b", 8)  # the tables that hold other papers' networks


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
            again(replace(wide, sme="none", experts=4), variant="RME=1;SME=0"),
            again(replace(wide, rme="plain", sme="striped"), variant="RME=0;SME=1"),
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


def route_macs(config: SeemoReConfig, lr_size: tuple[int, int]) -> tuple[int, int]:
    """The least and the most multiply-adds that an image of ``lr_size`` (height, width) can take, over all routes."""
    macs = macs_by_ranks(config, lr_size).values()
    return min(macs), max(macs)


def macs(config: SeemoReConfig, lr_size: tuple[int, int], counted: int, printed: Decimal) -> tuple[Decimal, str]:
    """A route's multiply-adds, and a note that names the route and gives the range over all of them.

    The route is one that uses all ranks alike, as nearly as can be, if its count rounds to the printed one (exact, its
    last digit the last that is printed), else the one whose count is nearest to print. ``counted`` is what
    ``complexity.count`` finds in training mode, where every expert is computed.
    """
    by_ranks = macs_by_ranks(config, lr_size, counted)
    if len(by_ranks) == 1:
        return Decimal(*by_ranks.values()), ""
    alike = config.groups * config.top_k * sum(config.ranks) / config.experts
    ranks = min(by_ranks, key=lambda ranks: (abs(ranks - alike), ranks))
    if abs(by_ranks[ranks] - printed) > Decimal(1).scaleb(printed.as_tuple().exponent) / 2:
        ranks = min(by_ranks, key=lambda ranks: abs(by_ranks[ranks] - printed))
    least, most = (f"{limit(by_ranks.values()) / 1e9:.2f}" for limit in (min, max))
    which = "all ranks alike" if abs(ranks - alike) < 1 else "not all alike"
    return Decimal(by_ranks[ranks]), f"{least} to {most} G over all routes; here: ranks that add up to {ranks}, {which}"


def macs_by_ranks(config: SeemoReConfig, lr_size: tuple[int, int], counted: int | None = None) -> dict[int, int]:
    """Sum of the ranks of the experts on a route -> the multiply-adds of an image of ``lr_size`` (height, width).

    An expert of rank R costs 3 C R multiply-adds a pixel: two convolutions from C channels to R, one back. ``counted``
    is what ``complexity.count`` finds in training mode, where every expert is computed; None counts it now.
    """
    if counted is None:
        from srlib.complexity import count
        from srlib.models.seemore import SeemoRe

        counted = count(SeemoRe(config), lr_size).macs
    if config.rme == "plain":
        return {0: counted}
    height, width = lr_size
    rank = 3 * config.channels * height * width
    sums = {0}
    for _ in range(config.groups):
        sums = {before + sum(chosen) for before in sums for chosen in combinations(config.ranks, config.top_k)}
    return {ranks: counted - rank * (config.groups * sum(config.ranks) - ranks) for ranks in sorted(sums)}


def not_run(number: int | str, row: str, dataset: str, metric: str) -> str:
    """Why a printed cell has no number of ours."""
    if number == 15:
        return "needs RealSRSet, DIV2K type I and II, and a fine-tuning on DF2K_OST"
    if row == "Bicubic":
        return f"needs a record of {dataset}, made by: srlib evaluate bicubic --luma --data {dataset}"
    if number in PEERS and not row.startswith("SeemoRe"):
        return "peer, as printed"
    if metric in ("time", "gpu_memory"):
        return "needs the paper's RTX 4090 (the page has its own measurement)"
    if metric in ("psnr", "ssim"):
        return "not run at the paper's budget (500,000 steps on DF2K)"
    return "not counted in this call"


LARGE = Explanation(
    table=2,
    rows=("SeemoRe-L (ours)",),
    scale=2,
    metric="params",
    text="The number of another network than the released one, whose counts at x3 and x4 are printed. A guess: counted "
    "without the two 3x3 convolutions around the body, which have 22,128 parameters and would leave 931,180.",
    evidence="Scales differ in the upsampler alone, by 433 parameters for each of 3 s^2 channels: 968,896 at x4 less "
    "36 x 433 is 953,308. The 197 G are met by some routes (195.53 to 198.71), but not without those convolutions, "
    "which take 5.08 G. With 16 groups of 48 channels, no growth, number of experts and kernel meets 931K and 197 G.",
)
LARGE_X3 = Explanation(
    table=8,
    rows=("SeemoRe-L (ours)",),
    scale=3,
    metric="params",
    text="Truncated: 959,803 parameters are 959.80K.",
    evidence="The row's multiply-adds are truncated too. At x4, 968,896 is printed as 969K.",
)
C2F = Explanation(
    table=10,
    rows=("C2F",),
    scale=2,
    metric="params",
    text="Not met by Conv2Former's kernel, a full 11x11, which the text takes for granted where it compares it with "
    "SEE's stripes. Perhaps a smaller kernel was trained, or the counts are SEE's own; a guess.",
    evidence="A full 11x11 depth-wise convolution has 3,528 parameters more than SEE's two stripes in each of the 6 "
    "groups: 241,272 and 49.26 to 50.15 G. A 5x5 gives 220,536 and 44.48 to 45.37 G; a 7x7 225,720 and 45.67 to "
    "46.57 G: none meets both numbers. SEE has 220,104 and 44.33 to 45.22 G, with all experts 46.12 G.",
)

EXPLANATIONS = (
    SET14,
    replace(SET14, table=2),
    LARGE,
    replace(LARGE, table=13, rows=("SeemoRe-L",)),
    LARGE_X3,
    replace(
        LARGE_X3,
        metric="macs",
        text="Truncated: the cheapest route, rank 2 in every group, takes 87.63 G.",
        evidence="Dense 90.46 G, of which experts of 16 x 14 ranks take 3.31 G and those of 16 x 2 ranks 0.47 G. The "
        "row's parameters are truncated too.",
    ),
    Explanation(
        table="4c",
        rows=("SeemoRe-T (kernel=7)",),
        scale=2,
        metric="params",
        text="Probably a misprint of 218.",
        evidence="Parameters are linear in the kernel's side, 6 x 2 x 36 a step. The rows of 3 and 11 are met, 216,648 "
        "and 220,104; 7 is halfway: 218,376.",
    ),
    Explanation(
        table="5a",
        rows=("SeemoRe-T (growth=i+2;experts=6;ranks=2,3,4,5,6,7)",),
        scale=2,
        metric="params",
        text="Truncated: 229,980 parameters are 229.98K.",
        evidence="An expert of rank R has 110 R + 36 parameters and 36 in the router; ranks 2 to 7 add 13 ranks and 3 "
        "experts to the released ones: 220,104 + 6 x (13 x 110 + 3 x 72). All other rows of Table 5a come out the same "
        "truncated as rounded.",
    ),
    Explanation(
        table=7,
        rows=("SeemoRe-T (RME=0;SME=1)",),
        scale=2,
        metric="macs",
        text="Perhaps truncated. The row's network is a guess, which the parameters, 237.90K, speak for.",
        evidence="The baseline's 52.39 G, and 22 x 48 multiply-adds for each of 230,400 pixels in 5 groups: 53.60 G.",
    ),
    C2F,
    replace(C2F, metric="macs"),
)

DIFFERENCES = (
    difference(
        "print", "Ranks of the experts", "Algorithm 1: 2^(i+1), so 4, 8, 16; Section 5 and Table 5a: 2^i, so 2, 4, 8",
        "2, 4, 8",
        "The algorithm counts i from 1, as the text does, and is one power too high.",
        "220K at x2 is met by 2, 4, 8; 4, 8, 16 would give 229,344. The released weights have 2, 4, 8.",
        table="5a",
    ),
    difference(
        "print", "Scales of Tables 2 and 3b", "x3 beside rows of x2", "x2",
        "The first half of Table 2 and Table 3b are labelled x3. Their numbers are those of x2; x3 is in Table 8.",
        "The bicubic rows are Table 1's at x2, and the row of SeemoRe-T is its row at x2.",
    ),
    difference(
        "print", "Three recursive steps", "31.04 and 38.13 dB, 1.2 and 0.9 dB below two steps", "as printed",
        "Bicubic interpolation alone gives 26.88 dB on Urban100, so it is no collapse; one and two steps are within "
        "0.12 dB. A run that went wrong, or misprints; a guess. The network differs by no parameter.",
        "The recursion applies one convolution again: 220,104 parameters for t = 1, 2 and 3.",
        table="5b",
    ),
    difference(
        "print", "Gains of RME and SME in Section 4.3", "0.26, 0.32, 0.49 and 0.38 dB, with Table 4a", "Table 7's",
        "The gains that the text quotes beside Table 4a are those over Table 7's baseline.",
        "Table 7: 31.99 - 31.73, 32.05 - 31.73, 32.22 - 31.73, 39.01 - 38.63. Table 4a: 0.35, 0.36, 0.61, 0.46.",
        table="4a",
    ),
    difference(
        "print", "Gain over SAFMN in Section 4.1", "0.41 dB on Urban100 at x2", "0.38 dB by Table 1",
        "The text's 0.30 dB on Manga109 is Table 1's.",
        "Table 1: 32.22 - 31.84 and 39.01 - 38.71.",
        table=1,
    ),
    difference(
        "print", "Table 6", "SFM kernel size 11; LR-rate 1e.3", "the kernel of SEE; 1e-3",
        "The paper has no SFM. The learning rate lost its sign.",
        "Section 4: the kernel size in SEE is 11x11, the initial learning rate 1e-3.",
    ),
    difference(
        "release", "Mean shift", "not stated", "the RGB mean (0.4488, 0.4371, 0.4040) is taken off and added again",
        "The release works on images around their mean.",
        "Outputs of the release are met to 1e-5.",
    ),
    difference(
        "release", "End of the body", "residual groups, then the global residual", "layer norm and 3x3 between them",
        "A layer norm and a 3x3 convolution close the body before the shallow features are added.",
        "220K is met with them: they have 11,772 parameters.",
    ),
    difference(
        "release", "Projection of MoRE", "a 3x3 convolution, then split", "3x3, GELU, 1x1 to 2C, then split",
        "A 1x1 convolution makes the two views, and another one closes the block.",
        "220K is met with both; outputs of the release are met to 1e-5.",
    ),
    difference(
        "release", "Channel shuffle", "not stated", "T and B shuffle, L doesn't",
        "The release shuffles the 2C channels in two groups before the split, in T and B alone.",
        "Outputs of T are met to 1e-5 with it; L's released settings switch it off. No count depends on it.",
    ),
    difference(
        "release", "Context", "the enlarged pyramid is x_b's successor (Equation 2)", "added to x_b",
        "The release adds the enlarged context to x_b, and gives the experts the sum.",
        "Outputs of the release are met to 1e-5.",
    ),
    difference(
        "release", "GatedFFN", "cited, not described", "1x1 to 2C, GELU, halves; 3x3 depth-wise gates; 1x1 and GELU",
        "One half, through a depth-wise 3x3 convolution, multiplies the other. GELU follows both 1x1 convolutions.",
        "Outputs of the release are met to 1e-5; 220K is met.",
    ),
    difference(
        "release", "Recursive convolution", "t depth-wise convolutions k x k of stride s; k and s not stated",
        "one 4x4 of stride 4 with GELU, applied t times",
        "The steps share one set of weights. The map is enlarged bilinearly, without aligned corners.",
        "T and B, t = 2, have the parameters of t = 1; 220K and 490K are met.",
    ),
    difference(
        "release", "Depth-wise convolution of x_a", "a parallel depth-wise convolution", "1x3, then 3x1, and GELU",
        "It is striped, as SEE's.",
        "Outputs of the release are met to 1e-5.",
    ),
    difference(
        "release", "Router", "a routing network G on x_a", "mean over the image, linear without bias, softmax",
        "It sees x_a after its depth-wise convolution, as Equation 4 says.",
        "Outputs of the release are met to 1e-5; 220K is met: 108 parameters a router.",
    ),
    difference(
        "release", "Weights of the chosen experts", "softmax, then top-k", "not renormalised",
        "The softmax values of the k chosen experts stay as they are: with k = 1 the expert's output is damped by its "
        "own probability, which gives the router its gradient.",
        "Algorithm 1, lines 4 to 6; outputs of the release are met to 1e-5.",
        table=9,
    ),
    difference(
        "release", "Inference with several images", "only the chosen expert is used", "each image takes its own route",
        "The release's inference path takes the route of one image, and fails for a larger batch. Ours groups images "
        "of the same route.",
        "Batches equal their images one by one to 1e-6, in training and in evaluation.",
    ),
    difference(
        "release", "SEE", "two projections of x_in (Equation 5)", "one 1x1 to 2C with GELU, split; a 1x1 closes it",
        "Equation 5 has neither the activation nor the closing convolution.",
        "220K is met with them; outputs of the release are met to 1e-5.",
    ),
    difference(
        "release", "Adam's betas", "not stated", "0.9 and 0.99",
        "The second is not torch's default, 0.999.",
        "The released training settings.",
    ),
    difference(
        "release", "Patches of 64x64", "of LR or HR images: not stated", "LR",
        "The release cuts LR patches of 64x64, and so HR patches of 64 times the scale.",
        "The released training settings.",
    ),
    difference(
        "release", "Border that PSNR leaves out", "not stated", "scale pixels; 3 for SeemoRe-L at x4",
        "L's released x4 settings crop 3 pixels, those of T and B 4.",
        "The released test settings.",
    ),
    difference(
        "release", "Start of SeemoRe-T at x4", "not stated", "fresh weights",
        "The release trains T at x4 from the weights of x3. Ours starts afresh.",
        "The released training settings.",
    ),
    difference(
        "release", "Moving average of the weights", "not stated", "none",
        "Unlike SAFMN's, the release evaluates the weights themselves.",
        "The released settings.",
    ),
    difference(
        "choice", "Multiply-adds and the route", "44.83, 45.22 and 46.12 G for k = 1, 2 and 3", "all ranks alike",
        "At inference the count depends on the experts that an image chooses. Ours is that of a route "
        "that uses all ranks alike, if it rounds to print, else the attainable count nearest to print; a cell's note "
        "names the route and gives the range over all of them.",
        "An expert of rank R takes 3 C R multiply-adds a pixel. The figures are those of ranks that add up to 32, 48 "
        "and 84 over the 6 groups; k = 1 can take 44.33 to 45.22 G, k = 2 44.93 to 45.82 G, k = 3 always 46.12 G.",
        table=9,
    ),
    difference(
        "choice", "Baseline of Table 4a", "convolutions of RME without MoRE; SME a point-wise convolution",
        "3x3, GELU and 1x1 for MoRE; one 1x1 for SEE",
        "GatedFFN, norms and skips stay. Section 4.3 speaks of depth-wise and point-wise convolutions alone, which "
        "the printed counts don't allow.",
        "All eight counts are met: 156.86K and 35.16 G, 198.94K and 39.65 to 40.55 G, 178.03K and 39.84 G, and T's.",
        table="4a",
    ),
    difference(
        "choice", "Baseline of Table 7", "5 RGs, 48 channels, otherwise as Table 4a's", "the same",
        "The replacements are Table 4a's.",
        "232.14K and 52.39 G are met.",
        table=7,
    ),
    difference(
        "choice", "Table 7, RME alone", "RME with MoRE, 249K and 48 G", "SME left out; four experts, ranks 2 to 16",
        "A guess that meets both numbers. With MoRE in the baseline, and nothing else changed, neither is met.",
        "249.24K and 47.59 to 49.91 G. In the baseline it would be 287.48K and 58.71 to 59.70 G; with SME left out "
        "and three experts 237.08K and 47.59 to 48.59 G.",
        table=7,
    ),
    difference(
        "choice", "Table 7, SME alone", "SME with SEE, 238K and 53 G",
        "the baseline, with SEE's striped 11x11 convolution after its 1x1",
        "A guess that meets the parameters. SEE whole, in the baseline, would meet neither number.",
        "237.90K and 53.60 G; with SEE whole 261.42K and 58.91 G.",
        table=7,
    ),
    difference(
        "choice", "FusedMB", "ShuffleMixer's Fused-MBConv", "3x3 to C + 16, SiLU, 1x1 back",
        "In place of SEE; norm, GatedFFN and skips stay.",
        "303.79K and 63.74 to 64.63 G: both printed numbers are met.",
        table=10,
    ),
    difference(
        "choice", "C2F", "Conv2Former's block", "1x1, GELU and a full 11x11 depth-wise convolution modulate a 1x1",
        "In place of SEE. The paper doesn't give its kernel; Conv2Former's is 11x11, SEE's size.",
        "The printed counts are not met: see the cells.",
        table=10,
    ),
    difference(
        "choice", "Residual of MoRE", "no aggregation, aggregation output, DConv output",
        "nothing, x_b with its context, or x_a is added to the experts' output",
        "The aggregation output could also be the context alone, without x_b.",
        "No count tells them apart. Equation 4 and the release add x_a.",
        table=11,
    ),
    difference(
        "choice", "Fine-tuning for Table 15", "from the x4 weights, 250,000 steps, L1 alone, DF2K_OST",
        "the usual learning rate from its start, milestones at the same fractions",
        "The paper names neither learning rate nor schedule. Each image draws its own degradation, JPEG is real, not "
        "simulated, and HR images aren't sharpened, as the paper doesn't say that they were.",
        "Appendix B.2. No weights of it are released here to compare with.",
        table=15,
    ),
    difference(
        "choice", "Small images", "not stated", "zeros are added where the 4x4 convolution doesn't fit",
        "Images below 4 pixels a side, or 16 with two steps, leave nothing to convolve.",
        "Images down to 1x1 pixel work; larger ones are as in the release.",
    ),
)
