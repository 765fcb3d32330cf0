"""How differently a large and a small network label the target's training images: the job between DUDA's two stages.
Streams: one image and one (C, C) table in memory, however many images there are.
"""

from __future__ import annotations

import torch
from rich.progress import track
from torch import Tensor

from adaptseg import networks
from adaptseg.console import say
from adaptseg.data import DomainPair
from adaptseg.data.transforms import trusted_map
from adaptseg.jobs import Job, Workplace
from adaptseg.losses.inconsistency import divergence_by_class
from adaptseg.measurement import Measurement
from adaptseg.networks import Inference, Segmenter
from adaptseg.tensors import likeliest


class Counts:
    """Running counts of two networks' labels on the CPU's or the GPU's side; nothing waits for the device.

    Args:
        num_classes: C.
        divergence: also sum KL(large || small), which takes a softmax more of each.
    """

    def __init__(self, num_classes: int, device: torch.device, *, divergence: bool) -> None:
        self.confusion = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=device)
        self.total = torch.zeros(num_classes, dtype=torch.float64, device=device) if divergence else None
        self.pixels = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.num_classes = num_classes

    def add(self, large: Tensor, small: Tensor, trusted: Tensor) -> None:
        """Add one batch: probabilities (B, C, H, W) twice, and trusted (B, H, W) bool."""
        cells = likeliest(large, 1) * self.num_classes + likeliest(small, 1)
        cells = torch.where(trusted, cells, self.num_classes**2).flatten()  # one more cell for untrusted pixels
        self.confusion += torch.bincount(cells, minlength=len(self.confusion))
        if self.total is not None:
            tiny = torch.finfo(large.dtype).tiny  # log-probabilities are logits; they must be finite
            total, pixels = divergence_by_class(large.clamp(min=tiny).log(), small.clamp(min=tiny).log(), trusted)
            self.total += total
            self.pixels += pixels

    def result(self) -> tuple[Tensor, Tensor | None]:
        """The confusion (C, C) and the mean divergence (C,) or None, on the CPU."""
        confusion = self.confusion[:-1].view(self.num_classes, self.num_classes).cpu()
        return confusion, None if self.total is None else (self.total / self.pixels).cpu()


@torch.no_grad()
def measure(
    large: Segmenter,
    small: Segmenter,
    data: DomainPair,
    *,
    inference: Inference = Inference(),
    divergence: bool = False,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> tuple[int, Tensor, Tensor | None]:
    """Compare two networks in eval mode on the target training images, at the size the networks read them.

    Returns:
        images read, confusion (C, C), mean divergence (C,) or None; see `Measurement`.
    """
    device = torch.device(device)
    large, small = large.to(device).eval(), small.to(device).eval()
    counts = Counts(data.class_table.num_classes, device, divergence=divergence)
    loader = data.pool_loader(0, 1)
    images = 0
    for batch in track(loader, "comparing", total=len(data.pool.keys), transient=True, disable=not progress):
        image = batch.image.to(device, non_blocking=True)
        size = (image.shape[-2], image.shape[-1])
        said = [networks.predict_probabilities(n, image, size=size, inference=inference) for n in (large, small)]
        trusted = trusted_map(size, data.untrusted_margins).to(device).expand(len(image), *size)
        counts.add(said[0], said[1], trusted)
        images += len(image)
    return (images, *counts.result())


class MeasureInconsistency(Job):
    """Compares a run's small student with a large network; leaves `inconsistency.json`.

    Args:
        run: run directory or checkpoint of stage 1.
        large: another one, which holds the large network; None = the same.
        large_network: its name there.
        inference: how scenes are read; a job does not see what `model.inference` of stage 1 says.
        divergence: also the mean KL per class, for `InconsistencyWeights` of kind `kl`.
    """

    def __init__(
        self,
        run: str,
        *,
        large: str | None = None,
        large_network: str = "teacher",
        inference: Inference = Inference(),
        divergence: bool = False,
    ) -> None:
        self.checkpoint, self.large, self.large_network = run, large, large_network
        self.inference, self.divergence = inference, divergence

    def run(self, place: Workplace) -> None:
        """AdaptSegError for a checkpoint that is not there, lacks the network, or has other classes than the data."""
        data = place.require_data()
        table, source = data.class_table, self.large or self.checkpoint
        large = networks.load(source, self.large_network, class_table=table)
        small = networks.load(self.checkpoint, "student", class_table=table)
        counted = measure(
            large,
            small,
            data,
            inference=self.inference,
            divergence=self.divergence,
            device=place.device,
            progress=True,
        )
        said = f"{source} ({self.large_network})", f"{self.checkpoint} (student)"
        found, path = Measurement(list(table.names), *counted, *said), place.folder / "inconsistency.json"
        found.write(path)
        agreed = float(found.confusion.diagonal().sum() / found.confusion.sum().clamp(min=1))
        say(f"{found.images} images, {100 * agreed:.1f} % of pixels labelled alike: {path}")
