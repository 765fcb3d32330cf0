"""MIC on HRDA in two processes against one, and killed and started again: detail windows belong to samples."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from forked import adaptseg
from test_distributed import numbers
from test_distributed_self_training import assert_alike, both, flags
from test_resume import equal, plain_result, rows, without_pictures
from test_resume_self_training import inside_a_tick

from adaptseg import networks

pytestmark = pytest.mark.slow

HRDA = (
    "--model.network", "HRDA", "--model.network.segmenter", "test_distributed_self_training.SureSegmenter",
    "--model.network.detail", "[16, 32]", "--model.network.attention_channels", "8",
    "--model.network.attention_dropout", "0", "--model.network.norm", "group",
)  # fmt: skip


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    one, two = both(tmp_path, "mic_hrda", *HRDA)
    first, second = (numbers(run / "metrics.csv") for run in (one, two))
    assert_alike(first, second)
    assert any(name.startswith("class_weights/masked_detail/") for _, name in first)
    for name in ("student", "teacher"):
        states = [networks.load(run, name).state_dict() for run in (one, two)]
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-5)


def test_killed_and_started_again(tmp_path: Path) -> None:
    given = flags("mic_hrda", *HRDA, "--data.batch_size", "2", "--data.tick", "2")
    run = Path("runs") / "mic_hrda" / "seed0"
    whole = adaptseg(*given, folder=tmp_path / "whole", before=without_pictures)
    assert (whole.code, whole.err) == (0, "")
    killed = adaptseg(*given, folder=tmp_path / "killed", before=inside_a_tick)
    assert killed.code == -signal.SIGKILL, killed.out + killed.err
    again = adaptseg(*given, folder=tmp_path / "killed", before=without_pictures)
    assert again.code == 0, again.err
    one, other = (tmp_path / name / run for name in ("whole", "killed"))
    assert rows(one / "metrics.csv") == rows(other / "metrics.csv")
    assert plain_result(one) == plain_result(other)
    first, second = (torch.load(r / "checkpoints" / "last.ckpt", weights_only=False) for r in (one, other))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "adaptseg"):
        assert equal(first[part], second[part]), part
