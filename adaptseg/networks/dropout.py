"""Monte-Carlo dropout: stochastic passes of a network that is otherwise in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from adaptseg.errors import AdaptSegError


def dropout_layers(network: nn.Module) -> list[_DropoutNd]:
    """The dropout layers of a network that drop anything. Drop path is none of them, and dropout that a network calls
    as a function is not seen.
    """
    return [module for module in network.modules() if isinstance(module, _DropoutNd) and module.p > 0]


@contextmanager
def dropping(network: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Passes inside drop as in training, with masks drawn from `generator` (on the CPU); all else stays in the mode it
    is in, batch norm too (Gal and Ghahramani, ICML 2016). The global random state is that of before afterwards.

    Raises:
        AdaptSegError: the network has no dropout layer, so that all passes would be one.
    """
    layers = dropout_layers(network)
    if not layers:
        raise AdaptSegError(
            f"draws by dropout are asked of a {type(network).__name__} without an active dropout layer; give it some, "
            "as model.network.dropout of SmpSegmenter does"
        )
    were_training = [layer.training for layer in layers]
    devices = {parameter.device for parameter in network.parameters() if parameter.is_cuda}
    # Layers draw from the global generator alone, so it is seeded for them.
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(list(devices)):
        torch.manual_seed(seed)
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer, was_training in zip(layers, were_training, strict=True):
                layer.training = was_training
