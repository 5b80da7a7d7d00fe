"""Who trains a run, and until when: signals, the lock on its folder, and several processes that train it together."""

import logging
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

import torch
from filelock import FileLock, SoftFileLock, Timeout
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from srlib.checkpoints import reported, say
from srlib.errors import InputError, Stopped
from srlib.train import Batch

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
NOT_BEGUN = "stopped before the first step; the same command goes on"
AGREE = 10  # steps after which several processes ask each other, at the latest, whether to stop
ASK_AGAIN = 60  # seconds after which several processes that wait tell each other so
RANDOM = (torch.ops.aten.exponential_.default, torch.ops.aten.bernoulli_.float)


class Signals:
    """Takes note of signals that ask to stop while it is entered, and puts the earlier handlers back after that.

    Ctrl-C (SIGINT), SIGTERM (a scheduler's, before it kills), SIGHUP (the terminal is gone), SIGUSR1 and SIGUSR2
    (schedulers' warnings: Slurm's ``--signal``, LSF, Grid Engine) and SIGXCPU; one that is ignored (``nohup``) stays
    so. The loop looks at ``asked`` after each step. A second Ctrl-C is a KeyboardInterrupt at once. In another thread
    than the main one Python hands out no signals, and nothing is done.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._first = 0.0
        self._line = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._first = signal.Signals(number).name, time.monotonic()
            if self._line:
                raise Stopped(self._line)
        elif number == signal.SIGINT and time.monotonic() - self._first > 0.5:  # some launchers send each signal twice
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self, line: str) -> Iterator[None]:
        """While all that counts is saved: a signal ends the work where it is, as Stopped with this line."""
        self._line = line
        try:
            if self.asked:
                raise Stopped(line)
            yield
        finally:
            self._line = ""


class Mixed(MixedPrecision):
    """Mixed precision that leaves a network's inputs as they are. Fabric's rounds them: bfloat16 steps by 1/256 between
    1/2 and 1, so that LR pixels are no longer those of the image, and places are far off."""

    def convert_input(self, data: Any) -> Any:
        """``data`` itself."""
        return data


def arithmetic(device: str, precision: str) -> dict[str, Any]:
    """Fabric's arguments for a precision."""
    return {"precision": precision} if precision == "32-true" else {"plugins": [Mixed(precision, device)]}


class Group:
    """The processes that train one run together, each on a part of each batch; mostly one alone.

    The first one writes, scores and prints. All hold the same weights: a step's gradient is the mean over the
    processes, which is that of the whole batch, as their parts are equally large and each loss is a mean over images.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric, self.rank, self.size = fabric, fabric.global_rank, fabric.world_size
        self.first = self.rank == 0

    @classmethod
    def start(cls, device: str, precision: str) -> "Group":
        """This process, or, where ``torchrun`` has started several, the group of them (Fabric's DDP; gloo on CPUs, NCCL
        on GPUs, one for each process). Raises InputError where there are fewer GPUs than processes on a machine."""
        size = here = 1
        if torch.distributed.is_torchelastic_launched():
            size, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if size == 1:
            return cls(Fabric(accelerator=device, devices=1, **arithmetic(device, precision)))
        if device == "cuda" and torch.cuda.device_count() < here:
            raise InputError(
                f"{here} processes on {torch.cuda.device_count()} GPUs: give torchrun --nproc-per-node "
                f"{torch.cuda.device_count()}, or srlib --device cpu"
            )
        options = arithmetic(device, precision)
        fabric = Fabric(accelerator=device, devices=here, num_nodes=size // here, strategy="ddp", **options)
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # which tells of each process that it is there
        fabric.launch()
        return cls(fabric)

    def check(self, model: nn.Module, batch: int, compile: bool, draws: bool) -> None:
        """Raise InputError for a training that several processes would not do as one does: a ``batch`` that has no
        equal parts, batch normalisation, and, with ``compile``, a network that ``draws`` at random."""
        wrong = ""
        if batch % self.size:
            wrong = f"a batch of {batch} has no {self.size} equal parts: start a number of processes that divides it"
        elif self.size > 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
            wrong = "batch normalisation takes its statistics over a whole batch: train this network in one process"
        elif self.size > 1 and compile and draws:
            wrong = "several processes share the noise that this network draws only without --compile: leave it out"
        if wrong:
            self.leave(InputError(wrong))

    def leave(self, error: BaseException) -> NoReturn:
        """Raise an error that all processes meet: the first one says it, the others end quietly, with its code."""
        if self.first:
            raise error
        sys.exit(75 if isinstance(error, Stopped) else 2)

    def once(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives, done by the first process and told to the others; so is an InputError or Stopped."""
        if self.size == 1:
            return work()
        found: tuple[Any, BaseException | None] = (None, None)
        if self.first:
            try:
                found = (work(), None)
            except (InputError, Stopped) as error:
                found = (None, error)
        value, told = self.fabric.broadcast(found)
        if told is not None:
            self.leave(told)
        return value

    def share(self, batch: Callable[[int], Batch]) -> Callable[[int], Batch]:
        """``batch``, of which this process gets its part: the images of the whole one in order, cut into equal parts.
        ``torchrun`` may start another number of processes when the run is resumed."""
        if self.size == 1:
            return batch

        def part(step: int) -> Batch:
            return tuple(tensor.chunk(self.size)[self.rank] for tensor in batch(step))

        return part

    def objective(self, objective: Callable[[nn.Module, Batch], Tensor]) -> Callable[[nn.Module, Batch], Tensor]:
        """``objective``, in which the network draws this process's part of what one process alone would draw."""
        if self.size == 1:
            return objective

        def shared(network: nn.Module, batch: Batch) -> Tensor:
            with SharedNoise(self.rank, self.size, len(batch[0])):
                return objective(network, batch)

        return shared

    def mean(self, losses: Tensor) -> Tensor:
        """The mean over the processes."""
        return losses if self.size == 1 else self.fabric.all_reduce(losses, reduce_op="mean")

    def stops(self, signals: Signals, step: int, every: int) -> bool:
        """Whether to stop after ``step``; several processes ask each other, each ``AGREE`` steps or ``every`` fewer."""
        if self.size == 1:
            return bool(signals.asked)
        if step % min(AGREE, every):
            return False
        asked = torch.tensor(float(bool(signals.asked)), device=self.fabric.device)
        return bool(self.fabric.all_reduce(asked, reduce_op="sum"))

    @contextmanager
    def together(self) -> Iterator[None]:
        """The loss of another process, as Stopped: nothing is lost but the steps since the last state."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not lost(error):
                raise
            raise Stopped(
                f"another of the {self.size} processes is gone; the same command goes on from the last saved step"
            ) from None


def lost(error: RuntimeError) -> bool:
    """Whether an error of torch says that another process does not answer."""
    words = ("Connection closed", "Connection reset", "Broken pipe")
    return isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in words)


class SharedNoise(TorchDispatchMode):
    """Random numbers of a process's part of a batch, as the part of those that one process draws for the whole batch.

    Gumbel noise and SwinIR's dropped branches are drawn so, image after image. Any other draw raises InputError.
    """

    def __init__(self, rank: int, size: int, images: int) -> None:
        super().__init__()
        self.part, self.images, self.whole = slice(rank * images, (rank + 1) * images), images, size * images

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in function.tags or without_dropout(function, args, kwargs or {}):
            return function(*args, **(kwargs or {}))
        if function not in RANDOM or args[0].shape[:1] != (self.images,):
            raise InputError(f"several processes cannot share what {function} draws: train this network in one process")
        drawn = torch.empty((self.whole, *args[0].shape[1:]), dtype=args[0].dtype, device=args[0].device)
        function(drawn, *args[1:], **(kwargs or {}))
        return args[0].copy_(drawn[self.part])


def without_dropout(function: Any, args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Whether a function of torch is an attention that drops nothing, and so draws nothing."""
    for place, argument in enumerate(function._schema.arguments):
        if argument.name == "dropout_p":
            return not (args[place] if place < len(args) else kwargs.get("dropout_p", argument.default_value))
    return False


@contextmanager
def held(folder: Path, group: Group, wait: bool, ended: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """The lock on a run's folder: one process, or group of them, at a time, so that nothing is trained twice.

    Whoever comes second says so in one line and waits until the first one ends, however it does: a lock (flock) ends
    with its process. Without ``wait`` it leaves with Stopped. Where the training has ``ended``, little is left
    to do, and it waits without a word. Raises InputError where the folder can't be locked.
    """
    lock, holder, said = FileLock(folder / ".lock"), folder / ".holder", False

    def taken() -> bool:
        nonlocal said
        with reported(folder / ".lock"):
            free = acquired(lock, ASK_AGAIN if said or ended() else 0)
        if not free and ended():
            return False
        if not free:
            by = who(holder)
            if not wait:
                raise Stopped(f"{folder.name} is being trained by {by}: wait for it, or leave out --no-wait")
            if not said:
                say(f"{folder.name} is being trained by {by}: waiting for it")
            said = True
            return False
        if isinstance(lock, SoftFileLock):
            say(f"{folder} is on a file system without locks: after a kill -9, delete {lock.lock_file}")
        with reported(holder):
            holder.write_text(f"process {os.getpid()} on {platform.node() or 'this machine'}", encoding="utf-8")
        return True

    while not group.once(taken):
        pass
    try:
        yield
    finally:
        if group.first:
            with suppress(OSError):
                holder.unlink()
            lock.release()


def acquired(lock: FileLock, seconds: float) -> bool:
    """Whether a lock could be had within some time."""
    try:
        lock.acquire(timeout=seconds)
    except Timeout:  # which is an OSError
        return False
    return True


def who(holder: Path) -> str:
    """Who holds a lock, as its file says."""
    try:
        return holder.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, ValueError):
        return "another process"
