"""Discriminators with their optimiser: learners beside the student that Lightning does not count as steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from adaptseg.distributed import is_distributed
from adaptseg.errors import AdaptSegError
from adaptseg.losses.adversarial import Objective, discriminator_loss, domain_loss
from adaptseg.losses.reduce import mean_over_ranks
from adaptseg.methods.optimization import polynomial_decay
from adaptseg.networks.discriminator import Discriminator


@dataclass(frozen=True)
class DiscriminatorTraining:
    """How discriminators look and learn: by Adam, with polynomial decay. Defaults as released.

    Attributes:
        width: channels of the first layer (64).
        lr: learning rate (1e-4).
        betas: of Adam (0.9, 0.99).
        power: of the decay (1 - k / horizon) ** power.
        poly_horizon: horizon of the decay as a multiple of max_steps, at least 1.
    """

    width: int = 64
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    power: float = 0.9
    poly_horizon: float = 1.0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise AdaptSegError(f"model.discriminator.lr is {self.lr}; a positive number is expected")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise AdaptSegError(f"model.discriminator.betas is {list(self.betas)}; two numbers in [0, 1) are expected")
        if self.poly_horizon < 1:
            raise AdaptSegError(
                f"model.discriminator.poly_horizon is {self.poly_horizon}; it is a multiple of max_steps, 1 or more"
            )


class Discriminators(nn.Module):
    """One discriminator a level of prediction.

    Frozen but for the moment in which they learn: the student's gradient passes through them and leaves nothing, DDP
    takes no notice of them, and their own gradients are averaged over processes by hand. They compute in float32 under
    any precision: the scaler of 16-mixed belongs to the student's optimiser.

    State, in the checkpoint: weights, Adam's moments, number of updates (which is the position of the schedule).

    Args:
        levels: names of the levels.
        num_classes: C, the channels they judge.
        objective: see `adaptseg.losses.adversarial.Objective`.
        training: how they look and learn.
    """

    def __init__(
        self, levels: Sequence[str], num_classes: int, *, objective: Objective, training: DiscriminatorTraining
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({level: Discriminator(num_classes, training.width) for level in levels})
        self.objective: Objective = objective
        self.training_settings = training
        self.updates, self._gradients = 0, 0
        self.optimizer = torch.optim.Adam(self.parameters(), lr=training.lr, betas=training.betas)
        self.requires_grad_(False)

    def fooled(self, level: str, target: Tensor) -> Tensor:
        """The student's loss (): how far this level's target maps (B, C, H, W) are from passing for the source's."""
        with torch.autocast(target.device.type, enabled=False):
            return domain_loss(self.networks[level](target.float()), "source", self.objective)

    def learn(self, seen: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Add the gradients of one micro-batch; `update` follows after the student's step.

        Args:
            seen: level -> (source, target) maps (B, C, H, W); no gradient flows into them.

        Returns:
            level -> loss (), detached.
        """
        losses: dict[str, Tensor] = {}
        self.requires_grad_(True)
        for level, maps in seen.items():
            with torch.autocast(maps[0].device.type, enabled=False):
                source, target = (self.networks[level](each.detach().float()) for each in maps)
                loss = discriminator_loss(source, target, self.objective)
                loss.backward()
            losses[level] = loss.detach()
        self.requires_grad_(False)
        self._gradients += 1
        return losses

    @torch.no_grad()
    def update(self, max_steps: int) -> None:
        """One step of Adam with the mean gradient over micro-batches and processes. A collective.

        Args:
            max_steps: student steps of the whole run, the unit of the decay's horizon.
        """
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        if is_distributed():  # one message instead of one a parameter
            vector_to_parameters(mean_over_ranks(parameters_to_vector(gradients)), gradients)
        if self._gradients > 1:
            for gradient in gradients:
                gradient.div_(self._gradients)
        settings = self.training_settings
        decay = polynomial_decay(self.updates, max_steps * settings.poly_horizon, settings.power)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * decay
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates, self._gradients = self.updates + 1, 0

    def follow_weights(self) -> None:
        """Bring restored moments to the device of the weights; call after these have moved."""
        self.optimizer.load_state_dict(self.optimizer.state_dict())

    def get_extra_state(self) -> dict[str, Any]:
        return {"updates": self.updates, "optimizer": self.optimizer.state_dict()}

    def set_extra_state(self, state: Any) -> None:
        self.updates = int(state["updates"])
        self.optimizer.load_state_dict(state["optimizer"])
