"""The DAFormer head against written-out arithmetic, and what it shares with every network that has an encoder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptseg.classes import STREETS
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.errors import AdaptSegError
from adaptseg.networks import DAFormer, build, describe, load, parameter_groups, resize_logits
from adaptseg.networks.daformer import DAFormerHead
from adaptseg.networks.encoders import levels, make_encoder

CLASSES = 5
RESNET = "tu-test_resnet"  # timm's own toy, with batch norms and a level at stride 2


def tiny(seed: int = 0, **arguments: Any) -> DAFormer:
    torch.manual_seed(seed)
    return DAFormer(CLASSES, **{"encoder": "mit_b0", "channels": 8, **arguments})


@pytest.mark.parametrize(("height", "width"), [(64, 96), (37, 51), (33, 97)])
@pytest.mark.parametrize("encoder", ["mit_b0", RESNET])
def test_logits_at_stride_four_of_any_size(encoder: str, height: int, width: int) -> None:
    segmenter = tiny(encoder=encoder).eval()
    with torch.no_grad():
        output = segmenter(torch.randn(2, 3, height, width))
    assert output.logits.shape == (2, CLASSES, math.ceil(height / 4), math.ceil(width / 4))
    assert output.features is not None
    assert output.auxiliary == {}
    channels = [f.shape[1] for f in output.features]
    assert channels == ([32, 64, 160, 256] if encoder == "mit_b0" else [32, 32, 48, 192, 96])
    for stride, feature in zip((4, 8, 16, 32), output.features[-4:], strict=True):
        assert feature.shape[-2:] == (math.ceil(height / stride), math.ceil(width / stride))


def test_logits_of_padded_images_stay_in_place() -> None:
    class Pooled(nn.Module):
        def forward(self, features: list[Tensor]) -> Tensor:
            return F.avg_pool2d(features[0], 4)

    segmenter = tiny()
    segmenter.encoder, segmenter.head = nn.Module(), Pooled()
    segmenter.encoder.forward = lambda images: [images] * 4
    y, x = torch.meshgrid(torch.arange(97) + 0.5, torch.arange(131) + 0.5, indexing="ij")
    back = resize_logits(segmenter(torch.stack([y, x, y + x])[None]).logits, (97, 131))[0]
    inner = (slice(8, 89), slice(8, 123))
    torch.testing.assert_close(back[0][inner], y[inner], atol=1e-4, rtol=0)
    torch.testing.assert_close(back[1][inner], x[inner], atol=1e-4, rtol=0)


def by_hand(state: dict[str, Tensor], features: list[Tensor], dilations: tuple[int, ...]) -> Tensor:
    """The head in eval mode from its state dict alone; no dilations: fused by one 1x1 convolution."""

    def block(x: Tensor, prefix: str, index: int, **convolution: Any) -> Tensor:
        x = F.conv2d(x, state[f"{prefix}.{index}.weight"], **convolution)
        norm = {k: state[f"{prefix}.{index + 1}.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}
        mean, scale = norm["running_mean"], norm["weight"] / (norm["running_var"] + 1e-5).sqrt()
        return ((x - mean[:, None, None]) * scale[:, None, None] + norm["bias"][:, None, None]).clamp(min=0)

    size = features[0].shape[-2:]
    embedded = []
    for i, feature in enumerate(features):
        weight = state[f"embed.{i}.weight"][:, :, 0, 0]
        linear = torch.einsum("dc,bchw->bdhw", weight, feature) + state[f"embed.{i}.bias"][:, None, None]
        embedded.append(F.interpolate(linear, size, mode="bilinear", align_corners=False))
    x = torch.cat(embedded, 1)
    branches = []
    for i, dilation in enumerate(dilations):
        prefix = f"fuse.branches.{i}"
        if dilation == 1:
            branches.append(block(x, prefix, 0))
        else:
            depthwise = block(x, prefix, 0, padding=dilation, dilation=dilation, groups=x.shape[1])
            branches.append(block(depthwise, prefix, 3))
    fused = block(torch.cat(branches, 1), "fuse.bottleneck", 0, padding=1) if dilations else block(x, "fuse", 0)
    return F.conv2d(fused, state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize("dilations", [(1, 6, 12, 18), (2, 1), ()])
def test_head_against_written_out_arithmetic(dilations: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    fusion = {"dilations": dilations} if dilations else {"fusion": "conv1x1"}
    head = DAFormerHead([3, 4, 5, 6], 7, channels=8, **fusion).double().eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2)
    sides = ((16, 24), (8, 12), (4, 6), (2, 3))
    features = [torch.randn(2, c, *side, dtype=torch.float64) for c, side in zip((3, 4, 5, 6), sides, strict=True)]
    found = head(features)
    assert found.shape == (2, 7, 16, 24)
    torch.testing.assert_close(found, by_hand(head.state_dict(), features, dilations), atol=1e-10, rtol=1e-10)


def test_published_network_on_the_meta_device() -> None:
    with torch.device("meta"):
        segmenter = DAFormer(19)
    assert {p.device.type for p in segmenter.parameters()} == {"meta"}
    wide, concatenated = 256, 4 * 256
    embed = (64 + 128 + 320 + 512) * wide + 4 * wide
    point_wise = concatenated * wide + 2 * wide
    depth_wise = 9 * concatenated + 2 * concatenated
    bottleneck = 9 * concatenated * wide + 2 * wide
    classifier = wide * 19 + 19
    expected = embed + 4 * point_wise + 3 * depth_wise + bottleneck + classifier
    assert sum(p.numel() for p in segmenter.head_parameters()) == expected == 3_712_275
    depths = [len(segmenter.encoder.get_submodule(f"block{i}")) for i in (1, 2, 3, 4)]
    assert depths == [3, 6, 40, 3]
    rates = [m.drop_prob for m in segmenter.encoder.modules() if type(m).__name__ == "DropPath"]
    assert rates == pytest.approx([0.1 * i / 51 for i in range(1, 52)], rel=1e-5)


def test_head_starts_as_released() -> None:
    torch.manual_seed(0)
    head = DAFormerHead([64, 128, 320, 512], 19, channels=64)
    assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert head.classifier.bias.abs().max() == 0
    bottleneck = head.fuse.get_submodule("bottleneck.0")
    assert bottleneck.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    depth_wise = head.fuse.get_submodule("branches.1.0")
    assert depth_wise.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.1)
    assert all(b is None for b in (bottleneck.bias, depth_wise.bias))


@pytest.mark.parametrize(
    ("encoder", "output_stride"),
    [("mit_b0", 32), ("vgg11", 32), ("mobilenet_v2", 8), (RESNET, 32), (RESNET, 8), ("tu-test_convnext", 16)],
)
def test_levels_are_what_the_encoder_gives_and_cost_no_random_number(encoder: str, output_stride: int) -> None:
    before = torch.get_rng_state()
    found = levels(encoder, output_stride)
    assert torch.equal(before, torch.get_rng_state())
    with torch.device("meta"):
        network, images = make_encoder(encoder, from_hub=False, output_stride=output_stride), torch.zeros(2, 3, 64, 64)
    maps = [f for f in network(images) if f is not images and f.shape[1] > 0]
    assert found == [(f.shape[1], 64 / f.shape[-1]) for f in maps]


def test_encoder_and_head_share_no_parameter_and_leave_none_out() -> None:
    segmenter = tiny(encoder=RESNET)
    encoder, head = list(segmenter.encoder_parameters()), list(segmenter.head_parameters())
    assert len({id(p) for p in (*encoder, *head)}) == len(encoder) + len(head) == len(list(segmenter.parameters()))
    assert {id(p) for p in head} == {id(p) for p in segmenter.head.parameters()}
    groups = parameter_groups(segmenter, lr=6e-5, head_lr_factor=10, weight_decay=0.01)
    assert [(g["name"], len(g["params"])) for g in groups] == [("encoder", len(encoder)), ("head", len(head))]


def test_eval_is_deterministic_and_training_is_not() -> None:
    segmenter, images = tiny(dropout=0.0), torch.randn(2, 3, 64, 64)
    segmenter.train()
    with torch.no_grad():
        assert not torch.equal(segmenter(images).logits, segmenter(images).logits)  # paths are dropped
        segmenter.eval()
        assert torch.equal(segmenter(images).logits, segmenter(images).logits)
        segmenter = tiny(encoder=RESNET, norm="frozen", dropout=0.5).train()
        assert not torch.equal(segmenter(images).logits, segmenter(images).logits)  # channels are dropped
        segmenter.eval()
        assert torch.equal(segmenter(images).logits, segmenter(images).logits)


@pytest.mark.parametrize("encoder", ["mit_b0", RESNET])
@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_frozen_and_group_norms_ignore_the_batch(encoder: str, norm: str) -> None:
    segmenter = tiny(encoder=encoder, norm=norm, dropout=0.0).train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in segmenter.modules())
    for module in segmenter.modules():
        if type(module).__name__ == "DropPath":
            module.eval()
    images = torch.randn(2, 3, 64, 64)
    logits = segmenter(images).logits
    torch.testing.assert_close(logits[:1], segmenter(images[:1]).logits, atol=1e-4, rtol=1e-4)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in segmenter.parameters())


def test_batch_of_one_trains_and_an_image_of_one_cell_is_explained() -> None:
    tiny().train()(torch.randn(1, 3, 32, 32)).logits.sum().backward()
    segmenter = tiny(encoder=RESNET).train()
    segmenter(torch.randn(1, 3, 64, 64)).logits.sum().backward()
    with pytest.raises(AdaptSegError, match=r"\(1, 3, 32, 32\), DAFormer\); use a batch size of 2"):
        segmenter(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "mit_b6"}, "'mit_b6' is no encoder"),
        ({"encoder": "tu-vit_tiny_patch16_224"}, "any size"),
        ({"encoder": "tu-convmixer_768_32"}, r"'tu-convmixer_768_32' gives no maps .*levels of strides 7, 7, 7"),
        ({"encoder": "tu-inception_v4"}, r"'tu-inception_v4' has levels of strides 2\.1, .* 4, 8, 16, 32"),
        ({"encoder": RESNET, "weights": True}, "weights: false or a local file"),
        ({"weights": "nowhere.pth"}, r"nowhere\.pth does not exist"),
        ({"channels": 0}, "channels: 0 given"),
        ({"dilations": ()}, r"dilations: \[\] given"),
        ({"dilations": (1, 0)}, r"dilations: \[1, 0\] given"),
        ({"dropout": 1.0}, "dropout: 1.0 given"),
        ({"fusion": "isa"}, "one of aspp, conv1x1"),
        ({"norm": "layer"}, "batch, frozen, group"),
    ],
)
def test_arguments_that_cannot_be_honoured(arguments: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AdaptSegError, match=message) as raised:
        tiny(**arguments)
    assert "\n" not in str(raised.value)


def test_pretrained_says_whether_the_encoder_was_given_weights(tmp_path: Path) -> None:
    source = tiny(1)
    assert source.pretrained is False
    file = tmp_path / "encoder.pth"
    torch.save(source.encoder.state_dict(), file)
    segmenter = tiny(2, weights=str(file), norm="group")  # MiT has no batch norm that group norms would throw away
    assert segmenter.pretrained is True
    wanted = source.encoder.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in segmenter.encoder.state_dict().items())
    rebuilt = build(segmenter.config())
    assert isinstance(rebuilt, DAFormer)
    assert rebuilt.pretrained is False


@pytest.mark.parametrize("fusion", ["aspp", "conv1x1"])
def test_round_trip_through_a_checkpoint(fusion: str, tmp_path: Path) -> None:
    student = tiny(fusion=fusion, dilations=(1, 3), dropout=0.3, norm="frozen")
    config = student.config()
    assert json.loads(json.dumps(config)) == config
    entry = describe({"student": ("student.", student)}, STREETS, IMAGENET_MEAN, IMAGENET_STD)
    state = {f"student.{k}": v for k, v in student.state_dict().items()}
    torch.save({"state_dict": state, "adaptseg": entry}, tmp_path / "last.ckpt")
    loaded = load(tmp_path / "last.ckpt", class_table=STREETS)
    assert isinstance(loaded, DAFormer)
    assert loaded.config() == config
    assert loaded.head.dropout.p == 0.3
    images = torch.randn(1, 3, 37, 51)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, student.eval()(images).logits)
