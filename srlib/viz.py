"""Figures and tables: the only module that draws.

Every function returns an object that shows itself, as HTML, in a live notebook and on a page of the book. Figures
need ``alt``, a text that stands in for the picture. Line charts come as a light and a dark drawing of which the page
shows one; photographs and feature maps are shown pixel for pixel, with their labels as text of the page. One style
and one colour per model (``COLOURS``) hold throughout; marker and dash tell models apart as well, so nothing rests on
colour alone.
"""

import base64
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from srlib.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Theme = Literal["light", "dark"]

COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "bicubic": "#7a7a7a",
        "safmn": "#3a4eff",
        "seemore": "#b23f18",
        "ssiu": "#43a55e",
        "liif": "#977bb7",
        "lte": "#4e87fe",
        "moeisr": "#e17702",
    }
)
"""One colour per model, told apart with red-green colour blindness too, and readable on white and on the dark page."""

MARKERS: Mapping[str, str] = MappingProxyType(
    {"bicubic": "x", "safmn": "o", "seemore": "s", "ssiu": "D", "liif": "^", "lte": "v", "moeisr": "P"}
)
"""One marker per model, so that a figure reads without its colours."""

EXPERTS = ("#f4cf3a", "#45b36b", "#2f6fd0", "#a01c2c")
"""Yellow, green, blue and red: the experts from shallow to deep (MoEISR, Figures 1 and 5), ever darker."""

RED = (214, 0, 38)
"""The frame about the patch that an attribution map explains, as in the papers' figures."""

DECADES = 3
"""How far down from its largest share an attribution map is coloured, in powers of ten."""

VERDICTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "exact": ("=", "exact"),
        "within": ("~", "within"),
        "differs": ("\u2260", "differs"),
        "not-run": ("\u00b7", "not run"),
    }
)
"""The symbol and the word of each verdict."""

METRICS: Mapping[str, str] = MappingProxyType(
    {
        "params": "#Params",
        "flops": "#FLOPs",
        "macs": "#MACs",
        "acts": "#Acts",
        "psnr": "PSNR",
        "ssim": "SSIM",
        "gpu_memory": "GPU memory",
        "time": "Time",
        "runtime": "Runtime",
        "niqe": "NIQE",
        "brisque": "BRISQUE",
    }
)
"""How the columns of the papers' tables are headed."""

NUMBER = re.compile(r"[-+\u2212\u00b1~]?[\d.\u2013]")
"""How the text of a number starts."""

PAGE: Mapping[str, str] = MappingProxyType({"light": "#ffffff", "dark": "#121212"})
"""The background that a drawing is made for."""

STYLE = """
.srlib-viz, .srlib-table { --viz-rule: #d5dae0; --viz-muted: #57606a; --viz-soft: #f3f5f7; --viz-edge: #0000002e;
  --viz-page: var(--pst-color-background, var(--jp-layout-color1, Canvas)); margin: .25rem 0 1rem; }
[data-theme="dark"] .srlib-viz, [data-theme="dark"] .srlib-table, [data-jp-theme-light="false"] .srlib-viz,
[data-jp-theme-light="false"] .srlib-table { --viz-rule: #3d444d; --viz-muted: #a3adb8; --viz-soft: #1f252d;
  --viz-edge: #ffffff3d; }
figure.srlib-viz { margin: .25rem 0 1rem; padding: 0; }
.srlib-viz img { max-width: 100%; height: auto; margin: 0; background: none !important; filter: none !important;
  border-radius: 0; padding: 0 !important; }
figure.srlib-viz figcaption, .srlib-table .srlib-caption, .srlib-ledger .srlib-caption {
  color: var(--viz-muted) !important; font-weight: 400;
  font-size: .92em; line-height: 1.45; margin: .5rem 0; padding: 0; text-align: left; max-width: 44rem; }
.srlib-viz .only-dark { display: none; }
[data-theme="dark"] .srlib-viz .only-dark, [data-jp-theme-light="false"] .srlib-viz .only-dark { display: inline
  !important; }
[data-theme="dark"] .srlib-viz .only-light, [data-jp-theme-light="false"] .srlib-viz .only-light { display: none
  !important; }
.srlib-chart { overflow-x: auto; max-width: 100%; }
.srlib-panels { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 18rem)); gap: .75rem;
  align-items: start; }
@media (max-width: 480px) { .srlib-panels { grid-template-columns: repeat(min(var(--columns), 2), minmax(0, 1fr)); }
  .srlib-panels.srlib-few { grid-template-columns: minmax(0, 1fr); } }
.srlib-panel { margin: 0; }
.srlib-panel img { width: 100%; display: block; image-rendering: pixelated; }
.srlib-full { margin: 0 0 .75rem; max-width: 32rem; }
.srlib-full img { display: block; width: 100%; }
.srlib-label { display: block; font-size: .88em; line-height: 1.35; margin-top: .3rem; overflow-wrap: anywhere; }
.srlib-label span { color: var(--viz-muted); display: block; font-variant-numeric: tabular-nums; }
.srlib-scroll { overflow-x: auto; max-width: 100%; background: linear-gradient(to left, var(--viz-page) 40%,
  transparent) right / 2.5rem 100% no-repeat local, linear-gradient(to left, var(--viz-edge), transparent) right / 1rem
  100% no-repeat scroll; }
.srlib-scroll:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
.srlib-table table { border-collapse: collapse; font-size: .9em; line-height: 1.35; font-variant-numeric:
  tabular-nums; margin: 0; width: auto; border: 0; table-layout: auto; }
.srlib-table th, .srlib-table td { padding: .4rem .7rem; border: 0; border-bottom: 1px solid var(--viz-rule);
  text-align: right; vertical-align: top; white-space: nowrap; background: none; }
.srlib-table thead th { font-weight: 600; vertical-align: bottom; white-space: normal; }
.srlib-table thead tr:last-child th { border-bottom: 2px solid var(--viz-muted); }
.srlib-table thead th[colspan] { text-align: center; }
.srlib-table th[scope="row"], .srlib-table thead th:first-child, .srlib-table tr.srlib-group th { text-align: left;
  }
.srlib-table th[scope="row"] { font-weight: 500; white-space: normal; min-width: min(11rem, 34vw); max-width:
  min(17rem, 42vw); position: sticky; left: 0; z-index: 1; background: var(--viz-page); overflow-wrap: break-word; }
.srlib-table thead tr > :first-child { position: sticky; left: 0; z-index: 1; background: var(--viz-page); }
.srlib-table tr.srlib-group th { background: var(--viz-soft); font-weight: 600; }
.srlib-table tr.srlib-group th span { position: sticky; left: .7rem; }
.srlib-table.srlib-wide table { font-size: .8em; }
.srlib-table.srlib-wide th, .srlib-table.srlib-wide td { padding: .4rem .32rem; }
.srlib-table.srlib-wide th[scope="row"] { min-width: 6.5rem; }
.srlib-table.srlib-wide thead .srlib-unit { display: block; }
.srlib-table.srlib-wide tr.srlib-group th span { left: .32rem; }
.srlib-table.srlib-packed th, .srlib-table.srlib-packed td { padding: .4rem .2rem; }
.srlib-table.srlib-packed table { font-size: .77em; }
.srlib-table.srlib-packed th[scope="row"] { min-width: 6rem; }
.srlib-table.srlib-packed td .srlib-mark { display: block; }
.srlib-unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space:
  nowrap; }
@media (max-width: 600px) { .srlib-table th[scope="row"] { box-shadow: 1px 0 0 var(--viz-rule); } }
.srlib-table .srlib-word, .srlib-table .srlib-long { text-align: left; }
.srlib-table td.srlib-long { white-space: normal; min-width: 16rem; max-width: 30rem; overflow-wrap: break-word; }
.srlib-unit, .srlib-variant { color: var(--viz-muted); font-weight: 400; font-size: .9em; }
.srlib-printed, .srlib-ours { display: block; }
.srlib-mark { white-space: nowrap; position: relative; }
.srlib-table .srlib-key { font-size: .9em; margin: .6rem 0 0; }
.srlib-ours { font-size: .88em; color: var(--viz-muted); }
.srlib-table ol.srlib-notes { font-size: .88em; line-height: 1.45; padding-left: 1.6rem; margin: .6rem 0 0;
  max-width: 44rem; }
.srlib-table sup { font-size: .75em; padding-left: .15em; }
.srlib-heat-pos { background: color-mix(in srgb, #3a4eff var(--heat), transparent) !important; }
.srlib-heat-neg { background: color-mix(in srgb, #e17702 var(--heat), transparent) !important; }
.srlib-stack { display: flex; min-width: min(11rem, 24vw); height: 1.1rem; border-radius: 3px; overflow: hidden;
  gap: 1px; }
.srlib-stack i { display: block; border-style: none; }
.srlib-ledger .srlib-entry { border-top: 1px solid var(--viz-rule); padding: .9rem 0; max-width: 48rem;
  scroll-margin-top: 4.5rem; }
.srlib-ledger .srlib-entry:target { box-shadow: -.9rem 0 0 -.65rem var(--viz-page), -.9rem 0 0 -.4rem currentColor; }
.srlib-ledger p, .srlib-ledger ul, .srlib-ledger dl { margin: 0 0 .4rem; padding: 0; line-height: 1.5; }
.srlib-ledger .srlib-head { display: flex; flex-wrap: wrap; gap: .15rem .8rem; align-items: baseline; }
.srlib-ledger .srlib-head strong { font-weight: 600; overflow-wrap: anywhere; }
.srlib-ledger .srlib-head small { color: var(--viz-muted); font-size: .85em; }
.srlib-ledger ul + .srlib-head { margin-top: .7rem; }
.srlib-ledger .srlib-numbers { font-variant-numeric: tabular-nums; }
.srlib-ledger .srlib-tag { font-size: .8em; color: var(--viz-muted); background: var(--viz-soft); padding: 0 .5em;
  border-radius: 4px; line-height: 1.6; }
.srlib-ledger ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem .4rem; font-size: .9em; }
.srlib-ledger ul li { margin: 0; padding: 0 .5em; border: 1px solid var(--viz-rule); border-radius: 4px; }
.srlib-ledger dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1rem .9rem; }
.srlib-ledger dt { color: var(--viz-muted); font-weight: 400; margin: 0; }
.srlib-ledger dd { margin: 0; overflow-wrap: anywhere; }
.srlib-ledger .srlib-evidence { color: var(--viz-muted); font-size: .9em; margin: 0; overflow-wrap: break-word; }
.verdict { --verdict: #4b5563; display: inline-block; padding: 0 .45em; border: 1px solid var(--verdict);
  border-radius: 99px; color: var(--verdict); font-size: .82rem; line-height: 1.45; font-weight: 500; white-space:
  nowrap; }
.verdict-exact { --verdict: #1a6b35; } .verdict-within { --verdict: #1d5f9e; } .verdict-differs { --verdict:
  #a8350c; } .verdict-not-run { --verdict: #57606a; border-style: dashed; }
[data-theme="dark"] .verdict-exact, [data-jp-theme-light="false"] .verdict-exact { --verdict: #6fd08c; }
[data-theme="dark"] .verdict-within, [data-jp-theme-light="false"] .verdict-within { --verdict: #7cc0ee; }
[data-theme="dark"] .verdict-differs, [data-jp-theme-light="false"] .verdict-differs { --verdict: #ffa37c; }
[data-theme="dark"] .verdict-not-run, [data-jp-theme-light="false"] .verdict-not-run { --verdict: #a3adb8; }
.srlib-stack .verdict-exact { background: #2e8b4f; } .srlib-stack .verdict-within { background: #3b82c4; }
.srlib-stack .verdict-differs { background: #d5541a; } .srlib-stack .verdict-not-run { background: #8b949e; }
""".strip()
"""What the HTML needs to look right where no style sheet knows it, such as in JupyterLab. The book's own style sheet
repeats it.

:meta hide-value:
"""


class PrintedCell(Protocol):
    """What a printed-against-ours table needs of a cell: ``srlib.papers.Cell`` has it."""

    row: str
    variant: str
    scale: int
    dataset: str
    metric: str
    printed: Any
    ours: Any
    unit: str
    verdict: str
    note: str
    record: str


class LedgerEntry(Protocol):
    """What the ledger needs of an entry: ``srlib.papers.Entry`` has it."""

    kind: str
    table: int | str | None
    row: str
    scale: int | None
    metric: str
    printed: str
    ours: str
    verdict: str
    explanation: str
    evidence: str
    dataset: str
    record: str


@dataclass(frozen=True)
class Shown:
    """Something drawn: HTML that shows itself, and the text that stands in for it."""

    html: str
    alt: str

    def _repr_html_(self) -> str:
        return f"<style>{STYLE}</style>\n{self.html}"

    def __repr__(self) -> str:
        return self.alt


@dataclass(frozen=True)
class Traced:
    """An entry of a ``plain_table`` that leads to a record of its own (see :func:`record_link`)."""

    value: object
    record: str

    def __str__(self) -> str:
        return str(self.value)


def colour(model: str) -> str:
    """The colour of a model, as #rrggbb. ``model`` is a key of ``COLOURS``. Raises ``InputError`` for another name."""
    if model not in COLOURS:
        raise InputError(f"no colour for model {model!r}; choose one of: {', '.join(COLOURS)}")
    return COLOURS[model]


def shades(model: str, count: int) -> tuple[str, ...]:
    """``count`` distinct colours for variants of one model, the first of them the model's own.

    The others run around the model's hue at a luminance that keeps a contrast of 3 to white and to the dark page.
    """
    import colorsys

    red, green, blue = _rgb(colour(model))
    hue, _, saturation = colorsys.rgb_to_hls(red, green, blue)
    found = [colour(model)]
    for k in range(1, count):
        turned = colorsys.hls_to_rgb((hue + k / max(count, 2)) % 1, 0.5, 0.35 + 0.4 * min(saturation, 1))
        found.append(_with_luminance(turned, (0.2, 0.145, 0.27)[k % 3]))
    return tuple(found)


@contextmanager
def style(theme: Theme = "light") -> Iterator[None]:
    """The book's look for anything that is drawn with matplotlib inside this context."""
    import matplotlib as mpl
    import seaborn as sns

    if theme not in PAGE:
        raise InputError(f"unknown theme {theme!r}; choose light or dark")
    ink, faint = ("#1f2328", "#d5dae0") if theme == "light" else ("#e6edf3", "#3d444d")
    settings = {
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "patch.edgecolor": "none",
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "grid.color": faint,
        "grid.linewidth": 0.8,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.titleweight": "normal",
        "axes.labelsize": 10,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "svg.hashsalt": "srlib",
        "svg.fonttype": "path",
    }
    with (
        mpl.rc_context(),
        sns.axes_style("whitegrid", rc={k: v for k, v in settings.items()}),
        mpl.rc_context(settings),
    ):
        yield


def images(
    panels: Mapping[str, Any],
    *,
    alt: str,
    crop: tuple[int, int, int, int] | None = None,
    scores: Mapping[str, str] | None = None,
    records: Mapping[str, str] | None = None,
    caption: str = "",
) -> Shown:
    """Images side by side, the high-resolution one first.

    ``panels`` gives for each label a tensor or array, CHW, HWC with three channels, HW, or a batch of one, as uint8
    or float in [0, 1]. ``crop`` is (top, left, height, width) in pixels of the first panel: that panel is then shown
    whole with the crop's box drawn in, and every panel's crop below it, enlarged by nearest neighbour. A smaller
    panel, such as the LR image, is cropped at the same place. ``scores`` gives a line of text below a label,
    ``records`` the record that it leads to (see :func:`record_link`). Raises ``InputError`` for no panel, a crop that
    leaves the image, a panel that isn't an image, or a record of a label without scores.
    """
    if not panels:
        raise InputError("there is no image to show; give at least one panel")
    pixels = {label: _pixels(panel, label) for label, panel in panels.items()}
    known = _known(records, list(scores or ()))
    first, whole = next(iter(pixels.items()))
    height, width = whole.shape[:2]
    parts = []
    if crop is not None:
        top, left, tall, wide = crop
        if top < 0 or left < 0 or tall < 1 or wide < 1 or top + tall > height or left + wide > width:
            raise InputError(
                f"crop {crop} leaves the image of {height} x {width}; give (top, left, height, width) inside it"
            )
        boxed = _box(whole, crop)
        parts.append(
            f'<div class="srlib-full">{_img(boxed, f"{first}, whole, with a box around the crop: {alt}")}</div>'
        )
        pixels = {label: _enlarge(_cut(panel, (height, width), crop, label)) for label, panel in pixels.items()}
    for label, panel in pixels.items():
        note = (scores or {}).get(label, "")
        shown = f"<span>{record_link(escape(note), known.get(label, ''))}</span>" if note else ""
        text = f"{label}, {note}: {alt}" if note else f"{label}: {alt}"
        parts.append(
            f'<div class="srlib-panel">{_img(panel, text)}<span class="srlib-label">{escape(label)}{shown}</span></div>'
        )
    cut = 0 if crop is None else 1
    few = " srlib-few" if crop is None and len(pixels) <= 3 else ""
    columns = math.ceil(len(pixels) / math.ceil(len(pixels) / 5))  # lines of the same length: 8 are 4 and 4
    grid = f'<div class="srlib-panels{few}" style="--columns:{columns}">{"".join(parts[cut:])}</div>'
    return _figure("".join(parts[:cut]) + grid, alt, caption)


def features(
    maps: Mapping[str, Any],
    *,
    alt: str,
    channel: int | None = None,
    caption: str = "",
) -> Shown:
    """Feature maps, all drawn alike: for each label a CHW tensor, shown as its mean over channels or as one
    ``channel``.

    Each map is stretched from its 1st to its 99th percentile and coloured from dark (low) to light (high); the range
    is written below it, so that maps of different size can be told apart. A map that holds a NaN or an infinity is
    refused with ``InputError``.
    """
    import matplotlib as mpl

    if not maps:
        raise InputError("there is no feature map to show; give at least one")
    panels, ranges = {}, {}
    for label, tensor in maps.items():
        array = _array(tensor).astype(np.float64)
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
        if array.ndim not in (2, 3):
            raise InputError(
                f"feature map {label!r} has shape {array.shape}; give one image's map, channels x height x width"
            )
        if not np.isfinite(array).all():
            raise InputError(f"feature map {label!r} holds values that aren't finite; look at the weights that made it")
        if array.ndim == 3:
            if channel is not None and not 0 <= channel < len(array):
                raise InputError(
                    f"feature map {label!r} has {len(array)} channels; choose one below that, not {channel}"
                )
            array = array.mean(0) if channel is None else array[channel]
        low, high = np.percentile(array, (1, 99))
        scaled = np.clip((array - low) / max(high - low, 1e-12), 0, 1)
        coloured = mpl.colormaps["cividis"](scaled)[..., :3]
        panels[label] = (coloured * 255).round().astype(np.uint8)
        ranges[label] = f"{low:.3g} to {high:.3g}".replace("-", "\u2212")
    return images(panels, alt=alt, scores=ranges, caption=caption)


def expert_maps(
    panels: Mapping[str, Any], experts: Sequence[str], *, alt: str, scores: Mapping[str, str] | None = None,
    caption: str = "",
) -> Shown:  # fmt: skip
    """Which expert is chosen at each pixel, in the colours of ``EXPERTS``, beside images (MoEISR, Figures 1 and 5).

    ``panels`` gives for each label a map (h, w) of int64, 0 for the first of ``experts``, or an image as for
    ``images``. ``experts`` are named from shallow to deep; the names are the legend, and below each map stand their
    shares. ``scores`` gives a line of text below an image. Raises ``InputError`` for more experts than there are
    colours, and for a map that holds another number.
    """
    if not 1 <= len(experts) <= len(EXPERTS):
        raise InputError(f"{len(experts)} experts have no colours of their own; give 1 to {len(EXPERTS)}")
    colours = np.array([_rgb(colour) for colour in EXPERTS])
    pixels, notes = {}, dict(scores or {})
    for label, panel in panels.items():
        pixels[label], array = panel, _array(panel)
        if array.ndim != 2 or array.dtype != np.int64:
            continue
        if array.size == 0 or array.min() < 0 or array.max() >= len(experts):
            raise InputError(f"expert map {label!r} isn't one of {len(experts)} experts; give numbers from 0 up")
        pixels[label] = np.moveaxis(colours[array], 2, 0)
        parts = np.bincount(array.ravel(), minlength=len(experts)) / array.size
        notes[label] = ", ".join(f"{name} {part:.0%}" for name, part in zip(experts, parts, strict=True))
    shown = images(pixels, alt=alt, scores=notes, caption=caption)
    box = "display:inline-block;width:.9em;height:.9em;margin-right:.4em;vertical-align:-.1em"
    legend = "".join(
        f'<span style="display:inline;margin-right:1rem"><i style="{box};background:{colour}"></i>{escape(name)}</span>'
        for name, colour in zip(experts, EXPERTS, strict=False)
    )
    head, rest = shown.html.split(">", 1)
    return Shown(f'{head}><div class="srlib-label" style="margin-bottom:.5rem">{legend}</div>{rest}', shown.alt)


def error_maps(
    errors: Mapping[str, Any],
    *,
    alt: str,
    limit: float | None = None,
    unit: str = "grey levels",
    scores: Mapping[str, str] | None = None,
    records: Mapping[str, str] | None = None,
    caption: str = "",
) -> Shown:
    """Maps of absolute errors, all on one colour scale from dark (0) to light (``limit``), with the scale as a bar.

    ``errors`` gives for each label a map (h, w) of what is 0 where nothing is wrong. ``limit`` None is the 99.5th
    percentile over all maps together, rounded up to two digits; larger errors have its colour, which the bar says.
    ``scores`` gives a line of text below a label, ``records`` the record that it leads to (see :func:`record_link`).
    Raises ``InputError`` for no map, a map that isn't a plane, values below 0 or not finite, a limit that isn't
    positive, and as ``images`` does.
    """
    import matplotlib as mpl

    if not errors:
        raise InputError("there is no error map to show; give at least one")
    planes = {label: _array(plane).astype(np.float64) for label, plane in errors.items()}
    for label, plane in planes.items():
        if plane.ndim != 2 or plane.size == 0:
            raise InputError(f"error map {label!r} has shape {plane.shape}; give one plane, height x width")
        if not (np.isfinite(plane).all() and plane.min() >= 0):
            raise InputError(f"error map {label!r} holds values below 0 or not finite; give absolute differences")
    largest = max(plane.max() for plane in planes.values())
    if limit is None:
        most = np.percentile(np.concatenate([plane.ravel() for plane in planes.values()]), 99.5)
        limit = _up(most) if most > 0 else 1.0
    if not (math.isfinite(limit) and limit > 0):
        raise InputError(f"errors can't be coloured up to {limit}; give a limit above 0")
    painted = {
        label: (mpl.colormaps["inferno"](np.clip(plane / limit, 0, 1))[..., :3] * 255).round().astype(np.uint8)
        for label, plane in planes.items()
    }
    end = f"{limit:g} {unit}" + (" and more" if largest > limit else "")
    ramp = (mpl.colormaps["inferno"](np.linspace(0, 1, 128))[None, :, :3] * 255).round().astype(np.uint8)
    bar = _img(ramp, f"Colour bar from dark, 0, to light, {end}").replace(
        "<img ", '<img style="width:10rem;height:.8rem;image-rendering:auto" '
    )
    line = "display:flex;gap:.6rem;align-items:center;margin-bottom:.5rem"
    shown = images(
        painted, alt=f"{alt} Dark is no error, light is {end}.", scores=scores, records=records, caption=caption
    )
    head, rest = shown.html.split(">", 1)
    key = f'<div class="srlib-label" style="{line}">0 {bar} {escape(end)}</div>'
    return Shown(f"{head}>{key}{rest}", _said(alt))


def spectra(
    powers: Mapping[str, Any],
    frequencies: Any,
    *,
    alt: str,
    reference: str = "HR",
    relative: bool = False,
    models: Mapping[str, str] | None = None,
    nyquist: float | None = None,
    caption: str = "",
) -> Shown:
    """Power against spatial frequency, as decibels: which detail an image holds, and where it is lost.

    ``powers`` gives for each label the power at each of the ``frequencies`` (cycles a pixel), all above 0.
    ``relative`` draws their ratio to the power of ``reference``, which is then the line at 0 dB. ``models`` names the
    model whose colour and marker a label gets. ``nyquist`` marks the finest frequency that the LR image holds.
    Raises ``InputError`` for no spectrum, one of another length, a power that isn't positive and finite, and a
    reference that is none of them.
    """
    if not powers:
        raise InputError("there is no spectrum to draw; give at least one")
    at = _array(frequencies).astype(np.float64)
    values = {label: _array(power).astype(np.float64) for label, power in powers.items()}
    for label, power in values.items():
        if power.shape != at.shape or at.ndim != 1 or not at.size:
            raise InputError(
                f"spectrum {label!r} has shape {power.shape}; give a power for each of {at.size} frequencies"
            )
        if not (np.isfinite(power).all() and power.min() > 0):
            raise InputError(f"spectrum {label!r} holds powers that aren't positive and finite; look at what made it")
    if relative and reference not in values:
        raise InputError(f"reference {reference!r} isn't among the spectra; choose one of: {', '.join(values)}")
    level = {label: 10 * np.log10(power) for label, power in values.items()}
    if relative:
        level = {label: line - level[reference] for label, line in level.items()}
    owner = {label: label.lower() for label in values if label.lower() in COLOURS} | dict(models or {})

    def draw(axes: "Axes") -> None:
        ink = axes.xaxis.label.get_color()
        if nyquist is not None:
            axes.axvline(nyquist, color="#7a7a7a", linestyle=":", linewidth=1.2, label="finest in LR")
        for k, (label, line) in enumerate(level.items()):
            ours = owner.get(label)
            axes.plot(
                at,
                line,
                color=colour(ours) if ours else ink,
                marker=MARKERS[ours] if ours else None,
                markevery=(k, max(1, len(at) // 8)),
                markersize=5,
                linewidth=1.5,
                label=label,
            )
        axes.set_xlabel("spatial frequency (cycles a pixel)")
        axes.set_ylabel(f"power relative to {reference} (dB)" if relative else "power (dB)")
        axes.figure.legend(loc="outside upper center", ncols=3 if axes.figure.get_figwidth() < 6 else 7)

    return _chart(draw, alt, caption)


def compare(
    panels: Mapping[str, Any],
    *,
    alt: str,
    scores: Mapping[str, str] | None = None,
    records: Mapping[str, str] | None = None,
    left: str = "",
    right: str = "",
    caption: str = "",
) -> Shown:
    """Images of one size to be compared by eye: a divider between any two, and all of them zoomed together.

    ``panels`` gives two images or more by label, as for ``images``; ``scores`` a line of text below a label, and
    ``records`` the record that it leads to (see :func:`record_link`). On a page of the book ``slider.js`` makes of it
    a divider that moves by mouse, touch and keyboard, with ``left`` and ``right`` on its sides at first (default: the
    second panel and the last), above synchronised panels; where no script runs it is a row of images, which is what
    JupyterLab shows. Each image is stored once, without loss. Raises ``InputError`` for fewer than two panels, panels
    of different sizes, a side that is none of the labels, and a record of a label without scores.
    """
    if len(panels) < 2:
        raise InputError(f"{len(panels)} images can't be compared; give at least two")
    _said(alt)
    pixels = {label: _pixels(panel, label) for label, panel in panels.items()}
    labels, known = list(pixels), _known(records, list(scores or ()))
    sides = {"left": left or labels[1 if len(labels) > 2 else 0], "right": right or labels[-1]}
    for side, label in sides.items():
        if label not in pixels:
            raise InputError(f"there is no panel {label!r} for the {side} side; choose one of: {', '.join(labels)}")
    height, width = pixels[labels[0]].shape[:2]
    parts = []
    for label, panel in pixels.items():
        if panel.shape[:2] != (height, width):
            raise InputError(
                f"panel {label!r} is {panel.shape[1]}x{panel.shape[0]} and {labels[0]!r} is {width}x{height}; give "
                "images of one size"
            )
        note = (scores or {}).get(label, "")
        shown = f"<span>{record_link(escape(note), known.get(label, ''))}</span>" if note else ""
        image = _img(panel, f"{label}, {note}: {alt}" if note else f"{label}: {alt}")
        parts.append(
            f'<div class="srlib-panel srlib-pane" data-label="{escape(label, quote=True)}" '
            f'data-note="{escape(note, quote=True)}"><div class="srlib-view">{image}</div>'
            f'<span class="srlib-label">{escape(label)}{shown}</span></div>'
        )
    data = f'data-width="{width}" data-height="{height}"'
    data += "".join(f' data-{side}="{escape(label, quote=True)}"' for side, label in sides.items())
    grid = f'<div class="srlib-panels srlib-panes" style="--columns:3">{"".join(parts)}</div>'
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Shown(f'<figure class="srlib-viz srlib-compare" {data}>{grid}{below}</figure>', alt)


def curves(
    logs: Mapping[str, Any],
    x: str,
    y: str,
    *,
    alt: str,
    model: str = "safmn",
    smooth: float = 0.98,
    raw: bool = True,
    logy: bool = False,
    band: tuple[float, float, str] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    caption: str = "",
) -> Shown:
    """Training curves, smoothed over the raw ones (SAFMN, Figure 7).

    ``logs`` gives for each label columns by name (a mapping or a data frame) of which ``x`` and ``y`` are drawn. A
    label that is a model's name gets the model's colour, the others shades of ``model``'s. ``smooth`` is the weight
    of the past in an exponential moving average, corrected for its start: 0 leaves the curve as it is. A cross marks
    where a run stopped being finite, and the curve ends there: a collapse is shown, not hidden. Rows without a value
    of ``y`` are passed over. ``band`` shades a range of x and names it. Raises ``InputError`` for a missing column or
    a weight outside [0, 1).
    """
    if not logs:
        raise InputError("there is no log to draw; give at least one")
    if not 0 <= smooth < 1:
        raise InputError(f"smoothing weight {smooth} is outside [0, 1); give 0 for none, 0.98 for a lot")
    data = {label: _columns(columns, (x, y), label) for label, columns in logs.items()}
    painted = _colours(list(data), model)

    def draw(axes: "Axes") -> None:
        if band:
            axes.axvspan(*band[:2], color="#7a7a7a", alpha=0.14, linewidth=0, label=band[2])
        for k, (label, (steps, values)) in enumerate(data.items()):
            finite = np.isfinite(values)
            end = len(values) if finite.all() else int(np.argmin(finite))
            steps, values, collapsed = steps[:end], values[:end], end < len(steps)
            thin = max(1, len(steps) // 600)
            if raw and smooth > 0:
                axes.plot(steps[::thin], values[::thin], color=painted[label], alpha=0.22, linewidth=0.8)
            dash = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))[k % 4]
            smoothed = _smooth(values, smooth)
            axes.plot(steps[::thin], smoothed[::thin], color=painted[label], linestyle=dash, label=label)
            if collapsed and end:
                axes.plot(steps[-1], smoothed[-1], marker="X", markersize=9, color=painted[label], linestyle="")
        if logy:
            axes.set_yscale("log")
        axes.set_xlabel(xlabel or x)
        axes.set_ylabel(ylabel or y)
        if len(data) > 1 or band:
            axes.legend()

    return _chart(draw, alt, caption)


def scatter(
    points: Mapping[str, tuple[float, float, float]],
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
    sizes: str = "parameters",
    models: Mapping[str, str] | None = None,
    printed: Mapping[str, tuple[float, float, float]] | None = None,
    logx: bool = True,
    caption: str = "",
) -> Shown:
    """Quality against complexity (SAFMN, Figure 1): for each label (x, y, size), a circle whose area is
    proportional to size.

    ``models`` names the model whose colour a label gets; labels without one are drawn grey and hollow, as points that
    are only quoted, and last, so that none is hidden. ``printed`` puts dashed circles where a label's numbers
    are printed. ``sizes`` says what the circles stand for. Raises ``InputError`` for a point that isn't finite.
    """
    if not points:
        raise InputError("there is no point to draw; give at least one")
    rings = printed or {}
    for label, point in [*points.items(), *rings.items()]:
        if not all(math.isfinite(value) for value in point):
            raise InputError(f"point {label!r} is {point}; leave out points without a number")
        if label not in points:
            raise InputError(f"printed point {label!r} is none of the points; choose one of: {', '.join(points)}")
    largest = max(size for _, _, size in points.values()) or 1
    named = {label.lower(): label.lower() for label in points if label.lower() in COLOURS}
    owner = {**{label: named[label.lower()] for label in points if label.lower() in named}, **(models or {})}

    def draw(axes: "Axes") -> None:
        def area(size: float) -> float:
            return 740 * size / largest * min(1, axes.figure.get_figwidth() / 6)

        radii = {}
        for label in sorted(points, key=lambda label: (label not in owner, -points[label][2])):
            across, up, size = points[label]
            ours = owner.get(label)
            edge = colour(ours) if ours else "#7a7a7a"
            radii[label] = math.sqrt(area(size)) / 2
            face = (edge, 0.5) if ours else "none"
            axes.scatter(across, up, s=area(size), facecolor=face, edgecolor=edge, linewidth=1.4, zorder=3)
        for across, up, size in rings.values():
            ink = axes.xaxis.label.get_color()
            axes.scatter(across, up, s=area(size), facecolor="none", edgecolor=ink, linestyle="--", zorder=4)
        if logx:
            _log_axis(axes)
        axes.margins(0.14, 0.18)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.text(0.99, 0.02, f"area of a circle: {sizes}", transform=axes.transAxes, ha="right", fontsize=8.5)
        _place_labels(axes, points, radii, owner)

    return _chart(draw, alt, caption, height=4.2)


def bands(
    runs: Mapping[str, tuple[Sequence[float], Any]],
    *,
    models: Mapping[str, str],
    xlabel: str,
    ylabel: str,
    alt: str,
    logx: bool = False,
    bottom: float | None = None,
    caption: str = "",
) -> Shown:
    """Curves of several runs each: for each label x (n,) and y (runs, n), drawn as the mean with a band from the lowest
    to the highest run; of one run the curve alone.

    ``models`` names the model whose colour and marker a label gets. ``bottom`` cuts the drawing off below that value,
    where curves start far below where they end. Raises ``InputError`` for no curve, a label without
    a model, shapes that don't fit each other, and values that aren't finite.
    """
    if not runs:
        raise InputError("there is no curve to draw; give at least one")
    data = {}
    for label, (x, y) in runs.items():
        across, up = np.asarray(x, dtype=np.float64), np.atleast_2d(np.asarray(y, dtype=np.float64))
        if label not in models:
            raise InputError(f"no model for curve {label!r}; say whose colour it has in models")
        if across.ndim != 1 or not len(across) or up.ndim != 2 or up.shape[1] != len(across):
            shapes = f"x of shape {across.shape} and y of {up.shape}"
            raise InputError(f"curve {label!r} has {shapes}; give (n,) and (runs, n)")
        if not (np.isfinite(across).all() and np.isfinite(up).all()):
            raise InputError(f"curve {label!r} holds values that aren't finite; leave them out")
        data[label] = across, up, colour(models[label]), MARKERS[models[label]]

    def draw(axes: "Axes") -> None:
        for k, (label, (across, up, ink, marker)) in enumerate(data.items()):
            dash = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))[k % 4]
            axes.fill_between(across, up.min(0), up.max(0), color=ink, alpha=0.18, linewidth=0)
            every = max(1, len(across) // 8)
            axes.plot(
                across, up.mean(0), color=ink, linestyle=dash, marker=marker, markersize=5, markevery=every, label=label
            )
        if logx:
            _log_axis(axes)
        if bottom is not None:
            axes.set_ylim(bottom=bottom)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if len(data) > 1:
            axes.figure.legend(loc="outside upper center", ncols=2 if axes.figure.get_figwidth() < 6 else 4)

    return _chart(draw, alt, caption)


def intervals(
    values: Mapping[str, tuple[float, float, float]],
    *,
    xlabel: str,
    alt: str,
    printed: Mapping[str, float] | None = None,
    model: str = "safmn",
    caption: str = "",
) -> Shown:
    """Differences with their intervals, one line a label: for each (value, low, high), a dot on a bar; 0 is a line.

    ``printed`` puts a hollow diamond where the paper prints the difference. Raises ``InputError`` for no value, one
    that isn't finite, and a printed one of another label.
    """
    if not values:
        raise InputError("there is no interval to draw; give at least one")
    for label, found in [*values.items(), *((label, (value,)) for label, value in (printed or {}).items())]:
        if not all(math.isfinite(number) for number in found):
            raise InputError(f"interval {label!r} is {found}; leave out those without a number")
        if label not in values:
            raise InputError(f"printed value {label!r} is of none of: {', '.join(values)}")
    labels = list(values)

    def draw(axes: "Axes") -> None:
        rows = {label: len(labels) - 1 - k for k, label in enumerate(labels)}
        ink = axes.xaxis.label.get_color()
        axes.axvline(0, color=ink, linewidth=0.8)
        for label, (value, low, high) in values.items():
            axes.plot([low, high], [rows[label]] * 2, color=colour(model), linewidth=2.4, solid_capstyle="butt")
            axes.plot(value, rows[label], marker=MARKERS[model], markersize=6, color=colour(model), linestyle="")
        if printed:
            places = [rows[label] for label in printed]
            axes.plot(
                list(printed.values()), places, marker="d", markersize=7, linestyle="", markerfacecolor="none",
                markeredgecolor=ink, label="printed",
            )  # fmt: skip
            axes.figure.legend(loc="outside upper right")
        axes.set_yticks(list(rows.values()), list(rows))
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(xlabel)

    return _chart(draw, alt, caption, height=1.3 + 0.3 * len(labels))


def bars(
    values: Mapping[str, float],
    *,
    unit: str,
    alt: str,
    printed: Mapping[str, float] | None = None,
    printed_unit: str = "",
    model: str = "safmn",
    caption: str = "",
) -> Shown:
    """Horizontal bars with their values written out, such as operator times (SAFMN, Table 5).

    ``printed`` puts the paper's values beside ours, hatched and grey, on an axis of their own where ``printed_unit``
    differs: the two then compare in proportion only. Raises ``InputError`` for a value that isn't finite.
    """
    for label, value in {**values, **(printed or {})}.items():
        if not math.isfinite(value):
            raise InputError(f"bar {label!r} is {value}; leave out bars without a number")
    labels = list(values)

    def draw(axes: "Axes") -> None:
        rows = np.arange(len(labels))[::-1]
        half = 0.38 if printed else 0.7
        shift = half / 2 if printed else 0
        ours = axes.barh(rows + shift, [values[k] for k in labels], half, color=colour(model), label=f"ours [{unit}]")
        axes.bar_label(ours, fmt=lambda value: _short(value, 3), padding=3, fontsize=8.5)
        axes.set_yticks(rows, labels)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)
        room = 0.9 / axes.figure.get_figwidth()
        axes.margins(x=room)
        if printed:
            apart = bool(printed_unit) and printed_unit != unit
            other = axes.twiny() if apart else axes
            numbers = [printed.get(k, math.nan) for k in labels]
            theirs = other.barh(
                rows - shift,
                numbers,
                half,
                color="none",
                edgecolor="#7a7a7a",
                hatch="///",
                label=f"printed [{printed_unit or unit}]",
            )
            other.bar_label(theirs, fmt=lambda value: _short(value, 4), padding=3, fontsize=8.5)
            other.margins(x=room)
            if apart:
                other.grid(visible=False)
                other.set_xlabel(printed_unit)
                other.spines["top"].set_visible(True)
            axes.figure.legend(handles=[ours, theirs], loc="outside upper right", ncols=2)

    return _chart(draw, alt, caption, height=1.2 + (0.62 if printed else 0.38) * len(labels))


def shares(
    values: Mapping[str, Mapping[str, float]],
    *,
    alt: str,
    xlabel: str = "",
    ylabel: str = "share of images",
    model: str = "seemore",
    caption: str = "",
) -> Shown:
    """Stacked bars of shares, such as those of the experts that a network's blocks choose (SeemoRe, Figure 5a).

    ``values`` gives for each bar its parts, in [0, 1] and no more than 1 together; a missing part means none. Parts are
    stacked in the legend's order from dark to light, in the colour of ``model``, and a part of a tenth or more has its
    share written in it where there is room. Raises ``InputError`` for no bar and for parts that are no shares.
    """
    parts = list(dict.fromkeys(part for bar in values.values() for part in bar))
    if not parts:
        raise InputError("there is no share to draw; give at least one bar with one part")
    for label, bar in values.items():
        if not all(0 <= share <= 1 for share in bar.values()) or sum(bar.values()) > 1 + 1e-6:
            raise InputError(
                f"bar {label!r} has the parts {dict(bar)}; give shares from 0 to 1, no more than 1 together"
            )
    levels = [0.1 + 0.52 * k / max(len(parts) - 1, 1) for k in range(len(parts))]

    def draw(axes: "Axes") -> None:
        ink, roomy = axes.xaxis.label.get_color(), axes.figure.get_figwidth() / len(values) > 0.5
        below = np.zeros(len(values))
        for part, level in zip(parts, levels, strict=True):
            heights = np.array([bar.get(part, 0.0) for bar in values.values()])
            face = _with_luminance(_rgb(colour(model)), level)
            drawn = axes.bar(
                range(len(values)), heights, 0.8, bottom=below, color=face, edgecolor=ink, linewidth=0.6, label=part
            )
            written = [f"{share:.0%}" if roomy and share >= 0.1 else "" for share in heights]
            text = "white" if level < 0.179 else "#1f2328"
            axes.bar_label(drawn, written, label_type="center", color=text, fontsize=8.5)
            below += heights
        axes.set_xticks(range(len(values)), list(values))
        axes.grid(axis="x", visible=False)
        axes.set_ylim(0, 1)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.figure.legend(loc="outside upper center", ncols=len(parts))

    return _chart(draw, alt, caption)


def attribution(
    maps: Mapping[str, Any],
    lr: Any,
    box: tuple[float, float, float, float],
    *,
    alt: str,
    hr: Any = None,
    largest: float | None = None,
    scores: Mapping[str, str] | None = None,
    records: Mapping[str, str] | None = None,
    caption: str = "",
) -> Shown:
    """Attribution maps of several networks for one patch, all alike: each over the LR image in faint grey (SAFMN,
    Figure 2; SSIU, Figure 9).

    ``maps`` gives for each label what LR pixels contribute, (h, w) from 0 up, such as ``Attribution.strength``; ``lr``
    is the image (3, h, w) that they belong to, ``box`` the patch in its pixels (top, left, height, width), framed in
    red in every panel. The first panel is ``hr``, a whole number of times as large, or else ``lr``. A map is shown as
    shares of its own sum. The colour scale is one for all: logarithmic, over three decades down from the share
    ``largest``, written above as a bar; pixels with less stay grey, and those with more are as dark as that, which the
    bar says. None is the largest share of any of these maps; figures that are to compare want the same number.
    ``scores`` gives a line of text below a label, ``records`` the record that it leads to (see :func:`record_link`).
    Raises ``InputError`` for no map, a map of another size than the image or without any positive value, a box that
    leaves the image, and a ``largest`` that is no share above 0 and up to 1.
    """
    import matplotlib as mpl

    if not maps:
        raise InputError("there is no attribution map to show; give at least one")
    image = _pixels(lr, "LR")
    height, width = image.shape[:2]
    top, left, tall, wide = box
    if not (0 <= top < top + tall <= height and 0 <= left < left + wide <= width):
        raise InputError(f"box {box} leaves the image of {height} x {width}; give the patch in LR pixels")
    shares = {}
    for label, strength in maps.items():
        array = _array(strength).astype(np.float64)
        if array.shape != (height, width):
            raise InputError(f"map {label!r} has shape {array.shape}; give one number a pixel, {height} x {width}")
        if not np.isfinite(array).all() or array.min() < 0 or array.sum() == 0:
            raise InputError(f"map {label!r} holds values below 0 or not finite, or nothing at all; give absolute ones")
        shares[label] = array / array.sum()
    most = max(share.max() for share in shares.values())
    largest = float(most) if largest is None else largest
    if not 0 < largest <= 1 + 1e-9:
        raise InputError(f"shares can't be coloured up to {largest}; give a limit above 0 and up to 1")
    least = largest / 10**DECADES
    faint = 0.55 + 0.45 * image.mean(2, keepdims=True) / 255

    def painted(share: np.ndarray) -> np.ndarray:
        level = np.log10(np.clip(share, least, largest) / least) / DECADES
        colours = mpl.colormaps["YlGnBu"](0.15 + 0.85 * level)[..., :3]
        cover = np.where(share > least, 0.6 + 0.4 * level, 0)[..., None]
        mixed = cover * colours + (1 - cover) * (faint if share.shape == (height, width) else 1)
        return (mixed * 255).round().astype(np.uint8)

    first, label = (image, "LR") if hr is None else (_pixels(hr, "HR"), "HR")
    if first.shape[0] % height or first.shape[0] // height * width != first.shape[1]:
        raise InputError(f"HR is {first.shape[0]} x {first.shape[1]}; give a whole number of times {height} x {width}")
    panels = {label: first} | {label: painted(share) for label, share in shares.items()}
    framed = {}
    for label, panel in panels.items():
        large = _enlarge(panel, max(240, *first.shape[:2]))
        framed[label] = _red_frame(large, tuple(side * large.shape[0] / height for side in box))
    shown = images(framed, alt=alt, scores=scores, records=records, caption=caption)
    low, high = (f"{_short(100 * share, 2)} %" for share in (least, largest))
    high += " and more" if most > largest * (1 + 1e-9) else ""
    said = f"Colour bar on a logarithmic scale, from light, {low}, to dark, {high} of a map in one pixel"
    bar = _img(painted(np.geomspace(least * 1.001, largest, 128)[None]), said).replace(
        "<img ", '<img style="width:10rem;height:.8rem;image-rendering:auto" '
    )
    line = "display:flex;flex-wrap:wrap;gap:.2rem .6rem;align-items:center;margin-bottom:.5rem"
    key = f'<div class="srlib-label" style="{line}">{low} {bar} {high} of the map in one pixel (grey: less)</div>'
    head, rest = shown.html.split(">", 1)
    return Shown(f"{head}>{key}{rest}", shown.alt)


def protocol_matrix(
    values: Mapping[str, Mapping[str, float]],
    *,
    caption: str,
    reference: str,
    digits: int = 2,
    unit: str = "dB",
    heading: str = "protocol",
    records: Mapping[str, str] | None = None,
) -> Shown:
    """The same images scored in several ways: rows by columns, each cell with its value and its distance from
    ``reference``.

    ``values`` gives for each row (a protocol) its columns (a set, a scale, a metric); ``reference`` is the row that the
    others are compared with. Distance is a signed number in the cell; a tint repeats it. ``records`` names the record
    that the values of a column or row lead to, as for :func:`plain_table`. Raises ``InputError`` for an unknown
    reference, and for a record of neither a column nor a row.
    """
    if reference not in values:
        raise InputError(f"reference row {reference!r} isn't among the rows; choose one of: {', '.join(values)}")
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    known = _known(records, [*columns, *values])
    base = values[reference]
    far = {
        c: max((abs(row[c] - base[c]) for row in values.values() if c in row and c in base), default=0) for c in columns
    }
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = []
    for label, row in values.items():
        cells = []
        for column in columns:
            if column not in row:
                cells.append("<td>\u2013</td>")
                continue
            distance = row[column] - base.get(column, math.nan)
            value = record_link(f"{row[column]:.{digits}f}", known.get(column, known.get(label, "")))
            text = f'<span class="srlib-printed">{value}</span>'
            if label == reference or not math.isfinite(distance):
                cells.append(f"<td>{text}</td>")
                continue
            signed = f"{distance:+.{digits}f}".replace("-", "\u2212")
            heat = 0 if far[column] == 0 else 26 * abs(distance) / far[column]
            kind = "pos" if distance > 0 else "neg"
            tint = f' class="srlib-heat-{kind}" style="--heat:{heat:.0f}%"' if heat >= 1 else ""
            cells.append(f'<td{tint}>{text}<span class="srlib-ours">{signed}</span></td>')
        mark = ' <span class="srlib-variant">(reference)</span>' if label == reference else ""
        body.append(f'<tr><th scope="row">{escape(label)}{mark}</th>{"".join(cells)}</tr>')
    inner = f'<thead><tr><th scope="col">{escape(heading)}</th>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
    below = (
        f"{caption} Each cell: the value{f' in {unit}' if unit else ''}, and below it the distance from {reference}."
    )
    return _table(inner, below, alt=f"{below} {len(values)} rows, {len(columns)} columns.")


def table_html(cells: Iterable[PrintedCell], caption: str, *, heading: str = "row", across: bool = False) -> Shown:
    """A printed table, printed against ours, rows by metrics as in the paper, each cell with a verdict in symbol and
    word.

    ``cells`` are those of a ``srlib.papers.Table``, in the paper's order. Each cell shows the printed number, below it
    ours with the verdict; a row of which nothing was run shows that once, beside its name. Notes are numbered below the
    table. Ours, and the mark of what was not run, lead to the cell's record. Scales, and printed groups of rows, have
    headings of their own; ``across`` gives each scale a column instead of each data set, of which there is one then.
    Raises ``InputError`` for no cells, an unknown verdict, and several data sets across scales.
    """
    cells = list(cells)
    if not cells:
        raise InputError("there is no cell to show; give the cells of a table")
    for cell in cells:
        if cell.verdict not in VERDICTS:
            raise InputError(f"unknown verdict {cell.verdict!r}; choose one of: {', '.join(VERDICTS)}")
    if across and len({cell.dataset for cell in cells}) > 1:
        raise InputError("scales are the columns, and there are several data sets; give the cells of one")

    def place(cell: PrintedCell) -> tuple[str, str]:
        return f"\u00d7{cell.scale}" if across else cell.dataset, cell.metric

    columns = sorted(dict.fromkeys(map(place, cells)), key=lambda column: bool(column[0]))
    units = {column: {cell.unit for cell in cells if place(cell) == column} for column in columns}
    brief, packed = len(columns) > 5, len(columns) > 8
    many_scales = not across and len({cell.scale for cell in cells}) > 1
    notes: dict[str, int] = {}
    lines: dict[tuple[int, str, str], dict[tuple[str, str], list[PrintedCell]]] = {}
    for cell in cells:
        line = lines.setdefault((0 if across else cell.scale, cell.row, cell.variant), {})
        line.setdefault(place(cell), []).append(cell)
    body, last = [], None
    for (scale, row, variant), line in lines.items():
        keys = dict(part.partition("=")[::2] for part in variant.split(";") if part)
        headed = keys.pop("group", "") or (keys.pop("block", "") if across else "")
        group = " \u00b7 ".join(filter(None, (f"\u00d7{scale}" if many_scales else "", headed)))
        if group != last and group:
            body.append(
                f'<tr class="srlib-group"><th colspan="{len(columns) + 1}" scope="rowgroup">'
                f"<span>{escape(group)}</span></th></tr>"
            )
        last = group
        shown = [cell for parts in line.values() for cell in parts]
        quiet = all(cell.verdict == "not-run" for cell in shown)
        extra = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in keys.items() if f"{v}" not in row)
        name = escape(_typeset(row)) + (f' <span class="srlib-variant">{escape(extra)}</span>' if extra else "")
        if quiet:
            common = list(dict.fromkeys(cell.note for cell in shown if cell.note))
            mark = record_link(badge("not-run", brief=packed), shown[0].record)
            name += f' <span class="srlib-mark">{mark}{_notes(common, notes)}</span>'
        filled = [_printed_cell(line.get(column, []), quiet, notes, brief) for column in columns]
        body.append(f'<tr><th scope="row">{name}</th>{"".join(filled)}</tr>')
    inner = _heads(columns, units, heading) + f"<tbody>{''.join(body)}</tbody>"
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    after = f'<ol class="srlib-notes">{listed}</ol>' if notes else ""
    if brief:
        used = {cell.verdict for cell in cells}
        after = f'<p class="srlib-key">{" ".join(badge(v) for v in VERDICTS if v in used)}</p>{after}'
    tally = {verdict: sum(cell.verdict == verdict for cell in cells) for verdict in VERDICTS}
    said = ", ".join(f"{count} {VERDICTS[verdict][1]}" for verdict, count in tally.items() if count)
    return _table(
        inner,
        caption,
        alt=f"{caption} {len(cells)} printed cells: {said}.",
        after=after,
        kind=" srlib-wide" * brief + " srlib-packed" * packed,
    )


def verdict_summary(
    counts: Mapping[str, Mapping[str, int]],
    *,
    caption: str = "Verdicts over all printed cells.",
    records: Mapping[str, str] | None = None,
) -> Shown:
    """The scoreboard: for each label (a table), how many printed cells have each verdict, as numbers and as a stacked
    bar.

    ``counts`` gives a label's counts by verdict, missing ones meaning none. The last line, "all", adds them up where
    there are several. ``records`` names the record that a line's numbers lead to. Raises ``InputError`` for an unknown
    verdict, and for a record of no line.
    """
    for row in counts.values():
        for verdict in row:
            if verdict not in VERDICTS:
                raise InputError(f"unknown verdict {verdict!r}; choose one of: {', '.join(VERDICTS)}")
    total = {verdict: sum(row.get(verdict, 0) for row in counts.values()) for verdict in VERDICTS}
    rows = {**counts, "all": total} if len(counts) > 1 else dict(counts)
    known = _known(records, list(rows))
    head = "".join(f'<th scope="col">{badge(verdict)}</th>' for verdict in VERDICTS)
    body = []
    for label, row in rows.items():
        record = known.get(label, "")
        cells = record_link(str(sum(row.values())), record)
        parts = "".join(
            f'<i class="verdict-{verdict}" style="flex:{row[verdict]}"></i>'
            for verdict in VERDICTS
            if row.get(verdict, 0)
        )
        numbers = "".join(
            f"<td>{record_link(str(row.get(verdict, 0)), record, quiet=True)}</td>" for verdict in VERDICTS
        )
        bar = f'<td><div class="srlib-stack" aria-hidden="true">{parts}</div></td>'
        last = ' class="srlib-total"' if row is total else ""
        body.append(f'<tr{last}><th scope="row">{escape(label)}</th>{numbers}<td>{cells}</td>{bar}</tr>')
    inner = (
        f'<thead><tr><th scope="col">table</th>{head}<th scope="col">cells</th>'
        '<th scope="col" class="srlib-word">share</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody>"
    )
    said = ", ".join(f"{count} {VERDICTS[verdict][1]}" for verdict, count in total.items())
    return _table(inner, caption, alt=f"{caption} {said}.")


def ledger(entries: Iterable[LedgerEntry], *, caption: str = "", prefix: str = "ledger") -> Shown:
    """The ledger as a list: what is printed, what comes out, why, and the evidence.

    ``entries`` are those of ``srlib.papers.ledger``. Entries of one kind with the same explanation and evidence share a
    block, which stands where the first of them does. A block of cells names their table, scale and metric, all rows,
    the printed number and ours with its verdict, and its numbers and rows lead to their cells' records; another one
    names its subject, its kind, and what the paper says and what is done here. Each block has an id that pages can link
    to: ``prefix`` and the first entry's place as a slug, such as "ledger-table-3-x4-flops-baseline" or
    "ledger-release-global-residual". Give each ledger of a page a prefix of its own. Raises ``InputError`` for a cell
    with an unknown verdict.
    """
    blocks: dict[tuple[str, str, str], list[LedgerEntry]] = {}
    for entry in entries:
        if entry.kind == "cell" and entry.verdict not in VERDICTS:
            raise InputError(f"unknown verdict {entry.verdict!r}; choose one of: {', '.join(VERDICTS)}")
        blocks.setdefault((entry.kind, entry.explanation, entry.evidence), []).append(entry)
    parts, ids = [], set()
    for (kind, explanation, evidence), block in blocks.items():
        place = (
            (f"table {block[0].table}", *_place(block[0])[1:], block[0].row) if kind == "cell" else (kind, block[0].row)
        )
        name = base = _slug(f"{prefix} {' '.join(place)}")
        while name in ids:
            name = f"{base}-{1 + len([used for used in ids if used.startswith(base)])}"
        ids.add(name)
        head = _cell_heads(block) if kind == "cell" else "".join(map(_subject, block))
        reason = f"<p>{escape(_typeset(explanation))}</p>" if explanation else ""
        proof = f'<p class="srlib-evidence">Evidence: {escape(_typeset(evidence))}</p>' if evidence else ""
        parts.append(f'<article class="srlib-entry" id="{name}">{head}{reason}{proof}</article>')
    count = sum(map(len, blocks.values()))
    above = f'<p class="srlib-caption">{escape(caption)}</p>' if caption else ""
    body = "".join(parts) or "<p>There is nothing to explain.</p>"
    said = f"{caption} {count} entries, {len(blocks)} explanations.".strip()
    return Shown(f'<div class="srlib-viz srlib-ledger">{above}{body}</div>', said)


def plain_table(
    rows: Iterable[Sequence[object]],
    columns: Sequence[str],
    *,
    caption: str,
    digits: int = 3,
    records: Mapping[str, str] | None = None,
) -> Shown:
    """Any other table in the book's look: each row's first entry names it, floats are shown with ``digits``
    significant digits.

    Columns of numbers are set flush right, texts flush left and broken into lines. An entry that is one of ``VERDICTS``
    is shown as its badge. ``records`` names the record (see :func:`record_link`) that every number of a column or row
    leads to, and its own name there, by the column's heading or the row's first entry; where both have one, the
    column's is taken, and where an entry is :class:`Traced`, its own. Raises ``InputError`` for a row of another length
    than ``columns``, and for a record of neither a column nor a row.
    """
    rows = [tuple(row) for row in rows]
    for row in rows:
        if len(row) != len(columns):
            raise InputError(f"row {row!r} has {len(row)} entries; give {len(columns)}, one for each column")
    known = _known(records, [*columns, *(str(row[0]) for row in rows)])
    kinds = [_kind([row[k] for row in rows]) for k in range(len(columns))]
    body = []
    for row in rows:
        names = [known.get(column, known.get(str(row[0]), "")) for column in columns]
        cells = "".join(
            f"<td{kind}>{record_link(_entry(value, digits), name if _leads(value, name) else '')}</td>"
            for value, kind, name in _own_records(row[1:], kinds[1:], names[1:])
        )
        first = record_link(_entry(row[0], digits), names[0] if str(row[0]) == names[0] else "")
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    head = "".join(f'<th scope="col"{kind}>{escape(column)}</th>' for column, kind in zip(columns, kinds, strict=True))
    inner = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return _table(inner, caption, alt=f"{caption} {len(rows)} rows, {len(columns)} columns.")


def _own_records(
    values: Sequence[object], kinds: Sequence[str], names: Sequence[str]
) -> Iterator[tuple[object, str, str]]:
    """Entries, the classes of their columns and the records that they lead to, their own where they have one."""
    for value, kind, name in zip(values, kinds, names, strict=True):
        yield (value.value, kind, value.record) if isinstance(value, Traced) else (value, kind, name)


def record_link(html: str, record: str, *, quiet: bool = False) -> str:
    """HTML that leads to a record: the name of a run's folder, "safmn-table-3#baseline-x4-flops" for a printed cell,
    "chapter-safmn-3-tables" for a page of the book. "" leaves the HTML as it is.

    The book's build makes a link of it; elsewhere, as in JupyterLab, it is plain text.
    ``quiet`` is for links that would crowd a table: one can click them, but the keyboard passes over them. Raises
    ``InputError`` for what can't be a record's name.
    """
    if not record:
        return html
    if not re.fullmatch(r"[\w.+-]+(#[\w.+-]+)?", record):
        raise InputError(f"{record!r} names no record; give a run's folder name, or a name such as safmn-table-3")
    kind = "srlib-record srlib-quiet" if quiet else "srlib-record"
    return f'<span class="{kind}" data-record="{record}">{html}</span>'


def badge(verdict: str, *, brief: bool = False) -> str:
    """A verdict as HTML: its symbol, its word and its class, such as ``verdict-exact``.

    ``brief`` shows the symbol and leaves the word to screen readers: for wide tables, with a key below them.
    """
    symbol, word = VERDICTS[verdict]
    if brief:
        word = f'<span class="srlib-unseen">{word}</span>'
    return f'<span class="verdict verdict-{verdict}">{symbol} {word}</span>'


def _place(entry: LedgerEntry) -> tuple[str, ...]:
    """Where an entry's cell stands in print: table, scale, data set and metric, as far as it names them."""
    table = "" if entry.table is None else f"Table {entry.table}"
    scale = "" if entry.scale is None else f"x{entry.scale}"
    return tuple(filter(None, (table, scale, entry.dataset, entry.metric)))


def _cell_heads(block: Sequence[LedgerEntry]) -> str:
    """A head line for each place and pair of numbers in a block of cells, and the rows that share it."""
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for e in block:
        metric = METRICS.get(e.metric, e.metric)
        place = ", ".join((*_place(e)[: -1 if e.metric else None], *([metric] if metric else []))).replace(
            " x", " \u00d7"
        )
        lines.setdefault((place, e.printed, e.ours, e.verdict), {}).setdefault(e.row, e.record)
    heads = []
    for (place, printed, ours, verdict), rows in lines.items():
        first = next(iter(rows.values()))
        numbers = f"printed {escape(printed)}" + (
            f" \u2192 ours {record_link(escape(ours), first, quiet=True)}" if ours else ""
        )
        listed = "".join(f"<li>{record_link(escape(_typeset(row)), record)}</li>" for row, record in rows.items())
        heads.append(
            f'<p class="srlib-head"><strong>{escape(place)}</strong> <span class="srlib-numbers">{numbers}</span> '
            f"{badge(verdict)}</p><ul>{listed}</ul>"
        )
    return "".join(heads)


def _subject(entry: LedgerEntry) -> str:
    """The head of an entry that is no cell: its subject and kind, and what the paper says and what is done here."""
    place = ", ".join(_place(entry)).replace(" x", " \u00d7")
    where = f" <small>{escape(place)}</small>" if place else ""
    said = (("the paper", entry.printed), ("here", entry.ours))
    pairs = "".join(f"<dt>{name}</dt><dd>{escape(_typeset(value))}</dd>" for name, value in said if value)
    return (
        f'<p class="srlib-head"><strong>{escape(_typeset(entry.row))}</strong>{where} '
        f'<span class="srlib-tag">{escape(entry.kind)}</span></p>' + (f"<dl>{pairs}</dl>" if pairs else "")
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("->", " to ")).strip("-")


def _entry(value: object, digits: int) -> str:
    if isinstance(value, str) and value in VERDICTS:
        return badge(value)
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return escape(str(value))


def _leads(value: object, record: str) -> bool:
    """Whether an entry leads to its record: a number, text that starts with one, a verdict, or the record's name."""
    return (
        str(value) == record
        or isinstance(value, int | float)
        or str(value) in VERDICTS
        or bool(NUMBER.match(str(value)))
    )


def _known(records: Mapping[str, str] | None, labels: Sequence[str]) -> Mapping[str, str]:
    """``records``, each of them of one of the labels; InputError where one is not."""
    for label in records or ():
        if label not in labels:
            raise InputError(f"a record for {label!r}, which is none of: {', '.join(dict.fromkeys(labels))}")
    return records or {}


def _kind(values: Sequence[object]) -> str:
    """The class of a column, as an attribute: none for numbers, one for words, another for sentences."""
    texts = [str(value) for value in values]
    if all(isinstance(value, int | float) or NUMBER.match(str(value)) for value in values):
        if max(map(len, texts), default=0) <= 24:
            return ""
    return ' class="srlib-long"' if max(map(len, texts), default=0) > 32 else ' class="srlib-word"'


def _heads(columns: list[tuple[str, str]], units: Mapping[tuple[str, str], set[str]], heading: str) -> str:
    """The two header lines of a printed table: data sets over metrics with their units."""

    def metric(column: tuple[str, str]) -> str:
        unit = f' <span class="srlib-unit">[{escape(next(iter(units[column])))}]</span>' if units[column] - {""} else ""
        return escape(METRICS.get(column[1], column[1])) + (unit if len(units[column]) == 1 else "")

    upper, k = [], 0
    while k < len(columns):
        span = next((n for n in range(k, len(columns)) if columns[n][0] != columns[k][0]), len(columns)) - k
        if columns[k][0]:
            upper.append(f'<th scope="colgroup" colspan="{span}">{escape(columns[k][0])}</th>')
        elif any(dataset for dataset, _ in columns):
            upper.append(f'<td colspan="{span}"></td>')
        k += span
    lower = "".join(f'<th scope="col">{metric(column)}</th>' for column in columns)
    first = f'<th scope="col">{escape(heading)}</th>'
    return f"<thead>{f'<tr><td></td>{chr(32).join(upper)}</tr>' if upper else ''}<tr>{first}{lower}</tr></thead>"


def _printed_cell(parts: Sequence[PrintedCell], quiet: bool, notes: dict[str, int], brief: bool) -> str:
    if not parts:
        return "<td>\u2013</td>"
    texts = []
    for cell in parts:
        printed, mark = escape(str(cell.printed)), badge(cell.verdict, brief=brief)
        if quiet:
            texts.append(f'<span class="srlib-printed">{record_link(printed, cell.record, quiet=True)}</span>')
            continue
        ours = "" if cell.ours is None else f"{record_link(escape(_ours(cell)), cell.record)} "
        mark = mark if ours else record_link(mark, cell.record)
        texts.append(f'<span class="srlib-printed">{printed}</span>')
        mark = f'<span class="srlib-mark">{mark}{_notes([cell.note], notes)}</span>'
        texts.append(f'<span class="srlib-ours">{ours}{mark}</span>')
    kinds = " ".join(dict.fromkeys(f"cell-{cell.verdict}" for cell in parts))
    return f'<td class="{kinds}">{"".join(texts)}</td>'


def _ours(cell: PrintedCell) -> str:
    """Ours with the printed digits, or with more of them where it would otherwise read like a number that it isn't."""
    printed = str(cell.printed)
    digits = len(printed.partition(".")[2])
    for more in range(0 if cell.verdict == "exact" else 1, 4):
        text = f"{float(cell.ours):.{digits + more}f}"
        if cell.verdict == "exact" or abs(float(text) - float(printed)) > 0.5000001 * 10**-digits:
            return text
    return text


def _notes(texts: Iterable[str], notes: dict[str, int]) -> str:
    """The numbers of these notes, raised; ``notes`` numbers each text when it first comes."""
    numbers = [str(notes.setdefault(text, len(notes) + 1)) for text in texts if text]
    return f"<sup>{', '.join(numbers)}</sup>" if numbers else ""


def _typeset(label: str) -> str:
    """A printed label, kept in ASCII in the data, as the paper prints it: arrows, and powers of ten."""
    powers = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
    arrows = label.replace("->", "\u2192")
    return re.sub(r"(\d)x10\^(-?\d+)", lambda m: f"{m[1]}\u00d710{m[2].translate(powers)}", arrows)


def _table(inner: str, caption: str, alt: str, after: str = "", kind: str = "") -> Shown:
    named = escape(caption, quote=True)
    box = f'<div class="srlib-scroll" role="region" tabindex="0" aria-label="{named}"><table>{inner}</table></div>'
    return Shown(
        f'<div class="srlib-table{kind}"><p class="srlib-caption">{escape(caption)}</p>{box}{after}</div>', alt
    )


def _figure(inner: str, alt: str, caption: str) -> Shown:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Shown(f'<figure class="srlib-viz">{inner}{below}</figure>', _said(alt))


def _said(alt: str) -> str:
    if not alt.strip():
        raise InputError("a figure without a text alternative; say in alt what it shows")
    return alt


def _chart(draw: Any, alt: str, caption: str, height: float = 3.6) -> Shown:
    """Draw once for a light page and once for a dark one, each wide and, for phones, narrow."""
    _said(alt)
    shown = []
    for theme in ("light", "dark"):
        wide, narrow = (_svg(draw, theme, (width, height)) for width in (7.2, 3.75))
        hidden = ' style="display:none"' if theme == "dark" else ""
        shown.append(
            f'<picture><source media="(max-width: 480px)" srcset="{narrow}"><img class="only-{theme}"{hidden} '
            f'src="{wide}" alt="{escape(alt, quote=True)}"></picture>'
        )
    said = escape(caption or alt, quote=True)
    box = f'<div class="srlib-chart" role="region" tabindex="0" aria-label="{said}">{"".join(shown)}</div>'
    return _figure(box, alt, caption)


def _log_axis(axes: "Axes") -> None:
    """A logarithmic axis across, with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _svg(draw: Any, theme: Theme, size: tuple[float, float]) -> str:
    """A drawing of this size in inches, as the address of an image that holds it."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with style(theme):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    small = re.sub(rb' d="[^"]*"', _coarse, re.sub(rb"<!--.*?-->", b"", file.getvalue()))
    return f"data:image/svg+xml;base64,{base64.b64encode(small).decode()}"


def _place_labels(
    axes: "Axes", points: Mapping[str, tuple[float, float, float]], radii: Mapping[str, float], bold: Mapping[str, str]
) -> None:
    """Write each label near its circle, where it covers least; the bold ones choose first and stand on top.

    A label that stands off is tied to its circle by a line.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    frame = axes.get_window_extent().extents / unit
    fixed = [tuple(text.get_window_extent().extents / unit) for text in axes.texts]
    centre = {k: tuple(axes.transData.transform(point[:2]) / unit) for k, point in points.items()}
    fixed += [(x - radii[k], y - radii[k], x + radii[k], y + radii[k]) for k, (x, y) in centre.items()]
    order = sorted(points, key=lambda k: (k not in bold, -radii[k]))
    texts, choices = {}, {}
    for k in order:
        font = {"fontsize": 10, "weight": "bold", "zorder": 6} if k in bold else {"fontsize": 8.5, "zorder": 5}
        texts[k] = axes.annotate(k, points[k][:2], (0, 0), textcoords="offset points", **font)
        box = texts[k].get_window_extent()
        choices[k] = _sides(centre[k], radii[k], box.width / unit, box.height / unit)
    placed: dict[str, tuple[float, float, float, float]] = {}
    for _ in range(4):  # each looks again once the others stand
        for k in order:
            others = [box for label, box in placed.items() if label != k]
            placed[k] = min(choices[k], key=partial(_cost, centre[k], radii[k], frame, fixed, others))
    for k, (left, low, right, high) in placed.items():
        x, y = centre[k]
        texts[k].set_position((left - x, low - y + 1.5))
        end = (min(max(x, left), right), min(max(y, low), high))
        far = math.dist((x, y), end)
        if far > radii[k] + 6:
            start = [c + (e - c) * radii[k] / far for c, e in zip((x, y), end, strict=True)]
            ends = axes.transData.inverted().transform(np.array([start, end]) * unit)
            axes.plot(*ends.T, color="#7a7a7a", linewidth=0.7, zorder=4, scalex=False, scaley=False)


def _short(value: float, digits: int) -> str:
    """A number with this many significant digits and without an exponent."""
    return f"{float(f'{value:.{digits}g}'):,.10g}" if math.isfinite(value) else ""


def _up(value: float) -> float:
    """A positive number, rounded up to two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")


def _sides(
    centre: tuple[float, float], radius: float, wide: float, tall: float
) -> list[tuple[float, float, float, float]]:
    """The boxes that a label of this size may take around a circle, at several distances in all directions."""
    found = []
    for gap in (2, 9, 18, 28, 40, 54):
        for k in range(24):
            across, up = math.cos(math.tau * k / 24), math.sin(math.tau * k / 24)
            x = centre[0] + across * (radius + gap + wide / 2)
            y = centre[1] + up * (radius + gap + tall / 2)
            found.append((x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2))
    return found


def _cost(
    centre: tuple[float, float],
    radius: float,
    frame: Sequence[float],
    fixed: Sequence[tuple[float, ...]],
    others: Sequence[tuple[float, ...]],
    box: tuple[float, float, float, float],
) -> float:
    """How bad it is to write a label in this box: what it covers, what its line crosses, how far off it stands."""
    inside = _overlap(box, (frame[0] + 2, frame[1] + 2, frame[2] - 2, frame[3] - 2))
    outside = (box[2] - box[0]) * (box[3] - box[1]) - inside
    end = (min(max(centre[0], box[0]), box[2]), min(max(centre[1], box[1]), box[3]))
    line = [[c + (e - c) * t / 8 for c, e in zip(centre, end, strict=True)] for t in range(1, 9)]
    crossed = sum(o[0] <= x <= o[2] and o[1] <= y <= o[3] for x, y in line for o in others)
    covered = sum(_overlap(box, other) for other in fixed) + 5 * sum(_overlap(box, other) for other in others)
    return covered + 20 * outside + 60 * crossed + 2 * max(0.0, math.dist(centre, end) - radius)


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    wide, tall = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, tall)


def _rgb(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _coarse(path: re.Match[bytes]) -> bytes:
    """A path of an SVG in hundredths of a point, which is finer than any screen, on one line."""
    return b" " + b" ".join(re.sub(rb"(\.\d\d)\d+", rb"\1", path[0]).split())


def _img(pixels: np.ndarray, alt: str) -> str:
    """Pixels as an image that holds them without loss: WebP where that is smaller than PNG, as it mostly is."""
    from PIL import Image, features

    def encoded(kind: str, **options: Any) -> str:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **options)
        return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

    found = [encoded("png", optimize=True)]
    if features.check("webp"):
        found.append(encoded("webp", lossless=True, quality=100, method=4))
    size = f'width="{pixels.shape[1]}" height="{pixels.shape[0]}"'
    return f'<img class="dark-light" {size} src="{min(found, key=len)}" alt="{escape(alt, quote=True)}">'


def _array(value: Any) -> np.ndarray:
    """A tensor on any device, or anything array-like, as an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    return np.asarray(value)


def _pixels(value: Any, label: str) -> np.ndarray:
    """Anything image-like as height x width x 3, uint8."""
    array = _array(value)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, 2)
    if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        raise InputError(f"panel {label!r} has shape {array.shape}; give one image with one or three channels")
    if array.dtype != np.uint8:
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            raise InputError(f"panel {label!r} holds values that aren't finite; look at what made it")
        array = np.floor(np.clip(array, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(array, 3, 2) if array.shape[2] == 1 else array)


def _cut(pixels: np.ndarray, whole: tuple[int, int], crop: tuple[int, int, int, int], label: str) -> np.ndarray:
    """The crop of a panel whose size is the first panel's, or that divided by one factor."""
    factor = whole[0] / pixels.shape[0]
    if abs(whole[1] / pixels.shape[1] - factor) > 0.02 * factor:
        raise InputError(
            f"panel {label!r} is {pixels.shape[0]} x {pixels.shape[1]}, another shape than the first panel's "
            f"{whole[0]} x {whole[1]}; give it at that size or at a whole fraction of it"
        )
    top, left, tall, wide = (round(value / factor) for value in crop)
    return pixels[top : top + max(tall, 1), left : left + max(wide, 1)]


def _enlarge(pixels: np.ndarray, side: int = 240) -> np.ndarray:
    """Nearest neighbour, by the smallest whole factor that makes the longer side ``side`` or more."""
    factor = max(1, math.ceil(side / max(pixels.shape[:2])))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def _box(pixels: np.ndarray, crop: tuple[int, int, int, int]) -> np.ndarray:
    """The image with a frame around the crop: white inside black, so that it shows on any image."""
    height, width = pixels.shape[:2]
    line = max(1, round(max(height, width) / 260))
    top, left, tall, wide = crop
    drawn = pixels.copy()
    for inset, value in ((2 * line, 0), (line, 255)):
        y0, y1 = max(top - inset, 0), min(top + tall + inset, height)
        x0, x1 = max(left - inset, 0), min(left + wide + inset, width)
        drawn[y0:y1, x0:x1] = value
    drawn[top : top + tall, left : left + wide] = pixels[top : top + tall, left : left + wide]
    return drawn


def _red_frame(pixels: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
    """The image with a red frame about a box, and a white one about that."""
    top, left, bottom, right = (round(side) for side in (*box[:2], box[0] + box[2], box[1] + box[3]))
    line = max(1, round(max(pixels.shape[:2]) / 130))
    drawn = pixels.copy()
    for inset, colour in ((line + max(1, line // 2), (255, 255, 255)), (line, RED)):
        rows, columns = (slice(max(start - inset, 0), end + inset) for start, end in ((top, bottom), (left, right)))
        drawn[rows, columns] = colour
    drawn[top:bottom, left:right] = pixels[top:bottom, left:right]
    return drawn


def _columns(columns: Any, names: tuple[str, str], label: str) -> tuple[np.ndarray, np.ndarray]:
    """Two columns as floats, without the rows that have nothing in the second one."""
    for name in names:
        if name not in columns:
            raise InputError(f"log {label!r} has no column {name!r}; choose one of: {', '.join(map(str, columns))}")
    first, second = (list(columns[name]) for name in names)
    kept = [(a, b) for a, b in zip(first, second, strict=True) if b is not None and b != ""]
    if not kept:
        raise InputError(f"log {label!r} has no value in column {names[1]!r}; draw another column")
    return np.array([float(a) for a, _ in kept]), np.array([float(b) for _, b in kept])


def _smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """An exponential moving average that starts unbiased: divided by what the weights so far add up to."""
    smoothed, past, total = np.empty_like(values), 0.0, 0.0
    for k, value in enumerate(values):
        past, total = weight * past + (1 - weight) * value, weight * total + (1 - weight)
        smoothed[k] = past / total
    return smoothed


def _colours(labels: Sequence[str], model: str) -> dict[str, str]:
    """A model's own colour for its name, shades of ``model``'s for the other labels in their order."""
    others = [label for label in labels if label.lower() not in COLOURS]
    shaded = dict(zip(others, shades(model, len(others)), strict=False))
    return {label: COLOURS.get(label.lower()) or shaded[label] for label in labels}


def _luminance(rgb: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour in [0, 1] (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _with_luminance(rgb: Sequence[float], target: float) -> str:
    """The colour mixed with black or white until it has the relative luminance ``target``."""
    end = 1.0 if _luminance(rgb) < target else 0.0
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        mixed = [c + (end - c) * middle for c in rgb]
        if (_luminance(mixed) < target) == (end == 1.0):
            low = middle
        else:
            high = middle
    return "#" + "".join(f"{round(c * 255):02x}" for c in mixed)
