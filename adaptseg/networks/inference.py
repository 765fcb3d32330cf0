"""From images to class probabilities at any size: whole images or sliding windows, with or without the mirror image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptseg.errors import AdaptSegError
from adaptseg.networks.segmenter import Segmenter, resize_logits, resize_logits_no_grad
from adaptseg.networks.windows import WindowMean, window_corners


@dataclass(frozen=True)
class Inference:
    """How a network reads an image that it is asked to label.

    Attributes:
        window: (height, width) in input pixels; None reads the image whole. A window larger than the image shrinks to
            it.
        stride: step between windows in input pixels, at most the window; None: two thirds of it, rounded (mmseg's
            practice: 341 for 512, 513 for 769).
        flip: average the probabilities with those of the mirror image.
        batch: windows of each image that pass through the network together.
        align_corners: geometry of every up-sampling of the student's logits, in training too; True is RIPU's.
        stepwise: up-sample logits to the size of the network's input first and from there to the size asked for, as
            RIPU's release does to score the pool (not to judge): it moves boundaries, where most is bought.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    flip: bool = False
    batch: int = 1
    align_corners: bool = False
    stepwise: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and min(self.window) < 1:
            raise AdaptSegError(f"inference.window: {self.window} given, positive sizes expected")
        if self.stride is not None and self.window is None:
            raise AdaptSegError(f"inference.stride: {self.stride} given without a window; set inference.window")
        if self.stride and self.window and any(not 1 <= s <= w for s, w in zip(self.stride, self.window, strict=True)):
            raise AdaptSegError(f"inference.stride: {self.stride} given, 1 to the window {self.window} expected")
        if self.batch < 1:
            raise AdaptSegError(f"inference.batch: {self.batch} given, 1 or more expected")


@torch.no_grad()
def predict_probabilities(
    segmenter: Segmenter, images: Tensor, *, size: tuple[int, int], inference: Inference
) -> Tensor:
    """Class probabilities (B, C, *size), float32 also under autocast, of normalised images (B, 3, H, W).

    Logits are up-sampled to `size` first and turned into probabilities after (RIPU's released order; the other order
    flattens borders between classes). Logits of overlapping windows are averaged at image size. With `flip`, the
    network also reads each image or window mirrored, and the two probabilities are averaged.

    The segmenter runs in the mode it is in: call `eval()` before, unless dropout is wanted. Beyond the result, at most
    one more map of full size is held.
    """
    probabilities = _softmax(_logits(segmenter, images, inference, mirrored=False), size, inference.align_corners)
    if inference.flip:
        mirrored = _softmax(_logits(segmenter, images, inference, mirrored=True), size, inference.align_corners)
        probabilities = probabilities.add_(mirrored).mul_(0.5)
    return probabilities


def _softmax(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Softmax of float32 logits resized to `size`, in place where the resized map is our own."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits.softmax(1)
    # In powers of two: on a CPU torch's exp takes four times as long as its exp2, and native stride has few numbers.
    resized = resize_logits_no_grad(logits * math.log2(math.e), size, align_corners)
    return resized.sub_(resized.amax(1, keepdim=True)).exp2_().div_(resized.sum(1, keepdim=True))


def _logits(segmenter: Segmenter, images: Tensor, inference: Inference, *, mirrored: bool) -> Tensor:
    """Float32 logits: of whole images at native stride (stepwise: at their size), else averaged over windows there."""
    size = (images.shape[-2], images.shape[-1])
    if inference.window is None:
        logits = _read(segmenter, images, mirrored)
        return resize_logits(logits, size, inference.align_corners) if inference.stepwise else logits
    window = (min(inference.window[0], size[0]), min(inference.window[1], size[1]))
    stride = inference.stride or (max(1, round(window[0] * 2 / 3)), max(1, round(window[1] * 2 / 3)))
    corners = window_corners(size, window, stride)
    batch = images.shape[0]
    mean = WindowMean((batch, segmenter.num_classes, *size), torch.float32, images.device)
    for start in range(0, len(corners), inference.batch):
        chunk = corners[start : start + inference.batch]
        views = torch.cat([images[..., y : y + window[0], x : x + window[1]] for y, x in chunk])
        read = resize_logits(_read(segmenter, views, mirrored), window, inference.align_corners)
        for corner, logits in zip(chunk, read.split(batch), strict=True):
            mean.add(corner, logits)
    return mean.mean()


def _read(segmenter: Segmenter, images: Tensor, mirrored: bool) -> Tensor:
    """Float32 logits at native stride; `mirrored` shows the network the mirror image and turns its answer back."""
    if not mirrored:
        return segmenter(images).logits.float()
    return segmenter(images.flip(-1)).logits.float().flip(-1)
