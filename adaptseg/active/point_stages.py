"""What the stages of two-stage eDALD do with the pixels of one image: herding, and stochastic passes of the head."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptseg.active import herding
from adaptseg.active.point_scores import BY_DROPOUT, WITHOUT_DRAWS, PointScore
from adaptseg.active.ranks import salt_of
from adaptseg.networks.feature_bank import FeatureBank

LengthScale = Literal["median"] | float
"""`median` = twice the median distance of a hundredth of the points, or a number."""


class PointPredictor(Protocol):
    """What an acquisition of points needs of a method: features of single pixels, and a head that reads them."""

    @property
    def pool_features(self) -> FeatureBank: ...

    def probabilities_at(self, features: Tensor, *, dropout: torch.Generator | None = None) -> Tensor: ...

    def probabilities_everywhere(
        self, key: str, *, draw: int = 0, dropout: torch.Generator | None = None
    ) -> Tensor: ...

    def source_features(self) -> Tensor: ...


def yx_of(flat: NDArray[np.int64], width: int) -> Tensor:
    """(n, 2) int64 rows and columns of flat positions in an image of that width."""
    return torch.from_numpy(np.stack(np.divmod(flat, width), 1))


def length_scale_of(rule: LengthScale, features: Tensor, name: str) -> float:
    """Length scale of the herding kernel for features (n, D); the points measured are drawn for `name`, not for a seed,
    so that runs share what follows from them."""
    if not isinstance(rule, str):
        return rule
    generator = torch.Generator().manual_seed(salt_of(0, name) % 2**63)
    return herding.median_length_scale(features, generator=generator)


def locally_herded(
    bank: FeatureBank, key: str, flat: NDArray[np.int64], picks: int, rule: LengthScale
) -> NDArray[np.int64]:
    """The `picks` of these pixels of one image that represent the others best, sorted; all if there are no more.

    The bank remembers them: they change only where pixels were bought since.
    """
    if len(flat) <= picks:
        return flat
    width = bank.size(key)[1]

    def pick() -> NDArray[np.int64]:
        features = bank.at(key, yx_of(flat, width), keep=False)
        scale = length_scale_of(rule, features, f"local/{key}")
        chosen, _ = herding.max_herding(features, picks, length_scale=scale)
        picked = np.sort(flat[chosen.cpu().numpy()])
        bank.at(key, yx_of(picked, width))  # kept now, while the maps are at hand
        return picked

    settings = {"candidates": flat.tolist(), "local_picks": picks, "length_scale": rule}
    return bank.remembered(key, settings, pick)


def passes(
    method: PointPredictor,
    key: str,
    flat: NDArray[np.int64],
    score: PointScore,
    *,
    draws: int,
    offered: NDArray[np.int64] | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None]:
    """What a score is computed from: (n, C) probabilities of pixels of one image in the fixed pass, and (draws, n, C)
    in stochastic ones, None if the score needs none.

    Args:
        offered: pixels whose features are kept (sorted, a superset); None = each pass is over all pixels of the image,
            and no feature is kept.
        generator: of the masks of dropout.
    """
    if offered is None:
        return _dense_passes(method, key, flat, score, draws, generator)
    bank = method.pool_features
    fixed = method.probabilities_at(bank.at(key, yx_of(flat, bank.size(key)[1])))
    if score in WITHOUT_DRAWS:
        return fixed, None
    if score in BY_DROPOUT:
        return fixed, drawn_by_dropout(method, key, flat, draws, generator)
    return fixed, drawn_by_noise(method, key, flat, offered, draws)


def _dense_passes(
    method: PointPredictor,
    key: str,
    flat: NDArray[np.int64],
    score: PointScore,
    draws: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None]:
    rows = torch.from_numpy(flat)
    fixed = method.probabilities_everywhere(key)
    rows = rows.to(fixed.device)
    if score in WITHOUT_DRAWS:
        return fixed[rows], None
    if score in BY_DROPOUT:
        every = (method.probabilities_everywhere(key, dropout=generator) for _ in range(draws))
    else:
        every = (method.probabilities_everywhere(key, draw=k) for k in range(1, draws + 1))
    return fixed[rows], torch.stack([p[rows] for p in every])


def drawn_by_dropout(
    method: PointPredictor, key: str, flat: NDArray[np.int64], draws: int, generator: torch.Generator
) -> Tensor:
    """(draws, n, C) probabilities of pixels of one image, with dropout on the logits."""
    bank = method.pool_features
    features = bank.at(key, yx_of(flat, bank.size(key)[1]))
    return torch.stack([method.probabilities_at(features, dropout=generator) for _ in range(draws)])


def drawn_by_noise(
    method: PointPredictor, key: str, flat: NDArray[np.int64], offered: NDArray[np.int64], draws: int
) -> Tensor:
    """(draws, n, C) probabilities of pixels of one image, with fresh noise in the features.

    Read for all `offered` pixels (sorted, a superset), though herding left some out: they may come back in a later
    round, and one look at the maps of a draw serves them all.
    """
    bank = method.pool_features
    every = yx_of(offered, bank.size(key)[1])
    where = torch.from_numpy(np.searchsorted(offered, flat))
    features = (bank.at(key, every, draw=k) for k in range(1, draws + 1))
    return torch.stack([method.probabilities_at(f[where.to(f.device)]) for f in features])
