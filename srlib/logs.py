"""A run's log: rows that travel in its checkpoints and are written as CSV files at each save, a progress bar, and the
watch over its losses that ends a training that has collapsed."""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, cast

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm.auto import tqdm

from srlib.errors import write
from srlib.train import State

COLUMNS = {"log": ("step", "loss", "lr", "seconds"), "validation": ("step", "psnr", "ssim", "seconds")}


@dataclass(eq=False)
class Diverged(ArithmeticError):
    """The training has collapsed; ``step`` (counted from 1) is the first whose loss shows it, ``reason`` says how."""

    step: int
    reason: str


class Watch:
    """Ends a training of so many ``steps`` that has collapsed: its loss is not finite, or stays far above its median.

    It looks at the rows of a log, means over some steps. A row is high if it is above ``FACTOR`` times (6 dB) the
    median of the last ``MEMORY`` that were not. ``LONG`` high rows in a row are a collapse, or half as many at the end
    of the run. So ends SAFMN without layer norm at a learning rate of 1e-3 (Table 3, "taken before the training
    collapse"); a healthy training has a single high row now and then."""

    FACTOR, MEMORY, LEAST, LONG = 2.0, 50, 10, 10

    def __init__(self, steps: int) -> None:
        self.steps, self.step = steps, 0
        self.calm: deque[float] = deque(maxlen=self.MEMORY)
        self.high: list[int] = []  # the first step of each of the high rows up to now

    def look(self, step: int, losses: Sequence[float]) -> None:
        """Look at the losses of the row that ends at ``step``, or at their mean alone. Raises Diverged."""
        first, self.step = self.step + 1, step
        for number, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise Diverged(number, "the loss is not finite")
        mean = fmean(losses)
        if len(self.calm) < self.LEAST or mean <= self.FACTOR * median(self.calm):
            self.calm.append(mean)
            self.high.clear()
        else:
            self.high.append(first)
        if len(self.high) >= (self.LONG // 2 if step == self.steps else self.LONG):
            raise Diverged(self.high[0], f"the loss stays above {self.FACTOR:g} times its median")


class Log:
    """Rows of ``log.csv``, one for ``every`` steps with their mean loss, and of ``validation.csv``, one for each time
    that the held-out images are scored. Losses are collected without waiting for the device. The bar is drawn in a
    terminal or a notebook, unless SRLIB_PROGRESS is set."""

    def __init__(self, every: int, steps: int, title: str, fabric: Fabric) -> None:
        self.every, self.steps, self.fabric, self.watch = every, steps, fabric, Watch(steps)
        self.rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in COLUMNS}
        self.pending: list[Tensor] = []  # losses that have no row yet
        watched = (sys.stderr.isatty() or "ipykernel" in sys.modules) and "SRLIB_PROGRESS" not in os.environ
        self.bar = tqdm(total=steps, desc=title, unit="step", disable=not (watched and fabric.is_global_zero))

    def add_loss(self, loss: Tensor, state: State) -> None:
        """Add a step's loss, and a row where it is full. Raises Diverged."""
        self.pending.append(loss)
        self.bar.update()
        if state.step % self.every == 0 or state.step == self.steps:
            losses = self.losses().tolist()
            self.pending.clear()
            rate = float(state.schedule.get_last_lr()[0])
            mean = fmean(losses)
            self.rows["log"].append((state.step, mean, rate, round(state.seconds, 3)))
            self.bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            self.watch.look(state.step, losses)

    def add_scores(self, scores: Mapping[str, Any], state: State) -> None:
        """Add a row of scores on the held-out images."""
        self.rows["validation"].append((state.step, scores["psnr"], scores["ssim"], round(state.seconds, 3)))

    def losses(self) -> Tensor:
        """The losses that have no row yet, means over the processes."""
        losses = torch.stack(self.pending) if self.pending else torch.empty(0, device=self.fabric.device)
        return cast(Tensor, self.fabric.all_reduce(losses, reduce_op="mean")).cpu()

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds of it; to be asked for in all processes at once."""
        return {"rows": self.rows, "pending": self.losses()}

    def restore(self, parts: Mapping[str, Any], step: int) -> None:
        """Take over what ``parts`` gave after ``step`` steps."""
        self.rows, self.pending = parts["rows"], list(parts["pending"].to(self.fabric.device))
        self.bar.update(step)
        for last, mean, *_ in self.rows["log"]:
            self.watch.look(int(last), [mean])

    def write(self, folder: Path) -> None:
        """Write both files."""
        for name, rows in self.rows.items():
            frame = pd.DataFrame(rows, columns=COLUMNS[name])
            write(folder / f"{name}.csv", frame.to_csv(index=False).encode())
