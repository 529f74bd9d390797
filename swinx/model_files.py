"""What the config.json of a saved model says, checked: such a file may come from anybody.

It is smp's own file, with one entry more, `_swinx`. It names a decoder of smp and its options, the configuration of the
encoder, the output stride, the preprocessing and the classes; no paths, no code, and no sizes that its weights do not
bear out.
"""

import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from swinx.config import SwinConfig, check_output_stride, shown
from swinx.models import DECODER_STRIDES

OWN_ENTRY = "_swinx"
DECODERS = {kind.__name__: kind for kind in DECODER_STRIDES}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_MOST_BYTES = 2**20
_MOST_NUMBER = 2**16  # of channels, classes, dilation; what they make must fit the weights besides
_MOST_ITEMS = 64
_MOST_TEXT = 200
_MOST_UPSAMPLING = 32  # output sizes follow from it, and no weight has them
_MOST_BLOCKS = 1024
_MOST_WINDOW_TOKENS = 64**2  # scores grow with its square, and weights of V2 do not grow with it


@dataclass(frozen=True)
class ModelFile:
    """A saved model without its weights.

    decoder: class of smp. options: its arguments; encoder_weights is None. config: of the encoder's registered name;
    None in files of smp's own. weights_of: the published encoder whose weights fit it, if any. output_stride: None:
    follows from the options. preprocessing: arguments of `smp.encoders.preprocess_input`. class_names: one of each
    class.
    """

    decoder: type[nn.Module]
    options: dict[str, Any]
    config: SwinConfig | None = None
    weights_of: str | None = None
    output_stride: int | None = None
    preprocessing: dict[str, Any] | None = None
    class_names: tuple[str, ...] | None = None

    def text(self) -> str:
        """The content of config.json, which smp reads too."""
        own: dict[str, Any] = {"weights_of": self.weights_of, "output_stride": self.output_stride}
        if self.config is not None:
            own["config"] = {field.name: getattr(self.config, field.name) for field in fields(SwinConfig)}
        own |= {"preprocessing": self.preprocessing, "class_names": self.class_names}
        content = self.options | {"_model_class": self.decoder.__name__, OWN_ENTRY: own}
        return json.dumps(content, indent=2, sort_keys=True) + "\n"


def read(path: Path) -> ModelFile:
    """The checked content of a config.json.

    Raises:
        ValueError: it says something that a saved model cannot say; the message names the entry.
    """
    with path.open("rb") as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ValueError(f"must be at most {_MOST_BYTES} bytes")
    try:
        content = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"must hold an object, got {type(content).__name__}")
    kind = content.pop("_model_class", None)
    if not isinstance(kind, str) or kind not in DECODERS:
        raise ValueError(f"_model_class must be one of {', '.join(DECODERS)}, got {shown(kind)}")
    own = content.pop(OWN_ENTRY, {})
    if not isinstance(own, dict):
        raise ValueError(f"{OWN_ENTRY} must be an object, got {shown(own)}")
    options = check_options(DECODERS[kind], content)
    classes = options.get("classes", 1)
    stride = own.get("output_stride")
    if stride is not None:
        check_output_stride(stride)
    weights_of = own.get("weights_of")
    if weights_of is not None and not (isinstance(weights_of, str) and _NAME.fullmatch(weights_of)):
        raise ValueError(f"weights_of must be the name of an encoder, got {shown(weights_of)}")
    preprocessing, names = own.get("preprocessing"), own.get("class_names")
    return ModelFile(
        decoder=DECODERS[kind],
        options=options,
        config=_config(own["config"]) if "config" in own else None,
        weights_of=weights_of,
        output_stride=stride,
        preprocessing=None if preprocessing is None else check_preprocessing(preprocessing, options),
        class_names=None if names is None else check_class_names(names, classes),
    )


def check_options(decoder: type[nn.Module], options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a decoder of smp, without weights to download.

    Raises:
        ValueError: an argument that it has not, a value that is no plain one, or a size beyond all use.
    """
    known = {name for name, kind in inspect.signature(decoder).parameters.items() if kind.kind is not kind.VAR_KEYWORD}
    name = options.get("encoder_name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"encoder_name must be letters, digits, '_', '.' and '-', got {shown(name)}")
    if name.startswith("tu-"):  # smp passes these on to timm
        known |= {field.name for field in fields(SwinConfig)}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"options must be arguments of smp's {decoder.__name__}, got {shown(unknown)}")
    for option, value in options.items():
        _check_value(option, value)
    upsampling = options.get("upsampling")
    if isinstance(upsampling, (int, float)) and upsampling > _MOST_UPSAMPLING:
        raise ValueError(f"upsampling must be at most {_MOST_UPSAMPLING}, got {upsampling}")
    return dict(options) | {"encoder_weights": None}


def check_config(config: SwinConfig) -> SwinConfig:
    """The configuration, if its sizes are of use.

    Raises:
        ValueError: more blocks, or more tokens in a window, than anyone has.
    """
    if sum(config.depths) > _MOST_BLOCKS:
        raise ValueError(f"depths must be at most {_MOST_BLOCKS} blocks, got {sum(config.depths)}")
    for stage in config.stages:
        if math.prod(stage.window_size) > _MOST_WINDOW_TOKENS:
            raise ValueError(f"window_size must be at most {_MOST_WINDOW_TOKENS} tokens, got {stage.window_size}")
    return config


def check_preprocessing(value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `smp.encoders.preprocess_input`, for the number of image channels that the options say.

    mean, std and input_range may be arrays, tensors, or lists of their numbers.

    Raises:
        ValueError: other keys, or values that it could not use.
    """
    keys = ("mean", "std", "input_space", "input_range")
    if not isinstance(value, Mapping) or set(value) != set(keys):
        raise ValueError(f"preprocessing must hold {', '.join(keys)}, got {shown(value)}")
    value = {key: as_plain(entry) for key, entry in value.items()}
    channels = options.get("in_channels", 3)
    for key, length in (("mean", channels), ("std", channels), ("input_range", 2)):
        numbers = value[key]
        if not isinstance(numbers, (list, tuple)) or len(numbers) != length or not all(map(_finite, numbers)):
            raise ValueError(f"preprocessing {key} must be {length} numbers, got {shown(numbers)}")
    if min(value["std"]) <= 0:
        raise ValueError(f"preprocessing std must be above 0, got {shown(value['std'])}")
    if value["input_space"] not in ("RGB", "BGR"):
        raise ValueError(f"preprocessing input_space must be RGB or BGR, got {shown(value['input_space'])}")
    if value["input_range"][1] == 1 and max(value["mean"]) > 1:  # smp divides by 255 there and nowhere else
        raise ValueError(
            f"preprocessing mean must be at most 1 where input_range ends in 1, which scales images to it, got "
            f"{shown(value['mean'])}: for statistics of images that are not scaled give their range, such as [0, 255]"
        )
    return {key: list(value[key]) if key != "input_space" else value[key] for key in keys}


def as_plain(value: Any) -> Any:
    """Arrays, tensors and their numbers as numbers and lists of Python, in lists and mappings too."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: as_plain(entry) for key, entry in value.items()}
    return [as_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def check_class_names(value: Any, classes: Any) -> tuple[str, ...]:
    """One name for each class.

    Raises:
        ValueError: no list of so many strings.
    """
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"class_names must be a list of names, got {shown(value)}")
    if len(value) != classes:
        raise ValueError(f"class_names must be {classes} names, one of each class, got {len(value)}")
    if long := [name for name in value if len(name) > _MOST_TEXT]:
        raise ValueError(f"class_names must be at most {_MOST_TEXT} characters long, got {shown(long[0])}")
    return tuple(value)


def _config(value: Any) -> SwinConfig:
    known = [field.name for field in fields(SwinConfig)]
    if not isinstance(value, dict) or not set(value) <= set(known):
        raise ValueError(f"config must hold {', '.join(known)}, got {shown(value)}")
    for name, entry in value.items():
        _check_value(name, entry)
    try:
        return check_config(SwinConfig(**value))
    except TypeError as error:
        raise ValueError(f"config must be one of an encoder: {error}") from error


def _check_value(name: str, value: Any, depth: int = 3) -> None:
    """Refuse what no option is: numbers and texts without end, and deep nesting."""
    if isinstance(value, (list, tuple, dict)):
        if len(value) > _MOST_ITEMS or depth == 0:
            raise ValueError(f"{name} must be a short list, got {shown(value)}")
        for item in value.values() if isinstance(value, dict) else value:
            _check_value(name, item, depth - 1)
    elif isinstance(value, str):
        if len(value) > _MOST_TEXT:
            raise ValueError(f"{name} must be at most {_MOST_TEXT} characters, got {shown(value)}")
    elif isinstance(value, (int, float)):
        if not abs(value) <= _MOST_NUMBER:
            raise ValueError(f"{name} must be at most {_MOST_NUMBER}, got {shown(value)}")
    elif value is not None:
        raise ValueError(f"{name} must be a number, a text, a list or null, got {shown(value)}")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")
