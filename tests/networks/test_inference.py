"""Whole-image, sliding-window and mirrored inference against naive loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks import Inference, Output, Segmenter, predict_probabilities


class Stub(Segmenter):
    """Logits at stride `stride` that depend on where a view begins and ends, and on left and right."""

    def __init__(self, stride: int = 2, contextual: bool = True) -> None:
        super().__init__(3)
        self.stride = stride
        self.contextual = contextual
        self.encoder = nn.Identity()

    def forward(self, images: Tensor, *, crop: object = None, token_mask: object = None) -> Output:
        self._refuse_unsupported(crop=crop, token_mask=token_mask)
        cells = F.avg_pool2d(images, self.stride, ceil_mode=True) if self.stride > 1 else images
        if self.contextual:
            ramp = torch.linspace(-1, 1, cells.shape[-1], dtype=cells.dtype)
            cells = cells + images.mean((1, 2, 3), keepdim=True) + cells * ramp
        return Output(cells, None, {})

    def config(self) -> dict[str, Any]:
        return {"class_path": f"{__name__}.Stub", "init_args": {"stride": self.stride, "contextual": self.contextual}}


def naive_windows(segmenter: Segmenter, image: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """One image, one window at a time, positions by hand."""
    height, width = image.shape[-2:]
    total, count = torch.zeros(3, height, width), torch.zeros(height, width)
    tops, lefts = set(), set()
    for side, size, step, found in ((height, window[0], stride[0], tops), (width, window[1], stride[1], lefts)):
        start = 0
        while True:
            found.add(max(min(start, side - size), 0))
            if start + size >= side:
                break
            start += step
    for y in sorted(tops):
        for x in sorted(lefts):
            view = image[None, :, y : y + window[0], x : x + window[1]]
            logits = F.interpolate(segmenter(view).logits, size=view.shape[-2:], mode="bilinear")
            total[:, y : y + window[0], x : x + window[1]] += logits[0]
            count[y : y + window[0], x : x + window[1]] += 1
    assert count.min() >= 1
    return total / count


def test_whole_image_is_upsampled_before_the_softmax() -> None:
    segmenter, images = Stub(), torch.randn(2, 3, 12, 18) * 5
    found = predict_probabilities(segmenter, images, size=(24, 30), inference=Inference())
    logits = segmenter(images).logits
    torch.testing.assert_close(found, F.interpolate(logits, (24, 30), mode="bilinear").softmax(1))
    assert (found - F.interpolate(logits.softmax(1), (24, 30), mode="bilinear")).abs().max() > 0.01
    aligned = predict_probabilities(segmenter, images, size=(24, 30), inference=Inference(align_corners=True))
    expected = F.interpolate(logits, (24, 30), mode="bilinear", align_corners=True).softmax(1)
    torch.testing.assert_close(aligned, expected)


@pytest.mark.parametrize("align_corners", [False, True])
def test_stepwise_goes_by_way_of_the_input_size(align_corners: bool) -> None:
    segmenter, images = Stub(), torch.randn(2, 3, 12, 18) * 5
    inference = Inference(stepwise=True, align_corners=align_corners)
    found = predict_probabilities(segmenter, images, size=(24, 30), inference=inference)
    first = F.interpolate(segmenter(images).logits, (12, 18), mode="bilinear", align_corners=align_corners)
    second = F.interpolate(first, (24, 30), mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(found, second.softmax(1))
    at_once = predict_probabilities(segmenter, images, size=(24, 30), inference=Inference(align_corners=align_corners))
    assert (found - at_once).abs().max() > 0.01


def test_flip_averages_probabilities() -> None:
    segmenter, images = Stub(), torch.randn(2, 3, 12, 18) * 5
    found = predict_probabilities(segmenter, images, size=(24, 30), inference=Inference(flip=True))
    straight = F.interpolate(segmenter(images).logits, (24, 30), mode="bilinear").softmax(1)
    mirrored = F.interpolate(segmenter(images.flip(3)).logits, (24, 30), mode="bilinear").softmax(1).flip(3)
    torch.testing.assert_close(found, (straight + mirrored) / 2)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("window", "stride"),
    [((8, 8), (5, 5)), ((8, 10), (8, 3)), ((6, 4), (1, 4)), ((15, 21), (2, 2)), ((15, 8), (15, 8))],
)
def test_windows_against_a_naive_loop(window: tuple[int, int], stride: tuple[int, int], batch: int, flip: bool) -> None:
    segmenter, images = Stub(), torch.randn(2, 3, 15, 21)
    inference = Inference(window=window, stride=stride, flip=flip, batch=batch)
    found = predict_probabilities(segmenter, images, size=(20, 22), inference=inference)

    class Mirror(Stub):
        def forward(self, images: Tensor, *, crop: object = None, token_mask: object = None) -> Output:
            return Output(super().forward(images.flip(-1)).logits.flip(-1), None, {})

    def probabilities(network: Segmenter) -> Tensor:
        logits = torch.stack([naive_windows(network, image, window, stride) for image in images])
        return F.interpolate(logits, (20, 22), mode="bilinear").softmax(1)

    expected = (probabilities(segmenter) + probabilities(Mirror())) / 2 if flip else probabilities(segmenter)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_any_windows_cover_every_pixel_and_keep_it_in_place() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for _ in range(60):
        size = (draw(1, 20), draw(1, 20))
        window = (draw(1, 24), draw(1, 24))
        stride = None if draw(0, 1) else (draw(1, window[0]), draw(1, window[1]))
        images = torch.randn(1, 3, *size, generator=generator)
        inference = Inference(window=window, stride=stride, flip=bool(draw(0, 1)), batch=draw(1, 5))
        found = predict_probabilities(Stub(1, contextual=False), images, size=size, inference=inference)
        torch.testing.assert_close(found, images.softmax(1))


def test_window_larger_than_the_image_reads_it_whole() -> None:
    segmenter, images = Stub(), torch.randn(1, 3, 12, 18)
    whole = predict_probabilities(segmenter, images, size=(12, 18), inference=Inference())
    windowed = predict_probabilities(segmenter, images, size=(12, 18), inference=Inference(window=(99, 99)))
    torch.testing.assert_close(windowed, whole)


def test_network_and_images_are_left_alone() -> None:
    segmenter, images = Stub(1, contextual=False).train(), torch.randn(1, 3, 6, 7)
    before = images.clone()
    found = predict_probabilities(segmenter, images, size=(6, 7), inference=Inference(flip=True))
    assert torch.equal(images, before)
    assert segmenter.training
    assert not found.requires_grad


def test_float32_under_autocast() -> None:
    class Convolution(Stub):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images: Tensor, *, crop: object = None, token_mask: object = None) -> Output:
            return Output(self.encoder(images)[..., ::2, ::2], None, {})

    with torch.autocast("cpu", dtype=torch.bfloat16):
        for inference in (Inference(flip=True), Inference(window=(5, 5))):
            found = predict_probabilities(Convolution(), torch.randn(1, 3, 9, 9), size=(9, 9), inference=inference)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.sum(1), torch.ones(1, 9, 9), atol=1e-6, rtol=0)


def test_huge_logits_do_not_overflow() -> None:
    images = torch.tensor([1e30, -1e30, 1e30]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    found = predict_probabilities(Stub(2, contextual=False), images, size=(5, 5), inference=Inference())
    assert found[0, :, 0, 0].tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": (0, 4)}, "positive sizes"),
        ({"stride": (4, 4)}, "without a window"),
        ({"window": (4, 4), "stride": (5, 4)}, "1 to the window"),
        ({"window": (4, 4), "stride": (4, 0)}, "1 to the window"),
        ({"batch": 0}, "1 or more"),
    ],
)
def test_settings_that_make_no_sense(arguments: dict, message: str) -> None:
    with pytest.raises(AdaptSegError, match=message):
        Inference(**arguments)
