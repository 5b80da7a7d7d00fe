"""SSIU: any size of image, and its equations."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlib.models import create
from srlib.models.layers import pad_reflect
from srlib.models.ssiu import ESAM, SSIUConfig, SSReM

TINY = SSIUConfig(stages=3, channels=16)


def test_output_is_that_of_the_padded_image_cropped() -> None:
    model, x = create("ssiu", 4, TINY), torch.rand(1, 3, 21, 35)
    with torch.no_grad():
        assert torch.equal(model(x), model(pad_reflect(x, 16))[:, :, :84, :140])


def attention_by_loops(layer: ESAM, x: Tensor) -> Tensor:
    """Equation 17, block by block: keys and values of 10x10 pixels, zero beyond the image, and embeddings."""
    depth = x.shape[1] // 4
    q, k, v = torch.einsum("oi,bihw->bohw", layer.qkv_conv.weight[:, :, 0, 0], x).chunk(3, dim=1)
    k, v = F.pad(k, (1, 1, 1, 1)), F.pad(v, (1, 1, 1, 1))
    result = torch.empty_like(x)
    for top in range(0, x.shape[2], 8):
        for left in range(0, x.shape[3], 8):
            for part in (slice(head * depth, (head + 1) * depth) for head in range(4)):
                keys, values = (t[:, part, top : top + 10, left : left + 10].clone() for t in (k, v))
                keys[:, : depth // 2] += layer.rel_h[0, :, 0].T[:, :, None]
                keys[:, depth // 2 :] += layer.rel_w[0, 0].T[:, None, :]
                queries = q[:, part, top : top + 8, left : left + 8].flatten(2)
                weights = (queries.mT @ keys.flatten(2) / depth**0.5).softmax(dim=2)
                y = values.flatten(2) @ weights.mT
                result[:, part, top : top + 8, left : left + 8] = y.unflatten(2, (8, 8))
    return result


@pytest.mark.parametrize("attention", ["esam", "sam"])
def test_esam_is_attention_of_blocks_to_their_windows(attention: str) -> None:
    torch.manual_seed(0)
    layer = ESAM(replace(TINY, attention=attention)).double()
    x = torch.randn(2, 16, 16, 48, dtype=torch.double)
    with torch.no_grad():
        if attention == "sam":
            expected = attention_by_loops(layer, x)
            assert not hasattr(layer, "LocalProp")
        else:  # Equations 16 to 18
            local = layer.LocalProp(attention_by_loops(layer, F.max_pool2d(x, 2)))
            expected = F.interpolate(local, (16, 48), mode="bilinear", align_corners=True)
        torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("s3b", ["v-b", "v+b"])
def test_stage_is_equations_10_to_14(s3b: str) -> None:
    torch.manual_seed(0)
    stage = SSReM(replace(TINY, s3b=s3b)).double()
    nn.init.normal_(stage.norm.body.weight)
    a, f = torch.randn(2, 2, 16, 16, 32, dtype=torch.double)
    mean, variance = a.mean(1, keepdim=True), a.var(1, keepdim=True, correction=0)
    normed = (a - mean) / (variance + 1e-6).sqrt() * stage.norm.body.weight[:, None, None]
    b = stage.s2(normed)
    u = normed + stage.s1(normed) + f
    v = u + stage.s3(u)
    new = stage.s4(v - b if s3b == "v-b" else v + b) + b
    torch.testing.assert_close(stage(a, f), stage.ffn(new) + new, atol=1e-12, rtol=0)
