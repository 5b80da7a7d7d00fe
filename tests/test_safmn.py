"""SAFMN: its equations, and the switches of its ablations (Tables 3 and 4)."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from srlib.models.safmn import FMM, POOLS, SAFM, FrozenBatchNorm, L2Norm, SAFMNConfig

TINY = SAFMNConfig(blocks=2, channels=8)


def test_safm_is_equations_1_to_3() -> None:
    torch.manual_seed(0)
    layer, x = SAFM(SAFMNConfig(channels=8)), torch.randn(1, 8, 16, 24)
    groups = [layer.mfr[0](x[:, :2])]
    for level in (1, 2, 3):
        small = layer.mfr[level](F.max_pool2d(x[:, 2 * level : 2 * level + 2], 2**level))
        groups.append(small.repeat_interleave(2**level, 2).repeat_interleave(2**level, 3))
    expected = F.gelu(layer.aggr(torch.cat(groups, 1))) * x
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=0)


def test_switches_of_safm_do_what_they_say() -> None:
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
    assert torch.equal(FMM(replace(TINY, safm="none", ccm="none"))(x), x)


def test_kinds_of_pooling() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    pooled = {kind: pool(x, [2, 2]).flatten().tolist() for kind, pool in POOLS.items()}
    assert pooled == {"max": [5, 7, 13, 15], "average": [2.5, 4.5, 10.5, 12.5], "nearest": [0, 2, 8, 10]}


def test_l2_norm_has_unit_length() -> None:
    torch.testing.assert_close(L2Norm()(torch.randn(1, 5, 3, 3)).square().sum(1), torch.ones(1, 3, 3))


def test_frozen_batch_norm_is_a_fresh_one_s_that_learns_nothing() -> None:
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(FrozenBatchNorm()(x), nn.BatchNorm2d(3).eval()(x))
    assert not list(FrozenBatchNorm().parameters())
