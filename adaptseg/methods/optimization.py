"""The optimiser and its schedule, as every method takes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from adaptseg.errors import AdaptSegError
from adaptseg.networks import parameter_groups
from adaptseg.networks.groups import ParameterParts


def polynomial_decay(step: int, horizon: float, power: float) -> float:
    """(1 - step / horizon) ** power, 0 from the horizon on."""
    return max(1.0 - step / horizon, 0.0) ** power


@dataclass(frozen=True)
class Optimization:
    """One optimiser with an encoder and a head group; polynomial decay after a linear warm-up, steps down, restarts.

    Attributes:
        name: `sgd` (with momentum), `adam` or `adamw`.
        lr: learning rate of the encoder.
        head_lr_factor: the head's rate over the encoder's (RIPU: 10).
        weight_decay: L2 (sgd, adam) or decoupled (adamw).
        decay_norm_and_bias: whether norms and biases decay too.
        momentum: of sgd.
        nesterov: Nesterov's form of it (ensemble-distillation's release).
        warmup_steps: linear from `warmup_start` times the rate.
        warmup_start: factor of the first step.
        decay_in_warmup: whether the decay multiplies the warm-up too (mmseg's practice). False: the warm-up ends at the
            full rate, from where the rate falls to what the decay says (VFM-UDA's release).
        power: of the decay (1 - k / horizon) ** power.
        poly_horizon: horizon of the decay as a multiple of max_steps, at least 1; RIPU decays over 62,500 steps but
            stops at 40,000: 1.5625.
        milestones: shares of the schedule, ascending inside (0, 1), each of which multiplies the rate by gamma.
        gamma: see `milestones`; in (0, 1].
        restarts: the whole schedule runs so many times, each in an equal part of max_steps: for a method that starts
            anew after each of so many rounds of labels.
        layer_decay: what the rate of an encoder's layer is of the next one's, in (0, 1]: layer l of 0 (what reads the
            image) to L (the last block) learns at lr * layer_decay ** (L - l). For networks that tell layers apart
            (ViTSegmenter); VFM-UDA++ 0.9.
        fused: update all parameters in one kernel: a fifth of the time on a CPU, a launch or two on a GPU. Switch it
            off to clip gradients (`trainer.gradient_clip_val`) in 16-mixed precision: Lightning refuses both together.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 2.5e-4
    head_lr_factor: float = 10.0
    weight_decay: float = 5e-4
    decay_norm_and_bias: bool = True
    momentum: float = 0.9
    nesterov: bool = False
    warmup_steps: int = 0
    warmup_start: float = 1e-6
    decay_in_warmup: bool = True
    power: float = 0.9
    poly_horizon: float = 1.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    restarts: int = 1
    layer_decay: float = 1.0
    fused: bool = True

    def __post_init__(self) -> None:
        if self.name not in ("sgd", "adam", "adamw"):
            raise AdaptSegError(f"model.optimization.name is '{self.name}'; 'sgd', 'adam' or 'adamw' is expected")
        if self.lr <= 0:
            raise AdaptSegError(f"model.optimization.lr is {self.lr}; a positive number is expected")
        if self.poly_horizon < 1:
            raise AdaptSegError(
                f"model.optimization.poly_horizon is {self.poly_horizon}; it is a multiple of max_steps, 1 or more"
            )
        if not 0 < self.layer_decay <= 1:
            raise AdaptSegError(f"model.optimization.layer_decay is {self.layer_decay}; a factor in (0, 1] is expected")

        if list(self.milestones) != sorted(self.milestones) or not all(0 < share < 1 for share in self.milestones):
            raise AdaptSegError(
                f"model.optimization.milestones is {list(self.milestones)}; ascending shares inside (0, 1) are expected"
            )
        if not 0 < self.gamma <= 1 or self.restarts < 1:
            raise AdaptSegError(
                f"model.optimization has gamma {self.gamma} and restarts {self.restarts}; a factor in (0, 1] and 1 or "
                "more are expected"
            )

    def factor(self, step: int, max_steps: int) -> float:
        """The schedule: what the base rates are multiplied with in the update after `step` updates."""
        if self.restarts > 1:
            max_steps //= self.restarts
            step %= max_steps
        decay = polynomial_decay(step, max_steps * self.poly_horizon, self.power)
        decay *= self.gamma ** sum(step >= share * max_steps for share in self.milestones)
        if step >= self.warmup_steps:
            return decay
        ramp = self.warmup_start + (1.0 - self.warmup_start) * step / self.warmup_steps
        return decay * ramp if self.decay_in_warmup else ramp

    def build(
        self,
        network: ParameterParts,
        max_steps: int,
        *,
        beside: ParameterParts | None = None,
        companions: Iterable[nn.Parameter] = (),
    ) -> tuple[Optimizer, LambdaLR]:
        """Optimiser over the trainable parameters of `network`, and its per-step schedule.

        Args:
            beside: a second network that learns in the same steps at the same rates, in groups of its own, whose names
                begin with "large_".
            companions: parameters of other modules that learn at the head's rate.
        """
        if max_steps % self.restarts:
            raise AdaptSegError(
                f"model.optimization.restarts is {self.restarts}, of which trainer.max_steps {max_steps} is no multiple"
            )
        groups = self._groups(network, companions)
        if beside is not None:
            groups += [{**group, "name": f"large_{group['name']}"} for group in self._groups(beside)]
        optimizer: Optimizer
        if self.name == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov, fused=self.fused)
        else:
            kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
            optimizer = kind(groups, fused=self.fused)
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, max_steps))

    def _groups(self, network: ParameterParts, companions: Iterable[nn.Parameter] = ()) -> list[dict[str, Any]]:
        return parameter_groups(
            network,
            lr=self.lr,
            head_lr_factor=self.head_lr_factor,
            weight_decay=self.weight_decay,
            decay_norm_and_bias=self.decay_norm_and_bias,
            layer_decay=self.layer_decay,
            companions=companions,
        )
