"""Sweeps: every command line that an agent makes of them parses, and carries what it says; so does the batch script."""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from adaptseg import lightning_cli
from adaptseg.cli import main
from adaptseg.lightning_cli import AdaptSegCLI

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
SBATCH = ROOT / "experiments" / "slurm" / "fit.sbatch"


def grid(sweep: dict[str, Any]) -> Iterator[dict[str, Any]]:
    names = list(sweep["parameters"])
    for values in itertools.product(*(sweep["parameters"][name]["values"] for name in names)):
        yield dict(zip(names, values, strict=True))


def command_line(sweep: dict[str, Any], point: dict[str, Any]) -> list[str]:
    """What `wandb agent` runs for one point of the grid, with its own formatting of the arguments."""
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})["args"]
    macros = {"${env}": ["/usr/bin/env"], "${args}": arguments}
    return [word for part in sweep["command"] for word in macros.get(part, [part])]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configs of the commands that were run, which stop once their arguments are parsed."""
    configs: list[Any] = []

    class ParseOnly(AdaptSegCLI):
        def __init__(self, options: argparse.Namespace, *arguments: Any) -> None:
            assert options.wandb
            super().__init__(options, *arguments)

        def before_instantiate_classes(self) -> None:
            self.folder, self.finished = Path("nowhere"), True
            configs.append(self.config.fit)

    monkeypatch.setattr(lightning_cli, "AdaptSegCLI", ParseOnly)
    monkeypatch.chdir(ROOT)
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    return configs


def diagonal(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Points that hold each value of each parameter at least once."""
    values = {name: given["values"] for name, given in sweep["parameters"].items()}
    return [
        {name: choices[row % len(choices)] for name, choices in values.items()}
        for row in range(max(map(len, values.values())))
    ]


@pytest.mark.parametrize("points", [diagonal, pytest.param(grid, marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_command_line_parses(
    path: Path, points: Callable[[Any], Iterable[Any]], parsed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = yaml.safe_load(path.read_text())
    for point in points(sweep):
        words = command_line(sweep, point)
        assert words[:3] == ["/usr/bin/env", "adaptseg", "fit"]
        assert main(words[2:]) == 0, capsys.readouterr().err
        for name, value in point.items():
            block, _, argument = name.partition(".")
            found = parsed[-1][block].init_args[argument] if argument else parsed[-1][block]
            assert found == value, name
            assert type(found) is type(value), name


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_size_of_a_sweep_is_told(path: Path) -> None:
    text = path.read_text()
    assert f": {len(list(grid(yaml.safe_load(text))))} runs on Streets" in text


def test_a_sweep_names_the_metric_that_runs_log() -> None:
    for path in SWEEPS:
        assert yaml.safe_load(path.read_text())["metric"] == {"name": "val/miou", "goal": "maximize"}


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--active.budgets=0.1", "budgets"), ("--active.score=loudest", "score"), ("--actve.budget=0.1", "actve.budget")],
)
def test_a_parameter_that_does_not_exist_is_named(
    flag: str, said: str, parsed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", "configs/cbda_5pct.yaml", "--wandb", flag]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert parsed == []


def test_the_batch_script() -> None:
    """It is a script, its directives come before its commands, and its signal reaches the tasks, not the script."""
    text = SBATCH.read_text()
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    head, _, commands = text.partition("\nexport ")
    directives = re.findall(r"^#SBATCH (\S+)$", head, re.MULTILINE)
    assert {"--signal=USR1@180", "--requeue", "--open-mode=append"} <= set(directives)
    assert "#SBATCH" not in commands
    assert not re.search(r"--fresh|--gres", commands)


def test_the_command_of_the_batch_script(tmp_path: Path) -> None:
    """Run with a stub srun: what reaches adaptseg, and that the exit code comes through."""
    stub = tmp_path / "srun"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 75\n')
    stub.chmod(0o755)
    variables = {"SLURM_CPUS_PER_TASK": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2"}
    done = subprocess.run(
        ["bash", str(SBATCH), "--config", "a recipe.yaml"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 75
    words = done.stdout.splitlines()
    assert words[1:5] == ["adaptseg", "fit", "--config", "a recipe.yaml"]
    assert words[5:] == ["--trainer.accelerator", "gpu", "--trainer.devices", "4", "--trainer.num_nodes", "2"]
