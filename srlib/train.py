"""The training loop: the settings of a training, its resumable state, and one visible loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from srlib.errors import InputError
from srlib.losses import l1_balance, l1_fft

Batch = tuple[Tensor, ...]
Objective = Callable[[nn.Module, Batch], Tensor]
Precision = Literal["32-true", "bf16-mixed"]
LEAST = {"steps": 1, "batch": 1, "patch": 1, "scales": 1, "lr": 1e-9}  # of a setting; 0 of all others


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything but the data and the network that determines trained weights. A default is the neutral value of what a
    recipe (:mod:`srlib.papers`) does not use, no paper's. Raises InputError for values that no training can use."""

    steps: int  #: number of optimiser steps; the schedule spans them
    batch: int  #: patches in a batch, over all processes
    patch: int  #: side of an LR patch in pixels
    optimizer: Literal["adam", "adamw"]  #: AdamW takes the weight decay apart from the gradient
    betas: tuple[float, float]  #: decay rates of the optimiser's first and second moments
    weight_decay: float = 0.0  #: strength of the pull of weights to zero
    lr: float  #: learning rate at the start
    lr_final: float  #: learning rate at the end of the cosine; a multistep schedule does not use it
    schedule: Literal["cosine", "multistep"]  #: one cosine to ``lr_final``, or ``lr_decay`` at each milestone
    milestones: tuple[int, ...] = ()  #: steps after which a multistep schedule lowers the learning rate
    lr_decay: float = 0.5  #: factor of a multistep schedule
    fft_weight: float  #: of the L1 loss between spectra (:func:`srlib.losses.fft_l1`); 0 leaves it out
    ema_decay: float  #: of the moving average of the weights, which is then what is evaluated; 0: no average
    degradation: Literal["bicubic", "real-esrgan"]  #: what makes LR patches of HR ones
    queries: int = 0  #: HR pixels that are asked of each patch (LIIF), for networks for every scale; 0: whole patches
    scales: tuple[float, float] = (1.0, 4.0)  #: least and greatest scale of a patch of queries, drawn at random
    l1_weight: float = 1.0  #: alpha of MoEISR's Equation 6; for queries alone
    balance_weight: float = 0.0  #: beta of MoEISR's Equation 6; for queries alone
    expert_weights: tuple[float, ...] = ()  #: the w_j of MoEISR's Equation 7, one for each expert; () for 1 each
    precision: Precision = "32-true"  #: Fabric's name of the arithmetic; weights are float32 in each
    seed: int = 0  #: decides initial weights, patches and what the network draws

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, parts = getattr(self, name), get_args(kind)
            if get_origin(kind) is Literal:
                fits, advice = value in parts, f"choose one of {', '.join(parts)}"
            else:
                least, limit = LEAST.get(name, 0), 1 if name in ("betas", "ema_decay") else 2**63
                what, types = ("whole number", {int}) if int in (kind, *parts) else ("number", {int, float})
                numbers, count = value if parts else (value,), None if ... in parts else max(1, len(parts))
                amount = f"a tuple of {f'{count} ' if count else ''}{what}s" if parts else f"a {what}"
                fits = isinstance(numbers, tuple) and count in (None, len(numbers))
                fits = fits and all(type(number) in types and least <= number < limit for number in numbers)
                advice = f"give {amount} from {least} up" + (", below 1" if limit == 1 else "")
            if not fits:
                raise InputError(f"{name} is {value!r}: {advice}")
            if kind is float:  # so that 1 and 1.0 are one run
                object.__setattr__(self, name, float(value))
        if self.scales[0] > self.scales[1]:
            raise InputError(f"scales are {self.scales}: give the least and the greatest, such as (1, 4)")
        if self.queries and (self.fft_weight or self.degradation != "bicubic"):
            raise InputError("queries have no spectrum, and bicubic LR: give fft_weight 0 and degradation bicubic")


class State:
    """What a training carries from step to step, and a checkpoint holds: the network, the average of its weights, which
    is what is evaluated, optimiser and schedule: one cosine (SAFMN, SSIU), or milestones (SeemoRe, LIIF)."""

    PARTS = ("model", "average", "optimizer", "schedule")

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model: nn.Module = model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        kind = {"adam": Adam, "adamw": AdamW}[config.optimizer]
        decay = config.weight_decay
        self.optimizer = kind(model.parameters(), config.lr, config.betas, weight_decay=decay, fused=True)
        self.schedule = (
            CosineAnnealingLR(self.optimizer, config.steps, config.lr_final)
            if config.schedule == "cosine"
            else MultiStepLR(self.optimizer, config.milestones, config.lr_decay)
        )
        self.step, self.seconds = 0, 0.0

    @property
    def network(self) -> nn.Module:
        """The network to evaluate, in evaluation mode; at a decay of 0 its weights are those of ``model``."""
        return self.average.module.eval()

    def finite(self) -> bool:
        """Whether all weights to evaluate are finite; those of ``model`` are part of each of them."""
        return all(bool(weight.isfinite().all()) for weight in self.average.state_dict().values())

    def parts(self) -> dict[str, Any]:
        """All of it as nested dictionaries and lists of tensors and numbers."""
        parts = {name: getattr(self, name).state_dict() for name in self.PARTS}
        return parts | {"step": self.step, "seconds": self.seconds}

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Take over what ``parts`` gave."""
        for name in self.PARTS:
            getattr(self, name).load_state_dict(parts[name])
        self.step, self.seconds = parts["step"], parts["seconds"]


def train(
    state: State,
    batches: Iterable[Batch],
    objective: Objective,
    config: TrainConfig,
    fabric: Fabric,
    compile: bool = False,
) -> Iterator[Tensor]:
    """Train on ``batches``, those of the steps from ``state.step`` on, and yield each step's loss, on the device.

    A batch is a function of its step alone, as is what the network draws (Gumbel noise), so that a resumed run ends as
    an uninterrupted one does. The caller logs, saves and scores ``state.network`` between steps.
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
    sequence = np.random.SeedSequence((seed, step), spawn_key=(fabric.global_rank,) if fabric.global_rank else ())
    with torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []):
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
        yield


def make_objective(config: TrainConfig) -> Objective:
    """The training loss as a function of the network and a batch: of whole patches, LR and HR, or of queries, LR,
    coordinates ``(B, Q, 2)`` and cells ``(B, 2)`` in [-1, 1], and colours ``(B, Q, 3)``. Images are in [0, 1]."""

    def whole(network: nn.Module, batch: Batch) -> Tensor:
        lr, hr = batch
        return l1_fft(network(lr), hr, config.fft_weight)

    def queried(network: nn.Module, batch: Batch) -> Tensor:
        lr, coord, cell, target = batch
        rgb, shares = network(lr, coord=coord, cell=cell)
        return l1_balance(rgb, target, shares, config.l1_weight, config.balance_weight, config.expert_weights)

    return queried if config.queries else whole
