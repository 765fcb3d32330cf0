"""DeepLab-v3+ as RIPU released it: its head against written-out arithmetic, frozen norms, sizes, round trip."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptseg.classes import STREETS
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.errors import AdaptSegError
from adaptseg.networks import WideDeepLabV3Plus, build, deeplab_v3_plus, describe, load, parameter_groups
from adaptseg.networks.deeplab_v3_plus import SeparableHead
from adaptseg.networks.encoders import Level
from adaptseg.networks.normalization import replace_batch_norm

CLASSES = 5
RESNET = "tu-test_resnet"  # timm's own toy
Array = NDArray[np.float64]


def tiny(seed: int = 0, **arguments: Any) -> WideDeepLabV3Plus:
    torch.manual_seed(seed)
    settings = {"encoder": RESNET, "channels": 8, "shortcut_channels": 4, **arguments}
    return WideDeepLabV3Plus(CLASSES, **settings)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (37, 51), (33, 97)])
@pytest.mark.parametrize("encoder", [RESNET, "resnet18"])
def test_logits_at_stride_four_of_any_size(encoder: str, height: int, width: int) -> None:
    segmenter = tiny(encoder=encoder).eval()
    with torch.no_grad():
        output = segmenter(torch.randn(2, 3, height, width))
    assert output.logits.shape == (2, CLASSES, math.ceil(height / 4), math.ceil(width / 4))
    assert output.features is not None
    assert output.features[-1].shape[-2:] == (math.ceil(height / 8), math.ceil(width / 8))


# ---- the head, one cell and one tap at a time


def convolved(x: Array, weight: Array, dilation: int = 1) -> Array:
    """(c, h, w) by (out, in / groups, k, k), zeros outside; groups follow from the shapes."""
    out, per_group, kernel, _ = weight.shape
    groups, (_, height, width) = len(x) // per_group, x.shape
    result, reach = np.zeros((out, height, width)), kernel // 2
    for o in range(out):
        group = o // (out // groups)
        for row in range(height):
            for column in range(width):
                for dy in range(-reach, reach + 1):
                    for dx in range(-reach, reach + 1):
                        y, z = row + dy * dilation, column + dx * dilation
                        if 0 <= y < height and 0 <= z < width:
                            seen = x[group * per_group : (group + 1) * per_group, y, z]
                            result[o, row, column] += seen @ weight[o, :, dy + reach, dx + reach]
    return result


def resized(x: Array, size: tuple[int, int], align_corners: bool) -> Array:
    def positions(new: int, old: int) -> Array:
        if align_corners:
            return np.arange(new) * (old - 1) / (new - 1)
        return np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)

    for axis, new in ((1, size[0]), (2, size[1])):
        at = positions(new, x.shape[axis])
        low = np.minimum(at.astype(int), x.shape[axis] - 2)
        part = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        x = x.take(low, axis) * (1 - part) + x.take(low + 1, axis) * part
    return x


def by_hand(state: dict[str, Tensor], coarse: Array, fine: Array, dilations: list[int], align_corners: bool) -> Array:
    """The head without norms: what frozen ones leave of it."""

    def weight(name: str) -> Array:
        return state[f"{name}.weight"].numpy()

    def block(x: Array, name: str, dilation: int = 1) -> Array:
        return np.maximum(convolved(x, weight(name), dilation), 0)

    def separable(x: Array, name: str, dilation: int = 1) -> Array:
        return block(block(x, f"{name}.0", dilation), f"{name}.3")

    parts = [
        block(coarse, f"branches.{i}.0") if d == 1 else separable(coarse, f"branches.{i}", d)
        for i, d in enumerate(dilations)
    ]
    mean = block(coarse.mean((1, 2), keepdims=True), "mean.0")
    parts.append(np.broadcast_to(mean, (len(mean), *coarse.shape[1:])))
    context = resized(block(np.concatenate(parts), "bottleneck.0"), (fine.shape[1], fine.shape[2]), align_corners)
    decoded = np.concatenate([context, block(fine, "shortcut.0")])
    decoded = separable(separable(decoded, "decoder.0"), "decoder.1")
    return convolved(decoded, weight("classifier")) + state["classifier.bias"].numpy()[:, None, None]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("norm", ["frozen", "frozen_without_eps"])
def test_head_against_written_out_arithmetic(norm: Any, align_corners: bool) -> None:
    torch.manual_seed(1)
    dilations = [1, 2, 3]
    head = SeparableHead(
        3, 2, 4, channels=5, shortcut_channels=2, dilations=dilations, align_corners=align_corners
    ).double()
    replace_batch_norm(head, norm)
    coarse, fine = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 2, 8, 10, dtype=torch.float64)
    found = head.eval()(coarse, fine).detach().numpy()
    for i in range(2):
        expected = by_hand(head.state_dict(), coarse[i].numpy(), fine[i].numpy(), dilations, align_corners)
        # Frozen norms do nothing; but with eps they shrink by 5e-6, nine times in a row at most.
        np.testing.assert_allclose(
            found[i], expected, rtol=1e-4 if norm == "frozen" else 1e-12, atol=1e-4 * (norm == "frozen")
        )


def test_head_reads_the_last_map_and_the_one_at_stride_four() -> None:
    segmenter, images = tiny(norm="frozen").double().eval(), torch.randn(1, 3, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        maps = segmenter.encoder(images)
        (fine,) = [m for m in maps if m.shape[-2:] == (8, 12)]
        assert torch.equal(segmenter(images).logits, segmenter.head(maps[-1], fine))


def test_published_network_on_the_meta_device() -> None:
    with torch.device("meta"):
        segmenter = WideDeepLabV3Plus(19, encoder="tu-resnet101.tv_in1k", norm="frozen_without_eps", align_corners=True)
    assert {p.device.type for p in segmenter.parameters()} == {"meta"}
    aspp = 2048 * 512 + 3 * (9 * 2048 + 2048 * 512) + 2048 * 512 + 9 * 5 * 512 * 512
    decoder = 256 * 48 + 9 * 560 + 560 * 512 + 9 * 512 + 512 * 512
    assert sum(p.numel() for p in segmenter.head.parameters()) == aspp + decoder + 512 * 19 + 19
    encoder = sum(p.numel() for p in segmenter.encoder.parameters())
    assert encoder == sum(m.weight.numel() for m in segmenter.encoder.modules() if isinstance(m, nn.Conv2d))
    convolutions = {name: m for name, m in segmenter.encoder.named_modules() if isinstance(m, nn.Conv2d)}
    for stage, opening, later in ((2, 1, 1), (3, 1, 2), (4, 2, 4)):  # torchvision's replace_stride_with_dilation
        found = [m.dilation[0] for name, m in convolutions.items() if f"layer{stage}." in name and "conv2" in name]
        assert found == [opening] + [later] * (len(found) - 1)


def test_head_starts_as_released() -> None:
    torch.manual_seed(0)
    for module in SeparableHead(256, 64, 19).modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)
    assert SeparableHead(8, 8, 19).dropout.p == 0.1


def test_dropout_takes_whole_channels_in_training_alone() -> None:
    segmenter, images = tiny(norm="frozen", dropout=0.5).train(), torch.randn(1, 3, 32, 32)
    assert not torch.equal(segmenter(images).logits, segmenter(images).logits)
    dropped = segmenter.head.dropout(torch.ones(1, 200, 3, 3))
    assert set(dropped.flatten(2).mean(2).unique().tolist()) == {0.0, 2.0}
    segmenter.eval()
    assert torch.equal(segmenter(images).logits, segmenter(images).logits)


# ---- norms


@pytest.mark.parametrize("norm", ["frozen", "group", "frozen_without_eps"])
def test_frozen_and_group_norms_ignore_the_batch(norm: str) -> None:
    segmenter, images = tiny(norm=norm, dropout=0.0).train(), torch.randn(2, 3, 64, 64)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in segmenter.modules())
    logits = segmenter(images).logits
    torch.testing.assert_close(logits[:1], segmenter(images[:1]).logits, atol=1e-4, rtol=1e-4)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in segmenter.parameters())


def test_head_may_have_norms_of_its_own() -> None:
    segmenter = tiny(norm="frozen", head_norm="group")
    assert not any(isinstance(m, nn.GroupNorm) for m in segmenter.encoder.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in segmenter.head.modules())
    live = tiny(norm="frozen", head_norm="batch").train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in live.encoder.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in live.head.modules())


@pytest.mark.parametrize("norm", ["frozen", "frozen_without_eps"])
def test_frozen_norm_is_the_affine_map_of_its_statistics(norm: Any) -> None:
    """RIPU's has no eps: (x - mean) * weight / sqrt(var) + bias; the other adds the layer's."""
    rng = np.random.default_rng(0)
    layer = nn.BatchNorm2d(3, eps=1e-3).double()
    weight, bias, mean, var = rng.normal(size=3), rng.normal(size=3), rng.normal(size=3), rng.uniform(1e-4, 1e-2, 3)
    for tensor, values in (
        (layer.weight, weight),
        (layer.bias, bias),
        (layer.running_mean, mean),
        (layer.running_var, var),
    ):
        assert tensor is not None
        tensor.data.copy_(torch.from_numpy(values))
    holder = nn.Sequential(layer).train()
    replace_batch_norm(holder, norm)
    x = rng.normal(size=(2, 3, 4, 5))
    eps = 1e-3 if norm == "frozen" else 0.0
    expected = (x.transpose(0, 2, 3, 1) - mean) * weight / np.sqrt(var + eps) + bias
    found = holder(torch.from_numpy(x)).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert not list(holder.parameters())


def test_encoder_and_head_share_no_parameter_and_leave_none_out() -> None:
    segmenter = tiny(norm="frozen")
    groups = parameter_groups(segmenter, lr=2.5e-4, head_lr_factor=10, weight_decay=5e-4)
    assert [(g["name"], g["lr"]) for g in groups] == [("encoder", 2.5e-4), ("head", 2.5e-3)]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in segmenter.head.parameters()}
    assert sum(len(g["params"]) for g in groups) == len(list(segmenter.parameters()))


# ---- what cannot be


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "resnet999"}, "'resnet999' is no encoder of smp"),
        ({"encoder": "densenet121"}, "'densenet121' cannot be made: .*dilated"),
        ({"encoder": "tu-pvt_v2_b0"}, r"'tu-pvt_v2_b0' gives no maps at output stride 8: .*strides 4, 8, 16, 32"),
        ({"channels": 0}, "channels: 0 given"),
        ({"shortcut_channels": -1}, "shortcut_channels: -1 given"),
        ({"dilations": ()}, r"dilations: \[\] given"),
        ({"dilations": (0, 6)}, r"dilations: \[0, 6\] given"),
        ({"dropout": 1.0}, "dropout: 1.0 given"),
        ({"norm": "layer"}, "norm: 'layer' given, one of batch, frozen, group, frozen_without_eps expected"),
        ({"head_norm": "layer"}, "head_norm: 'layer' given"),
        ({"weights": "nowhere.pth"}, "nowhere.pth does not exist"),
    ],
)
def test_arguments_that_cannot_be_honoured(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptSegError, match=message):
        tiny(**arguments)


def test_an_encoder_without_a_map_at_stride_four_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deeplab_v3_plus, "levels", lambda encoder, stride: [Level(8, 2), Level(8, 8)])
    with pytest.raises(AdaptSegError, match=r"strides 2, 8; WideDeepLabV3Plus needs one at stride 4 and the last at"):
        tiny()


def test_batch_of_one_cannot_train_live_norms() -> None:
    with pytest.raises(AdaptSegError, match=r"WideDeepLabV3Plus.*norm: frozen or group"):
        tiny().train()(torch.randn(1, 3, 32, 32))  # the image's mean is one value a channel


def test_round_trip_through_a_checkpoint(tmp_path: Path) -> None:
    segmenter = tiny(norm="frozen_without_eps", head_norm="group", align_corners=True).eval()
    rebuilt = build(segmenter.config())
    assert isinstance(rebuilt, WideDeepLabV3Plus)
    assert rebuilt.config() == segmenter.config()
    state = {f"student.{key}": value for key, value in segmenter.state_dict().items()}
    entry = describe({"student": ("student.", segmenter)}, STREETS, IMAGENET_MEAN, IMAGENET_STD)
    torch.save({"state_dict": state, "adaptseg": entry}, tmp_path / "last.ckpt")
    loaded, images = load(tmp_path / "last.ckpt", class_table=STREETS), torch.randn(1, 3, 37, 51)
    assert torch.equal(loaded.eval()(images).logits, segmenter(images).logits)
