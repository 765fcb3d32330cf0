"""Rare-class sampling, varied crops, untrusted margins: what is drawn and cut; the order survives all of it."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from numpy.typing import NDArray
from scipy.special import softmax
from test_pair import Bought, Clock, Coded, Secret, assert_equal, batches, pair, pixels, run
from test_statistics import Unreadable, cache_file

from adaptseg.classes import STREETS, VOID
from adaptseg.data import Batch, DomainPair, RareClassSampling, Streets
from adaptseg.data.rare_classes import RareClasses, class_probabilities
from adaptseg.data.statistics import ClassStatistics
from adaptseg.data.transforms import Geometry, class_share, is_varied, redrawn, trusted_map
from adaptseg.errors import AdaptSegError

SIZE = (20, 30)


def statistics(counts: Any, pixels: int = 1000) -> ClassStatistics:
    counts = np.array(counts, np.int64)
    return ClassStatistics(tuple(f"s{i}" for i in range(len(counts))), counts, np.full(len(counts), pixels))


class Islands(Coded):
    """Road everywhere, but for a 4x4 island of class 1 + i in scene i, and two pixels of class 18 in scene 0.

    The last scene shows road alone; class 0 of the upper left quarter is void.
    """

    def __init__(self, count: int = 5) -> None:
        super().__init__("s", count, SIZE)

    def labels(self, key: str) -> NDArray[np.uint8]:
        index = self.keys.index(key)
        labels = np.zeros(SIZE, np.uint8)
        labels[:10, :15] = VOID
        if index < len(self.keys) - 1:
            labels[12:16, 20:24] = 1 + index
        if index == 0:
            labels[19, :2] = 18
        return labels

    def _codes(self, key: str) -> NDArray[np.uint8]:
        return self.labels(key)


ISLANDS = RareClassSampling(min_share=0.01)
"""Scenes are drawn for their island; class 18 is scarce."""


def drawn(tmp_path: Path, rule: RareClassSampling = ISLANDS, **changes: Any) -> DomainPair:
    settings = {"source": Islands(), "target": Secret("t", 3, SIZE), "crop": (8, 9), "flip": True, **changes}
    return pair(cache=str(tmp_path / "cache"), rare_class_sampling=rule, **settings)


# ---- probabilities


def test_probabilities_of_a_toy_histogram_by_hand() -> None:
    # exp((1 - f) / 0.5) for f = 0.5, 0.25, 0.25: e, e^1.5, e^1.5
    given = class_probabilities(np.array([0.5, 0.25, 0.25]), 0.5)
    np.testing.assert_allclose(given, [0.23269653, 0.38365173, 0.38365173], rtol=1e-7)
    # With T = 0.01 a class of half the pixels is e^-49 as likely as one of 1 %.
    given = class_probabilities(np.array([0.5, 0.01, 0.0, 0.49]), 0.01)
    np.testing.assert_allclose(given, [np.exp(-49), 1, 0, np.exp(-48)], rtol=1e-12)
    assert class_probabilities(np.array([0.0, 1.0]), 0.01).tolist() == [0, 1]


@pytest.mark.parametrize("temperature", [1e-6, 0.01, 0.1, 3.0, 1e9])
def test_probabilities_equal_a_softmax_over_present_classes(temperature: float) -> None:
    frequencies = np.random.default_rng(0).dirichlet(np.full(19, 0.2))
    frequencies[[3, 7]] = 0
    frequencies /= frequencies.sum()
    expected = np.zeros(19)
    expected[frequencies > 0] = softmax((1 - frequencies[frequencies > 0]) / temperature)
    given = class_probabilities(frequencies, temperature)
    np.testing.assert_allclose(given, expected, rtol=1e-9, atol=1e-300)
    assert given.sum() == pytest.approx(1)


def test_a_source_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdaptSegError, match="no labelled pixel"):
        class_probabilities(np.zeros(3), 0.01)
    with pytest.raises(AdaptSegError, match="no labelled pixel"):
        RareClasses.prepare(RareClassSampling(), statistics(np.zeros((2, 3))))


# ---- draws


def test_a_scene_is_drawn_for_what_it_shows_enough_of() -> None:
    rare = RareClasses.prepare(
        RareClassSampling(min_share=0.003, temperature=0.5),
        # 3 of 1000 pixels are not more than the share; class 3 is scarce: 2 of 1000 at most; class 4 is absent
        statistics([[900, 50, 3, 2, 0], [900, 0, 4, 1, 0], [900, 4, 0, 0, 0], [900, 99, 5, 0, 0]]),
    )
    assert [scenes.tolist() for scenes in rare.scenes] == [[0, 1, 2, 3], [0, 2, 3], [1, 3], [0, 1], []]
    assert rare.scarce == (3,)
    assert rare.probabilities[4] == 0
    notes = rare.notes(STREETS)
    assert len(notes) == 2
    assert f"no source scene shows {STREETS.names[4]}" in notes[0]
    assert f"more than 0.30% of {STREETS.names[3]};" in notes[1]


def test_frequencies_of_draws() -> None:
    rare = RareClasses.prepare(
        RareClassSampling(min_share=0, temperature=0.5), statistics([[500, 20, 0, 9], [400, 0, 0, 3], [10, 30, 0, 0]])
    )
    draws = [rare.draw(sample, seed=3) for sample in range(20_000)]
    assert draws[:50] == [rare.draw(sample, seed=3) for sample in range(50)]
    assert draws[:50] != [rare.draw(sample, seed=4) for sample in range(50)]
    classes = Counter(draw.class_id for draw in draws)
    for class_id, probability in enumerate(rare.probabilities):
        assert classes[class_id] / len(draws) == pytest.approx(probability, abs=0.012)
        scenes = Counter(draw.scene for draw in draws if draw.class_id == class_id)
        assert set(scenes) == set(rare.scenes[class_id])
        for count in scenes.values():
            assert count / classes[class_id] == pytest.approx(1 / len(scenes), abs=0.03)


def test_settings_outside_what_is_allowed_are_refused() -> None:
    for name, value in (
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("min_share", -0.1),
        ("min_share", 1.0),
        ("min_crop_share", float("nan")),
        ("attempts", -1),
    ):
        with pytest.raises(AdaptSegError, match=rf"rare_class_sampling\.{name} is {value}"):
            RareClassSampling(**{name: value})


# ---- crops


def test_redrawn_stops_at_the_first_accepted_and_keeps_the_last() -> None:
    for accepted_at, redraws, expected in ((0, 10, 0), (3, 10, 3), (10, 10, 10), (11, 10, 10), (5, 0, 0), (99, 2, 2)):
        numbers = iter(range(100))

        def draw(numbers: Any = numbers) -> Geometry:
            return Geometry(next(numbers), 0, 1, 1, False)

        assert redrawn(draw, lambda g, at=accepted_at: g.top == at, redraws).top == expected  # type: ignore[misc]


def test_is_varied_and_class_share() -> None:
    labels = torch.tensor([[0, 0, 0, 1], [VOID, VOID, VOID, VOID]])
    assert is_varied(labels, 0.75)
    assert not is_varied(labels, 0.74)
    assert not is_varied(torch.full((2, 2), VOID), 1.0)
    assert is_varied(torch.zeros(2, 2, dtype=torch.int64), 1.0)
    assert class_share(labels, 0) == 3 / 8
    assert class_share(labels, 7) == 0


@pytest.mark.parametrize("max_class_share", [None, 0.6])
def test_crops_show_the_class_they_were_drawn_for(tmp_path: Path, max_class_share: float | None) -> None:
    """The 4x4 island lies whole in 20 of the 13 x 22 crops, which 400 redraws do not miss.

    No crop with a fifth of island has less than 60 % road; with both rules the class goes first.
    """
    rule = RareClassSampling(min_share=0.01, min_crop_share=0.2, attempts=400)
    data = drawn(tmp_path, rule, max_class_share=max_class_share)
    rare = data.drawing.rare_classes()
    assert rare is not None
    found = set()
    for batch in run(data, max_steps=9):
        source = batch.source
        assert source is not None
        assert torch.equal(pixels(source.image)[:, 0], source.labels)
        for sample, key, labels in zip(batch.samples, source.keys, source.labels, strict=True):
            wanted, scene = rare.draw(sample, seed=data.seed)
            assert key == f"s{scene}"
            if wanted not in (0, 18):  # two pixels of class 18 are never a fifth
                found.add(wanted)
                assert (labels == wanted).float().mean() > 0.2
    assert found == {1, 2, 3, 4}


def test_without_redraws_the_crop_is_the_one_of_ever(tmp_path: Path) -> None:
    """The class chooses the scene; place and mirror stay those of the sample number."""
    plain = run(pair(source=Coded("s", 5, SIZE), target=None, crop=(8, 9), flip=True))
    rule = RareClassSampling(min_share=0, attempts=0)
    rare = run(drawn(tmp_path, rule, source=Coded("s", 5, SIZE), target=None))
    for old, new in zip(plain, rare, strict=True):
        assert old.source is not None
        assert new.source is not None
        assert torch.equal(pixels(old.source.image)[:, 1:], pixels(new.source.image)[:, 1:])
    assert [b.source.keys for b in plain if b.source] != [b.source.keys for b in rare if b.source]


def test_the_target_is_drawn_as_ever(tmp_path: Path) -> None:
    plain = run(pair(source=Islands(), target=Secret("t", 3, SIZE), crop=(8, 9), flip=True))
    rare = run(drawn(tmp_path, max_class_share=0.75))
    assert_equal([batch.target for batch in rare], [batch.target for batch in plain])


def test_whole_scenes_are_not_redrawn(tmp_path: Path) -> None:
    """Without a crop no draw shows more of the class; mirrors stay fair."""
    plain = run(pair(source=Coded("s", 5, SIZE), target=None, flip=True))
    rare = run(
        drawn(tmp_path, RareClassSampling(min_crop_share=0.9), source=Coded("s", 5, SIZE), target=None, crop=None)
    )
    for old, new in zip(plain, rare, strict=True):
        assert old.source is not None
        assert new.source is not None
        assert torch.equal(pixels(old.source.image)[:, 2], pixels(new.source.image)[:, 2])


def dominance(batch: Batch) -> list[float]:
    """The largest share of a class in the non-void pixels of each source crop; 1 where all is void."""
    assert batch.source is not None
    counts = [torch.bincount(labels[labels != VOID], minlength=19) for labels in batch.source.labels]
    return [float(count.max() / count.sum()) if count.sum() else 1.0 for count in counts]


def test_no_class_dominates_a_crop() -> None:
    """A crop that is good enough stays; of the others with an island to find, most find it in ten more draws."""
    settings: dict[str, Any] = {"source": Islands(2), "target": None, "crop": (8, 9), "flip": True}
    served = run(pair(**settings)), run(pair(**settings, max_class_share=0.9))
    plain, varied = (np.array([share for batch in batches for share in dominance(batch)]) for batches in served)
    island = np.array([key == "s0" for batch in served[0] if batch.source for key in batch.source.keys])
    np.testing.assert_array_equal(varied[plain <= 0.9], plain[plain <= 0.9])
    assert (plain[island] <= 0.9).mean() < 0.5
    assert (varied[island] <= 0.9).mean() > 0.9
    assert (varied[~island] == 1).all()  # road alone, after the last draw too


# ---- the order


def everything(tmp_path: Path, **changes: Any) -> DomainPair:
    return drawn(tmp_path, max_class_share=0.9, untrusted_margins=(0.1, 0.2, 0.05, 0.0), with_instances=True, **changes)


def test_batches_are_a_function_of_seed_and_sample_number(tmp_path: Path) -> None:
    whole = run(everything(tmp_path))
    assert_equal(run(everything(tmp_path, workers=2), max_steps=3), whole[:3])
    for cut in (1, 4, 5, 11):  # a restart anywhere, with a new data module
        assert_equal(run(everything(tmp_path), global_step=cut), whole[cut:])
    assert_equal(run(everything(tmp_path, tick=5)), whole)
    assert run(everything(tmp_path, seed=8))[0].source.keys != whole[0].source.keys  # type: ignore[union-attr]


def test_slices_of_ranks_are_the_global_batch(tmp_path: Path) -> None:
    whole = run(everything(tmp_path))
    ranks = [run(everything(tmp_path), global_rank=rank, world_size=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert batch.samples == list(range(4 * step, 4 * step + 4))
        assert batch.samples == [*ranks[0][step].samples, *ranks[1][step].samples]
        for domain in range(2):
            parts = [rank[step][domain] for rank in ranks]
            expected = batch[domain]
            assert [key for part in parts for key in part.keys] == expected.keys
            for column in range(1, 4):
                assert torch.equal(torch.cat([part[column] for part in parts]), expected[column])


def test_samples_count_micro_batches() -> None:
    served = run(pair(batch_size=2), accumulate_grad_batches=2, global_step=5)
    assert [batch.samples for batch in served[:3]] == [[20, 21], [22, 23], [24, 25]]
    assert not Batch(None, None).samples


# ---- margins


def test_trusted_map() -> None:
    trusted = trusted_map((10, 20), (0.1, 0.3, 0.05, 0.2))
    expected = torch.zeros(10, 20, dtype=torch.bool)
    expected[1:7, 1:16] = True
    assert torch.equal(trusted, expected)
    assert trusted_map((3, 4), (0, 0, 0, 0)).all()
    # The released margins on their own grids.
    full = trusted_map((1024, 2048), (30 / 1024, 240 / 1024, 30 / 2048, 30 / 2048))
    assert full.nonzero().aminmax(dim=0).min.tolist() == [30, 30]
    assert full.nonzero().aminmax(dim=0).max.tolist() == [1024 - 240 - 1, 2048 - 30 - 1]
    assert int(trusted_map((512, 1024), (0.029297, 0.234375, 0, 0))[:, 0].sum()) == 512 - 15 - 120


@pytest.mark.parametrize("changes", [{}, {"crop": (8, 11), "flip": True}, {"target_size": (24, 36)}], ids=str)
def test_margins_are_cut_with_the_scene(changes: dict[str, Any]) -> None:
    data = pair(target=Secret("t", 3, SIZE), source=None, untrusted_margins=(0.1, 0.2, 0.1, 0.3), **changes)
    size = changes.get("target_size", SIZE)
    data.bought = Bought(SIZE)
    for batch in run(data):
        target = batch.target
        assert target is not None
        assert target.trusted.dtype == torch.bool
        if size == SIZE:
            _, rows, columns = pixels(target.image).unbind(1)
            inside = (rows >= 2) & (rows < 16) & (columns >= 3) & (columns < 21)
            assert torch.equal(target.trusted, inside)
        else:
            assert torch.equal(target.trusted[0], trusted_map(size, data.untrusted_margins))
        assert target.bought_pixels == int((target.bought != VOID).sum())


# ---- the domain pair


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"untrusted_margins": (-0.1, 0, 0, 0)}, r"data\.untrusted_margins is \[-0\.1, 0, 0, 0\]"),
        ({"untrusted_margins": (0.5, 0.5, 0, 0)}, "below 1"),
        ({"untrusted_margins": (0, 0, 0.2, 0.8)}, "below 1"),
        ({"untrusted_margins": (float("nan"), 0, 0, 0)}, "below 1"),
        ({"max_class_share": 0.75}, r"max_class_share is about crops; set data\.crop"),
        ({"max_class_share": 0.0, "crop": (4, 4)}, r"max_class_share is 0\.0"),
        ({"max_class_share": 1.1, "crop": (4, 4)}, r"max_class_share is 1\.1"),
        ({"max_class_share": 0.5, "crop": (4, 4), "source": None}, r"max_class_share is about the source"),
        ({"rare_class_sampling": RareClassSampling(), "source": None}, r"rare_class_sampling is about the source"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptSegError, match=message):
        pair(**changes)


def test_statistics_are_there_before_the_first_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = drawn(tmp_path)
    data.setup("validate")
    assert not (tmp_path / "cache").exists()
    data.setup("fit")
    assert cache_file(tmp_path / "cache").exists()
    said = capsys.readouterr().out
    assert f"no source scene shows {', '.join(STREETS.names[5:18])}; never drawn" in said
    assert f"more than 1.00% of {STREETS.names[18]};" in said
    batches(data, Clock())
    batches(data, Clock(global_step=3))
    assert capsys.readouterr().out == ""  # said once
    other = drawn(tmp_path)
    other.trainer = Clock(global_rank=1)  # type: ignore[assignment]
    other.setup("fit")
    assert capsys.readouterr().out == ""  # and by one process


def test_a_source_that_cannot_be_counted_ends_setup(tmp_path: Path) -> None:
    data = DomainPair(
        source=Unreadable(), target=None, cache=str(tmp_path), rare_class_sampling=RareClassSampling(), workers=0
    )
    with pytest.raises(AdaptSegError, match="the labels of city/a were read"):
        data.setup("fit")


def test_a_copy_for_a_worker_is_small(tmp_path: Path) -> None:
    """A class above the share in each of 20,000 scenes costs four bytes a scene, not their names and counts."""
    counts = np.random.default_rng(0).integers(0, 100, (20_000, 3))
    rare = RareClasses.prepare(RareClassSampling(), statistics(counts))
    assert len(pickle.dumps(rare)) < 20_000 * 3 * 4 + 2000


def test_streets_at_the_defaults(tmp_path: Path) -> None:
    """Drawing by class shows the five rarest classes of the embedded source more often."""
    source = Streets("game", "train", count=60, size=(32, 64))
    settings: dict[str, Any] = {"source": source, "target": None, "crop": (24, 24), "batch_size": 20}
    plain = run(pair(**settings), max_steps=15)
    data = pair(**settings, rare_class_sampling=RareClassSampling(), max_class_share=0.75, cache=str(tmp_path))
    rarest = np.argsort(data.source_statistics().frequencies)[:5]
    shares = []
    for served in (plain, run(data, max_steps=15)):
        labels = torch.cat([batch.source.labels for batch in served if batch.source]).numpy()
        shares.append(np.isin(labels, rarest).mean())
    assert shares[1] > 1.3 * shares[0]


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")  # as the CLI does
def test_the_command_line_takes_the_settings() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(DomainPair, "data", fail_untyped=False)
    source = ["--data.target", "null", "--data.source", "Streets", "--data.source.look", "game"]
    source += ["--data.source.split", "train"]
    settings = ["--data.max_class_share", "0.75", "--data.crop", "[64, 64]"]
    settings += ["--data.untrusted_margins", "[0.029297, 0.234375, 0, 0]"]
    for flags, expected in (
        ([], None),
        (["--data.rare_class_sampling", "{}"], RareClassSampling()),
        (["--data.rare_class_sampling.temperature", "0.1"], RareClassSampling(temperature=0.1)),
        (["--data.rare_class_sampling", "null"], None),
    ):
        data = parser.instantiate_classes(parser.parse_args([*source, *settings, *flags])).data
        assert data.drawing.rare_class_sampling == expected
        assert data.drawing.max_class_share == 0.75
        assert data.untrusted_margins == (0.029297, 0.234375, 0.0, 0.0)
