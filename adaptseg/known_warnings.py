"""Warnings of libraries that are no news for our users, each with the reason."""

from __future__ import annotations

import logging
import warnings

from jsonargparse._deprecated import JsonargparseDeprecationWarning


def silence(verb: str) -> None:
    """Silence them for the rest of the process, which runs one verb of the command line."""
    if verb != "fit":  # a trained state is scored without the callbacks that trained it
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers",  # data.workers is the user's choice
        r".*Checkpoint directory .* exists and is not empty",  # a resume
        r".*The number of training batches .* is smaller than the logging interval",  # short ticks
        r".*Total length of `list` across ranks is zero",  # data.val is null
        r".*resuming from a checkpoint that ended before the epoch ended",  # our sampler goes on where it stopped
        r"Found \d+ module\(s\) in eval mode",  # a teacher, frozen norms
        r".*GPU available but not used",  # trainer.accelerator is the user's choice
        r".*isinstance\(treespec, LeafSpec\)",  # lightning 2.6 under torch 2.15
        r".*`broadcast_buffers` is deprecated",  # torch 2.15; its successor is unknown to torch 2.6
        r".*recommended to use `self\.log\('((round_\d+/)?val|test)/.*sync_dist=True",  # equal on all ranks
    ):
        warnings.filterwarnings("ignore", message)
    # Calls that lightning 2.6 itself makes, to be removed in jsonargparse 5 (bounded in pyproject).
    warnings.filterwarnings("ignore", category=JsonargparseDeprecationWarning)
