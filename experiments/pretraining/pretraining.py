"""From the options of a pretraining to files of weights, one for each seed, and a row about each."""

import json
from pathlib import Path

import safetensors.torch
import segmentation_models_pytorch as smp
import torch
from rich.console import Console

from experiments import data
from experiments.data import SegmentationData
from experiments.execution.comparison import SETTINGS, check_foreign, check_settings, progress, read_settings, say
from experiments.execution.prepare import check_against
from experiments.pretraining.hidden_patches import HiddenPatches
from experiments.pretraining.options import Options
from experiments.records.files import locked, remove_torn, write_whole
from experiments.records.grid import MOST_WINDOW, own_stem
from experiments.records.options import choose_device
from experiments.records.results import RESULTS, Row, append_rows, now, provenance, read_rows
from experiments.records.settings import Settings
from experiments.training.models import encoder_name
from experiments.training.train import CHECKPOINT, DivergedError, fit, processes
from swinx.config import VARIANTS


def run(options: Options) -> int:
    """Write weights and a row for each seed that output has none of; returns 1 where a seed diverged, otherwise 0.

    Raises:
        ValueError, OSError: bad input; the message names option, rule and value.
    """
    device = _checked(options)
    console = Console()
    with console.status("loading data"):
        loaded = data.load(options.data)
    check_against(options.crop, options.batch_size, loaded.train)
    height, width = loaded.train.images.shape[-2:]
    how = {"steps": options.steps, "batch_size": options.batch_size, "precision": options.precision, "device": device}
    settings = Settings(loaded.name, data.data_id(loaded), height, width, **how, recipe=options.recipe())
    known = {name: settings.as_row()[name] for name in ("data_id", "height", "width", *how)}
    same = ("encoder", "stem", "window", "hidden", "learning_rate", "crop", "zoom")
    known = json.loads(json.dumps({**{name: getattr(options, name) for name in same}, **known}))
    origin = {"data": loaded.name, **provenance(torch.device(device)), "threads": torch.get_num_threads()}
    with locked(options.output):
        rows = _rows(options.output, known)
        remove_torn(options.output)
        write_whole(options.output / SETTINGS, json.dumps(known, indent=1))
        for seed in options.seeds:
            row = next((row for row in rows if row["seed"] == seed), None)
            if row is None:
                ended = _pretrain(options, seed, loaded, settings, console)
                row = {"kind": "pretraining", "seed": seed, **known, **origin, "time": now(), **ended}
                append_rows(options.output / RESULTS, [row])
                rows.append(row)
            _tidy(options.output, seed)
            result = row["error"] or f"mean error {row['loss']}, {row['train_minutes']:.1f} min of training"
            say(console, f"seed {seed}: {result}")
    return int(any(row["status"] != "ok" for row in rows if row["seed"] in options.seeds))


def _checked(options: Options) -> str:
    """The device to train on. Raises ValueError for options that cannot be used."""
    if processes().world > 1:
        raise ValueError("pretraining takes one process, got a start by torchrun")
    if own_stem(options.encoder) is None:
        raise ValueError(f"--encoder must be one of {', '.join(VARIANTS)}, got {options.encoder}")
    if options.window is not None and not 1 <= options.window <= MOST_WINDOW:
        raise ValueError(f"--window must be 1 to {MOST_WINDOW}, got {options.window}")
    return choose_device(options.device, options.precision)


def _rows(output: Path, known: Row) -> list[Row]:
    """The rows that output holds. Raises ValueError where it was begun with other settings, or holds other files."""
    if not (begun := read_settings(output)):
        check_foreign(output, set())
        return []
    check_settings(output, begun, known)
    return read_rows(output / RESULTS)


def _pretrain(options: Options, seed: int, loaded: SegmentationData, settings: Settings, console: Console) -> Row:
    """Train the encoder of a seed and write its weights; returns how it ended."""
    device = torch.device(settings.device)
    torch.manual_seed(seed)
    name = encoder_name(options.encoder, options.stem, options.window)
    encoder = smp.encoders.get_encoder(name, weights=None)
    folder = options.output / f"seed{seed}"
    try:
        with progress(folder.name, console) as on_step:
            training = fit(
                HiddenPatches(encoder, options.hidden).to(device),
                lambda errors, masks: errors.mean(),
                loaded,
                settings,
                seed=seed,
                folder=folder,
                device=device,
                validate=lambda average: None,
                evaluate=lambda average, step: None,
                on_step=on_step,
            )
    except DivergedError as error:
        return {"status": "diverged", "error": str(error), "loss": None, "train_minutes": None}
    weights = {key: value.cpu().contiguous() for key, value in encoder.state_dict().items()}
    write_whole(folder.with_suffix(".safetensors"), safetensors.torch.save(weights))
    last = training.losses[-max(1, len(training.losses) // 10) :]
    minutes = round(training.seconds / 60, 3)
    return {"status": "ok", "error": None, "loss": round(sum(last) / len(last), 4), "train_minutes": minutes}


def _tidy(output: Path, seed: int) -> None:
    """Remove what only a resumed seed needs; its row is in the results."""
    folder = output / f"seed{seed}"
    (folder / CHECKPOINT).unlink(missing_ok=True)
    if folder.is_dir():
        folder.rmdir()
