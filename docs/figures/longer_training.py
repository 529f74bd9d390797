"""Draws longer_training.svg, the validation score over steps of training, from the rows of longer training on CamVid.

python docs/figures/longer_training.py
"""

from pathlib import Path

from pandas import DataFrame

from experiments.reporting import load, plots

FOLDER = Path(__file__).parent
ROWS = FOLDER.parent / "benchmarks" / "camvid-longer-swinx_n-cpu-2026-11-27.jsonl"


def main() -> None:
    drawn = [
        (
            f"{item.row['steps']:,} steps, seed {item.row['seed']}",
            DataFrame({"step": item.arrays["val_step"], "value": item.arrays["val_miou"]}),
        )
        for item in load.read([ROWS]).items
    ]
    (FOLDER / "longer_training.svg").write_bytes(plots.curves({"validation mIoU %": drawn}))


if __name__ == "__main__":
    main()
