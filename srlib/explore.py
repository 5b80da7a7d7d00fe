"""The comparison as widgets for a live notebook: choose photograph, scale, networks and crop, and see what they make.

A page of the book has no computer behind it and shows figures instead; here the networks run when something is chosen.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import Any

import torch
from torch import Tensor

from srlib import compare, metrics, viz
from srlib.data import Store
from srlib.errors import InputError

USUAL = 128  # width of the crop at first, in HR pixels
KEPT = 64  # outputs that are kept


class Explorer:
    """Widgets over the photographs of a store; displayed where it is the last line of a cell.

    ``load`` gives the contenders of a scale, as ``compare.contenders`` does, and is asked once a scale; networks that
    it leaves out stay on the list, and are said to be missing there. ``scales`` are the lowest and the highest that can
    be chosen, in steps of a tenth. Scores are those of the crop under ``protocol``, by default SAFMN's. The widgets
    ``photograph``, ``scale``, ``networks``, ``left``, ``top``, ``width`` and ``errors`` can be read and set without a
    browser, too (their ``value``); ``shown`` holds what they lead to as HTML, or the one line that says why there is
    nothing. Raises InputError where ipywidgets is not installed, for a store without images, and for a start that can't
    be chosen.
    """

    def __init__(
        self,
        store: Store,
        load: Callable[[float], Mapping[str, compare.Contender]],
        *,
        scale: float = 4,
        scales: tuple[float, float] = (1.5, 8),
        photograph: str = "",
        protocol: metrics.Protocol | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        widgets = _widgets()
        if len(store) == 0:
            raise InputError(f"{store.name} holds no images; give a folder with at least one")
        if not 1 <= scales[0] <= scale <= scales[1]:
            raise InputError(f"scale {scale:g} is outside {scales[0]:g} to {scales[1]:g}; start at one inside")
        if photograph and photograph not in store.names:
            raise InputError(f"{store.name} has no image {photograph!r}; choose one of: {', '.join(store.names)}")
        self.store, self.load, self.device = store, load, device
        self.protocol = protocol or metrics.protocol("safmn")
        self.loaded: dict[float, Mapping[str, compare.Contender]] = {}
        self.made: dict[tuple[str, float, str], Tensor] = {}
        self.waiting = True
        first = self.contenders(scale)
        whole = {"continuous_update": False, "style": {"description_width": "6rem"}}
        self.photograph = widgets.Dropdown(
            options=store.names, value=photograph or store.names[0], description="photograph", style=whole["style"]
        )
        self.scale = widgets.FloatSlider(
            value=scale, min=scales[0], max=scales[1], step=0.1, description="scale", readout_format=".1f", **whole
        )
        self.networks = {
            title: widgets.Checkbox(value=True, description=title, indent=False, layout={"width": "auto"})
            for title in dict.fromkeys([*compare.PAINT, *first])
        }
        self.left, self.top = (
            widgets.IntSlider(value=0, min=0, max=0, description=name, **whole) for name in ("left", "top")
        )
        self.width = widgets.IntSlider(value=1, min=1, max=1, description="crop width", **whole)
        self.busiest = widgets.Button(
            description="busiest window", tooltip="the window with the largest gradient energy"
        )
        self.errors = widgets.Checkbox(value=False, description="show errors", indent=False, layout={"width": "auto"})
        self.shown = widgets.HTML()
        row = {"display": "flex", "flex_flow": "row wrap"}
        self.box = widgets.VBox(
            [
                widgets.Box([self.photograph, self.scale], layout=row),
                widgets.Box([*self.networks.values()], layout=row | {"grid_gap": "0 1rem"}),
                widgets.Box([self.width, self.left, self.top, self.busiest, self.errors], layout=row),
                self.shown,
            ]
        )
        for control in (self.photograph, self.scale):
            control.observe(self._resize, "value")
        for control in (*self.networks.values(), self.left, self.top, self.errors):
            control.observe(self._show, "value")
        self.width.observe(self._refit, "value")
        self.busiest.on_click(self._find)
        self.waiting = False
        self._find()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)

    def contenders(self, scale: float) -> Mapping[str, compare.Contender]:
        """Who takes part at a scale."""
        if scale not in self.loaded:
            self.loaded[scale] = self.load(scale)
        return self.loaded[scale]

    def pair(self) -> tuple[Tensor, Tensor]:
        """LR and HR of what is chosen: uint8 (3, h, w) and (3, H, W)."""
        return compare.pair(self.store, self.photograph.value, self.chosen_scale)

    @property
    def chosen_scale(self) -> float:
        """The slider's scale, a whole number where it stands on one."""
        return int(self.scale.value) if self.scale.value == int(self.scale.value) else round(self.scale.value, 1)

    @property
    def crop(self) -> tuple[int, int, int, int]:
        """The crop as (top, left, height, width) in HR pixels: three quarters as high as wide."""
        return self.top.value, self.left.value, 3 * self.width.value // 4, self.width.value

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Several settings, and then one drawing."""
        before, self.waiting = self.waiting, True
        try:
            yield
        finally:
            self.waiting = before
        self._show()

    def _resize(self, _: Any = None) -> None:
        """Another photograph or scale: the crop stays where the new image has it."""
        with self._at_once():
            self._fit()

    def _refit(self, _: Any = None) -> None:
        if not self.waiting:
            self._resize()

    def _find(self, _: Any = None) -> None:
        """The crop of the photograph where most happens."""
        with self._at_once():
            hr = self.pair()[1]
            wide = min(USUAL, hr.shape[2], hr.shape[1] * 4 // 3)
            top, left, _, _ = compare.busiest(hr, (3 * wide // 4, wide))
            self._fit(wide)
            self.top.value, self.left.value = top, left

    def _fit(self, wide: int = 0) -> None:
        """Sliders that end where the image does; ``wide`` sets the crop's width, 0 keeps it."""
        height, width = self.pair()[1].shape[1:]
        needed = self.protocol.ssim_window + 2 * self.protocol.border(self.chosen_scale)  # or there is no SSIM
        wide = wide or self.width.value
        self.width.min = 1
        self.width.max = min(width, height * 4 // 3)
        self.width.min = min(-(-needed * 4 // 3), self.width.max)
        self.width.value = wide
        _, _, tall, wide = self.crop
        self.left.max, self.top.max = max(0, width - wide), max(0, height - tall)

    def _show(self, _: Any = None) -> None:
        if not self.waiting:
            try:
                self.shown.value = self._drawn()
            except InputError as error:
                self.shown.value = f"<p>{escape(str(error))}</p>"

    def _outputs(self, titles: list[str], lr: Tensor) -> dict[str, Tensor]:
        """What networks make of the photograph, by title, each made once."""
        place, found = (self.photograph.value, self.chosen_scale), self.contenders(self.chosen_scale)
        for title in titles:
            if (*place, title) not in self.made:
                self.made[*place, title] = compare.enlarged({title: found[title]}, lr, self.device)[title]
        images = {title: self.made[*place, title] for title in titles}
        while len(self.made) > KEPT:
            self.made.pop(next(iter(self.made)))
        return images

    def _drawn(self) -> str:
        scale, (lr, hr), (top, left, tall, wide) = self.chosen_scale, self.pair(), self.crop
        found, wanted = self.contenders(scale), [title for title, box in self.networks.items() if box.value]
        images = self._outputs([title for title in wanted if title in found], lr)
        cut = {title: x[:, top : top + tall, left : left + wide] for title, x in images.items()}
        original = hr[:, top : top + tall, left : left + wide]
        scores = compare.scores(cut, original, self.protocol, scale)
        said = f"{self.photograph.value}, x{scale:g}, a crop of {wide}x{tall}"
        caption = f"{said}. PSNR / SSIM of the crop, {self.protocol.name} protocol."
        caption += f" {ended}." if (ended := compare.endings(found)) else ""
        alt = f"{said} from ({left}, {top}), beside the original"
        panels, crop = {"HR": hr, **images}, (top, left, tall, wide)
        parts = [viz.images(panels, crop=crop, scores=scores, alt=alt, caption=caption)._repr_html_()]
        if self.errors.value and cut:
            maps = {title: compare.luma_error(x, original.float() / 255) for title, x in cut.items()}
            parts.append(viz.error_maps(maps, alt=f"Errors of luma: {said}.", caption="Errors of luma.").html)
        if absent := [title for title in wanted if title not in found]:
            parts.append(f"<p>Not trained for x{scale:g}: {escape(', '.join(absent))}.</p>")
        return "".join(parts)


def _widgets() -> Any:
    try:
        import ipywidgets
    except ImportError:
        raise InputError(
            "ipywidgets is not installed: pip install -e .[book], or look at the figures of the page"
        ) from None
    return ipywidgets
