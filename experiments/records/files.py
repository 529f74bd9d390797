"""Files that are whole or absent, locks, and names that may become paths (POSIX systems)."""

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Names of temporary files begin with it and end in eight characters of tempfile's.
TEMPORARY = ".swinx-"
# What a run or a file beside it may be called: no separators, no leading dot, no control characters.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader finds the old content or the new one, never a part: temporary name, then rename.

    A link at path is replaced, not followed. Text is UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def remove_torn(folder: Path) -> None:
    """Remove the temporary files, below folder, of writers that were killed. Hidden folders are left alone."""
    for at, inside, names in os.walk(folder):
        inside[:] = [name for name in inside if not name.startswith(".")]
        for name in names:
            if re.fullmatch(re.escape(TEMPORARY) + "[a-z0-9_]{8}", name):
                Path(at, name).unlink()


def digest(path: Path) -> str:
    """What tells the content of a file from that of others: the first 12 characters of its SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def plain_file(path: Path, within: Path) -> bool:
    """Whether path is a regular file below within, with no link on the way from there."""
    if not path.is_relative_to(within):
        return False
    parts = path.relative_to(within).parts
    steps = [within.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    return ".." not in parts and path.is_file() and not any(step.is_symlink() for step in steps)


@contextmanager
def locked(folder: Path, wait: float = 0) -> Iterator[None]:
    """Hold a folder for one writer, until the process ends at the latest; wait: seconds that another may still take.

    Raises:
        ValueError: another one holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    raise ValueError(f"--output: another run is writing into {folder}") from error
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)
