"""The widgets show what is chosen, without a browser and without a kernel."""

import builtins
import re
from typing import Any

import pytest
import torch

from srlib import compare, data, explore
from srlib.errors import InputError
from srlib.evaluate import bicubic

pytest.importorskip("ipywidgets", reason="the widgets need the extra: pip install -e .[book]")


def contenders(scale: float) -> dict[str, compare.Contender]:
    """Bicubic, and nearest neighbour under the title of a network for every scale, which others are not."""

    def nearest(lr: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(lr, [round(scale * side) for side in lr.shape[2:]])

    smooth = bicubic(scale) if scale == int(scale) else nearest
    found = {"bicubic": compare.Contender(smooth), "MoEISR": compare.Contender(nearest)}
    return found | ({"SAFMN": compare.Contender(nearest)} if scale in (2, 3, 4) else {})


@pytest.fixture
def explorer() -> explore.Explorer:
    return explore.Explorer(data.Store.open(data.find("photos/held-out")), contenders)


def labels(html: str) -> list[str]:
    return re.findall(r'<span class="srlib-label">([^<]+)', html)


def test_it_starts_with_the_busiest_window_and_all_networks(explorer: explore.Explorer) -> None:
    assert labels(explorer.shown.value) == ["HR", "bicubic", "SAFMN", "MoEISR"]
    hr = explorer.pair()[1]
    assert explorer.crop == compare.busiest(hr, (96, 128))
    assert "Not trained for x4: SeemoRe-T, SSIU" in explorer.shown.value
    assert "camera, x4, a crop of 128x96" in explorer.shown.value and "style" in explorer.shown.value


def test_every_choice_changes_what_is_shown(explorer: explore.Explorer) -> None:
    seen = {explorer.shown.value}

    def changed() -> str:
        assert explorer.shown.value not in seen
        seen.add(explorer.shown.value)
        return explorer.shown.value

    explorer.photograph.value = "coffee"
    assert "coffee, x4" in changed()
    explorer.scale.value = 2
    assert "coffee, x2" in changed()
    explorer.left.value = 40
    assert "from (40, " in changed()
    explorer.top.value = 0
    changed()
    explorer.width.value = 200
    assert "a crop of 200x150" in changed()
    explorer.networks["SAFMN"].value = False
    assert labels(changed()) == ["HR", "bicubic", "MoEISR"]
    explorer.errors.value = True
    assert "Colour bar" in changed()
    for title in explorer.networks:
        explorer.networks[title].value = False
    assert labels(explorer.shown.value) == ["HR"]


def test_other_scales_leave_out_who_is_not_trained_for_them(explorer: explore.Explorer) -> None:
    explorer.scale.value = 2.7
    assert labels(explorer.shown.value) == ["HR", "bicubic", "MoEISR"]
    assert "x2.7" in explorer.shown.value and "Not trained for x2.7: SAFMN" in explorer.shown.value
    explorer.scale.value = 3.0
    assert "SAFMN" in labels(explorer.shown.value)


@pytest.mark.parametrize("scale", [1.5, 8])
@pytest.mark.parametrize("photograph", ["chelsea", "rocket"])
def test_the_crop_stays_inside_every_image(explorer: explore.Explorer, photograph: str, scale: float) -> None:
    explorer.width.value = explorer.width.max
    explorer.left.value, explorer.top.value = explorer.left.max, explorer.top.max
    explorer.photograph.value, explorer.scale.value = photograph, scale
    explorer.width.value = explorer.width.min
    explorer.left.value, explorer.top.value = explorer.left.max, explorer.top.max
    top, left, tall, wide = explorer.crop
    height, width = explorer.pair()[1].shape[1:]
    assert top + tall <= height and left + wide <= width
    assert labels(explorer.shown.value)[:2] == ["HR", "bicubic"], explorer.shown.value[:200]


def test_an_output_is_made_once_and_a_scale_is_loaded_once() -> None:
    loaded, made = [], []

    def load(scale: float) -> dict[str, compare.Contender]:
        loaded.append(scale)

        def upscale(lr: torch.Tensor) -> torch.Tensor:
            made.append(scale)
            return bicubic(scale)(lr)

        return {"bicubic": compare.Contender(upscale)}

    explorer = explore.Explorer(data.Store.open(data.find("photos/held-out")), load)
    explorer.left.value = 0
    explorer.scale.value = 2
    explorer.scale.value = 4
    assert (loaded, made) == ([4, 2], [4, 2])


def test_what_goes_wrong_is_said_in_a_line(explorer: explore.Explorer) -> None:
    def fail(scale: float) -> dict[str, compare.Contender]:
        raise InputError("no <runs> at this scale")

    explorer.load = fail
    explorer.scale.value = 3
    assert explorer.shown.value == "<p>no &lt;runs&gt; at this scale</p>"
    explorer.scale.value = 4
    assert "srlib-panel" in explorer.shown.value


@pytest.mark.parametrize(("options", "said"), [({"scale": 9}, "scale 9 is outside"), ({"photograph": "x"}, "no image")])
def test_a_start_that_cannot_be_chosen_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        explore.Explorer(data.Store.open(data.find("photos/held-out")), contenders, **options)


def test_missing_ipywidgets_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "ipywidgets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pip install"):
        explore.Explorer(data.Store.open(data.find("photos/held-out")), contenders)
