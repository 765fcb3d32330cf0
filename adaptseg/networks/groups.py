"""Optimiser parameter groups: encoder and head at their own rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from torch import nn

from adaptseg.errors import AdaptSegError


class ParameterParts(Protocol):
    """A network whose encoder and head learn at rates of their own, as a `Segmenter`'s."""

    def encoder_parameters(self) -> Iterator[nn.Parameter]: ...

    def head_parameters(self) -> Iterator[nn.Parameter]: ...


@runtime_checkable
class LayeredEncoder(Protocol):
    """A network whose encoder is a chain of layers."""

    def encoder_layers(self) -> list[list[nn.Parameter]]:
        """Each parameter of the encoder once, from the layer that reads the image to the last."""
        ...


def encoder_layers(network: object) -> list[list[nn.Parameter]]:
    """The encoder's layers, or an AdaptSegError that says that the network does not tell them apart."""
    if not isinstance(network, LayeredEncoder):
        raise AdaptSegError(
            f"model.optimization.layer_decay: the encoder of a {type(network).__name__} is not told apart in layers; "
            "set it to 1, or take a ViTSegmenter"
        )
    return network.encoder_layers()


def parameter_groups(
    network: ParameterParts,
    *,
    lr: float,
    head_lr_factor: float,
    weight_decay: float,
    decay_norm_and_bias: bool = True,
    layer_decay: float = 1.0,
    companions: Iterable[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser; each trainable parameter is in exactly one, and no group is empty.

    Args:
        lr: learning rate of the encoder.
        head_lr_factor: the head learns at lr * head_lr_factor (10 in DeepLab's, RIPU's and DAFormer's recipes).
        weight_decay: for every parameter, or
        decay_norm_and_bias: False takes biases and norm scales (every parameter with at most one dimension) out of
            weight decay, as DAFormer does.
        layer_decay: what a layer's rate is of the next one's. With layers 0 (what reads the image), 1, ..., L of the
            encoder, layer l learns at lr * layer_decay ** (L - l); the head's rate does not change. 1 keeps the encoder
            in one group.
        companions: parameters of other modules that learn at the head's rate.

    Returns:
        dicts with the keys name, params, lr, weight_decay. Names are "encoder" (or "encoder_layer0" to
        "encoder_layerL"), "head", "companion", each also with the suffix "_no_decay"; always in this order, by which a
        resumed run finds its momenta.

    Raises:
        AdaptSegError: a layer decay below 1 and a network without `encoder_layers`.
    """
    groups: list[dict[str, Any]] = []
    encoder: list[tuple[str, Iterable[nn.Parameter], float]] = [("encoder", network.encoder_parameters(), lr)]
    if layer_decay != 1:
        layers = encoder_layers(network)
        last = len(layers) - 1
        encoder = [(f"encoder_layer{i}", layer, lr * layer_decay ** (last - i)) for i, layer in enumerate(layers)]
    head_lr = lr * head_lr_factor
    parts = (*encoder, ("head", network.head_parameters(), head_lr), ("companion", companions, head_lr))
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
