"""Networks by name, and the layers that papers share."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from srlib.errors import InputError
from srlib.models import create, default_config, names, takes_scale
from srlib.models.layers import LayerNorm, fill_in_strips, strips, strips_pay
from srlib.models.moeisr import CONFIGS, MoEISRConfig
from srlib.models.safmn import SAFMNConfig

FIXED = [name for name in names() if takes_scale(name)]
ANY = [name for name in names() if not takes_scale(name)]


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_name_enlarges_by_its_scale(name: str, scale: int) -> None:
    with torch.inference_mode():
        assert create(name, scale).eval()(torch.rand(1, 3, 8, 11)).shape == (1, 3, 8 * scale, 11 * scale)


@pytest.mark.parametrize("name", [name for name in ANY if name.endswith("edsr")])
def test_every_other_name_enlarges_to_any_size(name: str) -> None:
    with torch.inference_mode():
        assert create(name).eval()(torch.rand(1, 3, 8, 11), size=(19, 40)).shape == (1, 3, 19, 40)


def test_names_for_every_scale_are_moeisr_and_its_backbones() -> None:
    assert ANY == sorted(CONFIGS) and len(ANY) == 18
    assert FIXED == ["safmn", "seemore-b", "seemore-l", "seemore-t", "ssiu"]


def test_a_network_for_every_scale_takes_none() -> None:
    tiny = MoEISRConfig(depths=(2, 3), hidden=8)
    assert create("moeisr-liif-b-edsr", config=tiny).config == tiny
    with pytest.raises(InputError, match=r"got scale 4: leave it out.*size=") as error:
        create("liif-edsr", 4)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"got none: give it, as in create\('safmn', 4\)"):
        create("safmn")


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
@pytest.mark.parametrize("scale", [1, 2])
def test_strips_give_the_whole_result(height: int, scale: int) -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(4, 4 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
    x = torch.randn(2, 4, height, 7)
    seen = []
    with torch.inference_mode():
        result = torch.full((2, 4, scale * height, scale * 7), torch.nan)
        for strip in strips(result, halo=1, scale=scale, step=16):
            part = x[:, :, strip.rows]
            seen.append(part.shape[2])
            strip.out.copy_(conv(part)[:, :, strip.inner])
        torch.testing.assert_close(result, conv(x), atol=1e-6, rtol=0)
    assert len(seen) == -(-height // 16)
    assert max(seen) <= 18


@pytest.mark.parametrize("height", [1, 16, 17, 50])
def test_filling_in_strips_gives_the_whole_result(height: int) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 4, 5, padding=2), torch.randn(1, 4, height, 1100)
    with torch.inference_mode():
        result = torch.full_like(x, torch.nan)
        fill_in_strips(result, lambda rows: conv(x[:, :, rows]), halo=2)
        torch.testing.assert_close(result, conv(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", FIXED)
def test_strips_keep_the_kind_of_number_under_autocast(name: str) -> None:
    model, x = create(name, 4).eval(), torch.rand(1, 3, 64, 70)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        in_strips = model(x)
        model.register_forward_hook(lambda *_: None)
        assert in_strips.dtype == model(x).dtype


def test_strips_pay_only_in_evaluation_unwatched_and_without_gradients() -> None:
    layer, x = nn.Sequential(nn.Conv2d(1, 1, 1)).eval(), torch.rand(1, 1, 4, 4)
    assert not strips_pay(layer, x)
    with torch.inference_mode():
        assert not strips_pay(nn.Sequential(nn.Conv2d(1, 1, 1)), x)
        assert strips_pay(layer, x)
        hook = layer[0].register_forward_hook(lambda *_: None)
        assert not strips_pay(layer, x)
        hook.remove()
        assert strips_pay(layer, x)


def test_a_name_says_decoder_encoder_and_whether_there_are_experts() -> None:
    """Depths and widths are free, as in MoEISR's Table 4; what the name promises is not."""
    usual = default_config("liif-edsr")
    assert create("liif-edsr", config=replace(usual, depths=(4,))).config.depths == (4,)
    for other in ({"decoder": "lte"}, {"encoder": "rdn"}, {"depths": (2, 3)}):
        with pytest.raises(InputError, match="'liif-edsr' got the configuration of another"):
            create("liif-edsr", config=replace(usual, **other))


def test_networks_for_every_scale_need_single_precision() -> None:
    network = create("liif-edsr").bfloat16()
    with pytest.raises(InputError, match="places need single precision, not torch.bfloat16"):
        network(torch.rand(1, 3, 4, 4).bfloat16(), size=(8, 8))


def test_a_size_may_hold_numpys_whole_numbers() -> None:
    network = create("liif-edsr").eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 2, 3), size=(np.int64(4), np.int64(5))).shape == (1, 3, 4, 5)
