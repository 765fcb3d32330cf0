"""Segmentation networks behind one interface, how they are trained in groups, read and rebuilt."""

from adaptseg.networks.daformer import DAFormer
from adaptseg.networks.deeplab_v2 import DeepLabV2
from adaptseg.networks.groups import parameter_groups
from adaptseg.networks.inference import Inference, predict_probabilities
from adaptseg.networks.load import build, describe, load, names
from adaptseg.networks.segmenter import Normalization, Output, Segmenter, require, resize_logits
from adaptseg.networks.smp import SmpSegmenter

__all__ = [
    "DAFormer",
    "DeepLabV2",
    "Inference",
    "Normalization",
    "Output",
    "Segmenter",
    "SmpSegmenter",
    "build",
    "describe",
    "load",
    "names",
    "parameter_groups",
    "predict_probabilities",
    "require",
    "resize_logits",
]
