"""The EMA teacher: released order, what it never does, what a checkpoint restores."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.layers import DropPath  # pyright: ignore[reportPrivateImportUsage]
from tiny import TinySegmenter, tiny_network
from torch import Tensor, nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks import Output
from adaptseg.networks.teacher import EMATeacher


class Normed(TinySegmenter):
    """With batch norm, dropout and drop path."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__(num_classes, width)
        self.norm, self.drop, self.path = nn.BatchNorm2d(width), nn.Dropout2d(0.5), DropPath(0.5)

    def forward(self, images: Tensor, *, crop: Any = None, token_mask: Tensor | None = None) -> Output:
        features = self.path(self.drop(self.norm(self.encoder(images))))
        return Output(self.head(features), [features], {})


def moved(student: TinySegmenter, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def test_share_that_stays() -> None:
    teacher = EMATeacher(tiny_network(3), alpha=0.999)
    shares = [teacher.share(k) for k in (1, 2, 998, 999, 5000)]
    assert shares == [0.5, pytest.approx(2 / 3), pytest.approx(998 / 999), pytest.approx(0.999), 0.999]


@pytest.mark.parametrize("alpha", [0.6, 0.999])
def test_equals_the_released_order(alpha: float) -> None:
    """Released: before step t the teacher is updated with a_t = min(1 - 1/(t+1), alpha); at t = 0 it is a copy."""
    generator = torch.Generator().manual_seed(0)
    student = tiny_network(4).double()
    teacher = EMATeacher(student, alpha=alpha)
    released: list[Tensor] = []
    for t in range(8):
        share = min(1 - 1 / (t + 1), alpha)
        weights = [p.detach().clone() for p in student.parameters()]
        released = weights if t == 0 else [share * a + (1 - share) * b for a, b in zip(released, weights, strict=True)]
        for own, expected in zip(teacher.network.parameters(), released, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)
        moved(student, generator)  # step t
        teacher.update(student)  # after student step t + 1


def test_takes_no_gradient_and_draws_nothing() -> None:
    student = Normed(3)
    teacher = EMATeacher(student)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    images = torch.randn(4, 3, 32, 32)
    for norm in ("copied", "batch"):
        teacher = EMATeacher(student, norm=norm).train()
        assert not teacher.network.get_submodule("drop").training
        assert not teacher.network.get_submodule("path").training
        assert teacher.network.get_submodule("norm").training == (norm == "batch")
        assert torch.equal(teacher.logits(images), teacher.logits(images))
        assert not teacher.eval().network.get_submodule("norm").training


def test_copied_statistics_do_not_see_batch_companions() -> None:
    student = Normed(3).train()
    images = torch.randn(4, 3, 32, 32)
    student(images)
    copied, batch = EMATeacher(student, norm="copied"), EMATeacher(student, norm="batch")
    torch.testing.assert_close(copied.logits(images)[:1], copied.logits(images[:1]))
    assert not torch.allclose(batch.logits(images)[:1], batch.logits(images[:1]))
    student(10 * images)
    before = copy.deepcopy(copied.network.norm.running_var)
    copied.update(student)
    assert torch.equal(copied.network.norm.running_var, student.norm.running_var)
    assert not torch.equal(before, student.norm.running_var)


def test_moved_networks_and_other_students_are_followed() -> None:
    """An update keeps what it reads and writes; moving a module replaces its buffers."""
    student = Normed(3).train()
    teacher = EMATeacher(student)
    teacher.update(student)
    both = nn.ModuleList([student, teacher]).double()
    student(torch.randn(4, 3, 32, 32).double())
    teacher.update(student)
    assert torch.equal(teacher.network.norm.running_var, student.norm.running_var)
    other = copy.deepcopy(student)
    other(torch.randn(4, 3, 32, 32).double())
    teacher.update(other)
    assert torch.equal(teacher.network.norm.running_var, other.norm.running_var)
    assert both.state_dict().keys() == nn.ModuleList([student, EMATeacher(student)]).state_dict().keys()


def test_number_of_updates_is_saved() -> None:
    student = tiny_network(3)
    teacher = EMATeacher(student)
    for _ in range(3):
        teacher.update(student)
    other = EMATeacher(student)
    other.load_state_dict(teacher.state_dict())
    assert other.updates == 3


@pytest.mark.parametrize(("settings", "key"), [({"alpha": 1.0}, "model.alpha"), ({"norm": "own"}, "teacher_norm")])
def test_nonsense_is_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(AdaptSegError, match=key):
        EMATeacher(tiny_network(3), **settings)
