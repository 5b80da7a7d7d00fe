"""Feature maps, recorded from outside by forward hooks: a network's code knows nothing of being watched."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def record(network: nn.Module, image: Tensor, watched: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What each of the ``watched`` modules puts out while ``network`` sees ``image`` (1, 3, H, W), by its label.

    Maps are (C, h, w) on the CPU, in the order of ``watched``; of a module that runs several times the last output
    counts. A module that does not run is left out.
    """
    maps: dict[str, Tensor] = {}

    def keeper(label: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: maps.update({label: output[0].detach().cpu()})

    hooks = [module.register_forward_hook(keeper(label)) for label, module in watched.items()]
    try:
        with torch.inference_mode():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return {label: maps[label] for label in watched if label in maps}
