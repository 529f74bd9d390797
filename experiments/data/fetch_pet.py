"""Download Oxford-IIIT Pet (0.8 GB; CC BY-SA 4.0) into a new folder.

    python -m experiments.data.fetch_pet FOLDER

Then: python -m experiments.compare_decoders --data pet --root FOLDER --size H W
"""

import http.client
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import tyro
from segmentation_models_pytorch.datasets import OxfordPetDataset

from experiments.data.pet import find_pet
from experiments.data.reading import DataError


def fetch(folder: tyro.conf.Positional[Path]) -> None:
    """Download Oxford-IIIT Pet, to be used with --data pet --root FOLDER.

    Everything is fetched, unpacked and counted in a hidden folder and moved from there at the end, the lists of the
    splits last: no part of a set is taken for the whole.

    Args:
        folder: new or empty; left as it is where the set is complete

    Raises:
        DataError: folder holds anything else, or the download failed.
        OSError: folder cannot be written to.
    """
    lacking = _lacking(folder)
    if not lacking:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DataError(
            folder, [*lacking, "the folder is neither empty nor the whole set: empty it, or name a new one"]
        )
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
        try:
            OxfordPetDataset.download(scratch)
        except (OSError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
            said = str(error) or type(error).__name__
            raise DataError(folder, [f"the download failed and nothing of it was kept: {said}"]) from error
        if lacking := _lacking(Path(scratch)):
            raise DataError(folder, ["the download lacks a part of the set and nothing of it was kept", *lacking])
        for part in ("images", "annotations"):
            (Path(scratch) / part).rename(folder / part)


def _lacking(root: Path) -> list[str]:
    """What the layout and the lists name that is not there."""
    pairs, problems, _ = find_pet(root)
    files = [path for pair in pairs for path in (pair.image, pair.mask)]
    problems += [f"{path.relative_to(root)} is missing" for path in files if not path.is_file()]
    return problems if pairs or problems else ["the lists of the splits name no image"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 with a message if the set is not there in the end."""
    try:
        tyro.cli(fetch, args=arguments, prog="python -m experiments.data.fetch_pet")
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("Oxford-IIIT Pet is complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
