"""Scene readers and the domain pair that turns them into batches.

Readers need numpy and pillow only; what needs torch is imported when first asked for, so that verbs which only look at
data start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adaptseg.data.acdc import ACDC as ACDC
from adaptseg.data.ade_bedroom import ADE20KBedrooms as ADE20KBedrooms
from adaptseg.data.ade_bedroom import ADEBedroom as ADEBedroom
from adaptseg.data.bdd100k import BDD100K as BDD100K
from adaptseg.data.camvid import CamVid as CamVid
from adaptseg.data.camvid_raw import CamVidRaw as CamVidRaw
from adaptseg.data.cityscapes import Cityscapes as Cityscapes
from adaptseg.data.dark_zurich import DarkZurich as DarkZurich
from adaptseg.data.folder import Folder as Folder
from adaptseg.data.gta5 import GTA5 as GTA5
from adaptseg.data.mapillary import Mapillary as Mapillary
from adaptseg.data.pascal_context import PascalContext as PascalContext
from adaptseg.data.resized import Resized as Resized
from adaptseg.data.scenes import Scenes as Scenes
from adaptseg.data.streets import Streets as Streets
from adaptseg.data.synthia import Synthia as Synthia

if TYPE_CHECKING:
    from adaptseg.data.batch import Batch as Batch
    from adaptseg.data.batch import Labelled as Labelled
    from adaptseg.data.batch import Target as Target
    from adaptseg.data.class_balance import ClassBalancedSampling as ClassBalancedSampling
    from adaptseg.data.pair import DomainPair as DomainPair
    from adaptseg.data.rare_classes import RareClassSampling as RareClassSampling
    from adaptseg.data.statistics import ClassStatistics as ClassStatistics

_WITH_TORCH = {
    "Batch": "batch",
    "Labelled": "batch",
    "Target": "batch",
    "ClassBalancedSampling": "class_balance",
    "DomainPair": "pair",
    "RareClassSampling": "rare_classes",
    "ClassStatistics": "statistics",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
    globals()[name] = value
    return value
