"""What is drawn says what it shows, comes light and dark, and never rests on colour alone."""

import base64
import re
from dataclasses import dataclass
from decimal import Decimal
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srlib import viz
from srlib.errors import InputError

BOOK_STYLE = Path(__file__).resolve().parent.parent / "book" / "_static" / "book.css"


@dataclass(frozen=True)
class Cell:
    row: str
    metric: str
    printed: str
    ours: Decimal | None
    verdict: str
    note: str = ""
    variant: str = ""
    scale: int = 4
    dataset: str = ""
    unit: str = "G"
    record: str = ""


@dataclass(frozen=True)
class Entry:
    kind: str
    row: str
    printed: str
    ours: str
    explanation: str
    evidence: str
    verdict: str = ""
    table: int | None = 3
    scale: int | None = 4
    metric: str = "flops"
    dataset: str = ""
    record: str = ""


class Tags(HTMLParser):
    """Every opening tag with its attributes; fails where tags aren't closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag]


def shown(thing: viz.Shown) -> Tags:
    return Tags(thing._repr_html_())


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def pixels(source: str | None) -> np.ndarray:
    assert source is not None
    return np.asarray(Image.open(BytesIO(base64.b64decode(source.partition("base64,")[2]))))


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb(colour)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def luminance_of(pixel: np.ndarray) -> float:
    return luminance("#" + "".join(f"{value:02x}" for value in pixel))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def rgb(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


CHARTS = {
    "curves": lambda alt: viz.curves({"LN": {"step": [0, 1, 2], "loss": [3, 2, 1]}}, "step", "loss", alt=alt),
    "scatter": lambda alt: viz.scatter(
        {"SAFMN": (52, 38.0, 228), "IMDN": (159, 38.0, 694)}, xlabel="x", ylabel="y", alt=alt
    ),
    "bars": lambda alt: viz.bars({"LayerNorm": 2.0, "split": 1.0}, unit="us", alt=alt),
    "spectra": lambda alt: viz.spectra({"HR": [9.0, 4.0, 1.0], "bicubic": [9.0, 2.0, 0.1]}, [0.1, 0.2, 0.3], alt=alt),
    "shares": lambda alt: viz.shares({"1": {"rank 2": 0.25, "rank 4": 0.75}, "2": {"rank 2": 1.0}}, alt=alt),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_comes_light_and_dark_with_its_text(name: str) -> None:
    alt = 'loss < 1 & "falling"'
    light, dark = shown(CHARTS[name](alt)).named("img")
    assert (light["class"], dark["class"]) == ("only-light", "only-dark")
    assert light["alt"] == dark["alt"] == alt
    assert light["src"] != dark["src"] and str(light["src"]).startswith("data:image/svg+xml;base64,")
    assert "display:none" in str(dark["style"]), "where no style sheet is known, one of the two must stay hidden"


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_the_same_each_time(name: str) -> None:
    assert CHARTS[name]("same")._repr_html_() == CHARTS[name]("same")._repr_html_()


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_without_text_alternative_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="text alternative"):
        CHARTS[name]("  ")


def test_images_crop_by_nearest_neighbour_at_the_same_place() -> None:
    hr = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    lr = hr[:, ::4, ::4]
    page = shown(
        viz.images({"HR": hr, "LR": lr, "ours": hr / 255}, crop=(16, 32, 8, 16), alt="noise", scores={"ours": "30 dB"})
    )
    whole, first, small, ours = page.named("img")
    assert [image["alt"] for image in (first, small, ours)] == ["HR: noise", "LR: noise", "ours, 30 dB: noise"]
    boxed = pixels(whole["src"])
    expected = hr.permute(1, 2, 0).numpy()
    assert boxed.shape == expected.shape and (boxed != expected).any(), "the box is drawn in"
    assert (boxed[16:24, 32:48] == expected[16:24, 32:48]).all(), "the box leaves the crop itself alone"
    crop = pixels(first["src"])
    factor = crop.shape[0] // 8
    assert (crop[::factor, ::factor] == expected[16:24, 32:48]).all()
    assert (crop == crop[::factor, ::factor].repeat(factor, 0).repeat(factor, 1)).all()
    assert (pixels(ours["src"]) == crop).all()
    tiny = pixels(small["src"])
    factor = tiny.shape[0] // 2
    assert (tiny[::factor, ::factor] == lr.permute(1, 2, 0).numpy()[4:6, 8:12]).all()


@pytest.mark.parametrize(
    "panels, crop, message",
    [
        ({}, None, "at least one"),
        ({"HR": torch.zeros(3, 8, 8)}, (4, 4, 8, 8), "leaves the image"),
        ({"HR": torch.zeros(2, 3, 8, 8)}, None, "one image"),
        ({"HR": torch.full((3, 8, 8), float("nan"))}, None, "finite"),
        ({"HR": torch.zeros(3, 8, 8), "SR": torch.zeros(3, 8, 9)}, (0, 0, 4, 4), "another shape"),
    ],
)
def test_images_refuse_what_they_cannot_show(panels: dict[str, torch.Tensor], crop: tuple | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        viz.images(panels, crop=crop, alt="a")


@pytest.mark.parametrize("count, columns", [(1, 1), (4, 4), (5, 5), (6, 3), (8, 4), (36, 5)])
def test_panels_stand_in_lines_of_one_length(count: int, columns: int) -> None:
    panels = {f"{k}": torch.zeros(3, 4, 4) for k in range(count)}
    assert f'style="--columns:{columns}"' in viz.images(panels, alt="black").html


def test_features_are_drawn_alike_and_say_their_range() -> None:
    ramp = torch.linspace(-1, 1, 200).expand(4, 10, 200)
    page = viz.features({"a": ramp, "b": 5 * ramp}, alt="ramps")
    first, second = shown(page).named("img")
    assert (pixels(first["src"]) == pixels(second["src"])).all()
    assert "\u22120.98 to 0.98" in text(page.html) and "\u22124.9 to 4.9" in text(page.html)
    with pytest.raises(InputError, match="finite"):
        viz.features({"a": torch.tensor([[[float("inf"), 0.0]]])}, alt="a")
    with pytest.raises(InputError, match="4 channels"):
        viz.features({"a": ramp}, alt="a", channel=4)


def test_expert_maps_have_four_colours_shares_and_a_legend() -> None:
    chosen = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]])
    names = ("2 layers", "3 layers", "4 layers", "5 layers")
    page = viz.expert_maps(
        {"photo": torch.zeros(3, 2, 4), "map": chosen}, names, alt="a map", scores={"photo": "30.00 dB"}
    )
    photo, drawn = (pixels(attrs["src"]) for attrs in shown(page).named("img"))
    assert photo.max() == 0 and (drawn[1] == drawn[1, 0]).all()
    assert [tuple(pixel) for pixel in drawn[0]] == [
        tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in viz.EXPERTS
    ]
    words = text(page.html)
    assert "2 layers 62%, 3 layers 12%, 4 layers 12%, 5 layers 12%" in words and "30.00 dB" in words
    assert page.html.count("background:#") == 4 and repr(page) == "a map"
    for wrong, experts in ((chosen, names[:3]), (chosen - 1, names), (chosen, (*names, "6 layers"))):
        with pytest.raises(InputError, match="give"):
            viz.expert_maps({"map": wrong}, experts, alt="a")


def test_experts_grow_darker_with_their_depth() -> None:
    lightness = [luminance(colour) for colour in viz.EXPERTS]
    assert all(contrast(a, b) > 1.5 and x > y for a, b, x, y in zip(
        viz.EXPERTS, viz.EXPERTS[1:], lightness, lightness[1:], strict=False
    ))  # fmt: skip


def test_attribution_maps_share_one_scale_and_frame_the_patch() -> None:
    lr = torch.rand(3, 60, 80)
    one, other = torch.zeros(60, 80), torch.full((60, 80), 0.01)
    one[30, 40], one[0, 0] = 9, 1
    other[30, 40] = 0.1
    box = (20, 30, 5, 5)
    page = viz.attribution(
        {"bicubic": 5 * one, "<ours>": other},
        lr,
        box,
        alt="two maps",
        hr=torch.rand(3, 240, 320),
        scores={"<ours>": "DI 9"},
    )
    bar, hr, first, second = shown(page).named("img")
    assert str(bar["alt"]).endswith("from light, 0.09 %, to dark, 90 % of a map in one pixel")
    assert [str(image["alt"]) for image in (hr, second)] == ["HR: two maps", "<ours>, DI 9: two maps"]
    panels = [pixels(image["src"]) for image in (hr, first, second)]
    assert {panel.shape for panel in panels} == {(240, 320, 3)}, "all at one size, LR pixels enlarged"
    for panel in panels:
        red = (panel == viz.RED).all(-1)
        frame = np.argwhere(red)
        assert frame.min(0).tolist() == [78, 118] and frame.max(0).tolist() == [101, 141]
        assert not red[80:100, 120:140].any(), "the patch itself is not covered"
    _, first, second = panels
    dark, light = pixels(bar["src"])[0, -1], first[2, 2]
    assert (first[122, 162] == dark).all() and luminance_of(dark) < luminance_of(light)
    grey = first[2:240:4, 2:320:4]
    untouched = (grey[..., 0] == grey[..., 1]) & (grey[..., 1] == grey[..., 2])
    assert untouched[50:].all(), "where nothing is attributed LR stays, in grey"
    assert (grey[50:].min() >= 140) and not untouched[0, 0] and not untouched[30, 40]
    assert (second[122, 162] != dark).any(), "a larger share is darker in any map"
    scaled = viz.attribution({"bicubic": one, "<ours>": 7 * other}, lr, box, alt="two maps", hr=torch.rand(3, 240, 320))
    assert [image["src"] for image in shown(scaled).named("img")][2:] == [image["src"] for image in shown(page).named(
        "img"
    )][2:]  # fmt: skip
    assert "0.09 %" in text(page.html) and "90 % of the map in one pixel (grey: less)" in text(page.html)
    assert repr(page) == "two maps"


def test_attribution_maps_of_several_figures_share_a_scale_that_is_given() -> None:
    lr, hr, box = torch.rand(3, 60, 80), torch.rand(3, 240, 320), (20, 30, 5, 5)
    near, far = torch.zeros(60, 80), torch.zeros(60, 80)
    near[30, 40], near[50, 60] = 8, 2
    far[30, 40], far[50, 60], far[10, 10] = 5, 3, 2

    def drawn(largest: float | None, **maps: torch.Tensor) -> tuple[str, list[np.ndarray]]:
        """What is said of the scale, and the pixels of the bar and of each map."""
        page = viz.attribution(maps, lr, box, alt="a", hr=hr, largest=largest)
        bar, _, *panels = shown(page).named("img")
        return f"{text(page.html)} {bar['alt']}", [pixels(image["src"]) for image in (bar, *panels)]

    together, alone = drawn(None, near=near, far=far), drawn(None, far=far)
    apart = [drawn(0.8, near=near), drawn(0.8, far=far)]
    assert all(np.array_equal(a[1][1], b) for a, b in zip(apart, together[1][1:], strict=True))
    assert not np.array_equal(alone[1][1], together[1][2])
    for words, _ in (together, *apart):
        assert words.count("0.08 %") == words.count("80 %") == 2 and "and more" not in words
    words, (bar, panel) = drawn(0.5, near=near)
    assert words.count("50 % and more") == 2
    assert (panel[122, 162] == bar[0, -1]).all(), "a share above the scale is as dark as its end"
    assert (panel[202, 242] != bar[0, -1]).any()


@pytest.mark.parametrize(
    ("maps", "box", "hr", "message"),
    [
        ({}, (0, 0, 1, 1), None, "at least one"),
        ({"a": torch.ones(3, 8, 8)}, (0, 0, 1, 1), None, "one number a pixel"),
        ({"a": torch.ones(8, 9)}, (0, 0, 1, 1), None, "8 x 8"),
        ({"a": torch.zeros(8, 8)}, (0, 0, 1, 1), None, "nothing at all"),
        ({"a": -torch.ones(8, 8)}, (0, 0, 1, 1), None, "below 0"),
        ({"a": torch.full((8, 8), float("nan"))}, (0, 0, 1, 1), None, "not finite"),
        ({"a": torch.ones(8, 8)}, (0, 0, 9, 1), None, "leaves the image"),
        ({"a": torch.ones(8, 8)}, (0, 0, 1, 1), torch.zeros(3, 20, 20), "whole number of times"),
    ],
)
def test_attribution_maps_that_cannot_be_shown_are_refused(
    maps: dict[str, torch.Tensor], box: tuple, hr: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        viz.attribution(maps, torch.zeros(3, 8, 8), box, alt="a", hr=hr)


@pytest.mark.parametrize("largest", [0, -0.1, 1.5, 20, float("nan"), float("inf")])
def test_attribution_maps_want_a_share_as_their_scales_end(largest: float) -> None:
    with pytest.raises(InputError, match="can't be coloured up to"):
        viz.attribution({"a": torch.ones(8, 8)}, torch.zeros(3, 8, 8), (0, 0, 1, 1), alt="a", largest=largest)


def test_a_band_of_a_curve_is_named() -> None:
    logs = {"LIIF": {"scale": [1, 2, 8], "psnr": [40, 35, 25]}}
    plain, shaded = (viz.curves(logs, "scale", "psnr", alt="a", band=band) for band in (None, (1, 4, "in scale")))
    assert plain.html != shaded.html


def test_smoothing_starts_unbiased_and_ends_at_the_collapse() -> None:
    assert np.allclose(viz._smooth(np.full(50, 3.0), 0.98), 3.0)
    assert viz._smooth(np.array([0.0, 1.0]), 0.5)[1] == pytest.approx(2 / 3)
    assert (viz._smooth(np.array([4.0, 1.0]), 0.0) == [4.0, 1.0]).all()
    for values in ([1.0, float("nan"), 1.0], [float("nan")] * 3):
        viz.curves({"LN -> None": {"step": [0, 1, 2], "loss": values}}, "step", "loss", alt="collapse")
    with pytest.raises(InputError, match="no column 'psnr'"):
        viz.curves({"LN": {"step": [0], "loss": [1]}}, "step", "psnr", alt="a")
    with pytest.raises(InputError, match="smoothing"):
        viz.curves({"LN": {"step": [0], "loss": [1]}}, "step", "loss", alt="a", smooth=1)


def test_printed_circles_belong_to_points() -> None:
    points = {"T": (45.0, 39.0, 220.0)}
    again = viz.scatter(points, xlabel="x", ylabel="y", alt="a", printed={"T": (44.0, 39.0, 220.0)})
    assert again.html != viz.scatter(points, xlabel="x", ylabel="y", alt="a").html
    with pytest.raises(InputError, match="none of the points; choose one of: T"):
        viz.scatter(points, xlabel="x", ylabel="y", alt="a", printed={"L": (1.0, 1.0, 1.0)})
    with pytest.raises(InputError, match="without a number"):
        viz.scatter(points, xlabel="x", ylabel="y", alt="a", printed={"T": (1.0, float("nan"), 1.0)})


def test_circles_have_areas_in_proportion_and_none_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    axes, drawn = pytest.importorskip("matplotlib.axes").Axes, []
    scatter = axes.scatter
    monkeypatch.setattr(axes, "scatter", lambda self, *args, **kw: drawn.append(kw) or scatter(self, *args, **kw))
    points = {"quoted": (1.0, 1.0, 800.0), "small": (1.0, 1.0, 200.0), "large": (1.0, 1.0, 400.0)}
    viz.scatter(points, xlabel="x", ylabel="y", alt="a", models={"small": "seemore", "large": "safmn"})
    one = drawn[:3]  # of the four drawings: light and dark, wide and narrow
    assert [circle["s"] / one[1]["s"] for circle in one] == pytest.approx([2, 1, 4])
    assert [circle["facecolor"] == "none" for circle in one] == [False, False, True]


@pytest.mark.parametrize("values", [{}, {"1": {}}, {"1": {"a": 0.6, "b": 0.6}}, {"1": {"a": -0.1}}])
def test_what_is_no_share_is_refused(values: dict[str, dict[str, float]]) -> None:
    with pytest.raises(InputError, match="no share|give shares"):
        viz.shares(values, alt="a")


@pytest.mark.parametrize("theme", viz.PAGE)
def test_shares_are_written_into_their_bars_and_told_apart_by_lightness(theme: str) -> None:
    from matplotlib.axes import Axes
    from matplotlib.colors import to_hex

    drawn: list[Axes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(viz, "_chart", lambda draw, alt, caption: draw(drawn[0]) or alt)
        with viz.style(theme):
            from matplotlib.figure import Figure

            drawn.append(Figure(figsize=(7.2, 3.6), layout="constrained").subplots())
            viz.shares({"1": {"a": 0.5, "b": 0.45, "c": 0.05}, "2": {"a": 1.0}}, alt="a")
    texts = {text.get_text(): to_hex(text.get_color()) for text in drawn[0].texts if text.get_text()}
    assert texts.keys() == {"50%", "45%", "100%"}
    faces = [to_hex(bar.patches[0].get_facecolor()) for bar in drawn[0].containers]
    lightness = [luminance(face) for face in faces]
    assert lightness == sorted(lightness) and contrast(faces[0], faces[1]) > 2
    assert contrast(texts["50%"], faces[0]) >= 4.5 and contrast(texts["45%"], faces[1]) >= 4.5


def test_each_model_has_one_colour_and_marker_of_its_own() -> None:
    assert {"bicubic", "safmn", "seemore", "ssiu", "liif", "lte", "moeisr"} <= set(viz.COLOURS)
    assert viz.COLOURS.keys() == viz.MARKERS.keys()
    assert len(set(viz.COLOURS.values())) == len(set(viz.MARKERS.values())) == len(viz.COLOURS)
    with pytest.raises(InputError, match="choose one of: bicubic, safmn"):
        viz.colour("edsr")


def test_colours_stay_apart_with_red_green_blindness() -> None:
    """Simulated after Machado, Oliveira and Fernandes (2009), full severity; distance in CIELAB."""
    simulations = {
        "normal": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    }
    srgb = np.array([rgb(colour) for colour in viz.COLOURS.values()])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    for name, matrix in simulations.items():
        seen = np.clip(linear @ np.array(matrix).T, 0, 1)
        f = np.cbrt(seen @ to_xyz.T / [0.95047, 1, 1.08883])
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e9 * np.eye(len(lab))
        assert apart.min() > 20, name


@pytest.mark.parametrize("model", viz.COLOURS)
def test_colours_and_shades_show_on_both_pages(model: str) -> None:
    shades = viz.shades(model, 7)
    assert shades[0] == viz.colour(model) and len(set(shades)) == 7
    for colour in shades:
        assert min(contrast(colour, page) for page in viz.PAGE.values()) >= 3, colour


def test_verdict_badges_have_text_contrast_of_aa() -> None:
    found = re.findall(r"(\[data-theme=\"dark\"\] )?\.verdict-([a-z-]+)[^{}]*\{\s*--verdict:\s*(#\w{6})", viz.STYLE)
    seen = {(bool(dark), verdict): colour for dark, verdict, colour in found}
    for verdict in viz.VERDICTS:
        assert contrast(seen[False, verdict], viz.PAGE["light"]) >= 4.5
        assert contrast(seen[True, verdict], viz.PAGE["dark"]) >= 4.5


def test_the_book_repeats_the_badges_that_figures_bring_along() -> None:
    def squeeze(css: str) -> str:
        return re.sub(r"\s+", " ", css)

    rules = re.findall(r"[^{}]*\.verdict[^{}]*\{[^}]*\}", squeeze(viz.STYLE))
    badges = [rule.strip() for rule in rules if "srlib-stack" not in rule]
    assert len(badges) >= 9
    book = squeeze(BOOK_STYLE.read_text())
    assert [rule for rule in badges if rule not in book] == []


def test_error_maps_share_one_scale_that_is_written_out() -> None:
    small, large = np.zeros((4, 6)), torch.zeros(4, 6)
    small[1, 2], large[1, 2] = 20, 40
    page = viz.error_maps(
        {"a": small, "b": large}, alt="Errors.", limit=40, scores={"a": "mean 0.8"}, records={"a": "run-1"}
    )
    assert 'data-record="run-1">mean 0.8<' in page.html
    bar, first, second = shown(page).named("img")
    assert bar["alt"] == "Colour bar from dark, 0, to light, 40 grey levels"
    assert "0 " in text(page.html) and "40 grey levels" in text(page.html)
    ramp = pixels(bar["src"])[0].astype(int)
    values = {name: pixels(image["src"])[1, 2].astype(int) for name, image in (("a", first), ("b", second))}
    assert (values["b"] == ramp[-1]).all() and np.abs(values["a"] - ramp[len(ramp) // 2]).max() <= 6
    assert (pixels(first["src"])[0, 0] == ramp[0]).all()
    assert np.diff(ramp.sum(1)).min() >= 0, "lighter means a larger error"
    assert first["alt"] == "a, mean 0.8: Errors. Dark is no error, light is 40 grey levels."


def test_error_maps_say_where_the_scale_ends_and_that_there_is_more() -> None:
    errors = np.zeros((100, 100))
    errors[0, :60], errors[0, 0] = 31.2, 200.0
    assert "32 grey levels and more" in text(viz.error_maps({"a": errors}, alt="x").html)
    assert "1 grey levels" in text(viz.error_maps({"a": np.zeros((3, 3))}, alt="x").html)


@pytest.mark.parametrize(
    ("errors", "options", "said"),
    [
        ({}, {}, "no error map"),
        ({"a": np.zeros((3, 4, 5))}, {}, "one plane"),
        ({"a": np.zeros((0, 5))}, {}, "one plane"),
        ({"a": -np.ones((4, 5))}, {}, "below 0"),
        ({"a": np.full((4, 5), np.nan)}, {}, "not finite"),
        ({"a": np.ones((4, 5))}, {"limit": 0}, "above 0"),
        ({"a": np.ones((4, 5))}, {"alt": " "}, "text alternative"),
    ],
)
def test_error_maps_of_something_else_are_refused(errors: dict, options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        viz.error_maps(errors, **{"alt": "x", **options})


def test_spectra_relative_to_themselves_are_flat() -> None:
    one = {"HR": [9.0, 4.0, 1.0], "ours": [9.0, 4.0, 1.0]}
    two = {"HR": [1.0, 2.0, 3.0], "ours": [1.0, 2.0, 3.0]}
    drawn = [viz.spectra(p, [0.1, 0.2, 0.3], relative=True, alt="x", nyquist=0.125).html for p in (one, two)]
    assert drawn[0] == drawn[1], "what is drawn is the ratio alone"
    assert viz.spectra(one, [0.1, 0.2, 0.3], alt="x").html != viz.spectra(two, [0.1, 0.2, 0.3], alt="x").html


@pytest.mark.parametrize(
    ("powers", "options", "said"),
    [
        ({}, {}, "no spectrum"),
        ({"HR": [1.0, 2.0]}, {}, "each of 3 frequencies"),
        ({"HR": [1.0, 2.0, 0.0]}, {}, "positive"),
        ({"HR": [1.0, 2.0, np.inf]}, {}, "positive"),
        ({"ours": [1.0, 2.0, 3.0]}, {"relative": True}, "choose one of: ours"),
        ({"ours": [1.0, 2.0, 3.0]}, {"models": {"ours": "nobody"}}, "no colour"),
    ],
)
def test_spectra_of_something_else_are_refused(powers: dict, options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        viz.spectra(powers, [0.1, 0.2, 0.3], alt="x", **options)


def test_a_comparison_holds_each_image_once_and_without_loss() -> None:
    draw = np.random.default_rng(0)
    panels = {label: draw.integers(0, 256, (12, 20, 3), dtype=np.uint8) for label in ("HR", "bicubic", "S <1>")}
    page = viz.compare(panels, alt="noise", scores={"bicubic": "30 dB"}, caption="Caption.")
    images = shown(page).named("img")
    assert [image["alt"] for image in images] == ["HR: noise", "bicubic, 30 dB: noise", "S <1>: noise"]
    for image, panel in zip(images, panels.values(), strict=True):
        assert (pixels(image["src"]) == panel).all()
        assert (image["width"], image["height"]) == ("20", "12")
    (figure,) = shown(page).named("figure")
    assert figure["class"] == "srlib-viz srlib-compare"
    assert (figure["data-width"], figure["data-height"]) == ("20", "12")
    assert (figure["data-left"], figure["data-right"]) == ("bicubic", "S <1>")
    panes = [attrs for attrs in shown(page).named("div") if "srlib-pane" in str(attrs.get("class")).split()]
    assert [pane["data-label"] for pane in panes] == list(panels)
    assert [pane["data-note"] for pane in panes] == ["", "30 dB", ""]
    assert "bicubic 30 dB" in text(page.html) and "Caption." in text(page.html)
    linked = viz.compare(panels, alt="noise", scores={"bicubic": "30 dB"}, records={"bicubic": "safmn-x4-800-12ab"})
    assert '<span class="srlib-record" data-record="safmn-x4-800-12ab">30 dB</span>' in linked.html
    other = shown(viz.compare(panels, alt="noise", left="S <1>", right="HR")).named("figure")[0]
    assert (other["data-left"], other["data-right"]) == ("S <1>", "HR")


def test_a_comparison_of_two_has_them_on_its_sides() -> None:
    (figure,) = shown(viz.compare({"a": np.zeros((8, 8)), "b": np.ones((8, 8))}, alt="x")).named("figure")
    assert (figure["data-left"], figure["data-right"]) == ("a", "b")


@pytest.mark.parametrize(
    ("panels", "options", "said"),
    [
        ({"a": np.zeros((8, 8))}, {}, "at least two"),
        ({"a": np.zeros((8, 8)), "b": np.zeros((8, 9))}, {}, "one size"),
        ({"a": np.zeros((8, 8)), "b": np.zeros((8, 8))}, {"left": "c"}, "left side; choose one of: a, b"),
        ({"a": np.zeros((8, 8)), "b": np.zeros((8, 8))}, {"alt": ""}, "text alternative"),
        ({"a": np.zeros((8, 8)), "b": np.zeros((8, 8))}, {"records": {"a": "run-1"}}, "a record for 'a'"),
    ],
)
def test_what_cannot_be_compared_is_refused(panels: dict, options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        viz.compare(panels, **{"alt": "x", **options})


def test_the_page_finds_in_a_comparison_what_its_script_asks_for() -> None:
    """Classes and attributes that slider.js reads, and those that it styles."""
    script = BOOK_STYLE.with_name("slider.js").read_text()
    html = viz.compare({"a": np.zeros((8, 8)), "b": np.ones((8, 8))}, alt="x").html
    asked = re.findall(r'querySelector(?:All)?\("(?:figure)?\.([a-z-]+)', script)
    assert {"srlib-compare", "srlib-pane", "srlib-panes"} <= set(asked)
    assert [name for name in asked if not re.search(rf'class="[^"]*\b{name}\b', html)] == []
    for attribute in ("label", "note", "width", "height", "left", "right"):
        assert f"data-{attribute}=" in html and attribute in script
    style = BOOK_STYLE.with_name("slider.css").read_text()
    made = set(re.findall(r"srlib-[a-z]+", script)) | set(re.findall(r"srlib-[a-z]+", html))
    assert set(re.findall(r"srlib-[a-z]+", style)) <= made


def test_a_printed_table_marks_verdicts_in_words() -> None:
    cells = [
        Cell("Baseline", "flops", "13.56", Decimal("13.5549"), "within", "rounded <twice>", "group=Main"),
        Cell("Baseline", "params", "239.52", Decimal("239.520"), "exact", "", "group=Main", unit="K"),
        Cell("CCM -> MLP, lr=1x10^-3", "flops", "4.00", Decimal("3.2"), "differs", "rounded <twice>", "group=Main"),
        Cell("Peer", "flops", "7", None, "not-run", "as printed", "group=Other"),
    ]
    table = viz.table_html(cells, "Table 3 & more")
    page = shown(table)
    words = text(table.html)
    for expected in (
        "= exact",
        "~ within",
        "\u2260 differs",
        "\u00b7 not run",
        "13.5549",
        "239.52",
        "rounded &lt;twice&gt;",
    ):
        assert expected in words
    assert words.count("as printed") == words.count("rounded &lt;twice&gt;") == 1, "each note is listed once"
    assert "CCM \u2192 MLP, lr=1\u00d710\u207b\u00b3" in words
    assert "#FLOPs [G]" in words and "#Params [K]" in words
    classes = {name for attrs in page.named("td") for name in (attrs.get("class") or "").split()}
    assert classes == {"cell-within", "cell-exact", "cell-differs", "cell-not-run"}
    headings = [attrs.get("scope") for attrs in page.named("th")]
    assert headings.count("row") == 3 and headings.count("rowgroup") == 2 and headings.count("col") == 3
    assert repr(table) == "Table 3 & more 4 printed cells: 1 exact, 1 within, 1 differs, 1 not run."
    [box] = [attrs for attrs in page.named("div") if attrs.get("class") == "srlib-scroll"]
    assert box["tabindex"] == "0" and box["aria-label"] == "Table 3 & more"


def test_a_printed_table_never_writes_a_number_that_reads_as_printed_where_it_differs() -> None:
    assert viz._ours(Cell("r", "flops", "13.56", Decimal("13.5549"), "within")) == "13.5549"
    assert viz._ours(Cell("r", "flops", "13.56", Decimal("13.5555"), "exact")) == "13.56"
    assert viz._ours(Cell("r", "acts", "110.00", Decimal("109.878"), "differs")) == "109.878"


def test_every_column_of_a_printed_table_has_its_place() -> None:
    cells = [
        Cell("Bicubic", "psnr", "28.42", Decimal("28.42"), "exact", dataset="Set5", unit="dB", scale=4),
        Cell("Bicubic", "psnr", "33.66", None, "not-run", "later", dataset="Set5", unit="dB", scale=2),
        Cell("SAFMN", "params", "240", Decimal("239.5"), "exact", unit="K", scale=4),
    ]
    html = viz.table_html(cells, "Table 1").html
    assert html.index("#Params") < html.index("PSNR"), "counts come before scores, as in the papers"
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", html)
    assert [row.count("<td") for row in rows] == [2, 2, 2]
    assert "\u00d74" in text(html) and "\u00d72" in text(html)


def test_a_wide_printed_table_is_set_tight_and_keeps_its_words() -> None:
    def table(sets: int) -> viz.Shown:
        return viz.table_html([Cell("r", "psnr", "30", None, "differs", dataset=f"D{k}") for k in range(sets)], "t")

    narrow, wide, packed = table(5), table(6), table(9)
    for it, classes in ((narrow, []), (wide, ["srlib-wide"]), (packed, ["srlib-wide", "srlib-packed"])):
        shown(it)
        assert it.html.partition('"')[2].partition('"')[0].split() == ["srlib-table", *classes]
    assert text(narrow.html).count("\u2260 differs") == 5
    assert text(wide.html).count("\u2260 differs") == 7, "each cell for screen readers, and the key"
    assert wide.html.count('<span class="srlib-unseen">differs</span>') == 6


def test_scales_stand_across_where_a_table_prints_them_so() -> None:
    cells = [
        Cell(row, "flops", f"{scale}.00", None, "not-run", variant=f"block={block}", scale=scale, dataset="Set14")
        for block, row in (("EDSR-LIIF", "EDSR-LIIF"), ("EDSR-LTE", "EDSR-LTE"))
        for scale in (2, 3, 30)
    ]
    table = viz.table_html(cells, "Table 3", across=True)
    words = text(table.html)
    assert "\u00d72 \u00d73 \u00d730" in words and "Set14" not in words
    headings = [attrs.get("scope") for attrs in shown(table).named("th")]
    assert headings.count("rowgroup") == headings.count("row") == 2 and headings.count("colgroup") == 3
    with pytest.raises(InputError, match="several data sets"):
        viz.table_html([*cells, Cell("a", "flops", "1", None, "not-run")], "Table 3", across=True)


@pytest.mark.parametrize("verdict", ["", "Exact", "unknown"])
def test_an_unknown_verdict_is_refused(verdict: str) -> None:
    with pytest.raises(InputError, match="unknown verdict"):
        viz.table_html([Cell("r", "flops", "1", None, verdict)], "t")
    with pytest.raises(InputError, match="unknown verdict"):
        viz.verdict_summary({"t": {verdict: 1}})


def test_the_scoreboard_adds_up() -> None:
    board = viz.verdict_summary({"Table 1": {"exact": 9, "not-run": 5}, "Table 3": {"exact": 1, "differs": 2}})
    shown(board)
    [last] = re.findall(r"<tr class=\"srlib-total\"><th scope=\"row\">all</th>.*?</tr>", board.html)
    assert re.findall(r"<td>(\d+)</td>", last) == ["10", "0", "2", "5", "17"]
    assert repr(board).endswith("10 exact, 0 within, 2 differs, 5 not run.")


def test_the_protocol_matrix_writes_each_distance() -> None:
    table = viz.protocol_matrix(
        {"matlab": {"Set5": 28.42}, "ssiu": {"Set5": 28.40}, "liif": {}}, reference="matlab", caption="c"
    )
    shown(table)
    assert "28.40 \u22120.02" in text(table.html) and "\u2013" in table.html
    with pytest.raises(InputError, match="choose one of: matlab"):
        viz.protocol_matrix({"matlab": {"Set5": 1.0}}, reference="none", caption="c")


ENTRIES = [
    Entry("cell", "Baseline", "13.56 G", "13.5549 G", "Rounded <twice>.", "58 convolutions", "within"),
    Entry("choice", "w/ SE", "no details", "squeezed to 18", "From the counts.", "", metric="", scale=None),
    Entry("cell", "GELU -> None", "13.56 G", "13.5549 G", "Rounded <twice>.", "58 convolutions", "within"),
    Entry("cell", "#N = 8", "13.56 G", "13.5549 G", "Rounded <twice>.", "58 convolutions", "within", table=4),
    Entry("release", "w/ SE", "1x10^-3", "2", "Rounded <twice>.", "58 convolutions", table=None, metric="", scale=None),
]


def test_the_ledger_gathers_what_one_explanation_covers() -> None:
    ledger = viz.ledger(ENTRIES, caption="Why & how.")
    page = shown(ledger)
    blocks = page.named("article")
    names = ["ledger-table-3-x4-flops-baseline", "ledger-choice-w-se", "ledger-release-w-se"]
    assert [attrs["id"] for attrs in blocks] == names
    first, second, third = (text(part) for part in ledger.html.split("<article")[1:])
    assert first.count("printed 13.56 G \u2192 ours 13.5549 G") == first.count("~ within") == 2
    assert (
        first.index("Table 3, \u00d74, #FLOPs")
        < first.index("GELU \u2192 None")
        < first.index("Table 4, \u00d74, #FLOPs")
    )
    assert first.count("Rounded &lt;twice&gt;.") == first.count("Evidence: 58 convolutions") == 1
    assert "w/ SE Table 3 choice the paper no details here squeezed to 18 From the counts." in second
    assert "Evidence" not in second and "1\u00d710\u207b\u00b3" in third
    assert repr(ledger) == "Why & how. 5 entries, 3 explanations."


def test_each_block_of_the_ledger_has_an_id_of_its_own() -> None:
    same = [Entry("choice", "w/ SE", "a", "b", why, "") for why in ("one", "two", "three")]
    ids = [str(attrs["id"]) for attrs in shown(viz.ledger(same, prefix="SAFMN ledger")).named("article")]
    assert ids == ["safmn-ledger-choice-w-se", "safmn-ledger-choice-w-se-2", "safmn-ledger-choice-w-se-3"]
    assert "nothing to explain" in viz.ledger([]).html
    with pytest.raises(InputError, match="unknown verdict"):
        viz.ledger([Entry("cell", "r", "1", "2", "why", "", "Exact")])


def test_a_plain_table_escapes_and_marks() -> None:
    table = viz.plain_table([("a<b", 0.123456, "exact")], ["name", "time", "verdict"], caption="c")
    shown(table)
    assert "a&lt;b" in table.html and "0.123" in text(table.html) and "= exact" in text(table.html)
    with pytest.raises(InputError, match="give 2"):
        viz.plain_table([("a",)], ["name", "time"], caption="c")


class Links(HTMLParser):
    """The text of each span that names a record."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "span":
            self.open.append(dict(attrs).get("data-record") or "")
            if self.open[-1]:
                self.found.setdefault(self.open[-1], []).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self.open.pop()

    def handle_data(self, data: str) -> None:
        for record in filter(None, self.open):
            self.found[record][-1] += data


def linked(html: str) -> dict[str, list[str]]:
    """What leads to each record, as text."""
    links = Links()
    links.feed(html)
    return links.found


def test_numbers_of_a_plain_table_lead_to_their_records() -> None:
    rows = [("bicubic", 28.4, "no"), ("SAFMN", 30.1, "yes"), ("mean", "29.25 / 0.8", "exact")]
    table = viz.plain_table(rows, ["model", "PSNR", "runs"], caption="c", records={"PSNR": "a-1", "mean": "b#c"})
    shown(table)
    assert linked(table.html) == {"a-1": ["28.4", "30.1", "29.25 / 0.8"], "b#c": ["= exact"]}
    assert "data-record" not in viz.plain_table(rows, ["model", "PSNR", "runs"], caption="c").html
    with pytest.raises(InputError, match="'SSIM', which is none of: model, PSNR, runs, bicubic, SAFMN, mean"):
        viz.plain_table(rows, ["model", "PSNR", "runs"], caption="c", records={"SSIM": "a"})
    for name in ("a b", "../a", '"', "a#", "a#b#c"):
        with pytest.raises(InputError, match="names no record"):
            viz.plain_table(rows, ["model", "PSNR", "runs"], caption="c", records={"PSNR": name})


def test_cells_of_a_printed_table_lead_to_their_records() -> None:
    """Ours, or the mark of what was not run; of a row that was not run, its mark, and each number for the mouse."""
    cells = [
        Cell("Baseline", "flops", "13.56", Decimal("13.5549"), "within", record="t#a"),
        Cell("Baseline", "psnr", "30.43", None, "not-run", record="t#b"),
        Cell("Peer", "flops", "7.5", None, "not-run", record="t#c"),
        Cell("Peer", "psnr", "29", None, "not-run", record="t#d"),
    ]
    table = viz.table_html(cells, "Table 3")
    shown(table)
    assert linked(table.html) == {
        "t#a": ["13.5549"],
        "t#b": ["\u00b7 not run"],
        "t#c": ["\u00b7 not run", "7.5"],
        "t#d": ["29"],
    }
    assert re.findall(r'srlib-quiet" data-record="([^"]*)"', table.html) == ["t#c", "t#d"]


def test_scores_counts_and_distances_lead_to_their_records() -> None:
    board = viz.verdict_summary({"a": {"exact": 9}, "b": {"differs": 2}}, records={"a": "t-1", "all": "tables"})
    assert linked(board.html) == {"t-1": ["9", "0", "0", "0", "9"], "tables": ["9", "0", "2", "0", "11"]}
    values = {"matlab": {"Set5": 28.42}, "ssiu": {"Set5": 28.40}}
    matrix = viz.protocol_matrix(values, reference="matlab", caption="c", records={"ssiu": "s"})
    assert linked(matrix.html) == {"s": ["28.40"]}
    image = np.zeros((4, 4, 3), np.uint8)
    panels = viz.images({"HR": image, "SAFMN": image}, alt="a", scores={"SAFMN": "30 dB"}, records={"SAFMN": "run-1"})
    shown(panels)
    assert linked(panels.html) == {"run-1": ["30 dB"]}
    with pytest.raises(InputError, match="none of: SAFMN"):
        viz.images({"HR": image}, alt="a", scores={"SAFMN": "30 dB"}, records={"HR": "run-1"})
    with pytest.raises(InputError, match="none of: a, b, all"):
        viz.verdict_summary({"a": {}, "b": {}}, records={"c": "t"})


def test_cells_of_the_ledger_lead_to_their_records() -> None:
    entries = [
        Entry("cell", row, "13.56 G", "13.5549 G", "why", "", "within", record=f"t#{row}") for row in ("one", "two")
    ]
    html = viz.ledger(entries).html
    assert linked(html) == {"t#one": ["13.5549 G", "one"], "t#two": ["two"]}


def test_a_plain_table_sets_numbers_right_and_sentences_left() -> None:
    rows = [
        ("a", 1.0, "12.5 ms", "yes", "a sentence that is long enough to be broken into lines"),
        ("b", 2, "3 ms", "no", "short"),
    ]
    html = viz.plain_table(rows, ["name", "n", "time", "word", "why"], caption="c").html
    assert re.findall(r'<th scope="col"([^>]*)>', html) == [
        ' class="srlib-word"',
        "",
        "",
        ' class="srlib-word"',
        ' class="srlib-long"',
    ]
    assert html.count('<td class="srlib-long">') == 2


@pytest.mark.parametrize("width", [7.2, 3.75])
def test_labels_of_near_points_do_not_cover_each_other(width: float) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(width, 4.2), layout="constrained")
    axes = figure.subplots()
    points = {f"Network {k}": (50 + 4 * k, 38 + 0.01 * (k % 3), 1.0) for k in range(8)}
    for point in points.values():
        axes.scatter(*point[:2])
    axes.margins(0.5)
    viz._place_labels(axes, points, dict.fromkeys(points, 5.0), {"Network 3": "safmn"})
    boxes = [text.get_window_extent().extents for text in axes.texts]
    assert len(boxes) == 8
    for k, box in enumerate(boxes):
        assert all(viz._overlap(box, other) < 20 for other in boxes[:k])
        assert viz._overlap(box, axes.get_window_extent().extents) > 0.99 * np.prod(box[2:] - box[:2])
    [bold] = [text for text in axes.texts if text.get_weight() == "bold"]
    assert bold.get_text() == "Network 3" and bold.get_zorder() == max(text.get_zorder() for text in axes.texts)


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_has_a_narrow_drawing_for_phones(name: str) -> None:
    page = shown(CHARTS[name]("a"))
    narrow = [str(attrs["srcset"]) for attrs in page.named("source")]
    wide = [str(attrs["src"]) for attrs in page.named("img")]
    sizes = [
        float(re.search(r'width="([\d.]+)pt"', base64.b64decode(data.partition("base64,")[2]).decode())[1])
        for data in narrow + wide
    ]
    assert sizes == [270.0, 270.0, 518.4, 518.4]


def test_numbers_beside_bars_have_no_exponent() -> None:
    assert [viz._short(value, 3) for value in (1400.3, 0.01234, 12.0)] == ["1,400", "0.0123", "12"]


def test_nothing_is_fetched_from_elsewhere() -> None:
    for make in CHARTS.values():
        for attrs in shown(make("a")).named("img"):
            svg = base64.b64decode(str(attrs["src"]).partition("base64,")[2]).decode()
            assert not re.search(r"(href|src)=\"http", svg)


def test_bands_and_intervals_draw_every_label() -> None:
    """In both themes; what cannot be drawn is refused in words."""
    x, y = [1, 10, 100], [[0.0, 1.0, 2.0], [0.5, 1.5, 2.5]]
    drawn = viz.bands(
        {"A": (x, y), "B": (x, y[0])}, models={"A": "safmn", "B": "ssiu"}, xlabel="x", ylabel="y", alt="Two.",
        logx=True, bottom=-1, caption="c",
    )  # fmt: skip
    assert drawn.html.count("<img") == 2 and "Two." in drawn.html and "srlib-chart" in drawn.html
    for runs, models in (({}, {}), ({"A": (x, y)}, {}), ({"A": (x, [1.0])}, {"A": "safmn"}),
                         ({"A": (x, [1.0, np.nan, 2.0])}, {"A": "safmn"})):  # fmt: skip
        with pytest.raises(InputError):
            viz.bands(runs, models=models, xlabel="x", ylabel="y", alt="a")
    values = {"one": (0.1, -0.1, 0.3), "two": (-0.4, -0.5, -0.3)}
    assert viz.intervals(values, xlabel="gap", alt="Gaps.", printed={"two": -0.2}).html.count("<img") == 2
    for wrong, printed in (({}, None), ({"a": (np.nan, 0, 1)}, None), (values, {"three": 0.1})):
        with pytest.raises(InputError):
            viz.intervals(wrong, xlabel="gap", alt="a", printed=printed)


def test_an_entry_can_lead_to_a_record_of_its_own() -> None:
    row = ("a", viz.Traced("1.25", "safmn-table-1#x"), viz.Traced("not-run", "safmn-table-1#y"), "2.5")
    html = viz.plain_table([row], ("row", "printed", "cell", "ours"), caption="c", records={"a": "run-x"}).html
    assert re.findall(r'data-record="([^"]*)"', html) == ["safmn-table-1#x", "safmn-table-1#y", "run-x"]
    assert "verdict-not-run" in html and ">1.25<" in html
