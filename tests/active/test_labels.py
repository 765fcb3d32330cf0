"""The label store against an in-memory model, broken files, and kills at every system call that changes the disk."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptseg.active.labels import LabelStore, RoundTotals, format_checksum, query_checksum
from adaptseg.classes import CAMVID, STREETS, ClassTable, SemanticClass
from adaptseg.errors import AdaptSegError

SIZES = {"aachen/a_01": (7, 9), "aachen/b": (5, 6), "b": (8, 8), "never": (3, 4)}
C = CAMVID.num_classes


def answer_for(key: str, rng: np.random.Generator, share: float, taken: np.ndarray | None = None):
    """A random legal answer; about a fifth of what is bought is void."""
    size = SIZES[key]
    bought = rng.random(size) < share
    if taken is not None:
        bought &= ~taken
    labels = rng.integers(0, C, size).astype(np.uint8)
    labels[rng.random(size) < 0.2] = 255
    labels[~bought] = 255
    return key, labels, bought


def commit(store: LabelStore, round: int, answers, checksum: str = "00", **kwargs) -> RoundTotals:
    return store.commit(round, answers, query_checksum=checksum, config_hash="cfg", **kwargs)


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore.create(tmp_path / "labels", SIZES, CAMVID)


def two_rounds(store: LabelStore, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    first = [answer_for(key, rng, 0.3) for key in ("aachen/a_01", "b")]
    commit(store, 1, first, "01")
    taken = {key: bought for key, _, bought in first}
    commit(store, 2, [answer_for(key, rng, 0.3, taken.get(key)) for key in ("b", "aachen/b")], "02")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_random_rounds_equal_a_naive_model(tmp_path: Path, seed: int):
    rng = np.random.default_rng(seed)
    store = LabelStore.create(tmp_path, SIZES, CAMVID)
    labels = {key: [np.full(size, 255)] for key, size in SIZES.items()}  # history, one entry per round
    bought = {key: [np.zeros(size, bool)] for key, size in SIZES.items()}
    spent, void, counts = [0], [0], [np.zeros(C, int)]
    for round in range(1, 6):
        answers = {}
        for key in SIZES:
            share = rng.choice([0.0, 0.05, 0.3])
            if key != "never" and rng.random() < 0.8:
                answers[key] = answer_for(key, rng, share, bought[key][-1])
        totals = commit(store, round, answers.values(), f"{round:02x}", seed=seed)
        round_spent = round_void = images = 0
        round_counts = np.zeros(C, int)
        for key, (height, width) in SIZES.items():
            labels[key].append(labels[key][-1].copy())
            bought[key].append(bought[key][-1].copy())
            if key not in answers:
                continue
            _, given, asked = answers[key]
            images += bool(asked.any())
            for y in range(height):
                for x in range(width):
                    if asked[y, x]:
                        bought[key][-1][y, x] = True
                        labels[key][-1][y, x] = given[y, x]
                        round_spent += 1
                        if given[y, x] == 255:
                            round_void += 1
                        else:
                            round_counts[given[y, x]] += 1
        spent.append(spent[-1] + round_spent)
        void.append(void[-1] + round_void)
        counts.append(counts[-1] + round_counts)
        assert (totals.spent, totals.void, totals.images) == (round_spent, round_void, images)
        assert totals.class_counts.tolist() == round_counts.tolist()
        assert store.rounds == round
    for reopened in (store, LabelStore.open(tmp_path), LabelStore.create(tmp_path, SIZES, CAMVID)):
        reopened.verify()
        for up_to in range(6):
            view = pickle.loads(pickle.dumps(reopened.view(up_to)))
            assert view == reopened.view(up_to)
            assert reopened.spent(up_to) == spent[up_to] == counts[up_to].sum() + void[up_to]
            assert reopened.void(up_to) == void[up_to]
            assert reopened.class_counts(up_to).dtype == np.int64
            assert reopened.class_counts(up_to).tolist() == counts[up_to].tolist()
            for key in SIZES:
                for reader in (view.labels(key), reopened.labels(key, up_to)):
                    assert reader.dtype == np.uint8
                    np.testing.assert_array_equal(reader, labels[key][up_to])
                for reader in (view.bought(key), reopened.bought(key, up_to)):
                    assert reader.dtype == np.bool_
                    np.testing.assert_array_equal(reader, bought[key][up_to])
                assert reopened.spent_on(key, up_to) == bought[key][up_to].sum()


def test_arrays_may_be_written_to(store: LabelStore):
    two_rounds(store)
    store.labels("b", 2)[0, 0] = 1
    store.bought("b", 2)[0, 0] = True


def test_files_are_what_the_format_says(store: LabelStore):
    two_rounds(store)
    commit(store, 3, [], "03", seed=7)
    names = {str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file()}
    assert names == {
        "registry.json",
        *("round_001.json", "round_001/aachen/a_01.png", "round_001/aachen/a_01.bought.png"),
        *("round_001/b.png", "round_001/b.bought.png"),
        *("round_002.json", "round_002/aachen/b.png", "round_002/aachen/b.bought.png"),
        *("round_002/b.png", "round_002/b.bought.png", "round_003.json"),
    }
    with (
        Image.open(store.folder / "round_001/b.png") as labels,
        Image.open(store.folder / "round_001/b.bought.png") as mask,
    ):
        assert (labels.mode, mask.mode, labels.size) == ("L", "1", (8, 8))
    assert json.loads((store.folder / "round_003.json").read_text()) == {
        "round": 3,
        "config_hash": "cfg",
        "query_checksum": "03",
        "seed": 7,
        "images": 0,
        "spent": 0,
        "void": 0,
        "class_counts": [0] * C,
        "class_table": CAMVID.fingerprint,
    }
    assert store.manifest(1)["seed"] is None


def test_answers_of_void_only_are_bought(store: LabelStore):
    bought = np.zeros((8, 8), bool)
    bought[3] = True
    totals = commit(store, 1, [("b", np.full((8, 8), 255, np.uint8), bought)])
    assert (totals.spent, totals.void, totals.images, totals.class_counts.sum()) == (8, 8, 1, 0)
    assert store.bought("b", 1).sum() == 8
    assert (store.labels("b", 1) == 255).all()
    store.verify()


def test_odd_sizes_survive_one_bit_masks(tmp_path: Path):
    rng = np.random.default_rng(0)
    sizes = {f"{h}x{w}": (h, w) for h in (1, 2, 3) for w in (1, 7, 8, 9, 17)}
    store = LabelStore.create(tmp_path, sizes, CAMVID)
    masks = {key: rng.random(size) < 0.6 for key, size in sizes.items()}
    commit(store, 1, [(key, np.where(mask, 3, 255).astype(np.uint8), mask) for key, mask in masks.items()])
    for key, mask in masks.items():
        np.testing.assert_array_equal(store.bought(key, 1), mask)


def test_non_contiguous_answers(store: LabelStore):
    key, labels, bought = answer_for("aachen/a_01", np.random.default_rng(0), 0.5)
    commit(store, 1, [(key, np.asfortranarray(labels), np.asfortranarray(bought)[:, ::-1][:, ::-1])])
    np.testing.assert_array_equal(store.labels(key, 1), labels)


# --- registry --------------------------------------------------------------------------------------------------------


def test_create_again_opens_or_says_what_differs(store: LabelStore):
    two_rounds(store)
    before = snapshot(store.folder)
    assert LabelStore.create(store.folder, dict(reversed(SIZES.items())), CAMVID).rounds == 2
    for sizes, message in (
        ({**SIZES, "b": (8, 9)}, r"'b' is \(8, 8\) there, \(8, 9\) now; restore the pool and data.pool_size"),
        ({**SIZES, "c": (8, 9)}, r"'c' is absent there, \(8, 9\) now"),
        ({key: size for key, size in SIZES.items() if key != "b"}, r"'b' is \(8, 8\) there, absent now"),
    ):
        with pytest.raises(AdaptSegError, match=message):
            LabelStore.create(store.folder, sizes, CAMVID)
    with pytest.raises(AdaptSegError, match="class table 'streets'"):
        LabelStore.create(store.folder, SIZES, STREETS)
    assert snapshot(store.folder) == before


def test_registry_keeps_sizes_and_table(store: LabelStore):
    opened = LabelStore.open(store.folder)
    assert opened.sizes == SIZES
    assert opened.class_table == CAMVID


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "images": {"a": 3}, "class_table": {}}', "null"])
def test_broken_registry_is_named(store: LabelStore, text: str):
    (store.folder / "registry.json").write_text(text)
    with pytest.raises(AdaptSegError, match=r"registry\.json"):
        LabelStore.open(store.folder)
    with pytest.raises(AdaptSegError, match=r"registry\.json"):
        LabelStore.create(store.folder, SIZES, CAMVID)


def test_registry_of_another_format_or_fingerprint(store: LabelStore):
    path = store.folder / "registry.json"
    registry = json.loads(path.read_text())
    path.write_text(json.dumps({**registry, "format": 2}))
    with pytest.raises(AdaptSegError, match=r"registry\.json has format 2"):
        LabelStore.open(store.folder)
    path.write_text(json.dumps({**registry, "class_table": {**registry["class_table"], "fingerprint": "0"}}))
    with pytest.raises(AdaptSegError, match="does not match its fingerprint"):
        LabelStore.open(store.folder)


def test_missing_registry(store: LabelStore, tmp_path: Path):
    with pytest.raises(AdaptSegError, match=r"elsewhere/registry\.json does not exist"):
        LabelStore.open(tmp_path / "elsewhere")
    two_rounds(store)
    (store.folder / "registry.json").unlink()
    with pytest.raises(AdaptSegError, match="round_001"):
        LabelStore.create(store.folder, SIZES, CAMVID)


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\\b", "a\0", "..", "a.bought"])
def test_unsafe_keys_are_refused(tmp_path: Path, key: str):
    with pytest.raises(AdaptSegError, match="image key"):
        LabelStore.create(tmp_path, {"fine": (2, 2), key: (2, 2)}, CAMVID)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keys", [("a", "a.png/b"), ("a", "a.bought.png/b"), ("x/a", "x/a.png/y/b")])
def test_colliding_keys_are_refused(tmp_path: Path, keys: tuple[str, str]):
    with pytest.raises(AdaptSegError, match="collide"):
        LabelStore.create(tmp_path, dict.fromkeys(keys, (2, 2)), CAMVID)


def test_keys_that_only_look_alike_are_kept_apart(tmp_path: Path):
    keys = ["a", "a/a", "a/a/a", "a.png", "a.bought.b", "..a", "é ü", "round_001"]
    store = LabelStore.create(tmp_path, dict.fromkeys(keys, (1, 8)), CAMVID)
    mask = np.eye(8, dtype=bool)
    commit(
        store,
        1,
        [(key, np.where(mask[i : i + 1], i, 255).astype(np.uint8), mask[i : i + 1]) for i, key in enumerate(keys)],
    )
    store.verify()
    for i, key in enumerate(keys):
        assert store.labels(key, 1)[0, i] == i
        assert store.spent_on(key, 1) == 1


# --- what is refused -------------------------------------------------------------------------------------------------


def good() -> tuple[np.ndarray, np.ndarray]:
    bought = np.zeros((8, 8), bool)
    bought[2:4, 2:4] = True
    return np.where(bought, 1, 255).astype(np.uint8), bought


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda k, x, b: ("nobody", x, b), "'nobody': the image is not in the pool"),
        (lambda k, x, b: (k, x[:7], b[:7]), r"'b': labels is \(7, 8\) uint8; \(8, 8\) uint8"),
        (lambda k, x, b: (k, x, b[:, :7]), r"'b': bought is \(8, 7\) bool"),
        (lambda k, x, b: (k, x.astype(np.int64), b), "labels is .* int64"),
        (lambda k, x, b: (k, x, b.astype(np.uint8)), "bought is .* uint8; .* bool"),
        (lambda k, x, b: (k, np.full_like(x, 1), b), "labels must be 255 where nothing is bought"),
        (lambda k, x, b: (k, np.where(b, C, 255).astype(np.uint8), b), f"labels must be below {C}, or 255"),
        (lambda k, x, b: (k, np.where(b, 254, 255).astype(np.uint8), b), f"labels must be below {C}, or 255"),
        (lambda k, x, b: (k, x, np.zeros_like(b)), "labels must be 255 where nothing is bought"),
    ],
)
def test_bad_answers_are_refused_and_nothing_is_committed(store: LabelStore, spoil: Callable, message: str):
    with pytest.raises(AdaptSegError, match=message):
        commit(store, 1, [spoil("b", *good())])
    assert store.rounds == 0
    commit(store, 1, [("b", *good())])
    store.verify()


def test_no_pixel_is_bought_twice(store: LabelStore):
    commit(store, 1, [("b", *good())])
    labels, bought = good()
    labels, bought = np.roll(labels, 1, 0), np.roll(bought, 1, 0)  # two of four pixels are new
    with pytest.raises(AdaptSegError, match="'b': a pixel bought in an earlier round"):
        commit(store, 2, [("b", labels, bought)])
    assert store.rounds == 1
    with pytest.raises(AdaptSegError, match="'b': the image is answered twice in round 2"):
        commit(store, 2, [("b", np.roll(labels, 4, 0), np.roll(bought, 4, 0))] * 2)


def test_rounds_come_in_order(store: LabelStore):
    for round in (-1, 0, 2):
        with pytest.raises(AdaptSegError, match=f"round {round} cannot be written when 0 rounds .* give 1 to 1"):
            store.prepare(round)
    two_rounds(store)
    with pytest.raises(AdaptSegError, match="round 4 cannot be written when 2 rounds are committed; give 1 to 3"):
        commit(store, 4, [])
    with pytest.raises(RuntimeError, match="before prepare"):
        store.stage(3, [])


def test_rounds_that_are_not_there(store: LabelStore):
    two_rounds(store)
    for call in (
        store.spent, store.void, store.class_counts, store.view,
        lambda r: store.labels("b", r), lambda r: store.bought("b", r), lambda r: store.spent_on("b", r),
    ):  # fmt: skip
        for round in (-1, 3):
            with pytest.raises(AdaptSegError, match=f"round {round} asked for, 2 rounds are committed"):
                call(round)
    for round in (0, 3):
        with pytest.raises(AdaptSegError):
            store.manifest(round)
    with pytest.raises(AdaptSegError, match="'x' is not in the pool"):
        store.labels("x", 1)
    with pytest.raises(AdaptSegError, match="'x' is not in the pool"):
        store.view(0).bought("x")


def test_later_rounds_are_invisible(store: LabelStore):
    rng = np.random.default_rng(0)
    first = answer_for("b", rng, 0.3)
    commit(store, 1, [first])
    view = store.view(1)
    commit(store, 2, [answer_for("b", rng, 0.5, first[2])])
    np.testing.assert_array_equal(view.labels("b"), first[1])
    np.testing.assert_array_equal(store.bought("b", 1), first[2])
    assert store.view(0).bought("b").sum() == 0


# --- redoing rounds --------------------------------------------------------------------------------------------------


def test_matches(store: LabelStore):
    two_rounds(store)
    assert store.matches(1, "01")
    assert store.matches(2, "02")
    assert not store.matches(2, "01")
    assert not store.matches(3, "03")
    assert not store.matches(0, "00")


def test_set_aside_moves_this_and_later_rounds_and_keeps_every_file(store: LabelStore):
    two_rounds(store)
    before = snapshot(store.folder)
    store.set_aside(2)
    store.set_aside(2)  # nothing left to move
    assert store.rounds == 1
    two_rounds(store, seed=1)  # set aside both once more, by redoing round 1
    assert store.rounds == 2
    store.verify()
    aside = snapshot(store.folder / "set_aside")
    for name, data in before.items():
        if name != "registry.json":
            number = name[:9]
            assert aside[f"{number}_1/{name}"] == data
    assert sorted(path.name for path in (store.folder / "set_aside").iterdir()) == ["round_001_1", "round_002_1"]
    store.set_aside(1)
    assert store.rounds == 0
    assert sorted(path.name for path in (store.folder / "set_aside").iterdir()) == [
        *("round_001_1", "round_001_2", "round_002_1", "round_002_2")
    ]


def test_redoing_a_round_hides_the_later_ones(store: LabelStore):
    two_rounds(store)
    commit(store, 1, [("b", *good())], "ff")
    assert store.rounds == 1
    assert store.spent(1) == 4
    assert store.bought("aachen/a_01", 1).sum() == 0


@pytest.mark.parametrize("steps", ["prepare", "stage", "rename"])
def test_steps_left_undone_are_set_aside(store: LabelStore, steps: str):
    two_rounds(store)
    rng = np.random.default_rng(5)
    taken = store.bought("b", 2)
    store.prepare(3)
    if steps != "prepare":
        store.stage(3, [answer_for("b", rng, 0.9, taken)])
    if steps == "rename":
        (store.folder / "round_003.partial").rename(store.folder / "round_003")
    before = snapshot(store.folder)
    reopened = LabelStore.open(store.folder)
    assert reopened.rounds == 2
    np.testing.assert_array_equal(reopened.bought("b", 2), taken)
    reopened.verify()
    final = answer_for("b", rng, 0.5, taken)
    commit(reopened, 3, [final], "03")
    reopened.verify()
    np.testing.assert_array_equal(reopened.bought("b", 3), taken | final[2])
    after = snapshot(store.folder)
    for name, data in before.items():
        assert after.get(name) == data or after[f"set_aside/round_003_1/{name}"] == data


def test_ranks_stage_their_own_images(store: LabelStore, tmp_path: Path):
    rng = np.random.default_rng(0)
    answers = [answer_for(key, rng, 0.4) for key in SIZES]
    single = LabelStore.create(tmp_path / "single", SIZES, CAMVID)
    commit(single, 1, answers, "0a", seed=1)
    store.prepare(1)
    ranks = [LabelStore.open(store.folder) for _ in range(3)]
    parts = [rank.stage(1, answers[i::3]) for i, rank in enumerate(ranks)]
    store.seal(1, parts[0] + parts[1] + parts[2], query_checksum="0a", config_hash="cfg", seed=1)
    assert snapshot(store.folder) == snapshot(single.folder)
    ranks[2].verify()
    # The positional order is what an all-reduce of plain numbers rebuilds totals from.
    rebuilt = RoundTotals(parts[0].spent, parts[0].void, parts[0].images, parts[0].class_counts) + RoundTotals.zero(C)
    assert (rebuilt.spent, rebuilt.class_counts.tolist()) == (parts[0].spent, parts[0].class_counts.tolist())


def test_an_image_staged_by_two_ranks_is_refused(store: LabelStore):
    store.prepare(1)
    store.stage(1, [("b", *good())])
    with pytest.raises(AdaptSegError, match="answered twice"):
        LabelStore.open(store.folder).stage(1, [("b", *good())])


# --- damage ----------------------------------------------------------------------------------------------------------


def test_gap_and_broken_manifests_are_named(store: LabelStore):
    two_rounds(store)
    manifest = store.folder / "round_001.json"
    text = manifest.read_text()
    manifest.unlink()
    for call in (lambda: store.rounds, lambda: store.view(1), lambda: store.prepare(2), lambda: store.matches(2, "")):
        with pytest.raises(AdaptSegError, match=r"round_001\.json is missing, but round 2 is committed"):
            call()
    good = json.loads(text)
    for broken, message in (
        (text[:-20], "truncated or broken"),
        ("[]", "not the manifest of a round: 'round'"),
        (json.dumps({**good, "spent": "9"}), "'spent' is missing or of the wrong type"),
        (json.dumps({name: value for name, value in good.items() if name != "query_checksum"}), "'query_checksum'"),
        (json.dumps({**good, "round": 2}), "does not match the label store: it is about round 2"),
        (json.dumps({**good, "class_table": STREETS.fingerprint}), "does not match the label store: its class table"),
        (json.dumps({**good, "class_counts": [0, 1]}), "it counts 2 classes, not 11"),
        (json.dumps({**good, "spent": good["spent"] + 1}), "do not sum to spent"),
    ):
        manifest.write_text(broken)
        with pytest.raises(AdaptSegError, match=rf"round_001\.json.*{message}"):
            _ = store.rounds
    manifest.write_text(text)
    store.verify()


def test_verify_finds_every_flipped_byte(store: LabelStore):
    two_rounds(store)
    store.verify()
    paths = sorted(store.folder.glob("round_*/**/*.png"))
    assert len(paths) == 8
    for path in paths[:3]:
        data = path.read_bytes()
        for offset in range(len(data)):
            path.write_bytes(data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :])
            with pytest.raises(AdaptSegError, match=path.name.replace(".", r"\.")):
                store.verify()
        path.write_bytes(data)
    store.verify()


def test_truncated_png_is_named(store: LabelStore):
    two_rounds(store)
    for name, call in (("b.png", store.view(2).labels), ("b.bought.png", store.view(2).bought)):
        path = store.folder / "round_002" / name
        data = path.read_bytes()
        for length in (0, 20, len(data) - 20):
            path.write_bytes(data[:length])
            with pytest.raises(AdaptSegError, match=rf"round_002/{name}"):
                call("b")
            with pytest.raises(AdaptSegError, match=rf"round_002/{name}"):
                store.verify()
        path.write_bytes(data)


def save(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


def test_files_that_were_replaced(store: LabelStore):
    two_rounds(store)
    path = store.folder / "round_002" / "b.png"
    labels, bought = np.array(Image.open(path)), np.array(Image.open(path.with_name("b.bought.png")))
    spoiled = labels.copy()
    y, x = np.argwhere(labels != 255)[0]
    spoiled[y, x] = (labels[y, x] + 1) % C
    save(path, spoiled)
    with pytest.raises(AdaptSegError, match=r"round_002\.json does not match the files of its round"):
        store.verify()
    save(path, np.full_like(labels, 0))
    with pytest.raises(AdaptSegError, match=r"round_002/b\.png: labels must be 255 where nothing is bought"):
        store.verify()
    save(path, labels[:7])
    with pytest.raises(AdaptSegError, match=r"round_002/b\.png holds \(7, 8\) uint8; \(8, 8\) uint8 is expected"):
        store.labels("b", 2)
    save(path, bought)
    with pytest.raises(AdaptSegError, match=r"round_002/b\.png holds \(8, 8\) bool"):
        store.labels("b", 2)
    save(path, labels)
    shutil.copy(store.folder / "round_001/b.bought.png", path.with_name("b.bought.png"))
    with pytest.raises(AdaptSegError, match=r"round_002/b\.(bought\.)?png"):
        store.verify()


@pytest.mark.parametrize("name", ["b.png", "b.bought.png", "aachen", ""])
def test_lost_files_are_missed(store: LabelStore, name: str):
    two_rounds(store)
    lost = store.folder / "round_002" / name
    lost.rename(store.folder / "lost")
    for call in (lambda: store.view(2), store.verify):
        with pytest.raises(AdaptSegError, match=r"round_002 does not match round_002\.json: .* of 2 images"):
            call()
    assert store.view(1).round == 1


def test_strange_files_beside_the_rounds_are_ignored(store: LabelStore):
    two_rounds(store)
    for name in ("round_002.json.bak", ".round_003.json.1234.tmp", "round_x.json", "round_7", "notes.txt"):
        (store.folder / name).write_text("?")
    assert store.rounds == 2
    store.set_aside(1)
    assert (store.folder / "notes.txt").exists()


# --- checksums -------------------------------------------------------------------------------------------------------


def test_query_checksum():
    rng = np.random.default_rng(0)
    picks = [(key, rng.integers(0, 1000, (n, 2))) for key, n in (("a", 5), ("b/c", 1), ("d", 70))]
    whole = query_checksum(picks)
    assert 0 <= whole < 2**63
    shuffled = [(key, rng.permutation(yx)) for key, yx in reversed(picks)]
    assert query_checksum(shuffled) == whole
    assert (query_checksum(picks[:1]) + query_checksum(picks[1:])) % 2**63 == whole
    assert query_checksum([*picks, ("e", np.zeros((0, 2), np.int64))]) == whole
    assert query_checksum([(key, yx.astype(np.int32)) for key, yx in picks]) == whole
    others = [
        picks[1:],
        [("a2", picks[0][1]), *picks[1:]],
        [("a", picks[0][1][:, ::-1]), *picks[1:]],
        [("a", picks[0][1] + 1), *picks[1:]],
        [("a", picks[1][1]), ("b/c", picks[0][1]), picks[2]],
    ]
    assert len({whole, *map(query_checksum, others)}) == 6
    assert query_checksum([]) == 0


def test_checksum_is_frozen():
    # Stored manifests are compared with it: SHA-256 of b"a\0" and little-endian (1, 2), (3, 0), first 8 bytes.
    import hashlib

    data = b"a\0" + b"".join(value.to_bytes(8, "little") for value in (1, 2, 3, 0))
    expected = int.from_bytes(hashlib.sha256(data).digest()[:8], "little") % 2**63
    assert query_checksum([("a", np.array([[3, 0], [1, 2]]))]) == expected
    assert format_checksum(255) == "00000000000000ff"
    assert format_checksum(2**63 + 1) == format_checksum(1)


# --- kills -----------------------------------------------------------------------------------------------------------

# In child processes the store is imported without the package around it, which imports Lightning and takes seconds.
LIGHT = """
import os, shutil, signal, sys, types
import adaptseg
package = types.ModuleType("adaptseg.active")
package.__path__ = [adaptseg.__path__[0] + "/active"]
sys.modules["adaptseg.active"] = package
"""

# Commits rounds in forked children; child number n dies at the n-th call that changes the disk.
KILLER = """
from pathlib import Path
import numpy as np
from adaptseg.active.labels import LabelStore
from adaptseg.classes import CAMVID

root, scenario = Path(sys.argv[1]), sys.argv[2]

def answers(round, salt=0):
    for key, row in (("aachen/a_01", round), ("b", round), ("aachen/b", round + 1)):
        labels = np.full((8, 8), 255, np.uint8)
        labels[row] = [(round + salt) % 11, 255, 1, 2, 3, 4, 5, 6]
        yield key, labels, np.arange(8)[:, None].repeat(8, 1) == row

def commit(store, round, salt=0):
    store.commit(round, answers(round, salt), query_checksum=f"{round}-{salt}", config_hash="c", seed=0)

def work(store):
    if scenario == "second":
        commit(store, 2)
    elif scenario == "redo":
        commit(store, 1, salt=1)

def run(folder, deadline):
    count = 0
    def counted(real):
        def call(*arguments, **keywords):
            nonlocal count
            if count == deadline:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return real(*arguments, **keywords)
        return call
    for name in ("replace", "rename", "fsync", "mkdir", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    work(LabelStore.open(folder))
    os._exit(0)

first = root / "start"
store = LabelStore.create(first, dict.fromkeys(("aachen/a_01", "b", "aachen/b"), (8, 8)), CAMVID)
commit(store, 1)
if scenario == "redo":
    commit(store, 2)
deadline = 0
while True:
    folder = root / f"killed_{deadline}"
    shutil.copytree(first, folder)
    child = os.fork()
    if not child:
        run(folder, deadline)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
    store = LabelStore.open(folder)
    committed = store.rounds
    store.verify()  # whatever is committed is whole
    work(store)
    deadline += 1
print(deadline)
"""


@pytest.mark.parametrize("scenario", ["second", "redo"])
def test_a_kill_at_any_point_is_repaired_by_doing_it_again(tmp_path: Path, scenario: str):
    killer = tmp_path / "killer.py"
    killer.write_text(LIGHT + KILLER)
    done = subprocess.run([sys.executable, killer, tmp_path, scenario], check=True, capture_output=True, text=True)
    points = int(done.stdout)
    assert points >= 15
    start = snapshot(tmp_path / "start")
    # The last folder belongs to the child that was not killed: all others must have come to the same content.
    clean = snapshot(tmp_path / f"killed_{points}")
    live = {name: data for name, data in clean.items() if not name.startswith("set_aside")}
    for point in range(points):
        folder = tmp_path / f"killed_{point}"
        found = snapshot(folder)
        kept = [data for name, data in found.items() if name.startswith("set_aside")]
        for name, data in live.items():
            assert found[name] == data, (point, name)
        for name, data in start.items():
            assert found.get(name) == data or data in kept, (point, name)
        extra = {name for name in found if not name.startswith("set_aside")} - set(live)
        assert all(Path(name).name.startswith(".") for name in extra), (point, extra)
        store = LabelStore.open(folder)
        store.verify()
        assert store.rounds == (2 if scenario == "second" else 1)


def test_kill_while_creating(tmp_path: Path):
    code = (
        f"{LIGHT}"
        "from adaptseg.active.labels import LabelStore\n"
        "from adaptseg.classes import CAMVID\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "LabelStore.create(sys.argv[1], {'a': (2, 2)}, CAMVID)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "labels")], check=False)
    assert done.returncode == -9
    store = LabelStore.create(tmp_path / "labels", {"a": (2, 2)}, CAMVID)
    assert store.rounds == 0
    assert os.listdir(tmp_path / "labels")  # noqa: PTH208


def test_two_hundred_and_fifty_five_classes(tmp_path: Path):
    table = ClassTable("many", tuple(SemanticClass(f"c{i}", (0, 0, 0)) for i in range(255)))
    store = LabelStore.create(tmp_path, {"a": (16, 16)}, table)
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    commit(store, 1, [("a", labels, np.ones((16, 16), bool))])
    np.testing.assert_array_equal(store.labels("a", 1), labels)
    assert store.class_counts(1).tolist() == [1] * 255
    assert (store.spent(1), store.void(1)) == (256, 1)


def test_import_needs_no_torch():
    code = f"{LIGHT}\nimport adaptseg.active.labels, adaptseg.storage; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
