"""What a network costs: parameters, multiply-adds and activations by counting; time and memory by measuring.

Counting follows the four papers. They count with fvcore: one multiply-add counts as one, an interpolation counts (one
per output value for nearest, four for bilinear), adaptive average pooling counts one per input value, max pooling,
activation functions, sums and products count nothing. Layer norms count nothing either, because the released networks
write them out by hand, where fvcore sees only sums and products; here they are one fused call, which is told apart.
Attention in one fused call counts its two products, of queries with keys and of weights with values, as fvcore counts
them where they are written out. Activations are the values that convolutions put out (SAFMN, caption of Table 1).
"""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from srlib.errors import InputError

HR_SIZE = (720, 1280)
MOST_PIXELS = 2**40  # an image of more would take terabytes, and fvcore's 64-bit counts would overflow
_ACTIVATIONS = "activations"


@dataclass(frozen=True)
class Counts:
    """What ``count`` found, all for one image.

    ``params``: learnt values. ``macs``: multiply-adds (SAFMN and SSIU print them as FLOPs, SeemoRe as GMACS).
    ``acts``: values put out by convolutions. ``macs_by_operator``: the same multiply-adds by operator ("conv",
    "attention", "upsample_nearest2d", "batch_norm", ...). ``macs_by_module`` and ``acts_by_module``: by dotted module
    name, each including its children; "" is the whole network. ``uncounted``: how often each operator ran that counts
    nothing.
    """

    params: int
    macs: int
    acts: int
    macs_by_operator: dict[str, int]
    macs_by_module: dict[str, int]
    acts_by_module: dict[str, int]
    uncounted: dict[str, int]


@dataclass(frozen=True)
class Timing:
    """Seconds that one call took: the median of ``repeats`` calls and the spread, with what it ran on."""

    median: float
    minimum: float
    maximum: float
    repeats: int
    device: str
    threads: int


@dataclass(frozen=True)
class Memory:
    """Bytes of tensor memory during one call.

    ``rise``: the peak above what was allocated when the call began, so without weights and input. ``peak``: the peak
    of everything that this process holds, weights and input included (what SAFMN's Table 2 prints); only CUDA's
    allocator knows it, so it is None on a CPU. ``method`` says what was read.
    """

    rise: int
    peak: int | None
    device: str
    method: str


@dataclass(frozen=True)
class OperatorTime:
    """One operator in ``operator_times``: calls and seconds a run; ``own`` leaves out the operators that it calls.

    Many operators only hand on: ``aten::layer_norm`` spends its time in ``aten::native_layer_norm``, so that its cost
    is ``total``. Only ``own`` can be summed over all operators.
    """

    calls: float
    total: float
    own: float


def lr_size(scale: int, hr: tuple[int, int] = HR_SIZE) -> tuple[int, int]:
    """Height and width of the LR image that belongs to an HR image of ``hr``, to the nearest whole pixel.

    The papers count for an HR image of 1280x720: LR 640x360, 427x240 and 320x180 for x2, x3 and x4. Raises
    ``InputError`` for a scale below 1, and for one that leaves less than a pixel.
    """
    if not 1 <= scale <= min(hr):
        raise InputError(f"scale {scale} has no LR size; give a scale from 1 up, to {min(hr)}")
    height, width = (int(side / scale + 0.5) for side in hr)
    return height, width


def count(model: nn.Module, lr_size: tuple[int, int], training: bool = True) -> Counts:
    """Count a network's parameters, multiply-adds and activations for one RGB image of ``lr_size`` (height, width).

    ``training`` chooses the mode that is counted. SAFMN's Table 3 prints 13.72G for batch normalisation, which is five
    operations a value, fvcore's figure in training mode (in evaluation mode it is two): so the default is True.

    Training mode is counted from shapes alone, at once for any size. Evaluation mode computes an image of zeros on the
    CPU, since a network may choose there what it computes: what is counted is that image's route. Both work on a copy,
    so the model, its mode, its device and its statistics stay as they are. Raises ``InputError`` for a size below
    1 x 1, for one that is too large to count, and in evaluation mode for one that doesn't fit in memory.
    """
    if min(lr_size) < 1:
        raise InputError(f"an image of {lr_size[0]} x {lr_size[1]} pixels can't be counted; give at least 1 x 1")
    if lr_size[0] * lr_size[1] > MOST_PIXELS:
        raise _too_large(lr_size, "is too large to count")
    device = "meta" if training else "cpu"
    twin = copy.deepcopy(model).to(device).train(training)
    with warnings.catch_warnings(), torch.no_grad(), _memory_for(lr_size), _TracedConvolutions():
        warnings.simplefilter("ignore", DeprecationWarning)  # fvcore scripts and traces, which torch has deprecated
        analysis = _analysis(twin, torch.zeros(1, 3, *lr_size, device=device))
        by_module = analysis.by_module_and_operator()
        uncounted = analysis.unsupported_ops()
    whole = by_module[""]
    macs = {name: sum(n for op, n in ops.items() if op != _ACTIVATIONS) for name, ops in by_module.items()}
    acts = {name: ops[_ACTIVATIONS] for name, ops in by_module.items()}
    return Counts(
        params=sum(p.numel() for p in model.parameters()),
        macs=int(macs[""]),
        acts=int(acts[""]),
        macs_by_operator={op: int(n) for op, n in sorted(whole.items()) if op != _ACTIVATIONS},
        macs_by_module={name: int(n) for name, n in macs.items()},
        acts_by_module={name: int(n) for name, n in acts.items()},
        uncounted={op.removeprefix("aten::"): n for op, n in sorted(uncounted.items())},
    )


@contextmanager
def _memory_for(lr_size: tuple[int, int]) -> Iterator[None]:
    """Torch's complaint about tensors that are too large, as an ``InputError``; torch has no class of its own for it
    on a CPU."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if "verflow" in str(error):
            raise _too_large(lr_size, "is too large to count") from None
        if any(words in str(error) for words in ("allocate", "not enough memory")):
            raise _too_large(lr_size, "doesn't fit in memory") from None
        raise


def _too_large(lr_size: tuple[int, int], verdict: str) -> InputError:
    return InputError(
        f"an image of {lr_size[0]} x {lr_size[1]} pixels {verdict}; give a smaller one, as counts grow with the pixels"
    )


class _TracedConvolutions(TorchFunctionMode):
    """Convolutions as the operator that fvcore counts. ``torch.conv2d`` and its kin become it on a CPU, but not on the
    meta device, where tensors have shapes and no values; with padding "same" they don't on either."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _CONVOLUTIONS:
            return _convolution(_CONVOLUTIONS[function], *args, **(kwargs or {}))
        if function in _TRANSPOSED:
            return _transposed(_TRANSPOSED[function], *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_TRANSPOSED = {torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3}


def _convolution(
    axes: int, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    if padding == "same":
        taps = zip(weight.shape[2:], _sides(dilation, axes), strict=True)
        missing = [step * (size - 1) for size, step in taps]
        margins = [margin for total in reversed(missing) for margin in (total // 2, total - total // 2)]
        input, padding = F.pad(input, margins), 0
    padding = 0 if padding == "valid" else padding
    sides = [_sides(value, axes) for value in (stride, padding, dilation)]
    return torch._convolution(input, weight, bias, *sides, False, [0] * axes, groups, False, False, True, True)


def _transposed(
    axes: int, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    sides = [_sides(value, axes) for value in (stride, padding, dilation)]
    beyond = _sides(output_padding, axes)
    return torch._convolution(input, weight, bias, *sides, True, beyond, groups, False, False, True, True)


def _sides(value: Any, axes: int) -> list[int]:
    """One number an axis, of one for all or one for each."""
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def _analysis(model: nn.Module, image: Tensor) -> Any:
    """fvcore's multiply-add analysis, told to note convolutions' activations in the same pass: one forward, not two."""
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import conv_flop_jit, generic_activation_jit

    outputs_of = generic_activation_jit("conv")

    def convolution(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        macs = conv_flop_jit(inputs, outputs)["conv"]
        return Counter({"conv": macs, _ACTIVATIONS: outputs_of(inputs, outputs)["conv"]})

    def nothing(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        return Counter()

    def attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        query, key, value = (tensor.type().sizes() for tensor in inputs[:3])
        return Counter({"attention": math.prod(query[:-1]) * key[-2] * (key[-1] + value[-1])})

    analysis = FlopCountAnalysis(model, (image,))
    analysis.set_op_handle("aten::_convolution", convolution, "aten::layer_norm", nothing)
    analysis.set_op_handle("aten::scaled_dot_product_attention", attention)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")


def latency(
    call: Callable[[], object], warmup: int = 2, repeats: int = 9, device: str | torch.device = "cpu"
) -> Timing:
    """Time ``call``: ``warmup`` untimed calls, then median, minimum and maximum of ``repeats`` timed ones, in seconds.

    On CUDA the device is synchronised before and after each call, so that its work is in the time. The caller
    chooses inference mode and evaluation mode. Raises ``InputError`` if nothing would be timed.
    """
    if repeats < 1 or warmup < 0:
        raise InputError(f"{warmup} warm-ups and {repeats} repeats can't be timed; give 0 or more and 1 or more")
    device = torch.device(device)
    for _ in range(warmup):
        call()
    seconds = []
    for _ in range(repeats):
        _synchronise(device)
        start = time.perf_counter()
        call()
        _synchronise(device)
        seconds.append(time.perf_counter() - start)
    return Timing(
        median=statistics.median(seconds),
        minimum=min(seconds),
        maximum=max(seconds),
        repeats=repeats,
        device=describe_device(device),
        threads=torch.get_num_threads(),
    )


def yardstick(device: str | torch.device = "cpu") -> Callable[[], float]:
    """A function that measures the unit of speed anew at each call, in seconds.

    One unit is one float32 3x3 convolution, 64 to 64 channels, padded, on 1x64x180x320: the best of five. It travels
    between machines; take it in the same process with the same threads, just before each timing.
    """
    x = torch.randn(1, 64, 180, 320, device=device)
    weight, bias = torch.randn(64, 64, 3, 3, device=device), torch.randn(64, device=device)

    def convolution() -> None:
        with torch.inference_mode():
            F.conv2d(x, weight, bias, padding=1)

    return lambda: latency(convolution, warmup=0, repeats=5, device=device).minimum


@dataclass(frozen=True)
class Units:
    """A time as a multiple of the yardstick: the median of ``repeats`` calls, each divided by a unit taken just before
    it, the spread, and the median length of the unit itself in seconds.
    """

    median: float
    minimum: float
    maximum: float
    repeats: int
    unit: float
    device: str


def in_units(
    call: Callable[[], object], warmup: int = 2, repeats: int = 9, device: str | torch.device = "cpu"
) -> Units:
    """Time ``call`` in units of :func:`yardstick`, so that the figure can be compared between machines.

    Use a fresh process: one that has run anything larger before keeps its memory and is faster for it.
    """
    unit = yardstick(device)
    unit()
    for _ in range(warmup):
        call()
    units, ratios = [], []
    for _ in range(repeats):
        units.append(unit())
        ratios.append(latency(call, warmup=0, repeats=1, device=device).median / units[-1])
    return Units(
        median=statistics.median(ratios),
        minimum=min(ratios),
        maximum=max(ratios),
        repeats=repeats,
        unit=statistics.median(units),
        device=describe_device(device),
    )


def peak_memory(call: Callable[[], object], device: str | torch.device = "cpu") -> Memory:
    """The most tensor memory that one ``call`` holds at once, in bytes.

    On CUDA it is what SAFMN's Table 2 prints, ``torch.cuda.max_memory_allocated``. On a CPU torch's allocator is
    followed through ``torch.profiler``: every allocation and release of tensor memory in the order of time. Scratch
    memory that a library takes outside torch's allocator isn't seen on either.
    """
    device = torch.device(device)
    if device.type == "cuda":
        _synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        _synchronise(device)
        peak = torch.cuda.max_memory_allocated(device)
        return Memory(peak - before, peak, describe_device(device), "torch.cuda.max_memory_allocated")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes lines of its own to standard error
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((float(e["ts"]), int(e["args"]["Bytes"])) for e in events if e.get("name") == "[memory]")
    held = rise = 0
    for _, change in changes:
        held += change
        rise = max(rise, held)
    return Memory(rise, None, describe_device(device), "allocations of tensor memory seen by torch.profiler")


def operator_times(
    call: Callable[[], object], warmup: int = 2, repeats: int = 9, device: str | torch.device = "cpu"
) -> dict[str, OperatorTime]:
    """Time each of torch's operators in ``call`` with ``torch.profiler``: seconds, mean of ``repeats``, slowest first.

    SAFMN's Table 5 was taken so. On CUDA the times are those of the kernels that an operator started, on a CPU those
    of the operator, the profiler's own cost included. Names are torch's ("aten::mul"). Raises ``InputError`` if
    nothing would be timed.
    """
    if repeats < 1 or warmup < 0:
        raise InputError(f"{warmup} warm-ups and {repeats} repeats can't be timed; give 0 or more and 1 or more")
    device = torch.device(device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for _ in range(warmup):
        call()
    _synchronise(device)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(repeats):
            call()
        _synchronise(device)
    kind = "device" if device.type == "cuda" else "cpu"
    times = {
        event.key: OperatorTime(
            calls=event.count / repeats,
            total=getattr(event, f"{kind}_time_total") / repeats / 1e6,
            own=getattr(event, f"self_{kind}_time_total") / repeats / 1e6,
        )
        for event in profile.key_averages()
        if event.key.startswith("aten::")
    }
    return dict(sorted(times.items(), key=lambda item: -item[1].own))


def describe_device(device: str | torch.device = "cpu") -> str:
    """What a measurement ran on, in words: the GPU's name, or the processor's and the number of threads torch uses."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
