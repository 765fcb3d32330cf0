"""Self-training with acquisition that is killed and started again ends with the same losses, labels and teacher."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import adaptseg
from test_distributed_self_training import flags
from test_resume import (
    _die_in,
    _step,
    after_last_ckpt,
    assert_same_run,
    rows,
    without_pictures,
)

pytestmark = pytest.mark.slow

RUN = Path("runs") / "cbda_20pct_mic" / "seed0"


def mic_flags() -> list[str]:
    """4 ticks, rounds after steps 2 and 4; running statistics of class weights, in the checkpoint too."""
    return flags(
        "cbda_20pct_mic", "--data.batch_size", "2", "--data.tick", "2", "--active.schedule", "[0.25, 0.5]",
        "--model.class_weights.smoothing", "0.9",
    )  # fmt: skip


def inside_a_tick() -> None:
    from adaptseg.methods import SelfTraining

    _die_in(SelfTraining, "training_step", _step(5), after=True)


def between_student_and_teacher() -> None:
    """The student has made its step, the teacher has not followed."""
    from adaptseg.networks.teacher import EMATeacher

    _die_in(EMATeacher, "update", lambda teacher, student: teacher.updates == 6)


def in_a_round() -> None:
    from adaptseg.active import GroundTruth

    def is_third(oracle: object, key: str, bought: object) -> bool:
        return key.endswith("2") and (RUN / "labels" / "round_002.partial").is_dir()

    _die_in(GroundTruth, "answer", is_third)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    done = adaptseg(*mic_flags(), folder=folder, before=without_pictures)
    assert (done.code, done.err) == (0, "")
    return folder / RUN


@pytest.mark.parametrize("point", [inside_a_tick, between_student_and_teacher, after_last_ckpt, in_a_round])
def test_killed_and_started_again(whole: Path, tmp_path: Path, point: Callable[[], None]) -> None:
    killed = adaptseg(*mic_flags(), folder=tmp_path, before=point)
    assert killed.code == -signal.SIGKILL, killed.out + killed.err
    again = adaptseg(*mic_flags(), folder=tmp_path, before=without_pictures)
    assert (again.code, again.err) == (0, "")
    assert "resuming" in again.out
    assert_same_run(tmp_path / RUN, whole)


def test_what_the_comparison_covers(whole: Path) -> None:
    """Equality above would say little if the teacher, its counter or the statistics were not in the file."""
    state = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    assert state["teacher._extra_state"] == {"updates": 8}
    student, teacher = (state[f"{name}.head.weight"] for name in ("student", "teacher.network"))
    assert not torch.equal(student, teacher)
    assert {f"class_weights.{loss}_share" for loss in ("source", "mixed", "masked")} <= state.keys()
    assert len([row for row in rows(whole / "metrics.csv") if row[1] == "train/masked"]) == 6  # after the burn-in


def test_a_run_with_running_statistics_is_tested(whole: Path) -> None:
    """They are in the checkpoint, but only training prepares their buffers."""
    tested = adaptseg("test", *mic_flags()[1:], folder=whole.parents[2], before=without_pictures)
    assert (tested.code, tested.err) == (0, "")
