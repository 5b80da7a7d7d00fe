"""Counting by hand beside counting by fvcore, and measurements whose answer is known."""

import time
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import Tensor, nn

from srlib import complexity
from srlib.errors import InputError
from srlib.models import create
from srlib.models.layers import LayerNorm


class Small(nn.Module):
    """Convolutions, a batch norm, a layer norm, pooling and nearest upsampling: each thing that is told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(nn.BatchNorm2d(4), LayerNorm(4), nn.Conv2d(4, 4, 3, padding=1, groups=4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return F.interpolate(F.max_pool2d(self.body(x), 2), scale_factor=2, mode="nearest") * F.gelu(x)


def test_lr_sizes_are_those_of_a_1280x720_image() -> None:
    assert [complexity.lr_size(scale) for scale in (1, 2, 3, 4)] == [(720, 1280), (360, 640), (240, 427), (180, 320)]
    with pytest.raises(InputError, match="scale 0"):
        complexity.lr_size(0)


@pytest.mark.parametrize("training", [True, False])
def test_counts_follow_the_papers_convention(training: bool) -> None:
    height, width = 6, 10
    pixels = height * width
    found = complexity.count(Small(), (height, width), training)
    assert found.params == (3 * 9 + 1) * 4 + 2 * 4 + 2 * 4 + (9 + 1) * 4
    assert found.macs_by_operator == {
        "conv": pixels * (3 * 9 * 4 + 9 * 4),
        "batch_norm": pixels * 4 * (5 if training else 2),
        "upsample_nearest2d": pixels * 4,
    }
    assert found.macs == sum(found.macs_by_operator.values()) == found.macs_by_module[""]
    assert found.acts == 8 * pixels == found.acts_by_module[""]
    assert found.macs_by_module["head"] == pixels * 108 and found.acts_by_module["body"] == 4 * pixels
    assert found.macs_by_module["body"] == found.macs_by_module["body.0"] + found.macs_by_module["body.2"]
    assert found.macs_by_module["body.1"] == 0
    assert {"gelu": 1, "max_pool2d": 1, "mul": 1}.items() <= found.uncounted.items()
    assert not found.uncounted.keys() & {"_convolution", "layer_norm", "batch_norm", "upsample_nearest2d"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fvcore scripts and traces
@pytest.mark.parametrize("name", ["safmn", "seemore-t"])
def test_shapes_alone_give_the_counts_of_a_computed_image(name: str) -> None:
    network, image = create(name, 3), torch.zeros(1, 3, 18, 21)
    computed = FlopCountAnalysis(network, image).set_op_handle("aten::layer_norm", lambda inputs, outputs: Counter())
    computed = computed.unsupported_ops_warnings(False)
    found = complexity.count(network, (18, 21))
    assert found.macs == computed.total() and found.macs_by_operator == computed.by_operator()
    assert found.macs_by_module == dict(computed.by_module())
    acts = ActivationCountAnalysis(network, image).unsupported_ops_warnings(False)
    assert found.acts == acts.by_operator()["conv"]


def test_a_large_image_is_counted_without_computing_it() -> None:
    pixels = 2**40
    found = complexity.count(nn.Conv2d(3, 4, 3, padding=1), (2**20, 2**20))
    assert (found.macs, found.acts) == (pixels * 3 * 4 * 9, pixels * 4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layer", "macs", "acts"),
    [  # of an image of 6 x 10
        (nn.Conv2d(3, 4, 3, padding="same"), 60 * 4 * 27, 60 * 4),
        (nn.Conv2d(3, 6, (4, 1), padding="same", dilation=(3, 2), groups=3), 60 * 6 * 4, 60 * 6),
        (nn.Conv2d(3, 4, 3, padding="valid"), 4 * 8 * 4 * 27, 4 * 8 * 4),
        (nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 0)), 3 * 6 * 4 * 45, 3 * 6 * 4),
        (nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1), 60 * 3 * 4 * 16, 12 * 20 * 4),
        (nn.ConvTranspose2d(3, 6, 3, 2, 1, output_padding=1, groups=3, dilation=2), 60 * 6 * 9, 14 * 22 * 6),
        (nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 3, padding="same")), 60 * 4 * 9, 60 * 4),
        (nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(3, 4, 3)), 60 * 4 * 9, 62 * 4),
        (nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Conv3d(3, 4, (1, 3, 3), padding="same")), 60 * 4 * 27, 60 * 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_convolutions_of_every_kind_by_hand(layer: nn.Module, macs: int, acts: int, training: bool) -> None:
    found = complexity.count(layer, (6, 10), training)
    assert (found.macs, found.acts) == (macs, acts)


class Attention(nn.Module):
    """Queries (1, 3, H W, 5), keys (1, 3, 7, 5) and values (1, 3, 7, 4), in one call or written out."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.flatten(2)[..., None].expand(-1, -1, -1, 5), x.new_ones(1, 3, 7, 5), x.new_ones(1, 3, 7, 4)
        return F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.mT).softmax(-1) @ v


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_attention_counts_its_two_products(training: bool, fused: bool) -> None:
    found = complexity.count(Attention(fused), (6, 10), training)
    assert found.macs_by_operator == {"attention" if fused else "matmul": 3 * 60 * 7 * (5 + 4)}
    assert "scaled_dot_product_attention" not in found.uncounted


@pytest.mark.parametrize("mode", [True, False])
def test_counting_leaves_the_model_as_it_is(mode: bool) -> None:
    model = Small().train(mode)
    model.body[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    complexity.count(model, (8, 8), training=True)
    assert model.training is mode and model.body[0].training is mode and not model.body[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model._forward_hooks and not model.head._forward_pre_hooks


def test_counting_is_silent(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        complexity.count(Small(), (4, 4))
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_an_empty_image_is_refused() -> None:
    with pytest.raises(InputError, match="0 x 4"):
        complexity.count(Small(), (0, 4))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("height", [10**12, 10**18, 10**20])
def test_an_image_too_large_to_count_is_refused(height: int, training: bool) -> None:
    with pytest.raises(InputError, match=f"{height} x 320 pixels is too large to count; give a smaller one"):
        complexity.count(Small(), (height, 320), training)


def test_an_image_that_no_memory_holds_is_refused_where_it_is_computed() -> None:
    with pytest.raises(InputError, match="1099511627776 x 1 pixels doesn't fit in memory"):
        complexity.count(Small(), (2**40, 1), training=False)


def test_another_failure_of_counting_is_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="channel"):
        complexity.count(nn.Conv2d(4, 4, 3), (8, 8))


def test_latency_takes_the_median_of_the_timed_calls_only(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, clock = iter([64.0, 1.0, 2.0, 16.0]), [0.0]
    monkeypatch.setattr(complexity.time, "perf_counter", lambda: clock[0])  # a busy machine has no part in this

    def call() -> None:
        clock[0] += next(waits)

    timing = complexity.latency(call, warmup=1, repeats=3)
    assert next(waits, None) is None and timing.repeats == 3 and timing.threads == torch.get_num_threads()
    assert (timing.minimum, timing.median, timing.maximum) == (1, 2, 16)
    with pytest.raises(InputError, match="0 repeats"):
        complexity.latency(lambda: None, repeats=0)


def test_the_unit_is_that_convolution() -> None:
    unit = complexity.yardstick()()
    x, weight = torch.randn(1, 64, 180, 320), torch.randn(64, 64, 3, 3)
    with torch.inference_mode():
        by_hand = complexity.latency(lambda: F.conv2d(x, weight, padding=1), repeats=5).minimum
    assert by_hand / 20 < unit < by_hand * 20


def test_times_in_units_are_ratios_to_the_unit() -> None:
    calls = []
    found = complexity.in_units(lambda: (calls.append(1), time.sleep(0.02)), warmup=1, repeats=2)
    assert len(calls) == 3 and found.repeats == 2 and found.minimum <= found.median <= found.maximum
    assert found.minimum > 0.02 / (found.unit * 20) and found.unit > 0


def test_peak_memory_is_what_is_held_at_once() -> None:
    mebibyte = 2**20
    before = torch.zeros(4 * mebibyte // 4)  # what was there before isn't counted

    def call() -> None:
        first = before + 1  # 4 MiB
        del first
        second = before + 2  # 4 MiB again, in place of the first
        torch.cat([second, second])  # and 8 MiB beside it

    memory = complexity.peak_memory(call)
    assert memory.peak is None and memory.rise == pytest.approx(12 * mebibyte, rel=0.01)


def test_operator_times_are_a_run_s() -> None:
    x = torch.randn(64, 64)
    times = complexity.operator_times(lambda: (x @ x) * x * x, warmup=1, repeats=4)
    assert times["aten::mul"].calls == 2 and times["aten::matmul"].calls == 1
    assert times["aten::matmul"].total >= times["aten::mm"].total > 0
    assert list(times) == sorted(times, key=lambda name: -times[name].own)
    with pytest.raises(InputError, match="0 repeats"):
        complexity.operator_times(lambda: None, repeats=0)


def test_a_device_is_named_with_its_threads() -> None:
    assert complexity.describe_device("cpu").endswith(f"{torch.get_num_threads()} threads")
