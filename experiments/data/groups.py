"""What images belong to (a drive, a film, a patient): images of one group are not independent of each other."""

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from experiments.data.dataset import SegmentationData
from experiments.data.reading import SPLITS, shortened

# Successive frames of a CamVid drive that make one group: 20 seconds, of which 20 frames are labelled (docs/data.md).
CAMVID_FRAMES = 600

Find = Callable[[str], str | None]


def camvid_group(name: str) -> str | None:
    """Drive and stretch of it that a CamVid frame called DRIVE_NUMBER or DRIVE_fNUMBER is from; None for others."""
    match = re.fullmatch(r"(.+)_f?(\d{1,9})", name)
    return None if match is None else f"{match[1]}/{int(match[2]) // CAMVID_FRAMES}"


def finder(rule: str | None) -> Find:
    """What finds the group of a name (None for none) by the value of --groups; no rule stands for camvid_group.

    A rule that ends in .csv is a file with the columns name and group, UTF-8; any other is a regular expression whose
    first group is found in the name.

    Raises:
        ValueError: the rule cannot be used.
    """
    if rule is None:
        return camvid_group
    return _of_table(Path(rule)) if rule.lower().endswith(".csv") else _of_pattern(rule)


def with_groups(data: SegmentationData, find: Find) -> SegmentationData:
    """The set with groups. In train and val, an image for which none is found is its own group.

    Raises:
        ValueError: there are test images for which none is found; the message lists them.
    """
    if without := [name for name in data.test.names if not find(name)]:
        rule = "--groups (for CamVid by default DRIVE_NUMBER)" if find is camvid_group else "--groups"
        count = f"{len(without)} of {len(data.test.names)}"
        raise ValueError(f"{rule} must give each test image a group; none for {count}: {', '.join(shortened(without))}")
    old = {split: getattr(data, split) for split in SPLITS}
    return replace(data, **{s: replace(old[s], groups=tuple(find(name) or name for name in old[s].names)) for s in old})


def _of_pattern(rule: str) -> Find:
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise ValueError(f"--groups must be a regular expression or a .csv file, got {rule}: {error}") from error
    if not pattern.groups:
        raise ValueError(f"--groups must have a group in parentheses, or end in .csv, got {rule}")
    return lambda name: match[1] if (match := pattern.search(name)) else None


def _of_table(path: Path) -> Find:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.DictReader(stream, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--groups {path}: cannot be read: {error}") from error
    table: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        name, group = line.get("name"), line.get("group")
        if not name or not group:
            raise ValueError(f"--groups {path}: each line must have a name and a group, which line {number} has not")
        if table.setdefault(name, group) != group:
            raise ValueError(f"--groups {path}: {name} is in two groups, {table[name]} and {group}")
    return table.get
