"""HRDA: context at low resolution and a crop of detail at full, on any network (Hoyer, Dai, Van Gool, ECCV 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks.daformer import DAFormerHead
from adaptseg.networks.groups import encoder_layers
from adaptseg.networks.normalization import Norm, replace_batch_norm
from adaptseg.networks.padding import onto_image, pad
from adaptseg.networks.segmenter import Argument, LossTerm, Output, Segmenter, resize_logits
from adaptseg.networks.windows import Corner, WindowMean, cut_windows, place_windows, window_corners

_PROBE = 128
"""Side of the image that tells the wrapped network's stride and features: a multiple of every stride in use."""


class HRDA(Segmenter):
    """A segmenter that reads each image twice with the same weights: whole but smaller, and in windows at full size.

    fused = up((1 - A) context) + up(A) detail, where A in (0, 1) is what the context's features say of each class and
    cell (paper, section 3.2). Logits have the stride of the wrapped network, counted in pixels of the full image; where
    it has none (a transformer with patches of 14 pixels), its logits are resized to the nearest whole one (inferred).

    In training, `crop` says where the one detail window of each image lies; A is 0 outside it. Without `crop`, windows
    that overlap cover the image, and their logits are averaged (3.3): pseudo-labels, validation, test. Nothing is
    remembered between calls. Images may have any size from the detail window on; sides that the strides do not divide
    are padded and cut as in `EncoderDecoder`.

    `Output.features` are the context's. `Output.auxiliary` holds what the wrapped network gives for the context, and:
    `detail`, logits of the crop or, without one, of the image; `context` logits and `attention` (B, C, h, w), at the
    context's stride.

    Two things differ from the release: each image has a detail window of its own, which belongs to its sample, where
    the release draws one for the batch; and the last position may be drawn, as the paper says. For networks other than
    DAFormer, the attention head is inferred: DAFormer's with 1x1 fusion, on the last four levels.

    Args:
        num_classes: C; linked from the data.
        segmenter: what reads both scales: a factory called with C, or a network already made (as `load` rebuilds it).
        detail: (height, width) of the detail window in pixels (512x512 in images of 1024x1024).
        window_stride: pixels between the overlapping windows; None: half of them, as published.
        context_scale: of the context, one over a whole number (0.5).
        detail_loss_weight: share of the detail's own loss in [0, 1); the fused prediction has the rest (0.1).
        attention_channels: width of the attention head (256).
        attention_dropout: before its classifier (0.1).
        norm: of the attention head: "batch", "frozen" or "group", as of the wrapped network.

    Raises:
        AdaptSegError: a number out of range, windows that do not lie on the grid of both scales, or a network that has
            no features for the attention head.
    """

    accepts: ClassVar[frozenset[Argument]] = frozenset({"crop"})

    def __init__(
        self,
        num_classes: int,
        *,
        segmenter: Callable[[int], nn.Module],
        detail: tuple[int, int] = (512, 512),
        window_stride: tuple[int, int] | None = None,
        context_scale: float = 0.5,
        detail_loss_weight: float = 0.1,
        attention_channels: int = 256,
        attention_dropout: float = 0.1,
        norm: Norm = "batch",
    ) -> None:
        super().__init__(num_classes)
        self.segmenter = _made(segmenter, num_classes)
        self.pretrained = self.segmenter.pretrained
        self._stride, channels = _probe(self.segmenter)
        self._reduction = _reduction(context_scale)
        self._grid = self._stride * self._reduction
        if not 0 <= detail_loss_weight < 1:
            raise AdaptSegError(f"detail_loss_weight: {detail_loss_weight} given, a share in [0, 1) expected")
        self.detail = (detail[0], detail[1])
        self.window_stride = window_stride or (detail[0] // 2, detail[1] // 2)
        self._check_windows()
        self.detail_loss_weight = detail_loss_weight
        self.auxiliary_losses = ("detail",) if detail_loss_weight else ()
        self.attention = DAFormerHead(
            channels, num_classes, channels=attention_channels, dropout=attention_dropout, fusion="conv1x1"
        )
        replace_batch_norm(self.attention, norm)
        self._init_args = {
            "num_classes": num_classes,
            "detail": list(self.detail),
            "window_stride": list(self.window_stride),
            "context_scale": context_scale,
            "detail_loss_weight": detail_loss_weight,
            "attention_channels": attention_channels,
            "attention_dropout": attention_dropout,
            "norm": norm,
        }

    def _check_windows(self) -> None:
        if any(side < 1 or side % self._grid for side in self.detail):
            raise AdaptSegError(
                f"detail: {list(self.detail)} given, multiples of {self._grid} pixels expected (the network's stride "
                f"of {self._stride} over the context's scale)"
            )
        pairs = zip(self.window_stride, self.detail, strict=True)
        if any(not 1 <= stride <= side or stride % self._stride for stride, side in pairs):
            raise AdaptSegError(
                f"window_stride: {list(self.window_stride)} given, multiples of the network's stride of {self._stride} "
                f"up to detail {list(self.detail)} expected"
            )

    def forward(
        self, images: Tensor, *, crop: Tensor | tuple[int, ...] | None = None, token_mask: Tensor | None = None
    ) -> Output:
        """See `Segmenter.forward` and the class.

        Args:
            crop: first row and column of the detail window, multiples of the context's stride in pixels: (B, 2)
                integers on the CPU, or one pair for all images.

        Raises:
            AdaptSegError: images smaller than the detail window, or a crop off the grid or outside the image.
        """
        self._refuse_unsupported(crop=crop, token_mask=token_mask)
        size = (images.shape[-2], images.shape[-1])
        self._require_room(size)
        padded = pad(images, self._grid)
        # Means of 2x2 pixels at the published scale: what bilinear resizing by one half computes.
        smaller = F.avg_pool2d(padded, self._reduction)
        context = self.segmenter(smaller)
        logits = self._on_grid(context.logits, smaller)
        attention = self._attend(context, (logits.shape[-2], logits.shape[-1]))
        fine = (padded.shape[-2] // self._stride, padded.shape[-1] // self._stride)
        if crop is None:
            detail = self._read_windows(padded, fine)
            fused = fuse(logits, detail, attention)
            detail = onto_image(detail, self._stride, size)
        else:
            corners = self._corners(crop, len(images), size)
            views = cut_windows(padded, corners, self.detail)
            detail = self._on_grid(self.segmenter(views).logits, views)
            fused = fuse(
                logits,
                place_windows(detail, _divided(corners, self._stride), fine),
                self._inside(attention, corners),
            )

        def shown(cells: Tensor) -> Tensor:
            return onto_image(cells, padded.shape[-2] // cells.shape[-2], size)

        coarse = {**context.auxiliary, "context": logits, "attention": attention}
        auxiliary = {name: shown(cells) for name, cells in coarse.items()}
        return Output(shown(fused), context.features, {**auxiliary, "detail": detail})

    def _on_grid(self, logits: Tensor, images: Tensor) -> Tensor:
        """The wrapped network's logits of `images`, at the whole stride."""
        size = (images.shape[-2] // self._stride, images.shape[-1] // self._stride)
        return resize_logits(_at_least_float32(logits), size)

    def _attend(self, context: Output, size: tuple[int, int]) -> Tensor:
        """A: (B, C, *size) in (0, 1)."""
        assert context.features is not None
        return resize_logits(_at_least_float32(self.attention(context.features[-4:])), size).sigmoid()

    def _inside(self, attention: Tensor, corners: list[Corner]) -> Tensor:
        """A in the cells of the detail windows, 0 elsewhere."""
        cells, size = (self.detail[0] // self._grid, self.detail[1] // self._grid), attention.shape[-2:]
        coarse = _divided(corners, self._grid)
        return place_windows(cut_windows(attention, coarse, cells), coarse, (size[0], size[1]))

    def _read_windows(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (B, C, *size) averaged over overlapping windows, which pass the network together as in the release."""
        corners = window_corners((images.shape[-2], images.shape[-1]), self.detail, self.window_stride)
        height, width = self.detail
        views = torch.cat([images[..., y : y + height, x : x + width] for y, x in corners])
        logits = self._on_grid(self.segmenter(views).logits, views)
        mean = WindowMean((len(images), self.num_classes, *size), logits.dtype, logits.device)
        for corner, window in zip(_divided(corners, self._stride), logits.split(len(images)), strict=True):
            mean.add(corner, window)
        return mean.mean()

    def _require_room(self, size: tuple[int, int]) -> None:
        if self.detail[0] > size[0] or self.detail[1] > size[1]:
            raise AdaptSegError(
                f"HRDA's detail windows of {self.detail[0]}x{self.detail[1]} pixels do not fit into images of "
                f"{size[0]}x{size[1]}: lower model.network.init_args.detail, or enlarge data.crop, the images or "
                "inference.window"
            )

    def _corners(self, crop: Tensor | tuple[int, ...], batch: int, size: tuple[int, int]) -> list[Corner]:
        if isinstance(crop, Tensor) and crop.device.type != "cpu":
            raise AdaptSegError(f"crop lies on {crop.device}, where reading it would wait for the device; cpu expected")
        pairs = crop.tolist() if isinstance(crop, Tensor) else [list(crop)] * batch
        if len(pairs) != batch or any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
            raise AdaptSegError(f"crop: {crop} given for {batch} images, ({batch}, 2) rows and columns expected")
        last = (size[0] - self.detail[0], size[1] - self.detail[1])
        if any(not 0 <= c <= most or c % self._grid for pair in pairs for c, most in zip(pair, last, strict=True)):
            raise AdaptSegError(
                f"crop: {pairs} given, multiples of {self._grid} from 0 to {last[0]} rows and {last[1]} columns "
                "expected"
            )
        return [(int(y), int(x)) for y, x in pairs]

    # ---- training

    def training_crop(self, size: tuple[int, int], draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """(B, 2) int64: uniform over the grid's positions at which the detail window fits; see `Segmenter`."""
        self._require_room(size)
        positions = torch.tensor([(s - d) // self._grid + 1 for s, d in zip(size, self.detail, strict=True)])
        return (draw((2,)).double() * positions).long() * self._grid

    def loss_terms(self, output: Output, size: tuple[int, int], crop: Tensor | None) -> tuple[LossTerm, ...]:
        """The fused prediction and the detail by itself (paper, equation 11); see `Segmenter`.

        The context needs no loss of its own: outside the detail window it is the fused prediction.
        """
        fused = LossTerm("", output.logits, size, 1 - self.detail_loss_weight)
        if not self.auxiliary_losses:
            return (fused,)
        corners = None if crop is None else tuple(self._corners(crop, len(output.logits), size))
        seen = size if crop is None else self.detail
        return fused, LossTerm("detail", output.auxiliary["detail"], seen, self.detail_loss_weight, corners)

    # ---- what the wrapped network answers

    def encoded(self, images: Tensor) -> list[Tensor]:
        return self.segmenter.encoded(F.avg_pool2d(pad(images, self._grid), self._reduction))

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        return self.segmenter.encoder_parameters()

    def encoder_layers(self) -> list[list[nn.Parameter]]:
        return encoder_layers(self.segmenter)

    def checkpoint_encoder(self) -> None:
        self.segmenter.checkpoint_encoder()

    def config(self) -> dict[str, Any]:
        """See `Segmenter.config`."""
        arguments = {**self._init_args, "segmenter": self.segmenter.config()}
        return {"class_path": "adaptseg.networks.HRDA", "init_args": arguments}


def fuse(context: Tensor, detail: Tensor, attention: Tensor) -> Tensor:
    """up((1 - A) context) + up(A) detail (Hoyer et al., ECCV 2022, section 3.2; the release's order of steps).

    Args:
        context: (B, C, h, w) logits.
        detail: (B, C, H, W) logits of the same picture on a finer grid.
        attention: A, (B, C, h, w) in [0, 1]: the detail's share.

    Returns:
        (B, C, H, W).
    """
    size = (detail.shape[-2], detail.shape[-1])
    return resize_logits((1 - attention) * context, size) + resize_logits(attention, size) * detail


def _made(segmenter: Callable[[int], nn.Module], num_classes: int) -> Segmenter:
    made = segmenter if isinstance(segmenter, nn.Module) else segmenter(num_classes)
    if not isinstance(made, Segmenter) or isinstance(made, HRDA):
        raise AdaptSegError(
            f"segmenter: HRDA cannot wrap a {type(made).__name__}; another Segmenter is expected, such as DAFormer"
        )
    if made.num_classes != num_classes:
        raise AdaptSegError(f"segmenter: it has {made.num_classes} classes, HRDA {num_classes}; the same are expected")
    return made


def _reduction(scale: float) -> int:
    """How many times smaller the context is."""
    reduction = round(1 / scale) if 0 < scale < 1 else 1
    if reduction < 2 or abs(reduction * scale - 1) > 1e-6:
        raise AdaptSegError(f"context_scale: {scale} given, one over a whole number from 2 on expected, such as 0.5")
    return reduction


@torch.no_grad()
def _probe(segmenter: Segmenter) -> tuple[int, list[int]]:
    """The network's stride, and the channels of the last four levels of its features."""
    device = next((p.device for p in segmenter.parameters()), None)
    training = segmenter.training
    output = segmenter.eval()(torch.zeros(1, 3, _PROBE, _PROBE, device=device))
    segmenter.train(training)
    if not output.features:
        raise AdaptSegError(
            f"segmenter: HRDA's attention needs encoder features, and {type(segmenter).__name__} shows none; "
            "change the class_path of model.network.init_args.segmenter"
        )
    return round(_PROBE / output.logits.shape[-1]), [level.shape[1] for level in output.features[-4:]]


def _divided(corners: list[Corner], stride: int) -> list[Corner]:
    """Pixels to cells."""
    return [(y // stride, x // stride) for y, x in corners]


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
