"""The training loop: the settings of a training, its resumable state, and one visible loop."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from srlib.errors import InputError
from srlib.losses import l1_balance, l1_fft

Batch = tuple[Tensor, ...]
Objective = Callable[[nn.Module, Batch], Tensor]
Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything but the data and the network that determines trained weights. Each recipe in :mod:`srlib.papers`
    states every value. Raises InputError for values that no training can use."""

    steps: int
    """Number of optimiser steps; the schedule spans them."""
    batch: int
    """Patches in a batch, over all processes."""
    patch: int
    """Side of an LR patch in pixels."""
    optimizer: Literal["adam", "adamw"]
    """AdamW takes the weight decay apart from the gradient."""
    betas: tuple[float, float]
    """Decay rates of the optimiser's first and second moments."""
    weight_decay: float
    """Strength of the pull of weights to zero."""
    lr: float
    """Learning rate at the start."""
    lr_final: float
    """Learning rate at the end of the cosine; a multistep schedule does not use it."""
    schedule: Literal["cosine", "multistep"]
    """One cosine from ``lr`` to ``lr_final``, or ``lr`` times ``lr_decay`` at each milestone."""
    milestones: tuple[int, ...]
    """Steps after which a multistep schedule lowers the learning rate; () for a cosine."""
    lr_decay: float
    """Factor of a multistep schedule."""
    fft_weight: float
    """Weight of the L1 loss between spectra (:func:`srlib.losses.fft_l1`); 0 leaves it out."""
    ema_decay: float
    """Decay of the exponential moving average of the weights, which is then what is evaluated; 0: no average."""
    degradation: Literal["bicubic", "real-esrgan"]
    """What makes LR patches of HR ones."""
    queries: int
    """Output pixels that are asked of a network for every scale, for each patch (LIIF); 0 compares whole patches."""
    scales: tuple[float, float]
    """The least and the greatest scale, between which each patch of queries gets a random one."""
    l1_weight: float
    """Alpha of MoEISR's Equation 6; it counts for queries alone."""
    balance_weight: float
    """Beta of MoEISR's Equation 6; it counts for queries alone."""
    expert_weights: tuple[float, ...]
    """The w_j of MoEISR's Equation 7, one for each expert; () for 1 each."""
    precision: Precision = "32-true"
    """Fabric's name of the arithmetic; weights are float32 in each."""
    seed: int = 0
    """Decides initial weights, patches and what the network draws."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(kind)
            if get_origin(kind) is Literal:
                if value not in choices:
                    raise InputError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
            elif not all(0 <= number < 2**63 for number in (value if isinstance(value, tuple) else (value,))):
                raise InputError(f"{name} is {value!r}: give finite numbers from 0 up")
        if (
            not all(isinstance(number, int) and number for number in (self.steps, self.batch, self.patch))
            or not self.lr
        ):
            raise InputError(
                f"steps, batch and patch are {self.steps}, {self.batch} and {self.patch}, lr is {self.lr}: "
                "give whole numbers from 1 up, and a learning rate above 0"
            )
        if max(*self.betas, self.ema_decay) >= 1:
            raise InputError(f"betas are {self.betas} and ema_decay is {self.ema_decay}: give numbers below 1")
        if not 1 <= self.scales[0] <= self.scales[1]:
            raise InputError(f"scales are {self.scales}: give the least and the greatest, from 1 up, such as (1, 4)")
        if self.queries and (self.fft_weight or self.degradation != "bicubic"):
            raise InputError(
                "queries have no spectrum and bicubic LR patches: give fft_weight 0 and degradation bicubic"
            )


class Diverged(ArithmeticError):
    """The training has collapsed; ``step`` (counted from 1) is the first whose loss shows it, ``reason`` says how."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"collapsed at step {step}: {reason}")
        self.step, self.reason = step, reason


class Watch:
    """Ends a training that has collapsed: one whose loss is not finite, or stays far above its median.

    It looks at the rows of a log, means over some steps. A row is high if it is above ``FACTOR`` times (6 dB) the
    median of the last ``MEMORY`` that were not. ``LONG`` high rows in a row are a collapse, or half as many at the end
    of the run. So ends SAFMN without layer norm at a learning rate of 1e-3 (Table 3, "taken before the training
    collapse"); a healthy training has a single high row now and then. ``since`` is the first step of the high rows up
    to now, None if the last row was not high."""

    FACTOR, MEMORY, LEAST, LONG = 2.0, 50, 10, 10

    def __init__(self) -> None:
        self.calm: deque[float] = deque(maxlen=self.MEMORY)
        self.high = 0
        self.since: int | None = None

    def look(self, first: int, losses: Sequence[float], last: bool = False) -> None:
        """Look at the losses of a row, of the steps from ``first`` on; ``last`` says that the run ends with them.
        Raises Diverged."""
        for step, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise Diverged(step, "the loss is not finite")
        mean = math.fsum(losses) / len(losses)
        if len(self.calm) < self.LEAST or mean <= self.FACTOR * median(self.calm):
            self.calm.append(mean)
            self.since, self.high = None, 0
            return
        self.since, self.high = self.since or first, self.high + 1
        if self.high >= (self.LONG // 2 if last else self.LONG):
            raise Diverged(self.since, f"the loss stays above {self.FACTOR:g} times its median")


class State:
    """What a training carries from step to step, and a checkpoint holds: the network, the average of its weights, which
    is what is evaluated, optimiser and schedule."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model: nn.Module = model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.optimizer = make_optimizer(model, config)
        self.schedule = make_schedule(self.optimizer, config)
        self.step = 0
        self.seconds = 0.0

    @property
    def network(self) -> nn.Module:
        """The network to evaluate, in evaluation mode; at a decay of 0 its weights are those of ``model``."""
        return self.average.module.eval()

    def finite(self) -> bool:
        """Whether all weights, and all of the average's, are finite."""
        tensors = [*self.model.state_dict().values(), *self.network.state_dict().values()]
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    def parts(self) -> dict[str, Any]:
        """All of it as nested dictionaries and lists of tensors and numbers."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer", "schedule")}
        return parts | {"step": self.step, "seconds": self.seconds}

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Take over what ``parts`` gave."""
        for name in ("model", "average", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(parts[name])
        self.step, self.seconds = parts["step"], parts["seconds"]


def train(
    state: State,
    batches: Iterable[Batch],
    objective: Objective,
    config: TrainConfig,
    fabric: Fabric,
    *,
    compile: bool = False,
) -> Iterator[Tensor]:
    """Train from ``state.step`` on until ``batches`` end, and yield the loss of each step, a scalar on the device.

    ``batches`` are those of the steps from ``state.step`` on; each is a function of its step alone, as is what the
    network draws (Gumbel noise), so that a resumed run ends as an uninterrupted one does. The network to evaluate is
    ``state.network``. The caller logs, saves and scores between steps.
    """
    compiled: Any = torch.compile(state.model) if compile else state.model
    network, optimizer = fabric.setup(compiled, state.optimizer)
    started = time.perf_counter() - state.seconds
    for batch in batches:
        batch = tuple(tensor.to(fabric.device, non_blocking=True) for tensor in batch)
        with draws(config.seed, state.step, fabric):
            loss = objective(network, batch)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        state.schedule.step()
        state.average.update_parameters(state.model)
        state.step += 1
        state.seconds = time.perf_counter() - started
        yield loss.detach()


@contextmanager
def draws(seed: int, step: int, fabric: Fabric) -> Iterator[None]:
    """Make torch's random numbers a function of seed, step and process; its generators are put back afterwards."""
    process = (fabric.global_rank,) if fabric.global_rank else ()
    sequence = np.random.SeedSequence((seed, step), spawn_key=process)
    with torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []):
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
        yield


def make_objective(config: TrainConfig) -> Objective:
    """The training loss as a function of the network and a batch.

    A batch of whole patches is LR and HR, ``(B, 3, h, w)`` and ``(B, 3, h s, w s)`` in [0, 1]. One of queries is LR
    ``(B, 3, h, w)``, coordinates ``(B, Q, 2)`` and cells ``(B, 2)`` in [-1, 1], and colours ``(B, Q, 3)`` in [0, 1].
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
    """One cosine over all steps (SAFMN, SSIU), or a factor at each milestone (SeemoRe, LIIF)."""
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=config.steps, eta_min=config.lr_final)
    return MultiStepLR(optimizer, milestones=list(config.milestones), gamma=config.lr_decay)
