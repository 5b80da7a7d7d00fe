"""Whether this installation computes what it should, and what mistaken conventions cost.

``installation`` says what is installed and what computes here. ``checks`` compares resizing and metrics with known
values, which were made by other means: MATLAB's bicubic in rational arithmetic, PSNR in numpy, SSIM by scikit-image;
and the weights that ship with the hashes that they carry.
``costs`` scores the same photographs as they should be and with one convention changed at a time.
"""

import io
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import srlib
from srlib import complexity, data, evaluate, metrics, pretrained, runs, sources, tiles
from srlib.errors import InputError, expanded
from srlib.metrics import Protocol
from srlib.resize import contributions, imresize

# What MATLAB's imresize makes of the first rows and columns of ``pattern``, in 8 bits, by (size, new size).
RESIZED: dict[tuple[int, int], list[list[int]]] = {
    (12, 6): [
        [68, 127, 154, 106, 96, 168],
        [114, 105, 126, 108, 132, 128],
        [140, 134, 116, 136, 122, 111],
        [119, 107, 140, 132, 112, 154],
        [110, 120, 131, 121, 126, 139],
        [147, 115, 138, 99, 104, 181],
    ],
    (12, 4): [[91, 139, 107, 143], [127, 121, 125, 119], [116, 126, 128, 135], [130, 129, 104, 153]],
    (12, 3): [[107, 123, 130], [123, 128, 127], [126, 118, 139]],
    (3, 6): [
        [0, 5, 20, 37, 58, 68],
        [12, 23, 43, 65, 89, 101],
        [62, 72, 92, 118, 150, 165],
        [112, 124, 147, 154, 144, 139],
        [162, 178, 208, 173, 73, 24],
        [187, 204, 238, 186, 48, 0],
    ],
}
# PSNR in dB and SSIM of ``scored_pair`` at scale 4, by protocol.
SCORED: dict[str, tuple[float, float]] = {
    "matlab": (38.72126084642044, 0.9418447096208645),
    "safmn": (38.818135651677224, 0.9438615944721672),
    "liif-div2k": (31.77157012920341, 0.7998756501222415),
}
# sha256 of the held-out photographs as they are decoded: other decoders may differ in the last bit of a JPEG.
PHOTOGRAPHS = "093465e124991b6dba95cf3c1bfa0137db6e65cf893bc1b253e44052f01cc997"

FULL_RANGE = (76.245, 149.685, 29.07)  # BT.601's weights of red, green and blue, 255 times, without the offset 16


@dataclass(frozen=True)
class Check:
    """One comparison with what is known: ``passed`` is None where it could not be made, and ``found`` says why."""

    name: str
    passed: bool | None
    found: str
    expected: str

    @property
    def verdict(self) -> str:
        """In a word or two."""
        return {True: "ok", False: "failed", None: "not run"}[self.passed]


@dataclass(frozen=True)
class Cost:
    """Scores with one convention changed: ``where`` is what it belongs to, and the costs are distances in dB and SSIM
    from the scores as they should be. The first of ``costs`` is that reference, its distances zero."""

    convention: str
    where: str
    psnr: float
    ssim: float
    psnr_cost: float = 0.0
    ssim_cost: float = 0.0


def pattern(size: int) -> Tensor:
    """An image of known values, uint8 (size, size)."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((37 * x + 91 * y + x * y) % 256).to(torch.uint8)


def scored_pair() -> tuple[Tensor, Tensor]:
    """A smooth image of known values and a disturbed copy, uint8 (3, 40, 36) each: copy, image."""
    c, y, x = torch.meshgrid(torch.arange(3), torch.arange(40), torch.arange(36), indexing="ij")
    image = 30 + 3 * x + 2 * y + 15 * c + (7 * x * y) % 17
    error = (13 * x + 29 * y + 11 * c + x * y) % 23 - 11
    return (image + error).clamp(0, 255).to(torch.uint8), image.to(torch.uint8)


# --- what is here ----------------------------------------------------------------------------------------------------


def installation(root: str | Path | None = None) -> dict[str, str]:
    """Versions, devices, threads, memory, the cache's disk, and the images in the data folder, each in words.

    Raises InputError for a data folder that is named but not there.
    """
    cache = expanded(os.environ.get("SRLIB_CACHE") or "~/.cache/srlib")
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    known = {
        "srlib": f"{srlib.__version__}, commit {runs.commit()}",
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "cpu": complexity.describe_device("cpu"),
        "cuda": cuda(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "free memory": f"{tiles.free_memory() / (1 << 30):.1f} GiB",
        "cache": f"{cache}, {shutil.disk_usage(there).free / (1 << 30):.1f} GiB free",
    }
    base = sources.data_root(root)
    known["data"] = str(base) if base else "no folder: name one with --data-root, or set SRLIB_DATA"
    parts = [row for row in sources.found(root) if row.images]
    known["data sets"] = ", ".join(f"{row.name} {row.images} of {row.expected}" for row in parts) or "none"
    return known


def cuda() -> str:
    """The GPUs that torch sees, with their free memory."""
    if not torch.cuda.is_available():
        return "none that this torch sees"
    seen = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        seen.append(f"{name}, {free / (1 << 30):.1f} of {total / (1 << 30):.1f} GiB free")
    return "; ".join(seen)


# --- known values ----------------------------------------------------------------------------------------------------


def checks(root: str | Path | None = None) -> list[Check]:
    """Every check of resizing, metrics, decoding and the weights that ship, and of the distributed LR images of Set5
    where they are there.

    A check that raises has failed: the others are made all the same.
    """
    made: list[tuple[str, Callable[[], Check]]] = [
        ("bicubic weights, 1/2", lambda: _weights(2, (-3, -9, 29, 111, 111, 29, -9, -3), 256)),
        ("bicubic weights, 1/3", lambda: _weights(3, (-1, -2, 9, 21, 27, 21, 9, -2, -1), 81)),
        *((f"imresize, {old}x{old} to {new}x{new}", lambda at=(old, new): _resized(*at)) for old, new in RESIZED),
        *((f"PSNR and SSIM, {name} protocol", lambda name=name: _scored(name)) for name in SCORED),
        ("photographs, as decoded", _photographs),
        ("weights that ship", _weights_whole),
        ("LR images of Set5, value by value", lambda: _set5(root)),
    ]
    done = []
    for name, check in made:
        try:
            done.append(replace(check(), name=name))
        except Exception as error:  # whatever is broken here is what a doctor is asked about
            done.append(Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}", "no error"))
    return done


def _weights(shrink: int, known: Sequence[int], over: int) -> Check:
    """The weights of one output sample in the middle of an axis that is shrunk."""
    taps, weights = contributions(20 * shrink, 20, 1 / shrink)
    middle = (weights[:, 10] * over).tolist()
    order = np.argsort(taps[:, 10].numpy())
    found = [round(middle[i], 6) for i in order if abs(middle[i]) > 1e-9]
    return Check("", found == [float(one) for one in known], f"{_numbers(found)} over {over}", _numbers(known))


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _resized(old: int, new: int) -> Check:
    found = imresize(pattern(12)[None, :old, :old], size=(new, new))[0]
    different = int((found != torch.tensor(RESIZED[old, new], dtype=torch.uint8)).sum())
    return Check("", different == 0, f"{different} of {found.numel()} values differ", "none")


def _scored(name: str) -> Check:
    sr, hr = scored_pair()
    protocol = metrics.protocol(name)
    psnr, ssim = (metric(sr, hr, protocol, 4).item() for metric in (metrics.psnr, metrics.ssim))
    right = abs(psnr - SCORED[name][0]) < 1e-5 and abs(ssim - SCORED[name][1]) < 1e-6
    return Check("", right, f"{psnr:.6f} dB, {ssim:.7f}", f"{SCORED[name][0]:.6f} dB, {SCORED[name][1]:.7f}")


def _photographs() -> Check:
    found = data.Store.open(data.photos("held-out")).fingerprint
    return Check("", found == PHOTOGRAPHS, found[:12], PHOTOGRAPHS[:12])


def _weights_whole() -> Check:
    """Each file says what its bytes hash to."""
    whole = pretrained.available()
    return Check("", bool(whole), ", ".join(one.path.stem for one in whole) or "none", "each as it was shipped")


def _set5(root: str | Path | None) -> Check:
    """The only check against MATLAB's own output, and so the strictest."""
    try:
        images = data.benchmark("Set5", root)
    except InputError:
        return Check("", None, "no Set5 here", "no value differs")
    if not images.lr_files:
        return Check("", None, "no LR images beside Set5's HR images", "no value differs")
    store = data.Store.open(images)
    compared = differing = 0
    for scale in sorted(images.lr_files):
        for i in range(len(store)):
            lr, hr = store.pair(i, scale)
            made = imresize(hr, size=(lr.shape[1], lr.shape[2]))
            compared += lr.numel()
            differing += int((made != lr).sum())
    return Check("", differing == 0, f"{differing} of {compared} values differ", "no value differs")


# --- what a wrong convention costs -----------------------------------------------------------------------------------


def costs(store: data.Store, scale: int = 4) -> list[Cost]:
    """Bicubic's mean PSNR and SSIM on a store as they should be (LR images by MATLAB's bicubic, enlarged by it, under
    the matlab protocol), and with one convention changed at a time.

    OpenCV's bicubic is its convention, a = -0.75 without antialiasing and with repeated border pixels, as torch's plain
    interpolation has it. Where an image set was saved as JPEG, LR and HR both come from the JPEG files; where LR alone
    was, HR is the original. Raises InputError for a store that is empty or has too small images.
    """
    right = metrics.protocol("matlab")
    pairs = [store.pair(i, scale) for i in range(len(store))]
    hr = [large for _, large in pairs]
    enlarge = evaluate.bicubic(scale)
    standard = [_enlarged(enlarge, lr) for lr, _ in pairs]

    def shrunk(how: Callable[[Tensor, tuple[int, int]], Tensor]) -> list[Tensor]:
        return [_enlarged(enlarge, how(large, (lr.shape[1], lr.shape[2]))) for lr, large in pairs]

    rows = [("as it should be", "", *_means(standard, hr, right, scale))]
    for name, how in (("Pillow's bicubic", pillow), ("OpenCV's bicubic", opencv)):
        rows.append((f"LR images by {name}", "LR images", *_means(shrunk(how), hr, right, scale)))
    for quality in (90, 75):
        small = [_enlarged(enlarge, jpeg(lr, quality)) for lr, _ in pairs]
        rows.append((f"LR images saved as JPEG, quality {quality}", "LR images", *_means(small, hr, right, scale)))
    for quality in (90, 75):
        saved = [jpeg(large, quality) for large in hr]
        small = [imresize(large, size=(lr.shape[1], lr.shape[2])) for large, (lr, _) in zip(saved, pairs, strict=True)]
        made = [_enlarged(enlarge, lr) for lr in small]
        rows.append(
            (f"images saved as JPEG, quality {quality}", "HR and LR images", *_means(made, saved, right, scale))
        )
    for name, how in (("Pillow's bicubic", pillow), ("OpenCV's bicubic", opencv)):
        made = [how(lr, (large.shape[1], large.shape[2]))[None].double() / 255 for lr, large in pairs]
        rows.append((f"enlarged by {name}", "upscaler", *_means(made, hr, right, scale)))
    plain = [imresize(lr.double(), size=(large.shape[1], large.shape[2]))[None] / 255 for lr, large in pairs]
    unrounded = replace(right, round_image=False, round_luma=False)
    rows.append(("output and luma not rounded to 8 bits", "score", *_means(plain, hr, unrounded, scale)))
    for name, protocol in {
        "RGB in place of luma": replace(right, channel="rgb", round_luma=False),
        "no border cut": replace(right, border_per_scale=0),
        "full-range luma": replace(right, luma=FULL_RANGE, luma_offset=0.0),
        "SSIM's window 7x7 in place of 11x11": replace(right, ssim_window=7),
    }.items():
        rows.append((name, "score", *_means(standard, hr, protocol, scale)))
    base = rows[0]
    return [Cost(*row, row[2] - base[2], row[3] - base[3]) for row in rows]


def _enlarged(enlarge: Callable[[Tensor], Tensor], lr: Tensor) -> Tensor:
    return enlarge(lr[None].double() / 255)


def _means(sr: list[Tensor], hr: list[Tensor], protocol: Protocol, scale: int) -> tuple[float, float]:
    """Mean PSNR and SSIM of enlarged images (1, 3, H, W) in [0, 1] against HR ones, uint8 (3, H, W)."""
    if not hr:
        raise InputError("no images to score: name a set with at least one")
    pairs = list(zip(sr, hr, strict=True))
    psnr, ssim = (
        sum(metric(one, large[None], protocol, scale).item() for one, large in pairs) / len(pairs)
        for metric in (metrics.psnr, metrics.ssim)
    )
    return psnr, ssim


def pillow(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) to (3, h, w) by Pillow's bicubic: antialiased, with a = -0.5, in its own arithmetic."""
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def opencv(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) to (3, h, w) by OpenCV's convention of bicubic: a = -0.75, no antialiasing, rounded once."""
    return F.interpolate(image[None].double(), size, mode="bicubic")[0].round().clamp(0, 255).to(torch.uint8)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """uint8 (3, H, W) as it comes back from a JPEG file of that quality, Pillow's other settings as they are."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
