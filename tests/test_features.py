"""Recording feature maps leaves the network as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from srlib.errors import InputError
from srlib.features import record, record_inputs, sharpness


@pytest.fixture
def network() -> nn.Sequential:
    """Three layers, one of which works in place, and one in a block."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(True), nn.Sequential(nn.MaxPool2d(2)), nn.Conv2d(4, 5, 1)
    )


def test_maps_are_the_modules_outputs_under_their_labels(network: nn.Sequential) -> None:
    image = torch.rand(1, 3, 8, 10)
    maps = record(network, image, {"first": network[0], "pooled": "2.0", "idle": nn.Identity()})
    assert list(maps) == ["first", "pooled"], "what doesn't run is left out"
    with torch.no_grad():
        torch.testing.assert_close(maps["first"], network[0](image)[0])
    assert maps["pooled"].shape == (4, 4, 5)
    assert list(record(network, image, ["0", "3"])) == ["0", "3"]


def test_inputs_are_all_tensors_that_a_module_is_given() -> None:
    class Product(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x * y

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.product = Product()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.product(x, x + 1)

    image = torch.rand(1, 3, 8, 10)
    x, y = record_inputs(Square(), image, ["product"])["product"]
    assert torch.equal(x, image) and torch.equal(y, image + 1)


def test_an_unknown_name_is_refused(network: nn.Sequential) -> None:
    with pytest.raises(InputError, match=r"Sequential has no module 'body\.0'"):
        record(network, torch.rand(1, 3, 8, 8), ["0", "body.0"])
    assert not network[0]._forward_hooks


def test_no_hook_stays(network: nn.Sequential) -> None:
    record(network, torch.rand(1, 3, 8, 8), ["0"])
    with pytest.raises(RuntimeError):
        record(network, torch.rand(1, 2, 8, 8), ["0"])
    assert not network[0]._forward_hooks


def test_sharpness_is_the_same_at_any_scale() -> None:
    noise = torch.randn(3, 200, 200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sharpness(noise), torch.full((3,), 2 / torch.pi**0.5), rtol=0.02, atol=0)
    torch.testing.assert_close(sharpness(5 * noise + 1), sharpness(noise))
    ramp = torch.arange(200.0).expand(1, 200, 200)
    assert sharpness(ramp) < 0.01 and sharpness(torch.ones(1, 4, 4)) == 0
