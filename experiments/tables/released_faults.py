"""Faults of two-stage eDALD's released code, imitated to measure them (departures.py). Nothing else may use them.

The package offers none of these. Each stands here as the audit describes it (specification, section 10), in plain lines
of our own; what the audit leaves open says "inferred".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adaptseg.active.herding import max_herding
from adaptseg.networks.feature_maps import DiffusionFeatures

RELEASED_DROPOUT = 0.1
"""Of the residual blocks of the released LSUN-bedroom network, the one that has any."""
RELEASED_CHUNKS = 5
"""Chunks of global herding on Pascal-Context, at least (trap T13)."""
RELEASED_CAP = 5_000 / 249_900
"""Of what earlier chunks chose, so many points are known to a chunk, as a share of the points to choose from: 5,000 on
Pascal-Context. The 5,000 labelled points that it may know are never exceeded: no published run buys more."""


def float16_herding(features: Tensor, picks: int, length_scale: float) -> tuple[Tensor, int]:
    """FAULT (T4): greedy herding whose kernel and mean coverage are float16, with a step of 0.0005 near 0.9.

    Args:
        features: (n, D) float32.
        picks: 1 to n.
        length_scale: of the kernel.

    Returns:
        indices (picks,) int64 in pick order; how many picks tied with another candidate exactly. Distances are float32
        and the first of equals is taken (inferred).
    """
    kernel = torch.cdist(features, features).square().mul(-1 / length_scale**2).exp().half()
    covered = kernel.new_zeros(len(kernel))
    chosen: list[int] = []
    tied = 0
    for _ in range(picks):
        coverage = torch.maximum(kernel, covered[:, None]).float().mean(0).half()
        coverage[chosen] = -1
        tied += int((coverage == coverage.max()).sum()) > 1
        chosen.append(int(coverage.argmax()))
        covered = torch.maximum(covered, kernel[:, chosen[-1]])
    return torch.tensor(chosen), tied


def chunked_herding(
    features: Tensor, picks: int, length_scale: float, conditioned_on: Tensor, generator: torch.Generator
) -> Tensor:
    """FAULT (T13): global herding in random chunks, each of which covers its own points only, with a proportional share
    of the picks, and knows what is labelled and a random sample of what earlier chunks chose.

    Args:
        features: (n, D).
        picks: of all chunks together.
        length_scale: of the kernel.
        conditioned_on: (l, D).
        generator: of chunks and samples.

    Returns:
        indices, sorted; as many as `picks` up to rounding in each chunk.
    """
    cap = round(RELEASED_CAP * len(features))
    chosen: list[Tensor] = []
    for chunk in torch.randperm(len(features), generator=generator).chunk(RELEASED_CHUNKS):
        earlier = torch.cat(chosen) if chosen else chunk[:0]
        sample = earlier[torch.randperm(len(earlier), generator=generator)[:cap]]
        known = torch.cat([conditioned_on, features[sample]])
        share = round(picks * len(chunk) / len(features))
        found, _ = max_herding(features[chunk], share, length_scale=length_scale, conditioned_on=known)
        chosen.append(chunk[found])
    return torch.cat(chosen).sort().values


def mispaired(order: Tensor) -> Tensor:
    """FAULT (T5 iv): the positions that rows of local picks are taken for. The features stand in pick order, the
    positions in ascending order.

    Args:
        order: (n, K) local picks of n images, in pick order.

    Returns:
        (n, K): what is labelled where the row of the same place is chosen; still one of the image's picks.
    """
    return order.sort(1).values


class FirstRoundFeatures(DiffusionFeatures):
    """FAULT (T5 i-iii): what the released first round reads in place of the features of all later ones.

    Args:
        unet: as of DiffusionFeatures.
        timesteps: the release: 50 alone.
        unit_range: show the network images in [0, 1] instead of [-1, 1].
        fresh_noise: draw the noise anew for every image.
        seed: of the noise.
    """

    def __init__(
        self, unet: str, timesteps: tuple[int, ...], *, unit_range: bool, fresh_noise: bool, seed: int = 0
    ) -> None:
        super().__init__(unet, timesteps, seed=seed)
        self.unit_range, self.fresh_noise = unit_range, fresh_noise
        self._random = torch.Generator().manual_seed(seed)

    def _noise(self, images: Tensor, draw: int) -> Tensor:
        if not self.fresh_noise:
            return super()._noise(images, draw)
        return torch.randn((1, *images.shape[1:]), generator=self._random)

    def _decoded(self, clean: Tensor, noise: Tensor, timestep: int) -> list[Tensor]:
        return super()._decoded((clean + 1) / 2 if self.unit_range else clean, noise, timestep)


@contextmanager
def dropout_on(features: DiffusionFeatures, seed: int) -> Iterator[None]:
    """FAULT (T7): dropout in the residual blocks of the denoiser stays on, as it does in the released code while heads
    are trained. The global random state is as before afterwards."""
    blocks = [m for name, m in features.unet.named_modules() if name.endswith("dropout") and isinstance(m, nn.Dropout)]
    before = [(block.p, block.training) for block in blocks]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for block in blocks:
            block.p = RELEASED_DROPOUT
            block.train()
        try:
            yield
        finally:
            for block, (share, training) in zip(blocks, before, strict=True):
                block.p = share
                block.train(training)
