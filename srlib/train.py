"""The training loop: one visible function, with its settings and its resumable state."""

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from srlib.errors import InputError
from srlib.losses import l1_balance, l1_fft

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class TrainConfig:
    """Everything but the data and the network that determines trained weights; the defaults are SAFMN's (Sec. 4.1 and
    its release).

    ``patch`` is the side of an LR patch in pixels, ``milestones`` are steps, ``ema_decay`` 0 switches the average
    off, ``degradation`` is what makes LR patches of HR ones, ``precision`` is Fabric's.

    ``queries`` 0 compares whole patches. Another number is that of output pixels asked of a network for every scale, in
    patches at a random one between the two ``scales`` (LIIF; MoEISR, Sections 3.3, 3.4). ``l1_weight`` is then alpha,
    ``balance_weight`` beta and ``expert_weights`` the w_j of MoEISR's Equations 6 and 7, () for 1 each.

    Raises InputError for values that no training can use.
    """

    steps: int = 500_000
    batch: int = 64
    patch: int = 64
    optimizer: Literal["adam", "adamw"] = "adam"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    lr: float = 1e-3
    lr_final: float = 1e-5
    schedule: Literal["cosine", "multistep"] = "cosine"
    milestones: tuple[int, ...] = ()
    lr_decay: float = 0.5
    fft_weight: float = 0.05
    ema_decay: float = 0.999
    degradation: Literal["bicubic", "real-esrgan"] = "bicubic"
    queries: int = 0
    scales: tuple[float, float] = (1.0, 4.0)
    l1_weight: float = 1.0
    balance_weight: float = 0.0
    expert_weights: tuple[float, ...] = ()
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("steps", "batch", "patch"):
            if not _whole(getattr(self, field), 1):
                raise InputError(f"{field} is {getattr(self, field)!r}: give a whole number from 1 up")
        if not _whole(self.queries, 0):
            raise InputError(f"queries is {self.queries!r}: give a whole number from 1 up, or 0 for whole patches")
        if not _whole(self.seed, 0):
            raise InputError(f"seed is {self.seed!r}: give a whole number from 0 to 2^63 - 1")
        if not (_real(self.lr) and self.lr > 0):
            raise InputError(f"lr is {self.lr!r}: give a positive number, such as 1e-3")
        for field in ("lr_final", "weight_decay", "fft_weight", "lr_decay", "l1_weight", "balance_weight"):
            if not _real(getattr(self, field)):
                raise InputError(f"{field} is {getattr(self, field)!r}: give a number from 0 up")
        for field in ("betas", "milestones", "scales", "expert_weights"):
            if not isinstance(getattr(self, field), tuple):
                raise InputError(f"{field} is {getattr(self, field)!r}: give a tuple of numbers, such as (1, 4)")
        if len(self.betas) != 2 or not all(_real(part) and part < 1 for part in (*self.betas, self.ema_decay)):
            raise InputError(f"ema_decay {self.ema_decay!r} or betas {self.betas}: give numbers from 0 to below 1")
        if not all(_whole(step, 0) for step in self.milestones):
            raise InputError(f"milestones are {self.milestones}: give steps from 0 up")
        if not (len(self.scales) == 2 and all(map(_real, self.scales)) and 1 <= self.scales[0] <= self.scales[1]):
            raise InputError(f"scales are {self.scales}: give the least and the greatest, from 1 up, such as (1, 4)")
        if not all(map(_real, self.expert_weights)):
            raise InputError(f"expert_weights are {self.expert_weights}: give numbers from 0 up")
        choices = {
            "optimizer": ("adam", "adamw"),
            "schedule": ("cosine", "multistep"),
            "degradation": ("bicubic", "real-esrgan"),
            "precision": ("32-true", "bf16-mixed"),
        }
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise InputError(f"{field} is {getattr(self, field)!r}: choose one of {', '.join(known)}")
        if self.queries and self.fft_weight:
            raise InputError(f"fft_weight is {self.fft_weight} with queries, which have no spectrum: give 0")
        if self.queries and self.degradation != "bicubic":
            raise InputError(f"degradation is {self.degradation} with queries, whose LR patches are bicubic: leave it")


def _whole(value: object, least: int) -> bool:
    """Whether a setting is a whole number, from ``least`` to what 63 bits hold."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _real(value: object) -> bool:
    """Whether a setting is a finite number from 0 up."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300


class Diverged(ArithmeticError):
    """The training has collapsed; ``step`` (counted from 1) is the first whose loss shows it, ``reason`` says how."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"collapsed at step {step}: {reason}")
        self.step, self.reason = step, reason


class Watch:
    """Ends a training that has collapsed: one whose loss is no finite number, or far above what it was for long.

    It looks at the rows of a log, means over some steps. A row is high if it is more than ``FACTOR`` times the median
    of the last ``MEMORY`` rows that were not; ``LONG`` high rows in a row are a collapse, or half as many at the end of
    the run. High rows are not remembered, so that the median does not follow them. Twice the error is 6 dB: a network
    that has lost them and does not find them again in 10 rows, at least a tenth of what the shortest runs last and a
    thousand steps of a long one, has lost what it had learnt. That is how SAFMN's training without layer norm ends at a
    learning rate of 1e-3 (Table 3, "taken before the training collapse"). A training that goes well has a high row now
    and then, of a hard batch, not two after each other.

    What it does depends on the rows alone, so that a resumed run is watched as an uninterrupted one is. ``since`` is
    the first step of the high rows up to now, None if the last row was not high.
    """

    FACTOR, MEMORY, LEAST, LONG = 2.0, 50, 10, 10

    def __init__(self) -> None:
        self.calm: deque[float] = deque(maxlen=self.MEMORY)
        self.high = 0
        self.since: int | None = None

    def look(self, first: int, losses: Sequence[float], last: bool = False) -> None:
        """Look at a row: the losses of the steps from ``first`` on; ``last`` says that the run ends with them. Raises
        Diverged."""
        for step, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise Diverged(step, "the loss is not finite")
        self.row(first, math.fsum(losses) / len(losses))
        if self.since is not None and self.high >= (self.LONG // 2 if last else self.LONG):
            raise Diverged(self.since, f"the loss stays above {self.FACTOR:g} times its median")

    def row(self, first: int, mean: float) -> None:
        """Note a row's mean."""
        if len(self.calm) >= self.LEAST and mean > self.FACTOR * median(self.calm):
            self.since = self.since or first
            self.high += 1
        else:
            self.calm.append(mean)
            self.since, self.high = None, 0


class State:
    """What a training run carries from step to step, and from one process to the next: network, average, optimiser,
    schedule."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.decay = config.ema_decay
        self.optimizer = make_optimizer(model, config)
        self.schedule = make_schedule(self.optimizer, config)
        self.step = 0
        self.seconds = 0.0
        self._weights = [parameter.detach() for parameter in model.parameters()], list(self.average.parameters())
        self._buffers = list(model.buffers()), list(self.average.buffers())

    @torch.no_grad()
    def follow(self) -> None:
        """Have the average follow the weights: w to ``decay`` w + (1 - ``decay``) times the network's, all in one call;
        after the first step, and at a decay of 0, they are the network's. Buffers (statistics) are the network's too.
        """
        weights, averages = self._weights
        if self.step and self.decay:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        else:
            torch._foreach_copy_(averages, weights)
        for buffer, copied in zip(*self._buffers, strict=True):
            copied.copy_(buffer)

    def parts(self) -> dict[str, Any]:
        """All of it by name, as nested dictionaries and lists of tensors and numbers."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer", "schedule")}
        return parts | {"step": self.step, "seconds": self.seconds}

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Take over what ``parts`` gave."""
        for name in ("model", "average", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(parts[name])
        self.step, self.seconds = parts["step"], parts["seconds"]


def train(
    model: nn.Module,
    batch: Callable[[int], Batch],
    objective: Callable[[nn.Module, Batch], Tensor],
    config: TrainConfig,
    fabric: Fabric,
    *,
    on_start: Callable[[State], None],
    on_step: Callable[[State, Tensor], None],
    on_save: Callable[[State], None],
    save_every: int,
    compile: bool = False,
) -> nn.Module:
    """Train ``model`` for ``config.steps`` steps and return the network to evaluate: the average of its weights
    (SAFMN's release), which is the weights themselves where ``ema_decay`` is 0 (SeemoRe's).

    ``batch(step)`` gives tensors as a pure function of the step, so that a resumed run sees the batches of an
    uninterrupted one; ``objective(network, batch)`` gives their loss, a scalar (see :func:`make_objective`). What a
    network draws at random meanwhile (Gumbel noise) depends on seed and step alone too. ``on_start`` may put an earlier
    state into the one that it gets, ``on_step`` gets each step's loss without a synchronisation, and ``on_save`` comes
    every ``save_every`` steps and at the end. Whatever a callback raises (such as Diverged) ends the run.
    """
    model = model.to(fabric.device, memory_format=torch.channels_last).train()
    state = State(model, config)
    on_start(state)
    network, optimizer = fabric.setup(torch.compile(model) if compile else model, state.optimizer)
    started = time.perf_counter() - state.seconds
    while state.step < config.steps:
        with draws(config.seed, state.step, fabric.device):
            loss = objective(network, batch(state.step))
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        state.schedule.step()
        state.follow()
        state.step += 1
        state.seconds = time.perf_counter() - started
        on_step(state, loss.detach())
        if state.step % save_every == 0 or state.step == config.steps:
            on_save(state)
    return state.average.eval()


@contextmanager
def draws(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Torch's random numbers as a function of seed and step; what was drawn on the device is put back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]))
        yield


def make_objective(config: TrainConfig) -> Callable[[nn.Module, Batch], Tensor]:
    """The loss that a network is trained for, as a function of the network and a batch.

    A batch of whole patches is LR and HR, ``(B, 3, h, w)`` and ``(B, 3, h s, w s)`` in [0, 1]; one of queries is LR,
    places and cells in [-1, 1] and colours in [0, 1]: ``(B, 3, h, w)``, ``(B, Q, 2)``, ``(B, 2)`` and ``(B, Q, 3)``.
    """

    def whole(network: nn.Module, batch: Batch) -> Tensor:
        lr, hr = batch
        return l1_fft(network(lr), hr, config.fft_weight)

    def queried(network: nn.Module, batch: Batch) -> Tensor:
        lr, coord, cell, target = batch
        rgb, gates = network(lr, coord=coord, cell=cell)
        return l1_balance(rgb, target, gates, config.l1_weight, config.balance_weight, config.expert_weights)

    return queried if config.queries else whole


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Adam or AdamW over all parameters, in one fused kernel."""
    kind = {"adam": Adam, "adamw": AdamW}[config.optimizer]
    return kind(model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def make_schedule(optimizer: Optimizer, config: TrainConfig) -> LRScheduler:
    """One cosine from ``lr`` to ``lr_final`` over all steps (SAFMN, SSIU), or ``lr`` times ``lr_decay`` at each
    milestone (SeemoRe)."""
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=config.steps, eta_min=config.lr_final)
    return MultiStepLR(optimizer, milestones=list(config.milestones), gamma=config.lr_decay)
