"""Segmentation networks behind one interface, how they are trained in groups, read and rebuilt."""

from adaptseg.networks.adm_flags import AdmFlags
from adaptseg.networks.daformer import DAFormer
from adaptseg.networks.deeplab_v2 import DeepLabV2
from adaptseg.networks.deeplab_v3_plus import WideDeepLabV3Plus
from adaptseg.networks.denoiser import Denoiser, load_denoiser
from adaptseg.networks.dropout import dropout_layers, dropping
from adaptseg.networks.feature_maps import DiffusionFeatures, EncoderFeatures, FeatureMaps
from adaptseg.networks.groups import parameter_groups
from adaptseg.networks.hrda import HRDA
from adaptseg.networks.inference import Inference, predict_probabilities
from adaptseg.networks.load import build, describe, load, names, rebuild
from adaptseg.networks.pixel_segmenter import PixelSegmenter
from adaptseg.networks.segmenter import (
    LossTerm,
    Normalization,
    Output,
    Segmenter,
    require,
    resize_logits,
    resize_logits_no_grad,
)
from adaptseg.networks.smp import SmpSegmenter
from adaptseg.networks.vit import PyramidViTSegmenter, ViTSegmenter

__all__ = [
    "HRDA",
    "AdmFlags",
    "DAFormer",
    "DeepLabV2",
    "Denoiser",
    "DiffusionFeatures",
    "EncoderFeatures",
    "FeatureMaps",
    "Inference",
    "LossTerm",
    "Normalization",
    "Output",
    "PixelSegmenter",
    "PyramidViTSegmenter",
    "Segmenter",
    "SmpSegmenter",
    "ViTSegmenter",
    "WideDeepLabV3Plus",
    "build",
    "describe",
    "dropout_layers",
    "dropping",
    "load",
    "load_denoiser",
    "names",
    "parameter_groups",
    "predict_probabilities",
    "rebuild",
    "require",
    "resize_logits",
    "resize_logits_no_grad",
]
