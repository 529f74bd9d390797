"""Read a checkpoint file from anywhere: nothing in it is executed, and its weights take no more memory than the file.

torch's own reader, without pickles that run code, does the reading. What it would trust is checked first: what a pickle
asks for, the sizes that it claims, and how the records of a zip file lie.
"""

import contextlib
import os
import pickle
import re
import struct
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file

# Official training files hold their options beside the weights. torch's reader fills plain dictionaries with them.
_OPTIONS = ("argparse.Namespace", "yacs.config.CfgNode")
# Those of mmengine hold curves and scores: numbers of numpy, and `HistoryBuffer`, which names its methods by getattr.
# Nothing is made of them.
_LEFT_OUT = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "__builtin__.getattr",
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)
_CALLED = {
    *("collections.OrderedDict", "torch.Size", "torch.device", "torch.nn.parameter.Parameter"),
    *("__builtin__.set", "builtins.set"),
    *(f"torch._utils._rebuild_{kind}" for kind in ("parameter", "tensor", "tensor_v2", "sparse_tensor")),
    *("torch._utils._rebuild_meta_tensor_no_storage", "torch._utils._rebuild_nested_tensor", "_codecs.encode"),
    *_OPTIONS,
    *_LEFT_OUT,
}
_NAMED = re.compile(r"^torch\.(storage\.|cuda\.)?(\w+Storage|(b?float|u?int|complex|bool|half|double|long|short)\w*)$")
_NAMED_TOO = re.compile(r"^torch\.(strided|sparse_\w+|serialization\._get_layout)$")
_BYTES = {
    "Double": 8,
    "Long": 8,
    "Float": 4,
    "Int": 4,
    "ComplexFloat": 8,
    "ComplexDouble": 16,
    "Half": 2,
    "BFloat16": 2,
}
_lock = threading.Lock()  # torch keeps one list of options that it reads, for all threads


class RefusedFileError(ValueError):
    """A file that is not read, with the reason in words that follow its name."""


def existing(path: str | Path, argument: str) -> Path:
    """The path of a file that exists; argument: what the caller calls it.

    Raises:
        FileNotFoundError: there is none; the message says what is there.
    """
    path = Path(path)
    if path.is_file():
        return path
    saved = path / "model.safetensors"  # of save_pretrained
    if path.is_dir():
        what = f"a folder: give {saved}" if os.path.isfile(saved) else "a folder: give a file in it"
        fault = f"which is {what}"
    else:
        fault = "which is no regular file" if path.exists() else "which does not exist"
    raise FileNotFoundError(f"{argument} must be a checkpoint file, got {path}, {fault}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a safetensors file, or of a file that torch.save wrote, as plain containers on the CPU.

    Raises:
        ValueError: unreadable, of another kind, or in need of more than tensors and known options.
        PermissionError: no right to read it.
    """
    try:
        with path.open("rb") as file:  # whose errors name it, unlike those of safetensors
            begin = file.read(9)
            # The length of its header, which is JSON. In the hub's cache such files have no suffix.
            if path.suffix.lower() == ".safetensors" or begin[8:] == b"{":
                return load_file(path)
            zipped = begin[:4] == b"PK\3\4"  # as torch tells it
            names = _check_zip(path, file) if zipped else _check_legacy(file)
        with _lock, _stand_ins(names):
            # A memory map takes no memory for storages.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (PermissionError, RefusedFileError):
        raise
    except Exception as error:  # a truncated file alone makes torch raise any of six types, an OSError among them
        raise RefusedFileError(f"is damaged or no checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise RefusedFileError(f"must hold a state dict, got {type(content).__name__}")
    content = plain(content)
    once = {id(value): plain(value) for value in content.values()}  # a file may name one value many times
    return {key: once[id(value)] for key, value in content.items()}


@contextlib.contextmanager
def _stand_ins(names: set[str]) -> Iterator[None]:
    """Have torch's reader take stand-ins for what a pickle names and torch does not know."""
    pairs: list[Any] = [(OrderedDict, name) for name in _OPTIONS if name in names]
    # torch reads Python 2's names of modules as they are now.
    pairs += [(_Anything, name.replace("__builtin__", "builtins")) for name in _LEFT_OUT if name in names]
    if not pairs:
        yield
        return
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()  # what the user allowed is the real one, which may take memory
    try:
        with torch.serialization.safe_globals(pairs):
            yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def plain(value: Any) -> Any:
    """A dictionary without the attributes that a file may have given it, all but torch's versions of modules."""
    if not isinstance(value, dict):
        return value
    copy = OrderedDict((key, dict.__getitem__(value, key)) for key in dict.__iter__(value))
    versions = vars(value).get("_metadata") if hasattr(value, "__dict__") else None
    if isinstance(versions, Mapping) and all(isinstance(version, Mapping) for version in versions.values()):
        copy._metadata = versions  # type: ignore[attr-defined]  # torch keeps it there
    return copy


def _check_zip(path: Path, file: IO[bytes]) -> set[str]:
    """What the pickles in a zip file ask for, by its names.

    Refuses what readers of zip files read differently, and compressed records, which could be of any size. torch writes
    a directory of records, its 64-bit end, and its end, to the last byte of the file.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    size = path.stat().st_size
    file.seek(size - 98)
    last = file.read()
    directory, start = struct.unpack("<LL", last[88:96])
    if last[56:60] == b"PK\6\7" and last[:4] == b"PK\6\6":
        directory, start = struct.unpack("<QQ", last[40:56])
        end = size - 98
    else:
        end = size - 22
    if last[76:80] != b"PK\5\6" or last[96:] != b"\0\0" or start + directory != end:
        raise RefusedFileError("is damaged or no checkpoint (its records do not lie as torch writes them)")
    if len({record.filename for record in records}) < len(records):
        raise RefusedFileError("must not hold two records of one name")
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise RefusedFileError(f"must not hold compressed records, got {record.filename[:200]}")
    names: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for record in records:
            if record.filename.endswith("/data.pkl"):
                with archive.open(record) as content:
                    scan = _Scan(content)
                    scan.load()
                    names |= scan.names
    return names


def _check_legacy(file: IO[bytes]) -> set[str]:
    """What a file in torch's format before 1.6 asks for, by its names.

    Refuses one whose storages, of which torch takes the memory first, exceed it.
    """
    size = file.seek(0, 2)
    file.seek(0)
    scan = _Scan(file)
    if scan.load() != torch.serialization.MAGIC_NUMBER:
        raise RefusedFileError("is damaged or no checkpoint (it does not begin as torch's files do)")
    for _ in range(3):  # protocol, system, content
        scan.load()
    if sum(scan.storages.values()) > size:
        raise RefusedFileError(f"is damaged or no checkpoint ({sum(scan.storages.values())} bytes in {size})")
    return scan.names


class _Scan(pickle.Unpickler):
    """Walks through a pickle without importing or calling anything.

    storages holds the bytes of each, by its key; names what the pickle asks for.

    Raises:
        RefusedFileError: it asks for something else than tensors and known options.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[Any, int] = {}
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> type:
        """A stand-in for what the pickle asks for."""
        path = f"{module}.{name}"
        self.names.add(path)
        if path in _CALLED or _NAMED_TOO.match(path):
            return _Anything
        if _NAMED.match(path):
            return type(name, (_NotCalled,), {})
        raise RefusedFileError(
            f"holds more than tensors ({path[:200]}), and reading it could run code from the file; save its state dict "
            "alone"
        )

    def persistent_load(self, pid: Any) -> None:
        """pid: ("storage", type, key, device, number of elements, view)."""
        _, kind, key, _, elements, *_ = pid
        if not isinstance(elements, int) or elements < 0:
            raise RefusedFileError(f"is damaged or no checkpoint (a storage of {str(elements)[:200]} elements)")
        name = getattr(kind, "__name__", "").removesuffix("Storage")
        self.storages[key] = max(elements * _BYTES.get(name, 1), self.storages.get(key, 0))


class _Anything(dict[Any, Any]):
    """Takes whatever a pickle gives it, and does nothing."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # sizes are keys of dictionaries in some pickles

    def __new__(cls, *args: Any) -> "_Anything":
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


class _NotCalled:
    """What pickles name and never call: a storage made by a call could be of any size."""

    def __new__(cls, *args: Any) -> "_NotCalled":
        raise RefusedFileError(f"is damaged or no checkpoint (it makes a {cls.__name__})")
