"""Exported networks equal the module, on random sizes; costs; what cannot be exported is told."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TinySegmenter
from torch import Tensor

from adaptseg import networks
from adaptseg.classes import STREETS
from adaptseg.cli import main
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.errors import AdaptSegError
from adaptseg.export import (
    STEP,
    TOLERANCE,
    Labeller,
    check,
    costs,
    load_exported,
    missing_onnx,
    reader,
    to_program,
    write_onnx,
    write_pt2,
    write_safetensors,
)
from adaptseg.networks import Output, Segmenter, SmpSegmenter

SIZE = (2 * STEP, 3 * STEP)
HAS_ONNX = pytest.mark.skipif(bool(missing_onnx()), reason=f"not installed: {', '.join(missing_onnx())}")


class Moody(TinySegmenter):
    """Looks at its input before it decides what to do, which no graph can."""

    def forward(self, images: Tensor, *, crop: Any = None, token_mask: Tensor | None = None) -> Output:
        return super().forward(images if float(images.sum()) > 0 else -images)


def saved(folder: Path, network: Segmenter, large: Segmenter | None = None) -> Path:
    """A checkpoint as a method would leave it."""
    members = {"student": ("student.", network)} | ({"large": ("large.", large)} if large else {})
    state = {f"{prefix}{key}": value for prefix, n in members.values() for key, value in n.state_dict().items()}
    entry = networks.describe(members, STREETS, IMAGENET_MEAN, IMAGENET_STD)
    torch.save({"adaptseg": entry, "state_dict": state}, folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    torch.manual_seed(0)
    network = SmpSegmenter(19, decoder="FPN", encoder="tu-mobilenetv3_small_100", decoder_channels=64)
    network.train()
    with torch.no_grad():
        network(torch.randn(2, 3, 64, 64))  # statistics of batch norm that are not the initial ones
    return networks.load(saved(tmp_path_factory.mktemp("saved"), network))


def random_images(seed: int) -> Tensor:
    draw = random.Random(seed)
    shape = (draw.randint(1, 3), 3, STEP * draw.randint(2, 6), STEP * draw.randint(2, 6))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_equal(segmenter: Segmenter, path: Path) -> None:
    read, module = reader(path), Labeller(segmenter).eval()
    for seed in range(3):
        images = random_images(seed)
        with torch.no_grad():
            expected, found = module(images), read(images)
        assert found.shape == (len(images), 19, *images.shape[-2:])
        assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def test_safetensors_rebuild_the_same_network(convolutions: Segmenter, tmp_path: Path) -> None:
    path = write_safetensors(convolutions, tmp_path)
    assert_equal(convolutions, path)
    again = load_exported(tmp_path)
    assert again.class_table == STREETS
    assert again.normalization == convolutions.normalization
    assert check(convolutions, path, SIZE) == 0


@pytest.mark.slow
def test_torch_export_equals_the_module_on_random_sizes(convolutions: Segmenter, tmp_path: Path) -> None:
    assert_equal(convolutions, write_pt2(to_program(convolutions, SIZE), tmp_path))


@HAS_ONNX
@pytest.mark.slow
def test_onnx_equals_the_module_on_random_sizes(convolutions: Segmenter, tmp_path: Path) -> None:
    assert_equal(convolutions, write_onnx(to_program(convolutions, SIZE), tmp_path))


@pytest.mark.slow
def test_a_transformer_is_exported_too(tmp_path: Path) -> None:
    network = SmpSegmenter(19, decoder="Segformer", encoder="mit_b0", decoder_channels=32)
    segmenter = networks.load(saved(tmp_path, network))
    assert_equal(segmenter, write_pt2(to_program(segmenter, SIZE), tmp_path))


def test_a_file_that_differs_is_refused(tmp_path: Path) -> None:
    segmenter = networks.load(saved(tmp_path, TinySegmenter(19)))
    path = write_safetensors(segmenter, tmp_path)
    with torch.no_grad():
        segmenter.head.bias.add_(0.1)  # pyright: ignore
    with pytest.raises(AdaptSegError, match="differs from the module by"):
        check(segmenter, path, SIZE)


def test_what_a_graph_cannot_express_is_told() -> None:
    with pytest.raises(AdaptSegError, match=r"Moody cannot be written as pt2 or onnx, choose --formats safetensors"):
        to_program(Moody(19).eval(), SIZE)


def test_costs_are_those_counted_by_hand() -> None:
    found = costs(TinySegmenter(19, 8), SIZE, repeats=1)
    cells = [SIZE[0] * SIZE[1] // 4, SIZE[0] * SIZE[1] // 16]
    assert found["multiply_adds"] == cells[0] * 8 * 27 + cells[1] * (8 * 72 + 19 * 8)
    assert found["parameters"] == 8 * 27 + 8 + 8 * 72 + 8 + 19 * 8 + 19
    assert found["seconds"] > 0


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = saved(tmp_path, TinySegmenter(19, 4), TinySegmenter(19, 16))
    flags = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "out"), "--size", "64", "96"]
    assert main(["export", *flags, "--formats", "safetensors", "pt2"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "multiply-adds" in said
    assert "large: " in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["files"].keys() == {"model.safetensors", "model.pt2"}
    assert report["beside"]["parameters"] > report["costs"]["parameters"]
    assert all(file["difference"] <= TOLERANCE for file in report["files"].values())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--size", "65", "96"], "multiples of 32 from 64 on"),
        (["--network", "teacher"], "has no network 'teacher'; it has student"),
        (["--formats", "tflite"], "invalid choice: 'tflite'"),
        pytest.param(
            ["--formats", "onnx"],
            "pip install 'adaptseg[export]'",
            marks=pytest.mark.skipif(not missing_onnx(), reason="all installed"),
        ),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    checkpoint = saved(tmp_path, TinySegmenter(19))
    given = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "out"), *flags]
    assert main(["export", *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
