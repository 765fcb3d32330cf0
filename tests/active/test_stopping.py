"""Each rule that ends buying, on made-up curves; agreement against a naive count; what is refused at setup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_pool import SIZES, Painter, Pool, campaign, prepare, set_step

from adaptseg.active import CBDA, TwoStageEDALD
from adaptseg.active.advice import gain_posterior
from adaptseg.active.stopping import Progress, Stopping, StopSet, cohens_kappa, stopped_note
from adaptseg.data import DomainPair
from adaptseg.errors import AdaptSegError
from adaptseg.networks.feature_bank import fixed_sample

Curve = tuple[list[float], list[float]]


def progress(
    *, spent: int = 0, wanted: int = 10, pool: int = 1000, curve: Curve = ([], []), kappa: list[float] | None = None
) -> Progress:
    return Progress(spent, wanted, pool, curve, kappa or [])


# ---- the rules


def test_budget_is_never_exceeded():
    rule = Stopping(budget=0.05)
    assert rule.verdict(progress(spent=40, wanted=10)) is None
    assert rule.verdict(progress(spent=40, wanted=11)) == (
        "another round would spend more than 5 % of the pool (active.stop.budget)"
    )
    assert rule.verdict(progress(spent=50, wanted=0)) is None  # buys nothing, exceeds nothing
    # 0.07 * 1000 is 70.00000000000001 in floating point, 0.29 * 1000 is 289.99999999999994.
    assert Stopping(budget=0.29).verdict(progress(spent=280, wanted=10)) is None


def test_plateau_on_flat_and_on_rising_curves():
    x = [0.01 * i for i in range(1, 8)]
    flat, rising = [0.40] * 7, [0.40 + 0.01 * i for i in range(7)]
    rule = Stopping(plateau=0.5, rounds=2)
    assert rule.verdict(progress(curve=(x, rising))) is None
    why = rule.verdict(progress(curve=(x, flat)))
    assert why == ("the last 2 rounds brought less than 0.5 points of mIoU with probability 1.00 (active.stop.plateau)")
    falling = [0.40 - 0.01 * i for i in range(7)]
    assert rule.verdict(progress(curve=(x, falling))) is not None  # less than nothing is less, too
    assert Stopping(plateau=5.0, rounds=2).verdict(progress(curve=(x, rising))) is not None


def test_plateau_needs_one_point_more_than_rounds_and_leaves_out_the_unlabelled_one():
    rule = Stopping(plateau=50.0, rounds=2)
    assert rule.verdict(progress(curve=([0.0, 0.01, 0.02], [0.1, 0.4, 0.4]))) is None
    assert rule.verdict(progress(curve=([0.0, 0.01, 0.02, 0.03], [0.1, 0.4, 0.4, 0.4]))) is not None


def test_plateau_takes_the_noise_of_the_curve_into_account():
    """Two equal last points prove nothing while the curve jumps about; a steady curve needs no equal points."""
    x = [0.01 * i for i in range(1, 8)]
    noisy = [0.40, 0.36, 0.43, 0.37, 0.44, 0.40, 0.40]
    calm = [0.400, 0.401, 0.400, 0.401, 0.400, 0.401, 0.402]
    rule = Stopping(plateau=0.5, rounds=2)
    assert rule.verdict(progress(curve=(x, noisy))) is None
    assert rule.verdict(progress(curve=(x, calm))) is not None


def test_plateau_is_the_posterior_probability():
    x, y = [0.01, 0.02, 0.04, 0.05], [0.30, 0.33, 0.34, 0.345]
    sure = gain_posterior(x, y, 0.02, 0.05).below(0.02)
    for confidence, stops in ((sure - 1e-6, True), (sure + 1e-6, False)):
        rule = Stopping(plateau=2.0, rounds=2, confidence=confidence)
        assert (rule.verdict(progress(curve=(x, y))) is not None) is stops


def test_agreement_in_each_of_the_last_rounds():
    rule = Stopping(agreement=0.95, rounds=2)
    for kappa, stops in (([0.99], False), ([0.99, 0.95], True), ([0.99, 0.94], False), ([0.1, 0.96, 0.97], True)):
        assert (rule.verdict(progress(kappa=kappa)) is not None) is stops
    assert rule.verdict(progress(kappa=[0.96, 0.97])) == (
        "predictions on the pool settled, kappa 0.9600, 0.9700 between rounds (active.stop.agreement)"
    )


def test_the_first_rule_that_holds_speaks():
    rule = Stopping(budget=0.01, agreement=0.5, rounds=1)
    assert "budget" in (rule.verdict(progress(spent=10, kappa=[0.9])) or "")
    assert "agreement" in (rule.verdict(progress(spent=0, kappa=[0.9])) or "")
    assert rule.verdict(progress(spent=0, kappa=[0.4])) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"active\.stop has no rule"),
        ({"budget": 0.0}, r"active\.stop\.budget is 0\.0; a share"),
        ({"budget": 1.5}, r"active\.stop\.budget is 1\.5"),
        ({"plateau": -1.0}, r"active\.stop\.plateau is -1\.0; points"),
        ({"agreement": 1.1}, r"active\.stop\.agreement is 1\.1; a kappa"),
        ({"agreement": 0.9, "rounds": 0}, r"active\.stop\.rounds is 0"),
        ({"plateau": 1.0, "confidence": 1.0}, r"active\.stop\.confidence is 1\.0"),
        ({"agreement": 0.9, "sample": 0}, r"active\.stop\.sample is 0"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str):
    with pytest.raises(AdaptSegError, match=message):
        Stopping(**settings)


# ---- agreement


def naive_kappa(one: list[int], other: list[int]) -> float:
    n = len(one)
    equal = sum(a == b for a, b in zip(one, other, strict=True)) / n
    chance = sum((one.count(c) / n) * (other.count(c) / n) for c in set(one) | set(other))
    return 1.0 if chance == 1 else (equal - chance) / (1 - chance)


def test_kappa_against_a_naive_count():
    rng = np.random.default_rng(0)
    for classes in (1, 2, 5, 19):
        one = rng.integers(0, classes, 300)
        other = np.where(rng.random(300) < 0.7, one, rng.integers(0, classes, 300))
        value = cohens_kappa(torch.from_numpy(one).to(torch.uint8), torch.from_numpy(other).to(torch.uint8))
        assert value == pytest.approx(naive_kappa(one.tolist(), other.tolist()), abs=1e-12)


def test_kappa_of_simple_cases():
    a = torch.tensor([0, 1, 2, 1], dtype=torch.uint8)
    assert cohens_kappa(a, a) == 1
    assert cohens_kappa(torch.tensor([3, 3]), torch.tensor([3, 3])) == 1  # one class throughout
    assert cohens_kappa(torch.tensor([0, 1]), torch.tensor([1, 0])) == -1
    assert cohens_kappa(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])) == 0


def test_the_stop_set_is_a_fixed_sample_in_the_order_of_the_pool():
    sample = StopSet(SIZES, 10)
    for key in reversed(list(SIZES)):
        yx = sample.positions(key)
        assert yx.tolist() == StopSet(SIZES, 10).positions(key).tolist()
        assert len(yx) == 3  # a quarter of 10, rounded up
        assert (yx < torch.tensor(SIZES[key])).all()
        sample.note(key, yx.sum(1) % 4)
    expected = torch.cat([sample.positions(key).sum(1) % 4 for key in SIZES])
    said = sample.collect()
    assert said is not None
    assert said.dtype == torch.uint8
    assert said.tolist() == expected.tolist()
    assert sample.collect() is None  # nothing new


# ---- in an acquisition


class Moody(Painter):
    """Says something else in every round until it is calm."""

    mood = 0.0

    def predict_probabilities(self, images: Any, *, size: Any, draws: Any = 1, generator: Any = None):
        turned = torch.cat([images[:, 1:], images[:, :1]], 1) * self.mood + images * (1 - self.mood)
        return super().predict_probabilities(turned, size=size)


def run(acquisition: CBDA, folder: Path, moods: list[float]) -> list[int]:
    """Fire all rounds, in these moods; spent after each."""
    module = Moody()
    trainer, _ = prepare(acquisition, DomainPair(target=Pool(), val=Pool(), workers=0), folder, module)
    spent = []
    for step, mood in zip(acquisition.fire_at, moods, strict=True):
        module.mood = mood
        set_step(trainer, step)
        acquisition.on_train_epoch_end(trainer, module)
        spent.append(acquisition.store.spent(acquisition.round))
    return spent


def test_agreement_of_an_acquisition_is_that_of_its_network(tmp_path: Path):
    acquisition = CBDA(budget=0.2, stop=Stopping(agreement=1.0, sample=200))
    moods = [0.0, 0.3, 0.4, 0.9, 1.0]
    run(acquisition, tmp_path, moods)
    assert acquisition.stopped is None
    data, said = DomainPair(target=Pool(), workers=0), []
    for mood in moods:
        module, classes = Moody(), []
        module.mood = mood
        for batch in data.pool_loader(0, 1):
            key = batch.keys[0]
            predicted = module.predict_probabilities(batch.image, size=SIZES[key])[0, 0].argmax(0)
            yx = fixed_sample(0, "stop", key, SIZES[key], 50)
            classes += predicted[yx[:, 0], yx[:, 1]].tolist()
        said.append(classes)
    assert "agreement" not in acquisition.history[0]
    for number in range(1, 5):
        expected = naive_kappa(said[number - 1], said[number])
        assert 0 < expected < 1
        assert acquisition.history[number]["agreement"] == pytest.approx(expected, abs=1e-12)


def test_calm_predictions_end_buying(tmp_path: Path):
    acquisition = CBDA(budget=0.2, stop=Stopping(agreement=0.999, rounds=2, sample=200))
    spent = run(acquisition, tmp_path, [0.0, 0.5, 0.5, 0.5, 0.0])
    assert spent[1] < spent[2] == spent[3] == spent[4]  # rounds 3 and 4 agreed; the fifth is not even looked at
    assert acquisition.round == acquisition.store.rounds == len(acquisition.history) == 3
    assert acquisition.stopped is not None
    assert (acquisition.stopped["round"], acquisition.stopped["step"]) == (3, acquisition.fire_at[3])
    assert acquisition.snapshots == {}  # no picture of a round that was none
    assert not acquisition.is_due(10**9)
    assert stopped_note(acquisition.stopped) == (
        f"buying ends after round 3, at step {acquisition.fire_at[3]}: predictions on the pool settled, kappa 1.0000, "
        "1.0000 between rounds (active.stop.agreement); training goes on with the labels there are"
    )


def test_a_budget_ends_buying_inside_the_schedule(tmp_path: Path):
    acquisition = CBDA(budget=0.2, unit="pixel", stop=Stopping(budget=0.1))
    pixels = sum(h * w for h, w in SIZES.values())
    spent = run(acquisition, tmp_path, [0.0] * 5)
    assert spent[1] == spent[4] == pytest.approx(0.08 * pixels, abs=1)
    free = CBDA(budget=0.2, unit="pixel")
    campaign(free, tmp_path / "free", rounds=2)
    assert free.checksum == acquisition.checksum  # what is bought before is not touched
    assert acquisition.state_dict()["said"] is None


def test_the_state_survives_a_resume(tmp_path: Path):
    """Rounds 1 and 2, then a new process: it stops where the whole run stops, for the same reason."""
    settings: dict[str, Any] = {"budget": 0.2, "stop": Stopping(agreement=0.999, rounds=2, sample=200)}
    moods = [0.0, 0.5, 0.5, 0.5, 0.0]
    whole = CBDA(**settings)
    run(whole, tmp_path / "whole", moods)
    data = DomainPair(target=Pool(), workers=0)
    before, module = CBDA(**settings), Moody()
    trainer, _ = prepare(before, data, tmp_path / "cut", module)
    for number in range(2):
        module.mood = moods[number]
        set_step(trainer, before.fire_at[number])
        before.on_train_epoch_end(trainer, module)
    torch.save(before.state_dict(), tmp_path / "state.pt")
    after = CBDA(**settings)
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    trainer, _ = prepare(after, DomainPair(target=Pool(), workers=0), tmp_path / "cut", module)
    for number in range(2, 5):
        module.mood = moods[number]
        set_step(trainer, after.fire_at[number])
        after.on_train_epoch_end(trainer, module)
    assert after.stopped == whole.stopped is not None
    assert after.history == whole.history
    assert torch.equal(after.said, whole.said)  # type: ignore[arg-type]
    again = CBDA(**settings)
    again.load_state_dict(after.state_dict())
    assert again.stopped == whole.stopped


def test_ending_the_run_makes_that_step_the_last(tmp_path: Path):
    acquisition = CBDA(budget=0.2, stop=Stopping(budget=0.1, then="end"))
    trainer, module = prepare(acquisition, DomainPair(target=Pool(), workers=0), tmp_path)
    for step in acquisition.fire_at[:3]:
        assert trainer.max_steps == 20
        set_step(trainer, step)
        acquisition.on_train_epoch_end(trainer, module)
    assert trainer.max_steps == acquisition.fire_at[2] == 12
    again = CBDA(budget=0.2, stop=Stopping(budget=0.1, then="end"))
    again.load_state_dict(acquisition.state_dict())
    trainer, _ = prepare(again, DomainPair(target=Pool(), workers=0), tmp_path)
    assert trainer.max_steps == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"budget": 0.3},
            r"active\.stop\.budget 0\.3 is \d+ pixels, and active\.budget buys \d+ in all: it could never",
        ),
        ({"budget": 0.2}, "it could never stop"),
        ({"budget": 0.01}, r"the first round buys \d+: nothing would be bought"),
        ({"plateau": 0.5}, r"active\.stop\.plateau looks at mIoU on data\.val, which is null"),
        (
            {"agreement": 0.9, "rounds": 5},
            r"agreement looks back over 5 rounds, which takes 6 rounds; this acq.* has 5",
        ),
    ],
)
def test_rules_that_could_never_hold(tmp_path: Path, settings: dict[str, Any], message: str):
    with pytest.raises(AdaptSegError, match=message):
        prepare(CBDA(budget=0.2, stop=Stopping(**settings)), DomainPair(target=Pool(), workers=0), tmp_path)


def test_how_far_rules_look_back():
    check: dict[str, Any] = {"planned": [10, 20, 30, 40], "pool": 100, "is_judged": True}
    Stopping(plateau=1.0, rounds=2).check(**check, begins_untrained=False)
    Stopping(agreement=0.9, rounds=3).check(**check, begins_untrained=False)
    Stopping(agreement=0.9, rounds=2).check(**check, begins_untrained=True)
    for rule, untrained in ((Stopping(plateau=1.0, rounds=3), False), (Stopping(agreement=0.9, rounds=3), True)):
        with pytest.raises(AdaptSegError, match=r"looks back over 3 rounds, which takes 5 rounds"):
            rule.check(**check, begins_untrained=untrained)


def test_who_is_validated_before_rounds():
    assert not TwoStageEDALD().judged_in_rounds
    assert not TwoStageEDALD(stop=Stopping(agreement=0.9)).judged_in_rounds
    assert TwoStageEDALD(stop=Stopping(plateau=0.5)).judged_in_rounds
    assert TwoStageEDALD(stop=Stopping(agreement=0.9, then="end")).judged_in_rounds
    assert CBDA().judged_in_rounds
