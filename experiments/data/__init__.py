"""Segmentation sets: generated scenes and sets read from files, held in memory as uint8."""

from experiments.data.dataset import SegmentationData, Split
from experiments.data.folder import load_camvid, load_folder, read_class_names
from experiments.data.hub_folder import load_hub_folder
from experiments.data.pairs import DataError
from experiments.data.pet import download_pet, load_pet
from experiments.data.scenes import make_scenes

__all__ = [
    "DataError",
    "SegmentationData",
    "Split",
    "download_pet",
    "load_camvid",
    "load_folder",
    "load_hub_folder",
    "load_pet",
    "make_scenes",
    "read_class_names",
]
