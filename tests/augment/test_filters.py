"""Hue and blur against torchvision's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from adaptseg.augment.filters import gaussian_blur, turned_hue


def colors(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.07, 0.5])
def test_hue_against_torchvision(turn: float) -> None:
    rough = (colors(40, 50) * 3).round() / 3  # full of greys, of equal channels, of black and white
    for image in (colors(40, 50), rough):
        given = image.clone()
        torch.testing.assert_close(turned_hue(image, turn), F.adjust_hue(image, turn), atol=3e-6, rtol=0)
        assert torch.equal(image, given)


def test_hue_of_greys_stays() -> None:
    grey = torch.linspace(0, 1, 11).expand(3, 1, -1)
    torch.testing.assert_close(turned_hue(grey, 0.3), grey, atol=1e-7, rtol=0)


@pytest.mark.parametrize("sigma", [0.15, 0.3, 1.15, 2.0])
def test_blur_against_torchvision(sigma: float) -> None:
    image = colors(24, 17)
    taps = 2 * torch.tensor(4 * sigma).ceil().int().item() + 1
    expected = F.gaussian_blur(image, [taps, taps], [sigma, sigma])
    torch.testing.assert_close(gaussian_blur(image, sigma), expected, atol=1e-6, rtol=0)
