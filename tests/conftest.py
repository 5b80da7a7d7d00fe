"""Where tests find downloaded data, and the reason they give when there is none."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    """Tests use two threads, as the machines that they run on have two cores."""
    torch.set_num_threads(2)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Callable[..., tuple[int, str, str]]]:
    """Given ``capsys`` or ``capfd``, a function that runs the command srlib in this process; it returns exit code,
    standard output and standard error."""
    from srlib import cli

    def reading(capture: Any) -> Callable[..., tuple[int, str, str]]:
        def run(*arguments: object) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", ["srlib", *map(str, arguments)])
            code = 0
            try:
                cli.main()
            except SystemExit as stop:
                code = int(stop.code or 0)
            return code, *capture.readouterr()

        return run

    return reading


@pytest.fixture(scope="session")
def exact_memory() -> dict[str, str]:
    """The environment in which a process's peak of memory is that of what lives at one time: glibc hands back each
    block of over 64 KiB at once, where else it keeps freed ones, up to 100 MB that differ from run to run."""
    return os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}


@pytest.fixture(scope="session")
def smooth_images(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that makes a folder "images" of so many smooth ones: noise of a size (width, height), enlarged to
    another by one of Pillow's filters."""

    def make(count: int, size: tuple[int, int], enlarged: tuple[int, int], resample: Image.Resampling) -> Path:
        path = tmp_path_factory.mktemp("data") / "images"
        path.mkdir()
        noise = np.random.default_rng(0)
        for i in range(count):
            small = Image.fromarray(noise.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
            small.resize(enlarged, resample).save(path / f"{i}.png")
        return path

    return make


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that SRLIB_DATA names, or the project's neighbour shared/data; the test is skipped where neither
    exists."""
    root = Path(os.environ.get("SRLIB_DATA") or ROOT.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"no data at {root.name}: set SRLIB_DATA to the folder that holds benchmark/Set5")
    return root


@pytest.fixture(scope="session")
def golden(data_root: Path) -> Path:
    """The folder of golden tensors beside the data; the test is skipped where it does not exist."""
    folder = data_root.parent / "golden"
    if not folder.is_dir():
        pytest.skip(
            "no golden tensors: a folder golden/ beside SRLIB_DATA holds the reference implementations' outputs"
        )
    return folder
