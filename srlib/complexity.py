"""What a network costs: parameters, multiply-adds and activations by counting; time and memory by measuring.

Counting follows the four papers, which count with fvcore: one multiply-add counts as one; nearest interpolation counts
one a value put out, bilinear four; average pooling counts one a value read; batch norm counts five a value in training
mode and two in evaluation mode; attention counts its two products. Max pooling, activation functions, sums and products
count nothing, nor do layer norms, which the releases write out by hand, where fvcore sees only sums and products.
Activations are the values that convolutions put out (SAFMN, caption of Table 1).
"""

from __future__ import annotations

import copy
import math
import os
import platform
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler writes lines of its own to standard error
Call = Callable[[], object]
Device = str | torch.device


@dataclass(frozen=True)
class Counts:
    """What ``count`` found for one image: learnt values, multiply-adds (SAFMN and SSIU print them as FLOPs, SeemoRe as
    GMACS) and values put out by convolutions. By module: its dotted name -> what it and its children count."""

    params: int
    macs: int
    acts: int
    macs_by_module: dict[str, int]
    acts_by_module: dict[str, int]


def lr_size(scale: int) -> tuple[int, int]:
    """Height and width of the LR image that the papers count for: that of an HR image of 1280x720, to the nearest whole
    pixel, 360 and 640, 240 and 427, 180 and 320 for x2, x3 and x4."""
    return int(720 / scale + 0.5), int(1280 / scale + 0.5)


def count(
    model: nn.Module, lr_size: tuple[int, int], training: bool = True, image: Tensor | None = None, **inputs: Any
) -> Counts:
    """Count a network's parameters, multiply-adds and activations for one RGB image of ``lr_size`` (height, width).

    Training mode is counted from shapes alone, at once for any size; SAFMN's Table 3 prints batch norm's figure so.
    Evaluation mode computes ``image`` (1, 3, height, width; by default zeros) on the CPU: SeemoRe chooses experts by
    image and MoEISR by pixel, and what is counted is the route that this image takes. ``inputs`` are what else the
    network's forward takes, such as ``size=(480, 640)``. The model itself stays as it is.
    """
    device = "meta" if training else "cpu"
    twin = copy.deepcopy(model).to(device).train(training)
    given = torch.zeros(1, 3, *lr_size, device=device) if image is None else image.to(device)
    inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    found = _Counter(type(model).__name__)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), found.modules, found:
        twin(given, **inputs)
    params = sum(p.numel() for p in model.parameters())
    return Counts(params, found.macs[""], found.acts[""], dict(found.macs), dict(found.acts))


class _Counter(TorchDispatchMode):
    """Counts every operator that runs inside, for the modules that it runs in; shapes are all that it needs."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root, self.modules = root, ModuleTracker()
        self.macs, self.acts = Counter[str](), Counter[str]()  # by module

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        operator = function.overloadpacket
        macs = _macs(operator, args, kwargs or {}, out)
        for kind, _, module in (place.partition(".") for place in self.modules.parents):
            if kind == self.root:  # else a part that is called without its parent, which holds the count
                self.macs[module] += macs
                self.acts[module] += out.numel() if operator == torch.ops.aten.convolution else 0
        return out


def _macs(operator: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Multiply-adds of one call of an operator."""
    aten = torch.ops.aten
    operator = getattr(aten, operator.__name__.removesuffix("_"), operator)  # in place or not
    if operator in flop_registry:  # convolutions and matrix products, two operations a multiply-add
        return flop_registry[operator](*args, **kwargs, out_val=out) // 2
    if operator == aten._scaled_dot_product_flash_attention_for_cpu:
        query, key, value = (tensor.shape for tensor in args[:3])
        return math.prod(query[:-1]) * key[-2] * (key[-1] + value[-1])
    if operator in (aten.native_batch_norm, aten._native_batch_norm_legit):
        return args[0].numel() * (5 if args[5] else 2)
    whole = operator == aten.mean and len(args) > 1 and {axis % 4 for axis in args[1]} == {2, 3}  # pooling to one pixel
    if whole or operator == aten._adaptive_avg_pool2d:
        return args[0].numel()
    if operator == aten.upsample_nearest2d:
        return out.numel()
    if operator in (aten.upsample_bilinear2d, aten.grid_sampler_2d):
        return 4 * out.numel()
    return 0


@dataclass(frozen=True)
class Timing:
    """What a call took: median and spread in units of ``unit`` seconds, and what it ran on."""

    median: float
    minimum: float
    maximum: float
    device: str
    unit: float


def latency(
    call: Call, warmup: int = 2, repeats: int = 9, device: Device = "cpu", unit: Callable[[], float] = lambda: 1.0
) -> Timing:
    """Time ``call`` in units of so many seconds, measured just before each call; on CUDA the device's work is in the
    time. The caller chooses inference mode."""
    pairs = [(unit(), _timed(call, device)) for _ in range(warmup + repeats)][warmup:]
    times, usual = [seconds / one for one, seconds in pairs], statistics.median(one for one, _ in pairs)
    return Timing(statistics.median(times), min(times), max(times), describe_device(device), usual)


def yardstick(device: Device = "cpu") -> Callable[[], float]:
    """A function that measures the unit of speed anew at each call, in seconds.

    One unit is one float32 3x3 convolution, 64 to 64 channels, padded, on 1x64x180x320: the best of five. It can be
    compared between machines if it is taken in the same process with the same threads just before each timing, as by
    ``latency``. Use a fresh process: one that has run anything larger before keeps its memory and is faster for it.
    """
    x = torch.randn(1, 64, 180, 320, device=device)
    weight, bias = torch.randn(64, 64, 3, 3, device=device), torch.randn(64, device=device)

    def convolution() -> None:
        with torch.inference_mode():
            F.conv2d(x, weight, bias, padding=1)

    return lambda: min(_timed(convolution, device) for _ in range(5))


def _timed(call: Call, device: Device) -> float:
    """Seconds that one ``call`` takes until the device has done its work."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda device: None
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def peak_memory(call: Call, device: Device = "cpu") -> int:
    """The most tensor memory, in bytes, that one ``call`` holds beside what was there before.

    On CUDA it is read from the allocator (SAFMN's Table 2 prints ``torch.cuda.max_memory_allocated``, which counts
    weights and input, too); on a CPU ``torch.profiler`` follows every allocation and release. Memory that a library
    takes outside torch's allocator isn't seen.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = (event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]")
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(changes, initial=0))


def operator_times(call: Call, repeats: int, device: Device = "cpu") -> dict[str, float]:
    """Seconds of each of torch's operators in ``call`` by ``torch.profiler``: mean of ``repeats``, slowest first.

    SAFMN's Table 5 was taken so. A time includes the operators that are called in turn, as ``aten::layer_norm`` spends
    its time in ``aten::native_layer_norm``. On CUDA the times are those of the kernels.
    """
    cuda = torch.device(device).type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as profiled:
        for _ in range(repeats):
            call()
    total = "device_time_total" if cuda else "cpu_time_total"  # in microseconds
    events = [event for event in profiled.key_averages() if event.key.startswith("aten::")]
    times = {event.key: getattr(event, total) / repeats / 1e6 for event in events}
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def describe_device(device: Device = "cpu") -> str:
    """What a measurement ran on, in words: the GPU's name, or the processor's and the number of threads torch uses."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.is_file() else "")
    threads = torch.get_num_threads()
    return f"{[*names, platform.processor() or platform.machine()][0]}, {threads} thread{'s' * (threads > 1)}"
