"""Adversarial hosts and MinEnt against the released procedure in float64; resume, precision, refusals."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from test_method_base import pair, quiet, state_of, trainer
from tiny import TinySegmenter
from torch import Tensor, nn

from adaptseg import networks
from adaptseg.classes import STREETS, VOID
from adaptseg.data import Batch, Streets
from adaptseg.data.datasets import PairDataset, View, collate_pair
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.errors import AdaptSegError
from adaptseg.methods import (
    GBW,
    Adversarial,
    Auxiliary,
    DiscriminatorTraining,
    EntropyMinimization,
    Masking,
    Optimization,
    SelfTraining,
    TaughtMasking,
)
from adaptseg.networks import Output

SIZE = (32, 64)
CLASSES = STREETS.num_classes
SEED = 3
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
MASKING = TaughtMasking(block=8, confidence_threshold=0.5, jitter=None, blur=None)
SMALL = DiscriminatorTraining(width=4, lr=0.01)


@pytest.fixture(autouse=True)
def _as_on_the_command_line() -> None:
    quiet()


class TwoHeaded(TinySegmenter):
    """An auxiliary head on the first layer; sure of some pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.second = nn.Conv2d(8, num_classes, 1)
        with torch.no_grad():
            self.head.weight.mul_(60)

    def forward(self, images: Tensor, *, crop: Any = None, token_mask: Tensor | None = None) -> Output:
        fine = self.encoder[:2](images)
        features = self.encoder[2:](fine)
        return Output(self.head(features), [features], {"conv4": self.second(fine)})

    @property
    def auxiliary_logits(self) -> frozenset[str]:
        return frozenset({"conv4"})


def seeded(kind: type[TinySegmenter]) -> Any:
    def make(num_classes: int) -> TinySegmenter:
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            return kind(num_classes)

    return make


class Sure(TinySegmenter):
    """Sure of some pixels from the first step on."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        with torch.no_grad():
            self.head.weight.mul_(60)


def made(kind: Any = Adversarial, **settings: Any) -> Any:
    network = seeded(TwoHeaded if settings.get("auxiliary") else Sure)
    defaults = {"network": network, "class_table": STREETS, "seed": SEED}
    if kind is Adversarial:
        defaults["discriminator"] = SMALL
    with torch.random.fork_rng([]):
        torch.manual_seed(2)  # of the discriminators
        return kind(**{**defaults, **settings})


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Two scenes of each domain; void in the source, a few bought pixels in the target."""
    view = View(None, None, False, IMAGENET_MEAN, IMAGENET_STD)
    source, target = (Streets(look, "train", count=3, size=SIZE) for look in ("game", "street"))
    made_of = collate_pair([PairDataset(source, target, view, view, 0, None)[i] for i in (4, 5)])
    assert made_of.source is not None
    assert made_of.target is not None
    generator = torch.Generator().manual_seed(0)
    labels = made_of.source.labels.clone()
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = VOID
    ids = torch.randint(CLASSES, labels.shape, generator=generator)
    bought = torch.where(torch.rand(labels.shape, generator=generator) < 0.1, ids, VOID)
    part = made_of.target._replace(bought=bought, bought_pixels=int((bought != VOID).sum()))
    return Batch(made_of.source._replace(labels=labels), part, made_of.samples)


# ---- the released procedure in float64


def naive_levels(student: nn.Module, images: Tensor, multi: bool) -> list[Tensor]:
    """Probabilities at image size, auxiliary first as released."""
    output = student(images.double())
    cells = [output.auxiliary["conv4"], output.logits] if multi else [output.logits]
    return [F.interpolate(c, size=images.shape[-2:], mode="bilinear").softmax(1) for c in cells]


def naive_cross_entropy(p: Tensor, labels: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for c in range(CLASSES):
        total = total - p[:, c][labels == c].log().sum()
    return total / (labels != VOID).sum()


def gradients_of(network: nn.Module) -> list[Tensor]:
    return [p.grad.double().clone() for p in network.parameters() if p.grad is not None]


class NaiveAdam:
    """Adam (Kingma and Ba, 2015) written out, with the released polynomial decay over 10 steps."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.step_number = parameters, 0
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self) -> None:
        lr = 0.01 * (1 - self.step_number / 10) ** 0.9
        self.step_number += 1
        for p, m, v in zip(self.parameters, self.first, self.second, strict=True):
            assert p.grad is not None
            m.copy_(0.9 * m + 0.1 * p.grad)
            v.copy_(0.99 * v + 0.01 * p.grad**2)
            corrected = (v / (1 - 0.99**self.step_number)).sqrt() + 1e-8
            p -= lr * m / (1 - 0.9**self.step_number) / corrected
            p.grad = None


@pytest.mark.parametrize("sees", ["probabilities", "self_information"])
@pytest.mark.parametrize(("objective", "multi"), [("vanilla", True), ("least_squares", False)])
def test_three_steps_are_the_released_ones(batch: Batch, sees: str, objective: str, multi: bool) -> None:
    """Student and discriminators, updates and their order: loops written after the released procedure."""
    assert batch.source is not None
    assert batch.target is not None
    auxiliary = Auxiliary(source_weight=0.1, adaptation_weight=0.2) if multi else None
    model = made(sees=sees, objective=objective, auxiliary=auxiliary, adversarial_weight=0.5)
    student = copy.deepcopy(model.student).double()
    names = ["auxiliary", "main"] if multi else ["main"]
    critics = [copy.deepcopy(model.discriminators.networks[name]).double().requires_grad_() for name in names]
    optimizers = [NaiveAdam(list(critic.parameters())) for critic in critics]
    weights = [(0.1, 0.2), (1.0, 0.5)] if multi else [(1.0, 0.5)]

    def shown(p: Tensor) -> Tensor:
        return p if sees == "probabilities" else -p * (p + 1e-30).log2() / math.log2(CLASSES)

    def judged(scores: Tensor, label: int) -> Tensor:
        if objective == "least_squares":
            return ((scores - label) ** 2).mean()
        return -(scores.sigmoid() if label else 1 - scores.sigmoid()).log().mean()

    for step in range(3):
        result = model.step(batch)
        result.loss.backward()
        with torch.no_grad():
            for p in model.student.parameters():
                p -= 0.01 * p.grad
                p.grad = None
        gradients = {name: gradients_of(model.discriminators.networks[name]) for name in names}
        model.discriminators.update(10)

        for critic in critics:
            critic.requires_grad_(False)
        source = naive_levels(student, batch.source.image, multi)
        target = naive_levels(student, batch.target.image, multi)
        loss = torch.zeros((), dtype=torch.float64)
        for (w, lam), critic, p_s, p_t in zip(weights, critics, source, target, strict=True):
            loss = loss + w * naive_cross_entropy(p_s, batch.source.labels)
            loss = loss + w * naive_cross_entropy(p_t, batch.target.bought) + lam * judged(critic(shown(p_t)), 0)
        loss.backward()
        for name, critic, optimizer, p_s, p_t in zip(names, critics, optimizers, source, target, strict=True):
            critic.requires_grad_(True)
            (judged(critic(shown(p_s.detach())), 0) / 2).backward()
            (judged(critic(shown(p_t.detach())), 1) / 2).backward()
            for p, gradient in zip(critic.parameters(), gradients[name], strict=True):
                torch.testing.assert_close(gradient, p.grad, rtol=1e-3, atol=1e-6)
                p.grad = gradient  # Adam's first step is the sign alone, and rounding has signs
            optimizer.step()
        with torch.no_grad():
            for p in student.parameters():
                assert p.grad is not None
                p -= 0.01 * p.grad
                p.grad = None
        for name, critic in zip(names, critics, strict=True):
            own = model.discriminators.networks[name]
            for a, b in zip(own.parameters(), critic.parameters(), strict=True):
                torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6, msg=f"{name} after step {step}")
        for a, b in zip(model.student.parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-6, msg=f"student after step {step}")
    assert model.discriminators.updates == 3


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("weigh", [False, True])
def test_minent_is_the_released_loss(batch: Batch, multi: bool, weigh: bool) -> None:
    assert batch.source is not None
    assert batch.target is not None
    weights = GBW(relative=True) if weigh else None
    auxiliary = Auxiliary(adaptation_weight=0.2) if multi else None
    model = made(
        EntropyMinimization, auxiliary=auxiliary, entropy_weight=0.5, class_weights=weights, weigh_entropy=weigh
    )
    if weights is not None:
        weights.prepare(STREETS, model.weighted_losses, lambda: None)  # type: ignore[arg-type,return-value]
    student = copy.deepcopy(model.student).double()
    result = model.step(batch)
    result.loss.backward()
    names = ["entropy_auxiliary", "entropy"] if multi else ["entropy"]
    factors = [(0.1, 0.2), (1.0, 0.5)] if multi else [(1.0, 0.5)]
    loss = torch.zeros((), dtype=torch.float64)
    levels = zip(
        names,
        factors,
        naive_levels(student, batch.source.image, multi),
        naive_levels(student, batch.target.image, multi),
        strict=True,
    )
    for name, (w, lam), p_s, p_t in levels:
        pixel = -(p_t * (p_t + 1e-30).log2()).sum(1) / math.log2(CLASSES)
        if weights is not None:
            latest = weights.latest[name].double()
            assert float(latest.max() - latest.min()) > 0.1
            pixel = pixel * latest[p_t.argmax(1)]
        assert float(result.logs[name]) == pytest.approx(float(pixel.detach().mean()), rel=1e-4)
        loss = loss + lam * pixel.mean()
        if weights is None:
            loss = loss + w * naive_cross_entropy(p_s, batch.source.labels)
            loss = loss + w * naive_cross_entropy(p_t, batch.target.bought)
    if weights is None:
        loss.backward()
        for own, reference in zip(model.student.parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(own.grad.double(), reference.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [Adversarial, EntropyMinimization])
def test_masked_images_are_those_of_self_training(batch: Batch, kind: Any) -> None:
    """Whose masked loss is proven by loops: same teacher, draws, labels, weights."""
    host = made(kind, masking=MASKING)
    other = SelfTraining(
        network=seeded(Sure),
        class_table=STREETS,
        seed=SEED,
        confidence_threshold=0.5,
        jitter=None,
        blur=None,
        masking=Masking(block=8),
    )
    for model in (host, other):
        with torch.no_grad():
            for p in model.teacher.network.parameters():
                p.mul_(1.1)
    logs, expected = host.step(batch).logs, other.step(batch).logs
    for name in ("masked", "confidence"):
        assert float(logs[name]) == pytest.approx(float(expected[name]), rel=1e-6)


def test_the_auxiliary_head_labels_masked_images_too(batch: Batch) -> None:
    """Every parameter has a part in the last loss, whose backward pass is the one that DDP counts."""
    model = made(auxiliary=Auxiliary(), masking=MASKING)
    result = model.step(batch)
    model.student.zero_grad()
    result.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.student.parameters())


# ---- who has gradients when


def test_discriminators_learn_from_nothing_but_their_own_loss(batch: Batch) -> None:
    model = made(auxiliary=Auxiliary())
    critics = list(model.discriminators.parameters())
    assert not any(p.requires_grad for p in critics)
    result = model.step(batch)
    assert not any(p.requires_grad for p in critics)
    before = [p.grad.clone() for p in critics]
    assert all(gradient.any() for gradient in before)
    result.loss.backward()
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(critics, before, strict=True))


def test_the_students_gradient_does_not_see_how_discriminators_learn(batch: Batch) -> None:
    gradients = []
    for silent in (False, True):
        model = made()
        if silent:
            model.discriminators.learn = lambda seen: dict.fromkeys(seen, torch.zeros(()))
        model.step(batch).loss.backward()
        gradients.append([p.grad for p in model.student.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


class Events(Callback):
    """Losses, batches and, in order, who stepped."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.batches = folder, 0
        self.losses: list[float] = []
        self.events: list[str] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].register_step_post_hook(lambda *_: self.events.append("student"))
        if isinstance(pl_module, Adversarial):
            optimizer = pl_module.discriminators.optimizer
            optimizer.register_step_pre_hook(lambda *_: self.events.append("discriminators"))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.batches += 1
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / f"step{trainer.global_step}.ckpt")


@pytest.mark.parametrize("kind", [Adversarial, EntropyMinimization])
def test_eight_batches_are_eight_steps(tmp_path: Path, kind: Any) -> None:
    watch = Events()
    run = trainer(tmp_path, watch, steps=8)
    model = made(kind, masking=MASKING)
    run.fit(model, pair())
    assert (watch.batches, run.global_step, model.teacher.updates) == (8, 8, 8)
    if kind is Adversarial:
        assert model.discriminators.updates == 8
        assert watch.events == ["student", "discriminators"] * 8
        last = 0.01 * (1 - 7 / 8) ** 0.9
        assert model.discriminators.optimizer.param_groups[0]["lr"] == pytest.approx(last)
    else:
        assert watch.events == ["student"] * 8


@pytest.mark.parametrize("kind", [Adversarial, EntropyMinimization])
def test_accumulated_halves_train_like_the_whole_batch(tmp_path: Path, kind: Any) -> None:
    """Every pixel of these sources is labelled: then the loss of a batch is the mean of its halves'. Discriminators
    at a rate at which they hardly move, since Adam's first steps follow the signs of roundings; their moments are the
    means of their gradients.
    """
    settings = {"discriminator": DiscriminatorTraining(width=4, lr=1e-7)} if kind is Adversarial else {}
    states, moments = [], []
    for batch_size, accumulate in ((2, 1), (1, 2)):
        watch = Events()
        run = trainer(tmp_path, watch, steps=4, accumulate_grad_batches=accumulate)
        model = made(kind, optimization=Optimization(lr=0.01), **settings)
        run.fit(model, pair(batch_size=batch_size))
        assert (watch.batches, run.global_step) == (4 * accumulate, 4)
        states.append([value for value in model.state_dict().values() if isinstance(value, Tensor)])
        moments.append(
            [state["exp_avg"] for state in model.discriminators.optimizer.state.values()] if settings else []
        )
    for whole, halves in zip(*states, strict=True):
        torch.testing.assert_close(whole, halves, rtol=1e-3, atol=1e-4)
    for whole, halves in zip(*moments, strict=True):
        torch.testing.assert_close(whole, halves, rtol=1e-2, atol=1e-3 * float(whole.abs().max()))


# ---- resume, precision, checkpoints


def tensors_of(run: Trainer) -> list[Tensor]:
    """All weights, the student's moments, the discriminators' moments."""
    found = [value for value in state_of(run) if isinstance(value, Tensor)]
    if isinstance(run.lightning_module, Adversarial):
        critics = run.lightning_module.discriminators
        for state in critics.optimizer.state_dict()["state"].values():
            found += [state["exp_avg"], state["exp_avg_sq"], torch.as_tensor(state["step"])]
    return found


@pytest.mark.parametrize("kind", [Adversarial, EntropyMinimization])
def test_a_resume_repeats_losses_and_all_states(tmp_path: Path, kind: Any) -> None:
    def fit(watch: Events, checkpoint: Path | None = None) -> Trainer:
        settings = {"adversarial_weight": 0.1} if kind is Adversarial else {}
        model = made(kind, optimization=Optimization(lr=0.01), masking=MASKING, auxiliary=Auxiliary(), **settings)
        run = trainer(tmp_path, watch, steps=8)
        run.fit(model, pair(), ckpt_path=checkpoint)
        return run

    whole = Events(tmp_path)
    expected = fit(whole)
    for step in (1, 6):
        resumed = Events()
        run = fit(resumed, tmp_path / f"step{step}.ckpt")
        assert resumed.losses == whole.losses[step:]
        assert run.lightning_module.teacher.updates == 8
        for a, b in zip(tensors_of(run), tensors_of(expected), strict=True):
            assert torch.equal(a, b)
        if kind is Adversarial:
            assert run.lightning_module.discriminators.updates == 8


@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("16-mixed", marks=GPU)])
@pytest.mark.parametrize("kind", [Adversarial, EntropyMinimization])
def test_half_precision_trains(tmp_path: Path, kind: Any, precision: Any) -> None:
    losses = {}
    for number in ("32-true", precision):
        watch = Events()
        optimization = Optimization(lr=0.01)
        model = made(kind, optimization=optimization, masking=MASKING, class_weights=GBW())
        accelerator = "gpu" if precision == "16-mixed" else "cpu"
        trainer(tmp_path, watch, steps=4, precision=number, accelerator=accelerator).fit(model, pair())
        losses[number] = watch.losses
    assert losses[precision] == pytest.approx(losses["32-true"], rel=0.03)
    assert losses[precision] != losses["32-true"]


def test_a_checkpoint_rebuilds_student_and_teacher(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=3)
    model = made(optimization=Optimization(lr=0.05), masking=MASKING)
    run.fit(model, pair())
    run.save_checkpoint(tmp_path / "last.ckpt")
    for name, network in (("student", model.student), ("teacher", model.teacher.network)):
        own = seeded(Sure)(CLASSES)
        prefix = model.saved_networks()[name][0]
        state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
        own.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        assert all(torch.equal(own.state_dict()[key], value) for key, value in network.state_dict().items())
    assert networks.load(tmp_path / "last.ckpt", "teacher").num_classes == CLASSES


@GPU
@pytest.mark.parametrize("kind", [Adversarial, EntropyMinimization])
def test_no_step_after_the_first_waits_for_the_device(batch: Batch, kind: Any) -> None:
    settings = {"weigh_entropy": True} if kind is EntropyMinimization else {}
    weights = GBW()
    model = made(kind, masking=MASKING, auxiliary=Auxiliary(), class_weights=weights, **settings).cuda()
    weights.prepare(STREETS, model.weighted_losses, lambda: None)  # type: ignore[arg-type,return-value]
    assert batch.source is not None
    assert batch.target is not None
    domains = [type(d)(*(x.cuda() if isinstance(x, Tensor) else x for x in d)) for d in (batch.source, batch.target)]
    moved = Batch(domains[0], domains[1], batch.samples)

    def step() -> None:
        model.step(moved).loss.backward()
        if kind is Adversarial:
            model.discriminators.update(10)

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@GPU
def test_restored_moments_follow_the_weights_to_the_device(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=4)
    run.fit(made(), pair())
    run.save_checkpoint(tmp_path / "cpu.ckpt")
    model = made()
    trainer(tmp_path, steps=8, accelerator="gpu").fit(model, pair(), ckpt_path=tmp_path / "cpu.ckpt")
    assert model.discriminators.updates == 8


# ---- class weights, purchases


def test_every_cross_entropy_has_weights_of_its_own(batch: Batch) -> None:
    weights = GBW(relative=True)
    model = made(auxiliary=Auxiliary(), masking=MASKING, class_weights=weights)
    assert set(model.weighted_losses) == {
        f"{loss}{level}" for loss in ("source", "target", "masked") for level in ("", "_auxiliary")
    }
    weights.prepare(STREETS, model.weighted_losses, lambda: None)  # type: ignore[arg-type,return-value]
    model.step(batch)
    assert weights.latest.keys() == set(model.weighted_losses)


def test_without_bought_labels_the_target_teaches_by_its_form_alone(batch: Batch) -> None:
    assert batch.target is not None
    none = batch.target._replace(bought=torch.full_like(batch.target.bought, VOID), bought_pixels=0)
    empty = Batch(batch.source, none, batch.samples)
    model = made()
    logs = model.step(empty).logs
    assert float(logs["target"]) == 0
    assert float(model.step(batch).logs["target"]) > 0


# ---- refusals


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (Adversarial, {"adversarial_weight": 0.0}, "adversarial_weight is 0"),
        (Adversarial, {"sees": "features"}, "model.sees is 'features'"),
        (EntropyMinimization, {"entropy_weight": 0.0}, "entropy_weight is 0"),
        (EntropyMinimization, {"weigh_entropy": True}, "weigh_entropy is true, but there are no weights"),
        (Adversarial, {"least_bought": 0}, "least_bought is 0"),
        (Adversarial, {"network": seeded(TinySegmenter), "auxiliary": Auxiliary()}, "trains conv4, but .* has none"),
        (Adversarial, {"network": seeded(TwoHeaded)}, "trains no auxiliary output, but TwoHeaded has conv4"),
        (Adversarial, {"auxiliary": Auxiliary(output="conv3")}, "trains conv3, but TwoHeaded has conv4"),
    ],
)
def test_nonsense_is_refused(kind: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError, match=said):
        made(kind, **settings)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (Auxiliary, {"source_weight": 0.0}, r"auxiliary\.source_weight is 0"),
        (Auxiliary, {"adaptation_weight": -1.0}, r"auxiliary\.adaptation_weight is -1"),
        (DiscriminatorTraining, {"lr": 0.0}, r"discriminator\.lr is 0"),
        (DiscriminatorTraining, {"betas": (0.9, 1.0)}, r"discriminator\.betas is"),
        (DiscriminatorTraining, {"poly_horizon": 0.5}, r"discriminator\.poly_horizon is 0.5"),
        (TaughtMasking, {"alpha": 1.0}, r"masking\.alpha is 1"),
        (TaughtMasking, {"confidence_threshold": 0.0}, r"masking\.confidence_threshold is 0"),
        (TaughtMasking, {"ratio": 1.0}, r"masking\.ratio is 1"),
    ],
)
def test_nonsensical_settings_are_refused(kind: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError, match=said):
        kind(**settings)


@pytest.mark.parametrize("kind", [Adversarial, EntropyMinimization])
def test_both_domains_are_needed(batch: Batch, kind: Any) -> None:
    with pytest.raises(AdaptSegError, match=rf"{kind.__name__} needs both domains: data\.target is missing"):
        made(kind).step(Batch(batch.source, None))


@pytest.mark.parametrize("kind", [Adversarial, EntropyMinimization])
def test_a_student_that_says_nan_is_found_with_its_step(tmp_path: Path, kind: Any) -> None:
    model = made(kind)
    with torch.no_grad():
        model.student.head.bias[0] = math.nan
    with pytest.raises(AdaptSegError, match="non-finite at step 0"):
        trainer(tmp_path, steps=4).fit(model, pair())


def test_a_discriminator_that_says_nan_is_found(tmp_path: Path) -> None:
    model = made()
    with torch.no_grad():
        next(model.discriminators.parameters()).fill_(math.nan)
    with pytest.raises(AdaptSegError, match="non-finite at step 0"):
        trainer(tmp_path, steps=4).fit(model, pair())
