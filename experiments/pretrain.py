"""Pretrain an encoder on images alone: it sees parts of each image and predicts the pixels of the others.

    python -m experiments.pretrain --data camvid --root PATH --size 192 256 --seeds 0 1 --output runs/pretrain
    python -m experiments.compare_decoders --data camvid --root PATH --size 192 256 --seeds 0 1 \\
      --weights "runs/pretrain/seed{seed}.safetensors" --output runs/pretrained

Takes the training split, without its masks (SimMIM, Xie et al. 2022), and writes seedN.safetensors for each seed, which
swinx.load_checkpoint reads, too. The same command continues where it stopped.
"""

import sys
from collections.abc import Sequence

import tyro

from experiments.pretraining.options import Options
from experiments.records.messages import ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where a seed diverged, 2 for bad input, 130 when interrupted."""
    options = tyro.cli(Options, args=arguments, prog="python -m experiments.pretrain", description=__doc__)
    from experiments.pretraining.pretraining import SETTINGS, run  # not above: --help need not wait for torch

    return ended(lambda: run(options), begun=options.output / SETTINGS)


if __name__ == "__main__":
    sys.exit(main())
