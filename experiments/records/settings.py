"""What all runs of a folder share, as rows hold it."""

import json
from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from experiments.records.options import Inference, Precision, Recipe, Scoring

# Fields of Settings that are free to change when a grid goes on: how work is done, and files that other seeds have.
EXECUTION = ("workers", "weights_ids")


@dataclass(frozen=True)
class Settings:
    """What all runs of one folder share; it is part of every row, and rows that differ in it do not mix.

    data_id is a digest of the pixels and masks. height and width are those of the images in memory. evaluate_at
    lists steps after which the test split is scored as well. start: the folder whose weights runs begin with, None for
    none. groups_id: a digest of what test images belong to, None where each stands for itself. workers, which changes
    no result, is not part of rows. Nor is weights_ids, each file of encoder weights with its digest: rows have the one
    of their own run as weights_id.
    """

    data: str
    data_id: str
    height: int
    width: int
    steps: int
    batch_size: int
    precision: Precision
    device: str
    recipe: Recipe = field(default_factory=Recipe)
    inference: Inference = field(default_factory=Inference)
    scoring: Scoring = field(default_factory=Scoring)
    evaluate_at: tuple[int, ...] = ()
    start: str | None = None
    groups_id: str | None = None
    workers: int = 0
    weights_ids: tuple[tuple[str, str], ...] = ()

    def as_row(self) -> dict[str, Any]:
        """The fields by name, flat, as JSON gives them back: recipe, inference and scoring are spread out."""
        flat = asdict(self)
        for name in EXECUTION:
            del flat[name]
        parts = {**flat.pop("recipe"), **flat.pop("inference"), **flat.pop("scoring")}
        row: dict[str, Any] = json.loads(json.dumps({**parts, **flat}))
        return row

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """The settings that a row was made under; as_row of them gives its fields back.

        Raises:
            ValueError: the row lacks some, or one has another type.
        """
        parts = {"recipe": Recipe, "inference": Inference, "scoring": Scoring}

        def read(kind: type) -> dict[str, object]:
            names = [part.name for part in fields(kind) if part.name not in (*parts, *EXECUTION)]
            if missing := [name for name in names if name not in row]:
                raise ValueError(f"a row lacks {', '.join(missing)}: an older version made it")
            values, types = {name: row[name] for name in names}, get_type_hints(kind)
            for name, value in values.items():
                if not _fits(value, types[name]):
                    raise ValueError(f"{name} has a value of another type: {str(value)[:80]!r}")
            return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

        made = {name: kind(**read(kind)) for name, kind in parts.items()}
        return cls(**read(cls), **made)  # type: ignore[arg-type]  # the fields of as_row


def _fits(value: object, kind: Any) -> bool:
    """Whether a value of JSON is one of a field's type, with a list for a tuple."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in parts
    if origin in (UnionType, Union):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, list):
            return False
        kinds = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    return type(value) in ((int, float) if kind is float else (kind,))
