"""Training a denoiser on unlabelled images, for features: DDPM (Ho, Jain, Abbeel, NeurIPS 2020, algorithm 1).

Differs from the paper in what any number of processes needs to train alike: noise and timestep belong to a sample, not
to a batch. Size and schedule of the recipe are ours: published features come from ADM, which nobody trains on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torchmetrics import MeanMetric

from adaptseg.data.batch import Batch, Labelled
from adaptseg.data.pair import pair_of
from adaptseg.data.sampling import normal_draws, uniform_draws
from adaptseg.errors import AdaptSegError
from adaptseg.losses.reduce import at_least_float32
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.optimization import Optimization
from adaptseg.methods.training import Monitor, StepResult, Training
from adaptseg.networks.denoiser import TIMESTEPS, Denoiser, centred, noised
from adaptseg.networks.teacher import EMATeacher

JUDGED = tuple(range(TIMESTEPS // 16, TIMESTEPS, TIMESTEPS // 8))
"""Eight timesteps, the middles of eighths of the process, at which validation measures the error."""


class Denoising(Training):
    """L = mean squared error of the predicted noise, over the images of all domains that the pair has.

    Only images are read: no label of either domain. The network that features use is the average of the weights.

    State beyond the trained network's: the average and its number of updates, in the checkpoint.

    Args:
        channels, layers, attention, head_dim: of the network, see `adaptseg.networks.Denoiser`; by default one that
            a CPU can train at 128x128.
        optimization: optimiser and schedule; a denoiser has no head, so head_lr_factor is 1.
        alpha: how slowly the average follows the weights; see `EMATeacher` (DDPM: 0.9999 over 500,000 steps or more).
        seed: filled in from `seed_everything`.
        acceleration: compilation and memory format of the network.

    Raises:
        AdaptSegError: a network that cannot be made, a head_lr_factor that would do nothing.
    """

    monitor = Monitor("val/denoising_loss", "min")

    def __init__(
        self,
        *,
        channels: Sequence[int] = (32, 64, 128, 128),
        layers: int = 1,
        attention: Sequence[int] = (3,),
        head_dim: int = 32,
        optimization: Optimization = Optimization(name="adamw", lr=2e-4, head_lr_factor=1.0, weight_decay=0.0),
        alpha: float = 0.999,
        seed: int = 0,
        acceleration: Acceleration = Acceleration(),
    ) -> None:
        super().__init__(optimization=optimization, seed=seed, acceleration=acceleration)
        if optimization.head_lr_factor != 1:
            raise AdaptSegError(
                f"model.optimization.head_lr_factor is {optimization.head_lr_factor}; a denoiser has no head: set 1"
            )
        self.online = Denoiser(channels, layers, attention, head_dim)
        acceleration.arrange(self.online)
        self.average = EMATeacher(self.online, alpha=alpha)
        self.error = MeanMetric()

    @property
    def trained(self) -> Denoiser:
        return self.online

    def saved_networks(self) -> dict[str, tuple[str, Denoiser]]:
        return {"denoiser": ("average.network.", self.average.network), "online": ("online.", self.online)}

    @property
    def descends(self) -> bool:
        data = pair_of(self.trainer)
        return data.source is not None and data.target is not None

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        self.average.update(self.online)

    # ---- one step

    def step(self, batch: Batch) -> StepResult:
        domains = {"source": batch.source, "target": batch.target}
        present = {name: domain.image for name, domain in domains.items() if domain is not None}
        logs: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        for name, images in present.items():
            if losses:
                self.descend(losses[-1])
            error = self._error(images, name, batch.samples)
            logs[name] = error.detach()
            losses.append(error / len(present))  # domains give equally many images
        return StepResult(losses[-1], logs)

    def _error(self, images: Tensor, domain: str, samples: Sequence[int]) -> Tensor:
        """Mean squared error (); the draws of an image belong to its sample number."""
        noise = normal_draws(self.seed, f"denoising/{domain}/noise", samples, tuple(images.shape[1:]))
        uniform = uniform_draws(self.seed, f"denoising/{domain}/timestep", samples, ())
        timesteps = (uniform * TIMESTEPS).long().clamp(max=TIMESTEPS - 1)  # the product may round up to 1,000
        noise, timesteps = (draws.to(images.device, non_blocking=True) for draws in (noise, timesteps))
        predicted = self.online(noised(centred(images), noise, timesteps), timesteps)
        return mse_loss(at_least_float32(predicted), noise)

    # ---- evaluation

    def validation_step(self, batch: Labelled, batch_idx: int) -> None:
        self._judge(batch)

    def test_step(self, batch: Labelled, batch_idx: int) -> None:
        self._judge(batch)

    def _judge(self, batch: Labelled) -> None:
        """The averaged network's error at `JUDGED`, under noise that a scene keeps in every run and validation."""
        timesteps = torch.tensor(JUDGED)
        for key, image in zip(batch.keys, batch.image, strict=True):
            noise = normal_draws(0, f"denoising/judged/{key}", JUDGED, tuple(image.shape)).to(image.device)
            images = noised(centred(image[None]), noise, timesteps)
            predicted = self.average.network(images, timesteps.to(image.device))
            self.error.update(mse_loss(at_least_float32(predicted), noise))

    def on_validation_epoch_end(self) -> None:
        self._log_error("val")

    def on_test_epoch_end(self) -> None:
        self._log_error("test")

    def _log_error(self, prefix: str) -> None:
        # The metric has synchronised its sums: every rank logs the same number.
        self.log(f"{prefix}/denoising_loss", self.error.compute(), rank_zero_only=False)
        self.error.reset()
