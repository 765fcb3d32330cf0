"""Dark Zurich (Sakaridis et al., ICCV 2019): Zurich's streets at night, twilight and day, in Cityscapes' classes."""

from __future__ import annotations

from typing import Literal

from adaptseg.data.drives import Drives
from adaptseg.errors import AdaptSegError

Time = Literal["night", "twilight", "day"]
ALL: tuple[Time, ...] = ("night", "twilight", "day")


class DarkZurich(Drives):
    """Scenes `<time>/<drive>/<drive>_frame_000321` of 1080x1920 pixels.

    Files: `rgb_anon/<split>/<time>/<drive>/<scene>_rgb_anon.png` and
    `gt/val/night/<drive>/<scene>_gt_labelIds.png`.

    Args:
        root: the folder that holds `rgb_anon` and `gt`, or the published archives (`[Dark_Zurich_train_anon.zip,
            Dark_Zurich_val_anon.zip]`).
        split: `train` (2,416 scenes at night, 2,920 in twilight, 3,041 by day), `val` (50, the only labelled ones) or
            `test` (151, annotation is secret).
        times: which ones; beyond `night` there are training scenes only. Night alone is what methods adapt to.
        count: use only so many scenes, spread evenly over the times; None = all.

    Raises:
        AdaptSegError: the layout is another, a time is unknown, given twice, empty or not of this split, or scenes lack
            their label.
    """

    def __init__(
        self,
        root: str | list[str],
        split: Literal["train", "val", "test"],
        *,
        times: tuple[Time, ...] = ("night",),
        count: int | None = None,
    ) -> None:
        allowed = ALL if split == "train" else ("night",)
        if not times or len(set(times)) < len(times) or not set(times) <= set(allowed):
            raise AdaptSegError(
                f"Dark Zurich: times is {list(times)}; some of {', '.join(allowed)}, each once, expected for split "
                f"'{split}'"
            )
        super().__init__(
            root,
            called="Dark Zurich",
            split=split,
            conditions=times,
            labelled=split == "val",
            image_ending="_rgb_anon.png",
            count=count,
        )

    def _folder(self, kind: Literal["rgb_anon", "gt"], condition: str) -> str:
        return f"{kind}/{self._split}/{condition}"
