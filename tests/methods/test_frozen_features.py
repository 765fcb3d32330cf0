"""The feature distance against a naive loop, with weights from a file; what the frozen copy is no part of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_method_base import pair, quiet, trainer
from tiny import tiny_network
from torch import Tensor

from adaptseg.classes import STREETS, VOID, ClassTable, SemanticClass
from adaptseg.data.batch import Batch, Labelled, Target
from adaptseg.errors import AdaptSegError
from adaptseg.methods import FeatureDistance, Optimization, SelfTraining
from adaptseg.methods.frozen_features import FrozenFeatures
from adaptseg.networks import DAFormer

CLASSES = STREETS.num_classes
DEFAULTS = FeatureDistance()
THINGS = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)  # the specification's list, 2.4: with traffic lights and signs


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], DAFormer]:
    """A factory whose networks share the encoder's weights, read from a file, and nothing else."""
    file = tmp_path_factory.mktemp("weights") / "encoder.pth"

    def make(num_classes: int, weights: str | bool = str(file)) -> DAFormer:
        return DAFormer(num_classes, encoder="mit_b0", channels=8, norm="group", weights=weights)

    torch.manual_seed(1)
    torch.save(make(CLASSES, False).encoder.state_dict(), file)
    return make


def method(network: Callable[[int], DAFormer], settings: FeatureDistance | None = DEFAULTS) -> SelfTraining:
    return SelfTraining(
        network=network,
        class_table=STREETS,
        optimization=Optimization(lr=1e-3),
        seed=3,
        jitter=None,
        blur=None,
        feature_distance=settings,
    )


def scenes(seed: int = 0) -> Labelled:
    """Two images of 64 x 96 in cells of 32 pixels: mostly one class each, some too mixed, some void."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 3, 64, 96, generator=generator)
    cells = torch.randint(CLASSES, (2, 2, 3), generator=generator)
    cells[0, 0] = torch.tensor([6, VOID, 13])
    labels = cells.repeat_interleave(32, 1).repeat_interleave(32, 2)
    noisy = torch.rand(labels.shape, generator=generator) < 0.1
    labels[noisy] = 0
    labels[0, :20, 64:] = 2  # more than a quarter of a car's cell
    return Labelled(["a", "b"], image, labels)


def step_away(model: SelfTraining) -> None:
    """A student that has left its pre-trained weights."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.student.encoder_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def naive(features: Tensor, reference: Tensor, labels: Tensor, classes: tuple[int, ...], share: float) -> float:
    distances = []
    for b, y, x in torch.cartesian_prod(*map(torch.arange, (2, 2, 3))).tolist():
        cell = labels[b, 32 * y : 32 * y + 32, 32 * x : 32 * x + 32]
        values, counts = cell.unique(return_counts=True)
        if int(values[counts.argmax()]) in classes and int(counts.max()) >= share * 32 * 32:
            distances.append(float((features[b, :, y, x] - reference[b, :, y, x]).double().square().sum().sqrt()))
    assert distances
    return sum(distances) / len(distances)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "classes"),
    [
        (FeatureDistance(), THINGS),
        (FeatureDistance(min_share=0.5), THINGS),
        (FeatureDistance(classes=("traffic light",)), (6,)),
    ],
)
def test_distance_is_that_of_a_naive_loop(
    network: Callable[[int], DAFormer], settings: FeatureDistance, classes: tuple[int, ...]
) -> None:
    model, source = method(network, settings), scenes()
    pretrained = [parameter.clone() for parameter in model.student.encoder_parameters()]
    assert model.frozen is not None
    with torch.no_grad():
        assert float(model.frozen.distance(model.student.eval()(source.image), source)) == 0  # nothing has moved yet
        step_away(model)
        features = model.student(source.image).features[-1]
        reference = model.frozen.reference.encoded(source.image)[-1]
        distance = model.frozen.distance(model.student(source.image), source)
    assert all(map(torch.equal, pretrained, model.frozen.reference.encoder_parameters()))
    expected = naive(features, reference, source.labels, classes, settings.min_share)
    assert float(distance) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_gradient_reaches_the_students_encoder_only(network: Callable[[int], DAFormer]) -> None:
    model, source = method(network), scenes()
    step_away(model)
    assert model.frozen is not None
    model.frozen.distance(model.student(source.image), source).backward()
    moved = [
        parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.student.encoder.parameters()
    ]
    assert any(moved)
    assert all(parameter.grad is None for parameter in model.student.head_parameters())
    frozen = (*model.frozen.reference.parameters(), *model.teacher.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)


def test_no_cell_of_the_chosen_classes_gives_zero_and_finite_gradients(network: Callable[[int], DAFormer]) -> None:
    model, source = method(network), scenes()
    step_away(model)
    assert model.frozen is not None
    for label in (VOID, 0):
        nothing = source._replace(labels=torch.full_like(source.labels, label))
        distance = model.frozen.distance(model.student(source.image), nothing)
        distance.backward()
        assert float(distance.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in model.student.parameters())


def test_the_frozen_copy_is_no_part_of_the_method(network: Callable[[int], DAFormer], tmp_path: Path) -> None:
    """Neither checkpoint nor optimiser nor DDP sees it, and training does not wake it up."""
    model, plain = method(network), method(network, None)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert len(list(model.parameters())) == len(list(plain.parameters()))
    assert model.frozen is not None
    before = [value.clone() for value in model.frozen.reference.state_dict().values()]
    run = trainer(tmp_path, steps=2)
    run.fit(model, pair())
    assert "train/feature_distance" in run.callback_metrics
    assert all(map(torch.equal, before, model.frozen.reference.state_dict().values()))
    assert not any(module.training for module in model.frozen.reference.modules())
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert {key.split(".")[0] for key in saved["state_dict"]} == {"student", "teacher"}


def test_the_step_adds_the_weighted_distance_to_the_source_loss(network: Callable[[int], DAFormer]) -> None:
    """And to the gradient: by `weight` times that of the distance alone."""
    source = scenes()
    nothing = torch.full_like(source.labels, VOID)
    target = Target(["c", "d"], source.image.flip(3), torch.ones_like(nothing, dtype=torch.bool), nothing, 0)
    gradients = []
    for weight in (0.005, 0.01, 0.02):
        torch.manual_seed(0)  # the head's initial weights
        model = method(network, FeatureDistance(weight=weight))
        step_away(model)
        model.eval()  # no drop path
        model.step(Batch(source, target, [0, 1])).loss.backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.student.encoder.parameters() if p.grad is not None])
        )
    first, second = gradients[1] - gradients[0], gradients[2] - gradients[1]
    assert first.norm() > 0
    torch.testing.assert_close(second, 2 * first, rtol=1e-3, atol=1e-3 * float(first.abs().max()))


def test_refusals(network: Callable[[int], DAFormer]) -> None:
    with pytest.raises(
        AdaptSegError, match=r"set model\.network\.init_args\.weights, or model\.feature_distance: null"
    ):
        method(lambda num_classes: network(num_classes, False))  # type: ignore[call-arg]
    with pytest.raises(AdaptSegError, match="keeps features near those of pre-trained weights"):
        method(tiny_network)  # type: ignore[arg-type]
    stuff = ClassTable("stuff", (SemanticClass("road", (0, 0, 0)), SemanticClass("sky", (9, 9, 9))))
    with pytest.raises(AdaptSegError, match=r"class table 'stuff' has no things; name the classes"):
        FrozenFeatures(FeatureDistance(), network, stuff)
    named = FrozenFeatures(FeatureDistance(classes=("sky",)), network, stuff)
    assert named.chosen.tolist() == [False, True]


@pytest.fixture(autouse=True)
def _as_on_the_command_line() -> None:
    quiet()
