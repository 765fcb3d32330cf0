"""DAFormer's feature distance: keep what ImageNet taught the encoder about things (Hoyer et al., CVPR 2022, 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptseg.classes import ClassTable
from adaptseg.data.batch import Labelled
from adaptseg.errors import AdaptSegError
from adaptseg.losses.feature_distance import feature_distance
from adaptseg.losses.reduce import global_mean
from adaptseg.networks import Output, Segmenter


@dataclass(frozen=True)
class FeatureDistance:
    """Settings of the feature distance.

    Attributes:
        weight: of the loss (0.005).
        min_share: share of a feature cell's pixels that must belong to one class for the cell to count (0.75).
        classes: names of the classes that count; null = the things of the class table with traffic lights and signs, as
            released.
    """

    weight: float = 0.005
    min_share: float = 0.75
    classes: tuple[str, ...] | None = None

    def chosen(self, table: ClassTable) -> Tensor:
        """(C,) bool: the classes that count."""
        if self.classes is None:
            signals = ("traffic light", "traffic sign")
            return torch.tensor([c.thing or c.name in signals for c in table.classes])
        if unknown := sorted(set(self.classes) - set(table.names)):
            raise AdaptSegError(
                f"model.feature_distance.classes names {', '.join(unknown)}; class table '{table.name}' has "
                f"{', '.join(table.names)}"
            )
        return torch.tensor([name in self.classes for name in table.names])


class FrozenFeatures:
    """The encoder as its pre-training left it. No submodule of the method: it stays out of checkpoint, optimiser and
    DDP, and is made anew from its weights after a resume.

    Args:
        settings: what counts, and how much.
        network: the factory of the student.
        class_table: the classes of the source labels.

    Raises:
        AdaptSegError: the network has no pre-trained weights to stay near to, or no class counts.
    """

    def __init__(self, settings: FeatureDistance, network: Callable[[int], nn.Module], class_table: ClassTable) -> None:
        self.settings, self.chosen = settings, settings.chosen(class_table)
        if not self.chosen.any():
            raise AdaptSegError(
                f"model.feature_distance: class table '{class_table.name}' has no things; name the classes that "
                "shall count in model.feature_distance.classes"
            )
        reference = network(class_table.num_classes)
        if not isinstance(reference, Segmenter) or not reference.pretrained:
            raise AdaptSegError(
                "model.feature_distance keeps features near those of pre-trained weights, but the network starts from "
                "random ones: set model.network.init_args.weights, or model.feature_distance: null"
            )
        self.reference = reference.requires_grad_(False).eval()

    def distance(self, output: Output, source: Labelled) -> Tensor:
        """Mean Euclidean distance of the last encoder map to the frozen one over cells of the chosen classes; 0 where
        there is none.
        """
        if output.features is None:
            raise AdaptSegError("model.feature_distance needs a network that shows its features; change model.network")
        device = source.image.device
        if self.chosen.device != device:
            self.reference, self.chosen = self.reference.to(device), self.chosen.to(device)
        with torch.no_grad():
            reference = self.reference.encoded(source.image)[-1]
        return global_mean(
            *feature_distance(
                output.features[-1], reference, source.labels, self.chosen, min_share=self.settings.min_share
            )
        )
