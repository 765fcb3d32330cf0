"""The study of gradient-based class weights: its arithmetic against plain loops, its settings against the overlays."""

# pyright: reportMissingImports=false
# The scripts of experiments/ are no package; their folder joins the path below.
from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean, pstdev

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import rankdata
from tiny import TinySegmenter

from adaptseg.classes import VOID
from adaptseg.data import Streets
from adaptseg.losses import gbw
from adaptseg.methods import class_weights

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments" / "tables"))

import gbw_measures as measures  # noqa: E402
import gbw_study as study  # noqa: E402
import gbw_tables as tables  # noqa: E402

CLASSES = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_said(scenes: int, seed: int = 0) -> measures.Said:
    """Float64, a tenth of the pixels void, the last class nowhere."""
    random = generator(seed)
    logits = torch.randn(scenes, CLASSES, 6, 7, generator=random, dtype=torch.float64)
    labels = torch.randint(CLASSES - 1, (scenes, 6, 7), generator=random)
    labels[torch.rand(labels.shape, generator=random) < 0.1] = VOID
    return measures.Said(logits.log_softmax(1), labels)


def rank_correlation(a: list[float], b: list[float]) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def test_spread_is_that_of_plain_loops() -> None:
    batches, rare = 9, [1, 3]
    weights = torch.rand(batches, CLASSES, generator=generator(), dtype=torch.float64)
    weights[weights < 0.2] = 0
    pixels = torch.randint(1, 9, (batches, CLASSES), generator=generator(1)).double()
    pixels[torch.rand(pixels.shape, generator=generator(2)) < 0.3] = 0
    inverse = torch.rand(CLASSES, generator=generator(3), dtype=torch.float64)
    w, n = weights.tolist(), pixels.tolist()
    shown = [[c for c in range(CLASSES) if n[b][c] > 0] for b in range(batches)]
    assert min(len(some) for some in shown) > 1
    assert any(w[b][c] == 0 for b in range(batches) for c in shown[b])
    over = [[w[b][c] for c in shown[b]] for b in range(batches)]
    by_class = [[w[b][c] for b in range(batches) if n[b][c] > 0] for c in range(CLASSES)]
    expected = {
        "smallest": mean(min(some) for some in over),
        "largest": mean(max(some) for some in over),
        "deviation": mean(pstdev(some) for some in over),
        "pixel_mean": mean(
            sum(w[b][c] * n[b][c] for c in range(CLASSES)) / sum(n[b]) for b in range(batches)
        ),
        "on_absent": mean(100 * (sum(w[b]) - sum(over[b])) / sum(w[b]) for b in range(batches)),
        "rank": mean(rank_correlation(over[b], [float(inverse[c]) for c in shown[b]]) for b in range(batches)),
        "zero": 100 * mean(float(value == 0) for some in over for value in some),
        "rare": mean(w[b][c] for b in range(batches) for c in rare if n[b][c] > 0),
        "between": mean(pstdev(some) for some in by_class if len(some) > 1),
    }  # fmt: skip
    assert measures.spread(weights, pixels, rare, inverse) == pytest.approx(expected)


def test_equal_weights_have_no_spread_and_no_rank() -> None:
    pixels = torch.ones(3, CLASSES)
    pixels[0, 0] = 0
    found = measures.spread(torch.ones(3, CLASSES), pixels, [0, 1], torch.arange(CLASSES).double())
    assert (found["rank"], found["deviation"], found["between"], found["zero"]) == (None, 0, 0, 0)
    assert found["smallest"] == found["largest"] == found["rare"] == found["pixel_mean"] == 1
    assert found["on_absent"] == pytest.approx(100 / CLASSES / 3)


def test_class_losses_are_those_of_plain_loops() -> None:
    every = [random_said(8), random_said(3, seed=1)]
    sums, counts = [0.0] * CLASSES, [0] * CLASSES
    for log_p, labels in every:
        for scene, y, x in np.ndindex(*labels.shape):
            label = int(labels[scene, y, x])
            if label != VOID:
                sums[label] -= float(log_p[scene, label, y, x])
                counts[label] += 1
    losses, pixels = measures.class_losses(every)
    assert pixels.tolist() == counts
    assert losses[:-1].tolist() == pytest.approx([s / n for s, n in zip(sums, counts, strict=True) if n])
    assert losses[-1].isnan()  # it is nowhere


@pytest.mark.parametrize("gradient", measures.GRADIENTS)
def test_batches_are_cut_in_turn_and_gradients_averaged_where_a_class_is_shown(gradient: gbw.Gradient) -> None:
    every = [random_said(8), random_said(8, seed=1)]
    every[1].labels[every[1].labels == 2] = VOID
    for batch in measures.BATCHES:
        found = measures.batch_statistics(every, gradient, batch)
        assert len(found) == 16 // batch
        log_p, labels = torch.cat([one.log_p for one in every]), torch.cat([one.labels for one in every])
        squares: list[list[float]] = [[] for _ in range(CLASSES)]
        for number, one in enumerate(found):
            part = slice(number * batch, (number + 1) * batch)
            alone = gbw.statistics_from_log_probabilities(log_p[part], labels[part], gradient=gradient)
            torch.testing.assert_close(one, alone)
            for c, square in enumerate(gbw.squared_gradients(alone, gradient).tolist()):
                squares[c] += [square] if alone.pixels[c] else []
        means = measures.mean_gradients(found, gradient)
        assert means[:-1].tolist() == pytest.approx([mean(some) for some in squares[:-1]])
        assert means[-1].isnan()


def test_rank_correlation_leaves_out_what_is_no_number() -> None:
    a, b = torch.rand(2, 20, generator=generator(), dtype=torch.float64)
    a[3], b[7] = torch.nan, torch.nan
    kept = [i for i in range(20) if i not in (3, 7)]
    assert measures.spearman(a, b) == pytest.approx(rank_correlation(a[kept].tolist(), b[kept].tolist()))
    assert measures.spearman(a, torch.ones(20)) is None


def test_decreases_and_what_may_tell_them() -> None:
    classes = {"before": [2.0, 1.0, None], "after": [1.0, 1.5, None], "pixels": [10.0, 4.0, 0.0]}
    found = {name: values[:2].tolist() for name, values in tables.decreases(classes).items()}
    assert found == {"nats": [1.0, -0.5], "share": [0.5, -0.5], "sum": [10.0, -2.0]}
    told = tables.predictors({**classes, "gradients": {"class_loss": [1.0, 2.0, None]}, "frequency": [0.8, 0.2, 0.0]})
    assert told["inverse frequency"].tolist() == [1.25, 5.0, np.inf]
    assert {"gradient, class loss", "the loss itself"} <= set(told)
    assert {row.name for row in tables.PREDICTORS} >= set(told)


def test_what_a_network_says_of_scenes() -> None:
    scenes = Streets("game", "val", count=9, size=(32, 64))
    segmenter = TinySegmenter(scenes.class_table.num_classes)
    every = list(measures.said(segmenter, scenes, scenes.keys))
    assert [tuple(one.log_p.shape) for one in every] == [(8, 19, 32, 64), (1, 19, 32, 64)]
    assert every[1].labels[0].tolist() == scenes.labels(scenes.keys[8]).tolist()
    assert every[0].log_p.exp().sum(1).allclose(torch.ones(()))
    found = measures.judged(segmenter, scenes)
    assert list(found) == ["miou", "iou", "recall", "loss"]
    losses, _ = measures.class_losses(every)
    assert list(found["loss"].values()) == pytest.approx(losses.tolist(), nan_ok=True)


def test_variants_and_weightings_are_those_of_the_overlays() -> None:
    def overlay(name: str) -> dict:
        text = (ROOT / "configs" / "class_weights" / f"{name}.yaml").read_text()
        return yaml.safe_load(text)["model"]["init_args"]["class_weights"]

    for variant in study.VARIANTS:
        made = class_weights.GBW(**overlay(variant.overlay).get("init_args", {}))
        assert (made.gradient, made.relative) == (variant.gradient, variant.relative)
        assert (made.budget, made.min_pixels, made.known_only, made.renormalise) == ("classes", 0, False, False)
    for name, make in study.FREQUENCY.items():
        given = overlay(name.replace(" ", "_"))
        set_so = getattr(class_weights, given["class_path"])(**given.get("init_args", {}))
        assert type(make()) is type(set_so)
        assert getattr(make(), "beta", None) == getattr(set_so, "beta", None)


def test_weights_table_shows_batches_side_by_side_and_empty_cells_empty() -> None:
    name = study.VARIANTS[0].called(1)
    one = dict.fromkeys(tables.SPREAD, 0.5)
    spread = {name: {str(batch): {**one, "rank": None} for batch in measures.BATCHES}}
    lines = tables.weights_table([{"spread": spread}], [name, "inverse frequency"]).splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}
    assert list(rows) == [name, "inverse frequency"]
    assert "0.50 / 0.50 / 0.50" in rows[name]
    assert rows[name].endswith(" |  |")
    assert rows["inverse frequency"].split(" | ")[1:-1] == [""] * (len(tables.SPREAD) - 1)
