from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from small_features import ConvFeatures, conv_network
from small_pool import TABLE, Pool
from tiny import tiny_network
from torch import Tensor
from torch.nn import functional

from adaptseg import known_warnings, lightning_cli
from adaptseg.active import TwoStageEDALD
from adaptseg.callbacks.validation import ValidationTimes
from adaptseg.classes import VOID
from adaptseg.data import DomainPair
from adaptseg.errors import AdaptSegError
from adaptseg.methods import HeadTraining, PixelClassifier
from adaptseg.networks import Inference
from adaptseg.networks.feature_bank import fixed_sample

SIZE = (12, 16)
POOL, SOURCE = dict.fromkeys("abcd", SIZE), dict.fromkeys("wxyz", (16, 20))


@pytest.fixture(autouse=True)
def _as_on_the_command_line() -> None:
    known_warnings.silence("fit")


class Watch(Callback):
    """The head's weights and the books after each step."""

    def __init__(self) -> None:
        self.heads: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self.rested: list[bool] = []
        self.moments: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        state = trainer.optimizers[0].state
        self.moments.append(max((int(s["step"]) for s in state.values()), default=0))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, PixelClassifier)
        self.heads.append({name: value.clone() for name, value in pl_module.network.head.state_dict().items()})
        self.rested.append(pl_module.rests)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def acquisition(**changed: Any) -> TwoStageEDALD:
    given = {"budget": 8, "budget_unit": "pixels", "rounds": 2, "candidates": 30, "local_picks": 6, "score": "entropy"}
    return TwoStageEDALD(**{**given, **changed})


def pair(**changed: Any) -> DomainPair:
    given = {"target": Pool(POOL), "val": Pool(POOL), "batch_size": 2, "flip": False, "workers": 0, "tick": 2}
    return DomainPair(**{**given, **changed})


def classifier(**changed: Any) -> PixelClassifier:
    given = {"network": conv_network(), "class_table": TABLE, "norm_pixels": 5, "cache": None}
    return PixelClassifier(**{**given, **changed})


def fit(
    folder: Path,
    method: PixelClassifier | None = None,
    data: DomainPair | None = None,
    active: TwoStageEDALD | None = None,
    steps: int = 8,
    **settings: Any,
) -> tuple[PixelClassifier, Watch, Trainer]:
    method, watch = method or classifier(), Watch()
    trainer = Trainer(
        **{
            **lightning_cli.TRAINER_DEFAULTS,
            "max_steps": steps,
            "accelerator": "cpu",
            "logger": False,
            "check_val_every_n_epoch": 1000,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "default_root_dir": folder,
            "callbacks": [active or acquisition(), ValidationTimes(), watch],
            **settings,
        }
    )
    trainer.fit(method, datamodule=data or pair())
    return method, watch, trainer


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# ---- one step


def rows_of(method: PixelClassifier, data: DomainPair, norm: str) -> list[tuple[Tensor, Tensor]]:
    """Features and labels of each pool image: bought pixels, then those for the norms."""
    found = []
    for key in data.pool.keys:
        labels = torch.from_numpy(data.bought.labels(key)).long()  # type: ignore[union-attr]
        yx = (labels != VOID).nonzero()
        extra = fixed_sample(0, "norm", key, SIZE, 5) if norm == "transductive" else yx[:0]
        features = method.pool_features.at(key, torch.cat([yx, extra]))
        found.append((features, torch.cat([labels[yx[:, 0], yx[:, 1]], torch.full((len(extra),), VOID)])))
    return found


@pytest.mark.parametrize("norm", ["transductive", "labelled", "frozen"])
def test_a_round_is_plain_training_on_the_bought_pixels(tmp_path: Path, norm: Any):
    """All images in each batch: head, batch norm, cross-entropy, Adam and the swinging rate, written out."""
    training = HeadTraining(half_period=2, patience=None)
    active, data = acquisition(rounds=1), pair(batch_size=4)
    method, watch, _ = fit(tmp_path, classifier(training=training, norm_statistics=norm), data, active, steps=6)
    reference = conv_network()(4).head.train()
    reference.restart(torch.Generator().manual_seed(hash((0, 1)) % 2**63))
    adam = torch.optim.Adam(reference.parameters(), lr=1e-3, weight_decay=1e-5)
    parts = rows_of(method, data, norm)
    rows, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    assert (labels != VOID).sum() >= 2
    for step in range(6):
        assert watch.rates[step] == pytest.approx(1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * step / 2)) / 2)
        adam.param_groups[0]["lr"] = watch.rates[step]
        counted = {"transductive": None, "labelled": labels != VOID, "frozen": torch.zeros(len(labels)) > 0}[norm]
        loss = functional.cross_entropy(reference(rows, counted), labels, ignore_index=VOID)
        adam.zero_grad()
        loss.backward()
        adam.step()
        for name, value in reference.state_dict().items():
            torch.testing.assert_close(watch.heads[step][name], value, rtol=1e-4, atol=1e-5)


def test_source_pixels_are_learned_from_too(tmp_path: Path):
    data = pair(source=Pool(SOURCE))
    method, watch, _ = fit(tmp_path, classifier(source_pixels=7, source_weight=0.0), data)
    _, alone, _ = fit(tmp_path / "alone", classifier(source_pixels=0), pair(source=Pool(SOURCE)))
    _, both, _ = fit(tmp_path / "both", classifier(source_pixels=7), pair(source=Pool(SOURCE)))
    # The running statistics differ, the weights do not: no weight, no gradient.
    for name in ("linears.0.weight", "linears.2.bias"):
        torch.testing.assert_close(watch.heads[1][name], alone.heads[1][name], rtol=1e-3, atol=1e-5)
        assert not torch.allclose(both.heads[1][name], alone.heads[1][name], rtol=1e-3, atol=1e-5)
    assert method.source_features().shape == (28, 7)


def test_source_features_need_a_source(tmp_path: Path):
    for data, method in ((pair(), classifier()), (pair(source=Pool(SOURCE)), classifier(source_pixels=0))):
        with pytest.raises(AdaptSegError, match=r"data.source is null or model.source_pixels is 0"):
            fit(tmp_path, method, data, acquisition(condition_on_source=True))


def test_batches_without_labels_change_nothing(tmp_path: Path):
    data = pair(batch_size=1)
    active = acquisition(budget=2, rounds=1)
    _, watch, _ = fit(tmp_path, data=data, active=active, steps=8)
    labelled = {key for key in POOL if (data.bought.labels(key) != VOID).any()}  # type: ignore[union-attr]
    assert 0 < len(labelled) < 4
    assert watch.rested.count(False) == 2 * len(labelled)  # two passes over the pool
    for before, after, rests in zip(watch.heads, watch.heads[1:], watch.rested[1:], strict=False):
        assert same(before, after) == rests


# ---- rounds


def test_each_round_starts_anew(tmp_path: Path):
    method, watch, _ = fit(tmp_path)
    assert watch.moments == [0, 1, 2, 3] * 2
    assert watch.rates[0] == watch.rates[4] == 1e-3
    assert len(method.finished) == 1
    assert same(method.finished[0].state_dict(), watch.heads[3])  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in method.finished.parameters())
    # The same labels and another past: the second round is the same training.
    other, again, _ = fit(tmp_path / "again", classifier(training=HeadTraining(lr=1e-3, patience=None)))
    assert all(same(a, b) for a, b in zip(watch.heads, again.heads, strict=True))
    assert same(method.network.head.state_dict(), other.network.head.state_dict())


def test_a_start_depends_on_seed_and_round_alone(tmp_path: Path):
    def first(seed: int, round: int) -> Tensor:
        method = classifier(seed=seed)
        trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_steps=1)
        trainer.strategy.connect(method)
        method.trainer = trainer
        trainer.strategy.optimizers = [torch.optim.Adam(method.network.head.parameters())]
        torch.manual_seed(seed + 17 * round)
        method.on_labels_bought(round)
        return method.network.head.linears[0].weight.detach().clone()  # type: ignore[return-value]

    assert torch.equal(first(0, 2), first(0, 2))
    assert not torch.equal(first(0, 2), first(0, 3))
    assert not torch.equal(first(0, 2), first(1, 2))


def test_patience_rests_the_head_until_the_next_round(tmp_path: Path):
    training = HeadTraining(lr=1e-12, least_lr=1e-12, patience=2, first_passes=1)  # the loss does not fall
    active = acquisition(budget=80, stages=["score"], score="random", first_round="random")  # labels in every image
    method, watch, _ = fit(tmp_path, classifier(training=training, norm_statistics="frozen"), active=active, steps=20)
    for part in (slice(0, 10), slice(10, 20)):
        rested = watch.rested[part]
        assert rested == sorted(rested)
        assert 4 <= rested.index(True) <= 7  # one pass of two batches, a least loss, three that are not less
    for before, after, rests in zip(watch.heads, watch.heads[1:], watch.rested[1:], strict=False):
        assert not rests or same(before, after)
    assert method.stopped


def test_all_rounds_are_judged_in_one_pass(tmp_path: Path):
    active = acquisition(rounds=4)
    heads: list[dict[str, Tensor]] = []
    method, watch, trainer = fit(tmp_path, active=active, steps=16)
    heads = [watch.heads[step] for step in (3, 7, 11, 15)]
    judged = method.network.features.forwards
    scores = []
    for head in heads:
        method.network.head.load_state_dict(head)
        method.finished = torch.nn.ModuleList()
        scores.append(trainer.validate(method, datamodule=pair(), verbose=False)[0]["val/miou"])
    assert method.network.features.forwards == judged + 4 * len(POOL)
    assert [row["miou"] for row in active.history[1:]] == scores[:3]
    assert "miou" not in active.history[0]
    assert trainer.callback_metrics["val/miou"] == scores[3]


def test_the_first_round_may_start_from_another_head(tmp_path: Path):
    trained, _, trainer = fit(tmp_path, active=acquisition(rounds=1), enable_checkpointing=True)
    trainer.save_checkpoint(tmp_path / "head.ckpt")
    training = HeadTraining(lr=1e-12, least_lr=1e-12)
    _, watch, _ = fit(tmp_path / "b", classifier(init_from=str(tmp_path / "head.ckpt"), training=training))
    expected = trained.network.head.state_dict()
    for step, wanted in ((0, True), (4, False)):
        weights = watch.heads[step]["linears.0.weight"]
        assert torch.allclose(weights, expected["linears.0.weight"], atol=1e-6) == wanted


# ---- what is refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"network": tiny_network}, "model.network makes a TinySegmenter; PixelClassifier needs a PixelSegmenter"),
        ({"norm_pixels": -1}, "model.norm_pixels is -1"),
        ({"source_pixels": -1}, "source_pixels -1"),
        ({"inference": Inference(flip=True)}, "model.inference: a PixelClassifier reads scenes whole"),
        ({"inference": Inference(window=(4, 4))}, "model.inference: a PixelClassifier reads scenes whole"),
    ],
)
def test_wrong_arguments(given: dict[str, Any], said: str):
    with pytest.raises(AdaptSegError, match=said):
        classifier(**given)


@pytest.mark.parametrize(
    "given",
    [{"dropout": 1.0}, {"lr": 1e-7}, {"least_lr": 0.0}, {"half_period": 0}, {"patience": -1}, {"first_passes": -1}],
)
def test_wrong_training(given: dict[str, Any]):
    with pytest.raises(AdaptSegError, match=r"model.training"):
        HeadTraining(**given)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"flip": True}, "flip"),
        ({"crop": (8, 8)}, "crop"),
        ({"scale": (0.5, 2.0)}, "scale"),
        ({"target_size": (24, 32), "pool_size": "native"}, "pool_size"),
    ],
)
def test_views_that_features_do_not_have(tmp_path: Path, given: dict[str, Any], name: str):
    with pytest.raises(AdaptSegError, match=rf"data.{name}: features are kept for whole scenes"):
        fit(tmp_path, data=pair(**given))


def test_scenes_that_the_features_refuse(tmp_path: Path):
    with pytest.raises(AdaptSegError, match="smaller than 4 pixels"):
        fit(tmp_path, data=pair(target=Pool({"a": (3, 9), "b": (3, 9)})))


def test_draws_by_dropout_need_dropout(tmp_path: Path):
    with pytest.raises(AdaptSegError, match=r"model.training.dropout is 0; give 0.2"):
        fit(tmp_path, active=acquisition(score="ebald"))
    fit(tmp_path, classifier(training=HeadTraining(dropout=0.2)), active=acquisition(score="ebald"))


def test_dropout_draws_are_inverted_dropout_on_the_logits():
    method = classifier(training=HeadTraining(dropout=0.25)).eval()
    features = torch.randn(4000, 7, generator=torch.Generator().manual_seed(0))
    logits = method.network.head(features).detach()
    said = method.probabilities_at(features, dropout=torch.Generator().manual_seed(1))
    kept = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) >= 0.25
    torch.testing.assert_close(said, (logits * kept / 0.75).softmax(1))
    assert kept.float().mean() == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(method.probabilities_at(features), logits.softmax(1))


@pytest.mark.parametrize("draw", [0, 2])
def test_whole_images_are_judged_as_their_pixels_are(tmp_path: Path, draw: int):
    """But for the rounding of features that are kept, which dense ones do not have."""
    method, _, _ = fit(tmp_path, classifier(training=HeadTraining(dropout=0.25)), active=acquisition())
    method.eval()
    key = min(POOL)
    height, width = method.pool_features.size(key)
    every = method.probabilities_everywhere(key, draw=draw)
    yx = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    expected = method.probabilities_at(method.pool_features.at(key, yx, draw=draw))
    torch.testing.assert_close(every, expected, atol=2e-3, rtol=0)
    dropped = [method.probabilities_everywhere(key, dropout=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], dropped[2])


def test_accumulated_gradients_are_refused(tmp_path: Path):
    with pytest.raises(AdaptSegError, match=r"trainer.accumulate_grad_batches: PixelClassifier takes 1"):
        fit(tmp_path, accumulate_grad_batches=2)


# ---- the cache, and state


def test_the_cache_changes_nothing(tmp_path: Path):
    method, plain, _ = fit(tmp_path / "plain", active=acquisition(score="edald", draws=2))
    for turn in ("filled", "used"):
        network: Callable[[int], Any] = conv_network()
        cached = classifier(network=network, cache=str(tmp_path / "cache"))
        cached, watch, _ = fit(tmp_path / turn, cached, active=acquisition(score="edald", draws=2))
        assert all(same(a, b) for a, b in zip(plain.heads, watch.heads, strict=True))
    # All was kept: only the validation looks at images.
    assert cached.network.features.forwards == len(POOL)
    assert method.network.features.forwards > cached.network.features.forwards
    assert isinstance(cached.network.features, ConvFeatures)


def test_checkpoints_hold_heads_and_books(tmp_path: Path):
    method, _, trainer = fit(tmp_path, enable_checkpointing=True)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = classifier()
    trainer.validate(again, datamodule=pair(), ckpt_path=str(tmp_path / "run.ckpt"), weights_only=False, verbose=False)
    assert same(again.state_dict(), method.state_dict())
    assert again.began == method.began == 4
    assert (again.least_loss, again.waited, again.stopped) == (method.least_loss, method.waited, method.stopped)
