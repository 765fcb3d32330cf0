"""Recipes of adversarial and entropy hosts at the published scale: their numbers are the published ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from test_configs import CONFIGS
from test_paper_recipes import PAPER, OnMeta, parsed, quiet

from adaptseg.methods import Adversarial, EntropyMinimization
from adaptseg.methods.optimization import Optimization
from adaptseg.networks import DeepLabV2
from adaptseg.recipes import load_recipe

__all__ = ["quiet"]  # a fixture that every test uses


class Host(NamedTuple):
    """A row of the GBW specification's section 3, or what MIC's release makes of it."""

    method: type
    dilations: tuple[int, ...]
    multi: bool
    sees: str | None = None
    objective: str | None = None
    masking: bool = False


HOSTS = {
    "adaptsegnet_single": Host(Adversarial, (6, 12), False, "probabilities", "vanilla"),
    "adaptsegnet_multi": Host(Adversarial, (6, 12), True, "probabilities", "vanilla"),
    "advent": Host(Adversarial, (6, 12, 18, 24), True, "self_information", "vanilla"),
    "minent": Host(EntropyMinimization, (6, 12, 18, 24), True),
    "mic_adaptsegnet": Host(Adversarial, (6, 12), False, "probabilities", "least_squares", masking=True),
    "mic_advent": Host(Adversarial, (6, 12), False, "self_information", "vanilla", masking=True),
}
STEPS = {
    ("adaptsegnet", "gta5"): (150_000, 250_000), ("adaptsegnet", "synthia"): (150_000, 250_000),
    ("ent", "gta5"): (120_000, 250_000), ("ent", "synthia"): (90_000, 90_000),
}  # fmt: skip
"""Family and source -> where training stops, and the length of the schedule."""
SOURCES = {"gta5": ("GTA5", (720, 1280), (704, 1280)), "synthia": ("Synthia", (760, 1280), (760, 1280))}
"""Source -> reader, and the size of whole images in the original releases and in MIC's."""

RECIPES = [path for path in PAPER if load_recipe(path)["model"]["class_path"] in ("Adversarial", "EntropyMinimization")]


def taken_apart(recipe: Path) -> tuple[str, str]:
    """Name of host and source."""
    host, _, pair = recipe.stem.rpartition("_to_")[0].rpartition("_")
    assert recipe.stem.endswith("_to_cityscapes")
    return host, pair


def test_every_host_has_both_pairs() -> None:
    assert [path.stem for path in RECIPES] == sorted(f"{h}_{s}_to_cityscapes" for h in HOSTS for s in SOURCES)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_losses_are_the_published_ones(recipe: Path) -> None:
    config, host = parsed(recipe), HOSTS[taken_apart(recipe)[0]]
    assert set(load_recipe(recipe)) == {"model", "data", "trainer"}
    assert config.model.class_path == f"adaptseg.methods.{host.method.__name__}"
    model = config.model.init_args
    assert (model.target_weight, model.class_weights) == (1.0, None)
    if host.method is Adversarial:
        assert (model.sees, model.objective, model.adversarial_weight) == (host.sees, host.objective, 0.001)
        learns = model.discriminator
        assert (learns.width, learns.lr, tuple(learns.betas), learns.power) == (64, 1e-4, (0.9, 0.99), 0.9)
        assert learns.poly_horizon == model.optimization.poly_horizon
    else:
        assert (model.entropy_weight, model.weigh_entropy) == (0.001, False)
    assert (model.auxiliary is not None) == host.multi
    if host.multi:
        given = model.auxiliary
        assert (given.output, given.source_weight, given.adaptation_weight) == ("conv4", 0.1, 0.0002)
    assert (model.masking is not None) == host.masking
    if host.masking:  # half resolution: half of the 64 pixels
        masking = model.masking
        assert (masking.block, masking.ratio, masking.weight, masking.augment) == (32, 0.7, 1.0, True)
        assert (masking.alpha, masking.teacher_norm, masking.confidence_scope) == (0.999, "batch", "batch")
        assert masking.confidence_threshold == 0.968
        assert (masking.jitter.strength, masking.jitter.probability) == (0.2, 0.8)
        assert (masking.blur.probability, tuple(masking.blur.sigma)) == (0.5, (0.15, 1.15))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_schedule_is_the_published_one(recipe: Path) -> None:
    config, (name, source) = parsed(recipe), taken_apart(recipe)
    rates = Optimization(**vars(config.model.init_args.optimization))
    assert (rates.name, rates.momentum, rates.weight_decay, rates.decay_norm_and_bias) == ("sgd", 0.9, 5e-4, True)
    steps = config.trainer.max_steps
    if HOSTS[name].masking:
        assert steps == 40_000
        assert (rates.lr, rates.head_lr_factor, rates.warmup_steps, rates.power) == (2.5e-3, 1.0, 1500, 1.0)
        assert rates.poly_horizon == 1
        return
    stop, length = STEPS["adaptsegnet" if name.startswith("adaptsegnet") else "ent", source]
    assert steps == stop
    assert (rates.lr, rates.head_lr_factor, rates.warmup_steps, rates.power) == (2.5e-4, 10.0, 0, 0.9)
    assert rates.factor(1000, steps) == pytest.approx((1 - 1000 / length) ** 0.9, rel=1e-6)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_data_are_the_published_ones(recipe: Path) -> None:
    data, (name, source) = parsed(recipe).data.init_args, taken_apart(recipe)
    reader, whole, kept_ratio = SOURCES[source]
    assert data.source.class_path == f"adaptseg.data.{reader}"
    assert data.target.class_path == data.val.class_path == data.test.class_path == "adaptseg.data.Cityscapes"
    assert (data.target.init_args.split, data.val.init_args.split) == ("train", "val")
    assert tuple(data.target_size) == (512, 1024)
    assert data.rare_class_sampling is None
    assert not any(data.untrusted_margins)
    size = tuple(data.source_size)
    if HOSTS[name].masking:
        assert (size, tuple(data.crop), data.batch_size) == (kept_ratio, (512, 512), 2)
        assert (data.flip, data.max_class_share) == (True, 0.75)
    else:  # whole images, one of each domain, no mirror images
        assert (size, data.crop, data.batch_size, data.flip) == (whole, None, 1, False)


ONE_OF_EACH = {yaml.safe_dump(load_recipe(path)["model"]): path for path in RECIPES}


@pytest.mark.parametrize("recipe", ONE_OF_EACH.values(), ids=lambda path: path.stem)
def test_method_can_be_made(recipe: Path) -> None:
    """With Streets for the data, which need no files, and without the hub's weights."""
    given, host = load_recipe(recipe), HOSTS[taken_apart(recipe)[0]]
    given["data"] = load_recipe(CONFIGS / "dacs.yaml")["data"]
    given["model"]["init_args"]["network"]["init_args"]["weights"] = False
    cli = OnMeta(argparse.Namespace(), [recipe], ["fit", "--config", yaml.safe_dump(given)])
    method: Any = cli.made["fit"]["model"]
    assert isinstance(method, host.method)
    assert isinstance(method.student, DeepLabV2)
    assert [branch.dilation[0] for branch in method.student.head.branches] == list(host.dilations)
    assert (method.teacher is not None) == host.masking
    if isinstance(method, Adversarial):
        assert list(method.discriminators.networks) == (["main", "auxiliary"] if host.multi else ["main"])
        # 19 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 weights a tap of 16, and the biases
        parameters = sum(p.numel() for p in method.discriminators.networks["main"].parameters())
        assert parameters == 16 * (19 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 128 + 256 + 512 + 1
        assert not any(p.requires_grad for p in method.discriminators.parameters())
    assert {p.device.type for p in method.parameters()} == {"meta"}
    optimizer, _ = method.optimization.build(method.student, 40_000)
    assert isinstance(optimizer, torch.optim.SGD)
