"""Pre-trained encoder weights from a local file, matched strictly to the encoder they are for."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adaptseg.errors import AdaptSegError

_STRIPPED = ("", "module.", "encoder.", "backbone.", "module.encoder.", "module.backbone.")
"""Prefixes that training scripts leave on a checkpoint of an encoder."""

_ADDED = ("", "features.", "model.")
"""Prefixes under which smp keeps layers: torchvision's files of `features` alone lack the first, timm's the second."""

_CLASSIFIER = (
    "classifier.", "fc.", "_fc.", "last_linear.", "head.", "heads.", "conv_head.", "bn2.", "norm.", "fc_norm.",
    "attn_pool.",
)  # fmt: skip
"""What ImageNet files hold beyond the encoder: the classifier, and the layers timm puts right before it."""


def load_encoder_weights(encoder: nn.Module, file: str | Path, *, optional: Collection[str] = ()) -> None:
    """Fill `encoder` from a .pth, .pt or .safetensors file of any float type (values are cast to the encoder's).

    Keys may carry or lack the prefixes above, and may spell timm's "stages.0" or "stages_0". Classifier layers that
    the encoder does not have are ignored, and `num_batches_tracked` may be absent. Pickles are read with
    `weights_only=True`: a file cannot run code.

    Args:
        encoder: what to fill.
        file: the weights.
        optional: keys that the file may lack; they stay as they are.

    Raises:
        AdaptSegError: names the file and the first keys that are missing, left over or wrongly shaped.
    """
    file = Path(file)
    wanted = encoder.state_dict()
    given = _match(_read(file), wanted)
    spared = {k: v for k, v in wanted.items() if k in optional or k.endswith("num_batches_tracked")}
    if found := misfit({**spared, **given}, wanted):
        raise AdaptSegError(f"weights file {file} does not fit the encoder: it {found}; check `encoder` and `weights`")
    # The plain method: smp's encoders override it and drop or rename keys of their own hub files.
    nn.Module.load_state_dict(encoder, {**wanted, **given})


def misfit(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, shown: int = 3) -> str:
    """What hinders given tensors from being loaded as the wanted ones, in words; empty if nothing does.

    Float types may differ. Of each kind of fault (missing, left over, wrongly shaped) the first `shown` keys are named
    and the others counted.
    """
    missing = [k for k in wanted if k not in given]
    unexpected = [k for k in given if k not in wanted]
    unfit = [
        f"{k} ({_form(given[k])} instead of {_form(wanted[k])})"
        for k in wanted
        if k in given and not _interchangeable(given[k], wanted[k])
    ]
    problems = (("lacks", missing), ("has unknown", unexpected), ("has wrongly shaped", unfit))
    return "; ".join(f"{what} {_some(keys, shown)}" for what, keys in problems if keys)


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise AdaptSegError(f"weights file {file} does not exist; `weights` takes true, false or a local file")
    if file.suffix not in (".pth", ".pt", ".safetensors"):
        raise AdaptSegError(f"weights file {file}: .pth, .pt or .safetensors expected")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else read_torch_file(file, "weights file")
    for key in ("state_dict", "model"):  # how training scripts wrap the tensors
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise AdaptSegError(f"weights file {file} does not hold a mapping of names to tensors")
    return dict(content)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise AdaptSegError(f"weights file {file} cannot be read: {first_line(error)}") from error


def read_torch_file(file: Path, what: str) -> Any:
    """Content of a file that `torch.save` wrote, on the CPU; nothing but tensors and plain values is unpickled."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise AdaptSegError(f"{what} {file} cannot be read: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of what a library says, at most 200 characters, for messages of one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def _match(given: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the given keys by the pair of prefixes that hits most wanted ones, and drop the classifier's."""
    # timm flattens "stages.0" to "stages_0" when it cuts a model into features: compare with dots as underscores.
    spelling = {key.replace(".", "_"): key for key in wanted}
    best: dict[str, Tensor] = given
    hits = -1
    for stripped, added in product(_STRIPPED, _ADDED):
        renamed: dict[str, Tensor] = {}
        for key, tensor in given.items():
            bare = key.removeprefix(stripped)
            name = spelling.get((added + bare).replace(".", "_"))
            if name is not None:
                renamed[name] = tensor
            elif not bare.startswith(_CLASSIFIER):
                renamed[key] = tensor
        score = sum(key in wanted for key in renamed)
        if score > hits:
            best, hits = renamed, score
    return best


def _interchangeable(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.is_floating_point() == b.is_floating_point()


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _some(keys: list[str], shown: int) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more
