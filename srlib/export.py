"""Networks as ONNX files, for runtimes that know nothing of PyTorch, such as onnxruntime and OpenVINO.

A file has one input, ``lr`` (1, 3, h, w), RGB in [0, 1], and one output, ``sr`` (1, 3, scale h, scale w), not clamped,
in float32. Its height and width are free, in steps that the network's pooling or padding asks for.
"""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from srlib.errors import InputError
from srlib.evaluate import AtScale

OPSET = 18  # of ONNX 1.13 (2022): what torch's exporter is written for, and converters have known for long
STEPS = (1, 8, 16)  # LR pixels: SeemoRe and MoEISR take any side, SAFMN pools to an eighth, SSIU pads to sixteenths
SMALLEST = 32  # LR pixels of a side: torch takes a side of one for a constant, and SeemoRe pools to a sixteenth
TRACED, TRIED = (48, 80), ((33, 50), (70, 40))  # heights and widths; these are tried rounded down to the step
TOLERANCE = 1e-4  # a fortieth of a level of 8 bits
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class Exported(NamedTuple):
    """An ONNX file's content, the ``step`` of its sides in LR pixels, and the largest ``difference`` of its outputs to
    PyTorch's, of values in [0, 1]."""

    content: bytes
    step: int
    difference: float


class AllExperts(nn.Module):
    """A network for every scale at a whole one, as a graph that holds for any image: every expert answers every query,
    and the answers of those that aren't chosen count nothing. Maps (1, 3, h, w) to (1, 3, scale h, scale w)."""

    network: Any

    def __init__(self, network: nn.Module, scale: int) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, lr: Tensor) -> Tensor:
        x, size = (lr - 0.5) / 0.5, [side * self.scale for side in lr.shape[-2:]]
        axes = [-1 + 1 / side + 2 / side * torch.arange(side).float() for side in size]
        coord = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)  # (H W, 2)
        z = self.network.encoder(x)
        asked, cell = self.network.queries(coord, 0, z), torch.full((1, 2), 2 / self.scale)
        pixels, offsets = (part.unflatten(0, asked.weight.shape) for part in (asked.pixel, asked.offset))
        gates = self.network.gates(self.network.mapper(z)) if len(self.network.decoders) > 1 else None
        rgb = torch.zeros(1, 3)
        for expert, table in enumerate(self.network.tables(z)):
            for i in range(len(pixels)):  # one neighbour's queries at a time, which takes a quarter of the memory
                answers = self.network.predict(expert, table.index_select(0, pixels[i]), offsets[i], cell)
                share = 1.0 if gates is None else gates[:, expert].flatten().index_select(0, pixels[i])
                rgb = rgb + (share * asked.weight[i])[:, None] * answers
        sr = rgb[None] + self.network.skip(x, coord[None])
        return sr.mT.unflatten(2, size) * 0.5 + 0.5


def to_onnx(upscaler: nn.Module) -> Exported:
    """Export what ``evaluate.upscaler`` makes of a network, and compare the file with it on two images.

    Raises InputError where packages are missing, and where the network cannot be exported or gives another image.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} missing: pip install {' '.join(PACKAGES)}")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which nobody needs here
    content, step = _content(
        AllExperts(upscaler.network, int(upscaler.scale)) if isinstance(upscaler, AtScale) else upscaler
    )
    difference = max(_difference(content, upscaler, image) for image in _images(step))
    if not difference <= TOLERANCE:
        raise InputError(f"the file would differ from PyTorch by {difference:.1e}: this network cannot be exported")
    return Exported(content, step, difference)


def _content(graph: nn.Module) -> tuple[bytes, int]:
    """The file of a graph with free sides, and the smallest step of them for which it holds."""
    for step in STEPS:
        free = (torch.export.Dim(name, min=SMALLEST // step, max=1 << 14) for name in ("height", "width"))
        sides = {axis: step * side if step > 1 else side for axis, side in enumerate(free, start=2)}
        try:
            program = torch.export.export(graph, (torch.rand(1, 3, *TRACED),), dynamic_shapes=(sides,))
            for image in _images(step):
                program.module()(image)
            with warnings.catch_warnings(action="ignore"):  # of what torch will rename
                made = torch.onnx.export(
                    program, dynamo=True, opset_version=OPSET, verbose=False, input_names=["lr"], output_names=["sr"]
                )
            return cast(torch.onnx.ONNXProgram, made).model_proto.SerializeToString(), step
        except Exception as error:  # torch has no class of its own for what cannot be exported, or not for all sizes
            reason = str(error).strip().partition("\n")[0]
    raise InputError(f"this network cannot be exported with free sizes ({reason}): use another")


def _images(step: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, *(side // step * step for side in size), generator=draw) for size in TRIED]


def _difference(content: bytes, upscaler: nn.Module, image: Tensor) -> float:
    """The largest difference between what the file and PyTorch make of an image."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"lr": image.numpy()})
    with torch.inference_mode():
        return float((torch.from_numpy(found) - upscaler(image)).abs().max())
