"""Fusion of members: naive loops over pixels, the golden example of the specification, and its property tests."""

import math
from typing import Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adaptseg.errors import AdaptSegError
from adaptseg.losses.claims import fuse_claims
from adaptseg.losses.fusion import (
    ClassCertainty,
    channel_fusion,
    class_certainty,
    enough_pixels,
    evidence_from_labels,
    evidence_from_probabilities,
    pixel_fusion,
    policy_weights,
    select_policy,
    unify,
)
from adaptseg.losses.fusion_baselines import (
    confident_labels,
    mean_probabilities,
    priority_fusion,
    rank_mean,
    rank_profile,
)


def members(seed: int, count: int = 3, classes: int = 4, size: tuple[int, int] = (9, 7)) -> torch.Tensor:
    """Smooth enough that claims form areas, sharp enough that some pass the threshold."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, classes, 3, 3, generator=generator, dtype=torch.float64) * 8
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear").softmax(1)


def naive_unify(probabilities: torch.Tensor) -> list[list[list[int]]]:
    count, classes, height, width = probabilities.shape
    p = probabilities.tolist()
    return [
        [[max(range(classes), key=lambda c: (p[t][c][y][x], -c)) for x in range(width)] for y in range(height)]
        for t in range(count)
    ]


def naive_channel_fusion(probabilities, policy, window, thresholds, border, filter_single=True):
    _, classes, height, width = probabilities.shape
    labels, p, radius = naive_unify(probabilities), probabilities.tolist(), window // 2
    fused = torch.full((height, width), 255)
    for y in range(height):
        for x in range(width):
            claiming = [c for c in range(classes) if policy[c] >= 0 and labels[policy[c]][y][x] == c]
            if len(claiming) == 1:
                label = claiming[0]
                certainty = p[policy[label]][label][y][x]
            else:
                near = [
                    (i, j)
                    for i in range(max(0, y - radius), min(height, y + radius + 1))
                    for j in range(max(0, x - radius), min(width, x + radius + 1))
                ]
                votes = [
                    sum(labels[policy[c]][i][j] == c for i, j in near) if policy[c] >= 0 else 0 for c in range(classes)
                ]
                if max(votes) == 0:
                    continue
                label = votes.index(max(votes))
                area = window**2 if border == "zero" else len(near)
                certainty = sum(p[policy[label]][label][i][j] for i, j in near) / area
            if certainty >= thresholds[label] or (len(claiming) == 1 and not filter_single):
                fused[y, x] = label
    return fused


def golden_members() -> torch.Tensor:
    """Specification, section 10: one-hot confidences 0.96 (A) and 0.94 (B), the rest shared."""
    a = torch.zeros(6, 6, dtype=torch.int64)
    a[:, 3:] = 1
    a[4:, :2] = 2
    b = torch.zeros(6, 6, dtype=torch.int64)
    b[:, 4:] = 1
    b[3:, :3] = 2
    maps = []
    for labels, confidence in ((a, 0.96), (b, 0.94)):
        one_hot = torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1)
        maps.append(torch.where(one_hot == 1, confidence, (1 - confidence) / 2))
    return torch.stack(maps)


A, B = 0, 1


@pytest.mark.parametrize("window", [3, 5])
def test_golden_unclaimed_column(window: int) -> None:
    probabilities, policy = golden_members(), torch.tensor([A, B, A])
    a, b = unify(probabilities)
    expected = torch.where(a == 0, 0, torch.where(b == 1, 1, a))
    expected[4:, :2] = 2
    fused = channel_fusion(probabilities, policy, window=window, threshold=0.9)
    expected[:, 3] = 255
    assert fused.equal(expected)
    claims = fuse_claims(evidence_from_probabilities(probabilities, policy)).claims
    assert claims.equal(torch.tensor([1, 1, 1, 0, 1, 1], dtype=torch.uint8).expand(6, 6))
    expected[:, 3] = 0
    assert channel_fusion(probabilities, policy, window=3, threshold=0).equal(expected)


def test_golden_conflicts() -> None:
    probabilities, policy = golden_members(), torch.tensor([A, A, B])
    a, b = unify(probabilities)
    claims = torch.ones(6, 6, dtype=torch.uint8)
    claims[3, :3] = 2
    claims[4:, 2] = 2
    assert fuse_claims(evidence_from_probabilities(probabilities, policy)).claims.equal(claims)
    expected = torch.where(b == 2, 2, a)
    expected[3, :3] = 0
    expected[4:, 2] = 2
    assert channel_fusion(probabilities, policy, window=3, threshold=0.0).equal(expected)
    expected[claims == 2] = 255
    assert channel_fusion(probabilities, policy, window=3, threshold=0.9).equal(expected)


@pytest.mark.parametrize("window", [1, 3, 5, 7, 13])
@pytest.mark.parametrize("border", ["zero", "valid"])
def test_channel_fusion_against_loops(window: int, border: Literal["zero", "valid"]) -> None:
    kinds: set[int] = set()
    for seed in range(4):
        probabilities = members(seed)
        policy = torch.randint(-1, 3, (4,), generator=torch.Generator().manual_seed(seed))
        for threshold in (0.0, 0.6, torch.tensor([0.3, 0.9, 0.5, 0.7], dtype=torch.float64)):
            per_class = threshold.tolist() if isinstance(threshold, torch.Tensor) else [threshold] * 4
            for filter_single in (True, False):
                fused = channel_fusion(
                    probabilities,
                    policy,
                    window=window,
                    threshold=threshold,
                    border=border,
                    filter_single=filter_single,
                )
                expected = naive_channel_fusion(
                    probabilities, policy.tolist(), window, per_class, border, filter_single
                )
                assert fused.dtype == torch.int64
                assert fused.equal(expected)
        kinds |= set(fuse_claims(evidence_from_probabilities(probabilities, policy)).claims.unique().tolist())
    assert {0, 1, 2} <= kinds


def test_zero_border_drops_contested_pixels_that_valid_keeps() -> None:
    probabilities = torch.full((2, 2, 12, 12), 0.01, dtype=torch.float64)
    probabilities[0, 0] = 0.99  # member 0 claims class 0 everywhere
    probabilities[1, 1] = 0.95
    probabilities[1, 0] = 0.05  # and member 1 class 1: contested everywhere, the tie goes to class 0
    policy = torch.tensor([0, 1])
    expected = torch.full((12, 12), 255)
    expected[2:-2, 2:-2] = 0
    one_sided = channel_fusion(probabilities, policy)
    assert (one_sided == 0).sum() >= 64
    assert one_sided[:2].eq(255).all()
    assert one_sided[:, -2:].eq(255).all()
    assert one_sided.equal(expected)
    assert channel_fusion(probabilities, policy, border="valid").eq(0).all()


def test_no_claim_in_the_window_is_dropped_even_without_threshold() -> None:
    probabilities = members(0, count=1)
    assert channel_fusion(probabilities, torch.full((4,), -1), threshold=0.0).eq(255).all()


def test_float32_threshold_is_met_by_its_own_value() -> None:
    probabilities = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1)
    for threshold in (0.9, torch.tensor([0.9, 0.9], dtype=torch.float64)):
        assert channel_fusion(probabilities, torch.tensor([0, 0]), threshold=threshold).item() == 0


def test_one_member_is_itself_with_a_threshold() -> None:
    probabilities = members(5, count=1)
    fused = channel_fusion(probabilities, torch.zeros(4, dtype=torch.int64), threshold=0.7)
    assert fused.equal(confident_labels(probabilities[0], 0.7))
    assert set(fused.unique().tolist()) <= {0, 1, 2, 3, 255}


def test_permuted_and_unselected_members_change_nothing() -> None:
    probabilities, policy = members(6), torch.tensor([2, 0, 0, 2])
    fused = channel_fusion(probabilities, policy, threshold=0.6)
    order = torch.tensor([1, 2, 0])  # new position -> old member
    assert channel_fusion(probabilities[order], order.argsort()[policy], threshold=0.6).equal(fused)
    more = torch.cat([probabilities, members(7, count=2)])
    assert channel_fusion(more, policy, threshold=0.6).equal(fused)
    labels = unify(probabilities)
    assert pixel_fusion(labels, 4).equal(pixel_fusion(labels[order], 4))
    torch.testing.assert_close(mean_probabilities(probabilities), mean_probabilities(probabilities[order]))


def test_scale_of_one_member_moves_certainty_alone() -> None:
    probabilities, policy = members(8), torch.tensor([0, 1, 2, 0])
    sharper = probabilities.clone()
    sharper[1] = (probabilities[1].log() * 2.5).softmax(0)
    before, after = (
        fuse_claims(evidence_from_probabilities(p, policy), threshold=0.0) for p in (probabilities, sharper)
    )
    assert before.labels.equal(after.labels)
    assert before.claims.equal(after.claims)
    assert not before.certainty.equal(after.certainty)


def test_labels_with_certainty_pass_at_most_what_probabilities_do() -> None:
    for seed in range(4):
        probabilities, policy = members(seed), torch.tensor([0, 1, 2, 1])
        full = fuse_claims(evidence_from_probabilities(probabilities, policy), threshold=0.5)
        evidence = evidence_from_labels(unify(probabilities), probabilities.amax(1), policy)
        known = fuse_claims(evidence, threshold=0.5)
        single = full.claims == 1
        assert known.claims.equal(full.claims)
        assert known.labels[single].equal(full.labels[single])
        assert bool((known.certainty <= full.certainty + 1e-12).all())
        assert bool(((known.labels == full.labels) | (known.labels == 255)).all())


def test_unify_and_what_a_member_lacks() -> None:
    probabilities = members(9)
    assert unify(probabilities).tolist() == naive_unify(probabilities)
    assert unify(probabilities).dtype == torch.int64
    allowed = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]]).bool()
    masked = probabilities * allowed[:, :, None, None]
    assert unify(probabilities, allowed=allowed).tolist() == naive_unify(masked)
    policy = torch.tensor([2, 1, 1, 0])
    assert channel_fusion(probabilities, policy, allowed=allowed, threshold=0.0).equal(
        naive_channel_fusion(masked, policy.tolist(), 5, [0.0] * 4, "zero")
    )
    with pytest.raises(AdaptSegError, match="class 1 from member 2, which does not have it"):
        channel_fusion(probabilities, torch.tensor([2, 2, 1, 0]), allowed=allowed)


def test_vote_against_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 5, 130):
        labels = torch.randint(0, 5, (count, 6, 7), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
        allowed = torch.rand(count, 5, generator=generator) < 0.7
        for mask in (None, allowed):
            expected = torch.full((6, 7), 255)
            for y in range(6):
                for x in range(7):
                    votes = [0] * 5
                    for t in range(count):
                        c = int(labels[t, y, x])
                        if c != 255 and (mask is None or bool(mask[t, c])):
                            votes[c] += 1
                    if max(votes):
                        expected[y, x] = votes.index(max(votes))
            fused = pixel_fusion(labels, 5, allowed=mask)
            assert fused.dtype == torch.int64
            assert fused.equal(expected)
            assert pixel_fusion(labels.to(torch.uint8), 5, allowed=mask).equal(expected)
    same = torch.randint(0, 5, (1, 6, 7), generator=generator)
    assert pixel_fusion(same.expand(4, 6, 7), 5).equal(same[0])


def test_mean_weights_and_missing_classes() -> None:
    probabilities = members(10)
    torch.testing.assert_close(mean_probabilities(probabilities), probabilities.mean(0))
    torch.testing.assert_close(
        mean_probabilities(probabilities, weights=torch.tensor([2.0, 0.0, 6.0])),
        0.25 * probabilities[0] + 0.75 * probabilities[2],
    )
    allowed = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0]]).bool()
    mean = mean_probabilities(probabilities, weights=allowed)
    for y in range(9):
        for x in range(7):
            values = []
            for c in range(4):
                having = [float(probabilities[t, c, y, x]) for t in range(3) if allowed[t, c]]
                values.append(sum(having) / len(having) if having else 0.0)
            assert mean[:, y, x].tolist() == pytest.approx([v / sum(values) for v in values])
    assert mean[3].eq(0).all()


def test_ranks() -> None:
    probabilities = members(11)
    profile = rank_profile(probabilities)
    values = [sorted(p, reverse=True) for p in probabilities.permute(0, 2, 3, 1).reshape(-1, 4).tolist()]
    assert profile.tolist() == pytest.approx([sum(column) / len(values) for column in zip(*values, strict=True)])
    mean = rank_mean(probabilities, profile)
    for y in range(9):
        for x in range(7):
            expected = [0.0] * 4
            for t in range(3):
                p = probabilities[t, :, y, x].tolist()
                for rank, c in enumerate(sorted(range(4), key=lambda c: (-p[c], c))):
                    expected[c] += float(profile[rank]) / 3
            assert mean[:, y, x].tolist() == pytest.approx(expected)
    sharper = (probabilities.log() * 2).softmax(1)
    assert rank_mean(sharper, profile).equal(mean)
    torch.testing.assert_close(mean.sum(0), torch.ones(9, 7, dtype=torch.float64))


def test_priority_paints_later_classes_over_earlier() -> None:
    labels = unify(members(12))
    policy, order = torch.tensor([0, 1, 2, -1]), [2, 0, 3, 1]
    fused = priority_fusion(labels, policy, torch.tensor(order))
    for y in range(9):
        for x in range(7):
            claiming = [c for c in order if policy[c] >= 0 and labels[policy[c], y, x] == c]
            assert fused[y, x].item() == (claiming[-1] if claiming else 255)
    with pytest.raises(AdaptSegError, match="once"):
        priority_fusion(labels, policy, torch.tensor([0, 0, 1, 2]))


def test_certainty_of_a_stream() -> None:
    batches = [members(seed, count=2, classes=5) for seed in (1, 2)]
    for batch in batches:
        batch[:, 4] = 0  # never predicted
    sums, counts = [0.0] * 5, [0] * 5
    for batch in batches:
        for pixel in batch.permute(0, 2, 3, 1).reshape(-1, 5).tolist():
            c = pixel.index(max(pixel))
            sums[c], counts[c] = sums[c] + max(pixel), counts[c] + 1
    stream = ClassCertainty(5)
    for batch in batches:
        stream.update(batch)
    expected = [s / n if n else math.nan for s, n in zip(sums, counts, strict=True)]
    assert stream.compute().tolist() == pytest.approx(expected, nan_ok=True)
    assert math.isnan(expected[4])
    assert stream.pixels.tolist() == counts
    torch.testing.assert_close(class_certainty(torch.cat(batches)), stream.compute(), equal_nan=True)
    constant = torch.nn.functional.one_hot(unify(members(3)), 4).permute(0, 3, 1, 2) * 0.6 + 0.1
    certainty = class_certainty(constant)
    assert certainty[~certainty.isnan()].tolist() == pytest.approx([0.7] * int((~certainty.isnan()).sum()))


def test_policy() -> None:
    nan = math.nan
    certainty = torch.tensor([[0.5, nan, 0.8, nan], [0.7, 0.2, 0.8, nan]])
    assert select_policy(certainty[:, :3]).tolist() == [1, 1, 0]
    assert select_policy(certainty, missing="nobody").tolist() == [1, 1, 0, -1]
    with pytest.raises(AdaptSegError, match=r"classes \[3\]"):
        select_policy(certainty)
    allowed = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1]]).bool()
    assert select_policy(certainty, allowed=allowed, missing="nobody").tolist() == [0, 1, 1, -1]
    pixels = torch.tensor([[90, 10, 0], [999, 1, 0]])
    assert enough_pixels(pixels, 0.05).tolist() == [[True, True, False], [True, False, False]]
    assert enough_pixels(pixels, 0.0).tolist() == [[True, True, False], [True, True, False]]
    weights = policy_weights(certainty, 0.5)
    assert weights[:, 0].tolist() == pytest.approx([1 / (1 + math.exp(0.4)), 1 / (1 + math.exp(-0.4))])
    assert weights[:, 1].tolist() == [0, 1]
    assert weights[:, 3].tolist() == [0, 0]
    assert policy_weights(certainty, 1e-4).argmax(0).tolist() == [1, 1, 0, 0]


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returns, views of the input left out."""

    def __init__(self, storage: int) -> None:
        super().__init__()
        self.storage, self.bytes = storage, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() != self.storage:
            self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return result


def test_no_copy_of_all_members() -> None:
    probabilities = members(13, count=6, classes=8, size=(32, 32)).float()
    allowed = torch.ones(6, 8, dtype=torch.bool)
    policy = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
    one_member = probabilities[0].nbytes
    for call in (
        lambda: channel_fusion(probabilities, policy, allowed=allowed),
        lambda: unify(probabilities, allowed=allowed),
        lambda: mean_probabilities(probabilities, weights=allowed),
        lambda: rank_mean(probabilities, torch.ones(8)),
    ):
        with LargestTensor(probabilities.untyped_storage().data_ptr()) as largest:
            call()
        assert largest.bytes <= 2 * one_member  # int64 orders of the ranks; a sixth, a third of the members' maps


def test_bad_input() -> None:
    probabilities, policy = members(0), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(AdaptSegError, match="each of the 4 classes"):
        channel_fusion(probabilities, policy[:3])
    with pytest.raises(AdaptSegError, match=r"members 0\.\.2"):
        channel_fusion(probabilities, policy + 3)
    for window in (0, 4):
        with pytest.raises(AdaptSegError, match="odd"):
            channel_fusion(probabilities, policy, window=window)
    with pytest.raises(AdaptSegError, match="zero, valid"):
        channel_fusion(probabilities, policy, border="same")  # type: ignore[arg-type]
    with pytest.raises(AdaptSegError, match="threshold"):
        channel_fusion(probabilities, policy, threshold=torch.zeros(3))
    with pytest.raises(AdaptSegError, match="T, C, H, W"):
        unify(probabilities[0])
    with pytest.raises(AdaptSegError, match="allowed"):
        unify(probabilities, allowed=torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(AdaptSegError, match="one size"):
        evidence_from_labels(unify(probabilities), probabilities[:, 0, :4], policy)
    with pytest.raises(AdaptSegError, match="255"):
        pixel_fusion(unify(probabilities), 256)
    with pytest.raises(AdaptSegError, match="share"):
        enough_pixels(torch.ones(2, 2), 1.0)
    with pytest.raises(AdaptSegError, match="N, C, H, W"):
        class_certainty(probabilities[0])
    with pytest.raises(AdaptSegError, match="temperature"):
        policy_weights(torch.ones(2, 2), 0.0)
