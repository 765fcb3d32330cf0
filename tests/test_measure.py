"""Counting how two networks differ: against a loop over pixels, through the verb, with memory that does not grow."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from test_export import saved
from tiny import TinySegmenter

from adaptseg import networks
from adaptseg.classes import STREETS
from adaptseg.cli import main
from adaptseg.data import DomainPair, Streets
from adaptseg.measure import Counts, measure
from adaptseg.measurement import Measurement
from adaptseg.networks import Inference

CONFIGS = Path(__file__).parents[1] / "configs"
SIZE = (32, 64)
CLASSES = STREETS.num_classes


def sure(width: int, seed: int) -> TinySegmenter:
    torch.manual_seed(seed)
    network = TinySegmenter(CLASSES, width).eval()
    with torch.no_grad():
        network.head.weight.mul_(60)
    return network


def streets(count: int) -> DomainPair:
    target = Streets("street", "train", count=count, size=SIZE)
    return DomainPair(target=target, untrusted_margins=(0.1, 0.2, 0, 0), workers=0)


def test_counts_are_those_of_a_loop_over_pixels() -> None:
    large, small, data = sure(8, 1), sure(4, 2), streets(3)
    images, confusion, divergence = measure(large, small, data, divergence=True)
    expected = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    total = torch.zeros(CLASSES, dtype=torch.float64)
    for batch in data.pool_loader(0, 1):
        p, q = (
            networks.predict_probabilities(n, batch.image, size=SIZE, inference=Inference())[0].double()
            for n in (large, small)
        )
        for y in range(round(0.1 * SIZE[0]), SIZE[0] - round(0.2 * SIZE[0])):
            for x in range(SIZE[1]):
                c = int(p[:, y, x].argmax())
                expected[c, int(q[:, y, x].argmax())] += 1
                total[c] += float(
                    (p[:, y, x] * (p[:, y, x].clamp(min=1e-38) / q[:, y, x].clamp(min=1e-38)).log()).sum()
                )
    assert images == 3
    assert torch.equal(confusion, expected)
    assert divergence is not None
    found = ~divergence.isnan()
    assert torch.equal(found, expected.sum(1) > 0)
    torch.testing.assert_close(divergence[found], (total / expected.sum(1))[found], rtol=1e-3, atol=1e-4)


def test_memory_does_not_grow_with_the_images() -> None:
    counts = Counts(CLASSES, torch.device("cpu"), divergence=True)
    held = []
    for seed in range(3):
        torch.manual_seed(seed)
        p, q = torch.randn(2, 1, CLASSES, *SIZE).softmax(2)
        counts.add(p, q, torch.ones(1, *SIZE, dtype=torch.bool))
        held.append(sum(v.numel() for v in vars(counts).values() if isinstance(v, torch.Tensor)))
    assert held == [CLASSES**2 + 1 + 2 * CLASSES] * 3
    assert int(counts.result()[0].sum()) == 3 * SIZE[0] * SIZE[1]


def test_equal_networks_differ_nowhere() -> None:
    network = sure(8, 1)
    _, confusion, divergence = measure(network, network, streets(2), divergence=True)
    assert torch.equal(confusion, torch.diag(confusion.diagonal()))
    assert divergence is not None
    assert float(divergence.nan_to_num(0).abs().max()) < 1e-6


def test_a_measurement_survives_its_file(tmp_path: Path) -> None:
    given = Measurement(["a", "b"], 3, torch.tensor([[8, 2], [1, 9]]), torch.tensor([0.5, math.nan]).double(), "l", "s")
    given.write(tmp_path / "m.json")
    read = Measurement.read(tmp_path / "m.json")
    assert torch.equal(read.confusion, given.confusion)
    assert torch.equal(read.divergence.isnan(), torch.tensor([False, True]))  # pyright: ignore
    document = json.loads((tmp_path / "m.json").read_text())
    assert document["inconsistency"]["iou"] == pytest.approx([3 / 11, 3 / 12])
    assert document["weights"]["iou"] == pytest.approx([1.0435, 0.9565], abs=1e-4)
    assert document["inconsistency"]["kl"] == [0.5, None]


def test_the_job_over_the_recipe_of_stage_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = saved(tmp_path, sure(4, 1), sure(8, 2))
    flags = ["--config", str(CONFIGS / "duda_stage1.yaml"), "--config", str(CONFIGS / "duda" / "measure.yaml")]
    flags += ["--data.target.count", "2", "--data.target.size", "[32, 64]", "--accelerator", "cpu"]
    flags += ["--job.run", str(checkpoint), "--folder", str(tmp_path / "measured")]
    assert main(["job", *flags, "--job.large_network", "large", "--job.divergence", "true"]) == 0
    said = capsys.readouterr().out
    found = Measurement.read(tmp_path / "measured" / "inconsistency.json")
    assert (found.images, int(found.confusion.sum())) == (2, 2 * SIZE[0] * SIZE[1])
    assert found.classes == list(STREETS.names)
    assert found.divergence is not None
    assert "2 images, " in said
    assert main(["job", *flags]) == 2
    assert "has no network 'teacher'; it has large, student" in capsys.readouterr().err
    (tmp_path / "wrong.yaml").write_text("accelerator: tpuu\n")
    assert main(["job", *flags, "--config", str(tmp_path / "wrong.yaml")]) == 2  # what a job knows is not skipped
    assert main(["job", *flags[:2], "--folder", "x"]) == 2
    assert "no `job:` block is given" in capsys.readouterr().err
