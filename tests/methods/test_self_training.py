"""Self-training against a naive float64 step, for its switches; the teacher's life; refusals."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from test_method_base import pair, quiet, state_of, trainer
from tiny import TinySegmenter, tiny_network
from torch import Tensor, nn

from adaptseg import networks
from adaptseg.augment.color import DRAWS, Blur, ColorJitter, strong_augmentation
from adaptseg.augment.masking import grid_size
from adaptseg.classes import STREETS, VOID
from adaptseg.data import Batch, Streets
from adaptseg.data.datasets import PairDataset, View, collate_pair
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.sampling import uniform_draws
from adaptseg.errors import AdaptSegError
from adaptseg.methods import FeatureDistance, Masking, Optimization, SelfTraining
from adaptseg.methods.class_weights import GBW

SIZE = (32, 64)
CLASSES = STREETS.num_classes
SEED = 3
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 needs CUDA")


@pytest.fixture(autouse=True)
def _as_on_the_command_line() -> None:
    quiet()


def confident(num_classes: int) -> TinySegmenter:
    """Some pixels above the confidence threshold and some below."""
    network = tiny_network(num_classes)
    with torch.no_grad():
        network.head.weight.mul_(60)
    return network


def method(**settings: Any) -> SelfTraining:
    defaults = {"network": confident, "class_table": STREETS, "seed": SEED, "confidence_threshold": 0.5}
    return SelfTraining(**{**defaults, "jitter": None, "blur": None, **settings})


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Two scenes of each domain; void in the source, margins and a few bought pixels in the target."""
    view = View(None, None, False, IMAGENET_MEAN, IMAGENET_STD)
    source, target = (Streets(look, "train", count=3, size=SIZE) for look in ("game", "street"))
    data = PairDataset(source, target, view, view, 0, None)
    made = collate_pair([data[4], data[5]])
    assert made.source is not None
    assert made.target is not None
    generator = torch.Generator().manual_seed(0)
    labels = made.source.labels.clone()
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = VOID
    ids = torch.randint(CLASSES, labels.shape, generator=generator)
    bought = torch.where(torch.rand(labels.shape, generator=generator) < 0.1, ids, VOID)
    trusted = made.target.trusted.clone()
    trusted[:, :5] = False
    target_part = made.target._replace(bought=bought, bought_pixels=int((bought != VOID).sum()), trusted=trusted)
    return Batch(made.source._replace(labels=labels), target_part, made.samples)


# ---- the naive step


def naive_step(student: nn.Module, teacher: nn.Module, batch: Batch, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Every loss by loops over images, in float64."""
    source, target = batch.source, batch.target
    assert source is not None
    assert target is not None
    logs = {"source": weighted(log_p(student, source.image), source.labels, torch.ones(source.labels.shape))}
    p = log_p(teacher, target.image).exp()
    labels, sure = p.argmax(1), p.amax(1) >= 0.5
    weights = torch.zeros(labels.shape, dtype=torch.float64)
    for b in range(len(labels)):
        counted = sure[b] if settings.get("confidence_scope") == "image" else sure
        weights[b][target.trusted[b]] = float(counted.double().mean())
    known = target.bought != VOID
    labels[known], weights[known] = target.bought[known], 1.0
    image, mixed, mixed_weights = target.image.clone(), labels.clone(), weights.clone()
    priority = uniform_draws(SEED, "classmix", batch.samples, (CLASSES + 1,))
    for b in range(len(labels)):
        candidates = source.labels if settings.get("mix_scope") == "batch" else source.labels[b]
        present = set(candidates.flatten().tolist())
        ranked = sorted(present, key=lambda c: -float(priority[b, CLASSES if c == VOID else c]))
        for c in ranked[: math.ceil(len(present) / 2)]:
            where = source.labels[b] == c
            image[b][:, where] = source.image[b][:, where]
            mixed[b][where], mixed_weights[b][where] = c, 1.0
    logs["mixed"] = weighted(log_p(student, image), mixed, mixed_weights)
    if masking := settings.get("masking"):
        grid = grid_size(SIZE, masking.block)
        kept = uniform_draws(SEED, "mask", batch.samples, grid) > masking.ratio
        shown = torch.zeros(labels.shape)
        for b, y, x in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
            shown[b, y, x] = kept[b, y * grid[0] // SIZE[0], x * grid[1] // SIZE[1]]
        logs["masked"] = weighted(log_p(student, target.image * shown[:, None]), labels, weights)
    return logs


def log_p(network: nn.Module, images: Tensor) -> Tensor:
    cells = network(images.double()).logits
    return nn.functional.interpolate(cells, size=images.shape[-2:], mode="bilinear").log_softmax(1)


def weighted(log_p: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for c in range(CLASSES):
        total = total - (log_p[:, c] * weights)[labels == c].sum()
    return total / labels.numel()


SETTINGS: list[dict[str, Any]] = [
    {},
    {"confidence_scope": "image"},
    {"mix_scope": "batch"},
    {"masking": Masking(block=8, ratio=0.7)},
    {"masking": Masking(block=16, ratio=0.4, weight=0.5), "confidence_scope": "image"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_losses_and_gradients_are_those_of_the_naive_step(batch: Batch, settings: dict[str, Any]) -> None:
    model = method(**settings)
    with torch.no_grad():  # a teacher that is not the student
        for parameter in model.teacher.network.parameters():
            parameter.mul_(1.1)
    naive, teacher = copy.deepcopy(model.student).double(), copy.deepcopy(model.teacher.network).double()
    expected = naive_step(naive, teacher, batch, settings)
    result = model.step(batch)
    result.loss.backward()
    assert 0.05 < float(result.logs["confidence"]) < 0.95
    for name, value in expected.items():
        assert float(result.logs[name]) == pytest.approx(float(value.detach()), rel=1e-5), name
    masking = settings.get("masking")
    total = expected["source"] + expected["mixed"]
    total = total + masking.weight * expected["masked"] if masking else total
    total.backward()
    for own, reference in zip(model.student.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(own.grad.double(), reference.grad, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


def test_mixed_images_are_jittered_and_blurred_by_their_samples_draws(batch: Batch) -> None:
    jitter, blur = ColorJitter(), Blur(probability=1.0)
    model = method(jitter=jitter, blur=blur)
    seen: list[Tensor] = []
    model.student.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    model.step(batch)
    plain = method()
    bare: list[Tensor] = []
    plain.student.register_forward_hook(lambda module, given, output: bare.append(given[0]))
    plain.step(batch)
    assert torch.equal(seen[0], bare[0])  # the source is left alone
    draws = uniform_draws(SEED, "augment/mixed", batch.samples, (DRAWS,))
    expected = strong_augmentation(bare[1], draws, jitter=jitter, blur=blur, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert torch.equal(seen[1], expected)
    assert not torch.equal(seen[1], bare[1])


def test_an_unlabelled_source_and_a_doubtful_teacher_give_finite_zeros(batch: Batch) -> None:
    assert batch.source is not None
    assert batch.target is not None
    nothing = torch.full_like(batch.target.bought, VOID)
    void = Batch(
        batch.source._replace(labels=torch.full_like(batch.source.labels, VOID)),
        batch.target._replace(bought=nothing, bought_pixels=0),
        batch.samples,
    )
    model = method(network=tiny_network, confidence_threshold=0.99, class_weights=prepared(GBW()))
    result = model.step(void)
    result.loss.backward()
    assert float(result.logs["source"]) == 0
    assert float(result.logs["mixed"]) == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.student.parameters())


def prepared(weights: GBW) -> GBW:
    weights.prepare(STREETS, ("source", "mixed", "masked"), lambda: None)  # type: ignore[arg-type,return-value]
    return weights


@GPU
def test_no_step_after_the_first_waits_for_the_device(batch: Batch) -> None:
    model = method(
        masking=Masking(block=8), jitter=ColorJitter(), blur=Blur(), mix_scope="batch", class_weights=prepared(GBW())
    ).cuda()
    assert batch.source is not None
    assert batch.target is not None
    domains = [type(d)(*(x.cuda() if isinstance(x, Tensor) else x for x in d)) for d in (batch.source, batch.target)]
    there = Batch(*domains, batch.samples)
    model.step(there).loss.backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.step(there).loss.backward()
        model.teacher.update(model.student)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- in a trainer


class Watch(Callback):
    """Checkpoints after chosen steps, and losses."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.losses = folder, []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / f"step{trainer.global_step}.ckpt")


@pytest.mark.parametrize("weights", [None, {"smoothing": 0.9}], ids=["plain", "smoothed"])
def test_a_resume_repeats_losses_teacher_and_counters(tmp_path: Path, weights: dict[str, Any] | None) -> None:
    def fit(watch: Watch, checkpoint: Path | None = None) -> Trainer:
        model = method(
            optimization=Optimization(lr=0.01),
            masking=Masking(block=8),
            jitter=ColorJitter(),
            blur=Blur(),
            class_weights=None if weights is None else GBW(regularization=0.01, **weights),
        )
        run = trainer(tmp_path, watch, steps=8)
        run.fit(model, pair(), ckpt_path=checkpoint)
        return run

    whole = Watch(tmp_path)
    expected = fit(whole)
    assert expected.lightning_module.teacher.updates == 8
    for step in (1, 4, 6):
        resumed = Watch()
        run = fit(resumed, tmp_path / f"step{step}.ckpt")
        assert resumed.losses == whole.losses[step:]
        assert run.lightning_module.teacher.updates == 8
        for a, b in zip(state_of(run), state_of(expected), strict=True):
            assert a == b if isinstance(a, dict) else torch.equal(a, b)


def test_a_checkpoint_rebuilds_student_and_teacher(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=3)
    model = method(optimization=Optimization(lr=0.05), evaluate="teacher")
    run.fit(model, pair())
    run.save_checkpoint(tmp_path / "last.ckpt")
    for name, network in (("student", model.student), ("teacher", model.teacher.network)):
        loaded = networks.load(tmp_path / "last.ckpt", name).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())
    images = torch.randn(1, 3, *SIZE)
    scores = [
        networks.predict_probabilities(n, images, size=SIZE, inference=model.inference)
        for n in (model.student.eval(), model.teacher.network)
    ]
    assert torch.equal(model.predict_probabilities(images, size=SIZE)[0], scores[1])
    assert not torch.equal(scores[0], scores[1])


def test_accumulated_micro_batches_descend_the_same_sum(tmp_path: Path) -> None:
    """Per-image shares and no class weights: then the loss of a batch is the mean of its halves'."""
    states = []
    for batch_size, accumulate in ((2, 1), (1, 2)):
        run = trainer(tmp_path, steps=4, accumulate_grad_batches=accumulate)
        model = method(
            optimization=Optimization(lr=0.01), confidence_scope="image", masking=Masking(block=8), jitter=ColorJitter()
        )
        run.fit(model, pair(batch_size=batch_size))
        assert run.global_step == 4
        assert model.teacher.updates == 4
        states.append([value for value in model.state_dict().values() if isinstance(value, Tensor)])
    for whole, halves in zip(*states, strict=True):
        torch.testing.assert_close(whole, halves, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("16-mixed", marks=GPU)])
def test_half_precision_trains(tmp_path: Path, precision: Any) -> None:
    losses = {}
    for kind in ("32-true", precision):
        watch = Watch()
        model = method(optimization=Optimization(lr=0.01), masking=Masking(block=8), class_weights=GBW())
        trainer(tmp_path, watch, steps=4, precision=kind).fit(model, pair())
        losses[kind] = watch.losses
    assert losses[precision] == pytest.approx(losses["32-true"], rel=0.02)
    assert losses[precision] != losses["32-true"]


def test_the_target_waits_until_the_burn_in_is_over(batch: Batch) -> None:
    model = method(burn_in=0.5)
    model.burn_in_steps = 2  # of 4, as a trainer would have it
    for step in range(3):
        logs = model.step(batch).logs
        assert logs.keys() == ({"source"} if step < 2 else {"source", "confidence", "mixed"})
        model.teacher.update(model.student)


# ---- refusals


def test_both_domains_of_one_size_are_needed(batch: Batch) -> None:
    with pytest.raises(AdaptSegError, match=r"data\.target is missing"):
        method().step(Batch(batch.source, None))
    with pytest.raises(AdaptSegError, match=r"data\.source is missing"):
        method().step(Batch(None, batch.target))
    assert batch.target is not None
    small = batch.target._replace(image=batch.target.image[..., :32])
    with pytest.raises(AdaptSegError, match=r"32x64 pixels into target images of 32x32: set data\.crop"):
        method().step(Batch(batch.source, small, batch.samples))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"confidence_threshold": 1.0}, "model.confidence_threshold is 1.0"),
        ({"alpha": 1.5}, "model.alpha is 1.5"),
        ({"burn_in": 1.0}, "model.burn_in is 1.0"),
        ({"teacher_norm": "own"}, "model.teacher_norm is 'own'"),
        ({"feature_distance": FeatureDistance()}, "model.feature_distance keeps features near those of pre-trained"),
        ({"feature_distance": FeatureDistance(classes=("tram",))}, "names tram; class table"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError, match=said):
        method(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"block": 0}, "masking.block is 0"),
        ({"ratio": 1.0}, "masking.ratio is 1.0"),
        ({"weight": 0.0}, "weight is 0"),
    ],
)
def test_masks_that_hide_nothing_or_all_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError, match=said):
        Masking(**settings)
