"""Where a training step's time goes: the loop of ``srlib.train`` under ``torch.profiler``."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.profiler import ProfilerActivity, profile, record_function

from srlib.complexity import describe_device
from srlib.data import Store
from srlib.errors import InputError
from srlib.runs import RunConfig, initial, make_patches
from srlib.train import State, make_objective, train

PARTS = ("forward", "backward", "optimiser", "average", "data", "rest")


@dataclass(frozen=True)
class StepTime:
    """What a training step takes: ``seconds`` in all, and of these each of ``PARTS``, means over ``steps`` steps.

    "forward": the network and the loss. "backward": the gradients. "optimiser": the step, and the gradients cleared.
    "average": the moving average of the weights, at a decay of 0 a copy of them. "data": the batch,
    until it is on the device. "rest": all else that the loop does: random numbers, learning rate, log.
    """

    seconds: float
    parts: dict[str, float]
    steps: int
    device: str

    def share(self, *parts: str) -> float:
        """The share of some parts in a step, from 0 to 1."""
        return sum(self.parts[part] for part in parts) / self.seconds

    @property
    def outside(self) -> float:
        """The share of all that is neither forward, backward nor optimiser; the average counts as outside."""
        return self.share("average", "data", "rest")


def step_time(config: RunConfig, store: Store, *, steps: int = 10, warmup: int = 3, device: str = "cpu") -> StepTime:
    """Profile ``steps`` steps of the training that ``config`` describes, after ``warmup`` others, on fresh weights.

    It is the loop itself, :func:`srlib.train.train`, whose parts are told apart from outside: by ranges about what it
    calls, which ``torch.profiler`` times. The losses are collected as a run's log does, and fetched from the device at
    the end; nothing is written, and states and scores, which a run makes now and then, are left out. On a GPU each part
    ends with a synchronisation, so that it has its own time; parts that overlap in a run then stand one after the
    other. Raises InputError for less than one step, and as ``srlib.runs`` does for a training that cannot be.
    """
    if steps < 1 or warmup < 1:
        raise InputError(f"{warmup} steps before {steps} cannot be timed: give 1 or more of each")
    settings, fabric = config.train, Fabric(accelerator=device, devices=1, precision=config.train.precision)
    patches, objective, losses = make_patches(config, store, device), make_objective(settings), []
    edges: list[float] = []

    def synchronise() -> None:
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)

    @contextmanager
    def part(name: str) -> Iterator[None]:
        with record_function(f"srlib {name}"):
            yield
            synchronise()

    def within(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            with part(name):
                return function(*arguments, **options)

        return wrapped

    def on_start(state: State) -> None:
        state.follow = within("average", state.follow)
        state.optimizer.register_step_post_hook(lambda *_: synchronise())

    def on_step(state: State, loss: torch.Tensor) -> None:
        losses.append(loss)
        if state.step == warmup:
            synchronise()
            profiler.start()
            edges.append(time.perf_counter())
        if state.step == warmup + steps:
            torch.stack(losses).mean().item()
            edges.append(time.perf_counter())
            profiler.stop()
            raise _Enough

    fabric.backward = within("backward", fabric.backward)
    profiler = profile(activities=[ProfilerActivity.CPU], acc_events=True)
    try:
        train(
            initial(config, Path()), within("data", patches.batch), within("forward", objective), settings, fabric,
            on_start=on_start, on_step=on_step, on_save=lambda state: None, save_every=settings.steps,
        )  # fmt: skip
    except _Enough:
        pass
    total = (edges[1] - edges[0]) / steps
    parts = dict.fromkeys(PARTS[:-1], 0.0)
    for event in profiler.key_averages():  # torch has ranges of its own about an optimiser's methods
        name = "optimiser" if event.key.startswith("Optimizer.") else event.key.removeprefix("srlib ")
        if name in parts:
            parts[name] += event.cpu_time_total / 1e6 / steps
    return StepTime(total, parts | {"rest": total - sum(parts.values())}, steps, describe_device(device))


class _Enough(Exception):
    """All steps are timed."""
