"""Figures and tables of the book: the only module that draws.

Each function returns ``Shown``, HTML that shows itself in a notebook and on a page, with a text alternative that it
makes itself. A chart is one SVG without a ground, in ink that reads on white and on dark pages, and starts from
matplotlib's own defaults, whatever a user's matplotlibrc says. Networks have the colours and markers of their papers.
What the HTML looks like is in book/_static/book.css.
"""

from __future__ import annotations

import base64
import inspect
import io
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from adjustText import adjust_text
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from srlib import metrics, papers
from srlib.errors import InputError
from srlib.metrics import Protocol

Panels = Mapping[str, Any]  # by label: images CHW, HWC or HW, or a batch of one, uint8 or float in [0, 1]; or planes
Notes = Mapping[str, str]  # by label: a line of text

INK = "#767b82"  # contrast 4.2 with white and 4.4 with the dark page, #121212
PALETTE = ("#2f8f9d", "#a86fc9", "#a87d1c", "#c2548b", "#5b7fbf", "#6f8f3a")  # for what is no paper's network
EXPERTS = ("#f4cf3a", "#45b36b", "#2f6fd0", "#a01c2c")  # from shallow to deep (MoEISR, Figures 1 and 5)
RED = (214, 0, 38)
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
STYLE: dict[Any, Any] = dict.fromkeys(INKED, INK) | dict.fromkeys(
    ("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"
)
STYLE |= {"axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"axes.axisbelow": True, "legend.frameon": False, "svg.hashsalt": "srlib", "axes.formatter.min_exponent": 5}
METRICS = {"params": "#Params", "flops": "#FLOPs", "macs": "#MACs", "acts": "#Acts", "gpu_memory": "GPU memory"}
BADGES = {"exact": "=", "within": "~", "differs": "\u2260", "not-run": "\u00b7"}
BADGES |= {"agrees": "=", "opposite": "\u2260", "undecided": "\u00b7"}
BADGES |= {"holds": "=", "holds in part": "~", "not seen here": "\u2260", "can't be told here": "\u00b7"}
"""Verdicts of cells, trends of rows and judgements of claims, each with the symbol before its words."""
TRENDS = ("agrees", "opposite", "undecided")


@dataclass(frozen=True)
class Shown:
    """Something drawn: HTML that shows itself, and the text that stands in for it."""

    html: str
    alt: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.alt


def _figure(inner: str, alt: str, caption: str, kind: str = "srlib-viz") -> Shown:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Shown(f'<figure class="{kind}">{inner}{below}</figure>', alt)


# --- images -----------------------------------------------------------------------------------------------------------


def images(panels: Panels, caption: str = "", *, crop: Sequence[int] = (), notes: Notes | None = None) -> Shown:
    """Images side by side, with ``notes`` below their labels.

    ``crop`` (top, left, height, width) in pixels of the first panel shows that one whole, with a frame, and the crop of
    each below; smaller panels, such as LR, are cropped at the same place. Raises InputError for a crop that leaves it.
    """
    pixels, above = {label: _pixels(panel, label) for label, panel in panels.items()}, ""
    if crop:
        first, whole = next(iter(pixels.items()))
        if min(crop) < 0 or crop[0] + crop[2] > whole.shape[0] or crop[1] + crop[3] > whole.shape[1]:
            raise InputError(
                f"crop {crop} leaves the image of {whole.shape[:2]}: give (top, left, height, width) inside"
            )
        framed = _img(_framed(whole, crop), f"{first}, whole, with a frame at the crop")
        above = f'<div class="srlib-full">{framed}</div>'
        for label, panel in pixels.items():
            top, left, tall, wide = (round(side * panel.shape[0] / whole.shape[0]) for side in crop)
            pixels[label] = panel[top : top + max(tall, 1), left : left + max(wide, 1)]
    return _grid(pixels, caption, notes or {}, caption, above)


def _grid(pixels: Mapping[str, np.ndarray], caption: str, notes: Notes, said: str, above: str = "") -> Shown:
    cells = [_panel(_enlarged(panel), label, notes.get(label, ""), said) for label, panel in pixels.items()]
    columns = -(-len(cells) // -(-len(cells) // 5))  # rows of one length: 8 panels are 4 and 4
    grid = f'<div class="srlib-panels" style="--columns:{columns}">{"".join(cells)}</div>'
    told = "; ".join(f"{label}: {notes[label]}" if label in notes else label for label in pixels)
    return _figure(above + grid, f"{said} {told}.", caption)


def scores(panels: Panels, protocol: Protocol, scale: float = 4) -> dict[str, str]:
    """PSNR and SSIM against the first panel of those of its size, as notes: "26.62 dB / 0.7512"."""
    tensors = {label: torch.from_numpy(_pixels(panel, label)).movedim(2, 0) for label, panel in panels.items()}
    (_, hr), *others = tensors.items()
    pairs = {label: (image, hr, protocol, scale) for label, image in others if image.shape == hr.shape}
    return {label: f"{metrics.psnr(*p).item():.2f} dB / {metrics.ssim(*p).item():.4f}" for label, p in pairs.items()}


def features(maps: Panels, caption: str = "", *, channel: int | None = None) -> Shown:
    """Feature maps (C, h, w), as their mean over channels or one ``channel``, each from its 1st to its 99th percentile,
    from dark to light; the range stands below."""
    panels, notes = {}, {}
    for label, value in maps.items():
        channels = _array(value).astype(float).reshape(-1, *value.shape[-2:])
        plane = channels.mean(0) if channel is None else channels[channel]
        low, high = np.percentile(plane, (1, 99))
        panels[label] = _painted((plane - low) / max(high - low, 1e-12), "cividis")
        notes[label] = f"{low:.3g} to {high:.3g}"
    return _grid(panels, caption, notes, f"Feature maps. {caption}")


def expert_maps(panels: Panels, experts: Sequence[str], caption: str = "") -> Shown:
    """Maps (h, w) of int64 of the expert that is chosen at each pixel, 0 for the first of ``experts`` (from shallow to
    deep), beside images; below each map the experts' shares (MoEISR, Figures 1 and 5)."""
    colours = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in EXPERTS], np.uint8)
    shown, notes = {}, {}
    for label, panel in panels.items():
        array = _array(panel)
        chosen = array.ndim == 2 and array.dtype == np.int64
        shown[label] = colours[array] if chosen else _pixels(array, label)
        if chosen:
            parts = np.bincount(array.ravel(), minlength=len(experts)) / array.size
            notes[label] = ", ".join(f"{name} {part:.0%}" for name, part in zip(experts, parts, strict=True))
    spans = (f'<i style="background:{c}"></i>{escape(name)} ' for name, c in zip(experts, EXPERTS, strict=False))
    said, key = f"Maps of the chosen expert. {caption}", f'<div class="srlib-key">{"".join(spans)}</div>'
    return _grid(shown, caption, notes, said, key)


def luma_error(image: Any, hr: Any, protocol: Protocol) -> np.ndarray:
    """The absolute difference of two images' luma, (h, w) in grey levels."""
    one, other = (torch.from_numpy(_pixels(x, "image")).movedim(2, 0)[None].double() for x in (image, hr))
    return (metrics.luma(one, protocol) - metrics.luma(other, protocol))[0, 0].abs().numpy()


def error_maps(errors: Panels, caption: str = "", *, limit: float | None = None) -> Shown:
    """Planes of absolute errors, such as ``luma_error``, on one colour scale from dark (0) to light (``limit``, by
    default the 99.5th percentile of all); the mean stands below each."""
    planes = {label: _array(plane).astype(float) for label, plane in errors.items()}
    top = limit or max(np.percentile(np.concatenate([plane.ravel() for plane in planes.values()]), 99.5), 1e-6)
    notes = {label: f"mean {plane.mean():.2f}" for label, plane in planes.items()}
    painted = {label: _painted(plane / top, "inferno") for label, plane in planes.items()}
    bar = _bar("inferno", "0", f"{top:.2g} grey levels and more")
    return _grid(painted, caption, notes, f"Absolute errors, dark where there is none. {caption}", bar)


def attribution(
    maps: Panels, lr: Any, box: Sequence[float], caption: str = "", *, hr: Any = None, notes: Notes | None = None
) -> Shown:
    """Attribution maps (h, w), such as ``Attribution.strength``, of one patch over the LR image in faint grey, shares
    of their sum on one logarithmic scale over three decades; the patch (``box``: top, left, height, width in LR pixels)
    is framed in red (SAFMN, Figure 2; SSIU, Figure 9)."""
    shares = {label: _array(found).astype(float) / float(_array(found).sum()) for label, found in maps.items()}
    top = max(float(share.max()) for share in shares.values())
    faint = 0.55 + 0.45 * _pixels(lr, "LR").mean(2, keepdims=True) / 255
    panels = {"LR": _pixels(lr, "LR")} if hr is None else {"HR": _pixels(hr, "HR")}
    for label, share in shares.items():
        level = np.log10(np.clip(share, top / 1000, top) * 1000 / top) / 3
        cover = np.where(level > 0, 0.6 + 0.4 * level, 0)[..., None]
        mixed = cover * mpl.colormaps["YlGnBu"](0.15 + 0.85 * level)[..., :3] + (1 - cover) * faint
        panels[label] = (mixed * 255).round().astype(np.uint8)
    for label, panel in panels.items():
        large = _enlarged(panel)
        panels[label] = _framed(large, [side * large.shape[0] / len(faint) for side in box], RED)
    bar = _bar("YlGnBu", f"{top / 10:.2g} %", f"{top * 100:.2g} % of the map in one pixel (grey: less)")
    said = f"What the patch framed in red rests on in the LR image: darker pixels contribute more. {caption}"
    return _grid(panels, caption, notes or {}, said, bar)


def slider(panels: Panels, caption: str = "", *, notes: Notes | None = None) -> Shown:
    """Images of one size under a divider that moves, with linked zoom below (slider.js): the last two panels are on its
    sides at first. Without a script the images stand side by side. Raises InputError for images of several sizes."""
    pixels, labels = {label: _pixels(panel, label) for label, panel in panels.items()}, [*panels]
    if len(labels) < 2 or len({panel.shape for panel in pixels.values()}) > 1:
        raise InputError("a slider compares two images or more of one size")
    tall, wide = pixels[labels[0]].shape[:2]
    cells = [_panel(panel, label, (notes or {}).get(label, ""), caption, 95) for label, panel in pixels.items()]
    data = f'style="--columns:3" data-width="{wide}" data-height="{tall}"'
    grid = f'<div class="srlib-panels srlib-panes" {data}>{"".join(cells)}</div>'
    return _figure(grid, f"{', '.join(labels)}, to be compared by eye. {caption}", caption, "srlib-viz srlib-compare")


def viewer(photographs: Mapping[str, Panels], protocol: Protocol, scale: float = 4, caption: str = "") -> Shown:
    """``slider`` for several photographs, of which the reader chooses one: for each its panels, HR first, with PSNR and
    SSIM against it."""
    parts = []
    for name, panels in photographs.items():
        shown = slider(panels, f"{name}. {caption}", notes=scores(panels, protocol, scale))
        parts.append(f'<section data-photograph="{escape(name)}">{shown.html}</section>')
    alt = f"The photographs {', '.join(photographs)}, to be compared by eye. {caption}"
    return Shown(f'<div class="srlib-viewer">{"".join(parts)}</div>', alt)


def _panel(pixels: np.ndarray, label: str, note: str, said: str, quality: int = 0) -> str:
    image = _img(pixels, f"{label}, {note}: {said}" if note else f"{label}: {said}", quality)
    data = f'data-label="{escape(label)}" data-note="{escape(note)}"'
    text = f'<span class="srlib-label">{escape(label)}<small>{escape(note)}</small></span>'
    return f'<div class="srlib-panel" {data}><div class="srlib-view">{image}</div>{text}</div>'


def _img(pixels: np.ndarray, alt: str, quality: int = 0) -> str:
    """Pixels as PNG, or as WebP of some quality, which a photograph needs a tenth of the bytes for."""
    file, kind, image = io.BytesIO(), "webp" if quality else "png", Image.fromarray(pixels)
    colours, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if not quality and len(colours) <= 256:  # such as a painted plane: a palette takes a third of the bytes
        image = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8))
        image.putpalette(colours.tobytes())
    image.save(file, kind, **({"quality": quality} if quality else {"optimize": True}))
    address = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    size = f'width="{pixels.shape[1]}" height="{pixels.shape[0]}"'
    return f'<img class="dark-light" {size} src="{address}" alt="{escape(alt)}">'


def _array(value: Any) -> np.ndarray:
    """A tensor on any device, or anything array-like, as an array."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
    return np.asarray(value)


def _pixels(value: Any, label: str) -> np.ndarray:
    """Anything image-like as (h, w, 3), uint8."""
    array = _array(value)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    array = array[None] if array.ndim == 2 else array
    array = np.moveaxis(array, 0, 2) if array.ndim == 3 and array.shape[0] in (1, 3) else array
    if array.ndim != 3 or array.shape[2] not in (1, 3) or not np.isfinite(array).all():
        raise InputError(f"panel {label!r} of shape {array.shape} is no image of 1 or 3 channels with finite values")
    if array.dtype != np.uint8:
        array = np.floor(np.clip(array.astype(float), 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.array(np.broadcast_to(array, (*array.shape[:2], 3)), order="C")  # a copy: stored images are read-only


def _painted(plane: np.ndarray, colours: str) -> np.ndarray:
    return (mpl.colormaps[colours](np.clip(plane, 0, 1))[..., :3] * 255).round().astype(np.uint8)


def _bar(colours: str, low: str, high: str) -> str:
    ramp = _img(_painted(np.linspace(0, 1, 128)[None], colours), f"Colour bar from {low} to {high}")
    return f'<div class="srlib-key">{low} {ramp} {high}</div>'


def _enlarged(pixels: np.ndarray, side: int = 240) -> np.ndarray:
    """By nearest neighbour and the smallest whole factor that makes the longer side ``side`` or more."""
    factor = max(1, -(-side // max(pixels.shape[:2])))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def _framed(pixels: np.ndarray, box: Sequence[float], colour: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """The image with a frame about a box (top, left, height, width), and a white one about that."""
    top, left, bottom, right = (round(side) for side in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    line, drawn = max(1, round(max(pixels.shape[:2]) / 200)), pixels.copy()
    for inset, ink in ((2 * line, (255, 255, 255)), (line, colour)):
        drawn[max(top - inset, 0) : bottom + inset, max(left - inset, 0) : right + inset] = ink
    drawn[top:bottom, left:right] = pixels[top:bottom, left:right]
    return drawn


# --- charts -----------------------------------------------------------------------------------------------------------


@contextmanager
def _drawing(height: float = 3.6) -> Iterator[Any]:
    """Axes in the book's look, with nothing of a user's settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(7.2, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.subplots()


def _chart(axes: Any, alt: str, caption: str) -> Shown:
    """The drawing as one SVG, with a legend above if anything has a label; coordinates in tenths of a point."""
    figure, labels = axes.figure, axes.get_legend_handles_labels()[1]
    if labels:
        figure.legend(loc="outside upper center", ncols=max(1, min(len(labels), 96 // (8 + max(map(len, labels))))))
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'(?<= d=")[^"]*', lambda path: " ".join(re.sub(r"(\.\d)\d+", r"\1", path[0]).split()), svg)
    address = "data:image/svg+xml," + escape(re.sub(r"\s+", " ", svg).replace('"', "'"), quote=False)
    address = address.replace("%", "%25").replace("#", "%23")
    image = f'<img class="dark-light" src="{address}" alt="{escape(alt)}">'
    box = '<div class="srlib-chart" role="region" tabindex="0" aria-label="Chart">'
    return _figure(f"{box}{image}</div>", alt, caption)


def look(labels: Collection[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of each label: those of the paper whose network it names, by its model or its printed
    title; grey for bicubic, and colours of no paper for others."""
    known = {"bicubic": (INK, "x")}
    for paper in papers.all_papers().values():
        names = (paper.name, *paper.titles, *paper.titles.values())
        known |= {name.lower(): (paper.colour, paper.marker) for name in names}
    others, dashes = cycle(zip(PALETTE, "osD^vP", strict=True)), cycle(("-", (0, (5, 1.5)), (0, (1.5, 1.2)), "-."))
    pairs = {label: known.get(label.lower()) or next(others) for label in labels}
    return {label: {"color": ink, "marker": mark, "linestyle": next(dashes)} for label, (ink, mark) in pairs.items()}


def bands(
    lines: Mapping[str, tuple[Any, Any]], xlabel: str, ylabel: str, caption: str = "", smooth: float = 0, **axis: Any
) -> Shown:
    """For each label x (n,) and y, (n,) or (runs, n): the mean, and a band from the lowest run to the highest.

    ``smooth`` is the weight of the past in a moving average, over the faint raw line. A line that stops being finite
    ends in a cross. ``axis`` are matplotlib's, such as yscale="log" and ylim=(-1, None).
    """
    said = []
    with _drawing() as axes:
        for label, style in look(lines).items():
            x, runs = np.asarray(lines[label][0], float), np.atleast_2d(np.asarray(lines[label][1], float))
            finite = np.isfinite(runs).all(0)
            end = len(x) if finite.all() else int(finite.argmin())
            x, runs, mean = x[:end], runs[:, :end], pd.Series(runs[:, :end].mean(0))
            if len(runs) > 1:
                axes.fill_between(x, runs.min(0), runs.max(0), color=style["color"], alpha=0.2, linewidth=0)
            if smooth:
                axes.plot(x, mean, color=style["color"], alpha=0.25, linewidth=0.8)
                mean = mean.ewm(alpha=1 - smooth).mean()
            axes.plot(x, mean, **style, label=label, markevery=max(1, len(x) // 8), markersize=5)
            if end < len(finite):
                axes.plot(x[-1:], mean[-1:], marker="X", markersize=10, color=style["color"])
            said.append(f"{label} from {mean.iloc[0]:.3g} at {x[0]:g} to {mean.iloc[-1]:.3g} at {x[-1]:g}")
        axes.set(xlabel=xlabel, ylabel=ylabel, **axis)
        return _chart(axes, f"{ylabel} against {xlabel}: {'; '.join(said)}.", caption)


def curves(logs: Mapping[str, Any], y: str = "loss", caption: str = "", x: str = "step", **options: Any) -> Shown:
    """Columns ``y`` against ``x`` of frames by label, such as ``Run.log`` or a run's lines of ``results.curves``; lines
    without a value at the end of a part are passed over. ``options`` are those of ``bands``."""
    frames = {label: pd.DataFrame(log)[[x, y]].dropna() for label, log in logs.items()}
    options = {"xlabel": x, "ylabel": y} | options
    return bands({label: (one[x], one[y]) for label, one in frames.items() if len(one)}, caption=caption, **options)


def radial_spectrum(plane: Any, rings: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Frequency (cycles a pixel, up to 0.5) and mean power of a plane (h, w) in rings, under a Hann window. Raises
    InputError for a plane that has no frequency in some ring."""
    values = _array(plane).astype(float)
    window = np.outer(*(np.hanning(side + 1)[:-1] for side in values.shape))
    power = np.abs(np.fft.fft2((values - values.mean()) * window)) ** 2 / (window**2).sum()
    frequency = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, values.shape), indexing="ij"))
    inside = (frequency > 0) & (frequency < 0.5)
    ring = (frequency[inside] * 2 * rings).astype(int)
    count = np.bincount(ring, minlength=rings)
    if not count.all():
        raise InputError(f"a plane of {values.shape} is too small for {rings} rings of frequency: give fewer")
    return (np.arange(rings) + 0.5) / (2 * rings), np.bincount(ring, power[inside], rings) / count


def spectra(planes: Mapping[str, Sequence[Any]], caption: str = "", *, reference: str = "") -> Shown:
    """Power of luma planes, some (h, w) for each label, against spatial frequency in dB; relative to that of the label
    ``reference`` where it is named."""
    found = {label: [radial_spectrum(plane) for plane in some] for label, some in planes.items()}
    levels = {label: 10 * np.log10(np.mean([power for _, power in some], 0)) for label, some in found.items()}
    lines = {k: (found[k][0][0], level - (levels[reference] if reference else 0)) for k, level in levels.items()}
    ylabel = f"power relative to {reference} (dB)" if reference else "power (dB)"
    return bands(lines, "spatial frequency (cycles a pixel)", ylabel, caption)


def scatter(points: pd.DataFrame, caption: str = "", *, printed: pd.DataFrame | None = None, **axis: Any) -> Shown:
    """Quality against cost (SAFMN, Figure 1): a frame by label of what is across, what is up, and what the area of a
    circle is proportional to, named so; filled for the papers' networks, and dashed circles for those ``printed``."""
    xlabel, ylabel, sizes = points.columns
    inks, unit = {label: style["color"] for label, style in look([*points.index]).items()}, 740 / points[sizes].max()
    with _drawing(4.2) as axes:
        texts, turn = [], np.linspace(0, 2 * np.pi, 13)
        for label, x, y, size in points.itertuples():
            ink = INK if inks[label] in PALETTE else inks[label]
            axes.scatter(x, y, size * unit, "none" if ink == INK else (ink, 0.5), edgecolor=ink, linewidth=1.4)
            texts.append(axes.text(x, y, label, color=ink, weight="normal" if ink == INK else "bold"))
        for _, x, y, size in () if printed is None else printed.itertuples():
            axes.scatter(x, y, size * unit, "none", edgecolor=INK, linestyle="--")
        axes.margins(0.14, 0.18)
        axes.set(xlabel=xlabel, ylabel=ylabel, **({"xscale": "log"} | axis))
        axes.set_title(f"area of a circle: {sizes}{'' if printed is None else ', dashed: printed'}", fontsize=10)
        axes.figure.draw_without_rendering()  # labels keep off the circles where these come to lie
        radii = np.sqrt(points[sizes].to_numpy() * unit) / 2 * axes.figure.dpi / 72
        circle = radii[:, None, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
        rims = axes.transData.transform(points[[xlabel, ylabel]])[:, None] + circle
        rims = axes.transData.inverted().transform(rims.reshape(-1, 2))
        lines = {"arrowstyle": "-", "color": INK, "linewidth": 0.7}
        adjust_text(texts, *rims.T, ax=axes, arrowprops=lines, iter_lim=200)  # no time limit, which varies
        said = ", ".join(f"{label} at {x:.4g} and {y:.4g}" for label, x, y, _ in points.itertuples())
        return _chart(axes, f"{ylabel} against {xlabel}: {said}.", caption)


def intervals(gaps: Mapping[str, Any], caption: str = "", *, printed: Mapping[str, float] | None = None) -> Shown:
    """Gaps in dB (mean, low, high), such as ``results.Gap``, one a line beside 0, with hollow diamonds where print has
    them."""
    frame = pd.DataFrame([tuple(gap)[:3] for gap in gaps.values()], [*gaps], ["ours", "low", "high"]).iloc[::-1]
    with _drawing(1.2 + 0.32 * len(frame)) as axes:
        axes.axvline(0, color=INK, linewidth=0.8)
        reach = np.nan_to_num([frame.ours - frame.low, frame.high - frame.ours])
        axes.errorbar(frame.ours, frame.index, xerr=reach, fmt="o", color=PALETTE[0], elinewidth=2, label="ours, 95 %")
        if printed:
            shown = frame.index.map(printed)
            axes.plot(shown, frame.index, "d", markerfacecolor="none", color=INK, label="printed")
        axes.set(xlabel="gap in PSNR (dB)", ylim=(-0.6, len(frame) - 0.4))
        said = "; ".join(f"{label} {gap[0]:+.2f} ({gap[1]:+.2f} to {gap[2]:+.2f})" for label, gap in gaps.items())
        said = said.replace(" (+nan to +nan)", "")
        return _chart(axes, f"Gaps in PSNR, dB: {said}.", caption)


def bars(values: Mapping[str, Any] | pd.DataFrame, unit: str, caption: str = "", *, stacked: bool = False) -> Shown:
    """Horizontal bars with their values, such as operator times (SAFMN, Table 5); the columns of a frame, such as ours
    and printed, stand beside each other, or one on another."""
    frame = values if isinstance(values, pd.DataFrame) else pd.DataFrame({"": pd.Series(values)})
    with _drawing(1.1 + 0.36 * (len(frame) if stacked else frame.size)) as axes:
        draw: Any = frame.iloc[::-1].plot.barh
        look = {"colormap": "viridis", "edgecolor": INK} if stacked else {"color": [PALETTE[0], INK]}
        draw(ax=axes, stacked=stacked, width=0.75, legend=False, xlabel=unit, **look)
        for drawn in [] if stacked else axes.containers:
            axes.bar_label(drawn, fmt="{:,.3g}", padding=3, color=INK)
        axes.margins(x=0 if stacked else 0.12)
        rows = frame.iterrows()
        said = "; ".join(f"{name} " + ", ".join(f"{k} {v:.3g}".strip() for k, v in row.items()) for name, row in rows)
        return _chart(axes, f"Bars, {unit}: {said}.", caption)


def shares(values: Mapping[str, Mapping[str, float]], unit: str, caption: str = "") -> Shown:
    """Stacked bars of shares, such as those of the experts that a network's blocks choose (SeemoRe, Figure 5a)."""
    return bars(pd.DataFrame(values).T.fillna(0.0), unit, caption, stacked=True)


# --- tables -----------------------------------------------------------------------------------------------------------


def badge(word: str) -> str:
    """A verdict, trend or judgement as HTML: its symbol and its words."""
    return f'<span class="verdict verdict-{papers.slug(word)}">{BADGES[word]} {escape(word.replace("-", " "))}</span>'


def _cell(value: Any, digits: int) -> str:
    """A value as HTML: floats with that many significant digits and no exponent, verdicts as badges, text as text."""
    if isinstance(value, Shown):
        return value.html
    if isinstance(value, str):
        text = badge(value) if value in BADGES else escape(value)
        return text if re.match(r"[-+\u2212~\u00d7]?[\d.]|$", value) else f'<span class="srlib-text">{text}</span>'
    if isinstance(value, bool | np.bool_) or pd.isna(value):
        return {True: "yes", False: "no"}[bool(value)] if pd.notna(value) else "\u2013"
    whole = isinstance(value, int | np.integer) or not np.isfinite(value)
    places = 0 if whole else max(0, digits - len(str(int(abs(value)))))
    return f"{value:,.{places}f}".replace("-", "\N{MINUS SIGN}")


def _head(caption: str) -> str:
    return f'<p class="srlib-caption">{escape(caption)}</p>' if caption else ""


def _html(frame: pd.DataFrame, caption: str, alt: str = "", after: str = "") -> Shown:
    """A frame of HTML as a table that scrolls in its own box; the first column names the rows."""
    html = frame.style.hide(axis="index").to_html(exclude_styles=True)
    html = re.sub(r"(<tr>\s*)<td\s*>(.*?)</td>", r'\1<th scope="row">\2</th>', html, flags=re.DOTALL)
    box = f'<div class="srlib-scroll" role="region" tabindex="0" aria-label="{escape(caption)}">{html}</div>'
    alt = alt or f"{caption} {len(frame)} rows, {len(frame.columns)} columns."
    return Shown(f'<div class="srlib-table">{_head(caption)}{box}{after}</div>', alt)


def table(frame: pd.DataFrame, caption: str = "", *, digits: int = 4) -> Shown:
    """Any frame: floats with ``digits`` significant digits, verdicts as badges, numbers flush right; an index with a
    name becomes the first column."""
    frame = frame.reset_index() if any(frame.index.names) else frame
    shown = frame.astype(object).map(lambda value: _cell(value, digits))
    return _html(shown.rename(columns=lambda name: escape(str(name))), caption)


def heat(frame: pd.DataFrame, caption: str = "", *, reference: str, digits: int = 2) -> Shown:
    """Scores by row, such as a protocol, and column, each with its signed distance from the row ``reference``, which a
    tint repeats."""
    away = frame - frame.loc[reference]
    tint = (away.abs() / away.abs().max().replace(0, 1) * 30).round()
    cells = frame.map(f"{{:.{digits}f}}<small>".format) + away.map(f"{{:+.{digits}f}}</small>".format)
    cells = '<span class="srlib-heat" style="--heat:' + tint.map("{:.0f}%".format) + '">' + cells + "</span>"
    cells = cells.rename_axis(str(frame.index.name or "protocol")).reset_index()
    return _html(cells, f"{caption} Compared with {reference}.")


def _printed(cell: Any, notes: dict[str, int], records: str) -> str:
    """A printed number; below it ours with its verdict, our score at a smaller budget, or our gap with its trend, which
    lead to the record of the (first) run."""
    printed, note = escape(str(cell.printed)), cell.note
    if cell.verdict != "not-run":
        digits = len(str(cell.printed).partition(".")[2]) + (cell.verdict != "exact")
        said = f"{cell.ours:.{digits}f} {badge(cell.verdict)}"
    elif not cell.own:
        return printed
    elif cell.trend:
        said, note = f"gap {cell.gap:+.2f} {badge(cell.trend)}", f"{cell.budget}; print: gap {cell.gap_printed:+.2f}"
    elif pd.notna(cell.trained):
        said, note = f"{cell.trained:.{len(str(cell.printed).partition('.')[2])}f}", cell.budget
    else:
        said = badge("not-run")
    if cell.runs:
        number, _, rest = said.partition(" <")
        said = f'<a href="{records}#{cell.runs.split()[0]}">{number}</a>' + (f" <{rest}" if rest else "")
    mark = f"<sup>{notes.setdefault(note, len(notes) + 1)}</sup>" if note else ""
    return f"{printed}<br><small>{said}{mark}</small>"


def printed_table(frame: pd.DataFrame, caption: str = "", records: str = "../records.html") -> Shown:
    """A printed table (``tables.table``): rows by datasets and metrics as in the paper; in a cell the printed number,
    below it ours with its verdict, or our score at a smaller budget with its trend; notes are numbered below the table.
    Other papers' rows are folded away as far as nothing of them is run. ``records`` is where the runs are listed."""
    notes: dict[str, int] = {}
    small = frame.variant.map(lambda variant: f" <small>{escape(variant)}</small>" if variant else "")
    names = frame.row.map(escape) + small
    cells = pd.DataFrame({"row": names.where(~frame.own, "<b>" + names + "</b>")})
    if frame.scale.nunique() > 1:
        cells["scale"] = frame.scale.map("\u00d7{}".format)
    index = [*cells]
    cells["metric"] = [METRICS.get(name, name.upper()) for name in frame.metric]
    cells["metric"] += frame.unit.map(lambda unit: f" [{unit}]" if unit else "")
    cells["cell"] = [_printed(cell, notes, records) for cell in frame.itertuples()]
    cells["dataset"] = frame.dataset
    idle = ~(frame.own | (frame.verdict != "not-run")).groupby([cells[name] for name in index]).transform("any")

    def pivoted(part: pd.DataFrame) -> pd.DataFrame:
        return part.pivot_table("cell", index, ["dataset", "metric"], "<br>".join, "\u2013", sort=False).reset_index()

    after = f'<ol class="srlib-notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ol>' if notes else ""
    if idle.any():
        folded = f"<summary>{cells[idle]['row'].nunique()} rows of other networks, as printed</summary>"
        after += f"<details>{folded}{_html(pivoted(cells[idle]), '').html}</details>"
    counts = ", ".join(f"{count} {verdict}" for verdict, count in frame.verdict.value_counts().items())
    alt = f"{caption} {len(frame)} printed cells: {counts}."
    return Shown(after, alt) if idle.all() else _html(pivoted(cells[~idle]), caption, alt, after)


def scoreboard(frame: pd.DataFrame, caption: str = "") -> Shown:
    """Counts of verdicts (``tables.scoreboard``) or of judgements, with a bar of their shares in each line."""
    stacks: Any = []
    for line in frame.to_dict("records"):
        named = [word for word in BADGES if word in line and word not in TRENDS]
        parts = "".join(f'<i class="verdict-{papers.slug(k)}" style="flex:{line[k]}"></i>' for k in named)
        stacks.append(Shown(f'<span class="srlib-stack" aria-hidden="true">{parts}</span>', ""))
    return table(frame.assign(share=stacks), caption)


def ledger(frame: pd.DataFrame, caption: str = "") -> Shown:
    """What differs between print, release and ours (``tables.ledger``), the rows of one difference in one line."""
    lines: Any = frame.fillna("").astype(str)
    place = lines.table.map(lambda number: f"Table {number} " if number else "") + lines.dataset + " "
    lines["place"] = place + lines.metric.map(lambda metric: METRICS.get(metric, metric.upper()))
    keys = ["place", "printed", "ours", "verdict", "explanation", "evidence"]
    rows = lines.groupby(keys, sort=False).row.agg(lambda some: ", ".join(some.unique())).reset_index()
    names = {"row": "what", "printed": "print", "ours": "here", "explanation": "why"}
    return table(rows[["row", *keys]].rename(columns=names), caption)


def claims(frame: pd.DataFrame, caption: str = "") -> Shown:
    """What papers say in words (``tables.claims``), each with its place, our judgement and why, and the evidence with
    the page that has it. A claim is an article with an address, such as #safmn-claim-3, on a page of chapters."""
    parts: list[str] = []
    lines: Any = frame.itertuples()
    for number, line in zip(frame.groupby("paper").cumcount() + 1, lines, strict=True):
        name, (page, mark, anchor) = f"{line.paper}-claim-{number}", line.link.partition("#")
        page = page.removeprefix("/")
        address = (
            f"{page.removeprefix('chapters/') if page.startswith('chapters/') else f'../{page}'}.html{mark}{anchor}"
        )
        here = f'<a href="#{name}" aria-label="Address of claim {number}">#{number}</a>'
        said = f"{badge(line.verdict)} <b>{escape(line.claim)}</b> <small>{escape(line.place)} {here}</small>"
        found = f"{escape(line.evidence)} {link(page.removeprefix('chapters/'), address).html}"
        parts.append(f'<article id="{name}"><p>{said}</p><p>{escape(line.why)}</p><p>Here: {found}</p></article>')
    counts = ", ".join(f"{count} {verdict}" for verdict, count in frame.verdict.value_counts().items())
    html = f'<div class="srlib-ledger srlib-folded" data-find="these claims">{_head(caption)}{"".join(parts)}</div>'
    return Shown(html, f"{caption} Claims: {counts}.")


def link(text: str, address: str = "", anchor: str = "") -> Shown:
    """Text that leads to an ``address``, such as "records.html#equal-safmn-seed0", or that others lead to by its
    ``anchor``; for cells of a table, too."""
    named = f' id="{escape(anchor)}"' if anchor else ""
    leads = f' href="{escape(address)}"' if address else ""
    tag = "a" if address else "span"
    return Shown(f"<{tag}{named}{leads}>{_cell(text, 4)}</{tag}>", text)


def folded(parts: Mapping[str, Shown], find: str = "") -> Shown:
    """Parts that are folded away under their names; ``find`` says what a reader may search in them, row by row, where
    scripts run (book.js)."""
    inner = "".join(f"<details><summary>{escape(name)}</summary>{part.html}</details>" for name, part in parts.items())
    data = f' data-find="{escape(find)}"' if find else ""
    return Shown(f'<div class="srlib-folded"{data}>{inner}</div>', f"Folded away: {'; '.join(parts)}.")


def numbers(values: Mapping[str, Any], caption: str = "") -> Shown:
    """A few large numbers, each above what it counts."""
    inner = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in values.items()
    )
    said = "; ".join(f"{name}: {value}" for name, value in values.items())
    html = f'<div class="srlib-table"><dl class="srlib-numbers">{inner}</dl>{_head(caption)}</div>'
    return Shown(html, f"{said}. {caption}")


def forward(*things: Any) -> Shown:
    """The source of functions, and of the ``forward`` of modules or their classes, highlighted, with file and line: the
    code beside a page's equations."""
    parts, root = [], Path(papers.__file__).parents[2]
    for thing in things:
        owner = type(thing) if isinstance(thing, torch.nn.Module) else thing
        function = inspect.unwrap(getattr(owner, "forward", owner))
        lines, first = inspect.getsourcelines(function)
        file = Path(inspect.getfile(function))
        place = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        code = highlight(textwrap.dedent("".join(lines)), PythonLexer(), HtmlFormatter())
        parts.append(f'{code}<p class="srlib-caption">{escape(function.__qualname__)}: {place}, line {first}</p>')
    return Shown(f'<div class="srlib-source">{"".join(parts)}</div>', f"Source of {len(parts)} functions of srlib.")
