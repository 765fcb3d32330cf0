"""Gradient-based class weights (GBW): classes whose loss has the larger gradient on this batch weigh more.

Alcover-Couso, Escudero-Viñolo, SanMiguel, Bescós, "Gradient-based class weighting for unsupervised domain adaptation in
dense prediction visual tasks", arXiv 2407.01327; formulas from the released code. Its quadratic program is that of LOW
(Santiago et al., Pattern Recognition 2021), classes in place of samples. The release solves it by an interior-point
method on the CPU; here it has its exact solution, and nothing waits for the device.

The weights are constants of a step: w_c multiplies the cross-entropy of pixels labelled c, and the loss is *not*
divided by their sum (`adaptseg.losses.pixel`). A running average, if wanted, sits between
`statistics_from_log_probabilities` and `weights_from`; both fields of `Statistics` may be averaged over batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from adaptseg.classes import VOID
from adaptseg.errors import AdaptSegError
from adaptseg.losses.reduce import at_least_float32

Gradient = Literal["channel", "class_loss", "mean_residual"]
"""What stands for the gradient of class c, from the residuals r_ic = p_ic - [y_i = c] and n_c labelled pixels:

`channel` (released): g_c^2 = sum_i r_ic^2 / (n_{y_i} + 1)^2, the norm over channel c of the gradient of the
    class-balanced cross-entropy by the logits: missed pixels of c, and false mass on c in pixels of other classes.
`class_loss` (inferred, the paper's wording): g_c^2 = sum_{i: y_i = c} |r_i|^2 / (n_c + 1)^2, the norm of the gradient
    of class c's own mean loss.
`mean_residual` (inferred): g_c^2 = sum_{i: y_i = c} |r_i|^2 / n_c, in [0, 2] whatever the size of class and batch.

The first two fall as 1 / n: their regulariser is in units of 1 / pixel, and classes of a few pixels are far ahead.
"""

Budget = Literal["classes", "present"]
"""Over which classes the sum of weights is shared out, 1 for each: all (released), or those with labelled pixels."""


Objective = Literal["cross_entropy", "entropy"]
"""Whose gradient by the logits the residuals r_ic are:

`cross_entropy` (released): r_ic = p_ic - [y_i = c].
`entropy` (inferred, for MinEnt): r_ic = -p_ic (log p_ic + H_i) / log C, the gradient of a pixel's entropy H_i over log
    C; the labels then say which class a pixel counts for, e.g. its likeliest.
"""


class Statistics(NamedTuple):
    """All that the weights depend on, sums over the pixels of a batch.

    Attributes:
        pixels: (C,) n_c, labelled pixels of each class (their summed weights where pixel weights were given).
        squares: (C,) of `channel`: g_c^2; of the others: sum_{i: y_i = c} |r_i|^2. Averaged over batches, these become
            the mean squared gradient and the mean residual by pixel (inferred).
    """

    pixels: Tensor
    squares: Tensor


def class_weights(
    logits: Tensor,
    labels: Tensor,
    *,
    regularization: float = 1.0,
    gradient: Gradient = "channel",
    relative: bool = False,
    budget: Budget = "classes",
    min_pixels: float = 0,
    valid_classes: Tensor | None = None,
    renormalise: bool = False,
    pixel_weights: Tensor | None = None,
    ignore_index: int = VOID,
    synchronise: bool = False,
) -> Tensor:
    """Weights of a batch; the defaults are the released method. No gradient; float32 or better also under autocast.

    Without any labelled pixel all weights are 1. NaN logits give NaN weights.

    Args:
        logits: (N, C, H, W) at the size of the labels, any floating dtype.
        labels: (N, H, W) int64 in 0..C-1, or `ignore_index`.

    The other arguments are those of `statistics_from_log_probabilities` and `weights_from`.

    Returns:
        (C,) float32, >= 0, summing to the number of classes that share the budget (unless `renormalise`).
    """
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        statistics = statistics_from_log_probabilities(
            at_least_float32(logits).log_softmax(1),
            labels,
            gradient=gradient,
            min_pixels=min_pixels,
            valid_classes=valid_classes,
            pixel_weights=pixel_weights,
            ignore_index=ignore_index,
            synchronise=synchronise,
        )
        weights = weights_from(
            statistics,
            gradient=gradient,
            regularization=regularization,
            relative=relative,
            budget=budget,
            valid_classes=valid_classes,
            renormalise=renormalise,
        )
    return weights.float()


@torch.no_grad()
def statistics_from_log_probabilities(
    log_probabilities: Tensor,
    labels: Tensor,
    *,
    objective: Objective = "cross_entropy",
    gradient: Gradient = "channel",
    min_pixels: float = 0,
    valid_classes: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    ignore_index: int = VOID,
    synchronise: bool = False,
) -> Statistics:
    """Sums from the log-softmax that a step has computed anyway. Holds one image's residuals at a time.

    Args:
        log_probabilities: (N, C, H, W).
        labels: (N, H, W) int64 in 0..C-1, or `ignore_index`.
        objective: see `Objective`.
        gradient: see `Gradient`; the same as in `weights_from`.
        min_pixels: classes with fewer pixels add nothing to any gradient: slivers of a class, left over by resizing,
            have the largest ones (specification, trap T3).
        valid_classes: (C,) bool on the device of the labels, or None = all; pixels of the others add nothing.
        pixel_weights: q, finite, broadcastable to (N, H, W): the residuals become q_i r_ic and n_c a sum of q_i
            (inferred). None = 1, as released, where the pseudo-labels' weights multiply the loss alone.
        ignore_index: label of pixels that are left out.
        synchronise: sum over all processes, so that all weigh alike and as one process with the whole batch would
            (inferred). Then a collective.

    Returns:
        two (C,) tensors, float32, or float64 from float64.
    """
    _require_choice("objective", objective, get_args(Objective))
    _require_choice("gradient", gradient, get_args(Gradient))
    _require_shapes(log_probabilities, labels, valid_classes)
    classes = log_probabilities.shape[1]
    if pixel_weights is not None:
        pixel_weights = at_least_float32(pixel_weights).expand(labels.shape)
    with torch.autocast(log_probabilities.device.type, enabled=False):
        bins = torch.where(labels != ignore_index, labels, classes)  # one more for void: no pixel is indexed away
        pixels = _sum_by_bin(bins, torch.ones_like(bins) if pixel_weights is None else pixel_weights, classes)
        pixels = _summed(pixels, synchronise).to(at_least_float32(log_probabilities[:0]).dtype)
        counted = pixels >= min_pixels
        if valid_classes is not None:
            counted = counted & valid_classes
        squares = torch.zeros_like(pixels)
        by_class = (counted / (pixels + 1).square()) if gradient == "channel" else counted.to(pixels.dtype)
        factors = F.pad(by_class, (0, 1)).index_select(0, bins.flatten()).view(bins.shape)
        if pixel_weights is not None:
            factors = factors * pixel_weights.to(pixels.dtype).square()
        images = (_squared_residuals if objective == "cross_entropy" else _squared_entropy_slopes)(
            log_probabilities, bins
        )
        for residuals, factor, index in zip(images, factors, bins, strict=True):
            if gradient == "channel":
                squares += residuals @ factor.flatten()
            else:
                squares += _sum_by_bin(index, residuals.sum(0) * factor.flatten(), classes)
        return Statistics(pixels, _summed(squares, synchronise))


@torch.no_grad()
def weights_from(
    statistics: Statistics,
    *,
    gradient: Gradient = "channel",
    regularization: float = 1.0,
    relative: bool = False,
    budget: Budget = "classes",
    valid_classes: Tensor | None = None,
    renormalise: bool = False,
) -> Tensor:
    """argmin_w lam * sum w_c^2 - sum g_c^2 w_c, subject to w >= 0, sum w = the number of classes sharing the budget.

    That is the projection of g^2 / (2 lam) onto the simplex: 1 for all classes at large lam, everything to the class of
    the largest gradient at small.

    Args:
        statistics: of a batch, or an average of them.
        gradient: what the statistics were made with.
        regularization: lam > 0 (released: 1). Its unit is that of g^2: with `channel` and `class_loss` the same number
            means something else at another crop or batch size.
        relative: lam := regularization * mean g^2, free of scale (inferred); from 0.5 on no weight reaches 0.
        budget: see `Budget`. With `present`, absent classes get 0.
        valid_classes: (C,) bool, or None = all; the others get 0 and no share (inferred: classes the source does not
            have would hold theirs for nothing). At least one must be True.
        renormalise: divide by `pixel_mean`, which keeps the scale of the loss (inferred), unless that is 0.

    Returns:
        (C,) of the dtype of the statistics.
    """
    _require_choice("budget", budget, get_args(Budget))
    if not (math.isfinite(regularization) and regularization > 0):
        raise AdaptSegError(f"GBW: regularization is {regularization}; a positive, finite number is expected")
    squares = squared_gradients(statistics, gradient)
    sharing = torch.ones_like(squares, dtype=torch.bool) if valid_classes is None else valid_classes
    if budget == "present":
        present = sharing & (statistics.pixels > 0)
        sharing = torch.where(present.any(), present, sharing)  # without labels: all gradients 0, hence all weights 1
    count = sharing.sum().to(squares.dtype)
    if relative:
        mean = torch.where(sharing, squares, 0).sum() / count
        squares = squares / torch.where(mean > 0, mean, 1)
    weights = simplex_projection(torch.where(sharing, squares / (2 * regularization), -math.inf), count)
    if renormalise:
        mean = pixel_mean(weights, statistics.pixels)
        weights = weights / torch.where(mean > 0, mean, 1)
    return weights


def squared_gradients(statistics: Statistics, gradient: Gradient) -> Tensor:
    """g_c^2 (C,) >= 0, see `Gradient`."""
    _require_choice("gradient", gradient, get_args(Gradient))
    pixels, squares = statistics
    if gradient == "channel":
        return squares
    return squares / ((pixels + 1).square() if gradient == "class_loss" else pixels.clamp(min=1))


def pixel_mean(weights: Tensor, pixels: Tensor) -> Tensor:
    """Mean weight of a labelled pixel, (): by how much weighting scales the loss as a whole. 1 if none is labelled.

    Args:
        weights: (C,).
        pixels: (C,) labelled pixels of each class.
    """
    total = pixels.sum()
    return torch.where(total > 0, (weights * pixels).sum() / torch.where(total > 0, total, 1), 1)


def simplex_projection(a: Tensor, total: float | Tensor) -> Tensor:
    """The point w >= 0, sum w = total, nearest to `a` (exact; Held, Wolfe, Crowder 1974; Duchi et al., ICML 2008).

    w_c = max(0, a_c - theta), theta = max_k (a_(1) + ... + a_(k) - total) / k over the entries in descending order. No
    loop, no synchronisation with the device.

    Args:
        a: (C,) floating; minus infinity gets 0, but one entry at least must be finite. NaN gives NaN everywhere.
        total: >= 0; a number, or a () tensor on the device of `a`.

    Returns:
        (C,) of the dtype of `a`.
    """
    if a.ndim != 1 or not a.is_floating_point() or not len(a):
        raise AdaptSegError(f"simplex projection of {a.dtype} {tuple(a.shape)}; give a floating tensor (C,)")
    total = total.to(a.dtype) if isinstance(total, Tensor) else a.new_full((), total)
    # The solution ignores a common shift, and what lies `total` or more below the largest entry gets 0 at any distance:
    # so the sums below hold no large numbers and no infinity.
    shifted = (a - a.max()).clamp(min=-total)
    ranks = torch.arange(1, len(a) + 1, dtype=a.dtype, device=a.device)
    theta = ((shifted.sort(descending=True).values.cumsum(0) - total) / ranks).max()
    return (shifted - theta).clamp(min=0)


def _squared_residuals(log_probabilities: Tensor, bins: Tensor) -> Iterator[Tensor]:
    """r_ic^2 of one image after the other, (C, H * W); the next one overwrites it. Void pixels hold p_ic^2."""
    classes, height, width = log_probabilities.shape[1:]
    dtype = at_least_float32(log_probabilities[:0]).dtype
    buffer = torch.empty(classes + 1, height, width, dtype=dtype, device=bins.device)  # void writes to the last
    residuals = buffer[:classes]
    for image, index in zip(log_probabilities.detach(), bins[:, None], strict=True):
        log_p = at_least_float32(image)
        # p^2 in two passes; torch's exp alone takes 2.6 times as long as exp2 (float32, AVX512).
        torch.mul(log_p, 2 / math.log(2), out=residuals).exp2_()
        own = log_p.gather(0, index.clamp(max=classes - 1))
        # exp(log p) - 1 would be 0 or rounding noise where the network is sure; torch's expm1 is six times as slow.
        buffer.scatter_(0, index, _expm1(own).square_())
        yield residuals.view(classes, -1)


def _expm1(x: Tensor) -> Tensor:
    """exp(x) - 1 without cancellation: exp(x) - 1 = tanh(x / 2) (exp(x) + 1)."""
    return (x / 2).tanh_().mul_(x.exp().add_(1))


def _squared_entropy_slopes(log_probabilities: Tensor, bins: Tensor) -> Iterator[Tensor]:
    """As `_squared_residuals`, of the entropy over log C."""
    classes = log_probabilities.shape[1]
    for image in log_probabilities.detach():
        log_p = at_least_float32(image)
        p = log_p.exp()
        entropy = -(p * log_p).sum(0)
        yield (p * (log_p + entropy) / math.log(classes)).square().view(classes, -1)


def _sum_by_bin(bins: Tensor, values: Tensor, classes: int) -> Tensor:
    """(C,) sums of `values` where `bins` says c; bincount would wait for the device."""
    sums = torch.zeros(classes + 1, dtype=values.dtype, device=values.device)
    return sums.scatter_add_(0, bins.flatten(), values.flatten())[:classes]


def _summed(values: Tensor, over_ranks: bool) -> Tensor:
    if over_ranks and dist.is_available() and dist.is_initialized():
        values = values.contiguous()
        dist.all_reduce(values)
    return values


def _require_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise AdaptSegError(f"GBW: {name} is '{given}'; one of {', '.join(allowed)} is expected")


def _require_shapes(log_probabilities: Tensor, labels: Tensor, valid_classes: Tensor | None) -> None:
    if log_probabilities.ndim != 4 or labels.shape != log_probabilities[:, 0].shape:
        raise AdaptSegError(
            f"GBW: log-probabilities are {tuple(log_probabilities.shape)}, labels {tuple(labels.shape)}; give "
            "(N, C, H, W) and (N, H, W): logits must be resized to the labels first"
        )
    if valid_classes is not None and (
        valid_classes.shape != log_probabilities.shape[1:2] or valid_classes.dtype != torch.bool
    ):
        raise AdaptSegError(
            f"GBW: valid_classes is {valid_classes.dtype} {tuple(valid_classes.shape)}; give bool "
            f"({log_probabilities.shape[1]},)"
        )
