"""Images of any size: enlarged in overlapping tiles, which are blended into bands, where the whole is too large for the
memory.

An image is cut into tiles of equal size that overlap. Each is enlarged by itself. In the middle of an overlap, over at
most ``RAMP`` LR pixels, one tile's result fades into the next one's along a raised cosine; nearer to its edge, where a
tile lacks what lies beyond, nothing of it is used. The image's own borders are the tiles' borders, too, and stay as
they are. Both axes do the same one after the other, so that the weights of all tiles sum to one at every pixel.

What an output pixel depends on has an end in some networks; tiles whose overlap reaches beyond it change nothing but
the last digits. Others look at the whole image, and there tiles are an approximation: ``difference`` measures it.
"""

import math
import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from srlib.complexity import peak_memory
from srlib.errors import InputError

ALIGN = 16  # LR pixels: networks pool, stride and attend in powers of two up to this, from the first pixel on
OVERLAP = 32  # LR pixels, unless asked otherwise
RAMP = 8  # LR pixels that one tile takes to fade into the next at the most
LARGEST = 640  # side of a tile that is chosen by itself, in LR pixels: larger ones gain little speed
SMALLEST = 64
SHARE = 0.6  # of the memory that is free may be used
ON_CPU = 3 << 30  # and no more than these bytes there: the rest of a machine is for others
GROUP_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")  # files of a control group, and
GROUP_2 = ("memory.max", "memory.current", "inactive_file")  # what of its use the system gives back when it is needed
PIXEL = 16 << 10  # bytes, more than any network here takes for an LR pixel: below it nothing needs to be measured
TRIALS = (128, 192)  # sides of the images by which memory is measured: larger than one strip of a network's (layers.py)
TRIALS_EVERY = (64, 112)  # and for networks for every scale, which take much longer and have no strips


@dataclass(frozen=True)
class Plan:
    """How an image is enlarged: in tiles of ``tile`` x ``tile`` LR pixels at the most, each sharing ``overlap`` or
    more with the next.

    ``tile`` None is the whole image at once. Tiles are a little shorter where that covers the image as well, and as
    long as the image along an axis on which it is shorter; see ``pieces``.
    """

    tile: int | None
    overlap: int = 0


class Piece(NamedTuple):
    """A tile's extent along one axis, in LR pixels: ``start`` to ``end``; it fades in from ``begin`` to ``full`` and is
    used up to ``until``, where the next one is all there."""

    start: int
    end: int
    begin: int
    full: int
    until: int


def pieces(start: int, end: int, tile: int, overlap: int) -> tuple[Piece, ...]:
    """How an axis from LR pixel ``start`` to ``end`` is covered by tiles of equal length, ``tile`` at the most, each
    sharing ``overlap`` or more with the next.

    They are as few as that takes, and as short as so few may be; the last one is moved inward. All start at multiples
    of 16 from ``start``, and leave the same remainder as the axis does, so that a tile is padded and pooled as the
    whole image is, unless they are too short for it.
    """
    side = end - start
    length = min(tile, side)
    step = max(1, length - overlap)
    aligned = range(tile - (tile - side) % ALIGN, overlap + ALIGN - 1, -ALIGN)
    if length < side and aligned:
        count = _count(side, aligned[0], overlap)
        length = next(one for one in reversed(aligned) if _count(side, one, overlap) == count)
        step = (length - overlap) // ALIGN * ALIGN
    starts = [*range(start, end - length, step), end - length]
    begins, fulls = [start], [start]
    for one, before in zip(starts[1:], starts, strict=False):
        shared, ramp = before + length - one, min(RAMP, overlap // 2)
        begins.append(one + (shared - ramp) // 2)
        fulls.append(begins[-1] + ramp)
    untils = [*fulls[1:], end]
    extents = zip(starts, begins, fulls, untils, strict=True)
    return tuple(Piece(first, first + length, *rest) for first, *rest in extents)


def _count(side: int, length: int, overlap: int) -> int:
    """How many tiles that start at multiples of 16 cover ``side`` LR pixels."""
    return 1 + -(-(side - length) // ((length - overlap) // ALIGN * ALIGN))


def work(size: tuple[int, int], plan: Plan) -> float:
    """How many LR pixels are computed for each of an image of ``size`` (height, width): 1 for the whole at once."""
    if plan.tile is None:
        return 1.0
    return math.prod(
        sum(one.end - one.start for one in pieces(0, side, plan.tile, plan.overlap)) / side for side in size
    )


def plan(
    network: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    scale: float,
    *,
    device: str | torch.device = "cpu",
    memory: int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
) -> Plan:
    """How to enlarge an LR image of ``size`` (height, width): whole where that fits the memory, else in tiles.

    ``network`` takes images as ``upscale`` of ``bands`` does. ``memory``: bytes that may be used; None is a safe part
    of what is free on ``device`` now, on a CPU 3 GiB at the most. What the network needs is measured once, on two small
    images of noise, unless the image is itself small. ``tile`` and ``overlap``, in LR pixels, are the user's own
    wish: tile 0 is the whole image. Tiles that are chosen are as large as fits, up to 640.

    Raises InputError for settings that can't be, and where the memory is too small for any tile.
    """
    height, width = size
    whole = Plan(None)
    _check(tuple(size), scale, memory, tile, overlap)
    _check_upscaler(network)
    if tile is not None:
        if tile == 0 or tile >= max(size):
            return whole
        if not _tileable(network, scale):
            raise InputError(f"scale {scale:g} puts no tile on the output's pixels: give a network for every scale")
        return Plan(tile, min(OVERLAP, tile // 4) if overlap is None else overlap)
    if not _tileable(network, scale):
        return whole
    room = _room(device) if memory is None else memory
    if PIXEL * height * width <= room:
        return whole
    needed = footprint(network, scale, device)
    if needed.of(height, width) <= room:
        return whole
    chosen = OVERLAP if overlap is None else overlap
    for side in range(LARGEST, max(SMALLEST, 2 * chosen) - 1, -ALIGN):
        tall, wide = min(side, height), min(side, width)
        band = 3 * 12 * scale**2 * tall * width  # the band, what is left of the one before, and a copy in 8 bits
        if needed.of(tall, wide) + (band if torch.device(device).type == "cpu" else 0) <= room:
            return Plan(side, chosen)
    raise InputError(
        f"{room / 2**20:,.0f} MiB of memory is too little to enlarge {width} x {height} pixels in any tiles: close "
        "other programs, or give a tile"
    )


def bands(
    upscale: Callable[[Tensor], Tensor],
    lr: Tensor,
    scale: float,
    plan: Plan,
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> "Bands":
    """Enlarge one image band by band, from top to bottom: (first output row, the band's rows (3, n, W)) each time.

    ``upscale`` takes float32 images in [0, 1], 1x3xhxw on ``device``, and returns them ``scale`` times as large, as
    ``srlib.evaluate.score`` has it; a network for every scale comes in ``srlib.evaluate.AtScale``. ``lr`` (3, h, w) is
    uint8, uint16, or floating point in [0, 1], on any device. Bands are float32 on the CPU, neither clamped nor
    rounded, and together they are the whole output; no more than one of them is held here. ``progress`` is told the
    number of tiles done and the number of all.

    A tile for which the device's memory is too small is done in tiles of half the size, and so are those after it; a
    warning says so once for each size. Raises InputError for an image or upscaler that can't be, and where the memory
    is too small for the smallest tile.
    """
    return Bands(upscale, lr, scale, plan, torch.device(device), progress)


def enlarged(
    upscale: Callable[[Tensor], Tensor], lr: Tensor, scale: float, plan: Plan, *, device: str | torch.device = "cpu"
) -> tuple[Tensor, Plan]:
    """The output (3, H, W) of a whole image, float32, and how it was made: by ``plan``, or in smaller tiles where the
    memory was too small for that. It is on ``device`` where it was made whole, and on the CPU where in tiles. Takes and
    raises what ``bands`` does."""
    work = Bands(upscale, lr, scale, plan, torch.device(device), None)
    if plan.tile is None:
        return work.whole(), work.used
    sr = torch.empty(3, work.rows.large, work.columns.large)
    for row, rows in work.bands():
        sr[:, row : row + rows.shape[1]] = rows
    return sr, work.used


class Tiled(nn.Module):
    """An upscaler that works in tiles: LR (B, 3, h, w) to (B, 3, H, W), as ``upscale`` itself does it, to be compared
    with it or scored in its place. It takes no gradients."""

    def __init__(self, upscale: Callable[[Tensor], Tensor], scale: float, plan: Plan) -> None:
        super().__init__()
        self.upscale, self.scale, self.plan = upscale, scale, plan

    def forward(self, lr: Tensor) -> Tensor:
        images = (enlarged(self.upscale, image, self.scale, self.plan, device=lr.device) for image in lr)
        return torch.stack([sr.to(lr.device) for sr, _ in images])


@dataclass(frozen=True)
class Difference:
    """How far an image enlarged in tiles is from the one enlarged whole, both in 8 bits.

    ``psnr`` in dB over all channels, infinite where they are equal; ``largest``: the largest absolute difference, in
    levels of 255; ``share``: of the pixels, from 0 to 1, that differ in any channel; ``work`` as the function of that
    name.
    """

    psnr: float
    largest: int
    share: float
    work: float


def difference(
    network: Callable[[Tensor], Tensor],
    lr: Tensor,
    scale: float,
    tile: int,
    overlap: int,
    *,
    whole: Tensor | None = None,
    device: str | torch.device = "cpu",
) -> Difference:
    """What enlarging ``lr`` (3, h, w) in tiles changes against enlarging it whole, after both are rounded to 8 bits.

    ``whole`` is the output (3, H, W) of the whole image where it is there already. Takes and raises what ``plan`` and
    ``bands`` do.
    """
    settings = plan(network, tuple(lr.shape[1:]), scale, device=device, tile=tile, overlap=overlap)
    if whole is None:
        whole = torch.cat([rows for _, rows in bands(network, lr, scale, Plan(None), device=device)], 1)
    whole = _eight_bits(whole.cpu())
    squares = largest = differing = 0
    for row, rows in bands(network, lr, scale, settings, device=device):
        apart = (_eight_bits(rows) - whole[:, row : row + rows.shape[1]]).abs()
        squares += int((apart.long() ** 2).sum())
        largest = max(largest, int(apart.max()))
        differing += int((apart.amax(0) > 0).sum())
    psnr = 10 * math.log10(255**2 * whole.numel() / squares) if squares else math.inf
    return Difference(psnr, largest, differing / whole[0].numel(), work(tuple(lr.shape[1:]), settings))


# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """The most tensor memory that an upscaler holds at once: bytes that it takes for any image, and for an LR pixel."""

    fixed: float
    pixel: float

    def of(self, height: int, width: int) -> float:
        """The bytes for an LR image, with the image itself."""
        return self.fixed + (self.pixel + 12) * height * width


_FOOTPRINTS: weakref.WeakKeyDictionary[Any, dict[tuple[float, str], Footprint]] = weakref.WeakKeyDictionary()


def footprint(upscale: Callable[[Tensor], Tensor], scale: float, device: str | torch.device = "cpu") -> Footprint:
    """What memory an upscaler takes, measured on two small images of noise, once for each network, scale and
    device."""
    known = _FOOTPRINTS.setdefault(getattr(upscale, "network", upscale), {})
    key = (scale, str(device))
    if key not in known:
        noise, taken = torch.Generator().manual_seed(0), []
        sides = TRIALS_EVERY if hasattr(upscale, "window") else TRIALS
        for side in sides:
            image = torch.rand(1, 3, side, side, generator=noise).to(device)
            with torch.inference_mode(), evaluation_mode(upscale):
                taken.append(_peak(partial(upscale, image), torch.device(device)))
        small, large = (side**2 for side in sides)
        pixel = max(0.0, (taken[1] - taken[0]) / (large - small))
        known[key] = Footprint(max(0.0, taken[0] - pixel * small), pixel)
    return known[key]


class _Held(TorchDispatchMode):
    """Follows the memory of every tensor that torch's operators put out, in bytes, until it is given back.

    It sees what ``srlib.complexity.peak_memory`` sees but for what an operator takes and gives back by itself, and
    leaves the profiler and its messages alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                self.see(one.untyped_storage())
        return made

    def see(self, storage: torch.UntypedStorage) -> None:
        """Count a storage from now on until it goes."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive[key] = weakref.ref(storage, lambda _: self.forget(key, size))
            self.held += size
            self.peak = max(self.peak, self.held)

    def forget(self, key: int, size: int) -> None:
        """A storage is gone."""
        del self.alive[key]
        self.held -= size


def _peak(call: Callable[[], object], device: torch.device) -> int:
    """The most tensor memory in bytes that a call takes at once."""
    if device.type == "cuda":
        return peak_memory(call, device).rise
    with _Held() as memory:
        call()
    return memory.peak


def free_memory(
    device: str | torch.device = "cpu", proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes that this process can still take on a device.

    On CUDA what the device has free, and what torch holds there without using it. On a CPU the least of what the system
    calls available, what the process's control groups (version 1 or 2, as containers and schedulers set them) leave,
    and what its limit of address space leaves; 1 GiB where a system says nothing.
    """
    device = torch.device(device)
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    found = [_available(proc), *_groups(proc, cgroup), _addresses(proc)]
    return max(0, min((one for one in found if one is not None), default=1 << 30))


def _room(device: str | torch.device) -> int:
    free = int(SHARE * free_memory(device))
    return min(free, ON_CPU) if torch.device(device).type == "cpu" else free


def _available(proc: Path) -> int | None:
    """What the system has available: Linux says it, other systems what is not in use at all."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _groups(proc: Path, root: Path) -> Iterator[int]:
    """What each control group of this process, and each above it, leaves of its limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        limit, used, cached = GROUP_1 if kinds else GROUP_2
        base = root / "memory" if kinds else root
        here = base / path.lstrip("/")
        for folder in (here, *here.parents):
            try:
                most, taken = (int((folder / name).read_text()) for name in (limit, used))
                stat = dict(one.split() for one in (folder / "memory.stat").read_text().splitlines())
                yield most - taken + int(stat.get(cached, 0))
            except (OSError, ValueError):  # no such group, or one without a limit ("max")
                pass
            if folder == base:
                break


def _addresses(proc: Path) -> int | None:
    """What the limit of this process's address space leaves, if it has one."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return None
        return limit - int((proc / "self" / "statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError):  # a system without limits
        return None


# --- stitching --------------------------------------------------------------------------------------------------------

LEVELS = {torch.uint8: 255, torch.uint16: 65535}
Box = tuple[int, int, int, int]
"""A rectangle of LR pixels: top, left, bottom, right."""


class _Axis(NamedTuple):
    """One axis of an image: its side before and after."""

    side: int
    large: int

    def first(self, edge: int) -> int:
        """How many output pixels have their centres before the LR pixel ``edge``."""
        return -((self.side - 2 * edge * self.large) // (2 * self.side))

    def span(self, start: int, end: int) -> slice:
        """The output pixels from one LR pixel up to another, counted from those of LR pixel 0."""
        return slice(self.first(start), self.first(end))

    def ramp(self, piece: Piece) -> Tensor:
        """The weights (n) of the output pixels in which a tile fades in."""
        inside = self.span(piece.begin, piece.full)
        place = (torch.arange(inside.start, inside.stop, dtype=torch.float64) + 0.5) * self.side / self.large
        return torch.sin((place - piece.begin) / max(1, piece.full - piece.begin) * (math.pi / 2)).square().float()


class Bands:
    """The bands of one image, as ``bands`` says; to be gone through once, and then ``used`` is how they were made and
    ``count`` of how many tiles."""

    def __init__(
        self,
        upscale: Callable[..., Tensor],
        lr: Tensor,
        scale: float,
        plan: Plan,
        device: torch.device,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        if not isinstance(lr, Tensor) or lr.ndim != 3 or lr.shape[0] != 3 or not lr.numel():
            raise InputError(
                f"tiles are cut from one image (3, h, w), not from {_described(lr)}; give images one by one"
            )
        if lr.dtype not in LEVELS and not lr.is_floating_point():
            raise InputError(f"tiles are cut from uint8, uint16 or floating point, not {lr.dtype}; convert the image")
        _check(lr.shape[1:], scale, None, plan.tile, plan.overlap)
        _check_upscaler(upscale)
        if plan.tile is not None and not _tileable(upscale, scale):
            raise InputError(f"scale {scale:g} puts no tile on the output's pixels: give a network for every scale")
        self.upscale, self.lr, self.scale, self.device, self.progress = upscale, lr, scale, device, progress
        self.plan, self.overlap = plan, OVERLAP if plan.tile is None else plan.overlap
        self.rows, self.columns = (_Axis(side, max(1, round(side * scale))) for side in lr.shape[1:])
        self.box: Box = (0, 0, *lr.shape[1:])
        self.limit: int | None = None  # half of what the memory has proved too small for
        self.count = 0

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        if self.plan.tile is None:
            yield 0, self.whole().cpu()
        else:
            yield from self.bands()

    @property
    def used(self) -> Plan:
        """How the image was enlarged indeed."""
        if self.limit is None:
            return self.plan
        return Plan(min(self.limit, self.plan.tile or self.limit), self.overlap)

    def whole(self) -> Tensor:
        """The output of the image without tiles, as ``made`` gives it."""
        sr = self.made(self.box)
        if self.progress:
            self.progress(1, 1)
        return sr

    def bands(self) -> Iterator[tuple[int, Tensor]]:
        """The bands of the whole image."""
        return self.part(self.box, self.plan.tile, self.progress)

    def part(
        self, box: Box, tile: int, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """The bands of a part of the image, in tiles."""
        top, left, bottom, right = box
        down, across = (pieces(*edges, tile, self.overlap) for edges in ((top, bottom), (left, right)))
        done, faded = 0, None
        width = self.columns.span(left, right)
        for number, row in enumerate(down):
            used = self.rows.span(row.begin, row.until)
            band = torch.empty(3, used.stop - used.start, width.stop - width.start)
            for column in across:
                made = self.made((row.start, column.start, row.end, column.end))
                first = used.start - self.rows.first(row.start)
                self.paste(band, made[:, first : first + band.shape[1]].cpu(), column, width.start)
                done += 1
                if progress:
                    progress(done, len(down) * len(across))
            if faded is not None:
                mixed = band[:, : faded.shape[1]]
                mixed.copy_(faded.lerp(mixed, self.rows.ramp(row)[:, None]))
            ready = used.stop if row is down[-1] else self.rows.first(down[number + 1].begin)
            faded = band[:, ready - used.start :].clone()
            yield used.start, band[:, : ready - used.start]

    def paste(self, band: Tensor, part: Tensor, column: Piece, left: int) -> None:
        """Put a tile's result, whose rows are the band's, into its columns; ``left`` is the band's first."""
        fading, own = self.columns.span(column.begin, column.full), self.columns.span(column.full, column.until)
        first = self.columns.first(column.start)
        band[..., own.start - left : own.stop - left] = part[..., own.start - first : own.stop - first]
        if fading.stop > fading.start:
            mixed = band[..., fading.start - left : fading.stop - left]
            coming = part[..., fading.start - first : fading.stop - first]
            mixed.copy_(mixed.lerp(coming, self.columns.ramp(column)))

    def made(self, box: Box) -> Tensor:
        """The output (3, n, m) of a part of the image; in smaller tiles, and then on the CPU, where memory is short."""
        side = max(box[2] - box[0], box[3] - box[1])
        if self.limit is None or side <= self.limit:
            try:
                return self.computed(box)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
            self.halve(side)
        return torch.cat([rows for _, rows in self.part(box, self.limit)], 1)

    def computed(self, box: Box) -> Tensor:
        """What the upscaler makes of a part of the image, on its device."""
        top, left, bottom, right = box
        part = self.lr[:, top:bottom, left:right].to(self.device)
        part = part[None].to(torch.float32) / LEVELS.get(part.dtype, 1)
        rows, columns = self.rows.span(top, bottom), self.columns.span(left, right)
        window = None if box == self.box else getattr(self.upscale, "window", None)
        with torch.inference_mode(), evaluation_mode(self.upscale):
            if window is None:
                sr = self.upscale(part)
            else:
                sr = window(part, (top, left), tuple(self.lr.shape[1:]), rows, columns)
        wanted = (rows.stop - rows.start, columns.stop - columns.start)
        slack = 0 if _tileable(self.upscale, self.scale) else 1  # of an image at another scale, some round sides up
        got = tuple(sr.shape) if isinstance(sr, Tensor) else ()
        if got[:2] != (1, 3) or any(abs(a - b) > slack for a, b in zip(got[2:], wanted, strict=True)):
            raise InputError(
                f"the upscaler made {_described(sr)} of {tuple(part.shape)}, not {(1, 3, *wanted)}; use one for scale "
                f"{self.scale:g}"
            )
        self.count += 1
        return sr[0].float()

    def halve(self, side: int) -> None:
        """Go on with tiles of half of ``side``."""
        limit = -(-side // (2 * ALIGN)) * ALIGN
        if limit >= side or limit < max(SMALLEST, 2 * self.overlap) or not _tileable(self.upscale, self.scale):
            raise InputError(
                f"the memory of {self.device} is too small for {side} x {side} pixels: close other programs, or use "
                "another device"
            ) from None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(f"out of memory at {side} x {side} pixels: going on in tiles of {limit}", stacklevel=2)
        self.limit = limit


@contextmanager
def evaluation_mode(upscale: object) -> Iterator[None]:
    """Evaluation mode for a network and its parts, each put back afterwards; nothing for any other callable."""
    modules = list(upscale.modules()) if isinstance(upscale, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether a device had no room; a CPU has no exception of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _eight_bits(image: Tensor) -> Tensor:
    """Values in [0, 1] as whole numbers of 255, in 16 bits so that they can be subtracted."""
    return (image * 255).round().clamp(0, 255).to(torch.int16)


def _tileable(upscale: object, scale: float) -> bool:
    """Whether tiles' results lie on the whole output's pixels: at whole scales, or where the upscaler sees to it."""
    return float(scale).is_integer() or hasattr(upscale, "window")


def _described(thing: object) -> str:
    return str(tuple(thing.shape)) if isinstance(thing, Tensor) else type(thing).__name__


def _check_upscaler(upscale: object) -> None:
    config = getattr(upscale, "config", None)
    if config is not None and getattr(config, "scale", None) is None:
        raise InputError("a network for every scale needs to be told one: give srlib.evaluate.AtScale(network, scale)")


def check_settings(tile: int | None, overlap: int | None) -> None:
    """Raise InputError for a tile or an overlap, in LR pixels, that can't be; None is left to ``plan``."""
    if tile is not None and tile != 0 and tile < ALIGN:
        raise InputError(
            f"a tile of {tile} pixels is too small to be enlarged alone: give {ALIGN} or more, or 0 for none"
        )
    if tile == 0 and overlap:
        raise InputError("tile 0 is the whole image, without overlap: leave the overlap out, or give a tile")
    most = (tile or LARGEST) // 2
    if overlap is not None and not 0 <= overlap <= most:
        raise InputError(f"an overlap of {overlap} pixels is not from 0 to half a tile: give up to {most}")


def _check(size: tuple[int, ...], scale: float, memory: int | None, tile: int | None, overlap: int | None) -> None:
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"an image of {size} has no pixels; give a height and a width from 1 up")
    if not math.isfinite(scale) or scale <= 0:
        raise InputError(f"scale {scale!r} is not positive; give a number above 0")
    if memory is not None and memory < 1:
        raise InputError(f"{memory} bytes of memory hold nothing; give more")
    check_settings(tile, overlap)
