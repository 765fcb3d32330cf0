"""CBDA and RIPU's acquisition, driven round by round against naive replays (CBDA specification, 3.9 and 5)."""

from __future__ import annotations

import inspect
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule
from scipy import ndimage
from small_pool import SIZES, TABLE, Painter, Pool, Sealed, campaign, prepare, set_step, total
from torch import nn
from torch.nn import functional

from adaptseg.active import CBDA, scores
from adaptseg.active.oracles import GroundTruth, Oracle
from adaptseg.classes import VOID
from adaptseg.data import DomainPair
from adaptseg.errors import AdaptSegError
from adaptseg.metrics import label_balance_entropy

PIXELS = sum(h * w for h, w in SIZES.values())
Bought = list[dict[str, np.ndarray]]

pytestmark = pytest.mark.filterwarnings("ignore:GPU available but not used")


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is most of the time of these tests; storage has tests of its own."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[key], other[key]) for key in {*one, *other})


def probabilities(module: LightningModule, data: DomainPair, key: str) -> np.ndarray:
    """What the module sees of one pool scene, float64 (C, H, W)."""
    (batch,) = [b for b in data.pool_loader(0, 1) if b.keys == [key]]
    with torch.no_grad():
        return module.predict_probabilities(batch.image, size=data.pool_grid(key))[0, 0].double().numpy()


# ---- independent scores, weights and replays, float64


def window_mean(x: np.ndarray, radius: int) -> np.ndarray:
    ones = ndimage.convolve(np.ones_like(x), np.ones((2 * radius + 1,) * 2), mode="constant")
    return ndimage.convolve(x, np.ones((2 * radius + 1,) * 2), mode="constant") / ones


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p + 1e-6)).sum(0)


def naive_score(p: np.ndarray, score: str, radius: int, mode: str = "region") -> np.ndarray:
    if score == "entropy":
        return -(p * np.log(p)).sum(0)
    first, second = np.sort(p, 0)[-1], np.sort(p, 0)[-2]
    if score == "margin":
        return 1 + second - first
    if score == "least_confidence":
        return 1 - first
    shares = np.stack([window_mean((p.argmax(0) == c).astype(float), radius) for c in range(len(p))])
    impurity = np.maximum(entropy(shares), 0)
    uncertainty = np.maximum(entropy(p), 0)
    if mode == "pixel":
        return impurity * uncertainty
    return impurity * np.maximum(window_mean(uncertainty, radius), 0) / math.log(len(p)) ** 2


def naive_weights(truth: list[np.ndarray], target: float, epsilon: float) -> np.ndarray:
    counts = np.array([sum((labels == c).sum() for labels in truth) for c in range(TABLE.num_classes)])
    return np.maximum(1 - counts / target, epsilon)


def assert_best_of_pool(bought: Bought, acquisition: CBDA, *, module: LightningModule | None = None) -> None:
    """Replay a campaign over the pool by single pixels: every round bought exactly K of the highest weighted scores."""
    pool, module = Pool(), module or Painter()
    data = DomainPair(target=pool, workers=0)
    maps = {key: probabilities(module, data, key) for key in pool.keys}
    before = {key: np.zeros(size, bool) for key, size in SIZES.items()}
    budget, rounds, spent = acquisition.total_budget(PIXELS, len(SIZES)), acquisition.rounds, 0
    for number, masks in enumerate(bought, 1):
        share = number / rounds if acquisition.class_target == "cumulative" else 1
        weights = naive_weights(
            [pool.labels(key)[before[key]] for key in pool.keys],
            share * budget / TABLE.num_classes,
            acquisition.epsilon,
        )
        if not acquisition.balance:
            weights = np.ones_like(weights)
        chosen, left = [], []
        for key, p in maps.items():
            weight = weights[p.argmax(0)]
            if acquisition.weight_by == "region":
                weight = window_mean(weight, acquisition.radius)
            value = weight * naive_score(p, acquisition.score, acquisition.radius, acquisition.mode)
            assert not (masks[key] & before[key]).any()
            chosen.append(value[masks[key]])
            left.append(value[~masks[key] & ~before[key]])
            before[key] = before[key] | masks[key]
        wanted = round(number * budget / rounds) - spent
        assert total(masks) == wanted
        spent += wanted
        assert np.concatenate(chosen).min() >= np.concatenate(left).max(initial=0) - 1e-6
    if len(bought) == rounds:
        assert spent == budget


# ---- which pixels


@pytest.mark.parametrize("score", ["entropy", "margin", "least_confidence", "ripu"])
@pytest.mark.parametrize("balance", [True, False])
def test_every_score_buys_the_best_pixels_of_the_whole_pool(tmp_path: Path, score: Any, balance: bool):
    acquisition = CBDA(budget=0.3, score=score, unit="pixel", balance=balance)
    assert_best_of_pool(campaign(acquisition, tmp_path), acquisition)


@pytest.mark.parametrize(
    "settings",
    [
        {"class_target": "cumulative"},
        {"weight_by": "region"},
        {"weight_by": "region", "class_target": "cumulative", "radius": 2},
        {"epsilon": 0.5},
        {"epsilon": 1.0},
        {"mode": "pixel", "radius": 4},
        {"budget": 900, "budget_unit": "pixels"},
        {"budget": 211.5, "budget_unit": "pixels_per_image"},
        {"schedule": [0.1, 0.2, 0.9]},
        {"schedule": "original", "budget": 1.0},
    ],
)
def test_every_switch_of_class_balance_against_a_replay(tmp_path: Path, settings: dict[str, Any]):
    acquisition = CBDA(**{"budget": 0.2, "unit": "pixel", **settings})
    # A skewed predictor, so that classes are filled and the weights reach epsilon.
    module = Painter(bias=(1.0, 0.0, -0.5, 0.0))
    assert_best_of_pool(campaign(acquisition, tmp_path, module=module), acquisition, module=module)


def test_weights_use_the_predicted_class_and_the_true_counts(tmp_path: Path):
    """Trap 3. Prediction and truth are exchanged: where a is predicted b is true, and the other way round."""
    left_to_right = np.tile(np.r_[np.zeros(30, np.uint8), np.ones(10, np.uint8)], (10, 1))

    class Exchanged(Painter):
        def predict_probabilities(self, images: torch.Tensor, *, size: Any, draws: Any = 1, generator: Any = None):
            predicted = torch.from_numpy(1 - left_to_right.astype(np.int64))
            certain = functional.one_hot(predicted, 4).movedim(-1, 0).float()
            return (0.7 * certain + 0.075)[None, None]

    pool = Pool({"x": (10, 40)}, labels_of={"x": left_to_right})
    # Round 1 buys half the budget: a share of 3/4 true a, more than a's quota of 160 / 4 = 40 pixels.
    acquisition = CBDA(budget=160, budget_unit="pixels", unit="pixel", score="entropy", schedule=[0.2, 0.4])
    first, second = campaign(acquisition, tmp_path, pool=pool, module=Exchanged())
    counts = np.bincount(left_to_right[first["x"]], minlength=2)
    assert counts[0] > 40 > counts[1]
    # True a is exhausted, so what is *predicted* a, the right part, is bought last although its truth b is wanted.
    assert left_to_right[second["x"]].max() == 0


def test_round_one_is_unweighted(tmp_path: Path):
    cbda, da = (
        campaign(CBDA(budget=0.2, balance=balance), tmp_path / str(balance), rounds=2) for balance in (True, False)
    )
    assert same(cbda[0], da[0])
    assert not same(cbda[1], da[1])


@pytest.mark.parametrize("selection", ["pool", "image"])
def test_equal_weights_change_nothing(tmp_path: Path, selection: Any):
    weighted, plain = (
        campaign(CBDA(budget=0.3, balance=balance, epsilon=1.0, selection=selection), tmp_path / str(balance))
        for balance in (True, False)
    )
    assert all(map(same, weighted, plain))


def greedy(score: np.ndarray, count: int, forbidden: np.ndarray, r: int) -> list[tuple[int, int]]:
    """RIPU's loop; `forbidden` is changed."""
    picks = []
    for _ in range(count):
        open_score = np.where(forbidden, -np.inf, score)
        if open_score.max() == -np.inf:
            break
        y, x = np.unravel_index(open_score.argmax(), score.shape)
        picks.append((int(y), int(x)))
        forbidden[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1] = True
    return picks


def square_mask(size: tuple[int, int], picks: list[tuple[int, int]], k: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    for y, x in picks:
        mask[max(0, y - k) : y + k + 1, max(0, x - k) : x + k + 1] = True
    return mask


@pytest.mark.parametrize(("radius", "suppress"), [(1, None), (1, 5), (2, None)])
def test_image_selection_with_ceil_is_ripus_loop(tmp_path: Path, radius: int, suppress: int | None):
    acquisition = CBDA(
        budget=0.15, selection="image", rounding="ceil", balance=False, radius=radius, suppress_radius=suppress
    )
    bought = campaign(acquisition, tmp_path)
    pool = Pool()
    data, r = DomainPair(target=pool, workers=0), 2 * radius if suppress is None else suppress
    for key, size in SIZES.items():
        p = torch.from_numpy(probabilities(Painter(), data, key)).float()
        score = scores.ripu(p, radius).numpy()
        count = math.ceil(size[0] * size[1] * 0.15 / 5 / (2 * radius + 1) ** 2)
        forbidden = np.zeros(size, bool)
        for masks in bought:
            np.testing.assert_array_equal(masks[key], square_mask(size, greedy(score, count, forbidden, r), radius))


def test_ripu_by_pixels_buys_centres_alone(tmp_path: Path):
    """PA: 32 pixels round a pick are blocked, here 6."""
    settings: dict[str, Any] = {"budget": 4, "budget_unit": "pixels_per_image", "mode": "pixel", "unit": "pixel"}
    acquisition = CBDA(
        **settings, radius=6, suppress_radius=6, selection="image", rounding="ceil", balance=False, schedule=[0.3, 0.6]
    )
    bought = campaign(acquisition, tmp_path)
    average = PIXELS / len(SIZES)
    for key, (height, width) in SIZES.items():
        count = math.ceil(4 * height * width / average / 2)
        assert [int(masks[key].sum()) for masks in bought] == [count, count]


@pytest.mark.parametrize("size", [(21, 34), (40, 13)])
def test_one_image_with_equal_weights_da_equals_ripu(tmp_path: Path, size: tuple[int, int]):
    """Oracle of 3.9, up to the rounding of the number of regions."""
    da, ra = (
        campaign(CBDA(budget=0.2, balance=False, selection=selection), tmp_path / selection, pool=Pool({"x": size}))
        for selection in ("pool", "image")
    )
    assert all(map(same, da, ra))


def test_regions_over_the_pool_against_a_naive_replay(tmp_path: Path):
    acquisition = CBDA(budget=0.2)
    bought = campaign(acquisition, tmp_path)
    pool, budget = Pool(), acquisition.total_budget(PIXELS, len(SIZES))
    data = DomainPair(target=pool, workers=0)
    maps = {key: torch.from_numpy(probabilities(Painter(), data, key)).float() for key in pool.keys}
    centres: dict[str, list[tuple[int, int]]] = {key: [] for key in pool.keys}
    before = {key: np.zeros(size, bool) for key, size in SIZES.items()}
    for number, masks in enumerate(bought, 1):
        spent = sum(int(mask.sum()) for mask in before.values())
        count = (round(number * budget / 5) - spent) // 9
        weights = naive_weights([pool.labels(key)[before[key]] for key in pool.keys], budget / 4, 0.01)
        candidates = []
        for key, p in maps.items():
            score = scores.ripu(p, 1).numpy() * weights.astype(np.float32)[p.argmax(0).numpy()]
            forbidden = square_mask(SIZES[key], centres[key], 2)
            candidates += [(float(score[yx]), key, yx) for yx in greedy(score, count, forbidden, 2)]
        candidates.sort(key=lambda candidate: -candidate[0])
        assert candidates[count - 1][0] > candidates[count][0]  # no tie to be broken by the hash
        picked: dict[str, list[tuple[int, int]]] = {key: [] for key in pool.keys}
        for _, key, yx in candidates[:count]:
            picked[key].append(yx)
        for key, size in SIZES.items():
            np.testing.assert_array_equal(masks[key], square_mask(size, picked[key], 1))
            centres[key] += picked[key]
            before[key] |= masks[key]


# ---- how many


@pytest.mark.parametrize(
    ("budget", "max_share"), [(0.013, 1.0), (0.2, 1.0), (0.2, 0.9), (0.777, 1.0), (0.777, 0.9), (1.0, 1.0)]
)
def test_single_pixels_meet_the_budget_exactly(tmp_path: Path, budget: float, max_share: float):
    acquisition = CBDA(budget=budget, unit="pixel", max_share_per_image=max_share)
    bought = campaign(acquisition, tmp_path)
    due = [round(i * round(budget * PIXELS) / 5) for i in range(6)]
    assert [total(masks) for masks in bought] == list(np.diff(due))


@pytest.mark.parametrize("settings", [{}, {"unit": "pixel"}, {"selection": "image"}, {"radius": 3, "mode": "pixel"}])
def test_books_are_kept(tmp_path: Path, settings: dict[str, Any]):
    """Nothing is bought twice, counts and void sum to what was spent, and the labels are the truth."""
    acquisition = CBDA(**{"budget": 0.4, **settings})
    bought = campaign(acquisition, tmp_path)
    pool, store = Pool(), acquisition.store
    store.verify()
    for key in pool.keys:
        assert np.sum([masks[key] for masks in bought], axis=0).max() <= 1
    for number in range(1, 6):
        truth = np.concatenate([pool.labels(key)[store.bought(key, number)] for key in pool.keys])
        assert store.spent(number) == len(truth) == sum(map(total, bought[:number]))
        assert store.class_counts(number).tolist() == [int((truth == c).sum()) for c in range(4)]
        assert store.void(number) == (truth == VOID).sum()
    for key in pool.keys:
        mask = store.bought(key, 5)
        np.testing.assert_array_equal(store.labels(key, 5), np.where(mask, pool.labels(key), VOID))


def test_regions_never_exceed_the_budget_and_make_up_for_clipped_borders(tmp_path: Path):
    acquisition = CBDA(budget=0.3)
    bought = campaign(acquisition, tmp_path)
    budget = acquisition.total_budget(PIXELS, len(SIZES))
    spent = np.cumsum([total(masks) for masks in bought])
    due = np.array([round(i * budget / 5) for i in range(1, 6)])
    assert (spent <= due).all()
    # What a round lost at borders is due in the next one, so only the last round's loss remains.
    clipped = [sum(9 - s for s in _region_areas(masks)) for masks in bought]
    assert (due - spent <= np.array(clipped) + 8).all()


def _region_areas(masks: dict[str, np.ndarray]) -> list[int]:
    """Areas of bought 3 x 3 squares, clipped ones included: what touches is taken apart by the number of squares."""
    areas = []
    for mask in masks.values():
        labelled, n = ndimage.label(mask)
        for area in ndimage.sum_labels(mask, labelled, range(1, n + 1)).astype(int).tolist():
            squares = -(-area // 9)
            areas += [area // squares] * squares
    return areas


@pytest.mark.parametrize("budget", [0.11, 0.2, 0.333])
@pytest.mark.parametrize("unit", ["pixel", "region"])
def test_image_selection_exact_never_exceeds_an_images_budget(tmp_path: Path, budget: float, unit: Any):
    bought = campaign(CBDA(budget=budget, unit=unit, selection="image"), tmp_path)
    for key, (height, width) in SIZES.items():
        spent = np.cumsum([masks[key].sum() for masks in bought])
        due = round(budget * PIXELS) * height * width / PIXELS * np.arange(1, 6) / 5
        assert (spent <= due + 1e-6).all()
        if unit == "pixel":
            assert (spent > due - 1).all()


def test_shares_split_the_budget(tmp_path: Path):
    acquisition = CBDA(
        budget=1000, budget_unit="pixels", unit="pixel", schedule=[0.2, 0.4, 0.6], shares=[0.5, 0.2, 0.3]
    )
    assert [total(masks) for masks in campaign(acquisition, tmp_path)] == [500, 200, 300]


@pytest.mark.parametrize(("unit", "budget", "spent"), [("pixels", 777, 777), ("pixels_per_image", 40, 160)])
def test_budget_units(tmp_path: Path, unit: Any, budget: float, spent: int):
    bought = campaign(CBDA(budget=budget, budget_unit=unit, unit="pixel"), tmp_path)
    assert sum(map(total, bought)) == spent


@pytest.mark.parametrize("unit", ["pixel", "region"])
def test_max_share_per_image_caps_every_image(tmp_path: Path, unit: Any):
    class Drawn(Painter):
        """Uncertain about the tall scene alone: without a cap it would receive everything."""

        def predict_probabilities(self, images: torch.Tensor, *, size: Any, draws: Any = 1, generator: Any = None):
            p = super().predict_probabilities(images, size=size)
            return p if size == SIZES["tall"] else torch.softmax(30 * p, 2)

    settings: dict[str, Any] = {"budget": 0.12, "unit": unit, "score": "entropy", "balance": False}
    free = campaign(CBDA(**settings), tmp_path / "free", module=Drawn())
    capped = campaign(CBDA(**settings, max_share_per_image=0.25), tmp_path / "capped", module=Drawn())
    cap = 0.25 * 35 * 13
    assert sum(masks["tall"].sum() for masks in free) > cap
    assert cap - 9 < sum(masks["tall"].sum() for masks in capped) <= cap
    if unit == "pixel":
        assert sum(map(total, capped)) == round(0.12 * PIXELS)  # the rest goes to the others


def test_forbid_void_buys_no_void(tmp_path: Path):
    for unit in ("pixel", "region"):
        for selection in ("pool", "image"):
            acquisition = CBDA(budget=0.3, unit=unit, selection=selection, forbid_void=True)
            campaign(acquisition, tmp_path / unit / selection)
            assert acquisition.store.void(5) == 0
            assert acquisition.store.spent(5) == acquisition.store.class_counts(5).sum() > 0.25 * PIXELS
    faithful = CBDA(budget=0.3, unit="pixel")
    campaign(faithful, tmp_path / "faithful")
    assert faithful.store.void(5) > 0


@pytest.mark.parametrize("forbid_void", [False, True])
def test_a_pool_that_runs_out_is_bought_whole_with_a_word(tmp_path: Path, forbid_void: bool):
    """Edge case 4: take all, warn, carry nothing; the round after it is empty and harmless."""
    pool = Pool()
    acquisition = CBDA(
        budget=1.0, unit="pixel", forbid_void=forbid_void, max_share_per_image=0.999, schedule=[0.1, 0.2, 0.3]
    )
    with pytest.warns(UserWarning, match=r"round 3: the pool has \d+ pixels less than the budget asks"):
        bought = campaign(acquisition, tmp_path, pool=pool)
    assert total(bought[2]) > 0
    void = sum(int((pool.labels(key) == VOID).sum()) for key in pool.keys)
    most = sum(int(0.999 * h * w) for h, w in SIZES.values())
    assert acquisition.store.spent(3) == min(most, PIXELS - void if forbid_void else PIXELS)


@pytest.mark.parametrize(("unit", "radius", "suppress"), [("pixel", 1, 3), ("region", 1, 6), ("region", 2, 4)])
@pytest.mark.parametrize("selection", ["pool", "image"])
def test_suppression_holds_within_and_between_rounds(
    tmp_path: Path, unit: Any, radius: int, suppress: int, selection: Any
):
    acquisition = CBDA(
        budget=0.15 if radius == 2 else 0.04,
        unit=unit,
        radius=radius,
        suppress_radius=suppress,
        selection=selection,
        schedule=[0.2, 0.4],
    )
    first, second = campaign(acquisition, tmp_path)
    half = radius if unit == "region" else 0
    for key in SIZES:
        # Squares whose centres are more than r apart have pixels more than r - 2k apart.
        reach = ndimage.maximum_filter(first[key], 2 * (suppress - 2 * half) + 1)
        assert not (reach & second[key]).any()
        if unit == "pixel":
            yx = np.argwhere(first[key] | second[key])
            apart = np.abs(yx[:, None] - yx[None]).max(-1) + 99 * np.eye(len(yx), dtype=int)
            assert (apart > suppress).all()


def test_all_scores_equal_is_settled_by_a_hash_and_not_by_file_order(tmp_path: Path):
    """Edge case 3 and trap 5."""

    class Indifferent(Painter):
        def predict_probabilities(self, images: torch.Tensor, *, size: Any, draws: Any = 1, generator: Any = None):
            return torch.full((1, 1, 4, *size), 0.25)

    sizes = dict.fromkeys("abcdef", (20, 20))
    runs = [
        campaign(CBDA(budget=0.3, unit="pixel", seed=seed), tmp_path / name, pool=Pool(sizes), module=Indifferent())
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    ]
    assert all(map(same, runs[0], runs[1]))
    assert not same(runs[0][0], runs[2][0])
    shares = [sum(int(masks[key].sum()) for masks in runs[0]) / 400 for key in sizes]
    assert all(0.2 < share < 0.4 for share in shares)


def test_random_is_another_draw_each_round_and_seed(tmp_path: Path):
    def run(seed: int, name: str) -> Bought:
        acquisition = CBDA(budget=0.5, score="random", unit="pixel", balance=False, seed=seed)
        return campaign(acquisition, tmp_path / name)

    one, again, other = run(0, "one"), run(0, "again"), run(1, "other")
    assert all(map(same, one, again))
    assert not same(one[0], other[0])
    shares = [sum(int(masks[key].sum()) for masks in one) / (h * w) for key, (h, w) in SIZES.items()]
    assert all(0.4 < share < 0.6 for share in shares)


def test_a_random_first_round_is_by_chance_and_the_next_by_score(tmp_path: Path):
    given = {"budget": 0.3, "unit": "pixel", "balance": False, "selection": "image"}
    chance = campaign(CBDA(score="random", **given), tmp_path / "chance", rounds=2)
    mixed = CBDA(score="margin", first_round="random", **given)
    bought = campaign(mixed, tmp_path / "mixed", rounds=2)
    assert same(bought[0], chance[0])
    data, first = DomainPair(target=Pool(), workers=0), bought[0]
    for key in SIZES:
        value = naive_score(probabilities(Painter(), data, key), "margin", 1)
        assert value[bought[1][key]].min() >= value[~bought[1][key] & ~first[key]].max() - 1e-6
    with pytest.raises(AdaptSegError, match=r"active.first_round is random, but active.score is random in every round"):
        CBDA(score="random", first_round="random")


def test_balance_rises_above_dynamic_acquisition_on_a_skewed_pool(tmp_path: Path):
    """Two classes 95 : 5 with equal scores. Round 1 buys 95 : 5; from round 2 on the minority is preferred."""
    rng = np.random.default_rng(0)
    sizes = dict.fromkeys("xyz", (40, 50))
    labels = {name: (rng.random(size) < 0.05).astype(np.uint8) for name, size in sizes.items()}

    class Knows(Painter):
        """Predicts the truth with the same confidence everywhere."""

        def predict_probabilities(self, images: torch.Tensor, *, size: Any, draws: Any = 1, generator: Any = None):
            truth = next(labels[key] for key in labels if torch.equal(seen[key], images))
            certain = functional.one_hot(torch.from_numpy(truth.astype(np.int64)), 4).movedim(-1, 0).float()
            return (0.8 * certain + 0.05)[None, None]

    pool = Pool(sizes, labels_of=labels)
    seen = {batch.keys[0]: batch.image for batch in DomainPair(target=pool, workers=0).pool_loader(0, 1)}
    rare, balance = {}, {}
    for balanced in (True, False):
        acquisition = CBDA(budget=0.2, unit="pixel", score="entropy", balance=balanced)
        bought = campaign(acquisition, tmp_path / str(balanced), pool=pool, module=Knows())
        rare[balanced] = [np.concatenate([labels[key][masks[key]] for key in sizes]).mean() for masks in bought]
        balance[balanced] = label_balance_entropy(torch.from_numpy(acquisition.store.class_counts(5)))
    assert 0.02 < rare[True][0] == rare[False][0] < 0.09
    assert rare[True][1] > 0.5
    assert max(rare[False]) < 0.09
    assert balance[True] > balance[False] + 0.2


# ---- when


@pytest.mark.parametrize(
    ("schedule", "published"),
    [("original", [10, 12, 14, 16, 18]), ("spread", [10, 18, 24, 28, 30])],
)
@pytest.mark.parametrize("max_steps", [20, 40, 1200, 2000, 40_000, 62_500])
def test_published_schedules_fall_on_ticks(schedule: Any, published: list[int], max_steps: int):
    tick = DomainPair(target=Pool()).tick_length(max_steps)
    steps = CBDA(schedule=schedule).round_steps(max_steps, tick)
    assert [step % tick for step in steps] == [0] * 5
    exact = [thousand * max_steps / 40 for thousand in published]
    assert tick == max_steps / 20
    assert steps == exact


@pytest.mark.parametrize(("max_steps", "tick"), [(1000, 7), (33, 2), (999, None)])
def test_other_fractions_are_rounded_up_to_ticks(max_steps: int, tick: int | None):
    tick = DomainPair(target=Pool(), tick=tick).tick_length(max_steps)
    fractions = [0.01, 0.1, 1 / 3, 0.5, 0.9]
    for fraction, step in zip(fractions, CBDA(schedule=fractions).round_steps(max_steps, tick), strict=True):
        assert step % tick == 0
        assert 0 <= step - fraction * max_steps < tick


def test_a_round_fires_at_its_tick_and_once(tmp_path: Path):
    acquisition = CBDA(budget=0.2, schedule=[0.25, 0.5])
    trainer, module = prepare(acquisition, DomainPair(target=Pool(), workers=0), tmp_path)
    fired = []
    for step in range(1, 21):
        set_step(trainer, step)
        acquisition.on_train_epoch_end(trainer, module)
        fired.append(acquisition.round)
    assert fired == [0] * 4 + [1] * 5 + [2] * 11


def test_a_round_that_is_put_off_to_its_ticks_end_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    prepare(CBDA(budget=0.2, schedule=[0.25, 0.33]), DomainPair(target=Pool(), workers=0, tick=2), tmp_path / "a")
    assert capsys.readouterr().out.splitlines() == [
        f"active.schedule: {share} of 20 steps falls inside a tick; that round fires after step {step}, at the tick's "
        "end (data.tick says how long ticks are)"
        for share, step in ((0.25, 6), (0.33, 8))
    ]
    prepare(CBDA(budget=0.2, schedule="spread"), DomainPair(target=Pool(), workers=0), tmp_path / "b")
    assert capsys.readouterr().out == ""


# ---- what must stay untouched


class Delicate(Painter):
    """Batch norm and dropout in front of the painter, part of it frozen, as a method in the middle of training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.frozen, self.dropout = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.frozen.requires_grad_(False)
        self.train()
        self.frozen.eval()

    def predict_probabilities(self, images: torch.Tensor, *, size: Any, draws: Any = 1, generator: Any = None):
        assert not torch.is_grad_enabled()
        assert not any(m.training for m in self.modules())
        torch.rand(7)  # a method that draws, from which the training must be shielded
        return super().predict_probabilities(self.dropout(self.frozen(self.norm(images))), size=size)


def test_a_round_leaves_the_training_as_it_was(tmp_path: Path):
    module = Delicate()
    acquisition = CBDA(budget=0.2, score="random", schedule=[0.25, 0.5])
    trainer, _ = prepare(acquisition, DomainPair(target=Pool(), workers=0), tmp_path, module)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        images = torch.randn(2, 3, 8, 8)
        functional.cross_entropy(
            torch.einsum("kc,bchw->bkhw", module.colors, module.norm(images)), torch.zeros(2, 8, 8, dtype=torch.long)
        ).backward()
        modes = [m.training for m in module.modules()]
        state = {name: value.clone() for name, value in module.state_dict().items()}
        gradients = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
        asks = [p.requires_grad for p in module.parameters()]
        random, numpy_random = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        for step in (5, 10):
            set_step(trainer, step)
            acquisition.on_train_epoch_end(trainer, module)
        assert acquisition.round == 2
        assert torch.is_grad_enabled()
        assert [m.training for m in module.modules()] == modes
        assert any(modes)
        assert not all(modes)
        assert torch.equal(torch.get_rng_state(), random)
        np.testing.assert_array_equal(np.random.get_state()[1], numpy_random)  # noqa: NPY002
        assert [p.requires_grad for p in module.parameters()] == asks
        for name, value in module.state_dict().items():
            assert torch.equal(value, state[name]), name
        for p, gradient in zip(module.parameters(), gradients, strict=True):
            assert (p.grad is None and gradient is None) or torch.equal(p.grad, gradient)


@pytest.mark.parametrize("settings", [{}, {"forbid_void": True}, {"selection": "image"}, {"score": "entropy"}])
def test_nothing_but_the_oracle_reads_the_labels_of_the_pool(tmp_path: Path, settings: dict[str, Any]):
    acquisition = CBDA(budget=0.3, **settings)
    pair = DomainPair(target=Sealed(), workers=0)
    trainer, module = prepare(acquisition, pair, tmp_path)
    set_step(trainer, 5)
    acquisition.on_train_epoch_end(trainer, module)
    assert acquisition.store.spent(1) > 0
    # The training sees what was bought and no more.
    truth = Pool()
    for batch in pair.pool_loader(0, 1):
        assert (batch.labels == VOID).all()
    for sample in range(8):
        dataset = pair.train_dataloader().dataset
        _, item, *_ = dataset[sample]
        mask = acquisition.store.bought(item.key, 1)
        np.testing.assert_array_equal(item.bought, np.where(mask, truth.labels(item.key), VOID))


def test_unbought_pixels_of_the_truth_change_nothing(tmp_path: Path):
    """The same campaign over labels that were scrambled wherever it did not buy."""
    first = campaign(CBDA(budget=0.2), tmp_path / "true")
    ever = {key: np.any([masks[key] for masks in first], axis=0) for key in SIZES}
    rng = np.random.default_rng(0)
    scrambled = {
        key: np.where(ever[key], Pool().labels(key), rng.integers(0, 4, size)).astype(np.uint8)
        for key, size in SIZES.items()
    }
    assert all(map(same, first, campaign(CBDA(budget=0.2), tmp_path / "scrambled", pool=Pool(labels_of=scrambled))))


def test_pool_grid_is_where_everything_lives(tmp_path: Path):
    acquisition = CBDA(budget=0.2, unit="pixel")
    bought = campaign(acquisition, tmp_path, target_size=(24, 32), pool_size=(12, 20))
    assert {mask.shape for mask in bought[0].values()} == {(12, 20)}
    assert sum(map(total, bought)) == round(0.2 * 4 * 12 * 20)


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0}, r"active\.budget is 0; a fraction in \(0, 1\] is expected"),
        ({"budget": -0.1}, r"active\.budget is -0\.1"),
        ({"budget": 1.5}, r"active\.budget is 1\.5; a fraction in \(0, 1\]"),
        ({"budget": math.nan}, r"active\.budget is nan"),
        ({"budget": math.inf, "budget_unit": "pixels"}, r"active\.budget is inf"),
        ({"budget": 0, "budget_unit": "pixels"}, r"active\.budget is 0; a pixels in \(0, inf"),
        ({"schedule": []}, r"active\.schedule is \[\]"),
        ({"schedule": [0.5, 0.2]}, r"active\.schedule is \[0\.5, 0\.2\]; ascending fractions"),
        ({"schedule": [-0.1, 0.2]}, r"in \[0, 1\)"),
        ({"schedule": [0.2, 1.0]}, r"in \[0, 1\)"),
        ({"schedule": [0.2, math.nan]}, r"active\.schedule"),
        ({"shares": [0.5, 0.5]}, r"active\.shares is \[0\.5, 0\.5\]; 5 positive shares"),
        ({"shares": [0.2] * 4 + [0.3]}, r"sum to 1"),
        ({"shares": [0.5, 0.5, 0.0, 0.3, -0.3]}, r"active\.shares"),
        ({"radius": -1}, r"active\.radius is -1"),
        ({"suppress_radius": 1}, r"active\.suppress_radius is 1; regions of side 3 overlap below 2"),
        ({"suppress_radius": -1, "unit": "pixel"}, r"active\.suppress_radius is -1"),
        ({"epsilon": 0.0}, r"active\.epsilon is 0\.0; a weight in \(0, 1\]"),
        ({"epsilon": 1.1}, r"active\.epsilon is 1\.1"),
        ({"max_share_per_image": 0.0}, r"active\.max_share_per_image is 0\.0"),
        ({"max_share_per_image": 1.01}, r"active\.max_share_per_image"),
        ({"rounding": "ceil"}, r"active\.rounding is ceil, which belongs to active\.selection: image"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str):
    with pytest.raises(AdaptSegError, match=message):
        CBDA(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": PIXELS + 1, "budget_unit": "pixels"}, f"asks for {PIXELS + 1} pixels; the pool has {PIXELS}"),
        ({"budget": 0.0001}, r"leaves less than one region of 9 px per round: raise it"),
        ({"budget": 4, "budget_unit": "pixels", "unit": "pixel"}, r"less than one pixel of 1 px per round"),
        ({"budget": 0.05, "selection": "image"}, r"less than one region of 9 px per round and image"),
        ({"budget": 0.05, "shares": [0.01, 0.01, 0.01, 0.01, 0.96]}, r"less than one region"),
    ],
)
def test_budgets_that_buy_nothing_or_too_much(tmp_path: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(AdaptSegError, match=message):
        prepare(CBDA(**arguments), DomainPair(target=Pool(), workers=0), tmp_path)


def test_forbid_void_needs_an_oracle_that_knows(tmp_path: Path):
    class Person(Oracle):
        def answer(self, key: str, bought: np.ndarray):
            return np.where(bought, np.uint8(1), np.uint8(VOID))

    with pytest.raises(AdaptSegError, match=r"set active\.forbid_void to false"):
        campaign(CBDA(budget=0.2, forbid_void=True, oracle=Person()), tmp_path)
    acquisition = CBDA(budget=0.2, oracle=Person())
    campaign(acquisition, tmp_path / "person")
    assert acquisition.store.class_counts(5).tolist() == [0, acquisition.store.spent(5), 0, 0]


def test_a_pool_without_labels_cannot_be_simulated(tmp_path: Path):
    pool = Pool()
    pool.labelled = False
    with pytest.raises(AdaptSegError, match="has no ground truth to simulate the oracle"):
        prepare(CBDA(oracle=GroundTruth()), DomainPair(target=pool, workers=0), tmp_path)


def test_settings_name_every_switch_and_are_plain():
    settings = CBDA(budget=0.3, schedule="original").settings()
    assert settings["schedule"] == [0.25, 0.3, 0.35, 0.4, 0.45]
    assert settings["suppress_radius"] == 2
    free = {"oracle", "scratch", "seed", "stop"}  # `stop` ends buying, and changes nothing of what is bought before
    assert set(settings) == set(inspect.signature(CBDA.__init__).parameters) - free - {"self"}
