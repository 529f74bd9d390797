"""Tests that need newer releases of other libraries than swinx does."""

from importlib.metadata import version

import pytest
from packaging.version import Version


def needs(package: str, release: str, reason: str) -> pytest.MarkDecorator:
    """Skip a test where an older release is installed."""
    return pytest.mark.skipif(Version(version(package)) < Version(release), reason=f"{package} {release}: {reason}")


STRICT_EXPORT = needs("torch", "2.8", "strict export refuses sizes that are read from tensors before it")
ODD_GRIDS = needs("timm", "1.0.10", "pads the wrong axis of a grid with one odd side before it")
