"""When and how a round happens inside one fit: score, select, ask, store. What is bought is a subclass's business."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from adaptseg import storage
from adaptseg.active.advice import learning_curve
from adaptseg.active.costs import LabelCost, Work
from adaptseg.active.labels import LabelStore, RoundTotals, format_checksum, query_checksum
from adaptseg.active.oracles import GroundTruth, Oracle
from adaptseg.active.stopping import Progress, Stopping, StopSet, cohens_kappa
from adaptseg.data.pair import pair_of
from adaptseg.distributed import all_reduce_sum, barrier
from adaptseg.errors import AdaptSegError
from adaptseg.metrics import label_balance_entropy

Item = TypeVar("Item")


class Snapshot(NamedTuple):
    """One pool image as a round saw it, for pictures, on the pool grid (H, W)."""

    prediction: NDArray[np.int64]
    score: NDArray[np.float32]


class Acquisition(Callback, ABC):
    """Base of every acquisition: fires at the end of the ticks that `round_steps` names, or before the first step (0).

    State: round number, checksum of its query, the table of rounds, whether and why buying ended, and what the network
    said of the stop set, in the checkpoint (`state_dict`); the labels themselves in `<run>/labels`. A label store that
    is ahead of the checkpoint (a kill between the two) is ignored until the round is redone; one that is behind it
    raises.

    Args:
        cost: what a label costs a person.
        oracle: who answers a query; default: the pool's ground truth.
        scratch: folder for score maps during a round (4 bytes a pool pixel at most); default: inside the run directory.
        stop: rules that end buying before the schedule does; null = none.
        seed: filled in from `seed_everything`.
    """

    def __init__(
        self, *, cost: LabelCost, oracle: Oracle | None, scratch: str | None, stop: Stopping | None, seed: int
    ) -> None:
        self.cost = cost
        self.oracle = oracle or GroundTruth()
        self.scratch, self.stop, self.seed = scratch, stop, seed
        self.round = 0
        self.checksum = ""
        self.history: list[dict[str, Any]] = []
        self.stopped: dict[str, Any] | None = None
        self.said: Tensor | None = None
        self.stop_set: StopSet | None = None
        self.snapshots: dict[str, Snapshot] = {}
        self.store: LabelStore

    # ---- to be written by an acquisition

    @property
    @abstractmethod
    def rounds(self) -> int:
        """How many rounds there will be."""

    @abstractmethod
    def round_steps(self, max_steps: int, tick: int) -> list[int]:
        """The optimiser steps (multiples of the tick) after which the rounds fire, ascending; 0 = before the first."""

    @abstractmethod
    def check_budget(self, sizes: dict[str, tuple[int, int]]) -> None:
        """Raise AdaptSegError if the budget buys nothing from a pool of these (H, W)."""

    @abstractmethod
    def planned(self, sizes: dict[str, tuple[int, int]], round: int) -> int:
        """Pixels that rounds 1..`round` buy together from a pool of these (H, W), if it has them."""

    @abstractmethod
    def query(self, trainer: Trainer, module: LightningModule, folder: Path) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """This rank's share of the next round: (key, pixels to buy (H, W) bool). Every rank iterates it to its end.

        Once the network has learned something, the `stop_set`, if there is one, is told what it says of each image.
        """

    @abstractmethod
    def scratch_bytes(self, sizes: dict[str, tuple[int, int]]) -> int:
        """Largest scratch space of one round over all ranks."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Plain values that decide what is bought; hashed into every manifest."""

    def work(self, key: str, wanted: NDArray[np.bool_]) -> Work:
        """What the answer for one image of the round in the making asked of a person. The store holds the answer as
        round `self.round + 1`. By default a click for each pixel.
        """
        return Work(clicks=int(wanted.sum()))

    @property
    def judged_in_rounds(self) -> bool:
        """Whether the network is validated before each round; else a method that keeps its networks judges all of them
        in the last validation."""
        return True

    # ---- Lightning's hooks

    def state_dict(self) -> dict[str, Any]:
        names = ("round", "checksum", "history", "stopped", "said")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.round, self.checksum = state_dict["round"], state_dict["checksum"]
        self.history = list(state_dict["history"])
        self.stopped, self.said = state_dict.get("stopped"), state_dict.get("said")

    @property
    def state_key(self) -> str:
        return "active"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        data = pair_of(trainer)
        if data.target_labels is not None:
            raise AdaptSegError("data.target_labels labels the pool already: leave out it or the `active:` block")
        self.oracle.bind(data.pool)
        self.fire_at = self.round_steps(trainer.max_steps, data.tick_length(trainer.max_steps))
        late = [step for step in self.fire_at if step >= trainer.max_steps]
        if late:
            raise AdaptSegError(
                f"active.schedule puts a round after step {late[0]}, but training ends at step {trainer.max_steps}: "
                "labels bought then would never be used"
            )
        if len(set(self.fire_at)) < len(self.fire_at):
            raise AdaptSegError(
                f"active.schedule puts two rounds into one tick (rounds after steps {self.fire_at}); shorten data.tick"
            )
        sizes = {key: data.pool_grid(key) for key in data.pool.keys}
        self.check_budget(sizes)
        if self.stop is not None:
            self._check_stop(self.stop, sizes, is_judged=data.val is not None)
        with storage.scratch(self._scratch_folder(trainer), self.scratch_bytes(sizes), "the maps of one round"):
            pass  # too little disk is known now, not at the first round
        if trainer.is_global_zero:
            LabelStore.create(Path(trainer.default_root_dir) / "labels", sizes, data.class_table)
        trainer.strategy.barrier("label store created")
        self.store = LabelStore.open(Path(trainer.default_root_dir) / "labels")

    def _check_stop(self, stop: Stopping, sizes: dict[str, tuple[int, int]], *, is_judged: bool) -> None:
        planned = [self.planned(sizes, number) for number in range(1, self.rounds + 1)]
        pool = sum(math.prod(size) for size in sizes.values())
        stop.check(planned, pool, is_judged=is_judged, begins_untrained=self.fire_at[0] == 0)
        self.stop_set = None if stop.agreement is None else StopSet(sizes, stop.sample)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.round > self.store.rounds:
            raise AdaptSegError(
                f"the checkpoint is in round {self.round}, but the label store {self.store.folder} holds only "
                f"{self.store.rounds}: restore its files, or start over with --fresh"
            )
        if self.round and not self.store.matches(self.round, self.checksum):
            raise AdaptSegError(
                f"round {self.round} of the label store {self.store.folder} is not the one this checkpoint was trained "
                "on (query checksums differ): restore its files, or start over with --fresh"
            )
        if self.round:
            pair_of(trainer).bought = self.store.view(self.round)
        if self.is_due(0):
            self._acquire(trainer, pl_module)
        self._end_run_if_stopped(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step and self.is_due(trainer.global_step):
            raise AdaptSegError(
                f"--ckpt_path: this checkpoint was saved after step {trainer.global_step} and before the round of that "
                "step, which would be lost; resume from checkpoints/last.ckpt"
            )

    def is_due(self, step: int) -> bool:
        """Whether a round fires once `step` optimiser steps are done."""
        return self.stopped is None and self.round < len(self.fire_at) and step >= self.fire_at[self.round]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_due(trainer.global_step):
            self._acquire(trainer, pl_module)

    # ---- one round

    def _acquire(self, trainer: Trainer, module: LightningModule) -> None:
        """Buy one round, unless a rule ends buying. Leaves modes, gradients and random state of the training alone."""
        was_training = [m for m in module.modules() if m.training]
        devices = [module.device] if module.device.type == "cuda" else []
        module.eval()
        sizes = {key: (height, width) for key, (height, width) in self.store.sizes.items()}
        space = storage.scratch(self._scratch_folder(trainer), self.scratch_bytes(sizes), "the maps of one round")
        with torch.no_grad(), torch.random.fork_rng(devices), space as folder:
            checksum, wanted = self._spool_query(trainer, module, folder)
            agreement = self._agreement()
            self._judge_stop(trainer, wanted, agreement)
            if self.stopped is not None or self.store.matches(self.round + 1, checksum):
                totals = None  # the latter: bought before a kill; the answers are still valid
            else:
                totals = self._ask(self.round + 1, folder, checksum, trainer.is_global_zero)
            work = Work() if self.stopped is not None else self._work(folder)
        for m in was_training:
            m.training = True
        if self.stopped is not None:
            self._end_run_if_stopped(trainer)
            return
        self.round, self.checksum = self.round + 1, checksum
        if totals is not None:
            self.store = LabelStore.open(self.store.folder)
        pair_of(trainer).bought = self.store.view(self.round)
        self.history.append(self._row(trainer, agreement, work))
        if (told := getattr(module, "on_labels_bought", None)) is not None:
            told(self.round)

    def _spool_query(self, trainer: Trainer, module: LightningModule, folder: Path) -> tuple[str, int]:
        """Write this rank's query, one bit a pixel, and return checksum and pixels of the query of all ranks.

        The query must be complete, and compared with what the store already holds, before anyone is asked.
        """
        total = pixels = 0
        self._spooled: list[str] = []
        for key, wanted in self.query(trainer, module, folder):
            if wanted.any():
                np.save(folder / f"query{len(self._spooled)}.npy", np.packbits(wanted))
                self._spooled.append(key)
                total += query_checksum([(key, np.argwhere(wanted))])
                pixels += int(wanted.sum())
        # Sums wrap at 2**64, of which 2**63 is a divisor.
        checksum, pixels = all_reduce_sum(np.array([total % 2**63, pixels], np.int64)).tolist()
        return format_checksum(checksum % 2**63), pixels

    def _agreement(self) -> float | None:
        """Kappa of what the network says of the stop set now and said a round ago, if it did."""
        said = None if self.stop_set is None else self.stop_set.collect()
        if said is None:
            return None
        before, self.said = self.said, said
        return None if before is None else cohens_kappa(before, said)

    def _judge_stop(self, trainer: Trainer, wanted: int, agreement: float | None) -> None:
        """Note in `stopped` that buying ends, and why, if a rule says so."""
        if self.stop is None:
            return
        spent, pool = self.store.spent(self.round), self._pool_pixels()
        shares, miou = learning_curve(self.history)
        if (now := final_scores(trainer).get("miou")) is not None:
            shares, miou = [*shares, spent / pool], [*miou, now]
        agreements = [row.get("agreement") for row in self.history] + [agreement]
        known = [value for value in agreements if value is not None]
        why = self.stop.verdict(Progress(spent, wanted, pool, (shares, miou), known))
        if why is not None:
            books = {"round": self.round, "step": trainer.global_step, "then": self.stop.then}
            self.stopped, self.snapshots = {**books, "reason": why}, {}

    def _end_run_if_stopped(self, trainer: Trainer) -> None:
        """Make the step at which buying ended the run's last, if it is to be: then everything that a run does at its
        end happens now, also after a resume."""
        if self.stopped is not None and self.stopped["then"] == "end":
            trainer.fit_loop.epoch_loop.max_steps = self.stopped["step"]

    def _ask(self, round: int, folder: Path, checksum: str, is_global_zero: bool) -> RoundTotals:
        barrier()  # other ranks may still be comparing their query with the manifests that `prepare` moves
        if is_global_zero:
            self.store.prepare(round)
        barrier()
        mine = self.store.stage(round, self._answers(folder))
        summed = all_reduce_sum(np.array([mine.spent, mine.void, mine.images, *mine.class_counts], np.int64))
        totals = RoundTotals(int(summed[0]), int(summed[1]), int(summed[2]), summed[3:])
        barrier()
        if is_global_zero:
            config = storage.content_hash(self.settings())
            self.store.seal(round, totals, query_checksum=checksum, config_hash=config, seed=self.seed)
        barrier()
        return totals

    def _answers(self, folder: Path) -> Iterable[tuple[str, NDArray[np.uint8], NDArray[np.bool_]]]:
        for key, wanted in self._queries(folder):
            yield key, self.oracle.answer(key, wanted), wanted

    def _queries(self, folder: Path) -> Iterable[tuple[str, NDArray[np.bool_]]]:
        """This rank's query, as spooled."""
        for number, key in enumerate(self._spooled):
            height, width = self.store.sizes[key]
            bits = np.unpackbits(np.load(folder / f"query{number}.npy"), count=height * width)
            yield key, bits.reshape(height, width).astype(bool)

    def _work(self, folder: Path) -> Work:
        """What the answers of all ranks asked of people. Read from the store, so that a redone round counts alike."""
        mine = sum((self.work(key, wanted) for key, wanted in self._queries(folder)), Work())
        return Work(*all_reduce_sum(np.array(astuple(mine), np.int64)).tolist())

    def _row(self, trainer: Trainer, agreement: float | None, work: Work) -> dict[str, Any]:
        """A row of the table of rounds; mIoU is that of the network that chose the pixels, before it saw them."""
        if self.history:
            work = work + Work(**{field.name: self.history[-1][field.name] for field in fields(Work)})
        return {
            "round": self.round,
            "step": trainer.global_step,
            "spent_before": self.store.spent(self.round - 1),
            "spent": self.store.spent(self.round),
            "void": self.store.void(self.round),
            "pool_pixels": self._pool_pixels(),
            "balance": label_balance_entropy(torch.from_numpy(self.store.class_counts(self.round))),
            **asdict(work),
            "hours": round(self.cost.hours(work), 4),
            **({} if agreement is None else {"agreement": agreement}),
            **final_scores(trainer),
        }

    def _pool_pixels(self) -> int:
        return sum(math.prod(size) for size in self.store.sizes.values())

    def _scratch_folder(self, trainer: Trainer) -> Path:
        return Path(self.scratch or trainer.default_root_dir)


def final_scores(trainer: Trainer, prefix: str = "val") -> dict[str, Any]:
    """mIoU, worst class and its IoU of the latest validation as plain values; empty without a validation set.

    Further means, if there are any, are called like their metrics below `val/`: over a subset of the classes
    (`miou_16`), of a further set (`bdd100k/miou`).
    """
    metrics, start = trainer.callback_metrics, f"{prefix}/iou/"
    scores = {name.removeprefix(start): float(value) for name, value in metrics.items() if name.startswith(start)}
    if not scores:
        return {}
    worst = min(scores, key=scores.__getitem__)
    means = [name for name in metrics if re.fullmatch(rf"{prefix}/([^/]+/)?miou(_\w+)?", name)]
    further = sorted(name for name in means if name != f"{prefix}/miou")
    return {
        "miou": float(metrics[f"{prefix}/miou"]),
        "worst_class": worst,
        "worst_iou": scores[worst],
        **{name.removeprefix(f"{prefix}/"): float(metrics[name]) for name in further},
    }


def tracked(trainer: Trainer, items: Iterable[Item], description: str) -> Iterable[Item]:
    """Iterate under a bar of the run's progress, if the trainer's progress bar can show one."""
    track = getattr(trainer.progress_bar_callback, "track", None)
    return items if track is None else track(items, description)
