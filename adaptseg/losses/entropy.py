"""Entropy of predictions, as a loss (MinEnt) and as what a discriminator sees (AdvEnt).

Vu, Jain, Bucher, Cord, Pérez, "ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic
Segmentation", CVPR 2019. Both maps are in units of log C, so that neither depends on the base of the logarithm or grows
with the number of classes. The release adds 1e-30 inside the logarithm; here log-softmax makes 0 log 0 = 0 exact.
"""

from __future__ import annotations

import math

from torch import Tensor

from adaptseg.errors import AdaptSegError
from adaptseg.losses.reduce import at_least_float32


def self_information(log_probabilities: Tensor) -> Tensor:
    """Weighted self-information I_c = -p_c log p_c / log C of each class in each pixel (section 3.2).

    Args:
        log_probabilities: (B, C, H, W) log-softmax; half precision is computed in float32.

    Returns:
        (B, C, H, W) in [0, 1 / (e log C)], with gradient.
    """
    classes = _classes_of(log_probabilities)
    log_p = at_least_float32(log_probabilities)
    return log_p.exp() * log_p * (-1 / math.log(classes))


def normalised_entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy over log C of each pixel (section 3.1): 0 = certain, 1 = uniform. MinEnt descends its mean
    over all pixels.

    Args:
        log_probabilities: (B, C, H, W) log-softmax; half precision is computed in float32.

    Returns:
        (B, H, W) in [0, 1], with gradient.
    """
    return self_information(log_probabilities).sum(1)


def _classes_of(log_probabilities: Tensor) -> int:
    if log_probabilities.ndim != 4 or log_probabilities.shape[1] < 2:
        raise AdaptSegError(
            f"entropy of log-probabilities {tuple(log_probabilities.shape)}; give (B, C, H, W) of 2 or more classes"
        )
    return log_probabilities.shape[1]
