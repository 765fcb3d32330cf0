"""What `adaptseg predict` leaves behind: one label map per scene, and on request how sure the network was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from adaptseg.data.batch import Labelled
from adaptseg.data.label_folder import CERTAINTY, write_map


class PredictionWriter(Callback):
    """Writes `predictions/<key>.png` (uint8 train ids, native size) and `<key>.certainty.png` (uint8 per cent).

    Args:
        certainty: also write the probability of the predicted class.
    """

    def __init__(self, certainty: bool) -> None:
        self.certainty = certainty

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Labelled,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(outputs, Tensor)
        folder = Path(trainer.default_root_dir) / "predictions"
        for key, probabilities in zip(batch.keys, outputs, strict=True):
            certainty, predicted = probabilities.max(0)
            write_map(folder / f"{key}.png", predicted.cpu().numpy().astype(np.uint8))
            if self.certainty:
                per_cent = (certainty * 100).round().cpu().numpy().astype(np.uint8)
                write_map(folder / f"{key}{CERTAINTY}", per_cent)
