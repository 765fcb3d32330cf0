"""Recipes on vision foundation models at the published scale: their numbers are the published ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from test_configs import CONFIGS
from test_paper_recipes import PAPER, OnMeta, parsed, quiet

from adaptseg.methods import ProjectedDistance, SelfTraining, Supervised
from adaptseg.methods.optimization import Optimization
from adaptseg.networks import PyramidViTSegmenter, ViTSegmenter
from adaptseg.recipes import load_recipe

__all__ = ["quiet"]  # a fixture that every test uses


class Row(NamedTuple):
    """What a recipe's released configuration says; rates before the factor sqrt(8) of the batch."""

    method: type
    network: type
    encoder: str
    rate: float
    encoder_factor: float
    layer_decay: float = 1.0
    source: str = "gta5"


BASE, LARGE = "vit_base_patch14_dinov2", "vit_large_patch14_dinov2"
ROWS = {
    "vfm_uda_base_gta5": Row(SelfTraining, ViTSegmenter, BASE, 5e-5, 0.1),
    "vfm_uda_large_gta5": Row(SelfTraining, ViTSegmenter, LARGE, 5e-5, 0.1),
    "vfm_uda_plus_base_gta5": Row(SelfTraining, PyramidViTSegmenter, BASE, 5e-5, 0.1, 0.9),
    "vfm_uda_plus_large_gta5": Row(SelfTraining, PyramidViTSegmenter, LARGE, 1e-5, 0.1, 0.9),
    "vfm_uda_plus_base_synthia": Row(SelfTraining, PyramidViTSegmenter, BASE, 5e-5, 0.1, 0.9, "synthia"),
    "source_only_vfm_base_gta5": Row(Supervised, ViTSegmenter, BASE, 5e-5, 0.01),
    "source_only_vfm_large_gta5": Row(Supervised, ViTSegmenter, LARGE, 5e-5, 0.01),
}
RECIPES = [path for path in PAPER if "vfm" in path.stem]


def row(recipe: Path) -> Row:
    return ROWS[recipe.stem.removesuffix("_to_cityscapes")]


def test_every_row_has_a_recipe() -> None:
    assert [path.stem for path in RECIPES] == sorted(f"{name}_to_cityscapes" for name in ROWS)


def is_weak(colors: Any) -> bool:
    jitter = colors.jitter
    strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    return (
        strengths == (pytest.approx(32 / 255, abs=1e-5), 0.5, 0.5, 18 / 360)
        and (jitter.probability, jitter.grey, colors.blur) == (0.9, 0.0, None)
    )  # fmt: skip


def is_strong(colors: Any) -> bool:
    jitter, blur = colors.jitter, colors.blur
    strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, jitter.grey)
    return (
        (strengths, jitter.probability) == ((0.8, 0.8, 0.8, 0.4, 0.1), 0.8)
        and (blur.probability, tuple(blur.sigma)) == (0.5, (0.15, 3.0))
    )  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_numbers_are_the_published_ones(recipe: Path) -> None:
    config, published = parsed(recipe), row(recipe)
    assert set(load_recipe(recipe)) == {"model", "data", "trainer"}
    assert config.model.class_path == f"adaptseg.methods.{published.method.__name__}"
    assert config.trainer.max_steps == 40_000
    model, plus = config.model.init_args, published.network is PyramidViTSegmenter
    network = model.network.init_args
    assert model.network.class_path == f"adaptseg.networks.{published.network.__name__}"
    assert (network.encoder, network.weights, network.scale) == (published.encoder, True, 1.1)
    assert (tuple(model.inference.window), tuple(model.inference.stride)) == ((1024, 1024), (512, 512))
    assert is_strong(model.source_colors) if plus else is_weak(model.source_colors)
    if published.method is SelfTraining:
        assert (model.alpha, model.mirror, model.confidence_threshold) == (0.999, True, 0.968)
        assert (model.confidence_scope, model.mix_scope, model.evaluate) == ("batch", "batch", "student")
        assert is_weak(model.target_colors)
        assert (model.jitter.strength, model.jitter.probability, model.jitter.grey) == (0.2, 0.8, 0.0)
        assert (model.blur.probability, tuple(model.blur.sigma)) == (0.5, (0.15, 1.15))
        masking = model.masking
        assert (masking.ratio, masking.weight, masking.augment) == (0.7, 1.0, True)
        # 64 pixels of the 1120 that the encoder sees are 18 blocks a side.
        assert round(1024 / masking.block) == round(1120 / 64) == 18 if plus else masking.block == "token"
        assert (model.feature_distance is not None) == plus
        if plus:
            near = model.feature_distance
            assert (near.encoder, near.weights, near.weight) == ("vit_large_patch14_reg4_dinov2", True, 0.1)
            assert tuple(near.size) == (406, 406)
            assert is_weak(near.colors)
    data = config.data.init_args
    assert data.source.class_path == f"adaptseg.data.{ {'gta5': 'GTA5', 'synthia': 'Synthia'}[published.source] }"
    assert data.target.class_path == data.val.class_path == "adaptseg.data.Cityscapes"
    # 1440 or 1024 rows, the other side by the ratio of 1914x1052 or 1280x760.
    sizes = {"gta5": (1440, round(1914 * 1440 / 1052)), "synthia": (1024, round(1280 * 1024 / 760))}
    assert (tuple(data.source_size), tuple(data.target_size)) == (sizes[published.source], (1024, 2048))
    assert (tuple(data.crop), data.batch_size, data.flip, data.max_class_share) == ((1024, 1024), 8, True, 0.75)
    assert tuple(data.untrusted_margins) == (0.03, 0.25, 0.03, 0.03)
    rare, counted = data.rare_class_sampling, {"gta5": 1052 * 1914, "synthia": 760 * 1280}[published.source]
    assert (rare.temperature, rare.attempts) == (0.05, 20)
    assert rare.min_share == pytest.approx(3000 / counted, rel=5e-3)
    assert rare.min_crop_share == pytest.approx(6000 / 1024**2, rel=5e-3)


ONE_OF_EACH = {yaml.safe_dump(load_recipe(path)["model"]): path for path in RECIPES}


@pytest.mark.parametrize("recipe", ONE_OF_EACH.values(), ids=lambda path: path.stem)
def test_method_can_be_made_and_its_rates_are_the_published_ones(recipe: Path) -> None:
    """With Streets for the data, which need no files, and without the hub's weights, which the distance needs."""
    given, published = load_recipe(recipe), row(recipe)
    given["data"] = load_recipe(CONFIGS / "dacs.yaml")["data"]
    given["model"]["init_args"]["network"]["init_args"]["weights"] = False
    given["model"]["init_args"].pop("feature_distance", None)
    cli = OnMeta(argparse.Namespace(), [recipe], ["fit", "--config", yaml.safe_dump(given)])
    method: Any = cli.made["fit"]["model"]
    assert isinstance(method, published.method)
    assert type(method.student) is published.network
    assert {p.device.type for p in method.parameters()} == {"meta"}
    assert method.student.token_grid((1024, 1024)) == (80, 80)
    depth, width = (24, 1024) if published.encoder == LARGE else (12, 768)
    assert (method.student.tokens.depth, method.student.tokens.width) == (depth, width)
    rates: Optimization = method.optimization
    assert (rates.name, rates.weight_decay, rates.decay_norm_and_bias) == ("adamw", 0.01, True)
    optimizer, _ = rates.build(method.student, 40_000)
    head = published.rate * 8**0.5
    encoder = head * published.encoder_factor
    found = {group["name"]: group["initial_lr"] for group in optimizer.param_groups}
    wanted = {"head": head, "encoder": encoder}
    if published.layer_decay != 1:
        # The last block at the encoder's rate, the one before at 0.9 of it, ..., patches and positions at 0.9 ** depth.
        wanted = {"head": head} | {f"encoder_layer{i}": encoder * 0.9 ** (depth - i) for i in range(depth + 1)}
    assert found == pytest.approx(wanted, rel=1e-5)
    # The release's: a line from 1e-3 to 1 over 1500 steps (1499 there), then 1 - k / 40000.
    for step, factor in {0: 1e-3, 1499: 1.0, 1500: 0.9625, 20_000: 0.5, 39_000: 0.025}.items():
        assert rates.factor(step, 40_000) == pytest.approx(factor, rel=1e-3)


def test_the_frozen_encoder_of_the_distance_is_read_from_a_file(tmp_path: Path) -> None:
    """The recipe's own block, on a toy of timm: told from DAFormer's distance by its encoder."""
    import timm

    given = load_recipe(CONFIGS / "paper" / "vfm_uda_plus_base_gta5_to_cityscapes.yaml")
    given["data"] = load_recipe(CONFIGS / "dacs.yaml")["data"]
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "toy.pth")
    model = given["model"]["init_args"]
    model["network"]["init_args"] |= {"encoder": "test_vit", "weights": False}
    model["feature_distance"] |= {"encoder": "test_vit", "weights": str(tmp_path / "toy.pth")}

    class Made(OnMeta):
        def before_instantiate_classes(self) -> None:
            self.finished = True
            self.made = self.parser.instantiate_classes(self.config)

    method: Any = Made(argparse.Namespace(), [], ["fit", "--config", yaml.safe_dump(given)]).made["fit"]["model"]
    assert isinstance(method.projected.settings, ProjectedDistance)
    assert method.projected.reference.grid((406, 406)) == (25, 25)
    assert method.projected.projection[0].in_channels == 64
