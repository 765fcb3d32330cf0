from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from numpy.typing import NDArray
from small_features import ConvFeatures
from small_pool import SIZES, Painter, Pool, campaign, prepare, total
from test_herding import plain_loop
from torch import Tensor

from adaptseg.active import TwoStageEDALD
from adaptseg.active.herding import median_length_scale
from adaptseg.active.ranks import salt_of
from adaptseg.active.scores import random_score
from adaptseg.classes import VOID
from adaptseg.data import DomainPair
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.scenes import Scenes
from adaptseg.errors import AdaptSegError
from adaptseg.networks.feature_bank import FeatureBank, fixed_sample

Bought = dict[str, NDArray[np.bool_]]
SEED, ROUNDS, CANDIDATES, PICKS, KEEP, DRAWS, SCALE = 5, 4, 30, 6, 0.5, 3, 0.4


class PointPainter(LightningModule):
    """Class probabilities are a fixed function of a pixel's features."""

    def __init__(self, scenes: Scenes, folder: Path | None = None, constant: bool = False) -> None:
        super().__init__()
        self.head = torch.nn.Parameter(4 * torch.randn(7, 4, generator=torch.Generator().manual_seed(3)))
        network = ConvFeatures(constant=constant)
        self.bank = FeatureBank(lambda: network, scenes, None, IMAGENET_MEAN, IMAGENET_STD, folder)
        key = min(scenes.keys)
        self.source = self.bank.at(key, fixed_sample(0, "source", key, self.bank.size(key), 9))

    @property
    def pool_features(self) -> FeatureBank:
        return self.bank

    def probabilities_at(self, features: Tensor, *, dropout: torch.Generator | None = None) -> Tensor:
        logits = features @ self.head
        if dropout is not None:
            logits = logits * (torch.rand(logits.shape, generator=dropout) >= 0.3)
        return logits.softmax(1)

    def probabilities_everywhere(self, key: str, *, draw: int = 0, dropout: torch.Generator | None = None) -> Tensor:
        height, width = self.bank.size(key)
        everywhere = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        return self.probabilities_at(self.bank.at(key, everywhere, draw=draw, keep=False), dropout=dropout)

    def source_features(self) -> Tensor:
        return self.source


class Broken(PointPainter):
    def probabilities_at(self, features: Tensor, *, dropout: torch.Generator | None = None) -> Tensor:
        return super().probabilities_at(features, dropout=dropout).index_fill(1, torch.tensor([2]), math.nan)


def edald(**changed: Any) -> TwoStageEDALD:
    given = {
        "budget": 16,
        "budget_unit": "pixels",
        "rounds": ROUNDS,
        "candidates": CANDIDATES,
        "local_picks": PICKS,
        "keep": KEEP,
        "draws": DRAWS,
        "length_scale": SCALE,
        "seed": SEED,
    }
    return TwoStageEDALD(**{**given, **changed})


def run(folder: Path, acquisition: TwoStageEDALD, **options: Any) -> list[Bought]:
    pool = options.pop("pool", None) or Pool()
    module = options.pop("module", None) or PointPainter(pool)
    return campaign(acquisition, folder, pool=pool, module=module, **options)


# ---- the loop, written out


def entropy(p: NDArray[np.float64]) -> float:
    return -sum(v * math.log(v) for v in p.tolist() if v > 0)


class Reference:
    """Every step anew for every pixel, in float64."""

    def __init__(self, acquisition: TwoStageEDALD, pool: Scenes) -> None:
        self.a, self.pool, self.model = acquisition, pool, PointPainter(pool)
        self.keys = sorted(pool.keys)
        self.labelled: dict[str, set[int]] = {key: set() for key in self.keys}

    def features(self, key: str, flat: list[int], draw: int = 0) -> Tensor:
        width = self.pool.size(key)[1]
        yx = torch.tensor([[f // width, f % width] for f in flat], dtype=torch.int64).reshape(-1, 2)
        return self.model.bank.at(key, yx, draw=draw)

    def all_features(self, points: list[tuple[str, int]]) -> Tensor:
        return torch.cat([torch.empty(0, 7), *(self.features(key, [flat]) for key, flat in points)])

    def candidates(self, key: str, everywhere: bool) -> list[int]:
        yx = fixed_sample(0, "candidates", key, self.pool.size(key), 10**4 if everywhere else CANDIDATES)
        flat = [int(y) * self.pool.size(key)[1] + int(x) for y, x in yx]
        void = self.pool.labels(key).reshape(-1) == VOID if self.a.forbid_void else np.zeros(10**4, bool)
        return [f for f in flat if f not in self.labelled[key] and not void[f]]

    def scale(self, features: Tensor, name: str) -> float:
        if self.a.length_scale != "median":
            return float(self.a.length_scale)
        return median_length_scale(features, generator=torch.Generator().manual_seed(salt_of(0, name) % 2**63))

    def round(self, number: int, count: int) -> dict[str, list[int]]:
        stages = self.a.stages if number else ["local", "global"] if self.a.first_round == "herding" else ["score"]
        left = []
        for key in self.keys:
            flat = self.candidates(key, self.a.all_pixels and stages == ["score"])
            if "local" in stages and len(flat) > PICKS:
                features = self.features(key, flat)
                chosen, _ = plain_loop(features, PICKS, self.scale(features, f"local/{key}"))
                flat = sorted(flat[i] for i in chosen)
            left += [(key, f) for f in flat]
        if "global" in stages:
            left = self.globally_herded(left, round(KEEP * len(left)) if "score" in stages else count, number)
        if "score" in stages:
            score = self.a.score if number else "random"
            value = {point: self.score(*point, score, number) for point in left}
            left = sorted(left, key=lambda point: (-value[point], self.keys.index(point[0]), point[1]))[:count]
        for key, f in left:
            assert f not in self.labelled[key]
            self.labelled[key].add(f)
        return {key: sorted(f for k, f in left if k == key) for key in self.keys}

    def globally_herded(self, points: list[tuple[str, int]], count: int, number: int) -> list[tuple[str, int]]:
        known = self.all_features([(key, f) for key in self.keys for f in sorted(self.labelled[key])])
        if self.a.condition_on_source:
            known = torch.cat([known, self.model.source])
        features = self.all_features(points)
        if self.a.global_by == "k_center":
            return [points[i] for i in sorted(farthest_first(features, min(count, len(points)), known))]
        scale = self.scale(torch.cat([features, known]), f"global/{number}")
        chosen, _ = plain_loop(features, min(count, len(points)), scale, known)
        return [points[i] for i in sorted(chosen)]

    def probabilities(self, features: Tensor) -> NDArray[np.float64]:
        return self.model.probabilities_at(features).detach().double().numpy()

    def score(self, key: str, flat: int, name: str, number: int) -> float:
        width = self.pool.size(key)[1]
        uniform = float(
            random_score(self.pool.size(key), seed=SEED, round=number, key=key)[flat // width, flat % width]
        )
        p = self.probabilities(self.features(key, [flat]))[0]
        first, second = sorted(p)[::-1][:2]
        drawn = [p]
        if "dald" in name:
            drawn = [self.probabilities(self.features(key, [flat], draw=k))[0] for k in range(1, DRAWS + 1)]
        mutual = entropy(np.mean(drawn, 0)) - sum(map(entropy, drawn)) / len(drawn)
        value = {
            "random": uniform,
            "entropy": entropy(p),
            "margin": second - first + 1,
            "least_confidence": 1 - first,
            "dald": mutual,
            "edald": mutual + entropy(p),
            "power_dald": math.log(max(mutual, 1e-9)) - math.log(-math.log(uniform)),
        }[name]
        if self.a.balance and number:
            counts = np.zeros(4)
            for k in self.keys:
                for f in self.labelled[k]:
                    if (c := self.pool.labels(k).reshape(-1)[f]) != VOID:
                        counts[c] += 1
            value *= max(1 - counts[p.argmax()] / (16 / 4), self.a.epsilon)
        return value


def assert_as_written_out(folder: Path, acquisition: TwoStageEDALD, pool: Scenes | None = None, b: int = 4) -> None:
    pool = pool or Pool()
    reference = Reference(acquisition, pool)
    for number, bought in enumerate(run(folder, acquisition, pool=pool)):
        expected = reference.round(number, b)
        found = {key: np.flatnonzero(mask).tolist() for key, mask in bought.items()}
        assert found == expected, f"round {number + 1}"
        assert total(bought) == b


SUBSETS = [
    ["local", "global", "score"], ["local", "global"], ["global"], ["score"], ["local", "score"], ["global", "score"],
]  # fmt: skip


@pytest.mark.parametrize("stages", SUBSETS, ids="-".join)
def test_any_subset_of_stages(tmp_path: Path, stages: list[Any]):
    assert_as_written_out(tmp_path, edald(stages=stages))


@pytest.mark.parametrize(
    "score", ["random", "entropy", "margin", "least_confidence", "dald", "power_dald"]
)  # edald: above  # fmt: skip
def test_scores(tmp_path: Path, score: Any):
    assert_as_written_out(tmp_path, edald(score=score, stages=["local", "score"]))


@pytest.mark.parametrize("given", [
    {"score": "margin"}, {"score": "edald"}, {"score": "random", "first_round": "random"},
    {"score": "entropy", "forbid_void": True, "first_round": "random"},
], ids=lambda given: given["score"])  # fmt: skip
def test_the_score_alone_may_rank_every_pixel(tmp_path: Path, given: dict[str, Any]):
    """What the released command cannot run (specification, T17). The first round still herds candidates."""
    small = Pool({"a": (5, 7), "b": (8, 5)})
    assert_as_written_out(tmp_path, edald(stages=["score"], all_pixels=True, **given), small)


def test_every_pixel_by_dropout_depends_on_seed_round_and_image(tmp_path: Path):
    given = {"stages": ["score"], "all_pixels": True, "score": "bald"}
    runs = [run(tmp_path / str(i), edald(**given, seed=seed)) for i, seed in enumerate((5, 5, 6))]
    same = [all((runs[0][r][k] == other[r][k]).all() for r in range(4) for k in SIZES) for other in runs[1:]]
    assert same == [True, False]


def test_ranking_every_pixel_keeps_no_features(tmp_path: Path):
    pool = Pool()
    acquisition = edald(stages=["score"], all_pixels=True, score="dald", first_round="random")
    run(tmp_path / "run", acquisition, pool=pool, module=PointPainter(pool, tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*draw1*"))


def test_length_scale_by_the_median(tmp_path: Path):
    assert_as_written_out(tmp_path, edald(length_scale="median"))


def test_random_first_round(tmp_path: Path):
    assert_as_written_out(tmp_path, edald(stages=["score"], score="random", first_round="random"))


def test_source_counts_as_covered(tmp_path: Path):
    assert_as_written_out(tmp_path / "a", edald(condition_on_source=True, stages=["local", "global"]))
    with_source = run(tmp_path / "b", edald(condition_on_source=True))
    without = run(tmp_path / "c", edald())
    assert any((with_source[0][key] != without[0][key]).any() for key in SIZES)


def farthest_first(features: Tensor, count: int, known: Tensor) -> list[int]:
    """k-centre, distance by distance."""
    centres, chosen = list(known.double()), list[int]()
    x = features.double()
    for _ in range(count):
        if centres:
            distance = torch.stack([(x - centre).norm(dim=1) for centre in centres]).amin(0)
        else:
            distance = -(x - x.mean(0)).norm(dim=1)
        distance[chosen] = -math.inf
        chosen.append(int(distance.argmax()))
        centres.append(x[chosen[-1]])
    return chosen


@pytest.mark.parametrize("stages", [["local", "global"], ["local", "global", "score"]])
def test_k_centre_in_place_of_global_herding(tmp_path: Path, stages: Any):
    assert_as_written_out(tmp_path, edald(global_by="k_center", stages=stages))
    with pytest.raises(AdaptSegError, match=r"active\.global_by is about global herding"):
        edald(global_by="k_center", stages=["score"], first_round="random")


@pytest.mark.parametrize("score", ["entropy", "edald", "random"])
def test_rare_classes_first(tmp_path: Path, score: Any):
    assert_as_written_out(tmp_path, edald(score=score, balance=True, stages=["local", "score"]))


def test_void_pixels_are_left_out_where_they_are_known(tmp_path: Path):
    pool = Pool()
    assert_as_written_out(tmp_path / "known", edald(forbid_void=True), pool)
    unknown = run(tmp_path / "unknown", edald(stages=["score"], first_round="random"), pool=pool)
    for bought in run(tmp_path / "again", edald(forbid_void=True), pool=pool):
        assert not any((pool.labels(key)[mask] == VOID).any() for key, mask in bought.items())
    assert any((pool.labels(key)[mask] == VOID).any() for bought in unknown for key, mask in bought.items())


@pytest.mark.parametrize("score", ["bald", "ebald", "power_bald"])
def test_draws_by_dropout_depend_on_seed_round_and_image(tmp_path: Path, score: Any):
    def bought(name: str, seed: int) -> list[dict[str, list[int]]]:
        torch.manual_seed(len(name))  # the global random state does not matter
        found = run(tmp_path / name, edald(score=score, stages=["score"], seed=seed))
        return [{key: np.flatnonzero(mask).tolist() for key, mask in r.items()} for r in found]

    assert bought("one", 1) == bought("again", 1) != bought("another seed", 2)


# ---- when, and how much


@pytest.mark.parametrize(
    ("given", "per_round"),
    [
        ({"budget": 16, "budget_unit": "pixels"}, 4),
        ({"budget": 3, "budget_unit": "pixels_per_image"}, 3),
        ({"budget": 20 / 2523, "budget_unit": "fraction"}, 5),
        ({"budget": 14, "budget_unit": "pixels"}, round(3.5)),
    ],
)
def test_budgets(tmp_path: Path, given: dict[str, Any], per_round: int):
    assert [total(bought) for bought in run(tmp_path, edald(**given))] == [per_round] * ROUNDS


def test_rounds_fire_before_the_first_step_and_after_equal_parts():
    assert edald().round_steps(20, 5) == [0, 5, 10, 15]
    assert edald(rounds=1).round_steps(20, 20) == [0]
    for steps, tick in ((22, 1), (20, 2)):
        with pytest.raises(AdaptSegError, match=rf"trainer.max_steps {steps} in 4 rounds: give a multiple of 4 whose"):
            edald().round_steps(steps, tick)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budget": 0}, "active.budget is 0; a positive number"),
        ({"budget": math.nan}, "active.budget is nan"),
        ({"rounds": 0}, "active.rounds is 0"),
        ({"stages": []}, "active.stages is"),
        ({"stages": ["local"]}, "active.stages is"),
        ({"stages": ["global", "local"]}, "active.stages is"),
        ({"stages": ["score", "score"]}, "active.stages is"),
        ({"candidates": 0}, "active.candidates is 0"),
        (
            {"all_pixels": True},
            r"active.all_pixels is about rounds of the score alone; active.stages is .*give \[score\]",
        ),
        ({"local_picks": 0}, "active.local_picks is 0"),
        ({"keep": 0.0}, "active.keep is 0.0"),
        ({"keep": 1.1}, "active.keep is 1.1"),
        ({"draws": 1}, "active.draws is 1; 2 or more are expected for edald"),
        ({"length_scale": 0.0}, "active.length_scale is 0.0"),
        ({"length_scale": math.inf}, "active.length_scale is inf"),
        ({"epsilon": 0}, "active.epsilon is 0"),
        ({"balance": True, "stages": ["global"]}, "active.balance weights scores, but active.stages has none"),
        ({"balance": True, "score": "power_dald"}, "power_dald has negative ones"),
        (
            {"condition_on_source": True, "stages": ["score"], "first_round": "random"},
            "active.condition_on_source is about global herding",
        ),
    ],
)
def test_wrong_arguments_say_what_is_allowed(given: dict[str, Any], said: str):
    with pytest.raises(AdaptSegError, match=said):
        edald(**given)


@pytest.mark.parametrize("budget", [1, 4 * CANDIDATES + 4])
def test_budgets_out_of_reach_are_refused(tmp_path: Path, budget: int):
    with pytest.raises(AdaptSegError, match=r"pixels in 4 rounds, of 120 candidates; give at least one a round and no"):
        run(tmp_path, edald(budget=budget))


def test_a_method_without_point_features_is_refused(tmp_path: Path):
    with pytest.raises(AdaptSegError, match="TwoStageEDALD needs features of single pixels, which model: Painter does"):
        prepare(edald(), DomainPair(target=Pool(), workers=0), tmp_path, Painter())


# ---- bad pools


@pytest.mark.parametrize("stages", SUBSETS[:2], ids="-".join)
def test_fewer_candidates_than_picks_are_all_kept(tmp_path: Path, stages: list[Any]):
    """And the whole pool can be bought, none of it twice."""
    pool = Pool({"a": (4, 5), "b": (5, 4)})
    bought = run(tmp_path, edald(stages=stages, candidates=None, local_picks=50, keep=1.0, budget=40), pool=pool)
    assert [total(r) for r in bought] == [10] * 4
    assert all(sum(r[key].astype(int) for r in bought).max() == 1 for key in ("a", "b"))  # type: ignore[union-attr]


def test_an_image_without_open_pixels_is_passed_over(tmp_path: Path):
    empty = np.full((21, 34), VOID, np.uint8)
    pool = Pool(labels_of={"city/b": empty})
    for stages in SUBSETS:
        bought = run(tmp_path / "-".join(stages), edald(stages=stages, forbid_void=True), pool=pool)
        assert [total(r) for r in bought] == [4] * 4
        assert not any(r["city/b"].any() for r in bought)


def test_too_few_candidates_are_all_bought_and_the_rest_carried_over(tmp_path: Path):
    """Half of 8 local picks pass global herding, of 5 wanted."""
    acquisition = edald(local_picks=2, budget=20)
    with pytest.warns(UserWarning, match="round 2: 4 candidates for 5 pixels; all are bought"):
        prepare_and_fire(acquisition, tmp_path)


def prepare_and_fire(acquisition: TwoStageEDALD, folder: Path) -> None:
    bought = run(folder, acquisition, rounds=2)
    assert [total(r) for r in bought] == [5, 4]
    assert acquisition.per_round(dict(SIZES)) * 3 - acquisition.store.spent(2) == 6


def test_equal_features_go_to_the_first_pixels(tmp_path: Path):
    pool = Pool()
    acquisition = edald(length_scale="median", stages=["global"])
    (first, *_) = run(tmp_path / "one", acquisition, pool=pool, module=PointPainter(pool, constant=True))
    candidates = fixed_sample(0, "candidates", "city/a", SIZES["city/a"], CANDIDATES)
    flat = sorted(int(y) * 34 + int(x) for y, x in candidates)
    assert np.flatnonzero(first["city/a"]).tolist() == flat[:4]
    whole = edald(length_scale="median")
    bought = run(tmp_path / "two", whole, pool=pool, module=PointPainter(pool, constant=True))
    assert [total(r) for r in bought] == [4] * 4


def test_scores_that_are_no_number_name_the_image(tmp_path: Path):
    with pytest.raises(AdaptSegError, match=r"active.score entropy is NaN at \d+ pixels of image 'city/a'"):
        run(tmp_path, edald(score="entropy", stages=["score"]), module=Broken(Pool()))


def test_the_cache_changes_nothing(tmp_path: Path):
    for score in ("edald", "ebald"):
        plain = run(tmp_path / score, edald(score=score))
        for turn in ("filled", "used"):
            module = PointPainter(Pool(), folder=tmp_path / "cache")
            again = run(tmp_path / score / turn, edald(score=score), module=module)
            assert all((a[key] == b[key]).all() for a, b in zip(plain, again, strict=True) for key in SIZES)


def test_queries_leave_no_maps_behind(tmp_path: Path):
    module = PointPainter(Pool())
    run(tmp_path, edald(), module=module)
    assert module.bank._maps is None


def test_history_names_what_each_round_spent(tmp_path: Path):
    acquisition = edald()
    trainer, _ = prepare(acquisition, DomainPair(target=Pool(), workers=0), tmp_path, PointPainter(Pool()))
    assert isinstance(trainer, Trainer)
    (row,) = acquisition.history
    assert (row["round"], row["step"], row["spent_before"], row["spent"]) == (1, 0, 0, 4)
