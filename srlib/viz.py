"""Figures and tables of the book: the only module that draws.

Each function that draws returns ``Shown``, HTML that shows itself in a notebook and on a page, with a text alternative.
A chart is one SVG without a ground, in ink that reads on white and on dark pages, whatever a user's matplotlibrc says.
Networks have the colours and markers of their papers. What the HTML looks like is in book/_static/book.css.
"""

from __future__ import annotations

import base64
import inspect
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from adjustText import adjust_text
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from srlib import evaluate, metrics, papers
from srlib.errors import InputError

Notes = Mapping[str, str]  # by label: a line of text
Panels = Mapping[str, Any]  # by label: images CHW or HW, or a batch of one, uint8 or float in [0, 1]; or planes

INK = "#767b82"  # contrast 4.2 with white and 4.4 with the dark page, #121212
PALETTE = ("#2f8f9d", "#a86fc9", "#a87d1c", "#c2548b", "#5b7fbf", "#6f8f3a")  # for what is no paper's network
EXPERTS = ("#f4cf3a", "#45b36b", "#2f6fd0", "#a01c2c")  # from shallow to deep (MoEISR, Figures 1 and 5)
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
CLEAR = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
STYLE: dict[str, Any] = dict.fromkeys(INKED, INK) | dict.fromkeys(CLEAR, "none")
STYLE |= {"axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"svg.hashsalt": "srlib", "axes.formatter.min_exponent": 5}
METRICS = {"params": "#Params", "flops": "#FLOPs", "macs": "#MACs", "acts": "#Acts", "gpu_memory": "GPU memory"}
BADGES = {"exact": "=", "within": "~", "differs": "\u2260", "not-run": "\u00b7"}
BADGES |= {"agrees": "=", "opposite": "\u2260", "undecided": "\u00b7"}
BADGES |= {"holds": "=", "holds in part": "~", "not seen here": "\u2260", "can't be told here": "\u00b7"}
"""Verdicts of cells, trends of rows and judgements of claims, each with the symbol before its words."""


@dataclass(frozen=True)
class Shown:
    """Something drawn: HTML that shows itself, and the text that stands in for it."""

    html: str
    alt: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.alt


def _figure(inner: str, alt: str, caption: str, kind: str = "") -> Shown:
    return Shown(f'<figure class="srlib-viz{kind}">{inner}<figcaption>{escape(caption)}</figcaption></figure>', alt)


def images(panels: Panels, caption: str = "", *, crop: Sequence[int] = (), notes: Notes | None = None) -> Shown:
    """Images side by side, ``notes`` below. ``crop`` (top, left, height, width) in pixels of the first panel shows that
    one whole, with a frame, and the crop of each below; smaller panels, such as LR, are cropped at the same place."""
    pixels, above = {label: _pixels(panel, label) for label, panel in panels.items()}, ""
    if crop:
        first, whole = next(iter(pixels.items()))
        if min(crop) < 0 or crop[0] + crop[2] > whole.shape[0] or crop[1] + crop[3] > whole.shape[1]:
            raise InputError(f"crop {crop} leaves the image of {whole.shape[:2]}: give (top, left, height, width)")
        framed = _webp(_framed(whole, crop), f"{first}, whole, with a frame at the crop")
        above = f'<div class="srlib-full">{framed}</div>'
        for label, panel in pixels.items():
            top, left, tall, wide = (round(side * panel.shape[0] / whole.shape[0]) for side in crop)
            pixels[label] = panel[top : top + max(tall, 1), left : left + max(wide, 1)]
    return _grid(pixels, caption, caption, notes or {}, above)


def features(maps: Panels, caption: str = "", *, limit: float = 0) -> Shown:
    """Planes (h, w), or the mean over channels of feature maps (C, h, w), from dark to light: each from its 1st to its
    99th percentile, or all from 0 to ``limit``, such as errors. Range and mean stand below."""
    panels, notes = {}, {}
    for label, value in maps.items():
        plane = _planes(value).astype(float).mean(0)
        low, high = (0, limit) if limit else np.percentile(plane, (1, 99))
        panels[label] = mpl.colormaps["cividis"]((plane - low) / max(high - low, 1e-12), bytes=True)[..., :3]
        notes[label] = f"{low:.3g} to {high:.3g}, mean {plane.mean():.3g}"
    return _grid(panels, caption, f"Maps from dark to light. {caption}", notes)


def expert_maps(panels: Panels, experts: Sequence[str], caption: str = "") -> Shown:
    """Maps (h, w) of int64 of the expert that is chosen at each pixel, 0 for the first of ``experts`` (from shallow to
    deep), beside images; below each map the experts' shares (MoEISR, Figures 1 and 5)."""
    shown, notes = {}, {}
    for label, panel in panels.items():
        planes = _planes(panel)
        if planes.dtype != np.int64:
            shown[label] = _pixels(panel, label)
        else:
            shown[label] = mpl.colors.ListedColormap(EXPERTS)(planes[0], bytes=True)[..., :3]
            parts = np.bincount(planes.ravel(), minlength=len(experts)) / planes.size
            notes[label] = ", ".join(f"{name} {part:.0%}" for name, part in zip(experts, parts, strict=True))
    spans = (f'<i style="background:{c}"></i>{escape(name)} ' for name, c in zip(experts, EXPERTS, strict=False))
    key = f'<div class="srlib-key">{"".join(spans)}</div>'
    return _grid(shown, caption, f"Maps of the chosen expert. {caption}", notes, key)


def attribution(maps: Panels, lr: Any, hr: Any, box: Sequence[float], caption: str, notes: Notes) -> Shown:
    """The HR image, and attribution maps (h, w) of one patch, such as ``Attribution.strength``, over the LR image in
    faint grey: shares of their sum on one logarithmic scale over three decades. The patch (``box``: top, left, height,
    width in LR pixels) is framed in red (SAFMN, Figure 2; SSIU, Figure 9)."""
    shares = {label: _planes(found)[0].astype(float) / _planes(found).sum() for label, found in maps.items()}
    top = max(share.max() for share in shares.values())
    faint = (140 + 0.45 * _pixels(lr, "LR").mean(2, keepdims=True)).astype(np.uint8)
    panels = {"HR": _pixels(hr, "HR")}
    for label, share in shares.items():
        level = np.log10(np.clip(share / top, 1e-3, 1)) / 3 + 1
        colours = mpl.colormaps["YlGnBu"](0.15 + 0.85 * level, bytes=True)
        panels[label] = np.where(level[..., None] > 0, colours[..., :3], faint)
    for label, panel in panels.items():
        large = _enlarged(panel)
        panels[label] = _framed(large, [side * len(large) / len(faint) for side in box], "red")
    said = f"Share of the map in one pixel, from light, {top / 10:.2g} %, to dark, {top * 100:.2g} %; grey: less."
    return _grid(panels, f"{caption} {said}", f"What the patch framed in red rests on. {caption} {said}", notes)


def viewer(photographs: Mapping[str, Panels], protocol: metrics.Protocol, scale: float = 4, caption: str = "") -> Shown:
    """Photographs, of which the reader chooses one: its images of one size under a divider that moves, with linked zoom
    (slider.js), the last two on its sides at first; without a script side by side. HR comes first, the others have PSNR
    and SSIM against it."""
    inner = ""
    for name, panels in photographs.items():
        pixels = {label: _pixels(panel, label) for label, panel in panels.items()}
        shown = _grid(pixels, f"{name}. {caption}", name, evaluate.compare(panels, protocol, scale), compare=True)
        inner += f'<section data-photograph="{escape(name)}">{shown.html}</section>'
    alt = f"The photographs {', '.join(photographs)}, to be compared by eye. {caption}"
    return Shown(f'<div class="srlib-viewer">{inner}</div>', alt)


def _grid(panels: Panels, caption: str, said: str, notes: Notes, above: str = "", compare: bool = False) -> Shown:
    """Pixels with their labels and notes below, small ones enlarged; or as they are, for slider.js to ``compare``."""
    cells, told = [], []
    for label, pixels in panels.items():
        note = notes.get(label, "")
        told.append(f"{label}: {note}" if note else label)
        image = _webp(pixels if compare else _enlarged(pixels), f"{told[-1]}. {said}", lossless=not compare)
        text = f'<span class="srlib-label">{escape(label)}<small>{escape(note)}</small></span>'
        data = f'data-label="{escape(label)}" data-note="{escape(note)}"'
        cells.append(f'<div class="srlib-panel" {data}><div class="srlib-view">{image}</div>{text}</div>')
    tall, wide, _ = next(iter(panels.values())).shape
    columns = 3 if compare else -(-len(cells) // -(-len(cells) // 5))  # rows of one length: 8 panels are 4 and 4
    sides = f'style="--columns:{columns}" data-width="{wide}" data-height="{tall}"'
    grid = f'<div class="srlib-panels{" srlib-panes" * compare}" {sides}>{"".join(cells)}</div>'
    return _figure(above + grid, f"{said} {'; '.join(told)}.", caption, " srlib-compare" * compare)


def _img(kind: str, content: bytes, alt: str, size: str = "") -> str:
    address = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return f'<img class="dark-light" {size} src="{address}" alt="{escape(alt)}">'


def _webp(pixels: np.ndarray, alt: str, lossless: bool = True) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "webp", lossless=lossless, quality=95)
    return _img("webp", file.getvalue(), alt, f'width="{pixels.shape[1]}" height="{pixels.shape[0]}"')


def _planes(value: Any) -> np.ndarray:
    """Anything image-like as (C, h, w)."""
    array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    return array.reshape(-1, *array.shape[-2:])


def _pixels(value: Any, label: str) -> np.ndarray:
    """Anything image-like as (h, w, 3), uint8."""
    planes = _planes(value)
    if len(planes) not in (1, 3) or not np.isfinite(planes).all():
        raise InputError(f"panel {label!r} of shape {planes.shape} is no image of 1 or 3 channels with finite values")
    if planes.dtype != np.uint8:
        planes = np.floor(np.clip(planes.astype(float), 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.repeat(planes, 3 // len(planes), 0).transpose(1, 2, 0).copy()  # stored images are read-only


def _enlarged(pixels: np.ndarray, side: int = 240) -> np.ndarray:
    """By nearest neighbour and the smallest whole factor that makes the longer side ``side`` or more."""
    factor = max(1, -(-side // max(pixels.shape[:2])))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def _framed(pixels: np.ndarray, box: Sequence[float], colour: str = "black") -> np.ndarray:
    """The image with a frame about a box (top, left, height, width), and a white one about that."""
    (top, left, tall, wide), line = map(round, box), max(1, round(max(pixels.shape[:2]) / 200))
    image = Image.fromarray(pixels)
    for off, ink in ((2 * line, "white"), (line, colour)):
        corners = (left - off, top - off, left + wide + off - 1, top + tall + off - 1)
        ImageDraw.Draw(image).rectangle(corners, outline=ink, width=line)
    return np.array(image)


@contextmanager
def _drawing(height: float = 3.6) -> Iterator[Any]:
    """Axes in the book's look, with nothing of a user's settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        sns.set_theme(style="ticks", font="DejaVu Sans", rc=STYLE)
        yield Figure(figsize=(7.2, height), layout="constrained").subplots()


def _chart(axes: Any, alt: str, caption: str) -> Shown:
    """The drawing as one SVG, with its legend above it; coordinates in tenths of a point."""
    if legend := axes.get_legend():
        widest = max(len(text.get_text()) for text in legend.texts)
        columns = min(len(legend.texts), max(1, 96 // (8 + widest)))
        sns.move_legend(axes, "lower center", bbox_to_anchor=(0.5, 1), ncols=columns, title=None, frameon=False)
    file = io.StringIO()
    axes.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), file.getvalue())
    box = '<div class="srlib-chart" role="group" tabindex="0" aria-label="Chart">'
    return _figure(f"{box}{_img('svg+xml', svg.encode(), alt)}</div>", alt, caption)


def look(labels: Iterable[str]) -> dict[str, dict[str, str]]:
    """Colours ("palette") and "markers" by label: those of the paper whose network it names, by its model or its
    printed title; grey for bicubic, and colours of no paper for others."""
    known, others = {"bicubic": (INK, "X")}, cycle(zip(PALETTE, "osD^vP", strict=True))
    for paper in papers.all_papers().values():
        names = map(str.lower, (paper.name, *paper.titles, *paper.titles.values()))
        known |= dict.fromkeys(names, (paper.colour, paper.marker))
    pairs = {label: known.get(label.lower()) or next(others) for label in labels}
    return {name: {label: pair[i] for label, pair in pairs.items()} for i, name in enumerate(("palette", "markers"))}


def bands(
    lines: Mapping[str, tuple[Any, Any]], xlabel: str, ylabel: str, caption: str = "", smooth: float = 0, **axis: Any
) -> Shown:
    """For each label x (n,) and y, (n,) or (runs, n): the mean, and a band from the lowest run to the highest.

    ``smooth`` is the weight of the past in a moving average, over the faint raw line. A line that stops being finite
    ends in a cross. ``axis`` are matplotlib's, such as yscale="log" and ylim=(-1, None).
    """
    style, parts, said = look(lines), [], []
    with _drawing() as axes:
        for label, (x, y) in lines.items():
            runs = pd.DataFrame(np.atleast_2d(np.asarray(y, float)).T, np.asarray(x, float))  # a column a run
            finite = runs.map(np.isfinite).all(axis=1)
            runs = runs[finite.cummin()]
            if smooth:
                axes.plot(runs.mean(axis=1), color=style["palette"][label], alpha=0.25, linewidth=0.8)
                runs = runs.ewm(alpha=1 - smooth).mean()
            mean = runs.mean(axis=1)
            if not finite.all():
                axes.plot(mean.tail(1), "X", markersize=10, color=style["palette"][label])
            (start, first), (end, last) = mean.iloc[[0, -1]].items()
            said.append(f"{label} from {first:.3g} at {start:g} to {last:.3g} at {end:g}")
            parts.append(runs.rename_axis(xlabel).reset_index().melt(xlabel, value_name=ylabel).assign(label=label))
        points = pd.concat(parts)
        every = max(1, points.groupby("label")[xlabel].nunique().max() // 8)
        marks = {"hue": "label", "style": "label", "markevery": every, "markeredgewidth": 0, **style}
        sns.lineplot(points, x=xlabel, y=ylabel, errorbar=("pi", 100), ax=axes, **marks)
        axes.set(**axis)
        return _chart(axes, f"{ylabel} against {xlabel}: {'; '.join(said)}.", caption)


def curves(logs: Mapping[str, Any], y: str = "loss", caption: str = "", *, ylabel: str = "", **options: Any) -> Shown:
    """Columns ``y`` against "step" of frames by label, such as ``Run.log`` or a run's lines of ``results.curves``;
    lines without a value are passed over. ``options`` are those of ``bands``."""
    frames = {label: pd.DataFrame(log).dropna(subset=y) for label, log in logs.items()}
    lines = {label: (frame.step, frame[y]) for label, frame in frames.items() if len(frame)}
    return bands(lines, "step", ylabel or y, caption, **options)


def scatter(points: pd.DataFrame, caption: str = "", *, printed: pd.DataFrame | None = None, **axis: Any) -> Shown:
    """Quality against cost (SAFMN, Figure 1): a frame by label of what is across, what is up, and what the area of a
    circle is proportional to, named so; grey for peers, and dashed circles for networks as ``printed``."""
    xlabel, ylabel, sizes = points.columns
    inks = {label: INK if ink in PALETTE else ink for label, ink in look(points.index)["palette"].items()}
    area = {"size": sizes, "sizes": (0, 740), "size_norm": (0, points[sizes].max()), "legend": False}
    area |= {"x": xlabel, "y": ylabel, "edgecolor": INK}
    with _drawing(4.2) as axes:
        sns.scatterplot(points, hue=points.index, palette=inks, alpha=0.5, ax=axes, **area)
        if printed is not None:
            area["edgecolor"] = [inks[label] for label in printed.index]
            sns.scatterplot(printed, facecolor="none", linestyle="--", ax=axes, **area)
        texts = [axes.text(x, y, label, color=inks[label]) for label, x, y, _ in points.itertuples()]
        axes.margins(0.14, 0.18)
        axes.set(**({"xscale": "log"} | axis))
        lines = {"arrowstyle": "-", "color": INK, "linewidth": 0.7}
        apart = {"force_static": (0.3, 0.4), "expand": (1.1, 1.4), "iter_lim": 400}  # no time limit, which varies
        adjust_text(texts, objects=axes.collections[0], ax=axes, arrowprops=lines, **apart)
        said = ", ".join(f"{label} at {x:.4g} and {y:.4g}" for label, x, y, _ in points.itertuples())
        return _chart(axes, f"{ylabel} against {xlabel}: {said}.", f"{caption} Area of a circle: {sizes}.".strip())


def intervals(gaps: Mapping[str, Any], caption: str = "", printed: Any = None) -> Shown:
    """Gaps in dB (mean, low, high), such as ``results.Gap``, one a line beside 0, and the same rows' in print."""
    bounds = pd.DataFrame({label: gap[:3] for label, gap in gaps.items()}).melt(var_name="row", value_name="gap")
    with _drawing(1.2 + 0.32 * len(gaps)) as axes:
        axes.axvline(0, color=INK, linewidth=0.8)
        span = {"estimator": "median", "errorbar": ("pi", 100)}  # of mean, low and high: the mean, and the interval
        sns.pointplot(bounds, x="gap", y="row", linestyle="none", color=PALETTE[0], label="ours, 95 %", ax=axes, **span)
        if printed is not None:
            shown = pd.Series(printed, dtype=float).reindex([*gaps])
            sns.scatterplot(x=shown, y=shown.index, marker="D", color=INK, edgecolor="none", label="printed", ax=axes)
        axes.set(xlabel="gap in PSNR (dB)", ylabel="", ylim=(len(gaps) - 0.5, -0.5))
        said = "; ".join("{} {:+.2f} ({:+.2f} to {:+.2f})".format(label, *gap[:3]) for label, gap in gaps.items())
        return _chart(axes, f"Gaps in PSNR, dB: {said}.", caption)


def shares(values: Mapping[str, Mapping[str, float]], unit: str, caption: str = "") -> Shown:
    """Stacked bars of shares, such as experts' (SeemoRe, Figure 5a); up to four have the colours of ``EXPERTS``."""
    frame = pd.DataFrame(values).T.fillna(0.0)
    inks: Any = EXPERTS if len(frame.columns) <= len(EXPERTS) else sns.color_palette("tab10")
    with _drawing(1.1 + 0.36 * len(frame)) as axes:
        frame.iloc[::-1].plot.barh(ax=axes, stacked=True, width=0.75, color=inks, edgecolor=INK, xlabel=unit)
        axes.margins(x=0)
        said = "; ".join(f"{k} " + ", ".join(f"{n} {v:.3g}" for n, v in row.items()) for k, row in frame.iterrows())
        return _chart(axes, f"Bars, {unit}: {said}.", caption)


def badge(word: str) -> str:
    """A verdict, trend or judgement as HTML: its symbol and its words."""
    return f'<span class="verdict verdict-{papers.slug(word)}">{BADGES[word]} {escape(word.replace("-", " "))}</span>'


def _cell(value: Any, digits: int = 4) -> str:
    """A value as HTML: floats with that many significant digits and no exponent, verdicts as badges, text as text."""
    if isinstance(value, Shown):
        return value.html
    if isinstance(value, str):
        text = badge(value) if value in BADGES else escape(value)
        number = re.match(r"[-+\u2212~\u00d7]?[\d.]|\u2013?$", value)
        return text if number else f'<span class="srlib-text">{text}</span>'
    if pd.isna(value):
        return "\u2013"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    whole = isinstance(value, int | np.integer) or not np.isfinite(value)
    places = 0 if whole else max(0, digits - len(str(int(abs(value)))))
    return f"{value:,.{places}f}".replace("-", "\N{MINUS SIGN}")


def _html(frame: pd.DataFrame, caption: str, after: str = "") -> Shown:
    """A frame of HTML as a table that scrolls in its own box; the first column names the rows."""
    html = frame.style.hide(axis="index").to_html(exclude_styles=True)
    html = re.sub(r"(<tr>\s*)<td\s*>(.*?)</td>", r'\1<th scope="row">\2</th>', html, flags=re.DOTALL)
    html = re.sub(r"<th\b([^>]*)>(?:&nbsp;|\s)*</th>", r"<td\1></td>", html)  # a corner is no head
    box = f'<div class="srlib-scroll" role="group" tabindex="0" aria-label="{escape(caption)}">{html}</div>'
    html = f'<div class="srlib-table"><p class="srlib-caption">{escape(caption)}</p>{box}{after}</div>'
    return Shown(html, f"{caption} {len(frame)} rows, {len(frame.columns)} columns.")


def table(frame: pd.DataFrame, caption: str = "", *, digits: int = 4) -> Shown:
    """Any frame: floats with ``digits`` significant digits, verdicts as badges, columns of numbers alone flush right;
    an index with a name becomes the first column."""
    frame = frame.reset_index() if any(frame.index.names) else frame
    shown = frame.astype(object).map(lambda value: _cell(value, digits))
    words = {name for name in shown if shown[name].str.contains("srlib-text").any()}
    for name in words:
        shown[name] = shown[name].map(lambda cell: cell if "<" in cell else f'<span class="srlib-text">{cell}</span>')
    heads = {name: f"<span{' class=srlib-text' * (name in words)}>{escape(str(name))}</span>" for name in shown}
    return _html(shown.rename(columns=heads), caption)


def _printed(cell: Any, notes: dict[str, int]) -> str:
    """A printed number; below it ours with its verdict, our score at a smaller budget, or that the row is trained; they
    lead to the record of the (first) run."""
    number, mark, note, digits = "", "", cell.note, papers.decimals(cell.printed)
    if cell.verdict != "not-run":
        number, mark = f"{cell.ours:.{digits + (cell.verdict != 'exact')}f}", cell.verdict
    elif not cell.own:
        return escape(cell.printed)
    elif pd.notna(cell.trained):
        number, note = f"{cell.trained:.{digits}f}", cell.budget
    elif cell.runs:
        number, note = "trained", cell.budget
    else:
        mark = "not-run"
    ours = f'<a href="../records.html#{cell.runs.split()[0]}">{number}</a>' if cell.runs else number
    ours += f" {badge(mark)}" if mark else ""
    ours += f"<sup>{notes.setdefault(note, len(notes) + 1)}</sup>" if note else ""
    return f"{escape(cell.printed)}<br><small>{ours}</small>"


def printed_table(frame: pd.DataFrame, caption: str = "") -> Shown:
    """A printed table (``tables.table``): rows by datasets and metrics as in the paper; below a printed number ours
    with its verdict, or a score at a smaller budget. Notes are numbered below the table; other papers' rows are folded
    away as far as nothing of them is run."""
    notes: dict[str, int] = {}
    names = frame.row.map(escape) + frame.variant.map(lambda text: f" <small>{escape(text)}</small>" if text else "")
    cells = pd.DataFrame({"row": names.where(~frame.own, "<b>" + names + "</b>")})
    if frame.scale.nunique() > 1:
        cells["scale"] = frame.scale.map("\u00d7{}".format)
    index = [*cells]
    units = frame.unit.map(lambda unit: f" [{unit}]" if unit else "")
    cells["metric"] = frame.metric.map(lambda metric: METRICS.get(metric, metric.upper())) + units
    cells["cell"] = [_printed(cell, notes) for cell in frame.itertuples()]
    cells["dataset"] = frame.dataset
    wide = cells.pivot_table("cell", index, ["dataset", "metric"], "<br>".join, "\u2013", sort=False)
    ours = (frame.own | (frame.verdict != "not-run")).groupby([cells[name] for name in index]).any()[wide.index]
    ours |= not ours.any()
    after = f'<ol class="srlib-notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ol>' if notes else ""
    if not ours.all():
        peers = f"{(~ours).sum()} rows of other networks, as printed"
        after += folded({peers: _html(wide[~ours].reset_index(), "")}).html
    return _html(wide[ours].reset_index(), caption, after)


def trends(frame: pd.DataFrame, caption: str = "") -> Shown:
    """The rows of an ablation table (``tables.ablation`` with lengths): their gaps to the baseline in print, and ours
    after each recorded training, with interval and trend, or the step at which the training collapsed. A chart of the
    gaps follows, without those of collapsed trainings."""
    done = frame[frame.ours != ""]
    signed = frame.gap_printed.map("{:+.2f}".format, na_action="ignore").str.replace("-", "\N{MINUS SIGN}")
    printed = pd.DataFrame({"row": frame["name"], "printed (dB)": frame.printed, "printed gap": signed})
    links = '<a href="../records.html#' + done.runs.str.split().str[0] + '">' + done.ours + "</a> "
    cells: Any = [Shown(text, text) for text in links + done.ended.where(done.ended != "", done.trend.map(badge))]
    wide = done.assign(cell=cells).pivot(index="name", columns="training", values="cell")[done.training.unique()]
    shown = table(printed.drop_duplicates("row").set_index("row").join(wide), caption)
    if (drawn := done[done.ended == ""]).empty:
        return shown
    training, own = next(iter(drawn.set_index("name").groupby("training", sort=False)))
    gaps = dict(zip(own.index, own[["gap", "gap_low", "gap_high"]].to_numpy(), strict=True))
    said = f"Gaps to the baseline in PSNR; ours: {training}, with 95 % intervals."
    chart = intervals(gaps, said, printed=own.gap_printed)
    return Shown(shown.html + chart.html, f"{shown.alt} {chart.alt}")


def ledger(frame: pd.DataFrame, caption: str = "") -> Shown:
    """What differs between print, release and ours (``tables.ledger``): an article a difference, a line a cell."""
    parts = []
    for texts, entries in frame.fillna("").astype(str).groupby(["explanation", "evidence"], sort=False):
        part = ""
        for one in entries.to_dict("records"):
            place = [one["table"] and f"Table {one['table']}", one["scale"] and f"\u00d7{one['scale']}", one["dataset"]]
            place += [METRICS.get(one["metric"], one["metric"].upper())]
            told = escape("; ".join(f"{name}: {one[name]}" for name in ("printed", "ours") if one[name]))
            mark = badge(one["verdict"]) if one["verdict"] else ""
            part += f"<p><b>{escape(one['row'])}</b> <small>{' '.join(filter(None, place))}</small> {told} {mark}</p>"
        parts.append(f"<article>{part}{''.join(f'<p>{escape(str(text))}</p>' for text in texts)}</article>")
    html = f'<div class="srlib-ledger"><p class="srlib-caption">{escape(caption)}</p>{"".join(parts)}</div>'
    return Shown(html, f"{caption} {len(parts)} differences.")


def claims(frame: pd.DataFrame, caption: str = "") -> Shown:
    """What papers say in words (``tables.claims``), each with its place, our judgement and why, and the evidence with
    the page that has it. A claim is an article with an address, such as #safmn-claim-3, on a page of chapters."""
    parts: list[str] = []
    lines: Any = frame.itertuples()
    for number, line in zip(frame.groupby("paper").cumcount() + 1, lines, strict=True):
        name, (page, mark, anchor) = f"{line.paper}-claim-{number}", line.link.partition("#")
        here = f'<a href="#{name}" aria-label="Address of claim {number}">#{number}</a>'
        said = f"{badge(line.verdict)} <b>{escape(line.claim)}</b> <small>{escape(line.place)} {here}</small>"
        found = f"{escape(line.evidence)} {link(page.strip('/'), f'..{page}.html{mark}{anchor}').html}"
        parts.append(f'<article id="{name}"><p>{said}</p><p>{escape(line.why)}</p><p>Here: {found}</p></article>')
    html = f'<p class="srlib-caption">{escape(caption)}</p>{"".join(parts)}'
    html = f'<div class="srlib-ledger srlib-folded" data-find="these claims">{html}</div>'
    return Shown(html, f"{caption} {len(parts)} claims.")


def link(text: str, address: str) -> Shown:
    """Text that leads to an ``address``, such as "records.html#equal-safmn-seed0"; for cells of a table, too."""
    return Shown(f'<a href="{escape(address)}">{_cell(text)}</a>', text)


def folded(parts: Mapping[str, Shown], find: str = "") -> Shown:
    """Parts that are folded away under their names; ``find`` says what a reader may search in them, row by row, where
    scripts run (book.js)."""
    inner = "".join(f"<details><summary>{escape(name)}</summary>{part.html}</details>" for name, part in parts.items())
    data = f' data-find="{escape(find)}"' if find else ""
    return Shown(f'<div class="srlib-folded"{data}>{inner}</div>', f"Folded away: {'; '.join(parts)}.")


def numbers(values: Mapping[str, Any], caption: str = "") -> Shown:
    """A few large numbers, each above what it counts."""
    inner = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in values.items())
    said = "; ".join(f"{name}: {value}" for name, value in values.items())
    return _figure(f'<dl class="srlib-numbers">{inner}</dl>', f"{said}. {caption}", caption)


def forward(*things: Any) -> Shown:
    """The source of functions, and of the ``forward`` of modules or their classes, highlighted, with file and line: the
    code beside a page's equations."""
    parts = []
    for thing in things:
        function = inspect.unwrap(getattr(thing, "forward", thing))
        lines, first = inspect.getsourcelines(function)
        place = f"{function.__qualname__}: {function.__module__.replace('.', '/')}.py, line {first}"
        code = highlight(textwrap.dedent("".join(lines)), PythonLexer(), HtmlFormatter())
        parts.append(f'{code}<p class="srlib-caption">{escape(place)}</p>')
    return Shown(f'<div class="srlib-source">{"".join(parts)}</div>', f"Source of {len(parts)} functions of srlib.")
