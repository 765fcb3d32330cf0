"""What every network with a convolutional or hierarchical encoder shares: weights, norm layers, images of any size."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from adaptseg.errors import AdaptSegError
from adaptseg.networks.encoders import stages
from adaptseg.networks.normalization import NORMS, Norm, has_batch_norm, replace_batch_norm
from adaptseg.networks.padding import cut, onto_image, pad
from adaptseg.networks.segmenter import Output, Segmenter
from adaptseg.networks.weights import load_encoder_weights


class EncoderDecoder(Segmenter):
    """A head on the maps of an encoder of smp's interface; the base of the networks, not one itself.

    Images of any size are padded at the bottom and right to a multiple of the encoder's stride by repeating the last
    row and column. The logits that belong to the image come back as (B, C, ceil(H/s), ceil(W/s)). Where s does not
    divide a side, that grid's cells are a little smaller than s pixels, and the logits are resampled onto it
    bilinearly: resizing them to (H, W) puts every pixel exactly where it was, instead of stretching up to one cell of
    padding into the image. Features are cut to ceil(H/t) cells at their own stride t, not resampled.

    A subclass makes `self.encoder` and its head, then calls `_complete`.

    Args:
        norm: of the encoder and, without `head_norm`, of the head; see `replace_batch_norm`.
        head_norm: of all that is not the encoder; None: `norm`.
        called: how errors name the network.
    """

    def __init__(self, num_classes: int, *, norm: Norm, called: str, head_norm: Norm | None = None) -> None:
        super().__init__(num_classes)
        for name, given in (("norm", norm), ("head_norm", head_norm or norm)):
            if given not in NORMS:
                raise AdaptSegError(f"{name}: '{given}' given, one of {', '.join(NORMS)} expected")
        self._norm: Norm = norm
        self._head_norm: Norm = head_norm or norm
        self._called = called

    @abstractmethod
    def _decode(self, features: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """All that smp's encoder returns to logits and auxiliary logits, each at its own stride of the padded image."""

    def _complete(self, encoder: str, weights: bool | str, *, smallest: int = 1) -> None:
        """Last step of construction: local weights into the encoder, then the norm layers of the whole network.

        Args:
            encoder: its name, for messages.
            weights: True: the encoder already has the hub's.
            smallest: least height and width the network can digest, pixels.
        """
        if isinstance(weights, str):
            load_encoder_weights(self.encoder, weights)
        if self._norm == "group" and weights is not False and has_batch_norm(self.encoder):
            raise AdaptSegError(
                f"norm: group with pre-trained weights would throw away the batch norms of encoder '{encoder}'; "
                "set weights: false, or norm: frozen"
            )
        for child in self.children():
            replace_batch_norm(child, self._norm if child is self.encoder else self._head_norm)
        self.pretrained = weights is not False
        self._multiple = int(getattr(self.encoder, "output_stride", 32))
        self._smallest = smallest

    def forward(
        self, images: Tensor, *, crop: Tensor | tuple[int, ...] | None = None, token_mask: Tensor | None = None
    ) -> Output:
        """See `Segmenter.forward`; neither `crop` nor `token_mask` is accepted.

        `features` are the encoder's stages, fine to coarse, without the image itself.

        Raises:
            AdaptSegError: batch norm in training was left with a single value per channel (batch of one before a
                global pooling, or an image of one cell).
        """
        self._refuse_unsupported(crop=crop, token_mask=token_mask)
        size = (images.shape[-2], images.shape[-1])
        padded = pad(images, self._multiple, self._smallest)
        try:
            features = self.encoder(padded)
            logits, auxiliary = self._decode(features)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise AdaptSegError(
                f"batch norm cannot train on one value per channel (batch {tuple(images.shape)}, {self._called}); "
                "use a batch size of 2 or more, or norm: frozen or group"
            ) from error

        def stride(cells: Tensor) -> int:
            return padded.shape[-2] // cells.shape[-2]

        return Output(
            logits=onto_image(logits, stride(logits), size),
            features=_shown(features, padded, size),
            auxiliary={name: onto_image(cells, stride(cells), size) for name, cells in auxiliary.items()},
        )

    def encoded(self, images: Tensor) -> list[Tensor]:
        padded = pad(images, self._multiple, self._smallest)
        return _shown(self.encoder(padded), padded, (images.shape[-2], images.shape[-1]))


def _shown(features: list[Tensor], padded: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """The encoder's stages, cut to the cells that touch the image."""
    return [cut(f, padded.shape[-2] // f.shape[-2], size) for f in stages(features, padded)]
