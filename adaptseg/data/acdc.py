"""ACDC (Sakaridis et al., ICCV 2021): streets in fog, at night, in rain and in snow, in Cityscapes' classes."""

from __future__ import annotations

from typing import Literal

from adaptseg.data.drives import Drives
from adaptseg.errors import AdaptSegError

Condition = Literal["fog", "night", "rain", "snow"]
ALL: tuple[Condition, ...] = ("fog", "night", "rain", "snow")


class ACDC(Drives):
    """Scenes `<condition>/<drive>/<drive>_frame_000247` of 1080x1920 pixels.

    Files: `rgb_anon/<condition>/<split>/<drive>/<scene>_rgb_anon.png` and
    `gt/<condition>/<split>/<drive>/<scene>_gt_labelIds.png`; the reference images, taken of the same places in clear
    weather, are `rgb_anon/<condition>/<split>_ref/<drive>/<scene>_rgb_ref_anon.png`.

    Args:
        root: the folder that holds `rgb_anon` and `gt`, or the published archives (`[rgb_anon_trainvaltest.zip,
            gt_trainval.zip]`).
        split: `train` (1,600 scenes), `val` (406) or `test` (2,000); only the first two are `labelled`, as the
            annotation of `test` is secret. `train_ref`, `val_ref` and `test_ref` are reference images, never labelled.
        conditions: which ones.
        count: use only so many scenes, spread evenly over the conditions; None = all.

    Raises:
        AdaptSegError: the layout is another, a condition is unknown, given twice or empty, or scenes lack their label.
    """

    def __init__(
        self,
        root: str | list[str],
        split: Literal["train", "val", "test", "train_ref", "val_ref", "test_ref"],
        *,
        conditions: tuple[Condition, ...] = ALL,
        count: int | None = None,
    ) -> None:
        if not conditions or len(set(conditions)) < len(conditions) or not set(conditions) <= set(ALL):
            raise AdaptSegError(
                f"ACDC: conditions is {list(conditions)}; some of {', '.join(ALL)}, each once, expected"
            )
        super().__init__(
            root,
            called="ACDC",
            split=split,
            conditions=conditions,
            labelled=split in ("train", "val"),
            image_ending="_rgb_ref_anon.png" if split.endswith("_ref") else "_rgb_anon.png",
            count=count,
        )

    def _folder(self, kind: Literal["rgb_anon", "gt"], condition: str) -> str:
        return f"{kind}/{condition}/{self._split}"
