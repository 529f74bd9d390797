"""Predict a folder of pictures with a trained run: masks, colour overlays and confidence maps.

    python -m experiments.predict runs/camvid/runs/ID/last.pt photos --output runs/photos
    python -m experiments.predict last.pt photos --output DIR --flip --scales 0.75 1.0 1.25
    python -m experiments.predict last.pt aerial --output DIR --native --tile 512 512

Works on one picture or on a folder with its sub-folders (JPEG, PNG, TIFF, WebP, BMP), of any sizes. By default a
picture is scaled so that its shorter side is that of the training images, the scale that the model knows; results are
at the picture's own resolution. Where training saw crops, tiles have their size unless --tile says otherwise; with
--native, tiles are as large as the training images. The same command on the same folder continues where it stopped.
"""

import sys
from collections.abc import Sequence

import tyro

from experiments.prediction.options import Options
from experiments.records.messages import ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where pictures failed, 2 for bad input, 130 when interrupted."""
    options = tyro.cli(Options, args=arguments, prog="python -m experiments.predict", description=__doc__)
    from experiments.prediction.prediction import RECORD, run  # not above: --help need not wait for torch

    return ended(lambda: run(options), begun=options.output / RECORD)


if __name__ == "__main__":
    sys.exit(main())
