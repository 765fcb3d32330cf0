"""Frozen maps that describe every pixel of an image: of a diffusion model's decoder, or of any encoder.

Two-stage eDALD (NeurIPS 2025) reads a denoiser's activations for a noisy version of the image, and measures uncertainty
by drawing the noise anew; specification 2.2. How points are read from the maps: `point_features`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, lru_cache
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from adaptseg.data.sampling import generator
from adaptseg.errors import AdaptSegError
from adaptseg.networks.adm_flags import AdmFlags
from adaptseg.networks.denoiser import TIMESTEPS, centred, check_size, noised
from adaptseg.networks.encoders import levels as encoder_levels
from adaptseg.networks.encoders import make_encoder, stages
from adaptseg.networks.unets import read_unet
from adaptseg.networks.weights import load_encoder_weights
from adaptseg.storage import content_hash


class FeatureMaps(nn.Module, ABC):
    """A frozen network that shows an image as a list of low-resolution maps.

    Always in eval mode and without gradients, whatever mode its owner is put in: dropout left on made the released
    features of one backbone noisy in training and clean in evaluation (specification, trap T7).

    Attributes:
        level_channels: C_i of each map.
        channels: D, their sum.
        forwards: passes through the network so far; every image of a batch counts.

    Args:
        level_channels: see above.
        seed: of the noise.
    """

    def __init__(self, level_channels: Sequence[int], seed: int) -> None:
        super().__init__()
        if seed < 0:
            raise AdaptSegError(f"seed: {seed} given, 0 or more expected")
        self.level_channels = tuple(level_channels)
        self.channels = sum(level_channels)
        self.seed = seed
        self.forwards = 0

    def train(self, mode: bool = True) -> FeatureMaps:
        return super().train(False)

    @torch.no_grad()
    def maps(self, images: Tensor, *, draw: int = 0) -> list[Tensor]:
        """The maps of some images.

        Args:
            images: (B, 3, H, W), ImageNet-normalised.
            draw: 0: the fixed noise; 1, 2, ...: fresh ones. The noise of a draw is a pure function of (seed, draw, H,
                W): the same for every image, timestep and round. Draw 0 has a random stream of its own, so that no
                other draw can repeat it (trap T15). The global random state stays as it is.

        Returns:
            one (B, C_i, h_i, w_i) float32 for each of `level_channels`.

        Raises:
            AdaptSegError: a size that `check` refuses, a draw below 0.
        """
        height, width = images.shape[-2:]
        self.check((height, width))
        if draw < 0:
            raise AdaptSegError(f"draw: {draw} given, 0 or more expected")
        with torch.autocast(images.device.type, enabled=False):  # equal features, whatever the caller's precision
            return self._maps(images.float(), draw)

    @abstractmethod
    def _maps(self, images: Tensor, draw: int) -> list[Tensor]: ...

    @abstractmethod
    def check(self, size: tuple[int, int]) -> None:
        """Raise AdaptSegError unless images of `size` (H, W) have maps that cover them exactly."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Plain values that decide the features: equal identities give equal features of equal images."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """{"class_path": ..., "init_args": {...}} of plain types that makes the same features again. Unlike a
        Segmenter's it names the files of its weights, which no checkpoint of a head holds."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @cached_property
    def _weights(self) -> str:
        """16 hex digits of the names, types and values of all weights."""
        digest = hashlib.sha256()
        for name, tensor in self.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def _noise(self, images: Tensor, draw: int) -> Tensor:
        """(1, 3, H, W) standard normal numbers on the device of the images."""
        return _noise(self.seed, draw, images.shape[-2], images.shape[-1]).to(images.device)


@lru_cache(maxsize=16)  # an image is shown with all draws before the next one
def _noise(seed: int, draw: int, height: int, width: int) -> Tensor:
    if draw == 0:
        random = generator(seed, "features/fixed noise", height, width)
    else:
        random = generator(seed, "features/fresh noise", draw, height, width)
    return torch.from_numpy(random.standard_normal((1, 3, height, width), dtype=np.float32))


class DiffusionFeatures(FeatureMaps):
    """What the decoder of a denoiser makes of a noisy image.

    Decoder blocks are counted from the coarsest: each residual block of the way up with its attention is one, and the
    up-sampler belongs to the last of its level. Maps come by timestep, then by block.

    Args:
        unet: run directory or checkpoint of `Denoising`, a folder that diffusers saved, or "owner/name" on the hub;
            with `adm`, a `.pt` file of guided-diffusion.
        timesteps: noise levels, 0 to 999; one pass each.
        blocks: decoder blocks to read. None: the published 5, 8, 12, 17 where there are 18 blocks, as in ADM at
            256x256; else the last of every level.
        seed: of the noise.
        adm: the flags of a file of guided-diffusion (`configs/features/` has the published ones); None: another source.

    Raises:
        AdaptSegError: no such network, one that wants class labels, a timestep or block it does not have.
    """

    def __init__(
        self,
        unet: str,
        timesteps: Sequence[int] = (50, 150, 250),
        blocks: Sequence[int] | None = None,
        seed: int = 0,
        adm: AdmFlags | None = None,
    ) -> None:
        readable = read_unet(unet, adm)
        found = readable.blocks
        chosen = _published_or_last(len(found), readable.levels) if blocks is None else list(blocks)
        if not timesteps or any(not 0 <= t < TIMESTEPS for t in timesteps):
            raise AdaptSegError(f"timesteps: {list(timesteps)} given, one or more of 0 to {TIMESTEPS - 1} expected")
        if not chosen or any(not 0 <= block < len(found) for block in chosen) or len(set(chosen)) < len(chosen):
            raise AdaptSegError(
                f"blocks: {chosen} given; {unet} has {len(found)} decoder blocks, 0 to {len(found) - 1}, each of which "
                "may be named once"
            )
        super().__init__([found[block][1] for block in chosen] * len(timesteps), seed)
        self.source, self.adm, self.timesteps, self.blocks = unet, adm, tuple(timesteps), tuple(chosen)
        self.unet: Any = readable.network.requires_grad_(False)
        self._patch, self._architecture = 2 ** (readable.levels - 1), content_hash(readable.architecture)
        self._read = [found[block][0] for block in chosen]
        self.train(False)

    def _maps(self, images: Tensor, draw: int) -> list[Tensor]:
        clean, noise = centred(images), self._noise(images, draw)
        return [cells for t in self.timesteps for cells in self._decoded(clean, noise, t)]

    def _decoded(self, clean: Tensor, noise: Tensor, timestep: int) -> list[Tensor]:
        """The chosen blocks' outputs at one timestep, in the order of `blocks`."""
        timesteps = torch.full((len(clean),), timestep, device=clean.device)
        last = self.unet.get_submodule(self._read[self.blocks.index(max(self.blocks))])
        with _outputs(self.unet, self._read) as outputs, _stopping_after(last):
            self.unet(noised(clean, noise, timesteps), timesteps)
        self.forwards += len(clean)
        return [outputs[name].float() for name in self._read]

    def check(self, size: tuple[int, int]) -> None:
        check_size(size, self._patch)

    def config(self) -> dict[str, Any]:
        arguments = {"unet": self.source, "timesteps": list(self.timesteps), "blocks": list(self.blocks)}
        flags = {"class_path": "adaptseg.networks.AdmFlags", "init_args": asdict(self.adm)} if self.adm else None
        return {
            "class_path": "adaptseg.networks.feature_maps.DiffusionFeatures",
            "init_args": {**arguments, "seed": self.seed, "adm": flags},
        }

    def identity(self) -> dict[str, Any]:
        return {
            "features": "diffusion",
            "weights": self._weights,
            "architecture": self._architecture,
            "timesteps": list(self.timesteps),
            "blocks": list(self.blocks),
            "seed": self.seed,
        }


def _published_or_last(count: int, levels: int) -> list[int]:
    if count == 18:
        return [5, 8, 12, 17]
    return [count // levels * (level + 1) - 1 for level in range(levels)]


@contextmanager
def _outputs(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collects what the modules of these names return while the network runs."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: found.__setitem__(name, output)

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class _ReachedError(Exception):
    """Ends a forward pass of which nothing more is needed."""


@contextmanager
def _stopping_after(module: nn.Module) -> Iterator[None]:
    """Ends the pass inside this context once `module` has run; hooks that were there before have run, too."""

    def stop(*_: Any) -> NoReturn:
        raise _ReachedError

    handle = module.register_forward_hook(stop)
    try:
        yield
    except _ReachedError:
        pass
    finally:
        handle.remove()


class EncoderFeatures(FeatureMaps):
    """The maps of an encoder; fresh draws add noise to its input (inferred: the paper knows diffusion features only).

    Args:
        encoder: name of an smp encoder or "tu-" and a timm name.
        weights: True: ImageNet weights from the hub; False: random ones, drawn from `seed`; or a local file.
        levels: which of the encoder's maps, 0 = the finest; None: all.
        noise: standard deviation of the noise of draws 1, 2, ... in units of normalised images; draw 0 has none.
        seed: of the noise, and of random weights.

    Raises:
        AdaptSegError: an unknown encoder or level, weights that cannot be had, negative noise.
    """

    def __init__(
        self,
        encoder: str,
        weights: bool | str = True,
        levels: Sequence[int] | None = None,
        noise: float = 0.1,
        seed: int = 0,
    ) -> None:
        found = encoder_levels(encoder)
        chosen = list(range(len(found))) if levels is None else list(levels)
        if not chosen or any(not 0 <= level < len(found) for level in chosen) or len(set(chosen)) < len(chosen):
            raise AdaptSegError(
                f"levels: {chosen} given; encoder '{encoder}' has {len(found)} maps, 0 to {len(found) - 1}, each of "
                "which may be named once"
            )
        if noise < 0:
            raise AdaptSegError(f"noise: {noise} given, a standard deviation of 0 or more expected")
        super().__init__([found[level].channels for level in chosen], seed)
        self.name, self.weights, self.levels, self.noise = encoder, weights, tuple(chosen), noise
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            network = make_encoder(encoder, from_hub=weights is True)
        if isinstance(weights, str):
            load_encoder_weights(network, weights)
        self.encoder = network.requires_grad_(False)
        self.train(False)

    def _maps(self, images: Tensor, draw: int) -> list[Tensor]:
        shown = images if draw == 0 else images + self.noise * self._noise(images, draw)
        found = stages(self.encoder(shown), shown)
        self.forwards += len(images)
        return [found[level] for level in self.levels]

    def check(self, size: tuple[int, int]) -> None:
        check_size(size, int(getattr(self.encoder, "output_stride", 32)))

    def config(self) -> dict[str, Any]:
        arguments = {"encoder": self.name, "weights": self.weights, "levels": list(self.levels), "noise": self.noise}
        return {
            "class_path": "adaptseg.networks.feature_maps.EncoderFeatures",
            "init_args": {**arguments, "seed": self.seed},
        }

    def identity(self) -> dict[str, Any]:
        return {
            "features": "encoder",
            "encoder": self.name,
            "weights": self._weights,
            "levels": list(self.levels),
            "noise": self.noise,
            "seed": self.seed,
        }
