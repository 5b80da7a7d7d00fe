"""What the papers build: one file a paper, each network found here by its name."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from importlib import import_module
from typing import Any

from torch import nn

from srlib.errors import InputError

# name -> (the module that builds it, what builds it there); a module is imported when its network is created. Its
# CONFIGS holds the configuration of each name.
_MODELS = {
    "safmn": ("srlib.models.safmn", "SAFMN"),
    "seemore-t": ("srlib.models.seemore", "SeemoRe"),
    "seemore-b": ("srlib.models.seemore", "SeemoRe"),
    "seemore-l": ("srlib.models.seemore", "SeemoRe"),
    "ssiu": ("srlib.models.ssiu", "SSIU"),
}
_MODELS |= {
    f"{decoder}-{encoder}": ("srlib.models.moeisr", "build")
    for decoder in ("liif", "lte", "moeisr-liif-b", "moeisr-liif-s", "moeisr-lte-b", "moeisr-lte-s")
    for encoder in ("edsr", "rdn", "swinir")
}


LARGEST = 1024  # number in a configuration: several times the papers' largest


def names() -> tuple[str, ...]:
    """The names that ``create`` knows, in alphabetical order."""
    return tuple(sorted(_MODELS))


def create(name: str, scale: int | None = None, config: Any = None, *, pretrained: bool = False) -> nn.Module:
    """Build a network by name, with fresh random weights, in training mode, on the CPU; or, ``pretrained``, with the
    weights that come with srlib (see :mod:`srlib.pretrained`), in evaluation mode; a line on standard error says how
    these were trained (``srlib.pretrained.load`` says nothing).

    ``config`` is a configuration of that network (for ``safmn`` a ``SAFMNConfig``), the released one when it is None.
    A network for one scale maps LR images (B, 3, H, W) in [0, 1] to (B, 3, scale H, scale W); its configuration's scale
    is replaced by ``scale``. One for every scale (see ``takes_scale``) is built without, and told the output's size at
    each call.

    Raises ``InputError`` for an unknown name, a configuration of another network, a scale that the network lacks, and
    one that is missing or not wanted; and where no weights come for that model, scale and configuration.
    """
    usual = default_config(name)
    if config is None:
        config = usual
    if not isinstance(config, type(usual)):
        raise InputError(
            f"model {name!r} got a {type(config).__name__} as its config; give a {type(usual).__name__} instead"
        )
    if _kind(config) != _kind(usual):
        raise InputError(
            f"model {name!r} got the configuration of another decoder or encoder, or with several experts where it has "
            "one, or the other way round: change default_config(name) by dataclasses.replace"
        )
    _check_size(config)
    path, network = _MODELS[name]
    build = getattr(import_module(path), network)
    if takes_scale(name):
        if scale is None:
            raise InputError(f"{name} is built for one scale and got none: give it, as in create({name!r}, 4)")
        config = replace(config, scale=scale)
    elif scale is not None:
        raise InputError(
            f"{name} serves every scale and is built for none, but got scale {scale!r}: leave it out, and give the "
            "network the output's size instead, as in network(lr, size=(480, 320))"
        )
    if not pretrained:
        return build(config)
    from srlib.checkpoints import say
    from srlib.pretrained import find

    shipped = find(name, scale)
    trained = shipped.network()
    if json.dumps(asdict(trained.config)) != json.dumps(asdict(config)):
        raise InputError(
            f"{shipped.path.name} has the weights of the released configuration of {name}: leave config or pretrained "
            "out"
        )
    say(shipped.line)
    return trained


def _check_size(config: Any) -> None:
    """Raise InputError for a configuration with a number that no memory holds a network of."""
    for field in fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and number > LARGEST:
                raise InputError(f"{type(config).__name__} has {field.name} above {LARGEST}; give less")


def takes_scale(name: str) -> bool:
    """Whether a network is built for one scale; one for every scale is not. ``InputError`` for an unknown name."""
    return any(field.name == "scale" for field in fields(config_class(name)))


def _kind(config: Any) -> tuple[Any, ...]:
    """What of a configuration a network's name says where one class has several: decoder, encoder, experts or one."""
    decoder, encoder, depths = (getattr(config, field, None) for field in ("decoder", "encoder", "depths"))
    return decoder, encoder, depths is not None and len(depths) > 1


def default_config(name: str) -> Any:
    """The released configuration of a model, at the default scale. Raises ``InputError`` for an unknown name."""
    if name not in _MODELS:
        raise InputError(f"unknown model {name!r}; choose one of: {', '.join(names())}")
    return import_module(_MODELS[name][0]).CONFIGS[name]


def config_class(name: str) -> type:
    """The configuration dataclass of a model. Raises ``InputError`` for an unknown name."""
    return type(default_config(name))
