"""What every method promises, on real trainers: order and randomness survive a resume, NaN is found, scores are those
of the whole set, checkpoints rebuild their networks, predictions and validations come when and as they should.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from numpy.typing import NDArray
from PIL import Image
from tiny import TinySegmenter, tiny_network
from torch import Tensor, nn

from adaptseg import known_warnings, lightning_cli, networks
from adaptseg.active import CBDA
from adaptseg.callbacks.predictions import PredictionWriter
from adaptseg.callbacks.validation import ValidationTimes
from adaptseg.classes import STREETS, VOID, ClassTable, SemanticClass
from adaptseg.data import Batch, DomainPair, Streets
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.sampling import scene_index
from adaptseg.errors import AdaptSegError
from adaptseg.loggers import CsvLogger
from adaptseg.methods import Acceleration, Optimization, StepResult, Supervised
from adaptseg.networks import Inference, Output

SIZE = (32, 64)
SOURCE = Streets("game", "train", count=5, size=SIZE)
TARGET = Streets("street", "train", count=3, size=SIZE)
VAL = Streets("street", "val", count=3, size=(40, 72))
SEED = 3


@pytest.fixture(autouse=True)
def _as_on_the_command_line() -> None:
    quiet()


def quiet() -> None:
    known_warnings.silence("fit")
    # DomainPair serves the rest of a tick by itself; Lightning only knows loaders with a state.
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
    warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")  # no validation set


class Forgetful(TinySegmenter):
    """Drops half of its features."""

    def forward(self, images: Tensor, *, crop: Any = None, token_mask: Tensor | None = None) -> Output:
        features = nn.functional.dropout(self.encoder(images), 0.5, self.training)
        return Output(self.head(features), [features], {})


class Poisoned(TinySegmenter):
    """Cannot bear a scene that is white all over."""

    def forward(self, images: Tensor, *, crop: Any = None, token_mask: Tensor | None = None) -> Output:
        features = self.encoder(images)
        return Output(self.head(features) / (images.amin((1, 2, 3), keepdim=True) < 1.5), [features], {})


class OneWhite(Streets):
    def image(self, key: str) -> NDArray[np.uint8]:
        return super().image(key) if key != self.keys[2] else np.full((*SIZE, 3), 255, np.uint8)


def confident(num_classes: int) -> TinySegmenter:
    """Classes far enough apart that rounding does not decide between them."""
    network = tiny_network(num_classes)
    with torch.no_grad():
        network.head.weight.mul_(20)
    return network


def network_of(kind: type[TinySegmenter], seed: int = 1, **settings: Any) -> Any:
    def make(num_classes: int) -> TinySegmenter:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return kind(num_classes, **settings)

    return make


def method(**settings: Any) -> Supervised:
    return Supervised(**{"network": tiny_network, "class_table": STREETS, "seed": SEED, **settings})


def pair(**settings: Any) -> DomainPair:
    defaults = {
        "source": SOURCE,
        "target": TARGET,
        "batch_size": 2,
        "workers": 0,
        "tick": 4,
        "flip": True,
        "seed": SEED,
    }
    return DomainPair(**{**defaults, **settings})


def trainer(folder: Path, *callbacks: Callback, steps: int = 10, **settings: Any) -> Trainer:
    return Trainer(
        **{
            **lightning_cli.TRAINER_DEFAULTS,
            "log_every_n_steps": 1,
            "max_steps": steps,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            "default_root_dir": folder,
            "callbacks": list(callbacks),
            **settings,
        }
    )


class Recorder(Callback):
    """What every micro-batch was, and the first random number of its step; a checkpoint after chosen steps."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.steps: list[tuple[Any, ...]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        keys = [domain.keys for domain in (batch.source, batch.target) if domain is not None]
        self.steps.append((trainer.global_step, keys, float(torch.rand(())), float(outputs["loss"])))
        path = self.folder / f"step{trainer.global_step}.ckpt" if self.folder else None
        if path and not path.exists() and trainer.global_step:  # once per step: not amid an accumulation
            trainer.save_checkpoint(path)


def state_of(fit: Trainer) -> list[Tensor]:
    optimizer = fit.optimizers[0].state_dict()
    buffers = [value for state in optimizer["state"].values() for value in state.values() if isinstance(value, Tensor)]
    return [*fit.lightning_module.state_dict().values(), *buffers, torch.tensor(optimizer["param_groups"][0]["lr"])]


# ---- resume


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resume_after_any_step_repeats_batches_draws_weights_and_optimizer(tmp_path: Path, accumulate: int) -> None:
    def fit(recorder: Recorder, checkpoint: Path | None = None) -> Trainer:
        settings = method(network=network_of(Forgetful), optimization=Optimization(lr=0.01, warmup_steps=3))
        run = trainer(tmp_path, recorder, accumulate_grad_batches=accumulate)
        run.fit(settings, pair(), ckpt_path=checkpoint)
        return run

    whole = Recorder(tmp_path)
    expected = state_of(fit(whole))
    assert len(whole.steps) == 10 * accumulate
    assert len({draw for _, _, draw, _ in whole.steps}) == 10 * accumulate  # every micro-batch draws its own numbers
    for step in (1, 3, 4, 6, 8, 9):
        resumed = Recorder()
        state = state_of(fit(resumed, tmp_path / f"step{step}.ckpt"))
        assert resumed.steps == whole.steps[step * accumulate :]
        for a, b in zip(state, expected, strict=True):
            assert torch.equal(a, b)


def test_metrics_of_a_resume_are_those_of_the_whole_run(tmp_path: Path) -> None:
    """Row for row, after two interruptions between which a tick ended."""

    class Stop(Exception):
        pass

    class StopAfter(Callback):
        def __init__(self, step: int) -> None:
            self.step = step

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == self.step:
                raise Stop

    def fit(folder: Path, *callbacks: Callback) -> None:
        logger = CsvLogger(folder)
        last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        run = trainer(folder, ValidationTimes(), *callbacks, last, logger=logger, log_every_n_steps=1)
        checkpoint = folder / "last.ckpt"
        logger.rewind(torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint.exists() else 0)
        run.fit(method(), pair(val=VAL), ckpt_path=checkpoint if checkpoint.exists() else None)

    fit(tmp_path / "whole")
    for step in (5, 9):
        with pytest.raises(Stop):
            fit(tmp_path / "cut", StopAfter(step))
    fit(tmp_path / "cut")
    whole, cut = ((tmp_path / name / "metrics.csv").read_text() for name in ("whole", "cut"))
    assert cut == whole
    steps = [int(line.split(",")[0]) for line in whole.splitlines() if ",train/loss," in line]
    assert steps == list(range(10))


def test_ranks_draw_different_numbers() -> None:
    @dataclass
    class Rank:
        global_rank: int
        fit_loop: Any
        global_step: int = 5
        accumulate_grad_batches: int = 1

    supervised = method()
    draws = set()
    for rank in range(4):
        stand_in = Rank(rank, fit_loop=trainer(Path(), steps=10).fit_loop)
        supervised._trainer = stand_in  # type: ignore[assignment]
        supervised.on_train_batch_start(Batch(None, None), 0)
        draws.add(float(torch.rand(())))
    assert len(draws) == 4


# ---- accumulation


def test_accumulated_halves_train_like_the_whole_batch(tmp_path: Path) -> None:
    """On scenes without void, where the mean of means is the mean."""

    class Solid(Streets):
        def labels(self, key: str) -> NDArray[np.uint8]:
            labels = super().labels(key)
            return np.where(labels == VOID, np.uint8(0), labels)

    source = Solid("game", "train", count=5, size=SIZE)
    states = []
    for batch_size, accumulate in ((2, 1), (1, 2)):
        run = trainer(tmp_path, steps=5, accumulate_grad_batches=accumulate)
        run.fit(method(optimization=Optimization(lr=0.01)), pair(source=source, target=None, batch_size=batch_size))
        assert run.global_step == 5
        states.append(list(run.lightning_module.state_dict().values()))
    for whole, halves in zip(*states, strict=True):
        torch.testing.assert_close(whole, halves, rtol=1e-4, atol=1e-6)


# ---- acceleration


def test_channels_last_changes_the_layout_alone(tmp_path: Path) -> None:
    states = []
    for fast in (False, True):
        model = method(optimization=Optimization(lr=0.01), acceleration=Acceleration(channels_last=fast))
        trainer(tmp_path, steps=4).fit(model, pair())
        states.append(model.student.state_dict())
    kernels = [value for value in states[1].values() if value.ndim == 4 and value.shape[2] > 1]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in kernels)
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_compiled_networks_train_and_keep_the_names_of_their_weights(tmp_path: Path) -> None:
    warnings.filterwarnings("ignore", module="torch")  # of the compiler's own making
    states = []
    for fast in (False, True):
        model = method(optimization=Optimization(lr=0.01), acceleration=Acceleration(compile=fast))
        trainer(tmp_path, steps=2).fit(model, pair())
        assert (model.student._compiled_call_impl is not None) == fast
        states.append(model.student.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("every", "expected"), [(3, [2, 3, 5, 7, 8, 11]), (0, [3, 7, 11])])
def test_losses_are_logged_where_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, expected: list[int]
) -> None:
    """Where Lightning writes them, and at the end of each tick of four steps, whose line shows the loss."""
    model, logged = method(), list[int]()

    def log(name: str, value: Tensor, **_: Any) -> None:
        if name == "train/loss":
            logged.append(model.global_step)

    monkeypatch.setattr(model, "log", log)
    trainer(tmp_path, steps=12, log_every_n_steps=every).fit(model, pair(val=None))
    assert logged == expected


# ---- non-finite losses


def first_white(batch_size: int = 2) -> int:
    samples = (n for n in range(100) if scene_index(n, len(SOURCE.keys), seed=SEED, stream="source") == 2)
    return next(samples) // batch_size


@pytest.mark.parametrize(
    ("every", "tick", "seen_after"),
    [(1, 20, 1), (4, 20, 4), (1000, 5, 5), (0, 5, 5)],  # by the log, or at the end of the tick
)
def test_a_poisonous_scene_is_named_with_its_step(tmp_path: Path, every: int, tick: int, seen_after: int) -> None:
    white = OneWhite("game", "train", count=5, size=SIZE)
    step = first_white()
    sound = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    recorder = Recorder()
    run = trainer(tmp_path, recorder, sound, steps=20, log_every_n_steps=every)
    with pytest.raises(AdaptSegError) as error:
        run.fit(method(network=network_of(Poisoned)), pair(source=white, tick=tick))
    message = str(error.value)
    assert message.startswith(f"the loss became non-finite at step {step} (scenes ")
    drawn = {SOURCE.keys[scene_index(2 * step + n, 5, seed=SEED, stream="source")] for n in (0, 1)}
    drawn |= {TARGET.keys[scene_index(2 * step + n, 3, seed=SEED, stream="target")] for n in (0, 1)}
    assert f"(scenes {', '.join(sorted(drawn))}); lower model.optimization.lr" in message
    assert white.keys[2] in drawn
    assert run.global_step < (step // seen_after + 1) * seen_after
    assert [math.isfinite(loss) for *_, loss in recorder.steps[:step]] == [True] * step
    if sound.last_model_path or (tmp_path / "last.ckpt").exists():  # nothing poisoned was saved
        weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in weights.values())


def test_poisoned_weights_are_found_at_the_last_step(tmp_path: Path) -> None:
    class Poison(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 9:
                next(pl_module.parameters()).data.fill_(math.nan)

    with pytest.raises(AdaptSegError, match="the loss became non-finite at step 9 "):
        trainer(tmp_path, Poison(), log_every_n_steps=7).fit(method(), pair())


# ---- evaluation


def reference_scores(model: Supervised, scenes: Streets) -> tuple[NDArray[np.float64], float, float]:
    """IoU of the whole set, its accuracy, and the mean over images of their mIoU, pixel by pixel in numpy."""
    confusion = np.zeros((19, 19), np.int64)
    per_image = []
    for batch in pair(val=scenes, target_size=SIZE)._evaluation_loader(scenes, scenes.keys, True):
        with torch.no_grad():
            logits = model.student(batch.image).logits
            size = batch.labels.shape[-2:]
            predicted = nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)
        one = np.zeros_like(confusion)
        for truth, guess in zip(batch.labels.flatten().tolist(), predicted.flatten().tolist(), strict=True):
            if truth != VOID:
                one[truth, guess] += 1
        confusion += one
        per_image.append(np.nanmean(iou_of(one)))
    return iou_of(confusion), confusion.trace() / confusion.sum(), float(np.mean(per_image))


def iou_of(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    truth, hits = confusion.sum(1), confusion.diagonal()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(truth > 0, hits / (truth + confusion.sum(0) - hits), np.nan)


class Trainless(Streets):
    """No pixel of class 16 or 5."""

    def labels(self, key: str) -> NDArray[np.uint8]:
        labels = super().labels(key)
        return np.where(np.isin(labels, (5, 16)), np.uint8(VOID), labels)


@pytest.mark.parametrize("split", ["val", "test"])
def test_scores_are_those_of_the_whole_set(tmp_path: Path, split: str) -> None:
    model = method(network=confident).eval()
    scenes = Trainless("street", "val", count=3, size=(40, 72))
    iou, accuracy, mean_of_images = reference_scores(model, scenes)
    run = trainer(tmp_path)
    data = pair(**{split: scenes}, target_size=SIZE)
    for _ in range(2):  # the second time from zero again
        evaluate = run.validate if split == "val" else run.test
        (scores,) = evaluate(model, data, verbose=False)
        assert scores[f"{split}/miou"] == pytest.approx(np.nanmean(iou), rel=1e-5)
        assert scores[f"{split}/miou"] != pytest.approx(mean_of_images, rel=1e-3)
        assert scores[f"{split}/worst"] == pytest.approx(np.nanmin(iou), abs=1e-7)
        assert scores[f"{split}/accuracy"] == pytest.approx(accuracy, rel=1e-5)
        present = {name: value for name, value in zip(STREETS.names, iou, strict=True) if not np.isnan(value)}
        assert not {"pole", "train"} & set(present)  # absent classes are left out, not zero
        logged = {name.removeprefix(f"{split}/iou/"): v for name, v in scores.items() if "/iou/" in name}
        assert logged == {name: pytest.approx(value, abs=1e-6) for name, value in present.items()}


def test_probabilities_of_any_size() -> None:
    model = method(inference=Inference(flip=True)).eval()
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    probabilities = model.predict_probabilities(images, size=(37, 50))
    assert probabilities.shape == (1, 2, 19, 37, 50)
    assert probabilities.dtype == torch.float32
    assert not probabilities.requires_grad
    torch.testing.assert_close(probabilities.sum(2), torch.ones(1, 2, 37, 50))
    expected = networks.predict_probabilities(model.student, images, size=(37, 50), inference=Inference(flip=True))
    assert torch.equal(probabilities[0], expected)


def test_more_draws_than_one_are_refused() -> None:
    model, images = method(), torch.zeros(1, 3, *SIZE)
    for draws in (0, 2):
        with pytest.raises(AdaptSegError, match=f"Supervised predicts without randomness.*{draws} without a generator"):
            model.predict_probabilities(images, size=SIZE, draws=draws)
    with pytest.raises(AdaptSegError, match="draws by dropout are asked of a TinySegmenter without an active dropout"):
        model.predict_probabilities(images, size=SIZE, generator=torch.Generator())


# ---- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "checkpoints" / "last.ckpt"
    with warnings.catch_warnings():
        quiet()
        run = trainer(folder, steps=3)
        run.fit(method(network=network_of(TinySegmenter, 5), optimization=Optimization(lr=0.05)), pair())
        run.save_checkpoint(path)
    return path


def test_a_checkpoint_rebuilds_its_student(checkpoint: Path) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["adaptseg"]["networks"].keys() == {"student"}
    for given in (checkpoint, checkpoint.parents[1]):
        student = networks.load(given, class_table=STREETS)
        assert isinstance(student, TinySegmenter)
        assert student.class_table == STREETS
        assert student.normalization == (IMAGENET_MEAN, IMAGENET_STD)
        weights = student.state_dict()
        assert {f"student.{name}" for name in weights} == set(saved["state_dict"])
        assert all(torch.equal(saved["state_dict"][f"student.{name}"], value) for name, value in weights.items())


def test_a_method_starts_from_weights_and_from_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    model = method(network=network_of(TinySegmenter, 9), init_from=str(checkpoint.parents[1]))
    for name, value in networks.load(checkpoint).state_dict().items():
        assert torch.equal(model.student.state_dict()[name], value)
    recorder = Recorder()
    run = trainer(tmp_path, recorder, steps=2)
    run.fit(model, pair())
    assert [step for step, *_ in recorder.steps] == [1, 2]
    assert all(value["momentum_buffer"] is not None for value in run.optimizers[0].state_dict()["state"].values())
    assert model.training


def test_weights_for_other_classes_or_another_network_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = ClassTable("other", tuple(SemanticClass(f"c{number}", (0, 0, 0)) for number in range(19)))
    with pytest.raises(AdaptSegError, match=r"class table .* differs from"):
        method(class_table=other, init_from=str(checkpoint))
    with pytest.raises(AdaptSegError, match=r"model\.init_from .* holds another network than model\.network makes"):
        method(network=network_of(TinySegmenter, width=4), init_from=str(checkpoint))
    with pytest.raises(AdaptSegError, match="does not exist"):
        method(init_from=str(tmp_path / "absent.ckpt"))


def test_local_batch_norm_is_refused_under_many_processes() -> None:
    @dataclass
    class Processes:
        world_size: int

    class Normed(TinySegmenter):
        def __init__(self, num_classes: int, frozen: bool) -> None:
            super().__init__(num_classes)
            self.norm = nn.BatchNorm2d(4).train(not frozen)

    for frozen, processes in ((False, 1), (True, 2)):
        model = method(network=network_of(Normed, frozen=frozen))
        model._trainer = Processes(processes)  # type: ignore[assignment]
        model.on_fit_start()
    model = method(network=network_of(Normed, frozen=False))
    model._trainer = Processes(2)  # type: ignore[assignment]
    with pytest.raises(AdaptSegError, match=r"set trainer\.sync_batchnorm: true \(GPU\), or model\.network"):
        model.on_fit_start()
    nn.SyncBatchNorm.convert_sync_batchnorm(model)  # what trainer.sync_batchnorm does before the fit starts
    model.on_fit_start()


def test_rates_and_decay_reach_the_trainer(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=2)
    run.fit(method(optimization=Optimization(name="adamw", lr=1e-3, head_lr_factor=3, weight_decay=0.2)), pair())
    (optimizer,) = run.optimizers
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [pytest.approx(1e-3), pytest.approx(3e-3)]
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]  # the end of the decay
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2}


def test_extra_networks_of_a_subclass_are_saved_and_loaded(tmp_path: Path) -> None:
    class Doubled(Supervised):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.second = network_of(TinySegmenter, 8, width=4)(19)

        def saved_networks(self) -> dict[str, tuple[str, networks.Segmenter]]:
            return {**super().saved_networks(), "teacher": ("second.", self.second)}

        def step(self, batch: Batch) -> StepResult:
            return super().step(batch)

    model = Doubled(network=tiny_network, class_table=STREETS)
    run = trainer(tmp_path, steps=1)
    run.fit(model, pair())
    run.save_checkpoint(tmp_path / "two.ckpt")
    teacher = networks.load(tmp_path / "two.ckpt", "teacher")
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), model.second.parameters(), strict=True))


# ---- predictions


class Filed(Streets):
    """Scenes in sub-folders whose labels nobody may see."""

    def __init__(self) -> None:
        super().__init__("street", "val", count=2, size=(40, 72))
        self._plain = {f"city/{key}": key for key in self.keys}
        self.keys = list(self._plain)

    def image(self, key: str) -> NDArray[np.uint8]:
        return super().image(self._plain[key])

    def size(self, key: str) -> tuple[int, int]:
        return super().size(self._plain[key])

    def labels(self, key: str) -> NDArray[np.uint8]:
        raise AssertionError(f"the ground truth of {key} was read")


@pytest.mark.parametrize("certainty", [False, True])
def test_predictions_are_written_at_native_size(tmp_path: Path, certainty: bool) -> None:
    model, scenes = method().eval(), Filed()
    data = pair(predict=scenes, target_size=SIZE)
    trainer(tmp_path, PredictionWriter(certainty)).predict(model, data, return_predictions=False)
    expected = {f"city/{key}.png" for key in VAL.keys[:2]}
    expected |= {f"city/{key}.certainty.png" for key in VAL.keys[:2]} if certainty else set()
    folder = tmp_path / "predictions"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == expected
    for batch in data._evaluation_loader(scenes, scenes.keys, False):
        sure, predicted = model.predict_probabilities(batch.image, size=(40, 72))[0, 0].max(0)
        with Image.open(folder / f"{batch.keys[0]}.png") as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.asarray(picture), predicted)
        if certainty:
            with Image.open(folder / f"{batch.keys[0]}.certainty.png") as picture:
                np.testing.assert_array_equal(np.asarray(picture), (sure * 100).round())


# ---- when a run validates


class Validations(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize(("every", "expected"), [(1, [2, 4, 6, 8, 9]), (2, [4, 8, 9]), (3, [6, 9]), (99, [9])])
def test_a_run_validates_every_so_many_ticks_and_at_its_end(tmp_path: Path, every: int, expected: list[int]) -> None:
    times = Validations()
    run = trainer(tmp_path, times, ValidationTimes(), steps=9, check_val_every_n_epoch=every)
    run.fit(method(), pair(val=VAL, tick=2))
    assert times.steps == expected


def test_a_run_validates_before_every_round(tmp_path: Path) -> None:
    times = Validations()
    acquisition = CBDA(budget=0.1, schedule=[0.1, 0.45, 0.7], seed=SEED)
    run = trainer(tmp_path, acquisition, times, ValidationTimes(), check_val_every_n_epoch=3)
    run.fit(method(), pair(val=VAL, tick=2))
    assert acquisition.fire_at == [2, 6, 8]
    assert times.steps == [2, 6, 8, 10]
    assert [row["step"] for row in acquisition.history] == [2, 6, 8]
    assert all("miou" in row for row in acquisition.history)


def test_without_a_validation_set_nothing_is_validated(tmp_path: Path) -> None:
    times = Validations()
    trainer(tmp_path, times, ValidationTimes(), steps=3).fit(method(), pair())
    assert times.steps == []
