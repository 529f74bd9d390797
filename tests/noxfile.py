"""The tests on the oldest and the newest releases, and on those that servers have.

    nox -f tests/noxfile.py --list
    nox -f tests/noxfile.py -s "lowest-3.11" -- tests/test_encoder.py

Each session makes its own environment: some gigabytes, and twenty minutes of tests on two cores. Triton is the one that
torch brings; the kernels' tests are skipped below the release that pyproject.toml names. So are tests of what old
releases of other libraries lack (tests/releases.py), and lint and types, which are those of the newest ones.
"""

import os
import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
ROOT = Path(__file__).parent.parent  # nox itself works where its file is
nox.options.envdir = str(ROOT / ".nox")
RUNNERS = (
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "torchmetrics>=1.5",
    "hypothesis>=6.100",
    "setuptools>=70",  # torch 2.6 compiles with it
)
# Tests that read what only a checkout has.
CHECKOUT = (
    *("test_quality.py", "test_documentation.py", "test_support_table.py", "test_kernel_resources.py"),
    "test_benchmarks.py",
)
# torch with the torchvision made for it, and what else servers of its time have.
SERVERS = {
    "2.8": ("torch==2.8.0", "torchvision==0.23.0", "segmentation-models-pytorch==0.6.0"),
    "2.11": ("torch==2.11.0", "torchvision==0.26.0", "segmentation-models-pytorch==0.5.0"),
}


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """Every dependency at its floor in pyproject.toml."""
    session.chdir(ROOT)
    hub = "huggingface-hub>=0.24,<1"  # timm 1.0.9 asks for names that 1.0 has no more
    session.install("--resolution", "lowest-direct", "-e", ".[experiments,ray]", hub, *RUNNERS)
    session.run("pytest", "--ignore=tests/test_quality.py", *session.posargs)


@nox.session(python="3.11")
@nox.parametrize("torch", list(SERVERS))
def server(session: nox.Session, torch: str) -> None:
    """An environment of a GPU server, to which swinx is added."""
    session.chdir(ROOT)
    session.install(*SERVERS[torch])
    session.install("-e", ".[experiments,ray]", *SERVERS[torch], *RUNNERS)
    session.run("pytest", "--ignore=tests/test_quality.py", *session.posargs)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def newest(session: nox.Session) -> None:
    """The newest releases that pyproject.toml allows."""
    session.chdir(ROOT)
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(python="3.12")
def consumers(session: nox.Session) -> None:
    """The libraries that build models by name, whose tests every other session skips."""
    session.chdir(ROOT)
    session.install("-e", ".", "torchgeo", "terratorch", "torchseg", "lightning", *RUNNERS)
    session.run("python", "-c", "import torchgeo.trainers, terratorch, torchseg, lightning.pytorch")
    session.run("pytest", *session.posargs, "tests/test_consumers.py")


@nox.session(python="3.11")
def wheel(session: nox.Session) -> None:
    """The wheel in a clean environment, by those tests that need no checkout, run away from it."""
    session.chdir(ROOT)
    folder = Path(session.create_tmp())
    dist = folder / "dist"
    session.install("build", "twine")
    session.run("python", "-m", "build", "--outdir", str(dist))
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    session.install(*map(str, dist.glob("*.whl")), *RUNNERS)
    tests = shutil.ignore_patterns("experiments", "benchmarks", "noxfile.py", *CHECKOUT)
    shutil.copytree("tests", folder / "tests", ignore=tests, dirs_exist_ok=True)
    session.chdir(folder)
    session.run("pytest", "-c", os.devnull, "--rootdir=.", "-o", "pythonpath=. tests", *session.posargs, "tests")
