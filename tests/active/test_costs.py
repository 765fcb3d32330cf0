"""What labels cost: counts against loops over pixels, the model by hand, and what a run says of it."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import ndimage
from small_pool import SIZES, Pool, campaign

from adaptseg.active import CBDA, LabelCost, WholeImages
from adaptseg.active.costs import Work, region_content, work_of_regions
from adaptseg.active.spending import read_spent, spending, spending_table
from adaptseg.errors import AdaptSegError

pytestmark = pytest.mark.filterwarnings("ignore:GPU available but not used")


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def naive_content(labels: np.ndarray, inside: np.ndarray) -> tuple[int, int]:
    """Distinct classes and unlike pairs of 4-neighbours among the pixels of a mask."""
    pixels = {(int(y), int(x)) for y, x in np.argwhere(inside)}
    unlike = sum(
        labels[y, x] != labels[other] for y, x in pixels for other in ((y + 1, x), (y, x + 1)) if other in pixels
    )
    return len({int(labels[p]) for p in pixels}), int(unlike)


def square(size: tuple[int, int], y: int, x: int, radius: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = True
    return mask


@pytest.mark.parametrize(("size", "radius"), [((9, 13), 0), ((9, 13), 1), ((11, 8), 3), ((5, 4), 9), ((1, 7), 2)])
def test_region_content_against_loops(size: tuple[int, int], radius: int):
    rng = np.random.default_rng(radius)
    labels = rng.integers(0, 4, size)
    distinct, borders = region_content(torch.from_numpy(labels), 5, radius)
    for y in range(size[0]):
        for x in range(size[1]):
            expected = naive_content(labels, square(size, y, x, radius))
            assert (int(distinct[y, x]), int(borders[y, x])) == expected
    cost = LabelCost(region_seconds=3, class_seconds=2, border_seconds=0.5)
    expected = 3 + 2 * distinct.double() + 0.5 * borders.double()
    torch.testing.assert_close(cost.region_map(torch.from_numpy(labels), 5, radius).double(), expected)


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_work_of_regions_against_loops(radius: int):
    """Regions at corners and side by side, with pixels that were not asked for and void ones."""
    rng = np.random.default_rng(radius)
    size, step = (11, 17), 2 * radius + 1
    labels = rng.choice([0, 1, 2, 255], size)
    asked = rng.random(size) < 0.9
    centres = [(y, x) for y in range(0, 11, step) for x in range(0, 17, step) if rng.random() < 0.6]
    work = work_of_regions(torch.from_numpy(labels), torch.from_numpy(asked), torch.tensor(centres), radius)
    parts = [naive_content(labels, square(size, y, x, radius) & asked) for y, x in centres]
    assert work == Work(
        regions=len(centres), region_classes=sum(p[0] for p in parts), region_borders=sum(p[1] for p in parts)
    )


def test_hours_by_hand():
    cost = LabelCost(click_seconds=2, region_seconds=1, class_seconds=3, border_seconds=0.5, image_seconds=1000)
    work = Work(clicks=10, regions=4, region_classes=7, region_borders=6, images=2)
    assert cost.hours(work) == pytest.approx((20 + 4 + 21 + 3 + 2000) / 3600)
    assert cost.hours(work + work) == pytest.approx(2 * cost.hours(work))
    assert work + work - work == work
    assert LabelCost().hours(Work(images=1)) == 1.5  # Cityscapes


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"click_seconds": -1}, r"active\.cost\.click_seconds is -1; a number of seconds, 0 or more"),
        ({"border_seconds": math.inf}, r"active\.cost\.border_seconds is inf"),
        ({"image_seconds": math.nan}, r"active\.cost\.image_seconds is nan"),
        ({"click_seconds": 0}, r"active\.cost\.click_seconds is 0; labels that cost nothing"),
        ({"class_seconds": 0}, r"active\.cost\.region_seconds \+ class_seconds is 0"),
        ({"image_seconds": 0}, r"active\.cost\.image_seconds is 0"),
    ],
)
def test_impossible_rates(rates: dict[str, float], message: str):
    with pytest.raises(AdaptSegError, match=message):
        LabelCost(**rates)


def test_content_refuses_other_shapes():
    with pytest.raises(AdaptSegError, match=r"give integer \(H, W\)"):
        region_content(torch.zeros(3, 3), 2, 1)


# ---- in a run


@pytest.mark.parametrize(
    "settings", [{}, {"radius": 2, "selection": "image", "suppress_radius": 9, "budget": 0.3}, {"forbid_void": True}]
)
def test_the_work_of_regions_is_that_of_their_true_labels(tmp_path: Path, settings: dict[str, Any]):
    """Squares far enough apart are told apart by their pixels alone, which the run does not do."""
    acquisition = CBDA(**{"budget": 0.06, "balance": False, "suppress_radius": 7, "schedule": [0.2, 0.5], **settings})
    bought = campaign(acquisition, tmp_path)
    pool = Pool()
    total = Work()
    for masks, row in zip(bought, acquisition.history, strict=True):
        for key, mask in masks.items():
            # Void that was left out can take a square apart; closing and diagonals join what lies within a gap of 2.
            closed = ndimage.binary_closing(np.pad(mask, 3), np.ones((3, 3)))[3:-3, 3:-3]
            joined, count = ndimage.label(closed, np.ones((3, 3)))
            for number in range(1, count + 1):
                classes, borders = naive_content(pool.labels(key), mask & (joined == number))
                total += Work(regions=1, region_classes=classes, region_borders=borders)
        assert {name: row[name] for name in asdict(total)} == asdict(total)
        assert row["hours"] == round(acquisition.cost.hours(total), 4)


def test_pixels_are_clicks_and_images_are_images(tmp_path: Path):
    pixels = CBDA(budget=0.2, unit="pixel")
    campaign(pixels, tmp_path / "pixels")
    assert [row["clicks"] for row in pixels.history] == [row["spent"] for row in pixels.history]
    assert {row[name] for row in pixels.history for name in ("regions", "region_classes", "images")} == {0}
    images = WholeImages(budget=4, budget_unit="images", schedule=[0.1, 0.2, 0.5, 0.6])
    campaign(images, tmp_path / "images")
    assert [row["images"] for row in images.history] == [1, 2, 3, 4]
    assert images.history[-1]["hours"] == 6
    assert images.history[-1]["clicks"] == 0


def test_a_budget_in_hours(tmp_path: Path):
    cost = LabelCost(click_seconds=3, image_seconds=900)
    pixels = CBDA(budget=0.5, budget_unit="hours", unit="pixel", cost=cost)
    campaign(pixels, tmp_path / "pixels")
    assert pixels.store.spent(5) == 600
    assert pixels.history[-1]["hours"] == 0.5
    images = WholeImages(budget=0.8, budget_unit="hours", schedule=[0.1, 0.2], shares=[0.4, 0.6], cost=cost)
    campaign(images, tmp_path / "images")
    assert [row["images"] for row in images.history] == [1, 3]
    with pytest.raises(AdaptSegError, match=r"active\.budget_unit is hours, but what a region takes"):
        CBDA(budget=2, budget_unit="hours")


# ---- several runs side by side


def run_of(folder: Path, acquisition: Any, miou: float) -> Path:
    """A finished run, as far as its spending goes."""
    campaign(acquisition, folder)
    content = spending(acquisition.history, cost=acquisition.cost, strategy={"class": type(acquisition).__name__})
    (folder / "spending.json").write_text(json.dumps(content))
    (folder / "result.json").write_text(json.dumps({"val": {"miou": miou}}))
    return folder


def test_spending_of_a_run_and_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cheap = CBDA(budget=500, budget_unit="pixels", unit="pixel")
    dear = WholeImages(budget=2, budget_unit="images", schedule=[0.1, 0.2])
    folders = [run_of(tmp_path / "entropy" / "seed0", dear, 0.5), run_of(tmp_path / "pixels" / "seed0", cheap, 0.25)]
    written = json.loads((folders[1] / "spending.json").read_text())
    assert written["total"] == {"pixels": 500, **asdict(Work(clicks=500)), "hours": round(500 * 2.4 / 3600, 4)}
    assert [row["pixels"] for row in written["rounds"]] == [row["clicks"] for row in written["rounds"]] == [100] * 5
    assert sum(row["hours"] for row in written["rounds"]) == pytest.approx(500 * 2.4 / 3600, abs=1e-3)
    assert written["cost"] == asdict(LabelCost())
    spent = read_spent(folders[0])
    assert (spent.run, spent.work, spent.hours, spent.miou) == ("entropy/seed0", Work(images=2), 3.0, 0.5)
    Console(width=200).print(spending_table(folders))
    lines = [line for line in capsys.readouterr().out.splitlines() if "seed0" in line]
    assert ["pixels" in line for line in lines] == [True, False]  # the cheapest first
    share = f"{100 * 500 / sum(h * w for h, w in SIZES.values()):.2f}%"
    cells = [cell.strip() for cell in lines[0].strip("│").split("│")]
    assert cells == ["pixels/seed0", "500", share, "", "", "500", "0.33", "25.0"]
    assert read_spent(folders[0], LabelCost(image_seconds=3600)).hours == 2


def test_runs_priced_unlike_are_not_compared(tmp_path: Path):
    one = run_of(tmp_path / "a" / "x", CBDA(budget=0.2, unit="pixel"), 0.1)
    other = run_of(tmp_path / "b" / "x", CBDA(budget=0.2, unit="pixel", cost=LabelCost(click_seconds=1)), 0.1)
    with pytest.raises(AdaptSegError, match="priced by 2 models of label cost"):
        spending_table([one, other])
    assert spending_table([one, other], LabelCost()).row_count == 2
    with pytest.raises(AdaptSegError, match=r"spending\.json does not exist"):
        spending_table([tmp_path])
    (one / "result.json").unlink()
    with pytest.raises(AdaptSegError, match=r"result\.json does not exist"):
        spending_table([one])


def test_the_script_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = Path(__file__).parents[2] / "experiments" / "tables" / "spending.py"
    specification = importlib.util.spec_from_file_location("spending_script", path)
    assert specification
    assert specification.loader
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    run = run_of(tmp_path / "r" / "seed0", CBDA(budget=400, budget_unit="pixels", unit="pixel"), 0.3)
    monkeypatch.setattr("sys.argv", ["spending.py", str(run), "--click_seconds", "9"])
    script.main()
    out = capsys.readouterr().out
    assert "r/seed0" in out
    assert "1.00" in out
    monkeypatch.setattr("sys.argv", ["spending.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="does not exist"):
        script.main()
