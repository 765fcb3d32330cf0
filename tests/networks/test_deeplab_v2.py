"""DeepLab-v2: its sum of dilated classifiers against a naive loop, its dilated encoders and its auxiliary head."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adaptseg.classes import STREETS
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.errors import AdaptSegError
from adaptseg.networks import DeepLabV2, build, describe, load, parameter_groups
from adaptseg.networks.deeplab_v2 import DilatedSum

CLASSES = 5
RESNET = "tu-test_resnet"  # timm's own toy


def tiny(seed: int = 0, **arguments: Any) -> DeepLabV2:
    torch.manual_seed(seed)
    return DeepLabV2(CLASSES, **{"encoder": RESNET, **arguments})


@pytest.mark.parametrize(("height", "width"), [(64, 96), (37, 51), (33, 97)])
@pytest.mark.parametrize("encoder", [RESNET, "resnet18"])
def test_logits_at_stride_eight_of_any_size(encoder: str, height: int, width: int) -> None:
    segmenter = tiny(encoder=encoder, auxiliary_dilations=(6, 12)).eval()
    with torch.no_grad():
        output = segmenter(torch.randn(2, 3, height, width))
    cells = (math.ceil(height / 8), math.ceil(width / 8))
    assert output.logits.shape == (2, CLASSES, *cells)
    assert {name: logits.shape for name, logits in output.auxiliary.items()} == {"conv4": (2, CLASSES, *cells)}
    assert output.features is not None
    assert [f.shape[-2:] for f in output.features[-3:]] == [cells] * 3
    assert tiny().eval()(torch.zeros(1, 3, 32, 32)).auxiliary == {}


def naive(state: dict[str, Tensor], x: Tensor, dilations: tuple[int, ...]) -> np.ndarray:
    """One cell and one tap at a time."""
    batch, _, height, width = x.shape
    total = np.zeros((batch, state["branches.0.bias"].numel(), height, width))
    for i, dilation in enumerate(dilations):
        weight, bias = state[f"branches.{i}.weight"].numpy(), state[f"branches.{i}.bias"].numpy()
        total += bias[:, None, None]
        for row in range(height):
            for column in range(width):
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        y, z = row + dy * dilation, column + dx * dilation
                        if 0 <= y < height and 0 <= z < width:
                            total[..., row, column] += x[..., y, z].numpy() @ weight[:, :, dy + 1, dx + 1].T
    return total


@pytest.mark.parametrize("dilations", [(6, 12), (1, 2, 4), (3,)])
def test_sum_of_dilated_convolutions_against_a_naive_loop(dilations: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    head = DilatedSum(3, 4, dilations).double()
    for branch in head.branches:
        nn.init.normal_(branch.bias)
    x = torch.randn(2, 3, 14, 9, dtype=torch.float64)
    found = head(x).detach().numpy()
    np.testing.assert_allclose(found, naive(head.state_dict(), x, dilations), atol=1e-12)


def test_heads_read_the_last_two_stages() -> None:
    segmenter = tiny(auxiliary_dilations=(2, 3)).double().eval()
    images = torch.randn(1, 3, 32, 40, dtype=torch.float64)
    with torch.no_grad():
        output = segmenter(images)
        *_, fourth, fifth = segmenter.encoder(images)
    for head, stage, found, dilations in (
        (segmenter.auxiliary_head, fourth, output.auxiliary["conv4"], (2, 3)),
        (segmenter.head, fifth, output.logits, (6, 12)),
    ):
        assert head is not None
        np.testing.assert_allclose(found.numpy(), naive(head.state_dict(), stage, dilations), atol=1e-12)


def test_heads_start_as_released() -> None:
    torch.manual_seed(0)
    head = DilatedSum(256, 19, (6, 12, 18, 24))
    assert [b.dilation for b in head.branches] == [(6, 6), (12, 12), (18, 18), (24, 24)]
    for branch in head.branches:
        assert branch.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert branch.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("encoder", "first", "stem"),
    [("resnet101", [2, 4], 3 * 64 * 49), ("tu-resnet101c", [1, 2], 3 * 32 * 9 + 32 * 32 * 9 + 32 * 64 * 9)],
)
def test_published_networks_on_the_meta_device(encoder: str, first: list[int], stem: int) -> None:
    with torch.device("meta"):
        segmenter = DeepLabV2(19, encoder=encoder, auxiliary_dilations=(6, 12))
    assert {p.device.type for p in segmenter.parameters()} == {"meta"}
    assert sum(p.numel() for p in segmenter.head.parameters()) == 2 * (9 * 2048 * 19 + 19)
    assert segmenter.auxiliary_head is not None
    assert sum(p.numel() for p in segmenter.auxiliary_head.parameters()) == 2 * (9 * 1024 * 19 + 19)
    convolutions = {name: m for name, m in segmenter.encoder.named_modules() if isinstance(m, nn.Conv2d)}
    deep = [m for name, m in convolutions.items() if "layer" not in name]
    assert sum(m.weight.numel() for m in deep) == stem
    for stage, opening, later in ((3, first[0], 2), (4, first[1], 4)):
        found = [m.dilation[0] for name, m in convolutions.items() if f"layer{stage}." in name and "conv2" in name]
        assert found == [opening] + [later] * (len(found) - 1)


def test_encoder_and_heads_share_no_parameter_and_leave_none_out() -> None:
    segmenter = tiny(auxiliary_dilations=(6,))
    assert segmenter.auxiliary_head is not None
    encoder, head = list(segmenter.encoder_parameters()), list(segmenter.head_parameters())
    assert len({id(p) for p in (*encoder, *head)}) == len(encoder) + len(head) == len(list(segmenter.parameters()))
    heads = (*segmenter.head.parameters(), *segmenter.auxiliary_head.parameters())
    assert {id(p) for p in head} == {id(p) for p in heads}
    groups = parameter_groups(segmenter, lr=2.5e-4, head_lr_factor=10, weight_decay=5e-4)
    assert [(g["name"], len(g["params"])) for g in groups] == [("encoder", len(encoder)), ("head", 6)]


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_frozen_and_group_norms_ignore_the_batch(norm: str) -> None:
    segmenter, images = tiny(norm=norm).train(), torch.randn(2, 3, 64, 64)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in segmenter.modules())
    logits = segmenter(images).logits
    torch.testing.assert_close(logits[:1], segmenter(images[:1]).logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits, segmenter.eval()(images).logits)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in segmenter.parameters())


def test_batch_of_one_trains_and_an_image_of_one_cell_is_explained() -> None:
    segmenter = tiny().train()
    segmenter(torch.randn(1, 3, 32, 32)).logits.sum().backward()
    with pytest.raises(AdaptSegError, match=r"\(1, 3, 8, 8\), DeepLabV2\); use a batch size of 2"):
        segmenter(torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "resnet102"}, "'resnet102' is no encoder"),
        ({"encoder": "densenet121"}, "'densenet121' cannot be made: .*dilated"),
        ({"encoder": "tu-pvt_v2_b0"}, r"'tu-pvt_v2_b0' gives no maps at output stride 8: .*strides 4, 8, 16, 32"),
        ({"weights": True}, "weights: false or a local file"),
        ({"weights": "nowhere.pth"}, r"nowhere\.pth does not exist"),
        ({"dilations": ()}, r"dilations: \[\] given"),
        ({"dilations": (6, 0)}, r"dilations: \[6, 0\] given"),
        ({"auxiliary_dilations": ()}, r"auxiliary_dilations: \[\] given"),
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
    segmenter = tiny(2, weights=str(file))
    assert segmenter.pretrained is True
    wanted = source.encoder.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in segmenter.encoder.state_dict().items())
    rebuilt = build(segmenter.config())
    assert isinstance(rebuilt, DeepLabV2)
    assert rebuilt.pretrained is False
    with pytest.raises(AdaptSegError, match="norm: group with pre-trained weights"):
        tiny(weights=str(file), norm="group")


@pytest.mark.parametrize("auxiliary", [None, (2, 4)])
def test_round_trip_through_a_checkpoint(auxiliary: tuple[int, ...] | None, tmp_path: Path) -> None:
    student = tiny(dilations=(3, 6), auxiliary_dilations=auxiliary)
    student(torch.randn(2, 3, 64, 64))  # moves the batch statistics off their initial values
    config = student.config()
    assert json.loads(json.dumps(config)) == config
    entry = describe({"student": ("student.", student)}, STREETS, IMAGENET_MEAN, IMAGENET_STD)
    state = {f"student.{k}": v for k, v in student.state_dict().items()}
    torch.save({"state_dict": state, "adaptseg": entry}, tmp_path / "last.ckpt")
    loaded = load(tmp_path / "last.ckpt", class_table=STREETS)
    assert isinstance(loaded, DeepLabV2)
    assert loaded.config() == config
    images = torch.randn(1, 3, 37, 51)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, student.eval()(images).logits)
