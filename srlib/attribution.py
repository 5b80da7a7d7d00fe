"""Local attribution maps: which LR pixels a patch of the enlarged image rests on (Gu and Dong, CVPR 2021).

A detector D says how much of a feature there is in a patch of the output: by default the sum of its gradients'
magnitudes. The path gamma leads from a blurred LR image gamma(0) = I', which holds none of the detail, to the image
gamma(1) = I itself. What an LR pixel contributes is its part of the path integral::

    LAM_i = integral over alpha from 0 to 1 of  dD(F(gamma)) / dgamma_i  dgamma_i / dalpha  dalpha,

and the parts add up to D(F(I)) - D(F(I')), all that the detector gains on the way. How evenly a map is spread over the
LR image is its diffusion index. F is any callable that enlarges images (B, 3, h, w): a network for one scale, one for
every scale through ``AtPatch`` or ``srlib.evaluate.AtScale``, or bicubic interpolation as ``srlib.resize.imresize``
does it on floats, unrounded.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.errors import InputError

Box = tuple[int, int, int, int]
"""A rectangle of pixels: top, left, height, width."""

Detector = Callable[[Tensor, Box], Tensor]
"""What looks for a feature: output images (B, 3, H, W) and the patch in their pixels to one number an image, (B,)."""

SIGMA = 1.2  # LR pixels; this, the kernel's size and the number of steps are those of the authors' released code
KERNEL = 9
STEPS = 50
ON_CPU = 1 << 28  # bytes kept for gradients at once: larger batches are no faster there
ELSEWHERE = 1 << 31
GROWTH = 1.5
FINE = 4000  # points by which the way along the path is measured


@dataclass(frozen=True)
class Attribution:
    """What each LR pixel contributes to what a detector finds in a patch of the output.

    ``values`` (3, h, w), float64 on the CPU, are signed. ``patch`` is in pixels of the output, which has ``scale``
    times the LR image's size; ``found`` are the detector's answers at the path's start and end.
    """

    values: Tensor
    patch: Box
    scale: float
    found: tuple[float, float]

    @property
    def strength(self) -> Tensor:
        """How much a pixel contributes either way, (h, w): the sum over its channels of the absolute values."""
        return self.values.abs().sum(0)

    @property
    def peak(self) -> float:
        """The largest share, above 0 and up to 1, of ``strength`` that one pixel holds."""
        return _shares(self.strength).max().item()

    @property
    def completeness(self) -> float:
        """The sum of the attributions over what the detector gained from start to end: 1 where nothing is missing.

        Too few steps move it from 1, and so does a network that jumps along the path, as gradients don't see a jump.
        Raises InputError where the detector gained nothing.
        """
        change = self.found[1] - self.found[0]
        if change == 0:
            raise InputError("the detector finds as much at the path's start as at its end; choose a patch with detail")
        return self.values.sum().item() / change

    @property
    def diffusion_index(self) -> float:
        """The diffusion index of ``strength``; see the function of that name."""
        return diffusion_index(self.strength)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The patch in LR pixels: top, left, height, width."""
        top, left, tall, wide = (side / self.scale for side in self.patch)
        return top, left, tall, wide

    @property
    def distances(self) -> Tensor:
        """How far each LR pixel's centre lies from the patch, (h, w), in LR pixels: 0 inside it."""
        top, left, tall, wide = self.box
        away = []
        for side, start, length in zip(self.values.shape[1:], (top, left), (tall, wide), strict=True):
            centre = torch.arange(side, dtype=torch.float64) + 0.5
            away.append(torch.maximum(start - centre, centre - start - length).clamp_min(0))
        return torch.hypot(away[0][:, None], away[1][None])

    def within(self, radius: float) -> float:
        """The share, from 0 to 1, of ``strength`` that lies no further than ``radius`` LR pixels from the patch."""
        return _shares(self.strength)[self.distances <= radius].sum().item()

    def beyond(self, radius: float) -> float:
        """The rest: the share of ``strength`` that lies further than ``radius`` LR pixels from the patch."""
        return _shares(self.strength)[self.distances > radius].sum().item()

    def reach(self, share: float = 0.9) -> float:
        """Within how many LR pixels of the patch at least this ``share`` of ``strength`` lies.

        Raises InputError for a share outside (0, 1].
        """
        _check_share(share)
        distance, order = self.distances.flatten().sort()
        gathered = _shares(self.strength).flatten()[order].cumsum(0)
        return distance[_first(gathered, share)].item()

    def area(self, share: float = 0.9) -> int:
        """How many pixels it takes at the least to hold this ``share`` of ``strength``.

        Raises InputError for a share outside (0, 1].
        """
        _check_share(share)
        return 1 + _first(_shares(self.strength).flatten().sort(descending=True).values.cumsum(0), share)


@dataclass(frozen=True)
class Window:
    """A patch of an HR image and the part of the image around it that a map is made on.

    ``corner`` is the top and the left of that part in LR pixels, ``side`` its height and width in LR pixels, ``patch``
    the patch in HR pixels counted from that corner.
    """

    corner: tuple[int, int]
    side: int
    patch: Box
    scale: int

    def cut(self, image: Tensor, scale: int = 1) -> Tensor:
        """This part of an LR image (..., h, w), or with ``scale`` of an image that is so many times larger."""
        top, left = (scale * start for start in self.corner)
        return image[..., top : top + scale * self.side, left : left + scale * self.side]

    def inside(self, image: Tensor) -> Tensor:
        """The patch of an image (..., H, W) that this part was enlarged to, or that was cut out of HR."""
        top, left, tall, wide = self.patch
        return image[..., top : top + tall, left : left + wide]

    @property
    def place(self) -> Box:
        """The patch in HR pixels of the whole image."""
        top, left, tall, wide = self.patch
        return top + self.scale * self.corner[0], left + self.scale * self.corner[1], tall, wide


class AtPatch(nn.Module):
    """A network for every scale as an upscaler for ``attribute`` that answers for a patch alone, which is much faster.

    LR (B, 3, h, w) to (B, 3, H, W), the sides times the scale and rounded. The patch and the row and the column after
    it, which ``gradients`` looks at, are as ``srlib.evaluate.AtScale`` gives them; the rest is 0. The network takes
    ``coord`` and ``cell`` and returns its answers as ``rgb`` in [-1, 1], as ``srlib.models.moeisr`` has it.
    """

    def __init__(self, network: nn.Module, scale: float, patch: Box) -> None:
        """Raises InputError for a scale that is not positive; ``forward`` does for a patch that leaves the output."""
        super().__init__()
        if not math.isfinite(scale) or scale <= 0:
            raise InputError(f"scale {scale!r} is not positive; give a number above 0")
        self.network, self.scale, self.patch = network, scale, patch

    def forward(self, lr: Tensor) -> Tensor:
        batch, sizes = len(lr), [max(1, round(side * self.scale)) for side in lr.shape[-2:]]
        _check_patch(self.patch, *sizes)
        ends = zip(self.patch[:2], self.patch[2:], sizes, strict=True)
        rows, columns = (torch.arange(start, min(start + side + 1, end)) for start, side, end in ends)
        places = [(2 * axis + 1) / side - 1 for axis, side in zip((rows, columns), sizes, strict=True)]
        coord = torch.stack(torch.meshgrid(*places, indexing="ij"), -1).flatten(0, 1).to(lr)  # (Q, 2)
        cell = lr.new_tensor([[2 / side for side in sizes]]).expand(batch, -1)
        answers = self.network(lr, coord=coord.expand(batch, -1, -1), cell=cell).rgb * 0.5 + 0.5  # (B, Q, 3)
        sr = answers.new_zeros(batch, 3, *sizes)
        sr[:, :, rows[:, None], columns] = answers.mT.unflatten(2, (len(rows), len(columns)))
        return sr


def upscaler(network: Callable[..., Tensor], scale: float, patch: Box) -> Callable[[Tensor], Tensor]:
    """``network`` as an upscaler for ``attribute``: ``AtPatch`` if it is one whose configuration has no scale, else
    itself."""
    config = getattr(network, "config", None)
    every_scale = config is not None and getattr(config, "scale", None) is None
    return AtPatch(network, scale, patch) if every_scale else network


@contextmanager
def blocked(modules: Iterable[nn.Module]) -> Iterator[None]:
    """No gradient passes through what these modules put out: a map that is made meanwhile lacks what came through them.

    The output stays what it is, so that the difference to the whole map is what a detector gained by way of these
    modules. Their outputs are tensors.
    """
    hooks = [module.register_forward_hook(lambda module, inputs, output: output.detach()) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def attribute(
    upscale: Callable[[Tensor], Tensor],
    lr: Tensor,
    patch: Box,
    scale: float,
    *,
    detector: Detector | None = None,
    path: Literal["blur", "straight"] = "blur",
    sigma: float = SIGMA,
    kernel: int = KERNEL,
    steps: int = STEPS,
    memory: int | None = None,
    batch: int | None = None,
) -> Attribution:
    """The local attribution map of a patch: what each pixel of ``lr`` contributes to what ``detector`` finds there.

    ``upscale`` takes float images in [0, 1], (B, 3, h, w) on the device of ``lr``, and returns (B, 3, H, W), ``scale``
    times as large, each image for itself; ``lr`` is one such image, (3, h, w) or (1, 3, h, w); ``patch`` is (top, left,
    height, width) in pixels of the output. ``detector`` is ``gradients`` when it is None.

    The path blurs the image by a Gaussian of ``kernel`` x ``kernel`` pixels, its standard deviation falling from
    ``sigma`` LR pixels to 0 ("blur", the paper's), or mixes the blurred image and the image linearly ("straight"). It
    is walked as a polygon of ``steps`` edges, the gradient taken in the middle of each and multiplied with the edge,
    which is exact up to second order. As the integral doesn't depend on how fast the path is walked, the edges are
    short at the blurred end, where a detector's answer bends most, and grow along the way. (The release spaces them
    evenly in alpha, takes the gradient at each one's end, and a first difference for the derivative.)

    Gradients pass through what a network computes and not through what it decides: the weight that SeemoRe's router
    gives to an expert is differentiated, which expert it takes is not; MoEISR's mapper only decides, and so contributes
    nothing itself. A decision that changes along the path is a jump; ``Attribution.completeness`` tells.

    As many steps are computed at once as keep no more than ``memory`` bytes for their gradients, but at least one; the
    first step is computed alone, to measure that. None is a quarter of a GiB on a CPU and 2 GiB elsewhere. ``batch``
    sets their number instead. A network is put into evaluation
    mode meanwhile and its parameters take no gradients; modes, flags and gradients are left as they were found.

    Raises InputError for an image, patch, scale or setting that can't be, for an upscaler that lets no gradient
    through, and for a result or gradient that isn't finite, with the step at which it comes.
    """
    _check_settings(path, sigma, kernel, steps, memory, batch)
    image = _checked_image(lr)
    detector = gradients if detector is None else detector
    with _at_rest(upscale), torch.inference_mode(False), torch.enable_grad():
        image = image.detach().clone()
        points = _points(path, sigma, kernel, steps)
        middles, edges = (points[1:] + points[:-1]) / 2, points[1:] - points[:-1]
        total = torch.zeros(image.shape, dtype=torch.float64, device=image.device)
        done, at_once = 0, batch or 1
        while done < steps:
            some = slice(done, done + at_once)
            images = _filtered(image, middles[some]).to(image.dtype)
            with _measured(upscale) as kept:
                gradient = _gradient(upscale, images, patch, scale, detector, done, steps)
            total += (gradient.double() * _filtered(image, edges[some])).sum(0)
            if batch is None and done == 0:
                room = memory or (ON_CPU if image.is_cpu else ELSEWHERE)
                at_once = max(1, room // max(1, sum(kept.values())))
            done += len(images)
        with torch.no_grad():
            ends = torch.cat([_filtered(image, points[[0]]).to(image.dtype), image[None]])
            found = [_detected(upscale, end[None], patch, scale, detector, "at one end").item() for end in ends]
    return Attribution(total.cpu(), patch, scale, (found[0], found[1]))


def gradients(sr: Tensor, patch: Box) -> Tensor:
    """The paper's detector: the sum over the patch and its channels of the gradient's magnitude, (B,).

    The gradient is the pair of differences to the pixels below and on the right, 0 beyond the image's border. Where it
    is 0, the derivative of its magnitude is taken for 0. (It has none there; the release's square root gives a NaN,
    which the release replaces by 0.)
    """
    top, left, tall, wide = patch
    part = sr[..., top : top + tall + 1, left : left + wide + 1]
    part = F.pad(part, (0, wide + 1 - part.shape[-1], 0, tall + 1 - part.shape[-2]), mode="replicate")
    down, across = part.diff(dim=-2)[..., :wide], part.diff(dim=-1)[..., :tall, :]
    return torch.linalg.vector_norm(torch.stack([down, across]), dim=0).sum((1, 2, 3))


def diffusion_index(strength: Tensor) -> float:
    """The diffusion index (1 - G) 100 of a map of any shape, where G is its ``gini`` coefficient.

    100 for an even map, 100 / n where one of n pixels holds everything. Maps compare at the same number of pixels only.
    """
    return 100 * (1 - gini(strength))


def gini(values: Tensor) -> float:
    """The Gini coefficient of values from 0 up, of any shape: half their mean absolute difference over their mean.

    0 where all are equal, (n - 1) / n where one of n holds everything. Raises InputError for no values, a negative one,
    one that isn't finite, and where all are 0.
    """
    ordered = _shares(values).flatten().sort().values
    count = len(ordered)
    place = torch.arange(1, count + 1, dtype=torch.float64)
    return ((2 * place - count - 1) * ordered).sum().item() / count


def windows(
    hr: Tensor, scale: int, *, count: int = 3, patch: int = 16, side: int = 64, apart: int = 64, margin: int = 32
) -> tuple[Window, ...]:
    """The ``count`` square patches of an HR image (3, H, W) with the largest gradient energy, strongest first.

    Gradient energy is the sum over a patch of the squared differences of neighbouring pixels, mean over channels. A
    patch has ``patch`` HR pixels a side and starts at an LR pixel's corner; patches lie ``apart`` HR pixels from each
    other, down or across, from corner to corner, and ``margin`` pixels or more from the image's border. Around each
    ``side`` x ``side`` LR pixels are cut out, with the patch in the middle or, near the border, as near to it as can
    be.

    Raises InputError for an image that is smaller than that or has no room for so many.
    """
    height, width = (length // scale for length in hr.shape[-2:])
    if min(height, width) < side or not 0 < patch <= side * scale:
        raise InputError(
            f"an image of {hr.shape[-2]} x {hr.shape[-1]} has no patch of {patch} in {side * scale} x {side * scale}; "
            "give a larger image, a smaller side or a smaller patch"
        )
    grey = hr[:, : height * scale, : width * scale].double().mean(0, keepdim=True)
    down, across = F.pad(grey.diff(dim=1), (0, 0, 0, 1)), F.pad(grey.diff(dim=2), (0, 1))
    energy = F.avg_pool2d(down**2 + across**2, patch, stride=scale)[0]
    rows, columns = (scale * torch.arange(length, device=hr.device) for length in energy.shape)
    for places, length in ((rows[:, None], height), (columns[None], width)):
        energy = energy.where((places >= margin) & (places <= scale * length - margin - patch), -1)
    found = []
    for _ in range(count):
        place = int(energy.argmax())
        top, left = scale * (place // energy.shape[1]), scale * (place % energy.shape[1])
        if energy[top // scale, left // scale] < 0:
            raise InputError(
                f"an image of {hr.shape[-2]} x {hr.shape[-1]} has no room for {count} patches {apart} pixels apart; ask"
                " for fewer, or nearer to each other"
            )
        near = ((rows - top).abs() < apart)[:, None] & ((columns - left).abs() < apart)
        energy[near] = -1
        corner = [
            min(max((2 * start + patch) // (2 * scale) - side // 2, 0), length - side)
            for start, length in ((top, height), (left, width))
        ]
        inside = (top - scale * corner[0], left - scale * corner[1], patch, patch)
        found.append(Window((corner[0], corner[1]), side, inside, scale))
    return tuple(found)


# --- the path ---------------------------------------------------------------------------------------------------------


def _points(path: str, sigma: float, size: int, steps: int) -> Tensor:
    """The kernels (steps + 1, size, size) that make the path's points of the image, from start to end.

    The part of the way that is left behind, by how far the kernel moves, grows as the power ``GROWTH`` of the step's
    number. (By even steps in alpha one would hardly move in the end, as the kernel's centre takes up nearly all the
    weight long before the blur is gone.)
    """
    way = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** GROWTH
    alpha = torch.linspace(0, 1, FINE + 1, dtype=torch.float64)
    kernels = _gaussians(sigma * (1 - alpha), size)
    if path == "straight":
        return torch.lerp(kernels[0], kernels[-1], way[:, None, None])
    moved = F.pad(kernels.diff(dim=0).flatten(1).norm(dim=1).cumsum(0), (1, 0))
    chosen = alpha[torch.searchsorted(moved, way * moved[-1]).clamp_max(FINE)]
    chosen[0], chosen[-1] = 0, 1
    return _gaussians(sigma * (1 - chosen), size)


def _gaussians(sigmas: Tensor, size: int) -> Tensor:
    """Gaussian kernels of these standard deviations, (n, size, size), each of sum 1; 0 gives the identity."""
    place = torch.arange(size, dtype=torch.float64) - size // 2
    line = torch.exp(-((place / sigmas[:, None].clamp_min(1e-3)) ** 2) / 2)
    line = line / line.sum(1, keepdim=True)
    return line[:, :, None] * line[:, None]


def _filtered(image: Tensor, kernels: Tensor) -> Tensor:
    """An image (3, h, w) through each of n kernels, the border mirrored: (n, 3, h, w), float64."""
    half = kernels.shape[-1] // 2
    padded = image.double()
    for axis in (1, 2):
        side = image.shape[axis]
        place = torch.arange(-half, side + half, device=image.device).abs() % max(1, 2 * side - 2)
        padded = padded.index_select(axis, torch.minimum(place, (2 * side - 2 - place).abs()))
    return F.conv2d(padded[:, None], kernels[:, None].to(padded)).transpose(0, 1)


# --- one batch of steps -----------------------------------------------------------------------------------------------


def _gradient(
    upscale: Callable[[Tensor], Tensor],
    images: Tensor,
    patch: Box,
    scale: float,
    detector: Detector,
    done: int,
    steps: int,
) -> Tensor:
    """The detector's derivative by each of the images, which are the steps after the first ``done``: (B, 3, h, w)."""
    images.requires_grad_()

    def where(finite: Tensor) -> str:
        return f"at step {done + 1 + int((~finite).flatten(1).any(1).nonzero()[0])} of {steps}"

    sr = _enlarged(upscale, images, scale)
    if not (finite := sr.isfinite()).all():
        raise InputError(f"the upscaler's output isn't finite {where(finite)}; look at its weights and at the image")
    found = _looked(detector, sr, patch)
    if not (finite := found.isfinite()).all():
        raise InputError(f"what the detector finds isn't finite {where(finite[:, None])}; look at the detector")
    gradient = None
    if found.requires_grad:
        gradient = torch.autograd.grad(found.sum(), images, allow_unused=True)[0]
    if gradient is None:
        raise InputError(
            "no gradient comes through upscaler and detector; give ones that are differentiable: for bicubic "
            "srlib.resize.imresize, as srlib.evaluate.bicubic rounds to 8 bits"
        )
    if not (finite := gradient.isfinite()).all():
        raise InputError(f"the gradient isn't finite {where(finite)}; look at what makes it so before you trust a map")
    return gradient


def _detected(
    upscale: Callable[[Tensor], Tensor], images: Tensor, patch: Box, scale: float, detector: Detector, where: str
) -> Tensor:
    """What the detector finds in the images' outputs, (B,), checked to be finite."""
    found = _looked(detector, _enlarged(upscale, images, scale), patch)
    if not found.isfinite().all():
        raise InputError(f"what the detector finds isn't finite {where} of the path; look at the upscaler's weights")
    return found


def _enlarged(upscale: Callable[[Tensor], Tensor], images: Tensor, scale: float) -> Tensor:
    sr = upscale(images)
    height, width = images.shape[-2:]
    if not isinstance(sr, Tensor) or sr.ndim != 4 or sr.shape[0] != len(images):
        got = tuple(sr.shape) if isinstance(sr, Tensor) else type(sr).__name__
        raise InputError(f"the upscaler made {got} of {tuple(images.shape)}; give one that returns images (B, 3, H, W)")
    if any(abs(large - scale * small) >= 1 for large, small in zip(sr.shape[-2:], (height, width), strict=True)):
        raise InputError(
            f"the upscaler made {sr.shape[-2]} x {sr.shape[-1]} of {height} x {width}, which isn't x{scale:g}; give "
            "the scale that it has"
        )
    return sr


def _looked(detector: Detector, sr: Tensor, patch: Box) -> Tensor:
    _check_patch(patch, *sr.shape[-2:])
    found = detector(sr, patch)
    if not isinstance(found, Tensor) or found.shape != sr.shape[:1]:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"the detector returned {got} for {len(sr)} images; give one that returns a number for each")
    return found


@contextmanager
def _at_rest(upscale: object) -> Iterator[None]:
    """Evaluation mode and parameters without gradients for a network, put back afterwards; nothing for other
    callables."""
    modules = list(upscale.modules()) if isinstance(upscale, nn.Module) else []
    parameters = list(upscale.parameters()) if isinstance(upscale, nn.Module) else []
    modes, flags = [module.training for module in modules], [one.requires_grad for one in parameters]
    try:
        for module in modules:
            module.training = False
        for one in parameters:
            one.requires_grad_(False)
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for one, flag in zip(parameters, flags, strict=True):
            one.requires_grad_(flag)


@contextmanager
def _measured(upscale: object) -> Iterator[dict[int, int]]:
    """The bytes that are kept for gradients, by where they lie, without a network's own tensors."""
    own = set()
    if isinstance(upscale, nn.Module):
        own = {t.untyped_storage().data_ptr() for t in (*upscale.parameters(), *upscale.buffers())}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        memory = x.untyped_storage()
        if memory.data_ptr() not in own:
            kept[memory.data_ptr()] = memory.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield kept


# --- checks -----------------------------------------------------------------------------------------------------------


def _checked_image(lr: Tensor) -> Tensor:
    """One LR image as (3, h, w)."""
    if not isinstance(lr, Tensor) or not lr.is_floating_point():
        kind = lr.dtype if isinstance(lr, Tensor) else type(lr).__name__
        raise InputError(f"attribution takes a float image in [0, 1], not {kind}; divide 8-bit values by 255")
    if lr.ndim == 4 and len(lr) == 1:
        lr = lr[0]
    if lr.ndim != 3 or lr.shape[0] != 3 or not lr.numel():
        raise InputError(f"attribution takes one image (3, h, w), not shape {tuple(lr.shape)}; give them one by one")
    if not lr.isfinite().all():
        raise InputError("the LR image holds values that aren't finite; look at what made it")
    return lr


def _check_settings(path: str, sigma: float, kernel: int, steps: int, memory: int | None, batch: int | None) -> None:
    if path not in ("blur", "straight"):
        raise InputError(f"no path {path!r}: choose blur or straight")
    if not math.isfinite(sigma) or sigma <= 0:
        raise InputError(f"sigma is {sigma!r}; give a number of LR pixels above 0")
    if not isinstance(kernel, int) or kernel < 3 or kernel % 2 == 0:
        raise InputError(f"the kernel's size is {kernel!r}; give an odd number from 3 up")
    for name, value in (("steps", steps), ("memory", memory), ("batch", batch)):
        if value is None and name != "steps":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; give a whole number from 1 up")


def _check_patch(patch: Box, height: int, width: int) -> None:
    top, left, tall, wide = patch
    if top < 0 or left < 0 or tall < 1 or wide < 1 or top + tall > height or left + wide > width:
        raise InputError(
            f"patch {patch} leaves the output of {height} x {width}; give (top, left, height, width) inside it"
        )


def _shares(values: Tensor) -> Tensor:
    """Values from 0 up as shares of their sum, float64 on the CPU."""
    values = values.detach().double().cpu()
    if not values.numel() or not values.isfinite().all() or (values < 0).any():
        raise InputError("a map without values, or with some that are negative or not finite; give absolute values")
    total = values.sum()
    if total == 0:
        raise InputError("a map that is 0 everywhere has no diffusion index; choose a patch with some detail")
    return values / total


def _first(gathered: Tensor, share: float) -> int:
    """Where growing shares reach ``share``, up to rounding."""
    return min(int(torch.searchsorted(gathered, share - 1e-12)), len(gathered) - 1)


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise InputError(f"share {share!r} isn't above 0 and up to 1; give 0.9 for nine tenths")
