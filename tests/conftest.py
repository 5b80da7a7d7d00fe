"""Fixtures that many tests need: data, or the reason why there is none; folders of images; the command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from srlib import datasets
from srlib.datasets import ImageSet
from srlib.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
LONGEST = ("test_browser", "test_workflow", "test_cluster")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that none is left to the end."""
    items.sort(key=lambda item: (*LONGEST, item.path.stem).index(item.path.stem))


# A shell has what it starts in the background ignore Ctrl-C, and tests send themselves that signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def alike() -> None:
    """Each test computes on one thread, as another number changes the last digits, and draws the same numbers."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of these tests' own: pixels that another version of the code made would hide a fault."""
    os.environ["SRLIB_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that SRLIB_DATA names, or shared/data beside the project; skips where neither exists."""
    root = Path(os.environ.get("SRLIB_DATA") or ROOT.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip("no datasets: set SRLIB_DATA to the folder that holds benchmark/Set5")
    return root


@pytest.fixture(scope="session")
def found(data_root: Path) -> Callable[[str], ImageSet]:
    """A function that finds a dataset in that folder, and skips where it isn't there."""

    def find(name: str) -> ImageSet:
        try:
            return datasets.find(name, data_root)
        except InputError as error:
            if not str(error).startswith(f"no {name} in"):
                raise
            pytest.skip(str(error))

    return find


@pytest.fixture(scope="session")
def golden(data_root: Path) -> Path:
    """The folder of the released networks' outputs; skips where it does not exist."""
    folder = data_root.parent / "golden"
    if not folder.is_dir():
        pytest.skip("no golden tensors: a folder golden/ beside SRLIB_DATA holds the released networks' outputs")
    return folder


@pytest.fixture(scope="session")
def debian() -> Callable[..., str]:
    """A function that sees to it that programs are here, by Debian's packages where this is root and no service would
    start with them; what is in the way, or nothing."""

    def install(*programs: str, packages: str) -> str:
        if all(map(shutil.which, programs)):
            return ""
        if os.geteuid() or not shutil.which("apt-get") or Path("/run/systemd/system").exists():
            return f"install {packages} (as root in a container with apt-get, the tests do so themselves)"
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        with FileLock(Path(tempfile.gettempdir()) / "srlib-tests-apt-get.lock"):  # it takes no second one at a time
            for words in ("update", f"install --yes --no-install-recommends {packages}"):
                command = ["apt-get", "-qq", *words.split()]
                done = subprocess.run(["timeout", "300", *command], capture_output=True, text=True, env=quiet)
                if done.returncode:
                    return f"apt-get can't install {packages}: {done.stderr.strip()[-200:]}"
        return ""

    return install


@pytest.fixture(scope="session")
def smooth() -> Callable[..., torch.Tensor]:
    """A function that makes a smooth random image of a height and a width: uint8 (3, H, W)."""

    def make(height: int, width: int, seed: int = 0) -> torch.Tensor:
        small = np.random.default_rng(seed).integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8)
        large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(large)).permute(2, 0, 1).contiguous()

    return make


@pytest.fixture
def make_images(smooth: Callable[..., torch.Tensor]) -> Callable[..., Path]:
    """A function that fills a folder with ``n`` smooth PNGs, 0.png and on; ``size`` is (height, width) or a side."""

    def make(folder: Path, n: int = 2, size: int | tuple[int, int] = 48) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        height, width = (size, size) if isinstance(size, int) else size
        for number in range(n):
            pixels = smooth(height, width, number).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"{number}.png")
        return folder

    return make
