"""A run's log: CSV files that survive resuming, TensorBoard events, and a progress bar where somebody watches."""

import csv
import io
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, stack
from tqdm.auto import tqdm

from srlib.checkpoints import reported, synchronise, write
from srlib.errors import InputError

_NUMBER = r"\d+(\.\d*)?(e[+-]?\d{1,3})?"  # as Python writes one


def someone_watches() -> bool:
    """Whether to draw a progress bar: in a terminal or a live notebook; elsewhere (batch, CI, papermill) one summary
    line is better.

    The environment variable SRLIB_PROGRESS, ``bar`` or ``line``, overrules the guess.
    """
    wish = os.environ.get("SRLIB_PROGRESS")
    if wish in ("bar", "line"):
        return wish == "bar"
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Log:
    """Collects losses without waiting for the device and writes their means, every ``every`` steps, to
    ``folder/log.csv``.

    Columns: step, loss (mean over the last ``every`` steps), lr, seconds. ``folder/validation.csv`` has step, psnr,
    ssim, seconds. ``resume(step)`` drops rows after ``step``, so that a resumed run's log has neither gaps nor
    doubles. Of several processes that train a run together, the ``quiet`` ones collect and write nothing. Raises
    InputError where the files can't be written.
    """

    TRAINING = ("step", "loss", "lr", "seconds")
    VALIDATION = ("step", "psnr", "ssim", "seconds")

    def __init__(self, folder: Path, *, every: int, total: int, title: str, quiet: bool = False) -> None:
        self.folder, self.every, self.total, self.title, self.quiet = folder, every, total, title, quiet
        self.pending: list[Tensor] = []
        self.bar: tqdm | None = None
        self.events: Any = None

    def resume(self, step: int, pending: Sequence[Tensor] = ()) -> None:
        """Open the log for a run that goes on after ``step`` steps (0: a new run); ``pending`` are the losses of the
        last steps, which have no row yet."""
        self.pending = list(pending)
        if self.quiet:
            return
        for name, columns in (("log.csv", self.TRAINING), ("validation.csv", self.VALIDATION)):
            write(self.folder / name, kept(self.folder / name, columns, step))
        self.bar = tqdm(total=self.total, initial=step, desc=self.title, unit="step", disable=not someone_watches())
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # TensorBoard is an extra
            return
        with reported(self.folder / "tensorboard"):
            self.events = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def rows(self, name: str) -> list[dict[str, float]]:
        """The whole rows of one of the two files, [] where it isn't there yet."""
        path = self.folder / name
        return read_csv(path) if path.exists() else []

    def training(
        self, step: int, loss: Tensor, lr: float, seconds: float, mean: Callable[[Tensor], Tensor]
    ) -> list[float]:
        """Note one step's loss; whenever a row is written, returns the ``every`` losses of which it is the mean, else
        []. ``mean`` takes such losses' means over the processes that train together."""
        self.pending.append(loss)
        if self.bar is not None:
            self.bar.update()
        if step % self.every and step != self.total:
            return []
        losses = mean(stack(self.pending)).tolist()
        self.pending.clear()
        average = math.fsum(losses) / len(losses)
        self._write("log.csv", self.TRAINING, (step, average, lr, round(seconds, 3)), prefix="train")
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{average:.4f}", refresh=False)
        return losses

    def validation(self, step: int, psnr: float, ssim: float, seconds: float) -> None:
        """Note the held-out scores after ``step`` steps."""
        self._write("validation.csv", self.VALIDATION, (step, psnr, ssim, round(seconds, 3)), prefix="held-out")

    def settle(self) -> None:
        """Have the disk hold all rows that were written (fsync), before the state that goes with them is saved."""
        if not self.quiet:
            for name in ("log.csv", "validation.csv"):
                with reported(self.folder / name):
                    synchronise(self.folder / name)
        if self.events is not None:
            with reported(self.folder / "tensorboard"):
                self.events.flush()

    def close(self, line: str = "") -> None:
        """End the log; print ``line`` where there was no progress bar."""
        if self.events is not None:
            with suppress(OSError):  # of a full disk, which has been said
                self.events.close()
        if self.bar is not None:
            watched = not self.bar.disable
            self.bar.close()
            if line and not watched:
                print(line, flush=True)

    def _write(self, name: str, columns: tuple[str, ...], row: tuple, prefix: str) -> None:
        if self.quiet:
            return
        with reported(self.folder / name), open(self.folder / name, "a", newline="") as file:
            csv.writer(file).writerow(row)
        if self.events is not None:
            with reported(self.folder / "tensorboard"):
                for column, value in zip(columns[1:-1], row[1:-1], strict=True):
                    self.events.add_scalar(f"{prefix}/{column}", value, row[0])


def kept(path: Path, columns: Sequence[str], step: int) -> bytes:
    """The bytes of a log up to the row of ``step``: what comes after it, whole or not, belongs to no saved state."""
    lines = path.read_bytes().splitlines(keepends=True)[1:] if path.exists() else []
    parts = [",".join(columns).encode() + b"\r\n"]
    for line in lines:
        first = line.partition(b",")[0]
        whole = line.endswith(b"\n") and line.count(b",") == len(columns) - 1 and first.isdigit()
        if not whole or int(first) > step:
            break
        parts.append(line)
    return b"".join(parts)


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of a log as numbers; ``step`` is whole and grows. A last line cut off by a crash is left out.

    Raises InputError for a file that is missing, has other columns than a ``Log``, or values that are no numbers; a
    loss or a score may be infinite or NaN, as a run that collapses has it.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        whole = text[: text.rfind("\n") + 1]
        columns, *lines = csv.reader(io.StringIO(whole, newline=""), strict=True) if whole else [[*Log.TRAINING]]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a log ({error}): delete the run's folder and train again") from None
    if tuple(columns) not in (Log.TRAINING, Log.VALIDATION):
        raise InputError(f"{path} has the columns {','.join(columns)!r:.80}, not a log's: delete the run's folder")
    rows: list[dict[str, float]] = []
    for place, line in enumerate(lines, 2):
        fit = len(line) == len(columns) and all(map(_fits, columns, line))
        if not fit or (rows and int(line[0]) <= rows[-1]["step"]):
            raise InputError(f"line {place} of {path} is damaged ({','.join(line)!r:.80}): delete the run's folder")
        values = zip(columns, line, strict=True)
        rows.append({key: int(value) if key == "step" else float(value) for key, value in values})
    return rows


def _fits(column: str, value: str) -> bool:
    """Whether a value can stand in a column of a log."""
    if column in ("step", "lr", "seconds"):
        return re.fullmatch(r"\d{1,18}" if column == "step" else _NUMBER, value, re.ASCII) is not None
    return re.fullmatch(rf"-?({_NUMBER}|inf)|nan", value, re.ASCII) is not None
