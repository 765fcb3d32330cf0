"""DUDA's joint stage against a step written out in float64; who touches whom; checkpoints, resume, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from test_method_base import pair, quiet, state_of, trainer
from test_self_training import SIZE, Watch, batch, log_p, naive_step, weighted
from tiny import TinySegmenter
from torch import Tensor, nn

from adaptseg import networks
from adaptseg.augment.color import ColorJitter
from adaptseg.classes import CAMVID, STREETS, VOID
from adaptseg.data import Batch
from adaptseg.errors import AdaptSegError
from adaptseg.methods import DUDA, GBW, Distillation, FineTuning, Masking, Optimization, SelfTraining, Teacher
from adaptseg.networks import HRDA, SmpSegmenter

SEED = 3
__all__ = ["batch"]  # a fixture that two modules share


@pytest.fixture(autouse=True)
def _as_on_the_command_line() -> None:
    quiet()


def sure(classes: int, width: int, seed: int) -> TinySegmenter:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = TinySegmenter(classes, width)
    with torch.no_grad():
        network.head.weight.mul_(60)
    return network


def small(classes: int) -> TinySegmenter:
    return sure(classes, 4, 5)


def large(classes: int) -> TinySegmenter:
    return sure(classes, 12, 6)


def method(**settings: Any) -> DUDA:
    defaults = {"network": small, "large": large, "class_table": STREETS, "seed": SEED, "confidence_threshold": 0.5}
    return DUDA(**{**defaults, "jitter": None, "blur": None, **settings})


def naive_small(
    student: nn.Module, teacher: nn.Module, batch: Batch, settings: Distillation, lessons: Any
) -> dict[str, Tensor]:
    """The small student's losses in float64, on the mixed images that the method made."""
    assert batch.source is not None
    assert batch.target is not None
    ones = torch.ones(batch.source.labels.shape)
    own = log_p(student, lessons.image)
    said = log_p(teacher, batch.target.image).detach()
    own_soft, said_soft = ((z / settings.temperature).log_softmax(1) for z in (own, said))
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b, y, x in (~lessons.pasted).nonzero().tolist():
        if batch.target.trusted[b, y, x] and batch.target.bought[b, y, x] == VOID:
            p, q = said_soft[b, :, y, x], own_soft[b, :, y, x]
            total, count = total + (p.exp() * (p - q)).sum(), count + 1
    return {
        "small_source": weighted(log_p(student, batch.source.image), batch.source.labels, ones),
        "small_mixed": weighted(own, lessons.lesson.labels, lessons.lesson.weights.double()),
        "distillation": settings.temperature**2 * total / count,
    }


@pytest.mark.parametrize(
    ("distillation", "masking"), [(Distillation(), None), (Distillation(weight=0.5, temperature=2.0), Masking(block=8))]
)
def test_losses_and_gradients_are_those_of_the_naive_step(
    batch: Batch, distillation: Distillation, masking: Masking | None
) -> None:
    model = method(distillation=distillation, masking=masking)
    with torch.no_grad():
        for parameter in model.teacher.network.parameters():
            parameter.mul_(1.1)
    wide, narrow, teacher = (copy.deepcopy(n).double() for n in (model.large, model.student, model.teacher.network))
    of_host = naive_step(wide, teacher, batch, {"masking": masking})
    lesson, _ = model.lessons.taught(batch.target, model._teacher_logits(batch.target))
    mixed = model.lessons.mixed(batch.source, batch.target, lesson, batch.samples)
    of_small = naive_small(narrow, teacher, batch, distillation, mixed)
    result = model.step(batch)
    result.loss.backward()
    for name, value in {**of_host, **of_small}.items():
        assert float(result.logs[name]) == pytest.approx(float(value.detach()), rel=1e-5), name
    sum(of_host.values()).backward()
    (of_small["small_source"] + of_small["small_mixed"] + distillation.weight * of_small["distillation"]).backward()
    for mine, reference in ((model.large, wide), (model.student, narrow)):
        for own, other in zip(mine.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(own.grad.double(), other.grad, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


def test_the_large_networks_learn_as_in_plain_self_training(tmp_path: Path) -> None:
    """And so whatever becomes of the small student, it touches neither."""
    settings = {"optimization": Optimization(lr=0.05), "seed": SEED, "confidence_threshold": 0.5, "jitter": None}
    host = SelfTraining(network=large, class_table=STREETS, masking=Masking(block=8), blur=None, **settings)
    trainer(tmp_path, steps=5).fit(host, pair())
    for spoiled in (False, True):
        model = method(**settings, masking=Masking(block=8))
        if spoiled:
            with torch.no_grad():
                for parameter in model.student.parameters():
                    parameter.normal_()
        trainer(tmp_path, steps=5).fit(model, pair())
        for mine, theirs in ((model.large, host.student), (model.teacher.network, host.teacher.network)):
            for own, other in zip(mine.parameters(), theirs.parameters(), strict=True):
                assert torch.equal(own, other)


def test_the_teacher_is_the_closed_form_average_of_the_large_student(tmp_path: Path) -> None:
    snapshots: list[list[Tensor]] = []

    class Snapshots(Watch):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            snapshots.append([p.detach().double().clone() for p in pl_module.large.parameters()])

    model = method(optimization=Optimization(lr=0.05), alpha=0.7)
    snapshots.append([p.detach().double().clone() for p in model.large.parameters()])
    trainer(tmp_path, Snapshots(), steps=6).fit(model, pair())
    shares = [min(1 - 1 / (k + 1), 0.7) for k in range(1, 7)]
    weights = [1.0] + [1 - a for a in shares]
    for k, a in enumerate(shares, 1):
        weights[:k] = [w * a for w in weights[:k]]
    assert sum(weights) == pytest.approx(1)
    for i, own in enumerate(model.teacher.network.parameters()):
        expected = sum(w * s[i] for w, s in zip(weights, snapshots, strict=True))
        torch.testing.assert_close(own.double(), expected, rtol=1e-5, atol=1e-7)


def test_colleagues_are_averaged_with_the_teacher(tmp_path: Path, batch: Batch) -> None:
    run = trainer(tmp_path, steps=2)
    run.fit(method(optimization=Optimization(lr=0.05)), pair())
    run.save_checkpoint(tmp_path / "other.ckpt")
    colleague = Teacher(str(tmp_path / "other.ckpt"), "large", weight=3.0)
    model = method(teachers=[colleague])
    alone = method()
    assert batch.target is not None
    wide = networks.load(tmp_path / "other.ckpt", "large")
    said = log_p(copy.deepcopy(wide).double(), batch.target.image).exp()
    own = alone._teacher_logits(batch.target).double().softmax(1)
    torch.testing.assert_close(
        model._teacher_logits(batch.target).softmax(1).double(), (own + 3 * said) / 4, rtol=1e-4, atol=1e-6
    )
    assert not any("colleague" in name for name in model.state_dict())


@pytest.mark.parametrize("reverse", [False, True], ids=["transformer teaches", "convolutions teach"])
def test_networks_of_any_kind_and_stride(batch: Batch, reverse: bool) -> None:
    def transformer(classes: int) -> SmpSegmenter:
        return SmpSegmenter(classes, decoder="Segformer", encoder="mit_b0", decoder_channels=32)

    def convolutions(classes: int) -> SmpSegmenter:
        return SmpSegmenter(classes, decoder="PSPNet", encoder="resnet18", decoder_channels=32, output_stride=16)

    makers = (convolutions, transformer) if reverse else (transformer, convolutions)
    model = method(large=makers[0], network=makers[1], masking=Masking(block=8), small_masking=True)
    result = model.step(batch)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    for network in (model.student, model.large):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.encoder_parameters())


def test_hrda_may_be_the_large_one_and_the_small_one_too(batch: Batch) -> None:
    """Every pass judges the detail as well; the teacher's answer that is distilled is the fused one."""

    def wide(classes: int) -> HRDA:
        return HRDA(classes, segmenter=large, detail=(16, 32), attention_channels=8, norm="group")

    for network, suffixes in ((small, ("",)), (wide, ("", "_detail"))):
        model = method(large=wide, network=network, masking=Masking(block=8), small_masking=True, class_weights=GBW())
        result = model.step(batch)
        result.loss.backward()
        assert torch.isfinite(result.loss)
        of_large = [f"{name}{end}" for name in ("source", "mixed", "masked") for end in ("", "_detail")]
        of_small = [f"small_{name}{end}" for name in ("source", "mixed", "masked") for end in suffixes]
        assert model.weighted_losses == (*of_large, *of_small)
        assert model.class_weights is not None
        assert model.class_weights.latest.keys() == set(model.weighted_losses)
        for trained in (model.student, model.large):
            assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained.parameters())


def test_a_resume_repeats_everything(tmp_path: Path) -> None:
    def fit(watch: Watch, checkpoint: Path | None = None) -> Trainer:
        model = method(
            optimization=Optimization(lr=0.01),
            masking=Masking(block=8),
            small_masking=True,
            jitter=ColorJitter(),
            class_weights=GBW(regularization=0.01, smoothing=0.9),
            distillation=Distillation(gradual="ramp", ramp=(2, 6)),
        )
        run = trainer(tmp_path, watch, steps=8)
        run.fit(model, pair(), ckpt_path=checkpoint)
        return run

    whole = Watch(tmp_path)
    expected = fit(whole)
    for step in (1, 5):
        resumed = Watch()
        run = fit(resumed, tmp_path / f"step{step}.ckpt")
        assert resumed.losses == whole.losses[step:]
        for a, b in zip(state_of(run), state_of(expected), strict=True):
            assert a == b if isinstance(a, dict) else torch.equal(a, b)


def test_a_checkpoint_rebuilds_all_three_and_the_student_is_the_small_one(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=3)
    model = method(optimization=Optimization(lr=0.05))
    run.fit(model, pair())
    run.save_checkpoint(tmp_path / "last.ckpt")
    for name, network in (("student", model.student), ("large", model.large), ("teacher", model.teacher.network)):
        loaded = networks.load(tmp_path / "last.ckpt", name)
        assert loaded.config() == network.config()
        assert all(torch.equal(loaded.state_dict()[key], value) for key, value in network.state_dict().items())
    assert networks.load(tmp_path / "last.ckpt").config()["init_args"]["width"] == 4
    images = torch.randn(1, 3, *SIZE)
    small_one = networks.predict_probabilities(model.student.eval(), images, size=SIZE, inference=model.inference)
    assert torch.equal(model.predict_probabilities(images, size=SIZE)[0], small_one)
    # The chain: the medium student of one pair is the large one of the next.
    chained = method(large=small, large_from=str(tmp_path / "last.ckpt"), distillation=Distillation(gradual="chain"))
    for network in (chained.large, chained.teacher.network):
        for own, other in zip(network.parameters(), model.student.parameters(), strict=True):
            assert torch.equal(own, other)


def test_both_students_learn_at_the_same_rates_in_groups_of_their_own() -> None:
    model = method()
    optimizer, _ = model.optimization.build(model.student, 10, beside=model.large)
    assert [group["name"] for group in optimizer.param_groups] == ["encoder", "head", "large_encoder", "large_head"]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for network in (model.student, model.large) for p in network.parameters()}


def test_the_target_waits_until_the_burn_in_is_over(batch: Batch) -> None:
    model = method(burn_in=0.5)
    model.burn_in_steps = 1
    assert model.step(batch).logs.keys() == {"source", "small_source"}
    model.teacher.update(model.leader)
    expected = {"source", "small_source", "confidence", "mixed", "small_mixed", "distillation"}
    assert model.step(batch).logs.keys() == expected


def test_bfloat16_is_close_to_float32(tmp_path: Path) -> None:
    losses = {}
    for kind in ("32-true", "bf16-mixed"):
        watch = Watch()
        model = method(optimization=Optimization(lr=0.01), masking=Masking(block=8), class_weights=GBW())
        trainer(tmp_path, watch, steps=4, precision=kind).fit(model, pair())
        losses[kind] = watch.losses
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.02)
    assert losses["bf16-mixed"] != losses["32-true"]


# ---- refusals


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"distillation": Distillation(gradual="chain")}, "name the training of the larger pair"),
        ({"small_masking": True}, "model.small_masking needs masked images"),
        ({"large": nn.Identity}, "model.large makes a Identity"),
        ({"network": lambda c: nn.Conv2d(3, c, 1)}, "model.network makes a Conv2d"),
        ({"teachers": [Teacher("nowhere.ckpt")]}, "nowhere.ckpt does not exist"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError, match=said):
        method(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weight": 0.0}, "model.distillation.weight is 0.0"),
        ({"temperature": 0.0}, "model.distillation.temperature is 0.0"),
        ({"gradual": "slow"}, "one of online, ramp, chain"),
        ({"ramp": (5, 5)}, "two growing steps"),
    ],
)
def test_distillation_that_would_do_nothing_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError, match=said):
        Distillation(**settings)


def test_a_ramp_that_never_begins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdaptSegError, match="begins at step 1500, but training ends at step 4"):
        trainer(tmp_path, steps=4).fit(method(distillation=Distillation(gradual="ramp")), pair())


def test_other_classes_and_other_networks_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=1)
    run.fit(method(), pair())
    run.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = str(tmp_path / "last.ckpt")
    with pytest.raises(AdaptSegError, match="class table"):
        FineTuning(network=small, class_table=CAMVID, teachers=[Teacher(checkpoint)], from_scratch=True)
    with pytest.raises(AdaptSegError, match=r"model\.large_from .* holds another network than model\.large makes"):
        method(large_from=checkpoint)  # its student is the small one
    with pytest.raises(AdaptSegError, match=r"model\.init_from .* holds another network than model\.network makes"):
        method(network=large, init_from=checkpoint)
