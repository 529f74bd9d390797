"""How much the side of the attention window matters to a small encoder trained from scratch: 4, 7, 8, 12.

    python -m experiments.ablate_window
    python -m experiments.ablate_window --data camvid --root PATH --steps 1000 --output runs/ablate_window_camvid

Takes every option of experiments.compare_decoders, of which it is one call: four windows of swinx_n, two seeds, 8
cells. 7 and 12 are the windows of published Swin weights, 8 is swinx_n's own, 4 halves its reach. Of the grids of
128x160 pixels, 32x40, 16x20, 8x10 and 4x5, 8 divides the first and 7 none: the two show what padding does at about the
same reach. The last grid fits into every window but 4, so only padding changes there. FPN reads all four levels and
gathers no context beyond 3x3 convolutions, so what the windows do not reach stays unseen.

Cost: 0.55, 0.57, 0.56 and 0.65 s of CPU time for each step of 8 images of 128x160 with windows 4, 7, 8 and 12 (one
thread of an AMD EPYC, shared machine); parameters differ by 0.014 M, in bias tables. The default command takes 10 to
15 minutes on two cores.

Expected: 4 lowest by one to two points of mIoU; 7, 8 and 12 not resolved by two seeds.

Measured with --precision bf16 (docs/benchmarks/ablate-window-swinx_n-cpu-2026-11-25.md): 38.5, 39.3, 38.9 and 39.2 %
test mIoU with 4, 7, 8 and 12. Nothing is resolved: the last place of 4 was expected, its gap was not so small.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments import compare_decoders
from experiments.compare_options import Options

DEFAULTS = replace(Options(), decoders=("FPN",), windows=(4, 7, 8, 12), seeds=(0, 1), output=Path("runs/ablate_window"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status of experiments.compare_decoders."""
    return compare_decoders.main(arguments, DEFAULTS, "python -m experiments.ablate_window", __doc__)


if __name__ == "__main__":
    sys.exit(main())
