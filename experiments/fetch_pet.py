"""Download Oxford-IIIT Pet (0.8 GB; CC BY-SA 4.0).

    python -m experiments.fetch_pet FOLDER

Then: python -m experiments.compare_decoders --data pet --root FOLDER --size H W
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import tyro
from torchvision.datasets.utils import download_and_extract_archive

from experiments.data.pet import find_pet
from experiments.data.reading import DataError

SERVER = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"
# MD5 sums as torchvision has them. The lists of the splits come last: no part of the set is taken for the whole.
ARCHIVES = {
    "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
    "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
}


@dataclass(frozen=True)
class Options:
    """Download Oxford-IIIT Pet, or what of it is missing, to be used with --data pet --root FOLDER."""

    folder: tyro.conf.Positional[Path]
    """left as it is where the set is complete"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 with a message if the set is not there in the end."""
    folder = tyro.cli(Options, args=arguments, prog="python -m experiments.fetch_pet").folder
    try:
        if _lacking(folder):
            for name, md5 in ARCHIVES.items():
                download_and_extract_archive(SERVER + name, str(folder), md5=md5, remove_finished=True)
        if problems := _lacking(folder):
            raise DataError(folder, problems)
    except (OSError, HTTPException, RuntimeError, DataError) as error:  # RuntimeError: a wrong MD5 sum
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Oxford-IIIT Pet is complete in {folder}")
    return 0


def _lacking(root: Path) -> list[str]:
    """What the layout and the lists name that is not there."""
    found = find_pet(root)
    files = [path for pair in found.pairs for path in (pair.image, pair.mask)]
    problems = found.problems + [f"{path.relative_to(root)} is missing" for path in files if not path.is_file()]
    return problems if files or problems else ["the lists of the splits name no image"]


if __name__ == "__main__":
    sys.exit(main())
