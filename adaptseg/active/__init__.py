"""Buying labels: scores, selection, balancing (pure); the label store; oracles; the callbacks that run rounds."""

from adaptseg.active.cbda import CBDA as CBDA
from adaptseg.active.costs import LabelCost as LabelCost
from adaptseg.active.edald import TwoStageEDALD as TwoStageEDALD
from adaptseg.active.images import WholeImages as WholeImages
from adaptseg.active.oracles import GroundTruth as GroundTruth
from adaptseg.active.oracles import NoisyGroundTruth as NoisyGroundTruth
from adaptseg.active.oracles import Oracle as Oracle
from adaptseg.active.rounds import Acquisition as Acquisition
