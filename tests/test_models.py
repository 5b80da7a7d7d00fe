"""Networks by name, what every network keeps to in every configuration, and the released networks' outputs."""

import copy
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from srlib.errors import InputError
from srlib.models import create
from srlib.models.layers import Config, LayerNorm, merge, pad_reflect, windows
from srlib.models.safmn import SAFMNConfig
from srlib.models.seemore import SeemoReConfig
from srlib.models.ssiu import SSIUConfig

TINY = {
    "safmn": SAFMNConfig(blocks=2, channels=8),
    "seemore-t": SeemoReConfig(groups=2, channels=8),
    "ssiu": SSIUConfig(stages=3, channels=16),
}
OTHERS: dict[str, list[dict[str, Any]]] = {
    "safmn": [{"levels": 2}, {"multi_scale": False, "modulation": False, "aggregation": False}],
    "seemore-t": [{"top_k": 2}, {"recursion": 1}, {"experts": 5, "growth": "i+2"}, {"rme": "plain", "sme": "plain"}],
    "ssiu": [{"stages": 1, "moe_fs": False}, {"channels": 8}],
}


def variants(name: str) -> list[tuple[str, Config]]:
    """A tiny network and all that differ from it by one choice of its configuration, and some more."""
    tiny, kinds = TINY[name], get_type_hints(type(TINY[name]))
    changes: list[dict[str, Any]] = [{}, *OTHERS[name]]
    for field in fields(tiny):
        choices = (True, False) if kinds[field.name] is bool else get_args(kinds[field.name])
        changes += [{field.name: choice} for choice in choices if choice != field.default]
    return [
        pytest.param(name, replace(tiny, **change), id="-".join([name, *map(str, change.values())]))
        for change in changes
    ]


VARIANTS = [variant for name in TINY for variant in variants(name)]
KINDS = [pytest.param(name, config, id=name) for name, config in TINY.items()]


def images(count: int, height: int, width: int) -> Tensor:
    """Images of different colours and contrasts, so that networks which choose have something to choose by."""
    generator = torch.Generator().manual_seed(1)
    mean, contrast = torch.rand(count, 3, 1, 1, generator=generator), torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.randn(count, 3, height, width, generator=generator)
    return (mean + contrast * noise / 2).clamp(0, 1)


def network(name: str, config: Config) -> nn.Module:
    torch.manual_seed(0)
    return create(name, config.scale, config)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create("nosuch", 4), "unknown model 'nosuch'; choose one of: liif-edsr, .*safmn"),
        (lambda: create("safmn"), r"built for one scale .* as in create\('safmn', 4\)"),
        (lambda: create("liif-edsr", 4), "serves every scale: leave scale out"),
        (lambda: create("safmn", 4, TINY["ssiu"]), "safmn got a SSIUConfig .* give a SAFMNConfig"),
        *((lambda scale=scale: create("ssiu", scale), "scale=") for scale in (0, 1, 5, 2.0, "4", True)),
    ],
)
def test_create_refuses_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Toy(Config):
    scale: int = 4
    depths: tuple[int, ...] = (1,)
    rate: float = 0.5
    norm: Literal["layer", "none"] = "layer"
    skip: bool = True


def test_a_config_takes_what_its_annotations_say_and_a_network_s_scale_is_replaced() -> None:
    assert create("safmn", 2, replace(TINY["safmn"], scale=4)).config == replace(TINY["safmn"], scale=2)
    assert Toy(8, [2, 3], 1, "none", False) == Toy(8, (2, 3), 1.0, "none", False)  # a list, as JSON has it
    assert type(Toy(rate=1).rate) is float


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        *(({"scale": value}, "a whole number from 1 up") for value in (0, -1, 2.0, True, "4", None)),
        *(({"depths": value}, "one or more whole numbers") for value in ((), 3, (0,), (1.5,), "12", (True,))),
        *(({"rate": value}, "a number above 0") for value in (0, -1.0, True, "1", float("nan"), float("inf"))),
        *(({"norm": value}, "choose one of: layer, none") for value in ("batch", None, ["layer"])),
        *(({"skip": value}, "True or False") for value in (1, "yes", None)),
    ],
    ids=str,
)
def test_a_config_refuses_anything_else_in_one_line(change: dict[str, Any], advice: str) -> None:
    with pytest.raises(InputError, match=f"Toy has {next(iter(change))}=.*{advice}"):
        Toy(**change)


def test_numbers_that_do_not_fit_together_are_refused() -> None:
    odd = {"channels": 30}, {"kernel": 10}, {"top_k": 4}, {"channels": 60}, {"stages": 8}, {"scale": 8}
    configs = SAFMNConfig, SeemoReConfig, SeemoReConfig, SSIUConfig, SSIUConfig, SSIUConfig
    for config, change in zip(configs, odd, strict=True):
        with pytest.raises(InputError, match=f"{config.__name__} has {next(iter(change))}="):
            config(**change)


def test_layer_norm_is_over_the_channels_of_a_pixel() -> None:
    torch.manual_seed(0)
    norm, x = LayerNorm(6), 3 * torch.randn(2, 6, 5, 4) + 1
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    scaled = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), norm.weight.view(-1, 1, 1) * scaled + norm.bias.view(-1, 1, 1))
    assert torch.equal(LayerNorm(4)(torch.full((1, 4, 2, 2), 0.7)), torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 16), (3, 40), (9, 17), (16, 32), (31, 20)], ids=str)
def test_padding_reflects_to_multiples(size: tuple[int, int]) -> None:
    x = images(2, *size)
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), *((0, -side % 16) for side in size)), "reflect")
    assert np.array_equal(pad_reflect(x, 16).numpy(), expected)


def test_windows_are_cut_row_by_row_and_merged_again() -> None:
    x = torch.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    cut = windows(x, 4, 4)
    assert cut.shape == (2, 6, 16, 3) and torch.equal(cut[1, 4], x[1, 4:8, 4:8].flatten(0, 1))
    assert torch.equal(merge(cut, 4, (8, 12)), x)
    assert torch.equal(windows(x, 6, 2)[0, 5], x[0, 2:8, 2:8].flatten(0, 1))  # 2 rows of 4 windows that overlap


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_each_image_has_a_result_of_its_own_in_both_modes(name: str, config: Config) -> None:
    """Whatever the batch; in double precision, where nothing but another route could make a difference."""
    model, x = network(name, config).double(), images(3, 21, 13).double()
    together = model(x)
    together.square().mean().backward()
    assert together.shape == (3, 3, 21 * config.scale, 13 * config.scale)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    training = [model] if getattr(config, "norm", "") != "batch" else []  # its statistics are those of the batch
    with torch.inference_mode():
        for mode in [*training, copy.deepcopy(model).eval()]:
            torch.testing.assert_close(mode(x), torch.cat([mode(image[None]) for image in x]), atol=1e-12, rtol=0)
            torch.testing.assert_close(mode(x), (training or [mode])[0](x), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_the_smallest_images_work(name: str, config: Config) -> None:
    model = network(name, config).eval()
    with torch.inference_mode():
        for height, width in ((1, 1), (1, 9), (7, 1), (3, 2), (5, 4)):
            result = model(images(2, height, width))
            assert result.shape == (2, 3, config.scale * height, config.scale * width) and result.isfinite().all()


@pytest.mark.parametrize(("name", "config"), KINDS)
def test_feature_maps_keep_their_channels_last_in_memory(name: str, config: Config) -> None:
    """One layer that puts them first would make every later one copy or mix formats, at several times the cost."""
    model, seen = network(name, config).eval(), {}
    for path, module in model.named_modules():
        module.register_forward_hook(lambda _, __, out, path=path: seen.update({path: out}))
    model(images(2, 24, 20))
    whole = {path: out for path, out in seen.items() if out.ndim == 4 and out.shape[1] in (8, 16)}
    assert len(whole) > 20
    assert [path for path, out in whole.items() if not out.is_contiguous(memory_format=torch.channels_last)] == []


@pytest.mark.parametrize(("name", "config"), KINDS)
def test_bfloat16_autocast_agrees_with_float32(name: str, config: Config) -> None:
    model, x = network(name, config).eval(), images(4, 21, 13)
    with torch.inference_mode():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(x).float(), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8), (0, 3, 8, 8)], ids=str)
@pytest.mark.parametrize(("name", "config"), KINDS)
def test_other_shapes_than_rgb_batches_are_refused(name: str, config: Config, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="give a batch of RGB images"):
        network(name, config)(torch.zeros(shape))


# --- what was released ------------------------------------------------------------------------------------------------

TWINS = sorted((Path(__file__).parent / "released").glob("*.json"))


def by_formula(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights of the given names and shapes: sines, scaled as in a network that was trained."""
    weights = {}
    for j, name in enumerate(sorted(shapes)):
        shape, size = shapes[name], int(torch.tensor(shapes[name]).prod())
        values = torch.sin(0.37 * torch.arange(size, dtype=torch.double) + 1.3 * j).reshape(shape)
        vector = 0.1 * values + name.endswith("weight")
        weights[name] = (values / (size / shape[0]) ** 0.5 if len(shape) > 1 else vector).float()
    return weights


def image_by_formula(height: int, width: int) -> Tensor:
    """A smooth wave, a chirp and a checkerboard as red, green and blue, (1, 3, H, W)."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    wave, chirp = 0.5 + 0.4 * (0.21 * x + 0.13 * y).sin(), 0.5 + 0.4 * (0.017 * x * y).cos()
    return torch.stack([wave, chirp, 0.3 + 0.4 * ((x // 5 + y // 7) % 2)])[None].float()


@pytest.mark.parametrize("twin", TWINS, ids=[path.stem for path in TWINS])
def test_the_released_network_s_output_for_weights_by_formula(twin: Path) -> None:
    facts = json.loads(twin.read_text())
    model = create(facts["model"], facts.get("scale")).eval()
    unused = {key for key in facts["shapes"] if "_mean." in key}  # EDSR's shift by the mean colour, which LIIF skips
    model.load_state_dict({key: w for key, w in by_formula(facts["shapes"]).items() if key not in unused})
    size = {"size": tuple(facts["size"])} if "size" in facts else {}
    with torch.inference_mode():
        output = model(image_by_formula(*facts["input"]), **size)
    expected = facts["output"]
    assert list(output.shape) == expected["shape"]
    found = output.flatten()[expected["index"]]
    torch.testing.assert_close(found, torch.tensor(expected["value"]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stem", ["safmn_x2", "safmn_x4", "seemore_t_x2", "seemore_t_x4", "ssiu_x4"])
def test_released_weights_give_the_released_output(golden: Path, stem: str) -> None:
    tensors = load_file(golden / f"{stem}.safetensors")
    name, scale = stem.replace("_t_", "-t_").split("_x")
    model = create(name, int(scale))
    model.load_state_dict({k.removeprefix("weights/"): v for k, v in tensors.items() if k.startswith("weights/")})
    torch.testing.assert_close(model(tensors["input"]), tensors["output"], atol=1e-5, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(tensors["input"]), tensors["output"], atol=1e-5, rtol=0)
        batch = torch.cat([tensors["input"], 1 - tensors["input"]])
        torch.testing.assert_close(model(batch)[:1], tensors["output"], atol=1e-5, rtol=0)
