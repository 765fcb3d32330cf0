"""Finished networks as teachers: any number of them, from checkpoints, averaged or fused class by class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptseg import networks
from adaptseg.classes import ClassTable
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.errors import AdaptSegError
from adaptseg.losses.fusion import channel_fusion
from adaptseg.networks import Normalization, resize_logits


@dataclass(frozen=True)
class Teacher:
    """A frozen teacher.

    Attributes:
        checkpoint: a checkpoint, or a run directory, which means its last one.
        network: which network of it: "teacher" (self-training, DUDA), "student", "large" (DUDA).
        weight: in the mean over teachers.
    """

    checkpoint: str
    network: str = "teacher"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise AdaptSegError(
                f"model.teachers: weight {self.weight} of {self.checkpoint}; a positive number expected"
            )


class Fusion(ABC):
    """How several teachers agree on one label; without one, the mean probability decides."""

    @abstractmethod
    def labels(self, probabilities: Tensor) -> Tensor:
        """Labels (B, H, W) int64, 255 = none, from probabilities (K, B, C, H, W), teachers in the order given."""

    @abstractmethod
    def check(self, teachers: int, num_classes: int) -> None:
        """Raise AdaptSegError unless it can fuse so many teachers of so many classes."""


class ChannelFusion(Fusion):
    """Each class from the teacher chosen for it; see `adaptseg.losses.fusion.channel_fusion`.

    Args:
        policy: for each class, in train-id order, the place of its teacher in `teachers`; -1 = nobody.
        window: side of the window in which contested pixels are decided.
        threshold: certainty below which a label is dropped.
    """

    def __init__(self, policy: list[int], *, window: int = 5, threshold: float = 0.9) -> None:
        self.policy, self.window, self.threshold = torch.tensor(policy), window, threshold

    def labels(self, probabilities: Tensor) -> Tensor:
        fused = [
            channel_fusion(image, self.policy, window=self.window, threshold=self.threshold)
            for image in probabilities.unbind(1)
        ]
        return torch.stack(fused)

    def check(self, teachers: int, num_classes: int) -> None:
        if len(self.policy) != num_classes or not -1 <= int(self.policy.min()) <= int(self.policy.max()) < teachers:
            raise AdaptSegError(
                f"model.fusion.policy is {self.policy.tolist()}; {num_classes} numbers, one a class, each the place of "
                f"one of {teachers} teachers from 0 on or -1, are expected"
            )


class FrozenTeachers:
    """No submodules of the method: they stay out of checkpoint, optimiser and DDP, and are read again after a resume.

    Args:
        teachers: at least one.
        class_table: the classes of the student.

    Raises:
        AdaptSegError: a checkpoint that is not there, lacks the network, or has other classes or normalisation.
    """

    def __init__(self, teachers: Sequence[Teacher], class_table: ClassTable) -> None:
        self.weights = [teacher.weight for teacher in teachers]
        self.networks = [
            networks.load(teacher.checkpoint, teacher.network, class_table=class_table).requires_grad_(False)
            for teacher in teachers
        ]
        for teacher, network in zip(teachers, self.networks, strict=True):
            if network.normalization != Normalization(tuple(IMAGENET_MEAN), tuple(IMAGENET_STD)):
                raise AdaptSegError(
                    f"{teacher.checkpoint}: its network reads images of another normalisation than ours"
                )

    @torch.no_grad()
    def log_probabilities(self, images: Tensor) -> list[Tensor]:
        """Of each teacher, log-softmax (B, C, H, W) float32 of normalised images (B, 3, H, W), at their size."""
        size = (images.shape[-2], images.shape[-1])
        said: list[Tensor] = []
        for network in self.networks:
            network.to(images.device)  # nothing to do after the first step
            said.append(resize_logits(network(images).logits.float(), size).log_softmax(1))
        return said
