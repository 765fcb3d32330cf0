"""Optimiser parameter groups: encoder and head at their own rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torch import nn


class ParameterParts(Protocol):
    """A network whose encoder and head learn at rates of their own, as a `Segmenter`'s."""

    def encoder_parameters(self) -> Iterator[nn.Parameter]: ...

    def head_parameters(self) -> Iterator[nn.Parameter]: ...


def parameter_groups(
    network: ParameterParts, *, lr: float, head_lr_factor: float, weight_decay: float, decay_norm_and_bias: bool = True
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser; each trainable parameter is in exactly one, and no group is empty.

    Args:
        lr: learning rate of the encoder.
        head_lr_factor: the head learns at lr * head_lr_factor (10 in DeepLab's, RIPU's and DAFormer's recipes).
        weight_decay: for every parameter, or
        decay_norm_and_bias: False takes biases and norm scales (every parameter with at most one dimension) out of
            weight decay, as DAFormer does.

    Returns:
        dicts with the keys name ("encoder", "head", and with a suffix "_no_decay"), params, lr, weight_decay.
    """
    groups: list[dict[str, Any]] = []
    parts = (
        ("encoder", network.encoder_parameters(), lr),
        ("head", network.head_parameters(), lr * head_lr_factor),
    )
    for name, parameters, rate in parts:
        decayed, spared = _split(parameters, everything=decay_norm_and_bias)
        for suffix, members, decay in (("", decayed, weight_decay), ("_no_decay", spared, 0.0)):
            if members:
                groups.append({"name": name + suffix, "params": members, "lr": rate, "weight_decay": decay})
    return groups


def _split(parameters: Iterable[nn.Parameter], *, everything: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters that decay, and those spared from it."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in parameters:
        if parameter.requires_grad:
            (decayed if everything or parameter.ndim > 1 else spared).append(parameter)
    return decayed, spared
