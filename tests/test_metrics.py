"""Metrics against naive loops and torchmetrics, and the rule for absent classes."""

import math
import pickle

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_jaccard_index

from adaptseg.classes import CAMVID, ClassTable, SemanticClass
from adaptseg.errors import AdaptSegError
from adaptseg.metrics import SegmentationMetrics, confusion_matrix, iou_from_confusion, label_balance_entropy

THREE = ClassTable("three", tuple(SemanticClass(name, (0, 0, 0)) for name in ("a", "b", "c")))


def random_maps(seed: int, classes: int, shape=(3, 7, 5), void: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, shape, generator=generator)
    predicted = torch.where(
        torch.rand(shape, generator=generator) < 0.6, labels, torch.randint(0, classes, shape, generator=generator)
    )
    labels[torch.rand(shape, generator=generator) < void] = 255
    return predicted, labels


def naive(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> dict[str, list[float]]:
    pairs = [(t, p) for t, p in zip(labels.flatten().tolist(), predicted.flatten().tolist(), strict=True) if t != 255]
    iou, recall = [], []
    for c in range(classes):
        both = sum(t == c and p == c for t, p in pairs)
        either = sum(t == c or p == c for t, p in pairs)
        truth = sum(t == c for t, _ in pairs)
        iou.append(both / either if truth else math.nan)
        recall.append(both / truth if truth else math.nan)
    accuracy = sum(t == p for t, p in pairs) / len(pairs) if pairs else math.nan
    return {"iou": iou, "recall": recall, "accuracy": [accuracy]}


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32])
def test_against_naive_loops(dtype: torch.dtype) -> None:
    for seed in range(5):
        predicted, labels = random_maps(seed, 11)
        metric = SegmentationMetrics(CAMVID)
        metric.update(predicted.to(dtype), labels.to(dtype))
        result, expected = metric.compute(), naive(predicted, labels, 11)
        np.testing.assert_allclose(result["iou"], expected["iou"], rtol=1e-15)
        np.testing.assert_allclose(result["recall"], expected["recall"], rtol=1e-15)
        assert result["accuracy"].item() == expected["accuracy"][0]
        assert result["miou"].item() == pytest.approx(np.nanmean(expected["iou"]), rel=1e-14)
        assert result["worst"].item() == np.nanmin(expected["iou"])
        assert result["worst_class"].item() == np.nanargmin(expected["iou"])
        assert all(isinstance(value, torch.Tensor) for value in result.values())
        assert {name: value.dtype for name, value in result.items() if name != "worst_class"} == dict.fromkeys(
            ("iou", "recall", "miou", "worst", "accuracy"), torch.float64
        )


def test_against_torchmetrics() -> None:
    predicted, labels = random_maps(7, 11, shape=(4, 20, 30))
    metric = SegmentationMetrics(CAMVID)
    metric.update(predicted, labels)
    reference = multiclass_jaccard_index(predicted, labels, 11, average=None, ignore_index=255)
    assert metric.absent() == []
    torch.testing.assert_close(metric.compute()["iou"].float(), reference)


def test_absent_class_is_named_and_left_out() -> None:
    labels = torch.tensor([[[0, 0, 0, 1, 255]]])
    predicted = torch.tensor([[[0, 0, 2, 1, 2]]])  # c is predicted, never true
    metric = SegmentationMetrics(THREE)
    assert metric.absent() == ["a", "b", "c"]
    metric.update(predicted, labels)
    result = metric.compute()
    np.testing.assert_array_equal(result["iou"], [2 / 3, 1, math.nan])
    np.testing.assert_array_equal(result["recall"], [2 / 3, 1, math.nan])
    assert result["miou"].item() == pytest.approx(5 / 6)
    assert (result["worst"].item(), result["worst_class"].item()) == (2 / 3, 0)
    assert result["accuracy"].item() == 3 / 4
    assert metric.absent() == ["c"]


def test_ties_of_the_worst_class_take_the_first() -> None:
    metric = SegmentationMetrics(THREE)
    metric.update(torch.tensor([[[0, 2, 1]]]), torch.tensor([[[0, 1, 2]]]))
    assert metric.compute()["worst"].item() == 0
    assert metric.compute()["worst_class"].item() == 1


def test_nothing_labelled() -> None:
    metric = SegmentationMetrics(THREE)
    metric.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 255))
    result = metric.compute()
    for name in ("miou", "worst", "accuracy"):
        assert result[name].isnan()
    assert result["iou"].isnan().all()
    assert result["worst_class"].item() == -1


def test_batching_and_reset_change_nothing() -> None:
    predicted, labels = random_maps(3, 11, shape=(6, 9, 4))
    whole, parts = SegmentationMetrics(CAMVID), SegmentationMetrics(CAMVID)
    parts.update(predicted, labels)
    parts.reset()
    assert len(parts.absent()) == 11
    whole.update(predicted, labels)
    for start in (4, 0, 2):
        parts.update(predicted[start : start + 2], labels[start : start + 2])
    assert torch.equal(whole.confusion, parts.confusion)
    assert parts.confusion.dtype == torch.int64
    assert torch.equal(pickle.loads(pickle.dumps(parts)).confusion, whole.confusion)


def test_confusion_is_exact_and_rows_are_truth() -> None:
    confusion = confusion_matrix(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 0, 255]), 2)
    assert confusion.tolist() == [[1, 2], [0, 0]]
    empty = torch.zeros(0, dtype=torch.int64)
    assert confusion_matrix(empty, empty, 2).tolist() == [[0, 0], [0, 0]]
    big = torch.tensor([[2**53, 1], [0, 2**53]])
    assert iou_from_confusion(big).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("predicted", "labels", "message"),
    [
        ([[0, 3]], [[0, 1]], r"predicted ids 3 are outside 0\.\.2"),
        ([[0, -1]], [[0, 1]], r"predicted ids -1 are outside 0\.\.2"),
        ([[0, 255]], [[0, 255]], r"predicted ids 255 are outside 0\.\.2"),
        ([[0, 1]], [[0, 4]], r"labels ids 4 are outside 0\.\.2"),
        ([[0, 1]], [[0, -1]], r"labels ids -1 are outside 0\.\.2"),
        ([[0, 1, 2]], [[0, 1]], r"predicted \(1, 3\) and labels \(1, 2\) differ in shape"),
        ([[0.0, 1.0]], [[0, 1]], r"predicted ids are torch.float32; integer"),
    ],
)
def test_wrong_ids_are_refused(predicted, labels, message: str) -> None:
    metric = SegmentationMetrics(THREE)
    with pytest.raises(AdaptSegError, match=message):
        metric.update(torch.tensor(predicted), torch.tensor(labels))
    assert metric.confusion.sum() == 0


def test_label_balance_entropy() -> None:
    assert label_balance_entropy(torch.tensor([5, 5, 5, 5])) == pytest.approx(1, abs=1e-15)
    assert label_balance_entropy(torch.tensor([0, 9, 0])) == 0
    assert label_balance_entropy(torch.tensor([0, 0, 0])) == 0
    counts = np.random.default_rng(0).integers(0, 2**50, 19)
    shares = [int(n) / int(counts.sum()) for n in counts]
    expected = -sum(s * math.log(s) for s in shares if s > 0) / math.log(19)
    assert label_balance_entropy(torch.from_numpy(counts)) == pytest.approx(expected, rel=1e-12)
    assert isinstance(label_balance_entropy(torch.tensor([1, 2])), float)


@pytest.mark.parametrize("counts", [[3], [[1, 2]], [1, -1], [1.0, math.nan], [1.0, math.inf]])
def test_label_balance_entropy_refuses(counts) -> None:
    with pytest.raises(AdaptSegError, match="counts"):
        label_balance_entropy(torch.tensor(counts))
