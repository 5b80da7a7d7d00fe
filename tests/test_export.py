"""ONNX files: free sizes in the network's steps, PyTorch's own output, and no file where that cannot be had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_models import images
from test_seemore import network as steered
from test_seemore import routes
from torch import Tensor, nn
from typer.testing import CliRunner

from srlib import cli, export, models
from srlib.errors import InputError
from srlib.evaluate import upscaler

onnx = pytest.importorskip("onnx", reason="needs the extra: pip install -e .[export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra: pip install -e .[export]")
pytest.importorskip("onnxscript", reason="needs the extra: pip install -e .[export]")

SMALL = {
    "safmn": ({"blocks": 1, "channels": 8}, 8),
    "seemore-t": ({"scale": 2, "groups": 2, "channels": 8}, 1),
    "ssiu": ({"stages": 3, "channels": 8}, 16),
    "moeisr-lte-s-edsr": ({"hidden": 8}, 1),
    "liif-edsr": ({"hidden": 8}, 1),
}


def network(name: str) -> nn.Module:
    """A small network, for scale 2 or every scale; SeemoRe's sends the images below by different routes."""
    torch.manual_seed(0)
    small = replace(models.default_config(name), **SMALL[name][0])
    if name == "seemore-t":
        return steered(small)
    made = models.create(name, 2 if models.takes_scale(name) else None, small)
    if not models.takes_scale(name):
        made.encoder = nn.Conv2d(3, 64, 3, padding=1)
    return made.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_file_takes_any_size_in_steps_and_gives_pytorchs_output(name: str) -> None:
    upscale, step = upscaler(network(name), 2), SMALL[name][1]
    made = export.to_onnx(upscale)
    assert made.step == step and made.difference <= export.TOLERANCE
    assert name != "seemore-t" or len({*map(tuple, routes(network(name), images(4, 32, 32)))}) > 1
    session = onnxruntime.InferenceSession(made.content, providers=["CPUExecutionProvider"])
    (lr,), (sr,) = session.get_inputs(), session.get_outputs()
    assert (lr.name, sr.name, lr.shape[:2], sr.shape[:2]) == ("lr", "sr", [1, 3], [1, 3])
    assert onnx.load_from_string(made.content).opset_import[0].version == export.OPSET
    for size in ((32, 32), (48, 112), (33 // step * step or step, 71 // step * step)):
        for image in images(4, *size).split(1):
            with torch.inference_mode():
                wanted = upscale(image)
            (found,) = session.run(None, {"lr": image.numpy()})
            torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-4, rtol=0)


class Sized(nn.Module):
    """What a graph cannot say for all sizes."""

    def forward(self, lr: Tensor) -> Tensor:
        return lr if float(lr.mean()) > 2 else lr * lr.shape[-1]


def test_what_cannot_be_exported_is_one_line() -> None:
    with pytest.raises(InputError, match="cannot be exported with free sizes") as error:
        export.to_onnx(Sized())
    assert "\n" not in str(error.value)


def test_a_file_that_differs_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = network("safmn")
    monkeypatch.setattr("srlib.results.trained", lambda *_: SimpleNamespace(network=small, caption="small"))
    command = ["export", "safmn", str(tmp_path / "new" / "out.onnx"), "--scale", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(export, "TOLERANCE", 0.0)
        result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 2 and "differ from PyTorch by" in result.stderr and not list(tmp_path.glob("new/*"))
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0 and "x2, sides: multiples of 8, 32 or more; largest difference" in result.stdout
    assert [file.name for file in tmp_path.glob("new/*")] == ["out.onnx"]


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PACKAGES", ("onnx", "nothing-of-this-name"))
    with pytest.raises(InputError, match="nothing-of-this-name missing: pip install onnx nothing-of-this-name"):
        export.to_onnx(nn.Identity())
