"""Contrasts: what texts mean among configurations, worked by hand, and what is refused."""

from pathlib import Path

import pytest

from experiments.statistics.contrasts import pairs, planned, read_contrasts

SWIN, TIMM = "swinx_n", "tu-swin_tiny_patch4_window7_224"


def fields(decoder: str, stride: int, **changes: object) -> dict[str, object]:
    own: dict[str, object] = {"encoder": SWIN, "stem": "inline", "decoder": decoder, "output_stride": stride}
    own |= {"dilation": "exact", "window": None, "alignment": "none", "inference": "whole", "step": 300}
    return own | changes


GRID = [
    (f"{decoder}-os{stride}-{rule}", fields(decoder, stride, dilation=rule))
    for decoder in ("Unet", "FPN", "PSPNet")
    for stride, rules in ((8, ("exact", "dense", "enlarged")), (16, ("exact", "dense")), (32, ("exact",)))
    for rule in rules
    if (decoder, stride, rule) != ("PSPNet", 8, "dense")
]


def weights(text: str, configurations: list[tuple[str, dict[str, object]]] = GRID) -> dict[str, float]:
    return dict(planned(text, configurations).weights)


def test_a_contrast_is_the_mean_over_matched_configurations() -> None:
    contrast = planned("exact-dense@os8", GRID)
    assert contrast.name == "exact-dense@os8"
    expected = {"Unet-os8-exact": 0.5, "Unet-os8-dense": -0.5, "FPN-os8-exact": 0.5, "FPN-os8-dense": -0.5}
    assert contrast.weights == expected
    assert contrast.note == "mean over 2 pairs; without a partner: PSPNet-os8-exact"
    both = planned("exact-dense", GRID)
    assert sum(weight > 0 for weight in both.weights.values()) == 5
    assert both.weights["PSPNet-os16-exact"] == pytest.approx(1 / 5)
    assert "Unet-os32-exact" in both.note


@pytest.mark.parametrize(
    "text",
    [
        "exact+os8-os32@Unet",
        "dilation=exact+output_stride=8 - output_stride=os32 @ decoder=Unet",
        " os8 + exact-os32@Unet ",
        "exact+os8-exact+os32@Unet,step300,w=own".replace(",w=own", ",window=own"),
    ],
)
def test_sides_may_join_terms_and_name_different_fields(text: str) -> None:
    contrast = planned(text, GRID)
    assert contrast.weights == {"Unet-os8-exact": 1.0, "Unet-os32-exact": -1.0}
    assert contrast.note == "one pair"


def test_fields_of_both_sides_are_left_out_of_the_match() -> None:
    """dense at 16 minus exact at 8: both fields are named on both sides, the decoder is matched."""
    third = pytest.approx(1 / 3)
    assert weights("dense+os16-exact+os8") == {
        f"{decoder}-{name}": value if sign > 0 else pytest.approx(-1 / 3)
        for decoder in ("Unet", "FPN", "PSPNet")
        for name, sign, value in (("os16-dense", 1, third), ("os8-exact", -1, third))
    }


def test_conditions_of_one_field_are_alternatives_and_of_others_all_hold() -> None:
    half = weights("exact-dense@os8,os16,Unet")
    assert half == {"Unet-os8-exact": 0.5, "Unet-os16-exact": 0.5, "Unet-os8-dense": -0.5, "Unet-os16-dense": -0.5}
    assert len(weights("Unet-FPN@os8,os16,exact")) == 4


def test_names_may_hold_the_minus_sign() -> None:
    made = [(f"{encoder} {step}", fields("Unet", 32, encoder=encoder, step=step)) for encoder in (SWIN, TIMM, "tu-x")
            for step in (0, 300)]  # fmt: skip
    assert weights(f"{SWIN}-{TIMM}@step0", made) == {f"{SWIN} 0": 1, f"{TIMM} 0": -1}
    assert weights(f"tu-x-{TIMM}@step=300", made) == {"tu-x 300": 1, f"{TIMM} 300": -1}
    assert weights(f"encoder={TIMM}+step0-encoder=tu-x+step300", made) == {f"{TIMM} 0": 1, "tu-x 300": -1}
    odd = [(name, {"encoder": name}) for name in ("a", "a-b", "b-c", "c")]
    with pytest.raises(ValueError, match="may be cut as a minus b-c or as a-b minus c"):
        weights("a-b-c", odd)


def test_windows_and_inference_are_found_by_value() -> None:
    made = [(f"{w} {i}", fields("Unet", 32, window=w, inference=i)) for w in (None, 8) for i in ("whole", "flip")]
    assert weights("w8-own@flip", made) == {"8 flip": 1, "None flip": -1}
    assert weights("flip-whole@window=8", made) == {"8 flip": 1, "8 whole": -1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exact", "must be A-B or A-B@CONDITION,CONDITION"),
        ("", "must be A-B"),
        ("-dense", "'' is no value"),
        ("exakt-dense", "'exakt' is no value; there are encoder: swinx_n; .*dilation: exact, dense, enlarged"),
        ("exact-dense@os9", "'os9' is no value; there are .*output_stride: os8, os16, os32"),
        ("exact-dense@", "'' is no value"),
        ("exact-dense@8", "'8' is no value"),
        ("rule=exact-dense", "'rule=exact' is no value"),
        ("a-b-c", "'a' is no value; there are encoder: swinx_n"),
        ("exact-exact", "both sides are Unet-os8-exact"),
        ("exact+dense-enlarged", r"exact\+dense names a field twice"),
        ("exact-dense@dense", "no configuration has exact there"),
        ("exact+os32-os8", r"os8 may be Unet-os8-exact or Unet-os8-dense; let it name dilation too"),
        ("Unet-os8+exact", r"Unet may be Unet-os8-exact or"),
        ("exact-dense@os32", "no configuration has dense there; there are Unet-os8-exact, .*PSPNet-os32-exact"),
        ("exact-enlarged@os16", "no configuration has enlarged there"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_choices(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        weights(text)
    assert str(caught.value).startswith(f"--contrasts {text}")


def test_a_value_of_two_fields_is_refused_until_its_field_is_named() -> None:
    made = [
        (f"{s} {a}", fields("Unet", 8, stem=s, alignment=a)) for s in ("none", "inline") for a in ("none", "centred")
    ]
    with pytest.raises(ValueError, match="none may be stem=none or alignment=none"):
        weights("centred-none", made)
    assert weights("centred-alignment=none@inline", made) == {"inline centred": 1, "inline none": -1}
    alike = [("a", {"decoder": "Unet", "encoder": "x"}), ("b", {"decoder": "FPN", "encoder": "y"})]
    with pytest.raises(ValueError, match="no two configurations are alike in all that it does not name, among a and b"):
        weights("Unet-FPN", alike)
    with pytest.raises(ValueError, match="both sides are b; let them name the same fields"):
        weights("FPN-y", alike)


def test_steps_are_compared_only_where_one_is_named() -> None:
    """A budget is no step: earlier steps of two budgets would be averaged in."""
    ends = [(f"steps {steps}", {"decoder": "Unet", "steps": str(steps)}) for steps in (2, 4)]
    over = [(f"{label} step {step}", {**there, "step": step}) for label, there in ends for step in (0, 2)]
    assert planned("steps=4-steps=2", ends, over).weights == {"steps 4": 1, "steps 2": -1}
    at_two = planned("steps=4-steps=2@step2", ends, over)
    assert at_two.weights == {"steps 4 step 2": 1, "steps 2 step 2": -1}
    assert planned("step2-step0@steps=4", ends, over).weights == {"steps 4 step 2": 1, "steps 4 step 0": -1}
    with pytest.raises(ValueError, match=r"'step3' is no value; there are .*step: own, step0, step2"):
        planned("step3-step0", ends, over)
    with pytest.raises(ValueError, match=r"'step2' is no value; there are decoder: Unet; steps: 2, 4$"):
        planned("step2-step0", ends)


def test_contrasts_and_labels_are_given_once() -> None:
    with pytest.raises(ValueError, match="each may be given once, got exact-dense more than once"):
        read_contrasts(["exact-dense", "Unet-FPN", " exact-dense"])
    with pytest.raises(ValueError, match="labels of configurations must differ"):
        planned("Unet-FPN", [*GRID, GRID[0]])
    with pytest.raises(ValueError, match=r"'Unet' is no value; there are $"):
        planned("Unet-FPN", [])


def test_contrasts_come_from_the_command_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "planned.txt"
    path.write_text("\ufeff# of dilation\nexact-dense@os8  # the main one\n\n  Unet-FPN\r\n", encoding="utf-8")
    assert read_contrasts([str(path), " os8-os16 "]) == ["exact-dense@os8", "Unet-FPN", "os8-os16"]
    path.write_bytes(b"Unet-\xff")
    with pytest.raises(ValueError, match="the file must be UTF-8"):
        read_contrasts([str(path)])
    assert read_contrasts([]) == []
    assert read_contrasts(["Unet-" + "x" * 5000]) == ["Unet-" + "x" * 5000], "too long for a file's name"


def test_all_pairs_are_each_once_in_order() -> None:
    assert [one.name for one in pairs(["a", "b", "c"])] == ["a - b", "a - c", "b - c"]
    assert pairs(["a", "b"])[0].weights == {"a": 1, "b": -1}
    assert pairs(["a"]) == []
