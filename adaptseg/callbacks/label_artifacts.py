"""Bought labels as W&B artefacts: one version per round."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from adaptseg.active.label_files import REGISTRY, manifest_file, round_name
from adaptseg.active.rounds import Acquisition


class LabelArtifacts(Callback):
    """Logs the label store of rounds 1..k after round k, as a version `round_00k` of the artefact `<run id>-labels`;
    names the last version `final` once training ends.

    Versions hold committed rounds only. W&B stores equal files once. Stateless: a round that is redone after a kill
    leaves the same files, which W&B recognises as the same version.

    Args:
        logger: of the run.
    """

    def __init__(self, logger: WandbLogger) -> None:
        self.logger = logger

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.acquisition = next(c for c in trainer.callbacks if isinstance(c, Acquisition))  # pyright: ignore
        self._logged = self.acquisition.round

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.acquisition.round > self._logged:
            self._logged = self.acquisition.round
            self._log(round_name(self._logged))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._logged and trainer.global_step >= trainer.max_steps:
            self._log(round_name(self._logged), "final")

    @rank_zero_only
    def _log(self, *aliases: str) -> None:
        import wandb

        store, last = self.acquisition.store.folder, self.acquisition.round
        artifact = wandb.Artifact(
            f"{self.logger.version}-labels", "labels", metadata=dict(self.acquisition.history[-1])
        )
        names = [REGISTRY, *(manifest_file(store, number).name for number in range(1, last + 1))]
        for name in names:
            artifact.add_file(str(store / name), name, skip_cache=True, policy="immutable")
        # Committed rounds never change, so no copies are needed.
        for number in range(1, last + 1):
            name = round_name(number)
            artifact.add_dir(str(store / name), name, skip_cache=True, policy="immutable")
        self.logger.experiment.log_artifact(artifact, aliases=list(aliases))
