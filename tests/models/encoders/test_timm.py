"""Image encoders of timm: a training step of many architectures, weights, position tables, and messages."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from refseg.analysis.synthetic import dummy_batch
from refseg.errors import CheckpointError, ConfigError, DataError
from refseg.models import FusedEncoder, ReferringDataPreprocessor, TimmEncoder
from refseg.models.encoders import timm as timm_encoder

VIT = dict(depth=1, embed_dim=32, num_heads=2)
CONVNEXT = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
TRAINED = {
    "convnext_atto": CONVNEXT,
    "edgenext_xx_small": dict(depths=(1, 1, 1, 1)),
    "efficientvit_b0": {},
    "hrnet_w18_small": {},
    "mobilenetv3_small_050": {},
    "mobilevit_xxs": {},
    "pvt_v2_b0": {},
    "regnety_002": {},
    "resnet18": dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32)),
    "swin_tiny_patch4_window7_224": dict(depths=(1, 1, 1, 1), embed_dim=12),
    "tf_efficientnet_lite0": {},
    "beit_base_patch16_224": {**VIT, "img_size": (64, 96)},
    "eva02_tiny_patch14_224": VIT,
    "vit_base_patch16_siglip_224": VIT,
    "vit_small_patch14_dinov2": VIT,
    "vit_small_patch16_dinov3": VIT,
    "vit_tiny_patch16_224": VIT,
}
BERT = dict(
    type="TextEncoder",
    config=dict(
        model_type="bert",
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ),
)


def images_of(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_step(name: str) -> None:
    """Late fusion: all that is trained has a gradient, and a small step along it makes the loss smaller."""
    torch.manual_seed(0)
    vision = dict(type="TimmEncoder", name=name, options=TRAINED[name])
    model = FusedEncoder(vision=vision, text=BERT, fusion=dict(type="PWAM"), fused_stages=(3,), out_stages=(1, 2, 3))
    data = dummy_batch(shape=(64, 96), num_images=2, expressions_per_image=2, num_words=4, vocab_size=50)
    batch = ReferringDataPreprocessor()(data)["batch"]
    model.train()

    def loss() -> Tensor:
        levels = model(batch)[0].levels
        return sum((level - 1).square().mean() for level in levels)

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = loss()
    before.backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None] == []
    squares = sum(float(p.grad.square().sum()) for _, p in trained)
    optimizer.param_groups[0]["lr"] = 0.01 * float(before.detach()) / squares  # a decrease of about 1 percent
    optimizer.step()
    with torch.no_grad():
        assert loss() < before


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which reports of loaded weights are added."""
    lines: list[str] = []
    monkeypatch.setattr(timm_encoder, "print_log", lambda text, **kwargs: lines.append(text))
    return lines


def saved(name: str, file: Path, **options: object) -> torch.nn.Module:
    """Save the weights of a random timm model with its classifier, and return it."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if file.suffix == ".safetensors":
        save_file(model.state_dict(), file)
    else:
        torch.save({"state_dict": model.state_dict()}, file)
    return model


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_a_file(tmp_path: Path, log: list[str], suffix: str) -> None:
    """The maps are those of timm's model with these weights. All tensors but the classifier's two are loaded."""
    file, images = tmp_path / f"weights.{suffix}", images_of(64, 96)
    model = saved("convnext_atto", file, **CONVNEXT)
    encoder = TimmEncoder(name="convnext_atto", options=CONVNEXT, pretrained=str(file)).eval()
    with torch.no_grad():
        wanted = model.forward_intermediates(images, intermediates_only=True)
        for one, other in zip(encoder(images), wanted, strict=True):
            torch.testing.assert_close(one, other)
    number = len(model.state_dict()) - 2
    assert log == [f"convnext_atto: {number} tensors loaded from {file}; 2 of the file not used: head.fc: 2"] or (
        log[0].startswith(f"convnext_atto: {number} tensors loaded from {file}; 2 of the file not used: head")
    )


def test_a_plain_vit_of_a_file(tmp_path: Path) -> None:
    """The map is that of timm's last block after its norm."""
    file, images = tmp_path / "weights.pth", images_of(64, 96)
    model = saved("vit_tiny_patch16_224", file, **VIT, dynamic_img_size=True)
    encoder = TimmEncoder(name="vit_tiny_patch16_224", options=VIT, pretrained=str(file)).eval()
    with torch.no_grad():
        (one,) = encoder.maps(images)
        wanted = model.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(one, wanted)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    state = saved("convnext_atto", file, **CONVNEXT).state_dict()

    def refused(problem: str, state: dict, match: str) -> None:
        torch.save(state, tmp_path / f"{problem}.pth")
        with pytest.raises(CheckpointError, match=rf"{problem}\.pth has weights of another model than .*{match}"):
            TimmEncoder(name="convnext_atto", options=CONVNEXT, pretrained=str(tmp_path / f"{problem}.pth"))

    bias = "stages.1.blocks.0.norm.bias"
    refused("gap", {k: v for k, v in state.items() if k != bias}, rf"1 missing: {bias}\.")
    refused("more", {**state, "stages.9.bias": state[bias]}, r"1 unexpected: stages\.9\.bias\.")
    refused("shape", {**state, bias: state[bias][:3]}, rf"1 of another shape: {bias}\.")
    with pytest.raises(CheckpointError, match=r"another model than resnet18: \d+ missing: conv1\.weight, "):
        TimmEncoder(name="resnet18", pretrained=str(file))
    with pytest.raises(CheckpointError, match=r"no weights of resnet18 at .*none\.pth\. Set pretrained=True"):
        TimmEncoder(name="resnet18", pretrained=str(tmp_path / "none.pth"))


def test_weights_of_the_hub_need_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without REFSEG_ALLOW_DOWNLOAD only the local cache is read, which is empty here."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REFSEG_ALLOW_DOWNLOAD", raising=False)
    with pytest.raises(DataError, match=r"`hf download timm/convnext_atto\.d2_in1k model\.safetensors`.*allow"):
        TimmEncoder(name="convnext_atto", pretrained=True)
    with pytest.raises(DataError, match="hf download timm/convnext_atto"):
        TimmEncoder.describe(dict(name="convnext_atto", pretrained=True))
    # With weights in the cache
    file, asked = tmp_path / "model.safetensors", []
    saved("convnext_atto", file, **CONVNEXT)

    def download(repo: str, name: str, local_files_only: bool) -> str:
        asked.append((repo, name, local_files_only))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    TimmEncoder(name="convnext_atto", options=CONVNEXT, pretrained=True)
    monkeypatch.setenv("REFSEG_ALLOW_DOWNLOAD", "1")
    assert TimmEncoder.describe(dict(name="convnext_atto", pretrained=True)).startswith(f"{file}: ")
    assert asked == [("timm/convnext_atto.d2_in1k", "model.safetensors", only) for only in (True, False)]
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: None)
    with pytest.raises(ConfigError, match="timm has no weights of convnext_atto on the hub"):
        TimmEncoder(name="convnext_atto", options=CONVNEXT, pretrained=True)


# Position tables and options ------------------------------------------------------------------------------------------


def test_position_tables_are_resized_when_weights_are_read(tmp_path: Path) -> None:
    """The same model resizes its tables of 14 x 14 to 6 x 4 in each step, or once when it is built for that size."""
    file, images = tmp_path / "weights.pth", images_of(96, 64)
    saved("vit_tiny_patch16_224", file, **VIT)
    with torch.no_grad():
        maps = [
            TimmEncoder(name="vit_tiny_patch16_224", options=options, pretrained=str(file)).eval().maps(images)[0]
            for options in (VIT, {**VIT, "img_size": (96, 64)})
        ]
    torch.testing.assert_close(maps[0], maps[1], atol=1e-4, rtol=1e-4)


def test_an_architecture_of_one_size(tmp_path: Path) -> None:
    """BEiT has a bias for each distance of two patches: 27 x 27 + 3 of 14 x 14, and 11 x 7 + 3 of 6 x 4."""
    file = tmp_path / "weights.pth"
    saved("beit_base_patch16_224", file, **VIT)
    with pytest.raises(ConfigError, match=r"images of this size, \(96, 64\).*options=dict\(img_size=\(96, 64\)\)"):
        TimmEncoder(name="beit_base_patch16_224", options=VIT, pretrained=str(file))(images_of(96, 64))
    options = {**VIT, "img_size": (96, 64)}
    encoder = TimmEncoder(name="beit_base_patch16_224", options=options, pretrained=str(file)).eval()
    tables = [value for name, value in encoder.state_dict().items() if name.endswith("relative_position_bias_table")]
    assert [len(table) for table in tables] == [80]
    assert [tuple(one.shape[2:]) for one in encoder(images_of(96, 64))] == [(24, 16), (12, 8), (6, 4), (3, 2)]
    with pytest.raises(ConfigError, match=r"not take images of this size, \(64, 96\)"):
        encoder(images_of(64, 96))


def test_other_errors_keep_their_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that runs out is not the fault of the image size."""
    encoder = TimmEncoder(name="resnet18", options=TRAINED["resnet18"])

    def full(images: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder, "_maps", full)
    with pytest.raises(torch.OutOfMemoryError):
        encoder(images_of(64, 96))


def test_out_indices_choose_among_all_strides() -> None:
    """MobileNetV3 has five: 2, 4, 8, 16 and 32. The default is the last four."""
    encoder = TimmEncoder(name="mobilenetv3_small_050", out_indices=(0, 2), out_stages=(0, 1)).eval()
    assert encoder.strides == (2, 8) and encoder.staged
    assert [tuple(one.shape[2:]) for one in encoder(images_of(64, 96))] == [(32, 48), (8, 12)]


def test_blocks_of_a_plain_vit_can_be_chosen() -> None:
    """Four blocks instead of the last one: four maps of one stride, without a pyramid."""
    options = {**VIT, "depth": 4}
    encoder = TimmEncoder(name="vit_tiny_patch16_224", options=options, out_indices=(0, 1, 2, 3)).eval()
    assert encoder.strides == (16,) * 4 and encoder.dims == (32,) * 4
    assert len({one.sum().item() for one in encoder(images_of(64, 96))}) == 4


def test_normalization_follows_the_weights() -> None:
    """SigLIP's images are in -1..1: (x - 127.5) / 127.5. DINOv2's are normalized as ImageNet's."""
    siglip = TimmEncoder(name="vit_base_patch16_siglip_224", options=VIT)
    assert siglip.mean == siglip.std == (127.5,) * 3
    dinov2 = TimmEncoder(name="vit_small_patch14_dinov2", options=VIT)
    assert dinov2.mean == pytest.approx((123.675, 116.28, 103.53))
    assert dinov2.std == pytest.approx((58.395, 57.12, 57.375))


def test_drop_path_rate_reaches_the_blocks() -> None:
    encoder = TimmEncoder(name="vit_tiny_patch16_224", options={**VIT, "depth": 2}, drop_path_rate=0.3)
    rates = [part.drop_prob for part in encoder.modules() if type(part).__name__ == "DropPath"]
    assert rates and max(rates) == pytest.approx(0.3)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"has no model 'resnet81'\. Did you mean .*resnet18"):
        TimmEncoder(name="resnet81")
    with pytest.raises(ConfigError, match=r"has no model 'xyzzy'\. timm\.list_models\(\) lists them"):
        TimmEncoder.describe(dict(name="xyzzy", pretrained=True))
    with pytest.raises(ConfigError, match=r"TimmEncoder\(name='resnet18'\): it cannot be built.*dept"):
        TimmEncoder(name="resnet18", options=dict(dept=3))
    with pytest.raises(ConfigError, match="which has 3 here"):  # levels of strides 16, 32 and 64
        TimmEncoder(name="levit_128s")


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (1, 2, 1), (3, 3, 2)])
def test_padding_by_integers_is_timms(kernel: int, stride: int, dilation: int) -> None:
    """A kernel of 1 is smaller than its stride, and needs no padding."""
    conv = timm.layers.Conv2dSame(2, 3, kernel, stride, dilation=dilation)
    images = [torch.randn(1, 2, height, width) for height, width in ((7, 8), (9, 16), (32, 33))]
    expected = [conv(image) for image in images]
    conv.__class__ = timm_encoder.SameConv2d
    assert all(torch.equal(conv(image), one) for image, one in zip(images, expected, strict=True))
