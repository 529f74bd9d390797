"""Pretrained weights by smp's own path: the real huggingface_hub downloads from a server on this machine."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from hub_server import COMMIT, Hub, run
from layouts import EMBED, backbone, by_smp, config, head
from safetensors.torch import save
from torch import Tensor, nn

import swinx
from swinx import SwinXEncoder
from swinx import hub as swinx_hub

# What swinx_t downloads for each tag; a test of the registry compares every name with timm's.
REPOSITORIES = {
    "imagenet": "timm/swin_tiny_patch4_window7_224.ms_in1k",
    "in22k": "timm/swin_tiny_patch4_window7_224.ms_in22k",
    "in22k_ft_in1k": "timm/swin_tiny_patch4_window7_224.ms_in22k_ft_in1k",
}

# (name, weights, arguments of smp.Unet); `small` is swinx_t with the architecture of layouts.py.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(("small", tag, {}) for tag in REPOSITORIES),
    ("small", "imagenet", {"in_channels": 1}),
    ("small", "imagenet", {"in_channels": 4}),
    ("small", "imagenet", {"encoder_depth": 3, "decoder_channels": [4, 4, 4]}),
    ("small_branch", "in22k", {"in_channels": 4}),
]

# Runs in a fresh interpreter, because huggingface_hub reads its environment when it is imported.
WORKER = """
import json, sys, torch
import segmentation_models_pytorch as smp
import swinx
from layouts import config
from segmentation_models_pytorch.encoders import encoders

cases, out = json.loads(sys.argv[1]), sys.argv[2]
encoders["small"] = {**encoders["swinx_t"], "params": {"config": config()}}
swinx.register_encoder("small_branch", base="small", stem="branch")
results = []
for name, weights, arguments in cases:
    model = smp.Unet(name, encoder_weights=weights, **{"decoder_channels": [4] * 5, **arguments}).eval()
    image = torch.randn(1, arguments.get("in_channels", 3), 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        results.append({"state": model.encoder.state_dict(), "image": image, "levels": model.encoder(image)})
results.append({"state": swinx.from_pretrained("someone/model", revision="v2").state_dict()})
torch.save(results, out)
"""
OFFLINE = "import os\nos.environ['HF_HUB_OFFLINE'] = '1'\n"


def last_norm(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"norm.{end}": torch.randn(EMBED * 8, generator=generator) for end in ("weight", "bias")}


def served(tag: str) -> dict[str, Tensor]:
    """A timm state dict with a head, other weights for each tag."""
    seed = list(REPOSITORIES).index(tag)
    return {**backbone(seed=seed), **last_norm(seed), **head("head.fc")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `downloaded` leaves the hub's cache."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """The model that the hub has as branch v2 of someone/model."""
    return smp.Unet("swinx_n", encoder_weights=None, decoder_channels=[4] * 5)


@pytest.fixture(scope="module")
def downloaded(folder: Path, published: nn.Module) -> tuple[Hub, list[dict[str, Any]]]:
    """The server after all cases have been built from it, and their encoders' weights and features."""
    hub = Hub({})
    for tag, repository in REPOSITORIES.items():
        settings = {"pretrained_cfg": {"mean": [0.485, 0.456, 0.406]}}  # nested as in timm's
        hub.add(repository, "config.json", json.dumps(settings).encode())
        hub.add(repository, "model.safetensors", save(served(tag)))
    swinx.save_pretrained(published, folder / "saved")
    for name in ("config.json", "model.safetensors"):
        hub.add("someone/model", name, (folder / "saved" / name).read_bytes(), "v2")
    with hub.serve():
        done = run(WORKER, json.dumps(CASES), str(folder / "results.pt"), cwd=folder, endpoint=hub.endpoint)
    assert done.returncode == 0, done.stderr
    return hub, torch.load(folder / "results.pt", weights_only=True)


def test_smp_asks_for_the_two_files_of_timm_s_repositories(downloaded: tuple[Hub, list[dict[str, Any]]]) -> None:
    hub, _ = downloaded
    assert hub.asked() == hub.files.keys()
    fetched = [path for method, path in hub.requests if method == "GET"]
    assert len(fetched) == len(set(fetched)) == len(hub.files), "each file once; then the cache serves it"


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda i: "-".join(map(str, CASES[i])))
def test_the_encoder_has_the_served_weights_and_their_features(
    number: int, downloaded: tuple[Hub, list[dict[str, Any]]]
) -> None:
    name, tag, arguments = CASES[number]
    result = downloaded[1][number]
    in_channels, depth = arguments.get("in_channels", 3), arguments.get("encoder_depth", 5)
    built = config(stem="branch" if "branch" in name else "shared")
    encoder = SwinXEncoder(built, in_channels=in_channels, depth=depth).eval()
    weights = {re.sub(r"^norm\.", "norms.3.", key): value for key, value in served(tag).items()}
    weights["patch_embed.proj.weight"] = by_smp(weights["patch_embed.proj.weight"], in_channels)
    state = encoder.state_dict()
    # timm's files hold neither: norms of levels stay as built, and the branch's convolutions are the worker's draw.
    state |= {key: value for key, value in result["state"].items() if key.startswith("patch_embed.conv")}
    state |= {key: value for key, value in weights.items() if key in state}
    assert result["state"].keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(result["state"][key], value), key
    nn.Module.load_state_dict(encoder, state)
    with torch.no_grad():
        for level, wanted in zip(result["levels"], encoder(result["image"]), strict=True):
            torch.testing.assert_close(level, wanted, rtol=1e-5, atol=1e-5)


def test_tags_give_different_weights(downloaded: tuple[Hub, list[dict[str, Any]]]) -> None:
    last = [result["levels"][-1] for result in downloaded[1][: len(REPOSITORIES)]]
    assert not torch.allclose(last[0], last[1], atol=0.1)
    assert not torch.allclose(last[1], last[2], atol=0.1)


@pytest.mark.parametrize("offline", [False, True])
def test_the_cache_serves_where_the_hub_does_not(
    offline: bool, folder: Path, published: nn.Module, downloaded: tuple[Hub, list[dict[str, Any]]]
) -> None:
    hub, results = downloaded  # it has shut down
    code, again = OFFLINE * offline + WORKER, folder / "again.pt"
    done = run(code, json.dumps(CASES[:1]), str(again), cwd=folder, endpoint=hub.endpoint)
    assert done.returncode == 0, done.stderr
    encoder, model = (result["state"] for result in torch.load(again, weights_only=True))
    for state, wanted in ((encoder, results[0]["state"]), (model, published.state_dict())):
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("cached", [("config.json",), ("model.safetensors",), ("config.json", "model.safetensors")])
def test_the_hub_is_asked_where_the_cache_lacks_a_file(
    cached: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And waited for as long as the environment says."""
    repository, waited = tmp_path / "models--someone--model", []
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    for name in cached:
        (repository / "snapshots" / COMMIT / name).touch()

    def silent(url: str, timeout: float) -> None:
        waited.append(timeout)
        raise TimeoutError

    monkeypatch.setattr(swinx_hub, "get_hf_file_metadata", silent)
    missing = r"does not answer, and the cache lacks .* of someone/model: .*do that"
    for revision, seconds, wanted in (("main", "7.5", 7.5), ("main", "", 2.0), ("v2", "3", 3.0)):
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", seconds)
        arguments = ("someone/model", ("config.json", "model.safetensors"), revision, "do that", tmp_path)
        if len(cached) == 2 and revision == "main":
            swinx_hub.require(*arguments)
            assert not waited
        else:
            with pytest.raises(FileNotFoundError, match=missing):
                swinx_hub.require(*arguments)
            assert waited.pop() == wanted


# Runs in a fresh interpreter, without a hub.
REFUSED = """
import json, time, timm, swinx, segmentation_models_pytorch as smp
calls = {
    "smp": lambda: smp.Unet("swinx_t"),
    "timm": lambda: timm.create_model("swinx_t.ms_in22k", pretrained=True),
    "ours": lambda: swinx.from_pretrained("someone/model"),
}
said = {}
for name, call in calls.items():
    start = time.perf_counter()
    try:
        call()
    except FileNotFoundError as error:
        said[name] = (str(error), time.perf_counter() - start)
print(json.dumps(said))
"""


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_connection_the_error_says_at_once_what_to_do(offline: bool, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)  # and never accepts
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = run(OFFLINE * offline + REFUSED, cwd=tmp_path, endpoint=endpoint)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said.keys() == {"smp", "timm", "ours"}
    for name, (message, seconds) in said.items():
        assert seconds < 10, f"{name}: 2 seconds for the hub, and some for a busy machine; its own retries take 24"
        reason = "HF_HUB_OFFLINE is set in the environment" if offline else f"{endpoint} does not answer"
        assert message.startswith(f"{reason}, and the cache lacks ")
        assert "\n" not in message
        assert str(tmp_path / "home" / "hub") in message
    assert "encoder_weights=None" in said["smp"][0]
    assert "models--timm--swin_tiny_patch4_window7_224.ms_in1k" in said["smp"][0]
    assert "pretrained_cfg_overlay" in said["timm"][0]
