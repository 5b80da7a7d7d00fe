"""Local attribution maps: which LR pixels a patch of the output rests on (LAM; Gu and Dong, CVPR 2021).

A detector D measures a feature in a patch of the output: by default the sum of its gradients' magnitudes. The path
gamma leads from a blurred LR image gamma(0) to the image itself, gamma(1). An LR pixel's attribution is its part of the
path integral, and the parts add up to what the detector gains along the path::

    LAM_i = integral over alpha from 0 to 1 of  dD(F(gamma)) / dgamma_i  dgamma_i / dalpha  dalpha

F is any differentiable callable that enlarges float images (B, 3, h, w) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.errors import InputError
from srlib.resize import enlarged_size

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Upscale = Callable[[Tensor], Tensor]
Detector = Callable[[Tensor, Box], Tensor]  # output images (B, 3, H, W) and the patch to one number an image, (B,)

SIGMA, KERNEL = 1.2, 9  # of the blur, in LR pixels, as in the authors' code
GROWTH = 1.5  # of steps along the path; 1 makes them even


@dataclass(frozen=True)
class Attribution:
    """What each LR pixel contributes: ``values`` (3, h, w), signed, float64 on the CPU. ``patch`` is in pixels of the
    output; ``detected`` are the detector's answers at the start and the end of the path."""

    values: Tensor
    patch: Box
    scale: float
    detected: tuple[float, float]

    @property
    def strength(self) -> Tensor:
        """The sum over channels of the absolute values, (h, w)."""
        return self.values.abs().sum(0)

    @property
    def shares(self) -> Tensor:
        """``strength`` as shares of its sum; NaN where a map is 0 everywhere."""
        return self.strength / self.strength.sum()

    @property
    def completeness(self) -> float:
        """The sum of the values over the detector's gain: 1 but for few steps' error and for jumps of the network; NaN
        where there is none."""
        return (self.values.sum() / (self.detected[1] - self.detected[0])).item()

    @property
    def diffusion_index(self) -> float:
        """The index (1 - G) 100, G the Gini coefficient of ``strength``: 100 for an even map, 100 / n where one of n
        pixels holds everything, NaN where it is 0 everywhere. Only maps of as many pixels compare."""
        ordered = self.shares.flatten().sort().values
        rank = torch.arange(1, len(ordered) + 1, dtype=torch.float64)
        return 100 * (1 - ((2 * rank - len(ordered) - 1) * ordered).sum().item() / len(ordered))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The patch in LR pixels: top, left, height, width."""
        top, left, height, width = (side / self.scale for side in self.patch)
        return top, left, height, width

    @property
    def distances(self) -> Tensor:
        """The distance of each LR pixel's centre from the patch in LR pixels, (h, w): 0 inside it."""
        top, left, height, width = self.box
        y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in self.strength.shape)
        down = torch.maximum(top - y, y - top - height).clamp_min(0)
        across = torch.maximum(left - x, x - left - width).clamp_min(0)
        return torch.hypot(down[:, None], across)

    def beyond(self, radius: float) -> float:
        """The share of ``strength`` that lies further than ``radius`` LR pixels from the patch."""
        return self.shares[self.distances > radius].sum().item()

    def reach(self, share: float = 0.99) -> float:
        """Within how many LR pixels of the patch at least this ``share`` of ``strength`` lies."""
        distance, order = self.distances.flatten().sort()
        gathered = self.shares.flatten()[order].cumsum(0)
        return distance[torch.searchsorted(gathered, share - 1e-12).clamp_max(len(distance) - 1)].item()


def gradients(sr: Tensor, patch: Box) -> Tensor:
    """The paper's detector: the sum over the patch and its channels of the gradient's magnitude, (B,).

    The gradient is the pair of differences to the pixels below and on the right, 0 beyond the image's border. Where it
    is 0, so is the derivative of its magnitude.
    """
    top, left, height, width = patch
    part = sr[..., top : top + height + 1, left : left + width + 1]
    part = F.pad(part, (0, width + 1 - part.shape[-1], 0, height + 1 - part.shape[-2]), mode="replicate")
    down, right = part.diff(dim=-2)[..., :width], part.diff(dim=-1)[..., :height, :]
    return torch.linalg.vector_norm(torch.stack([down, right]), dim=0).sum((1, 2, 3))


def attribute(
    upscale: Upscale, lr: Tensor, patch: Box, scale: float, *, detector: Detector = gradients, steps: int = 8
) -> Attribution:
    """The local attribution map of a ``patch`` of the output for one image ``lr``: (3, h, w), float, 5x5 or larger.

    The path is walked in ``steps`` straight edges, short at the blurred end, where detectors bend most. The gradient in
    the middle of each times the edge is exact up to second order. (The authors' code takes 50 even steps, with the
    gradient at their ends.) A network should be in evaluation mode. Its decisions, such as which expert to take, are
    not differentiated. Raises ``InputError`` for other images, a patch or a scale that isn't the output's, and an
    upscaler that passes no gradient.
    """
    if lr.ndim != 3 or len(lr) != 3 or min(lr.shape[1:]) < 5 or not lr.is_floating_point():
        raise InputError(f"give a float image (3, h, w) of 5x5 or more, not {lr.dtype} of shape {tuple(lr.shape)}")
    size, (top, left, height, width) = enlarged_size(lr.shape[1:], scale), patch
    if min(top, left, height - 1, width - 1) < 0 or top + height > size[0] or left + width > size[1]:
        raise InputError(f"patch {patch} leaves the output of {size[0]} x {size[1]}; give (top, left, height, width)")

    def detect(image: Tensor) -> Tensor:
        sr = upscale(image[None])
        if sr.shape[-2:] != size:
            raise InputError(f"the upscaler made {tuple(sr.shape)} of {tuple(image.shape)}, which isn't x{scale:g}")
        if image.requires_grad and not sr.requires_grad:
            raise InputError("the upscaler passes no gradient on to its image: give a differentiable one")
        return detector(sr, patch)

    points = _path(steps)
    with torch.inference_mode(False), torch.enable_grad():
        image = lr.detach().clone()
        values = torch.zeros(image.shape, dtype=torch.float64, device=image.device)
        for start, end in pairwise(points):
            middle = _blurred(image, (start + end) / 2).to(image.dtype).requires_grad_()
            values += torch.autograd.grad(detect(middle), middle)[0].double() * _blurred(image, end - start)
        with torch.no_grad():
            first, last = (detect(_blurred(image, point).to(image.dtype)).item() for point in points[[0, -1]])
    return Attribution(values.cpu(), patch, scale, (first, last))


def _path(steps: int) -> Tensor:
    """The blur kernels (steps + 1, 9, 9) of points along the path. The way covered, by how far the kernel moves, grows
    as a power of the step's number: even steps in alpha would hardly move in the end."""
    sigmas = torch.linspace(SIGMA, 0, 4001, dtype=torch.float64)
    offset = torch.arange(KERNEL, dtype=torch.float64) - KERNEL // 2
    line = torch.exp(-((offset / sigmas[:, None].clamp_min(1e-3)) ** 2) / 2)
    line = line / line.sum(1, keepdim=True)
    kernels = line[:, :, None] * line[:, None]
    covered = F.pad(kernels.diff(dim=0).flatten(1).norm(dim=1).cumsum(0), (1, 0))
    way = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** GROWTH
    return kernels[torch.searchsorted(covered, way * covered[-1]).clamp_max(len(kernels) - 1)]


def _blurred(image: Tensor, kernel: Tensor) -> Tensor:
    """An image (3, h, w) through a kernel (9, 9), its border mirrored: float64."""
    padded = F.pad(image.double()[:, None], (KERNEL // 2,) * 4, mode="reflect")
    return F.conv2d(padded, kernel[None, None].to(padded))[:, 0]


def upscaler(network: Any, scale: float, patch: Box) -> Upscale:
    """``network`` as an upscaler for ``attribute``: itself, but of a network for every scale no more is computed than
    the patch and the row and the column after it, which ``gradients`` reads; the rest of the output is 0."""
    if not hasattr(network, "render"):
        return network
    top, left, height, width = patch
    rows, columns = slice(top, top + height + 1), slice(left, left + width + 1)

    def at_patch(lr: Tensor) -> Tensor:
        size = enlarged_size(lr.shape[-2:], scale)
        sr = lr.new_zeros(len(lr), 3, *size)
        sr[..., rows, columns] = network.render(lr, (0, 0), lr.shape[-2:], size, rows, columns)
        return sr

    return at_patch


@contextmanager
def blocked(modules: Iterable[nn.Module]) -> Iterator[None]:
    """No gradient passes through these modules' outputs, so that a map lacks what came through them."""
    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(lambda module, inputs, output: output.detach()))
        yield


class Window(NamedTuple):
    """A square of an image in LR and in HR pixels, and the patch in its middle, in HR pixels from its corner."""

    lr: Box
    hr: Box
    patch: Box


def crop(image: Tensor, box: Box) -> Tensor:
    """A box of an image (..., H, W)."""
    top, left, height, width = box
    return image[..., top : top + height, left : left + width]


def busiest(hr: Tensor, size: tuple[int, int], step: int = 4) -> Box:
    """The box of ``size`` (height, width) of an image (3, H, W) with the largest gradient energy: the mean squared
    difference to the pixels below and on the right, of the mean of the channels. It starts at multiples of ``step``."""
    grey = hr.double().mean(0, keepdim=True)
    down, right = F.pad(grey.diff(dim=1), (0, 0, 0, 1)), F.pad(grey.diff(dim=2), (0, 1))
    energy = F.avg_pool2d(down**2 + right**2, size, stride=step)[0]
    row, column = divmod(int(energy.argmax()), energy.shape[1])
    return step * row, step * column, *size


def window(hr: Tensor, scale: int) -> Window:
    """A window of 64 LR pixels a side inside an HR image (3, H, W), about the busiest square of 16 HR pixels a side.
    Raises ``InputError`` for a smaller image."""
    before, side = (64 - 16 // scale) // 2, 64 * scale  # before: LR pixels from the window's corner to its patch
    if min(hr.shape[1:]) < side:
        raise InputError(f"a window at x{scale} needs {side} x {side} pixels: give more than {tuple(hr.shape[1:])}")
    after = side - 16 - scale * before  # in HR pixels
    inner = hr[:, scale * before : hr.shape[1] - after, scale * before : hr.shape[2] - after]
    top, left = busiest(inner, (16, 16), scale)[:2]  # the window's own corner, as just that much was cut off
    lr = (top // scale, left // scale, 64, 64)
    return Window(lr, (top, left, side, side), (scale * before, scale * before, 16, 16))
