"""Feature maps, recorded from outside by forward hooks: a network's code knows nothing of being watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def record(
    network: Callable[[Tensor], object], image: Tensor, modules: Mapping[str, nn.Module], inputs: bool = False
) -> dict[str, Any]:
    """The output (C, h, w) of each module, by its label, while ``network`` sees ``image`` (1, 3, H, W); on the CPU.

    With ``inputs``, the tuple of tensors that each module is given, (C, h, w) each, instead. Of a module that runs
    several times the last run is kept; one that doesn't run is left out.
    """
    found: dict[str, Any] = {}

    def keep(label: str, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        copies = tuple(
            x[0].to("cpu", copy=True) for x in (given if inputs else (output,))
        )  # the next may work in place
        found[label] = copies if inputs else copies[0]

    with ExitStack() as hooks, torch.inference_mode():
        for label, module in modules.items():
            hooks.enter_context(module.register_forward_hook(partial(keep, label)))
        network(image)
    return {label: found[label] for label in modules if label in found}


def sharpness(maps: Tensor) -> Tensor:
    """How much each channel of ``maps`` (C, h, w) changes from pixel to pixel: (C,), whatever its scale and offset.

    The mean absolute difference of neighbours, down and right, over the channel's standard deviation: near 0 for a slow
    ramp, 1.13 for white noise, 0 for a constant.
    """
    steps = (maps.diff(dim=1).abs().mean((1, 2)) + maps.diff(dim=2).abs().mean((1, 2))) / 2
    return steps / maps.std((1, 2)).clamp_min(1e-12)
