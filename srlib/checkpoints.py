"""Files that survive: written whole or not at all, and the states that a training run resumes from.

A file is written under another name, flushed to the disk (fsync) and then renamed, and the folder's entry is flushed as
well: whenever the process is killed or power is lost, the old file is there or the new one, never half of one.
"""

import errno
import io
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srlib.errors import InputError
from srlib.train import State

KEPT = 2


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """What the system says against writing to ``path``, as an InputError of one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"cannot write {path} ({reason}): make room or choose another place; what was written before is as it was"
        ) from None


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and so that it outlasts a loss of power. Raises InputError where that is not
    possible (a full disk, a read-only folder): what was there before is then untouched, and nothing is left beside it.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with reported(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            synchronise(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink()


def synchronise(path: Path) -> None:
    """Have the disk hold what was written to a file, or which names a folder has (fsync); some network disks know that
    of files alone."""
    if path.is_dir() and os.name != "posix":  # elsewhere folders can't be opened
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def say(line: str) -> None:
    """One line for whoever reads standard error."""
    print(f"srlib: {line}", file=sys.stderr, flush=True)


class States:
    """The states of a run that is being trained: ``state-<steps>.pt`` in its folder, the last two of them.

    A state holds what ``State.parts`` has (network, average, optimiser, schedule, steps and seconds) and what its
    caller adds. A third one is kept while the last two may hold the weights of a training that collapses: the newest
    from before the step where that set in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """The file of the state after ``step`` steps."""
        return self.folder / f"state-{step}.pt"

    def steps(self) -> list[int]:
        """After how many steps there are states, whole ones or not, in order."""
        found = (path.stem.removeprefix("state-") for path in self.folder.glob("state-*.pt"))
        return sorted(int(step) for step in found if step.isdecimal())

    def save(self, state: State, extra: Mapping[str, Any], collapsing_at: int | None = None) -> None:
        """Write a state, then remove older ones but the last and, while the loss is high from ``collapsing_at`` on, the
        last good one. Raises InputError where it can't be written; the older ones are then all there."""
        write(self.path(state.step), encode(state.parts() | dict(extra)))
        older = [step for step in self.steps() if step < state.step]
        kept = older[-(KEPT - 1) :] + good(older, collapsing_at)[-1:]
        for step in set(older) - set(kept):
            with reported(self.path(step)):
                self.path(step).unlink(missing_ok=True)

    def restore(self, state: State, collapsed_at: int | None = None) -> dict[str, Any]:
        """Put the newest whole state into ``state`` and return what was added to it; {} where there is none, and
        ``state`` is as it was.

        A damaged one (cut off, altered, of another network, not finite) is said on standard error in one line and put
        aside as ``state-<steps>.pt.damaged``, and the one before is taken; where both are damaged, the run begins anew:
        that costs time, and gives the same weights. With ``collapsed_at``, only states are taken whose weights are from
        before that step. Raises InputError for a file that cannot be read; what the machine fails at, such as too
        little memory, is no damage, and leaves all files as they are.
        """
        found = self.steps() if collapsed_at is None else good(self.steps(), collapsed_at)
        for position in reversed(range(len(found))):
            path = self.path(found[position])
            try:
                parts = decode(path.read_bytes())
                check(parts, state, found[position])
            except OSError as error:
                raise InputError(
                    f"cannot read {path} ({error.strerror}): mend that, or delete the file to go on from an earlier one"
                ) from None
            except Exception as damage:  # whatever damaged bytes lead to
                if isinstance(damage, MemoryError) or "DefaultCPUAllocator" in str(damage):
                    raise
                then = f"goes on from {self.path(found[position - 1]).name}" if position else "begins anew"
                reason = " ".join(str(damage).split())[:120] or type(damage).__name__
                say(f"{path.name} is damaged ({reason}): {self.folder.name} {then}")
                with reported(path):
                    path.replace(path.with_name(f"{path.name}.damaged"))
                continue
            own = state.parts().keys()
            state.restore(parts)
            return {name: value for name, value in parts.items() if name not in own}
        return {}

    def clear(self) -> None:
        """Remove all states, damaged ones too: the run has come to its end."""
        for path in [*map(self.path, self.steps()), *self.folder.glob("state-*.pt.damaged")]:
            path.unlink(missing_ok=True)


def good(steps: list[int], collapsed_at: int | None) -> list[int]:
    """Of some states, those whose weights a loss before step ``collapsed_at`` (counted from 1) was computed with: it
    was not high then."""
    return [] if collapsed_at is None else [step for step in steps if step < collapsed_at - 1]


def encode(parts: Mapping[str, Any]) -> bytes:
    """A state as the bytes of a file."""
    buffer = io.BytesIO()
    torch.save(dict(parts), buffer)
    return buffer.getvalue()


def decode(content: bytes) -> dict[str, Any]:
    """A state of its bytes, on the CPU; no code in them is run. Raises what damage leads to."""
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer) as archive:  # torch.load does not compare the checksums that torch.save writes
        altered = archive.testzip()
    if altered:
        raise ValueError(f"its part {altered} was altered")
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu", weights_only=True)


def check(parts: dict[str, Any], state: State, step: int) -> None:
    """Raise ValueError, or what Python raises, where ``parts`` are not those of ``state`` after ``step`` steps: of
    another network, training or step, or not finite. All of it is looked at on the CPU."""
    own = state.parts()
    if missing := sorted(own.keys() - parts.keys()):
        raise ValueError(f"it lacks {', '.join(missing)}")
    if parts["step"] != step or parts["schedule"]["last_epoch"] != step:
        raise ValueError(f"it is not of step {step}")
    if parts["schedule"].keys() != own["schedule"].keys():
        raise ValueError("it is of another schedule")
    for name in ("model", "average"):
        if shapes(parts[name]) != shapes(own[name]):
            raise ValueError(f"its {name} is of another network")
    groups = [[group["params"] for group in one["optimizer"]["param_groups"]] for one in (parts, own)]
    if groups[0] != groups[1]:
        raise ValueError("it is of another optimiser")
    for index, parameter in enumerate(state.model.parameters()):
        for name, value in parts["optimizer"]["state"].get(index, {}).items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(f"the optimiser's {name} is {tuple(value.shape)} for {tuple(parameter.shape)}")
    if not finite([parts[name] for name in own]):
        raise ValueError("it has values that are not finite")


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shapes of tensors by their names."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def finite(parts: Any) -> bool:
    """Whether no tensor in nested dictionaries and lists has a value that is infinite or no number."""
    if isinstance(parts, Tensor):
        return not parts.is_floating_point() or bool(torch.isfinite(parts).all())
    if isinstance(parts, Mapping):
        return all(finite(part) for part in parts.values())
    return not isinstance(parts, list | tuple) or all(finite(part) for part in parts)
