"""Networks by name, and the layers that papers share."""

import pytest
import torch
from torch import nn

from srlib.errors import InputError
from srlib.models import create, names
from srlib.models.layers import LayerNorm, in_strips
from srlib.models.safmn import SAFMNConfig


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_name_enlarges_by_its_scale(name: str, scale: int) -> None:
    with torch.inference_mode():
        assert create(name, scale).eval()(torch.rand(1, 3, 8, 11)).shape == (1, 3, 8 * scale, 11 * scale)


def test_config_is_used_and_its_scale_replaced() -> None:
    model = create("safmn", 2, SAFMNConfig(scale=4, blocks=1, channels=8))
    assert model.config == SAFMNConfig(scale=2, blocks=1, channels=8)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'nosuch'.*safmn") as error:
        create("nosuch", 4)
    assert "\n" not in str(error.value)


def test_config_of_another_network_is_refused() -> None:
    with pytest.raises(InputError, match="SAFMNConfig"):
        create("safmn", 4, config={"blocks": 8})


@pytest.mark.parametrize("scale", [0, -2, 2.0, 2.5, "4", True, None, 1, 5])
def test_scales_that_do_not_exist_are_refused_in_one_line(scale: object) -> None:
    with pytest.raises(InputError, match="scale") as error:
        create("safmn", scale)
    assert "\n" not in str(error.value)


def test_layer_norm_is_over_the_channels_of_a_pixel() -> None:
    torch.manual_seed(0)
    norm = LayerNorm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = 3 * torch.randn(2, 6, 5, 4) + 1
    mean = x.mean(1, keepdim=True)
    scaled = (x - mean) / (((x - mean) ** 2).mean(1, keepdim=True) + 1e-6).sqrt()
    expected = norm.weight.view(-1, 1, 1) * scaled + norm.bias.view(-1, 1, 1)
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)


def test_layer_norm_divides_nothing_by_zero() -> None:
    assert torch.equal(LayerNorm(4)(torch.full((1, 4, 2, 2), 0.7)), torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize("height", [1, 16, 17, 33, 50])
def test_strips_give_the_whole_result(height: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    x = torch.randn(2, 4, height, 7)
    seen = []
    with torch.inference_mode():
        result = in_strips(lambda strip: seen.append(strip.shape[2]) or conv(strip), x, halo=1, pixels=1)
        torch.testing.assert_close(result, conv(x), atol=1e-6, rtol=0)
    assert len(seen) == -(-height // 16)
    assert max(seen) <= 18


def test_gradients_are_computed_in_one_piece() -> None:
    seen = []
    in_strips(lambda x: seen.append(x.shape) or x, torch.randn(1, 2, 64, 3), halo=1, pixels=1)
    assert seen == [(1, 2, 64, 3)]
