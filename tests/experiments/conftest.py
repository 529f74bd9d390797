"""The tiny set of toy.py, alone and in the place of generated scenes."""

import functools
from pathlib import Path

import pytest
from toy import toy_data

from experiments import data
from experiments.data import SegmentationData
from experiments.evaluation import cost
from experiments.reporting import pages


@pytest.fixture(scope="session")
def toy() -> SegmentationData:
    return toy_data()


@pytest.fixture
def tiny_scenes(toy: SegmentationData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The generated set is replaced by a tiny one; the working folder must stay clean."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(data, "make_scenes", lambda **_: toy)
    # Timed calls are for reports, not for tests; plots are looked at in test_report_pages.
    monkeypatch.setattr(pages, "_figures", lambda _: [])
    monkeypatch.setattr(cost, "latency", functools.partial(cost.latency, seconds=0))
