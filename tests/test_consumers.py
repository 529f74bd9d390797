"""Libraries that build smp or timm models by name: torchgeo, terratorch, torchseg, Lightning. Skipped where absent."""

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import swinx


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


class Samples(Dataset[dict[str, Tensor]]):
    """Random images with masks in which a class is a threshold of the first channel: something to learn."""

    def __init__(self, channels: int) -> None:
        self.images = torch.randn(4, channels, 64, 96, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "mask": (self.images[index, 0] > 0).long()}


def fit(lightning: Any, module: Any, channels: int) -> None:
    samples = DataLoader(Samples(channels), batch_size=2)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, samples, samples)


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize(("name", "decoder"), [("unet", smp.Unet), ("deeplabv3+", smp.DeepLabV3Plus)])
def test_torchgeo_trains_on_twelve_channels(name: str, decoder: Any, freeze: bool) -> None:
    trainers = pytest.importorskip("torchgeo.trainers")
    import lightning.pytorch

    torch.manual_seed(0)
    task = trainers.SemanticSegmentationTask(
        model=name, backbone="swinx_n", weights=None, in_channels=12, task="multiclass", num_classes=2,
        freeze_backbone=freeze,
    )  # fmt: skip
    ours = decoder("swinx_n", encoder_weights=None, in_channels=12, classes=2)
    ours.load_state_dict(task.model.state_dict())
    image = Samples(12)[0]["image"][None]
    with torch.no_grad():
        assert torch.equal(task.eval()(image), ours.eval()(image))
    encoder, rest = copies(task.model.encoder), copies(task.model.decoder)
    fit(lightning.pytorch, task.train(), 12)
    assert changed(task.model.decoder, rest)
    assert bool(changed(task.model.encoder, encoder)) is not freeze


@pytest.mark.parametrize("decoder", ["Unet", "DeepLabV3Plus"])
def test_terratorch_builds_our_encoders(decoder: str) -> None:
    factory = pytest.importorskip("terratorch.models.smp_model_factory").SMPModelFactory()
    torch.manual_seed(0)
    model = factory.build_model(
        task="segmentation", backbone="swinx_n", model=decoder, bands=list(range(6)), in_channels=6, num_classes=3,
        pretrained=False,
    ).eval()  # fmt: skip
    ours = getattr(smp, decoder)("swinx_n", encoder_weights=None, in_channels=6, classes=3).eval()
    ours.load_state_dict({name.partition("model.")[2] or name: value for name, value in model.state_dict().items()})
    image = Samples(6)[0]["image"][None]
    with torch.no_grad():
        assert torch.equal(model(image).output, ours(image))


def test_torchseg_takes_our_names_from_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    torchseg = pytest.importorskip("torchseg")
    from torchseg.encoders.supported import TIMM_ENCODERS

    info = timm.create_model("swinx_n", features_only=True).feature_info
    entry = {"channels": info.channels(), "reduction": info.reduction(), "indices": tuple(range(len(info)))}
    monkeypatch.setitem(TIMM_ENCODERS, "swinx_n", entry)
    torch.manual_seed(0)
    model = torchseg.Unet("swinx_n", encoder_weights=None, in_channels=4, classes=3).eval()
    encoder = timm.create_model("swinx_n", features_only=True, in_chans=4).eval()
    encoder.load_state_dict(model.encoder.model.state_dict())
    image = Samples(4)[0]["image"][None]
    with torch.no_grad():
        assert model(image).shape == (1, 3, 64, 96)
        for one, other in zip(model.encoder(image)[1:], encoder(image), strict=True):
            assert torch.equal(one, other)


def test_lightning_trains_a_model_by_name() -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Segmentation(lightning.LightningModule):  # type: ignore[name-defined, misc] -- imported where it is there
        def __init__(self) -> None:
            super().__init__()
            self.model = smp.Unet("swinx_n", encoder_weights=None, classes=2)

        def training_step(self, batch: dict[str, Tensor]) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch["image"]), batch["mask"])

        def validation_step(self, batch: dict[str, Tensor]) -> None:
            self.log("val_loss", self.training_step(batch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            groups = swinx.parameter_groups(self.model, learning_rate=1e-3, weight_decay=0.05)
            return torch.optim.AdamW(groups)

    torch.manual_seed(0)
    module = Segmentation()
    before = copies(module)
    fit(lightning, module, 3)
    assert changed(module, before) == set(before)
