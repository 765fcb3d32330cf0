"""A training pass of the student: what it says of some images, and what of that the pixel losses judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from adaptseg.networks import LossTerm, Output, Segmenter, resize_logits


class Prediction(NamedTuple):
    """One prediction at the size of the pixels it speaks of.

    Attributes:
        term: where it comes from, its weight, and its view of labels.
        log_p: (B, C, H', W') float32 log-softmax.
    """

    term: LossTerm
    log_p: Tensor

    def called(self, loss: str) -> str:
        """The name of loss `loss` of this prediction."""
        return _called(loss, self.term.name)


class TrainingPass(NamedTuple):
    """What the student said.

    Attributes:
        output: as it came.
        predictions: what a pixel loss judges, the answer first; their weights sum to 1.
    """

    output: Output
    predictions: list[Prediction]

    @property
    def log_p(self) -> Tensor:
        """(B, C, H, W) of the answer."""
        return self.predictions[0].log_p


def training_pass(
    student: Segmenter,
    images: Tensor,
    draw: Callable[[tuple[int, ...]], Tensor],
    *,
    token_mask: Tensor | None = None,
    align_corners: bool = False,
) -> TrainingPass:
    """One forward pass of normalised images (B, 3, H, W).

    Args:
        draw: shape to uniform numbers (B, *shape), for networks that look closely at a part of each image.
        token_mask: (B, h, w) bool, the tokens to hide.
        align_corners: geometry of the up-sampling; the one that whole scenes are predicted with.
    """
    size = (images.shape[-2], images.shape[-1])
    crop = student.training_crop(size, draw)
    output = student(images, crop=crop, token_mask=token_mask)
    terms = student.loss_terms(output, size, crop)
    resized = (resize_logits(term.logits.float(), term.size, align_corners) for term in terms)
    predictions = [Prediction(term, logits.log_softmax(1)) for term, logits in zip(terms, resized, strict=True)]
    return TrainingPass(output, predictions)


def loss_names(student: Segmenter, passes: Iterable[str]) -> tuple[str, ...]:
    """The names of all pixel losses of the passes: "source", and "source_detail" where the network has a detail."""
    return tuple(_called(name, term) for name in passes for term in ("", *student.auxiliary_losses))


def _called(loss: str, term: str) -> str:
    return f"{loss}_{term}" if term else loss
