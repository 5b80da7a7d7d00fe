"""Feature maps, recorded from outside by forward hooks: a network's code knows nothing of being watched."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from srlib.errors import InputError

Watched = Mapping[str, nn.Module | str] | Iterable[str]
"""What to record: for each label a module or its dotted name in the network, or the names alone, which then label it.
"""


def record(network: nn.Module, image: Tensor, watched: Watched) -> dict[str, Tensor]:
    """What each of the ``watched`` modules puts out while ``network`` sees ``image`` (1, 3, H, W), by its label.

    A module may be given by its dotted name, such as "feats.3.safm", as ``network.named_modules()`` has it; a list of
    names is labelled by them. Maps are (C, h, w) on the CPU, in the order of ``watched``; of a module that runs several
    times the last output counts. A module that does not run is left out. A network for every scale is given at one, as
    ``srlib.evaluate.AtScale``. Raises InputError for a name that the network lacks, and for a module that puts out
    anything but one tensor.
    """
    return _watch(network, image, watched, lambda label, inputs, output: _map(label, output))


def record_inputs(network: nn.Module, image: Tensor, watched: Watched) -> dict[str, tuple[Tensor, ...]]:
    """What each of the ``watched`` modules is given while ``network`` sees ``image`` (1, 3, H, W), by its label.

    The tensors among its positional arguments, as the module sees them with their batch of one: (1, C, h, w), on the
    CPU; otherwise as ``record``.
    """
    return _watch(
        network, image, watched, lambda _, inputs, __: tuple(x.detach().cpu() for x in inputs if isinstance(x, Tensor))
    )


def sharpness(maps: Tensor) -> Tensor:
    """How much each channel of ``maps`` (C, h, w) changes from pixel to pixel: (C,), whatever its scale and offset.

    The mean absolute difference of neighbours, across and down, divided by the channel's standard deviation: near 0
    for a slow ramp, 1.13 for white noise, 0 for a constant. Maps need two pixels a side.
    """
    steps = (maps.diff(dim=1).abs().mean((1, 2)) + maps.diff(dim=2).abs().mean((1, 2))) / 2
    return steps / maps.std((1, 2)).clamp_min(1e-12)


def _named(network: nn.Module, watched: Watched) -> dict[str, nn.Module]:
    """The watched modules by label, looked up where they are given by name."""
    if isinstance(watched, str):
        watched = [watched]
    pairs = watched.items() if isinstance(watched, Mapping) else ((name, name) for name in watched)
    known, found = dict(network.named_modules(remove_duplicate=False)), {}
    for label, module in pairs:
        if isinstance(module, str):
            if module not in known:
                near = difflib.get_close_matches(module, known, n=3, cutoff=0.5)
                mend = f"did you mean {' or '.join(near)}?" if near else "network.named_modules() lists them"
                raise InputError(f"{type(network).__name__} has no module {module!r}: {mend}")
            module = known[module]
        found[label] = module
    return found


def _map(label: str, output: Any) -> Tensor:
    """A module's output for a batch of one image, without the batch."""
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        raise InputError(f"{label!r} puts out {kind}, no tensor: watch a module inside it, or one that it feeds")
    return output[0].detach().cpu()


def _watch(
    network: nn.Module, image: Tensor, watched: Watched, keep: Callable[[str, Any, Any], Any]
) -> dict[str, Any]:
    """By label, what ``keep`` makes of each watched module's label, inputs and output."""
    watched, kept = _named(network, watched), {}

    def keeper(label: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: kept.update({label: keep(label, inputs, output)})

    hooks = [module.register_forward_hook(keeper(label)) for label, module in watched.items()]
    try:
        with torch.inference_mode():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return {label: kept[label] for label in watched if label in kept}
