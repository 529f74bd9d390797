"""The options of commands, as frozen dataclasses that tyro reads, and what of them is refused at once.

Nothing here imports torch: --help need not wait for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

Loss = Literal["ce", "dice", "lovasz"]
Corruption = Literal["gaussian_noise", "gaussian_blur", "jpeg", "brightness", "contrast"]
Precision = Literal["32", "bf16", "16"]
# How a stage beyond the output stride attends, and where the tokens of a dilated level stand: training.dilation_rules.
Dilation = Literal["exact", "dense", "enlarged"]
Alignment = Literal["none", "centred"]
Size = tuple[int, int]
LEAST_CROP = 16  # pixels a side: pictures are predicted by tiles as large as the crop, and tiny ones take for ever


def unset(metavar: str) -> Any:
    """For options that are not set by default: help says in words what holds then, not "None"."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def check(options: object, rules: Mapping[str, tuple[bool, str]], prefix: str = "--") -> None:
    """Raise ValueError, naming option, rule and value, for the first field whose value breaks its rule."""
    for name, (good, rule) in rules.items():
        if not good:
            value = getattr(options, name)
            got = (" ".join(map(str, value)) or "none") if isinstance(value, tuple) else value
            raise ValueError(f"{prefix}{name.replace('_', '-')} must be {rule}, got {got}")


@dataclass(frozen=True)
class DataOptions:
    """The set that a command works on."""

    data: Literal["scenes", "camvid", "folder", "pet"] = "scenes"
    """scenes: generated; camvid, folder: images/ and masks/ by split under --root; pet: Oxford-IIIT Pet, which
    torchvision downloads"""
    root: Annotated[Path | None, unset("PATH")] = None
    """folder of the data, for all but scenes"""
    classes: Annotated[Path | None, unset("PATH")] = None
    """text file with one class name per line, for folder"""
    ignore_index: Annotated[int | None, unset("INT")] = None
    """id in the masks that counts as unlabelled, for folder (default: 255)"""
    size: Annotated[Size | None, unset("HEIGHT WIDTH")] = None
    """height and width that images are brought to (scenes: that are generated)"""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    """how an image of another aspect comes to --size: padded, cropped at its centre, or stretched"""
    groups: Annotated[str | None, unset("STR")] = None
    """what test images belong to (drive, film, patient), for the statistics: a regular expression whose first group is
    found in the image's name, or a CSV file with the columns name and group (default: each image by itself; CamVid:
    runs of neighbouring frames)"""


@dataclass(frozen=True)
class Recipe:
    """How every run of a folder is trained.

    Raises:
        ValueError: a value outside the rules of its field; the message names the option.
    """

    losses: tuple[Loss, ...] = ("ce",)
    """summed with equal weight: cross-entropy, Dice, Lovász-softmax (smp.losses)"""
    class_weighting: Literal["sqrt", "none"] = "sqrt"
    """of cross-entropy: square root of median over own frequency, at most 4; or none"""
    learning_rate: float = 1e-3
    """peak of AdamW's, after a linear warmup and before a cosine to zero"""
    weight_decay: float = 0.05
    """of matrices and kernels; norms, biases and position bias tables have none"""
    warmup: float = 0.05
    """share of the budget, 0 up to 1"""
    ema_decay: float = 0.999
    """of the moving average of weights, which is what is evaluated; 0 evaluates the weights themselves"""
    gradient_clip: float = 5.0
    """largest norm of the gradient of a step"""
    accumulate: int = 1
    """batches whose gradients make one step"""
    crop: Annotated[Size | None, unset("HEIGHT WIDTH")] = None
    """height and width trained on (default: the size of the images; --tile of this size evaluates at it)"""
    zoom: tuple[float, float] = (1.0, 2.0)
    """range of the random enlargement before the crop"""
    color: float = 0.3
    """largest relative change of brightness, contrast and saturation"""
    weights: Annotated[str | None, unset("TAG|FILE")] = None
    """pretrained encoder weights: smp's tag, such as imagenet, or a file for swinx.load_checkpoint, where {seed} in the
    name stands for the seed of the run (default: from scratch)"""
    layer_decay: float = 1.0
    """factor of the learning rate from each block of a swinx encoder to the one before it; 1 is none"""
    freeze: Literal["nothing", "encoder"] = "nothing"
    """what keeps the weights that it starts from"""
    validate_every: Annotated[int | None, unset("INT")] = None
    """steps between validations; the last step is one too (default: five, at the steps nearest to fifths of --steps)"""

    def __post_init__(self) -> None:
        names, inf = get_args(Loss), math.inf
        different = 0 < len(self.losses) == len(set(self.losses) & set(names))
        rules = {
            "losses": (different, f"different names among {', '.join(names)}"),
            "learning_rate": (0 < self.learning_rate < inf, "positive and finite"),
            "weight_decay": (0 <= self.weight_decay < inf, "at least 0 and finite"),
            "warmup": (0 <= self.warmup < 1, "at least 0 and below 1"),
            "ema_decay": (0 <= self.ema_decay < 1, "at least 0 and below 1"),
            "gradient_clip": (0 < self.gradient_clip < inf, "positive and finite"),
            "accumulate": (self.accumulate >= 1, "at least 1"),
            "crop": (self.crop is None or min(self.crop) >= LEAST_CROP, f"height and width of at least {LEAST_CROP}"),
            "zoom": (1 <= self.zoom[0] <= self.zoom[1] < inf, "two finite factors of at least 1, rising"),
            "color": (0 <= self.color < 1, "at least 0 and below 1"),
            "layer_decay": (0 < self.layer_decay <= 1, "above 0 and at most 1"),
            "validate_every": (self.validate_every is None or self.validate_every >= 1, "at least 1"),
        }
        check(self, rules)


@dataclass(frozen=True)
class Inference:
    """How an image is predicted; the default is one plain call of the model.

    Raises:
        ValueError: a value outside the rules of its field; the message names the option.
    """

    tile: Annotated[Size | None, unset("HEIGHT WIDTH")] = None
    """height and width of overlapping tiles, for images that are larger"""
    overlap: float = 0.5
    """least share of a tile in common with the next one"""
    flip: bool = False
    """average with the prediction of the mirrored image"""
    scales: tuple[float, ...] = (1.0,)
    """average over the image resized by each of these factors; tiles are of the resized image"""

    def __post_init__(self) -> None:
        finite = all(0 < scale < math.inf for scale in self.scales)
        rules = {
            "tile": (self.tile is None or min(self.tile) >= 1, "height and width of at least 1"),
            "overlap": (0 <= self.overlap < 1, "at least 0 and below 1"),
            "scales": (len(self.scales) > 0 and finite, "one or more positive finite factors"),
        }
        check(self, rules)

    def sizes(self, height: int, width: int) -> list[Size]:
        """Heights and widths in pixels that a model meets in an image of height x width, at each scale and by tiles."""
        whole = [(max(1, round(height * scale)), max(1, round(width * scale))) for scale in self.scales]
        if self.tile is None:
            return whole
        return [(min(self.tile[0], size[0]), min(self.tile[1], size[1])) for size in whole]


PLAIN = Inference()


@dataclass(frozen=True)
class Scoring:
    """What the test split is scored by."""

    score_at: Literal["size", "native"] = "size"
    """resolution of the masks that predictions are scored against: --size, or that of the files"""
    corruptions: Annotated[tuple[Corruption, ...], unset("[KIND ...]")] = ()
    """kinds of ImageNet-C that test images are also scored under, at severity 3: gaussian_noise, gaussian_blur, jpeg,
    brightness, contrast"""


@dataclass(frozen=True)
class RayResources:
    """Where Ray runs the runs of a grid, and what each may use."""

    address: Annotated[str | None, unset("STR")] = None
    """host:port of a Ray, or auto for the one running here (default: one is started on this machine)"""
    cpus: float = 1
    """CPU cores of each run"""
    gpus: float = 0
    """GPUs of each run; 0.5 trains two runs on one GPU"""
    retries: int = 3
    """how often a run is tried again when its machine or process died"""

    def __post_init__(self) -> None:
        part = 0 <= self.gpus <= 1 or (self.gpus > 1 and self.gpus == int(self.gpus))
        rules = {
            "cpus": (self.cpus > 0, "more than 0"),
            "gpus": (part, "a part of one GPU or a whole number"),
            "retries": (self.retries >= 0, "at least 0"),
        }
        check(self, rules, "--ray.")


@dataclass(frozen=True)
class Axes:
    """What to combine; from output_strides on, an empty axis stands for the decoder's or the encoder's own.

    The axes from stems to alignments are swinx's: an encoder of another library gets one run for all of their values.
    """

    decoders: tuple[str, ...] = ("DeepLabV3Plus", "Unet", "FPN", "PAN")
    """decoders of segmentation_models_pytorch"""
    encoders: tuple[str, ...] = ("swinx_n",)
    """swinx's encoders, smp's, or tu- and a timm model"""
    seeds: tuple[int, ...] = (0,)
    """each seed is a training run of its own; nothing is tested for significance with one"""
    output_strides: Annotated[tuple[Literal[8, 16, 32], ...], unset("[8|16|32 ...]")] = ()
    """(default: the decoder's own)"""
    stems: Annotated[tuple[Literal["shared", "branch", "inline", "none"], ...], unset("[NAME ...]")] = ()
    """shared, branch, inline, none (default: the encoder's own)"""
    dilations: Annotated[tuple[Dilation, ...], unset("[NAME ...]")] = ()
    """exact, dense, enlarged: how stages beyond the output stride attend (default: exact)"""
    windows: Annotated[tuple[int, ...], unset("[INT ...]")] = ()
    """window sides in tokens (default: the encoder's own)"""
    alignments: Annotated[tuple[Alignment, ...], unset("[NAME ...]")] = ()
    """none, centred: where the tokens of dilated levels stand (default: none)"""


@dataclass(frozen=True, kw_only=True)
class Common:
    """What all commands that score models take."""

    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=DataOptions)
    inference: tyro.conf.OmitArgPrefixes[Inference] = field(default_factory=Inference)
    scoring: tyro.conf.OmitArgPrefixes[Scoring] = field(default_factory=Scoring)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    contrasts: Annotated[tuple[str, ...], unset("[NAME ...]")] = ()
    """planned comparisons such as exact-dense@os8, or a file of them (default: all pairs, as an exploration)"""

    def __post_init__(self) -> None:
        tiled = self.inference.tile is not None or self.inference.overlap == PLAIN.overlap
        check(self.inference, {"overlap": (tiled, "left out without --tile")})


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Common):
    """Options of experiments.compare_decoders and of the ablations, which differ in their defaults."""

    axes: tyro.conf.OmitArgPrefixes[Axes] = field(default_factory=Axes)
    steps: int = 200
    """training steps of each run"""
    batch_size: int = 4
    """images of a batch, over all processes"""
    precision: Precision = "32"
    """bf16 and 16 are mixed precision; 16 needs cuda"""
    start: Annotated[Path | None, unset("PATH")] = None
    """folder of finished runs whose weights are begun with, seed by seed; stride, rule and alignment may differ"""
    evaluate_at: Annotated[tuple[int, ...], unset("[INT ...]")] = ()
    """steps after which the test split is scored as well, for learning curves; 0 is before training"""
    recipe: tyro.conf.OmitArgPrefixes[Recipe] = field(default_factory=Recipe)
    workers: int = 0
    """processes that prepare the batches of a run; 0 prepares them between the steps"""
    launcher: Literal["here", "ray"] = "here"
    """here: one run after another (under torchrun, by all processes); ray: runs spread over a cluster"""
    ray: RayResources = field(default_factory=RayResources)
    output: Path = Path("runs/compare_decoders")
    """folder for results and report"""

    def __post_init__(self) -> None:
        super().__post_init__()
        at = self.evaluate_at
        different = len(set(at)) == len(at) and all(0 <= step <= self.steps for step in at)
        rules = {
            "steps": (self.steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 2, "at least 2 (BatchNorm cannot train on one image)"),
            "workers": (self.workers >= 0, "at least 0"),
            "evaluate_at": (different, f"different steps from 0, at most {self.steps}"),
            "start": (self.start is None or self.recipe.weights is None, "left out where --weights is given"),
            "ray": (self.launcher == "ray" or self.ray == RayResources(), "left out without --launcher ray"),
        }
        check(self, rules)
        # Not in Recipe, which rows of earlier versions must fit as well.
        recipe, trained = self.recipe, self.recipe.weights is not None or self.start is not None
        weighted = "ce" in recipe.losses or recipe.class_weighting == Recipe.class_weighting
        frozen = recipe.freeze != "nothing"
        rules = {
            "class_weighting": (weighted, "left out where --losses has no ce"),
            "freeze": (trained or not frozen, "left out without --weights or --start"),
            "layer_decay": (recipe.layer_decay == 1 or not frozen, "left out with --freeze encoder"),
        }
        check(recipe, rules)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Common):
    """Options of experiments.evaluate."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """folder of experiments.compare_decoders, with the weights of its runs"""
    output: Path
    """folder for results and report"""
    where: Annotated[tuple[str, ...], unset("[FIELD=VALUE ...]")] = ()
    """conditions such as decoder=Unet,PAN that finished runs must all meet"""
    output_strides: Annotated[tuple[Literal[8, 16, 32], ...], unset("[8|16|32 ...]")] = ()
    """(default: the run's own)"""
    dilations: Annotated[tuple[Dilation, ...], unset("[NAME ...]")] = ()
    """exact, dense, enlarged (default: the run's own)"""
    alignments: Annotated[tuple[Alignment, ...], unset("[NAME ...]")] = ()
    """none, centred (default: the run's own)"""
    precision: Precision | None = None
    """bf16 and 16 are mixed precision; 16 needs cuda (default: that of training)"""


def choose_device(asked: str, precision: str) -> str:
    """The device asked for, "cpu" or "cuda"; for "auto" the one there is.

    Raises:
        ValueError: no such device here, or a precision that it does not have.
    """
    import torch  # not above: see the head of this file

    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise ValueError("--device cuda: torch sees no CUDA device here")
    device = ("cuda" if available else "cpu") if asked == "auto" else asked
    check_precision(precision, device)
    return device


def check_precision(precision: str, device: str) -> None:
    """Raise ValueError where a device does not have a precision."""
    if precision == "16" and device == "cpu":
        raise ValueError("--precision 16 needs --device cuda; bf16 works on the CPU")
