"""Counts that can be worked out on paper, and measurements that mean what they say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib import complexity
from srlib.evaluate import upscaler
from srlib.models import create, default_config


def test_the_papers_lr_sizes() -> None:
    assert [complexity.lr_size(scale) for scale in (2, 3, 4)] == [(360, 640), (240, 427), (180, 320)]


def test_what_modules_count_adds_up() -> None:
    found = complexity.count(create("safmn", 4), complexity.lr_size(4))
    blocks = [found.macs_by_module[f"feats.{i}"] for i in range(8)]
    assert found.macs == found.macs_by_module[""] and found.acts == found.acts_by_module[""]
    assert len(set(blocks)) == 1 and found.macs_by_module["feats"] == 8 * blocks[0] < found.macs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layer", "macs", "acts"),
    [  # of an image of 6 x 10
        (nn.Conv2d(3, 4, 3, padding="same"), 60 * 4 * 27, 60 * 4),
        (nn.Conv2d(3, 6, (5, 1), padding="same", dilation=(3, 2), groups=3), 60 * 6 * 5, 60 * 6),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), 60 * 4 * 27, 60 * 4),
        (nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 0)), 3 * 6 * 4 * 45, 3 * 6 * 4),
        (nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1), 60 * 3 * 4 * 16, 12 * 20 * 4),
        (nn.Sequential(nn.Flatten(2), nn.Linear(60, 7)), 3 * 60 * 7, 0),
        (nn.Upsample(scale_factor=2, mode="nearest"), 3 * 240, 0),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 4 * 3 * 240, 0),
        (nn.AdaptiveAvgPool2d(1), 3 * 60, 0),
        (nn.AdaptiveAvgPool2d((3, 5)), 3 * 60, 0),
        (nn.AdaptiveMaxPool2d(2), 0, 0),
        (nn.LayerNorm(10), 0, 0),
        (nn.GELU(), 0, 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_operators_by_hand(layer: nn.Module, macs: int, acts: int, training: bool) -> None:
    found = complexity.count(layer, (6, 10), training)
    assert (found.macs, found.acts) == (macs, acts)


@pytest.mark.parametrize(("training", "each"), [(True, 5), (False, 2)])
def test_batch_norm_counts_by_mode(training: bool, each: int) -> None:
    norm = nn.BatchNorm2d(3).train(not training)
    assert complexity.count(norm, (6, 10), training).macs == each * 180
    assert norm.training is not training and norm.num_batches_tracked == 0, "the model stays as it is"


class Attention(nn.Module):
    """Queries (1, 3, H W, 5), keys (1, 3, 7, 5) and values (1, 3, 7, 5), in one call or written out."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q, k = x.flatten(2)[..., None].expand(-1, -1, -1, 5), x.new_ones(1, 3, 7, 5)
        return F.scaled_dot_product_attention(q, k, k) if self.fused else (q @ k.mT).softmax(-1) @ k


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_attention_counts_its_two_products(training: bool, fused: bool) -> None:
    assert complexity.count(Attention(fused), (6, 10), training).macs == 3 * 60 * 7 * (5 + 5)


def test_a_product_in_place_is_counted() -> None:
    class Added(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(6, 5).addmm_(x[0, 0], x.new_ones(10, 5))

    assert complexity.count(Added(), (6, 10)).macs == 6 * 10 * 5


def test_a_large_image_is_counted_without_computing_it() -> None:
    found = complexity.count(nn.Conv2d(3, 4, 3, padding=1), (2**18, 2**18))
    assert (found.macs, found.acts) == (2**36 * 3 * 4 * 9, 2**36 * 4)


def test_multiply_adds_are_those_of_an_image_s_own_route() -> None:
    """One of three experts runs: what the other two would take in 6 groups is left out."""
    from srlib.papers.seemore import macs_by_ranks

    torch.manual_seed(0)
    network, image = create("seemore-t", 2), torch.rand(1, 3, 16, 20)
    every = complexity.count(network, (16, 20)).macs
    found = complexity.count(network, (16, 20), training=False, image=image).macs
    assert found in macs_by_ranks(default_config("seemore-t"), (16, 20), every).values() and found < every


def test_multiply_adds_of_a_network_for_every_scale() -> None:
    """LIIF's first layer is computed once an LR pixel, but for the way there and the cell; four queries a pixel."""
    network, image = create("liif-edsr"), torch.rand(1, 3, 8, 9)
    encoder = complexity.count(network.encoder, (8, 9)).macs
    once, asked = 8 * 9 * 9 * 64 * 256, 4 * 20 * 23  # 2.5 x 9 is 22.5, which is rounded up
    found = complexity.count(upscaler(network, 2.5), (8, 9), training=False, image=image).macs
    assert found == encoder + once + asked * (4 * 256 + 3 * 256**2 + 3 * 256)
    mixture = upscaler(create("moeisr-liif-s-edsr"), 2.5)
    one = complexity.count(mixture, (8, 9), training=False, image=image).macs
    assert encoder < one < found


def test_latency_takes_the_median_of_the_timed_calls_only(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, clock = iter([64.0, 1.0, 2.0, 16.0]), [0.0]
    monkeypatch.setattr(complexity.time, "perf_counter", lambda: clock[0])  # a busy machine has no part in this

    def call() -> None:
        clock[0] += next(waits)

    timing = complexity.latency(call, warmup=1, repeats=3)
    assert (timing.minimum, timing.median, timing.maximum) == (1, 2, 16)
    assert next(waits, None) is None and timing.unit == 1


def test_times_in_units_are_ratios_to_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(complexity.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(complexity.F, "conv2d", lambda *_, **__: clock.append(clock.pop() + 0.5))
    found = complexity.latency(lambda: clock.append(clock.pop() + 3), warmup=1, repeats=2, unit=complexity.yardstick())
    assert (found.minimum, found.median, found.maximum, found.unit) == (6, 6, 6, 0.5)
    assert clock == [3 * (5 * 0.5 + 3)], "the unit is the best of five, before each of three calls"


def test_peak_memory_is_what_is_held_at_once() -> None:
    mebibyte = 2**20
    before = torch.zeros(4 * mebibyte // 4)  # what was there before isn't counted

    def call() -> None:
        first = before + 1  # 4 MiB
        del first
        second = before + 2  # 4 MiB again, in place of the first
        torch.cat([second, second])  # and 8 MiB beside it

    assert complexity.peak_memory(call) == pytest.approx(12 * mebibyte, rel=0.01)


def test_operator_times_include_what_they_call() -> None:
    x = torch.randn(64, 64)
    times = complexity.operator_times(lambda: (x @ x) * x, repeats=4)
    assert times["aten::matmul"] >= times["aten::mm"] > 0 and times["aten::mul"] > 0
    assert list(times.values()) == sorted(times.values(), reverse=True)
