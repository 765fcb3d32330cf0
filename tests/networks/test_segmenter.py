"""The Segmenter interface and the smp networks behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from torch import Tensor, nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks import (
    SmpSegmenter,
    dropout_layers,
    dropping,
    parameter_groups,
    require,
    resize_logits,
    resize_logits_no_grad,
)
from adaptseg.networks.normalization import groups

CLASSES = 5
ENCODER = "tu-mobilenetv3_small_100"  # small, and its batch norms carry their activation inside


def tiny(seed: int = 0, **arguments) -> SmpSegmenter:
    torch.manual_seed(seed)
    return SmpSegmenter(CLASSES, **{"decoder": "FPN", "encoder": ENCODER, "decoder_channels": 64, **arguments})


class PooledImage(nn.Module):
    """A decoder whose "logits" are the image, averaged over cells of `stride` pixels."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, features: list[Tensor]) -> Tensor:
        return F.avg_pool2d(features[0], self.stride)


@pytest.mark.parametrize(
    ("decoder", "stride"),
    [
        ("Unet", 1), ("UnetPlusPlus", 1), ("MAnet", 1), ("Linknet", 1), ("FPN", 4), ("PSPNet", 8), ("PAN", 4),
        ("DeepLabV3", 8), ("DeepLabV3Plus", 4), ("UPerNet", 4), ("Segformer", 4),
    ],
)  # fmt: skip
def test_every_decoder_takes_odd_sizes_and_returns_native_stride(decoder: str, stride: int) -> None:
    segmenter = tiny(decoder=decoder, decoder_channels=None).eval()
    with torch.no_grad():
        output = segmenter(torch.randn(1, 3, 37, 51))
    assert output.logits.shape == (1, CLASSES, math.ceil(37 / stride), math.ceil(51 / stride))
    assert output.features is not None
    assert output.features[0].shape[-2:] == (19, 26)
    assert output.auxiliary == {}
    assert segmenter.config()["init_args"]["decoder"] == decoder


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (180, 242), (33, 35), (95, 30)])
def test_logits_of_padded_images_stay_in_place(size: tuple[int, int]) -> None:
    segmenter = tiny()
    segmenter.decoder, segmenter.segmentation_head = PooledImage(4), nn.Identity()
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    logits = segmenter(torch.stack([y, x, y + x])[None]).logits
    assert logits.shape[-2:] == (math.ceil(height / 4), math.ceil(width / 4))
    back = resize_logits(logits, size)[0]
    # A ramp survives averaging and bilinear resizing exactly, if every value stays where it was; a stretch would show.
    inner = (slice(8, height - 8), slice(8, width - 8))
    torch.testing.assert_close(back[0][inner], y[inner], atol=1e-4, rtol=0)
    torch.testing.assert_close(back[1][inner], x[inner], atol=1e-4, rtol=0)


def test_sizes_that_fit_are_neither_padded_nor_resampled() -> None:
    segmenter = tiny()
    segmenter.decoder, segmenter.segmentation_head = PooledImage(4), nn.Identity()
    images = torch.randn(2, 3, 64, 96)
    assert torch.equal(segmenter(images).logits, F.avg_pool2d(images, 4))
    # 68 is a multiple of the logits' stride, not of the encoder's: cut, not resampled.
    images = torch.randn(2, 3, 68, 96)
    assert torch.equal(segmenter(images).logits, F.avg_pool2d(images, 4))


@pytest.mark.parametrize("resize", [resize_logits, resize_logits_no_grad])
@pytest.mark.parametrize("size", [(9, 20), (3, 7), (5, 30)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_resized_logits_against_scipy(
    resize: Callable[..., torch.Tensor], size: tuple[int, int], align_corners: bool
) -> None:
    logits = torch.randn(2, 3, 5, 7, dtype=torch.float64)

    def coordinates(target: int, source: int) -> np.ndarray:
        if align_corners:
            return np.linspace(0, source - 1, target)
        return np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)

    grid = np.meshgrid(coordinates(size[0], 5), coordinates(size[1], 7), indexing="ij")
    found = resize(logits, size, align_corners)
    for image, channel in np.ndindex(2, 3):
        expected = map_coordinates(logits[image, channel].numpy(), grid, order=1)
        np.testing.assert_allclose(found[image, channel].numpy(), expected, atol=1e-12)
    assert resize(logits, (5, 7), align_corners) is logits


def test_answers_of_many_pixels_are_resized_in_parts() -> None:
    """More than a cache holds, and a last part that is smaller."""
    logits = torch.randn(1, 7, 40, 50)
    torch.testing.assert_close(resize_logits_no_grad(logits, (200, 250)), resize_logits(logits, (200, 250)))


def test_unsupported_arguments_are_refused() -> None:
    segmenter = tiny()
    with pytest.raises(AdaptSegError, match="HRDA needs a network that honours 'crop'"):
        require(segmenter, "crop", "HRDA")
    with pytest.raises(AdaptSegError, match="'token_mask'"):
        segmenter(torch.zeros(1, 3, 32, 32), token_mask=torch.zeros(1, 1, 1, dtype=torch.bool))
    with pytest.raises(AdaptSegError, match="'crop'"):
        segmenter(torch.zeros(1, 3, 32, 32), crop=(0, 0, 16, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder": "FPM"}, "one of Unet"),
        ({"norm": "layer"}, "batch, frozen, group"),
        ({"encoder": "resnet19"}, "'resnet19' is no encoder"),
        ({"encoder": "tu-resnet19"}, "'tu-resnet19' is no encoder"),
        ({"encoder": "tu-vit_tiny_patch16_224"}, "any size"),
        ({"output_stride": 8}, "FPN takes only null"),
        ({"decoder": "PAN", "output_stride": 8}, "PAN takes 16"),
        ({"decoder": "Linknet"}, "Linknet takes null"),
        ({"decoder_channels": 0}, "a positive number"),
        ({"decoder_channels": 48}, "cannot be made"),
        ({"decoder": "UPerNet", "dropout": 0.1}, "UPerNet takes null"),
        ({"dropout": 1.0}, "a probability below 1"),
        ({"weights": True, "encoder": "tu-lcnet_035"}, "weights: false or a local file"),
        ({"decoder": "UnetPlusPlus", "encoder": "mit_b0"}, "cannot be made"),
    ],
)
def test_arguments_that_cannot_be_honoured(arguments: dict, message: str) -> None:
    with pytest.raises(AdaptSegError, match=message):
        tiny(**arguments)


def test_num_classes_is_checked() -> None:
    with pytest.raises(AdaptSegError, match="num_classes: 1"):
        SmpSegmenter(1, encoder=ENCODER)


def test_output_stride_dropout_and_width_reach_the_network() -> None:
    segmenter = tiny(decoder="DeepLabV3Plus", output_stride=8, dropout=0.25, decoder_channels=32).eval()
    features = segmenter(torch.zeros(1, 3, 64, 64)).features
    assert features is not None
    assert features[-1].shape[-1] == 8
    assert {m.p for m in segmenter.decoder.modules() if isinstance(m, nn.Dropout)} == {0.25}
    assert segmenter.segmentation_head[0].in_channels == 32


def test_last_dropout_is_what_the_classifier_reads() -> None:
    network = tiny(dropout=0.0, last_dropout=0.5).eval()
    (layer,) = dropout_layers(network)
    seen: list[Tensor] = []
    network.segmentation_head.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    images = torch.randn(1, 3, 64, 64)
    plain = network(images).logits
    with dropping(network, torch.Generator().manual_seed(0)):
        drawn = network(images).logits
    kept = seen[1] != 0
    torch.testing.assert_close(seen[1][kept], 2 * seen[0][kept])
    assert 0.4 < float(kept[seen[0] != 0].double().mean()) < 0.6
    assert not torch.equal(drawn, plain)
    assert torch.equal(network(images).logits, plain)
    assert layer is network.last_dropout
    assert network.config()["init_args"]["last_dropout"] == 0.5
    assert network.state_dict().keys() == tiny().state_dict().keys()


def test_construction_is_reproducible_and_config_is_plain() -> None:
    one, two, other = tiny(1).state_dict(), tiny(1).state_dict(), tiny(2).state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)
    config = tiny(weights=False).config()
    assert json.loads(json.dumps(config)) == config
    assert config["init_args"]["weights"] is False


def test_batch_of_one_before_global_pooling_is_explained() -> None:
    segmenter = tiny(decoder="DeepLabV3Plus")
    with pytest.raises(AdaptSegError, match="batch size of 2"):
        segmenter(torch.randn(1, 3, 64, 64))
    assert segmenter.eval()(torch.randn(1, 3, 64, 64)).logits.isfinite().all()
    grouped = tiny(decoder="DeepLabV3Plus", norm="group").train()
    grouped(torch.randn(1, 3, 64, 64)).logits.sum().backward()


def test_frozen_norm_is_the_same_in_train_and_eval_and_never_learns() -> None:
    batch = tiny(dropout=0.0)
    for module in batch.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    frozen = tiny(7, norm="frozen", dropout=0.0)
    frozen.load_state_dict(batch.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    frozen.train()
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    logits = frozen(images).logits
    torch.testing.assert_close(logits, batch.eval()(images).logits, atol=1e-4, rtol=1e-4)
    logits.square().sum().backward()
    assert all(torch.equal(before[k], v) for k, v in frozen.state_dict().items())
    assert torch.equal(logits, frozen.eval()(images).logits)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    normalized = sum(m.weight.numel() * 2 for m in batch.modules() if isinstance(m, nn.BatchNorm2d))
    count = sum(p.numel() for p in batch.parameters()) - sum(p.numel() for p in frozen.parameters())
    assert count == normalized


@pytest.mark.parametrize("encoder", [ENCODER, "resnet18"])
def test_group_norm_keeps_activations_and_ignores_the_batch(encoder: str) -> None:
    batch, segmenter = tiny(encoder=encoder), tiny(encoder=encoder, norm="group", dropout=0.0).train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in segmenter.modules())

    def activations(network: nn.Module) -> list[str]:
        return [type(m).__name__ for m in network.modules() if isinstance(m, nn.ReLU | nn.Hardswish)]

    assert activations(segmenter) == activations(batch)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(segmenter(images).logits[:1], segmenter(images[:1]).logits, atol=1e-4, rtol=1e-4)


def test_number_of_groups() -> None:
    assert [groups(c) for c in (3, 16, 24, 32, 40, 64, 128, 256, 1280)] == [1, 4, 6, 8, 10, 16, 32, 32, 32]


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_parameter_groups_hold_each_trainable_parameter_once(decay_norm_and_bias: bool) -> None:
    segmenter = tiny()
    frozen = next(segmenter.encoder.parameters()).requires_grad_(False)
    found = parameter_groups(
        segmenter, lr=0.1, head_lr_factor=10, weight_decay=0.5, decay_norm_and_bias=decay_norm_and_bias
    )
    suffixes = [""] if decay_norm_and_bias else ["", "_no_decay"]
    assert [g["name"] for g in found] == [p + s for p in ("encoder", "head") for s in suffixes]
    members = [id(p) for g in found for p in g["params"]]
    assert sorted(members) == sorted(id(p) for p in segmenter.parameters() if p is not frozen)
    encoder = {id(p) for p in segmenter.encoder.parameters()}
    for group in found:
        part, spared = group["name"].split("_")[0], group["name"].endswith("_no_decay")
        assert all((id(p) in encoder) == (part == "encoder") for p in group["params"])
        assert group["lr"] == pytest.approx(0.1 if part == "encoder" else 1.0)
        assert group["weight_decay"] == (0 if spared else 0.5)
        assert decay_norm_and_bias or all((p.ndim <= 1) == spared for p in group["params"])
    torch.optim.SGD(found, lr=1.0)


def test_no_empty_parameter_group() -> None:
    segmenter = tiny()
    segmenter.encoder.requires_grad_(False)
    found = parameter_groups(segmenter, lr=0.1, head_lr_factor=1, weight_decay=0)
    assert [g["name"] for g in found] == ["head"]
