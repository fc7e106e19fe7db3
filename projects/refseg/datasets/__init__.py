"""Data: annotation files -> records -> samples -> batches."""

from refseg.datasets.collate import collate_samples
from refseg.datasets.dataset import ReferringDataset
from refseg.datasets.samplers import EpochSampler, SampleKey
from refseg.datasets.transforms import LoadImage, LoadText, PackSample, Resize

__all__ = [
    "EpochSampler",
    "LoadImage",
    "LoadText",
    "PackSample",
    "ReferringDataset",
    "Resize",
    "SampleKey",
    "collate_samples",
]
