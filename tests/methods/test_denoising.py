"""Training a denoiser: its loss is DDPM's, its draws belong to samples, its average is what features read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_configs import CONFIGS
from test_method_base import SOURCE, TARGET, VAL, Recorder, pair, quiet, state_of, trainer
from test_resume import equal

from adaptseg import networks
from adaptseg.cli import main
from adaptseg.data import Batch
from adaptseg.data.batch import Labelled, Target
from adaptseg.data.sampling import generator
from adaptseg.errors import AdaptSegError
from adaptseg.methods import Denoising, Optimization, Supervised
from adaptseg.networks import DiffusionFeatures, load_denoiser
from adaptseg.networks.denoiser import Denoiser, centred

TINY: dict[str, Any] = {"channels": (8, 16), "attention": (), "head_dim": 8, "seed": 3}


@pytest.fixture(autouse=True)
def _as_on_the_command_line() -> None:
    quiet()


def denoising(**settings: Any) -> Denoising:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return Denoising(**{**TINY, **settings})


def batch(samples: list[int], *, source: bool = True, size: tuple[int, int] = (8, 16)) -> Batch:
    """Images that are functions of their sample numbers."""
    images = torch.stack([torch.randn(3, *size, generator=torch.Generator().manual_seed(s)) for s in samples])
    void = torch.full((len(samples), *size), 255)
    keys = [f"scene{s}" for s in samples]
    target = Target(keys, images + 0.5, void == 255, void, 0)
    return Batch(Labelled(keys, images, void) if source else None, target, samples)


def test_the_loss_is_the_error_of_the_predicted_noise() -> None:
    """Against a loop over images in the paper's letters."""
    method, given = denoising(), batch([4, 9, 2])
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    errors: dict[str, list[torch.Tensor]] = {"source": [], "target": []}
    for name, found in errors.items():
        images = getattr(given, name).image
        for sample, image in zip(given.samples, images, strict=True):
            u = generator(3, f"denoising/{name}/timestep", sample).random((), dtype="float32")
            t = int(u * 1000)
            noise = generator(3, f"denoising/{name}/noise", sample).standard_normal(image.shape, dtype="float32")
            eps = torch.from_numpy(noise)
            noisy = (abar[t].sqrt() * centred(image) + (1 - abar[t]).sqrt() * eps).float()
            predicted = method.online(noisy[None], torch.tensor([t]))[0]
            found.append(((predicted - eps) ** 2).mean())
    result = method.step(given)
    means = {name: torch.stack(found).mean() for name, found in errors.items()}
    for name, value in means.items():
        torch.testing.assert_close(result.logs[name], value.detach(), rtol=1e-4, atol=1e-5)
    # The source's half is descended before: what remains is the target's.
    torch.testing.assert_close(result.loss, means["target"] / 2, rtol=1e-4, atol=1e-5)
    result.loss.backward()
    wanted = torch.autograd.grad((means["source"] + means["target"]) / 2, list(method.online.parameters()))
    for parameter, gradient in zip(method.online.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_target_alone() -> None:
    result = denoising().step(batch([1, 2], source=False))
    assert set(result.logs) == {"target"}
    torch.testing.assert_close(result.loss.detach(), result.logs["target"])


def test_parts_of_a_batch_train_like_the_whole() -> None:
    """Two processes: the mean over ranks of loss and gradient is that of the global batch."""
    method = denoising()
    losses = [method.step(batch(samples, source=False)).loss for samples in ([5, 6, 7, 8], [5, 6], [7, 8])]
    parameters = list(method.online.parameters())
    gradients = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]) for loss in losses]
    torch.testing.assert_close(losses[0], (losses[1] + losses[2]) / 2)
    torch.testing.assert_close(gradients[0], (gradients[1] + gradients[2]) / 2, rtol=1e-3, atol=1e-6)


def test_resume_is_exact(tmp_path: Path) -> None:
    def fit(folder: Path, **start: Any) -> Any:
        run = trainer(folder, Recorder(folder), steps=6)
        run.fit(denoising(), datamodule=pair(target_size=(16, 32), source_size=(16, 32), val=VAL), **start)
        return run

    whole = fit(tmp_path / "whole")
    again = fit(tmp_path / "again", ckpt_path=tmp_path / "whole" / "step3.ckpt", weights_only=False)
    assert whole.lightning_module.average.updates == again.lightning_module.average.updates == 6
    assert equal(state_of(whole), state_of(again))
    assert torch.equal(whole.callback_metrics["val/denoising_loss"], again.callback_metrics["val/denoising_loss"])


def test_validation_is_the_averages_error_and_leaves_no_trace(tmp_path: Path) -> None:
    def judge(method: Denoising) -> float:
        (scores,) = trainer(tmp_path).validate(method, datamodule=pair(target_size=(16, 32), val=VAL), verbose=False)
        return float(scores["val/denoising_loss"])

    method = denoising()
    first = judge(method)
    assert judge(denoising(seed=8)) == first  # noise of scenes, not of runs
    with torch.no_grad():
        for parameter in method.online.parameters():
            parameter.add_(1)
    assert judge(method) == first
    with torch.no_grad():
        for parameter in method.average.parameters():
            parameter.zero_()
    assert judge(method) == pytest.approx(1, abs=0.05)  # silence misses all of the noise's variance


def test_it_learns(tmp_path: Path) -> None:
    """From the error of silence, 1, downwards."""
    method = denoising(optimization=Optimization("adamw", lr=3e-3, head_lr_factor=1, weight_decay=0), alpha=0.9)
    run = trainer(tmp_path, steps=60)
    run.fit(method, datamodule=pair(target_size=(16, 32), source_size=(16, 32), val=VAL, tick=60))
    assert float(run.callback_metrics["val/denoising_loss"]) < 0.6


def test_no_label_is_read(tmp_path: Path) -> None:
    given = batch([1, 2])
    assert given.source is not None
    relabelled = given._replace(source=given.source._replace(labels=torch.zeros_like(given.source.labels)))
    assert torch.equal(denoising().step(given).loss, denoising().step(relabelled).loss)


# ---- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("denoising") / "some.ckpt"
    quiet()
    run = trainer(path.parent, steps=2)
    run.fit(denoising(alpha=0.5), datamodule=pair(source=SOURCE, target=TARGET))
    run.save_checkpoint(path)
    return path


def test_the_average_is_what_features_read(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=False)["state_dict"]
    loaded = load_denoiser(checkpoint)
    assert isinstance(loaded, Denoiser)
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[f"average.network.{name}"])
    assert any(not torch.equal(v, state[f"online.{n}"]) for n, v in loaded.state_dict().items())
    features = DiffusionFeatures(str(checkpoint), timesteps=(100,))
    assert features.blocks == (1, 3)
    assert features.level_channels == (16, 8)
    noisy, timesteps = torch.randn(1, 3, 8, 8), torch.tensor([7])
    torch.testing.assert_close(features.unet(noisy, timesteps).sample, loaded(noisy, timesteps))
    assert networks.rebuild(checkpoint, "online").state_dict().keys() == loaded.state_dict().keys()


def test_checkpoints_of_other_methods_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    from tiny import tiny_network

    from adaptseg.classes import STREETS

    other = tmp_path / "other.ckpt"
    run = trainer(tmp_path, steps=1)
    run.fit(Supervised(network=tiny_network, class_table=STREETS), datamodule=pair())
    run.save_checkpoint(other)
    with pytest.raises(AdaptSegError, match=r"has no network 'denoiser'; it has student"):
        DiffusionFeatures(str(other))
    with pytest.raises(AdaptSegError, match=r"has no network 'student'; it has denoiser, online"):
        networks.load(checkpoint)
    with pytest.raises(AdaptSegError, match=r"'denoiser' is a Denoiser, not a Segmenter"):
        networks.load(checkpoint, "denoiser")


# ---- refusals


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"channels": ()}, "model.channels is []"),
        ({"channels": (8, 12)}, "model.channels is [8, 12]; multiples of 8"),
        ({"layers": 0}, "model.layers is 0"),
        ({"attention": (2,)}, "2 channels make levels 0 to 1"),
        ({"head_dim": 5}, "it must divide 16 channels"),
        ({"alpha": 1.0}, "model.alpha is 1.0"),
        ({"optimization": Optimization()}, "model.optimization.head_lr_factor is 10.0"),
    ],
)
def test_refused_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError) as error:
        denoising(**settings)
    assert said in str(error.value)


def test_refused_images() -> None:
    with pytest.raises(AdaptSegError, match="images of 9x16 pixels given; the network needs multiples of 2"):
        denoising().step(batch([1], size=(9, 16)))


# ---- the command line


def flags(folder: Path) -> list[str]:
    given = ["--config", str(CONFIGS / "denoising.yaml"), "--runs", str(folder)]
    given += ["--model.channels", "[8, 8]", "--model.attention", "[]", "--model.head_dim", "8"]
    given += ["--data.source_size", "[16, 32]", "--data.target_size", "[16, 32]"]
    for split in ("source", "target", "val", "test"):
        given += [f"--data.{split}.count", "3", f"--data.{split}.size", "[32, 64]"]
    return [*given, "--trainer.max_steps", "4", "--trainer.accelerator", "cpu"]


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, run = flags(tmp_path), tmp_path / "denoising" / "seed0"
    assert main(["fit", *given]) == 0, capsys.readouterr().err
    result = json.loads((run / "result.json").read_text())
    assert result["val"].keys() == {"denoising_loss"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert "val/denoising_loss" in capsys.readouterr().out
    assert main(["test", *given]) == 0, capsys.readouterr().err
    assert json.loads((run / "test.json").read_text())["denoising_loss"] > 0
    capsys.readouterr()
    assert main(["predict", *given]) == 2
    said = capsys.readouterr().err
    assert said == (
        "adaptseg: error: Denoising predicts no labels: `adaptseg predict` needs a method of segmentation\n"
    )
    bought = [*given[:2], "--config", str(CONFIGS / "active" / "random.yaml"), *given[2:], "--name", "other"]
    assert main(["fit", *bought]) == 2
    assert "there are none to buy" in capsys.readouterr().err
    features = DiffusionFeatures(str(run))
    assert features.maps(torch.zeros(1, 3, 16, 32))[0].shape[1] == features.level_channels[0]


def test_best_is_the_lowest_error() -> None:
    assert Denoising.monitor == ("val/denoising_loss", "min")
    assert Supervised.monitor == ("val/miou", "max")


@pytest.mark.slow
def test_other_recipes_do_not_wait_for_diffusers() -> None:
    code = "import sys, adaptseg.lightning_cli; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
