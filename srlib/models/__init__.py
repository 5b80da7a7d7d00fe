"""What the papers build: one file a paper.

Each file's ``CONFIGS`` maps its networks' names to their released configurations. A file that lies here is found;
nothing else lists it. Where paper and released code differ, the released code's behaviour is built. Attributes have the
names that the released files' state-dict keys ask for.
"""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from importlib import import_module
from typing import Any

from torch import nn

from srlib.errors import InputError


def _configs() -> dict[str, Any]:
    """The released configuration of every network in this package's files, in alphabetical order."""
    files = [import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    return dict(sorted(item for file in files for item in getattr(file, "CONFIGS", {}).items()))


def names() -> tuple[str, ...]:
    """The names that ``create`` knows, in alphabetical order."""
    return tuple(_configs())


def default_config(name: str, scale: int | None = None) -> Any:
    """The released configuration of a network, at ``scale``, or at the default one where it is None, as of networks for
    every scale. Raises ``InputError`` for an unknown name."""
    configs = _configs()
    if name not in configs:
        raise InputError(f"unknown model {name!r}; choose one of: {', '.join(configs)}")
    return replace(configs[name], scale=scale) if scale else configs[name]


def takes_scale(name: str) -> bool:
    """Whether a network is built for one scale, not for every scale. Raises ``InputError`` for an unknown name."""
    return hasattr(default_config(name), "scale")


def create(name: str, scale: int | None = None, config: Any = None) -> nn.Module:
    """The network of a :func:`configuration`, whose arguments and errors these are, with fresh random weights, in
    training mode, on torch's default device, the CPU.

    A network for one scale maps LR images (B, 3, H, W) in [0, 1], of any size from 1 x 1 up, to (B, 3, scale H,
    scale W), not clamped. One for every scale (see ``takes_scale``) is told the output's size at each call instead. A
    network raises ``InputError`` for a tensor that is no batch of RGB images.
    """
    return configuration(name, scale, config).build()


def configuration(name: str, scale: int | None = None, config: Any = None) -> Any:
    """What ``create`` builds: a configuration of that network (for ``safmn`` a ``SAFMNConfig``), the released one where
    it is None, at that scale. Raises ``InputError`` for an unknown name, a configuration of another network, and a
    scale that doesn't fit."""
    usual = default_config(name)
    config = usual if config is None else config
    if type(config) is not type(usual):
        raise InputError(f"{name} got a {type(config).__name__} as its config; give a {type(usual).__name__} instead")
    if not hasattr(config, "scale"):
        if scale is not None:
            raise InputError(f"{name} serves every scale: leave scale out, as each call says the size of its output")
        return config
    if scale is None:
        raise InputError(f"{name} is built for one scale and got none: give it, as in create({name!r}, 4)")
    return replace(config, scale=scale)
