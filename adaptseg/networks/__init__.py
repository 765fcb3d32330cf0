"""Segmentation networks behind one interface, how they are trained in groups, read and rebuilt."""

from adaptseg.networks.daformer import DAFormer
from adaptseg.networks.deeplab_v2 import DeepLabV2
from adaptseg.networks.groups import parameter_groups
from adaptseg.networks.hrda import HRDA
from adaptseg.networks.inference import Inference, predict_probabilities
from adaptseg.networks.load import build, describe, load
from adaptseg.networks.segmenter import LossTerm, Normalization, Output, Segmenter, require, resize_logits
from adaptseg.networks.smp import SmpSegmenter

__all__ = [
    "HRDA",
    "DAFormer",
    "DeepLabV2",
    "Inference",
    "LossTerm",
    "Normalization",
    "Output",
    "Segmenter",
    "SmpSegmenter",
    "build",
    "describe",
    "load",
    "parameter_groups",
    "predict_probabilities",
    "require",
    "resize_logits",
]
