"""Save whole models for others, and open what others saved: smp's two files, and in config.json what smp leaves out."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from safetensors.torch import load_model, save_file
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.encoders import encoders
from torch import nn

from swinx import hub, model_files
from swinx.config import VARIANTS, SwinConfig, changed, shown
from swinx.encoder import SwinXEncoder
from swinx.model_files import ModelFile
from swinx.models import DECODER_STRIDES, encoders_in, set_output_stride, unwrapped
from swinx.registry import IMAGENET, enter, fits_weights, list_encoders, withdraw

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_SMP_SNIPPET = re.compile(
    r"```python\nimport segmentation_models_pytorch as smp\n\nmodel = smp\.from_pretrained.*?```", re.S
)
_SNIPPET = """```python
import swinx

model = swinx.from_pretrained({source!r})  # this repository, or its directory
```"""
_PREDICT = """
```python
import numpy as np
import segmentation_models_pytorch as smp
import torch

image = np.zeros((256, 256, 3), np.uint8)  # yours, RGB
x = smp.encoders.preprocess_input(image, **model.preprocessing)
x = torch.from_numpy(x).permute(2, 0, 1)[None].float()
output = model.predict(x)
```"""


def save_pretrained(
    model: nn.Module,
    directory: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    dataset: str | None = None,
) -> None:
    """Save one of smp's models with a swinx encoder, for `swinx.from_pretrained`, here or anywhere.

    Writes model.safetensors, config.json, and a model card README.md where there is none. They are smp's own, and smp's
    `from_pretrained` opens them where the encoder's name is registered. What smp leaves out goes into config.json: the
    options of the variant, the present output stride, preprocessing and class names. Upload the directory as it is.
    Weights that the model has in two places are written twice, and are two when it is opened.

    Args:
        model: as smp builds it, trained or not.
        directory: made where it does not exist; its files of these names are replaced, each as a whole. What is cut
            short while they are replaced does not open.
        class_names: one of each class. None: those that the model was opened with, if any.
        preprocessing: arguments of `smp.encoders.preprocess_input`: mean, std, input_space and input_range, as lists,
            arrays or tensors. None: those that the model was opened with, or, of three image channels, that its
            pretrained weights were trained with, if any.
        repo_id: owner and name of the repository that the model card is for; None: the card names the directory.
        metrics, dataset: for the card, as in smp's `save_pretrained`; metrics may hold arrays and tensors.

    Raises:
        ValueError: no such model, a model that its options do not build, or a value outside these rules. Nothing is
            written then.
        FileExistsError: directory is a file.
    """
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    decoder = type(model)
    if decoder not in model_files.DECODERS.values():
        kinds = ", ".join(model_files.DECODERS)
        raise ValueError(f"model must be one of smp's {kinds} with a swinx encoder, got {decoder.__name__}")
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"directory must be a folder, got {directory}, which is a file")
    given: dict[str, Any] = dict(model.config)  # type: ignore[arg-type]  # smp's, and untyped
    encoder = _encoder(model)
    name = _registered_name(str(given.get("encoder_name")))
    if name not in list_encoders():
        raise ValueError(f"model must have an encoder of {', '.join(list_encoders())}, got {name}")
    options = model_files.check_options(decoder, {key: value for key, value in given.items() if key[:1] != "_"})
    settings = encoders[name]["pretrained_settings"]
    names = getattr(model, "class_names", None) if class_names is None else class_names
    pixels = getattr(model, "preprocessing", None) if preprocessing is None else preprocessing
    if pixels is None and given.get("encoder_weights") is not None and options.get("in_channels", 3) == 3:
        pixels = IMAGENET
    file = ModelFile(
        decoder=decoder,
        options=options,
        config=model_files.check_config(encoders[name]["params"]["config"]),
        weights_of=next(
            (other for other in VARIANTS if settings and encoders[other]["pretrained_settings"] == settings), None
        ),
        output_stride=encoder._output_stride,
        preprocessing=None if pixels is None else model_files.check_preprocessing(pixels, options),
        class_names=None if names is None else model_files.check_class_names(names, options.get("classes", 1)),
    )
    _check_rebuilt(file, model)
    try:
        metrics = model_files.as_plain(metrics)
        json.dumps(metrics)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metrics must be what JSON can say ({error}), got {shown(metrics)}") from error
    source = repo_id or (directory.name if directory.is_absolute() else directory.as_posix())
    card = model.generate_model_card(metrics=metrics, dataset=dataset)  # type: ignore[operator]
    text, replaced = _SMP_SNIPPET.subn(lambda _: _snippet(source, file), str(card))
    if not replaced:
        raise ValueError("smp's model card must hold its snippet, which this version's does not")
    _write(directory, model, file.text(), text)


def from_pretrained(
    source: str | Path, *, revision: str = "main", encoder_name: str | None = None
) -> SegmentationModel:
    """Open a model that `swinx.save_pretrained`, or smp's for a swinx encoder, has saved; in evaluation mode.

    A variant that is not registered here is registered from the file. Nothing in the files is executed, they name no
    other file, and a model is built only after its sizes were found to be those of its weights. No pretrained weights
    are downloaded. The weights have torch's default dtype, whatever they were saved in. The model has `class_names` (a
    tuple) and `preprocessing` (arguments of `smp.encoders.preprocess_input`), each None where the file has none.

    Args:
        source: a directory, or "owner/name" on the Hugging Face hub.
        revision: on the hub: branch, tag or commit.
        encoder_name: register the variant under this name, where another has that of the file.

    Raises:
        FileNotFoundError: no such directory or files, or no connection to the hub.
        ValueError: what is in the files is no such model; the message says what and where.
    """
    folder = Path(source)
    if folder.is_dir():
        config, weights = folder / CONFIG, folder / WEIGHTS
        for path in (config, weights):
            if not path.is_file():
                raise FileNotFoundError(f"source must hold {CONFIG} and {WEIGHTS}, got {folder} without {path.name}")
    elif folder.is_file():
        raise FileNotFoundError(
            f"source must be the directory that save_pretrained wrote, got {str(source)!r}, which is a file; for "
            "weights of an encoder call swinx.load_checkpoint"
        )
    elif not _REPOSITORY.fullmatch(str(source)):
        raise FileNotFoundError(
            f"source must be a directory, or owner/name of a repository, got {str(source)!r}, which does not exist"
        )
    else:
        advice = f"pass a directory that holds these two files ({source} is none here)"
        hub.require(str(source), (CONFIG, WEIGHTS), revision, advice)
        config, weights = (Path(hf_hub_download(str(source), name, revision=revision)) for name in (CONFIG, WEIGHTS))
    try:
        file = model_files.read(config)
        if encoder_name is not None:
            old = file.options["encoder_name"]
            file.options["encoder_name"] = f"tu-{encoder_name}" if old.startswith("tu-") else encoder_name
        with _registered(file):
            _check_weights(file, weights)
            model = file.decoder(**file.options)
            load_model(model, weights)
            _set_stride(model, file)
    except OSError:
        raise
    except Exception as error:  # smp and timm answer options that make no sense by any exception
        raise ValueError(f"{source}: {error}") from error
    model.class_names, model.preprocessing = file.class_names, file.preprocessing  # type: ignore[assignment]
    return model.eval()


def _registered_name(encoder_name: str) -> str:
    """The name in the registry of an encoder that may be given by timm's name and tag."""
    return encoder_name.removeprefix("tu-").partition(".")[0] if encoder_name.startswith("tu-") else encoder_name


def _encoder(model: nn.Module) -> SwinXEncoder:
    found = encoders_in(model)
    if len(found) != 1:
        raise ValueError(f"model must contain one SwinXEncoder, got {len(found)}")
    return found[0]


@contextlib.contextmanager
def _registered(file: ModelFile) -> Iterator[None]:
    """The variant of a file in smp's registry and timm's, to stay there unless the file turns out to be none."""
    name = _registered_name(file.options["encoder_name"])
    if name in encoders:
        ours = name in list_encoders()
        advice = f"pass another name for it, such as encoder_name={f'{name}2'!r}"
        if not ours and file.config is None:
            raise ValueError(f"its encoder {name} is not of swinx: open it by smp.from_pretrained")
        if not ours:
            raise ValueError(f"its encoder {name} has the name of an encoder of smp's: {advice}")
        if file.config is not None and encoders[name]["params"]["config"] != file.config:
            raise ValueError(
                f"its encoder {name} has another configuration than the encoder of that name that is registered in "
                f"this session: {advice}"
            )
        yield
        return
    if file.config is None:
        raise ValueError(
            f"its encoder {name} is not registered here: call swinx.register_encoder first, for an encoder of another "
            "library smp.from_pretrained"
        )
    weights = encoders[file.weights_of] if file.weights_of in VARIANTS else None
    fitting = weights is not None and fits_weights(file.config, weights["params"]["config"])
    enter(name, file.config, weights["pretrained_settings"] if weights and fitting else {})
    try:
        yield
    except BaseException:
        withdraw(name)
        raise


def _on_meta(file: ModelFile) -> nn.Module:
    """The model without memory for its weights, at its output stride."""
    name = file.options["encoder_name"]
    if name.startswith("tu-"):  # whose options may change what is registered
        changes = {field.name: file.options[field.name] for field in fields(SwinConfig) if field.name in file.options}
        model_files.check_config(changed(encoders[_registered_name(name)]["params"]["config"], changes))
    with torch.device("meta"):
        model = file.decoder(**file.options)
    _set_stride(model, file)
    return model


def _set_stride(model: nn.Module, file: ModelFile) -> None:
    encoder, stride = _encoder(model), file.output_stride
    if stride is None or stride == encoder._output_stride:
        return
    if stride in DECODER_STRIDES[file.decoder]:
        set_output_stride(model, stride)
    else:  # the encoder's own, at a depth at which the decoder takes it
        encoder.make_dilated(stride)


def _check_weights(file: ModelFile, path: Path) -> None:
    """Compare names and shapes, before a model is built that may be of any size."""
    with safe_open(path, "pt") as stored:
        given = {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118  # no mapping
    wanted = {key: tuple(value.shape) for key, value in _on_meta(file).state_dict().items()}
    if given != wanted:
        different = sorted(key for key in given.keys() | wanted.keys() if given.get(key) != wanted.get(key))
        shown = [f"{key[:200]}: {given.get(key)} for {wanted.get(key)}" for key in different[:5]]
        raise ValueError(f"{WEIGHTS} does not fit {CONFIG} in {len(different)} entries: {'; '.join(shown)}")


def _check_rebuilt(file: ModelFile, model: nn.Module) -> None:
    """Refuse a model that is not what its options build: it could not be opened, or would be another."""
    built = _on_meta(file)
    modules, shapes, fixed = [], [], ("scale_factor", "shifted")
    for one in (built, model):
        modules.append(
            {name: (type(part), *(getattr(part, key, None) for key in fixed)) for name, part in one.named_modules()}
        )
        shapes.append({name: tuple(value.shape) for name, value in one.state_dict().items()})
    for built_parts, parts in (modules, shapes):
        names = sorted(name for name in built_parts.keys() | parts.keys() if built_parts.get(name) != parts.get(name))
        if names:
            raise ValueError(f"model must be as smp builds it from its options, got another {', '.join(names[:5])}")


def _snippet(source: str, file: ModelFile) -> str:
    text = _SNIPPET.format(source=source)
    return (
        text + "\n" + _PREDICT if file.preprocessing is not None and file.options.get("in_channels", 3) == 3 else text
    )


def _write(directory: Path, model: nn.Module, config: str, card: str) -> None:
    """All files under other names first, then each by one rename; config.json last, without which nothing opens.

    An older config.json goes first: new weights with old options, cut short between the two, could open as a model.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=directory) as made:
        new = Path(made)
        # Copies: the format has no weights that share memory.
        weights = {key: value.to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()}
        save_file(weights, new / WEIGHTS)
        (new / CARD).write_text(card)
        (new / CONFIG).write_text(config)
        (directory / CONFIG).unlink(missing_ok=True)
        for name in (WEIGHTS, CARD, CONFIG):
            if name != CARD or not (directory / CARD).exists():
                os.replace(new / name, directory / name)
