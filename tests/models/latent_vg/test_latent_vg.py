"""Latent-VG: rows of its ablations, and properties of every model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from conftest import REPOSITORY
from models.referring_checks import (
    check_bfloat16,
    check_finite_without_targets,
    check_padded_words,
    check_phrases_one_by_one,
    is_key_bias,
    logits_of,
    padded_images,
    parameters_without_gradient,
    prepared,
    tiny_model,
)
from refseg.engine.run import load_config
from refseg.errors import ConfigError
from refseg.models import LatentVG, RefSegmentor

ABLATIONS = "latentvg/ablations"
CONFIGS = (
    "latentvg_beit3b",
    "latentvg_beit3b_grefcoco",
    "latentvg_tiny_refshapes",
    f"{ABLATIONS}/components_baseline",
    f"{ABLATIONS}/components_latents_only",
    f"{ABLATIONS}/distributor_mean_subject",
    f"{ABLATIONS}/average_logits",
    f"{ABLATIONS}/latents_1",
)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> RefSegmentor:
    return tiny_model(request.param)


# The tables -----------------------------------------------------------------------------------------------------------


def built(row: str) -> LatentVG:
    return tiny_model(f"{ABLATIONS}/{row}")


def test_ablation_rows_differ_in_modules() -> None:
    for row, parts in {
        "components_baseline": (False, False, False, False),
        "components_latents_only": (True, False, False, False),
        "components_distributor_only": (True, True, False, False),
        "components_injector_only": (True, False, True, False),
        "components_without_contrast": (True, True, True, False),
        "contrast_infonce": (True, True, True, True),
    }.items():
        model = built(row)
        found = (model.latents, model.distributor, model.concepts, model.contrast)
        assert tuple(part is not None for part in found) == parts, row
    assert [built(f"contrast_{kind}").contrast.loss for kind in ("infonce", "triplet", "arcface")] == [
        "infonce",
        "triplet",
        "arcface",
    ]
    lengths = [built(row).latents.lengths for row in ("latents_1", "latents_3", "lengths_4_and_4", "lengths_10_and_20")]
    assert lengths == [(10,), (4, 10, 16), (4, 4), (10, 20)]
    assert built("concepts_without_column_normalization").concepts.normalize == "rows"
    assert built("distributor_mean_subject").distributor == "mean" and built("latents_1").distributor == "visual"
    assert built("average_logits").decoder.average == "logits" and built("latents_1").decoder.average == "probs"
    assert not built("concepts_not_centered").concepts.centered
    assert isinstance(built("subject_without_norm").latents.norm, torch.nn.Identity)


def test_ablation_rows_differ_in_losses() -> None:
    mask = {"loss_mask", "loss_dice"}
    for config, wanted in {
        f"{ABLATIONS}/components_without_contrast": mask,
        "latentvg_beit3b": mask | {"loss_contrast"},
        "latentvg_beit3b_grefcoco": mask | {"loss_contrast", "loss_no_target"},
        f"{ABLATIONS}/refshapes_baseline": mask | {"loss_no_target"},
    }.items():
        model = tiny_model(config).train()
        assert set(model(prepared(model), mode="loss")) == wanted


def test_num_words_matches_the_tokenizer() -> None:
    """phi has a column for each token that a text may have, in every config of the model."""
    for file in sorted((REPOSITORY / "configs/latentvg").rglob("*.py")):
        cfg = load_config(str(file))
        (text,) = (step for step in cfg.test_dataloader.dataset.pipeline if step["type"] == "LoadText")
        assert cfg.model.latents is None or cfg.model.latents.num_words == text["tokenizer"]["max_words"], file


# Between attention and feed-forward -----------------------------------------------------------------------------------


def hidden(model: LatentVG, batch: object) -> tuple[torch.Tensor, ...]:
    """Return the pixels' subject and `Tokens` at the end of the encoder."""
    kept = []
    run = model.encoder.run
    model.encoder.run = lambda *args, **kwargs: (kept.append(run(*args, **kwargs)), kept[0])[1]
    logits_of(model, batch)
    del model.encoder.run
    return kept[0].pixels[:, 0], *model.layout.split(kept[0].words)


def test_subjects_agree_after_every_layer() -> None:
    """They pass the same experts afterwards, so they still agree at the end. Without the distributor they differ. If
    all expressions attend to each other they stay alike, because they start so and attend to the same tokens."""
    for config, agree in (
        ("latentvg_beit3b", True),
        (f"{ABLATIONS}/distributor_mean_subject", True),
        (f"{ABLATIONS}/components_injector_only", False),
        (f"{ABLATIONS}/latents_read_each_other", True),
    ):
        model = tiny_model(config)
        _, *tokens = hidden(model, prepared(model))
        _, _, subjects, attributes, _ = tokens
        assert [x.shape[1] for x in tokens] == [5, 2, 2, 14, 0]
        assert torch.allclose(subjects[:, 0], subjects[:, 1], atol=1e-5) is agree
        assert not torch.allclose(attributes[:, 0], attributes[:, 1], atol=1e-3)


def test_expressions_do_not_attend_to_each_other() -> None:
    """With one layer, another position map of the second expression changes that and the pixels. The text and the first
    expression change only if expressions attend to each other."""
    for config, apart in (
        (f"{ABLATIONS}/components_latents_only", True),
        (f"{ABLATIONS}/latents_read_each_other", False),
    ):
        model = tiny_model(config, distributor=None, contrast=None, concepts=None)
        model.encoder.layers = model.encoder.layers[:1]
        batch = prepared(model)
        pixels, *before = hidden(model, batch)
        torch.nn.init.normal_(model.latents.position_maps[1].weight)
        other_pixels, *after = hidden(model, batch)
        assert not torch.allclose(after[3][:, 4:], before[3][:, 4:], atol=1e-3)
        assert not torch.allclose(other_pixels, pixels, atol=1e-5)
        for part, tokens in ((0, slice(None)), (1, slice(1)), (2, slice(1)), (3, slice(4))):
            assert torch.allclose(before[part][:, tokens], after[part][:, tokens], atol=1e-5) is apart


def test_subject_replaces_the_class_token() -> None:
    """The pixels' own class token is neither used nor trained."""
    model = tiny_model("latentvg_beit3b")
    batch = prepared(model)
    before = logits_of(model, batch)
    model.encoder.class_token.data.fill_(9.0)
    assert torch.equal(logits_of(model, batch), before) and not model.encoder.class_token.requires_grad
    baseline = built("components_baseline")
    assert baseline.encoder.class_token.requires_grad


def test_baseline_is_encoder_and_decoder() -> None:
    model = built("components_baseline").eval()
    batch = prepared(model)
    with torch.no_grad():
        features, text = model.encoder(batch)
        wanted = model.decoder(features.levels[0], text.word_feats[:, :1])[:, 0]
    torch.testing.assert_close(logits_of(model, batch), wanted)


def test_expressions_are_represented_by_their_class_tokens() -> None:
    """The mask is the average of the text's and the latent expressions' masks."""
    model = tiny_model("latentvg_beit3b").eval()
    batch = prepared(model)
    _, text, classes, *_ = hidden(model, batch)
    with torch.no_grad():
        prediction = model(batch)
    found = prediction.auxiliary
    torch.testing.assert_close(found.features, torch.cat([text[:, :1], classes], 1))
    torch.testing.assert_close(prediction.mask_logits.sigmoid(), found.masks.sigmoid().mean(1))
    assert found.subject_token.shape == (6,) and (found.subject_token >= 1).all() and (found.subject_token <= 3).all()
    assert ((found.subject_prob > 1 / 4) & (found.subject_prob < 1)).all()


def test_empty_token_predicts_no_target() -> None:
    model = tiny_model("latentvg_beit3b_grefcoco").eval()
    batch = prepared(model)
    with torch.no_grad():
        prediction = model(batch)
        results = model(batch, mode="predict")
    assert prediction.no_target_logit.shape == (6,) and results[0].no_target_prob.shape == (3,)
    model.score_empty.bias.data.fill_(50.0)
    with torch.no_grad():
        assert all(result.rejected.all() for result in model(batch, mode="predict"))


# Randomness -----------------------------------------------------------------------------------------------------------


def test_evaluation_does_not_depend_on_random_state(model: RefSegmentor) -> None:
    batch, answers = prepared(model), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        answers.append(logits_of(model, batch))
    assert torch.equal(*answers)


def test_training_is_determined_by_the_seed() -> None:
    model = tiny_model("latentvg_tiny_refshapes").train()
    batch, found = prepared(model), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model(batch, mode="loss")["loss_mask"].item())
    assert found[0] == found[1] != found[2]


def test_checkpointed_layers_give_the_same_gradients() -> None:
    gradients = []
    for on in (False, True):
        model = tiny_model("latentvg_beit3b", **{"encoder.checkpointing": on}).train()
        torch.manual_seed(5)
        model.parse_losses(model(prepared(model), mode="loss"))[0].backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-3)


# Properties of every model --------------------------------------------------------------------------------------------


def test_every_trained_parameter_gets_a_gradient(model: RefSegmentor) -> None:
    """Except biases of keys."""
    assert {n for n in parameters_without_gradient(model, prepared(model)) if not is_key_bias(n)} == set()


def test_phrases_together_equal_one_by_one(model: RefSegmentor) -> None:
    check_phrases_one_by_one(model)


def test_padded_words_have_no_effect(model: RefSegmentor) -> None:
    check_padded_words(model)


def test_padded_pixels_have_no_effect(model: RefSegmentor) -> None:
    """Only attention mixes patches, and it masks those of the padding."""
    model.eval()
    batch = padded_images(prepared(model), 64, 64)
    noisy = replace(batch, images=torch.where(batch.pixel_mask[:, None], batch.images, 3.0))
    one, two = logits_of(model, batch), logits_of(model, noisy)
    image = one.shape[-1] * 64 // 96
    torch.testing.assert_close(two[..., :image], one[..., :image], atol=1e-5, rtol=1e-4)


def test_words_affect_the_prediction(model: RefSegmentor) -> None:
    batch = prepared(model)
    other = replace(batch, tokens=replace(batch.tokens, text_of=batch.tokens.text_of.flip(0)))
    assert not torch.allclose(logits_of(model, batch), logits_of(model, other), atol=1e-6)


def test_no_target_and_padding_give_finite_losses(model: RefSegmentor) -> None:
    check_finite_without_targets(model)


def test_texts_without_words() -> None:
    """An empty text has only the tokens that mark its ends."""
    model = tiny_model("latentvg_beit3b")
    batch = prepared(model)
    mask = batch.tokens.word_mask.clone()
    mask[:, 2:] = False
    batch = replace(batch, tokens=replace(batch.tokens, word_mask=mask))
    assert torch.isfinite(logits_of(model, batch)).all()
    model.train()
    losses, log = model.parse_losses(model(batch, mode="loss"))
    losses.backward()
    assert all(torch.isfinite(value) for value in log.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_bfloat16_trains_and_predicts(model: RefSegmentor) -> None:
    check_bfloat16(model, prepared(model))


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ConfigError, match="latents=None has no use for"):
        tiny_model("latentvg_beit3b", latents=None)
    with pytest.raises(ConfigError, match=r"distributor 'sum'\. Valid values: visual, mean, None"):
        tiny_model("latentvg_beit3b", distributor="sum")
    with pytest.raises(ConfigError, match=r"Leave encoder\.level_scales at"):
        tiny_model("latentvg_beit3b", **{"encoder.level_scales": (2, 1)})
