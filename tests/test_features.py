"""Recording feature maps leaves the network as it was."""

import pytest
import torch

from srlib.errors import InputError
from srlib.evaluate import AtScale
from srlib.features import record, record_inputs, sharpness
from srlib.models import create, takes_scale
from srlib.models.safmn import SAFMN, SAFMNConfig
from srlib.models.seemore import SeemoRe, SeemoReConfig


@pytest.fixture
def network() -> SAFMN:
    return SAFMN(SAFMNConfig(scale=2, blocks=2, channels=8)).eval()


def test_maps_are_the_modules_outputs(network):
    image = torch.rand(1, 3, 20, 24)
    maps = record(network, image, {"first": network.to_feat, "coarse": network.feats[0].safm.mfr[2]})
    assert list(maps) == ["first", "coarse"]
    assert maps["coarse"].shape == (2, 5, 6)
    torch.testing.assert_close(maps["first"], network.to_feat(image)[0].detach())


def test_modules_are_found_by_their_names(network):
    image = torch.rand(1, 3, 20, 24)
    names = [name for name, _ in network.named_modules()]
    by_name = record(network, image, ["to_feat", "feats.1.safm.mfr.2"])
    by_module = record(network, image, {"a": network.to_feat, "b": network.feats[1].safm.mfr[2], "c": "feats.1.safm"})
    assert list(by_name) == ["to_feat", "feats.1.safm.mfr.2"] and list(by_module) == ["a", "b", "c"]
    for one, other in zip(by_name.values(), by_module.values(), strict=False):
        assert torch.equal(one, other)
    assert by_module["c"].shape == (8, 20, 24)
    assert set(record(network, image, names)) == set(names) - {"feats.0.safm.mfr", "feats.1.safm.mfr"}
    assert torch.equal(record_inputs(network, image, "to_img")["to_img"][0][0], record_inputs(network, image, {
        "last": network.to_img
    })["last"][0][0])  # fmt: skip


def test_an_unknown_name_is_refused_with_the_nearest(network):
    image = torch.rand(1, 3, 8, 8)
    with pytest.raises(InputError, match=r"SAFMN has no module 'feat.0.safm': did you mean feats\.0\.safm"):
        record(network, image, ["to_feat", "feat.0.safm"])
    with pytest.raises(InputError, match="named_modules"):
        record_inputs(network, image, {"x": "zzzzzz"})
    assert not network.to_feat._forward_hooks


def test_an_output_that_is_no_tensor_is_refused_by_name():
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x, x

    network = torch.nn.Sequential(Pair())
    with pytest.raises(InputError, match="'0' puts out tuple, no tensor: watch a module inside it"):
        record(network, torch.rand(1, 3, 8, 8), ["0"])
    assert not network[0]._forward_hooks


@pytest.mark.parametrize("model", ["seemore-t", "ssiu", "moeisr-lte-s-edsr"])
def test_any_named_module_is_recorded_whatever_the_network(model):
    network = create(model, 4 if takes_scale(model) else None).eval()
    upscaler = network if takes_scale(model) else AtScale(network, 2)
    names = [name for name, module in upscaler.named_modules() if isinstance(module, torch.nn.Conv2d)]
    maps = record(upscaler, torch.rand(1, 3, 32, 32), names)
    assert maps and all(one.dim() == 3 and one.isfinite().all() for one in maps.values())


def test_no_hook_stays(network):
    watched = {"first": network.to_feat}
    record(network, torch.rand(1, 3, 8, 8), watched)
    with pytest.raises(Exception, match="RGB images"):
        record(network, torch.rand(1, 2, 8, 8), watched)
    assert not network.to_feat._forward_hooks


def test_modules_that_do_not_run_are_left_out(network):
    assert record(network, torch.rand(1, 3, 8, 8), {"other": torch.nn.Identity()}) == {}


def test_inputs_are_all_that_a_module_is_given():
    network = SeemoRe(SeemoReConfig(groups=1, channels=8)).eval()
    mixture = network.body[0].local_block.block.moe_layer
    image = torch.rand(1, 3, 20, 24)
    x_a, x_b = record_inputs(network, image, {"mixture": mixture})["mixture"]
    assert x_a.shape == x_b.shape == (1, 8, 20, 24)
    with torch.inference_mode():
        torch.testing.assert_close(mixture(x_a, x_b)[0], record(network, image, {"m": mixture})["m"])


def test_sharpness_is_the_same_at_any_scale():
    noise = torch.randn(3, 200, 200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sharpness(noise), torch.full((3,), 2 / torch.pi**0.5), rtol=0.02, atol=0)
    torch.testing.assert_close(sharpness(5 * noise + 1), sharpness(noise))
    ramp = torch.arange(200.0).expand(1, 200, 200)
    assert sharpness(ramp) < 0.01 and sharpness(torch.ones(1, 4, 4)) == 0
