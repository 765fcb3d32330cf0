"""`adaptseg export`: one network of a run as files that need no training code, each checked against the module.

An exported network maps normalised images (B, 3, H, W) float32 to logits (B, C, H, W) float32 at their size.
`config.json` says how to normalise and what the classes are. ONNX and torch.export take any batch size and any height
and width that are multiples of 32; other sizes must be padded.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from adaptseg import networks, storage
from adaptseg.classes import ClassTable
from adaptseg.console import say
from adaptseg.errors import AdaptSegError
from adaptseg.networks import Normalization, Segmenter, resize_logits
from adaptseg.networks.weights import first_line
from adaptseg.options import OwnOptions

FORMATS = ("safetensors", "pt2", "onnx")
STEP = 32
"""Heights and widths of exported graphs are multiples of this: no network here has a larger stride."""

TOLERANCE = 1e-4
"""Largest difference to the module, relative to the largest logit, in float32."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Labeller(nn.Module):
    """What is exported: a Segmenter with its logits at the size of the images."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to logits (B, C, H, W)."""
        return resize_logits(self.segmenter(images).logits, (images.shape[-2], images.shape[-1]))


def write_safetensors(segmenter: Segmenter, folder: Path) -> Path:
    """`model.safetensors` and `config.json`, which `load_exported` reads."""
    if segmenter.class_table is None or segmenter.normalization is None:
        raise AdaptSegError("only a network that adaptseg.networks.load read has classes and normalisation to export")
    config = {
        "network": segmenter.config(),
        "class_table": segmenter.class_table.to_dict(),
        "normalization": {name: list(values) for name, values in segmenter.normalization._asdict().items()},
    }
    storage.atomic_json(folder / "config.json", config)
    path = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in segmenter.state_dict().items()}, path)
    return path


def load_exported(folder: str | Path) -> Segmenter:
    """The network that `write_safetensors` wrote, in eval mode, with its class table and normalisation."""
    config = storage.read_json(Path(folder) / "config.json")
    segmenter = networks.build(config["network"])
    assert isinstance(segmenter, Segmenter)
    segmenter.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    segmenter.class_table = ClassTable.from_dict(config["class_table"])
    segmenter.normalization = Normalization(**{name: tuple(v) for name, v in config["normalization"].items()})
    return segmenter.eval()


def to_program(segmenter: Segmenter, size: tuple[int, int]) -> ExportedProgram:
    """The network as one graph for any batch and any size in multiples of `STEP`.

    Args:
        size: (H, W) of the example that the graph is traced with, at least twice `STEP`.

    Raises:
        AdaptSegError: the network does what such a graph cannot express; says what.
    """
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, 3, *size)
    dims = {0: Dim("batch"), 2: STEP * Dim("rows"), 3: STEP * Dim("columns")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own making
            return torch.export.export(Labeller(segmenter).eval(), (example,), dynamic_shapes=(dims,))
    except Exception as error:  # torch raises a dozen kinds, most of them private
        raise AdaptSegError(
            f"{type(segmenter).__name__} cannot be written as pt2 or onnx, choose --formats safetensors: "
            f"torch.export says {first_line(error)}"
        ) from error


def write_pt2(program: ExportedProgram, folder: Path) -> Path:
    """`model.pt2`, for `torch.export.load`."""
    path = folder / "model.pt2"
    try:
        torch.export.save(program, path)
    except Exception as error:  # as above
        raise AdaptSegError(f"pt2 cannot hold the network, choose other --formats: {first_line(error)}") from error
    return path


def write_onnx(program: ExportedProgram, folder: Path) -> Path:
    """`model.onnx`; AdaptSegError where the format lacks an operator, or the packages are not installed."""
    require_onnx()
    path = folder / "model.onnx"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                program, (), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
            )
            assert written is not None
            written.save(str(path))
    except Exception as error:  # as above
        raise AdaptSegError(f"onnx cannot express the network, choose other --formats: {first_line(error)}") from error
    return path


def missing_onnx() -> list[str]:
    """Which packages of the extra `export` are not installed."""
    return [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]


def require_onnx() -> None:
    """Raise AdaptSegError unless ONNX can be written and checked."""
    if missing := missing_onnx():
        raise AdaptSegError(f"format onnx needs {', '.join(missing)}: pip install 'adaptseg[export]'")


def reader(path: Path) -> Callable[[Tensor], Tensor]:
    """What a file of `FORMATS` computes, as a function of images."""
    if path.suffix == ".safetensors":
        return Labeller(load_exported(path.parent))
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@torch.no_grad()
def check(segmenter: Segmenter, path: Path, size: tuple[int, int]) -> float:
    """Largest difference between a file and the module over the largest logit, on random images of several sizes.

    Raises:
        AdaptSegError: it exceeds `TOLERANCE`.
    """
    module, read = Labeller(segmenter).eval(), reader(path)
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, *size), (3, 2 * STEP, 3 * STEP), (2, 5 * STEP, 2 * STEP)]
    worst = 0.0
    for batch, height, width in sizes:
        images = torch.randn(batch, 3, height, width, generator=generator)
        expected = module(images)
        found = read(images)
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)))
    if not worst <= TOLERANCE:
        raise AdaptSegError(f"{path} differs from the module by {worst:.1e} of its largest logit; do not use it")
    return worst


@torch.no_grad()
def costs(segmenter: Segmenter, size: tuple[int, int], *, repeats: int = 5) -> dict[str, float]:
    """Parameters, multiply-adds of one image of `size`, and the median seconds it takes here."""
    module = Labeller(segmenter).eval()
    image = torch.zeros(1, 3, *size)
    with FlopCounterMode(display=False) as counter:
        module(image)
    seconds: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        module(image)
        seconds.append(time.perf_counter() - began)
    return {
        "parameters": sum(parameter.numel() for parameter in segmenter.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,  # it counts a multiply-add as two
        "seconds": statistics.median(seconds),
    }


def run(verb: str, arguments: Sequence[str]) -> None:
    """The verb; AdaptSegError for everything the user can mend."""
    options = _options(verb, arguments)
    size = (int(options.size[0]), int(options.size[1]))
    if any(side % STEP or side < 2 * STEP for side in size):
        raise AdaptSegError(f"--size is {size[0]} {size[1]}; multiples of {STEP} from {2 * STEP} on are expected")
    formats: list[str] = options.formats or [f for f in FORMATS if f != "onnx" or not missing_onnx()]
    if "onnx" in formats:
        require_onnx()
    elif not options.formats:
        say(f"onnx is left out: {', '.join(missing_onnx())} not installed (pip install 'adaptseg[export]')")
    segmenter = networks.load(options.checkpoint, options.network)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"checkpoint": options.checkpoint, "network": options.network, "size": list(size)}
    report |= {"files": _written(segmenter, folder, formats, size), "costs": costs(segmenter, size)}
    beside = _beside(options, segmenter)
    if beside is not None:
        report["beside"] = {"network": beside[0], **costs(beside[1], size)}
    storage.atomic_json(folder / "report.json", report)
    _tell(report, folder)


def _written(
    segmenter: Segmenter, folder: Path, formats: Sequence[str], size: tuple[int, int]
) -> dict[str, dict[str, float]]:
    """File name -> its bytes and its largest relative difference to the module."""
    program = to_program(segmenter, size) if {"pt2", "onnx"} & set(formats) else None
    paths: list[Path] = []
    for name in formats:
        if name == "safetensors":
            paths.append(write_safetensors(segmenter, folder))
        else:
            assert program is not None
            paths.append((write_pt2 if name == "pt2" else write_onnx)(program, folder))
    return {path.name: {"bytes": path.stat().st_size, "difference": check(segmenter, path, size)} for path in paths}


def _beside(options: argparse.Namespace, segmenter: Segmenter) -> tuple[str, Segmenter] | None:
    """The large network to compare with: of `--beside`, else of the checkpoint itself, if it has one."""
    if options.beside is not None:
        return f"{options.beside} (teacher)", networks.load(
            options.beside, "teacher", class_table=segmenter.class_table
        )
    if options.network == "student" and "large" in networks.names(options.checkpoint):
        return "large", networks.load(options.checkpoint, "large")
    return None


def _tell(report: dict[str, Any], folder: Path) -> None:
    for name, file in report["files"].items():
        say(f"{folder / name}: {file['bytes'] / 1e6:.1f} MB, differs by {file['difference']:.1e} from the module")
    rows = [(report["network"], report["costs"])]
    rows += [(report["beside"]["network"], report["beside"])] if "beside" in report else []
    height, width = report["size"]
    for name, cost in rows:
        say(
            f"{name}: {cost['parameters'] / 1e6:.2f} M parameters; for {height}x{width} "
            f"{cost['multiply_adds'] / 1e9:.2f} G multiply-adds and {1e3 * cost['seconds']:.0f} ms on this CPU"
        )


def _options(verb: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = OwnOptions(prog=f"adaptseg {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--network", default="student")
    parser.add_argument("--output", required=True)
    parser.add_argument("--formats", nargs="+", choices=FORMATS)
    parser.add_argument("--size", nargs=2, type=int, default=(512, 1024), metavar=("H", "W"))
    parser.add_argument("--beside")
    return parser.parse_args(arguments)
