"""Lines for the person at the terminal."""

from __future__ import annotations

from rich.console import Console


def say(text: str) -> None:
    """Print one line, unbroken and as it is, to standard output. Under DDP the caller sees to it that only one process
    speaks.
    """
    Console(soft_wrap=True).print(text, highlight=False, markup=False)
