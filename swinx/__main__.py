"""python -m swinx: list encoders, inspect a checkpoint, convert one to another layout."""

import argparse
import sys
import warnings
from collections.abc import Sequence

from segmentation_models_pytorch.encoders import encoders

from swinx.checkpoint_layouts import LAYOUTS
from swinx.checkpoint_tools import Inspection, convert_checkpoint, inspect_checkpoint
from swinx.config import SwinConfig
from swinx.registry import list_encoders


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did what it says, 1 with one sentence on standard error if not."""
    parser = argparse.ArgumentParser(prog="python -m swinx", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the encoders, with their sizes and pretrained weights")
    inspect = commands.add_parser("inspect", help="what a checkpoint file is, and which encoder it fits")
    inspect.add_argument("file", metavar="FILE", help=".safetensors, .pth or .pt")
    convert = commands.add_parser("convert", help="write a checkpoint in another layout")
    convert.add_argument("source", metavar="IN", help="a file that swinx.load_checkpoint reads")
    convert.add_argument("target", metavar="OUT", help="a new file: .safetensors, .pth or .pt")
    convert.add_argument("--layout", required=True, choices=LAYOUTS, help="whose names")
    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tables that are resized and kernels that are adapted: none is here
            lines = {"list": _list, "inspect": _inspect, "convert": _convert}[options.command](options)
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


def _list(_: argparse.Namespace) -> list[str]:
    rows = [("name", "version", "embed", "depths", "heads", "window", "stem", "pretrained weights")]
    for name in list_encoders():
        config: SwinConfig = encoders[name]["params"]["config"]
        tags = ", ".join(encoders[name]["pretrained_settings"]) or "none"
        window = _joined([stage.window_size for stage in config.stages])
        sizes = (str(config.embed_dim), _dashed(config.depths), _dashed(config.num_heads))
        rows.append((name, config.version, *sizes, window, config.stem, tags))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _inspect(options: argparse.Namespace) -> list[str]:
    found: Inspection = inspect_checkpoint(options.file)
    inside = " and ".join(repr(part[:200]) for part in (found.wrapper, found.prefix) if part)
    sizes = f"embed_dim {found.embed_dim}, depths {_dashed(found.depths)}, num_heads {_dashed(found.num_heads)}"
    levels = ", ".join(map(str, found.level_norms)) or "none"
    stem = "shared or none" if found.stem == "shared" else found.stem
    lines = [
        f"layout        {found.layout}" + (f", under {inside}" if inside else ""),
        f"architecture  Swin {found.version.upper()}, {sizes}",
        f"window        {_joined(found.windows)}",
        f"stem          {stem}, for {found.in_channels} image channels",
        f"level norms   {levels}",
        f"classifier    {'none' if found.classes is None else f'{found.classes} classes'}",
        f"left out      {', '.join(f'{name} ({count})' for name, count in found.dropped.items()) or 'nothing'}",
    ]
    fits = [name if same else f"{name} (another window)" for name, same in found.fits.items()]
    return [*lines, f"fits          {', '.join(fits) or 'no published encoder: register one with these sizes'}"]


def _convert(options: argparse.Namespace) -> list[str]:
    left_out = convert_checkpoint(options.source, options.target, options.layout)
    missing = f", without {', '.join(left_out)}, which it does not have" if left_out else ""
    return [f"wrote {options.target} in the layout {options.layout}{missing}"]


def _dashed(values: Sequence[int]) -> str:
    return "-".join(map(str, values))


def _joined(windows: Sequence[tuple[int, int] | None]) -> str:
    sides = [
        "unknown" if window is None else str(window[0]) if window[0] == window[1] else f"{window[0]}x{window[1]}"
        for window in windows
    ]
    return sides[0] if len(set(sides)) == 1 else "-".join(sides)


if __name__ == "__main__":
    sys.exit(main())
