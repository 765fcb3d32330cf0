"""Encoders by name, smp's or timm's: made with or without hub weights, and what maps they give."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adaptseg.errors import AdaptSegError
from adaptseg.networks.weights import first_line

_PROBE = 128
"""Side of the image that `levels` shows a timm model: a multiple of every stride in use (timm's go up to 64)."""


class Level(NamedTuple):
    """One map of an encoder: its channels, and image pixels per cell (no whole number where it trims borders)."""

    channels: int
    stride: float


def make_encoder(encoder: str, *, from_hub: bool, output_stride: int = 32) -> nn.Module:
    """The smp or "tu-" timm encoder of that name on RGB, with random or with ImageNet weights from the hub.

    Raises:
        AdaptSegError: an unknown name, an output stride it cannot be given, weights that cannot be had.
    """
    with making(f"encoder '{encoder}'", encoder, from_hub=from_hub):
        weights = "imagenet" if from_hub else None
        return smp.encoders.get_encoder(encoder, weights=weights, output_stride=output_stride)


def levels(encoder: str, output_stride: int = 32) -> list[Level]:
    """The maps that an encoder of that name gives, fine to coarse, without the image itself; no weights are fetched.

    smp's own encoders keep to its table of channels, map i at stride 2**i or the output stride. timm's models are many
    and some are not what they publish: one is made on the meta device and shown an image there.

    Raises:
        AdaptSegError: an unknown name, or a timm model without the maps that smp's interface asks for.
    """
    check_encoder(encoder)
    if encoder in smp.encoders.encoders:
        channels = smp.encoders.encoders[encoder]["params"]["out_channels"]
        found = [Level(c, min(2**i, output_stride)) for i, c in enumerate(channels) if c > 0]
        return found[1:] if channels[0] == 3 else found  # map 0 is the image, except in VGG
    published = ""
    try:
        with torch.device("meta"), torch.no_grad():
            with quietly():
                if encoder.startswith("tu-"):
                    model: Any = timm.create_model(encoder[3:], features_only=True)
                    published = f" (timm: levels of strides {', '.join(map(str, model.feature_info.reduction()))})"
                network = smp.encoders.get_encoder(encoder, weights=None, output_stride=output_stride).eval()
            image = torch.zeros(1, 3, _PROBE, _PROBE)
            maps = stages(network(image), image)
    # See `making`: what smp and timm raise has no common class.
    except Exception as error:
        raise AdaptSegError(
            f"encoder: '{encoder}' gives no maps at output stride {output_stride}: {first_line(error)}{published}"
        ) from error
    return [Level(m.shape[1], _PROBE / m.shape[-1]) for m in maps]


def stages(features: list[Tensor], images: Tensor) -> list[Tensor]:
    """An encoder's own maps out of what smp's interface returns: without the image, and without empty placeholders."""
    return [f for f in features if f is not images and f.shape[1] > 0]


def spell(found: Sequence[Level]) -> str:
    """Strides for messages: "4, 8, 16, 32"."""
    return ", ".join(f"{level.stride:.3g}" for level in found) or "none"


@contextmanager
def making(what: str, encoder: str, *, from_hub: bool) -> Iterator[None]:
    """Around the construction of a library's network: its complaints become ours, in one line.

    Works on the meta device too.
    """
    check_encoder(encoder)
    try:
        with quietly():
            yield
    # Only the user's names and numbers go in; what smp, timm and the hub's client raise on them has no common class.
    except Exception as error:
        if from_hub:
            raise AdaptSegError(
                f"encoder '{encoder}' with ImageNet weights from the hub cannot be made: {first_line(error)}; "
                "without access to the hub set weights: false or a local file"
            ) from error
        raise AdaptSegError(f"{what} cannot be made: {first_line(error)}") from error


def check_encoder(encoder: str) -> None:
    """Refuse names that neither smp nor timm knows, and timm models of one image size."""
    if encoder.startswith("tu-"):
        known = timm.is_model(encoder[3:])
        published = timm.get_pretrained_cfg(encoder[3:]) if known else None
        if published is not None and published.fixed_input_size:
            raise AdaptSegError(
                f"encoder: '{encoder}' reads images of {published.input_size[1:]} only; any size expected"
            )
    else:
        known = encoder in smp.encoders.encoders or smp.encoders.is_equivalent_to_timm_universal(encoder)
    if not known:
        raise AdaptSegError(f"encoder: '{encoder}' is no encoder of smp, nor 'tu-' and the name of a timm model")


@contextmanager
def quietly() -> Iterator[None]:
    """Without the renamings that smp and timm warn of; also on the meta device."""
    with warnings.catch_warnings(), _SchedulesOnCpu():
        # smp and timm warn here of their own renamings ("timm-", deprecated model names): not the user's doing.
        warnings.simplefilter("ignore")
        yield


class _SchedulesOnCpu(TorchFunctionMode):
    """smp's MiT reads its drop-path rates out of a `torch.linspace`, which has no values on the meta device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "cpu"} if func is torch.linspace else kwargs))
