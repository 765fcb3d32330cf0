"""GBW's weights against quadratic programs solved otherwise, and its gradient magnitudes against autograd."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from scipy.optimize import minimize

from adaptseg.errors import AdaptSegError
from adaptseg.losses.gbw import (
    Gradient,
    Statistics,
    class_weights,
    pixel_mean,
    simplex_projection,
    squared_gradients,
    statistics_from_log_probabilities,
    weights_from,
)
from adaptseg.losses.pixel import cross_entropy

GRADIENTS: list[Gradient] = ["channel", "class_loss", "mean_residual"]


def random_case(seed: int, classes: int = 5, sharpness: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (3, C, 4, 6) in float64; labels with void, the last class absent."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(3, classes, 4, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes - 1, (3, 4, 6), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.25] = 255
    return logits, labels


def statistics(logits: torch.Tensor, labels: torch.Tensor, **switches: Any) -> Statistics:
    return statistics_from_log_probabilities(logits.log_softmax(1), labels, **switches)


def program_by_slsqp(squares: np.ndarray, regularization: float, total: float) -> np.ndarray:
    """minimise lam w'w - (g^2 + lam)'w, as the release states it, divided by lam so that tolerances mean the same."""
    linear = squares / regularization + 1
    result = minimize(
        lambda w: w @ w - linear @ w,
        np.full(len(squares), total / len(squares)),
        jac=lambda w: 2 * w - linear,
        bounds=[(0, None)] * len(squares),
        constraints={"type": "eq", "fun": lambda w: w.sum() - total, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    return result.x


def projection_by_active_sets(a: np.ndarray, total: float) -> np.ndarray:
    """Every set of positive entries is tried; the feasible point nearest to `a` wins."""
    best, distance = np.empty(0), math.inf
    for size in range(1, len(a) + 1):
        for active in itertools.combinations(range(len(a)), size):
            w = np.zeros(len(a))
            chosen = list(active)
            w[chosen] = a[chosen] - (a[chosen].sum() - total) / size
            if (w >= 0).all() and ((w - a) ** 2).sum() < distance:
                best, distance = w, ((w - a) ** 2).sum()
    return best


# ---- the quadratic program


@pytest.mark.parametrize("classes", [2, 3, 19, 39])
def test_projection_against_slsqp(classes: int) -> None:
    random = np.random.default_rng(classes)
    for regularization in 10.0 ** random.uniform(-2, 1, 8):
        squares = random.random(classes) ** 2
        expected = program_by_slsqp(squares, regularization, classes)
        w = simplex_projection(torch.tensor(squares / (2 * regularization)), classes)
        np.testing.assert_allclose(w.numpy(), expected, atol=1e-5)


def test_projection_against_all_active_sets() -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        classes = int(random.integers(2, 8))
        a, total = random.normal(size=classes) * 10 ** random.uniform(-2, 3), random.uniform(0.1, 10)
        w = simplex_projection(torch.tensor(a), total)
        np.testing.assert_allclose(w.numpy(), projection_by_active_sets(a, total), atol=1e-9)


@pytest.mark.parametrize(
    ("regularization", "expected"),
    [
        (0.1, (1.8333333, 0.8333333, 0.3333333)),
        (0.05, (2.5, 0.5, 0.0)),
        (0.02, (3.0, 0.0, 0.0)),
        (1e9, (1.0, 1.0, 1.0)),
    ],
)
def test_vectors(regularization: float, expected: tuple[float, ...]) -> None:
    given = Statistics(torch.tensor([5.0, 5.0, 5.0]), torch.tensor([0.3, 0.1, 0.0]))
    torch.testing.assert_close(weights_from(given, regularization=regularization), torch.tensor(expected))


@pytest.mark.parametrize("total", [3.0, torch.tensor(3), torch.tensor(3.0)])
def test_total_as_number_or_tensor(total: Any) -> None:
    torch.testing.assert_close(simplex_projection(torch.tensor([1.5, 0.5, 0.0]), total), torch.tensor([11, 5, 2]) / 6)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("shift", [0.0, -1e3, 1e5])
def test_invariants_in_float32(scale: float, shift: float) -> None:
    a = torch.rand(19, generator=torch.Generator().manual_seed(1)) * scale + shift
    w = simplex_projection(a, 19)
    assert w.dtype == torch.float32
    assert (w >= 0).all()
    assert w.sum().item() == pytest.approx(19, abs=1e-5)
    order = torch.randperm(19)
    torch.testing.assert_close(simplex_projection(a[order], 19), w[order], rtol=0, atol=1e-5)


def test_minus_infinity_gets_nothing_and_nan_shows() -> None:
    w = simplex_projection(torch.tensor([-math.inf, 1.0, 1.0, -math.inf]), 2)
    assert w.tolist() == [0, 1, 1, 0]
    assert simplex_projection(torch.tensor([math.nan, 1.0, 2.0]), 3).isnan().all()


def test_projection_has_a_gradient() -> None:
    a = torch.tensor([0.9, 0.3, -0.2, -4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: simplex_projection(a, 2.0), (a,))


# ---- gradient magnitudes


def mean_class_losses(logits: torch.Tensor, labels: torch.Tensor, pixel_weights: torch.Tensor) -> list[torch.Tensor]:
    """L_k = (sum over pixels of k of q CE) / (n_k + 1), the release's definition, one class after the other."""
    ce = F.cross_entropy(logits, labels, ignore_index=255, reduction="none") * pixel_weights
    return [ce[labels == k].sum() / (pixel_weights[labels == k].sum() + 1) for k in range(logits.shape[1])]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_magnitudes_against_autograd(seed: int, weighted: bool) -> None:
    logits, labels = random_case(seed)
    q = torch.rand(labels.shape, dtype=torch.float64) if weighted else torch.ones(labels.shape, dtype=torch.float64)
    given = {"pixel_weights": q} if weighted else {}
    losses = mean_class_losses(logits.requires_grad_(), labels, q)
    (whole,) = torch.autograd.grad(torch.stack(losses).sum(), logits, retain_graph=True)
    rows = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in losses]

    channel = squared_gradients(statistics(logits, labels, **given), "channel")
    torch.testing.assert_close(channel, whole.square().sum((0, 2, 3)), rtol=1e-12, atol=0)
    by_class = squared_gradients(statistics(logits, labels, gradient="class_loss", **given), "class_loss")
    torch.testing.assert_close(by_class, torch.stack([r.square().sum() for r in rows]), rtol=1e-12, atol=1e-30)


def test_mean_residual_is_a_mean_over_pixels() -> None:
    logits, labels = random_case(3)
    residuals = logits.softmax(1) - F.one_hot(labels % 255, 5).movedim(-1, 1)
    squares = squared_gradients(statistics(logits, labels, gradient="mean_residual"), "mean_residual")
    for c in range(4):
        expected = residuals.square().sum(1)[labels == c].mean()
        assert squares[c].item() == pytest.approx(expected.item(), rel=1e-12)
    assert squares[4] == 0  # absent
    assert squares.max() <= 2


def test_vector_of_two_classes() -> None:
    logits, labels = torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 0, 1]]])
    pixels, squares = statistics(logits, labels, gradient="class_loss")
    assert pixels.tolist() == [2, 1]
    assert squares.tolist() == [1.0, 0.5]  # the row sums of R
    torch.testing.assert_close(
        squared_gradients(Statistics(pixels, squares), "class_loss"), torch.tensor([0.111111, 0.125]), rtol=1e-5, atol=0
    )
    channel = squared_gradients(statistics(logits, labels), "channel")
    torch.testing.assert_close(channel, torch.tensor([0.118056, 0.118056]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_sure_pixels_do_not_cancel(gradient: Gradient) -> None:
    """1 - p = 4e-9 is far below the spacing of float32 at 1, but log p tells it."""
    log_p = torch.tensor([19.3, 0.0], dtype=torch.float64).log_softmax(0).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    fine = statistics_from_log_probabilities(log_p, labels, gradient=gradient).squares
    coarse = statistics_from_log_probabilities(log_p.float(), labels, gradient=gradient).squares
    assert fine[0] > 0
    torch.testing.assert_close(coarse, fine.float(), rtol=1e-4, atol=0)


def test_a_probability_of_zero_is_finite() -> None:
    logits = torch.tensor([[[[-math.inf]], [[0.0]], [[0.0]]]])
    assert statistics(logits, torch.zeros(1, 1, 1, dtype=torch.int64)).squares.tolist() == [0.25, 0.0625, 0.0625]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_small_classes_and_invalid_classes_add_nothing(gradient: Gradient) -> None:
    logits, labels = random_case(4)
    labels[labels == 3] = 0
    labels[0, 0, :2] = 3
    valid = torch.tensor([True, False, True, True, True])
    some = statistics(logits, labels, gradient=gradient, min_pixels=3, valid_classes=valid)
    without = labels.clone()
    without[(labels == 1) | (labels == 3)] = 255
    torch.testing.assert_close(some.squares, statistics(logits, without, gradient=gradient).squares)
    assert some.pixels[3] == 2  # still counted


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_format(layout: torch.memory_format) -> None:
    logits, labels = random_case(5)
    log_p = logits.log_softmax(1)
    given = statistics_from_log_probabilities(log_p.contiguous(memory_format=layout), labels)
    torch.testing.assert_close(given, statistics(logits, labels))


# ---- weights of a batch


def expected_weights(logits: torch.Tensor, labels: torch.Tensor, regularization: float) -> torch.Tensor:
    losses = mean_class_losses(logits.requires_grad_(), labels, torch.ones(labels.shape))
    squares = torch.autograd.grad(torch.stack(losses).sum(), logits)[0].square().sum((0, 2, 3))
    return torch.tensor(program_by_slsqp(squares.numpy(), regularization, logits.shape[1]))


@pytest.mark.parametrize("regularization", [1.0, 0.01, 1e-3])
def test_from_logits_to_weights(regularization: float) -> None:
    logits, labels = random_case(6)
    weights = class_weights(logits, labels, regularization=regularization)
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    expected = expected_weights(logits, labels, regularization)
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("relative", [False, True])
def test_batch_invariants(gradient: Gradient, relative: bool) -> None:
    logits, labels = random_case(7)
    switches: dict[str, Any] = {"gradient": gradient, "relative": relative, "regularization": 0.3}
    weights = class_weights(logits, labels, **switches)
    assert weights.sum().item() == pytest.approx(5, abs=1e-5)
    assert (weights >= 0).all()

    order = torch.tensor([2, 0, 4, 1, 3])  # new class k is old class order[k]
    renamed = torch.where(labels == 255, 255, order.argsort()[labels % 255])
    torch.testing.assert_close(class_weights(logits[:, order], renamed, **switches), weights[order])

    more = torch.cat([logits, 100 * torch.randn(1, 5, 4, 6, dtype=torch.float64)])
    void = torch.cat([labels, torch.full((1, 4, 6), 255)])
    torch.testing.assert_close(class_weights(more, void, **switches), weights)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("budget", ["classes", "present"])
@pytest.mark.parametrize("relative", [False, True])
def test_nothing_labelled_gives_ones(gradient: Gradient, budget: Any, relative: bool) -> None:
    logits, labels = random_case(8)
    nothing = torch.full_like(labels, 255)
    weights = class_weights(logits, nothing, gradient=gradient, budget=budget, relative=relative, renormalise=True)
    assert weights.tolist() == [1.0] * 5
    total, _ = cross_entropy(logits, nothing, class_weights=weights)
    assert total.item() == 0


def test_huge_regulariser_is_plain_cross_entropy() -> None:
    logits, labels = random_case(9)
    weights = class_weights(logits, labels, regularization=1e9)
    weighted, plain = cross_entropy(logits, labels, class_weights=weights)[0], cross_entropy(logits, labels)[0]
    torch.testing.assert_close(weighted, plain, rtol=1e-6, atol=0)


def test_equal_gradients_give_ones() -> None:
    for regularization in (1e-6, 1.0, 1e6):
        given = Statistics(torch.ones(4), torch.full((4,), 0.7))
        assert weights_from(given, regularization=regularization).tolist() == [1.0] * 4


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_batch_of_one_class(gradient: Gradient) -> None:
    logits, labels = random_case(10)
    weights = class_weights(logits, torch.ones_like(labels), gradient=gradient, regularization=1e-9)
    assert weights.tolist() == [0.0, 5.0, 0.0, 0.0, 0.0]
    alone = class_weights(logits, torch.ones_like(labels), gradient=gradient, budget="present")
    assert alone.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


def test_budget_of_present_classes() -> None:
    given = Statistics(torch.tensor([4.0, 4.0, 0.0]), torch.tensor([0.3, 0.1, 0.9]))
    weights = weights_from(given, regularization=0.1, budget="present")
    torch.testing.assert_close(weights, torch.tensor([1.5, 0.5, 0.0]))


def test_valid_classes_share_among_themselves() -> None:
    given = Statistics(torch.tensor([4.0, 4.0, 4.0, 0.0]), torch.tensor([0.3, 0.1, 0.9, 0.2]))
    valid = torch.tensor([True, True, False, True])
    weights = weights_from(given, regularization=0.5, valid_classes=valid)
    torch.testing.assert_close(weights, torch.tensor([1.1, 0.9, 0.0, 1.0]))
    present = weights_from(given, regularization=0.5, valid_classes=valid, budget="present")
    torch.testing.assert_close(present, torch.tensor([1.1, 0.9, 0.0, 0.0]))


def test_relative_regulariser_is_free_of_scale() -> None:
    squares = torch.tensor([0.3, 0.1, 0.2, 0.0])
    for scale in (1.0, 1e-12, 1e6):
        weights = weights_from(Statistics(torch.ones(4), scale * squares), regularization=0.5, relative=True)
        torch.testing.assert_close(weights, squares / squares.mean())


def test_renormalise_keeps_the_scale_of_the_loss() -> None:
    given = Statistics(torch.tensor([90.0, 9.0, 1.0]), torch.tensor([0.0, 0.1, 0.3]))
    weights = weights_from(given, regularization=0.1)
    kept = weights_from(given, regularization=0.1, renormalise=True)
    assert pixel_mean(kept, given.pixels).item() == pytest.approx(1)
    torch.testing.assert_close(kept, weights / pixel_mean(weights, given.pixels))
    absent = Statistics(torch.tensor([5.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert weights_from(absent, regularization=1e-3, renormalise=True).tolist() == [0.0, 2.0]  # mean weight is 0


def test_pixel_mean() -> None:
    logits, labels = random_case(11)
    weights = torch.rand(5, dtype=torch.float64)
    known = labels[labels != 255]
    assert pixel_mean(weights, statistics(logits, labels).pixels).item() == pytest.approx(weights[known].mean().item())
    assert pixel_mean(weights, torch.zeros(5, dtype=torch.float64)) == 1


def test_released_mode_hardly_weighs_at_all() -> None:
    """Regulariser 1 at realistic sizes: the mean weight of a pixel is within 1 % of 1 (specification 1.6)."""
    generator = torch.Generator().manual_seed(0)
    blocks = (19 * torch.rand(2, 8, 8, generator=generator) ** 3).long()
    labels = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[0, 0, 0] = 18  # a class of one pixel, or nearly
    log_p = torch.randn(2, 19, 128, 128, generator=generator).log_softmax(1)
    given = statistics_from_log_probabilities(log_p, labels)
    assert abs(pixel_mean(weights_from(given), given.pixels).item() - 1) < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_low_precision_and_autocast(dtype: torch.dtype, gradient: Gradient) -> None:
    logits, labels = random_case(12)
    given = logits.to(dtype)
    expected = class_weights(given.double(), labels, gradient=gradient, regularization=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = class_weights(given.requires_grad_(), labels, gradient=gradient, regularization=0.05)
        half = statistics_from_log_probabilities(given.log_softmax(1), labels, gradient=gradient)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-5)
    assert half.squares.dtype == torch.float32


def test_nan_logits_show_in_the_weights() -> None:
    logits, labels = random_case(13)
    logits[0, 0, 0, 0], labels[0, 0, 0] = math.nan, 1
    assert class_weights(logits, labels).isnan().any()


def test_other_ignore_index() -> None:
    logits, labels = random_case(14)
    renamed = torch.where(labels == 255, -1, labels)
    assert torch.equal(class_weights(logits, renamed, ignore_index=-1), class_weights(logits, labels))


def test_errors() -> None:
    logits, labels = random_case(15)
    wrong: Any = "columns"
    with pytest.raises(AdaptSegError, match="gradient is 'columns'; one of channel, class_loss"):
        class_weights(logits, labels, gradient=wrong)
    with pytest.raises(AdaptSegError, match="budget is 'columns'"):
        class_weights(logits, labels, budget=wrong)
    for regularization in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(AdaptSegError, match="positive, finite"):
            class_weights(logits, labels, regularization=regularization)
    with pytest.raises(AdaptSegError, match="resized to the labels first"):
        class_weights(logits[..., :2], labels)
    with pytest.raises(AdaptSegError, match="valid_classes"):
        class_weights(logits, labels, valid_classes=torch.ones(4, dtype=torch.bool))
    with pytest.raises(AdaptSegError, match="simplex projection"):
        simplex_projection(torch.ones(2, 2), 2)


# ---- two processes, and a GPU


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    logits, labels = random_case(16)
    mine = slice(0, 1) if rank == 0 else slice(1, 3)
    q = torch.linspace(0.1, 1, labels.numel(), dtype=torch.float64).view(labels.shape)
    results = []
    for gradient in GRADIENTS:
        together = statistics(logits[mine], labels[mine], gradient=gradient, synchronise=True)
        weighted = statistics(
            logits[mine], labels[mine], gradient=gradient, synchronise=True, pixel_weights=q[mine], min_pixels=2
        )
        alone = statistics(logits[mine], labels[mine], gradient=gradient)
        results.append((tuple(together), tuple(weighted), tuple(alone)))
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    logits, labels = random_case(16)
    q = torch.linspace(0.1, 1, labels.numel(), dtype=torch.float64).view(labels.shape)
    for rank, mine in enumerate([slice(0, 1), slice(1, 3)]):
        for gradient, (together, weighted, alone) in zip(GRADIENTS, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            whole = statistics(logits, labels, gradient=gradient)
            torch.testing.assert_close(together, tuple(whole), rtol=1e-12, atol=0)
            whole = statistics(logits, labels, gradient=gradient, pixel_weights=q, min_pixels=2)
            torch.testing.assert_close(weighted, tuple(whole), rtol=1e-12, atol=0)
            torch.testing.assert_close(alone, tuple(statistics(logits[mine], labels[mine], gradient=gradient)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_no_synchronisation_with_the_device(gradient: Gradient) -> None:
    logits, labels = random_case(17)
    expected = class_weights(logits, labels, gradient=gradient, budget="present", relative=True, renormalise=True)
    logits, labels, valid = logits.cuda(), labels.cuda(), torch.ones(5, dtype=torch.bool).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        weights = class_weights(
            logits, labels, gradient=gradient, budget="present", relative=True, renormalise=True, valid_classes=valid
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(weights.cpu(), expected)
