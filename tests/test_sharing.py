"""Models saved here and opened by strangers: the same logits, stride, preprocessing and classes, or a refusal."""

import json
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from decoders import CLASSES, DECODERS, build, image
from hub_server import Hub, run
from safetensors.torch import load_file, save_file
from segmentation_models_pytorch.encoders import encoders
from torch import Tensor, nn

import swinx
from swinx import sharing
from swinx.registry import IMAGENET, withdraw

NAMES = [f"class {index}" for index in range(CLASSES)]
PIXELS = {"mean": [0.1, 0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7, 0.8], "input_space": "RGB", "input_range": [0, 255]}
OPTIONS: dict[str, Any] = {"stem": "branch", "window_size": (3, 5), "depths": (1, 1, 2, 1), "drop_path_rate": 0.1}
# Runs in a fresh interpreter, which knows the published encoders only.
OPEN = """
import sys, torch, swinx, segmentation_models_pytorch as smp
results = []
for source in sys.argv[1:]:
    name, _, revision = source.partition("@")
    model = swinx.from_pretrained(name, revision=revision) if revision else swinx.from_pretrained(name)
    encoder = model.encoder
    info = {"names": model.class_names, "pixels": model.preprocessing, "config": repr(encoder.config)}
    info["strides"] = [level.stride for level in encoder.feature_info]
    with torch.no_grad():
        results.append({"output": model(torch.load("image.pt")), **info})
torch.save(results, "out.pt")
smp.Unet("swinx_t")
"""


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def own_model(decoder: str = "Unet", stride: int = 32, **options: Any) -> nn.Module:
    swinx.register_encoder("for_test_sharing", base="swinx_n", **OPTIONS)
    return build(decoder, stride, encoder="for_test_sharing", in_channels=4, **options)


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_a_stranger_opens_a_variant_of_ones_own(tmp_path: Path) -> None:
    model = own_model()
    swinx.set_output_stride(model, 8)
    swinx.save_pretrained(model, tmp_path / "saved", class_names=NAMES, preprocessing=PIXELS)
    x = image(1, 4, 64, 72)
    torch.save(x, tmp_path / "image.pt")
    wanted = [(output(model, x), NAMES)] * 2
    model.segmentation_head[0].bias.data += 1
    swinx.save_pretrained(model, tmp_path / "changed", class_names=NAMES[::-1], preprocessing=PIXELS)
    wanted.append((output(model, x), NAMES[::-1]))
    hub = Hub({})
    for folder, revision in (("saved", "main"), ("changed", "v2")):
        for path in (tmp_path / folder).iterdir():
            hub.add("someone/model", path.name, path.read_bytes(), revision)
    with hub.serve():
        done = run(OPEN, "saved", "someone/model", "someone/model@v2", cwd=tmp_path, endpoint=hub.endpoint)
    for result, (logits, names) in zip(torch.load(tmp_path / "out.pt", weights_only=True), wanted, strict=True):
        assert torch.equal(result["output"], logits)
        assert result["config"] == repr(model.encoder.config)
        assert result["strides"] == [1, 2, 4, 8, 8, 8]
        assert (result["names"], result["pixels"]) == (tuple(names), PIXELS)
    asked = {path for path in hub.asked() if "someone" in path}
    files = ("config.json", "model.safetensors")
    assert asked == {f"/someone/model/resolve/{revision}/{name}" for revision in ("main", "v2") for name in files}
    assert "404" in done.stderr, "what the hub answers to smp is smp's to say"
    assert "does not answer" not in done.stderr


@pytest.mark.parametrize(("decoder", "stride"), [(name, s) for name, entry in DECODERS.items() for s in entry.strides])
def test_every_decoder_opens_at_the_stride_that_it_had(decoder: str, stride: int, tmp_path: Path) -> None:
    """Also where the stride was changed after building."""
    model = build(decoder, DECODERS[decoder].strides[-1])
    swinx.set_output_stride(model, stride)
    swinx.save_pretrained(model, tmp_path)
    opened = swinx.from_pretrained(tmp_path)
    assert not opened.training
    assert type(opened) is type(model)
    assert opened.encoder.output_stride == stride
    side = DECODERS[decoder].side
    x = image(1, 3, side, side + 32)
    assert torch.equal(output(opened, x), output(model, x))
    assert (opened.class_names, opened.preprocessing) == (None, None)


def test_a_model_on_timm_s_name_and_a_shallow_one_open(tmp_path: Path) -> None:
    swinx.register_encoder("for_test_sharing_2", base="swinx_n", stem="shared")
    options: dict[str, Any] = {"encoder_weights": None, "encoder_depth": 3, "decoder_channels": [8, 8, 4]}
    model = smp.Unet("tu-for_test_sharing_2", window_size=(3, 5), aux_params={"classes": 2}, **options)
    swinx.set_output_stride(model, 8)
    swinx.save_pretrained(model, tmp_path)
    withdraw("for_test_sharing_2")
    x = image(2, 3, 64, 96)
    for name in (None, "for_test_sharing_6"):
        opened = swinx.from_pretrained(tmp_path, encoder_name=name)
        for one, other in zip(output(model, x), output(opened, x), strict=True):
            assert torch.equal(one, other)
        swinx.register_encoder(name or "for_test_sharing_2", base="swinx_n", stem="shared")  # which is the same


def test_what_is_opened_is_saved_anew_with_all_that_it_had(tmp_path: Path) -> None:
    model = own_model(aux_params={"classes": 3})
    swinx.save_pretrained(model, tmp_path / "one", class_names=NAMES, preprocessing=PIXELS)
    opened = swinx.from_pretrained(tmp_path / "one")
    for folder, saved in (("two", opened), ("three", nn.DataParallel(torch.compile(opened)))):
        swinx.save_pretrained(saved, tmp_path / folder)
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / folder / name).read_bytes()


def test_the_pretrained_weights_of_a_variant_stay_known(tmp_path: Path) -> None:
    swinx.register_encoder("for_test_sharing_3", base="swinx_t", depths=(2, 2, 6, 2), window_size=8)
    model = smp.FPN("for_test_sharing_3", encoder_weights=None, encoder_depth=3, upsampling=1)
    swinx.save_pretrained(model, tmp_path)
    withdraw("for_test_sharing_3")
    opened = swinx.from_pretrained(tmp_path)
    assert encoders["for_test_sharing_3"]["pretrained_settings"] == encoders["swinx_t"]["pretrained_settings"]
    swinx.register_encoder("for_test_sharing_3", base="swinx_t", window_size=8)  # which is the same
    assert opened.encoder.config.window_size == 8


def test_smp_opens_our_files_and_we_open_smp_s(tmp_path: Path) -> None:
    model, x = own_model("DeepLabV3Plus", 8), image(1, 4, 64, 96)
    swinx.save_pretrained(model, tmp_path / "ours")
    assert torch.equal(output(smp.from_pretrained(tmp_path / "ours"), x), output(model, x))
    model.config["encoder_weights"] = "imagenet"
    model.save_pretrained(tmp_path / "smp")
    assert torch.equal(output(swinx.from_pretrained(tmp_path / "smp"), x), output(model, x))
    withdraw("for_test_sharing")
    with pytest.raises(ValueError, match="encoder for_test_sharing is not registered here: call swinx"):
        swinx.from_pretrained(tmp_path / "smp")


@pytest.mark.parametrize("where", ["relative", "absolute", "repository"])
def test_the_snippets_of_the_model_card_work_as_pasted(where: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    swinx.register_encoder("for_test_sharing", base="swinx_n", **OPTIONS)
    model = build("Unet", 32, encoder="for_test_sharing")
    folder = tmp_path / "my model" if where == "absolute" else Path("my model")
    repo_id = "someone/model" if where == "repository" else None
    metrics = {"mIoU": 0.5}
    swinx.save_pretrained(model, folder, preprocessing=IMAGENET, repo_id=repo_id, metrics=metrics, dataset="none")
    card = (tmp_path / "my model" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert '"mIoU": 0.5' in card
    snippets = [part.partition("```")[0] for part in card.split("```python\n")[1:]]
    if where == "repository":
        hub_paths = {name: str(tmp_path / "my model" / name) for name in ("config.json", "model.safetensors")}
        monkeypatch.setattr(sharing.hub, "require", lambda *_: None)
        monkeypatch.setattr(sharing, "hf_hub_download", lambda repo_id, name, revision: hub_paths[name])
        assert "'someone/model'" in snippets[0]
    names: dict[str, Any] = {}
    exec("\n".join(snippets), names)
    black = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]).view(1, 3, 1, 1).expand(1, 3, 256, 256)
    torch.testing.assert_close(names["output"], output(model, black))
    (folder / "README.md").write_text("mine")
    swinx.save_pretrained(model, folder)
    assert (folder / "README.md").read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_a_model_that_was_replaced_by_half_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swinx.save_pretrained(build("Unet", 32), tmp_path, class_names=NAMES)

    def rename_weights(old: Path, new: Path) -> None:
        if new.name != "model.safetensors":
            raise KeyboardInterrupt
        old.rename(new)

    monkeypatch.setattr(sharing.os, "replace", rename_weights)
    with pytest.raises(KeyboardInterrupt):
        swinx.save_pretrained(build("Unet", 32, seed=1), tmp_path, class_names=NAMES[::-1])
    with pytest.raises(FileNotFoundError, match=r"without config\.json"):
        swinx.from_pretrained(tmp_path)


def refused_saving(model: Any, message: str, tmp_path: Path, **options: Any) -> None:
    with pytest.raises(ValueError, match=message):
        swinx.save_pretrained(model, tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_what_could_not_be_opened_is_not_saved(tmp_path: Path) -> None:
    model = build("Unet", 32)
    refused_saving(model.encoder, "model must be one of smp's Unet, .*, got SwinXEncoder", tmp_path)
    with pytest.raises(ValueError, match=r"model must be one of smp's .* with a swinx encoder, got str$"):
        swinx.save_pretrained(str(tmp_path / "none"), model)
    refused_saving(smp.Unet("resnet18", encoder_weights=None), "model must contain one SwinXEncoder, got 0", tmp_path)
    refused_saving(model, "class_names must be 5 names, one of each class, got 2", tmp_path, class_names=["a", "b"])
    for names in ([*NAMES[1:], ""], "abcde"):
        refused_saving(model, "class_names must be a list of names, got ", tmp_path, class_names=names)
    refused_saving(model, "preprocessing mean must be 3 numbers", tmp_path, preprocessing=PIXELS)
    for key, length in (("mean", 3), ("std", 3), ("input_range", 2)):
        unknown = IMAGENET | {key: [1.0] * (length - 1) + [float("nan")]}
        refused_saving(model, f"preprocessing {key} must be {length} numbers", tmp_path, preprocessing=unknown)
    activated = build("Unet", 32, activation=nn.Sigmoid)
    refused_saving(activated, "as smp builds it from its options, got another segmentation_head.2.activation", tmp_path)
    exchanged = build("Unet", 32)
    blocks = exchanged.encoder.layers[0].blocks
    blocks[0], blocks[1] = blocks[1], blocks[0]
    refused_saving(exchanged, r"got another encoder\.layers\.0\.blocks\.0, encoder\.layers\.0\.blocks\.1$", tmp_path)
    model.config["encoder_name"] = "resnet18"
    refused_saving(model, "model must have an encoder of .*swinx_n.*, got resnet18", tmp_path)
    model.config["encoder_name"] = "swinx_n"
    model.generate_model_card = lambda **_: "a card of another form"
    refused_saving(model, "smp's model card must hold its snippet", tmp_path)
    del model.generate_model_card
    model.encoder.layers[0].blocks[0].mlp.fc1 = nn.Sequential(model.encoder.layers[0].blocks[0].mlp.fc1)
    refused_saving(model, "got another encoder.layers.0.blocks.0.mlp.fc1", tmp_path)
    broken = build("DeepLabV3", 16)
    broken.encoder.make_dilated(8)  # its masks are too large now; set_output_stride keeps their size
    refused_saving(broken, "got another segmentation_head.1", tmp_path)


def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        FileExistsError, match=f"^directory must be a folder, got {tmp_path / 'file'}, which is a file$"
    ):
        swinx.save_pretrained(build("Unet", 32), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


HUGE = {
    "depths": [2, 2, 2, 1022], "window_size": 65, "embed_dim": 2**17, "num_heads": [1, 2, 4, 10**400],
    "drop_path_rate": float("nan"), "depths ": [1],
}  # fmt: skip


@pytest.mark.parametrize("key", HUGE)
def test_an_encoder_of_useless_size_is_refused(key: str, tmp_path: Path) -> None:
    swinx.save_pretrained(own_model(), tmp_path)
    withdraw("for_test_sharing")
    own = json.loads((tmp_path / "config.json").read_text())["_swinx"]
    with pytest.raises(ValueError, match=f"{tmp_path}.*(must be|must hold|no number)"):
        swinx.from_pretrained(edited(tmp_path, _swinx=own | {"config": own["config"] | {key: HUGE[key]}}))
    assert "for_test_sharing" not in encoders


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_model_class": "from_pretrained"}, "_model_class must be one of Unet, "),
        ({"_model_class": ["Unet"]}, "_model_class must be one of Unet, "),
        ({"encoder_name": "../../x"}, "encoder_name must be letters"),
        ({"encoder_name": "resnet18"}, "its encoder resnet18 has the name of an encoder of smp's: .*'resnet182'"),
        ({"encoder_name": "tu-resnet10t"}, "name must not be that of a model in timm's registry, got 'resnet10t'"),
        ({"encoder_name": "timm-x"}, "name must not begin with 'tu-' or 'timm-'"),
        ({"encoder_name": "swinx_t"}, "its encoder swinx_t has another configuration than the encoder of that name"),
        ({"checkpoint_path": "/etc/passwd"}, r"options must be arguments of smp's Unet, got \['checkpoint_path'\]"),
        ({"encoder_name": "tu-x", "pretrained_cfg_overlay": {"file": "x"}}, "options must be arguments of smp's Unet"),
        ({"classes": 10**9}, "classes must be at most 65536"),
        ({"classes": 60000}, "model.safetensors does not fit config.json in 2 entries: segmentation_head"),
        ({"decoder_channels": [65536] * 5}, "model.safetensors does not fit config.json"),
        ({"decoder_channels": [1] * 65}, "decoder_channels must be a short list"),
        ({"decoder_channels": [[[[[1]]]]]}, "decoder_channels must be a short list"),
        ({"decoder_channels": []}, "[dD]epth"),
        ({"activation": "x" * 201}, "activation must be at most 200 characters"),
        ({"activation": "os.system"}, "Activation should be"),
        ({"_swinx": 3}, "_swinx must be an object"),
        ({"_swinx": {"output_stride": 4}}, "output_stride must be 8, 16 or 32, got 4"),
        ({"_swinx": {"class_names": ["a"]}}, "class_names must be 5 names"),
        ({"_swinx": {"class_names": [["a"]] * 5}}, "class_names must be a list of names"),
        ({"_swinx": {"class_names": ["a" * 201] * 5}}, "class_names must be at most 200 characters long"),
        ({"_swinx": {"config": {"embed_dim": 16}}}, "config must be one of an encoder: .*depths"),
        ({"_swinx": {"preprocessing": PIXELS | {"input_space": "HSV"}}}, "input_space must be RGB or BGR, got 'HSV'"),
        ({"_swinx": {"preprocessing": {"mean": [1]}}}, "preprocessing must hold mean, std, input_space, input_range"),
        ({"_swinx": {"preprocessing": PIXELS | {"std": [1, 1, 1, 0]}}}, "preprocessing std must be above 0"),
        ({"_swinx": {"weights_of": "../x"}}, "weights_of must be the name of an encoder"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_file_that_asks_for_what_no_model_has_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    swinx.save_pretrained(own_model(), tmp_path)
    before = dict(encoders)
    withdraw("for_test_sharing")
    if "_swinx" in changes and isinstance(changes["_swinx"], dict):
        own = json.loads((tmp_path / "config.json").read_text())["_swinx"]
        changes = {"_swinx": own | changes["_swinx"]}
    with pytest.raises(ValueError, match=message):
        swinx.from_pretrained(edited(tmp_path, **changes))
    assert encoders.keys() == before.keys() - {"for_test_sharing"}


def test_a_model_of_another_library_is_sent_to_smp(tmp_path: Path) -> None:
    smp.Unet("resnet18", encoder_weights=None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"its encoder resnet18 is not of swinx: open it by smp\.from_pretrained"):
        swinx.from_pretrained(tmp_path)


def test_masks_of_useless_size_are_refused(tmp_path: Path) -> None:
    swinx.save_pretrained(build("FPN", 32), tmp_path)
    with pytest.raises(ValueError, match="upsampling must be at most 32, got 33"):
        swinx.from_pretrained(edited(tmp_path, upsampling=33))


def test_files_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"source must hold .* without config\.json"):
        swinx.from_pretrained(tmp_path)
    message = "^source must be a directory, or owner/name of a repository, got '.*nothing', which does not exist$"
    with pytest.raises(FileNotFoundError, match=message):
        swinx.from_pretrained(tmp_path / "nothing")
    swinx.save_pretrained(build("Unet", 32), tmp_path)
    message = "the directory that save_pretrained wrote, got '.*', which is a file; .* call swinx.load_checkpoint$"
    with pytest.raises(FileNotFoundError, match=message):
        swinx.from_pretrained(tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(FileNotFoundError, match=message):  # it looks like a repository's name
        swinx.from_pretrained(f"{tmp_path.name}/model.safetensors")
    good = (tmp_path / "config.json").read_text()
    for text, message in (
        ("[" * 10**5, "must be JSON"),
        ("[]", "must hold an object"),
        (" " * 2**20 + good, "must be at most"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            swinx.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(good)
    weights = load_file(tmp_path / "model.safetensors")
    (key, *_) = weights
    save_file({name: value for name, value in weights.items() if name != key}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit config\.json in 1 entries"):
        swinx.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"[hH]eader"):
        swinx.from_pretrained(tmp_path)


@pytest.mark.parametrize("prefix", ["", "tu-"])
def test_a_refused_file_leaves_no_name_behind(prefix: str, tmp_path: Path) -> None:
    swinx.register_encoder("for_test_sharing_4", base="swinx_t", depths=(2, 2, 6, 2), window_size=8)
    model = smp.FPN(f"{prefix}for_test_sharing_4", encoder_weights=None, encoder_depth=3, upsampling=1)
    swinx.save_pretrained(model, tmp_path)
    edited(tmp_path, classes=2)
    message = r"does not fit config\.json in 2 entries: segmentation_head\.0\.bias: \(1,\) for \(2,\)"
    with pytest.raises(ValueError, match=message):
        swinx.from_pretrained(tmp_path, encoder_name="for_test_sharing_5")
    assert "for_test_sharing_5" not in encoders
    assert not timm.is_model("for_test_sharing_5")
    assert timm.list_models("for_test_sharing_5*", include_tags=True) == []
    swinx.register_encoder("for_test_sharing_5", base="swinx_n")
    assert timm.list_models("for_test_sharing_5*", include_tags=True) == ["for_test_sharing_5"]
    assert timm.create_model("for_test_sharing_5", features_only=True).feature_info.channels()[-1] == 256
    withdraw("for_test_sharing_5")
    swinx.register_encoder("for_test_sharing_5", base="swinx_t")
    tags = ("ms_in1k", "ms_in22k", "ms_in22k_ft_in1k")
    assert timm.list_pretrained("for_test_sharing_5*") == [f"for_test_sharing_5.{tag}" for tag in tags]
    edited(tmp_path, classes=1)
    with pytest.raises(ValueError, match="registered in this session"):
        swinx.from_pretrained(tmp_path, encoder_name="for_test_sharing_5")
    assert timm.is_model("for_test_sharing_5"), "a refused file takes no name away"


def test_a_name_that_is_another_one_here_can_be_changed(tmp_path: Path) -> None:
    model, x = own_model(), image(1, 4, 64, 64)
    swinx.save_pretrained(model, tmp_path)
    withdraw("for_test_sharing")
    swinx.register_encoder("for_test_sharing", base="swinx_n")
    with pytest.raises(ValueError, match=r"registered in this session: .* such as encoder_name='for_test_sharing2'"):
        swinx.from_pretrained(tmp_path)
    opened = swinx.from_pretrained(tmp_path, encoder_name="theirs_for_test_sharing")
    assert torch.equal(output(opened, x), output(model, x))
    assert encoders["for_test_sharing"]["params"]["config"].depths == (2, 2, 2, 2)
