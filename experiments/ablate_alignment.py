"""Whether decoders mind that dilated tokens sit off-centre: levels as they are, or resampled to the usual centres.

    python -m experiments.ablate_alignment
    python -m experiments.ablate_alignment --data camvid --root PATH --steps 1000 --output runs/ablate_alignment_camvid

Takes every option of experiments.compare_decoders, of which it is one call: output strides 16 and 8, alignments none
and centred (experiments.models.alignment) under two decoders, two seeds, 16 cells. A dilated token of swinx_n stands
2.5 to 10.5 px right of and below where decoders take it to be. Segformer brings all levels to one size bilinearly and
by centres, the convention that centring restores. Unet joins levels by nearest neighbours and learns convolutions over
them, which can undo a constant shift. DeepLabV3+ and PAN interpolate by corners and agree with neither.

Cost: 0.8 to 0.9 s of CPU time for each step of 8 images of 128x160 with swinx_n at stride 16, 1.3 to 1.5 s at 8 (one
thread of an AMD EPYC, shared machine); centring adds 0 to 5 %. The default command takes 40 to 60 minutes on two cores.

Expected: no difference that two seeds resolve, as heads trained on off-centre tokens learn the shift (read out without
training it costs several points); if any, boundary F-score under Segformer at stride 8. Centring averages neighbours
and drops part of the last tokens, so it may also lose.

Measured (docs/benchmarks/ablate-alignment-swinx_n-cpu-2026-11-24.md, bfloat16): no difference is resolved; centring
added -0.1 to +0.8 points of test mIoU, most under Segformer at stride 8.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments import compare_decoders
from experiments.cells import ALIGNMENTS
from experiments.compare_options import Options

DEFAULTS = replace(
    Options(),
    decoders=("Unet", "Segformer"),
    output_strides=(16, 8),
    alignments=ALIGNMENTS,
    seeds=(0, 1),
    output=Path("runs/ablate_alignment"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status of experiments.compare_decoders."""
    return compare_decoders.main(arguments, DEFAULTS, "python -m experiments.ablate_alignment", __doc__)


if __name__ == "__main__":
    sys.exit(main())
