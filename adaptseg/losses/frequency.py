"""Fixed class weights from how often each class occurs in the source: what gradient-based weights are compared with.

Each is scaled to mean 1 over the classes that have pixels. A class without pixels gets weight 1: nothing is known of
it, and the formulas would give infinity. Computed in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adaptseg.errors import AdaptSegError


def inverse_frequency(counts: Tensor, *, power: float = 1.0) -> Tensor:
    """w_c proportional to n_c^-power, mean 1; a class without pixels gets 1.

    Args:
        counts: (C,) pixels n_c of each class in all source labels, void excluded.
        power: >= 0; 1 = inverse frequency, 0.5 = its square root, 0 = no weighting.

    Returns:
        (C,) float32 > 0.
    """
    if not (math.isfinite(power) and power >= 0):
        raise AdaptSegError(f"inverse frequency: power is {power}; a finite number from 0 on is expected")
    counts = _checked(counts, "counts")
    share = counts / counts.sum()
    return _scaled(share**-power, counts)


def median_frequency(counts: Tensor, image_pixels: Tensor) -> Tensor:
    """w_c proportional to median(f) / f_c, f_c = pixels of c over pixels of all images that have c (Eigen and Fergus,
    ICCV 2015, section 6.3.3; also SegNet), mean 1; a class without pixels gets 1.

    Unlike the inverse frequency it does not raise classes that are in few images but large there. The median itself
    cancels in the scaling, and with all images for every class this is `inverse_frequency`.

    Args:
        counts: (C,) pixels of each class in all source labels, void excluded.
        image_pixels: (C,) pixels of all images in which class c occurs, at least `counts`.

    Returns:
        (C,) float32 > 0.
    """
    counts, image_pixels = _checked(counts, "counts"), _checked(image_pixels, "image_pixels")
    if counts.shape != image_pixels.shape or not bool((image_pixels >= counts).all()):
        raise AdaptSegError(
            f"median frequency: {len(image_pixels)} image_pixels for {len(counts)} counts; give one for each class, at "
            "least as many as the class has pixels"
        )
    return _scaled(image_pixels / counts, counts)


def effective_number(counts: Tensor, beta: float) -> Tensor:
    """w_c proportional to 1 / E_c, E_c = (1 - beta^n_c) / (1 - beta) (Cui et al., CVPR 2019, eq. 2), mean 1; a class
    without pixels gets 1.

    E_c saturates at 1 / (1 - beta): with counts in pixels, the betas of the paper (0.9 to 0.9999, for images) make all
    weights 1. beta = 1 - 1/N lets classes of more than some N pixels weigh alike, rarer ones by inverse frequency.

    Args:
        counts: (C,) samples of each class; here pixels in all source labels, void excluded.
        beta: in [0, 1); 0 = no weighting, towards 1 = inverse frequency.

    Returns:
        (C,) float32 > 0.
    """
    if not 0 <= beta < 1:
        raise AdaptSegError(f"effective number: beta is {beta}; a number in [0, 1) is expected")
    counts = _checked(counts, "counts")
    log_beta = math.log(beta) if beta else -math.inf
    return _scaled(-1 / torch.expm1(counts * log_beta), counts)  # 1 - beta^n cancels for beta near 1


def _checked(counts: Tensor, name: str) -> Tensor:
    if counts.ndim != 1 or not bool((counts >= 0).all() & (counts > 0).any() & counts.isfinite().all()):
        raise AdaptSegError(
            f"class frequencies: {name} of shape {tuple(counts.shape)} given; (C,) finite numbers of pixels are "
            "expected, none negative or NaN and not all 0"
        )
    return counts.double()


def _scaled(weights: Tensor, counts: Tensor) -> Tensor:
    present = counts > 0
    return torch.where(present, weights / weights[present].mean(), 1).float()
