"""Which member to trust for which class: by the certainty of students distilled from them, by hand, or, for analysis,
by the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from adaptseg import networks, storage
from adaptseg.active.oracles import GroundTruth
from adaptseg.classes import VOID
from adaptseg.console import say
from adaptseg.data.batch import Labelled
from adaptseg.data.pair import DomainPair
from adaptseg.ensemble.store import MemberMaps, has_classes, open_members
from adaptseg.errors import AdaptSegError
from adaptseg.jobs import Job, Workplace
from adaptseg.losses.fusion import NOBODY, ClassCertainty, enough_pixels, select_policy
from adaptseg.metrics import iou_from_confusion
from adaptseg.networks import Inference

Kind = Literal["certainty", "manual", "oracle"]

ORACLE = "oracle (reads the truth: for analysis only)"
"""How an oracle policy is called wherever it is shown."""


class MeasureCertainty(Job):
    """How certain a distilled student is of each class on the target training images (eq. 4): `certainty.json`.

    Args:
        name: the member it was distilled from.
        student: its run directory.
        inference: how whole scenes are predicted.
    """

    def __init__(self, name: str, student: str, *, inference: Inference = Inference()) -> None:
        self.name, self.student, self.inference = name, student, inference

    def run(self, place: Workplace) -> None:
        data = place.require_data()
        segmenter = networks.load(self.student, class_table=data.class_table).to(place.device)
        measured = ClassCertainty(data.num_classes, device=place.device)
        for batch in data.loader_of_pool(data.pool.keys):
            assert isinstance(batch, Labelled)
            height, width = batch.labels.shape[-2:]
            images = batch.image.to(place.device)
            measured.update(
                networks.predict_probabilities(segmenter, images, size=(height, width), inference=self.inference)
            )
        values = [None if np.isnan(value) else value for value in measured.compute().tolist()]
        rows = zip(data.class_table.names, values, measured.pixels.tolist(), strict=True)
        classes = {name: {"certainty": value, "pixels": pixels} for name, value, pixels in rows}
        storage.atomic_json(place.folder / "certainty.json", {"name": self.name, "classes": classes})


class Policy(NamedTuple):
    """What `policy.json` says.

    Attributes:
        kind: how it was made.
        members: names of all members that there were.
        chosen: class name -> member name, None = nobody, the class gets no labels.
    """

    kind: Kind
    members: tuple[str, ...]
    chosen: dict[str, str | None]

    @property
    def title(self) -> str:
        return ORACLE if self.kind == "oracle" else self.kind

    def tensor(self, members: Sequence[MemberMaps], names: Sequence[str]) -> Tensor:
        """(C,) int64, positions in `members`. Names travel, positions do not: lists may be in any order."""
        position = {member.name: number for number, member in enumerate(members)}
        _require_cover(self.chosen, tuple(position), names)
        return torch.tensor([NOBODY if (member := self.chosen[name]) is None else position[member] for name in names])


def read_policy(stage: str | Path) -> Policy:
    """The policy that a job left in its folder."""
    given = storage.read_json(Path(stage) / "policy.json")
    return Policy(given["kind"], tuple(given["members"]), given["policy"])


class ChoosePolicy(Job):
    """For each class the member whose student is most certain of it (eq. 5), or as `manual` says: `policy.json`.

    Guards (inferred): a member is no candidate for a class that it lacks, or that makes up less than `minimum_share` of
    what it predicts, or of what its student predicts: such a student may be sure of a handful of pixels.

    Args:
        members: folders of `PredictMember`.
        measured: folders of `MeasureCertainty`, one for each member, in any order; none are needed for `manual`.
        manual: class name -> member name (null = nobody), for every class; null = by certainty.
        minimum_share: of a member's or student's pixels, in [0, 1).
        missing: a class without candidate is an error (`raise`), or gets no labels (`nobody`).
    """

    def __init__(
        self,
        members: list[str],
        *,
        measured: list[str] | None = None,
        manual: dict[str, str | None] | None = None,
        minimum_share: float = 1e-4,
        missing: Literal["raise", "nobody"] = "raise",
    ) -> None:
        if (manual is None) == (not measured):
            raise AdaptSegError("a policy is made from `measured:` or from `manual:`; give one of them")
        self.members, self.measured, self.manual = members, measured or [], manual
        self.minimum_share = minimum_share
        self.missing: Literal["raise", "nobody"] = missing

    def run(self, place: Workplace) -> None:
        data = place.require_data()
        members = open_members(self.members, data)
        names = data.class_table.names
        if self.manual is not None:
            _require_cover(self.manual, [member.name for member in members], names)
            for name, member in self.manual.items():
                if member is not None and name not in next(m for m in members if m.name == member).classes:
                    raise AdaptSegError(f"policy: member '{member}' does not have class '{name}'; choose another")
            _leave(place.folder, "manual", members, self.manual, {})
            return
        certainty, student_pixels = self._read(members, names)
        claims = torch.stack([torch.from_numpy(member.count()) for member in members])
        allowed = has_classes(members, names) & enough_pixels(claims, self.minimum_share)
        allowed &= enough_pixels(student_pixels, self.minimum_share)
        if bool(certainty.isnan().all()):
            raise AdaptSegError("no student is certain of any class: all certainties are missing")
        try:
            chosen = select_policy(certainty, allowed=allowed, missing=self.missing)
        except AdaptSegError as error:
            orphans = [
                name for name, some in zip(names, (allowed & ~certainty.isnan()).any(0), strict=True) if not some
            ]
            raise AdaptSegError(
                f"no member can be chosen for {', '.join(orphans)}: none predicts them, or minimum_share "
                f"{self.minimum_share} keeps all out; lower it, add a member, or set missing: nobody"
            ) from error
        policy = {
            name: None if t == NOBODY else members[t].name for name, t in zip(names, chosen.tolist(), strict=True)
        }
        table = {
            member.name: {
                name: {"certainty": None if np.isnan(c) else c, "pixels": int(p), "candidate": bool(a)}
                for name, c, p, a in zip(names, certainty[t].tolist(), claims[t], allowed[t], strict=True)
            }
            for t, member in enumerate(members)
        }
        _leave(place.folder, "certainty", members, policy, table)

    def _read(self, members: Sequence[MemberMaps], names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Certainty (T, C) float64 and pixels (T, C) int64 of the students, in the order of the members."""
        given = {(file := storage.read_json(Path(stage) / "certainty.json"))["name"]: file for stage in self.measured}
        if set(given) != {member.name for member in members}:
            raise AdaptSegError(
                f"students of {', '.join(sorted(given))} are measured, members are "
                f"{', '.join(member.name for member in members)}; each member needs a student"
            )
        rows = [[given[member.name]["classes"][name] for name in names] for member in members]
        certainty = [[np.nan if cell["certainty"] is None else cell["certainty"] for cell in row] for row in rows]
        pixels = [[cell["pixels"] for cell in row] for row in rows]
        return torch.tensor(certainty, dtype=torch.float64), torch.tensor(pixels)


class OraclePolicy(Job):
    """For each class the member of the highest IoU on the target training images. It reads the truth: for analysis
    only, and everything made from it says so.

    Args:
        members: folders of `PredictMember`.
    """

    def __init__(self, members: list[str]) -> None:
        self.members = members

    def run(self, place: Workplace) -> None:
        data = place.require_data()
        members = open_members(self.members, data)
        iou = torch.stack([member_iou(member, data) for member in members])
        chosen = select_policy(iou, allowed=has_classes(members, data.class_table.names), missing="nobody").tolist()
        names = data.class_table.names
        policy = {name: None if t == NOBODY else members[t].name for name, t in zip(names, chosen, strict=True)}
        table = {
            member.name: {n: {"iou": None if np.isnan(v) else v} for n, v in zip(names, row.tolist(), strict=True)}
            for member, row in zip(members, iou, strict=True)
        }
        _leave(place.folder, "oracle", members, policy, table)


def member_iou(member: MemberMaps, data: DomainPair) -> Tensor:
    """(C,) float64 IoU of a member on the target training images, NaN for absent classes; where it abstains it errs."""
    oracle, classes = GroundTruth(), data.num_classes
    oracle.bind(data.pool)
    confusion = np.zeros((classes, classes + 1), np.int64)
    for key in data.pool.keys:
        said = np.minimum(member.labels(key), classes).astype(np.int64)
        truth = oracle.truth(key, data.pool.size(key))
        known = truth != VOID
        pairs = truth[known].astype(np.int64) * (classes + 1) + said[known]
        confusion += np.bincount(pairs, minlength=confusion.size).reshape(confusion.shape)
    full = np.zeros((classes + 1, classes + 1), np.int64)
    full[:classes] = confusion
    return iou_from_confusion(torch.from_numpy(full))[:classes]


def _require_cover(chosen: dict[str, str | None], members: Sequence[str], names: Sequence[str]) -> None:
    if absent := [name for name in names if name not in chosen]:
        raise AdaptSegError(f"the policy does not cover {', '.join(absent)}; name a member, or null, for every class")
    if foreign := [name for name in chosen if name not in names]:
        raise AdaptSegError(f"the policy names classes that there are not: {', '.join(foreign)}")
    if unknown := sorted({member for member in chosen.values() if member is not None and member not in members}):
        raise AdaptSegError(f"the policy names member '{unknown[0]}'; there are {', '.join(members)}")


def _leave(
    folder: Path, kind: Kind, members: Sequence[MemberMaps], policy: dict[str, str | None], table: dict[str, Any]
) -> None:
    made = Policy(kind, tuple(member.name for member in members), policy)
    storage.atomic_json(
        folder / "policy.json",
        {"kind": kind, "title": made.title, "members": list(made.members), "policy": policy, "table": table},
    )
    say(f"policy: {made.title}")
    shown = Table()
    for column in ("class", "member", *(made.members if table else ())):
        shown.add_column(column, justify="left" if column in ("class", "member") else "right")
    for name, chosen in policy.items():
        shown.add_row(
            name, chosen or "nobody", *(_cell(table[member][name]) for member in (made.members if table else ()))
        )
    Console().print(shown)
    if nobody := [name for name, chosen in policy.items() if chosen is None]:
        say(f"no member is chosen for {', '.join(nobody)}: these classes get no labels")


def _cell(cell: dict[str, Any]) -> str:
    """Per cent; in brackets where a guard keeps the member out."""
    value = cell.get("certainty", cell.get("iou"))
    text = "-" if value is None else f"{100 * value:.1f}"
    return text if cell.get("candidate", True) else f"({text})"
