"""Who trains a run, and until when: the processes of torchrun, signals, and the lock on a run's folder."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Self, cast

import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor

from srlib.errors import InputError, Stopped

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
AGREE = 10  # steps after which several processes ask each other whether to stop
PATIENCE = timedelta(days=7)  # of processes that wait while the first one scores, or waits for the lock


def pick_device(device: str) -> str:
    """``cpu`` or ``cuda``; ``auto`` is CUDA where there is some. Raises InputError where it cannot be had."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"no device {device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("this torch sees no CUDA device: use --device cpu, or install a CUDA build of torch")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


class Signals:
    """Notes signals that ask to stop, while it is entered: Ctrl-C, SIGTERM, a scheduler's warning (Slurm's
    ``--signal=USR1@60``), a closed terminal. ``asked`` is the first; a second Ctrl-C interrupts at once. An ignored
    signal (``nohup``) stays so. While ``at_once`` is set, as nothing is lost then, the first raises Stopped."""

    def __init__(self) -> None:
        self.asked = ""
        self.at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
        if self.at_once:
            raise Stopped(f"stopped by {self.asked}; the same command goes on")


class Mixed(MixedPrecision):
    """Mixed precision that leaves inputs as they are: Fabric's rounds pixels and coordinates to bfloat16, which has
    steps of 1/256 between 1/2 and 1."""

    def convert_input(self, data: Any) -> Any:
        """``data`` itself."""
        return data


def launch(device: str, precision: str) -> Fabric:
    """Fabric for this process, or, where torchrun has started several, for the group of them: DDP averages their
    gradients (gloo on CPUs, NCCL on GPUs, one for each process). Raises InputError where there are too few GPUs."""
    several = torch.distributed.is_torchelastic_launched()
    size, here = (int(os.environ[name]) if several else 1 for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if device == "cuda" and torch.cuda.device_count() < here:
        raise InputError(f"{here} processes on {torch.cuda.device_count()} GPUs: start one process for each GPU")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=size // here,
        strategy=DDPStrategy(timeout=PATIENCE) if size > 1 else "auto",
        plugins=[] if precision == "32-true" else [Mixed("bf16-mixed", device)],
    )
    fabric.launch()
    return fabric


def part(fabric: Fabric, batch: int) -> slice:
    """This process's part of a batch. Raises InputError where it has no equal parts."""
    if batch % fabric.world_size:
        raise InputError(f"a batch of {batch} has no {fabric.world_size} equal parts: start as many as divide it")
    share = batch // fabric.world_size
    return slice(fabric.global_rank * share, (fabric.global_rank + 1) * share)


def once(fabric: Fabric, work: Callable[[], Any]) -> Any:
    """What ``work`` gives in the first process, told to all. Where it raises, torchrun ends the others."""
    return fabric.broadcast(work() if fabric.is_global_zero else None)


def mean(fabric: Fabric, losses: Tensor) -> Tensor:
    """The mean over the processes, of a tensor on the device."""
    return cast(Tensor, fabric.all_reduce(losses, reduce_op="mean"))


def stops(fabric: Fabric, signals: Signals, step: int) -> bool:
    """Whether a signal asked any of the processes to stop; several ask each other every ``AGREE`` steps."""
    if fabric.world_size == 1 or step % AGREE:
        return fabric.world_size == 1 and bool(signals.asked)
    asked = torch.tensor(float(bool(signals.asked)), device=fabric.device)
    return bool(mean(fabric, asked))


@contextmanager
def lock(fabric: Fabric, folder: Path, wait: bool) -> Iterator[None]:
    """The lock on a run's folder, so that it is trained once. Whoever comes second waits until the first ends, however
    it does, or, without ``wait``, gets Stopped. Raises InputError where the folder cannot be locked."""
    held = FileLock(folder / ".lock")

    def acquire() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise Stopped(f"another process trains {folder.name}: try again later, or wait for it") from None
            print(f"srlib: another process trains {folder.name}: waiting for it", file=sys.stderr, flush=True)
            held.acquire()
        except OSError as error:
            raise InputError(f"cannot write to {folder} ({error.strerror}): choose another folder") from None

    once(fabric, acquire)
    try:
        yield
    finally:
        held.release()
