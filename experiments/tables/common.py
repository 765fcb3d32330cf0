"""What all result tables share: run what is missing, keep one small JSON per run, print a table from those alone."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adaptseg.active.labels import LabelStore

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Row:
    """One line of a table: its name and the flags of `adaptseg fit` and `adaptseg test` that make it."""

    name: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """One column: its title and how to read it from a result; None leaves the cell empty."""

    title: str
    read: Callable[[dict[str, Any]], float | str | None]
    form: str = "{:.1f}"


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that every table script has."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--seeds", type=int, nargs="*", default=[0], help="seeds to run where results are missing")
    result.add_argument("--rows", nargs="*", help="only rows whose name contains one of these")
    result.add_argument(
        "--runs", type=Path, default=Path("runs/tables"), help="where run directories go (not committed)"
    )
    result.add_argument("--print", action="store_true", help="run nothing; only print what is there")
    return result


def result_path(table: str, row: Row, seed: int) -> Path:
    """Where the JSON of one run lies."""
    return RESULTS / table / f"{row.name.replace(' ', '_').replace('%', 'pct').replace(',', '')}_seed{seed}.json"


def run_missing(table: str, rows: Sequence[Row], seeds: Sequence[int], runs: Path) -> None:
    """Fit and test every (seed, row) without a result; an interrupted one resumes."""
    todo = [(row, seed) for seed in seeds for row in rows if not result_path(table, row, seed).exists()]
    for number, (row, seed) in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {row.name}, seed {seed}", flush=True)
        name = result_path(table, row, seed).stem
        own = [f"--runs={runs / table}", f"--name={name}", f"--seed_everything={seed}"]
        for verb in ("fit", "test"):
            adaptseg(verb, *row.flags, *own)
        folder = run_folder(runs / table, row, name)
        fit, test = (json.loads((folder / file).read_text()) for file in ("result.json", "test.json"))
        environment = json.loads((folder / "environment.json").read_text())
        result = {
            "table": table,
            "row": row.name,
            "seed": seed,
            "flags": [without_folder(flag) for flag in row.flags],
            "steps": fit["steps"],
            "seconds": fit["seconds"],
            "commit": environment["git"]["commit"],
            "packages": environment["packages"],
            "rounds": fit["rounds"],
            "bought": bought(folder / "labels"),
            "val": fit["val"],
            "test": {key: value for key, value in test.items() if key != "checkpoint"},
        }
        path = result_path(table, row, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


def adaptseg(verb: str, *flags: str) -> None:
    """Run the command; what it printed last is shown if it fails, and all ends."""
    command = [sys.executable, "-m", "adaptseg.cli", verb, *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def bought(labels: Path) -> dict[str, int] | None:
    """Pixels of each class in a run's label store; None for a run that bought nothing."""
    if not labels.exists():
        return None
    store = LabelStore.open(labels)
    return dict(zip(store.class_table.names, store.class_counts(store.rounds).tolist(), strict=True))


def run_stages(
    recipe: dict[str, Any],
    folder: Path,
    seed: int,
    tested: Sequence[str],
    *,
    seeds: Mapping[str, int] | None = None,
    root: str | None = None,
) -> Path:
    """Fit a staged recipe and score the networks of some of its stages on the test split; what is done is skipped.

    Args:
        recipe: as its YAML file would hold it; `config:` below configs/.
        folder: where the run goes.
        seed: of the run.
        tested: stages; each leaves test.json in its folder.
        seeds: of stages that have one of their own.
        root: what `{root}` stands for in configs; None = they do not have it.

    Returns:
        The folder with a folder for each stage.
    """
    folder = folder.resolve() / f"seed{seed}"
    file = write_stages(recipe, folder)
    made = folder / "stages" / f"seed{seed}"
    for more in ([], *(["--stage", name] for name in tested if not (made / name / "test.json").exists())):
        flags = ["--config", str(file), "--runs", str(folder), "--name", f"seed{seed}", "--seed_everything", str(seed)]
        # A flag for all stages lies over what a stage says itself, so theirs must be flags as well.
        own = [f"--stages.{stage}.seed_everything={own}" for stage, own in (seeds or {}).items()]
        own += [] if root is None else ["--root", root]
        adaptseg("test" if more else "fit", *flags, *more, *own)
    return made


def write_stages(recipe: dict[str, Any], folder: Path) -> Path:
    """Write a staged recipe, `config:` below configs/, as `stages.yaml` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    stages = [{**stage, "config": _below_configs(stage["config"])} for stage in recipe["stages"]]
    file = folder / "stages.yaml"
    file.write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    return file


def _below_configs(config: str | list[str]) -> str | list[str]:
    files = [str(REPOSITORY / "configs" / file) for file in ([config] if isinstance(config, str) else config)]
    return files[0] if isinstance(config, str) else files


def without_folder(flag: str) -> str:
    """A flag without the place of a file on this machine."""
    name, equals, value = flag.partition("=")
    return f"{name}={Path(value).name}" if equals and value.startswith("/") else flag


def run_folder(runs: Path, row: Row, name: str) -> Path:
    """The run directory of a row in the folder of its table: rows of two tables may be called and configured alike."""
    stems = [Path(row.flags[i + 1]).stem for i, flag in enumerate(row.flags) if flag == "--config"]
    return (REPOSITORY / runs if not runs.is_absolute() else runs) / "+".join(stems) / name


def make(table: str, rows: Sequence[Row], columns: Sequence[Column], given: argparse.Namespace) -> None:
    """Run what the flags of `parser` ask for, then write the whole table into RESULTS.md."""
    chosen = [row for row in rows if not given.rows or any(part in row.name for part in given.rows)]
    if not given.print:
        run_missing(table, chosen, given.seeds, given.runs)
    write_table(table, markdown(rows, columns, lambda row: load(table, row)))


def load(table: str, row: Row) -> list[dict[str, Any]]:
    """All results of a row, whatever the seed."""
    stem = result_path(table, row, 0).name.removesuffix("0.json")
    return [json.loads(path.read_text()) for path in sorted((RESULTS / table).glob(f"{stem}*.json"))]


def markdown(rows: Sequence[Row], columns: Sequence[Column], results_of: Callable[[Row], list[dict[str, Any]]]) -> str:
    """Mean ± standard deviation over seeds (the value alone for one seed); cells without a result stay empty."""
    lines = ["| " + " | ".join(["", *(c.title for c in columns), "seeds"]) + " |", "|---" * (len(columns) + 2) + "|"]
    for row in rows:
        results = results_of(row)
        cells = [_cell(column, results) for column in columns]
        lines.append("| " + " | ".join([row.name, *cells, str(len(results) or "")]) + " |")
    return "\n".join(lines)


def _cell(column: Column, results: Sequence[dict[str, Any]]) -> str:
    values = [value for result in results if (value := column.read(result)) is not None]
    if not values:
        return ""
    numbers = [value for value in values if isinstance(value, (int, float)) and not math.isnan(value)]
    if len(numbers) < len(values):
        return ", ".join(sorted({str(value) for value in values}))
    mean = column.form.format(statistics.mean(numbers))
    return mean if len(numbers) == 1 else f"{mean} ± {column.form.format(statistics.stdev(numbers))}"


def last_round_share(result: dict[str, Any], name: str) -> float | None:
    """`spent` or `void` after the last round, in per cent of all pool pixels; None for a run that bought nothing."""
    last = result["rounds"][-1] if result["rounds"] else None
    return 100 * last[name] / last["pool_pixels"] if last else None


BUYING = [
    Column("label balance", lambda r: r["rounds"][-1]["balance"] if r["rounds"] else None, "{:.3f}"),
    Column("spent, % of pool", lambda r: last_round_share(r, "spent"), "{:.2f}"),
    Column("void, % of pool", lambda r: last_round_share(r, "void"), "{:.2f}"),
    Column("seconds", lambda r: r["seconds"], "{:.0f}"),
]
"""What every table of acquisitions says of the labels."""


def write_table(table: str, text: str, page: Path = REPOSITORY / "experiments" / "RESULTS.md") -> None:
    """Replace what stands between the markers of a table on a page, and print it."""
    begin, end = f"<!-- table: {table} -->", f"<!-- end: {table} -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"{page} lacks the lines {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    print(text)
