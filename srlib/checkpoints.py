"""Files of weights: training states that survive a kill, and networks of this library and of released files."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import srlib
from srlib.datasets import few
from srlib.errors import InputError, say, write
from srlib.models import create, default_config, takes_scale

KEPT = 3  # checkpoints: one may be damaged, and a collapse shows only after it began, when newer ones are no good
WRAPPERS = ("params_ema", "ema", "params", "model_state_dict", "state_dict", "model", "sd")  # averages of weights first


def steps(folder: Path) -> list[int]:
    """The steps of which a run's folder has checkpoints, in order."""
    return sorted(int(path.stem.removeprefix("state-")) for path in folder.glob("state-*.pt"))


def save(folder: Path, parts: Mapping[str, Any]) -> None:
    """Write ``state-<step>.pt`` and remove all but the ``KEPT`` last ones up to it."""
    buffer = io.BytesIO()
    torch.save(dict(parts), buffer)
    write(folder / f"state-{parts['step']}.pt", buffer.getvalue())
    # there are later ones only where training began anew or earlier, as they are damaged
    for step in [one for one in steps(folder) if one <= parts["step"]][:-KEPT]:
        (folder / f"state-{step}.pt").unlink()


def restore(folder: Path, before: float = float("inf")) -> dict[str, Any] | None:
    """The newest checkpoint whose weights gave a loss ``before`` that step, on the CPU; None where there is none. A
    damaged one is passed over and named on standard error; no code in a file is run."""
    for step in reversed([step for step in steps(folder) if step < before - 1]):
        path = folder / f"state-{step}.pt"
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


def save_network(network: nn.Module, model: str, path: Path, **about: str) -> None:
    """Write a network's weights as safetensors that name the model and its configuration, and what else is said."""
    config: Any = network.config
    metadata = {"srlib": srlib.__version__, "model": model, "config": json.dumps(asdict(config)), **about}
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    write(path, safetensors.torch.save(tensors, metadata))


def load(path: Path | str, model: str | None = None, scale: int | None = None) -> nn.Module:
    """The network in a file of weights, in evaluation mode on the CPU: of :func:`save_network`, or an author's released
    file, which needs ``model``, and ``scale`` where the network has one. What a file is, is told by its content.

    Raises InputError for a missing or damaged file, one that holds code (none is run), and for another network's.
    """
    path, config = Path(path), None
    metadata: Mapping[str, str] = {}
    try:
        if path.read_bytes()[8:9] == b"{":
            with safetensors.safe_open(path, "pt") as file:
                weights, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        if "config" in metadata:
            config = type(default_config(metadata["model"]))(**json.loads(metadata["config"]))
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): name a file, such as RUN/model.safetensors") from None
    except Exception as error:  # damaged bytes lead to any
        reason = f"it is damaged, holds code, or comes from another version of srlib ({type(error).__name__})"
        raise InputError(f"{path.name} cannot be opened as plain weights: {reason}") from None
    found, own = metadata.get("model", model), getattr(config, "scale", scale)
    if found is None:
        raise InputError(f"{path.name} does not say which network it holds: give its model, and its scale if any")
    if model not in (None, found) or (takes_scale(found) and scale not in (None, own)):
        asked = f"{model or found} at scale {scale}"
        raise InputError(f"{path.name} holds {found} at scale {own}, not {asked}: name its own model and scale")
    network = create(found, own if takes_scale(found) else None, config)
    return load_released(network, weights, path.name).eval()


def load_released(network: nn.Module, weights: Any, name: str = "the state dictionary") -> nn.Module:
    """Load a state dictionary under the released names into ``network``, strictly, and return it.

    Wrappers (``params_ema``, ``state_dict``) and a prefix of names (``module.``) are taken off and told on standard
    error, with the tensors that have no such prefix and are left out. What a module names as ``UNUSED``, tensors that a
    release stores beside its weights, is passed over. Raises InputError for other names, shapes and values that are not
    finite.
    """
    taken: list[str] = []
    while isinstance(weights, Mapping) and (keys := [key for key in WRAPPERS if isinstance(weights.get(key), Mapping)]):
        weights, taken = weights[keys[0]], [*taken, keys[0]]
    held = weights if isinstance(weights, Mapping) else {}
    tensors = {key: value for key, value in held.items() if isinstance(value, Tensor)}
    first = next(iter(network.state_dict()))
    prefix = min((key.removesuffix(first) for key in tensors if key.endswith(first)), key=len, default="")
    others = [key for key in tensors if not key.startswith(prefix)]
    tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if prefix:
        taken.append(f"{prefix}*" + (f" and not the other {len(others)}: {few(others)}" if others else ""))
    if taken:
        say(f"{name}: took {', '.join(taken)}")
    for place, module in network.named_modules():
        for unused in getattr(module, "UNUSED", ()):
            tensors.pop(f"{place}.{unused}".removeprefix("."), None)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError(f"{name} has values that are not finite, as its training failed: take another file")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        wrong = "; ".join(shorten(line, 200) for line in str(error).splitlines()[1:4])  # torch names every tensor
        its = f"{type(network).__name__} with this configuration and scale"
        raise InputError(f"{name} does not fit {its}: {wrong}") from None
    return network
