"""DUDA's second stage: its step written out, weights from a measurement, resume, several teachers, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from test_duda import large, method, small
from test_method_base import pair, quiet, state_of, trainer
from test_self_training import Watch, batch, log_p, weighted
from torch import Tensor

from adaptseg import networks
from adaptseg.classes import STREETS, VOID
from adaptseg.data import Batch
from adaptseg.errors import AdaptSegError
from adaptseg.losses.fusion import channel_fusion
from adaptseg.losses.inconsistency import class_inconsistency, inconsistency_weights
from adaptseg.measurement import Measurement
from adaptseg.methods import (
    ChannelFusion,
    Distillation,
    FineTuning,
    FixedWeights,
    InconsistencyWeights,
    Optimization,
    Teacher,
)

CLASSES = STREETS.num_classes
__all__ = ["batch"]


@pytest.fixture(autouse=True)
def _as_on_the_command_line() -> None:
    quiet()


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> str:
    quiet()
    folder = tmp_path_factory.mktemp("stage1")
    run = trainer(folder, steps=3)
    run.fit(method(optimization=Optimization(lr=0.05)), pair())
    run.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return str(folder)


def tuning(stage1: str, **settings: Any) -> FineTuning:
    defaults = {"network": small, "class_table": STREETS, "seed": 3, "confidence_threshold": 0.5}
    defaults |= {"jitter": None, "blur": None, "init_from": stage1, "teachers": [Teacher(stage1)]}
    return FineTuning(**{**defaults, **settings})


def written(folder: Path, confusion: Tensor | None = None, divergence: Tensor | None = None) -> str:
    if confusion is None:
        generator = torch.Generator().manual_seed(0)
        confusion = torch.randint(1, 50, (CLASSES, CLASSES), generator=generator)
        confusion += torch.diag(torch.randint(200, 2000, (CLASSES,), generator=generator))
    Measurement(list(STREETS.names), 7, confusion, divergence, "large", "small").write(folder / "measured.json")
    return str(folder / "measured.json")


def prepared(weights: InconsistencyWeights) -> Tensor:
    def nothing() -> Any:
        raise AssertionError("the source need not be counted")

    weights.prepare(STREETS, ("source", "mixed"), nothing)
    return weights.weights


def test_the_step_is_equation_11(stage1: str, batch: Batch) -> None:
    """Class weights multiply both cross-entropies and the divergence of each pixel."""
    assert batch.source is not None
    assert batch.target is not None
    given = torch.linspace(0.5, 2, CLASSES)
    fixed = FixedWeights(given.tolist())
    model = tuning(stage1, class_weights=fixed, source_weight=0.7, distillation=Distillation(weight=0.4))
    student = copy.deepcopy(model.student).double()
    teacher = networks.load(stage1, "teacher").double()
    source, target = batch.source, batch.target
    said = log_p(teacher, target.image).detach()
    lesson, _ = model.lessons.taught(target, said.float())
    mixed = model.lessons.mixed(source, target, lesson, batch.samples)
    per_class = torch.cat([given, torch.ones(VOID + 1 - CLASSES)]).double()
    own = log_p(student, mixed.image)
    mask = ~mixed.pasted & target.trusted & (target.bought == VOID)
    divergence = (said.exp() * (said - own)).sum(1) * per_class[mixed.lesson.labels]
    expected = {
        "source": weighted(log_p(student, source.image), source.labels, per_class[source.labels]),
        "mixed": weighted(own, mixed.lesson.labels, mixed.lesson.weights * per_class[mixed.lesson.labels]),
        "distillation": divergence[mask].sum() / mask.sum(),
    }
    result = model.step(batch)
    result.loss.backward()
    for name, value in expected.items():
        assert float(result.logs[name]) == pytest.approx(float(value.detach()), rel=1e-5), name
    (0.7 * expected["source"] + expected["mixed"] + 0.4 * expected["distillation"]).backward()
    for mine, reference in zip(model.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for network in model.teachers.networks for p in network.parameters())


def test_it_starts_from_the_small_student_and_saves_it_alone(stage1: str) -> None:
    model = tuning(stage1)
    began = networks.load(stage1, "student").state_dict()
    assert all(torch.equal(began[key], value) for key, value in model.student.state_dict().items())
    assert all(key.startswith(("student.", "class_weights.")) for key in model.state_dict())


def test_weights_are_those_of_the_measurement(tmp_path: Path) -> None:
    path = written(tmp_path)
    confusion = Measurement.read(path).confusion
    for kind in ("iou", "recall"):
        expected = inconsistency_weights(class_inconsistency(confusion, kind=kind))
        assert torch.equal(prepared(InconsistencyWeights(path, kind=kind)), expected)
        assert float(expected.mean()) == pytest.approx(1)
    divergence = torch.linspace(0, 1, CLASSES, dtype=torch.float64)
    divergence[3] = torch.nan
    path = written(tmp_path, divergence=divergence)
    weights = prepared(InconsistencyWeights(path, kind="kl", strength=0.5))
    assert torch.equal(weights, inconsistency_weights(divergence, strength=0.5))
    assert weights[3] == 1


def test_networks_that_agree_and_classes_that_are_absent_weigh_one(tmp_path: Path) -> None:
    agreeing = torch.diag(torch.full((CLASSES,), 10))
    assert torch.equal(prepared(InconsistencyWeights(written(tmp_path, agreeing))), torch.ones(CLASSES))
    absent = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    absent[:2, :2] = torch.tensor([[8, 2], [1, 9]])
    weights = prepared(InconsistencyWeights(written(tmp_path, absent)))
    torch.testing.assert_close(weights[:2], torch.tensor([24 / 23, 22 / 23]))
    assert torch.equal(weights[2:], torch.ones(CLASSES - 2))


def test_a_resume_repeats_everything(stage1: str, tmp_path: Path) -> None:
    def fit(watch: Watch, checkpoint: Path | None = None) -> Trainer:
        weights = InconsistencyWeights(written(tmp_path))
        ramp = Distillation(gradual="ramp", ramp=(1, 5))
        model = tuning(stage1, optimization=Optimization(lr=0.01), class_weights=weights, distillation=ramp)
        run = trainer(tmp_path, watch, steps=6)
        run.fit(model, pair(), ckpt_path=checkpoint)
        return run

    whole = Watch(tmp_path)
    expected = fit(whole)
    resumed = Watch()
    run = fit(resumed, tmp_path / "step3.ckpt")
    assert resumed.losses == whole.losses[3:]
    for a, b in zip(state_of(run), state_of(expected), strict=True):
        assert a == b if isinstance(a, dict) else torch.equal(a, b)


def test_fused_labels_replace_those_of_the_mean(stage1: str, batch: Batch) -> None:
    policy = [c % 2 for c in range(CLASSES)]
    teachers = [Teacher(stage1), Teacher(stage1, "large")]
    model = tuning(stage1, teachers=teachers, fusion=ChannelFusion(policy, threshold=0.3))
    assert batch.target is not None
    assert model.fusion is not None
    said = torch.stack(model.teachers.log_probabilities(batch.target.image)).exp()
    labels = model.fusion.labels(said)
    for b in range(len(labels)):
        assert torch.equal(labels[b], channel_fusion(said[:, b], torch.tensor(policy), threshold=0.3))
    assert torch.isfinite(model.step(batch).loss)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"init_from": None}, "name the run of stage 1 in model.init_from"),
        ({"from_scratch": True}, "name the run of stage 1 in model.init_from"),
        ({"teachers": []}, "model.teachers is empty"),
        ({"init_from": "nowhere"}, "nowhere does not exist"),
        ({"network": large}, "holds another network than model.network makes"),
        ({"distillation": Distillation(gradual="chain")}, "belongs to stage 1"),
        ({"fusion": ChannelFusion([0] * (CLASSES - 1) + [5])}, "one of 1 teachers"),
        ({"source_weight": -1.0}, "model.source_weight is -1.0"),
    ],
)
def test_nonsense_is_refused(stage1: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError, match=said):
        tuning(stage1, **settings)


def test_a_teacher_of_another_recipe_is_told(stage1: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=1)
    run.fit(tuning(stage1), pair())
    run.save_checkpoint(tmp_path / "stage2.ckpt")
    with pytest.raises(AdaptSegError, match="has no network 'teacher'; it has student"):
        tuning(stage1, teachers=[Teacher(str(tmp_path / "stage2.ckpt"))])


def test_bad_measurements_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(AdaptSegError, match="divergence: true"):
        prepared(InconsistencyWeights(path, kind="kl"))
    with pytest.raises(AdaptSegError, match="strength is 0"):
        InconsistencyWeights(path, strength=0)
    Measurement(["a", "b"], 1, torch.ones(2, 2, dtype=torch.int64), None, "", "").write(path)
    with pytest.raises(AdaptSegError, match="is about a, b; class table"):
        prepared(InconsistencyWeights(path))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(AdaptSegError, match="was not written by the job MeasureInconsistency"):
        InconsistencyWeights(str(tmp_path / "other.json"))
    with pytest.raises(AdaptSegError, match="does not exist"):
        InconsistencyWeights(str(tmp_path / "none.json"))
