"""SSIU: the released outputs, its equations, and every value that its configuration takes."""

import copy
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from srlib.complexity import count
from srlib.errors import InputError
from srlib.models import create, default_config
from srlib.models.ssiu import ESAM, MSGM, SSIU, MoEFS, SSIUConfig, SSReM, Tail, padded
from srlib.runs import load_released

TINY = SSIUConfig(stages=3, channels=16)
KINDS = get_type_hints(SSIUConfig)
VARIANTS = [TINY, replace(TINY, scale=2), replace(TINY, scale=3), replace(TINY, moe_fs=False)]
VARIANTS += [replace(TINY, stages=6), replace(TINY, stages=1, moe_fs=False), replace(TINY, channels=8)]
VARIANTS += [replace(TINY, **{f.name: v}) for f in fields(TINY) for v in get_args(KINDS[f.name]) if v != f.default]


def difference(config: SSIUConfig) -> str:
    """What a variant changes, as a test's name."""
    changed = [f"{f.name}={getattr(config, f.name)}" for f in fields(config) if getattr(config, f.name) != f.default]
    return ",".join(part for part in changed if part not in ("stages=3", "channels=16")) or "tiny"


def network(config: SSIUConfig) -> SSIU:
    torch.manual_seed(0)
    return create("ssiu", config.scale, config)


def images(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def watched(model: nn.Module) -> nn.Module:
    """A copy with a hook on every layer, so that it computes layer by layer."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("mode", ["inference", "gradients", "training"])
def test_released_weights_give_the_released_output(golden: Path, mode: str) -> None:
    tensors = load_file(golden / "ssiu_x4.safetensors")
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    model = load_released(create("ssiu", 4), {"params": weights}).train(mode == "training")
    with torch.set_grad_enabled(mode != "inference"):
        torch.testing.assert_close(model(tensors["input"]), tensors["output"], atol=1e-5, rtol=0)


def parameters_by_hand(config: SSIUConfig) -> int:
    """The layers' parameters, written out from the paper's figures."""
    c = config.channels
    point, depth = c * c + c, 9 * c + c
    attention = 3 * c * c + 2 * 10 * c // 8 + (depth if config.attention == "esam" else 0)
    stage = 2 * c + 4 * (4 * point + depth) + attention
    steps = {2: [2], 3: [3], 4: [2, 2]}[config.scale]
    tail = sum(point * r * r for r in steps) + 27 * c + 3
    return 27 * c + c + config.stages * stage + (4 * point if config.moe_fs else 0) + tail


@pytest.mark.parametrize(
    ("change", "parameters"),
    [
        ({"scale": 2}, 777_827),
        ({"scale": 3}, 798_627),
        ({"scale": 4}, 794_467),
        ({"moe_fs": False}, 777_827),
        ({"attention": "sam"}, 788_707),
    ],
    ids=str,
)
def test_parameters_are_those_by_hand(change: dict, parameters: int) -> None:
    config = SSIUConfig(**change)
    found = sum(p.numel() for p in create("ssiu", config.scale, config).parameters())
    assert found == parameters == parameters_by_hand(config)


@pytest.mark.parametrize("config", VARIANTS, ids=difference)
def test_parameters_of_variants_are_those_by_hand(config: SSIUConfig) -> None:
    assert sum(p.numel() for p in network(config).parameters()) == parameters_by_hand(config)


@pytest.mark.parametrize(("scale", "macs"), [(2, 167.71), (3, 76.85), (4, 49.06)])
def test_multiply_adds_of_a_padded_image(scale: int, macs: float) -> None:
    lr_size = {2: (360, 640), 3: (240, 427), 4: (180, 320)}[scale]
    assert round(count(create("ssiu", scale), lr_size).macs / 1e9, 2) == macs


def test_the_released_sizes_are_the_defaults() -> None:
    assert default_config("ssiu") == SSIUConfig(scale=4, stages=9, channels=64)


@pytest.mark.parametrize("config", VARIANTS, ids=difference)
def test_variant_runs_batched_and_backpropagates(config: SSIUConfig) -> None:
    """Each image's result is its own, whatever the batch, in training and in evaluation mode; in double precision."""
    model, x = network(config).double(), images(2, 21, 35).double()
    together = model(x)
    assert together.shape == (2, 3, 21 * config.scale, 35 * config.scale)
    torch.testing.assert_close(together, torch.cat([model(image[None]) for image in x]), atol=1e-12, rtol=0)
    together.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x), together.detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("config", VARIANTS, ids=difference)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 40), (17, 2)], ids=str)
def test_the_smallest_images_work(config: SSIUConfig, size: tuple[int, int]) -> None:
    model, x = network(config).eval(), images(2, *size)
    with torch.inference_mode():
        result = model(x)
        assert result.shape == (2, 3, config.scale * size[0], config.scale * size[1]) and result.isfinite().all()
        torch.testing.assert_close(result, torch.cat([model(image[None]) for image in x]), atol=1e-6, rtol=0)


# --- the fast routes are the plain one -------------------------------------------------------------------------------


@pytest.mark.parametrize("config", VARIANTS, ids=difference)
@pytest.mark.parametrize("size", [(64, 64), (45, 150), (100, 50)], ids=str)
@pytest.mark.parametrize(("dtype", "margin"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=str)
def test_strips_change_nothing(config: SSIUConfig, size: tuple[int, int], dtype: torch.dtype, margin: float) -> None:
    """A large image goes through in strips and tiles where no gradient is wanted and nobody watches."""
    model, x = network(config).eval().to(dtype), images(2, *size).to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), watched(model)(x), atol=margin, rtol=0)


@pytest.mark.parametrize("config", VARIANTS, ids=difference)
def test_training_s_route_has_the_plain_one_s_result_and_gradients(config: SSIUConfig) -> None:
    model, x = network(config).double(), images(2, 16, 32).double()
    plain = watched(model)
    results = [m(x) for m in (model, plain)]
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)
    for result in results:
        result.square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_reconstruction_shuffles_at_the_end_with_the_same_result(scale: int) -> None:
    torch.manual_seed(0)
    tail, x = Tail(8, scale).double(), torch.randn(2, 8, 5, 7, dtype=torch.double)
    torch.testing.assert_close(tail(x), nn.Sequential.forward(tail, x), atol=1e-13, rtol=0)


def test_a_watched_network_shows_whole_maps() -> None:
    model, x, seen = network(TINY).eval(), images(1, 64, 80), {}
    parts = {"stage": model.body[1], "gates": model.moe.fc_b, "ESAM": model.body[0].s3}
    parts |= {name: getattr(model.body[2], name) for name in ("s1", "s2", "s4", "ffn")}
    with torch.inference_mode():
        expected = model(x)
        hooks = [
            part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: tuple(out.shape)}))
            for name, part in parts.items()
        ]
        torch.testing.assert_close(model(x), expected, atol=2e-6, rtol=0)
        for hook in hooks:
            hook.remove()
    assert seen == dict.fromkeys(parts, (1, 16, 64, 80))


def test_nothing_is_kept_on_the_network() -> None:
    model = network(TINY).eval()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    x = images(1, 64, 80)
    kept = x.clone()
    with torch.inference_mode():
        model(x)
    model(x).sum()
    assert before == {name: set(vars(module)) for name, module in model.named_modules()}
    assert torch.equal(x, kept) and all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_export_keeps_height_and_width_free() -> None:
    """Images of three sizes through one graph; it is made of sides that are multiples of 16, as it cannot pad."""
    model = network(TINY).eval()
    cells = {side: torch.export.Dim(name, min=2, max=64) for side, name in ((2, "rows"), (3, "columns"))}
    sides = {side: 16 * cell for side, cell in cells.items()}
    exported = torch.export.export(model, (images(1, 48, 64),), dynamic_shapes=(sides,)).module()
    with torch.inference_mode():
        for size in ((32, 32), (48, 80), (96, 64)):
            x = images(1, *size)
            torch.testing.assert_close(exported(x), model(x), atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [(21, 13), (64, 80)], ids=str)
def test_bfloat16_autocast_agrees_with_float32(size: tuple[int, int]) -> None:
    model, x = network(TINY).eval(), images(2, *size)
    with torch.inference_mode():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(x).float(), expected, atol=0.03, rtol=0)


# --- padding ---------------------------------------------------------------------------------------------------------


def mirrored(place: int, side: int) -> int:
    """Which of ``side`` pixels is seen at ``place`` in a hall of mirrors."""
    while side > 1 and not 0 <= place < side:
        place = -place if place < 0 else 2 * (side - 1) - place
    return min(place, side - 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 16), (3, 40), (9, 17), (16, 32), (31, 20)], ids=str)
def test_padding_reflects_to_multiples_of_16(size: tuple[int, int]) -> None:
    x = images(2, *size)
    found = padded(x)
    rows, columns = ([mirrored(i, side) for i in range(-(-side // 16) * 16)] for side in size)
    assert torch.equal(found, x[:, :, rows][:, :, :, columns])


def test_output_is_that_of_the_padded_image_cropped() -> None:
    model, x = network(TINY), images(1, 21, 35)
    with torch.no_grad():
        assert torch.equal(model(x), model(padded(x))[:, :, :84, :140])


# --- blocks by their equations ---------------------------------------------------------------------------------------


def test_msgm_is_equation_15() -> None:
    torch.manual_seed(0)
    block, f = MSGM(8).double(), torch.randn(2, 8, 6, 9, dtype=torch.double)

    def pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
        return torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]

    narrow, spread, mix = block.project_in2
    wide = F.pad(pointwise(narrow, f), (1, 1, 1, 1), mode="reflect")
    taps = [
        spread.weight[:, :1, i, j] * wide[:, :, i : i + 6, j : j + 9].transpose(0, 1).flatten(1)
        for i in range(3)
        for j in range(3)
    ]
    filtered = (sum(taps) + spread.bias[:, None]).unflatten(1, (2, 6, 9)).transpose(0, 1)
    f1, f2 = pointwise(block.project_in1, f), pointwise(mix, filtered)
    torch.testing.assert_close(block(f), pointwise(block.project_out, F.gelu(f1) * f2), atol=1e-12, rtol=0)
    torch.testing.assert_close(block(f, slice(2, -1)), block(f)[:, :, 2:-1], atol=1e-12, rtol=0)


def attention_by_loops(layer: ESAM, x: Tensor) -> Tensor:
    """Equation 17, block by block: keys and values of 10x10 pixels, zero beyond the image, and embeddings."""
    batch, channels, height, width = x.shape
    depth = channels // 4
    q, k, v = torch.einsum("oi,bihw->bohw", layer.qkv_conv.weight[:, :, 0, 0], x).chunk(3, dim=1)
    result = torch.empty_like(x)
    for image in range(batch):
        for top in range(0, height, 8):
            for left in range(0, width, 8):
                near = {}
                for name, tensor in (("k", k), ("v", v)):
                    near[name] = torch.zeros(channels, 10, 10, dtype=x.dtype)
                    for i in range(10):
                        for j in range(10):
                            row, column = top - 1 + i, left - 1 + j
                            if 0 <= row < height and 0 <= column < width:
                                near[name][:, i, j] = tensor[image, :, row, column]
                for head in range(4):
                    part = slice(head * depth, (head + 1) * depth)
                    keys = near["k"][part].clone()
                    keys[: depth // 2] += layer.rel_h[0, :, 0].T[:, :, None]
                    keys[depth // 2 :] += layer.rel_w[0, 0].T[:, None, :]
                    queries = q[image, part, top : top + 8, left : left + 8].flatten(1)
                    weights = (queries.T @ keys.flatten(1) / depth**0.5).softmax(dim=1)
                    y = weights @ near["v"][part].flatten(1).T
                    result[image, part, top : top + 8, left : left + 8] = y.T.unflatten(1, (8, 8))
    return result


@pytest.mark.parametrize("attention", ["esam", "sam"])
def test_esam_is_attention_of_blocks_to_their_neighbourhoods(attention: str) -> None:
    torch.manual_seed(0)
    layer = ESAM(replace(TINY, attention=attention)).double()
    x = torch.randn(2, 16, 16, 48, dtype=torch.double)
    with torch.no_grad():
        if attention == "sam":
            expected = attention_by_loops(layer, x)
            assert not hasattr(layer, "LocalProp")
        else:
            pooled = x.unflatten(3, (24, 2)).unflatten(2, (8, 2)).amax((3, 5))
            local = layer.LocalProp(attention_by_loops(layer, pooled))
            rows, columns = (torch.arange(n, dtype=torch.double) * (n // 2 - 1) / (n - 1) for n in (16, 48))
            weight = [1 - (p[:, None] - torch.arange(len(p) // 2)).abs() for p in (rows, columns)]
            expected = torch.einsum("yh,xw,bchw->bcyx", *(w.clamp(min=0) for w in weight), local)
        torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("s3b", ["v-b", "v+b"])
def test_stage_is_equations_10_to_14(s3b: str) -> None:
    torch.manual_seed(0)
    stage = SSReM(replace(TINY, s3b=s3b)).double()
    nn.init.normal_(stage.norm.body.weight)
    a, f = torch.randn(2, 2, 16, 16, 32, dtype=torch.double)
    mean, variance = a.mean(1, keepdim=True), a.var(1, keepdim=True, unbiased=False)
    a_y = (a - mean) / (variance + 1e-6).sqrt() * stage.norm.body.weight[:, None, None]
    z, b = stage.s1(a_y), stage.s2(a_y)
    u = a_y + z + f
    v = u + stage.s3(u)
    new = stage.s4(v - b if s3b == "v-b" else v + b) + b
    torch.testing.assert_close(stage(a, f), stage.ffn(new) + new, atol=1e-12, rtol=0)


def test_selector_is_equations_19_and_20() -> None:
    torch.manual_seed(0)
    moe, outputs = MoEFS(8).double(), torch.randn(3, 2, 8, 5, 6, dtype=torch.double)
    scores = [fc(y).exp() for fc, y in zip((moe.fc_a, moe.fc_b, moe.fc_c), outputs, strict=True)]
    s = sum(score / sum(scores) * y for score, y in zip(scores, outputs, strict=True))
    torch.testing.assert_close(moe(*outputs), s + moe.fuse(s), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("stages", "chosen"), [(3, (0, 1, 2)), (9, (2, 5, 8))])
def test_selector_gets_every_third_of_the_stages(stages: int, chosen: tuple[int, ...]) -> None:
    model, kept, given = network(replace(TINY, stages=stages)), [], []
    for stage in model.body:
        stage.register_forward_hook(lambda _, __, out: kept.append(out))
    model.moe.register_forward_hook(lambda _, inputs, __: given.extend(inputs))
    model(images(1, 16, 16))
    assert len(given) == 3 and all(ours is kept[i] for ours, i in zip(given, chosen, strict=True))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 8}, {"stages": 0}, {"stages": 8}, {"stages": 9.0}, {"channels": 60}, {"channels": True},
        {"attention": "dense"}, {"moe_fs": 1}, {"s3b": "v*b"},
    ],
    ids=str,
)  # fmt: skip
def test_unknown_values_are_refused_in_one_line(change: dict) -> None:
    with pytest.raises(InputError, match=next(iter(change))) as error:
        SSIUConfig(**change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8), (0, 3, 8, 8)])
def test_other_shapes_than_rgb_batches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="give"):
        network(TINY)(torch.zeros(shape))


def test_weights_of_another_size_or_scale_are_refused_in_one_line() -> None:
    weights = create("ssiu", 2, TINY).state_dict()
    others = (create("ssiu", 3, TINY), create("ssiu", 2, replace(TINY, channels=24)), create("safmn", 2))
    for wrong in others:
        with pytest.raises(InputError, match="does not fit") as error:
            load_released(wrong, weights)
        assert "\n" not in str(error.value)
