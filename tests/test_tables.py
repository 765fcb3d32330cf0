"""The scripts that make the result tables: the flags of their rows are flags of `adaptseg fit`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_configs import ParseOnly, parse_stages
from test_paper_recipes import quiet

from adaptseg.recipes import fill_root, load_recipe, merge_recipes, take_configs

__all__ = ["quiet"]  # a fixture that every test uses

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments" / "tables"))

import active  # noqa: E402  (the scripts of experiments/ are no package)
import duda  # noqa: E402
import ensemble  # noqa: E402
import gbw_study  # noqa: E402
import low_budget  # noqa: E402
import self_training  # noqa: E402
from common import Row, write_stages  # noqa: E402
from pairs import pairs  # noqa: E402

PAIRS = pairs("DIR", "FILE")
TABLES = {
    **{name: active.rows(PAIRS[name]) for name in active.PAIRS},
    **{self_training.table_of(PAIRS[name]): self_training.rows(PAIRS[name]) for name in self_training.PAIRS},
    **{pool.table: low_budget.rows(pool, "FILE", "RUN") for pool in low_budget.pools("DIR").values()},
    "gbw_study": [gbw_study.STATE, *gbw_study.rows("RUN")],
}


def parsed(row: Row) -> None:
    """As the command line reads these flags, up to the point where it would build something."""
    configs, rest = take_configs(list(row.flags))
    root = next((flag.partition("=")[2] for flag in rest if flag.startswith("--root=")), None)
    merged = fill_root(merge_recipes([(str(path), load_recipe(ROOT / path)) for path in configs]), root)
    flags = [flag for flag in rest if not flag.startswith("--root=")]
    ParseOnly(argparse.Namespace(), [], ["fit", "--config", yaml.safe_dump(merged), *flags])


@pytest.mark.parametrize("table", TABLES)
def test_rows_have_names_of_their_own_and_flags_that_parse(table: str) -> None:
    rows = TABLES[table]
    assert len({row.name for row in rows}) == len(rows)
    assert all((ROOT / word).is_file() for row in rows for word in row.flags if word.endswith(".yaml"))
    seen = []
    for row in rows:
        # The recipes and overlays have tests of their own: here it is the flags.
        shape = {flag.partition("=")[0] for flag in row.flags if flag.startswith("--")}
        if shape not in seen:
            parsed(row)
            seen.append(shape)


@pytest.mark.parametrize(
    ("script", "pair"),
    [*((ensemble, pair) for pair in ensemble.PAIRS), *((duda, pair) for pair in duda.PAIRS)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_stages_parse_on_every_pair(script: Any, pair: str, tmp_path: Path) -> None:
    file = write_stages(script.recipe(PAIRS[pair]), tmp_path)
    parse_stages(file, tmp_path)


def test_shares_of_what_was_bought() -> None:
    runs = [{"bought": {"road": 3, "car": 1}}, {"bought": {"road": 1, "car": 1}}, {"bought": None}, {}]
    assert active.bought_shares(runs).tolist() == [0.625, 0.375]
    assert active.bought_shares(runs[2:]) is None


def test_a_later_flag_changes_the_schedule() -> None:
    row = next(row for row in TABLES["streets"] if row.name == "CBDA 5%, original schedule")
    assert [flag for flag in row.flags if "schedule" in flag] == [
        "--active.schedule=spread",
        "--active.schedule=original",
    ]


def test_gap_closed_over_classes_known_and_not() -> None:
    floor = {"road": 0.5, "car": 0.3, "pole": 0.1, "sign": 0.0}
    ceiling = {"road": 0.9, "car": 0.7, "pole": 0.5, "sign": 0.2}
    reached = {"road": 0.7, "car": 0.5, "pole": 0.0, "sign": 0.05}
    assert self_training.gap_closed(reached, floor, ceiling) == pytest.approx(100 * 0.35 / 1.4)
    assert self_training.gap_closed(reached, floor, ceiling, known=True) == pytest.approx(50)
    assert self_training.gap_closed(reached, floor, ceiling, known=False) == pytest.approx(100 * -0.05 / 0.6)
    assert self_training.gap_closed(reached, ceiling, ceiling) is None
    assert self_training.gap_closed({"road": 1.0}, {"road": 0.5}, {"road": 0.9}, known=False) is None


def test_differences_are_taken_seed_by_seed() -> None:
    def run(seed: int, *miou: float) -> dict[str, Any]:
        rounds = [{"miou": 0.0}, *({"miou": value} for value in miou[:-1])]
        return {"seed": seed, "rounds": rounds, "val": {"miou": miou[-1]}}

    ours, others = [run(0, 0.1, 0.3), run(2, 0.2, 0.5)], [run(1, 0.9, 0.9), run(2, 0.1, 0.2), run(0, 0.2, 0.1)]
    assert low_budget.differences(ours, others) == [pytest.approx((20, 5)), pytest.approx((30, 20))]
