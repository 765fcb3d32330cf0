"""What a run spent on labels, as it leaves it on disk, and several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from adaptseg.active.costs import LabelCost, Work
from adaptseg.errors import AdaptSegError
from adaptseg.storage import read_json

SPENDING = "spending.json"
"""In the run directory."""


def spending(history: Sequence[dict[str, Any]], *, cost: LabelCost, strategy: dict[str, Any]) -> dict[str, Any]:
    """The content of `spending.json`: what each round cost by itself and all rounds together, in pixels, in units of
    work and in hours.

    Args:
        history: rows of the table of rounds (`Acquisition.history`), whose numbers are sums over the rounds so far.
        cost: the model that made hours of the work.
        strategy: plain values that say how was bought.
    """
    rounds: list[dict[str, Any]] = []
    before = Work()
    for row in history:
        work = _work(row)
        rounds.append(
            {
                "round": row["round"],
                "step": row["step"],
                "pixels": row["spent"] - row["spent_before"],
                **asdict(work - before),
                "hours": round(cost.hours(work - before), 4),
            }
        )
        before = work
    last = history[-1]
    total = {"pixels": last["spent"], **asdict(before), "hours": round(cost.hours(before), 4)}
    return {
        "strategy": strategy,
        "cost": asdict(cost),
        "pool_pixels": last["pool_pixels"],
        "total": total,
        "rounds": rounds,
    }


class Spent(NamedTuple):
    """What a finished run bought, and what came of it.

    Attributes:
        run: `<recipe>/<name>`.
        pixels: bought, void included.
        pool_pixels: pixels of the pool.
        work: what was asked of people.
        hours: of a person's time.
        miou: of the last state on the validation set, in [0, 1]; None without one.
    """

    run: str
    pixels: int
    pool_pixels: int
    work: Work
    hours: float
    miou: float | None


def read_spent(run: str | Path, cost: LabelCost | None = None) -> Spent:
    """Read a finished run directory.

    Args:
        cost: prices its work anew; null = by the run's own model.

    Raises:
        AdaptSegError: the run is not finished, or bought nothing.
    """
    folder = Path(run)
    if not (folder / SPENDING).is_file():
        raise AdaptSegError(f"{folder / SPENDING} does not exist: no run directory, or the run bought no labels")
    found, result = read_json(folder / SPENDING), read_json(folder / "result.json")
    work = _work(found["total"])
    cost = cost or LabelCost(**found["cost"])
    return Spent(
        run="/".join(folder.resolve().parts[-2:]),
        pixels=found["total"]["pixels"],
        pool_pixels=found["pool_pixels"],
        work=work,
        hours=cost.hours(work),
        miou=(result["val"] or {}).get("miou"),
    )


def spending_table(runs: Sequence[str | Path], cost: LabelCost | None = None) -> Table:
    """Several finished runs side by side, the cheapest first. See `read_spent`.

    Raises:
        AdaptSegError: also if the runs were priced by different models and `cost` gives no common one.
    """
    models = {LabelCost(**read_json(Path(run) / SPENDING)["cost"]) for run in runs if (Path(run) / SPENDING).is_file()}
    if cost is None and len(models) > 1:
        raise AdaptSegError(
            f"the runs were priced by {len(models)} models of label cost; give one to price them all by"
        )
    table = Table(title="what labels cost", title_justify="left")
    table.add_column("run", overflow="fold")
    for title in ("pixels", "of pool", "regions", "images", "clicks", "hours", "mIoU"):
        table.add_column(title, justify="right")
    for spent in sorted((read_spent(run, cost) for run in runs), key=lambda spent: (spent.hours, spent.run)):
        table.add_row(
            spent.run,
            f"{spent.pixels:,}",
            f"{100 * spent.pixels / spent.pool_pixels:.2f}%",
            *(f"{n:,}" if n else "" for n in (spent.work.regions, spent.work.images, spent.work.clicks)),
            f"{spent.hours:,.2f}",
            "" if spent.miou is None else f"{100 * spent.miou:.1f}",
        )
    return table


def _work(row: dict[str, Any]) -> Work:
    return Work(**{field.name: row[field.name] for field in fields(Work)})
