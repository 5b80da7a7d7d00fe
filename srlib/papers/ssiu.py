"""SSIU's tables (Ni et al., 2025): which configuration each printed row is, and what has to be explained.

The printed numbers lie in data/ssiu_table1.csv to ssiu_table4.csv (the paper's Tables I to IV), the settings in
data/ssiu_settings.csv.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from srlib.papers import Explanation, Row, difference

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
        return "needs the paper's RTX 4090 (the page has its own measurement)"
    if metric in ("psnr", "ssim"):
        return "not run at the paper's budget (1,000,500 steps on DF2K)"
    return "not counted in this call"


PADDED = Explanation(
    table=1,
    rows=("Ours",),
    scale=2,
    metric="flops",
    text="Counted here with the padding to multiples of 16 that the network computes on, as at x4, where only this "
    "meets the printed 49. Perhaps printed for the image's own 640x360 pixels, 164.06 G; a guess. No one way of "
    "counting gives the figures of all three scales.",
    evidence="A pixel costs 712,064 multiply-adds at x2, 741,244 at x3 and 798,480 at x4: 167.71, 76.85 and 49.06 G on "
    "640x368, 432x240 and 320x192 pixels, 164.06, 75.96 and 45.99 G on 640x360, 427x240 and 320x180. With one of the "
    "attention's two products it would be 164.31, 75.36 and 48.17 G on padded pixels, without both 160.92, 73.87 and "
    "47.29 G.",
)

EXPLANATIONS = (
    PADDED,
    replace(
        PADDED,
        scale=3,
        text="Counted here with the padding, as at x4. Perhaps printed for the image's own 427x240 pixels, 75.96 G, "
        "and truncated; a guess. No one way of counting gives the figures of all three scales.",
    ),
    Explanation(
        table=3,
        rows=("SSIU (ESAM=1;SAM=0;MoE-FS=0)",),
        scale=4,
        metric="flops",
        text="Probably 48 in print: the scan that was read may hide it, as 3 and 8 look alike.",
        evidence="MoE-FS is four 1x1 convolutions, 16,640 parameters, which are met, and 4 x 64 x 64 multiply-adds a "
        "pixel: 1.01 of 49.06 G. Section IV-C1 calls its cost slight.",
    ),
    Explanation(
        table=3,
        rows=("SSIU (ESAM=0;SAM=1;MoE-FS=1)",),
        scale=4,
        metric="flops",
        text="Not met by dense attention at full size. A guess that meets it: queries, keys and values are projected "
        "at full size and pooled afterwards, and the 3x3 convolution is left out.",
        evidence="At full size projection and products take four times what they take on pooled features: 59.24 G, "
        "on the image's own pixels 55.54 G. With the projection alone at full size it is 54.08 G, and 53.93 G if "
        "enlarging isn't counted. The row's parameters are met: 9 x 640 fewer, those of the 3x3 convolution.",
    ),
)

DIFFERENCES = (
    difference(
        "print", "Gains on Manga109 in Section IV-B1",
        "0.76, 0.25 and 0.12 dB over LBNet, CRAFT and ATD-light at x4", "0.84, 0.42 and 0.12 dB by Table I",
        "The three gains are those of x2.",
        "Table I, x4: 31.60 - 30.76, 31.60 - 31.18, 31.60 - 31.48; x2: 39.64 - 38.88, 39.64 - 39.39, 39.64 - 39.52.",
        table=1,
    ),
    difference(
        "print", "Saving of ESAM in Section IV-C2", "10.2 % fewer FLOPs than SAM", "9.3 % by Table III",
        "SAM's 54 G are 10.2 % more than ESAM's 49 G; ESAM's are 9.3 % fewer than SAM's.",
        "(54 - 49) / 49 = 10.2 %, (54 - 49) / 54 = 9.3 %. Our counts, 59.24 and 49.06 G, make it 17.2 % fewer.",
        table=3,
    ),
    difference(
        "print", "Step S3.b", "S(v - b) + b in the derivation, MSGM(v + b) + b in Equation 13", "MSGM(v - b) + b",
        "Equation 13, which says that it follows step S3.b, adds what the derivation, as far as the scan shows it, "
        "takes off. The release takes it off, too. A setting of the network gives the printed form.",
        "Outputs of the release are met to 1e-5; with v + b they are missed by 0.002. No count tells the two apart.",
    ),
    difference(
        "print", "Test images of Table II", "no data set", "BSD100",
        "The PSNR is that of BSD100 at x4. 480x320 pixels, an image's size there, agree with it.",
        "All six values are those of Table I.",
        table=2,
    ),
    difference(
        "print", "HiT-SRT in Table II", "HiT-SRT; HiT-SRF in Table I", "HiT-SRF",
        "The PSNR is HiT-SRF's; Table I has no HiT-SRT.",
        "27.75 dB on BSD100 at x4 in both tables.",
        table=2,
    ),
    difference(
        "print", "Memory of ATD-light in Table II", "753 M", "as printed",
        "The same figure as ATD-light's parameters at x2, 753 K. Perhaps chance.",
        "Table I; the other networks take between 1,586 and 4,181 M, and SSIU 224 M.",
        table=2,
    ),
    difference(
        "print", "SSIM on Set14 without MoE-FS", "0.7818", "as read",
        "Out of line with its PSNR; perhaps 0.79 and two more digits that the scan hides. A guess.",
        "28.88 dB, beside 28.87 dB and 0.7928 for L1 alone in Table IV.",
        table=3,
    ),
    difference(
        "print", "Rows that other papers print, too", "14 networks besides SSIU", "as printed",
        "SAFMN's Table 1 has the same figures, CARN's 1,592K at every scale among them. Two differ in SeemoRe's.",
        "All 266 cells common with SAFMN's Table 1 agree. Of 144 in SeemoRe's Tables 1, 2 and 8, ShuffleMixer's "
        "FLOPs at x3, 43 and 42 G, and IMDN's PSNR on Manga109 at x4, 30.45 and 30.46 dB, don't.",
        table=1,
    ),
    difference(
        "release", "Luma in the evaluation", "SSIM on the Y channel", "protocol ssiu: the offset is 16 times 255",
        "Images in [0, 1] are divided by 255 once more before the offset is added, and the sum is multiplied by 255: "
        "luma lies in 4080 to 4299, not 16 to 235. PSNR, of differences, doesn't notice. SSIM's luminance term is then "
        "close to 1 whatever the images are. In single precision its window sums to less than 1, which adds to every "
        "variance of such numbers, and digits are lost.",
        "On plain bicubic images of Set5 it raises SSIM by 0.001 to 0.004, more at larger scales. The printed SSIM on "
        "Set5 leads the best peer's by 0.0015, 0.0019 and 0.0033 at x2, x3 and x4, the PSNR by 0.02, 0.02 and 0.01 dB. "
        "The audit page measures how much of such a lead it explains.",
        table=1,
    ),
    difference(
        "release", "Range of the output in the evaluation", "not stated", "neither clamped nor rounded to 8 bits",
        "Protocol ssiu leaves the output as it is. SAFMN's and SeemoRe's releases clamp and round theirs.",
        "The released evaluation.",
        table=1,
    ),
    difference(
        "release", "Printed means", "not stated", "rounded up",
        "The release adds half a unit of the last digit before it rounds; the same is assumed for SSIM's four digits. "
        "Records keep the mean; a verdict takes the mean so rounded, as it would be printed.",
        "The released evaluation: round(x + 0.005, 2), which adds 0.005 dB. At x4 the printed PSNR leads the best "
        "peer's by 0.01 dB on Set5, Set14 and BSD100.",
        table=1,
    ),
    difference(
        "release", "Optimiser", "Adam", "AdamW, betas 0.9 and 0.99, weight decay 1e-4",
        "The paper has neither betas nor weight decay.",
        "The released training settings.",
    ),
    difference(
        "release", "Length of the training", "not stated", "1,000,500 steps",
        "The release runs 290 epochs of 40 passes over DF2K.",
        "290 x 40 x 3,450 images / 40 patches a step.",
    ),
    difference(
        "release", "First residual of a stage", "a is added to z and f (Equation 12)", "the layer norm of a is added",
        "What the stage takes for a is the normalised input, in step S3.a as in S1 and S2.",
        "Outputs of the release are met to 1e-5; with the input itself they are missed by 0.009.",
    ),
    difference(
        "release", "What MoE-FS weighs", "a weighted sum of features (Equations 19 and 20)",
        "the stages' outputs; their 1x1 convolutions make the gates alone",
        "The scan that was read doesn't show which of the two the sum is over.",
        "Outputs of the release are met to 1e-5; with the convolutions' outputs they are missed by 0.03.",
    ),
    difference(
        "release", "Gates of MoE-FS", "a softmax over the three", "one for each channel and pixel",
        "The inputs are the outputs of stages 3, 6 and 9. The shallow features are added after the selector.",
        "Outputs of the release are met to 1e-5.",
    ),
    difference(
        "release", "MSGM", "1x1 and depth-wise convolutions, sizes not stated", "hidden width C, depth-wise 3x3",
        "Neither branch widens the features.",
        "794K is met: 4 x (64 x 64 + 64) + 10 x 64 parameters each, 36 of them in all.",
    ),
    difference(
        "release", "Padding of convolutions", "not stated", "reflection",
        "In the head, MSGM, ESAM and the tail alike.",
        "Outputs of the release are met to 1e-5; with zeros in their place they are missed by 0.07.",
    ),
    difference(
        "release", "Pooling and blocks of ESAM", "max pooling; M x M blocks that overlap by O; neither stated",
        "2x2; blocks of 8x8 queries, keys and values of 10x10",
        "The queries' blocks don't overlap; their neighbourhoods do, as they reach one pixel further on every side.",
        "Outputs of the release are met to 1e-5.",
    ),
    difference(
        "release", "Heads and embedding of ESAM", "a standard self-attention (Equation 17)",
        "4 heads; a learnt embedding is added to the keys; no biases",
        "Half of a head's channels tell a key's row in its neighbourhood, half its column.",
        "Outputs of the release are met to 1e-5; without the embedding they are missed by 0.0002. 794K is met.",
    ),
    difference(
        "release", "Attention beyond the image", "not stated", "keys and values of zeros",
        "Keys there have the embedding alone.",
        "Outputs of the release are met to 1e-5; with repeated pixels they are missed by 0.0008.",
    ),
    difference(
        "release", "3x3 convolution of ESAM", "a 3x3 convolution (Equation 18)", "depth-wise, padded by reflection",
        "It doesn't mix channels.",
        "794K is met with 640 parameters a stage; a full one has 36,928.",
    ),
    difference(
        "release", "Bilinear enlargements", "bilinear upsampling, twice", "corners aligned in ESAM, not for the input",
        "The two differ in where they sample.",
        "Outputs of the release are met to 1e-5. With the other choice they are missed by 0.00005 in ESAM and by 0.2 "
        "for the input.",
    ),
    difference(
        "release", "Sides of the image", "not stated", "padded to multiples of 16, output cropped",
        "At the right and at the bottom, by reflection: pooling halves the image, and blocks of 8x8 must fit.",
        "Outputs of the release for an image of 64x45 pixels are met to 1e-5; padded with zeros they are missed by "
        "0.4.",
    ),
    difference(
        "release", "Reconstruction at x4", "1x1, pixel shuffle, GELU, 3x3", "the first three twice, then 3x3",
        "Each step doubles the size.",
        "794K is met: two 1x1 convolutions to 256 channels have 33,280 parameters, one to 1,024 has 66,560.",
    ),
    difference(
        "choice", "Multiply-adds and the padding", "164, 75 and 49 G", "counted on the padded image",
        "The network computes on it. The note of a count gives that of the image's own pixels, too: every square of "
        "16x16 pixels costs the same. Attention counts its two products.",
        "49 G at x4 is met by the padded count alone, 49.06 G; see the cells of x2 and x3.",
        table=1,
    ),
    difference(
        "choice", "SAM", "self-attention without sparsity, no details",
        "ESAM without pooling, 3x3 convolution and enlargement",
        "The blocks of 8x8 queries, their neighbourhoods and the embedding stay.",
        "788.71K is met exactly: 9 x 640 parameters fewer.",
        table=3,
    ),
    difference(
        "choice", "Without MoE-FS", "no details", "the last stage's output goes on alone",
        "The shallow features are added as usual.",
        "777.83K is met: 4 x (64 x 64 + 64) parameters fewer.",
        table=3,
    ),
    difference(
        "choice", "Cosine schedule", "cosine annealing, 1e-3 to 1e-6", "a step at a time",
        "The release lowers the rate once an epoch, of which there are 290. One of 3,450 steps changes it little.",
        "Section IV-A2; the released training settings.",
    ),
    difference(
        "choice", "Frequency loss", "L1 distance of the FFTs", "of the real and imaginary parts of rfft2",
        "Equation 21 doesn't say how complex numbers are compared. Ours is SAFMN's and SeemoRe's loss.",
        "Section III-G.",
        table=4,
    ),
    difference(
        "choice", "Moving average of the weights", "not stated", "none",
        "The weights themselves are evaluated.",
        "Neither the paper nor the training settings that we know have one.",
    ),
    difference(
        "choice", "Images below 16 pixels", "not stated", "reflected again and again",
        "One reflection can't fill the padding of an image that is too small for it.",
        "Images down to 1x1 pixel work; larger ones are as in the release.",
    ),
)
