"""MATLAB's bicubic: bit-exact on distributed images, equal to rational arithmetic, sound at the edges."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from srlib.errors import InputError
from srlib.resize import contributions, enlarged_size, imresize


def read(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# A second implementation, slow and exact: one value at a time in rational numbers, straight from the kernel's formula.


def kernel(x: Fraction) -> Fraction:
    x = abs(x)
    if x <= 1:
        return (3 * x**3 - 5 * x**2 + 2) / 2
    return (-(x**3) + 5 * x**2 - 8 * x + 4) / 2 if x <= 2 else Fraction(0)


def mirrored(position: int, length: int) -> int:
    while not 0 <= position < length:
        position = -1 - position if position < 0 else 2 * length - 1 - position
    return position


def exact_line(line: list, new: int, scale: Fraction, eight_bits: bool) -> list:
    stretch = min(scale, Fraction(1))
    result = []
    for i in range(new):
        place = (i + Fraction(1, 2)) / scale - Fraction(1, 2)
        reach = math.ceil(2 / stretch) + 1
        near = range(math.floor(place) - reach, math.floor(place) + reach + 2)
        weights = [kernel(stretch * (place - j)) for j in near]
        values = [line[mirrored(j, len(line))] for j in near]
        value = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        result.append(min(max(math.floor(value + Fraction(1, 2)), 0), 255) if eight_bits else value)
    return result


def exact(image: Tensor, size: tuple[int, int], eight_bits: bool) -> list:
    """Resize one HW image, given as a tensor; returns rows of whole numbers or fractions."""
    scales = [Fraction(new, old) for new, old in zip(size, image.shape, strict=True)]
    rows = [[Fraction(value) for value in row] for row in image.tolist()]
    for axis in (0, 1) if scales[0] <= scales[1] else (1, 0):
        lines = rows if axis == 1 else [list(column) for column in zip(*rows, strict=True)]
        lines = [exact_line(line, size[axis], scales[axis], eight_bits) for line in lines]
        rows = lines if axis == 1 else [list(column) for column in zip(*lines, strict=True)]
    return rows


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((12, 10), (6, 5)),
        ((12, 9), (4, 3)),
        ((8, 16), (2, 4)),
        ((5, 4), (15, 12)),
        ((7, 9), (5, 4)),  # columns shrink more: they come first
        ((9, 7), (4, 5)),
        ((7, 6), (11, 3)),  # grows one way, shrinks the other
        ((3, 2), (2, 1)),  # smaller than the kernel
        ((1, 1), (3, 2)),
        ((1, 5), (1, 2)),
        ((2, 3), (2, 3)),
    ],
)
def test_equals_exact_arithmetic(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    image = noise(1, *old, seed=seed)
    assert imresize(image, size=new)[0].tolist() == exact(image[0], new, eight_bits=True)
    values = exact(image[0], new, eight_bits=False)
    expected = torch.tensor([[float(v) for v in row] for row in values], dtype=torch.float64)
    torch.testing.assert_close(imresize(image.double(), size=new)[0], expected, rtol=0, atol=1e-10)


def test_weights_of_halving_and_thirds_by_hand() -> None:
    _, half = contributions(100, 50, 0.5)
    assert (half[:, 20] * 256).tolist() == [-3, -9, 29, 111, 111, 29, -9, -3]
    _, third = contributions(99, 33, 1 / 3)
    of_81 = [round(weight * 81, 9) for weight in third[:, 16].tolist()]
    assert [weight for weight in of_81 if weight] == [-1, -2, 9, 21, 27, 21, 9, -2, -1]


def test_halves_are_rounded_up_and_after_each_pass() -> None:
    # Of a row of 128, the outputs get -1.5, 14.5, 55.5, -4.5: weights -3, 29, 111 and -9 of 256.
    rows = torch.zeros(1, 16, 1, dtype=torch.uint8)
    rows[0, 8] = 128
    assert imresize(rows, size=(8, 1)).flatten().tolist() == [0, 0, 0, 15, 56, 0, 0, 0]
    image = torch.zeros(1, 16, 16, dtype=torch.uint8)
    image[0, 8, 8] = 8  # passes: 3.47 -> 3, 1.30 -> 1; unrounded between them 1.504 -> 2
    assert imresize(image, scale=0.5)[0, 4, 4] == 1


def test_every_value_of_the_distributed_images(found):
    folder = found("Set5").files[0].parents[1]
    compared = differing = 0
    for scale in (2, 3, 4):
        for file in sorted((folder / "HR").glob("*.png")):
            hr = read(file)
            height, width = (side // scale * scale for side in hr.shape[1:])
            lr = read(folder / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png")
            made = imresize(hr[:, :height, :width], scale=1 / scale)
            compared += lr.numel()
            differing += int((made != lr).sum())
    assert (compared, differing) == (719_952, 0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.5, 1 / 3, 0.37, 1.7, 4.0])
def test_a_batch_is_its_images_and_sizes_are_rounded_up(dtype: torch.dtype, scale: float) -> None:
    batch = noise(3, 3, 17, 22).to(dtype)
    together = imresize(batch, scale=scale)
    assert together.dtype == dtype and together.shape == (3, 3, math.ceil(17 * scale), math.ceil(22 * scale))
    for one, image in zip(together, batch, strict=True):
        assert torch.equal(one, imresize(image, scale=scale))


def test_float_images_are_neither_rounded_nor_clipped_and_carry_gradients() -> None:
    step = torch.zeros(1, 8, 8)
    step[..., 4:] = 1
    large = imresize(step, scale=2)
    assert large.max() > 1.01 and large.min() < -0.01
    image = torch.rand(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    for scale in (0.7, 1.6):
        assert torch.autograd.gradcheck(lambda x, scale=scale: imresize(x, scale=scale), (image,))


def test_the_one_rounding_rule_of_enlarged_sizes() -> None:
    """Halves go up, not to the even number; no side is 0."""
    sizes = {((5, 7), 2.5): (13, 18), ((10, 3), 2.6): (26, 8), ((1, 1), 0.3): (1, 1), ((480, 640), 4): (1920, 2560)}
    assert {asked: enlarged_size(*asked) for asked in sizes} == sizes


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("scale", [0.5, 1 / 3, 0.25, 1 / 6, 1.7])
def test_cuda_equals_cpu(scale: float) -> None:
    image = noise(2, 3, 96, 72)
    assert torch.equal(imresize(image.cuda(), scale=scale).cpu(), imresize(image, scale=scale))


@pytest.mark.parametrize(
    ("image", "arguments", "words"),
    [
        (noise(3, 4, 4), {}, "size None"),
        (noise(3, 4, 4), {"scale": 0}, "scale 0"),
        (noise(3, 4, 4), {"scale": float("nan")}, "scale nan"),
        (noise(3, 4, 4), {"size": (0, 3)}, "size"),
        (noise(3, 4, 4), {"size": (2.5, 3)}, "size"),
        (noise(4, 4), {"scale": 2}, "CHW"),
        (noise(3, 0, 4), {"scale": 2}, r"not \(3, 0, 4\)"),
        (noise(3, 4, 4).int(), {"scale": 2}, "uint8 or float, not .*int32"),
    ],
)
def test_bad_input_is_refused_in_one_line(image: Tensor, arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        imresize(image, **arguments)
    assert "\n" not in str(error.value)
