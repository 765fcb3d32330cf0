"""Two processes against one in self-training: equal losses, students, teachers and purchases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from forked import RECIPE, adaptseg
from test_distributed import STILL, numbers, two_processes
from test_resume import files_of_store, rows, without_pictures
from tiny import TinySegmenter, tiny_flags

from adaptseg import networks
from adaptseg.active.labels import LabelStore

pytestmark = pytest.mark.slow


class SureSegmenter(TinySegmenter):
    """Sure of some pixels from the first step on, and far from ties that rounding would decide."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        with torch.no_grad():
            self.head.weight.mul_(60)


def flags(recipe: str, *extra: str) -> list[str]:
    """8 steps of 4 scenes. The threshold lies where the network is sure of some pixels only, GBW's regulariser where
    its weights differ from 1.
    """
    return [
        "fit", "--config", str(RECIPE.with_name(f"{recipe}.yaml")), *tiny_flags(steps=8),
        "--model.network", "test_distributed_self_training.SureSegmenter", "--model.confidence_threshold", "0.5",
        "--model.masking.block", "8", "--model.class_weights", "GBW", "--model.class_weights.relative", "true",
        "--data.batch_size", "4", "--data.tick", "4", "--trainer.log_every_n_steps", "1", *extra,
    ]  # fmt: skip


def both(folder: Path, recipe: str, *extra: str) -> tuple[Path, Path]:
    """The run directories of one process and of two."""
    given = flags(recipe, *extra)
    one = adaptseg(*given, folder=folder / "one", before=without_pictures)
    assert (one.code, one.err) == (0, "")
    two = two_processes(*given, folder=folder / "two")
    assert (two.returncode, two.stderr) == (0, "")
    first, second = (folder / name / "runs" / recipe / "seed0" for name in ("one", "two"))
    return first, second


def assert_alike(one: dict[tuple[str, str], float], two: dict[tuple[str, str], float]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key


@pytest.mark.parametrize(
    "scopes",
    [
        ("--model.mix_scope", "image", "--model.confidence_scope", "image"),
        ("--model.mix_scope", "batch", "--model.confidence_scope", "batch", "--model.class_weights.smoothing", "0.9"),
    ],
    ids=["image", "batch"],
)
def test_losses_class_weights_student_and_teacher_of_a_training(tmp_path: Path, scopes: tuple[str, ...]) -> None:
    """At a real learning rate: only the order of float sums differs."""
    one, two = both(tmp_path, "mic", *scopes)
    first, second = (numbers(run / "metrics.csv") for run in (one, two))
    assert_alike(first, second)
    shares = [value for (_, name), value in first.items() if name == "train/confidence"]
    assert len(shares) == 5  # the burn-in takes a third of 8 steps
    assert min(shares) > 0.01
    assert max(shares) < 0.99  # or the scopes of shares would make no difference
    weights = [value for (_, name), value in first.items() if name.startswith("class_weights/")]
    assert max(weights) > 1.05
    for name in ("student", "teacher"):
        states = [networks.load(run, name).state_dict() for run in (one, two)]
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-5)


def test_equal_weights_buy_the_same_pixels_bit_by_bit(tmp_path: Path) -> None:
    one, two = both(
        tmp_path, "cbda_20pct_mic", *STILL, "--data.tick", "2", "--active.schedule", "[0.25, 0.5]",
        "--data.target.count", "5", "--data.val.count", "5",  # odd: ranks hold unequal shares
    )  # fmt: skip
    assert files_of_store(one) == files_of_store(two)
    store = LabelStore.open(two / "labels")
    store.verify()
    assert store.rounds == 2
    assert rows(one / "rounds.csv") == rows(two / "rounds.csv")
    assert_alike(*(numbers(run / "metrics.csv") for run in (one, two)))
