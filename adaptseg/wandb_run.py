"""How a run appears in Weights & Biases: one run there per run directory, whatever interrupts it."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from adaptseg import storage
from adaptseg.console import say

PROJECT = "adaptseg"
_LONGEST_TAG = 64  # a limit of W&B
_LONGEST_NAME = 100  # leaves room in the 128 characters that W&B allows an id or the name of an artefact


def run_id(folder: Path) -> str:
    """The W&B id of a run directory: WANDB_RUN_ID, which a sweep agent sets, else the one of the first start.

    Made once and kept in `<run>/wandb_id.txt`, so that a resume continues its curves and `--fresh`, which renames the
    directory, begins new ones. Only rank zero may call it.
    """
    path = folder / "wandb_id.txt"
    given = os.environ.get("WANDB_RUN_ID")
    if given is None and path.is_file():
        return path.read_text().strip()
    name = re.sub(r"[^\w-]", "-", f"{folder.parent.name}-{folder.name}")[:_LONGEST_NAME]
    chosen = given or f"{name}-{secrets.token_hex(4)}"
    storage.atomic_write(path, f"{chosen}\n")
    return chosen


def tags(folder: Path, config: dict[str, Any]) -> list[str]:
    """What runs are filtered by: recipes, method, acquisition; each once, in this order."""
    classes = [config[block]["class_path"].rpartition(".")[2] for block in ("model", "active") if config.get(block)]
    return list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in [*folder.parent.name.split("+"), *classes]))


def go_offline_without_a_key() -> None:
    """Log offline, and say so, where neither a mode nor an API key is set."""
    import wandb

    if "WANDB_MODE" not in os.environ and not wandb.api.api_key:
        say("--wandb: no API key is set, so this run is logged offline; `wandb sync` uploads it")
        os.environ["WANDB_MODE"] = "offline"


def wandb_logger(
    folder: Path, config: dict[str, Any], *, project: str | None, entity: str | None, is_rank_zero: bool
) -> WandbLogger:
    """The logger of a run: group = recipe, tags, the whole config; its files lie in `<run>/wandb`.

    Args:
        folder: the run directory.
        config: resolved, plain types.
        project: default WANDB_PROJECT, then `adaptseg`.
        entity: user or team; default WANDB_ENTITY, then that of the API key.
        is_rank_zero: other processes log nothing and get a logger that never starts a run.
    """
    if is_rank_zero:
        go_offline_without_a_key()
    return WandbLogger(
        name=f"{folder.parent.name}-{folder.name}",
        id=run_id(folder) if is_rank_zero else None,
        save_dir=str(folder),
        project=project or os.environ.get("WANDB_PROJECT") or PROJECT,
        entity=entity or os.environ.get("WANDB_ENTITY"),
        group=folder.parent.name[:_LONGEST_NAME],
        tags=tags(folder, config),
        config=config,
        resume="allow",
    )


def finish(code: int, *, preempted: bool) -> None:
    """Upload what is left and close the run, so that a next one in this process begins its own. Nothing without a run.

    Args:
        code: exit code of the process.
        preempted: W&B then waits for the next start, and a sweep hands the run out again.
    """
    import wandb

    if wandb.run is not None:
        if preempted:
            wandb.run.mark_preempting()
        wandb.finish(exit_code=code)
