"""Tests that need newer releases of other libraries than swinx does."""

from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from packaging.version import Version


def older(package: str, release: str) -> bool:
    """Whether a package is not installed, or in an older release."""
    try:
        return Version(version(package)) < Version(release)
    except PackageNotFoundError:
        return True


def needs(package: str, release: str, reason: str) -> pytest.MarkDecorator:
    """Skip a test where an older release is installed."""
    return pytest.mark.skipif(older(package, release), reason=f"{package} {release}: {reason}")


DYNAMIC_EXPORT = needs("torch", "2.8", "programs fail at sizes other than the traced one before it")
ODD_GRIDS = needs("timm", "1.0.10", "pads the wrong axis of a grid with one odd side before it")
KERNELS = pytest.mark.skipif(
    not torch.cuda.is_available() and older("triton", "3.8"), reason="triton 3.8: interprets the kernels with numpy 2.4"
)
