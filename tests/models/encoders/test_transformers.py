"""Image encoders of transformers against transformers' own models, and what a folder says about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers  # its classes are imported when they are first used
from torch import Tensor

from refseg.errors import ConfigError, DataError
from refseg.models import TransformersVisionEncoder

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=16)
SWIN = dict(model_type="swin", embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4)
DINOV2 = dict(model_type="dinov2", hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
TOWERS = ("siglip_vision_model", "clip_vision_model")


def images_of(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def save(folder: Path, model_type: str, **settings: object) -> None:
    """Save a random model in a folder."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **settings)
    transformers.AutoModel.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize("config", [SWIN, DINOV2], ids=lambda config: config["model_type"])
def test_maps_of_backbones(tmp_path: Path, config: dict) -> None:
    """A folder of the whole model, and a backbone with all of its stages: the last four, or the only one."""
    save(tmp_path, **config)
    settings = transformers.AutoConfig.from_pretrained(tmp_path)
    stages = [name for name in settings.stage_names if name != "stem"]
    settings.out_features = stages
    kinds = {"swin": transformers.SwinBackbone, "dinov2": transformers.Dinov2Backbone}
    own = kinds[config["model_type"]].from_pretrained(tmp_path, config=settings).eval()
    encoder = TransformersVisionEncoder(pretrained=str(tmp_path)).eval()
    size = (56, 84) if config is DINOV2 else (64, 96)
    with torch.no_grad():
        maps, wanted = encoder.maps(images_of(*size)), own(images_of(*size)).feature_maps
    assert len(maps) == (1 if config is DINOV2 else 4)
    for one, other in zip(maps, wanted[-len(maps) :], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("model_type", TOWERS)
def test_maps_of_towers(tmp_path: Path, model_type: str) -> None:
    """The words of the last layer, row by row, without CLIP's class token."""
    save(tmp_path, model_type, **SMALL)
    own = transformers.AutoModel.from_pretrained(tmp_path).eval()
    encoder = TransformersVisionEncoder(pretrained=str(tmp_path)).eval()
    with torch.no_grad():
        (found,) = encoder.maps(images_of(64, 96))
        tokens = own(images_of(64, 96), interpolate_pos_encoding=True).last_hidden_state
    assert found.shape == (2, 32, 4, 6)
    torch.testing.assert_close(found[:, :, 1, 2], tokens[:, 8 + (model_type == "clip_vision_model")])


def test_patches_of_siglip2() -> None:
    """Patches are given row by row, each with its pixels row by row and the channels last."""
    encoder = TransformersVisionEncoder(config=dict(model_type="siglip2_vision_model", **SMALL)).eval()
    given = []
    encoder.backbone.register_forward_pre_hook(lambda module, args: given.append(args))
    images = images_of(64, 96)
    (found,) = encoder.maps(images)
    patches, whole, shapes = given[0]
    assert found.shape == (2, 32, 4, 6) and whole.all() and shapes.tolist() == [[4, 6], [4, 6]]
    row, column = 2, 5
    patch = images[1, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
    assert torch.equal(patches[1, 6 * row + column].view(16, 16, 3), patch.permute(1, 2, 0))


def test_a_model_of_images_and_texts_gives_its_tower(tmp_path: Path) -> None:
    settings = transformers.SiglipConfig(
        text_config=dict(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2),
        vision_config=SMALL,
    )
    own = transformers.SiglipModel(settings).eval()
    own.save_pretrained(tmp_path)
    encoder = TransformersVisionEncoder(pretrained=str(tmp_path)).eval()
    with torch.no_grad():
        (found,) = encoder.maps(images_of(224, 224))
        tokens = own.vision_model(images_of(224, 224)).last_hidden_state
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens)


def test_normalization_of_a_folder(tmp_path: Path) -> None:
    """A mean of 0.5 is 127.5 if pixels are in 0..1. Without the file, ImageNet's apply, and arguments win."""
    save(tmp_path, **SWIN)
    pretrained = str(tmp_path)
    assert TransformersVisionEncoder(pretrained=pretrained).mean == pytest.approx((123.675, 116.28, 103.53))
    content = dict(image_mean=[0.5, 0.25, 0.5], image_std=[0.5, 0.5, 0.2])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    encoder = TransformersVisionEncoder(pretrained=pretrained, std=(1.0, 2.0, 3.0))
    assert encoder.mean == pytest.approx((127.5, 63.75, 127.5)) and encoder.std == (1.0, 2.0, 3.0)
    assert TransformersVisionEncoder(pretrained=pretrained).std == pytest.approx((127.5, 127.5, 51.0))
    content["rescale_factor"] = 1 / 127.5  # pixels in 0..2: a mean of 0.5 there is 63.75
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    assert TransformersVisionEncoder(pretrained=pretrained).mean == pytest.approx((63.75, 31.875, 63.75))


@pytest.mark.parametrize("config", [SWIN, DINOV2, dict(model_type="siglip_vision_model", **SMALL)])
def test_architecture_stands_for_the_folder(tmp_path: Path, config: dict) -> None:
    """An encoder that is built from it takes the weights of the first one, and gives the same."""
    save(tmp_path, **config)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)))
    first = TransformersVisionEncoder(pretrained=str(tmp_path), pyramid_dim=16).eval()
    assert TransformersVisionEncoder.describe({"pretrained": str(tmp_path)}).endswith(f": {config['model_type']}")
    parts = TransformersVisionEncoder.architecture({"pretrained": str(tmp_path)})
    json.dumps(parts)  # goes into a config file
    second = TransformersVisionEncoder(pretrained=None, pyramid_dim=16, **parts).eval()
    assert second.mean == second.std == (127.5,) * 3
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        for one, other in zip(first(images_of(64, 96)), second(images_of(64, 96)), strict=True):
            torch.testing.assert_close(one, other)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="needs pretrained, or config with a model_type"):
        TransformersVisionEncoder(config=dict(hidden_size=16))
    with pytest.raises(ConfigError, match="SwinConfig has no setting 'embed_dims'"):
        TransformersVisionEncoder(config=dict(model_type="swin", embed_dims=8))
    with pytest.raises(ConfigError, match=r"TransformersVisionEncoder\.config: .*swinn"):
        TransformersVisionEncoder(config=dict(model_type="swinn"))
    with pytest.raises(ConfigError, match="TransformersVisionEncoder: a bert model is no backbone of transformers"):
        TransformersVisionEncoder(config=dict(model_type="bert"))
    with pytest.raises(DataError, match="hf download nobody/nothing"):
        TransformersVisionEncoder(pretrained="nobody/nothing")
