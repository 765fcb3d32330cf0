"""Several evaluation sets in one run: which is the main one, and what the others are called."""

from __future__ import annotations

import re

from adaptseg.data.scenes import Scenes
from adaptseg.errors import AdaptSegError

Evaluated = Scenes | list[Scenes] | dict[str, Scenes] | None
"""One set; several, named by their class in lower case; several with names of their own; none."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_TAKEN = re.compile(r"iou|recall|worst|accuracy|miou.*")
"""What the main set's metrics are called: `val/iou/...`, `val/miou_16`."""


def named(given: Evaluated, where: str) -> dict[str, Scenes]:
    """Name -> set, the main one first; `where` is the key in messages.

    Raises:
        AdaptSegError: a list has two sets of one class, or a name does not fit into the name of a metric.
    """
    if given is None:
        return {}
    if isinstance(given, dict):
        sets = dict(given)
    else:
        listed = given if isinstance(given, list) else [given]
        names = [type(scenes).__name__.lower() for scenes in listed]
        if len(set(names)) < len(names):
            raise AdaptSegError(
                f"{where} lists {', '.join(names)}; give sets of one class names of their own: "
                f"{where}: {{first: ..., second: ...}}"
            )
        sets = dict(zip(names, listed, strict=True))
    if wrong := [name for name in sets if not _NAME.fullmatch(name) or _TAKEN.fullmatch(name)]:
        raise AdaptSegError(
            f"{where}: '{wrong[0]}' cannot name a set; letters, digits, _ and - are allowed, and none of the metrics' "
            "own names (miou, iou, recall, worst, accuracy)"
        )
    return sets
