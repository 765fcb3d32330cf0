"""A small classifier of single pixels on frozen features: all that learns when labels are counted in pixels.

DatasetGAN's and LEDM's pixel classifier as two-stage eDALD uses it (specification 2.3): linear layers with ReLU *then*
batch norm, one network instead of an ensemble.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from adaptseg.errors import AdaptSegError
from adaptseg.networks.feature_maps import FeatureMaps
from adaptseg.networks.point_features import norm_map, project
from adaptseg.networks.segmenter import Output, Segmenter

SMALL, LARGE = (128, 32), (256, 128)
"""Hidden widths below 30 classes, and from 30 on (released code)."""


class RowNorm(nn.Module):
    """Batch norm of rows (N, D) with the statistics of all processes: a step has few rows, so shares would differ.

    State: affine weights and running statistics (momentum 0.1, as torch's), saved with the head.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, rows: Tensor, counted: Tensor | None = None) -> Tensor:
        """(N, D) normalised: in training by the statistics of the rows that are `counted` (N,) bool, None = all; by the
        running ones in evaluation and where fewer than two rows count anywhere. Half precision becomes float32.
        """
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if not self.training:
            return self._affine(rows, self.mean, self.variance)
        chosen = rows if counted is None else rows[counted]
        count = _sum_over_ranks(chosen.new_tensor(float(len(chosen))))
        if count < 2:  # a variance needs two
            return self._affine(rows, self.mean, self.variance)
        mean = _sum_over_ranks(chosen.sum(0)) / count
        variance = _sum_over_ranks((chosen - mean).square().sum(0)) / count
        with torch.no_grad():
            self.mean.lerp_(mean, 0.1)
            self.variance.lerp_(variance * count / (count - 1), 0.1)
        return self._affine(rows, mean, variance)

    def _affine(self, rows: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        scale = (variance + 1e-5).rsqrt() * self.weight
        return torch.addcmul(self.bias - mean * scale, rows, scale)  # one pass over the rows of a whole image


class PixelHead(nn.Module):
    """Features of pixels (N, D) to logits (N, C): Linear, ReLU, batch norm, twice, and Linear.

    Args:
        channels: D.
        num_classes: C.
        hidden: widths of the hidden layers.
    """

    def __init__(self, channels: int, num_classes: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = [channels, *hidden, num_classes]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(RowNorm(width) for width in hidden)
        self.restart(torch.Generator().manual_seed(0))

    @torch.no_grad()
    def restart(self, generator: torch.Generator) -> None:
        """Draw the weights anew: N(0, 0.02^2), biases 0 (released code); norms and their statistics as when made."""
        for linear in self.linears:
            assert isinstance(linear, nn.Linear)
            linear.weight.copy_(torch.empty(linear.weight.shape, device="cpu").normal_(0, 0.02, generator=generator))
            linear.bias.zero_()
        for norm in self.norms:
            assert isinstance(norm, RowNorm)
            norm.load_state_dict(RowNorm(len(norm.bias)).state_dict())

    def forward(self, rows: Tensor, counted: Tensor | None = None) -> Tensor:
        """Logits of rows (N, D); `counted` (N,) bool: whose statistics the norms take in training, None = all."""
        first = self.linears[0]
        assert isinstance(first, nn.Linear)
        return self._rest(functional.linear(rows.to(first.weight), first.weight, first.bias), counted)

    def dense(self, maps: Sequence[Tensor], size: tuple[int, int], norms: Tensor | None = None) -> Tensor:
        """(B, C, H, W) logits of every pixel of an image of that size, from its low-resolution maps (B, C_i, h_i, w_i).

        The first layer is linear, so it runs before the up-sampling: the D-channel map of all pixels never exists.

        Args:
            maps: see above.
            size: (H, W).
            norms: (B, H, W) of `norm_map`, for callers that ask several heads about one image; None: computed here.
        """
        first = self.linears[0]
        assert isinstance(first, nn.Linear)
        maps = [low.to(first.weight) for low in maps]
        hidden = project(maps, first.weight, size, norms=norm_map(maps, size) if norms is None else norms)
        batch, channels = hidden.shape[:2]
        logits = self._rest(hidden.permute(0, 2, 3, 1).reshape(-1, channels).add_(first.bias), None)
        return logits.reshape(batch, *size, -1).permute(0, 3, 1, 2)

    def _rest(self, hidden: Tensor, counted: Tensor | None) -> Tensor:
        for norm, linear in zip(self.norms, list(self.linears)[1:], strict=True):
            hidden = linear(norm(functional.relu(hidden), counted))
        return hidden


class PixelSegmenter(Segmenter):
    """Frozen feature maps and a pixel head as a segmentation network. The maps are no part of its state.

    Args:
        num_classes: C.
        features: what the head reads.
        hidden: widths of the head's hidden layers; null = 128 and 32 below 30 classes, 256 and 128 from there on.
    """

    shows_features = False

    def __init__(self, num_classes: int, features: FeatureMaps, hidden: Sequence[int] | None = None) -> None:
        super().__init__(num_classes)
        self.hidden = list(hidden) if hidden is not None else list(SMALL if num_classes < 30 else LARGE)
        if not self.hidden or min(self.hidden) < 1:
            raise AdaptSegError(f"model.network.hidden is {self.hidden}; widths of 1 or more are expected")
        # Frozen, large, and rebuilt from its own file: outside checkpoints, optimiser and DDP.
        self._features = [features]
        self.head = PixelHead(features.channels, num_classes, self.hidden)

    @property
    def features(self) -> FeatureMaps:
        """The frozen feature network, on the device of the head."""
        device = next(self.head.parameters()).device
        if self._features[0].device != device:
            self._features[0].to(device)
        return self._features[0]

    def forward(
        self, images: Tensor, *, crop: Tensor | tuple[int, ...] | None = None, token_mask: Tensor | None = None
    ) -> Output:
        """Logits at the size of the images; the features are those of the fixed noise."""
        self._refuse_unsupported(crop=crop, token_mask=token_mask)
        maps = self.features.maps(images)
        return Output(self.head.dense(maps, (images.shape[-2], images.shape[-1])), None, {})

    def config(self) -> dict[str, Any]:
        arguments = {"num_classes": self.num_classes, "features": self._features[0].config(), "hidden": self.hidden}
        return {"class_path": "adaptseg.networks.PixelSegmenter", "init_args": arguments}

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """None: the features do not learn."""
        return iter(())

    def checkpoint_encoder(self) -> None:
        """Raises AdaptSegError: training reads features that keep no activations."""
        raise AdaptSegError(
            "model.acceleration.checkpoint_encoder saves nothing in a PixelSegmenter, whose features do not learn; set "
            "it to false"
        )


class _SumOverRanks(torch.autograd.Function):
    """All-reduced sum whose gradient is summed over ranks too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum_over_ranks(value: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()):
        return value
    result = _SumOverRanks.apply(value)
    assert isinstance(result, Tensor)
    return result
