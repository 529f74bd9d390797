"""Download Oxford-IIIT Pet (0.8 GB; CC BY-SA 4.0) into a new folder.

    python -m experiments.data.fetch_pet FOLDER

Then: python -m experiments.compare_decoders --data pet --root FOLDER --size HEIGHT WIDTH
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.data.pairs import DataError
from experiments.data.pet import download_pet


@dataclass(frozen=True)
class Options:
    """Download Oxford-IIIT Pet, to be used with --data pet --root FOLDER."""

    folder: tyro.conf.Positional[Path]
    """new or empty folder; left as it is where the set is already complete"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 with a message if the set is not there in the end."""
    options = tyro.cli(Options, args=arguments, prog="python -m experiments.data.fetch_pet")
    try:
        download_pet(options.folder)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Oxford-IIIT Pet is complete in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
