"""The tiny set of toy.py, complete with its splits and names."""

import pytest
from toy import IGNORE, color_coded

from experiments.data import SegmentationData


@pytest.fixture(scope="session")
def toy() -> SegmentationData:
    return SegmentationData(
        name="toy",
        train=color_coded(7, 0),
        val=color_coded(3, 1),
        test=color_coded(5, 2),
        class_names=("dark", "grey", "bright <&>"),
        colors=((20, 20, 90), (90, 160, 90), (240, 220, 90), (0, 0, 0)),
        ignore_index=IGNORE,
        thin_classes=(1,),
        note="made for tests",
    )
