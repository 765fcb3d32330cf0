"""The optimiser, its groups and its schedule."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny import TinySegmenter, tiny_network
from torch import nn

from adaptseg.errors import AdaptSegError
from adaptseg.methods import Optimization

RIPU = Optimization(lr=2.5e-4, power=0.9, poly_horizon=1.5625)


def test_ripu_decays_over_62500_steps_and_stops_at_40000() -> None:
    for step in (0, 1, 10_000, 39_999, 40_000):
        assert RIPU.factor(step, 40_000) == pytest.approx((1 - step / 62_500) ** 0.9, rel=1e-12)
    assert RIPU.factor(0, 40_000) == 1
    assert round(RIPU.factor(40_000, 40_000), 2) == 0.40


def test_the_horizon_is_a_multiple_of_max_steps() -> None:
    assert RIPU.factor(400, 400) == pytest.approx(RIPU.factor(40_000, 40_000), rel=1e-12)
    plain = Optimization(power=1.0)
    assert [plain.factor(step, 4) for step in range(7)] == [1, 0.75, 0.5, 0.25, 0, 0, 0]
    assert Optimization(power=0.0).factor(3, 4) == 1  # constant


def test_the_decay_falls_at_every_step() -> None:
    factors = [RIPU.factor(step, 1000) for step in range(1001)]
    assert all(later < earlier for earlier, later in pairwise(factors))


def test_milestones_step_the_rate_down_and_restarts_begin_anew() -> None:
    steps = Optimization(power=0.0, milestones=(0.4, 0.8), gamma=0.1)
    assert [steps.factor(step, 10) for step in range(10)] == pytest.approx([1] * 4 + [0.1] * 4 + [0.01] * 2)
    again = Optimization(power=0.0, milestones=(0.4, 0.8), gamma=0.1, restarts=3)
    assert [again.factor(step, 30) for step in range(30)] == [steps.factor(step % 10, 10) for step in range(30)]
    poly = Optimization(power=0.9, warmup_steps=2, restarts=2)
    once = Optimization(power=0.9, warmup_steps=2)
    assert [poly.factor(step, 12) for step in range(12)] == 2 * [once.factor(step, 6) for step in range(6)]
    with pytest.raises(AdaptSegError, match=r"restarts is 3, of which trainer.max_steps 100 is no multiple"):
        again.build(tiny_network(19), 100)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"milestones": (0.8, 0.4)}, r"milestones is \[0.8, 0.4\]; ascending shares"),
        ({"milestones": (1.0,)}, r"milestones is \[1.0\]"),
        ({"gamma": 0.0}, r"gamma 0.0 and restarts 1"),
        ({"restarts": 0}, r"restarts 0; a factor in \(0, 1\] and 1 or more"),
    ],
)
def test_schedules_that_cannot_be_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError, match=said):
        Optimization(**given)


def test_warm_up_is_linear_times_the_decay() -> None:
    warm = Optimization(warmup_steps=10, warmup_start=0.2, power=0.9)
    cold = Optimization(power=0.9)
    for step in range(10):
        assert warm.factor(step, 100) == pytest.approx(cold.factor(step, 100) * (0.2 + 0.08 * step), rel=1e-12)
    for step in (10, 11, 99):
        assert warm.factor(step, 100) == cold.factor(step, 100)
    assert warm.factor(0, 100) == pytest.approx(0.2)
    assert Optimization(warmup_steps=50).factor(49, 20) >= 0  # longer than the run


def test_the_decay_may_wait_for_the_end_of_the_warm_up() -> None:
    """VFM-UDA's: linear to the full rate, then what is left of the line from 1 at step 0 to 0 at the end."""
    rates = Optimization(warmup_steps=1500, warmup_start=1e-3, decay_in_warmup=False, power=1.0)
    wanted = {0: 1e-3, 750: 0.5005, 1499: 0.999334, 1500: 0.9625, 20_000: 0.5, 39_999: 2.5e-5, 40_000: 0.0}
    for step, factor in wanted.items():
        assert rates.factor(step, 40_000) == pytest.approx(factor, rel=1e-6)


def test_companions_learn_at_the_heads_rate_in_the_last_group() -> None:
    beside = nn.Linear(2, 3)
    settings = Optimization(lr=0.01, head_lr_factor=10, weight_decay=0.3, decay_norm_and_bias=False)
    network = tiny_network(19)
    optimizer, _ = settings.build(network, 100, companions=beside.parameters())
    names = [group["name"] for group in optimizer.param_groups]
    assert names == ["encoder", "encoder_no_decay", "head", "head_no_decay", "companion", "companion_no_decay"]
    assert [group["lr"] for group in optimizer.param_groups[2:]] == pytest.approx([0.1] * 4)
    assert optimizer.param_groups[-2]["params"] == [beside.weight]
    assert [g["name"] for g in settings.build(network, 100)[0].param_groups] == names[:4]


def test_rates_by_layer_need_layers() -> None:
    with pytest.raises(AdaptSegError, match="layer_decay: the encoder of a TinySegmenter is not told apart in layers"):
        Optimization(layer_decay=0.9).build(tiny_network(19), 100)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_groups_carry_rates_and_decay(name: Any) -> None:
    network = tiny_network(19)
    optimizer, _ = Optimization(name=name, lr=0.01, head_lr_factor=10, weight_decay=0.3).build(network, 100)
    encoder, head = optimizer.param_groups
    assert (encoder["lr"], head["lr"]) == (pytest.approx(0.01), pytest.approx(0.1))
    assert encoder["weight_decay"] == head["weight_decay"] == 0.3
    assert {id(p) for p in encoder["params"]} == {id(p) for p in network.encoder.parameters()}
    assert {id(p) for p in head["params"]} == {id(p) for p in network.head.parameters()}
    if name == "sgd":
        assert encoder["momentum"] == head["momentum"] == 0.9
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    assert type(optimizer) is kinds[name]


def test_norms_and_biases_may_be_spared_from_decay() -> None:
    network = tiny_network(19)
    optimizer, _ = Optimization(weight_decay=0.3, decay_norm_and_bias=False).build(network, 100)
    for group in optimizer.param_groups:
        assert group["weight_decay"] == (0.0 if group["name"].endswith("_no_decay") else 0.3)
        assert {p.ndim > 1 for p in group["params"]} == {not group["name"].endswith("_no_decay")}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))


def test_frozen_parameters_are_left_out() -> None:
    network = TinySegmenter(19)
    network.encoder.requires_grad_(False)
    optimizer, _ = Optimization().build(network, 100)
    assert [group["name"] for group in optimizer.param_groups] == ["head"]


def test_the_schedule_moves_all_groups_and_resumes() -> None:
    settings = Optimization(lr=0.01, head_lr_factor=10, warmup_steps=3, poly_horizon=2.0)

    def rates(steps: int, state: Any = None) -> tuple[list[list[float]], Any]:
        optimizer, schedule = settings.build(tiny_network(19), 10)
        if state is not None:
            optimizer.load_state_dict(state[0])
            schedule.load_state_dict(state[1])
        seen = []
        for _ in range(steps):
            seen.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
        return seen, (optimizer.state_dict(), schedule.state_dict())

    whole, _ = rates(10)
    for step, (encoder, head) in enumerate(whole):
        assert encoder == pytest.approx(0.01 * settings.factor(step, 10), rel=1e-9)
        assert head == pytest.approx(10 * encoder, rel=1e-9)
    first, state = rates(4)
    rest, _ = rates(6, state)
    assert first + rest == whole


def test_momentum_descends_like_the_textbook() -> None:
    network = tiny_network(2)
    optimizer, schedule = Optimization(lr=0.1, head_lr_factor=2, weight_decay=0.1, power=1.0).build(network, 4)
    bias = network.head.bias
    assert isinstance(bias, nn.Parameter)
    value, velocity = bias.detach().double().clone(), torch.zeros(2, dtype=torch.float64)
    for step in range(4):
        network.zero_grad()
        bias.grad = torch.tensor([1.0, -2.0])
        velocity = 0.9 * velocity + torch.tensor([1.0, -2.0]).double() + 0.1 * value
        value = value - 0.2 * (1 - step / 4) * velocity
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(bias.detach().double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, r"model\.optimization\.lr is 0\.0"),
        ({"lr": -1.0}, r"model\.optimization\.lr is -1\.0"),
        ({"poly_horizon": 0.99}, r"poly_horizon is 0\.99"),
        ({"layer_decay": 0.0}, r"layer_decay is 0\.0; a factor in \(0, 1\]"),
        ({"layer_decay": 1.1}, r"layer_decay is 1\.1"),
        ({"name": "lion"}, r"model\.optimization\.name is 'lion'; 'sgd', 'adam' or 'adamw'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptSegError, match=message):
        Optimization(**settings)
