"""Every option refuses what cannot be, by its name; settings survive being rows."""

import json
import subprocess
import sys
from typing import Any

import pytest

from experiments.records.options import Inference, RayResources, Recipe, Scoring
from experiments.records.settings import EXECUTION, Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": ()}, "--losses must be different names among ce, dice, lovasz, got none"),
        ({"losses": ("ce", "focal")}, "--losses must be different names among ce, dice, lovasz, got ce focal"),
        ({"losses": ("ce", "ce")}, "--losses must be different names"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive and finite, got 0.0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be positive and finite, got nan"),
        ({"gradient_clip": float("inf")}, "--gradient-clip must be positive and finite, got inf"),
        ({"weight_decay": -0.1}, "--weight-decay must be at least 0 and finite, got -0.1"),
        ({"warmup": 1.0}, "--warmup must be at least 0 and below 1, got 1.0"),
        ({"ema_decay": 1.0}, "--ema-decay must be at least 0 and below 1, got 1.0"),
        ({"color": 1.0}, "--color must be at least 0 and below 1, got 1.0"),
        ({"accumulate": 0}, "--accumulate must be at least 1, got 0"),
        ({"validate_every": 0}, "--validate-every must be at least 1, got 0"),
        ({"crop": (0, 5)}, "--crop must be height and width of at least 16, got 0 5"),
        ({"zoom": (0.5, 2.0)}, "--zoom must be two finite factors of at least 1, rising"),
        ({"zoom": (2.0, 1.5)}, "--zoom must be two finite factors of at least 1, rising"),
        ({"layer_decay": 0.0, "weights": "imagenet"}, "--layer-decay must be above 0 and at most 1, got 0.0"),
    ],
)
def test_refusals_name_option_rule_and_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared below, whole
        Recipe(**change)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (Inference, {"overlap": 1.0}, "--overlap must be at least 0 and below 1, got 1.0"),
        (Inference, {"tile": (0, 4)}, "--tile must be height and width of at least 1, got 0 4"),
        (Inference, {"scales": ()}, "--scales must be one or more positive finite factors, got none"),
        (
            Inference,
            {"scales": (1.0, float("inf"))},
            "--scales must be one or more positive finite factors, got 1.0 inf",
        ),
        (RayResources, {"cpus": 0}, "--ray.cpus must be more than 0, got 0"),
        (RayResources, {"gpus": 1.5}, "--ray.gpus must be a part of one GPU or a whole number, got 1.5"),
        (RayResources, {"retries": -1}, "--ray.retries must be at least 0, got -1"),
    ],
)
def test_other_refusals(kind: type, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared below, whole
        kind(**change)
    assert message in str(caught.value)


def test_settings_come_back_from_their_row() -> None:
    settings = Settings(
        *("scenes", "0123", 61, 83, 25, 7, "bf16", "cpu"),
        recipe=Recipe(losses=("ce", "dice"), crop=(31, 29), zoom=(1.0, 1.5)),
        inference=Inference(tile=(31, 29), scales=(0.5, 1.0)),
        scoring=Scoring("native", ("jpeg",)),
        evaluate_at=(0, 10),
        start="runs/a",
    )
    row = json.loads(json.dumps(settings.as_row()))
    assert Settings.of(row) == settings
    assert not set(EXECUTION) & set(row)
    del row["zoom"], row["evaluate_at"]
    with pytest.raises(ValueError, match=r"a row lacks zoom: an older version made it"):
        Settings.of(row)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": "x"},
        {"learning_rate": True},
        {"scales": [[1.0]]},
        {"zoom": [1]},
        {"crop": [31, 29.5]},
        {"tile": {"a": 1}},
        {"losses": ["ce", "l2"]},
        {"steps": None},
        {"precision": 32},
        {"corruptions": "jpeg"},
        {"evaluate_at": [None]},
        {"groups_id": 5},
    ],
)
def test_settings_of_other_types_are_refused_by_name(change: dict[str, Any]) -> None:
    settings = Settings("scenes", "0123", 61, 83, 25, 7, "bf16", "cpu")
    assert Settings.of(settings.as_row() | {"learning_rate": 1}).recipe.learning_rate == 1, "a whole number is a number"
    (name,) = change
    with pytest.raises(ValueError, match=f"^{name} has a value of another type: ") as caught:
        Settings.of(settings.as_row() | change)
    assert str(change[name]) in str(caught.value)


def test_help_does_not_wait_for_torch() -> None:
    commands = ("compare_decoders", "ablate", "evaluate", "predict", "report")
    code = f"import sys, {', '.join(f'experiments.{name}' for name in commands)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
