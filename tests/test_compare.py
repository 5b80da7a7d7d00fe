"""Who is compared, on which images, and the measures that tell images apart."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from srlib import compare, complexity, data, metrics, runs
from srlib.errors import InputError
from srlib.evaluate import bicubic
from srlib.models import config_class, create
from srlib.models.moeisr import executed_macs, mapper_macs
from srlib.papers.seemore import route_macs
from srlib.resize import imresize


@pytest.fixture(scope="module")
def held_out() -> data.Store:
    return data.Store.open(data.find("photos/held-out"))


# --- contenders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[runs.RunConfig]:
    """The configurations of the runs that are asked for; nothing is trained, each is a fresh network's."""
    found: list[runs.RunConfig] = []

    def run(config: runs.RunConfig, *_: object, **__: object) -> runs.Run:
        found.append(config)
        fresh = {"network": lambda self, device: runs.initial(config, tmp_path), "ending": "fresh"}
        return type("Fresh", (), fresh | {"folder": tmp_path / config.model})()

    monkeypatch.setattr(runs, "train_or_load", run)
    return found


@pytest.mark.parametrize("scale", [2, 4])
def test_contenders_are_trained_alike_and_fit_the_scale(
    held_out: data.Store, asked: list[runs.RunConfig], scale: int
) -> None:
    store = data.Store.open(data.find("photos/train"))
    found = compare.contenders(scale, store, held_out, seed=3, device="cpu")
    assert list(found) == ["bicubic", *compare.MODELS] == list(compare.PAINT)
    assert [config.model for config in asked] == list(compare.MODELS.values())
    assert [config.scale for config in asked] == [scale, scale, scale, None]
    assert {config.train.seed for config in asked} == {3} and {config.data for config in asked} == {"photos/train"}
    main = [runs.training(config.model, "smoke").steps for config in asked]
    row = runs.BUDGETS["smoke"].ablation_steps
    assert [c.train.steps for c in asked] == (main if scale == 4 else [row, row, row, main[-1]])
    lr = torch.zeros(3, 16, 24, dtype=torch.uint8)
    assert {x.shape for x in compare.enlarged(found, lr).values()} == {(3, 16 * scale, 24 * scale)}
    assert found["bicubic"].ending == "no training"
    assert compare.records(found) == compare.MODELS
    assert compare.endings(found) == "SAFMN: fresh; SeemoRe-T: fresh; SSIU: fresh; MoEISR: fresh"


def test_only_networks_for_every_scale_go_beyond(held_out: data.Store, asked: list[runs.RunConfig]) -> None:
    found = compare.contenders(2.5, held_out, held_out, device="cpu")
    assert list(found) == ["bicubic", "MoEISR"]
    lr, hr = compare.pair(held_out, "chelsea", 2.5)
    made = compare.enlarged(found, lr[:, :16, :24])
    assert {x.shape for x in made.values()} == {(3, 40, 60)}
    assert all(0 <= x.min() and x.max() <= 1 for x in made.values())


@pytest.mark.parametrize("scale", [0.5, 0, -2, math.nan, math.inf])
def test_a_scale_that_enlarges_nothing_is_refused(held_out: data.Store, scale: float) -> None:
    with pytest.raises(InputError, match="enlarges nothing"):
        compare.contenders(scale, held_out, held_out)
    with pytest.raises(InputError, match="enlarges nothing"):
        compare.pair(held_out, "camera", scale)


# --- images ----------------------------------------------------------------------------------------------------------


def test_whole_scales_are_those_of_the_store(held_out: data.Store) -> None:
    for ours, theirs in zip(compare.pair(held_out, "rocket", 3.0), held_out.pair(3, 3), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("scale", [1.5, 2.7, 6.25])
def test_any_scale_has_whole_pixels(held_out: data.Store, scale: float) -> None:
    lr, hr = compare.pair(held_out, "coffee", scale)
    original = held_out.hr(held_out.names.index("coffee"))
    assert lr.dtype == hr.dtype == torch.uint8
    for small, large, side in zip(lr.shape[1:], hr.shape[1:], original.shape[1:], strict=True):
        assert large == pytest.approx(scale * small, abs=1e-9) and side - 135 < large <= side
    assert torch.equal(hr, original[:, : hr.shape[1], : hr.shape[2]])
    assert torch.equal(lr, imresize(hr, size=(lr.shape[1], lr.shape[2])))


def test_unknown_images_and_too_large_scales_are_refused(held_out: data.Store) -> None:
    with pytest.raises(InputError, match="no image 'cat'; choose one of: camera"):
        compare.pair(held_out, "cat", 4)
    with pytest.raises(InputError, match="too small"):
        compare.pair(held_out, "chelsea", 500.5)


def test_scores_are_written_as_papers_print_them(held_out: data.Store) -> None:
    lr, hr = compare.pair(held_out, "chelsea", 4)
    protocol = metrics.protocol("safmn")
    made = compare.enlarged({"bicubic": compare.Contender(bicubic(4))}, lr)
    psnr, ssim = (f(made["bicubic"], hr, protocol, 4).item() for f in (metrics.psnr, metrics.ssim))
    assert compare.scores(made, hr, protocol, 4) == {"bicubic": f"{psnr:.2f} dB / {ssim:.4f}"}


# --- the busiest window ----------------------------------------------------------------------------------------------


def test_the_busiest_window_lies_where_pixels_differ() -> None:
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[:, 24:40, 60:84] = torch.randint(0, 256, (16, 24), dtype=torch.uint8)
    top, left, tall, wide = compare.busiest(image, (16, 24), step=1)
    assert (tall, wide) == (16, 24) and abs(top - 24) <= 1 and abs(left - 60) <= 1
    assert compare.busiest(image, (16, 24))[:2] == (24, 60)
    assert compare.busiest(torch.zeros(3, 64, 96), (16, 24))[:2] == (0, 0), "of equal ones the first"


def test_the_busiest_window_is_that_of_a_slow_search() -> None:
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(1))
    grey = image.double().mean(0)
    energies = {}
    for top in range(0, 20 - 8 + 1, 4):
        for left in range(0, 30 - 10 + 1, 4):
            down = (grey[1:] - grey[:-1])[top : top + 8, left : left + 10].square().sum()
            across = (grey[:, 1:] - grey[:, :-1])[top : top + 8, left : left + 10].square().sum()
            energies[top, left] = (down + across).item()
    assert compare.busiest(image, (8, 10)) == (*max(energies, key=energies.__getitem__), 8, 10)


@pytest.mark.parametrize(("size", "step"), [((65, 8), 4), ((8, 97), 4), ((0, 8), 4), ((8, 8), 0)])
def test_a_window_that_does_not_fit_is_refused(size: tuple[int, int], step: int) -> None:
    with pytest.raises(InputError, match="doesn't fit"):
        compare.busiest(torch.zeros(3, 64, 96), size, step)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_of_luma_are_in_grey_levels() -> None:
    hr = torch.full((3, 4, 6), 100, dtype=torch.uint8)
    sr = hr.float() / 255
    sr[0, 1, 2] += 10 / 255
    sr[:, 3, 5] = 2.0  # clamped to white
    error = compare.luma_error(sr, hr.float() / 255)
    assert error[1, 2].item() == pytest.approx(10 * 65.481 / 255)
    assert error[3, 5].item() == pytest.approx(155 * 219 / 255)
    assert error.dtype == torch.float64 and (error > 0).sum() == 2
    assert torch.equal(compare.luma_plane(hr), compare.luma_plane(hr.float() / 255))
    with pytest.raises(InputError, match="differ"):
        compare.luma_error(sr, hr[:, :3])


# --- spectra ---------------------------------------------------------------------------------------------------------


def test_white_noise_has_its_variance_at_every_frequency() -> None:
    noise = 3 * torch.randn(8, 256, 320, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frequency = compare.radial_spectrum(noise[0], rings=16)[0]
    assert torch.allclose(frequency, (torch.arange(16).double() + 0.5) / 32)
    power = torch.stack([compare.radial_spectrum(plane, rings=16)[1] for plane in noise]).mean(0)
    assert (power[1:] / 9 - 1).abs().max() < 0.05 and abs(power[4:].mean().item() / 9 - 1) < 0.02


@pytest.mark.parametrize(("down", "across"), [(0.0, 0.2), (0.3, 0.0), (0.12, 0.16)])
def test_a_wave_has_its_power_at_its_frequency(down: float, across: float) -> None:
    y, x = torch.arange(200.0, dtype=torch.float64)[:, None], torch.arange(250.0, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * (down * y + across * x))
    frequency, power = compare.radial_spectrum(wave, rings=50)
    peak = frequency[power.argmax()].item()
    assert abs(peak - math.hypot(down, across)) <= 0.0101
    far = (frequency - peak).abs() > 0.03
    assert power[far].max() < 1e-4 * power.max()
    assert torch.allclose(compare.radial_spectrum(2 * wave + 70, rings=50)[1][~far], 4 * power[~far], rtol=1e-6)


def test_blur_takes_high_frequencies() -> None:
    image = torch.randn(128, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    soft = imresize(imresize(image[None], scale=0.25), size=(128, 128))[0]
    frequency, sharp = compare.radial_spectrum(image)
    ratio = compare.radial_spectrum(soft)[1] / sharp
    assert ratio[frequency < 0.06].mean() > 0.5 and ratio[frequency > 0.25].max() < 0.01


@pytest.mark.parametrize(
    ("plane", "rings", "said"),
    [
        (torch.zeros(3, 8, 8), 4, "one plane"),
        (torch.zeros(8, 8), 0, "one plane"),
        (torch.full((8, 8), math.nan), 2, "finite"),
        (torch.zeros(8, 8), 48, "fewer rings"),
    ],
)
def test_a_spectrum_of_something_else_is_refused(plane: torch.Tensor, rings: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        compare.radial_spectrum(plane, rings)


# --- multiply-adds ---------------------------------------------------------------------------------------------------


def test_multiply_adds_depend_on_the_size_alone_where_all_is_computed() -> None:
    for name in ("safmn", "ssiu"):
        network = create(name, 4)
        counted = complexity.count(network, (24, 32)).macs
        for image in (torch.zeros(1, 3, 24, 32), torch.rand(1, 3, 24, 32)):
            assert compare.multiply_adds(network, image, 4) == counted
        assert compare.multiply_adds_range(network, (24, 32), 4) is None


def test_an_image_that_chooses_experts_pays_for_those() -> None:
    network = create("seemore-t", 4).eval()
    routers = [module for module in network.modules() if type(module).__name__ == "Router"]
    image = torch.rand(1, 3, 24, 32)
    seen = {}
    for expert in range(3):
        for router in routers:
            router.body[2].register_forward_hook(
                lambda _, __, out, expert=expert: 0 * out + nn.functional.one_hot(torch.tensor([expert]), 3).to(out)
            )
        seen[expert] = compare.multiply_adds(network, image, 4)
    least, most = compare.multiply_adds_range(network, (24, 32), 4)
    assert (least, most) == route_macs(network.config, (24, 32))
    assert (seen[0], seen[2]) == (least, most) and least < seen[1] < most
    rank = len(routers) * 3 * network.config.channels * 24 * 32
    assert seen[1] - seen[0] == rank * (network.config.ranks[1] - network.config.ranks[0])


@pytest.mark.parametrize("expert", [0, -1])
def test_pixels_pay_for_the_experts_that_answer_them(expert: int) -> None:
    network = create("moeisr-lte-s-edsr", None).eval()
    with torch.no_grad():
        network.mapper[-1].bias[expert] += 1e3
    config, scale, (height, width) = network.config, 3, (10, 12)
    pixel, queries = executed_macs(config)
    expected = complexity.count(network.encoder, (height, width)).macs
    expected += height * width * (mapper_macs(config) + pixel + 4 * scale**2 * queries[expert])
    assert compare.multiply_adds(network, torch.rand(1, 3, height, width), scale) == expected
    assert compare.multiply_adds_range(network, (height, width), scale)[expert] == expected


def test_multiply_adds_are_counted_for_one_image() -> None:
    with pytest.raises(InputError, match="one image"):
        compare.multiply_adds(create("safmn", 4), torch.zeros(2, 3, 8, 8), 4)


def test_every_title_has_a_paper_and_a_colour() -> None:
    from srlib import papers, viz

    assert set(compare.PAINT) == {"bicubic", *compare.MODELS}
    for title, model in compare.MODELS.items():
        assert papers.paper_of(model) == compare.PAINT[title]
        assert config_class(model) and viz.colour(compare.PAINT[title])


def test_multiply_adds_of_training_are_those_of_the_forward_pass() -> None:
    """A network for one scale computes the patch; one for every scale has each expert answer each query."""
    safmn, moeisr = create("safmn", 4), create("moeisr-liif-s-edsr")
    assert compare.training_multiply_adds(safmn, 32, 4) == 4 * complexity.count(safmn, (32, 32)).macs
    seemore = create("seemore-t", 4)
    _, dearest = compare.multiply_adds_range(seemore, (32, 32), 4)
    assert compare.training_multiply_adds(seemore, 32, 1) > dearest, "more than any route takes: all experts"
    few, many = (compare.training_multiply_adds(moeisr, 16, 1, queries) for queries in (1, 101))
    _, experts = executed_macs(moeisr.config)
    cell = 2 * moeisr.config.hidden * len(experts)  # two numbers more of each query in the first layers
    assert many - few == 100 * 4 * (sum(experts) + cell)
    assert compare.training_multiply_adds(moeisr, 16, 3, 1) == 3 * few and not moeisr.config.depths == ()
    with pytest.raises(InputError, match="queries"):
        compare.training_multiply_adds(moeisr, 16, 1)
