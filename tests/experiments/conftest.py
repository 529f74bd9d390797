"""The tiny set of toy.py, alone and in the place of generated scenes."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import toy_data

from experiments import data
from experiments.data import SegmentationData
from experiments.evaluation import cost
from experiments.execution import local
from experiments.reporting import pages


@pytest.fixture(scope="session", autouse=True)
def _one_run_at_a_time() -> Iterator[None]:
    """By default in this process: what tests put in a module's place does not reach other processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "cores", lambda: 1)
        yield


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
