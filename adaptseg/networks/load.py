"""Rebuild a trained network from a checkpoint: architecture, weights, class table and normalisation, without a hub."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from adaptseg.classes import ClassTable
from adaptseg.errors import AdaptSegError
from adaptseg.networks.segmenter import Normalization, Segmenter
from adaptseg.networks.weights import read_torch_file

ENTRY = "adaptseg"
"""Key of a checkpoint under which `describe` is stored."""


class Describable(Protocol):
    """A network that says how to make it anew."""

    def config(self) -> dict[str, Any]:
        """{"class_path": ..., "init_args": {...}} of plain types."""
        ...


def describe(
    networks: Mapping[str, tuple[str, Describable]],
    class_table: ClassTable | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, Any]:
    """The entry that lets `load` rebuild networks; plain types only.

    Args:
        networks: name ("student", "teacher") -> (prefix of its keys in the state dict, e.g. "student.", the network).
        class_table: the classes of the logits; None if no network has logits.
        mean, std: normalisation of the images, one number a channel, RGB in [0, 1].
    """
    return {
        "networks": {name: {"prefix": prefix, "config": s.config()} for name, (prefix, s) in networks.items()},
        "class_table": None if class_table is None else class_table.to_dict(),
        "normalization": {"mean": [float(v) for v in mean], "std": [float(v) for v in std]},
    }


def load(
    checkpoint_or_run_dir: str | Path, network: str = "student", *, class_table: ClassTable | None = None
) -> Segmenter:
    """A network of a checkpoint on the CPU, in eval mode; its parameters still take gradients.

    `class_table` and `normalization` of the result say what it was trained for.

    Args:
        checkpoint_or_run_dir: a checkpoint, or a run directory, which means its checkpoints/last.ckpt.
        network: one of the networks the checkpoint names.
        class_table: if given, the table the caller works with.

    Raises:
        AdaptSegError: no such file, not a checkpoint of adaptseg, no such network in it, weights that do not fit
            strictly, or another class table than the caller's.
    """
    path, checkpoint = _read(checkpoint_or_run_dir)
    segmenter = _rebuilt(path, checkpoint, network)
    if not isinstance(segmenter, Segmenter):
        raise AdaptSegError(f"{path}: network '{network}' is a {type(segmenter).__name__}, not a Segmenter")
    entry = checkpoint[ENTRY]
    saved_table = ClassTable.from_dict(entry["class_table"])
    if class_table is not None:
        class_table.require_same(saved_table, str(path))
    segmenter.class_table = saved_table
    normalization = entry["normalization"]
    segmenter.normalization = Normalization(tuple(normalization["mean"]), tuple(normalization["std"]))
    return segmenter


def rebuild(checkpoint_or_run_dir: str | Path, network: str) -> nn.Module:
    """Any network of a checkpoint, also one that is no Segmenter, on the CPU and in eval mode.

    Arguments and errors are those of `load`.
    """
    return _rebuilt(*_read(checkpoint_or_run_dir), network)


def _rebuilt(path: Path, checkpoint: dict[str, Any], network: str) -> nn.Module:
    saved = checkpoint[ENTRY]["networks"]
    if network not in saved:
        raise AdaptSegError(f"{path} has no network '{network}'; it has {', '.join(sorted(saved))}")
    module, prefix = build(saved[network]["config"]), saved[network]["prefix"]
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise AdaptSegError(f"{path}: weights under '{prefix}' do not fit network '{network}': {reason}") from error
    return module.eval()


def names(checkpoint_or_run_dir: str | Path) -> tuple[str, ...]:
    """The networks that `load` can rebuild from a checkpoint or run directory."""
    _, checkpoint = _read(checkpoint_or_run_dir)
    return tuple(checkpoint[ENTRY]["networks"])


def build(config: Mapping[str, Any]) -> nn.Module:
    """Make the module that {"class_path": ..., "init_args": {...}} describes; arguments may be such dicts themselves,
    of modules or of dataclasses.

    Raises:
        AdaptSegError: a class cannot be imported, is neither of these, or does not take the arguments.
    """
    made = _made(config)
    if not isinstance(made, nn.Module):
        raise AdaptSegError(f"class_path: '{config['class_path']}' is not a network (a torch.nn.Module)")
    return made


def _made(config: Mapping[str, Any]) -> Any:
    class_path = str(config["class_path"])
    module, _, name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise AdaptSegError(f"class_path: '{class_path}' cannot be imported: {error}") from error
    if not (isinstance(cls, type) and (issubclass(cls, nn.Module) or is_dataclass(cls))):
        raise AdaptSegError(f"class_path: '{class_path}' is not a network (a torch.nn.Module)")
    arguments = {key: _build_nested(value) for key, value in config.get("init_args", {}).items()}
    try:
        return cls(**arguments)
    except TypeError as error:
        raise AdaptSegError(f"class_path: '{class_path}' does not take its init_args: {error}") from error


def _build_nested(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _made(value) if "class_path" in value else {k: _build_nested(v) for k, v in value.items()}
    return [_build_nested(v) for v in value] if isinstance(value, list) else value


def _read(checkpoint_or_run_dir: str | Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint, and where it lies."""
    path = Path(checkpoint_or_run_dir)
    path = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise AdaptSegError(f"{path} does not exist; give a checkpoint or a run directory with checkpoints/last.ckpt")
    checkpoint = read_torch_file(path, "checkpoint")
    if not isinstance(checkpoint, dict) or not {ENTRY, "state_dict"} <= checkpoint.keys():
        raise AdaptSegError(f"{path} is not a checkpoint of adaptseg: it lacks '{ENTRY}' or 'state_dict'")
    return path, checkpoint
