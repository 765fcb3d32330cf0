"""What can be a member of an ensemble, and what it says about every target training image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adaptseg import networks, storage
from adaptseg.classes import VOID, ClassTable
from adaptseg.console import say
from adaptseg.data.batch import Labelled
from adaptseg.data.files import to_train_ids
from adaptseg.data.label_folder import CERTAINTY, LabelFolder, read_map, require_train_ids, write_map
from adaptseg.data.pair import DomainPair
from adaptseg.ensemble.store import MemberMaps
from adaptseg.errors import AdaptSegError
from adaptseg.jobs import Job, Workplace
from adaptseg.networks import Inference, Output, resize_logits
from adaptseg.tensors import likeliest

Map = npt.NDArray[np.uint8]


class Prediction(NamedTuple):
    """What a member says about one scene, in its own classes.

    Attributes:
        key: the scene.
        labels: (H, W) uint8 train ids of the member's class table, 255 = it abstains; native size of the scene.
        certainty: (H, W) uint8, the probability of that label in per cent, rounded down: 90 means at least 0.90.
    """

    key: str
    labels: Map
    certainty: Map


class Member(ABC):
    """A model that labels images, however it was trained."""

    @abstractmethod
    def class_table(self, data: DomainPair) -> ClassTable:
        """Its classes."""

    @abstractmethod
    def predict(self, data: DomainPair, keys: Sequence[str], device: torch.device) -> Iterator[Prediction]:
        """Its labels of some scenes of the pool, in that order."""


class Trained(Member):
    """A network of any method of adaptseg.

    Args:
        run: run directory, or a checkpoint.
        network: which of its networks.
        inference: how whole scenes are predicted.
    """

    def __init__(self, run: str, *, network: str = "student", inference: Inference = Inference()) -> None:
        self.inference = inference
        self._segmenter = networks.load(run, network)

    def class_table(self, data: DomainPair) -> ClassTable:
        table = self._segmenter.class_table
        assert table is not None
        return table

    def predict(self, data: DomainPair, keys: Sequence[str], device: torch.device) -> Iterator[Prediction]:
        segmenter = self._segmenter.to(device).eval()

        def probabilities(images: Tensor, size: tuple[int, int]) -> Tensor:
            return networks.predict_probabilities(segmenter, images, size=size, inference=self.inference)

        return _predicted(data, keys, device, probabilities)


class Exported(Member):
    """A model that `torch.export` saved: normalised images (1, 3, H, W) at the size of `data.target_size` in, logits
    (1, C, h, w) out, with the normalisation of adaptseg.

    Args:
        path: the .pt2 file.
        classes: class table file; null = the classes of the data.
    """

    def __init__(self, path: str, *, classes: str | None = None) -> None:
        if not Path(path).is_file():
            raise AdaptSegError(f"exported model {path} does not exist")
        self._classes = None if classes is None else ClassTable.from_file(classes)
        try:
            self._module: nn.Module = torch.export.load(path).module()
        except Exception as error:  # whatever a broken archive makes torch raise
            raise AdaptSegError(
                f"{path} is no model that torch.export saved: {' '.join(str(error).split())}"
            ) from error

    def class_table(self, data: DomainPair) -> ClassTable:
        return self._classes or data.class_table

    def predict(self, data: DomainPair, keys: Sequence[str], device: torch.device) -> Iterator[Prediction]:
        module, classes = self._module.to(device), self.class_table(data).num_classes

        def probabilities(images: Tensor, size: tuple[int, int]) -> Tensor:
            given = module(images)
            logits = given.logits if isinstance(given, Output) else given
            if not isinstance(logits, Tensor) or logits.shape[:2] != (1, classes):
                raise AdaptSegError(f"the exported model does not give logits (1, {classes}, h, w)")
            return resize_logits(logits.float(), size).softmax(1)

        return _predicted(data, keys, device, probabilities)


class Predictions(Member):
    """A folder of label maps that any code may have written, as `adaptseg predict --certainty` does: `<key>.png` and,
    for all scenes or for none, `<key>.certainty.png` (uint8 per cent).

    Args:
        folder: where they lie.
        classes: class table file, if they hold ids of other classes; null = train ids of the data's classes.
    """

    def __init__(self, folder: str, *, classes: str | None = None) -> None:
        self.folder = Path(folder)
        self._classes = None if classes is None else ClassTable.from_file(classes)

    def class_table(self, data: DomainPair) -> ClassTable:
        return self._classes or data.class_table

    def predict(self, data: DomainPair, keys: Sequence[str], device: torch.device) -> Iterator[Prediction]:
        table = self.class_table(data)
        LabelFolder(self.folder, table, keys)  # raises where a scene has no file
        rated = [key for key in keys if (self.folder / f"{key}{CERTAINTY}").is_file()]
        if rated and len(rated) < len(keys):
            lacking = next(key for key in keys if key not in set(rated))
            raise AdaptSegError(
                f"{self.folder} holds {len(rated)} certainty maps for {len(keys)} scenes ({lacking}{CERTAINTY} is "
                "missing); give all, or none, which counts every label as certain"
            )
        for key in keys:
            path = self.folder / f"{key}.png"
            labels = read_map(path)
            if self._classes is not None:
                labels = to_train_ids(labels, path, self._classes)
            require_train_ids(labels, table, path)
            certainty = read_map(self.folder / f"{key}{CERTAINTY}") if rated else np.full_like(labels, 100)
            for name, values in ((f"{key}.png", labels), (f"{key}{CERTAINTY}", certainty)):
                if values.shape != (size := data.pool.size(key)):
                    raise AdaptSegError(
                        f"{self.folder / name} is {values.shape[0]}x{values.shape[1]}, its scene {size[0]}x{size[1]}; "
                        "members label scenes at native size"
                    )
            if certainty.max() > 100:
                raise AdaptSegError(f"{self.folder / key}{CERTAINTY} holds {certainty.max()}; per cent are expected")
            yield Prediction(key, labels, certainty)


class PredictMember(Job):
    """Labels and certainties of one member on every target training image, in the classes of the data.

    Other class tables are mapped by name; where the member gives a class that the data lack, it abstains (255).
    Leaves `member.json` and `predictions/<key>.png`, `<key>.certainty.png`: 2 bytes a pixel before PNG packs them,
    where probabilities of 19 classes as bytes take 19.

    Args:
        name: what policies and reports call the member.
        member: the model.
    """

    def __init__(self, name: str, member: Member) -> None:
        self.name, self.member = name, member

    def run(self, place: Workplace) -> None:
        data, folder = place.require_data(), place.folder / "predictions"
        table, theirs = data.class_table, self.member.class_table(data)
        ours = np.full(VOID + 1, VOID, np.uint8)
        for train_id, name in enumerate(theirs.names):
            if name in table.names:
                ours[train_id] = table.names.index(name)
        has = [name for name in table.names if name in theirs.names]
        if not has:
            raise AdaptSegError(f"member '{self.name}' has none of the classes {', '.join(table.names)}")
        # The label map is written last: where it is, its certainty is.
        missing = [key for key in data.pool.keys if not (folder / f"{key}.png").is_file()]
        for key, labels, certainty in self.member.predict(data, missing, place.device):
            write_map(folder / f"{key}{CERTAINTY}", certainty)
            write_map(folder / f"{key}.png", ours[labels])
        maps = MemberMaps(self.name, folder, has, data)
        pixels, size = maps.count(), maps.bytes_per_image()
        storage.atomic_json(
            place.folder / "member.json",
            {"name": self.name, "classes": has, "pixels": dict(zip(table.names, pixels.tolist(), strict=True))},
        )
        say(f"member {self.name}: {len(data.pool.keys)} images, {size:,.0f} bytes an image on disk")
        if unseen := [name for name in has if not pixels[table.names.index(name)]]:
            say(f"member {self.name} never predicts {', '.join(unseen)}")


def _predicted(
    data: DomainPair,
    keys: Sequence[str],
    device: torch.device,
    probabilities: Callable[[Tensor, tuple[int, int]], Tensor],
) -> Iterator[Prediction]:
    for batch in data.loader_of_pool(keys):
        assert isinstance(batch, Labelled)
        height, width = batch.labels.shape[-2:]
        with torch.no_grad():
            p = probabilities(batch.image.to(device), (height, width))[0]
        labels, certainty = likeliest(p, 0), (p.amax(0) * 100).floor()
        if not bool(certainty.isfinite().all()):
            raise AdaptSegError(f"scene '{batch.keys[0]}': the network's probabilities are not finite")
        yield Prediction(batch.keys[0], labels.to(torch.uint8).cpu().numpy(), certainty.to(torch.uint8).cpu().numpy())
