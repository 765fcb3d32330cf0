"""Several evaluation sets: which is the main one, and names that fit into metrics."""

from __future__ import annotations

import pytest

from adaptseg.data import Scenes, Streets
from adaptseg.data.named import named
from adaptseg.errors import AdaptSegError


class Other(Streets):
    pass


FIRST, SECOND = Streets("street", "val", count=1), Other("fog", "val", count=1)


def test_one_a_list_a_mapping_and_none() -> None:
    assert named(None, "data.val") == {}
    assert named(FIRST, "data.val") == {"streets": FIRST}
    assert list(named([SECOND, FIRST], "data.val")) == ["other", "streets"]
    assert list(named({"fog": SECOND, "clear-2": FIRST}, "data.val").items()) == [("fog", SECOND), ("clear-2", FIRST)]


def test_two_of_a_class_need_names() -> None:
    with pytest.raises(AdaptSegError, match=r"data.val lists streets, streets; give sets of one class names"):
        named([FIRST, FIRST], "data.val")


@pytest.mark.parametrize("name", ["a/b", "", "miou", "miou_16", "iou", "recall", "worst", "accuracy", "a b", "-a"])
def test_names_that_break_metrics_are_refused(name: str) -> None:
    given: dict[str, Scenes] = {"good": FIRST, name: SECOND}
    with pytest.raises(AdaptSegError, match=rf"data.test: '{name}' cannot name a set"):
        named(given, "data.test")
