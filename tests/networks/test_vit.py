"""Networks on plain transformers against written-out arithmetic and timm called by hand; hidden tokens; refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from adaptseg.classes import STREETS
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.errors import AdaptSegError
from adaptseg.methods import Acceleration
from adaptseg.networks import HRDA, PyramidViTSegmenter, ViTSegmenter, build, describe, load, parameter_groups
from adaptseg.networks.teacher import EMATeacher
from adaptseg.networks.vit_encoder import TokenEncoder
from adaptseg.networks.vit_heads import LightHead, PyramidHead, TokenPyramid

CLASSES = 5
TINY = "test_vit"  # timm's own toy: 6 blocks, width 64, patches of 16, one class token
ROTARY = "vit_tiny_patch16_dinov3_qkvb"  # rotary positions, a class token and four registers
REGISTERS = "vit_small_patch14_reg4_dinov2"  # patches of 14


def network(cls: Any = ViTSegmenter, seed: int = 0, **arguments: Any) -> Any:
    torch.manual_seed(seed)
    return cls(CLASSES, **{"encoder": TINY, **arguments}).eval()


def images(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# ---- the encoder


@pytest.mark.parametrize("encoder", [TINY, ROTARY])
def test_maps_are_timms_tokens_without_the_prefix(encoder: str) -> None:
    torch.manual_seed(0)
    made = TokenEncoder(encoder, weights=False).eval()
    shown = images(48, 80)
    with torch.no_grad():
        tokens = made.model.forward_features(shown)
        maps = made(shown, blocks=[0, made.depth - 1])
    prefix = tokens.shape[1] - 3 * 5
    assert prefix == (1 if encoder == TINY else 5)
    wanted = torch.zeros(2, made.width, 3, 5)
    for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        wanted[b, :, i, j] = tokens[b, prefix + 5 * i + j]
    torch.testing.assert_close(maps[1], wanted)
    assert maps[0].shape == wanted.shape
    assert not torch.allclose(maps[0], maps[1])


def test_any_size_is_resized_to_whole_patches_and_the_position_embedding_with_it() -> None:
    torch.manual_seed(0)
    made = TokenEncoder(TINY, weights=False, scale=1.2).eval()
    shown = images(45, 90)  # 54 x 108, so 3 x 6 patches
    assert made.grid((45, 90)) == (3, 6)
    state = dict(made.model.state_dict())
    side = round(math.sqrt(state["pos_embed"].shape[1] - 1))
    prefix, grid = state["pos_embed"][:, :1], state["pos_embed"][:, 1:].view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(3, 6), mode="bicubic", antialias=True)
    state["pos_embed"] = torch.cat([prefix, resized.flatten(2).transpose(1, 2)], 1)
    fixed = timm.create_model(TINY, img_size=(48, 96), num_classes=0, global_pool="").eval()
    fixed.load_state_dict(state)
    with torch.no_grad():
        wanted = fixed(F.interpolate(shown, size=(48, 96), mode="bilinear"))[:, 1:].transpose(1, 2).view(2, -1, 3, 6)
        torch.testing.assert_close(made(shown, blocks=[made.depth - 1])[0], wanted)


def test_published_grids() -> None:
    """The published 1024 pixels at scale 1.1 are 80 patches of 14; 406 pixels are 29."""
    with torch.device("meta"):
        assert TokenEncoder(REGISTERS, weights=False, scale=1.1).grid((1024, 1024)) == (80, 80)
        assert TokenEncoder(REGISTERS, weights=False).grid((406, 812)) == (29, 58)
        assert TokenEncoder(TINY, weights=False, scale=1.1).grid((160, 320)) == (11, 22)  # 176.00000000000003
        assert TokenEncoder(TINY, weights=False).grid((5, 17)) == (1, 1)


@pytest.mark.parametrize("cls", [ViTSegmenter, PyramidViTSegmenter])
def test_hidden_tokens_hide_their_pixels(cls: Any) -> None:
    made = network(cls)
    with torch.no_grad():
        made.encoder.mask_token.normal_()
    shown = images(48, 64)
    hidden = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(2)) < 0.7
    pixels = hidden.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    with torch.no_grad():
        read = made(shown, token_mask=hidden).logits
        others = made(torch.where(pixels, torch.randn_like(shown), shown), token_mask=hidden).logits
        assert torch.equal(read, others)
        assert not torch.allclose(read, made(torch.where(pixels, shown, shown + 1), token_mask=hidden).logits)
        assert not torch.allclose(read, made(shown).logits)
        assert torch.equal(made(shown).logits, made(shown, token_mask=torch.zeros_like(hidden)).logits)


def test_hidden_tokens_keep_their_position_and_become_the_mask_token() -> None:
    torch.manual_seed(0)
    made = TokenEncoder(TINY, weights=False).eval()
    seen: list[Tensor] = []
    made.model.blocks[0].register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    with torch.no_grad():
        made.mask_token.normal_()
        hidden = torch.tensor([[[True, False, False], [False, True, False]]])
        made(images(32, 48, 1), blocks=[5], token_mask=hidden)
        made(images(32, 48, 1), blocks=[5])
        made.model.patch_embed.proj.weight.zero_()
        made.model.patch_embed.proj.bias.zero_()
        made(images(32, 48, 1), blocks=[5])
    masked, plain, positions = (tokens[0, 1:] for tokens in seen)
    for cell, covered in enumerate(hidden.flatten().tolist()):
        wanted = positions[cell] + made.mask_token[0] if covered else plain[cell]
        torch.testing.assert_close(masked[cell], wanted)


def test_every_parameter_learns_in_every_pass() -> None:
    """DDP waits for each: also for the mask token where nothing is hidden."""
    for cls, encoder in ((ViTSegmenter, TINY), (PyramidViTSegmenter, TINY), (ViTSegmenter, ROTARY)):
        made = network(cls, encoder=encoder)
        made(images(32, 48)).logits.square().sum().backward()
        assert [name for name, parameter in made.named_parameters() if parameter.grad is None] == []
        assert not made.encoder.mask_token.grad.any()


def test_drop_path_rises_over_the_blocks_and_sleeps_in_a_teacher() -> None:
    made = network(drop_path_rate=0.5)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in made.encoder.model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    teacher = EMATeacher(made.train(), norm="batch")
    shown = images(32, 48)
    assert torch.equal(teacher.logits(shown), teacher.logits(shown))
    assert not torch.equal(made(shown).logits, made(shown).logits)


# ---- heads, written out


def doubled(cells: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    """A transposed convolution of kernel and stride 2: each cell becomes 2x2 cells of its own."""
    parts = torch.einsum("bcij,coyx->boiyjx", cells, layer.weight)
    result = parts.reshape(len(cells), -1, 2 * cells.shape[-2], 2 * cells.shape[-1])
    return result if layer.bias is None else result + layer.bias[:, None, None]


def normed(cells: Tensor, layer: Any) -> Tensor:
    mean = cells.mean(1, keepdim=True)
    variance = (cells - mean).square().mean(1, keepdim=True)
    return (cells - mean) / (variance + 1e-6).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]


def gelu(cells: Tensor) -> Tensor:
    return cells * 0.5 * (1 + torch.erf(cells / math.sqrt(2)))


def awake(head: nn.Module) -> nn.Module:
    """In float64, with norms that do something."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head.double()


def test_the_light_head_is_the_published_one() -> None:
    torch.manual_seed(0)
    assert float(LightHead(768, 64)[-1].weight.detach().std()) == pytest.approx(0.1, rel=0.05)
    head: Any = awake(LightHead(16, CLASSES))
    cells = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    up = gelu(normed(doubled(cells, head[0]), head[1]))
    up = normed(doubled(up, head[3]), head[4])
    assert up.shape == (2, 4, 12, 20)
    up = normed(F.conv2d(up, head[5].weight, padding=1), head[6])
    torch.testing.assert_close(head(cells), torch.einsum("bcij,oc->boij", up, head[7].weight[:, :, 0, 0]))
    assert head[5].bias is head[7].bias is None


def test_the_pyramid_and_its_head_are_the_written_out_ones() -> None:
    torch.manual_seed(0)
    pyramid: Any = awake(TokenPyramid(16))
    maps = list(torch.randn(4, 2, 16, 3, 5, dtype=torch.float64))
    first, second, third, fourth = pyramid.levels
    wanted = [
        normed(doubled(gelu(normed(doubled(maps[0], first[0]), first[1])), first[3]), first[4]),
        normed(doubled(maps[1], second[0]), second[1]),
        normed(maps[2], third),
        normed(F.conv2d(maps[3], fourth[0].weight, fourth[0].bias, stride=2, padding=1), fourth[1]),
    ]
    levels = pyramid(maps)
    assert [tuple(level.shape[-2:]) for level in levels] == [(12, 20), (6, 10), (3, 5), (2, 3)]
    for level, expected in zip(levels, wanted, strict=True):
        torch.testing.assert_close(level, expected)
    head: Any = awake(PyramidHead(16, CLASSES))
    fused = wanted[3]
    for step, level in enumerate((wanted[2], wanted[1], wanted[0])):
        height, width = level.shape[-2:]
        reduced = F.conv2d(level, head.reduce[step].weight, head.reduce[step].bias)
        fused = doubled(fused, head.enlarge[step])[..., :height, :width] + reduced
        smooth = head.smooth[step]
        fused = normed(F.conv2d(fused, smooth[0].weight, smooth[0].bias, padding=1), smooth[1]).clamp(min=0)
    assert fused.shape == (2, 2, 12, 20)
    fused = F.conv2d(fused, head.last.weight, head.last.bias, padding=1)
    torch.testing.assert_close(head(levels), F.conv2d(fused, head.classifier.weight))


def test_the_pyramid_reads_the_last_block_of_each_quarter() -> None:
    with torch.device("meta"):
        assert PyramidViTSegmenter(CLASSES, encoder="vit_small_patch16_224").blocks == [2, 5, 8, 11]
        assert network(PyramidViTSegmenter).blocks == [0, 2, 3, 5]
        assert network(PyramidViTSegmenter, blocks=(1, 2, 4, 5)).blocks == [1, 2, 4, 5]


# ---- segmenters


@pytest.mark.parametrize("cls", [ViTSegmenter, PyramidViTSegmenter])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (37, 51), (100, 33)])
def test_logits_cover_images_of_any_size(cls: Any, height: int, width: int) -> None:
    made, shown = network(cls), images(height, width)
    rows, columns = made.token_grid((height, width))
    assert (rows, columns) == (height // 16, width // 16)
    with torch.no_grad():
        output = made(shown)
        assert output.logits.shape == (2, CLASSES, 4 * rows, 4 * columns)
        for level, again in zip(output.features, made.encoded(shown), strict=True):
            assert torch.equal(level, again)
    heights = [4 * rows, 2 * rows, rows, -(-rows // 2)] if cls is PyramidViTSegmenter else [rows]
    assert [level.shape[-2] for level in output.features] == heights


@pytest.mark.parametrize("cls", [ViTSegmenter, PyramidViTSegmenter])
def test_a_checkpoint_rebuilds_it_without_a_hub(cls: Any, tmp_path: Path) -> None:
    made = network(cls, scale=1.1, drop_path_rate=0.1)
    entry = describe({"student": ("student.", made)}, STREETS, IMAGENET_MEAN, IMAGENET_STD)
    state = {f"student.{key}": value for key, value in made.state_dict().items()}
    torch.save({"state_dict": state, "adaptseg": entry}, tmp_path / "last.ckpt")
    loaded = load(tmp_path / "last.ckpt")
    assert type(loaded) is cls
    assert not loaded.pretrained
    assert loaded.config() == made.config()
    assert torch.equal(loaded(images(40, 70)).logits, made(images(40, 70)).logits)


def test_weights_of_a_file_reach_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(3)
    published = timm.create_model(TINY).state_dict()  # with a classifier
    save_file(published, tmp_path / "timm.safetensors")
    save_file({**published, "mask_token": torch.full((1, 64), 2.0)}, tmp_path / "with_mask.safetensors")
    for name, token in (("timm", 0.0), ("with_mask", 2.0)):
        made = network(weights=str(tmp_path / f"{name}.safetensors"))
        assert made.pretrained
        assert build(made.config()).pretrained is False
        own = made.encoder.model.state_dict()
        assert all(torch.equal(value, published[key]) for key, value in own.items())
        assert len(own) == len(published) - 2
        assert torch.equal(made.encoder.mask_token, torch.full((1, 64), token))
    del published["norm.weight"]
    save_file(published, tmp_path / "torn.safetensors")
    with pytest.raises(AdaptSegError, match=r"does not fit the encoder: it lacks model\.norm\.weight"):
        network(weights=str(tmp_path / "torn.safetensors"))


@pytest.mark.parametrize("cls", [ViTSegmenter, PyramidViTSegmenter])
def test_rates_decay_from_the_last_block_to_the_image(cls: Any) -> None:
    made = network(cls)
    groups = parameter_groups(made, lr=0.1, head_lr_factor=10, weight_decay=0.01, layer_decay=0.9)
    assert [group["name"] for group in groups] == [f"encoder_layer{i}" for i in range(7)] + ["head"]
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(made.parameters()))
    wanted = {"blocks.5": 0.1, "blocks.4": 0.09, "blocks.0": 0.1 * 0.9**5, "norm.": 0.1}
    for name, parameter in made.encoder.model.named_parameters():
        start = next((w for w in wanted if name.startswith(w)), None)
        if start is not None:
            assert rates[id(parameter)] == pytest.approx(wanted[start])
        elif not name.startswith("blocks"):
            assert rates[id(parameter)] == pytest.approx(0.1 * 0.9**6), name
    assert rates[id(made.encoder.mask_token)] == pytest.approx(0.1 * 0.9**6)
    assert {rates[id(p)] for p in made.head_parameters()} == {1.0}
    spared = parameter_groups(
        made, lr=0.1, head_lr_factor=1, weight_decay=0.01, layer_decay=0.9, decay_norm_and_bias=False
    )
    assert [group["name"] for group in spared[:3]] == ["encoder_layer0", "encoder_layer0_no_decay", "encoder_layer1"]


def test_recomputed_activations_give_the_same_gradient() -> None:
    gradients = []
    for again in (False, True):
        made = network(encoder=ROTARY).train()
        Acceleration(checkpoint_encoder=again).arrange(made)
        made(images(32, 48)).logits.square().mean().backward()
        gradients.append([parameter.grad for parameter in made.parameters()])
    assert all(map(torch.equal, *gradients))


# ---- HRDA round it


@pytest.mark.parametrize(
    ("cls", "encoder"), [(ViTSegmenter, TINY), (PyramidViTSegmenter, TINY), (ViTSegmenter, REGISTERS)]
)
def test_hrda_reads_a_transformer_at_a_whole_stride(cls: Any, encoder: str) -> None:
    torch.manual_seed(0)
    wrapped = HRDA(
        CLASSES, segmenter=lambda n: cls(n, encoder=encoder), detail=(64, 64), attention_channels=8, norm="group"
    ).eval()
    rebuilt = build(wrapped.config()).eval()
    rebuilt.load_state_dict(wrapped.state_dict())
    shown = images(128, 192, 1)
    with torch.no_grad():
        for crop in (None, (16, 32)):
            output = wrapped(shown, crop=crop)
            assert output.logits.shape == (1, CLASSES, 32, 48)
            torch.testing.assert_close(rebuilt(shown, crop=crop).logits, output.logits)
        small = wrapped.segmenter(F.avg_pool2d(shown, 2)).logits
        wanted = F.interpolate(small, size=(16, 24), mode="bilinear")
        torch.testing.assert_close(output.auxiliary["context"], wanted)
    assert len(wrapped.encoder_layers()) == wrapped.segmenter.tokens.depth + 1


# ---- refusals


@pytest.mark.parametrize(
    ("cls", "arguments", "said"),
    [
        (ViTSegmenter, {"encoder": "vit_of_nobody"}, "'vit_of_nobody' is no model of timm"),
        (ViTSegmenter, {"encoder": "test_resnet"}, "'test_resnet' does not read images of any size as patches"),
        (ViTSegmenter, {"encoder": "test_vit_relpos"}, "'test_vit_relpos' does not read images of any size as patches"),
        (ViTSegmenter, {"encoder": "swin_tiny_patch4_window7_224"}, "shows no intermediate layers of patch tokens"),
        (ViTSegmenter, {"scale": 0.0}, "scale: 0.0 given"),
        (ViTSegmenter, {"drop_path_rate": 1.0}, "drop_path_rate: 1.0 given"),
        (ViTSegmenter, {"weights": "nowhere.pth"}, "weights file nowhere.pth does not exist"),
        (PyramidViTSegmenter, {"blocks": (0, 1, 2)}, r"blocks: \[0, 1, 2\] given, 4 rising numbers expected of which"),
        (PyramidViTSegmenter, {"blocks": (0, 1, 2, 4)}, "of which the last is 5"),
        (PyramidViTSegmenter, {"blocks": (1, 0, 2, 5)}, "4 rising numbers"),
    ],
)
def test_nonsense_is_refused_in_one_line(cls: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError, match=said) as caught:
        network(cls, **arguments)
    assert "\n" not in str(caught.value)


def test_an_encoder_too_shallow_for_a_pyramid_and_rectangular_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(**settings: Any) -> Any:
        return lambda *_, **__: timm.models.VisionTransformer(
            embed_dim=16, num_heads=2, num_classes=0, dynamic_img_size=True, **settings
        )

    monkeypatch.setattr(timm, "create_model", other(depth=3))
    with pytest.raises(AdaptSegError, match="has 3 blocks; a pyramid of 4 levels needs 4"):
        network(PyramidViTSegmenter)
    monkeypatch.setattr(timm, "create_model", other(depth=4, patch_size=(16, 8)))
    with pytest.raises(AdaptSegError, match="cuts patches of 16x8 pixels; square ones are expected"):
        network()


def test_a_mask_of_another_grid_and_a_crop_are_refused() -> None:
    with pytest.raises(AdaptSegError, match=r"token_mask: \(2, 2, 2\) given, \(2, 2, 3\) expected for images of 32x48"):
        network()(images(32, 48), token_mask=torch.zeros(2, 2, 2, dtype=torch.bool))
    with pytest.raises(AdaptSegError, match="honours 'crop'"):
        network()(images(32, 48), crop=(0, 0))
