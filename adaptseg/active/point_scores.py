"""What makes a candidate pixel worth buying, by name: `scores` on rows of pixels instead of maps (pure)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from adaptseg.active import scores

PointScore = Literal[
    "random", "entropy", "margin", "least_confidence",
    "dald", "edald", "power_dald", "edald_released", "balanced_entropy", "balanced_entropy_released",
    "bald", "ebald", "power_bald", "balanced_entropy_dropout",
]  # fmt: skip
"""`dald` and what follows draw by fresh noise in the features, `bald` and what follows by dropout on the logits; the
formulas are the same. `_released` are those of the released code, errors included."""

BY_DROPOUT: dict[str, PointScore] = {
    "bald": "dald",
    "ebald": "edald",
    "power_bald": "power_dald",
    "balanced_entropy_dropout": "balanced_entropy",
}
"""-> the formula shared with draws by noise."""
WITHOUT_DRAWS = ("random", "entropy", "margin", "least_confidence")
MAYBE_NEGATIVE = (
    "power_dald", "power_bald", "balanced_entropy", "balanced_entropy_dropout", "balanced_entropy_released",
)  # fmt: skip


def point_score(name: PointScore, fixed: Tensor, drawn: Tensor | None, uniform: Tensor) -> Tensor:
    """Scores (n,) float32, higher = buy.

    Args:
        fixed: (n, C) probabilities of the pass with the fixed noise and without dropout.
        drawn: (K, n, C) probabilities of the stochastic passes; None for `WITHOUT_DRAWS`.
        uniform: (n,) random numbers in [0, 1) on the device of `fixed`, for `random` and the power scores.
    """
    match BY_DROPOUT.get(name, name):
        case "random":
            return uniform.float()
        case "entropy":
            return scores.entropy(fixed, dim=-1)
        case "margin":
            # In [0, 1] like least confidence, so that class weights rank it as they rank every other score.
            return scores.margin(fixed, dim=-1) + 1
        case "least_confidence":
            return scores.least_confidence(fixed, dim=-1)
        case formula:
            assert drawn is not None
            return _score_by_draws(formula, fixed, drawn, uniform)


def _score_by_draws(formula: PointScore, fixed: Tensor, drawn: Tensor, uniform: Tensor) -> Tensor:
    match formula:
        case "dald":
            return scores.mutual_information(drawn, dim=-1)
        case "edald":
            return scores.edald(drawn, fixed, dim=-1)
        case "edald_released":
            return scores.edald_released(drawn, fixed, dim=-1)
        case "power_dald":
            return scores.power_score(scores.mutual_information(drawn, dim=-1), uniform)
        case "balanced_entropy":
            return scores.balanced_entropy(drawn, dim=-1, denominator="paper")
        case "balanced_entropy_released":
            return scores.balanced_entropy(drawn, dim=-1, denominator="released")
        case _:
            raise ValueError(f"'{formula}' is no score by draws")
