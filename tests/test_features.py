"""Recording feature maps leaves the network as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from srlib.features import record, sharpness


@pytest.fixture
def network() -> nn.Sequential:
    """Three layers, one of which works in place, and one in a block."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(True)
    return nn.Sequential(*first, nn.Sequential(nn.MaxPool2d(2)), nn.Conv2d(4, 5, 1))


def test_maps_are_the_modules_outputs_under_their_labels(network: nn.Sequential) -> None:
    image = torch.rand(1, 3, 8, 10)
    maps = record(network, image, {"pooled": network[2][0], "first": network[0], "idle": nn.Identity()})
    assert list(maps) == ["pooled", "first"], "in the order asked for, and what doesn't run is left out"
    with torch.no_grad():
        torch.testing.assert_close(maps["first"], network[0](image)[0])
    assert maps["pooled"].shape == (4, 4, 5)


def test_inputs_are_all_tensors_that_a_module_is_given() -> None:
    both, image = nn.Bilinear(10, 10, 10), torch.rand(1, 3, 8, 10)
    x, y = record(lambda image: both(image, image + 1), image, {"both": both}, inputs=True)["both"]
    assert torch.equal(x, image[0]) and torch.equal(y, image[0] + 1)


def test_no_hook_stays(network: nn.Sequential) -> None:
    record(network, torch.rand(1, 3, 8, 8), {"first": network[0]})
    with pytest.raises(RuntimeError):
        record(network, torch.rand(1, 2, 8, 8), {"first": network[0]})
    assert not network[0]._forward_hooks


def test_sharpness_is_the_same_at_any_scale() -> None:
    noise = torch.randn(3, 200, 200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sharpness(noise), torch.full((3,), 2 / torch.pi**0.5), rtol=0.02, atol=0)
    torch.testing.assert_close(sharpness(5 * noise + 1), sharpness(noise))
    ramp = torch.arange(200.0).expand(1, 200, 200)
    assert sharpness(ramp) < 0.01 and sharpness(torch.ones(1, 4, 4)) == 0
