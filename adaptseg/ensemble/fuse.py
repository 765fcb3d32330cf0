"""One label map per target training image from what all members say about it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from adaptseg import storage
from adaptseg.classes import VOID
from adaptseg.console import say
from adaptseg.data.label_folder import write_map
from adaptseg.ensemble.policy import Policy, read_policy
from adaptseg.ensemble.store import MemberMaps, has_classes, open_members
from adaptseg.errors import AdaptSegError
from adaptseg.jobs import Job, Workplace
from adaptseg.losses.claims import Border, fuse_claims
from adaptseg.losses.fusion import evidence_from_labels, pixel_fusion

Rule = Literal["channel", "vote"]


class Fuse(Job):
    """`labels/<key>.png` (train ids, 255 = dropped) and `fusion.json` with what became of the pixels; under an oracle
    policy `oracle_labels/` instead, so that no training takes them for anything else.

    Args:
        members: folders of `PredictMember`.
        policy: folder of `ChoosePolicy` or `OraclePolicy`; a vote needs none.
        rule: `channel`, each class from the member chosen for it, or `vote`, the class most members give.
        window: side of the window in which contested and unclaimed pixels look for the most claims; see `fuse_claims`.
        threshold: least certainty of a label, in 0..1.
        thresholds: class name -> its own threshold instead.
        border: what a window mean divides by at the image's edge.
        filter_single: False keeps pixels with one claim whatever their certainty.
    """

    def __init__(
        self,
        members: list[str],
        *,
        policy: str | None = None,
        rule: Rule = "channel",
        window: int = 5,
        threshold: float = 0.9,
        thresholds: dict[str, float] | None = None,
        border: Border = "zero",
        filter_single: bool = True,
    ) -> None:
        if (policy is None) != (rule == "vote"):
            raise AdaptSegError(f"rule: {rule} with policy: {policy}; channel needs a policy, a vote has none")
        self.members, self.policy, self.window = members, policy, window
        self.border: Border = border
        self.threshold, self.thresholds, self.filter_single = threshold, thresholds or {}, filter_single

    def run(self, place: Workplace) -> None:
        data = place.require_data()
        names = data.class_table.names
        members = open_members(self.members, data)
        policy = None if self.policy is None else read_policy(self.policy)
        if foreign := sorted(set(self.thresholds) - set(names)):
            raise AdaptSegError(f"thresholds names {', '.join(foreign)}, of which there is no class")
        threshold = torch.tensor([self.thresholds.get(name, self.threshold) for name in names])
        folder = place.folder / ("oracle_labels" if policy is not None and policy.kind == "oracle" else "labels")
        given = has_classes(members, names)
        chosen = None if policy is None else policy.tensor(members, names)
        if chosen is not None:
            # Maps of the members that no class is taken from need not be read.
            used = sorted({int(t) for t in chosen if t >= 0})
            chosen = torch.tensor([used.index(int(t)) if t >= 0 else -1 for t in chosen])
            members = [members[t] for t in used]
        tally = np.zeros((3, len(names) + 1), np.int64)
        for key in data.pool.keys:
            labels = torch.from_numpy(np.stack([member.labels(key) for member in members])).to(place.device)
            if chosen is None:
                fused = pixel_fusion(labels, len(names), allowed=given)
                claims = (labels != VOID).sum(0)
            else:
                fused, claims = self._channel(members, key, labels, chosen, threshold.to(place.device))
            write_map(folder / f"{key}.png", fused.to(torch.uint8).cpu().numpy())
            tally += _tally(fused, claims, len(names))
        row = {"rule": "vote" if policy is None else "channel", "policy": None if policy is None else policy.title}
        row |= _shares(tally, names)
        storage.atomic_json(place.folder / "fusion.json", row)
        _tell(row, policy)

    def _channel(
        self, members: list[MemberMaps], key: str, labels: Tensor, chosen: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor]:
        certainty = torch.from_numpy(np.stack([member.certainty(key) for member in members])).to(labels.device)
        fusion = fuse_claims(
            evidence_from_labels(labels, certainty, chosen),
            window=self.window,
            threshold=threshold,
            border=self.border,
            filter_single=self.filter_single,
        )
        return fusion.labels, fusion.claims


def _tally(fused: Tensor, claims: Tensor, classes: int) -> np.ndarray:
    """(3, C + 1) int64: pixels with no, one, several claims, by fused class, the last column dropped ones."""
    kind = claims.long().clamp(max=2) * (classes + 1) + fused.clamp(max=classes)
    return torch.bincount(kind.flatten(), minlength=3 * (classes + 1)).view(3, classes + 1).cpu().numpy()


def _shares(tally: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    total = max(int(tally.sum()), 1)
    rows = zip(("none", "one", "several"), tally.sum(1), tally[:, -1], strict=True)
    return {
        "claims": {name: {"share": n / total, "dropped": d / max(int(n), 1)} for name, n, d in rows},
        "dropped": int(tally[:, -1].sum()) / total,
        "labelled": {name: int(n) / total for name, n in zip(names, tally[:, :-1].sum(0), strict=True)},
    }


def _tell(row: dict[str, Any], policy: Policy | None) -> None:
    claims = ", ".join(f"{name} {100 * part['share']:.1f} %" for name, part in row["claims"].items())
    say(f"fused by {row['rule']}{'' if policy is None else f', policy {policy.title}'}")
    say(f"pixels by number of claims: {claims}; dropped {100 * row['dropped']:.1f} %")
    if none := [name for name, share in row["labelled"].items() if not share]:
        say(f"no pixel is labelled {', '.join(none)}")
