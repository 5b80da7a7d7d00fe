"""A training of a second, and processes of their own for it: forks of the test's process, which has torch loaded."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from srlib import runs
from srlib.data import Store
from srlib.errors import InputError, Stopped
from srlib.models.safmn import SAFMNConfig

NETWORK = SAFMNConfig(scale=2, blocks=1, channels=8)


def configure(store: Store, **settings: Any) -> runs.RunConfig:
    """A run of 24 steps of 8x8 LR pixels."""
    usual = {"network": NETWORK, "steps": 24, "batch": 2, "patch": 8}
    return runs.configure(settings.pop("model", "safmn"), 2, store, **{**usual, **settings})


def train(store: Store, root: Path, **settings: Any) -> runs.Run:
    """Train it on a CPU, and score it on the same images."""
    wait = settings.pop("wait", True)
    return runs.train_or_load(configure(store, **settings), store, store, root=root, device="cpu", wait=wait)


def after_each_step(action: Callable[[int], object]) -> None:
    """Let this process do something after each step, before it is saved or stopped; the action gets the step."""
    after = runs.Session.after_step

    def after_step(self: runs.Session, state: Any, loss: torch.Tensor) -> None:
        action(state.step)
        after(self, state, loss)

    runs.Session.after_step = after_step  # type: ignore[method-assign]


def train_slowly(store: Store, root: Path, go: Path | None = None) -> None:
    """Train it with 50 ms more for each step, and after the eighth wait for the file ``go``."""
    after_each_step(lambda step: time.sleep(0.05) if not go or step != 8 else until(go.exists))
    train(store, root)


def fork(work: Callable[[], object], said: Path, environment: dict[str, str] | None = None) -> Any:
    """A process that does ``work``, with the command line's exit codes; what it prints goes to the file ``said``."""

    def run() -> None:
        os.environ.update(environment or {})
        torch.set_num_threads(1)
        sys.stdout = sys.stderr = open(said, "w")
        try:
            work()
        except (InputError, Stopped) as error:
            print(error, flush=True)
            os._exit(75 if isinstance(error, Stopped) else 2)
        sys.stdout.flush()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def ended(process: Any, seconds: float = 120) -> int | None:
    """A process's exit code; None for one that hangs, which is killed."""
    process.join(seconds)
    code = process.exitcode
    process.kill()
    process.join()
    return code


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)
