"""What gradient-based class weights cost: the closed form against SLSQP, and a solve against a self-training step.

    python experiments/benchmarks/gbw.py [--steps 30] [--save gbw.json]

A step is its bare passes here: student = forward, up-sampling, log-softmax, cross-entropy, backward of the demo's
network; teacher = forward, up-sampling, pseudo-labels. A solve is timed inside a student pass, right after the
log-softmax it starts from. DAFormer has two student passes with a solve each, MIC three. Medians of one run, the
variants taking turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from adaptseg.losses.gbw import Gradient, simplex_projection, statistics_from_log_probabilities, weights_from
from adaptseg.losses.pixel import negative_log_likelihood
from adaptseg.losses.pseudo_labels import pseudo_labels
from adaptseg.networks import SmpSegmenter, resize_logits

CLASSES = 19


def medians(calls: dict[str, Callable[[], Any]], rounds: int, block: int) -> dict[str, float]:
    """Seconds of a call in blocks of so many, the blocks taking turns, so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(block):
                call()
            seconds[name].append((time.perf_counter() - began) / block)
    return {name: statistics.median(values) for name, values in seconds.items()}


def slsqp(squares: np.ndarray, regularization: float) -> np.ndarray:
    """The quadratic program by SciPy, with its gradients, from equal weights."""
    return minimize(
        lambda w: regularization * w @ w - squares @ w,
        np.ones(len(squares)),
        jac=lambda w: 2 * regularization * w - squares,
        bounds=[(0, None)] * len(squares),
        constraints={"type": "eq", "fun": lambda w: w.sum() - len(w), "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-9, "maxiter": 200},
    ).x


def solvers(rounds: int) -> dict[str, float]:
    """Both on the same random problems, from nearly equal weights to a few active classes."""
    rows: dict[str, list[float]] = {"closed_form": [], "slsqp": []}
    difference = 0.0
    for regularization in (0.01, 0.1, 1.0):
        squares = torch.rand(CLASSES, generator=torch.Generator().manual_seed(0)) ** 4
        array = squares.double().numpy()
        calls = {
            "closed_form": lambda g=squares, lam=regularization: simplex_projection(g / (2 * lam), CLASSES),
            "slsqp": lambda g=array, lam=regularization: slsqp(g, lam),
        }
        difference = max(difference, float(np.abs(calls["closed_form"]().numpy() - calls["slsqp"]()).max()))
        for name, value in medians(calls, rounds, block=100).items():
            rows[name].append(value)
    result = {name: statistics.fmean(values) for name, values in rows.items()}
    return {**result, "ratio": result["slsqp"] / result["closed_form"], "largest_difference": difference}


def blocky_labels(batch: int, height: int, width: int) -> Tensor:
    """Blocks of 16 pixels, frequent classes first, a tenth void."""
    generator = torch.Generator().manual_seed(0)
    blocks = (CLASSES * torch.rand(batch, height // 16, width // 16, generator=generator) ** 3).long()
    blocks[torch.rand(blocks.shape, generator=generator) < 0.1] = 255
    return blocks.repeat_interleave(16, 1).repeat_interleave(16, 2).contiguous()


def passes_and_solves(batch: int, height: int, width: int, rounds: int) -> dict[str, float]:
    network = SmpSegmenter(CLASSES, decoder="FPN", encoder="tu-mobilenetv3_small_100", decoder_channels=64).train()
    images, labels = torch.randn(batch, 3, height, width), blocky_labels(batch, height, width)

    def student(gradient: Gradient) -> tuple[float, float]:
        """Seconds without the solve, and of the solve."""
        times = [time.perf_counter()]
        log_p = resize_logits(network(images).logits, (height, width)).log_softmax(1)
        times.append(time.perf_counter())
        sums = statistics_from_log_probabilities(log_p, labels, gradient=gradient)
        weights = weights_from(sums, gradient=gradient)
        times.append(time.perf_counter())
        total, _ = negative_log_likelihood(log_p, labels, class_weights=weights)
        (total / labels.numel()).backward()
        network.zero_grad()
        times.append(time.perf_counter())
        return times[1] - times[0] + times[3] - times[2], times[2] - times[1]

    @torch.no_grad()
    def teacher() -> float:
        began = time.perf_counter()
        pseudo_labels(resize_logits(network(images).logits, (height, width)), 0.968)
        return time.perf_counter() - began

    seconds: dict[str, list[float]] = {name: [] for name in ("student", "teacher", *get_args(Gradient))}
    for _ in range(rounds):
        for gradient in get_args(Gradient):
            bare, solve = student(gradient)
            seconds["student"].append(bare)
            seconds[gradient].append(solve)
        seconds["teacher"].append(teacher())
    return {name: statistics.median(values[3:]) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 256), metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--save", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()

    result: dict[str, Any] = {"threads": torch.get_num_threads(), "solvers": solvers(arguments.steps)}
    row = result["solvers"]
    print(
        f"{CLASSES} classes: closed form {1e6 * row['closed_form']:.0f} us, SLSQP {1e6 * row['slsqp']:.0f} us, ratio "
        f"{row['ratio']:.1f}, largest difference {row['largest_difference']:.1e}"
    )
    height, width = arguments.size
    seconds = passes_and_solves(arguments.batch_size, height, width, arguments.steps)
    result["seconds"], result["share_of_step"] = seconds, {}
    print("  ".join(f"{name} {1e3 * value:.1f} ms" for name, value in seconds.items()))
    for host, students in (("DAFormer", 2), ("MIC", 3)):
        step = students * seconds["student"] + seconds["teacher"]
        shares = {gradient: students * seconds[gradient] / step for gradient in get_args(Gradient)}
        result["share_of_step"][host] = shares
        print(f"{host:8s} " + "  ".join(f"{gradient} {share:.1%}" for gradient, share in shares.items()))
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
