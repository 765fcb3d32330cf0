"""RIPU without source data: killed around the round before the first step, a run ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import yaml
from forked import adaptseg
from test_resume import after_the_first_manifest, assert_same_run, inside_a_tick, rows, without_pictures
from tiny import tiny_flags

from adaptseg.stages import read_stages

CONFIGS = Path(__file__).parents[1] / "configs"
RUN = Path("runs") / "adapted" / "seed0"


def shrunk(*absent: str, steps: int) -> list[str]:
    """The flags of a tiny run, less those of domains that it does not have."""
    flags = tiny_flags(steps=steps)
    pairs = [flags[i : i + 2] for i in range(0, len(flags), 2)]
    return [word for pair in pairs if not pair[0].startswith(absent) for word in pair]


@pytest.mark.slow
def test_killed_before_the_first_step_and_later(tmp_path: Path) -> None:
    """The second stage of the Streets recipe, from the weights of a source-only training."""
    source, adapted = read_stages([CONFIGS / "ripu_source_free.yaml"], [], None)
    for stage, name in ((source, "source"), (adapted, "adapted")):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(stage.recipe))
    given = ["fit", "--config", str(tmp_path / "source.yaml"), *shrunk(steps=4)]
    first = adaptseg(*given, folder=tmp_path, before=without_pictures)
    assert first.code == 0, first.err
    flags = ["fit", "--config", str(tmp_path / "adapted.yaml"), *shrunk("--data.source", steps=8), "--data.tick", "2"]
    flags += ["--model.init_from", str(tmp_path / "runs" / "source" / "seed0"), "--trainer.log_every_n_steps", "1"]
    flags += ["--active.schedule", "[0.0, 0.25, 0.5]"]

    whole = adaptseg(*flags, folder=tmp_path / "whole", before=without_pictures)
    assert whole.code == 0, whole.err
    run = tmp_path / "whole" / RUN
    header, *table = rows(run / "rounds.csv")
    assert [row[header.index("step")] for row in table] == ["0", "2", "4"]
    assert json.loads((run / "labels" / "round_001.json").read_text())["spent"] > 0

    for point in (after_the_first_manifest, inside_a_tick):
        killed = adaptseg(*flags, folder=tmp_path / "killed", before=point)
        assert killed.code == -signal.SIGKILL, killed.out + killed.err
    again = adaptseg(*flags, folder=tmp_path / "killed", before=without_pictures)
    assert again.code == 0, again.err
    assert_same_run(tmp_path / "killed" / RUN, run)
