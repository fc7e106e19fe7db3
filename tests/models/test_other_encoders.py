"""A training step of the methods with encoders that cannot be run stage by stage: a plain ViT, and mmdet's ResNet."""

from __future__ import annotations

import pytest
import torch

from models.referring_checks import check_padded_words, check_phrases_one_by_one, prepared, tiny_model
from refseg.errors import ConfigError
from refseg.models import RefSegmentor

ENCODERS = {
    "vit": dict(
        type="TimmEncoder",
        name="vit_tiny_patch16_224",
        options=dict(depth=1, embed_dim=32, num_heads=2),
        pyramid_dim=24,
        _delete_=True,
    ),
    "resnet": dict(type="mmdet.ResNet", depth=18, base_channels=24, stem_channels=24, _delete_=True),
}
LATE = {"encoder.fused_stages": (3,)}
NONE = {"encoder.fusion": None}
METHODS = {
    "instalign, none": ("instalign_tiny_refshapes", {}),
    "instalign, late": ("instalign_tiny_refshapes", {"encoder.fusion": dict(type="PWAM"), **LATE}),
    "rela, none": ("rela_tiny_refshapes", NONE),
    "rela, late": ("rela_tiny_refshapes", LATE),
    "vipa, none": ("vipa_tiny_refshapes", NONE),
    "vipa, late": ("vipa_tiny_refshapes", LATE),
    "lgformer, none": ("lgformer_tiny_refshapes", NONE),
    "lgformer, late": ("lgformer_tiny_refshapes", LATE),
}


def model_with(method: str, vision: str) -> RefSegmentor:
    config, changes = METHODS[method]
    return tiny_model(config, **{"encoder.vision": ENCODERS[vision], **changes})


@pytest.mark.parametrize("vision", ENCODERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_training_step(method: str, vision: str) -> None:
    """All that is trained in the encoders has a gradient, and a small step along all of them lowers the loss."""
    model = model_with(method, vision).train()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    assert model.shares_images == ("none" in method and not method.startswith("lgformer")) or "late" in method
    batch = prepared(model)

    def loss() -> torch.Tensor:
        torch.manual_seed(0)  # losses at random points
        return model.parse_losses(model(batch, mode="loss"))[0]

    before = loss()
    before.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None and name.startswith("encoder.")] == []
    gradients = {name: p.grad for name, p in trained.items() if p.grad is not None}
    rate = 0.003 * float(before.detach()) / sum(float(grad.square().sum()) for grad in gradients.values())
    with torch.no_grad():
        for name, gradient in gradients.items():
            trained[name].sub_(rate * gradient)
        assert torch.isfinite(before) and loss() < before


@pytest.mark.parametrize("vision", ENCODERS)
@pytest.mark.parametrize("method", ["instalign, none", "rela, late"])
def test_phrases_and_padding(method: str, vision: str) -> None:
    model = model_with(method, vision)
    check_phrases_one_by_one(model)
    check_padded_words(model)


def test_fusion_in_the_encoder_needs_stages() -> None:
    """ReLA's tiny config fuses after all four stages."""
    with pytest.raises(ConfigError, match=r"vit_tiny_patch16_224 cannot be run stage by stage.*fused_stages=\(3,\)"):
        tiny_model("rela_tiny_refshapes", **{"encoder.vision": ENCODERS["vit"]})
