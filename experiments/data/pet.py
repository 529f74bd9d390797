"""Oxford-IIIT Pet as a segmentation set: pet against background.

Shapes: N images, H W pixels. Layout under the root, as the archives unpack:

    images/NAME.jpg                          of many sizes
    annotations/trimaps/NAME.png             1 pet, 2 background, 3 not classified
    annotations/{trainval,test}.txt          NAME CLASS-ID SPECIES BREED-ID, one image a line

Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012. Licence of the set: CC BY-SA 4.0. Layout, splits and
download are those of smp's OxfordPetDataset.
"""

import http.client
import tarfile
import tempfile
import zlib
from pathlib import Path

from segmentation_models_pytorch.datasets import OxfordPetDataset

from experiments.data.dataset import SegmentationData
from experiments.data.pairs import DataError, Pair, Size, check_arguments, read_splits

CLASSES = ("background", "pet")
COLORS = ((70, 90, 120), (240, 170, 60), (0, 0, 0))
IGNORE = 255
TRIMAP = {1: 1, 2: 0, 3: IGNORE}
MODES = {"train": "train", "val": "valid", "test": "test"}  # our names of the splits, and smp's
FORMATS = ("JPEG", "PNG", "GIF")  # some of the files named .jpg are GIF or PNG
FOLDERS = ("images", "annotations")
PARTS = ("images", "annotations/trimaps", "annotations/trainval.txt", "annotations/test.txt")
ADVICE = (
    "--root must be a folder that holds Oxford-IIIT Pet; `python -m experiments.data.fetch_pet FOLDER` downloads it "
    "(0.8 GB) into FOLDER"
)


def load_pet(root: Path, *, size: Size) -> SegmentationData:
    """The set with smp's splits (3312 / 368 / 3669 images), resized to size = (H, W) without keeping the aspect.

    Trimap 2 becomes class 0 (background), 1 class 1 (pet), and 3 is ignored: it marks pixels that the annotators did
    not classify, a band along the outline of the pet and what it wears. smp's own dataset counts them as pet, so its
    numbers are not comparable; it also resizes to 256 x 256 in the class that resizes at all. Only its file names are
    used here.

    Raises:
        ValueError: size below 1.
        DataError: the folder or a part of the layout is missing, a list of a split names an image twice or one that
            is not there, and whatever `read_splits` refuses; every problem at once.
    """
    check_arguments(CLASSES, IGNORE, size=size)
    root = Path(root)
    missing = _missing_parts(root)
    if missing:
        raise DataError(root, [*missing, ADVICE])
    problems: list[str] = []
    pairs = _listed(root)
    first: dict[str, str] = {}
    for pair in pairs:
        if pair.name in first:
            problems.append(f"{pair.name!r} is listed twice, for {first[pair.name]} and for {pair.split}")
        first.setdefault(pair.name, pair.split)
    splits = read_splits(root, pairs, problems, ids=TRIMAP, ignore_index=IGNORE, size=size, formats=FORMATS)
    note = (
        "the outline of the pets is unlabelled and ignored, so scores leave out the hardest pixels and boundary scores "
        "say little"
    )
    return SegmentationData("pet", *splits, CLASSES, COLORS, IGNORE, note=note)


def download_pet(root: Path) -> None:
    """Downloads the set into root, unless it is complete there; the archives are not kept.

    Everything is fetched, unpacked and counted in a hidden folder inside root and moved from there at the end, the
    lists of the splits last: whatever happens in between, no part of a set is taken for the whole. (A killed process
    leaves the hidden folder to be deleted.)

    Raises:
        DataError: root is a file or holds a part of the set, or the download failed.
    """
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise DataError(root, ["this is not a folder"])
    if any((root / part).exists() for part in FOLDERS):
        problems = _incomplete(root)
        if problems:
            advice = "this is a part of a set: delete it before downloading, or name a new folder"
            raise DataError(root, [*problems, advice])
        return
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
        try:
            OxfordPetDataset.download(scratch)
        except (OSError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
            said = str(error) or type(error).__name__
            raise DataError(root, [f"the download failed and nothing of it was kept: {said}"]) from error
        problems = _incomplete(Path(scratch))
        if problems:
            raise DataError(root, ["the download lacks a part of the set and nothing of it was kept", *problems])
        for part in FOLDERS:
            (Path(scratch) / part).rename(root / part)


def _missing_parts(root: Path) -> list[str]:
    if not root.is_dir():
        return ["this is not a folder" if root.exists() else "the folder does not exist"]
    return [f"{part} is missing" for part in PARTS if not (root / part).exists()]


def _listed(root: Path) -> list[Pair]:
    """Every image that the lists name, by split, in their order."""
    pairs = []
    for split, mode in MODES.items():
        files = OxfordPetDataset(str(root), mode)
        images, masks = Path(files.images_directory), Path(files.masks_directory)
        names = [name for name in files.filenames if name]  # an empty list reads as one empty name
        pairs += [Pair(split, name, images / f"{name}.jpg", masks / f"{name}.png") for name in names]
    return pairs


def _incomplete(root: Path) -> list[str]:
    """What the layout and the lists name that is not there."""
    problems = _missing_parts(root)
    if not problems:
        files = [path for pair in _listed(root) for path in (pair.image, pair.mask)]
        problems = [f"{path.relative_to(root)} is missing" for path in files if not path.is_file()]
        if not files:
            problems.append("the lists of the splits name no image")
    return problems
