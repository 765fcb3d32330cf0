"""MaxHerding, its weighted form and k-centre: which points represent all others best (pure functions).

MaxHerding (Bae et al., ECCV 2024) picks greedily for the coverage

    C(S) = 1/n sum_i w_i max_{s in S} k(x_i, x_s),    k(x, y) = exp(-|x - y|^2 / length_scale^2),

UHerding (ICLR 2025) is the same with uncertainties as weights w. The gain of a point only falls while S grows
(submodularity), so a gain computed earlier bounds it from above. Points whose bound is beaten need no new look, and
only rows whose best representative changes lower the bounds of all (two-stage eDALD specification 9.3). Gains decide in
float64, from kernel columns in float64; only bounds are computed in the features' own precision, rounded upwards. So
the picks are those of the plain float64 loop, although most of the work is float32, and though never more than `block`
kernel rows exist at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adaptseg.errors import AdaptSegError

TIE_TOLERANCE = 1e-9
"""Gains closer than this, relative to the sum of weights, are equal: two points that only represent each other have
equal gains in theory and differ by rounding. The lowest index wins (specification 9.3, "Ties are structural")."""
NO_DISTANCE_LENGTH_SCALE = 2.0
"""Length scale of features that are all equal (released code)."""
_PROBES = 16
"""Kernel rows computed in both precisions to learn the rounding error of the device, TF32 included."""
_CHUNK = 4096
"""Points widened to float64 at a time, so that wide features are never held twice."""


def max_herding(
    features: Tensor,
    budget: int,
    *,
    length_scale: float,
    conditioned_on: Tensor | None = None,
    weights: Tensor | None = None,
    block: int = 256,
) -> tuple[Tensor, Tensor]:
    """The greedy maximiser of the coverage, pick by pick; every point is both candidate and to be covered.

    Equals the plain loop in float64 for every `block`. Among gains within `TIE_TOLERANCE` of the largest the lowest
    index wins. Some 5 to 10 n^2 kernel values are computed in total, whatever the budget.

    Args:
        features: (n, D) floating, finite, on any device. Distances below float64 are those of the values given; unit
            norm is the usual choice but not required.
        budget: picks b, 0..n; take min(K, n) yourself where fewer points than K are welcome.
        length_scale: positive and finite; see `median_length_scale`, `smallest_distance`.
        conditioned_on: (l, D) points that represent already (what is labelled); l may be 0.
        weights: (n,) finite, >= 0, or None = 1; a point of weight 0 need not be covered but can be picked.
        block: kernel rows in memory at a time (n x block values); a matter of memory and speed, not of results.

    Returns:
        indices (b,) int64 in pick order, gains (b,) float64: what each pick added to the coverage, never rising by
        more than the tolerance. Both on the features' device.
    """
    search = HerdingSearch(features, length_scale, conditioned_on, weights, block)
    return search.pick(_require_budget(budget, len(features)))


def k_center(features: Tensor, budget: int, *, conditioned_on: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Greedy k-centre (coreset; Sener and Savarese, ICLR 2018): always the point farthest from all chosen ones.

    Without `conditioned_on` the first pick is the point nearest to the mean. Distances in float64; equal ones: lowest
    index.

    Args:
        features: (n, D) floating, finite.
        budget: picks b, 0..n.
        conditioned_on: (l, D) points that are centres already; l may be 0.

    Returns:
        indices (b,) int64 in pick order, distances (b,) float64: of each pick from the centres before it (the first
        without any: infinite). After b picks every point is nearer to a centre than the last distance, or as near.
    """
    _require_features(features)
    budget = _require_budget(budget, len(features))
    conditioned_on = _require_conditioned_on(conditioned_on, features)
    squared = torch.full((len(features),), math.inf, dtype=torch.float64, device=features.device)
    for point in conditioned_on:
        torch.minimum(squared, _squared_distances(features, point), out=squared)
    indices, distances = [], []
    for i in range(budget):
        if i == 0 and not len(conditioned_on):
            from_mean = _squared_distances(features, features.double().mean(0))
            chosen = _first(from_mean == from_mean.min())
        else:
            chosen = _first(squared == squared.max())
        indices.append(chosen)
        distances.append(squared[chosen].sqrt())
        torch.minimum(squared, _squared_distances(features, features[chosen]), out=squared)
        squared[chosen] = -1  # below every distance: never again
    picked = torch.tensor(indices, dtype=torch.int64, device=features.device)
    return picked, torch.stack(distances) if distances else squared[:0]


def median_length_scale(
    features: Tensor, *, generator: torch.Generator, share: float = 0.01, at_least: int = 10
) -> float:
    """Two-stage eDALD's rule: twice the median positive distance between the points of a random subset (released code).

    Args:
        features: (n, D) floating, finite.
        generator: on the CPU; draws the subset. One generator per image keeps local picks equal between rounds (T14).
        share: of the points that are drawn, in (0, 1].
        at_least: points drawn at least, if there are as many.

    Returns:
        The length scale; `NO_DISTANCE_LENGTH_SCALE` where no distance is positive.
    """
    _require_features(features)
    if not 0 < share <= 1 or at_least < 2:
        raise AdaptSegError(f"share is {share}, at_least {at_least}; give 0 < share <= 1 and at_least >= 2")
    count = min(len(features), max(round(share * len(features)), at_least))
    chosen = torch.randperm(len(features), generator=generator)[:count].to(features.device)
    distances = torch.pdist(features[chosen].double())
    distances = distances[distances > 0].sort().values
    if not len(distances):
        return NO_DISTANCE_LENGTH_SCALE
    return float(distances[(len(distances) - 1) // 2] + distances[len(distances) // 2])  # 2 x mean of both middles


def smallest_distance(labelled: Tensor, *, default: float = 1.0) -> float:
    """UHerding's rule: the smallest positive distance inside the labelled set, which shrinks while that set grows.

    Args:
        labelled: (l, D) floating, finite; unit norm where `default` is to mean what it means in the paper.
        default: where no distance is positive; 1 is MaxHerding's fixed length scale on unit-norm features.
    """
    _require_features(labelled)
    smallest = math.inf
    for i in range(1, len(labelled)):
        squared = _squared_distances(labelled[:i], labelled[i])
        smallest = min(smallest, float(torch.where(squared > 0, squared, math.inf).min()))
    return math.sqrt(smallest) if smallest < math.inf else default


class HerdingSearch:
    """The state of one greedy search; `max_herding` is the way in, this class shows what it cost.

    Attributes:
        covered: (n,) float64, the largest kernel value of each point to a chosen or labelled one.
        kernel_rows: rows (or columns) of n kernel values computed so far.
    """

    def __init__(
        self, features: Tensor, length_scale: float, conditioned_on: Tensor | None, weights: Tensor | None, block: int
    ) -> None:
        _require_features(features)
        conditioned_on = _require_conditioned_on(conditioned_on, features)
        if not (math.isfinite(length_scale) and length_scale > 0):
            raise AdaptSegError(f"length_scale is {length_scale}; give a positive, finite number")
        if block < 1:
            raise AdaptSegError(f"block is {block}; give 1 or more kernel rows")
        n = len(features)
        self.kernel_rows = 0
        self._features, self._scale, self._block = features, float(length_scale), block
        self._weights = _require_weights(weights, features)
        self._tolerance = TIE_TOLERANCE * float(self._weights.sum())
        # Distances do not change, but less cancels in |a|^2 + |b|^2 - 2ab around the mean.
        self._mean = torch.zeros(features.shape[1:], dtype=torch.float64, device=features.device)
        for chunk in features.split(_CHUNK):
            self._mean += chunk.double().sum(0) / max(n, 1)
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        self._fast = torch.cat([self._centred(c).to(dtype) for c in features.split(_CHUNK)]) if n else features
        self._fast_norms = self._fast.square().sum(1)
        # One chunk is kept as it is read again and again; more would be the features twice over, in float64.
        self._kept = self._centred(features) if 0 < n <= _CHUNK else None
        self.covered = torch.zeros(n, dtype=torch.float64, device=features.device)
        for points in conditioned_on.split(block) if len(conditioned_on) else ():
            torch.maximum(self.covered, self._columns(points).amax(0), out=self.covered)
        self._alive = torch.ones(n, dtype=torch.bool, device=features.device)
        self._error = self._rounding_error() if n else 0.0
        self._bounds = self._initial_bounds()

    def pick(self, budget: int) -> tuple[Tensor, Tensor]:
        """The next `budget` picks: indices, gains as of `max_herding`."""
        indices: list[int] = []
        gains: list[float] = []
        width = min(16, self._block)
        while len(indices) < budget:
            bound = float(self._bounds.where(self._alive, -math.inf).max())
            if bound <= self._tolerance:  # all that is left ties at nothing, for good
                rest = self._alive.nonzero().flatten()[: budget - len(indices)]
                self._alive[rest] = False
                indices += rest.tolist()
                gains += [0.0] * len(rest)
                break
            candidates, columns = self._contenders(width)
            accepted = self._accept(candidates, columns, budget - len(indices))
            indices += [i for i, _ in accepted]
            gains += [gain for _, gain in accepted]
            # Wide enough for a run of picks, without columns that nobody uses.
            width = min(2 * len(accepted) + 8, self._block)
        picked = torch.tensor(indices, dtype=torch.int64, device=self._features.device)
        return picked, self.covered.new_tensor(gains) / max(len(self._features), 1)

    def _contenders(self, width: int) -> tuple[Tensor, Tensor]:
        """Candidates with their kernel columns (rows here), the next pick among them: bounds are made exact until no
        inexact one reaches the best gain. Ties are all looked at, though only `block` columns are kept.
        """
        exact = torch.zeros_like(self._alive)
        while True:
            stale = self._bounds.where(self._alive & ~exact, -math.inf)
            count = min(width, int((stale > -math.inf).sum()))
            candidates = stale.topk(count).indices.sort().values
            columns = self._columns(self._features[candidates])
            self._bounds[candidates] = (columns - self.covered).clamp_(min=0) @ self._weights
            exact[candidates] = True
            gains = self._bounds.where(exact, -math.inf)
            least = float(gains.max()) - self._tolerance
            if float(stale.index_fill_(0, candidates, -math.inf).max()) < least:
                break
            width = min(2 * width, self._block)
        best = _first(gains >= least)
        if not bool((candidates == best).any()):
            candidates = torch.tensor([best], device=candidates.device)
            columns = self._columns(self._features[candidates])
        return candidates, columns

    def _accept(self, candidates: Tensor, columns: Tensor, budget: int) -> list[tuple[int, float]]:
        """Picks among the candidates for as long as nobody else can be better, or equal and earlier."""
        gains = self._bounds[candidates]
        outside = self._bounds.where(self._alive, -math.inf).index_fill_(0, candidates, -math.inf).max()
        before = self.covered.clone()
        accepted: list[tuple[int, float]] = []
        indices = candidates.tolist()
        while len(accepted) < min(budget, len(indices)):
            least = gains.max() - self._tolerance
            if accepted and not bool(outside < least):
                break
            j = _first(gains >= least)
            accepted.append((indices[j], float(gains[j])))
            rows = (columns[j] > self.covered).nonzero().flatten()
            near, old, weights = columns[:, rows], self.covered[rows], self._weights[rows]
            new = near[j]
            gains = gains - (near - old).clamp_(min=0).minimum(new - old) @ weights
            gains[j] = -math.inf
            self.covered[rows] = new
            self._alive[indices[j]] = False
        self._lower_bounds(before, candidates, columns)
        self._bounds[candidates] = gains
        return accepted

    def _lower_bounds(self, before: Tensor, candidates: Tensor, columns: Tensor) -> None:
        """Take from every bound what the rows represented better than `before` took from its gain, rounded down."""
        # Leaving a row out leaves a bound a bound; a rise below the rounding error would take nothing.
        changed = ((self.covered - before > self._error) & (self._weights > 0)).nonzero().flatten()
        at_hand = torch.isin(changed, candidates)  # the picks themselves among them: their kernel rows are columns
        rows = changed[at_hand]
        self._take(rows, columns[torch.searchsorted(candidates, rows)].to(self._fast.dtype), before)
        for rows in changed[~at_hand].split(self._block):
            self._take(rows, self._fast_rows(rows), before)
        self._bounds.clamp_(min=0)

    def _take(self, rows: Tensor, kernel: Tensor, before: Tensor) -> None:
        """A row that was covered to m and is now covered to m' takes relu(k - m) - relu(k - m') = clamp(k - m, 0,
        m' - m); `kernel` (r, n) holds its kernel values and is overwritten.
        """
        dtype, unit = kernel.dtype, torch.finfo(kernel.dtype).eps
        kernel -= (before[rows] + self._error).to(dtype)[:, None]
        kernel.clamp_(min=0)
        torch.minimum(kernel, ((self.covered - before)[rows] * (1 - unit)).to(dtype)[:, None], out=kernel)
        kernel *= self._weights[rows].to(dtype)[:, None]
        self._bounds -= kernel.sum(0).double() * (1 - 2 * unit * math.sqrt(len(rows)))

    def _initial_bounds(self) -> Tensor:
        bounds = torch.zeros_like(self.covered)
        dtype, unit = self._fast.dtype, torch.finfo(self._fast.dtype).eps
        for rows in torch.arange(len(bounds), device=bounds.device).split(self._block) if len(bounds) else ():
            gained = self._fast_rows(rows)
            gained -= (self.covered[rows] - self._error).to(dtype)[:, None]
            gained.clamp_(min=0)
            gained *= self._weights[rows].to(dtype)[:, None]
            bounds += gained.sum(0).double() * (1 + 2 * unit * math.sqrt(len(rows)))
        return bounds

    def _rounding_error(self) -> float:
        """How far fast kernel values lie from exact ones: measured, as it depends on TF32 and on the norms."""
        n = len(self._features)
        probes = torch.linspace(0, n - 1, min(_PROBES, n), device=self._features.device).long()
        worst = (self._fast_rows(probes) - self._columns(self._features[probes])).abs().max()
        return float(worst) + torch.finfo(self._fast.dtype).eps

    def _fast_rows(self, rows: Tensor) -> Tensor:
        """(r, n) kernel values in the features' precision."""
        self.kernel_rows += len(rows)
        squared = (self._fast[rows] @ self._fast.T).to(self._fast.dtype).mul_(-2)
        squared += self._fast_norms
        squared += self._fast_norms[rows, None]
        return squared.clamp_(min=0).mul_(-1 / self._scale**2).exp_()

    def _columns(self, points: Tensor) -> Tensor:
        """(p, n) kernel values of p points in float64."""
        self.kernel_rows += len(points)
        points = self._centred(points)
        norms = points.square().sum(1, keepdim=True)
        columns = norms.new_empty(len(points), len(self._features))
        for start in range(0, len(self._features), _CHUNK):
            chunk = self._kept if self._kept is not None else self._centred(self._features[start : start + _CHUNK])
            squared = torch.addmm(norms + chunk.square().sum(1), points, chunk.T, alpha=-2)
            columns[:, start : start + _CHUNK] = squared.clamp_(min=0).mul_(-1 / self._scale**2).exp_()
        return columns

    def _centred(self, x: Tensor) -> Tensor:
        return x.double() - self._mean


def _first(mask: Tensor) -> int:
    """Index of the first True."""
    return int(mask.int().argmax())  # of equal values argmax takes the first


def _squared_distances(features: Tensor, point: Tensor) -> Tensor:
    """(n,) float64, by differences: exactly 0 between equal points."""
    return torch.cat([(c.double() - point.double()).square().sum(1) for c in features.split(_CHUNK)])


def _require_budget(budget: int, n: int) -> int:
    if not 0 <= budget <= n:
        raise AdaptSegError(f"budget is {budget} with {n} points; give 0 to {n}")
    return budget


def _require_features(features: Tensor, name: str = "features") -> None:
    if features.ndim != 2 or not features.is_floating_point():
        raise AdaptSegError(f"{name} are {features.dtype} {tuple(features.shape)}; give floating (points, dimensions)")
    if not all(bool(chunk.isfinite().all()) for chunk in features.split(_CHUNK)):
        raise AdaptSegError(f"{name} hold NaN or infinite values; give finite ones")


def _require_conditioned_on(conditioned_on: Tensor | None, features: Tensor) -> Tensor:
    if conditioned_on is None:
        return features[:0]
    _require_features(conditioned_on, "conditioned_on")
    if conditioned_on.shape[1] != features.shape[1] or conditioned_on.device != features.device:
        given, wanted = tuple(conditioned_on.shape), ("any", features.shape[1])
        raise AdaptSegError(f"conditioned_on is {given} on {conditioned_on.device}; give {wanted} on {features.device}")
    return conditioned_on


def _require_weights(weights: Tensor | None, features: Tensor) -> Tensor:
    if weights is None:
        return torch.ones(len(features), dtype=torch.float64, device=features.device)
    if weights.shape != features.shape[:1]:
        raise AdaptSegError(f"weights have shape {tuple(weights.shape)}; give one per point, ({len(features)},)")
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise AdaptSegError("weights hold negative, NaN or infinite values; give finite ones >= 0")
    return weights.to(features.device, torch.float64)
