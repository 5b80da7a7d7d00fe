"""Scores: right sizes only, whole records, and the literature's bicubic rows to the printed digit."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from srlib.data import Store, find
from srlib.errors import InputError
from srlib.evaluate import AtScale, ImageScore, Scores, bicubic, compare, luma_bicubic, outputs, score
from srlib.metrics import protocol, psnr, ssim
from srlib.resize import imresize


class Shelf:
    """What ``score`` asks of a store, on images in memory."""

    name = "shelf"
    fingerprint = "0123abcd"

    def __init__(self, images: dict[str, Tensor]) -> None:
        self.images = images

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def pair(self, i: int, scale: int) -> tuple[Tensor, Tensor]:
        hr = self.images[self.names[i]]
        height, width = (side // scale for side in hr.shape[1:])
        hr = hr[:, : scale * height, : scale * width]
        return imresize(hr, size=(height, width)), hr

    def lr_origin(self, scale: int) -> str:
        return "matlab-bicubic"

    def grey(self, i: int) -> bool:
        return self.names[i].startswith("grey")


def photograph(height: int, width: int, seed: int = 0) -> Tensor:
    small = torch.rand(3, height // 6 + 1, width // 6 + 1, generator=torch.Generator().manual_seed(seed))
    return (imresize(small, size=(height, width)).clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf({"one": photograph(50, 61), "two": photograph(48, 40, seed=1)})


def test_scores_are_the_metrics_of_each_image(shelf: Shelf) -> None:
    safmn = protocol("safmn")
    scores = score(bicubic(3), shelf, 3, safmn)
    assert [image.name for image in scores.images] == ["one", "two"]
    for index, image in enumerate(scores.images):
        lr, hr = shelf.pair(index, 3)
        sr = imresize(lr, scale=3)
        assert image.psnr == pytest.approx(psnr(sr, hr, safmn, 3).item(), abs=1e-9)
        assert image.ssim == pytest.approx(ssim(sr, hr, safmn, 3).item(), abs=1e-9)
    assert scores.psnr == pytest.approx((scores.images[0].psnr + scores.images[1].psnr) / 2)
    assert scores.ssim == pytest.approx((scores.images[0].ssim + scores.images[1].ssim) / 2)
    assert (scores.dataset, scores.fingerprint, scores.lr_origin) == ("shelf", "0123abcd", "matlab-bicubic")


def test_outputs_compared_later_score_as_at_once(shelf: Shelf) -> None:
    made = outputs(bicubic(2), shelf, 2)
    assert [tuple(image.shape) for image in made] == [(1, 3, 50, 60), (1, 3, 48, 40)]
    for name in ("matlab", "ssiu"):
        assert compare(made, shelf, 2, protocol(name)) == score(bicubic(2), shelf, 2, protocol(name))
    network = nn.Upsample(scale_factor=2).train()
    assert outputs(network, shelf, 2)[0].shape == made[0].shape and network.training
    with pytest.raises(InputError, match="1 images for the 2 of shelf"):
        compare(made[:1], shelf, 2, protocol("matlab"))
    with pytest.raises(InputError, match="one: .* differ"):
        compare(made[::-1], shelf, 2, protocol("matlab"))
    with pytest.raises(InputError, match="use one for scale 2"):
        outputs(bicubic(3), shelf, 2)


def test_the_callable_sees_float_batches_without_gradients(shelf: Shelf) -> None:
    seen = []

    def upscale(lr: Tensor) -> Tensor:
        seen.append((lr.dtype, lr.dim(), float(lr.min()) >= 0, float(lr.max()) <= 1, torch.is_inference_mode_enabled()))
        return bicubic(2)(lr)

    score(upscale, shelf, 2, protocol("matlab"))
    assert seen == [(torch.float32, 4, True, True, True)] * 2


def test_a_network_is_scored_in_evaluation_mode_and_put_back(shelf: Shelf) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Dropout(0.5).eval()
            self.modes: list[bool] = []

        def forward(self, lr: Tensor) -> Tensor:
            self.modes.append(self.training)
            return bicubic(2)(lr)

    network = Network()
    score(network, shelf, 2, protocol("matlab"))
    assert network.modes == [False, False]
    assert network.training and not network.frozen.training


def test_a_network_for_every_scale_is_told_the_size(shelf: Shelf) -> None:
    class Network(nn.Module):
        def forward(self, lr: Tensor, size: tuple[int, int]) -> Tensor:
            assert not self.training
            return bicubic(size[0] / lr.shape[-2])(lr)

    network = Network()
    for scale in (2, 3, 4):
        at_scale = AtScale(network, scale)
        assert score(at_scale, shelf, scale, protocol("liif")) == score(bicubic(scale), shelf, scale, protocol("liif"))
    assert network.training
    sizes = []
    AtScale(lambda lr, size: sizes.append(size), 2.6)(torch.rand(1, 3, 10, 3))
    assert sizes == [(26, 8)]
    with pytest.raises(InputError, match="scale 0"):
        AtScale(network, 0)


def test_bicubic_is_matlabs_on_eight_bits() -> None:
    lr = photograph(12, 10)
    sr = bicubic(4)(lr[None].float() / 255)
    assert sr.dtype == torch.float32
    assert torch.equal((sr * 255).round().to(torch.uint8)[0], imresize(lr, scale=4))
    nudged = lr[None].float() / 255 + 0.3 / 255
    assert torch.equal(bicubic(4)(nudged), sr)


def test_records_are_whole(shelf: Shelf) -> None:
    scores = score(bicubic(4), shelf, 4, protocol("seemore-l"))
    record = scores.record()
    assert record["protocol"] == protocol("seemore-l").record()
    assert {key: record[key] for key in ("dataset", "fingerprint", "lr_origin", "scale", "psnr", "ssim")} == {
        "dataset": "shelf", "fingerprint": "0123abcd", "lr_origin": "matlab-bicubic", "scale": 4,
        "psnr": scores.psnr, "ssim": scores.ssim,
    }  # fmt: skip
    assert json.loads(json.dumps(record)) == record and [one["name"] for one in record["images"]] == ["one", "two"]


def test_perfect_images_survive_a_record() -> None:
    scores = Scores("d", "f", "distributed", 2, protocol("matlab"), (ImageScore("a", math.inf, 1.0),))
    assert json.loads(json.dumps(scores.record()))["psnr"] == math.inf


def test_bad_input_is_refused_in_one_line(shelf: Shelf) -> None:
    matlab = protocol("matlab")
    cases = [
        (lambda: score(bicubic(2), shelf, 4, matlab), r"one: .*\(1, 3, 24, 30\).*\(1, 3, 48, 60\)"),
        (lambda: score(bicubic(2), Shelf({}), 2, matlab), "no images"),
        (lambda: luma_bicubic(Shelf({}), 2), "no images"),
        (lambda: score(bicubic(2), Shelf({"tiny": photograph(12, 12)}), 2, matlab), "tiny: .*window"),
        (lambda: bicubic(0), "scale 0"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_printed_bicubic_rows_of_set5(data_root: Path) -> None:
    folder = data_root / "benchmark" / "Set5" / "HR"
    images = {
        file.stem: torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
        for file in sorted(folder.glob("*.png"))
    }
    printed = {2: (33.66, 0.9299), 3: (30.39, 0.8682), 4: (28.42, 0.8104)}
    for scale, row in printed.items():
        scores = luma_bicubic(Shelf(images), scale)
        assert (round(scores.psnr, 2), round(scores.ssim, 4)) == row
        assert scores.protocol.name == "matlab-luma" and "luma" in scores.lr_origin


def test_printed_bicubic_psnr_of_set14_takes_the_grey_file_as_luma(data_root: Path, tmp_path: Path) -> None:
    store = Store.open(find("Set14", data_root), cache=tmp_path)
    printed = {2: (30.24, 0.8688), 3: (27.55, 0.7742), 4: (26.00, 0.7027)}
    for scale, (psnr_printed, ssim_printed) in printed.items():
        scores = luma_bicubic(store, scale)
        assert scores.psnr == pytest.approx(psnr_printed, abs=0.02)
        assert scores.ssim == pytest.approx(ssim_printed, abs=0.001)


def test_grey_images_keep_their_full_range() -> None:
    noise = torch.Generator().manual_seed(0)
    grey = torch.randint(0, 256, (1, 50, 60), dtype=torch.uint8, generator=noise).expand(3, -1, -1)
    full, squeezed = (luma_bicubic(Shelf({name: grey}), 2).psnr for name in ("grey", "colour"))
    assert squeezed - full == pytest.approx(20 * np.log10(255 / 219), abs=0.1)
