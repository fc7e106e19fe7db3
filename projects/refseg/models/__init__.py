"""Models: the segmentor base class, encoders, fusions, shared layers and losses, and one package per method.

A name below is imported when it is first used, so that running one method does not load the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refseg.models.baseline import QueryBaseline
    from refseg.models.cgformer import CGFormer
    from refseg.models.deris import DeRIS
    from refseg.models.dmmi import DMMI, MultiScaleFusion
    from refseg.models.encoders import (
        BackboneEncoder,
        BEiT3Encoder,
        ConvEncoder,
        FusedEncoder,
        SideEncoder,
        SwinEncoder,
        TextEncoder,
        TimmEncoder,
        TransformersVisionEncoder,
        VisionEncoder,
    )
    from refseg.models.fusion import PWAM, VLBA, StagedCrossAttention
    from refseg.models.instalign import InstAlign, ObjectTextDecoder
    from refseg.models.latent_vg import LatentVG
    from refseg.models.lavt import LAVT
    from refseg.models.lgformer import LGFormer
    from refseg.models.onnx_segmentor import OnnxSegmentor
    from refseg.models.preprocessor import ReferringDataPreprocessor
    from refseg.models.rela import RegionDecoder, ReLA
    from refseg.models.segmentor import RefSegmentor
    from refseg.models.vipa import VIPA
    from refseg.models.zero_shot import SAM3, CLIPSeg, GroundedSAM2, KeepImages, ZeroShotSegmentor

MODULES = {
    "DMMI": "dmmi",
    "LAVT": "lavt",
    "PWAM": "fusion",
    "SAM3": "zero_shot",
    "VIPA": "vipa",
    "VLBA": "fusion",
    "BEiT3Encoder": "encoders",
    "BackboneEncoder": "encoders",
    "CGFormer": "cgformer",
    "CLIPSeg": "zero_shot",
    "ConvEncoder": "encoders",
    "DeRIS": "deris",
    "FusedEncoder": "encoders",
    "GroundedSAM2": "zero_shot",
    "InstAlign": "instalign",
    "KeepImages": "zero_shot",
    "LGFormer": "lgformer",
    "LatentVG": "latent_vg",
    "MultiScaleFusion": "dmmi",
    "ObjectTextDecoder": "instalign",
    "OnnxSegmentor": "onnx_segmentor",
    "QueryBaseline": "baseline",
    "ReLA": "rela",
    "RefSegmentor": "segmentor",
    "ReferringDataPreprocessor": "preprocessor",
    "RegionDecoder": "rela",
    "StagedCrossAttention": "fusion",
    "SideEncoder": "encoders",
    "SwinEncoder": "encoders",
    "TextEncoder": "encoders",
    "TimmEncoder": "encoders",
    "TransformersVisionEncoder": "encoders",
    "VisionEncoder": "encoders",
    "ZeroShotSegmentor": "zero_shot",
}

__all__ = [
    "DMMI",
    "LAVT",
    "PWAM",
    "SAM3",
    "VIPA",
    "VLBA",
    "BEiT3Encoder",
    "BackboneEncoder",
    "CGFormer",
    "CLIPSeg",
    "ConvEncoder",
    "DeRIS",
    "FusedEncoder",
    "GroundedSAM2",
    "InstAlign",
    "KeepImages",
    "LGFormer",
    "LatentVG",
    "MultiScaleFusion",
    "ObjectTextDecoder",
    "OnnxSegmentor",
    "QueryBaseline",
    "ReLA",
    "RefSegmentor",
    "ReferringDataPreprocessor",
    "RegionDecoder",
    "StagedCrossAttention",
    "SideEncoder",
    "SwinEncoder",
    "TextEncoder",
    "TimmEncoder",
    "TransformersVisionEncoder",
    "VisionEncoder",
    "ZeroShotSegmentor",
]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'refseg.models' has no attribute {name!r}")
    return getattr(import_module(f"refseg.models.{MODULES[name]}"), name)
