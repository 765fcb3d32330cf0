"""Our own options of a verb, and errors of the command line in one line that names the key."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

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


class OwnOptions(argparse.ArgumentParser):
    """Raises in one line where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise AdaptSegError(message)


def own_options(verb: str, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the options that say where a run lives from those that make the config."""
    parser = OwnOptions(prog=f"adaptseg {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--name")
    parser.add_argument("--root")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--wandb", action="store_true")
    parser.add_argument("--wandb_project")
    parser.add_argument("--wandb_entity")
    parser.add_argument("--preempt_signal", default="USR1")
    parser.add_argument("--certainty", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    for name in ("wandb_project", "wandb_entity"):
        if getattr(options, name) is not None and not options.wandb:
            raise AdaptSegError(f"--{name} is about a run that is logged to Weights & Biases; add --wandb")
    return options, rest


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
