"""What the papers build: one file a paper, each network found here by its name."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

from torch import nn

from srlib.errors import InputError

# name -> (the module that builds it, its network); a module is imported when its network is created. Its CONFIGS holds
# the configuration of each name.
_MODELS = {
    "safmn": ("srlib.models.safmn", "SAFMN"),
    "seemore-t": ("srlib.models.seemore", "SeemoRe"),
    "seemore-b": ("srlib.models.seemore", "SeemoRe"),
    "seemore-l": ("srlib.models.seemore", "SeemoRe"),
    "ssiu": ("srlib.models.ssiu", "SSIU"),
}


def names() -> tuple[str, ...]:
    """The names that ``create`` knows, in alphabetical order."""
    return tuple(sorted(_MODELS))


def create(name: str, scale: int, config: Any = None) -> nn.Module:
    """Build a network by name, with fresh random weights, in training mode, on the CPU.

    ``config`` is a configuration of that network (for ``safmn`` a ``SAFMNConfig``), the released one when it is None;
    its scale is replaced by ``scale``. The network maps LR images (B, 3, H, W) in [0, 1] to (B, 3, scale H, scale W).

    Raises ``InputError`` for an unknown name, a configuration of another network or a scale that the network lacks.
    """
    usual = default_config(name)
    if config is None:
        config = usual
    if not isinstance(config, type(usual)):
        raise InputError(
            f"model {name!r} got a {type(config).__name__} as its config; give a {type(usual).__name__} instead"
        )
    path, network = _MODELS[name]
    return getattr(import_module(path), network)(replace(config, scale=scale))


def default_config(name: str) -> Any:
    """The released configuration of a model, at the default scale. Raises ``InputError`` for an unknown name."""
    if name not in _MODELS:
        raise InputError(f"unknown model {name!r}; choose one of: {', '.join(names())}")
    return import_module(_MODELS[name][0]).CONFIGS[name]


def config_class(name: str) -> type:
    """The configuration dataclass of a model. Raises ``InputError`` for an unknown name."""
    return type(default_config(name))
