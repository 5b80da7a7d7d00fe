"""Tiles: nothing changes where an upscaler looks no further than an overlap; memory is kept; what is done is said."""

import json
import math
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from srlib import tiles
from srlib.cli import main
from srlib.data import Store, find
from srlib.errors import InputError
from srlib.evaluate import AtScale, bicubic, score
from srlib.metrics import protocol
from srlib.models import create, default_config
from srlib.runs import save
from srlib.tiles import Footprint, Plan, Tiled, bands, difference, enlarged, free_memory, pieces, plan, work

SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    tile = draw(st.integers(16, 64))
    return Plan(tile, draw(st.integers(0, tile // 2)))


def noise(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(height + 1000 * width))


def nearest(scale: int) -> nn.Module:
    return nn.Upsample(scale_factor=scale, mode="nearest")


def narrow(name: str) -> nn.Module:
    """A network for every scale whose answers rest on 3x3 LR pixels or so: its encoder is one convolution."""
    torch.manual_seed(0)
    network = create(name)
    encoder = type(network.encoder)(blocks=0)
    encoder.body = nn.Identity()
    network.encoder = encoder
    return network.eval()


def whole(upscale: nn.Module, lr: Tensor) -> Tensor:
    with torch.inference_mode():
        return upscale(lr[None])[0]


# --- geometry ---------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(side=st.integers(1, 3000), start=st.integers(0, 50), plan=plans())
def test_pieces_cover_an_axis_with_tiles_of_one_length(side: int, start: int, plan: Plan) -> None:
    cut = pieces(start, start + side, plan.tile, plan.overlap)
    assert len({one.end - one.start for one in cut}) == 1
    assert cut[0].end - cut[0].start <= min(plan.tile, side)
    assert (cut[0].start, cut[-1].end) == (start, start + side) == (cut[0].full, cut[-1].until)
    for one, after in zip(cut, cut[1:], strict=False):
        assert one.start < after.start and one.end - after.start >= plan.overlap
        assert after.start <= after.begin <= after.full == one.until <= one.end
        assert one.begin < after.begin
    if plan.tile - plan.overlap >= 32:  # each tile has the image's own remainder, and starts where pooling does
        assert all((one.start - start) % 16 == 0 for one in cut)
        assert (cut[0].end - cut[0].start - side) % 16 == 0


def test_tiles_are_as_short_as_so_many_may_be() -> None:
    cut = pieces(0, 3000, 640, 32)
    length = cut[0].end - cut[0].start
    assert length < 640 and len(pieces(0, 3000, length, 32)) == len(cut) < len(pieces(0, 3000, length - 16, 32))
    assert work((3000, 4000), Plan(640, 32)) < 1.15
    assert work((3000, 4000), Plan(None)) == 1
    assert work((96, 40), Plan(64, 32)) == 2 * 64 / 96


@settings(max_examples=60, deadline=None)
@given(size=SIZES, plan=plans(), scale=st.sampled_from([1, 2, 3, 4]))
def test_an_upscaler_that_looks_at_one_pixel_comes_out_to_the_bit(
    size: tuple[int, int], plan: Plan, scale: int
) -> None:
    lr = noise(*size)
    assert torch.equal(Tiled(nearest(scale), scale, plan)(lr[None])[0], whole(nearest(scale), lr))


@settings(max_examples=25, deadline=None)
@given(size=SIZES, tile=st.integers(24, 64), scale=st.sampled_from([2, 3, 4]))
def test_bicubic_comes_out_as_whole(size: tuple[int, int], tile: int, scale: int) -> None:
    """Its kernel reaches two pixels: less than what of an overlap of twelve lies outside the ramp."""
    lr, upscale = noise(*size), bicubic(scale)
    assert (Tiled(upscale, scale, Plan(tile, 12))(lr[None])[0] - whole(upscale, lr)).abs().max() <= 1e-6


@settings(max_examples=25, deadline=None)
@given(size=SIZES, tile=st.integers(32, 64), scale=st.floats(0.4, 5.2))
def test_a_network_for_every_scale_comes_out_as_whole_at_any_scale(
    size: tuple[int, int], tile: int, scale: float
) -> None:
    lr, upscale = noise(*size), AtScale(LIIF, scale)
    expected = whole(upscale, lr)
    assert expected.shape[1:] == tuple(max(1, round(side * scale)) for side in size)
    assert (Tiled(upscale, scale, Plan(tile, 16))(lr[None])[0] - expected).abs().max() <= 1e-5


LIIF = narrow("moeisr-liif-s-edsr")


@pytest.mark.parametrize("scale", [2, 2.5, 3.37])
def test_the_lr_image_is_added_as_in_the_whole_one(scale: float) -> None:
    """LTE adds the LR image enlarged by bilinear interpolation; places are rounded in other units in a part of it."""
    lr, upscale = noise(61, 70), AtScale(narrow("moeisr-lte-s-edsr"), scale)
    assert (Tiled(upscale, scale, Plan(32, 16))(lr[None])[0] - whole(upscale, lr)).abs().max() <= 1e-4


def test_every_scale_works_without_overlap() -> None:
    lr, upscale = noise(40, 50), AtScale(LIIF, 2.5)
    made = Tiled(upscale, 2.5, Plan(16, 0))(lr[None])[0]
    apart = (made - whole(upscale, lr)).abs()
    assert made.isfinite().all() and 0 < apart.mean() < 0.01  # at the seams alone


SMALL_SSIU = replace(default_config("ssiu"), stages=3, channels=8)
SMALL_SEEMORE = replace(default_config("seemore-t"), groups=1)


@pytest.mark.parametrize(
    ("model", "config", "exact"),
    [
        ("safmn", replace(default_config("safmn"), blocks=1), True),  # pools of whole eighths are pools of tiles
        ("ssiu", replace(SMALL_SSIU, attention="sam"), True),  # blocks of the image are blocks of tiles
        ("ssiu", SMALL_SSIU, False),  # its enlargement aligns corners, and so hangs on where they are
        ("seemore-t", replace(SMALL_SEEMORE, experts=1), True),  # one expert weighs 1 wherever
        ("seemore-t", SMALL_SEEMORE, False),  # the router weighs its experts by the mean of the whole image
    ],
    ids=["safmn", "sam", "esam", "one expert", "router"],
)
def test_local_networks_are_exact_beyond_their_reach(model: str, config: object, exact: bool) -> None:
    torch.manual_seed(0)
    network = create(model, 2, config).eval()
    lr = noise(352, 48)
    expected = whole(network, lr)
    far, none = ((Tiled(network, 2, Plan(240, overlap))(lr[None])[0] - expected).abs().max() for overlap in (120, 0))
    assert (far <= 1e-6) == exact
    assert none > far


def test_a_seam_is_no_edge() -> None:
    """Between two tiles that disagree, no step is larger than the ramp makes it, and no pixel leaves their range."""

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3), keepdim=True).expand_as(x)

    lr = torch.linspace(0, 1, 64)[None, None].expand(3, 64, 64)
    sr = Tiled(Mean(), 1, Plan(40, 16))(lr[None])[0]
    assert sr.min() >= 0 and sr.max() <= 1
    steps = sr[0, 0].diff()
    assert (steps >= 0).all() and 0 < steps.max() < 0.25 * (sr.max() - sr.min())
    assert (sr[0] - sr[0, 0]).abs().max() < 1e-6


# --- bands ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "levels"), [(torch.uint8, 255), (torch.uint16, 65535), (torch.float64, 1)])
def test_bands_follow_one_another_and_make_the_whole(kind: torch.dtype, levels: int) -> None:
    lr = noise(70, 45)
    lr = (lr * levels).round().to(kind) if levels > 1 else lr.to(kind)
    seen: list[tuple[int, int]] = []
    got, at = [], 0
    for row, rows in bands(nearest(3), lr, 3, Plan(32, 8), progress=lambda done, total: seen.append((done, total))):
        assert row == at and rows.dtype == torch.float32 and rows.shape[2] == 135 and not rows.is_inference()
        at += rows.shape[1]
        got.append(rows)
    assert len(got) > 1
    assert torch.equal(torch.cat(got, 1), whole(nearest(3), lr.to(torch.float32) / levels))
    total = seen[0][1]
    assert seen == [(number, total) for number in range(1, total + 1)]


def test_a_network_is_used_in_evaluation_mode_and_the_caller_s_modes_stay() -> None:
    class Watched(nn.Upsample):
        modes: list[bool] = []

        def forward(self, x: Tensor) -> Tensor:
            self.modes.append(self.training or torch.is_grad_enabled())
            return super().forward(x)

    network = Watched(scale_factor=2).train()
    for _ in bands(network, noise(40, 40), 2, Plan(32, 8)):
        assert network.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert not any(Watched.modes)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bands(nearest(2), noise(4, 4)[:1], 2, Plan(None)), "one image"),
        (lambda: bands(nearest(2), noise(4, 4).long(), 2, Plan(None)), "int64"),
        (lambda: list(bands(nearest(2), noise(40, 40), 3, Plan(32, 8))), "use one for scale 3"),
        (lambda: list(bands(nearest(2), noise(40, 40), 3, Plan(None))), "use one for scale 3"),
        (lambda: bands(nearest(2), noise(40, 40), 2.5, Plan(32, 8)), "every scale"),
        (lambda: bands(LIIF, noise(40, 40), 2, Plan(32, 8)), "AtScale"),
        (lambda: plan(LIIF, (40, 40), 2), "AtScale"),
        (lambda: plan(nearest(2), (0, 40), 2), "no pixels"),
        (lambda: plan(nearest(2), (40, 40), math.nan), "not positive"),
        (lambda: plan(nearest(2), (40, 40), 2, tile=15), "too small"),
        (lambda: plan(nearest(2), (40, 40), 2, tile=-1), "too small"),
        (lambda: plan(nearest(2), (40, 40), 2, tile=32, overlap=17), "up to 16"),
        (lambda: plan(nearest(2), (40, 40), 2, tile=0, overlap=8), "leave the overlap out"),
        (lambda: plan(nearest(2), (40, 40), 2, memory=0), "give more"),
        (lambda: plan(nearest(2), (4000, 4000), 2, memory=1 << 10), "too little"),
        (lambda: plan(nearest(2), (40, 40), 2.5, tile=32), "every scale"),
    ],
)
def test_bad_input_is_refused_in_one_line(call: object, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as error:
        call()
    assert "\n" not in str(error.value)


# --- the choice -------------------------------------------------------------------------------------------------------


def test_a_wish_is_granted() -> None:
    network = nearest(2)
    assert plan(network, (300, 300), 2, tile=0) == plan(network, (300, 300), 2, tile=300) == Plan(None)
    assert plan(network, (300, 300), 2, tile=64) == Plan(64, 16)
    assert plan(network, (300, 300), 2, tile=256) == Plan(256, 32)
    assert plan(network, (300, 300), 2, tile=64, overlap=3) == Plan(64, 3)
    assert plan(network, (300, 301), 2, tile=300) == Plan(300, 32)


def test_tiles_are_chosen_where_the_whole_needs_more_than_there_is() -> None:
    network = create("safmn", 4).eval()
    size = (1200, 900)
    needed = tiles.footprint(network, 4)
    assert plan(network, size, 4, memory=int(needed.of(*size)) + 1) == Plan(None)
    found = [plan(network, size, 4, memory=memory << 20) for memory in (600, 300, 150)]
    sides = [one.tile for one in found]
    assert None not in sides and sides == sorted(sides, reverse=True) and sides[0] > sides[-1]
    for one, memory in zip(found, (600, 300, 150), strict=True):
        assert one.overlap == tiles.OVERLAP and needed.of(one.tile, one.tile) < memory << 20
    assert plan(network, size, 4, memory=300 << 20, overlap=8).overlap == 8


def test_the_footprint_is_that_of_a_whole_image() -> None:
    """Predicted from two small images, it meets what a larger one takes."""
    from srlib.complexity import peak_memory

    network = create("safmn", 4).eval()
    image = torch.rand(1, 3, 240, 250)
    with torch.inference_mode():
        taken = peak_memory(lambda: network(image)).rise
    assert tiles.footprint(network, 4).of(240, 250) == pytest.approx(taken, rel=0.1)


def test_a_footprint_is_measured_once_and_the_network_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    network = create("safmn", 2, replace(default_config("safmn"), blocks=1)).train()
    first = tiles.footprint(network, 2)
    assert first.pixel > 0 and all(module.training for module in network.modules())
    monkeypatch.setattr(network, "forward", None)
    assert tiles.footprint(network, 2) is first


def test_small_images_need_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "footprint", lambda *_: pytest.fail("measured"))
    assert plan(nearest(2), (200, 200), 2, memory=1 << 30) == Plan(None)


def test_a_cpu_is_never_asked_for_all_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "free_memory", lambda *_: 1 << 40)
    monkeypatch.setattr(tiles, "footprint", lambda *_: Footprint(0, 1000))
    assert plan(nearest(4), (3000, 4000), 4) == Plan(tiles.LARGEST, tiles.OVERLAP)
    monkeypatch.setattr(tiles, "free_memory", lambda *_: 1 << 30)
    assert plan(nearest(4), (3000, 4000), 4).tile < tiles.LARGEST


@pytest.fixture
def system(tmp_path: Path) -> tuple[Path, Path]:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  9000000 kB\nMemAvailable:  8000000 kB\n")
    return proc, cgroup


def put(folder: Path, names: tuple[str, str, str], limit: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


def test_free_memory_is_the_least_of_what_limits_leave(system: tuple[Path, Path]) -> None:
    proc, cgroup = system
    assert free_memory("cpu", *system) == 8_000_000 << 10
    (proc / "self" / "cgroup").write_text("0::/user/job\n")
    put(cgroup / "user", tiles.GROUP_2, "max", 7, 0)
    put(cgroup / "user" / "job", tiles.GROUP_2, "5000000", 3_000_000, 500_000)
    assert free_memory("cpu", *system) == 2_500_000
    put(cgroup / "user", tiles.GROUP_2, "3500000", 3_000_000, 0)
    assert free_memory("cpu", *system) == 500_000
    (proc / "self" / "cgroup").write_text("9:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n")
    put(cgroup / "memory", tiles.GROUP_1, "4000000", 1_000_000, 200_000)  # a container sees its own group as the root
    assert free_memory("cpu", *system) == 3_200_000
    put(cgroup / "memory" / "docker" / "abc", tiles.GROUP_1, "9000", 10_000, 0)
    assert free_memory("cpu", *system) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="address spaces are limited in this way on Linux")
def test_free_memory_heeds_the_limit_of_the_address_space() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30));"
        "from srlib.tiles import _addresses; from pathlib import Path; print(_addresses(Path('/proc')))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(answer.stdout) < 12 << 30


# --- too little memory ------------------------------------------------------------------------------------------------


class Tight(nn.Upsample):
    """A device that holds images of up to so many pixels a side, with the error that torch raises beyond."""

    def __init__(self, side: int, error: Exception) -> None:
        super().__init__(scale_factor=2, mode="nearest")
        self.side, self.error, self.failed = side, error, 0

    def forward(self, x: Tensor) -> Tensor:
        if max(x.shape[-2:]) > self.side:
            self.failed += 1
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize("start", [Plan(None), Plan(256, 32)])
def test_out_of_memory_halves_the_tiles_and_says_so_once(error: Exception, start: Plan) -> None:
    lr, network = noise(310, 280), Tight(96, error)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sr, used = enlarged(network, lr, 2, start)
    assert torch.equal(sr, whole(nearest(2), lr))
    assert used.tile is not None and used.tile <= 96 and used.overlap == 32
    assert network.failed == len(said) <= 2
    assert all("going on in tiles of" in str(one.message) for one in said)


def test_other_errors_and_too_little_memory_for_any_tile_come_through() -> None:
    with pytest.raises(RuntimeError, match="something else"):
        list(bands(Tight(8, RuntimeError("something else")), noise(100, 100), 2, Plan(64, 16)))
    with (
        pytest.warns(UserWarning, match="going on"),
        pytest.raises(InputError, match=r"too small for \d+ x \d+ pixels"),
    ):
        list(bands(Tight(8, torch.OutOfMemoryError()), noise(200, 200), 2, Plan(128, 32)))


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_say_where_images_were_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    store, usual = Store.open(find("photos/held-out")), protocol("matlab")
    plain = score(nearest(4), store, 4, usual)
    assert all(set(image) == {"name", "psnr", "ssim"} for image in plain.record()["images"])
    tiled = score(nearest(4), store, 4, usual, tile=112, overlap=8)
    assert [(one.psnr, one.ssim) for one in tiled.images] == [(one.psnr, one.ssim) for one in plain.images]
    largest = {image.name: max(store.pair(i, 4)[0].shape) for i, image in enumerate(tiled.images)}
    for image in tiled.record()["images"]:
        asked = {"tile": 112, "overlap": 8} if largest[image["name"]] > 112 else {}
        assert {key: value for key, value in image.items() if key in ("tile", "overlap")} == asked
    assert (tiled.tile, tiled.overlap) == (112, 8) and (plain.tile, plain.overlap) == (None, None)
    monkeypatch.setattr(tiles, "free_memory", lambda *_: 20 << 20)
    monkeypatch.setattr(tiles, "footprint", lambda *_: Footprint(0, 1500))
    assert score(nearest(4), store, 4, usual).tile == 64


def test_the_difference_is_the_metrics_own() -> None:
    lr, network = noise(60, 50), bicubic(2)
    found = difference(network, lr, 2, 32, 0)
    made, expected = (
        (one * 255).round().clamp(0, 255) for one in (Tiled(network, 2, Plan(32, 0))(lr[None])[0], whole(network, lr))
    )
    apart = (made - expected).abs()
    assert found.largest == apart.max() > 0
    assert found.share == pytest.approx((apart.amax(0) > 0).float().mean().item(), abs=1e-6)
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / (apart.double() ** 2).mean().item()))
    assert found.work == work((60, 50), Plan(32, 0))
    assert difference(network, lr, 2, 32, 0, whole=whole(network, lr)) == found


def test_the_command_tiles_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def srlib(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["srlib", *arguments])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    weights, out = tmp_path / "safmn.safetensors", tmp_path / "scores.json"
    save(create("safmn", 4, replace(default_config("safmn"), blocks=1)), "safmn", weights)
    options = ["--weights", str(weights), "--data", "photos/held-out", "--json"]
    assert srlib("evaluate", "safmn", *options, "--tile", "96", "--overlap", "16", "--out", str(out)) == 0
    printed = capsys.readouterr()
    ours, baseline = json.loads(printed.out)
    assert printed.err == ""
    assert (ours["tile"], ours["overlap"]) == (96, 16) and (baseline["tile"], baseline["overlap"]) == (None, None)
    assert {image.get("tile") for image in json.loads(out.read_text())["scores"][0]["images"]} == {96}
    for wrong, words in ((["--tile", "7"], "too small"), (["--tile", "64", "--overlap", "40"], "up to 32")):
        assert srlib("evaluate", "safmn", *options, *wrong) == 2
        assert re.fullmatch(f"srlib: .*{words}.*\n", capsys.readouterr().err)
    assert srlib("evaluate", "bicubic", "--tile", "64") == 2
    assert "for a network" in capsys.readouterr().err
    monkeypatch.setattr(tiles, "free_memory", lambda *_: 20 << 20)
    monkeypatch.setattr(tiles, "footprint", lambda *_: Footprint(0, 1500))
    assert srlib("evaluate", "safmn", *options) == 0
    printed = capsys.readouterr()
    assert [row["tile"] for row in json.loads(printed.out)] == [64, 64]
    assert re.fullmatch(
        r"srlib: .* tiles \(of 64 LR pixels, overlap 32.*safmn looks: .*\"Images of any size\".*\n", printed.err
    )


# --- memory -----------------------------------------------------------------------------------------------------------

PEAK = "int(__import__('re').search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"  # KiB; no parent's
GROWTH = """
import sys, torch
from srlib.models.safmn import SAFMN, SAFMNConfig
from srlib.tiles import Plan, bands

torch.set_num_threads(1)
height, width = (int(one) for one in sys.argv[1:])
network = SAFMN(SAFMNConfig(blocks=2)).eval()
lr = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
for _ in bands(network, lr[:, :120], 4, Plan(96, 16)):
    pass  # what torch takes for itself is taken now
before = PEAK
sr = torch.empty(3, 4 * height, 4 * width, dtype=torch.uint8)
for row, rows in bands(network, lr, 4, Plan(96, 16)):
    sr[:, row : row + rows.shape[1]] = (rows * 255).round().clamp(0, 255)
print(1024 * (PEAK - before) - sr.numel())
""".replace("PEAK", PEAK)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says the peak of memory")
def test_memory_does_not_grow_with_the_height_beyond_the_picture_itself(exact_memory: dict[str, str]) -> None:
    """Six times the height takes no more but for the output in 8 bits, of which a copy in floating point would take 100
    MB."""
    grown = []
    for height in (200, 1200):
        command = [sys.executable, "-c", GROWTH, str(height), "450"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env=exact_memory)
        grown.append(int(answer.stdout))
    assert grown[1] < grown[0] + (16 << 20), grown
    assert grown[1] < 40 << 20, grown


@pytest.mark.skipif(not os.environ.get("SRLIB_BIG"), reason="takes minutes: set SRLIB_BIG=1 to run it")
def test_a_photograph_of_12_megapixels_is_enlarged_in_6_gb(tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "from srlib.models import create\n"
        "from srlib.tiles import bands, plan\n"
        "network, lr = create('safmn', 4).eval(), torch.randint(0, 256, (3, 3000, 4000), dtype=torch.uint8)\n"
        "sr = torch.zeros(3, 12000, 16000, dtype=torch.uint8)\n"
        "for row, rows in bands(network, lr, 4, plan(network, (3000, 4000), 4)):\n"
        "    sr[:, row : row + rows.shape[1]] = rows.mul_(255).round_().clamp_(0, 255)\n"
        f"print({PEAK})\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(answer.stdout) * 1024 < 6e9
