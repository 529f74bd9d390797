"""Lint and types are part of the tests: one command tells whether a change may land."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command", [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)], ids=["lint", "format", "types"]
)
def test_tools_find_nothing(command: tuple[str, ...]) -> None:
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_source_file_exceeds_400_lines() -> None:
    files = [path for folder in ("swinx", "experiments", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 40
    assert [path.name for path in files if len(path.read_text().splitlines()) > 400] == []
