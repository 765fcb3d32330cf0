"""Our own options of a verb, and errors of the command line in one line that names the key."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from adaptseg.errors import AdaptSegError

START = "start from a recipe: --config configs/cbda_20pct.yaml"


class OwnOptions(argparse.ArgumentParser):
    """An argparse parser that says in one line what is wrong."""

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
    parser.add_argument("--certainty", action="store_true")
    return parser.parse_known_args(arguments)


class Parser(LightningArgumentParser):
    """Says what is wrong in one line; the sixty lines of usage that argparse prints first hide it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise AdaptSegError(_one_line(message)) from ex


_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_OUTER_KEY = re.compile(r"^([a-z_][\w.]*): (?=[a-z_][\w.]*: )")


def _one_line(message: str) -> str:
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
