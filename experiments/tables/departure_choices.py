"""What departures of two-stage eDALD's released code change in what is bought (for departures.py): scores, herding, and
the features of the first round.

Every function of a group returns {departure: numbers}; a list holds a value for each head, image or random state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fixed_state import (
    CANDIDATES,
    LOCAL,
    PICKS,
    SIZE,
    Lesson,
    State,
    bank_of,
    candidates_of,
    drawn_features,
    herded,
    herded_image,
    learn,
    yx,
)
from released_faults import FirstRoundFeatures, chunked_herding, float16_herding, mispaired
from scipy.stats import spearmanr
from torch import Tensor

from adaptseg.active import scores
from adaptseg.active.herding import max_herding, median_length_scale
from adaptseg.active.point_scores import point_score
from adaptseg.classes import VOID
from adaptseg.data.scenes import Scenes
from adaptseg.methods.head_training import HeadTraining
from adaptseg.metrics import label_balance_entropy
from adaptseg.networks.feature_bank import fixed_sample
from adaptseg.networks.feature_maps import DiffusionFeatures

SEEDS = (0, 1, 2)
DRAWS, DROPOUT = 5, 0.2
NOISES = 20
"""Random states over which power scores and other lengths of scale are averaged."""

# ---- comparisons


def spearman(a: Tensor, b: Tensor) -> float | None:
    """Rank correlation of two scores (n,); None where one of them ranks nothing."""
    if a.min() == a.max() or b.min() == b.max():
        return None
    found: Any = spearmanr(a.double().numpy(), b.double().numpy())
    return float(found.statistic)


def top(score: Tensor, count: int) -> Tensor:
    """Indices of the largest scores; of equals the first, as in the package."""
    return score.sort(descending=True, stable=True).indices[:count]


def in_common(a: Tensor, b: Tensor) -> float:
    """Per cent of the picks `a` that are among `b`."""
    return 100 * float(torch.isin(a, b).double().mean())


def coverage(features: Tensor, centres: Tensor, length_scale: float) -> float:
    """Mean over (n, D) of the largest kernel value to one of the centres (m, D), in 0..1."""
    nearest = torch.cat([torch.cdist(part.double(), centres.double()).amin(1) for part in features.split(2048)])
    return float(nearest.square().mul(-1 / length_scale**2).exp().mean())


def advantage(value: float, exact: float, random: float) -> float:
    """Per cent of herding's advantage over random picks that is left."""
    return 100 * (value - random) / (exact - random)


def bought(state: State, points: Tensor) -> dict[str, float]:
    """Label balance, and void among the points in per cent."""
    labels = state.truth[points]
    counts = torch.bincount(labels[labels != VOID], minlength=state.num_classes)
    return {"balance": label_balance_entropy(counts), "void": 100 * float((labels == VOID).double().mean())}


def compared(state: State, formula: Tensor, released: Tensor) -> dict[str, Any]:
    """Two scores of the candidates: ranks, picks in common, and what would be bought by each."""
    ours, theirs = top(formula, PICKS), top(released, PICKS)
    return {
        "spearman": spearman(formula, released),
        "in_common": in_common(theirs, ours),
        "formula": bought(state, state.kept[ours]),
        "released": bought(state, state.kept[theirs]),
    }


# ---- scores


def score_group(state: State) -> dict[str, Any]:
    """Released scores against the formulas', on the candidates of the sixth round, for three heads."""
    drawn = drawn_features(state, state.kept, DRAWS)
    by_head = [_scores_of_head(state, drawn, seed) for seed in SEEDS]
    return {name: [one[name] for one in by_head] for name in by_head[0]}


@torch.no_grad()
def _scores_of_head(state: State, drawn: Tensor, seed: int) -> dict[str, Any]:
    random = torch.Generator().manual_seed(seed)
    rows = state.features(state.kept)
    with torch.enable_grad():
        head = learn(state, state.labelled, seed).last
        dropped = learn(state, state.labelled, seed, Lesson(HeadTraining(dropout=DROPOUT))).last
    fixed = head(rows).softmax(1)
    noisy = torch.stack([head(part.float()).softmax(1) for part in drawn])
    clean = dropped(rows)
    kept = torch.rand((DRAWS, *clean.shape), generator=random) >= DROPOUT
    masked = (clean * kept / (1 - DROPOUT)).softmax(2)
    uniform = torch.rand(len(rows), generator=random)

    def score(name: Any, certain: Tensor = fixed, draws: Tensor = noisy) -> Tensor:
        return point_score(name, certain, draws, uniform)

    same = torch.stack([clean.softmax(1)] * DRAWS)  # FAULT (T2b): dropout off, all passes alike
    nothing = torch.zeros(len(rows))  # FAULT (T2): NaN everywhere leaves the candidates in their order
    shared = torch.cat([fixed[None], noisy[1:]])  # FAULT (T15): the first fresh noise is the fixed one
    information = score("dald")
    return {
        "edald_released": {
            **compared(state, score("edald"), score("edald_released")),
            "entropy_and_formula": spearman(score("entropy"), score("edald")),
            "entropy_and_released": spearman(score("entropy"), score("edald_released")),
            "information": float(information.mean()),
            "entropy": float(score("entropy").mean()),
        },
        "balanced_entropy_released": {
            **compared(state, score("balanced_entropy"), score("balanced_entropy_released")),
            **_signs(score("balanced_entropy"), scores.entropy(noisy.mean(0), dim=1)),
        },
        "balanced_entropy_nan": {
            **compared(state, score("balanced_entropy"), nothing),
            "images": len((state.kept[:PICKS] // CANDIDATES).unique()),
        },
        "bald_without_dropout": compared(state, score("bald", clean.softmax(1), masked), nothing),
        "ebald_without_dropout": compared(
            state, score("ebald", clean.softmax(1), masked), score("ebald", clean.softmax(1), same)
        ),
        "shared_seed": compared(state, score("edald"), score("edald", fixed, shared)),
        "pareto": _power(information, random),
    }


def _signs(balanced: Tensor, entropy: Tensor) -> dict[str, float]:
    """Per cent of the candidates without a finite score, with a negative one, and with a negative released
    denominator, all from the formula's score and the entropy of the mean draw."""
    finite = balanced.isfinite()
    balance = torch.where(balanced > 0, 1 / balanced, balanced)[finite]
    denominator = balance * (entropy[finite] + math.log(2)) + entropy[finite]
    shares = {"not_finite": ~finite, "negative": balanced[finite] < 0, "negative_denominator": denominator < 0}
    return {name: 100 * float(share.double().mean()) for name, share in shares.items()}


def _power(information: Tensor, random: torch.Generator) -> dict[str, Any]:
    """Rank correlation of the power scores with the information, and its mean over the picks relative to all."""
    found: dict[str, list[float]] = {"gumbel": [], "pareto": [], "gumbel_picks": [], "pareto_picks": []}
    for _ in range(NOISES):
        uniform = torch.rand(len(information), generator=random)
        for name, formula in (("gumbel", scores.power_score), ("pareto", scores.power_score_released)):
            value = formula(information, uniform)
            found[name].append(spearman(information, value) or 0.0)
            found[f"{name}_picks"].append(float(information[top(value, PICKS)].mean() / information.mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


# ---- herding


def herding_group(state: State) -> dict[str, Any]:
    """Herding as released against exact herding on the same features."""
    every = torch.arange(len(state.keys))
    return {
        "float16": _float16(state, every[:: max(1, len(every) // 60)].tolist(), CANDIDATES, LOCAL),
        "float16_larger": _float16(state, every[:: max(1, len(every) // 8)].tolist(), 4 * CANDIDATES, 5 * LOCAL),
        "chunks": _chunks(state),
        "length_scale": _length_scale(state, every[:: max(1, len(every) // 60)].tolist()),
    }


def _float16(state: State, images: Sequence[int], candidates: int, picks: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {"in_common": [], "advantage": [], "tied": []}
    for image in images:
        key = state.keys[image]
        x = state.bank.at(key, fixed_sample(0, "candidates", key, SIZE, candidates))
        random = torch.Generator().manual_seed(image)
        scale = median_length_scale(x, generator=random)
        exact, _ = max_herding(x, picks, length_scale=scale)
        rounded, tied = float16_herding(x, picks, scale)
        found["in_common"].append(in_common(rounded, exact))
        found["advantage"].append(_advantage(x, rounded, exact, scale, random))
        found["tied"].append(100 * tied / picks)
    return {"images": len(images), "candidates": candidates, "picks": picks, **found}


def _chunks(state: State) -> dict[str, Any]:
    """Of global herding, for the share kept for the score and for the 37 of a round."""
    x, known = state.features(state.left), state.features(state.labelled)
    found: dict[str, Any] = {}
    for name, picks in (("kept", len(state.kept)), ("round", PICKS)):
        random = torch.Generator().manual_seed(0)
        scale = median_length_scale(torch.cat([x, known]), generator=random)
        exact, _ = max_herding(x, picks, length_scale=scale, conditioned_on=known)
        apart = [chunked_herding(x, picks, scale, known, random) for _ in SEEDS]
        found[name] = {
            "in_common": [in_common(one, exact) for one in apart],
            "advantage": [_advantage(x, one, exact, scale, random, known) for one in apart],
            "by_chance": 100 * picks / len(x),
        }
    return found


def _length_scale(state: State, images: Sequence[int]) -> dict[str, Any]:
    """Subsets of another random state: picks of each image, then of all."""
    found: dict[str, list[float]] = {"local": [], "local_advantage": [], "global": [], "spread": []}
    for image in images:
        x = state.features(image * CANDIDATES + torch.arange(CANDIDATES))
        random = torch.Generator().manual_seed(image)
        ours, theirs = (median_length_scale(x, generator=random) for _ in range(2))
        exact, _ = max_herding(x, LOCAL, length_scale=ours)
        other, _ = max_herding(x, LOCAL, length_scale=theirs)
        found["local"].append(in_common(other, exact))
        found["local_advantage"].append(_advantage(x, other, exact, ours, random))
        found["spread"].append(100 * abs(theirs / ours - 1))
    x, known = state.features(state.left), state.features(state.labelled)
    for seed in SEEDS:
        random = torch.Generator().manual_seed(seed)
        scale = median_length_scale(torch.cat([x, known]), generator=random)
        other, _ = max_herding(x, len(state.kept), length_scale=scale, conditioned_on=known)
        found["global"].append(in_common(state.left[other], state.kept))
    return found


def _advantage(
    x: Tensor, picks: Tensor, exact: Tensor, scale: float, random: torch.Generator, known: Tensor | None = None
) -> float:
    """Of the mean of five random choices, `known` points being centres in any case."""
    base = x[:0] if known is None else known

    def covered(chosen: Tensor) -> float:
        return coverage(x, torch.cat([base, x[chosen]]), scale)

    chance = np.mean([covered(torch.randperm(len(x), generator=random)[: len(exact)]) for _ in range(5)])
    return advantage(covered(picks), covered(exact), float(chance))


# ---- the features of the first round


def first_round_group(state: State, denoiser: str, scenes: Scenes) -> dict[str, Any]:
    """What herding buys first on the features that the release reads then, judged on the features of later rounds."""
    steps = (50, 150, 250)
    variants: dict[str, DiffusionFeatures] = {
        "unit_range": FirstRoundFeatures(denoiser, steps, unit_range=True, fresh_noise=False),
        "fresh_noise": FirstRoundFeatures(denoiser, steps, unit_range=False, fresh_noise=True),
        "one_timestep": DiffusionFeatures(denoiser, steps[:1]),
        "all": FirstRoundFeatures(denoiser, steps[:1], unit_range=True, fresh_noise=True),
    }
    judged = torch.arange(0, len(state.truth), 10)  # every tenth candidate is to be covered
    truth = state.features(judged)
    scale = median_length_scale(truth, generator=torch.Generator().manual_seed(0))
    ours = state.labelled[:PICKS]
    random = torch.Generator().manual_seed(0)
    chance = [
        coverage(truth, state.features(torch.randperm(len(state.truth), generator=random)[:PICKS]), scale)
        for _ in range(NOISES)
    ]
    exact = coverage(truth, state.features(ours), scale)

    def result(picks: Tensor, local: Tensor) -> dict[str, float]:
        value = coverage(truth, state.features(picks), scale)
        return {
            "in_common": in_common(picks, ours),
            "local_in_common": in_common(local.flatten(), state.local.flatten()),
            "advantage": advantage(value, exact, float(np.mean(chance))),
            "images": len((picks // CANDIDATES).unique()),
            **bought(state, picks),
        }

    found: dict[str, Any] = {"ours": result(ours, state.local)}
    found["mispaired"] = result(_first_picks(state.table.points, state.local, mispaired(state.local)), state.local)
    for name, features in variants.items():
        bank = bank_of(features, scenes)
        points = torch.cat([bank.at(key, yx(candidates_of(key))).half() for key in state.keys])
        local = torch.stack([herded_image(points, i, key) for i, key in enumerate(state.keys)])
        found[name] = result(_first_picks(points, local, mispaired(local) if name == "all" else local), local)
    return {**found, "random": [advantage(c, exact, float(np.mean(chance))) for c in chance]}


def _first_picks(points: Tensor, local: Tensor, positions: Tensor) -> Tensor:
    """Points (37,) bought where rows `local` (N, 10) are chosen by, and taken for, `positions` (N, 10)."""
    rows, order = local.flatten().sort()
    chosen = herded(points[rows].float(), PICKS, "global/0")
    return positions.flatten()[order[chosen]]
