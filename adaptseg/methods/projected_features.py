"""VFM-UDA++'s feature distance: keep what a foundation model knows about every image (arXiv 2503.10685)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptseg.augment.color import ColorJitter, Colors
from adaptseg.errors import AdaptSegError
from adaptseg.losses.feature_distance import projected_distance
from adaptseg.networks import Segmenter, resize_logits
from adaptseg.networks.vit_encoder import TokenEncoder
from adaptseg.networks.vit_heads import projection

_PROBE = 64
"""Side of the image that tells how many channels the student's features have."""

WEAK = Colors(ColorJitter(probability=0.9, brightness=32 / 255, contrast=0.5, saturation=0.5, hue=18 / 360))
"""VFM-UDA's weak jitter."""


@dataclass(frozen=True)
class ProjectedDistance:
    """Settings of the distance of projected features. DAFormer's distance on things hurts foundation models
    (VFM-UDA++, abstract); this one has no classes and needs no labels.

    Attributes:
        encoder: timm's name of the frozen transformer (released: "vit_large_patch14_reg4_dinov2").
        weights: of the frozen encoder: true, from the hub, or a local file.
        weight: of the distance on source images and of that on target images (0.1 each).
        size: (H, W) that the frozen encoder sees the images at (406x406: 29x29 patches of 14, for square crops).
        colors: of the images that the student sees; the frozen encoder sees them as they are. Default: VFM-UDA's weak
            jitter.
    """

    encoder: str
    weights: bool | str = True
    weight: float = 0.1
    size: tuple[int, int] = (406, 406)
    colors: Colors | None = WEAK

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise AdaptSegError(
                f"model.feature_distance.weight is {self.weight}; a positive number is expected, or "
                "model.feature_distance: null"
            )
        if self.weights is False:
            raise AdaptSegError(
                "model.feature_distance.weights is false, and random features are not worth staying near to: give "
                "true or a file"
            )
        if min(self.size) < 1:
            raise AdaptSegError(f"model.feature_distance.size is {list(self.size)}; positive sizes are expected")


class ProjectedFeatures(nn.Module):
    """A frozen encoder and the projection that compares the student's last features with its own.

    State, in the checkpoint: the projection, which learns with the head. The frozen encoder is no submodule: it stays
    out of checkpoint, optimiser and DDP, and is read anew after a resume.

    Args:
        settings: which encoder, and how much it counts.
        student: whose features are compared.
    """

    def __init__(self, settings: ProjectedDistance, student: Segmenter) -> None:
        super().__init__()
        self.settings = settings
        reference = TokenEncoder(settings.encoder, weights=settings.weights)
        self._reference = (reference.requires_grad_(False).eval(),)  # in a tuple: torch does not look into it
        self.projection = projection(_channels(student), reference.width)

    @property
    def reference(self) -> TokenEncoder:
        return self._reference[0]

    def distance(self, student: Segmenter, seen: Tensor, images: Tensor) -> Tensor:
        """() of the student's features of the images as it has seen them to the reference's of the images themselves.

        Args:
            seen, images: (B, 3, H, W), normalised.
        """
        reference = self.reference.to(images.device)  # nothing to do after the first step
        with torch.no_grad():
            smaller = F.interpolate(images, size=self.settings.size, mode="bilinear")
            fixed = reference(smaller, blocks=[reference.depth - 1])[0]
        projected = self.projection(student.encoded(seen)[-1])
        return projected_distance(resize_logits(projected, (fixed.shape[-2], fixed.shape[-1])), fixed)

    def presence(self) -> Tensor:
        """() zero with a (zero) gradient for every parameter of the projection.

        Belongs into the last loss of a step: under DDP its backward pass sends the gradients that `descend` added, and
        waits for every parameter.
        """
        return torch.stack([parameter.sum() for parameter in self.projection.parameters()]).sum() * 0


@torch.no_grad()
def _channels(student: Segmenter) -> int:
    device = next((parameter.device for parameter in student.parameters()), None)
    training = student.training
    last = student.eval().encoded(torch.zeros(1, 3, _PROBE, _PROBE, device=device))[-1]
    student.train(training)
    return last.shape[1]
