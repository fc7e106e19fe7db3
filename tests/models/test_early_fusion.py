"""Checks that LAVT, LGFormer, CGFormer, and DMMI share."""

from dataclasses import replace

import pytest
import torch

from models.referring_checks import (
    check_bfloat16,
    check_finite_without_targets,
    check_padded_words,
    check_phrases_one_by_one,
    is_key_bias,
    logits_of,
    parameters_without_gradient,
    prepared,
    tiny_model,
)
from refseg.models import CGFormer, LGFormer, RefSegmentor

CONFIGS = (
    *("lavt_swinb", "lgformer_swinb", "lgformer_tiny_refshapes", "lgformer/ablations/table4_pwam_baseline"),
    *("cgformer_swinb", "cgformer_tiny_refshapes", "dmmi_swinb", "dmmi_tiny_refshapes"),
)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> RefSegmentor:
    return tiny_model(request.param)


def test_every_trained_parameter_gets_a_gradient(model: RefSegmentor) -> None:
    """But for what softmax does not see: a key's bias, and the query where there is one thing to read. And positions of
    pixels, if only deformable attention reads them: its offsets begin with weights of zero. And CGFormer's temperature
    where the published code clamps it."""
    unseen = {n for n in parameters_without_gradient(model, prepared(model)) if not is_key_bias(n)}
    if isinstance(model, CGFormer) and model.decoder.group_first.log_temperature > 0:
        unseen -= {f"decoder.{group}.log_temperature" for group in ("group_first", "group_later")}
    if isinstance(model, LGFormer) and model.pixel_decoder.l2va is None:
        unseen -= {"pixel_decoder.level_embed"}
    assert {n for n in unseen if not n.startswith("prototype.layers") or ".self_attn.query" not in n} == set()


def test_phrases_together_equal_one_by_one(model: RefSegmentor) -> None:
    check_phrases_one_by_one(model)


def test_padded_words_have_no_effect(model: RefSegmentor) -> None:
    check_padded_words(model)


def test_words_affect_the_prediction(model: RefSegmentor) -> None:
    batch = prepared(model)
    other = replace(batch, tokens=replace(batch.tokens, text_of=batch.tokens.text_of.flip(0)))
    assert not torch.allclose(logits_of(model, batch), logits_of(model, other), atol=1e-6)


def test_no_target_and_padding_give_finite_losses(model: RefSegmentor) -> None:
    check_finite_without_targets(model)


def test_bfloat16_trains_and_predicts(model: RefSegmentor) -> None:
    check_bfloat16(model, prepared(model))


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    plain, saving = (tiny_model("lavt_swinb", **{"encoder.vision.checkpointing": on}) for on in (False, True))
    saving.load_state_dict(plain.state_dict())
    gradients = []
    for model in (plain, saving):
        for block in model.encoder.vision.modules():  # drop path draws anew when a block is computed again
            if hasattr(block, "drop_prob"):
                block.drop_prob = 0.0
        model.train()
        model.parse_losses(model(prepared(model), mode="loss"))[0].backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4)
