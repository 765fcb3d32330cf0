"""Whole runs that stop buying: what they leave, killed and resumed, two processes against one, what is refused."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Outcome, adaptseg, fit_flags
from test_distributed import two_processes
from test_low_budget_runs import fit_flags as point_flags
from test_resume import RUN, _checkpoint, _die_in, assert_same_run, equal, files_of_store, rows, without_pictures

from adaptseg.active.advice import advice, expected_gain
from adaptseg.callbacks.panels import _curve

SLOW = pytest.mark.slow
STOP = (
    "--active.schedule", "[0.25, 0.5, 0.75]", "--active.stop.agreement", "0.99", "--active.stop.rounds", "1",
    "--active.stop.sample", "64", "--model.optimization.lr", "1e-30",
)  # fmt: skip
"""Of 8 steps in 4 ticks: buys after step 2, stops after step 4. Weights that do not move agree with themselves, and are
equal in one process and in two."""


def fit(folder: Path, *extra: str, before: Callable[[], None] = without_pictures) -> Outcome:
    return adaptseg(*fit_flags(*STOP, *extra), folder=folder, before=before)


def state(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["callbacks"]["active"]


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def logged(run: Path, metric: str) -> list[tuple[int, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["value"])) for row in csv.DictReader(file) if row["metric"] == metric]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of an uninterrupted run that stops buying and trains on, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    done = fit(folder)
    assert (done.code, done.err) == (0, ""), done.err
    return folder / RUN, done.out


def test_buying_ends_and_training_goes_on(whole: tuple[Path, str]):
    run, said = whole
    assert state(run)["stopped"] == {
        "round": 1,
        "step": 4,
        "then": "train",
        "reason": "predictions on the pool settled, kappa 1.0000 between rounds (active.stop.agreement)",
    }
    assert result(run)["stopped"] == state(run)["stopped"]
    assert result(run)["steps"] == 8
    assert len(rows(run / "rounds.csv")) == 2  # one round under the head
    assert said.count("buying ends after round 1, at step 4: ") == 1
    assert "too early to say" in result(run)["advice"]
    assert said.count("too early to say") == 2  # after the round, and at the end


def after_the_stop() -> None:
    from adaptseg.methods import Supervised

    _die_in(Supervised, "training_step", lambda method, *_: method.global_step == 5, after=True)


def after_the_checkpoint_of_the_stop() -> None:
    from adaptseg.callbacks.checkpoints import AtomicCheckpointIO

    _die_in(AtomicCheckpointIO, "save_checkpoint", _checkpoint(4), after=True)


@SLOW
def test_killed_and_started_again(whole: tuple[Path, str], tmp_path: Path):
    assert fit(tmp_path, before=after_the_stop).code == -signal.SIGKILL
    again = fit(tmp_path)
    assert (again.code, again.err) == (0, "")
    assert again.out.count("buying ends after round 1, at step 4: ") == 1
    assert_same_run(tmp_path / RUN, whole[0])
    assert equal(state(tmp_path / RUN), state(whole[0]))


@SLOW
def test_two_processes_stop_as_one_does(whole: tuple[Path, str], tmp_path: Path):
    two = two_processes(*fit_flags(*STOP), folder=tmp_path)
    assert (two.returncode, two.stderr) == (0, "")
    assert equal(state(tmp_path / RUN), state(whole[0]))
    assert files_of_store(tmp_path / RUN) == files_of_store(whole[0])


@SLOW
def test_a_run_that_ends_is_a_finished_run(tmp_path: Path):
    """Killed after its last checkpoint and started again it does not train on, and leaves what an ended run leaves."""
    extra = ("--active.stop.then", "end")
    done = fit(tmp_path / "whole", *extra)
    assert (done.code, done.err) == (0, "")
    assert "; the run ends\n" in done.out
    assert "finished. Everything lies in" in done.out
    one = tmp_path / "whole" / RUN
    assert result(one)["steps"] == 4
    assert result(one)["val"]["miou"] == logged(one, "val/miou")[-1][1]
    assert fit(tmp_path / "killed", *extra, before=after_the_checkpoint_of_the_stop).code == -signal.SIGKILL
    again = fit(tmp_path / "killed", *extra)
    assert (again.code, again.err) == (0, "")
    assert_same_run(tmp_path / "killed" / RUN, one)
    assert "nothing to do" in fit(tmp_path / "killed", *extra).out


def test_advice_after_each_round_is_printed_and_logged(tmp_path: Path):
    watched = ("--active.stop.agreement", "1.0", "--active.stop.sample", "64")
    flags = fit_flags("--active.schedule", "[0.25, 0.5, 0.75]", "--active.budget", "0.1", *watched)
    done = adaptseg(*flags, folder=tmp_path, before=without_pictures)
    assert (done.code, done.err) == (0, "")
    run = tmp_path / RUN
    history, final = result(run)["rounds"], result(run)["val"]["miou"]
    lines = [advice(history[: n + 1])[0] for n in range(3)] + [advice(history, final)[0]]
    assert [line.startswith("too early") for line in lines] == [True, True, False, False]
    assert [line for line in done.out.splitlines() if line in lines] == lines
    gains = [advice(history)[1], advice(history, final)[1]]
    assert all(gain is not None for gain in gains)
    for place, name in enumerate(("gain", "gain_low", "gain_high")):
        assert logged(run, f"round/{name}") == [(6, gains[0][place]), (8, gains[1][place])]  # type: ignore[index]
    kappa = [row["agreement"] for row in history[1:]]
    assert logged(run, "round/agreement") == list(zip((4, 6), kappa, strict=True))
    assert [f"by kappa {value:.4f}" in done.out for value in kappa] == [True, True]


@SLOW
def test_points_settle_too(tmp_path: Path):
    """Two-stage eDALD: a network that has learned nothing is not asked, and the run is judged where it ends."""
    flags = ("--active.stop.agreement", "1e-9", "--active.stop.rounds", "1", "--active.stop.then", "end")
    done = adaptseg(*point_flags(*flags), folder=tmp_path, before=without_pictures)
    assert (done.code, done.err) == (0, ""), done.err
    run = tmp_path / "runs/edald/seed0"
    books = state(run)
    assert books["said"] is not None
    assert all("agreement" not in row for row in books["history"][:2])
    assert all("miou" in row for row in result(run)["rounds"][1:])
    if books["stopped"] is None:  # the two heads agree less than by chance
        assert "agreement" in books["history"][2]
    else:
        assert (result(run)["steps"], books["round"]) == (8, 2)
        assert result(run)["val"]["miou"] == logged(run, "val/miou")[-1][1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--active.stop.plateau", "0.5", "--active.stop.rounds", "1"],
            "active.stop.plateau looks at mIoU on data.val",
        ),
        (["--active.stop.rounds", "3"], "active.stop has no rule"),
        (["--active.stop.budget", "0.5"], "it could never stop"),
    ],
)
def test_refusals_are_one_line(tmp_path: Path, flags: list[str], said: str):
    given = fit_flags("--active.schedule", "[0.25, 0.5, 0.75]")[1:]
    if "data.val" in said:
        pairs = [given[i : i + 2] for i in range(0, len(given), 2)]
        given = [word for pair in pairs if not pair[0].startswith("--data.val") for word in pair]
        given += ["--data.val", "null"]
    refused = adaptseg("fit", *given, *flags, folder=tmp_path)
    assert refused.code == 2, refused.out
    assert refused.err.count("\n") == 1, refused.err
    assert said in refused.err


def test_the_curve_shows_where_further_labels_would_lead():
    rounds = [
        {"spent_before": 20 * i, "spent": 20 * i + 20, "pool_pixels": 1000, "miou": 0.3 + 0.02 * i} for i in range(3)
    ]
    (axis,) = _curve(rounds, 0.36).axes
    measured, expected = (np.asarray(line.get_xydata()) for line in axis.lines)
    np.testing.assert_allclose(measured, [[0, 30], [2, 32], [4, 34], [6, 36]])
    end = expected_gain([0.02, 0.04, 0.06], [0.32, 0.34, 0.36], further=0.03)
    assert end is not None
    np.testing.assert_allclose(expected[[0, -1]], [[6, 36], [9, 36 + 100 * end.gain]])
    band = np.asarray(axis.collections[0].get_paths()[0].vertices)
    at_end = band[np.isclose(band[:, 0], 9), 1]
    np.testing.assert_allclose([at_end.min(), at_end.max()], [36 + 100 * end.low, 36 + 100 * end.high])
    assert len(_curve(rounds[:1], 0.3).axes[0].lines) == 1  # too early
    everything = [{"spent_before": 0, "spent": 1000, "pool_pixels": 1000, "miou": 0.2}]
    assert len(_curve(everything, 0.4).axes[0].lines) == 1  # nothing is left to buy
