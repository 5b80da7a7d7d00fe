"""Scores: right sizes only, where LR images come from, and the literature's bicubic rows to the printed digit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from srlib.data import Store
from srlib.errors import InputError
from srlib.evaluate import AtScale, bicubic, compare, luma_bicubic, score, score_under, upscaler
from srlib.metrics import MATLAB, Protocol, psnr, ssim
from srlib.models import create
from srlib.resize import imresize
from srlib.tiles import enlarge

BASICSR = Protocol("basicsr", "luma not rounded")


@pytest.fixture
def store(make_images: Callable[..., Path], tmp_path: Path) -> Store:
    return Store.open(str(make_images(tmp_path / "images", 2, (50, 61))), tmp_path / "cache")


def test_scores_are_the_metrics_of_each_image_and_say_where_lr_images_come_from(store: Store) -> None:
    scores = score(bicubic(3), store, 3, BASICSR)
    for index, (name, of_psnr, of_ssim) in enumerate(scores.images):
        lr, hr = store.pair(index, 3)
        sr = imresize(lr, scale=3)
        assert name == store.names[index]
        assert of_psnr == pytest.approx(psnr(sr, hr, BASICSR, 3).item(), abs=1e-9)
        assert of_ssim == pytest.approx(ssim(sr, hr, BASICSR, 3).item(), abs=1e-9)
    frame = scores.frame()
    assert list(frame) == ["dataset", "scale", "protocol", "lr", "image", "psnr", "ssim"]
    assert frame.iloc[1].tolist() == ["images", 3, "basicsr", "matlab-bicubic", *scores.images[1]]
    assert (scores.psnr, scores.ssim) == pytest.approx((frame.psnr.mean(), frame.ssim.mean()))
    assert scores.text == f"{scores.psnr:.2f} / {scores.ssim:.4f} (LR: matlab-bicubic)"


def test_several_protocols_enlarge_each_image_once_in_evaluation_mode(store: Store) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Dropout(0.5).eval()
            self.seen: list[tuple] = []

        def forward(self, lr: Tensor) -> Tensor:
            in_range = 0 <= lr.min() <= lr.max() <= 1
            self.seen.append((lr.dtype, lr.dim(), self.training, torch.is_grad_enabled(), in_range))
            return bicubic(2)(lr)

    network, protocols = Network(), (MATLAB, BASICSR, replace(BASICSR, channel="rgb"))
    assert score_under(network, store, 2, protocols) == tuple(score(bicubic(2), store, 2, one) for one in protocols)
    assert network.seen == [(torch.float32, 4, False, False, True)] * 2
    assert network.training and not network.frozen.training


def test_large_images_are_scored_in_tiles(store: Store, make_images: Callable[..., Path], tmp_path: Path) -> None:
    seen = []

    def upscale(lr: Tensor) -> Tensor:
        seen.append(lr.shape[2:])
        return bicubic(2)(lr)

    tiled = score(upscale, store, 2, BASICSR, tile=16)
    assert len(seen) > 4 and tiled.psnr == pytest.approx(score(bicubic(2), store, 2, BASICSR).psnr, abs=0.05)
    seen.clear()
    score(upscale, Store.open(str(make_images(tmp_path / "large", 1, (700, 1300))), store.cache.parent), 2, BASICSR)
    assert seen == [(350, 650)]  # as the papers do: no benchmark's image is larger, but DIV2K's at x2


def test_upscalers_of_networks() -> None:
    fixed, every = create("safmn", 4), create("moeisr-liif-s-edsr")
    assert upscaler(fixed, 4) is fixed and isinstance(upscaler(every, 2.5), AtScale)
    with pytest.raises(InputError, match="a network for scale 4 can't enlarge by 2"):
        upscaler(fixed, 2)


class Rough(nn.Conv2d):
    """A network that half precision takes far from its output: it makes small differences of large numbers."""

    def forward(self, lr: Tensor) -> Tensor:
        return super().forward(lr + 100) - super().forward(torch.full_like(lr, 100))


@pytest.mark.parametrize("name", ["safmn", "moeisr-lte-s-edsr"])
def test_half_precision_computes_in_it_and_gives_32_bits(name: str, smooth: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)  # with other weights, rounding may tip a choice of MoEISR's
    network = create(name, 2 if name == "safmn" else None).eval()
    full, half = upscaler(network, 2), upscaler(network, 2, "bf16", "cpu")
    lr = smooth(40, 50)
    wanted, found = (enlarge(one, lr, 2, tile=32, overlap=8) for one in (full, half))
    assert found.dtype == torch.float32 and 0 < (found - wanted).abs().max() < 0.05


def test_half_precision_is_refused_where_it_is_slow_or_loses() -> None:
    with pytest.raises(InputError, match="a CPU takes many times longer in fp16: give --precision bf16"):
        upscaler(create("safmn", 2), 2, "fp16", "cpu")
    with pytest.raises(InputError, match="in bf16 this network's output is .* dB from its output in 32 bits"):
        upscaler(Rough(3, 3, 1), 1, "bf16", "cpu")


def test_bicubic_is_matlabs_on_eight_bits(smooth: Callable[..., Tensor]) -> None:
    lr = smooth(12, 10)
    sr = bicubic(4)(lr[None].float() / 255)
    assert sr.dtype == torch.float32 and torch.equal((sr * 255).round().to(torch.uint8)[0], imresize(lr, scale=4))
    assert torch.equal(bicubic(4)(lr[None].float() / 255 + 0.3 / 255), sr)
    assert bicubic(2.5)(torch.rand(1, 3, 5, 7)).shape == (1, 3, 13, 18)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda store: score(bicubic(2), store, 4, MATLAB), r"0: .*\(1, 3, 24, 30\).*\(1, 3, 48, 60\)"),
        (lambda store: score(bicubic(20), store, 20, MATLAB), "0: .*no 1x1 pixels inside a border of 20"),
        (lambda store: score(bicubic(0), store, 2, MATLAB), "scale 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(store: Store, call: Callable[[Store], object], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        call(store)
    assert "\n" not in str(error.value)


PRINTED = {("Set5", 2): (33.66, 0.9299), ("Set5", 3): (30.39, 0.8682), ("Set5", 4): (28.42, 0.8104)}
PRINTED |= {("Set14", 2): (30.24, 0.8688), ("Set14", 3): (27.55, 0.7742), ("Set14", 4): (26.00, 0.7027)}


@pytest.mark.parametrize(("dataset", "scale"), PRINTED)
def test_printed_bicubic_rows(found, tmp_path, dataset, scale):
    scores, (psnr, ssim) = luma_bicubic(Store(found(dataset), tmp_path), scale), PRINTED[dataset, scale]
    near = (0.005, 0.00005) if dataset == "Set5" else (0.02, 0.001)  # Set14's grey file is taken as luma
    assert scores.psnr == pytest.approx(psnr, abs=near[0]) and scores.ssim == pytest.approx(ssim, abs=near[1])
    assert scores.protocol.name == "matlab-luma" and scores.lr_origin == "matlab-bicubic of luma"


def test_grey_images_keep_their_full_range(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (50, 60), np.uint8)
    found = []
    for name, pixels in (("grey", grey), ("colour", np.repeat(grey[..., None], 3, 2))):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
        found.append(luma_bicubic(Store.open(str(tmp_path / name), tmp_path / "cache"), 2).psnr)
    assert found[1] - found[0] == pytest.approx(20 * np.log10(255 / 219), abs=0.1)


def test_images_are_compared_with_the_first_of_their_size() -> None:
    hr = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0))
    found = compare({"HR": hr, "LR": hr[:, ::4, ::4], "SAFMN": hr / 2}, MATLAB)
    assert found == {"SAFMN": f"{psnr(hr / 2, hr, MATLAB, 4).item():.2f} dB / {ssim(hr / 2, hr, MATLAB, 4).item():.4f}"}
