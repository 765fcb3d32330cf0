"""BALD by dropout, random picks among the best, gain per cost: each against a plain version of itself."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from small_pool import SIZES, TABLE, Painter, Pool, Sealed, campaign, prepare, set_step, total
from tiny import DroppingSegmenter, tiny_network
from torch import Tensor, nn

from adaptseg.active import CBDA, LabelCost, WholeImages, scores
from adaptseg.active.costs import region_content
from adaptseg.active.ranks import salt_of
from adaptseg.active.selection import noise_within_best
from adaptseg.data import DomainPair
from adaptseg.errors import AdaptSegError
from adaptseg.methods import Supervised
from adaptseg.networks import Output, dropout_layers, dropping

pytestmark = pytest.mark.filterwarnings("ignore:GPU available but not used")

PIXELS = sum(h * w for h, w in SIZES.values())
DRAWS = 4
Maps = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class NormalisedDropping(DroppingSegmenter):
    """With a batch norm, whose statistics scoring may neither use anew nor move."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.encoder = nn.Sequential(self.encoder, nn.BatchNorm2d(8))


def forgetful() -> Supervised:
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        method = Supervised(network=NormalisedDropping, class_table=TABLE)
        for parameter in method.student.parameters():
            nn.init.normal_(parameter, std=0.6)
        norm = next(m for m in method.student.modules() if isinstance(m, nn.BatchNorm2d))
        norm.running_mean = torch.randn(8)
        norm.running_var = torch.rand(8) + 0.5
    return method


def scored_maps(acquisition: CBDA, folder: Path, module: Any, pool: Pool | None = None, round: int = 0) -> Maps:
    """The maps that a round would rank, without buying."""
    trainer, module = prepare(acquisition, DomainPair(target=pool or Pool(), workers=0), folder, module)
    acquisition.round = round
    module.eval()
    with torch.no_grad():
        return {key: score.numpy() for key, score in acquisition.scored(trainer, module)}


# ---- BALD


def drawn(method: Supervised, image: Tensor, size: tuple[int, int], seed: int) -> np.ndarray:
    """One pass with dropout by hand: float64 (C, H, W)."""
    method.eval()
    for layer in method.student.modules():
        if isinstance(layer, (nn.Dropout, nn.Dropout2d)):
            layer.train()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
        logits = method.student(image).logits.double()
        p = nn.functional.interpolate(logits, size, mode="bilinear").softmax(1)[0].numpy()
    method.eval()
    return p


def naive_information(draws: np.ndarray) -> np.ndarray:
    """(K, C, H, W) float64 -> (H, W)."""
    mean = draws.mean(0)
    return -(mean * np.log(mean)).sum(0) + (draws * np.log(draws)).sum(1).mean(0)


def naive_balance(draws: np.ndarray) -> np.ndarray:
    """(K, C, H, W) float64 -> (H, W), class by class and pixel by pixel; minus infinity without a Beta distribution."""
    score = np.empty(draws.shape[2:])
    for y, x in np.ndindex(score.shape):
        total = entropy = 0.0
        for p in draws[:, :, y, x].T:
            m, v = p.mean(), max(p.var(ddof=1), 1e-9)
            if m <= 1e-9:
                continue
            a = m * m * (1 - m) / v - m
            total += min(m * stats.beta(a + 1, (1 / m - 1) * a).entropy(), 0) if a > 0 else math.nan
            entropy -= m * math.log(m)
        balance = (total + entropy) / (entropy + math.log(2))
        score[y, x] = -math.inf if math.isnan(balance) else 1 / balance if balance >= 0 else balance
    return score


def naive_bald(
    method: Supervised, pool: Pool, seed: int, round: int, formula: Callable[..., np.ndarray] = naive_information
) -> Maps:
    found = {}
    for batch in DomainPair(target=pool, workers=0).pool_loader(0, 1):
        key = batch.keys[0]
        seeds = [salt_of(seed, f"{round}/{key}/{draw}") % 2**63 for draw in range(DRAWS)]
        found[key] = formula(np.stack([drawn(method, batch.image, pool.size(key), s) for s in seeds]))
    return found


@pytest.mark.parametrize("round", [0, 2])
def test_bald_against_passes_by_hand(tmp_path: Path, round: int):
    method = forgetful()
    acquisition = CBDA(budget=0.2, score="bald", draws=DRAWS, balance=False, seed=3)
    maps = scored_maps(acquisition, tmp_path, method, round=round)
    expected = naive_bald(method, Pool(), 3, round)
    for key, score in maps.items():
        np.testing.assert_allclose(score, expected[key], atol=2e-5)  # float32 passes
    assert max(score.max() for score in maps.values()) > 0.02


def test_balanced_entropy_against_passes_by_hand(tmp_path: Path):
    method, pool = forgetful(), Pool({"rural": (12, 20)})
    acquisition = CBDA(budget=0.2, score="balanced_entropy", draws=DRAWS, balance=False, seed=3)
    found = scored_maps(acquisition, tmp_path, method, pool, round=1)["rural"]
    expected = naive_bald(method, pool, 3, 1, naive_balance)["rural"]
    # Where the Beta distributions cease to exist, and near a balance of 0, the score runs away: float32 passes round.
    clear = np.abs(expected) < 100
    np.testing.assert_allclose(found[clear], expected[clear], rtol=5e-3, atol=5e-3)
    assert (np.abs(found[~clear]) > 90).all()
    assert clear.mean() > 0.3
    assert (expected == -np.inf).any()


def test_a_pixel_that_has_no_balance_is_not_bought(tmp_path: Path):
    """Scores of minus infinity on half of the pool, and noise: the budget is met on the other half."""

    class HalfSure(NormalisedDropping):
        def forward(self, images: Tensor, *, crop: Any = None, token_mask: Tensor | None = None) -> Output:
            output = super().forward(images, crop=crop, token_mask=token_mask)
            sure = torch.zeros_like(output.logits)
            sure[:, 0] = 1000.0
            left = torch.arange(output.logits.shape[-1]) < output.logits.shape[-1] // 2
            return output._replace(logits=torch.where(left, sure, output.logits))

    method = Supervised(network=HalfSure, class_table=TABLE)
    settings: dict[str, Any] = {"score": "balanced_entropy", "draws": 3, "balance": False, "schedule": [0.2, 0.4]}
    acquisition = CBDA(budget=0.1, unit="pixel", **settings)
    for masks in campaign(acquisition, tmp_path / "pixels", module=method):
        assert total(masks) == PIXELS // 20
        assert all(not mask[:, : mask.shape[1] // 2 - 6].any() for mask in masks.values())
    whole = WholeImages(budget=2, budget_unit="images", **settings)
    assert [sum(mask.any() for mask in masks.values()) for masks in campaign(whole, tmp_path, module=method)] == [1, 1]


def test_power_bald_adds_gumbel_noise_of_its_own_to_each_pixel(tmp_path: Path):
    method = forgetful()
    acquisition = CBDA(budget=0.2, score="power_bald", draws=DRAWS, balance=False, seed=3)
    maps = scored_maps(acquisition, tmp_path, method, round=1)
    expected = naive_bald(method, Pool(), 3, 1)
    for key, score in maps.items():
        uniform = scores.random_score(SIZES[key], seed=3, round=1, key=key).double().numpy()
        log = np.log(np.maximum(expected[key], 1e-9)) - np.log(-np.log(np.clip(uniform, 2.0**-53, 1 - 2.0**-53)))
        clear = expected[key] > 1e-4  # below, rounding of float32 passes moves the logarithm
        assert clear.mean() > 0.5
        np.testing.assert_allclose(score[clear], log[clear], atol=2e-2)
        assert abs(np.corrcoef(uniform.ravel(), expected[key].ravel())[0, 1]) < 0.2


def test_draws_belong_to_seed_round_and_image_alone(tmp_path: Path):
    """Whatever was scored before, by whom, and whatever the global random state is."""

    def maps(name: str, *, seed: int = 0, round: int = 0, keys: Any = SIZES) -> Maps:
        torch.manual_seed(len(name))
        acquisition = CBDA(budget=0.2, score="bald", draws=2, balance=False, seed=seed)
        return scored_maps(acquisition, tmp_path / name, forgetful(), Pool({k: SIZES[k] for k in keys}), round)

    whole = maps("whole")
    for part in (maps("one", keys=["rural"]), maps("two", keys=["tall", "city/b"])):
        for key, score in part.items():
            np.testing.assert_array_equal(score, whole[key])
    assert not np.array_equal(maps("other seed", seed=1)["rural"], whole["rural"])
    assert not np.array_equal(maps("other round", round=1)["rural"], whole["rural"])


def test_running_information_equals_that_of_all_draws():
    draws = torch.rand(7, 5, 6, 9, dtype=torch.float64).softmax(1)
    running = scores.RunningInformation(7)
    for draw in draws:
        running.add(draw)
    assert torch.equal(running.result(), scores.mutual_information(draws))
    np.testing.assert_allclose(running.result().numpy(), naive_information(draws.numpy()), atol=1e-7)


def test_scoring_by_dropout_leaves_no_trace(tmp_path: Path):
    method = forgetful().train()
    acquisition = CBDA(budget=0.2, score="bald", draws=2, schedule=[0.25, 0.5])
    trainer, _ = prepare(acquisition, DomainPair(target=Pool(), workers=0), tmp_path, method)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    modes, random = [m.training for m in method.modules()], torch.get_rng_state()
    set_step(trainer, 5)
    acquisition.on_train_epoch_end(trainer, method)
    assert acquisition.round == 1
    assert [m.training for m in method.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in method.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_only_dropout_draws():
    method = forgetful()
    images = torch.randn(2, 3, 16, 24)
    method.eval()
    fixed = method.predict_probabilities(images, size=(16, 24))
    generator = torch.Generator().manual_seed(0)
    draws = method.predict_probabilities(images, size=(16, 24), draws=3, generator=generator)
    assert draws.shape == (3, 2, 4, 16, 24)
    assert not torch.equal(draws[0], draws[1])
    again = method.predict_probabilities(images, size=(16, 24), draws=3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draws, again)
    for layer in dropout_layers(method.student):
        layer.p = 1e-12  # drops nothing, so that a batch norm in training mode would show
    same = method.predict_probabilities(images, size=(16, 24), generator=torch.Generator())
    torch.testing.assert_close(same, fixed)
    with pytest.raises(AdaptSegError, match="without a generator asked for"):
        method.predict_probabilities(images, size=(16, 24), draws=2)


def test_an_error_inside_a_draw_restores_the_modes():
    network = DroppingSegmenter(3).eval()
    random = torch.get_rng_state()

    def fail() -> None:
        with dropping(network, torch.Generator()):
            assert [layer.training for layer in dropout_layers(network)] == [True, True]
            torch.rand(3)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert not any(m.training for m in network.modules())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("score", ["bald", "power_bald", "balanced_entropy"])
def test_a_network_without_dropout_is_refused_at_setup(tmp_path: Path, score: Any):
    acquisition = CBDA(budget=0.2, score=score, balance=False)
    data = DomainPair(target=Pool(), workers=0)
    with pytest.raises(AdaptSegError, match=rf"active\.score {score} draws by dropout.*TinySegmenter of Supervised"):
        prepare(acquisition, data, tmp_path, Supervised(network=tiny_network, class_table=TABLE))
    silent = forgetful()
    for layer in dropout_layers(silent.student):
        layer.p = 0.0
    with pytest.raises(AdaptSegError, match="no active layer"):
        prepare(acquisition, data, tmp_path, silent)
    with pytest.raises(AdaptSegError, match="draws by dropout are asked of a NormalisedDropping"):
        silent.predict_probabilities(torch.zeros(1, 3, 8, 8), size=(8, 8), generator=torch.Generator())


def test_a_round_redone_after_a_kill_is_the_same(tmp_path: Path):
    """The label store is ahead of the checkpoint: the redone query finds its answers, and counts the same work."""
    settings: dict[str, Any] = {"budget": 0.3, "score": "bald", "draws": 2, "schedule": [0.2, 0.4, 0.6]}
    first = CBDA(**settings)
    whole = campaign(first, tmp_path, module=forgetful())
    torch.manual_seed(99)
    again = CBDA(**settings)
    state = {"round": 1, "checksum": first.store.manifest(1)["query_checksum"], "history": first.history[:1]}
    again.load_state_dict(state)
    trainer, module = prepare(again, DomainPair(target=Pool(), workers=0), tmp_path, forgetful())
    for step in again.fire_at[1:]:
        set_step(trainer, step)
        again.on_train_epoch_end(trainer, module)
    assert again.history == first.history
    assert not (tmp_path / "labels" / "set_aside").exists()
    assert sum(map(total, whole)) == again.store.spent(3)


# ---- random among the best


@pytest.mark.parametrize(("count", "levels"), [(0, 9), (1, 9), (17, 3), (100, 1), (200, 50), (9999, 4)])
def test_noise_within_best_against_a_sort(count: int, levels: int):
    rng = np.random.default_rng(count)
    score = torch.from_numpy(rng.integers(0, levels, (13, 17)).astype(np.float32) - 1)
    score[3, 4] = -math.inf
    forbidden = torch.from_numpy(rng.random((13, 17)) < 0.2)
    noise = torch.from_numpy(rng.random((13, 17)))
    kept = noise_within_best(score, count, noise, salt=5, forbidden=forbidden)
    chosen = kept > -math.inf
    assert torch.equal(kept[chosen], noise[chosen])
    open_scores = score[~forbidden & (score > -math.inf)].sort(descending=True).values
    assert int(chosen.sum()) == min(count, len(open_scores))
    torch.testing.assert_close(score[chosen].sort(descending=True).values, open_scores[:count])
    assert not (chosen & forbidden).any()


def test_ties_of_the_best_fall_by_a_hash_and_not_by_place():
    score, noise = torch.zeros(40, 40), torch.rand(40, 40)
    kept = [noise_within_best(score, 400, noise, salt=salt) > -math.inf for salt in (1, 1, 2)]
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])
    assert 0.15 < kept[0][:10].double().mean() < 0.35
    assert abs(float(noise[kept[0]].mean()) - 0.5) < 0.06  # nor by the noise


def naive_margin(module: Any, pool: Pool) -> Maps:
    found = {}
    for batch in DomainPair(target=pool, workers=0).pool_loader(0, 1):
        with torch.no_grad():
            p = module.predict_probabilities(batch.image, size=pool.size(batch.keys[0]))[0, 0].double().numpy()
        second, first = np.sort(p, 0)[-2:]
        found[batch.keys[0]] = second - first
    return found


@pytest.mark.parametrize("unit", ["pixel", "region"])
def test_picks_are_random_among_the_best_of_each_image(tmp_path: Path, unit: Any):
    settings: dict[str, Any] = {
        "budget": 0.1, "score": "margin", "unit": unit, "selection": "image", "random_within": 0.3, "balance": False,
        "schedule": [0.2, 0.4],
    }  # fmt: skip
    bought = {
        seed: campaign(CBDA(**settings, seed=int(seed[-1])), tmp_path / seed) for seed in ("seed0", "again0", "seed1")
    }
    assert all(
        np.array_equal(a[k], b[k]) for a, b in zip(bought["seed0"], bought["again0"], strict=True) for k in SIZES
    )
    assert any(not np.array_equal(bought["seed0"][0][key], bought["seed1"][0][key]) for key in SIZES)
    if unit == "region":
        return
    before = {key: np.zeros(size, bool) for key, size in SIZES.items()}
    margins = naive_margin(Painter(), Pool())
    ranks = []
    for masks in bought["seed0"]:
        for key, mask in masks.items():
            still_open = np.sort(margins[key][~before[key]])[::-1]
            best = still_open[: round(0.3 * mask.size)]
            assert margins[key][mask].min() >= best[-1] - 1e-6
            ranks += [float((best > value).mean()) for value in margins[key][mask]]
            before[key] |= mask
        assert total(masks) > 0.04 * PIXELS
    assert 0.4 < np.mean(ranks) < 0.6  # anywhere among them, not the first


def test_one_draw_over_the_best_of_every_image(tmp_path: Path):
    """PixelPick below a pixel an image: uniform over the union of what is best in each image."""
    settings: dict[str, Any] = {
        "budget": 40, "budget_unit": "pixels", "score": "margin", "unit": "pixel", "random_within": 0.1,
        "balance": False, "schedule": [0.2, 0.4],
    }  # fmt: skip
    margins, per_image, ranks = naive_margin(Painter(), Pool()), [], []
    for seed in range(4):
        before = {key: np.zeros(size, bool) for key, size in SIZES.items()}
        for masks in campaign(CBDA(**settings, seed=seed), tmp_path / str(seed)):
            assert total(masks) == 20
            for key, mask in masks.items():
                best = np.sort(margins[key][~before[key]])[::-1][: round(0.1 * mask.size)]
                assert not mask.any() or margins[key][mask].min() >= best[-1] - 1e-6
                ranks += [float((best > value).mean()) for value in margins[key][mask]]
                before[key] |= mask
            per_image.append([int(mask.sum()) for mask in masks.values()])
    assert 0.4 < np.mean(ranks) < 0.6
    counts = np.array(per_image)
    assert len({tuple(row) for row in per_image}) > 4  # no fixed number in each image
    shares, expected = counts.sum(0) / counts.sum(), np.array([h * w for h, w in SIZES.values()]) / PIXELS
    assert np.abs(shares - expected).max() < 0.12  # 160 draws: standard deviation 0.035


def test_a_share_that_cannot_hold_the_picks_is_refused(tmp_path: Path):
    acquisition = CBDA(budget=0.2, selection="image", random_within=0.05)
    with pytest.raises(AdaptSegError, match=r"active\.random_within is 0\.05 of an image, but a round may need 0\.111"):
        prepare(acquisition, DomainPair(target=Pool(), workers=0), tmp_path)


# ---- gain per cost


@pytest.mark.parametrize("settings", [{}, {"balance": False}, {"weight_by": "region", "radius": 2}])
def test_gain_per_cost_divides_by_the_price_of_the_prediction(tmp_path: Path, settings: dict[str, Any]):
    cost = LabelCost(region_seconds=1, class_seconds=2, border_seconds=0.25)
    priced, plain = (
        scored_maps(CBDA(budget=0.4, per_cost=on, cost=cost, **settings), tmp_path / str(on), Painter(), round=0)
        for on in (True, False)
    )
    radius = settings.get("radius", 1)
    for batch in DomainPair(target=Pool(), workers=0).pool_loader(0, 1):
        key = batch.keys[0]
        with torch.no_grad():
            predicted = Painter().predict_probabilities(batch.image, size=SIZES[key])[0, 0].argmax(0)
        distinct, borders = region_content(predicted, 4, radius)  # proved in test_costs.py
        seconds = 1 + 2 * distinct.double().numpy() + 0.25 * borders.double().numpy()
        np.testing.assert_allclose(priced[key], plain[key] / seconds, rtol=1e-5)


def test_gain_per_cost_buys_cheaper_regions(tmp_path: Path):
    hours = {}
    for on in (True, False):
        acquisition = CBDA(budget=0.2, score="entropy", balance=False, per_cost=on)
        campaign(acquisition, tmp_path / str(on))
        hours[on] = acquisition.history[-1]["hours"] / acquisition.history[-1]["regions"]
    assert hours[True] < 0.9 * hours[False]


@pytest.mark.parametrize(
    "settings",
    [
        {"per_cost": True},
        {"score": "margin", "selection": "image", "random_within": 0.3, "budget": 0.1},
        {"unit": "pixel", "score": "random"},
    ],
)
def test_no_score_reads_the_truth(tmp_path: Path, settings: dict[str, Any]):
    acquisition = CBDA(**{"budget": 0.3, **settings})
    trainer, module = prepare(acquisition, DomainPair(target=Sealed(), workers=0), tmp_path)
    for step in acquisition.fire_at[:2]:
        set_step(trainer, step)
        acquisition.on_train_epoch_end(trainer, module)
    assert acquisition.store.spent(2) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "bald", "draws": 1}, r"active\.draws is 1; 2 or more are expected for bald"),
        ({"score": "balanced_entropy", "balance": False, "draws": 1}, r"2 or more are expected for balanced_entropy"),
        ({"score": "balanced_entropy"}, r"active\.balance weights scores of 0 or more; balanced_entropy has negative"),
        ({"score": "power_bald"}, r"active\.balance weights scores of 0 or more; power_bald has negative ones"),
        ({"random_within": 0.0, "selection": "image"}, r"active\.random_within is 0\.0; null or a share"),
        ({"random_within": 0.1, "selection": "image", "score": "random"}, r"active\.score is random already"),
        ({"per_cost": True, "unit": "pixel"}, r"active\.per_cost divides by what a region costs"),
        (
            {"per_cost": True, "score": "balanced_entropy", "balance": False},
            r"0 or more; balanced_entropy has negative",
        ),
        ({"per_cost": True, "score": "power_bald", "balance": False}, r"active\.per_cost divides scores of 0 or more"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str):
    with pytest.raises(AdaptSegError, match=message):
        CBDA(**arguments)
