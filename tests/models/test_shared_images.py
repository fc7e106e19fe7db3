"""What a model made of images serves other phrases: `encode_images` knows no word, and `infer` is its sequel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.referring_checks import prepared, tiny_model

SHARED = (
    "baseline_tiny_refshapes",
    "instalign_tiny_refshapes",
    "mask2former_swinb",
    "rela_tiny_refshapes_late",
    "vipa/ablations/refshapes_without_fusion",
)
FUSED = (
    *("cgformer_tiny_refshapes", "deris_tiny_refshapes", "dmmi_tiny_refshapes", "lavt_tiny_refshapes"),
    *("lgformer_tiny_refshapes", "rela_tiny_refshapes", "vipa_tiny_refshapes"),
)


@pytest.mark.parametrize("config", SHARED)
def test_encoded_images_serve_other_phrases(config: str) -> None:
    """Images encoded in a batch with other phrases, and fewer of them, have the logits of the plain forward pass."""
    model = tiny_model(config).eval()
    assert model.shares_images
    batch = prepared(model)
    others = replace(batch.tokens, ids=batch.tokens.ids.flip(1))
    with torch.no_grad():
        images = model.encode_images(replace(batch, tokens=others, image_of=batch.image_of[:2]))
        expected, found = model.infer(batch), model.infer_encoded(batch, images)
    assert torch.equal(found.mask_logits, expected.mask_logits)


@pytest.mark.parametrize("config", FUSED)
def test_early_fusion_models_cannot_encode_images_alone(config: str) -> None:
    model = tiny_model(config)
    assert not model.shares_images
    with pytest.raises(TypeError, match="cannot encode images alone"):
        model.encode_images(prepared(model))


def test_early_fusion_encoders_cannot_encode_images_alone() -> None:
    assert not tiny_model("vipa_beit3b_refcoco").shares_images
