"""What all cells of one comparison share."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields

from experiments.data import SegmentationData
from experiments.evaluation import Inference
from experiments.records import Row
from experiments.training import Budget, Recipe

# How work is done, not what is done: free to change when a comparison goes on.
EXECUTION = ("workers", "loggers")


@dataclass(frozen=True)
class Settings:
    """What all cells of one folder share; it is part of every row, and rows that differ in it do not mix.

    data_id is a digest of the pixels and masks. height and width are those of the images. One of steps and minutes is
    None. precision is 32, bf16 or 16; device cpu or cuda. workers and loggers, which change no result, are not part of
    rows.
    """

    data: str
    data_id: str
    height: int
    width: int
    steps: int | None
    minutes: float | None
    batch_size: int
    precision: str
    device: str
    recipe: Recipe = field(default_factory=Recipe)
    inference: Inference = field(default_factory=Inference)
    workers: int = 0
    loggers: tuple[str, ...] = ()

    @property
    def budget(self) -> Budget:
        """The budget of each cell."""
        return Budget(self.steps, self.minutes)

    def as_row(self) -> Row:
        """The fields by name, flat, as JSON gives them back: recipe and inference are spread out."""
        flat = asdict(self)
        for name in EXECUTION:
            del flat[name]
        row: Row = json.loads(json.dumps({**flat.pop("recipe"), **flat.pop("inference"), **flat}))
        return row


def settings_of(row: Row) -> Settings:
    """The settings that a row was made under; as_row of them gives its fields back.

    Raises:
        ValueError: the row lacks some; it names the cell.
    """
    parts: dict[type, dict[str, object]] = {}
    for kind in (Recipe, Inference, Settings):
        names = [field.name for field in fields(kind) if field.name not in ("recipe", "inference", *EXECUTION)]
        if missing := [name for name in names if name not in row]:
            raise ValueError(f"the row of {row['cell']} lacks {', '.join(missing)}: an older version made it")
        values = {name: row[name] for name in names}
        parts[kind] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    recipe, inference = Recipe(**parts[Recipe]), Inference(**parts[Inference])  # type: ignore[arg-type]  # as_row's own
    return Settings(**parts[Settings], recipe=recipe, inference=inference)  # type: ignore[arg-type]  # as_row's own


def data_id(data: SegmentationData) -> str:
    """Digest of classes, images and masks: equal for equal data, wherever it came from."""
    digest = hashlib.sha256()
    digest.update(repr((data.class_names, data.ignore_index, data.thin_classes)).encode())
    for split in (data.train, data.val, data.test):
        for tensor in (split.images, split.masks):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:12]
