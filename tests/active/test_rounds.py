"""When rounds fire inside a fit, what they leave behind, and what a resume must find."""

from __future__ import annotations

import csv
import json
import os
from collections import namedtuple
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from small_pool import SIZES, TABLE, Painter, Pool, campaign, prepare, set_step
from tiny import tiny_network

from adaptseg import storage
from adaptseg.active import CBDA
from adaptseg.active.costs import LabelCost, Work
from adaptseg.active.labels import LabelStore
from adaptseg.active.rounds import final_scores
from adaptseg.callbacks.report import Report
from adaptseg.callbacks.validation import ValidationTimes
from adaptseg.classes import VOID
from adaptseg.data import DomainPair
from adaptseg.errors import AdaptSegError
from adaptseg.lightning_cli import TRAINER_DEFAULTS
from adaptseg.loggers import CsvLogger
from adaptseg.methods import Supervised
from adaptseg.metrics import label_balance_entropy

pytestmark = [
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
]

SQUARE = dict.fromkeys(("a", "b", "c", "d"), (16, 24))


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is most of the time of these tests; storage has tests of its own."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def pair(**arguments: Any) -> DomainPair:
    return DomainPair(target=Pool(), workers=0, **arguments)


# ---- what a resume must find


def resumed(acquisition: CBDA, folder: Path, **state: Any) -> None:
    """Begin a fit with an acquisition of this state over the label store in `folder`."""
    acquisition.load_state_dict({"round": 0, "checksum": "", "history": [], **state})
    prepare(acquisition, pair(), folder)


def test_a_checkpoint_ahead_of_the_label_store_is_refused(tmp_path: Path):
    with pytest.raises(AdaptSegError, match=r"checkpoint is in round 1, but the label store .*labels holds only 0"):
        resumed(CBDA(budget=0.2), tmp_path, round=1, checksum="0" * 16)


def test_a_round_of_another_history_is_refused(tmp_path: Path):
    first = CBDA(budget=0.2)
    campaign(first, tmp_path, rounds=2)
    with pytest.raises(
        AdaptSegError, match=r"round 2 of the label store .* is not the one this checkpoint was trained on"
    ):
        resumed(CBDA(budget=0.2), tmp_path, round=2, checksum="0" * 16)
    resumed(CBDA(budget=0.2), tmp_path, round=2, checksum=first.checksum)  # its own is welcome


def test_a_round_that_lost_files_is_refused(tmp_path: Path):
    first = CBDA(budget=0.2)
    campaign(first, tmp_path, rounds=2)
    next((tmp_path / "labels" / "round_001").rglob("*.png")).unlink()
    with pytest.raises(AdaptSegError, match=r"round_001 does not match round_001\.json.*restore the folder"):
        resumed(CBDA(budget=0.2), tmp_path, round=2, checksum=first.checksum)


def test_a_store_of_another_pool_is_refused(tmp_path: Path):
    campaign(CBDA(budget=0.2), tmp_path, rounds=1)
    others = {
        "size of image 'rural' is absent there": Pool({**SIZES, "rural": (16, 39)}),
        "size of image 'new' is absent there": Pool({**SIZES, "new": (16, 39)}),
        "size of image 'tall' is": Pool({key: size for key, size in SIZES.items() if key != "tall"}),
    }
    messages = [
        r"size of image 'rural' is \(16, 40\)",
        "size of image 'new' is absent there",
        "size of image 'tall' is",
    ]
    for message, pool in zip(messages, others.values(), strict=True):
        with pytest.raises(AdaptSegError, match=f"is of another pool: {message}"):
            prepare(CBDA(budget=0.2), DomainPair(target=pool, workers=0), tmp_path)


def test_a_store_that_is_ahead_is_used_again_if_the_query_is_the_same(tmp_path: Path):
    first = CBDA(budget=0.2)
    campaign(first, tmp_path, rounds=3)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "labels").rglob("*")}
    again = CBDA(budget=0.2)
    campaign(again, tmp_path, rounds=3)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "labels").rglob("*")} == files
    assert again.history == first.history
    assert again.state_dict() == first.state_dict()


def test_a_store_that_is_ahead_is_set_aside_if_the_query_differs(tmp_path: Path):
    first = CBDA(budget=0.2)
    campaign(first, tmp_path, rounds=3)
    manifest = (tmp_path / "labels" / "round_003.json").read_text()
    other = CBDA(budget=0.2, score="entropy")
    other.load_state_dict({**first.state_dict(), "round": 0})
    campaign(other, tmp_path, rounds=1)
    assert other.store.rounds == 1
    assert other.store.manifest(1)["query_checksum"] == other.checksum != first.checksum
    aside = tmp_path / "labels" / "set_aside"
    assert sorted(path.name for path in aside.iterdir()) == ["round_001_1", "round_002_1", "round_003_1"]
    assert (aside / "round_003_1" / "round_003.json").read_text() == manifest


def test_bought_labels_reach_the_data_after_each_round_and_after_a_resume(tmp_path: Path):
    data = pair()
    acquisition = CBDA(budget=0.2)
    trainer, module = prepare(acquisition, data, tmp_path)
    assert data.bought is None
    for number, step in enumerate(acquisition.fire_at, 1):
        set_step(trainer, step)
        acquisition.on_train_epoch_end(trainer, module)
        for key in SIZES:
            np.testing.assert_array_equal(data.bought.labels(key), acquisition.store.labels(key, number))
    later = pair()
    again = CBDA(budget=0.2)
    again.load_state_dict(acquisition.state_dict())
    prepare(again, later, tmp_path)
    for key in SIZES:
        np.testing.assert_array_equal(later.bought.labels(key), acquisition.store.labels(key, 5))
    # A checkpoint of an earlier round sees the labels of that round alone, whatever lies on disk.
    earlier = pair()
    again = CBDA(budget=0.2)
    checksum = acquisition.store.manifest(2)["query_checksum"]
    again.load_state_dict({"round": 2, "checksum": checksum, "history": acquisition.history[:2]})
    prepare(again, earlier, tmp_path)
    for key in SIZES:
        np.testing.assert_array_equal(earlier.bought.labels(key), acquisition.store.labels(key, 2))


def test_state_is_plain_and_survives_a_checkpoint_file(tmp_path: Path):
    acquisition = CBDA(budget=0.2)
    campaign(acquisition, tmp_path, rounds=2)
    torch.save(acquisition.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = CBDA(budget=0.2)
    other.load_state_dict(state)
    assert (other.round, other.checksum, other.history) == (2, acquisition.checksum, acquisition.history)
    assert other.history is not acquisition.history
    assert acquisition.state_key == "active"


# ---- what is refused before the first step


@pytest.mark.parametrize(
    ("schedule", "steps", "tick", "message"),
    [
        ([0.5, 0.99], 20, 4, r"a round after step 20, but training ends at step 20"),
        ([0.999], 100, None, r"a round after step 100, but training ends at step 100"),
        ([0.99], 10, 4, r"a round after step 12, but training ends at step 10"),
        ([0.26, 0.30], 20, 4, r"two rounds into one tick \(rounds after steps \[8, 8\]\); shorten data\.tick"),
        ([0.5, 0.5], 20, None, r"two rounds into one tick"),
    ],
)
def test_schedules_that_cannot_be_kept(tmp_path: Path, schedule: list[float], steps: int, tick: Any, message: str):
    with pytest.raises(AdaptSegError, match=rf"active\.schedule puts {message}"):
        prepare(CBDA(budget=0.2, schedule=schedule), pair(tick=tick), tmp_path, max_steps=steps)


def test_too_little_disk_is_known_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    acquisition = CBDA(budget=0.2, unit="pixel", scratch=str(tmp_path / "elsewhere"))
    needed = acquisition.scratch_bytes(SIZES)
    Usage = namedtuple("Usage", "total used free")
    free = needed

    def disk_usage(path: Path) -> Usage:
        assert Path(path) == tmp_path / "elsewhere"
        return Usage(10**12, 0, free)

    monkeypatch.setattr(storage.shutil, "disk_usage", disk_usage)
    trainer, module = prepare(acquisition, pair(), tmp_path)
    free = needed - 1
    with pytest.raises(
        AdaptSegError, match=r"the maps of one round: .* of scratch needed in .*elsewhere.*active\.scratch"
    ):
        prepare(CBDA(budget=0.2, unit="pixel", scratch=str(tmp_path / "elsewhere")), pair(), tmp_path)
    set_step(trainer, 5)
    with pytest.raises(AdaptSegError, match="scratch needed"):  # filled up by someone else meanwhile
        acquisition.on_train_epoch_end(trainer, module)
    assert acquisition.round == acquisition.store.rounds == 0
    free = needed
    acquisition.on_train_epoch_end(trainer, module)
    assert acquisition.round == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"unit": "pixel"}, {}, {"selection": "image"}, {"suppress_radius": 9, "budget": 0.05},
        {"unit": "pixel", "suppress_radius": 4, "budget": 0.02}, {"unit": "pixel", "max_share_per_image": 0.5},
    ],
)  # fmt: skip
def test_the_announced_scratch_space_suffices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
):
    """Everything written during a round, unlinked spool files included, fits into what was announced."""
    from adaptseg.active.spool import Spool

    written = 0
    original_write, original_save = Spool._write, np.save

    def counting_write(spool: Spool, array: Any) -> None:
        nonlocal written
        written += array.nbytes
        original_write(spool, array)

    def counting_save(file: Path, array: Any) -> None:
        nonlocal written
        original_save(file, array)
        written += Path(file).stat().st_size

    monkeypatch.setattr(Spool, "_write", counting_write)
    monkeypatch.setattr(np, "save", counting_save)
    acquisition = CBDA(**{"budget": 0.2, "schedule": [0.5], **settings})
    campaign(acquisition, tmp_path)
    assert 0 < written <= acquisition.scratch_bytes(SIZES)


def test_scratch_is_gone_after_rounds_and_after_errors(tmp_path: Path):
    acquisition = CBDA(budget=0.2)
    trainer, module = prepare(acquisition, pair(), tmp_path)
    set_step(trainer, 5)
    acquisition.on_train_epoch_end(trainer, module)
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]

    class Broken(Painter):
        def predict_probabilities(self, images: Any, *, size: Any, draws: Any = 1, generator: Any = None):
            return super().predict_probabilities(images, size=size) * float("nan")

    set_step(trainer, 9)
    with pytest.raises(AdaptSegError, match="NaN"):
        acquisition.on_train_epoch_end(trainer, Broken())
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]
    assert acquisition.round == acquisition.store.rounds == 1


def test_an_acquisition_needs_a_domain_pair_with_a_pool(tmp_path: Path):
    class Other(LightningDataModule):
        pass

    with pytest.raises(AdaptSegError, match="DomainPair"):
        prepare(CBDA(), Other(), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(AdaptSegError, match=r"data\.target is missing: an acquisition needs a pool"):
        prepare(CBDA(), DomainPair(target=None, source=Pool(), workers=0), tmp_path)


def test_evaluation_needs_no_store(tmp_path: Path):
    """`adaptseg test` builds the acquisition of the recipe too; nothing may come of it."""
    CBDA().setup(Trainer(logger=False, accelerator="cpu"), Painter(), "test")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_before_its_round_is_refused(tmp_path: Path):
    acquisition = CBDA(budget=0.2)
    trainer, module = prepare(acquisition, pair(), tmp_path)
    acquisition.on_train_start(trainer, module)
    set_step(trainer, 4)
    acquisition.on_train_start(trainer, module)
    set_step(trainer, 5)
    with pytest.raises(AdaptSegError, match=r"saved after step 5 and before the round of that step.*last\.ckpt"):
        acquisition.on_train_start(trainer, module)
    acquisition.on_train_epoch_end(trainer, module)
    acquisition.on_train_start(trainer, module)


# ---- what a round leaves behind


def test_history_rows(tmp_path: Path):
    acquisition = CBDA(budget=0.3)
    bought = campaign(acquisition, tmp_path)
    store = acquisition.store
    before = 0
    for number, row in enumerate(acquisition.history, 1):
        spent = before + sum(int(mask.sum()) for mask in bought[number - 1].values())
        work = Work(**{field.name: row[field.name] for field in fields(Work)})  # itself proved in test_costs.py
        assert row == {
            "round": number,
            "step": [5, 9, 12, 14, 15][number - 1],
            "spent_before": before,
            "spent": spent,
            "void": store.void(number),
            "pool_pixels": sum(h * w for h, w in SIZES.values()),
            "balance": label_balance_entropy(torch.from_numpy(store.class_counts(number))),
            **asdict(work),
            "hours": round(LabelCost().hours(work), 4),
        }
        before = spent


def test_manifests_say_who_asked(tmp_path: Path):
    one, other = CBDA(budget=0.3, seed=7), CBDA(budget=0.2)
    campaign(one, tmp_path / "one", rounds=1)
    campaign(other, tmp_path / "other", rounds=1)
    manifest = one.store.manifest(1)
    assert manifest["seed"] == 7
    assert manifest["config_hash"] == storage.content_hash(one.settings()) != other.store.manifest(1)["config_hash"]
    assert manifest["query_checksum"] == one.checksum
    registry = json.loads((tmp_path / "one" / "labels" / "registry.json").read_text())
    assert registry["images"] == {key: list(size) for key, size in SIZES.items()}


def test_snapshots_show_what_the_round_saw(tmp_path: Path):
    pool = Pool({f"{number:02d}": (12, 20) for number in range(10)})
    acquisition = CBDA(budget=0.2, score="entropy", balance=False)
    data = DomainPair(target=pool, workers=0)
    trainer, module = prepare(acquisition, data, tmp_path)
    set_step(trainer, 5)
    acquisition.on_train_epoch_end(trainer, module)
    assert sorted(acquisition.snapshots) == ["00", "02", "04", "06"]
    for batch in data.pool_loader(0, 1):
        if (key := batch.keys[0]) in acquisition.snapshots:
            p = module.predict_probabilities(batch.image, size=(12, 20))[0, 0]
            np.testing.assert_array_equal(acquisition.snapshots[key].prediction, p.argmax(0))
            np.testing.assert_allclose(acquisition.snapshots[key].score, -(p * p.log()).sum(0).detach(), rtol=1e-5)


def test_a_round_that_buys_nothing_is_committed(tmp_path: Path):
    """What a stop in the middle of all budgets looks like: the pool ran out in round 1."""
    acquisition = CBDA(budget=1.0, unit="pixel", schedule=[0.2, 0.4], shares=[0.999, 0.001], max_share_per_image=0.9)
    with pytest.warns(UserWarning, match="pixels less than the budget asks"):
        _, second = campaign(acquisition, tmp_path)
    assert sum(int(mask.sum()) for mask in second.values()) == 0
    assert acquisition.store.manifest(2)["images"] == 0
    assert acquisition.round == 2


# ---- whole fits


class Clock(Callback):
    """Notes (event, step) in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.events.append(("validated", trainer.global_step))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rounds = sum(c.round for c in trainer.callbacks if isinstance(c, CBDA))
        if rounds > sum(event == "round" for event, _ in self.events):
            self.events.append(("round", trainer.global_step))
        self.events.append(("tick", trainer.global_step))


def fit(
    folder: Path, acquisition: CBDA | None, *, steps: int = 20, every: int = 3, val: bool = True, **data: Any
) -> tuple[Trainer, list[tuple[str, int]]]:
    """A real fit of a tiny network."""
    pool = Pool(SQUARE)
    datamodule = DomainPair(target=pool, source=pool, val=pool if val else None, workers=0, **data)
    clock = Clock()
    trainer = Trainer(
        **TRAINER_DEFAULTS | {"log_every_n_steps": 1},
        max_steps=steps,
        check_val_every_n_epoch=every,
        accelerator="cpu",
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        logger=CsvLogger(folder),
        callbacks=[*([acquisition] if acquisition else []), clock, ValidationTimes(), Report()],
    )
    method = Supervised(network=tiny_network, class_table=TABLE)
    trainer.fit(method, datamodule)
    assert trainer.global_step == steps
    return trainer, clock.events


@pytest.mark.parametrize(
    ("schedule", "every", "tick", "validated", "rounds"),
    [
        ([0.25, 0.5], 3, None, [3, 5, 6, 9, 10, 12, 15, 18, 20], [5, 10]),
        ([0.25, 0.5], 100, None, [5, 10, 20], [5, 10]),
        ([0.25, 0.5], 1, 5, [5, 10, 15, 20], [5, 10]),
        ([0.1, 0.2], 2, 3, [3, 6, 12, 18, 20], [3, 6]),
    ],
)
def test_validation_before_every_round_every_n_ticks_and_at_the_end(
    tmp_path: Path, schedule: list[float], every: int, tick: int | None, validated: list[int], rounds: list[int]
):
    acquisition = CBDA(budget=0.3, schedule=schedule)
    _, events = fit(tmp_path, acquisition, every=every, tick=tick)
    length = tick or 1
    assert [step for event, step in events if event == "tick"] == [
        *range(length, 20, length), 20,
    ]  # fmt: skip
    assert [step for event, step in events if event == "validated"] == validated
    assert [step for event, step in events if event == "round"] == rounds
    for step in rounds:
        assert events.index(("validated", step)) < events.index(("round", step))
    assert all("miou" in row for row in acquisition.history)


def test_what_a_fit_leaves_on_disk(tmp_path: Path):
    acquisition = CBDA(budget=0.3, schedule=[0.25, 0.5])
    trainer, _ = fit(tmp_path, acquisition)
    with (tmp_path / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{name: str(value) for name, value in row.items()} for row in acquisition.history] == rows
    assert [row["step"] for row in rows] == ["5", "10"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 20
    assert result["seconds"] > 0
    assert result["rounds"] == acquisition.history
    spent = json.loads((tmp_path / "spending.json").read_text())
    assert spent["strategy"] == {"class": "CBDA", **acquisition.settings()}
    assert (
        sum(row["regions"] for row in spent["rounds"]) == spent["total"]["regions"] == acquisition.history[1]["regions"]
    )
    assert spent["total"]["hours"] == acquisition.history[1]["hours"] > 0
    assert result["val"]["miou"] == final_scores(trainer)["miou"]
    assert set(result["val"]["iou"]) == set(TABLE.names)
    assert LabelStore.open(tmp_path / "labels").spent(2) == acquisition.history[-1]["spent"]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        metrics = [(int(row["step"]), row["metric"], float(row["value"])) for row in csv.DictReader(file)]
    losses = {step: value for step, name, value in metrics if name == "train/loss"}
    assert sorted(losses) == list(range(20))
    # Before anything is bought the target has no loss; from the step after the first round on it has one.
    target = {step: value for step, name, value in metrics if name == "train/target"}
    assert {step for step, value in target.items() if value > 0} == set(range(5, 20))
    spent = [(step, value) for step, name, value in metrics if name == "round/spent"]
    assert [value for _, value in spent] == [row["spent"] for row in acquisition.history]


def test_a_fit_without_validation_or_acquisition(tmp_path: Path):
    acquisition = CBDA(budget=0.3, schedule=[0.25, 0.5])
    _, events = fit(tmp_path / "no_val", acquisition, val=False)
    assert [step for event, step in events if event == "round"] == [5, 10]
    assert not [step for event, step in events if event == "validated"]
    assert json.loads((tmp_path / "no_val" / "result.json").read_text())["val"] is None
    assert "miou" not in (tmp_path / "no_val" / "rounds.csv").read_text()
    _, events = fit(tmp_path / "plain", None, every=7)
    assert [step for event, step in events if event == "validated"] == [7, 14, 20]
    result = json.loads((tmp_path / "plain" / "result.json").read_text())
    assert result["rounds"] == []
    assert not (tmp_path / "plain" / "rounds.csv").exists()
    assert not (tmp_path / "plain" / "labels").exists()


def test_training_sees_the_bought_labels_and_no_others(tmp_path: Path):
    """Every target batch of the fit, against the store as it was at its step."""
    acquisition = CBDA(budget=0.3, schedule=[0.25, 0.5])
    seen: list[tuple[int, str, np.ndarray]] = []

    class Watch(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            for key, bought in zip(batch.target.keys, batch.target.bought, strict=True):
                seen.append((trainer.global_step, key, bought.numpy().copy()))

    pool = Pool(SQUARE)
    datamodule = DomainPair(target=pool, source=pool, workers=0)
    trainer = Trainer(
        **TRAINER_DEFAULTS, max_steps=20, accelerator="cpu", default_root_dir=tmp_path, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, callbacks=[acquisition, Watch()],
    )  # fmt: skip
    trainer.fit(Supervised(network=tiny_network, class_table=TABLE), datamodule)
    assert len(seen) == 40
    for step, key, bought in seen:
        number = (step >= 5) + (step >= 10)
        np.testing.assert_array_equal(bought, acquisition.store.labels(key, number))
        assert ((bought == VOID) | (bought == pool.labels(key))).all()
