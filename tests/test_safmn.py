"""SAFMN: the released outputs, the printed parameters, and every value that its configuration takes."""

from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from srlib.errors import InputError
from srlib.models import create
from srlib.models.safmn import SAFM, FrozenBatchNorm, L2Norm, SAFMNConfig, pool

TINY = SAFMNConfig(blocks=2, channels=8)
KINDS = get_type_hints(SAFMNConfig)
VARIANTS = [TINY, replace(TINY, modulation=False, multi_scale=False, aggregation=False)]
VARIANTS += [replace(TINY, scale=scale) for scale in (2, 3)] + [replace(TINY, blocks=1), replace(TINY, levels=2)]
VARIANTS += [replace(TINY, **{f.name: False}) for f in fields(TINY) if KINDS[f.name] is bool]
VARIANTS += [replace(TINY, **{f.name: v}) for f in fields(TINY) for v in get_args(KINDS[f.name]) if v != f.default]


def difference(config: SAFMNConfig) -> str:
    """What a variant changes, as a test's name."""
    changed = [f"{f.name}={getattr(config, f.name)}" for f in fields(config) if getattr(config, f.name) != f.default]
    return ",".join(changed[2:]) or "tiny"


def network(config: SAFMNConfig) -> nn.Module:
    torch.manual_seed(0)
    return create("safmn", config.scale, config)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("grad", [True, False])
def test_released_weights_give_the_released_output(golden: Path, scale: int, grad: bool) -> None:
    tensors = load_file(golden / f"safmn_x{scale}.safetensors")
    model = create("safmn", scale).eval()
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    model.load_state_dict(weights, strict=True)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(model(tensors["input"]), tensors["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change, printed",
    [
        ({}, 239.52),
        ({"safm": "none"}, 225.41),
        ({"ccm": "none"}, 30.72),
        ({"aggregation": False}, 228.86),
        ({"ccm": "se"}, 260.98),
        ({"ccm": "channel_mlp"}, 73.63),
        ({"ccm": "inverted_residual"}, 245.28),
        ({"norm": "none"}, 238.37),
        ({"norm": "batch"}, 239.52),
        ({"norm": "frozen_batch"}, 238.37),
        ({"norm": "l2"}, 238.37),
        ({"multi_scale": False, "modulation": False}, 239.52),
        ({"blocks": 4}, 128.06),
        ({"blocks": 6}, 183.79),
        ({"blocks": 12}, 350.98),  # 350,976: the paper prints 350.97
    ],
)
def test_parameters_are_those_printed(change: dict, printed: float) -> None:
    model = create("safmn", 4, SAFMNConfig(**change))
    assert round(sum(p.numel() for p in model.parameters()) / 1e3, 2) == printed


@pytest.mark.parametrize("config", VARIANTS, ids=difference)
def test_variant_runs_batched_and_backpropagates(config: SAFMNConfig) -> None:
    model, x = network(config), torch.rand(2, 3, 21, 13)
    model(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.inference_mode():
        both = model(x)
        assert both.shape == (2, 3, 21 * config.scale, 13 * config.scale)
        torch.testing.assert_close(both, torch.cat([model(x[:1]), model(x[1:])]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("change", [{}, {"pooling": "average"}, {"pooling": "nearest"}, {"ccm": "se"}], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (3, 2), (8, 8)])
def test_the_smallest_images_work(size: tuple[int, int], change: dict) -> None:
    result = network(replace(TINY, **change)).eval()(torch.rand(1, 3, *size))
    assert result.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert result.isfinite().all()


@pytest.mark.parametrize("config", VARIANTS, ids=difference)
@pytest.mark.parametrize("height", [37, 64])
def test_strips_and_gradients_change_nothing(config: SAFMNConfig, height: int) -> None:
    """A wide image goes through in strips of rows where no gradient is wanted, with the same result."""
    model, x = network(config).eval(), torch.rand(1, 3, height, 1100)
    with torch.inference_mode():
        result = model(x)
    torch.testing.assert_close(result, model(x).detach(), atol=2e-6, rtol=0)


def test_a_watched_network_shows_whole_maps() -> None:
    model, x, seen = network(TINY).eval(), torch.rand(1, 3, 37, 1100), []
    with torch.inference_mode():
        expected = model(x)
        hook = model.feats[1].ccm.ccm[0].register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
        torch.testing.assert_close(model(x), expected, atol=2e-6, rtol=0)
        hook.remove()
        model(x)
    assert seen == [(1, 16, 37, 1100)]


def test_modulation_layer_follows_the_equations() -> None:
    torch.manual_seed(0)
    layer, x = SAFM(SAFMNConfig(channels=8)), torch.randn(1, 8, 16, 24)
    groups = [layer.mfr[0](x[:, :2])]
    for level in (1, 2, 3):
        small = layer.mfr[level](F.max_pool2d(x[:, 2 * level : 2 * level + 2], 2**level))
        groups.append(small.repeat_interleave(2**level, 2).repeat_interleave(2**level, 3))
    expected = F.gelu(layer.aggr(torch.cat(groups, 1))) * x
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=0)


def test_switches_of_the_modulation_layer_do_what_they_say() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 8, 8)
    plain = SAFM(SAFMNConfig(channels=8, modulation=False, multi_scale=False, aggregation=False, gate="none"))
    depth_wise = torch.cat([conv(group) for conv, group in zip(plain.mfr, x.chunk(4, 1), strict=True)], 1)
    torch.testing.assert_close(plain(x), depth_wise)
    for change, expected in [
        ({"gate": "gelu"}, F.gelu(depth_wise)),
        ({"gate": "sigmoid"}, depth_wise.sigmoid()),
        ({"modulation": True}, depth_wise * x),
    ]:
        layer = SAFM(replace(plain.config, **change))
        layer.load_state_dict(plain.state_dict())
        torch.testing.assert_close(layer(x), expected)


def test_pooling_kinds() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert pool(x, (2, 2), "max").flatten().tolist() == [5, 7, 13, 15]
    assert pool(x, (2, 2), "average").flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pool(x, (2, 2), "nearest").flatten().tolist() == [0, 2, 8, 10]
    assert SAFM(TINY).size(3, x) == (1, 1)


def test_l2_norm_has_unit_length_and_no_division_by_zero() -> None:
    x = torch.randn(1, 5, 3, 3)
    torch.testing.assert_close(L2Norm()(x).square().sum(1), torch.ones(1, 3, 3))
    assert L2Norm()(torch.zeros(1, 5, 1, 1)).abs().sum() == 0


def test_frozen_batch_norm_learns_nothing_and_applies_its_statistics() -> None:
    norm, x = FrozenBatchNorm(3), torch.randn(2, 3, 4, 4)
    assert not list(norm.parameters())
    reference = nn.BatchNorm2d(3).eval()
    state = {name: torch.rand(3) for name in ("weight", "bias", "running_mean", "running_var")}
    norm.load_state_dict(state)
    reference.load_state_dict(state | {"num_batches_tracked": torch.tensor(0)})
    torch.testing.assert_close(norm.train()(x), reference(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(norm.running_mean, state["running_mean"])


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": 0}, {"blocks": 2.5}, {"channels": True}, {"channels": 30}, {"levels": 0}, {"safm": "some"},
        {"modulation": "yes"}, {"multi_scale": 1}, {"aggregation": None}, {"pooling": "mean"}, {"gate": "relu"},
        {"ccm": "mlp"}, {"norm": ["layer"]}, {"scale": 8}, {"scale": 0},
    ],
    ids=str,
)  # fmt: skip
def test_unknown_values_are_refused_in_one_line(change: dict) -> None:
    with pytest.raises(InputError, match=next(iter(change))) as error:
        SAFMNConfig(**change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8), (8, 8)])
def test_other_shapes_than_rgb_batches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="give"):
        network(TINY)(torch.zeros(shape))


def test_nothing_is_kept_on_the_network() -> None:
    model = network(TINY).eval()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.rand(2, 3, 9, 12))
    assert before == {name: set(vars(module)) for name, module in model.named_modules()}
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("grad", [True, False])
def test_hooks_see_what_figure_5_shows(grad: bool) -> None:
    model, seen = network(TINY).eval(), {}
    names = [f"feats.1.safm.mfr.{level}" for level in range(4)] + ["feats.1.safm.aggr", "feats.1.safm", "feats.1.ccm"]
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: (output, output.clone())})
        )
    with torch.set_grad_enabled(grad):
        model(torch.rand(1, 3, 16, 24))
    assert [seen[name][0].shape[1:] for name in names] == [
        (2, 16, 24), (2, 8, 12), (2, 4, 6), (2, 2, 3), (8, 16, 24), (8, 16, 24), (8, 16, 24),
    ]  # fmt: skip
    assert all(torch.equal(kept, copied) for kept, copied in seen.values()), "a hooked output was overwritten later"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_bfloat16_autocast_and_tracing_agree_with_plain_calls() -> None:
    model, x = network(TINY).eval(), torch.rand(1, 3, 18, 20)
    expected = model(x).detach()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x).float(), expected, atol=0.03, rtol=0)
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        torch.testing.assert_close(traced(x), expected, atol=1e-6, rtol=0)
