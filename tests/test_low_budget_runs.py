"""Whole runs of two-stage eDALD: kills, two processes, and what a finished run can be asked."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Outcome, adaptseg
from small_features import ConvFeatures
from test_distributed import numbers, two_processes
from test_resume import (
    _die_in,
    _save_and_die,
    assert_same_run,
    files_of_store,
    rows,
    without_pictures,
)
from tiny import tiny_flags

from adaptseg import networks
from adaptseg.active.labels import LabelStore
from adaptseg.networks import PixelSegmenter

CONFIGS = Path(__file__).parents[1] / "configs"
RUN = Path("runs/edald/seed0")
SLOW = pytest.mark.slow
ROUNDS, LENGTH = 3, 4


def fit_flags(*extra: str) -> list[str]:
    """Three rounds of four steps, in ticks of two; every loss is logged."""
    flags = tiny_flags(steps=ROUNDS * LENGTH)[2:]
    pairs = [flags[i : i + 2] for i in range(0, len(flags), 2)]
    flags = [word for pair in pairs if not pair[0].startswith("--data.source") for word in pair]
    return [
        "fit", "--config", str(CONFIGS / "edald.yaml"), "--model.network.features", "small_features.ConvFeatures",
        *flags, "--data.tick", "2", "--active.rounds", str(ROUNDS), "--active.budget", "3", "--active.draws", "2",
        "--active.candidates", "40", "--active.local_picks", "6", "--model.norm_pixels", "6",
        "--trainer.log_every_n_steps", "1", *extra,
    ]  # fmt: skip


def fit(folder: Path, *extra: str, before: Callable[[], None] = without_pictures) -> Outcome:
    return adaptseg(*fit_flags(*extra), folder=folder, before=before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in a folder of its own."""
    folder = tmp_path_factory.mktemp("whole")
    done = fit(folder)
    assert (done.code, done.err) == (0, ""), done.err
    return folder / RUN


def state(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)


# ---- kills


def while_choosing_before_the_first_step() -> None:
    from adaptseg.active import point_round

    _die_in(point_round, "locally_herded", lambda bank, key, *_: key.endswith("2"))


def while_first_answers_are_given() -> None:
    _die_in(LabelStore, "seal", lambda store, round, totals: round == 1)


def after_the_first_labels() -> None:
    _die_in(LabelStore, "seal", lambda store, round, totals: round == 1, after=True)


def at_the_first_step() -> None:
    from adaptseg.methods import PixelClassifier

    _die_in(PixelClassifier, "training_step", lambda method, *_: method.global_step == 0)


def inside_a_round() -> None:
    from adaptseg.methods import PixelClassifier

    _die_in(PixelClassifier, "training_step", lambda method, *_: method.global_step == 7, after=True)


def inside_the_first_round() -> None:
    from adaptseg.methods import PixelClassifier

    _die_in(PixelClassifier, "training_step", lambda method, *_: method.global_step == 3)


def while_scoring() -> None:
    from adaptseg.active import point_round

    _die_in(point_round, "point_score", lambda *_: (RUN / "labels" / "round_001.json").exists())


def between_query_and_answers() -> None:
    _die_in(LabelStore, "stage", lambda store, round, answers: round == 2)


def between_labels_and_checkpoint() -> None:
    _die_in(LabelStore, "seal", lambda store, round, totals: round == 2, after=True)


def between_round_and_checkpoint() -> None:
    from adaptseg.methods import PixelClassifier

    _die_in(PixelClassifier, "on_labels_bought", lambda method, round: round == 3, after=True)


def before_the_last_checkpoint() -> None:
    from adaptseg.callbacks.checkpoints import AtomicCheckpointIO

    _die_in(AtomicCheckpointIO, "save_checkpoint", lambda io, checkpoint, *_: checkpoint["global_step"] == 12)


def after_the_last_checkpoint() -> None:
    from adaptseg.callbacks.checkpoints import AtomicCheckpointIO

    def is_last(io: Any, checkpoint: dict[str, Any], path: Any, *_: Any) -> bool:
        return checkpoint["global_step"] == 12 and Path(path).name.startswith("last")

    _die_in(AtomicCheckpointIO, "save_checkpoint", is_last, after=True)


def while_the_cache_is_written() -> None:
    from adaptseg import storage

    _die_in(storage, "synced_write", lambda path, data: "draw1" in path.name, after=True)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(while_choosing_before_the_first_step, marks=SLOW),
        pytest.param(while_first_answers_are_given, marks=SLOW),
        after_the_first_labels,
        pytest.param(at_the_first_step, marks=SLOW),
        pytest.param(inside_the_first_round, marks=SLOW),
        inside_a_round,
        pytest.param(while_scoring, marks=SLOW),
        pytest.param(between_query_and_answers, marks=SLOW),
        pytest.param(between_labels_and_checkpoint, marks=SLOW),
        between_round_and_checkpoint,
        pytest.param(before_the_last_checkpoint, marks=SLOW),
        after_the_last_checkpoint,
        pytest.param(while_the_cache_is_written, marks=SLOW),
    ],
)
def test_killed_runs_end_as_if_nothing_had_happened(whole: Path, tmp_path: Path, point: Callable[[], None]):
    killed = fit(tmp_path, before=point)
    assert killed.code == -signal.SIGKILL, killed.out + killed.err
    again = fit(tmp_path)
    assert (again.code, again.err) == (0, ""), again.err
    assert_same_run(tmp_path / RUN, whole)
    assert state(tmp_path / RUN)["pixel_classifier"] == state(whole)["pixel_classifier"]


def save_inside_a_round() -> None:
    _save_and_die(7)


@SLOW
def test_a_checkpoint_inside_a_round(whole: Path, tmp_path: Path):
    assert fit(tmp_path, before=save_inside_a_round).code == -signal.SIGKILL
    again = fit(tmp_path, "--ckpt_path", "inside.ckpt")
    assert (again.code, again.err) == (0, "")
    assert_same_run(tmp_path / RUN, whole)


# ---- what a finished run says


def test_what_a_run_leaves(whole: Path, tmp_path: Path):
    store = LabelStore.open(whole / "labels")
    store.verify()
    assert [store.spent(i) for i in range(ROUNDS + 1)] == [0, 4, 8, 12]
    head, *table = rows(whole / "rounds.csv")
    scored = head.index("miou")
    assert [row[head.index("step")] for row in table] == ["0", "4", "8"]
    assert table[0][scored] == ""
    assert all(0 <= float(row[scored]) <= 1 for row in table[1:])
    result = json.loads((whole / "result.json").read_text())
    assert [row.get("miou") for row in result["rounds"]] == [None, *(float(row[scored]) for row in table[1:])]
    assert state(whole)["pixel_classifier"]["finished"] == ROUNDS - 1


def test_the_network_of_a_run_can_be_had_again(whole: Path):
    network = networks.load(whole)
    assert isinstance(network, PixelSegmenter)
    assert isinstance(network.features, ConvFeatures)
    saved = state(whole)["state_dict"]
    for name, value in network.state_dict().items():
        assert torch.equal(value, saved[f"student.{name}"]), name
    assert network.class_table is not None
    assert network(torch.zeros(1, 3, 32, 64)).logits.shape == (1, len(network.class_table.names), 32, 64)


@SLOW
def test_test_validate_and_predict(tmp_path: Path):
    assert fit(tmp_path).code == 0
    for verb in ("validate", "test", "predict"):
        done = adaptseg(verb, *fit_flags()[1:], folder=tmp_path, before=without_pictures)
        assert (done.code, done.err) == (0, ""), done.err
    result, val = (json.loads((tmp_path / RUN / f"{name}.json").read_text()) for name in ("result", "val"))
    assert val["miou"] == result["val"]["miou"]
    assert (tmp_path / RUN / "test.json").is_file()
    assert len(list((tmp_path / RUN / "predictions").glob("*.png"))) == 4


@SLOW
def test_cache_on_and_off_buy_and_learn_the_same(whole: Path, tmp_path: Path):
    done = fit(tmp_path, "--model.cache", "null")
    assert (done.code, done.err) == (0, "")
    assert files_of_store(tmp_path / RUN) == files_of_store(whole)
    for name, value in state(whole)["state_dict"].items():
        assert torch.equal(value, state(tmp_path / RUN)["state_dict"][name]), name


@SLOW
def test_cbda_over_the_recipe(tmp_path: Path):
    """It buys from the dense map of the head; the head starts anew there, too."""
    flags = ["fit", "--config", str(CONFIGS / "edald.yaml"), "--config", str(CONFIGS / "active" / "cbda.yaml")]
    given = fit_flags()[3:]
    pairs = [given[i : i + 2] for i in range(0, len(given), 2)]
    flags += [word for pair in pairs if not pair[0].startswith("--active") for word in pair]
    flags += ["--active.budget", "0.05", "--active.schedule", "[0.5]"]
    done = adaptseg(*flags, folder=tmp_path, before=without_pictures)
    assert (done.code, done.err) == (0, ""), done.err
    run = tmp_path / "runs/edald+cbda/seed0"
    assert LabelStore.open(run / "labels").spent(1) == pytest.approx(0.05 * 4 * 32 * 64, rel=0.02)
    assert state(run)["pixel_classifier"]["finished"] == 0


def test_another_method_is_refused_in_one_line(tmp_path: Path):
    flags = ["--config", str(CONFIGS / "cbda_20pct.yaml"), "--config", str(CONFIGS / "active" / "edald.yaml")]
    refused = adaptseg("fit", *flags, *tiny_flags(), folder=tmp_path)
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert "needs features of single pixels, which model: Supervised does not have" in refused.err


# ---- two processes


@SLOW
@pytest.mark.parametrize("score", ["edald", "entropy"])
def test_two_processes_buy_and_learn_what_one_does(tmp_path: Path, score: str):
    """Five images, so that the processes hold unequal shares.

    In float64: Adam divides by the gradient's size, and the biases before a batch norm have none but rounding, which
    in float32 lies above its epsilon.
    """
    count = ("--data.target.count", "5", "--data.val.count", "5")
    extra = (*count, "--active.score", score, "--trainer.precision", "64-true")
    assert fit(tmp_path / "one", *extra).code == 0
    two = two_processes(*fit_flags(*extra), folder=tmp_path / "two")
    assert (two.returncode, two.stderr) == (0, ""), two.stderr
    first, second = (tmp_path / name / RUN for name in ("one", "two"))
    assert files_of_store(first) == files_of_store(second)
    losses = [numbers(run / "metrics.csv") for run in (first, second)]
    assert losses[0].keys() == losses[1].keys()
    for key, value in losses[0].items():
        assert losses[1][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    heads = [state(run)["state_dict"] for run in (first, second)]
    for name, value in heads[0].items():
        torch.testing.assert_close(heads[1][name], value, rtol=1e-4, atol=1e-6)
