"""What a discriminator of domains learns, and what a student learns from it.

Tsai, Hung, Schulter, Sohn, Yang, Chandraker, "Learning to Adapt Structured Output Space for Semantic Segmentation"
(AdaptSegNet), CVPR 2018; labels and halves as in its released code and AdvEnt's: source 0, target 1.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptseg.errors import AdaptSegError
from adaptseg.losses.reduce import at_least_float32

Objective = Literal["vanilla", "least_squares"]
"""`vanilla`: binary cross-entropy of sigmoid(score). `least_squares`: squared distance of the score to the label."""

Domain = Literal["source", "target"]

_LABELS: dict[str, float] = {"source": 0.0, "target": 1.0}


def domain_loss(scores: Tensor, domain: Domain, objective: Objective) -> Tensor:
    """How far a discriminator is from calling everything `domain`: mean over all cells.

    The student descends `domain_loss(D(target), "source", ...)`: its target predictions shall pass for the source's.

    Args:
        scores: of any shape, raw (no sigmoid); half precision is computed in float32.
        domain: what the scores should say.
        objective: see `Objective`.

    Returns:
        () >= 0, with gradient.

    Raises:
        AdaptSegError: an unknown domain or objective.
    """
    for name, given, allowed in (("domain", domain, _LABELS), ("objective", objective, get_args(Objective))):
        if given not in allowed:
            raise AdaptSegError(f"{name} is '{given}'; one of {', '.join(allowed)} is expected")
    scores = at_least_float32(scores)
    labels = torch.full_like(scores, _LABELS[domain])
    if objective == "vanilla":
        return F.binary_cross_entropy_with_logits(scores, labels)
    return F.mse_loss(scores, labels)


def discriminator_loss(source_scores: Tensor, target_scores: Tensor, objective: Objective) -> Tensor:
    """Mean of both domains' losses: the discriminator shall call source source and target target. (), with gradient."""
    source = domain_loss(source_scores, "source", objective)
    return (source + domain_loss(target_scores, "target", objective)) / 2
