"""The one interface through which methods, callbacks and export see a segmentation network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptseg.classes import ClassTable
from adaptseg.errors import AdaptSegError
from adaptseg.networks.activations import checkpoint_blocks
from adaptseg.networks.windows import Corner, cut_windows

Argument = Literal["crop", "token_mask"]
_CACHED_PIXELS = 2**18
"""Of 4 bytes, a cache of a core holds so many; half or twice as many are as fast."""


class Output(NamedTuple):
    """What a network says about a batch of images.

    Attributes:
        logits: (B, C, h, w) at the network's native stride; cell (i, j) covers the share [i/h, (i+1)/h] x
            [j/w, (j+1)/w] of the image, so that `resize_logits` to any size keeps them in place.
        features: encoder maps, fine to coarse, each (B, D, h, w); None where a network has none to show.
        auxiliary: further named maps (an auxiliary head, attention), each documented by the network that gives it.
    """

    logits: Tensor
    features: list[Tensor] | None
    auxiliary: dict[str, Tensor]


class LossTerm(NamedTuple):
    """One prediction of a training pass that a pixel loss judges.

    Attributes:
        name: "" for the network's answer, else of `Segmenter.auxiliary_losses`.
        logits: (B, C, h, w) at native stride.
        size: (H', W') pixels that the logits speak of.
        weight: of the loss; the weights of a pass sum to 1.
        corners: where those pixels begin in each image; None: the logits speak of the whole image.
    """

    name: str
    logits: Tensor
    size: tuple[int, int]
    weight: float = 1.0
    corners: tuple[Corner, ...] | None = None

    def view(self, pixels: Tensor) -> Tensor:
        """The part (B, H', W') of labels or weights (B, H, W) that the logits speak of."""
        return pixels if self.corners is None else cut_windows(pixels, self.corners, self.size)


class Normalization(NamedTuple):
    """Per-channel mean and standard deviation (RGB in [0, 1]) of the images a network was trained on."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Segmenter(nn.Module, ABC):
    """A network that labels pixels.

    A subclass keeps its encoder in `self.encoder`; everything else counts as head (see `encoder_parameters`).

    Attributes:
        num_classes: C, the channels of the logits.
        pretrained: whether the encoder was given pre-trained weights when it was made; False in a network that `load`
            rebuilt, whatever its weights once started from.
        accepts: which optional arguments of `forward` the network can honour.
        shows_features: whether it has encoder features to show, in `Output.features` and by `encoded`.
        auxiliary_losses: names of the predictions in `Output.auxiliary` that training judges too; see `loss_terms`.
        class_table, normalization: what the weights were trained for; None until `adaptseg.networks.load` sets them.
    """

    accepts: ClassVar[frozenset[Argument]] = frozenset()
    shows_features: ClassVar[bool] = True
    auxiliary_losses: tuple[str, ...] = ()
    encoder: nn.Module

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise AdaptSegError(f"num_classes: {num_classes} given, at least 2 expected")
        self.num_classes = num_classes
        self.pretrained = False
        self.class_table: ClassTable | None = None
        self.normalization: Normalization | None = None

    @abstractmethod
    def forward(
        self, images: Tensor, *, crop: Tensor | tuple[int, ...] | None = None, token_mask: Tensor | None = None
    ) -> Output:
        """Normalised images (B, 3, H, W) of any size to `Output`.

        Args:
            crop: what part of the images to look at closely; its form belongs to the network that accepts it.
            token_mask: (B, h, w) bool, the encoder tokens to hide.

        Raises:
            AdaptSegError: an argument was given that is not in `accepts`.
        """

    def training_crop(self, size: tuple[int, int], draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor | None:
        """The `crop` of a training pass; None, and no draw, where the network takes none.

        Args:
            size: (H, W) of the images.
            draw: shape to uniform numbers (B, *shape) in [0, 1) on the CPU, a row for each sample of the batch.
        """
        return None

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the `token_mask` that belongs to images of `size` (H, W).

        Raises:
            AdaptSegError: the network has no tokens that could be hidden.
        """
        raise AdaptSegError(f"{type(self).__name__} has no tokens to hide; change the network's class_path")

    def loss_terms(self, output: Output, size: tuple[int, int], crop: Tensor | None) -> tuple[LossTerm, ...]:
        """What of a training pass on images of `size` a pixel loss judges: the answer first, then what the network
        names in `auxiliary_losses`, in that order.

        Args:
            output: of this network for `crop`.
            size: (H, W) of the images.
            crop: what the pass was called with.
        """
        return (LossTerm("", output.logits, size),)

    def encoded(self, images: Tensor) -> list[Tensor]:
        """`Output.features` alone, where a network can spare the head's work.

        Raises:
            AdaptSegError: the network has no features to show.
        """
        features = self(images).features
        if features is None:
            raise AdaptSegError(f"{type(self).__name__} shows no encoder features; change the network's class_path")
        return features

    @property
    def auxiliary_logits(self) -> frozenset[str]:
        """Names in `Output.auxiliary` of further logits (B, C, h, w), which a multi-level method may train."""
        return frozenset()

    def checkpoint_encoder(self) -> None:
        """Make training keep no activations inside the encoder's blocks but compute them again for the gradient.

        Raises:
            AdaptSegError: see `checkpoint_blocks`.
        """
        checkpoint_blocks(self.encoder)

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """{"class_path": ..., "init_args": {...}} of plain types that rebuilds the architecture with random weights.

        Pre-trained weights are switched off in it, so rebuilding touches no hub and no weights file.
        """

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Each parameter of the encoder once."""
        return self.encoder.parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Each parameter that is not the encoder's once."""
        encoder = {id(parameter) for parameter in self.encoder_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in encoder)

    def _refuse_unsupported(self, *, crop: object, token_mask: object) -> None:
        """First line of every `forward`: an argument the network would ignore is an error."""
        given: dict[Argument, object] = {"crop": crop, "token_mask": token_mask}
        for argument, value in given.items():
            if value is not None:
                require(self, argument, "this forward pass")


def require(segmenter: Segmenter, argument: Argument, who: str) -> None:
    """Raise AdaptSegError, at setup rather than at step 9,000, unless `segmenter` honours `argument` for `who`."""
    if argument not in segmenter.accepts:
        accepted = ", ".join(sorted(segmenter.accepts)) or "no optional argument"
        raise AdaptSegError(
            f"{who} needs a network that honours '{argument}', but {type(segmenter).__name__} accepts {accepted}; "
            "change the network's class_path"
        )


def resize_logits(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Bilinear resize of (B, C, h, w) to (B, C, *size): the only up-sampler, so that all logits share one geometry.

    The same tensor comes back when the size is already right. `align_corners=True` is the geometry of RIPU's released
    code (and of most DeepLab forks).
    """
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=align_corners)


@torch.no_grad()
def resize_logits_no_grad(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """`resize_logits`, to rounding, where no gradient is asked for: on a CPU in half the time.

    Its kernel there computes pixel by pixel. Here it makes the columns of the few rows there are; whole rows are then
    blended at once, some maps of one class at a time, which the cache can hold.
    """
    rows, (height, width) = logits.shape[-2], size
    if logits.device.type != "cpu" or (rows, logits.shape[-1]) == (height, width):
        return resize_logits(logits, size, align_corners)
    wide = resize_logits(logits, (rows, width), align_corners).flatten(0, 1)
    places = torch.arange(rows, dtype=logits.dtype).view(1, 1, -1, 1)  # resized like the rows that they count
    places = resize_logits(places, (height, 1), align_corners).flatten()
    above = places.long()
    below, share = (above + 1).clamp_(max=rows - 1), (places - above).view(-1, 1)
    result = logits.new_empty(*logits.shape[:2], height, width)
    together = max(1, _CACHED_PIXELS // (height * width))
    for maps, out in zip(wide.split(together), result.flatten(0, 1).split(together), strict=True):
        torch.lerp(maps.index_select(1, above), maps.index_select(1, below), share, out=out)
    return result
