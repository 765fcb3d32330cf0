"""DUDA's stage 1 in two processes against one: three networks, both students' class weights, the distillation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_distributed import numbers
from test_distributed_self_training import assert_alike, both

from adaptseg import networks

pytestmark = pytest.mark.slow


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    one, two = both(
        tmp_path, "duda_stage1", "--model.large", "test_distributed_self_training.SureSegmenter",
        "--model.small_masking", "true", "--model.distillation.gradual", "ramp",
        "--model.distillation.ramp", "[1, 4]", "--trainer.max_steps", "6",
    )  # fmt: skip
    first, second = (numbers(run / "metrics.csv") for run in (one, two))
    assert_alike(first, second)
    distilled = [value for (_, name), value in first.items() if name == "train/distillation"]
    assert len(distilled) == 4  # the burn-in takes a third of 6 steps
    assert min(distilled) > 0
    for loss in ("small_source", "small_mixed", "small_masked"):
        assert any(name.startswith(f"class_weights/{loss}/") for _, name in first), loss
    for name in ("student", "large", "teacher"):
        states = [networks.load(run, name).state_dict() for run in (one, two)]
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-5)
