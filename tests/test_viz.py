"""Figures and tables: each has a text alternative, parses, reads on white and on dark, and needs no settings."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from srlib import evaluate, papers, results, tables, viz
from srlib.errors import InputError
from srlib.models.safmn import SAFM
from srlib.viz import Shown

STATIC = Path(viz.__file__).parents[1] / "book/_static"
PROTOCOL = papers.protocol("safmn")
VOID = {"img", "br", "source"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects images and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        assert len(found) == len(attributes)
        if tag == "img":
            self.images.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def pixels(image: dict[str, str | None]) -> np.ndarray:
    """What an image of a page holds."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(str(image["src"]).partition("base64,")[2]))).convert("RGB"))


def svg(shown: Shown) -> ElementTree.Element:
    """The drawing of a chart."""
    (image,) = Page(shown.html).images
    return ElementTree.fromstring(base64.b64decode(str(image["src"]).removeprefix("data:image/svg+xml;base64,")))


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.fixture(scope="module")
def hr() -> torch.Tensor:
    small = torch.rand(1, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, (64, 80), mode="bicubic").clamp(0, 1)[0]


@pytest.fixture(scope="module")
def panels(hr: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"HR": hr, "bicubic": (hr + 0.1).clamp(0, 1), "SAFMN": (hr + 0.02).clamp(0, 1)}


POINTS = pd.DataFrame(
    {"multiply-adds (G)": [13.6, 45.0, 100.0], "PSNR (dB)": [32.1, 32.3, 32.4], "parameters": [240, 600, 1500]},
    index=["SAFMN", "SSIU", "EDSR-baseline"],
)
LOG = pd.DataFrame({"step": range(1, 9), "loss": np.linspace(1, 0.1, 8), "psnr": [np.nan, 25.0] * 4})
CHARTS: dict[str, tuple[str, Callable[[], Shown]]] = {  # what the text alternative says, and the chart
    "curves": (
        "loss against step: SAFMN from 1 at 1 to",
        lambda: viz.curves({"SAFMN": LOG, "no layer norm": LOG}, "loss", "A caption.", smooth=0.5, yscale="log"),
    ),
    "bands": (
        "SSIU from 1.5 at 1 to 4 at 3",
        lambda: viz.bands({"SSIU": ([1, 2, 3], [[1, 2, 3], [2, 3, 5]])}, "step", "gain (dB)", xscale="log"),
    ),
    "scatter": ("SSIU at 45 and 32.3", lambda: viz.scatter(POINTS, printed=POINTS.iloc[:1])),
    "intervals": (
        "no SAFM -0.20 (-0.30 to -0.10)",
        lambda: viz.intervals({"no SAFM": results.Gap(-0.2, -0.3, -0.1)}, "A caption.", {"no SAFM": -0.17}),
    ),
    "shares": (
        "block 1 r=2 0.25, r=4 0.75; block 2 r=2 0, r=4 1",
        lambda: viz.shares({"block 1": {"r=2": 0.25, "r=4": 0.75}, "block 2": {"r=4": 1.0}}, "share of images"),
    ),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_one_small_svg_without_a_ground_that_says_what_it_shows(name: str) -> None:
    said, chart = CHARTS[name]
    shown, drawing = chart(), svg(chart())
    assert said in shown.alt and Page(shown.html).images[0]["alt"] == shown.alt == repr(shown)
    assert len(shown.html) < 60_000 and shown == chart()
    assert not any(re.search(r"\.\d\d", path.get("d", "")) for path in drawing.iter("{http://www.w3.org/2000/svg}path"))
    inks = set(re.findall(r"#[0-9a-f]{6}", ElementTree.tostring(drawing, "unicode")))
    assert viz.INK in inks and not inks & {"#000000", "#ffffff"}
    if name != "shares":  # whose parts have an edge of ink each
        for ink in inks:
            assert 1.05 / (luminance(ink) + 0.05) >= 3 <= (luminance(ink) + 0.05) / (luminance("#121212") + 0.05)


def test_nothing_of_a_user_s_settings_reaches_a_chart() -> None:
    """usetex without LaTeX, colours and a font: the chart is the same, and the settings stay the user's."""
    settings = {"text.usetex": True, "font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}
    usual = CHARTS["bands"][1]()
    with mpl.rc_context(settings | {"font.family": ["serif"]}):
        assert CHARTS["bands"][1]() == usual
        assert settings.items() <= mpl.rcParams.items()


def test_networks_have_the_colours_of_their_papers() -> None:
    found = viz.look(["SAFMN", "seemore-t", "SSIU", "MoEISR", "bicubic", "IMDN", "EDSR"])
    for label, slug in {"SAFMN": "safmn", "seemore-t": "seemore", "SSIU": "ssiu", "MoEISR": "moeisr"}.items():
        assert found["palette"][label] == papers.paper(slug).colour
        assert found["markers"][label] == papers.paper(slug).marker
    assert [found["palette"][label] for label in ("bicubic", "IMDN", "EDSR")] == [viz.INK, *viz.PALETTE[:2]]


def test_a_line_ends_where_it_stops_being_finite_and_passes_over_rows_without_a_value() -> None:
    shown = viz.bands({"no layer norm": ([1, 2, 3, 4], [1.0, 0.5, np.nan, 0.2])}, "step", "loss")
    assert "to 0.5 at 2" in shown.alt
    assert "psnr against step: SAFMN from 25 at 2 to 25 at 8" in viz.curves({"SAFMN": LOG}, "psnr").alt


def test_images_are_shown_pixel_for_pixel_and_cropped_at_one_place(hr: torch.Tensor) -> None:
    lr = hr[:, ::4, ::4]
    shown = viz.images({"HR": hr, "LR": lr}, "A <cat>.", crop=(16, 20, 32, 40), notes={"LR": "a note"})
    page = Page(shown.html)
    whole, first, small = (pixels(image) for image in page.images)
    assert whole.shape == (64, 80, 3) and "a note" in page.text and "A <cat>." in page.text
    crop = (hr[:, 16:48, 20:60] * 255 + 0.5).floor().byte().permute(1, 2, 0).numpy()
    assert (first[::6, ::6] == crop).all()  # enlarged six times, by nearest neighbour, to 240 pixels
    crop = (lr[:, 4:12, 5:15] * 255 + 0.5).floor().byte().permute(1, 2, 0).numpy()
    assert small.shape[1] == 240 and (small[12::24, 12::24] == crop).all()
    assert all("cat" in str(image["alt"]) or "frame" in str(image["alt"]) for image in page.images)
    with pytest.raises(InputError, match="leaves the image"):
        viz.images({"HR": hr}, crop=(40, 20, 32, 40))


@pytest.mark.parametrize("bad", [torch.zeros(2, 4, 4), torch.full((3, 4, 4), torch.nan), torch.zeros(2, 3, 4, 4)])
def test_what_is_no_image_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(InputError, match="panel 'odd'"):
        viz.images({"odd": bad})


def test_maps_say_their_range_and_may_share_one() -> None:
    maps = {"group 1": torch.arange(64.0).reshape(1, 8, 8)}
    shown = viz.features(maps, "Features.")
    assert "0.63 to 62.4, mean 31.5" in shown.alt
    assert pixels(Page(shown.html).images[0]).shape == (240, 240, 3)
    assert "0 to 60, mean 31.5" in viz.features(maps, limit=60).alt


def test_expert_maps_have_the_colours_and_shares_of_the_experts(hr: torch.Tensor) -> None:
    chosen = torch.zeros(8, 8, dtype=torch.int64)
    chosen[:2] = 2
    shown = viz.expert_maps({"LR": hr, "experts": chosen}, ["2 layers", "3 layers", "4 layers"], "Experts.")
    assert "2 layers 75%, 3 layers 0%, 4 layers 25%" in shown.alt
    (top, *_), bottom = pixels(Page(shown.html).images[1])[0], pixels(Page(shown.html).images[1])[-1, 0]
    assert "#" + bytes(top).hex() == viz.EXPERTS[2] and "#" + bytes(bottom).hex() == viz.EXPERTS[0]


def test_an_attribution_map_is_framed_at_the_patch(hr: torch.Tensor) -> None:
    strength = torch.zeros(16, 20)
    strength[4:8, 4:8] = 1.0
    shown = viz.attribution({"SAFMN": strength}, hr[:, ::4, ::4], hr, (4, 4, 4, 4), "Map.", {"SAFMN": "a note"})
    original, image = (pixels(image) for image in Page(shown.html).images)
    red = (image == (255, 0, 0)).all(2) & (original == (255, 0, 0)).all(2)
    rows, columns = (np.flatnonzero(red.any(axis)) for axis in (1, 0))
    assert rows[0] < 4 * 12 <= rows[0] + 3 and columns[-1] + 1 > 8 * 12 >= columns[-1] - 3  # 12 times enlarged


def test_a_viewer_holds_its_images_once_and_reads_without_a_script(panels: dict[str, torch.Tensor]) -> None:
    shown = viz.viewer({"camera": panels, "coffee": panels}, PROTOCOL, caption="Shipped weights.")
    page, note = Page(shown.html), evaluate.compare(panels, PROTOCOL)["SAFMN"]
    assert re.findall(r'<section data-photograph="(\w+)">', shown.html) == ["camera", "coffee"]
    assert len(page.images) == 6 and str(page.images[2]["alt"]).startswith(f"SAFMN: {note}") and note in page.text
    assert 'data-width="80" data-height="64"' in shown.html and "camera. Shipped weights." in page.text


def test_a_table_formats_numbers_verdicts_and_text() -> None:
    line = {"network": "SAFMN <x>", "steps": 20000, "PSNR": 30.424726, "share": -0.00123, "verdict": "exact"}
    frame = pd.DataFrame([line | {"none": None}])
    shown = viz.table(frame, "A caption.")
    page = Page(shown.html)
    said = ("SAFMN <x>", "20,000", "30.42", "\u22120.001", "= exact", "\u2013", "A caption.")
    assert all(text in page.text for text in said)
    assert '<th scope="row">' in shown.html and shown.alt == "A caption. 1 rows, 6 columns."
    assert 'class="verdict verdict-exact"' in shown.html


def test_a_printed_table_sets_ours_beside_print_and_folds_peers_away() -> None:
    shown = viz.printed_table(tables.table("safmn", "1", counts=False), "Table 1.")
    page = Page(shown.html)
    above, _, folded = shown.html.partition("<details>")
    assert "<b>SAFMN" in above and "Bicubic" in above and "IMDN" not in above and "IMDN" in folded
    assert "rows of other networks, as printed" in page.text and "Table 1. " in shown.alt


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of 600 steps alone, four rows of SAFMN's Table 3 with three seeds, whatever was recorded since."""
    runs = results.runs().query("steps == 600")
    monkeypatch.setattr(results, "runs", runs.copy)


def test_a_printed_table_shows_counts_with_verdicts_and_which_rows_are_trained(early: None) -> None:
    cells = tables.table("safmn", "3", counts=False)
    cells.loc[0, ["ours", "verdict", "printed"]] = [239.52, "exact", "239.52"]
    shown = viz.printed_table(cells, "Table 3.")
    assert '239.52 <span class="verdict verdict-exact">= exact</span>' in shown.html
    assert re.search(r'<a href="../records.html#ablation-safmn-3-baseline-seed0">trained</a><sup>', shown.html)
    assert "seeds" in Page(shown.html).text  # the note says how the rows were trained


def test_trends_stand_beside_print_length_by_length_and_lead_to_their_records(early: None) -> None:
    """Rows that nobody trained keep their place; a collapse is told in place of a trend, and not drawn."""
    frame = tables.ablation("safmn", "3", lengths=True)
    ended = ["collapsed at step 70", "", ""]
    longer = frame[frame.ours != ""].assign(training="4,000 steps", ended=ended, runs="long x")
    shown = viz.trends(pd.concat([frame, longer]), "Table 3.")
    page = Page(shown.html)
    assert all(text in page.text for text in ("600 steps of batch 4, patch 32, on BSD400", "4,000 steps", "w/o MR"))
    agrees = r'<a href="../records.html#([\w-]+)">\S0.18 \(.*?\)</a> <span class="verdict verdict-agrees">'
    cells = re.findall(agrees, shown.html)
    assert cells[:2] == ["ablation-safmn-3-ccm-to-none-seed0", "long"]
    assert shown.html.count("collapsed at step 70") == 1 and page.images[0]["alt"] in shown.alt
    assert "SAFM -> None +0.06 (+0.02 to +0.10)" in shown.alt
    assert not Page(viz.trends(tables.ablation("safmn", "4"), "Table 4.").html).images, "none of its rows is trained"


def test_claims_have_addresses_and_lead_to_the_page_with_the_evidence() -> None:
    line = {"paper": "safmn", "claim": "3x <smaller>", "place": "abstract", "evidence": "Counted.", "verdict": "holds"}
    links = ("/chapters/safmn/3-ablations#t", "/data")
    shown = viz.claims(pd.DataFrame([line | {"link": link, "why": ""} for link in links]))
    assert '<article id="safmn-claim-2">' in shown.html and "3x &lt;smaller&gt;" in shown.html
    assert re.findall(r'href="([^#][^"]*)"', shown.html) == ["../chapters/safmn/3-ablations.html#t", "../data.html"]
    assert "2 claims" in shown.alt


def test_parts_are_folded_away_and_numbers_named() -> None:
    part = viz.table(pd.DataFrame({"run": [viz.link("a", "records.html#x")], "gain": [1.0]}))
    shown = viz.folded({"SAFMN": part}, find="runs")
    assert '<div class="srlib-folded" data-find="runs"><details><summary>SAFMN</summary>' in shown.html
    assert '<a href="records.html#x"><span class="srlib-text">a</span></a>' in shown.html
    assert viz.numbers({"exact": 243}).alt == "exact: 243. "


def test_the_ledger_tells_the_cells_of_one_difference_together() -> None:
    line = dict.fromkeys(("kind", "paper", "dataset"), "") | {"scale": "4"}
    line |= {"table": "3", "row": "Baseline", "metric": "flops"}
    line |= {"printed": "1", "ours": "2", "explanation": "A misprint.", "evidence": "Our count.", "verdict": "differs"}
    other = line | {"row": "Order of norms", "table": "", "metric": "", "verdict": "", "explanation": "A choice."}
    shown = viz.ledger(pd.DataFrame([line, line | {"row": "SAFM -> None"}, other]), "Differences.")
    text = Page(shown.html).text
    assert shown.html.count("<article>") == 2 and text.count("A misprint.") == 1
    assert text.count("printed: 1; ours: 2") == 3
    assert "Baseline Table 3 \u00d74 #FLOPs" in text and "SAFM -> None" in text


@pytest.mark.parametrize("thing", [SAFM, SAFM.forward, viz.link])
def test_forward_shows_the_source_with_its_place(thing: object) -> None:
    shown = viz.forward(thing)
    name = "SAFM.forward" if thing is not viz.link else "link"
    text = Page(shown.html).text
    assert f"def {name.rpartition('.')[2]}(" in text and re.search(rf"{name}: srlib/[\w/]+\.py, line \d+", text)
    assert 'class="highlight"' in shown.html


def test_every_class_of_the_html_and_every_badge_has_a_style(panels: dict[str, torch.Tensor]) -> None:
    styles = "".join((STATIC / name).read_text() for name in ("book.css", "slider.css", "slider.js"))
    made = "".join(chart().html for _, chart in CHARTS.values()) + viz.viewer({"a": panels}, PROTOCOL).html
    made += viz.printed_table(tables.table("safmn", "3", counts=False)).html + "".join(map(viz.badge, viz.BADGES))
    used = {name for names in re.findall(r'class="([^"]*)"', made) for name in names.split()}
    own = {name for name in used if name.startswith(("srlib-", "verdict"))}
    assert own and not {name for name in own if not re.search(rf"\.{name}(?![\w-])", styles)}
