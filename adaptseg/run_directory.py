"""One directory per run, chosen by us: runs/<recipe>/<name>. What lies there, and what a resume must agree with."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from adaptseg import storage
from adaptseg.errors import AdaptSegError

MUST_MATCH = ("model", "data", "active", "seed_everything", "trainer.max_steps")
"""Keys that decide the result; anything else may change between a run and its resume."""

MAY_CHANGE = ("data.init_args.workers", "data.init_args.cache", "active.init_args.scratch")
"""Keys below them that do not."""


def run_directory(root: Path, configs: Sequence[Path], name: str | None, seed: int) -> Path:
    """`<root>/<stems of all configs joined by +>/<name or seed<k>>`; under a sweep agent the W&B run id is appended."""
    recipe = "+".join(path.stem for path in configs) or "flags"
    run = name or f"seed{seed}"
    if os.environ.get("WANDB_SWEEP_ID") and (run_id := os.environ.get("WANDB_RUN_ID")):
        run += f"-{run_id}"
    return root / recipe / run


def last_checkpoint(folder: Path) -> Path:
    """Where a fit leaves the state that it resumes from."""
    return folder / "checkpoints" / "last.ckpt"


def is_finished(folder: Path) -> bool:
    """Whether the fit of this directory ran to its last step."""
    return (folder / "result.json").is_file() and last_checkpoint(folder).is_file()


def set_aside(folder: Path) -> Path | None:
    """Rename an existing run directory for `--fresh`; nothing is deleted. Returns its new place."""
    if not folder.exists():
        return None
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    place = folder.with_name(f"{folder.name}.{stamp}")
    number = 1
    while place.exists():  # two within a second
        number += 1
        place = folder.with_name(f"{folder.name}.{stamp}-{number}")
    folder.rename(place)
    return place


def require_same_config(folder: Path, config: dict[str, Any]) -> None:
    """Raise unless the directory's saved config agrees with `config` in everything that decides the result."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise AdaptSegError(
            f"{folder} holds a checkpoint but no config.yaml; choose another --name, or start with --fresh"
        )
    saved = yaml.safe_load(path.read_text())
    for key in MUST_MATCH:
        if difference := _first_difference(_get(saved, key), _get(config, key), key):
            where, old, new = difference
            raise AdaptSegError(
                f"{folder} was written by another config: {where} was {old!r} and is now {new!r}. "
                "Give this run another --name, or start over with --fresh"
            )


def write_stamp(folder: Path, config: dict[str, Any]) -> None:
    """Write config.yaml and environment.json (versions, git state, command line) into the run directory."""
    storage.atomic_write(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    storage.atomic_json(folder / "environment.json", environment())


def environment() -> dict[str, Any]:
    """Versions and circumstances that a reader needs to run it again; plain types."""
    packages = ("adaptseg", "torch", "torchvision", "lightning", "jsonargparse", "timm", "segmentation-models-pytorch")
    return {
        "command": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "git": {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))},
    }


def _git(*arguments: str) -> str | None:
    """Answer of git for the folder of this package; None where it is no checkout."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _get(config: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _first_difference(old: Any, new: Any, where: str) -> tuple[str, Any, Any] | None:
    if where in MAY_CHANGE:
        return None
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else (where, old, new)
    for key in {**old, **new}:
        if difference := _first_difference(old.get(key), new.get(key), f"{where}.{key}"):
            return difference
    return None
