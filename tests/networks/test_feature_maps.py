"""Frozen maps: which blocks they are, what noise they see, that nothing else changes them, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks import DiffusionFeatures, EncoderFeatures, FeatureMaps
from adaptseg.networks.denoiser import centred, noised
from adaptseg.networks.feature_maps import _noise

WIDTHS = (8, 16, 24)
LEVELS = len(WIDTHS)
IMAGES = torch.randn(2, 3, 16, 32, generator=torch.Generator().manual_seed(2))


def small_unet(widths: tuple[int, ...] = WIDTHS, **settings: Any) -> Any:
    """Three levels of three decoder blocks, attention on the coarsest, dropout."""
    down = ["DownBlock2D"] * (len(widths) - 1) + ["AttnDownBlock2D"]
    kinds = {
        "down_block_types": tuple(down),
        "up_block_types": tuple(kind.replace("Down", "Up") for kind in reversed(down)),
    }
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return diffusers.UNet2DModel(
            block_out_channels=widths,
            layers_per_block=2,
            attention_head_dim=8,
            norm_num_groups=4,
            **{"dropout": 0.5, **kinds, **settings},
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("unet")
    small_unet().save_pretrained(path)
    return str(path)


@pytest.fixture(params=["diffusion", "encoder"])
def features(request: pytest.FixtureRequest, folder: str) -> FeatureMaps:
    if request.param == "diffusion":
        return DiffusionFeatures(folder, timesteps=(50, 250), seed=4)
    return EncoderFeatures("resnet18", weights=False, levels=(1, 0), seed=4)


def images_for(features: FeatureMaps) -> Tensor:
    return IMAGES if isinstance(features, DiffusionFeatures) else IMAGES.repeat(1, 1, 2, 1)


def decoder_by_hand(unet: Any, noisy: Tensor, timestep: int) -> list[Tensor]:
    """Outputs of all decoder blocks, by walking through the network's parts."""
    found: list[Tensor] = []
    unet.eval()

    def inside(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(output)

    handles = []
    for stage in unet.up_blocks:
        parts = stage.attentions if hasattr(stage, "attentions") else stage.resnets
        ends = [*list(parts)[:-1], stage]  # the up-sampler belongs to the last block of its level
        handles += [part.register_forward_hook(inside) for part in ends]
    with torch.no_grad():
        unet(noisy, timestep)
    for handle in handles:
        handle.remove()
    return found


def test_diffusion_maps_are_the_decoders_blocks(folder: str) -> None:
    features = DiffusionFeatures(folder, timesteps=(250, 50), blocks=(8, 2, 4), seed=4)
    maps = features.maps(IMAGES, draw=0)
    assert [tuple(m.shape[1:]) for m in maps[:3]] == [(8, 16, 32), (24, 8, 16), (16, 8, 16)]
    assert features.level_channels == (8, 24, 16) * 2
    assert features.channels == 96
    assert features.forwards == 4  # two images at two timesteps
    noise = _noise(4, 0, 16, 32)
    for first, timestep in ((0, 250), (3, 50)):
        noisy = noised(centred(IMAGES), noise, torch.tensor([timestep, timestep]))
        wanted = decoder_by_hand(small_unet(), noisy, timestep)
        for found, block in zip(maps[first : first + 3], (8, 2, 4), strict=True):
            torch.testing.assert_close(found, wanted[block])


def test_diffusers_blocks_that_step_up_inside_residual_blocks(tmp_path: Path) -> None:
    down, up = ("ResnetDownsampleBlock2D",) * LEVELS, ("ResnetUpsampleBlock2D",) * LEVELS
    unet = small_unet(down_block_types=down, up_block_types=up)
    unet.save_pretrained(tmp_path)
    features = DiffusionFeatures(str(tmp_path), timesteps=(50,), blocks=range(9), seed=4)
    noisy = noised(centred(IMAGES), _noise(4, 0, 16, 32), torch.tensor([50, 50]))
    for found, wanted in zip(features.maps(IMAGES), decoder_by_hand(unet, noisy, 50), strict=True):
        torch.testing.assert_close(found, wanted)


def test_default_blocks(folder: str, tmp_path: Path) -> None:
    """The published ones of 18, else the last of every level."""
    assert DiffusionFeatures(folder).blocks == (2, 5, 8)
    small_unet((8,) * 6).save_pretrained(tmp_path)
    assert DiffusionFeatures(str(tmp_path)).blocks == (5, 8, 12, 17)


def test_noise_follows_the_published_schedule() -> None:
    """Specification 2.2: abar of 50, 150, 250 is 0.9700, 0.7859, 0.5214."""
    one, timesteps = torch.ones(3, 3, 1, 1), torch.tensor([50, 150, 250])
    signal = noised(one, torch.zeros_like(one), timesteps)[:, 0, 0, 0] ** 2
    assert signal.tolist() == pytest.approx([0.9700, 0.7859, 0.5214], abs=1e-4)
    noise = noised(torch.zeros_like(one), one, timesteps)[:, 0, 0, 0] ** 2
    torch.testing.assert_close(signal + noise, torch.ones(3))


def test_images_reach_the_network_in_its_range() -> None:
    """Trap T5: [-1, 1], not [0, 1]."""
    from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD

    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    for value, wanted in ((0.0, -1.0), (0.5, 0.0), (1.0, 1.0)):
        image = ((torch.full((1, 3, 2, 2), value) - mean) / std).float()
        torch.testing.assert_close(centred(image), torch.full_like(image, wanted), atol=1e-6, rtol=0)


def test_shapes_are_as_announced(features: FeatureMaps) -> None:
    maps = features.maps(images_for(features))
    assert tuple(m.shape[1] for m in maps) == features.level_channels
    assert sum(features.level_channels) == features.channels
    assert all(m.dtype == torch.float32 and not m.requires_grad for m in maps)


def test_draws_are_repeatable_distinct_and_the_same_for_every_image(features: FeatureMaps) -> None:
    images = images_for(features)
    draws = [features.maps(images, draw=draw)[0] for draw in range(3)]
    for draw in range(3):
        assert torch.equal(features.maps(images, draw=draw)[0], draws[draw])
        alone = features.maps(images[1:], draw=draw)[0]
        torch.testing.assert_close(alone, draws[draw][1:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(draws[0], draws[1])
    assert not torch.allclose(draws[1], draws[2])


def test_no_draw_repeats_or_follows_the_fixed_noise() -> None:
    """Trap T15: independent streams, whatever the seed."""
    drawn = [_noise(seed, draw, 32, 32).flatten() for seed in (0, 1) for draw in range(4)]
    correlation = torch.corrcoef(torch.stack(drawn))
    assert correlation.fill_diagonal_(0).abs().max() < 0.1  # 3,072 numbers: 5 standard deviations are 0.09
    assert not torch.equal(_noise(0, 1, 32, 32)[..., :16], _noise(0, 1, 32, 16))


def test_the_callers_random_state_is_untouched(features: FeatureMaps) -> None:
    before = torch.get_rng_state()
    features.maps(images_for(features), draw=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_always_in_eval_mode(features: FeatureMaps) -> None:
    """Trap T7: this network's dropout would show."""
    owner = nn.ModuleList([features])
    owner.train()
    assert not any(module.training for module in features.modules())
    assert not any(parameter.requires_grad for parameter in features.parameters())
    images = images_for(features)
    assert torch.equal(features.maps(images)[0], features.maps(images)[0])


def test_autocast_does_not_change_them(features: FeatureMaps) -> None:
    images = images_for(features)
    wanted = features.maps(images)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features.maps(images)[0], wanted)


def test_identity_names_what_decides_the_features(folder: str, tmp_path: Path) -> None:
    made = DiffusionFeatures(folder).identity()
    assert DiffusionFeatures(folder).identity() == made
    others = [DiffusionFeatures(folder, timesteps=(50,)), DiffusionFeatures(folder, blocks=(1,))]
    others.append(DiffusionFeatures(folder, seed=1))
    other = small_unet()
    with torch.no_grad():
        next(other.parameters()).flatten()[0].add_(1)
    other.save_pretrained(tmp_path)
    others.append(DiffusionFeatures(str(tmp_path)))
    assert all(o.identity() != made for o in others)
    assert len({str(o.identity()) for o in others}) == len(others)
    settings = ((0.1, 0), (0.2, 0), (0.1, 1))
    encoders = [EncoderFeatures("resnet18", weights=False, noise=n, seed=s).identity() for n, s in settings]
    assert len({str(e) for e in encoders}) == 3
    assert EncoderFeatures("resnet18", weights=False).identity() == encoders[0]


def test_encoder_noise_has_its_size_and_draw_0_none() -> None:
    shown: list[Tensor] = []
    features = EncoderFeatures("resnet18", weights=False, noise=0.3)
    features.encoder.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    images = torch.zeros(1, 3, 64, 64)
    for draw in (0, 1):
        features.maps(images, draw=draw)
    assert shown[0].eq(0).all()
    assert float(shown[1].std()) == pytest.approx(0.3, rel=0.05)
    assert features.forwards == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"timesteps": (50, 1000)}, "0 to 999 expected"),
        ({"timesteps": (-1,)}, "0 to 999 expected"),
        ({"timesteps": ()}, "0 to 999 expected"),
        ({"blocks": (5, 9)}, "has 9 decoder blocks, 0 to 8"),
        ({"blocks": (2, 2)}, "named once"),
        ({"seed": -1}, "seed: -1 given"),
    ],
)
def test_refused_settings(folder: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError) as error:
        DiffusionFeatures(folder, **settings)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"levels": (5,)}, "has 5 maps, 0 to 4"),
        ({"noise": -0.1}, "noise: -0.1"),
        ({"encoder": "resnet7"}, "no encoder"),
    ],
)
def test_refused_encoders(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError) as error:
        EncoderFeatures(**{"encoder": "resnet18", "weights": False, **settings})
    assert said in str(error.value)


def test_refused_images(features: FeatureMaps) -> None:
    patch = 4 if isinstance(features, DiffusionFeatures) else 32
    for size in ((patch // 2, patch), (patch, patch + 2)):
        with pytest.raises(AdaptSegError, match=f"multiples of {patch}, {patch} or more"):
            features.check(size)
        with pytest.raises(AdaptSegError, match=f"images of {size[0]}x{size[1]} pixels"):
            features.maps(torch.zeros(1, 3, *size))
    features.check((patch, 2 * patch))
    with pytest.raises(AdaptSegError, match="draw: -1"):
        features.maps(images_for(features), draw=-1)


def test_refused_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AdaptSegError, match="does not exist"):
        DiffusionFeatures(str(tmp_path / "nothing"))
    with pytest.raises(AdaptSegError, match="does not exist"):
        DiffusionFeatures(str(tmp_path))  # a folder without checkpoints/last.ckpt
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    with pytest.raises(AdaptSegError, match="cannot be read as a UNet2DModel"):
        DiffusionFeatures(str(broken))
    small_unet(in_channels=1, out_channels=1).save_pretrained(tmp_path / "grey")
    with pytest.raises(AdaptSegError, match="unconditional denoiser of RGB"):
        DiffusionFeatures(str(tmp_path / "grey"))


def test_the_hub_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AdaptSegError, match="without access to the hub give a local folder or a run of Denoising"):
        DiffusionFeatures("nobody-at-all/no-such-network")
