"""What the stem buys: no level of stride 2, patches shared with it, a branch beside the patches, or a way through it.

    python -m experiments.ablate_stem
    python -m experiments.ablate_stem --data camvid --root PATH --steps 1000 --output runs/ablate_stem_camvid

Takes every option of experiments.compare_decoders, of which it is one call: stems none, shared, branch and inline
under two decoders, two seeds, 16 cells. Unet reads level 1, the level that the stem makes. FPN does not, so it is the
control: there none and shared are one and the same network from the same random numbers, branch is that network from
others, and only inline, whose convolutions are the way to stride 4, computes something else.

Cost: 0.6 to 0.9 s of CPU time for each step of 8 images of 128x160 with swinx_n (one thread of an AMD EPYC, shared
machine); the default command about half an hour on two cores.

Expected: under Unet none is lowest, most of all in boundary F-score and thin classes, and the stems that give it a
level 1 lie close together. Under FPN none equals shared, branch differs by no more than a seed does, and inline is
highest, as it was in the first small runs from scratch.

Measured (docs/benchmarks/ablate-stem-swinx_n-cpu-2026-11-24.md, bfloat16): no difference of test mIoU is resolved.
Under Unet none is lowest in boundary F-score and thin classes, but inline is as low in mIoU (41.2 and 41.0; shared
43.5). Under FPN none equals shared to the last digit, and inline is lowest.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments import compare_decoders
from experiments.compare_options import Options
from swinx.config import STEMS

DEFAULTS = replace(Options(), decoders=("Unet", "FPN"), stems=STEMS, seeds=(0, 1), output=Path("runs/ablate_stem"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status of experiments.compare_decoders."""
    return compare_decoders.main(arguments, DEFAULTS, "python -m experiments.ablate_stem", __doc__)


if __name__ == "__main__":
    sys.exit(main())
