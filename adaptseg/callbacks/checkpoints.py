"""The checkpoints of a run: `last`, which a fit resumes from, and `best` by the method's own metric."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from adaptseg import storage
from adaptseg.errors import AdaptSegError
from adaptseg.networks.weights import first_line


class MovableCheckpoint(ModelCheckpoint):
    """Keeps what it knows about the best checkpoint when a run directory is moved before it resumes.

    Lightning stores absolute paths and forgets the best score where they differ, so that the next one overwrites it.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        paths = {name: here(state_dict[name]) for name in names}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class AtomicCheckpointIO(TorchCheckpointIO):
    """A kill or a power cut while a checkpoint is written must leave the one before: write beside it, then rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        partial = path.with_name(f"{path.name}.partial")
        super().save_checkpoint(checkpoint, partial, storage_options)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        storage.sync_folder(path.parent)

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        try:
            return super().load_checkpoint(path, *arguments, **options)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise AdaptSegError(f"checkpoint {path} cannot be read: {first_line(error)}") from error
