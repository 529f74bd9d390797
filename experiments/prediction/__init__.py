"""Predicting folders of pictures: what is found and read, what a model sees of it, what is written."""

from experiments.prediction.folder import Record, check_output, finished, write_index, write_record
from experiments.prediction.pictures import PictureError, Scaling, find_pictures
from experiments.prediction.work import Job, check_size, run

__all__ = [
    "Job",
    "PictureError",
    "Record",
    "Scaling",
    "check_output",
    "check_size",
    "find_pictures",
    "finished",
    "run",
    "write_index",
    "write_record",
]
