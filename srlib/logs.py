"""A run's log: rows that travel in its checkpoints and are written as CSV files at each save, and a progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from srlib.train import State

COLUMNS = {"log": ("step", "loss", "lr", "seconds"), "validation": ("step", "psnr", "ssim", "seconds")}


def someone_watches() -> bool:
    """Whether to draw a progress bar: in a terminal or a notebook, unless SRLIB_PROGRESS is ``line`` or ``bar``."""
    wish = os.environ.get("SRLIB_PROGRESS")
    return wish == "bar" if wish else sys.stderr.isatty() or "ipykernel" in sys.modules


class Log:
    """Rows of ``log.csv``, one for ``every`` steps with their mean loss, and of ``validation.csv``, one for each time
    that the held-out images are scored. Losses are collected without waiting for the device."""

    def __init__(self, every: int, total: int, title: str, first: bool) -> None:
        self.every, self.total = every, total
        self.rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in COLUMNS}
        self.pending: list[Tensor] = []
        self.bar = tqdm(total=total, desc=title, unit="step", disable=not (first and someone_watches()))

    def loss(self, loss: Tensor, mean: Callable[[Tensor], Tensor], state: State) -> list[float]:
        """Add a step's loss. Returns the losses of a row that is now full, else []; ``mean`` is over processes."""
        self.pending.append(loss)
        self.bar.update()
        if state.step % self.every and state.step != self.total:
            return []
        losses = mean(torch.stack(self.pending)).tolist()
        self.pending.clear()
        rate = float(state.schedule.get_last_lr()[0])
        self.rows["log"].append((state.step, fmean(losses), rate, round(state.seconds, 3)))
        self.bar.set_postfix(loss=f"{fmean(losses):.4f}", refresh=False)
        return losses

    def parts(self, mean: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What a checkpoint holds of it: the rows, and the losses that have none yet."""
        return {"rows": self.rows, "pending": mean(torch.stack(self.pending)).cpu() if self.pending else torch.empty(0)}

    def restore(self, parts: Mapping[str, Any], step: int, device: torch.device) -> None:
        """Take over what ``parts`` gave after ``step`` steps."""
        self.rows, self.pending = parts["rows"], list(parts["pending"].to(device))
        self.bar.update(step)

    def files(self) -> dict[str, bytes]:
        """The content of both files."""
        frames = {f"{name}.csv": pd.DataFrame(rows, columns=COLUMNS[name]) for name, rows in self.rows.items()}
        return {name: frame.to_csv(index=False).encode() for name, frame in frames.items()}
