"""SeemoRe: its sizes, its equations, and the routing of images by their experts, in batches, too."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_models import images
from torch import Tensor, nn

from srlib.complexity import count
from srlib.models import create, default_config
from srlib.models.seemore import LowRankMixture, MoRE, Router, SeemoReConfig

TINY = SeemoReConfig(groups=2, channels=8)


def network(config: SeemoReConfig = TINY) -> nn.Module:
    """A network whose routers look at what differs between images, so that they take different routes."""
    torch.manual_seed(0)
    model = create("seemore-t", config.scale, config)

    def steer(router: Router, inputs: tuple[Tensor]) -> None:
        means, weight = inputs[0].mean((2, 3)), router.body[-1].weight.data
        usual = means.mean(0)
        weight -= (weight @ usual)[:, None] * usual / usual.square().sum()
        weight *= 2 / (means @ weight.T).std()

    hooks = [m.register_forward_pre_hook(steer) for m in model.modules() if isinstance(m, Router)]
    with torch.no_grad():
        model(images(6, 21, 13))
    for hook in hooks:
        hook.remove()
    return model.eval()


def routes(model: nn.Module, x: Tensor) -> list[list[int]]:
    """The expert that each image takes in each block."""
    seen: list[Tensor] = []
    model = copy.deepcopy(model)
    for router in (m for m in model.modules() if isinstance(m, Router)):
        router.register_forward_hook(lambda _, __, gates: seen.append(gates.argmax(1)))
    with torch.no_grad():
        model(x)
    return torch.stack(seen, 1).tolist()


def test_sizes_are_those_released() -> None:
    """220K and 490K parameters, as printed; the counts of all rows are tested in test_tables.py."""
    sizes = [default_config(f"seemore-{size}") for size in "tbl"]
    found = [(c.groups, c.channels, c.recursion, c.shuffle) for c in sizes]
    assert found == [(6, 36, 2, True), (8, 48, 2, True), (16, 48, 1, False)]
    assert {(c.ranks, c.top_k, c.kernel) for c in sizes} == {((2, 4, 8), 1, 11)}
    parameters = [sum(p.numel() for p in create(f"seemore-{size}", 2).parameters()) for size in "tb"]
    assert parameters == [220_104, 490_364]


def test_ranks_grow_as_table_5a_says() -> None:
    growths = {"2^i": (2, 4, 8, 16), "2*i+2": (2, 4, 6, 8), "i+2": (2, 3, 4, 5)}
    assert {growth: SeemoReConfig(growth=growth, experts=4).ranks for growth in growths} == growths


def experts_one_by_one(layer: LowRankMixture, x_a: Tensor, x_b: Tensor) -> Tensor:
    """Equation 4 as it is written: the softmax values of the top-k, each expert in full."""
    values, chosen = layer.gate.body[-1](x_a.mean((2, 3))).softmax(1).topk(layer.gate.top_k)
    result = torch.zeros_like(x_a)
    for image in range(len(x_a)):
        for value, index in zip(values[image], chosen[image].tolist(), strict=True):
            result[image] += value * layer.experts[index](x_a[image : image + 1], x_b[image : image + 1])[0]
    return result


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_mixture_and_its_gradients_are_equation_4(top_k: int, training: bool) -> None:
    torch.manual_seed(0)
    layer = LowRankMixture(replace(TINY, top_k=top_k)).double().train(training)
    x_a, x_b = torch.randn(2, 5, 8, 6, 7, dtype=torch.double)
    x_a += 2 * torch.randn(5, 8, 1, 1)
    results, gradients = [], []
    for compute in (layer, lambda a, b: experts_one_by_one(layer, a, b)):
        layer.zero_grad()
        results.append(compute(x_a, x_b))
        results[-1].square().sum().backward()
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in layer.parameters()])
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-9)


def test_a_batch_of_different_routes_gives_each_image_its_own_result() -> None:
    model, x = network(), images(6, 21, 13)
    assert len({tuple(route) for route in routes(model, x)}) >= 3
    with torch.inference_mode():
        alone = torch.cat([model(image[None]) for image in x])
        torch.testing.assert_close(model(x), alone, atol=1e-6, rtol=0)
        torch.testing.assert_close(model.train()(x), alone, atol=1e-6, rtol=0)


def test_experts_that_are_not_chosen_cost_nothing() -> None:
    """An expert of rank R has 3 C R multiply-adds a pixel."""
    model, x = network(), images(1, 16, 20)
    (route,) = routes(model, x)
    every, executed = count(model, (16, 20)).macs, count(model, (16, 20), training=False, image=x).macs
    spared = sum(3 * TINY.channels * rank for chosen in route for i, rank in enumerate(TINY.ranks) if i != chosen)
    assert executed == every - spared * 16 * 20


@pytest.mark.parametrize(("residual", "added"), [("dconv", "a"), ("aggregation", "b"), ("none", "")])
def test_more_is_equations_1_to_4_and_table_11(residual: str, added: str) -> None:
    torch.manual_seed(0)
    block, x = MoRE(replace(TINY, residual=residual)).double(), torch.randn(1, 8, 32, 48, dtype=torch.double)
    both = block.conv_1(x).view(1, 2, 8, 32, 48).transpose(1, 2).reshape(1, 16, 32, 48)  # shuffled in two groups
    x_a, x_b = both[:, :8], both[:, 8:]
    context = x_b
    for _ in range(2):  # Equation 1
        weights = block.agg_conv[0].weight, block.agg_conv[0].bias
        context = F.gelu(F.conv2d(context, *weights, stride=4, groups=8))
    assert context.shape[-2:] == (2, 3)
    x_b = x_b + F.interpolate(block.conv(context), (32, 48), mode="bilinear", align_corners=False)  # Equation 2
    row, column = block.conv_2[0].conv
    x_a = F.gelu(column(row(x_a)))
    y = experts_one_by_one(block.moe_layer, x_a, x_b)  # Equations 3 and 4
    torch.testing.assert_close(block(x), block.proj(y + {"a": x_a, "b": x_b, "": 0}[added]), atol=1e-12, rtol=0)


def test_order_swaps_the_experts_of_a_group() -> None:
    rank_first, x = network().body[0], torch.randn(1, 8, 8, 8)
    spatial_first = network(replace(TINY, order="spatial-rank")).body[0]
    spatial_first.load_state_dict(rank_first.state_dict())
    torch.testing.assert_close(rank_first(x), rank_first.global_block(rank_first.local_block(x)))
    torch.testing.assert_close(spatial_first(x), rank_first.local_block(rank_first.global_block(x)))
