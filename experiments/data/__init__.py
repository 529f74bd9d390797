"""Segmentation sets: generated scenes and folders of images and masks, held in memory as uint8."""

from experiments.data.dataset import SegmentationData, Split
from experiments.data.folder import DataError, load_camvid, load_folder, read_class_names
from experiments.data.scenes import make_scenes

__all__ = ["DataError", "SegmentationData", "Split", "load_camvid", "load_folder", "make_scenes", "read_class_names"]
