"""The table of departures: its comparisons, the imitated faults and the fixed state, on random and on small data."""

# pyright: reportMissingImports=false
# The scripts of experiments/ are no package; their folder joins the path below.
from __future__ import annotations

import copy
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from small_features import ConvFeatures
from small_pool import Pool

from adaptseg.active.herding import max_herding
from adaptseg.active.point_stages import locally_herded
from adaptseg.classes import VOID
from adaptseg.methods.head_training import HeadTraining
from adaptseg.networks.denoiser import Denoiser
from adaptseg.networks.feature_maps import DiffusionFeatures

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments" / "tables"))

import departure_choices as choices  # noqa: E402
import departure_heads as heads  # noqa: E402
import departure_rows as rows  # noqa: E402
import departures  # noqa: E402
import fixed_state as fixed  # noqa: E402
import released_faults as faults  # noqa: E402


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(count: int, channels: int = 6) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, channels, generator=generator()), dim=1)


# ---- comparisons


def test_equal_scores_are_in_full_agreement_and_turned_ones_in_none() -> None:
    score = torch.rand(50, generator=generator())
    assert choices.spearman(score, score) == pytest.approx(1)
    assert choices.spearman(score, -score.exp()) == pytest.approx(-1)
    assert choices.spearman(score, torch.zeros(50)) is None
    other = torch.rand(50, generator=generator(1))
    ranks = [rankdata(values.numpy()) for values in (score, other)]
    assert choices.spearman(score, other) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert choices.in_common(choices.top(score, 7), choices.top(score, 7)) == 100
    assert choices.in_common(choices.top(score, 7), choices.top(-score, 7)) == 0
    assert choices.top(torch.tensor([0.0, 2, 2, 1, 2]), 2).tolist() == [1, 2]


def test_coverage_and_advantage() -> None:
    x = unit(40)
    centres, scale = x[[3, 11, 20]], 0.8
    naive = np.mean([max(math.exp(-float((a - c).square().sum()) / scale**2) for c in centres) for a in x])
    assert choices.coverage(x, centres, scale) == pytest.approx(naive, rel=1e-5)
    assert choices.coverage(x, x, scale) == pytest.approx(1)
    assert choices.advantage(0.8, 0.9, 0.7) == pytest.approx(50)


def test_absent_classes_count_as_asked() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert fixed.miou(confusion) == pytest.approx(100 * (3 / 4 + 4 / 5) / 2)
    assert fixed.miou(confusion, absent=0) == pytest.approx(100 * (3 / 4 + 4 / 5) / 3)


# ---- imitated faults


def test_float16_herding_rounds_kernel_and_means() -> None:
    x, scale = unit(60), 1.5
    found, tied = faults.float16_herding(x, 8, scale)
    kernel = np.exp(-((x[:, None] - x[None]).numpy() ** 2).sum(2) / scale**2).astype(np.float16)
    covered, chosen, ties = np.zeros(60, np.float16), [], 0
    for _ in range(8):
        means = np.maximum(kernel, covered[:, None]).astype(np.float32).mean(0).astype(np.float16)
        means[chosen] = -1
        ties += int((means == means.max()).sum() > 1)
        chosen.append(int(means.argmax()))
        covered = np.maximum(covered, kernel[:, chosen[-1]])
    assert found.tolist() == chosen
    assert tied == ties
    groups = 0.001 * torch.randn(60, 3, generator=generator()) + 3 * torch.eye(3).repeat_interleave(20, 0)
    assert sorted((faults.float16_herding(groups, 3, 1.0)[0] // 20).tolist()) == [0, 1, 2]  # gains too large to lose


def test_one_chunk_that_knows_all_is_exact_herding(monkeypatch: pytest.MonkeyPatch) -> None:
    x, known = unit(90), unit(5)
    apart = faults.chunked_herding(x, 30, 0.7, known, generator())
    assert apart.tolist() == sorted(set(apart.tolist()))
    assert len(apart) == 30
    exact, _ = max_herding(x, 30, length_scale=0.7, conditioned_on=known)
    assert set(apart.tolist()) != set(exact.tolist())
    monkeypatch.setattr(faults, "RELEASED_CHUNKS", 1)
    monkeypatch.setattr(faults, "RELEASED_CAP", 1.0)
    assert faults.chunked_herding(x, 30, 0.7, known, generator()).tolist() == exact.sort().values.tolist()


def test_a_mispaired_pick_is_another_of_its_image() -> None:
    order = torch.tensor([[7, 2, 5], [9, 10, 11]])
    assert faults.mispaired(order).tolist() == [[2, 5, 7], [9, 10, 11]]


def test_first_round_features_and_dropout(tmp_path: Path) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        Denoiser([8, 8], attention=[], head_dim=8).unet.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 8, 8, generator=generator())
    ours = DiffusionFeatures(str(tmp_path), (50, 150))

    def released(**given: bool) -> faults.FirstRoundFeatures:
        flags = {"unit_range": False, "fresh_noise": False, **given}
        return faults.FirstRoundFeatures(str(tmp_path), (50, 150), **flags)

    def differ(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
        return not all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    assert not differ(released().maps(images), ours.maps(images))
    assert differ(released(unit_range=True).maps(images), ours.maps(images))
    fresh = released(fresh_noise=True)
    assert differ(fresh.maps(images), fresh.maps(images))
    before, clean = torch.random.get_rng_state(), ours.maps(images)
    with faults.dropout_on(ours, 0):
        noisy = ours.maps(images)
        assert differ(noisy, ours.maps(images))
    assert differ(noisy, clean)
    assert not differ(ours.maps(images), clean)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- the fixed state, and heads


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> fixed.State:
    for name, value in {"CANDIDATES": 40, "PICKS": 4, "ROUNDS": 2}.items():
        for module in (fixed, choices, heads):
            monkeypatch.setattr(module, name, value, raising=False)
    monkeypatch.setattr(choices, "SEEDS", (0, 1))
    monkeypatch.setattr(heads, "SEEDS", (0, 1))
    scenes = Pool()
    return fixed.make_state(ConvFeatures(), scenes, scenes.keys)


def test_the_state_is_what_the_package_would_choose(state: fixed.State) -> None:
    assert state.local.shape == (4, 10)
    for image, key in enumerate(state.keys):
        flat = fixed.candidates_of(key)
        ours = flat[state.local[image] % 40].sort().values.numpy()
        assert ours.tolist() == locally_herded(state.bank, key, flat.numpy(), 10, "median").tolist()
        seen = state.bank.at(key, fixed.yx(flat))
        assert torch.equal(state.features(40 * image + torch.arange(40)), seen)
    assert len(state.labelled.unique()) == 8
    assert torch.isin(state.labelled, state.local).all()
    assert torch.isin(state.kept, state.left).all()
    assert (len(state.left), len(state.kept)) == (32, 16)
    assert not torch.isin(state.left, state.labelled).any()


def test_heads_learn_rest_and_repeat(state: fixed.State) -> None:
    lesson = fixed.Lesson(HeadTraining(patience=None), passes=4)
    one = fixed.learn(state, state.labelled, 0, lesson)
    two = fixed.learn(state, state.labelled, 0, lesson)
    for name, value in one.last.state_dict().items():
        assert torch.equal(value, two.last.state_dict()[name]), name
    real = int((state.truth[state.labelled] != VOID).sum())
    assert int(one.confusion.sum()) == 4 * real
    assert one.steps == 4  # four images are one batch
    impatient = fixed.Lesson(HeadTraining(patience=0, first_passes=2, lr=1e-5), passes=30)
    assert 4 <= fixed.learn(state, state.labelled, 0, impatient).steps <= 30
    nothing = fixed.learn(state, (state.truth == VOID).nonzero().flatten(), 0, lesson)
    assert (nothing.steps, int(nothing.confusion.sum())) == (0, 0)


def test_groups_measure_what_they_say(state: fixed.State, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(state: fixed.State, bought: torch.Tensor, seed: int, lesson: Any = None, tables: Any = None):
        return fixed.learn(state, bought, seed, replace(lesson or fixed.Lesson(), passes=2), tables)

    monkeypatch.setattr(choices, "NOISES", 2)
    monkeypatch.setattr(choices, "learn", short)
    monkeypatch.setattr(heads, "learn", short)
    found = choices.score_group(state)
    assert all(len(one) == 2 for one in found.values())
    assert all(-1 <= one["spearman"] <= 1 for one in found["edald_released"])
    assert found["pareto"][0]["gumbel"] > -1
    scenes = Pool()
    judge = heads.Judge(ConvFeatures(), scenes)
    judge.keys = judge.keys[:1]
    trained = heads.training_group(state, judge)
    assert all(0 <= value <= 100 for value in trained["reference"]["miou"])
    assert trained["norm_labelled"]["miou"] != trained["reference"]["miou"]
    evaluated = heads.evaluation_group(state, judge, scenes)
    assert evaluated["val"]["miou"] == trained["reference"]["miou"]
    assert evaluated["val"]["absent"] == []
    assert evaluated["val"]["absent_as_zero"] == evaluated["val"]["miou"]
    herding = choices.herding_group(state)
    assert len(herding["float16"]["in_common"]) == 4
    assert all(0 <= value <= 100 for value in herding["length_scale"]["local"])


# ---- the table


def test_rows_without_measurements_keep_their_words() -> None:
    table = rows.markdown({})
    assert table.count("\n") == len(rows.DEPARTURES) + 1
    assert "| power scores by Pareto noise | Gumbel | not offered |  |" in table
    assert "cannot run" in table


def test_cells_read_the_measurements() -> None:
    group: dict[str, Any] = {"reference": {"miou": [20.0, 22.0]}, "no_void": {"miou": [21.0, 24.0]}}
    group["bought"] = {"ours": {"void": 5.4}}
    assert rows.void({"training": group}).startswith("+1.5 ± 0.7 points of mIoU at 185 labels, of which 5 %")
    broken = copy.deepcopy(group)
    del broken["no_void"]
    assert "| +" not in rows.markdown({"training": broken})


def test_the_page_holds_the_table_of_the_committed_results() -> None:
    found = re.search(r"<!-- table: departures -->\n(.*?)\n<!-- end", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    assert found[1] == rows.markdown(departures.load())


def test_results_are_plain_and_name_no_place() -> None:
    assert departures.rounded({"a": [0.123456789, math.nan, 3], "b": "x"}) == {"a": [0.12346, None, 3], "b": "x"}
    for group in departures.GROUPS:
        if (path := departures.result_file(group)).exists():
            assert "/" not in path.read_text()
