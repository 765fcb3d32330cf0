"""Errors of the command line in one line that names the key."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from adaptseg.errors import AdaptSegError

Made = TypeVar("Made")

START = "start from a recipe: --config configs/cbda_20pct.yaml"


class Refusals:
    """Remembers what a class that a config names refused, as a jsonargparse instantiator.

    Where an argument may be one thing, a list or a mapping of them, jsonargparse tries each and keeps the error of the
    first alone, which says no more than that a list is no reader.
    """

    def __init__(self) -> None:
        self.first: AdaptSegError | None = None

    def instantiate(self, class_type: type[Made], *args: Any, **kwargs: Any) -> Made:
        try:
            return class_type(*args, **kwargs)
        except AdaptSegError as error:
            self.first = self.first or error
            raise


_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_OUTER_KEY = re.compile(r"^([a-z_][\w.]*): (?=[a-z_][\w.]*: )")


def one_line(message: str) -> str:
    """What jsonargparse says in many lines, with the key in dots: "data.batch_size: Expected int. Got value: two"."""
    if required := re.match(r"the following arguments are required: (.*)", message):
        blocks = " and ".join(f"`{name.rpartition('.')[2]}:`" for name in required[1].split(", "))
        return f"no {blocks} block is given; {START}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # Where several types were tried, each has a line "- why not"; what was given follows, at length.
    reasons = [line.removeprefix("- ") for line in lines if line.startswith("- ") and "NoneType" not in line]
    outer = _KEY.match(message)
    text = _KEY.sub(r"\1: ", (outer[0] if outer and reasons else "") + ("; ".join(reasons) or " ".join(lines)))
    while _OUTER_KEY.match(text):  # a parser in a parser: "data: batch_size: ..."
        text = _OUTER_KEY.sub(r"\1.", text)
    text = re.sub(r"a <class '([\w.]+)'>", r"\1", text)
    return text.replace("a typing.Literal", "one of ").replace("typing.Literal", "one of ")
