"""Files of weights: training states that survive a kill, and networks of this library and of released files."""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import srlib
from srlib.errors import InputError
from srlib.models import create, default_config, takes_scale

WRAPPERS = ("params_ema", "ema", "params", "model_state_dict", "state_dict", "model", "sd")  # averages of weights first


def say(line: str) -> None:
    """Print one line on standard error."""
    print(f"srlib: {line}", file=sys.stderr, flush=True)


def write(path: Path, content: bytes) -> None:
    """Write a file so that the old one is there or the new one, whole, whenever the process is killed or power is lost.
    Raises InputError where it cannot be written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path} ({error.strerror}): make room, or choose another folder") from None


def steps(folder: Path) -> list[int]:
    """The steps of which a run's folder has checkpoints, in order."""
    return sorted(int(path.stem.removeprefix("state-")) for path in folder.glob("state-*.pt"))


def save(folder: Path, parts: Mapping[str, Any], high_since: int | None = None) -> None:
    """Write ``state-<step>.pt`` and remove all but the last two; while the loss has been high since step
    ``high_since``, the newest of before stays too: the weights to keep if this is a collapse."""
    buffer = io.BytesIO()
    torch.save(dict(parts), buffer)
    write(folder / f"state-{parts['step']}.pt", buffer.getvalue())
    older = steps(folder)[:-2]
    good = [step for step in older if high_since and step < high_since - 1]
    for step in set(older) - set(good[-1:]):
        (folder / f"state-{step}.pt").unlink()


def restore(folder: Path, before: int | None = None) -> dict[str, Any] | None:
    """The newest checkpoint, on the CPU; None where there is none. With ``before``, the newest whose weights gave a
    loss before that step. A damaged one is passed over and named on standard error; no code in a file is run."""
    for step in reversed(steps(folder)):
        path = folder / f"state-{step}.pt"
        if before is not None and step >= before - 1:
            continue
        try:
            if altered := zipfile.ZipFile(path).testzip():  # torch.load does not compare checksums
                raise ValueError(altered)
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes lead to any
            say(f"{path} is damaged ({type(error).__name__}); training resumes from an earlier checkpoint or anew")
    return None


def clear(folder: Path) -> None:
    """Remove all checkpoints, and the temporary files of processes that were killed."""
    for path in [*folder.glob("state-*.pt"), *folder.glob("*.tmp")]:
        path.unlink()


def save_network(network: nn.Module, model: str, path: Path) -> None:
    """Write a network's weights as safetensors that name the model and its configuration."""
    config: Any = network.config
    metadata = {"srlib": srlib.__version__, "model": model, "config": json.dumps(asdict(config))}
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    write(path, safetensors.torch.save(tensors, metadata))


def load(path: Path | str, model: str | None = None, scale: int | None = None) -> nn.Module:
    """The network in a file of weights, in evaluation mode on the CPU: of :func:`save_network`, or an author's released
    file (.pth, .safetensors), which needs ``model``, and ``scale`` where the network has one. No code in it is run.

    Raises InputError for a missing or damaged file, and for weights of another network or scale.
    """
    path = Path(path)
    weights, metadata = _read(path)
    if "config" in metadata:
        found, config = metadata["model"], network_config(metadata["model"], json.loads(metadata["config"]))
        own = getattr(config, "scale", None)
        if model not in (None, found) or (own and scale not in (None, own)):
            asked = f"{model or found}{f' at x{scale}' if scale else ''}"
            raise InputError(f"{path.name} holds {found}{f' at x{own}' if own else ''}, not {asked}: ask for its own")
        network = create(found, own, config)
    elif model is None:
        raise InputError(
            f"{path.name} does not say which network it holds: give its model, and its scale if it has one"
        )
    else:
        network = create(model, scale if takes_scale(model) else None)
    return load_released(network, weights, path.name).eval()


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    """What a file of weights holds, told by its content and not by its suffix, and a safetensors file's metadata."""
    try:
        with open(path, "rb") as file:
            if file.read(9)[8:] != b"{":
                return torch.load(path, map_location="cpu", weights_only=True), {}
        with safetensors.safe_open(path, "pt") as tensors:
            return {key: tensors.get_tensor(key) for key in tensors.keys()}, tensors.metadata() or {}
    except FileNotFoundError:
        raise InputError(f"no weights at {path}: check the path, or train with `srlib train`") from None
    except Exception as error:  # damaged bytes lead to any
        kind = type(error).__name__
        raise InputError(
            f"{path.name} cannot be opened as plain weights ({kind}): it is damaged or holds code"
        ) from None


def network_config(model: str, values: Mapping[str, Any]) -> Any:
    """A network's configuration from JSON data. Raises InputError where it is none."""
    try:
        return type(default_config(model))(**values)
    except TypeError as error:
        raise InputError(f"this is no configuration of {model} ({error}): fetch or train the weights again") from None


def load_released(network: nn.Module, weights: Any, name: str = "the state dictionary") -> nn.Module:
    """Load a state dictionary under the released names into ``network``, strictly, and return it.

    Wrappers (``params_ema``, ``state_dict``) and a prefix that all names share (``module.``) are taken off and told on
    standard error. What a module names as ``UNUSED``, tensors that a release stores beside its weights, is passed over.
    Raises InputError for other names, shapes and values that are not finite.
    """
    expected, taken = network.state_dict(), list[str]()
    while inner := [key for key in WRAPPERS if isinstance(weights, Mapping) and isinstance(weights.get(key), Mapping)]:
        weights, taken = weights[inner[0]], [*taken, inner[0]]
    if not isinstance(weights, Mapping):
        raise InputError(f"{name} holds a {type(weights).__name__}: give a state dictionary of tensors")
    tensors = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    first = next(iter(expected))
    prefix = min((key.removesuffix(first) for key in tensors if key.endswith(first)), key=len, default="")
    tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if taken or prefix:
        say(f"{name}: took {', '.join([*taken, *([prefix + '*'] if prefix else [])])}")
    for place, module in network.named_modules():
        for unused in getattr(module, "UNUSED", ()):
            tensors.pop(f"{place}.{unused}" if place else unused, None)
    foreign, missing = sorted(tensors.keys() - expected.keys()), sorted(expected.keys() - tensors.keys())
    shapes = [key for key in expected.keys() & tensors.keys() if expected[key].shape != tensors[key].shape]
    wrong = ""
    if foreign or missing:
        has, lacks = (f"{', '.join(keys[:3]) or 'nothing else'} ({len(keys)})" for keys in (foreign, missing))
        wrong = f"it has {has}, and lacks {lacks}"
    elif shapes:
        wrong = f"its {shapes[0]} is {tuple(tensors[shapes[0]].shape)} instead of {tuple(expected[shapes[0]].shape)}"
    elif not all(tensor.isfinite().all() for tensor in tensors.values()):
        wrong = "it has values that are not finite, as its training failed"
    if wrong:
        raise InputError(f"{name} does not fit {type(network).__name__} with this configuration and scale: {wrong}")
    network.load_state_dict(tensors)
    return network
