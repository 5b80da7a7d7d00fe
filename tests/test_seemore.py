"""SeemoRe: the released outputs, routing, export, and every value that its configuration takes."""

import copy
import io
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from srlib.complexity import count
from srlib.errors import InputError
from srlib.models import create, default_config
from srlib.models.seemore import SEE, GatedFFN, LowRankMixture, MoRE, Router, SeemoReConfig
from srlib.runs import load_released

TINY = SeemoReConfig(groups=2, channels=8)
KINDS = get_type_hints(SeemoReConfig)
VARIANTS = [TINY, replace(TINY, scale=2), replace(TINY, scale=3), replace(TINY, groups=1), replace(TINY, shuffle=False)]
VARIANTS += [replace(TINY, top_k=k) for k in (2, 3)] + [replace(TINY, recursion=t) for t in (1, 3)]
VARIANTS += [replace(TINY, experts=n) for n in (1, 2, 8)] + [replace(TINY, kernel=k) for k in (1, 3, 7)]
VARIANTS += [replace(TINY, **{f.name: v}) for f in fields(TINY) for v in get_args(KINDS[f.name]) if v != f.default]
VARIANTS += [replace(TINY, rme="plain", sme="plain"), replace(TINY, sme="conv2former", kernel=5)]


def difference(config: SeemoReConfig) -> str:
    """What a variant changes, as a test's name."""
    changed = [f"{f.name}={getattr(config, f.name)}" for f in fields(config) if getattr(config, f.name) != f.default]
    return ",".join(part for part in changed if part not in ("groups=2", "channels=8")) or "tiny"


def network(config: SeemoReConfig) -> nn.Module:
    """A network whose routers look at what differs between images, so that they take different routes."""
    torch.manual_seed(0)
    model = create("seemore-t", config.scale, config)

    def steer(router: Router, inputs: tuple[torch.Tensor]) -> None:
        means, weight = inputs[0].mean((2, 3)), router.body[-1].weight.data
        usual = means.mean(0)
        weight -= (weight @ usual)[:, None] * usual / usual.square().sum()
        weight *= 2 / (means @ weight.T).std()

    hooks = [m.register_forward_pre_hook(steer) for m in model.modules() if isinstance(m, Router)]
    with torch.no_grad():
        model(different_images())
    for hook in hooks:
        hook.remove()
    return model


def different_images(count: int = 6, size: tuple[int, int] = (21, 13)) -> torch.Tensor:
    """Images of different colours and contrasts."""
    generator = torch.Generator().manual_seed(1)
    mean, contrast = torch.rand(count, 3, 1, 1, generator=generator), torch.rand(count, 1, 1, 1, generator=generator)
    return (mean + contrast * torch.randn(count, 3, *size, generator=generator) / 2).clamp(0, 1)


def routes(model: nn.Module, images: torch.Tensor) -> list[tuple]:
    """The experts that each image takes in each block."""
    seen: list[torch.Tensor] = []
    hooks = [
        m.register_forward_hook(lambda _, __, gates: seen.append(gates > 0))
        for m in model.modules()
        if isinstance(m, Router)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return [tuple(tuple(gates[i].nonzero().flatten().tolist()) for gates in seen) for i in range(len(images))]


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("mode", ["inference", "gradients", "training"])
def test_released_weights_give_the_released_output(golden: Path, scale: int, mode: str) -> None:
    tensors = load_file(golden / f"seemore_t_x{scale}.safetensors")
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    model = load_released(create("seemore-t", scale), {"params": weights}).train(mode == "training")
    with torch.set_grad_enabled(mode != "inference"):
        torch.testing.assert_close(model(tensors["input"]), tensors["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name, scale, parameters",
    [("seemore-t", 2, 220_104), ("seemore-t", 3, 224_979), ("seemore-t", 4, 231_804), ("seemore-b", 2, 490_364)],
)
def test_parameters_are_those_printed(name: str, scale: int, parameters: int) -> None:
    """220K, 225K, 232K and 490K."""
    assert sum(p.numel() for p in create(name, scale).parameters()) == parameters


def test_sizes_are_those_released() -> None:
    tiny, base, large = (default_config(f"seemore-{size}") for size in "tbl")
    assert (tiny.groups, tiny.channels, tiny.recursion, tiny.shuffle) == (6, 36, 2, True)
    assert (base.groups, base.channels, base.recursion, base.shuffle) == (8, 48, 2, True)
    assert (large.groups, large.channels, large.recursion, large.shuffle) == (16, 48, 1, False)
    assert {(c.ranks, c.top_k, c.kernel) for c in (tiny, base, large)} == {((2, 4, 8), 1, 11)}


@pytest.mark.parametrize(
    "growth, experts, ranks",
    [
        ("2^i", 4, (2, 4, 8, 16)),
        ("2*i+2", 4, (2, 4, 6, 8)),
        ("i+2", 6, (2, 3, 4, 5, 6, 7)),
        ("2^(i+1)", 3, (4, 8, 16)),
    ],
)
def test_ranks_grow_as_table_5a_says(growth: str, experts: int, ranks: tuple[int, ...]) -> None:
    assert SeemoReConfig(growth=growth, experts=experts).ranks == ranks


@pytest.mark.parametrize("config", VARIANTS, ids=difference)
def test_variant_runs_batched_and_backpropagates(config: SeemoReConfig) -> None:
    """Each image's result is its own, whatever the batch, in training and in evaluation mode.

    In double precision, where nothing but another route could make a difference.
    """
    model, x = network(config).double(), different_images().double()
    in_training = model(x)
    in_training.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in x])
    assert in_training.shape == (6, 3, 21 * config.scale, 13 * config.scale)
    torch.testing.assert_close(in_training.detach(), alone, atol=1e-12, rtol=0)
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]), atol=1e-12, rtol=0)
        torch.testing.assert_close(model(x), alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_a_released_network_gives_each_image_of_a_batch_its_own_result(golden: Path, training: bool) -> None:
    """The release's inference fails for a batch; ours is right to 1e-6 in single precision."""
    weights = load_file(golden / "seemore_t_x4.safetensors")
    model = create("seemore-t", 4)
    load_released(model, {k.removeprefix("weights/"): v for k, v in weights.items() if k.startswith("weights/")})
    model.train(training)
    with torch.no_grad():
        x = torch.cat([different_images(size=(45, 64)), weights["input"]])
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]), atol=1e-6, rtol=0)


def test_the_images_of_these_tests_take_different_routes() -> None:
    found = routes(network(TINY).eval(), different_images())
    assert len(set(found)) >= 3
    assert {block for route in found for block in route} >= {(0,), (1,), (2,)}


@pytest.mark.parametrize("change", [{}, {"recursion": 3}, {"order": "spatial-rank"}, {"kernel": 3}], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (3, 2), (5, 4), (8, 8)])
def test_the_smallest_images_work(size: tuple[int, int], change: dict) -> None:
    model = network(replace(TINY, **change)).eval()
    with torch.inference_mode():
        result = model(different_images(2, size))
    assert result.shape == (2, 3, 4 * size[0], 4 * size[1])
    assert result.isfinite().all()


@pytest.mark.parametrize("config", VARIANTS, ids=difference)
@pytest.mark.parametrize("height", [1, 3, 37, 64])
def test_strips_and_gradients_change_nothing(config: SeemoReConfig, height: int) -> None:
    """A wide image goes through in strips of rows where no gradient is wanted, with the same result."""
    model, x = network(config).eval(), different_images(2, (height, 1100))
    with torch.inference_mode():
        result = model(x)
    torch.testing.assert_close(result, model(x).detach(), atol=2e-6, rtol=0)


def test_a_watched_network_shows_whole_maps() -> None:
    model, x, seen = network(TINY).eval(), different_images(1, (37, 1100)), []
    with torch.inference_mode():
        expected = model(x)
        hook = model.body[1].global_block.block.proj.register_forward_hook(lambda _, __, out: seen.append(out.shape))
        torch.testing.assert_close(model(x), expected, atol=2e-6, rtol=0)
        hook.remove()
        model(x)
    assert seen == [(1, 8, 37, 1100)]


# --- routing ---------------------------------------------------------------------------------------------------------


def experts_one_by_one(layer: LowRankMixture, x_a: torch.Tensor, x_b: torch.Tensor) -> torch.Tensor:
    """Equation 4 as it is written: the softmax values of the top-k, each expert in full."""
    logits = layer.gate.body[-1](x_a.mean((2, 3)))
    values, chosen = logits.softmax(1).topk(layer.gate.top_k)
    result = torch.zeros_like(x_a)
    for image in range(len(x_a)):
        for value, index in zip(values[image], chosen[image].tolist(), strict=True):
            result[image] += value * layer.experts[index](x_a[image : image + 1], x_b[image : image + 1])[0]
    return result


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_mixture_is_equation_4(top_k: int, training: bool) -> None:
    torch.manual_seed(0)
    layer = LowRankMixture(replace(TINY, top_k=top_k)).train(training)
    x_a, x_b = torch.randn(5, 8, 6, 7), torch.randn(5, 8, 6, 7)
    x_a += 2 * torch.randn(5, 8, 1, 1)
    torch.testing.assert_close(layer(x_a, x_b), experts_one_by_one(layer, x_a, x_b), atol=1e-6, rtol=1e-5)


def test_gradients_are_those_of_equation_4() -> None:
    torch.manual_seed(0)
    layer = LowRankMixture(TINY)
    x_a, x_b = torch.randn(5, 8, 6, 7) + 2 * torch.randn(5, 8, 1, 1), torch.randn(5, 8, 6, 7)
    layer(x_a, x_b).square().sum().backward()
    ours = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad(set_to_none=True)
    experts_one_by_one(layer, x_a, x_b).square().sum().backward()
    for name, parameter in layer.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(ours[name], expected, atol=1e-4, rtol=1e-4)


def test_router_keeps_the_softmax_values_of_the_chosen() -> None:
    torch.manual_seed(0)
    router, x = Router(8, 4, 2), torch.randn(3, 8, 5, 5)
    gates, full = router(x), F.softmax(router.body[-1](x.mean((2, 3))), dim=1)
    assert (gates > 0).sum(1).tolist() == [2, 2, 2]
    for row, whole in zip(gates, full, strict=True):
        assert sorted(row[row > 0].tolist()) == pytest.approx(sorted(whole.tolist())[-2:])
    assert (gates.sum(1) < 1).all()  # not renormalised


def forced(model: nn.Module, route: list[list[int]]) -> nn.Module:
    """A copy whose gates choose the given experts in each block, whatever they see."""
    model = copy.deepcopy(model)
    routers = [m for m in model.modules() if isinstance(m, Router)]
    for router, chosen in zip(routers, route, strict=True):
        gates = torch.zeros(1, 3)
        gates[0, chosen] = 1 / len(chosen)
        router.register_forward_hook(lambda _, __, out, gates=gates: 0 * out + gates)
    return model


@pytest.mark.parametrize("route", [[[0], [0]], [[2], [0]], [[1], [2]], [[0, 2], [1]], [[0, 1, 2], [0, 1, 2]]], ids=str)
def test_only_chosen_experts_are_computed(route: list[list[int]]) -> None:
    """By count: an expert of rank R has 3 C R multiply-adds a pixel, and those that aren't chosen have none."""
    model, (height, width) = network(TINY).eval(), (16, 20)
    dense = count(model, (height, width), training=True).macs
    spared = sum(3 * TINY.channels * r for block in route for i, r in enumerate(TINY.ranks) if i not in block)
    assert count(forced(model, route), (height, width), training=False).macs == dense - spared * height * width


def test_a_mixed_batch_computes_each_image_by_its_own_route() -> None:
    torch.manual_seed(0)
    layer = LowRankMixture(TINY).eval()
    gates = torch.tensor([[1.0, 0, 0], [0, 0, 0.5], [1.0, 0, 0], [0, 0.7, 0]])
    layer.gate.register_forward_hook(lambda *_: gates)
    computed: list[tuple[int, tuple[int, ...]]] = []
    mix = layer.mix
    layer.mix = lambda x_a, x_b, gates, route: computed.append((len(x_a), route)) or mix(x_a, x_b, gates, route)
    x_a, x_b = torch.randn(4, 8, 5, 6), torch.randn(4, 8, 5, 6)
    result = layer(x_a, x_b)
    assert computed == [(2, (0,)), (1, (2,)), (1, (1,))]
    for image, row in enumerate(gates):
        expert = int(row.argmax())
        expected = row[expert] * layer.experts[expert](x_a[[image]], x_b[[image]])
        torch.testing.assert_close(result[[image]], expected, atol=1e-6, rtol=1e-5)


# --- one graph for every route ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    sides = {2: torch.export.Dim("height", min=32, max=2048), 3: torch.export.Dim("width", min=32, max=2048)}
    return torch.export.export(network(TINY).eval(), (torch.rand(1, 3, 40, 56),), dynamic_shapes=(sides,))


SIZES = [(32, 32), (33, 47), (64, 40)]


def different_routes(size: tuple[int, int]) -> torch.Tensor:
    images = different_images(6, size)
    assert len(set(routes(network(TINY).eval(), images))) >= 2
    return images


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_export_routes_each_image(exported: torch.export.ExportedProgram, size: tuple[int, int]) -> None:
    model = network(TINY).eval()
    with torch.inference_mode():
        for image in different_routes(size):
            torch.testing.assert_close(exported.module()(image[None]), model(image[None]), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_onnx_routes_each_image(exported: torch.export.ExportedProgram) -> None:
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    buffer = io.BytesIO()
    torch.onnx.export(exported, dynamo=True, verbose=False).save(buffer)
    session = runtime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    model, name = network(TINY).eval(), session.get_inputs()[0].name
    for size in SIZES:
        for image in different_routes(size):
            (result,) = session.run(None, {name: image[None].numpy()})
            with torch.inference_mode():
                torch.testing.assert_close(torch.from_numpy(result), model(image[None]), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracing_warns_that_it_keeps_a_route() -> None:
    with pytest.warns(torch.jit.TracerWarning), torch.no_grad():
        torch.jit.trace(network(TINY).eval(), torch.rand(1, 3, 16, 16), check_trace=False)


def test_bfloat16_autocast_agrees_with_float32() -> None:
    model, x = create("seemore-t", 4, TINY).eval(), different_images()
    with torch.inference_mode():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(x).float(), expected, atol=0.03, rtol=0)


# --- blocks by their equations ---------------------------------------------------------------------------------------


def test_more_follows_the_equations() -> None:
    torch.manual_seed(0)
    block, x = MoRE(TINY), torch.randn(1, 8, 32, 48)
    both = block.conv_1(x).view(1, 2, 8, 32, 48).transpose(1, 2).reshape(1, 16, 32, 48)  # shuffled in two groups
    x_a, x_b = both[:, :8], both[:, 8:]
    once = F.gelu(F.conv2d(x_b, block.agg_conv[0].weight, block.agg_conv[0].bias, stride=4, groups=8))
    twice = F.gelu(F.conv2d(once, block.agg_conv[0].weight, block.agg_conv[0].bias, stride=4, groups=8))
    assert twice.shape[-2:] == (2, 3)
    x_b = x_b + F.interpolate(block.conv(twice), (32, 48), mode="bilinear", align_corners=False)  # Equations 1 and 2
    x_a = F.gelu(block.conv_2[0].conv[1](block.conv_2[0].conv[0](x_a)))
    expected = block.proj(experts_one_by_one(block.moe_layer, x_a, x_b) + x_a)  # Equation 4
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_residuals_of_table_11() -> None:
    torch.manual_seed(0)
    plain, x = MoRE(replace(TINY, residual="none")).eval(), torch.randn(1, 8, 16, 16)
    kept: dict[str, torch.Tensor] = {}
    plain.moe_layer.register_forward_hook(lambda _, inputs, out: kept.update(a=inputs[0], b=inputs[1], y=out))
    torch.testing.assert_close(plain(x), plain.proj(kept["y"]))
    for residual, added in (("dconv", "a"), ("aggregation", "b")):
        block = MoRE(replace(TINY, residual=residual)).eval()
        block.load_state_dict(plain.state_dict())
        torch.testing.assert_close(block(x), plain.proj(kept["y"] + kept[added]), atol=1e-6, rtol=1e-5)


def test_see_and_gated_ffn_follow_their_definitions() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 16, 20)
    see = SEE(8, 11)
    q, v = F.gelu(see.to_qv[0](x)).chunk(2, 1)
    row, column = see.attn.conv
    assert (row.kernel_size, column.kernel_size, row.groups) == ((1, 11), (11, 1), 8)
    torch.testing.assert_close(see(x), see.proj(column(row(q)) * v), atol=1e-6, rtol=1e-5)  # Equation 5
    ffn = GatedFFN(8)
    a, b = F.gelu(ffn.fn_1[0](x)).chunk(2, 1)
    torch.testing.assert_close(ffn(x), F.gelu(ffn.fn_2[0](a * ffn.gate(b))), atol=1e-6, rtol=1e-5)


def test_order_swaps_the_experts_of_a_group() -> None:
    rank_first, x = network(TINY).body[0], torch.randn(1, 8, 8, 8)
    spatial_first = network(replace(TINY, order="spatial-rank")).body[0]
    spatial_first.load_state_dict(rank_first.state_dict())
    torch.testing.assert_close(rank_first(x), rank_first.global_block(rank_first.local_block(x)))
    torch.testing.assert_close(spatial_first(x), rank_first.local_block(rank_first.global_block(x)))


# --- bad input, purity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"groups": 0}, {"channels": 2.5}, {"order": "random"}, {"rme": "none"}, {"growth": "3^i"}, {"experts": 0},
        {"top_k": 4}, {"top_k": 0}, {"recursion": True}, {"shuffle": 1}, {"residual": True}, {"sme": "msa"},
        {"kernel": 10}, {"scale": 8}, {"experts": 40}, {"experts": 13}, {"experts": 10**9, "growth": "i+2"},
    ],
    ids=str,
)  # fmt: skip
def test_unknown_values_are_refused_in_one_line(change: dict) -> None:
    with pytest.raises(InputError, match=next(iter(change))) as error:
        SeemoReConfig(**change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8), (0, 3, 8, 8)])
def test_other_shapes_than_rgb_batches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="give"):
        network(TINY)(torch.zeros(shape))


def test_weights_of_another_size_or_scale_are_refused_in_one_line() -> None:
    weights = create("seemore-t", 2, TINY).state_dict()
    for wrong in (create("seemore-t", 3, TINY), create("seemore-t", 2, replace(TINY, channels=12)), create("safmn", 2)):
        with pytest.raises(InputError, match="does not fit") as error:
            load_released(wrong, weights)
        assert "\n" not in str(error.value)


def test_nothing_is_kept_on_the_network() -> None:
    model = network(TINY).eval()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model(different_images())
    assert before == {name: set(vars(module)) for name, module in model.named_modules()}
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
