"""Protocols: each choice does what it says, SSIM is scikit-image's, and the literature's numbers come out."""

import json
import math
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

from srlib import metrics
from srlib.errors import InputError
from srlib.metrics import PROTOCOLS, Protocol, protocol, psnr, ssim
from srlib.resize import imresize

PLAIN = Protocol("plain", "all channels as they are", channel="rgb", border_per_scale=0, clamp=False, round_image=False)


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An image of smooth and noisy parts, and a disturbed copy, uint8."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 200, shape[-1]).expand(shape)
    hr = ramp + 50 * torch.rand(shape, generator=generator)
    sr = hr + 20 * torch.randn(shape, generator=generator)
    return sr.clamp(0, 255).to(torch.uint8), hr.clamp(0, 255).to(torch.uint8)


def skimage_ssim(one: Tensor, other: Tensor) -> float:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    return structural_similarity(one.double().numpy(), other.double().numpy(), **options)


@pytest.mark.parametrize("size", [(11, 11), (23, 40), (64, 31)])
def test_ssim_is_scikit_images(size: tuple[int, int]) -> None:
    sr, hr = pair(3, *size)
    expected = np.mean([skimage_ssim(one, other) for one, other in zip(sr, hr, strict=True)])
    assert abs(ssim(sr, hr, PLAIN, 1).item() - expected) < 1e-6


def test_ssim_on_luma_is_scikit_images() -> None:
    sr, hr = pair(3, 40, 50)
    planes = [(torch.tensor([65.481, 128.553, 24.966]).double() @ x.flatten(1).double() / 255 + 16) for x in (sr, hr)]
    planes = [plane.view(40, 50)[2:-2, 2:-2] for plane in planes]
    assert abs(ssim(sr, hr, protocol("safmn"), 2).item() - skimage_ssim(*planes)) < 1e-6
    rounded = [torch.floor(plane + 0.5) for plane in planes]
    assert abs(ssim(sr, hr, protocol("matlab"), 2).item() - skimage_ssim(*rounded)) < 1e-6


def test_psnr_by_hand() -> None:
    hr = torch.zeros(3, 4, 4, dtype=torch.uint8)
    sr = hr.clone()
    sr[0, 1, 1] = 255  # one of 48 values is wrong by the whole range
    assert psnr(sr, hr, PLAIN, 1).item() == pytest.approx(10 * math.log10(48))
    assert psnr(sr, hr, protocol("seemore"), 1).item() == pytest.approx(10 * math.log10(4 * 255**2 / 65.481**2))
    assert psnr(sr, hr, protocol("matlab"), 1).item() == pytest.approx(10 * math.log10(4 * 255**2 / 65**2))
    assert psnr(sr, hr, protocol("liif"), 1).item() == pytest.approx(10 * math.log10(4 * 256**2 / 65.738**2))


def test_equal_images() -> None:
    _, hr = pair(2, 3, 32, 32)
    for one in PROTOCOLS.values():
        assert psnr(hr, hr, one, 2).tolist() == [math.inf, math.inf]
        assert ssim(hr, hr, one, 2).tolist() == pytest.approx([1.0, 1.0], abs=1e-12 if one.name != "ssiu" else 1e-3)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_batch_is_its_images_in_float64(name: str) -> None:
    sr, hr = pair(3, 3, 40, 36)
    for metric in (psnr, ssim):
        together = metric(sr, hr, protocol(name), 2)
        assert together.shape == (3,) and together.dtype == torch.float64
        alone = torch.cat([metric(one, other, protocol(name), 2) for one, other in zip(sr, hr, strict=True)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_uint8_and_float_images_agree(name: str) -> None:
    sr, hr = pair(3, 40, 36)
    mixed = psnr(sr.float() / 255, hr, protocol(name), 2)
    torch.testing.assert_close(mixed, psnr(sr, hr, protocol(name), 2), rtol=0, atol=1e-4)


def test_rounding_and_clamping_are_choices() -> None:
    hr = torch.full((3, 8, 8), 0.5, dtype=torch.float64) * 254 / 255  # 127 of 255
    near = hr + 0.4 / 255
    assert psnr(near, hr, PLAIN, 1).item() == pytest.approx(20 * math.log10(255 / 0.4))
    assert psnr(near, hr, replace(PLAIN, round_image=True), 1).item() == math.inf
    white, over = torch.ones(3, 8, 8), torch.full((3, 8, 8), 1.1)
    assert psnr(over, white, PLAIN, 1).item() == pytest.approx(20.0, abs=1e-4)
    assert psnr(over, white, replace(PLAIN, clamp=True), 1).item() == math.inf


def test_borders() -> None:
    assert [protocol("safmn").border(scale) for scale in (2, 3, 4)] == [2, 3, 4]
    assert [protocol("seemore-l").border(scale) for scale in (2, 3, 4)] == [2, 3, 3]
    assert [protocol("liif-div2k").border(scale) for scale in (2, 4, 30)] == [8, 10, 36]
    hr = torch.zeros(3, 20, 20, dtype=torch.uint8)
    sr = hr.clone()
    sr[:, 3, :] = 255
    assert psnr(sr, hr, protocol("safmn"), 4).item() == math.inf
    assert psnr(sr, hr, protocol("seemore-l"), 4).item() < 60


def test_ssius_offset_moves_ssim_but_not_psnr() -> None:
    sr, hr = pair(3, 48, 48)
    sr = (sr.float() * 0.9).to(torch.uint8)  # darker: the luminance term is what notices
    right = replace(protocol("ssiu"), luma_offset=16.0)
    torch.testing.assert_close(psnr(sr, hr, protocol("ssiu"), 2), psnr(sr, hr, right, 2))
    assert ssim(sr, hr, protocol("ssiu"), 2) > ssim(sr, hr, right, 2) + 0.001


def test_means_as_a_release_prints_them() -> None:
    assert protocol("ssiu").printed(28.431, 2) == 28.44
    assert protocol("ssiu").printed(0.81151, 4) == 0.8116
    assert protocol("safmn").printed(28.431, 2) == 28.43


def test_one_channel_is_luma() -> None:
    sr, hr = pair(1, 30, 30)
    assert psnr(sr, hr, protocol("matlab"), 2) == psnr(sr, hr, replace(protocol("matlab"), channel="rgb"), 2)


def test_protocols_are_complete_and_frozen() -> None:
    assert set(PROTOCOLS) == {"matlab", "safmn", "seemore", "seemore-l", "ssiu", "liif", "liif-div2k", "moeisr"}
    for name, one in PROTOCOLS.items():
        assert one.name == name and one.about
        assert json.loads(json.dumps(one.record())) == one.record()
        assert replace(one, about="") == one
    with pytest.raises(FrozenInstanceError):
        protocol("matlab").clamp = False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", PROTOCOLS)
def test_cuda_equals_cpu(name: str) -> None:
    sr, hr = pair(2, 3, 64, 48)
    for metric, tolerance in ((psnr, 1e-9), (ssim, 1e-9 if name != "ssiu" else 1e-3)):
        there = metric(sr.cuda(), hr.cuda(), protocol(name), 4)
        assert there.is_cuda
        torch.testing.assert_close(there.cpu(), metric(sr, hr, protocol(name), 4), rtol=0, atol=tolerance)


IMAGE = torch.zeros(3, 16, 16, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("sr", "hr", "scale", "words"),
    [
        (IMAGE, IMAGE[:, :8], 2, "differ"),
        (IMAGE[0], IMAGE[0], 2, "CHW"),
        (IMAGE.int(), IMAGE.int(), 2, "uint8"),
        (IMAGE[:, :8], IMAGE[:, :8], 4, "border of 4"),
        (IMAGE, IMAGE, 0, "scale 0"),
        (IMAGE[:2], IMAGE[:2], 2, "3 channels"),
        (IMAGE, IMAGE, 3, "window"),
    ],
)
def test_bad_input_is_refused_in_one_line(sr: Tensor, hr: Tensor, scale: int, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        ssim(sr, hr, protocol("safmn"), scale)
    assert "\n" not in str(error.value)


def test_unknown_names_and_choices() -> None:
    with pytest.raises(InputError, match="matlab, safmn"):
        protocol("sfamn")
    for wrong in ({"channel": "luma"}, {"means": "down"}, {"ssim_window": 10}, {"ssim_precision": "half"}):
        with pytest.raises(InputError, match="plain"):
            replace(PLAIN, **wrong)


def set5(data_root: Path, scale: int) -> list[tuple[Tensor, Tensor]]:
    folder = data_root / "benchmark" / "Set5"
    pairs = []
    for file in sorted((folder / "HR").glob("*.png")):
        lr, hr = (
            torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
            for path in (folder / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png", file)
        )
        pairs.append((lr, hr[:, : scale * lr.shape[1], : scale * lr.shape[2]]))
    return pairs


def mean(metric, pairs: list[tuple[Tensor, Tensor]], one: Protocol, scale: int) -> float:
    return sum(metric(imresize(lr, scale=scale), hr, one, scale).item() for lr, hr in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("scale", "all_of_it", "window", "saturation"),
    [(2, 0.0013, 0.0009494, 0.0000299), (3, 0.0022, 0.0018084, 0.0002243), (4, 0.0033, 0.0028606, 0.0006946)],
)
def test_ssius_offset_on_set5(data_root: Path, scale: int, all_of_it: float, window: float, saturation: float) -> None:
    """What the misplaced offset adds to SSIM: in single precision as released (the facts' own numbers), in double
    precision with a window of single precision, whose sum is 3e-8 short of 1, and in double precision throughout.

    The rest is rounding, which depends on the order of sums, and so on library and device.
    """
    pairs = set5(data_root, scale)
    ssiu = protocol("ssiu")
    exact = replace(ssiu, ssim_precision="float64")
    short = replace(exact, ssim_k2=math.sqrt((0.03 * 255) ** 2 + 2 * short_of_one() * 4200**2) / 255)
    right = mean(ssim, pairs, replace(exact, luma_offset=16.0), scale)
    assert mean(ssim, pairs, ssiu, scale) - right == pytest.approx(all_of_it, abs=0.00015)
    assert mean(ssim, pairs, short, scale) - right == pytest.approx(window, abs=1e-6)
    assert mean(ssim, pairs, exact, scale) - right == pytest.approx(saturation, abs=1e-7)


def short_of_one() -> float:
    """How much a square SSIM window whose weights are rounded to float32 sums to less than 1."""
    window = torch.exp(-((torch.arange(11, dtype=torch.float32) - 5) ** 2) / (2 * 1.5**2))
    return 1 - (window / window.sum()).double().sum().item() ** 2


BICUBIC = {  # Set5 from LR in RGB: scale -> (PSNR, SSIM) as MATLAB evaluations print them, then ours by protocol
    2: {"printed": (33.66, 0.9299), "matlab": (33.639653, 0.929216), "safmn": (33.673410, 0.930287)},
    3: {"printed": (30.39, 0.8682), "matlab": (30.385039, 0.867794), "safmn": (30.403312, 0.868906)},
    4: {"printed": (28.42, 0.8104), "matlab": (28.416449, 0.810083), "safmn": (28.429017, 0.811135)},
}


@pytest.mark.parametrize("scale", BICUBIC)
@pytest.mark.parametrize("name", ["matlab", "safmn"])
def test_protocols_stay_near_the_printed_bicubic_rows(data_root: Path, scale: int, name: str) -> None:
    """Our means, float64 throughout, to the last digit given, and how near they are to what is printed.

    The printed rows come from luma planes (test_evaluate); 8-bit RGB images in between, and luma that is not rounded
    (safmn), move them by up to 0.021 dB and 0.0008.
    """
    pairs, row = set5(data_root, scale), BICUBIC[scale]
    found = mean(psnr, pairs, protocol(name), scale), mean(ssim, pairs, protocol(name), scale)
    assert found == pytest.approx(row[name], rel=0, abs=1e-6)
    assert abs(found[0] - row["printed"][0]) < 0.021 and abs(found[1] - row["printed"][1]) < 0.0008


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("size", [(53, 40), (140, 40), (61, 300)])
def test_large_images_compared_in_bands_score_as_whole(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bands of 20 rows or so; the last one may be short, and may be as high as SSIM's window only."""
    sr, hr = pair(2, 3, *size)
    whole = [metric(sr, hr, protocol(name), 2) for metric in (psnr, ssim)]
    monkeypatch.setattr(metrics, "AT_ONCE", 0)
    for band in (1, 20 * size[1], 23 * size[1]):
        monkeypatch.setattr(metrics, "BAND", band)
        for metric, expected in zip((psnr, ssim), whole, strict=True):
            found = metric(sr, hr, protocol(name), 2)
            assert found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=1e-9)


MEMORY = """
import sys, torch
from srlib.metrics import protocol, psnr, ssim

def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

torch.set_num_threads(1)
sr, hr = (torch.randint(0, 256, (3, int(sys.argv[1]), 1024), dtype=torch.uint8) for _ in range(2))
before = peak()
psnr(sr, hr, protocol("matlab"), 4), ssim(sr, hr, protocol("matlab"), 4)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_memory_is_that_of_a_band_however_large_the_images_are(exact_memory: dict[str, str]) -> None:
    """Whole, SSIM of 6 megapixels takes over a gigabyte."""
    taken = []
    for height in (4200, 6000):
        command = [sys.executable, "-c", MEMORY, str(height)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=exact_memory)
        taken.append(int(done.stdout))
    assert abs(taken[1] - taken[0]) < 16 << 20 and max(taken) < 256 << 20, taken
