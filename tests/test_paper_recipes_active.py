"""Recipes of RIPU and CBDA at the published scale: their numbers are those of their specification, 2.3 to 2.6."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from test_configs import CONFIGS, ParseOnly, parse
from test_paper_recipes import PAPER, OnMeta, parsed, quiet

from adaptseg.active import CBDA
from adaptseg.active.dense import SCHEDULES
from adaptseg.methods import Supervised
from adaptseg.methods.optimization import Optimization
from adaptseg.networks import DeepLabV2, Inference, WideDeepLabV3Plus
from adaptseg.recipes import load_recipe
from adaptseg.stages import read_stages

__all__ = ["quiet"]  # a fixture that every test uses

PIXELS, IMAGES = 1024 * 2048, 2975
SOURCES = {"gta5": ("GTA5", 19), "synthia": ("Synthia", 16)}
"""Source -> reader and number of classes."""


class Row(NamedTuple):
    """What belongs to one recipe; `picks` in an image and round, None: in the whole pool."""

    network: str
    budget: float
    unit: str
    picks: int | None
    radius: int = 1


ROWS = {
    "ripu_40px": Row("DeepLabV2", 102.4, "pixels_per_image", 21, radius=32),
    "ripu_2_2pct": Row("DeepLabV2", 0.022, "fraction", 1026),
    "ripu_5pct": Row("WideDeepLabV3Plus", 0.05, "fraction", 2331),
    **{f"cbda_{budget}pct": Row("WideDeepLabV3Plus", budget / 100, "fraction", None) for budget in (5, 10, 20)},
}
ALL = [(name, source) for name in ROWS for source in SOURCES]
each = pytest.mark.parametrize(("name", "source"), ALL)
each_source = pytest.mark.parametrize("source", SOURCES)


def path(name: str, source: str) -> Path:
    return CONFIGS / "paper" / f"{name}_{source}_to_cityscapes.yaml"


def config_of(name: str, source: str) -> Any:
    return parsed(path(name, source))


def source_free(source: str) -> tuple[Any, Any]:
    """Its two trainings, parsed, the second as if it started from no file."""
    first, second = read_stages([path("ripu_source_free", source)], [], "/data")
    assert (first.name, second.name) == ("source_only", "adapted")
    assert second.flags == (("model.init_from", "{stage:source_only}"),)
    given = [ParseOnly(argparse.Namespace(), [Path(s.name)], ["fit", "--config", yaml.safe_dump(s.recipe)])
             for s in (first, second)]  # fmt: skip
    return given[0].config.fit, given[1].config.fit


def test_these_are_all() -> None:
    supervised = [
        p.stem for p in PAPER if load_recipe(p)["model"]["class_path"] == "Supervised" and "_vfm_" not in p.stem
    ]
    expected = [f"{name}_{source}_to_cityscapes" for name in (*ROWS, "ripu_source_only") for source in SOURCES]
    assert supervised == sorted(expected)


def check_training(config: Any, network: str, *, lr: float, stop: int, length: int, extra: bool) -> None:
    """Section 2.6, and of 2.5 the weights that are not 1."""
    assert config.model.class_path == "adaptseg.methods.Supervised"
    assert config.trainer.max_steps == stop
    model = config.model.init_args
    assert model.network.class_path == f"adaptseg.networks.{network}"
    inner = model.network.init_args
    # torchvision's layout and weights, dilated as by torchvision; norms without eps.
    assert (inner.encoder, inner.norm) == ("tu-resnet101.tv_in1k", "frozen_without_eps")
    if network == "DeepLabV2":
        assert (tuple(inner.dilations), inner.auxiliary_dilations) == ((6, 12, 18, 24), None)
    else:
        assert (tuple(inner.dilations), inner.channels, inner.shortcut_channels) == ((1, 6, 12, 18), 512, 48)
        assert (inner.dropout, inner.head_norm, inner.align_corners) == (0.1, None, True)
    rates = Optimization(**vars(model.optimization))
    assert (rates.name, rates.lr, rates.head_lr_factor, rates.momentum) == ("sgd", lr, 10.0, 0.9)
    assert (rates.weight_decay, rates.decay_norm_and_bias, rates.nesterov, rates.warmup_steps) == (5e-4, True, False, 0)
    for step in (0, 1, 1000, stop - 1):
        assert rates.factor(step, stop) == pytest.approx((1 - step / length) ** 0.9, rel=1e-6)
    assert (model.source_weight, model.target_weight, model.class_weights, model.least_bought) == (1.0, 1.0, None, 1)
    assert (model.negative_weight, model.negative_threshold) == ((1.0, 0.05) if extra else (0.0, 0.05))
    assert model.consistency_weight == (0.1 if extra and config.data.init_args.source is not None else 0.0)
    assert Inference(**vars(model.inference)) == Inference(flip=True, align_corners=True)


def check_data(data: Any, source: str, *, target_size: tuple[int, int] = (640, 1280)) -> None:
    reader, classes = SOURCES[source]
    given = data.init_args
    if given.source is not None:
        assert given.source.class_path == f"adaptseg.data.{reader}"
        assert tuple(given.source_size) == (720, 1280)
        assert given.class_balanced_sampling.sub_epoch == 3000
        assert classes == 19 or given.source.init_args.classes == 16
    for name, split in (("target", "train"), ("val", "val"), ("test", "val")):
        scenes = getattr(given, name)
        if scenes is not None:
            assert scenes.class_path == "adaptseg.data.Cityscapes"
            assert (scenes.init_args.split, scenes.init_args.classes) == (split, classes)
    assert (tuple(given.target_size), given.batch_size, given.image_filter) == (target_size, 2, "bicubic")
    assert (given.crop, given.flip, given.rare_class_sampling, given.max_class_share) == (None, False, None, None)
    assert given.target is None or given.pool_size == "native"


def acquisition(active: Any) -> CBDA:
    """The real callback, made from parsed arguments."""
    given = dict(vars(active.init_args))
    return CBDA(**{**given, "inference": Inference(**vars(given["inference"])), "oracle": None})


def check_scored_as_released(made: CBDA) -> None:
    assert made.inference == Inference(align_corners=True, stepwise=True)
    assert (made.score, made.shares, made.max_share_per_image) == ("ripu", [0.2] * 5, 1.0)
    assert not made.forbid_void


def picks(made: CBDA) -> int:
    """What the release's ceil gives for one image of the training set."""
    budget = made.total_budget(PIXELS * IMAGES, IMAGES) / IMAGES
    return made._count_per_image("", budget)


@each
def test_training_and_data_are_the_released_ones(name: str, source: str) -> None:
    config = config_of(name, source)
    assert set(load_recipe(path(name, source))) == {"model", "data", "active", "trainer"}
    check_training(config, ROWS[name].network, lr=2.5e-4, stop=40_000, length=62_500, extra=True)
    check_data(config.data, source)


@each
def test_acquisition_is_the_published_one(name: str, source: str) -> None:
    row, made = ROWS[name], acquisition(config_of(name, source).active)
    check_scored_as_released(made)
    assert (made.budget, made.budget_unit, made.radius) == (row.budget, row.unit, row.radius)
    schedule = "spread" if name.startswith("cbda") else "original"
    assert made.schedule == list(SCHEDULES[schedule])
    steps = {
        "original": [10_000, 12_000, 14_000, 16_000, 18_000],
        "spread": [10_000, 18_000, 24_000, 28_000, 30_000],
    }
    assert made.round_steps(40_000, 40_000 // 20) == steps[schedule]
    if row.picks is None:
        assert (made.selection, made.balance, made.rounding, made.unit, made.suppress_radius) == (
            "pool", True, "exact", "region", 2,
        )  # fmt: skip
        return
    assert (made.selection, made.balance, made.rounding) == ("image", False, "ceil")
    assert picks(made) == row.picks
    if name == "ripu_40px":
        assert (made.mode, made.unit, made.side, made.suppress_radius) == ("pixel", "pixel", 1, 32)
        # 40 pixels of the network's size, shared over five rounds.
        assert picks(made) == math.ceil(40 / 5 / (1280 * 640) * (2048 * 1024))
    else:
        assert (made.mode, made.unit, made.side, made.suppress_radius) == ("region", "region", 3, 2)
    made.check_budget({str(i): (1024, 2048) for i in range(3)})


@pytest.mark.parametrize(("budget", "expected"), [(0.1, 4661), (0.2, 9321)])
def test_ripu_at_the_budgets_of_cbda(budget: float, expected: int) -> None:
    given = config_of("ripu_5pct", "gta5").active.clone()
    given.init_args.budget = budget
    assert picks(acquisition(given)) == expected


def test_other_schedule_of_cbda_is_a_flag(tmp_path: Path) -> None:
    overlay = tmp_path / "flags.yaml"
    overlay.write_text(yaml.safe_dump({"active": {"init_args": {"schedule": "original"}}}))
    plain, laid = config_of("cbda_20pct", "gta5"), parse(path("cbda_20pct", "gta5"), overlay)
    assert acquisition(laid.active).schedule == list(SCHEDULES["original"])
    laid.active.init_args.schedule = "spread"
    assert laid == plain


@each_source
def test_recipes_of_cbda_differ_in_budget_alone(source: str) -> None:
    first, *others = (config_of(f"cbda_{budget}pct", source) for budget in (5, 10, 20))
    for other in others:
        other.active.init_args.budget = 0.05
        assert (other.model, other.data, other.active) == (first.model, first.data, first.active)


@each_source
def test_source_only_training_is_the_released_one(source: str) -> None:
    config = config_of("ripu_source_only", source)
    check_training(config, "DeepLabV2", lr=5e-4, stop=20_000, length=31_250, extra=False)
    check_data(config.data, source)
    assert config.data.init_args.target is None
    assert config.active is None


@each_source
def test_source_free_variant_is_the_released_one(source: str) -> None:
    first, second = source_free(source)
    alone = config_of("ripu_source_only", source)
    assert (first.model, first.data, first.trainer.max_steps) == (alone.model, alone.data, alone.trainer.max_steps)
    check_training(second, "DeepLabV2", lr=2.5e-4, stop=30_000, length=62_500, extra=True)
    check_data(second.data, source, target_size=(640, 1280) if source == "gta5" else (512, 1024))
    assert second.data.init_args.source is None
    made = acquisition(second.active)
    check_scored_as_released(made)
    assert (made.budget, made.radius, made.suppress_radius, made.rounding) == (0.022, 9, 18, "ceil")
    assert (made.selection, made.balance, made.unit, made.mode) == ("image", False, "region", "region")
    assert made.round_steps(30_000, second.data.init_args.tick) == [0, 2000, 4000, 6000, 8000]
    assert picks(made) == math.ceil(PIXELS * 0.022 / 5 / 19**2) == 26


@pytest.mark.parametrize(("name", "source"), [("ripu_2_2pct", "gta5"), ("ripu_5pct", "gta5")])
def test_method_can_be_made(name: str, source: str) -> None:
    """With Streets for the data, which need no files, and without the hub's weights."""
    given = load_recipe(path(name, source))
    given["data"] = load_recipe(CONFIGS / "dacs.yaml")["data"]
    given["model"]["init_args"]["network"]["init_args"]["weights"] = False
    cli = OnMeta(argparse.Namespace(), [path(name, source)], ["fit", "--config", yaml.safe_dump(given)])
    method = cli.made["fit"]["model"]
    assert isinstance(method, Supervised)
    assert isinstance(
        method.student, {"DeepLabV2": DeepLabV2, "WideDeepLabV3Plus": WideDeepLabV3Plus}[ROWS[name].network]
    )
    assert {p.device.type for p in method.parameters()} == {"meta"}
    optimizer, _ = method.optimization.build(method.student, 40_000)
    assert isinstance(optimizer, torch.optim.SGD)
    assert {g["name"]: g["initial_lr"] for g in optimizer.param_groups} == pytest.approx(
        {"encoder": 2.5e-4, "head": 2.5e-3}
    )
    assert isinstance(cli.made["fit"]["active"], CBDA)
