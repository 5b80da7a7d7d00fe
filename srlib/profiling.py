"""Where a training step's time goes: the loop of ``srlib.train`` under ``torch.profiler``; and how long a step takes
of one network beside others, without it."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.profiler import ProfilerActivity, profile, record_function

from srlib.complexity import describe_device, yardstick
from srlib.data import Store, find
from srlib.errors import InputError
from srlib.models import takes_scale
from srlib.processes import arithmetic
from srlib.runs import RunConfig, check_writable, configure, initial, make_patches, write_json
from srlib.train import State, make_objective, train

COMPARED = ("safmn", "seemore-t", "ssiu", "moeisr-liif-s-edsr")  # one network of each paper, trained alike
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
    settings = config.train
    fabric = Fabric(accelerator=device, devices=1, **arithmetic(device, settings.precision))
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


def alternating(
    configs: Mapping[str, RunConfig],
    store: Store,
    *,
    rounds: int = 9,
    steps: int = 3,
    warmup: int = 1,
    device: str = "cpu",
) -> dict[str, tuple[float, ...]]:
    """Seconds of a training step of each of ``configs`` in each of some rounds, (rounds,) by name.

    In a round every training runs once, ``warmup`` steps and then ``steps`` that are timed, on fresh weights, by the
    loop itself; so whatever else the machine does meanwhile falls on all of them alike. States and scores are left out.
    Raises InputError for less than one round or step, and as ``srlib.runs`` does for a training that cannot be.
    """
    if min(rounds, steps, warmup) < 1:
        raise InputError(f"{rounds} rounds of {warmup} and {steps} steps can't be timed: give 1 or more of each")
    found: dict[str, list[float]] = {name: [] for name in configs}
    batches = {name: make_patches(config, store, device) for name, config in configs.items()}
    for _ in range(rounds):
        for name, config in configs.items():
            fabric, edges = Fabric(accelerator=device, devices=1, **arithmetic(device, config.train.precision)), []

            def on_step(state: State, loss: torch.Tensor, edges: list[float] = edges) -> None:
                if state.step in (warmup, warmup + steps):
                    loss.item()
                    edges.append(time.perf_counter())
                if len(edges) == 2:
                    raise _Enough

            try:
                train(
                    initial(config, Path()), batches[name].batch, make_objective(config.train), config.train, fabric,
                    on_start=lambda state: None, on_step=on_step, on_save=lambda state: None,
                    save_every=config.train.steps,
                )  # fmt: skip
            except _Enough:
                pass
            if len(edges) < 2:
                raise InputError(f"{name} has {config.train.steps} steps, fewer than are timed: give a longer training")
            found[name].append((edges[1] - edges[0]) / steps)
    return {name: tuple(times) for name, times in found.items()}


def record_steps(
    path: Path | str,
    models: Sequence[str] = COMPARED,
    *,
    budget: str = "equal",
    scale: int = 4,
    images: str = "photos/train",
    rounds: int = 9,
) -> dict[str, Any]:
    """Time a training step of each of ``models`` at a budget (:func:`alternating`), and write the record to ``path``.

    The record has "seconds", by model the "median" over ``rounds`` and the "spread" from the least to the most; the
    "unit", the seconds of :func:`srlib.complexity.yardstick` in the same process; device and threads; and the
    "command" that makes it again. On the CPU: a step's time depends on the size of patches, not on what they show.
    Raises InputError for names that there aren't, and where the record can't be written.
    """
    here = Path(path).resolve()
    if not here.is_relative_to(Path.cwd()):
        raise InputError(f"{path} is not below the working folder, where the recorded command starts: give one that is")
    check_writable(here)
    store = Store.open(find(images))
    configs = {
        model: configure(model, scale if takes_scale(model) else None, store, budget=budget) for model in models
    }
    unit = yardstick()()
    found = alternating(configs, store, rounds=rounds)
    given = {"models": tuple(models), "budget": budget, "scale": scale, "images": images, "rounds": rounds}
    usual = {"models": COMPARED, "budget": "equal", "scale": 4, "images": "photos/train", "rounds": 9}
    options = (f"{name}={json.dumps(value)}" for name, value in given.items() if value != usual[name])
    call = ", ".join([json.dumps(here.relative_to(Path.cwd()).as_posix()), *options])
    record = {
        "what": f"one training step at budget {budget}, x{scale}: batch, forward, loss, backward, optimiser; all "
        "networks in one process, in turn",
        "command": ["python", "-c", f"from srlib.profiling import record_steps; record_steps({call})"],
        "device": describe_device("cpu"),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "seconds": {
            model: {"median": statistics.median(times), "spread": [min(times), max(times)]}
            for model, times in found.items()
        },
        "unit": unit,
    }
    write_json(Path(path), record)
    return record


class _Enough(Exception):
    """All steps are timed."""
