"""Who trains a run, and until when: the processes of torchrun, signals, and the lock on a run's folder."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy

from srlib.errors import InputError, Stopped, say

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
AGREE = 10  # steps after which several processes ask each other whether to stop
PATIENCE = timedelta(days=7)  # of processes that wait while the first one scores, or waits for the lock


def pick_device(device: str) -> str:
    """``cpu`` or ``cuda``; ``auto`` is CUDA where there is some. Raises InputError where it cannot be had."""
    here = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if device not in ("auto", *here):
        raise InputError(f"this torch has no device {device!r}: choose auto or {' or '.join(here)}")
    return here[-1] if device == "auto" else device


@contextmanager
def signals() -> Iterator[list[str]]:
    """The names of the signals that asked to stop up to now: Ctrl-C, SIGTERM, a scheduler's warning (Slurm's
    ``--signal=USR1@60``), a closed terminal. A second Ctrl-C interrupts at once. Ignored ones (``nohup``) stay so."""
    asked: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, note) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Mixed(MixedPrecision):
    """Mixed precision that leaves inputs as they are: Fabric's rounds pixels and coordinates to bfloat16, which has
    steps of 1/256 between 1/2 and 1."""

    def convert_input(self, data: Any) -> Any:
        return data


def launch(device: str, precision: str) -> Fabric:
    """Fabric for this process, or, where torchrun has started several, for the group of them: DDP averages their
    gradients (gloo on CPUs, NCCL on GPUs, one for each process). Raises InputError where there are too few GPUs."""
    several = torch.distributed.is_torchelastic_launched()
    size, here = (int(os.environ[name]) if several else 1 for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    # one process is one, whatever the variables of its Slurm job make of it
    plugins: list[Any] = [TorchElasticEnvironment() if several else LightningEnvironment()]
    if precision != "32-true":
        plugins.append(Mixed("bf16-mixed", device))
    if device == "cuda" and torch.cuda.device_count() < here:
        raise InputError(f"{here} processes on {torch.cuda.device_count()} GPUs: start one process for each GPU")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=size // here,
        strategy=DDPStrategy(timeout=PATIENCE) if size > 1 else "auto",
        plugins=plugins,
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


def stops(fabric: Fabric, asked: list[str], step: int) -> bool:
    """Whether a signal asked any of the processes to stop; several ask each other every ``AGREE`` steps."""
    if fabric.world_size == 1:
        return bool(asked)
    if step % AGREE:
        return False
    return bool(fabric.all_reduce(torch.tensor(len(asked), device=fabric.device), reduce_op="sum"))


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
            say(f"another process trains {folder.name}: waiting for it")
            held.acquire()
        except OSError as error:
            raise InputError(f"cannot write to {folder} ({error.strerror}): choose another folder") from None

    once(fabric, acquire)
    try:
        yield
    finally:
        held.release()
