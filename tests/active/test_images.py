"""Whole images, bought by mean score, at random or by k-centre, against plain replays."""

from __future__ import annotations

import inspect
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_pool import TABLE, Painter, Pool, Sealed, campaign, prepare, set_step
from tiny import TinySegmenter, tiny_network
from torch import Tensor

from adaptseg.active import WholeImages
from adaptseg.active.images import fitting, mean_of_scored
from adaptseg.active.labels import LabelStore
from adaptseg.data import DomainPair
from adaptseg.errors import AdaptSegError
from adaptseg.methods import Supervised

pytestmark = pytest.mark.filterwarnings("ignore:GPU available but not used")

SIZES = {f"{number}": (9 + number % 3, 14 + number % 4) for number in range(9)}
PIXELS = sum(h * w for h, w in SIZES.values())


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def keys_of(bought: list[dict[str, np.ndarray]]) -> list[list[str]]:
    """The images of each round, all of whose pixels and no others were bought."""
    for masks in bought:
        assert all(mask.all() or not mask.any() for mask in masks.values())
    return [sorted(key for key, mask in masks.items() if mask.any()) for masks in bought]


def probabilities(module: Any) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {
            batch.keys[0]: module.predict_probabilities(batch.image, size=SIZES[batch.keys[0]])[0, 0].double().numpy()
            for batch in DomainPair(target=Pool(SIZES), workers=0).pool_loader(0, 1)
        }


def pixel_scores(p: np.ndarray, score: str) -> np.ndarray:
    second, first = np.sort(p, 0)[-2:]
    return {"entropy": -(p * np.log(p)).sum(0), "margin": 1 + second - first, "least_confidence": 1 - first}[score]


@pytest.mark.parametrize("score", ["entropy", "margin", "least_confidence"])
@pytest.mark.parametrize("balance", [True, False])
def test_the_largest_mean_scores_are_bought(tmp_path: Path, score: Any, balance: bool):
    acquisition = WholeImages(
        budget=6, budget_unit="images", score=score, balance=balance, schedule=[0.1, 0.2, 0.3], epsilon=0.001
    )
    module = Painter(bias=(1.0, 0.0, -0.5, 0.0))
    bought = keys_of(campaign(acquisition, tmp_path, pool=Pool(SIZES), module=module))
    left, counts, pool = set(SIZES), np.zeros(4), Pool(SIZES)
    maps = probabilities(module)
    for keys in bought:
        weights = np.maximum(1 - counts / (round(6 * PIXELS / 9) / 4), 0.001) if balance else np.ones(4)
        mean = {key: (weights[maps[key].argmax(0)] * pixel_scores(maps[key], score)).mean() for key in left}
        assert keys == sorted(sorted(left, key=lambda key: -mean[key])[:2])
        left -= set(keys)
        counts += [sum((pool.labels(key) == c).sum() for key in keys) for c in range(4)]


def test_random_images_are_another_draw_each_round_and_seed(tmp_path: Path):
    def run(name: str, seed: int) -> list[list[str]]:
        acquisition = WholeImages(budget=5, budget_unit="images", score="random", seed=seed)
        return keys_of(campaign(acquisition, tmp_path / name, pool=Pool(SIZES)))

    assert run("one", 1) == run("again", 1) != run("other", 2)


def test_equal_scores_fall_by_a_hash_and_not_by_name(tmp_path: Path):
    class Indifferent(Painter):
        def predict_probabilities(self, images: Tensor, *, size: Any, draws: Any = 1, generator: Any = None):
            return torch.full((1, 1, 4, *size), 0.25)

    orders = []
    for seed in (0, 1):
        acquisition = WholeImages(budget=5, budget_unit="images", seed=seed)
        bought = campaign(acquisition, tmp_path / str(seed), pool=Pool(SIZES), module=Indifferent())
        orders.append([keys for (keys,) in keys_of(bought)])
    assert orders[0] != orders[1]
    assert sorted(SIZES)[:5] not in orders


# ---- core-set


def naive_centres(features: dict[str, np.ndarray], labelled: list[str], count: int) -> list[str]:
    chosen: list[str] = []
    for _ in range(count):
        left = [key for key in features if key not in labelled + chosen]
        if labelled + chosen:
            gap = {k: min(np.linalg.norm(features[k] - features[c]) for c in labelled + chosen) for k in left}
        else:
            gap = {k: -np.linalg.norm(features[k] - np.mean(list(features.values()), 0)) for k in left}
        chosen.append(max(left, key=lambda key: gap[key]))
    return chosen


def test_core_set_against_distances_by_hand(tmp_path: Path):
    method = Supervised(network=tiny_network, class_table=TABLE).eval()
    features = {}
    for batch in DomainPair(target=Pool(SIZES), workers=0).pool_loader(0, 1):
        with torch.no_grad():
            features[batch.keys[0]] = method.student.encoder(batch.image)[0].double().mean((1, 2)).numpy()
    acquisition = WholeImages(budget=6, budget_unit="images", score="core_set", schedule=[0.1, 0.2, 0.3])
    bought = keys_of(campaign(acquisition, tmp_path, pool=Pool(SIZES), module=method))
    labelled: list[str] = []
    for keys in bought:
        assert keys == sorted(naive_centres(features, labelled, 2))
        labelled += keys


def test_a_network_without_features_is_refused(tmp_path: Path):
    class Blind(TinySegmenter):
        shows_features = False

    acquisition = WholeImages(budget=5, budget_unit="images", score="core_set")
    method = Supervised(network=Blind, class_table=TABLE)
    with pytest.raises(AdaptSegError, match=r"active\.score core_set compares encoder features, and Blind shows none"):
        prepare(acquisition, DomainPair(target=Pool(SIZES), workers=0), tmp_path, method)
    with pytest.raises(AdaptSegError, match=r"active\.balance weights scores, but active\.score core_set has none"):
        WholeImages(score="core_set", balance=True)


def test_pixels_without_a_score_do_not_count():
    score = np.array([[1.0, -np.inf], [3.0, -2.0]], np.float32)
    assert mean_of_scored(score) == pytest.approx(2 / 3)
    assert mean_of_scored(np.full((2, 2), -np.inf, np.float32)) == -math.inf
    assert math.isnan(mean_of_scored(np.array([[np.nan, -np.inf]], np.float32)))


# ---- how many


@pytest.mark.parametrize(("budget", "unit"), [(0.7, "fraction"), (900, "pixels"), (1.0, "fraction")])
def test_a_pixel_budget_is_kept_and_carried_over(tmp_path: Path, budget: float, unit: Any):
    acquisition = WholeImages(budget=budget, budget_unit=unit, schedule=[0.1, 0.3, 0.5])
    bought = keys_of(campaign(acquisition, tmp_path, pool=Pool(SIZES)))
    total, largest, spent = acquisition.total_budget(PIXELS, 9), max(h * w for h, w in SIZES.values()), 0
    for number, keys in enumerate(bought, 1):
        assert keys
        spent += sum(math.prod(SIZES[key]) for key in keys)
        assert round(number * total / 3) - largest < spent <= round(number * total / 3)
    assert acquisition.store.spent(3) == spent
    if budget == 1.0:
        assert spent == PIXELS


def test_shares_split_a_budget_of_images(tmp_path: Path):
    acquisition = WholeImages(budget=8, budget_unit="images", schedule=[0.1, 0.3, 0.5], shares=[0.125, 0.5, 0.375])
    assert [len(keys) for keys in keys_of(campaign(acquisition, tmp_path, pool=Pool(SIZES)))] == [1, 4, 3]


def test_fitting_stops_at_the_first_that_does_not_fit():
    units = {"a": 3, "b": 5, "c": 1}
    assert fitting("cab", units, 4) == ["c", "a"]
    assert fitting("bca", units, 4) == []
    assert fitting("", units, 4) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 10, "budget_unit": "images"}, "asks for 10 images; the pool has 9"),
        ({"budget": PIXELS + 1, "budget_unit": "pixels"}, f"asks for {PIXELS + 1} pixels; the pool has {PIXELS}"),
        ({"budget": 4, "budget_unit": "images"}, "leaves less than one image of 1 images per round"),
        ({"budget": 0.2}, "leaves less than one image of 176 pixels per round"),
        ({"budget": 1.0, "budget_unit": "hours"}, "leaves less than one image"),
    ],
)
def test_budgets_that_buy_nothing_or_too_much(tmp_path: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(AdaptSegError, match=message):
        prepare(WholeImages(**arguments), DomainPair(target=Pool(SIZES), workers=0), tmp_path)


def test_books_are_kept_and_nothing_but_the_oracle_reads_the_truth(tmp_path: Path):
    acquisition = WholeImages(budget=6, budget_unit="images", schedule=[0.2, 0.4], balance=True)
    data = DomainPair(target=Sealed(SIZES), workers=0)
    trainer, module = prepare(acquisition, data, tmp_path)
    for step in acquisition.fire_at:
        set_step(trainer, step)
        acquisition.on_train_epoch_end(trainer, module)
    acquisition.store.verify()
    bought = [key for key in SIZES if acquisition.store.bought(key, 2).any()]
    assert len(bought) == 6
    for key in bought:
        np.testing.assert_array_equal(acquisition.store.labels(key, 2), Pool(SIZES).labels(key))
    settings = acquisition.settings()
    assert set(settings) == set(inspect.signature(WholeImages.__init__).parameters) - {
        "self", "oracle", "scratch", "seed", "stop",
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_buy_what_one_buys(tmp_path: Path):
    """By BALD, whose draws belong to the image, and by k-centre: the same files bit by bit."""
    from forked import adaptseg, fit_flags
    from test_distributed import STILL, two_processes
    from test_resume import RUN, files_of_store, rows, without_pictures

    few = (*STILL, "--data.target.count", "5", "--data.val.count", "2")
    images = ("--active", "WholeImages", "--active.budget", "4", "--active.budget_unit", "images")
    for score, extra in {
        "bald": ("--active.draws", "2", "--model.network", "tiny.DroppingSegmenter"),
        "core_set": (),
    }.items():
        flags = fit_flags(*few, *images, "--active.score", score, *extra)
        one = adaptseg(*flags, folder=tmp_path / score / "one", before=without_pictures)
        assert one.code == 0, one.err
        two: subprocess.CompletedProcess[str] = two_processes(*flags, folder=tmp_path / score / "two")
        assert (two.returncode, two.stderr) == (0, "")
        one_run, two_run = tmp_path / score / "one" / RUN, tmp_path / score / "two" / RUN
        assert files_of_store(one_run) == files_of_store(two_run)
        assert rows(one_run / "rounds.csv") == rows(two_run / "rounds.csv")
        assert (one_run / "spending.json").read_text() == (two_run / "spending.json").read_text()
        store = LabelStore.open(two_run / "labels")
        store.verify()
        assert store.rounds == 2
