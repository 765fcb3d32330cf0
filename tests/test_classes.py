"""Label tables: every raw id lands where the table says, or is refused by name."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptseg.classes import CAMVID, CITYSCAPES, STREETS, VOID, ClassTable, SemanticClass
from adaptseg.errors import AdaptSegError

ROWS = [
    {"name": "road", "color": [1, 2, 3], "raw_ids": [7]},
    {"name": "car", "color": [4, 5, 6], "thing": True, "raw_ids": [26, 300]},
    {"name": "sky", "color": [7, 8, 9], "raw_ids": [0]},
]
TABLE = {"name": "mine", "classes": ROWS, "void_ids": [1, 255]}


def table(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy({**TABLE, **changes})


# ---- raw ids to train ids


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64, np.uint64])
def test_train_ids_equal_a_loop_over_pixels(dtype: type[np.integer]) -> None:
    mine = ClassTable.from_dict(TABLE)
    raw = np.random.default_rng(0).choice([7, 26, 300, 0, 1, 255], (13, 17)).astype(dtype)
    expected = [[{7: 0, 26: 1, 300: 1, 0: 2, 1: VOID, 255: VOID}[int(value)] for value in row] for row in raw]
    ids = mine.train_ids(raw)
    assert ids.dtype == np.uint8
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint32, bool])
def test_every_integer_type_is_read(dtype: type) -> None:
    np.testing.assert_array_equal(STREETS.train_ids(np.array([[0, 1]], dtype)), [[0, 1]])


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (np.array([[7, 9, 9, 12]], np.uint8), "9, 12"),
        (np.array([[-1]], np.int8), "-1"),
        (np.array([[-(2**40), 7]], np.int64), str(-(2**40))),
        (np.array([[65536 + 7]], np.int32), "65543"),  # would be road if only 16 bits were looked at
        (np.array([[2**64 - 1]], np.uint64), str(2**64 - 1)),
    ],
)
def test_unknown_ids_are_named(raw: np.ndarray, named: str) -> None:
    with pytest.raises(AdaptSegError, match=f"label ids {named} are unknown to class table 'mine'"):
        ClassTable.from_dict(TABLE).train_ids(raw)


def test_at_most_eight_unknown_ids_are_listed() -> None:
    with pytest.raises(AdaptSegError) as error:
        ClassTable.from_dict(TABLE).train_ids(np.arange(100, 200)[None])
    assert "100, 101, 102, 103, 104, 105, 106, 107 are" in str(error.value)


def test_an_empty_map_stays_empty() -> None:
    assert STREETS.train_ids(np.zeros((0, 4), np.uint8)).shape == (0, 4)


def test_cityscapes_spells_its_classes_as_published() -> None:
    published = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    np.testing.assert_array_equal(CITYSCAPES.train_ids(np.array([published])), [range(19)])
    others = [*sorted(set(range(35)) - set(published)), 255]
    np.testing.assert_array_equal(CITYSCAPES.train_ids(np.array([others])), np.full((1, 17), VOID))
    assert CITYSCAPES.names[11:] == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    np.testing.assert_array_equal(CITYSCAPES.things, [False] * 11 + [True] * 8)
    assert STREETS.names == CITYSCAPES.names


def test_both_spellings_of_void_in_camvid() -> None:
    np.testing.assert_array_equal(CAMVID.train_ids(np.array([[0, 10, 11, 255]])), [[0, 10, VOID, VOID]])


# ---- tables from plain types


def test_ids_give_raw_ids_and_rows_give_the_order() -> None:
    names = ["a", "b", "c"]
    rows = [{"id": number, "name": name, "color": [0, 0, 0]} for number, name in enumerate(names, start=1)]
    one_based = ClassTable.from_dict({"name": "one-based", "classes": rows, "ignore_index": 0})
    np.testing.assert_array_equal(one_based.train_ids(np.array([[0, 1, 2, 3]])), [[VOID, 0, 1, 2]])
    shuffled = ClassTable.from_dict({"name": "shuffled", "classes": rows[::-1], "ignore_index": 0})
    assert shuffled.names == ("c", "b", "a")
    np.testing.assert_array_equal(shuffled.train_ids(np.array([[0, 1, 2, 3]])), [[VOID, 2, 1, 0]])


def test_defaults_are_position_and_255() -> None:
    rows = [{"name": "a", "color": [0, 0, 0]}, {"name": "b", "color": [0, 0, 0]}]
    plain = ClassTable.from_dict({"name": "plain", "classes": rows})
    np.testing.assert_array_equal(plain.train_ids(np.array([[0, 1, 255]])), [[0, 1, VOID]])
    assert not plain.things.any()


def test_void_may_be_absent() -> None:
    with pytest.raises(AdaptSegError, match="255"):
        ClassTable.from_dict(table(void_ids=[])).train_ids(np.array([[255]]))


@pytest.mark.parametrize("known", [CITYSCAPES, CAMVID, STREETS, ClassTable.from_dict(TABLE)], ids=lambda t: t.name)
def test_plain_types_and_pickle_give_the_table_back(known: ClassTable) -> None:
    for again in (ClassTable.from_dict(json.loads(json.dumps(known.to_dict()))), pickle.loads(pickle.dumps(known))):
        assert again == known
        assert hash(again) == hash(known)
        assert again.fingerprint == known.fingerprint
        np.testing.assert_array_equal(again.colors, known.colors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": [*ROWS, {"name": "road", "color": [0, 0, 0], "raw_ids": [8]}]}, "names given twice: road"),
        ({"classes": [*ROWS, {"name": "bus", "color": [0, 0, 0], "raw_ids": [26]}]}, "raw id 26 is claimed twice"),
        ({"void_ids": [7]}, "raw id 7 is claimed twice"),
        ({"void_ids": [-1]}, "raw id -1 is outside 0..65535"),
        ({"void_ids": [65536]}, "raw id 65536 is outside"),
        ({"classes": ROWS[:1]}, "1 classes given, 2 to 255 allowed"),
        ({"ignore": 255}, "the table has unknown keys ignore"),
        ({"classes": [{**ROWS[0], "colour": [0, 0, 0]}, *ROWS[1:]]}, "class 0 has unknown keys colour"),
    ],
)
def test_wrong_tables_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptSegError, match=message):
        ClassTable.from_dict(table(**changes))


def test_as_many_classes_as_fit_below_void() -> None:
    classes = tuple(SemanticClass(str(number), (0, 0, 0)) for number in range(256))
    assert ClassTable("full", classes[:255]).train_ids(np.array([[254, 255]])).tolist() == [[254, VOID]]
    with pytest.raises(AdaptSegError, match="256 classes given"):
        ClassTable("too many", classes)


# ---- files


def test_yaml_and_json_files_are_read_and_named_after_themselves(tmp_path: Path) -> None:
    content = {"classes": ROWS, "void_ids": [1, 255]}
    for name in ("mine.yaml", "mine.json"):
        (tmp_path / name).write_text(json.dumps(content))  # JSON is YAML
        assert ClassTable.from_file(tmp_path / name) == ClassTable.from_dict(TABLE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping with the keys name, classes, void_ids"),
        ("- road", "expected a mapping"),
        ("name: a", "missing key 'classes'"),
        ("classes: null", "NoneType"),
        ("classes: [{name: a}, {name: b}]", "missing key 'color'"),
        ("classes: [{name: a, color: [1, 2]}]", "not enough values"),
        ("classes: [{name: a, color: [1, 2, x]}]", "invalid literal"),
        ("classes: [{name: a, color: [1, 2, 3], raw_ids: 4}]", "a list of ids is expected"),
        ("classes: [{name: a, color: [1, 2, 3], raw_id: 4}]", "class 0 has unknown keys raw_id"),
        ("classes: [road, car]", "class 0 has unknown keys"),
        ("classes: [{name: a, color: [1, 2, 3]}, {name: a, color: [1, 2, 3]}]", "names given twice: a"),
        ("classes: [{name: a, color: [0, 0, 0]}, {name: b, color: [0, 0, 0]}]\nvoid_ids: 255", "not iterable"),
        ("classes:\n  - {name: a\n", "line 2"),
        ("\xff", "decode"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(AdaptSegError, match=message) as error:
        ClassTable.from_file(path)
    assert str(error.value).startswith(f"class table {path}: ")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdaptSegError, match=r"absent\.yaml does not exist"):
        ClassTable.from_file(tmp_path / "absent.yaml")


# ---- same or not


def test_predictions_compare_by_names_in_order_alone() -> None:
    mine = ClassTable.from_dict(TABLE)
    recoloured = [{**row, "color": [9, 9, 9], "raw_ids": [number]} for number, row in enumerate(ROWS)]
    other_spelling = ClassTable.from_dict(table(name="theirs", classes=recoloured, void_ids=[255]))
    mine.require_same(other_spelling, "data.val")
    assert mine.fingerprint == other_spelling.fingerprint
    assert mine != other_spelling
    assert mine != "mine"
    swapped = ClassTable.from_dict(table(name="swapped", classes=[ROWS[1], ROWS[0], ROWS[2]]))
    with pytest.raises(AdaptSegError, match=r"data\.val: class table 'swapped' \(car, road, sky\) differs from 'mine'"):
        mine.require_same(swapped, "data.val")


def test_fingerprints_are_frozen() -> None:
    """Checkpoints and label stores of earlier versions hold tables that must still compare."""
    assert CITYSCAPES.fingerprint == STREETS.fingerprint == "5995d02d6c574d51"
    assert CAMVID.fingerprint == "4079fe08a5eedfc1"


def test_pictures_take_the_colours_and_void_is_black() -> None:
    labels = np.array([[0, 1, VOID]], np.uint8)
    np.testing.assert_array_equal(ClassTable.from_dict(TABLE).colorize(labels), [[[1, 2, 3], [4, 5, 6], [0, 0, 0]]])
