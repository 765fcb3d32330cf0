"""RIPU's class-balanced source sampling: its probabilities, its sequence against a replay, resumes and ranks."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from test_pair import Clock, assert_equal, pair, run
from test_rare_classes import SIZE, Islands, Secret, statistics

from adaptseg.classes import STREETS
from adaptseg.data import ClassBalancedSampling, DomainPair, RareClassSampling
from adaptseg.data.class_balance import BalancedScenes, class_probabilities
from adaptseg.data.sampling import generator
from adaptseg.errors import AdaptSegError

SHOWN = (np.random.default_rng(0).random((60, 5)) < [0.9, 0.5, 0.3, 0.1, 0.0]).astype(np.int64)
"""Which of 60 scenes shows which of 5 classes; the last is absent."""


def balanced(tmp_path: Path, **changes: Any) -> DomainPair:
    rule = ClassBalancedSampling(sub_epoch=7)
    settings = {"source": Islands(), "target": Secret("t", 3, SIZE), "flip": True, **changes}
    return pair(cache=str(tmp_path / "cache"), class_balanced_sampling=rule, **settings)


def test_probabilities_by_hand() -> None:
    everywhere = np.ones(3, bool)
    np.testing.assert_allclose(class_probabilities(np.zeros(3), everywhere), [1 / 3] * 3, rtol=1e-15)
    # f = 0.75, 0.25, 0: 1 / log 1.76, 1 / log 1.26, 1 / log 1.01
    weights = 1 / np.log([1.76, 1.26, 1.01])
    found = class_probabilities(np.array([6.0, 2.0, 0.0]), everywhere)
    np.testing.assert_allclose(found, weights / weights.sum(), rtol=1e-14)
    found = class_probabilities(np.array([6.0, 2.0, 0.0]), np.array([True, True, False]))
    np.testing.assert_allclose(found, [*(weights[:2] / weights[:2].sum()), 0], rtol=1e-14)


def replayed(shown: np.ndarray, count: int, sub_epoch: int, seed: int) -> list[int]:
    """The specification's sentence, one draw at a time, with lists."""
    scenes, classes = shown.shape
    passes, left = [0] * classes, [[] for _ in range(classes)]
    drawn: list[int] = []
    seen, randoms = [0] * classes, np.empty(0)
    for sample in range(count):
        number, position = divmod(sample, sub_epoch)
        if position == 0:
            seen, randoms = [0] * classes, generator(seed, "class balance", number).random(sub_epoch)
        weights = []
        for c in range(classes):
            share = seen[c] / sum(seen) if sum(seen) else 0
            weights.append(1 / np.log(1.01 + share) if shown[:, c].any() else 0)
        point, c = randoms[position] * sum(weights), 0
        while point >= weights[c]:
            point -= weights[c]
            c += 1
        if not left[c]:
            candidates = [i for i in range(scenes) if shown[i, c]]
            left[c] = list(generator(seed, f"class balance/{c}", passes[c]).permutation(candidates))
            passes[c] += 1
        scene = left[c].pop(0)
        drawn.append(int(scene))
        for k in range(classes):
            seen[k] += int(shown[scene, k])
    return drawn


@pytest.mark.parametrize("sub_epoch", [1, 50, 3000])
def test_sequence_against_a_replay(sub_epoch: int) -> None:
    scenes = BalancedScenes(ClassBalancedSampling(sub_epoch), statistics(SHOWN), seed=3)
    expected = replayed(SHOWN, 400, sub_epoch, 3)
    assert scenes.between(0, 400).scenes.tolist() == expected
    stretch = scenes.between(120, 130)
    assert [stretch.scene(sample) for sample in range(120, 130)] == expected[120:130]


def test_any_stretch_is_the_same_whatever_was_asked_for_before() -> None:
    def fresh(seed: int = 0) -> BalancedScenes:
        return BalancedScenes(ClassBalancedSampling(30), statistics(SHOWN), seed=seed)

    whole = fresh().between(0, 500).scenes
    piecewise = fresh()
    for first, last in ((0, 40), (300, 301), (40, 300), (490, 500)):
        assert np.array_equal(piecewise.between(first, last).scenes, whole[first:last])
    assert np.array_equal(fresh().between(499, 500).scenes, whole[499:])  # a resume
    assert not np.array_equal(fresh(1).between(0, 500).scenes, whole)


def test_rare_classes_are_seen_more_often_than_by_shuffling() -> None:
    drawn = BalancedScenes(ClassBalancedSampling(), statistics(SHOWN), seed=0).between(0, 3000).scenes
    seen, shuffled = SHOWN[drawn].mean(0), SHOWN.mean(0)
    assert seen[3] > 2 * shuffled[3]
    # Whoever shows the rare class comes up evenly: a queue, not draws with replacement.
    times = Counter(drawn.tolist())
    assert set(times) == set(np.flatnonzero(SHOWN.any(1)).tolist())


def test_a_class_of_one_scene_and_an_empty_scene() -> None:
    shown = np.array([[1, 0], [1, 1], [0, 0]])
    drawn = BalancedScenes(ClassBalancedSampling(10), statistics(shown), seed=0).between(0, 100).scenes
    assert set(drawn.tolist()) == {0, 1}
    with pytest.raises(AdaptSegError, match="no labelled pixel"):
        BalancedScenes(ClassBalancedSampling(), statistics(np.zeros((3, 2))), seed=0)


# ---- in a domain pair


def test_source_follows_the_sequence_and_the_target_does_not(tmp_path: Path) -> None:
    data = balanced(tmp_path)
    batches = run(data)
    drawn = data.drawing.balanced_scenes()
    assert drawn is not None
    count = sum(len(batch.samples) for batch in batches)
    keys = [Islands().keys[i] for i in drawn.between(0, count).scenes]
    assert [key for batch in batches for key in batch.source.keys] == keys  # type: ignore[union-attr]
    plain = run(pair(source=Islands(), target=Secret("t", 3, SIZE), flip=True))
    for one, other in zip(batches, plain, strict=True):
        assert one.target.keys == other.target.keys  # type: ignore[union-attr]


def test_batches_are_a_function_of_seed_and_sample_number(tmp_path: Path) -> None:
    whole = run(balanced(tmp_path))
    assert_equal(run(balanced(tmp_path, workers=2), max_steps=3), whole[:3])
    for cut in (1, 5, 11):  # a restart anywhere, with a new data module
        assert_equal(run(balanced(tmp_path), global_step=cut), whole[cut:])
    assert_equal(run(balanced(tmp_path, tick=5)), whole)


def test_slices_of_ranks_are_the_global_batch(tmp_path: Path) -> None:
    whole = run(balanced(tmp_path))
    ranks = [run(balanced(tmp_path), global_rank=rank, world_size=2) for rank in range(2)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert [key for part in parts for key in part.source.keys] == batch.source.keys  # type: ignore[union-attr]


def test_gradient_accumulation_draws_the_samples_of_its_micro_batches(tmp_path: Path) -> None:
    one = run(balanced(tmp_path, batch_size=4))
    two = run(balanced(tmp_path, batch_size=2), accumulate_grad_batches=2)
    keys = [[key for batch in batches for key in batch.source.keys] for batches in (one, two)]  # type: ignore[union-attr]
    assert keys[0] == keys[1]


def test_what_is_absent_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = balanced(tmp_path)
    data.trainer = Clock()  # type: ignore[assignment]
    data.setup("fit")
    said = capsys.readouterr().out
    assert f"class-balanced sampling: no source scene shows {', '.join(STREETS.names[5:18])}; never drawn" in said
    data.train_dataloader()
    assert capsys.readouterr().out == ""


def test_a_copy_for_a_worker_is_small() -> None:
    stretch = BalancedScenes(ClassBalancedSampling(), statistics(SHOWN), seed=0).between(2000, 6000)
    assert len(pickle.dumps(stretch)) < 4000 * 4 + 500


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(AdaptSegError, match=r"data\.class_balanced_sampling\.sub_epoch is 0"):
        ClassBalancedSampling(0)
    rule = ClassBalancedSampling()
    with pytest.raises(AdaptSegError, match=r"data\.class_balanced_sampling is about the source"):
        pair(source=None, class_balanced_sampling=rule)
    with pytest.raises(AdaptSegError, match="both draw the source's scenes"):
        pair(class_balanced_sampling=rule, rare_class_sampling=RareClassSampling())


def test_the_command_line_takes_the_settings() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DomainPair, "data")
    given = parser.parse_args(["--data.class_balanced_sampling", '{"sub_epoch": 9}', "--data.target", "null"])
    assert given.data.class_balanced_sampling.sub_epoch == 9
