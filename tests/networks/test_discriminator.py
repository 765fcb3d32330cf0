"""The discriminator against a naive convolution, its published size, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks.discriminator import Discriminator


def test_layers_are_the_released_ones() -> None:
    made = Discriminator(19)
    convolutions = [m for m in made.layers if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (19, 64), (64, 128), (128, 256), (256, 512), (512, 1),
    ]  # fmt: skip
    assert {(c.kernel_size, c.stride, c.padding) for c in convolutions} == {((4, 4), (2, 2), (1, 1))}
    slopes = [m.negative_slope for m in made.layers if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2] * 4
    assert isinstance(made.layers[-1], nn.Conv2d)
    assert made(torch.zeros(2, 19, 64, 100)).shape == (2, 1, 2, 3)


def test_scores_are_those_of_a_naive_loop() -> None:
    torch.manual_seed(0)
    made = Discriminator(2, width=1).double()
    maps = torch.rand(1, 2, 32, 32, dtype=torch.float64)
    x = maps[0].numpy()
    convolutions = [m for m in made.layers if isinstance(m, nn.Conv2d)]
    for index, layer in enumerate(convolutions):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()  # type: ignore[union-attr]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        out = np.empty((len(bias), rows, columns))
        for r in range(rows):
            for c in range(columns):
                patch = padded[:, 2 * r : 2 * r + 4, 2 * c : 2 * c + 4]
                out[:, r, c] = (weight * patch).sum((1, 2, 3)) + bias
        x = out if index == 4 else np.where(out > 0, out, 0.2 * out)
    np.testing.assert_allclose(made(maps)[0].detach().numpy(), x, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 4, 32, 32), (1, 6, 32, 32), (5, 32, 32)])
def test_another_class_count_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AdaptSegError, match=r"a discriminator of 5 classes was given maps \("):
        Discriminator(5, width=2)(torch.zeros(shape))


def test_maps_too_small_are_refused() -> None:
    with pytest.raises(AdaptSegError, match=r"31x64 pixels; it needs 32x32"):
        Discriminator(5, width=2)(torch.zeros(1, 5, 31, 64))


@pytest.mark.parametrize("arguments", [{"num_classes": 1}, {"num_classes": 5, "width": 0}])
def test_nonsense_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(AdaptSegError, match="discriminator: "):
        Discriminator(**arguments)
