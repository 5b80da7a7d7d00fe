"""Feature maps, recorded from outside by forward hooks: a network's code knows nothing of being watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from srlib.errors import InputError

Watched = Mapping[str, nn.Module | str] | Iterable[str]  # label to module or dotted name; or names alone


def record(network: nn.Module, image: Tensor, watched: Watched) -> dict[str, Tensor]:
    """The output (C, h, w) of each watched module, on the CPU, while ``network`` sees ``image`` (1, 3, H, W), by label.

    Modules that run several times give the last output; those that don't run are left out. Raises ``InputError`` for a
    name that the network lacks.
    """
    return _watch(network, image, watched, lambda inputs, output: output[0].detach().cpu().clone())


def record_inputs(network: nn.Module, image: Tensor, watched: Watched) -> dict[str, tuple[Tensor, ...]]:
    """The tensors that each watched module is given, (1, C, h, w) each; otherwise as ``record``."""
    return _watch(network, image, watched, lambda inputs, output: tuple(x.detach().cpu().clone() for x in inputs))


def sharpness(maps: Tensor) -> Tensor:
    """How much each channel of ``maps`` (C, h, w) changes from pixel to pixel: (C,), whatever its scale and offset.

    The mean absolute difference of neighbours, down and right, over the channel's standard deviation: near 0 for a slow
    ramp, 1.13 for white noise, 0 for a constant.
    """
    steps = (maps.diff(dim=1).abs().mean((1, 2)) + maps.diff(dim=2).abs().mean((1, 2))) / 2
    return steps / maps.std((1, 2)).clamp_min(1e-12)


def _watch(network: nn.Module, image: Tensor, watched: Watched, keep: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """By label, what ``keep`` makes of each watched module's inputs and output: copies, as the next module may work in
    place."""
    labelled = watched if isinstance(watched, Mapping) else {name: name for name in watched}
    known, kept, hooks = dict(network.named_modules(remove_duplicate=False)), {}, []
    if unknown := [module for module in labelled.values() if isinstance(module, str) and module not in known]:
        raise InputError(f"{type(network).__name__} has no module {unknown[0]!r}; network.named_modules() lists them")
    try:
        for label, module in labelled.items():
            hook = lambda module, inputs, output, label=label: kept.update({label: keep(inputs, output)})  # noqa: E731
            hooks.append((known[module] if isinstance(module, str) else module).register_forward_hook(hook))
        with torch.inference_mode():
            network(image)
    finally:
        for one in hooks:
            one.remove()
    return {label: kept[label] for label in labelled if label in kept}
