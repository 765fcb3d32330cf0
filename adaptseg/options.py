"""Our own options of a verb; parsed without torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from adaptseg.errors import AdaptSegError


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
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--stage")
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
