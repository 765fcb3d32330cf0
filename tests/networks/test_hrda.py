"""HRDA against naive loops in float64: fusion, crops, overlapping windows; any network inside; refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import TinySegmenter
from torch import Tensor, nn

from adaptseg import networks
from adaptseg.classes import CITYSCAPES
from adaptseg.errors import AdaptSegError
from adaptseg.networks import HRDA, DAFormer, DeepLabV2, Inference, Output, SmpSegmenter, predict_probabilities
from adaptseg.networks.hrda import fuse

SIZE, DETAIL = (32, 64), (16, 32)


def hrda(classes: int = 5, **settings: Any) -> HRDA:
    """On the tiny network: stride 4, so a grid of 8 pixels."""
    torch.manual_seed(0)
    defaults = {"segmenter": TinySegmenter, "detail": DETAIL, "attention_channels": 8, "norm": "group"}
    network = HRDA(classes, **{**defaults, "attention_dropout": 0.0, **settings})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def images(batch: int = 2, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def up(cells: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(cells, size=size, mode="bilinear", align_corners=False)


def halved(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=False)


class FixedAttention(nn.Module):
    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, features: list[Tensor]) -> Tensor:
        return torch.full_like(features[0][:, :1], self.logit).expand(-1, 5, -1, -1)


# ---- fusion


def test_fusion_is_the_mean_weighted_by_attention() -> None:
    generator = torch.Generator().manual_seed(2)
    context, detail = (torch.randn(2, 3, *s, generator=generator, dtype=torch.float64) for s in ((4, 6), (8, 12)))
    attention = torch.rand(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    assert torch.equal(fuse(context, detail, torch.zeros_like(attention)), up(context, (8, 12)))
    torch.testing.assert_close(fuse(context, detail, torch.ones_like(attention)), detail)
    wanted = up((1 - attention) * context, (8, 12)) + up(attention, (8, 12)) * detail
    torch.testing.assert_close(fuse(context, detail, attention), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("crop", [None, (8, 24)])
def test_no_attention_leaves_the_context(crop: tuple[int, int] | None) -> None:
    network = hrda()
    network.register_module("attention", FixedAttention(-100))
    read = network(images(), crop=crop).logits
    torch.testing.assert_close(read, up(network.segmenter(halved(images())).logits, (8, 16)))


def test_full_attention_leaves_the_detail_inside_its_window_and_the_context_outside() -> None:
    network = hrda()
    network.register_module("attention", FixedAttention(100))
    read = network(images(), crop=(8, 24)).logits
    detail = network.segmenter(images()[..., 8:24, 24:56]).logits
    context = up(network.segmenter(halved(images())).logits, (8, 16))
    torch.testing.assert_close(read[..., 3:5, 7:13], detail[..., 1:3, 1:7])  # the border cells are interpolated
    outside = torch.ones(8, 16, dtype=torch.bool)
    outside[1:7, 5:15] = False
    torch.testing.assert_close(read[..., outside], context[..., outside])


@pytest.mark.parametrize("crop", [[[0, 0], [16, 32]], [[8, 24], [0, 8]]])
def test_training_pass_against_a_written_out_one(crop: list[list[int]]) -> None:
    network = hrda().double()
    shown = images().double()
    output = network(shown, crop=torch.tensor(crop))
    for b, (y, x) in enumerate(crop):
        image = shown[b : b + 1]
        context, small = network.segmenter(halved(image)), torch.zeros(1, 5, 4, 8, dtype=torch.float64)
        rows, columns = slice(y // 8, y // 8 + 2), slice(x // 8, x // 8 + 4)
        small[..., rows, columns] = network.attention(context.features).sigmoid()[..., rows, columns]
        detail = network.segmenter(image[..., y : y + 16, x : x + 32]).logits
        inserted = torch.zeros(1, 5, 8, 16, dtype=torch.float64)
        inserted[..., y // 4 : y // 4 + 4, x // 4 : x // 4 + 8] = detail
        wanted = up((1 - small) * context.logits, (8, 16)) + up(small, (8, 16)) * inserted
        torch.testing.assert_close(output.logits[b : b + 1], wanted)
        torch.testing.assert_close(output.auxiliary["detail"][b : b + 1], detail)
        torch.testing.assert_close(output.auxiliary["context"][b : b + 1], context.logits)


@pytest.mark.parametrize(
    ("size", "stride"), [((32, 64), None), ((40, 72), (12, 20)), ((16, 32), None), ((32, 64), (16, 32))]
)
def test_overlapping_windows_against_a_naive_loop(size: tuple[int, int], stride: tuple[int, int] | None) -> None:
    network, shown = hrda(window_stride=stride).double().eval(), images(size=size).double()
    steps = stride or (8, 16)
    total = torch.zeros(2, 5, size[0] // 4, size[1] // 4, dtype=torch.float64)
    count = torch.zeros_like(total)
    corners = []
    for side, window, step in zip(size, DETAIL, steps, strict=True):
        starts, start = [], 0
        while start + window < side:
            starts.append(start)
            start += step
        corners.append([*starts, side - window])
    for y in corners[0]:
        for x in corners[1]:
            part = (..., slice(y // 4, y // 4 + 4), slice(x // 4, x // 4 + 8))
            total[part] += network.segmenter(shown[..., y : y + 16, x : x + 32]).logits
            count[part] += 1
    context = network.segmenter(halved(shown))
    attention = network.attention(context.features).sigmoid()
    fine = (size[0] // 4, size[1] // 4)
    wanted = up((1 - attention) * context.logits, fine) + up(attention, fine) * total / count
    torch.testing.assert_close(network(shown).logits, wanted, rtol=1e-10, atol=1e-10)


def test_nothing_is_remembered_between_calls() -> None:
    network = hrda().eval()
    before = network(images()).logits
    network(images(), crop=(8, 8))
    with pytest.raises(AdaptSegError):
        network(images(), crop=(3, 8))
    assert torch.equal(network(images()).logits, before)


def test_images_of_any_size() -> None:
    network = hrda().eval()
    for size in ((37, 61), (16, 33)):
        output = network(images(size=size))
        cells = (-(-size[0] // 4), -(-size[1] // 4))
        assert output.logits.shape[-2:] == output.auxiliary["detail"].shape[-2:] == cells
    network.register_module("attention", FixedAttention(-100))
    assert network(images(size=(37, 61)), crop=(16, 24)).logits.shape[-2:] == (10, 16)
    constant = torch.ones(1, 3, 37, 61)
    assert (
        predict_probabilities(network, constant, size=(37, 61), inference=Inference((32, 48), (16, 24))).shape[1] == 5
    )


def test_features_are_those_of_the_context() -> None:
    network = hrda()
    features = network(images(), crop=(0, 0)).features
    assert features is not None
    assert torch.equal(features[-1], network.encoded(images())[-1])
    assert torch.equal(features[-1], network.segmenter.encoded(halved(images()))[-1])


def test_gradient_reaches_both_scales_and_the_attention() -> None:
    network = hrda()
    output = network(images().requires_grad_(), crop=(8, 24))
    output.logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    for name in ("context", "detail"):
        encoder = next(network.encoder_parameters())
        made = network(images(), crop=(8, 24))
        share = torch.autograd.grad(made.logits.sum(), made.auxiliary[name], allow_unused=True)[0]
        if name == "detail":
            assert share is not None
            assert share.any()
        assert torch.autograd.grad(made.auxiliary[name].sum(), encoder)[0].any()


# ---- training crops and loss terms


def test_crops_take_every_position_of_the_grid() -> None:
    network = hrda()
    draws = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    crops = network.training_crop(SIZE, lambda shape: draws)
    assert crops.dtype == torch.int64
    assert {tuple(c) for c in crops.tolist()} == {(y, x) for y in (0, 8, 16) for x in (0, 8, 16, 24, 32)}
    top = torch.full((1, 2), 1 - 2**-24)
    assert network.training_crop(SIZE, lambda shape: top).tolist() == [[16, 32]]
    assert network.training_crop(DETAIL, lambda shape: top).tolist() == [[0, 0]]


def test_loss_terms_look_at_their_part_of_the_labels() -> None:
    network = hrda()
    crop = torch.tensor([[0, 8], [16, 32]])
    output = network(images(), crop=crop)
    fused, detail = network.loss_terms(output, SIZE, crop)
    labels = torch.arange(2 * 32 * 64).view(2, 32, 64)
    assert torch.equal(fused.view(labels), labels)
    assert torch.equal(detail.view(labels), torch.stack([labels[0, :16, 8:40], labels[1, 16:32, 32:64]]))
    assert (fused.weight, detail.weight) == (0.9, 0.1)
    assert (fused.logits.shape[-2:], detail.logits.shape[-2:]) == ((8, 16), (4, 8))
    assert network.auxiliary_losses == (detail.name,)
    alone = hrda(detail_loss_weight=0.0)
    assert [term.weight for term in alone.loss_terms(output, SIZE, crop)] == [1.0]
    assert alone.auxiliary_losses == ()
    tiny = TinySegmenter(5)
    assert tiny.training_crop(SIZE, lambda shape: pytest.fail("no draw is needed")) is None
    assert [term.weight for term in tiny.loss_terms(tiny(images()), SIZE, None)] == [1.0]


# ---- any network inside


WRAPPED = {
    "daformer": lambda c: DAFormer(c, encoder="mit_b0", channels=16, dilations=(1, 6)),
    "deeplab": lambda c: DeepLabV2(c, encoder="resnet18"),
    "smp": lambda c: SmpSegmenter(c, decoder="Unet", encoder="tu-mobilenetv3_small_050", decoder_channels=16),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wraps_any_network_and_is_loaded_again(name: str, tmp_path: Path) -> None:
    network = HRDA(19, segmenter=WRAPPED[name], detail=(32, 64), attention_channels=16)
    shown = images(size=(64, 96))
    made = network(shown, crop=torch.tensor([[0, 0], [32, 32]]))
    stride = {"daformer": 4, "deeplab": 8, "smp": 1}[name]
    assert made.logits.shape == (2, 19, 64 // stride, 96 // stride)
    encoder, head = list(network.encoder_parameters()), list(network.head_parameters())
    assert len(encoder) + len(head) == len(list(network.parameters()))
    assert {id(p) for p in encoder} == {id(p) for p in network.segmenter.encoder.parameters()}
    entry = networks.describe({"student": ("student.", network)}, CITYSCAPES, (0, 0, 0), (1, 1, 1))
    state = {f"student.{key}": value for key, value in network.state_dict().items()}
    torch.save({"adaptseg": entry, "state_dict": state}, tmp_path / "last.ckpt")
    loaded = networks.load(tmp_path / "last.ckpt")
    assert isinstance(loaded, HRDA)
    assert loaded.config() == network.config()
    assert torch.equal(loaded(shown).logits, network.eval()(shown).logits)


def test_made_on_the_meta_device() -> None:
    with torch.device("meta"):
        network = HRDA(19, segmenter=WRAPPED["daformer"])
    assert {p.device.type for p in network.parameters()} == {"meta"}


class Blind(TinySegmenter):
    def forward(self, images: Tensor, *, crop: Any = None, token_mask: Tensor | None = None) -> Output:
        return super().forward(images)._replace(features=None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"detail": (12, 32)}, "multiples of 8 pixels"),
        ({"detail": (0, 32)}, "multiples of 8 pixels"),
        ({"window_stride": (6, 16)}, "window_stride"),
        ({"window_stride": (20, 16)}, "window_stride"),
        ({"context_scale": 0.4}, "context_scale: 0.4"),
        ({"context_scale": 1.0}, "context_scale: 1.0"),
        ({"context_scale": 0}, "context_scale: 0"),
        ({"detail_loss_weight": 1.0}, "detail_loss_weight"),
        ({"segmenter": Blind}, "Blind shows none"),
        ({"segmenter": lambda c: nn.Conv2d(3, c, 1)}, "cannot wrap a Conv2d"),
        ({"segmenter": lambda c: hrda()}, "cannot wrap a HRDA"),
        ({"segmenter": TinySegmenter(4)}, "4 classes"),
    ],
)
def test_refuses_what_cannot_work(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError, match=said):
        hrda(**settings)


@pytest.mark.parametrize(
    ("crop", "said"),
    [
        ((4, 8), "multiples of 8"),
        ((24, 0), "from 0 to 16 rows and 32 columns"),
        ((-8, 0), "multiples of 8"),
        ((0, 0, 1), "crop"),
        (torch.zeros(1, 2, dtype=torch.long), r"\(2, 2\)"),
        (torch.zeros(0, 2, dtype=torch.long), r"\(2, 2\)"),
        (torch.zeros(2, 2, dtype=torch.long, device="meta"), "cpu expected"),
    ],
)
def test_refuses_crops_off_the_grid_or_the_image(crop: Any, said: str) -> None:
    with pytest.raises(AdaptSegError, match=said):
        hrda()(images(), crop=crop)


def test_refuses_images_smaller_than_the_detail() -> None:
    network = hrda(detail=(64, 64))
    for call in (
        lambda: network(images()),
        lambda: network(images(), crop=(0, 0)),
        lambda: network.training_crop(SIZE, lambda shape: torch.zeros(2, 2)),
    ):
        with pytest.raises(AdaptSegError, match=r"64x64 pixels do not fit into images of 32x64.*data\.crop"):
            call()
    with pytest.raises(AdaptSegError, match="token_mask"):
        network(images(), token_mask=torch.zeros(1))
