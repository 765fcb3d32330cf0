from __future__ import annotations

import pytest
import torch
from small_features import ConvFeatures, conv_network
from torch import Tensor, nn

from adaptseg.errors import AdaptSegError
from adaptseg.networks import PixelSegmenter
from adaptseg.networks.pixel_segmenter import PixelHead, RowNorm
from adaptseg.networks.point_features import gather


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained_head(classes: int = 5) -> PixelHead:
    """A head with weights and running statistics that are nothing special."""
    head = PixelHead(7, classes, [6, 4]).double()
    with torch.no_grad():
        for i, value in enumerate([*head.parameters(), *head.buffers()]):
            value.copy_(torch.rand(value.shape, generator=generator(i), dtype=torch.float64) + 0.1)
    return head


# ---- the norm


def as_torch(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels).double()


def test_row_norm_is_batch_norm():
    ours, theirs = RowNorm(4).double(), as_torch(4)
    for seed in range(5):
        rows = 3 * torch.randn(9, 4, dtype=torch.float64, generator=generator(seed)) + 1
        one, other = rows.clone().requires_grad_(), rows.clone().requires_grad_()
        said, expected = ours(one), theirs(other)
        torch.testing.assert_close(said, expected)
        weights = torch.randn(9, 4, dtype=torch.float64, generator=generator(9))
        (said * weights).sum().backward()
        (expected * weights).sum().backward()
        torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.mean, theirs.running_mean)
    torch.testing.assert_close(ours.variance, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(rows), theirs(rows))


def test_only_counted_rows_make_the_statistics():
    ours, theirs = RowNorm(3).double(), as_torch(3)
    rows = torch.randn(12, 3, dtype=torch.float64, generator=generator())
    counted = torch.arange(12) % 3 == 0
    said = ours(rows, counted)
    torch.testing.assert_close(said[counted], theirs(rows[counted]))
    torch.testing.assert_close(ours.variance, theirs.running_var)
    mean, variance = rows[counted].mean(0), rows[counted].var(0, unbiased=False)
    torch.testing.assert_close(said, (rows - mean) / (variance + 1e-5).sqrt())


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_counted_rows_use_the_running_statistics(count: int):
    norm = RowNorm(3).double()
    norm(torch.randn(8, 3, dtype=torch.float64, generator=generator()))
    kept = norm.mean.clone(), norm.variance.clone()
    rows = torch.randn(5, 3, dtype=torch.float64, generator=generator(1))
    said = norm(rows, torch.arange(5) < count)
    torch.testing.assert_close(said, (rows - kept[0]) / (kept[1] + 1e-5).sqrt())
    assert torch.equal(norm.mean, kept[0])
    assert torch.equal(norm.variance, kept[1])
    assert norm(rows[:0]).shape == (0, 3)


def test_half_precision_rows_have_float32_statistics():
    norm, rows = RowNorm(2), 300 + torch.randn(4000, 2, generator=generator())
    said = norm(rows.half())
    assert said.dtype == torch.float32
    torch.testing.assert_close(said, RowNorm(2)(rows.half().float()))


# ---- the head


@pytest.mark.parametrize("training", [False, True])
def test_rows_and_dense_maps_say_the_same(training: bool):
    size, head = (9, 14), trained_head().train(training)
    maps = [torch.randn(1, c, h, w, dtype=torch.float64, generator=generator(c)) for c, h, w in ((4, 5, 7), (3, 2, 3))]
    yx = torch.cartesian_prod(torch.arange(9), torch.arange(14))
    rows = gather([m[0] for m in maps], yx, size)
    by_rows = head(rows).T.reshape(1, 5, *size)
    head = trained_head().train(training)
    torch.testing.assert_close(head.dense(maps, size), by_rows, rtol=1e-9, atol=1e-9)


def test_the_order_is_linear_relu_norm():
    head = trained_head().eval()
    norms = [as_torch(6), as_torch(4)]
    layers: list[nn.Module] = []
    for ours, theirs, linear in zip(head.norms, norms, head.linears, strict=False):
        assert isinstance(ours, RowNorm)
        state = {"weight": ours.weight, "bias": ours.bias, "running_mean": ours.mean, "running_var": ours.variance}
        theirs.load_state_dict({**state, "num_batches_tracked": torch.tensor(0)})
        layers += [linear, nn.ReLU(), theirs]
    reference = nn.Sequential(*layers, head.linears[2]).eval()
    rows = torch.randn(11, 7, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(head(rows), reference(rows))


def test_a_restart_depends_on_the_generator_alone():
    used, fresh = trained_head(), PixelHead(7, 5, [6, 4]).double()
    used.train()(torch.randn(20, 7, dtype=torch.float64))
    torch.manual_seed(1)
    used.restart(generator(3))
    torch.manual_seed(2)
    fresh.restart(generator(3))
    for name, value in used.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    other = PixelHead(7, 5, [6, 4])
    other.restart(generator(4))
    assert not torch.equal(other.linears[0].weight, fresh.linears[0].weight.float())  # type: ignore[arg-type]


def test_first_weights_are_as_published():
    head = PixelHead(300, 5, [128, 32])
    weights = head.linears[0].weight
    assert isinstance(weights, Tensor)
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(weights.mean().item()) < 1e-3
    assert all(not linear.bias.any() for linear in head.linears)  # type: ignore[union-attr]


# ---- the network


@pytest.mark.parametrize(("classes", "hidden"), [(19, [128, 32]), (29, [128, 32]), (30, [256, 128])])
def test_published_widths(classes: int, hidden: list[int]):
    assert PixelSegmenter(classes, ConvFeatures()).hidden == hidden


@pytest.mark.parametrize("hidden", [[], [4, 0]])
def test_impossible_widths_are_refused(hidden: list[int]):
    with pytest.raises(AdaptSegError, match=r"model.network.hidden is .* widths of 1 or more are expected"):
        PixelSegmenter(4, ConvFeatures(), hidden)


def test_features_are_no_part_of_the_network():
    network = conv_network()(4)
    assert not any("features" in name or "fine" in name for name in network.state_dict())
    assert {id(p) for p in network.parameters()} == {id(p) for p in network.head.parameters()}
    assert not list(network.encoder_parameters())
    network.train()
    assert not network.features.training
    images = torch.randn(2, 3, 9, 14, generator=generator())
    logits = network.eval()(images).logits
    assert logits.shape == (2, 4, 9, 14)
    torch.testing.assert_close(logits[1:], network(images[1:]).logits)
    for unsupported in ({"crop": (0, 0, 4, 4)}, {"token_mask": torch.ones(2, 1, 3, 4)}):
        with pytest.raises(AdaptSegError):
            network(images, **unsupported)
