"""Which GPUs `auto` gives the kernels to: those of which a record in `records/` says tested, right and faster.

`python -m swinx.attention.check --output FILE` writes a record; committed there, it switches `auto` on for its compute
capability.
"""

import functools
import json
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "records"


@functools.cache
def tested_capabilities() -> frozenset[tuple[int, int]]:
    """Compute capabilities of the records."""
    records = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    good = [record["capability"] for record in records if record["right"] and record["faster"]]
    return frozenset((major, minor) for major, minor in good)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it without types
def tested(device: torch.device) -> bool:
    """Whether there is such a record of a CUDA device; of none without a driver, where tensors are fake."""
    known = tested_capabilities()
    return bool(known) and torch.cuda.is_available() and torch.cuda.get_device_capability(device) in known
