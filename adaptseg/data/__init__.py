"""Scene readers and the domain pair that turns them into batches."""

from adaptseg.data.acdc import ACDC as ACDC
from adaptseg.data.batch import Batch as Batch
from adaptseg.data.batch import Labelled as Labelled
from adaptseg.data.batch import Target as Target
from adaptseg.data.camvid import CamVid as CamVid
from adaptseg.data.cityscapes import Cityscapes as Cityscapes
from adaptseg.data.dark_zurich import DarkZurich as DarkZurich
from adaptseg.data.folder import Folder as Folder
from adaptseg.data.gta5 import GTA5 as GTA5
from adaptseg.data.pair import DomainPair as DomainPair
from adaptseg.data.rare_classes import RareClassSampling as RareClassSampling
from adaptseg.data.scenes import Scenes as Scenes
from adaptseg.data.statistics import ClassStatistics as ClassStatistics
from adaptseg.data.streets import Streets as Streets
from adaptseg.data.synthia import Synthia as Synthia
