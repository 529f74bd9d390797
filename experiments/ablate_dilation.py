"""What dilation buys, and what it has to be: output stride 32, 16 and 8; exact lattices or regular windows.

    python -m experiments.ablate_dilation
    python -m experiments.ablate_dilation --data camvid --root PATH --steps 1000 --output runs/ablate_dilation_camvid

Takes every option of experiments.compare_decoders, of which it is one call: output stride 32, and 16 and 8 under the
rules exact, dense and enlarged (experiments.models.dilation), with two decoders and two seeds, 28 cells. The decoders
take every stride, so that one network differs in its stride alone: DeepLabV3+ and PAN do not, and UPerNet costs three
to four times as much per step, most of it in the decoder. Segformer gathers no context of its own, so what a rule does
to the encoder's reach shows there; Unet's convolutions can make up for it.

exact and dense have the parameters of stride 32; enlarged has 0.012 M more at 16 and 0.066 M more at 8, in bias tables.

Cost: CPU time for each step of 8 images of 128x160 with swinx_n (one thread of an AMD EPYC, shared machine), Unet and
Segformer alike: 0.7 to 0.9 s at stride 32, 0.8 to 1.0 s at 16 under each rule, 1.2 to 1.4 s at 8, but 4.7 s and 2.8 GB
for enlarged at 8, whose windows hold 1024 tokens. The default command takes 1.5 to 2 hours on two cores.

Expected: 16 above 32 in mIoU and more so in boundary F-score, 8 little above 16. The rules lie closer together than
the strides do, because all are trained from scratch; dense, which reaches less far, is the lowest of them.

Measured (docs/benchmarks/ablate-dilation-swinx_n-cpu-2026-11-24.md, bfloat16, without enlarged at 8): no difference is
resolved. Segformer rises with finer levels, 40.3, 40.8, 41.1 % test mIoU; Unet does not. Rules: not told apart.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments import compare_decoders
from experiments.cells import DILATIONS
from experiments.compare_options import Options

DEFAULTS = replace(
    Options(),
    decoders=("Unet", "Segformer"),
    output_strides=(32, 16, 8),
    dilations=DILATIONS,  # one cell at stride 32, where nothing is dilated
    seeds=(0, 1),
    output=Path("runs/ablate_dilation"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status of experiments.compare_decoders."""
    return compare_decoders.main(arguments, DEFAULTS, "python -m experiments.ablate_dilation", __doc__)


if __name__ == "__main__":
    sys.exit(main())
