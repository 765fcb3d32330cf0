"""VFM-UDA as settings of self-training: mirrored labels, hidden tokens, colours, the distance of projected features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_method_base import pair, quiet, state_of, trainer
from test_self_training import SEED, SIZE, Watch, batch, confident, log_p, method, weighted
from tiny import tiny_network
from torch import Tensor, nn

from adaptseg import networks
from adaptseg.augment.color import DRAWS, Blur, ColorJitter, Colors, strong_augmentation
from adaptseg.classes import STREETS, VOID
from adaptseg.data import Batch
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.sampling import uniform_draws
from adaptseg.errors import AdaptSegError
from adaptseg.methods import DUDA, Adversarial, Masking, Optimization, ProjectedDistance, Supervised, TaughtMasking
from adaptseg.methods.projected_features import WEAK
from adaptseg.networks import PyramidViTSegmenter, ViTSegmenter
from adaptseg.networks.vit_encoder import TokenEncoder

__all__ = ["batch"]  # a fixture
TINY = "test_vit"
GRID = (2, 4)  # patches of 16 in images of 32 x 64


@pytest.fixture(autouse=True)
def _as_on_the_command_line() -> None:
    quiet()


def transformer(num_classes: int) -> ViTSegmenter:
    """With weights that depend on nothing but this line; a mask token that shows."""
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        made = ViTSegmenter(num_classes, encoder=TINY)
        nn.init.normal_(made.tokens.mask_token)
        return made


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with weights of a frozen encoder."""
    file = tmp_path_factory.mktemp("weights") / "encoder.pth"
    torch.manual_seed(7)
    torch.save(TokenEncoder(TINY, weights=False).model.state_dict(), file)
    return str(file)


@pytest.fixture
def near(frozen: str) -> Callable[..., ProjectedDistance]:
    def settings(**other: Any) -> ProjectedDistance:
        return ProjectedDistance(**{"encoder": TINY, "weights": frozen, "size": (32, 48), **other})

    return settings


def images_seen_by(network: nn.Module) -> list[Tensor]:
    seen: list[Tensor] = []
    network.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    return seen


# ---- pseudo-labels and masks


def test_the_teacher_labels_an_image_and_its_mirror_image(batch: Batch) -> None:
    assert batch.source is not None
    assert batch.target is not None
    nothing = torch.full_like(batch.target.bought, VOID)
    clean = batch._replace(target=batch.target._replace(bought=nothing, bought_pixels=0))
    assert clean.target is not None
    model = method(mirror=True)
    with torch.no_grad():  # a teacher that tells left from right
        for parameter in model.teacher.network.parameters():
            parameter.mul_(1.1)
    teacher, image = model.teacher.network.double(), clean.target.image.double()
    straight, mirrored = (log_p(teacher, shown).exp() for shown in (image, image.flip(3)))
    p = (straight + mirrored.flip(3)) / 2
    model.teacher.network.float()
    plain = method().step(clean).logs["confidence"]
    seen = images_seen_by(model.student)
    result = model.step(clean)
    share = float((p.amax(1) >= 0.5).double().mean())
    assert float(result.logs["confidence"]) == pytest.approx(share, abs=1e-3)
    assert float(plain) != pytest.approx(share, abs=1e-3)
    source, labels = clean.source, p.argmax(1)
    pasted = (seen[1] == source.image).all(1)
    weights = torch.where(pasted, 1.0, share * clean.target.trusted).double()
    mixed = torch.where(pasted, source.labels, labels)
    expected = weighted(log_p(model.student.double(), seen[1].double()), mixed, weights)
    assert float(result.logs["mixed"]) == pytest.approx(float(expected.detach()), rel=1e-3)


def test_tokens_are_hidden_by_their_samples_draws_and_from_the_student_alone(batch: Batch) -> None:
    model = method(network=transformer, masking=Masking(block="token", ratio=0.7), confidence_threshold=0.1)
    given: list[Any] = []
    model.student.register_forward_hook(lambda m, args, named, out: given.append((args[0], named)), with_kwargs=True)
    taught: list[Any] = []
    model.teacher.network.register_forward_hook(lambda m, args, named, out: taught.append(named), with_kwargs=True)
    result = model.step(batch)
    masks = [named.get("token_mask") for _, named in given]
    assert [mask is None for mask in masks] == [True, True, False]
    draws = uniform_draws(SEED, "mask", batch.samples, GRID)
    assert torch.equal(masks[2], draws < 0.7)
    assert 0.2 < float(masks[2].float().mean()) < 1
    assert batch.target is not None
    assert torch.equal(given[2][0], batch.target.image)  # whole: the tokens hide what is hidden
    assert taught == [{}]
    domains = [type(d)(*(v[1:] if isinstance(v, (Tensor, list)) else v for v in d)) for d in batch[:2] if d is not None]
    lone = Batch(*domains, batch.samples[1:])
    alone = method(network=transformer, masking=Masking(block="token", ratio=0.7))
    given.clear()
    alone.student.register_forward_hook(lambda m, args, named, out: given.append((args[0], named)), with_kwargs=True)
    alone.step(lone)
    assert torch.equal(given[2][1]["token_mask"], masks[2][1:])  # whatever the companions
    assert result.logs.keys() == {"source", "mixed", "masked", "confidence"}
    result.loss.backward()
    assert model.student.tokens.mask_token.grad.any()


def test_other_hosts_hide_tokens_too(batch: Batch) -> None:
    masking = TaughtMasking(block="token", confidence_threshold=0.1)
    for model in (
        Adversarial(network=transformer, class_table=STREETS, masking=masking),
        DUDA(network=transformer, large=transformer, class_table=STREETS, masking=Masking("token"), small_masking=True),
    ):
        hidden: list[Any] = []
        model.student.register_forward_hook(
            lambda m, a, named, out, seen=hidden: seen.append(named.get("token_mask")), with_kwargs=True
        )
        model.step(batch)
        assert sum(mask is not None for mask in hidden) == 1


# ---- colours


def test_source_and_target_are_coloured_by_their_samples_draws(batch: Batch) -> None:
    strong = Colors(ColorJitter(grey=0.5, probability=1.0), Blur(probability=1.0, sigma=(0.15, 3.0)))
    plain, model = method(), method(source_colors=strong, target_colors=WEAK)
    bare, seen = images_seen_by(plain.student), images_seen_by(model.student)
    taught = images_seen_by(model.teacher.network)
    plain.step(batch)
    model.step(batch)
    assert batch.target is not None

    def colored(image: Tensor, stream: str, colors: Colors) -> Tensor:
        draws = uniform_draws(SEED, f"augment/{stream}", batch.samples, (DRAWS,))
        return strong_augmentation(
            image, draws, jitter=colors.jitter, blur=colors.blur, mean=IMAGENET_MEAN, std=IMAGENET_STD
        )

    assert torch.equal(seen[0], colored(bare[0], "source", strong))
    pasted = (bare[1] != batch.target.image).any(1, keepdim=True)
    assert torch.equal(seen[1], torch.where(pasted, bare[1], colored(batch.target.image, "target", WEAK)))
    assert torch.equal(taught[0], batch.target.image)
    alone = Supervised(network=confident, class_table=STREETS, seed=SEED, source_colors=strong)
    lone = images_seen_by(alone.student)
    alone.step(batch)
    assert torch.equal(lone[0], seen[0])


# ---- distance of projected features


@pytest.mark.parametrize("cls", [ViTSegmenter, PyramidViTSegmenter])
def test_the_distance_against_a_written_out_one(batch: Batch, near: Callable[..., ProjectedDistance], cls: Any) -> None:
    torch.manual_seed(0)
    model = method(network=lambda n: cls(n, encoder=TINY), feature_distance=near(weight=0.3))
    assert model.projected is not None
    assert batch.source is not None
    assert batch.target is not None
    fixed, head = model.projected.reference, model.projected.projection
    expected = {}
    for name, image in (("source", batch.source.image), ("target", batch.target.image)):
        draws = uniform_draws(SEED, f"augment/near/{name}", batch.samples, (DRAWS,))
        shown = strong_augmentation(image, draws, jitter=WEAK.jitter, blur=None, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        small = F.interpolate(image, size=(32, 48), mode="bilinear")
        reference = fixed.model.forward_features(small)[:, 1:].transpose(1, 2).unflatten(2, (2, 3))
        own = F.interpolate(head(model.student(shown).features[-1]), size=(2, 3), mode="bilinear")
        cosine = (own * reference).sum(1) / (own.norm(dim=1) * reference.norm(dim=1))
        gap = (own - reference).abs()
        smooth = torch.where(gap < 1, gap.square() / 2, gap - 0.5).mean(1)
        expected[name] = (0.9 * (1 - cosine) + 0.1 * smooth).mean()
    gradients = torch.autograd.grad(0.3 * sum(expected.values()), list(head.parameters()))
    result = model.step(batch)
    result.loss.backward()
    for name, value in expected.items():
        assert float(result.logs[f"feature_distance_{name}"]) == pytest.approx(float(value.detach()), rel=1e-4)
    for parameter, gradient in zip(head.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_the_last_loss_touches_every_parameter_and_the_burn_in_the_source_only(
    batch: Batch, near: Callable[..., ProjectedDistance]
) -> None:
    for burns_in in (True, False):
        model = method(network=transformer, feature_distance=near(), masking=Masking("token"), burn_in=0.5)
        model.burn_in_steps = int(burns_in)
        result = model.step(batch)
        for parameter in model.parameters():
            parameter.grad = None
        result.loss.backward()
        learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None for parameter in learns)
        assert not any(parameter.grad.any() for parameter in model.companions)
        assert ("feature_distance_target" in result.logs) != burns_in


def test_the_frozen_encoder_is_no_part_of_the_method(near: Callable[..., ProjectedDistance], tmp_path: Path) -> None:
    model = method(network=transformer, feature_distance=near(), optimization=Optimization(name="adamw", lr=1e-3))
    assert model.projected is not None
    before = [value.clone() for value in model.projected.reference.state_dict().values()]
    projection = model.projected.projection[0].weight.clone()
    run = trainer(tmp_path, steps=2)
    run.fit(model, pair())
    after = model.projected.reference
    assert all(map(torch.equal, before, after.state_dict().values()))
    assert not any(module.training for module in after.modules())
    assert not torch.equal(projection, model.projected.projection[0].weight)
    mine = {id(parameter) for parameter in model.parameters()}
    learns = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert not {id(parameter) for parameter in after.parameters()} & (mine | learns)
    assert {id(p) for p in model.companions} <= learns
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert {key.split(".")[0] for key in saved} == {"student", "teacher", "projected"}
    assert {key for key in saved if key.startswith("projected")} == {
        f"projected.projection.{layer}.{kind}" for layer in (0, 1, 3) for kind in ("weight", "bias")
    }
    for name, network in (("student", model.student), ("teacher", model.teacher.network)):
        loaded = networks.load(tmp_path / "last.ckpt", name)
        image = torch.randn(1, 3, *SIZE)
        assert torch.equal(loaded(image).logits, network.eval()(image).logits)


def test_a_resume_repeats_losses_weights_and_momenta(near: Callable[..., ProjectedDistance], tmp_path: Path) -> None:
    def fit(watch: Watch, checkpoint: Path | None = None) -> Any:
        model = method(
            network=lambda n: ViTSegmenter(n, encoder=TINY, drop_path_rate=0.2),
            optimization=Optimization(name="adamw", lr=1e-3, layer_decay=0.9),
            masking=Masking(block="token"),
            mirror=True,
            source_colors=WEAK,
            target_colors=WEAK,
            feature_distance=near(),
        )
        run = trainer(tmp_path, watch, steps=4)
        run.fit(model, pair(), ckpt_path=checkpoint)
        return run

    torch.manual_seed(0)
    whole = Watch(tmp_path)
    expected = fit(whole)
    torch.manual_seed(5)  # other weights, all of which the checkpoint replaces
    resumed = Watch()
    run = fit(resumed, tmp_path / "step2.ckpt")
    assert resumed.losses == whole.losses[2:]
    for a, b in zip(state_of(run), state_of(expected), strict=True):
        assert a == b if isinstance(a, dict) else torch.equal(a, b)


# ---- refusals


def test_what_cannot_be_is_refused_when_the_method_is_made(near: Callable[..., ProjectedDistance]) -> None:
    said = r"model\.masking with block: token needs a network that honours 'token_mask', but TinySegmenter accepts"
    with pytest.raises(AdaptSegError, match=said):
        method(masking=Masking(block="token"))
    with pytest.raises(AdaptSegError, match=said):
        Adversarial(network=tiny_network, class_table=STREETS, masking=TaughtMasking(block="token"))
    with pytest.raises(AdaptSegError, match=said):
        DUDA(network=tiny_network, large=transformer, class_table=STREETS, masking=Masking("token"), small_masking=True)
    with pytest.raises(AdaptSegError, match=r"TinySegmenter has no tokens to hide"):
        tiny_network(2).token_grid((32, 32))
    with pytest.raises(AdaptSegError, match=r"block is patch; 1 or more pixels, or 'token'"):
        Masking(block="patch")  # type: ignore[arg-type]
    refused = {"weight is 0.0": {"weight": 0.0}, "weights is false": {"weights": False}, "size is": {"size": (0, 5)}}
    for key, settings in refused.items():
        with pytest.raises(AdaptSegError, match=rf"model\.feature_distance\.{key}"):
            near(**settings)
