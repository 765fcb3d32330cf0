"""Training with HRDA inside self-training and supervised training, against written-out losses in float64."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_method_base import quiet
from test_self_training import CLASSES, SEED, SIZE, batch, confident, log_p, weighted  # noqa: F401
from torch import Tensor, nn

from adaptseg.augment.masking import block_mask, grid_size
from adaptseg.classes import STREETS, VOID
from adaptseg.cli import main
from adaptseg.data import Batch
from adaptseg.data.sampling import uniform_draws
from adaptseg.methods import Masking, SelfTraining, Supervised
from adaptseg.methods.class_weights import GBW
from adaptseg.networks import HRDA

DETAIL = (16, 32)
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def _as_on_the_command_line() -> None:
    quiet()


def network(num_classes: int) -> HRDA:
    with torch.random.fork_rng([]):
        torch.manual_seed(2)
        made = HRDA(
            num_classes, segmenter=confident, detail=DETAIL, attention_channels=8, attention_dropout=0.0, norm="group"
        )
        with torch.no_grad():
            made.attention.classifier.weight.mul_(100)
    return made


def method(**settings: Any) -> SelfTraining:
    defaults = {"network": network, "class_table": STREETS, "seed": SEED, "confidence_threshold": 0.5}
    return SelfTraining(**{**defaults, "jitter": None, "blur": None, **settings})


def both_losses(student: nn.Module, name: str, image: Tensor, labels: Tensor, weights: Tensor, made: Batch) -> Tensor:
    """0.9 of the fused and 0.1 of the detail's cross-entropy, image by image; where the window lies is drawn here."""
    draws = uniform_draws(SEED, f"crop/{name}", made.samples, (2,))
    fused = detail = torch.zeros((), dtype=torch.float64)
    for b in range(len(image)):
        # 3 rows and 5 columns of positions, 8 pixels apart, for 16x32 pixels in 32x64.
        y, x = int(draws[b, 0] * 3) * 8, int(draws[b, 1] * 5) * 8
        output = student(image[b : b + 1].double(), crop=(y, x))
        for logits, part in (
            (output.logits, (slice(b, b + 1), slice(None), slice(None))),
            (output.auxiliary["detail"], (slice(b, b + 1), slice(y, y + 16), slice(x, x + 32))),
        ):
            seen = labels[part]
            size = (seen.shape[-2], seen.shape[-1])
            said = nn.functional.interpolate(logits, size=size, mode="bilinear").log_softmax(1)
            loss = weighted(said, seen, weights[part]) / len(image)
            fused, detail = (fused + loss, detail) if size == SIZE else (fused, detail + loss)
    return 0.9 * fused + 0.1 * detail


@pytest.mark.parametrize("masking", [None, Masking(block=8, weight=0.5, augment=False)], ids=["hrda", "mic"])
def test_step_is_the_written_out_one(batch: Batch, masking: Masking | None) -> None:  # noqa: F811
    model = method(masking=masking)
    with torch.no_grad():  # a teacher that is not the student
        for parameter in model.teacher.network.parameters():
            parameter.mul_(1.1)
    student, teacher = copy.deepcopy(model.student).double(), copy.deepcopy(model.teacher.network).double()
    source, target = batch.source, batch.target
    assert source is not None
    assert target is not None
    said = log_p(teacher, target.image).exp()
    labels, share = said.argmax(1), (said.amax(1) >= 0.5).double().mean()
    assert 0.05 < share < 0.95
    weights = share * target.trusted
    known = target.bought != VOID
    labels[known], weights[known] = target.bought[known], 1.0
    ones = torch.ones(labels.shape, dtype=torch.float64)
    expected = {"source": both_losses(student, "source", source.image, source.labels, ones, batch)}
    pasted = model.lessons._pasted(source.labels, batch.samples)  # proven elsewhere
    image = torch.where(pasted[:, None], source.image, target.image)
    mixed, counts = torch.where(pasted, source.labels, labels), torch.where(pasted, ones, weights)
    expected["mixed"] = both_losses(student, "mixed", image, mixed, counts, batch)
    total = expected["source"] + expected["mixed"]
    if masking is not None:
        kept = block_mask(uniform_draws(SEED, "mask", batch.samples, grid_size(SIZE, 8)), SIZE, masking.ratio)
        image = target.image * kept[:, None]
        expected["masked"] = both_losses(student, "masked", image, labels, weights, batch)
        total = total + 0.5 * expected["masked"]
    result = model.step(batch)
    for name, value in expected.items():
        torch.testing.assert_close(result.logs[name].double(), value.detach(), rtol=1e-5, atol=1e-6, msg=name)
    result.loss.backward()
    total.backward()
    for mine, theirs in zip(model.student.parameters(), student.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-3, atol=1e-5)


def test_supervised_sums_the_same_two_losses(batch: Batch) -> None:  # noqa: F811
    model = Supervised(network=network, class_table=STREETS, seed=SEED)
    student = copy.deepcopy(model.student).double()
    losses = model.step(batch).logs
    assert batch.source is not None
    labels = torch.full_like(batch.source.labels, 3)  # without void, a mean over labels is a mean over pixels
    full = batch._replace(source=batch.source._replace(labels=labels))
    wanted = both_losses(student, "source", batch.source.image, labels, torch.ones(labels.shape).double(), batch)
    torch.testing.assert_close(model.step(full).logs["source"].double(), wanted, rtol=1e-5, atol=1e-6)
    assert losses["target"] > 0


@pytest.mark.parametrize(("masking", "passes"), [(None, 2), (Masking(block=8), 3)], ids=["hrda", "mic"])
def test_a_step_reads_two_scales_a_pass_and_weighs_each_loss(
    batch: Batch,  # noqa: F811
    masking: Masking | None,
    passes: int,
) -> None:
    """Four weight problems in a step of HRDA, six in one of MIC on it, as in GBW's release."""
    model = method(masking=masking, class_weights=GBW())
    calls: Counter[str] = Counter()
    for name, read in (("student", model.student), ("teacher", model.teacher.network)):
        assert isinstance(read, HRDA)
        read.segmenter.register_forward_hook(lambda *_, name=name: calls.update([name]))
    model.step(batch).loss.backward()
    assert calls == {"student": 2 * passes, "teacher": 2}
    names = [f"{p}{suffix}" for p in ("source", "mixed", "masked")[:passes] for suffix in ("", "_detail")]
    assert model.weighted_losses == tuple(names)
    assert model.class_weights is not None
    assert sorted(model.class_weights.latest) == sorted(names)


def test_window_belongs_to_the_sample_and_to_the_pass() -> None:
    student = network(CLASSES)

    def crops(name: str, samples: list[int]) -> Tensor:
        return student.training_crop(SIZE, partial(uniform_draws, SEED, f"crop/{name}", samples))

    together = crops("mixed", list(range(100)))
    assert torch.equal(together, torch.cat([crops("mixed", [n]) for n in range(100)]))
    assert len({tuple(c) for c in together.tolist()}) == 15  # 3 rows and 5 columns
    assert not torch.equal(together, crops("source", list(range(100))))


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["class_weights/gbw", "active/cbda"])
def test_overlays_lie_over_it(overlay: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [CONFIGS / "mic_hrda.yaml", CONFIGS / f"{overlay}.yaml"]
    flags = [word for path in paths for word in ("--config", str(path))]
    for split in ("source", "target", "val"):
        flags += [f"--data.{split}.count", "4", f"--data.{split}.size", "[32, 64]"]
    flags += ["--model.network.segmenter", "tiny.TinySegmenter", "--model.network.detail", "[16, 32]"]
    flags += ["--trainer.max_steps", "20", "--trainer.accelerator", "cpu", "--data.batch_size", "2"]
    if overlay.startswith("active"):
        flags += ["--active.budget", "0.1"]
    assert main(["fit", *flags, "--runs", str(tmp_path)]) == 0, capsys.readouterr().err
    assert "finished" in capsys.readouterr().out
