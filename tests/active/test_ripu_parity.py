"""What RIPU's release does around its scores: reading the pool, counting picks, rounds before the first step."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_pool import SIZES, TABLE, Pool, campaign, prepare, set_step
from test_cbda import naive_score
from tiny import TinySegmenter

from adaptseg.active import CBDA
from adaptseg.data import DomainPair
from adaptseg.errors import AdaptSegError
from adaptseg.methods import Supervised
from adaptseg.networks import Inference

pytestmark = pytest.mark.filterwarnings("ignore:GPU available but not used")

NETWORK_SIZE = (16, 24)
RELEASED = Inference(align_corners=True, stepwise=True)


def sharp(num_classes: int) -> TinySegmenter:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        network = TinySegmenter(num_classes)
    with torch.no_grad():
        network.head.weight.mul_(20)
    return network


def method() -> Supervised:
    return Supervised(network=sharp, class_table=TABLE, inference=Inference(flip=True, align_corners=True))


def aligned(x: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """(C, h, w) resized so that the corners' centres meet, by numpy's interpolation along one axis after the other."""
    for axis, new in ((1, size[0]), (2, size[1])):
        old = np.arange(x.shape[axis])
        at = np.linspace(0, x.shape[axis] - 1, new)
        x = np.apply_along_axis(lambda row, at=at, old=old: np.interp(at, old, row), axis, x)
    return x


def released_probabilities(module: Supervised, data: DomainPair, key: str) -> NDArray[np.float64]:
    """Logits to the network's input size, from there to the original's, then softmax; no mirror image."""
    (batch,) = [b for b in data.pool_loader(0, 1) if b.keys == [key]]
    with torch.no_grad():
        logits = module.student(batch.image).logits[0].double().numpy()
    logits = aligned(aligned(logits, NETWORK_SIZE), SIZES[key])
    p = np.exp(logits - logits.max(0))
    return p / p.sum(0)


@pytest.mark.parametrize("mode", ["region", "pixel"])
def test_a_round_is_the_released_loop(mode: Any, tmp_path: Path) -> None:
    """Two rounds of picks by ceil, each the largest score that no earlier square blocks, in either round."""
    pixel = mode == "pixel"
    radius, side, suppress = (5, 1, 5) if pixel else (1, 3, 2)
    budget: dict[str, Any] = {"budget": 5.5, "budget_unit": "pixels_per_image"} if pixel else {"budget": 0.09}
    made = CBDA(
        **budget, selection="image", rounding="ceil", balance=False, schedule=[0.2, 0.4], mode=mode, unit=mode,
        radius=radius, suppress_radius=suppress, inference=RELEASED,
    )  # fmt: skip
    module, settings = method().eval(), {"target_size": NETWORK_SIZE, "pool_size": "native"}
    bought = campaign(made, tmp_path, module=module, **settings)
    data = DomainPair(target=Pool(), workers=0, **settings)
    for key, (height, width) in SIZES.items():
        score = naive_score(released_probabilities(module, data, key), "ripu", radius, mode)
        share = (
            height * width / sum(h * w for h, w in SIZES.values())
        )  # 22 pixels on 4 images, the larger ones get more
        exact = 22 * share / 2 if pixel else height * width * 0.09 / 2 / 9
        for masks in bought:
            expected = np.zeros((height, width), bool)
            for _ in range(math.ceil(exact - 1e-9)):
                y, x = np.unravel_index(score.argmax(), score.shape)
                expected[max(0, y - side // 2) : y + side // 2 + 1, max(0, x - side // 2) : x + side // 2 + 1] = True
                score[max(0, y - suppress) : y + suppress + 1, max(0, x - suppress) : x + suppress + 1] = -np.inf
            np.testing.assert_array_equal(masks[key], expected)


def test_the_pool_is_read_as_judged_unless_told_otherwise(tmp_path: Path) -> None:
    settings = {"target_size": NETWORK_SIZE, "pool_size": "native"}
    as_judged, as_told, as_released = (
        campaign(CBDA(budget=0.3, inference=i), tmp_path / str(n), module=method().eval(), rounds=1, **settings)[0]
        for n, i in enumerate([None, Inference(flip=True, align_corners=True), RELEASED])
    )
    assert all(np.array_equal(as_judged[key], as_told[key]) for key in SIZES)
    assert any(not np.array_equal(as_judged[key], as_released[key]) for key in SIZES)


def test_how_the_pool_is_read_is_among_the_settings() -> None:
    assert CBDA().settings()["inference"] is None
    assert CBDA(inference=RELEASED).settings()["inference"] == dataclasses.asdict(RELEASED)


# ---- rounds before the first step


def test_source_free_schedule_fires_at_the_released_steps() -> None:
    made = CBDA(schedule="source_free")
    assert made.round_steps(30_000, 2000) == [0, 2000, 4000, 6000, 8000]
    assert made.round_steps(1200, 60) == [0, 120, 180, 240, 360]  # Streets' ticks: rounded up


def test_the_first_round_is_bought_before_the_first_step(tmp_path: Path) -> None:
    made = CBDA(budget=0.3, schedule=[0.0, 0.5], selection="image", balance=False)
    data = DomainPair(target=Pool(), workers=0)
    trainer, module = prepare(made, data, tmp_path, max_steps=20)
    assert (made.round, made.fire_at) == (1, [0, 10])
    assert data.bought is not None
    assert made.store.spent(1) > 0
    assert made.history[0]["step"] == 0
    first = {key: made.store.bought(key, 1) for key in SIZES}
    set_step(trainer, 9)
    made.on_train_epoch_end(trainer, module)
    assert made.round == 1
    set_step(trainer, 10)
    made.on_train_epoch_end(trainer, module)
    assert made.round == 2
    # A run that was killed before its first checkpoint: the same query, whose answers are still there.
    again = CBDA(budget=0.3, schedule=[0.0, 0.5], selection="image", balance=False)
    prepare(again, DomainPair(target=Pool(), workers=0), tmp_path, max_steps=20)
    assert again.round == 1
    assert all(np.array_equal(again.store.bought(key, 1), first[key]) for key in SIZES)


@pytest.mark.parametrize("schedule", [[-0.1, 0.5], [0.0, 1.0], [0.5, 0.0]])
def test_impossible_schedules_are_refused(schedule: list[float]) -> None:
    with pytest.raises(AdaptSegError, match=r"active\.schedule is .*ascending fractions of max_steps in \[0, 1\)"):
        CBDA(schedule=schedule)
