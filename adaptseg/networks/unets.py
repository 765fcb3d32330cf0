"""Denoisers whose decoder can be read: runs of our own, folders and names of diffusers, files of guided-diffusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks.adm import load_adm
from adaptseg.networks.adm_flags import AdmFlags
from adaptseg.networks.denoiser import diffusers_module, load_denoiser
from adaptseg.networks.weights import first_line


class ReadableUNet(NamedTuple):
    """A UNet on the CPU, in eval mode.

    Attributes:
        network: called with noisy images (B, 3, H, W) in [-1, 1] and timesteps (B,).
        blocks: of every decoder block, the coarsest first: name of the module whose output is the block's, channels.
        levels: grids, each half as fine as the one before.
        architecture: plain values that decide, with the weights, what the network says.
    """

    network: nn.Module
    blocks: list[tuple[str, int]]
    levels: int
    architecture: dict[str, Any]


def read_unet(source: str, adm: AdmFlags | None = None) -> ReadableUNet:
    """A denoiser of RGB images without class labels.

    Args:
        source: run directory or checkpoint of `Denoising`; a folder that diffusers saved (of the network, or of a
            pipeline with `unet/`); or, if nothing of that name exists here, "owner/name" on the hub.
        adm: the source is a `.pt` file of guided-diffusion with these flags.

    Raises:
        AdaptSegError: nothing there, not such a denoiser, or no access to the hub.
    """
    if adm is None:
        return _of_diffusers(_unet_2d(source), source)
    if adm.class_cond:
        raise AdaptSegError("adm.class_cond is true; images without labels have features in a network without classes")
    network = load_adm(source, adm)
    blocks = [(f"output_blocks.{number}", channels) for number, channels in enumerate(network.decoded)]
    return ReadableUNet(network, blocks, len(adm.widths), {"adm": adm.architecture()})


def _unet_2d(source: str) -> Any:
    """diffusers' UNet2DModel of a source."""
    path = Path(source)
    folders = [folder for folder in (path, path / "unet") if (folder / "config.json").is_file()]
    if folders:
        unet = _from_pretrained(str(folders[0]), local=True)
    elif path.suffix == ".pt":
        raise AdaptSegError(
            f"unet: {source} is a .pt file, which needs the flags of its network as well: set adm, as the files of "
            "configs/features/ do (a checkpoint of Denoising ends with .ckpt)"
        )
    elif path.exists():
        unet = load_denoiser(path).unet
    elif source.count("/") == 1 and not path.suffix and not source.startswith((".", "/", "~")):
        unet = _from_pretrained(source, local=False)
    else:
        raise AdaptSegError(
            f"unet: {source} does not exist; a run directory or checkpoint of Denoising, a folder of diffusers, "
            "owner/name on the hub, or, with adm, a file of guided-diffusion is expected"
        )
    if unet.config.in_channels != 3 or getattr(unet, "class_embedding", None) is not None:
        raise AdaptSegError(f"unet: {source} is no unconditional denoiser of RGB images")
    return unet.eval()


def _from_pretrained(name: str, *, local: bool) -> Any:
    model = diffusers_module().UNet2DModel
    try:
        # The memory-saving way needs accelerate, which nothing else here does.
        return model.from_pretrained(name, local_files_only=local, low_cpu_mem_usage=False)
    # The hub's client and diffusers raise OSError, ValueError, TypeError and classes of their own.
    except Exception as error:
        advice = "" if local else "; without access to the hub give a local folder or a run of Denoising"
        raise AdaptSegError(f"unet: {name} cannot be read as a UNet2DModel: {first_line(error)}{advice}") from error


def _of_diffusers(unet: Any, source: str) -> ReadableUNet:
    channels = list(reversed(unet.config.block_out_channels))
    blocks: list[tuple[str, int]] = []
    for level, stage in enumerate(unet.up_blocks):
        kind = type(stage).__name__
        if kind not in ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"):
            raise AdaptSegError(
                f"unet: {source} decodes by a {kind}; UpBlock2D, AttnUpBlock2D and ResnetUpsampleBlock2D can be read"
            )
        inside = "attentions" if kind == "AttnUpBlock2D" else "resnets"
        last = len(stage.resnets) - 1
        blocks += [(f"up_blocks.{level}.{inside}.{i}", channels[level]) for i in range(last)]
        blocks.append((f"up_blocks.{level}", channels[level]))
    architecture = {key: _plain(value) for key, value in unet.config.items() if not key.startswith("_")}
    return ReadableUNet(unet, blocks, len(channels), architecture)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
