"""A run's log: rows that travel in its checkpoints and are written as CSV files at each save, and a progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm.auto import tqdm

from srlib.checkpoints import write
from srlib.train import State

COLUMNS = {"log": ("step", "loss", "lr", "seconds"), "validation": ("step", "psnr", "ssim", "seconds")}


class Log:
    """Rows of ``log.csv``, one for ``every`` steps with their mean loss, and of ``validation.csv``, one for each time
    that the held-out images are scored. Losses are collected without waiting for the device. The bar is drawn in a
    terminal or a notebook, unless SRLIB_PROGRESS is set."""

    def __init__(self, every: int, total: int, title: str, fabric: Fabric) -> None:
        self.every, self.total, self.fabric = every, total, fabric
        self.rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in COLUMNS}
        self.pending: list[Tensor] = []
        watched = (sys.stderr.isatty() or "ipykernel" in sys.modules) and "SRLIB_PROGRESS" not in os.environ
        self.bar = tqdm(total=total, desc=title, unit="step", disable=not (watched and fabric.is_global_zero))

    def loss(self, loss: Tensor, state: State) -> list[float]:
        """Add a step's loss. Returns the losses of a row that is now full, means over the processes, else []."""
        self.pending.append(loss)
        self.bar.update()
        if state.step % self.every and state.step != self.total:
            return []
        losses = self.losses().tolist()
        self.pending.clear()
        rate = float(state.schedule.get_last_lr()[0])
        self.rows["log"].append((state.step, fmean(losses), rate, round(state.seconds, 3)))
        self.bar.set_postfix(loss=f"{fmean(losses):.4f}", refresh=False)
        return losses

    def losses(self) -> Tensor:
        """The losses that have no row yet, means over the processes."""
        losses = torch.stack(self.pending) if self.pending else torch.empty(0, device=self.fabric.device)
        return cast(Tensor, self.fabric.all_reduce(losses, reduce_op="mean")).cpu()

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"rows": self.rows, "pending": self.losses()}

    def restore(self, parts: Mapping[str, Any], step: int) -> None:
        """Take over what ``parts`` gave after ``step`` steps."""
        self.rows, self.pending = parts["rows"], list(parts["pending"].to(self.fabric.device))
        self.bar.update(step)

    def write(self, folder: Path) -> None:
        """Write both files."""
        for name, rows in self.rows.items():
            frame = pd.DataFrame(rows, columns=COLUMNS[name])
            write(folder / f"{name}.csv", frame.to_csv(index=False).encode())
