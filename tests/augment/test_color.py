"""Strong augmentation against torchvision called by hand and a naive wide Gaussian; each image by its draws alone."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from adaptseg.augment.color import DRAWS, Blur, ColorJitter, strong_augmentation
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.errors import AdaptSegError

JITTER_COIN, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, BLUR_COIN, SIGMA, GREY_COIN = range(DRAWS)
MEAN, STD = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)


def colors(batch: int, height: int = 12, width: int = 20, seed: int = 0) -> Tensor:
    """(B, 3, H, W) in [0, 1]."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def uniform(batch: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, DRAWS, generator=torch.Generator().manual_seed(seed))


def augmented(images: Tensor, draws: Tensor, jitter: ColorJitter | None = None, blur: Blur | None = None) -> Tensor:
    return strong_augmentation(images, draws, jitter=jitter, blur=blur, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def jittered_by_hand(image: Tensor, row: list[float], *strengths: float) -> Tensor:
    """One strength for all, or four."""
    for adjustment in list(permutations(range(4)))[int(row[ORDER] * 24)]:
        strength = strengths[adjustment % len(strengths)]
        span = 2 * strength * row[1 + adjustment]
        if adjustment == 3:
            image = F.adjust_hue(image, span - strength)
        else:
            adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)[adjustment]
            image = adjust(image, 1 - strength + span)
    return image


def test_jitter_against_torchvision_by_hand() -> None:
    images, draws = colors(30), uniform(30)
    result = augmented((images - MEAN) / STD, draws, ColorJitter(strength=0.4, probability=1.0)) * STD + MEAN
    for image, row, output in zip(images, draws.tolist(), result, strict=True):
        assert (output - jittered_by_hand(image, row, 0.4)).abs().max() < 2e-5  # hue is steep where saturation is low
        assert (output - image).abs().max() > 0.02


def test_each_adjustment_may_have_its_own_strength_and_colours_be_lost() -> None:
    images, draws = colors(50, seed=4), uniform(50, seed=4)
    jitter = ColorJitter(probability=0.8, brightness=0.8, contrast=0.6, saturation=0.9, hue=0.4, grey=0.4)
    result = augmented((images - MEAN) / STD, draws, jitter) * STD + MEAN
    seen = set()
    for image, row, output in zip(images, draws.tolist(), result, strict=True):
        jitters, loses = row[JITTER_COIN] < 0.8, row[GREY_COIN] < 0.4
        expected = jittered_by_hand(image, row, 0.8, 0.6, 0.9, 0.4) if jitters else image
        if loses:
            expected = (0.2989 * expected[0] + 0.587 * expected[1] + 0.114 * expected[2]).expand(3, -1, -1)
        assert (output - expected).abs().max() < 2e-4
        seen.add((jitters, loses))
    assert len(seen) == 4


def test_every_order_occurs_and_matters() -> None:
    draws = uniform(1, seed=3).expand(24, -1).clone()
    draws[:, ORDER] = (torch.arange(24) + 0.5) / 24
    result = augmented((colors(1) - MEAN).div(STD).expand(24, -1, -1, -1), draws, ColorJitter(0.5, 1.0))
    assert len({tuple(r.flatten().tolist()) for r in result}) >= 12  # brightness and saturation nearly commute


def test_factors_at_the_ends_of_their_ranges() -> None:
    image = colors(1) * 0.5  # not saturated by the brightness
    draws = torch.full((2, DRAWS), 0.5)  # 0.5: no change
    draws[:, BRIGHTNESS] = torch.tensor([0.0, 1 - 2**-24])
    result = augmented(((image - MEAN) / STD).expand(2, -1, -1, -1), draws, ColorJitter(0.25, 1.0)) * STD + MEAN
    torch.testing.assert_close(result[0], image[0] * 0.75, atol=1e-5, rtol=0)
    torch.testing.assert_close(result[1], image[0] * 1.25, atol=1e-5, rtol=0)


def test_strength_zero_is_the_identity() -> None:
    images = (colors(4) - MEAN) / STD
    assert (augmented(images, uniform(4), ColorJitter(0.0, 1.0)) - images).abs().max() < 1e-6


def test_colors_stay_in_range() -> None:
    result = augmented((colors(20, seed=4) - MEAN) / STD, uniform(20, seed=4), ColorJitter(0.5, 1.0), Blur(1.0))
    assert (result * STD + MEAN).min() > -1e-5
    assert (result * STD + MEAN).max() < 1 + 1e-5


def naive_blur(image: Tensor, sigma: float, taps: int = 51) -> Tensor:
    """(3, H, W) with the published 51-wide kernel in float64; scipy calls reflection without the edge 'mirror'."""
    offsets = torch.arange(taps, dtype=torch.float64) - taps // 2
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).numpy()
    rows = correlate1d(image.double().numpy(), kernel, axis=1, mode="mirror")
    return torch.from_numpy(correlate1d(rows, kernel, axis=2, mode="mirror"))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.849, 0.999])  # 0.849: sigma 1, where the cut is deepest
def test_blur_against_the_published_width(share: float) -> None:
    image = colors(1, 64, 70).round()  # black and white: the hardest case
    draws = torch.zeros(1, DRAWS)
    draws[:, SIGMA] = share
    result = augmented((image - MEAN) / STD, draws, blur=Blur(1.0)) * STD + MEAN
    assert (result[0] - naive_blur(image[0], 0.15 + share * 1.0)).abs().max() < 1e-5


def test_blur_of_images_smaller_than_the_kernel() -> None:
    images = torch.full((1, 3, 3, 1), 0.5)
    assert (augmented(images, torch.zeros(1, DRAWS), blur=Blur(1.0, (5.0, 5.0))) - 0.5).abs().max() < 1e-6


def test_jitter_comes_before_blur() -> None:
    images, draws = (colors(3) - MEAN) / STD, uniform(3)
    both = augmented(images, draws, ColorJitter(0.3, 1.0), Blur(1.0))
    assert torch.equal(both, augmented(augmented(images, draws, ColorJitter(0.3, 1.0)), draws, blur=Blur(1.0)))


@pytest.mark.parametrize(
    ("jitter", "blur", "expected"),
    [(ColorJitter(), None, 0.8), (None, Blur(), 0.5), (ColorJitter(), Blur(), 0.9), (None, None, 0.0)],
)
def test_probabilities_are_honoured(jitter: ColorJitter | None, blur: Blur | None, expected: float) -> None:
    images = ((colors(1, 2, 2) - MEAN) / STD).expand(2000, -1, -1, -1)
    result = augmented(images, uniform(2000, seed=1), jitter, blur)
    changed = (result != images).flatten(1).any(1).float().mean().item()
    assert changed == pytest.approx(expected, abs=0.05)  # standard deviation 0.011 at most


def test_coins_decide_alone_and_the_rest_is_bit_equal() -> None:
    images, draws = (colors(4) - MEAN) / STD, uniform(4)
    draws[:, JITTER_COIN] = torch.tensor([0.3, 0.6, 0.3, 0.6])
    draws[:, BLUR_COIN] = torch.tensor([0.9, 0.9, 0.1, 0.5])
    result = augmented(images, draws, ColorJitter(0.2, 0.6), Blur(0.5, (1.0, 1.0)))
    changed = (result != images).flatten(1).any(1).tolist()
    assert changed == [True, False, True, False]
    assert result.data_ptr() != images.data_ptr()


def test_an_image_does_not_depend_on_its_companions() -> None:
    images, draws = (colors(6) - MEAN) / STD, uniform(6)
    together = augmented(images, draws, ColorJitter(), Blur())
    for i in range(6):
        assert torch.equal(augmented(images[i : i + 1], draws[i : i + 1], ColorJitter(), Blur())[0], together[i])


def test_autocast_changes_nothing() -> None:
    images, draws = (colors(4) - MEAN) / STD, uniform(4)
    plain = augmented(images, draws, ColorJitter(0.2, 1.0), Blur(1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = augmented(images, draws, ColorJitter(0.2, 1.0), Blur(1.0))
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        (lambda: ColorJitter(strength=-0.1), "model.jitter.strength"),
        (lambda: ColorJitter(strength=0.6), "model.jitter.strength"),
        (lambda: ColorJitter(strength=float("nan")), "model.jitter.strength"),
        (lambda: ColorJitter(brightness=1.1), "model.jitter.brightness is 1.1; 0 to 1 is expected"),
        (lambda: ColorJitter(hue=0.6), "model.jitter.hue is 0.6; 0 to 0.5"),
        (lambda: ColorJitter(grey=-1), "model.jitter.grey"),
        (lambda: ColorJitter(probability=1.2), "model.jitter.probability"),
        (lambda: Blur(probability=-0.5), "model.blur.probability"),
        (lambda: Blur(sigma=(0.0, 1.0)), "model.blur.sigma"),
        (lambda: Blur(sigma=(2.0, 1.0)), "model.blur.sigma"),
        (lambda: Blur(sigma=(1.0, float("inf"))), "model.blur.sigma"),
        (lambda: Blur(sigma=(1.0,)), "model.blur.sigma"),
    ],
)
def test_wrong_settings_name_their_key(wrong, key: str) -> None:
    with pytest.raises(AdaptSegError, match=key):
        wrong()
