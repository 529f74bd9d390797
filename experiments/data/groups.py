"""What images belong to (a drive, a film, a patient): images of one group are not independent of each other."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from experiments.data.dataset import SegmentationData
from experiments.records.messages import shortened

# Successive frames of a CamVid drive that make one group: 20 seconds, of which 20 frames are labelled (docs/data.md).
CAMVID_FRAMES = 600

Find = Callable[[str], str | None]


def camvid_group(name: str) -> str | None:
    """Drive and stretch of it that a CamVid frame called DRIVE_NUMBER or DRIVE_fNUMBER is from; None for others."""
    match = re.fullmatch(r"(.+)_f?(\d{1,9})", name)
    return None if match is None else f"{match[1]}/{int(match[2]) // CAMVID_FRAMES}"


def finder(rule: str) -> Find:
    """What finds the group of a name (None for none) by the value of --groups.

    A rule that ends in .csv is a file with the columns name and group, UTF-8; any other is a regular expression whose
    first group is found in the name.

    Raises:
        ValueError: the rule cannot be used.
    """
    if rule.lower().endswith(".csv"):
        return _read_table(Path(rule)).get
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise ValueError(f"--groups must be a regular expression or a .csv file, got {rule}: {error}") from error
    if not pattern.groups:
        raise ValueError(f"--groups must have a group in parentheses, or end in .csv, got {rule}")
    return lambda name: match[1] if (match := pattern.search(name)) else None


def with_groups(data: SegmentationData, find: Find) -> SegmentationData:
    """The set with groups of its test images.

    Raises:
        ValueError: none is found for some of them; the message lists them.
    """
    if without := [name for name in data.test.names if not find(name)]:
        rule = "--groups (for CamVid by default DRIVE_NUMBER)" if find is camvid_group else "--groups"
        count = f"{len(without)} of {len(data.test.names)}"
        raise ValueError(f"{rule} must give each test image a group; none for {count}: {', '.join(shortened(without))}")
    return replace(data, test=replace(data.test, groups=tuple(str(find(name)) for name in data.test.names)))


def _read_table(path: Path) -> dict[str, str]:
    """Group by name."""
    try:
        table = pd.read_csv(path, dtype=str, usecols=["name", "group"], encoding="utf-8-sig", keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"--groups {path}: cannot be read: {error}") from error
    table = table.fillna("").drop_duplicates()
    wrong = table[table["name"].duplicated() | (table["group"] == "")]
    if len(wrong):
        rows = shortened((wrong["name"] + ", " + wrong["group"]).tolist())
        raise ValueError(f"--groups {path}: each line must have a name and its one group, got {'; '.join(rows)}")
    return dict(zip(table["name"], table["group"], strict=True))
