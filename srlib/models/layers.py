"""What papers share: the check of a configuration and of a network's input, padding, and the layer norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.errors import InputError


@dataclass(frozen=True)
class Config:
    """Base of all networks' configurations: every field is checked against its annotation.

    ``int`` is a whole number from 1 up, ``float`` a finite number above 0, ``tuple[int, ...]`` one or more whole
    numbers (a list, as JSON has it, becomes a tuple); ``bool`` and ``Literal`` are what they say. ``InputError`` for
    any other value. A subclass adds what else must hold by ``require``, and ``build`` makes its network.
    """

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal:
                self.require(value in get_args(kind), name, f"choose one of: {', '.join(map(str, get_args(kind)))}")
            elif kind is bool:
                self.require(isinstance(value, bool), name, "give True or False")
            elif kind is int:
                self.require(_whole(value), name, "give a whole number from 1 up")
            elif kind is float:
                number = isinstance(value, int | float) and not isinstance(value, bool)
                self.require(number and 0 < value < math.inf, name, "give a number above 0")
            elif get_origin(kind) is tuple:
                whole = isinstance(value, list | tuple) and len(value) > 0 and all(map(_whole, value))
                self.require(whole, name, "give one or more whole numbers from 1 up")
                object.__setattr__(self, name, tuple(value))

    def require(self, holds: bool, name: str, advice: str) -> None:
        """Raise ``InputError`` about the field ``name`` unless what it needs ``holds``."""
        if not holds:
            raise InputError(f"{type(self).__name__} has {name}={getattr(self, name)!r}; {advice}")

    def build(self) -> nn.Module:
        """The network of this configuration, with fresh random weights."""
        raise NotImplementedError


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_images(x: Tensor) -> None:
    """Raise ``InputError`` unless ``x`` is a batch of RGB images, (B, 3, H, W) with at least one pixel."""
    if x.ndim != 4 or x.shape[1] != 3 or not x.numel():
        raise InputError(f"a network got a tensor of shape {tuple(x.shape)}; give a batch of RGB images (B, 3, H, W)")


def pad_reflect(x: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) by reflection at the bottom and at the right, so that H and W become multiples of ``multiple``.

    An image too small for one reflection is reflected again and again, as in a hall of mirrors.
    """
    down, right = (-side % multiple for side in x.shape[-2:])
    if down < x.shape[-2] and right < x.shape[-1]:
        return F.pad(x, (0, right, 0, down), mode="reflect") if down or right else x
    for axis, more in ((-2, down), (-1, right)):
        side = x.shape[axis]
        place = torch.arange(side + more, device=x.device) % max(1, 2 * side - 2)
        x = x.index_select(axis, torch.minimum(place, 2 * side - 2 - place))
    return x


class LayerNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, with a learnt weight and bias (Ba et al., 2016).

    Feature maps (B, C, H, W) in and out. In memory the channels lie last, so that one fused call does it; the
    result is in the ``channels_last`` memory format.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


from collections.abc import Callable, Iterator
from typing import NamedTuple


def at_liberty(module: nn.Module, x: Tensor) -> bool:
    """Whether ``module`` may compute its result for ``x`` by a route of its own, made for a CPU: eagerly, unwatched.

    Tracing and compiling should see the layers as they are, and a hook anywhere inside its whole feature maps.
    """
    if not x.is_cpu or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not any(getattr(part, kind) for part in module.modules() for kind in hooks)


def strips_pay(module: nn.Module, x: Tensor) -> bool:
    """Whether ``module`` may work on ``x`` a strip of rows at a time: ``at_liberty``, in evaluation mode and without
    gradients.

    A CPU spends longer on fetching fresh memory for large intermediate results than on filling it. A strip's stay in
    the cache, and their memory is used again for the next strip. Training and other devices gain nothing from it.
    """
    return not (module.training or torch.is_grad_enabled()) and at_liberty(module, x)


class Strip(NamedTuple):
    """Some rows of an image: those to compute from (``rows``), which of them are right (``inner``), where they go."""

    rows: slice
    inner: slice
    out: Tensor

    @property
    def ends_off(self) -> slice:
        """``rows`` without the first and the last, unless these lie at the image's border: what is right after a
        convolution that reaches one row far. For strips of more rows than their halo, and scale 1."""
        above, below = self.inner.start, self.rows.stop - self.rows.start - self.inner.stop
        return slice(1 if above else None, -1 if below else None)


def strips(result: Tensor, halo: int, scale: int = 1, step: int | None = None) -> Iterator[Strip]:
    """Cut the making of ``result`` (B, C, scale H, scale W) into strips of an image's H rows.

    A strip's rows come with up to ``halo`` more at either end, which the image's borders cut off; ``inner`` takes
    the strip's own rows out of what was computed from them, and ``out`` is their place in ``result``. A strip has
    ``step`` rows; left out, that is about 14,400 pixels and at least 16 rows.
    """
    height, width = result.shape[2] // scale, result.shape[3] // scale
    step = step or max(16, 14_400 // (result.shape[0] * width))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        first = max(top - halo, 0)
        inner = slice((top - first) * scale, (bottom - first) * scale)
        yield Strip(slice(first, min(bottom + halo, height)), inner, result[:, :, top * scale : bottom * scale])


def fill_in_strips(result: Tensor, rows_of: Callable[[slice], Tensor], halo: int, scale: int = 1) -> None:
    """Fill ``result`` from ``rows_of``, which computes what belongs to a slice of an image's rows; see ``strips``."""
    for strip in strips(result, halo, scale):
        strip.out.copy_(rows_of(strip.rows)[:, :, strip.inner])


def enlarged_rows(x: Tensor, size: tuple[int, int], align_corners: bool) -> Callable[[slice], Tensor]:
    """What ``x`` (B, C, h, w) becomes in a bilinear enlargement to ``size``: some rows of it when they are asked for.

    Enlarging is separable and linear: a matrix gives each row of the result from rows that are widened first.
    """
    eye = torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
    matrix = F.interpolate(eye[None], size[0], mode="linear", align_corners=align_corners)[0].T  # (H, h)

    def some(rows: slice) -> Tensor:
        near = matrix[rows].any(dim=0).nonzero().flatten()
        near = slice(int(near[0]), int(near[-1]) + 1)
        part = x[:, :, near]
        wide = F.interpolate(part, (part.shape[2], size[1]), mode="bilinear", align_corners=align_corners)
        lines = matrix[rows, near] @ wide.permute(0, 2, 3, 1).flatten(2)  # (B, rows, W C)
        return lines.unflatten(2, (size[1], -1)).permute(0, 3, 1, 2)

    return some


