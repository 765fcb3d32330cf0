"""Two processes against one: the same losses, the same labels bought, the same scores; readable refusals."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import adaptseg, fit_flags
from test_resume import RUN, files_of_store, rows, without_pictures

from adaptseg import networks
from adaptseg.active.labels import LabelStore

pytestmark = pytest.mark.slow

STILL = ("--model.optimization.lr", "1e-30")
"""A rate at which float32 weights do not move: every round sees equal weights in one process and in two."""


def two_processes(*arguments: str, folder: Path, timeout: float = 150) -> subprocess.CompletedProcess[str]:
    """The real command line; Lightning starts the second process, gloo joins them."""
    process = start_two(*arguments, folder=folder)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_two(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "TORCH_DISTRIBUTED_DEBUG": "OFF",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "adaptseg.cli", *arguments, "--trainer.devices", "2"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def numbers(path: Path) -> dict[tuple[str, str], float]:
    with path.open(newline="") as file:
        return {(row["step"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}


def test_losses_scores_and_weights_of_a_training(tmp_path: Path):
    """At a real learning rate, without rounds: only the order of float sums differs."""
    flags = fit_flags("--active", "null", "--data.batch_size", "4")
    flags = [
        flag for pair in zip(flags[1::2], flags[2::2], strict=True) if pair[0] != "--active.schedule" for flag in pair
    ]
    one = adaptseg("fit", *flags, folder=tmp_path / "one", before=without_pictures)
    assert one.code == 0, one.err
    two = two_processes("fit", *flags, folder=tmp_path / "two")
    assert (two.returncode, two.stderr) == (0, "")
    first, second = (numbers(tmp_path / name / RUN / "metrics.csv") for name in ("one", "two"))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert second[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key
    weights = [networks.load(tmp_path / name / RUN).state_dict() for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)


def test_equal_weights_buy_the_same_pixels_bit_by_bit(tmp_path: Path):
    flags = fit_flags(*STILL, "--data.target.count", "5", "--data.val.count", "5")  # odd: ranks hold unequal shares
    assert adaptseg(*flags, folder=tmp_path / "one", before=without_pictures).code == 0
    two = two_processes(*flags, folder=tmp_path / "two")
    assert (two.returncode, two.stderr) == (0, "")
    one_run, two_run = tmp_path / "one" / RUN, tmp_path / "two" / RUN
    assert files_of_store(one_run) == files_of_store(two_run)
    store = LabelStore.open(two_run / "labels")
    store.verify()
    assert store.rounds == 2
    assert rows(one_run / "rounds.csv") == rows(two_run / "rounds.csv")
    first, second = (numbers(run / "metrics.csv") for run in (one_run, two_run))
    assert first.keys() == second.keys()
    for (step, name), value in first.items():
        # Scores come from integer confusion matrices, so they are equal; losses are sums of floats.
        assert second[step, name] == (value if name.startswith("val/") else pytest.approx(value, rel=1e-5))
    results = [json.loads((run / "result.json").read_text()) for run in (one_run, two_run)]
    assert results[0]["val"] == results[1]["val"]
    # A run may go on with another number of processes.
    assert adaptseg("test", *flags[1:], folder=tmp_path / "two").code == 0


def test_a_lost_process_ends_the_run_and_the_next_one_resumes(tmp_path: Path):
    """Rank 1 is killed; rank 0 must not wait for ever. The rest is done by one process."""
    flags = fit_flags(*STILL, "--data.target.count", "5", "--data.val.count", "5")
    process = start_two(*flags, folder=tmp_path / "killed")
    try:
        last = tmp_path / "killed" / RUN / "checkpoints" / "last.ckpt"
        deadline = time.monotonic() + 120
        while not last.is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (second,) = [int(child) for child in children if b"adaptseg.cli" in Path(f"/proc/{child}/cmdline").read_bytes()]
        os.kill(second, signal.SIGKILL)
        process.communicate(timeout=120)
        assert process.returncode != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    again = adaptseg(*flags, folder=tmp_path / "killed", before=without_pictures)
    assert (again.code, again.err) == (0, "")
    assert "resuming" in again.out
    assert adaptseg(*flags, folder=tmp_path / "whole", before=without_pictures).code == 0
    assert files_of_store(tmp_path / "killed" / RUN) == files_of_store(tmp_path / "whole" / RUN)
    assert rows(tmp_path / "killed" / RUN / "rounds.csv") == rows(tmp_path / "whole" / RUN / "rounds.csv")


def readable(done: subprocess.CompletedProcess[str]) -> str:
    """The error of a run of two processes, of which each may say it once."""
    assert done.returncode == 2, done.stderr
    lines = set(done.stderr.splitlines())
    assert len(lines) == 1, done.stderr
    return lines.pop()


def test_local_batch_norm_is_refused(tmp_path: Path):
    network = [
        "--model.network",
        "SmpSegmenter",
        "--model.network.encoder",
        "mobilenet_v2",
        "--model.network.norm",
        "batch",
    ]
    flags = fit_flags()
    start = flags.index("--model.network")
    said = readable(two_processes(*flags[:start], *network, *flags[start + 2 :], folder=tmp_path))
    assert said.startswith(
        "adaptseg: error: batch norm statistics would differ between processes: set trainer.sync_batch"
    )


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path):
    said = readable(two_processes(*fit_flags("--data.batch_size", "3"), folder=tmp_path))
    start = "adaptseg: error: data.batch_size 3 does not divide over 2 processes; it is the global batch: "
    assert said == f"{start}give a multiple of 2"


def test_a_loss_that_is_bad_in_one_process_ends_both_with_its_scenes(tmp_path: Path):
    flags = fit_flags("--model.network", "tiny.PoisonedOnSecond", "--trainer.log_every_n_steps", "1")
    said = readable(two_processes(*flags, folder=tmp_path))
    assert re.match(r"adaptseg: error: the loss became non-finite at step 0 \(scenes [^,]+, [^,]+\); lower ", said)
