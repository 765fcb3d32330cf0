"""Whole runs of adversarial and entropy recipes: steps, two processes against one, a kill, purchases."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import RECIPE, adaptseg
from test_distributed import numbers, two_processes
from test_resume import _die_in, _step, rows, without_pictures
from tiny import TinySegmenter, tiny_flags
from torch import nn

from adaptseg.active.labels import LabelStore

pytestmark = pytest.mark.slow

HOSTS = ("adaptsegnet", "advent", "mic_advent", "minent")


class GroupedSegmenter(TinySegmenter):
    """With group norm, and sure of some pixels from the first step on."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.GroupNorm(2, 8)
        )
        with torch.no_grad():
            self.head.weight.mul_(20)


def flags(recipe: str, *extra: str) -> list[str]:
    """8 steps of 4 scenes in 4 ticks, every loss logged; GBW's regulariser where its weights differ from 1."""
    given = [
        "fit", "--config", str(RECIPE.with_name(f"{recipe}.yaml")), *tiny_flags(steps=8),
        "--model.network", "test_adversarial_runs.GroupedSegmenter", "--model.class_weights", "GBW",
        "--model.class_weights.relative", "true", "--data.batch_size", "4", "--data.tick", "2",
        "--trainer.log_every_n_steps", "1", *extra,
    ]  # fmt: skip
    if recipe == "mic_advent":
        given += ["--model.masking.block", "8", "--model.masking.confidence_threshold", "0.5"]
    return given


def checkpoint_of(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_alike(one: Any, two: Any, **tolerance: float) -> None:
    """Equal nests of dicts, tensors and numbers."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert_alike(value, two[key], **tolerance)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(two, one, **(tolerance or {"rtol": 0.0, "atol": 0.0}))
    else:
        assert one == two


@pytest.mark.parametrize("recipe", HOSTS)
def test_eight_batches_are_eight_steps_in_one_process_and_in_two(tmp_path: Path, recipe: str) -> None:
    """Only the order of float sums differs. Discriminators keep a rate at which Adam's signs of roundings do not
    matter; their moments are the means of all gradients.
    """
    still = [] if recipe == "minent" else ["--model.discriminator.lr", "1e-7"]
    one = adaptseg(*flags(recipe, *still), folder=tmp_path / "one", before=without_pictures)
    assert (one.code, one.err) == (0, "")
    two = two_processes(*flags(recipe, *still), folder=tmp_path / "two")
    assert (two.returncode, two.stderr) == (0, "")
    runs = [tmp_path / name / "runs" / recipe / "seed0" for name in ("one", "two")]
    first, second = (numbers(run / "metrics.csv") for run in runs)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert second[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    assert len([name for _, name in first if name == "train/loss"]) == 8
    if recipe == "mic_advent":
        shares = [value for (_, name), value in first.items() if name == "train/confidence"]
        assert 0.01 < min(shares) < max(shares) < 0.99
    states = [checkpoint_of(run) for run in runs]
    assert [state["global_step"] for state in states] == [8, 8]
    for key, value in states[0]["state_dict"].items():
        if key == "discriminators._extra_state":
            own, other = value, states[1]["state_dict"][key]
            assert own["updates"] == other["updates"] == 8
            moments = [[entry["exp_avg"] for entry in each["optimizer"]["state"].values()] for each in (own, other)]
            assert_alike(*(dict(enumerate(m)) for m in moments), rtol=1e-2, atol=1e-5)
        else:
            assert_alike(value, states[1]["state_dict"][key], rtol=1e-4, atol=1e-5)


def inside_a_tick() -> None:
    from adaptseg.methods import Adversarial

    _die_in(Adversarial, "training_step", _step(5), after=True)


def between_student_and_discriminators() -> None:
    from adaptseg.methods.discriminators import Discriminators

    _die_in(Discriminators, "update", lambda critics, max_steps: critics.updates == 6)


def test_killed_and_started_again(tmp_path: Path) -> None:
    whole = adaptseg(*flags("mic_advent"), folder=tmp_path / "whole", before=without_pictures)
    assert (whole.code, whole.err) == (0, "")
    expected = tmp_path / "whole" / "runs" / "mic_advent" / "seed0"
    for point in (inside_a_tick, between_student_and_discriminators):
        folder = tmp_path / point.__name__
        killed = adaptseg(*flags("mic_advent"), folder=folder, before=point)
        assert killed.code == -signal.SIGKILL, killed.out + killed.err
        again = adaptseg(*flags("mic_advent"), folder=folder, before=without_pictures)
        assert (again.code, again.err) == (0, "")
        assert "resuming" in again.out
        run = folder / "runs" / "mic_advent" / "seed0"
        assert rows(run / "metrics.csv") == rows(expected / "metrics.csv")
        resumed, uninterrupted = checkpoint_of(run), checkpoint_of(expected)
        for key in ("state_dict", "optimizer_states", "lr_schedulers"):
            if isinstance(resumed[key], list):
                for a, b in zip(resumed[key], uninterrupted[key], strict=True):
                    assert_alike(a, b)
            else:
                assert_alike(resumed[key], uninterrupted[key])


@pytest.mark.parametrize("recipe", ["advent", "minent"])
def test_an_acquisition_lies_over_it(tmp_path: Path, recipe: str) -> None:
    overlay = RECIPE.parent / "active" / "cbda.yaml"
    given = flags(recipe, "--config", str(overlay), "--active.budget", "0.2", "--active.schedule", "[0.25, 0.5]")
    done = adaptseg(*given, folder=tmp_path, before=without_pictures)
    assert (done.code, done.err) == (0, "")
    run = tmp_path / "runs" / f"{recipe}+cbda" / "seed0"
    assert LabelStore.open(run / "labels").rounds == 2
    losses = [value for (_, name), value in numbers(run / "metrics.csv").items() if name == "train/target"]
    assert losses[:2] == [0.0, 0.0]
    assert losses[-1] > 0
