"""VFM-UDA with VFM-UDA++'s distance in two processes against one: hidden tokens belong to samples, the projection's
gradients of all passes are summed over processes, no process waits for a parameter.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_distributed import numbers
from test_distributed_self_training import assert_alike, both

from adaptseg import networks
from adaptseg.networks.vit_encoder import TokenEncoder

pytestmark = pytest.mark.slow


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    torch.manual_seed(7)
    torch.save(TokenEncoder("test_vit", weights=False).model.state_dict(), tmp_path / "frozen.pth")
    near = f'{{"encoder": "test_vit", "weights": "{tmp_path / "frozen.pth"}", "size": [32, 64]}}'
    one, two = both(
        tmp_path, "vfm_uda", "--model.network", "ViTSegmenter", "--model.network.encoder", "test_vit",
        "--model.masking.block", "token", "--model.confidence_threshold", "0.08", "--model.feature_distance", near,
        "--model.optimization.layer_decay", "0.9", "--trainer.max_steps", "4",
    )  # fmt: skip
    first, second = (numbers(run / "metrics.csv") for run in (one, two))
    assert_alike(first, second)
    shares = [value for (_, name), value in first.items() if name == "train/confidence"]
    assert len(shares) == 3  # the burn-in takes a third of 4 steps
    assert 0.01 < min(shares) <= max(shares) < 0.99
    distances = [value for (_, name), value in first.items() if name == "train/feature_distance_target"]
    assert len(distances) == 3
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"] for run in (one, two)]
    assert any(key.startswith("projected.projection.") for key in states[0])
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-4)
    assert networks.names(two) == ("student", "teacher")
