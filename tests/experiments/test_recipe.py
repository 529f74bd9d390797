"""Every field of the recipe refuses what cannot train, by the name of its option."""

from typing import Any

import pytest

from experiments.training import Recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": ()}, "--losses must be different names among ce, dice, lovasz, got none"),
        ({"losses": ("ce", "focal")}, "--losses must be different names among ce, dice, lovasz, got ce focal"),
        ({"losses": ("ce", "ce")}, "--losses must be different names"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive and finite, got 0.0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be positive and finite, got nan"),
        ({"gradient_clip": float("inf")}, "--gradient-clip must be positive and finite, got inf"),
        ({"weight_decay": -0.1}, "--weight-decay must be at least 0 and below inf, got -0.1"),
        ({"warmup": 1.0}, "--warmup must be at least 0 and below 1, got 1.0"),
        ({"ema_decay": 1.0}, "--ema-decay must be at least 0 and below 1, got 1.0"),
        ({"color": 1.0}, "--color must be at least 0 and below 1, got 1.0"),
        ({"accumulate": 0}, "--accumulate must be at least 1, got 0"),
        ({"validate_every": 0}, "--validate-every must be at least 1, got 0"),
        ({"patience": 0}, "--patience must be at least 1, got 0"),
        ({"crop": (0, 5)}, "--crop must be height and width of at least 1, got 0 5"),
        ({"zoom": (0.5, 2.0)}, "--zoom must be two finite factors of at least 1, rising"),
        ({"zoom": (2.0, 1.5)}, "--zoom must be two finite factors of at least 1, rising"),
        ({"layer_decay": 0.0, "weights": "imagenet"}, "--layer-decay must be above 0 and at most 1, got 0.0"),
        ({"layer_decay": 0.9}, "--layer-decay is for pretrained encoders, got 0.9 without --weights"),
    ],
)
def test_refusals_name_option_rule_and_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared below, whole
        Recipe(**change)
    assert message in str(caught.value)
