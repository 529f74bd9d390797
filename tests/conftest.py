"""Settings for all tests."""

import contextlib
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# Examples take as long as a machine does. The same ones are drawn in every run of CI, new ones at night.
settings.register_profile(
    "ci", max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("nightly", settings.get_profile("ci"), max_examples=2000, derandomize=False)
settings.load_profile("ci")

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for each parallel worker: threads that wait for one another on busy cores cost more than they give.
    torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU, slowly; to be set before they are imported


@contextlib.contextmanager
def _names_withdrawn() -> Iterator[None]:
    from swinx.registry import list_encoders, withdraw

    before = set(list_encoders())
    yield
    for name in list_encoders():
        if name not in before:
            withdraw(name)


@pytest.fixture(autouse=True)
def no_names_left() -> Iterator[None]:
    """What a test registers leaves the registries of smp and timm with it."""
    with _names_withdrawn():
        yield


@pytest.fixture(autouse=True, scope="module")
def no_names_left_by_a_module() -> Iterator[None]:
    """So does what fixtures of a whole module register."""
    with _names_withdrawn():
        yield


@pytest.fixture
def no_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are asked for run at once: for tests that hold them against more than a first use does."""
    from swinx.attention.triton import first_use

    monkeypatch.setattr(first_use, "failure", lambda case: None)
