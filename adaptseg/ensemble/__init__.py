"""Ensemble-distillation: the jobs between its trainings. Members label target images, students distilled from them say
which member to trust for which class, the labels are fused. Jobs meet through files alone, each in its stage's folder.
"""

from adaptseg.ensemble.fuse import Fuse as Fuse
from adaptseg.ensemble.members import Exported as Exported
from adaptseg.ensemble.members import Member as Member
from adaptseg.ensemble.members import Predictions as Predictions
from adaptseg.ensemble.members import PredictMember as PredictMember
from adaptseg.ensemble.members import Trained as Trained
from adaptseg.ensemble.policy import ChoosePolicy as ChoosePolicy
from adaptseg.ensemble.policy import MeasureCertainty as MeasureCertainty
from adaptseg.ensemble.policy import OraclePolicy as OraclePolicy
from adaptseg.ensemble.report import CompareMembers as CompareMembers
