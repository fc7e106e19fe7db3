"""VIPA: the rows of its tables, retrieval inside the model, and properties of every model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models.referring_checks import (
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
from refseg.analysis.vipa import mask_gradient
from refseg.errors import ConfigError
from refseg.models import VIPA, RefSegmentor
from refseg.models.vipa.generator import AllPixelsGenerator
from refseg.structures import Batch, EncodedFeatures, Prediction, TextFeatures

ABLATIONS = "vipa/ablations"
CONFIGS = (
    "vipa_swinb",
    "vipa_tiny_refshapes",
    "vipa_beit3b_refcoco",
    f"{ABLATIONS}/table5_vanilla_language",
    f"{ABLATIONS}/table6a_without_retrieval",
    f"{ABLATIONS}/table7_without_fusion",
    f"{ABLATIONS}/table7_late_fusion",
)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> RefSegmentor:
    return tiny_model(request.param)


# The tables -----------------------------------------------------------------------------------------------------------


def losses(config: str) -> set[str]:
    model = tiny_model(config)
    model.train()
    return set(model(prepared(model), mode="loss"))


def test_ablation_rows_differ_in_losses() -> None:
    mask = {"loss_mask", "loss_dice"}
    for row in ("table5_advanced_language", "table6b_without_cues", "table8_without_supervision"):
        assert losses(f"{ABLATIONS}/{row}") == mask
    for row in ("table6a_without_refinement", "table6b_local_cues_only", "table8_direct_supervision"):
        assert losses(f"{ABLATIONS}/{row}") == mask | {"loss_relevance"}


def test_ablation_rows_differ_in_modules() -> None:
    def built(row: str) -> VIPA:
        return tiny_model(f"{ABLATIONS}/{row}")

    def reading(model: VIPA) -> list[str]:
        return [stage for stage, fusion in model.encoder.fusions.items() if fusion.word_layer is not None]

    default = tiny_model("vipa_swinb_refcocoplus")
    assert reading(default) == ["0", "1", "2"] and default.generator.retrieval.ratio == 0.3
    assert reading(built("table5_vanilla_language")) == [] and reading(built("table5_advanced_language")) == [
        "0",
        "1",
        "2",
    ]
    assert built("table5_vanilla_language").generator is None and built("table5_advanced_language").generator is None
    assert isinstance(built("table6a_without_retrieval").generator, AllPixelsGenerator)
    assert built("table6a_without_refinement").generator.self_attn_layer is None
    assert [built(f"fig4_{r}_percent").generator.retrieval.ratio for r in (10, 50, 80)] == [0.1, 0.5, 0.8]
    assert (built("table6b_global_cue_only").cues.local_cues, built("table6b_local_cues_only").cues.global_cue) == (
        False,
        False,
    )
    assert reading(built("table7_late_fusion")) == ["3"] and reading(built("table7_without_fusion")) == []
    assert built("table7_late_fusion_without_ve").generator is None
    assert built("table8_direct_supervision").supervision.scores == "direct"
    assert built("table9_without_articles").cues.without_words == ("a", "an", "the")


def test_disabled_cues_are_not_used() -> None:
    """The decoder reads the first token alone, or all but the first."""
    for row, kept in (
        ("table6b_global_cue_only", [True] + [False] * 4),
        ("table6b_local_cues_only", [False] + [True] * 4),
    ):
        model = tiny_model(f"{ABLATIONS}/{row}").eval()
        batch = prepared(model)
        seen = []
        handle = model.decoder.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[3]))
        with torch.no_grad():
            model(batch)
        handle.remove()
        assert seen[0].tolist() == [kept] * 6


def test_articles_are_not_cues() -> None:
    """All tokens of a text belong to its only word. Those of "The" and "an" retrieve nothing."""
    model = tiny_model(f"{ABLATIONS}/table9_without_articles").eval()
    batch = prepared(model)
    metas = [replace(meta, texts=("The", "dog", "an")) for meta in batch.metas]
    with torch.no_grad():
        retrieved = model(replace(batch, metas=metas)).regions.retrieved
    assert retrieved.flatten(1).any(1).tolist() == [False, True, False] * 2


@pytest.mark.parametrize(
    "row", ["table5_advanced_language", "table6a_without_refinement", "table8_without_supervision"]
)
def test_ablation_rows_train(row: str) -> None:
    model = tiny_model(f"{ABLATIONS}/{row}")
    assert {n for n in parameters_without_gradient(model, prepared(model)) if "key.bias" not in n} == set()


# Retrieval inside the model -------------------------------------------------------------------------------------------


def mean_mask_gradient(**overrides: object) -> float:
    """The mask's gradient on the scores of [CLS] relative to eq. 4's, over five draws of the noise."""
    model = tiny_model("vipa_tiny_refshapes", **overrides).eval()
    batch = prepared(model)
    return sum(mask_gradient(model, batch) for _ in range(5)) / 5


def test_mask_gradient_on_scores_is_small() -> None:
    """Measured, not derived: with first weights it is 0.04 of eq. 4's, and 0.12 with centered pixels. It must reach the
    scores at all, and centering must help by a factor of 2 at least."""
    plain, centered = mean_mask_gradient(), mean_mask_gradient(**{"generator.centered": True})
    assert 1e-3 < plain < 0.1
    assert centered > 2 * plain


def test_without_supervision_the_mask_trains_retrieval() -> None:
    """Without eq. 4 nothing else can move the joint space and the temperature."""
    model = tiny_model(f"{ABLATIONS}/table8_without_supervision")
    missing = parameters_without_gradient(model, prepared(model))
    assert not any("retrieval" in name for name in missing)


def test_scale_and_bias_enter_eq_4_only() -> None:
    """Cosines of 0 are logits of -1, so pixels of the target lose ln(1 + e), all others ln(1 + 1 / e). Masks are halves
    of the image or nothing, a third of all pixels. Retrieval and masks are those of the model without."""
    model = tiny_model("vipa_tiny_refshapes", **{"supervision.scale_bias": True}).eval()
    batch = prepared(model)
    torch.testing.assert_close(logits_of(model, batch), logits_of(tiny_model("vipa_tiny_refshapes"), batch))
    prediction = model(batch)
    prediction.auxiliary = torch.zeros_like(prediction.auxiliary)
    wanted = F.softplus(torch.tensor([1.0, -1.0, -1.0])).mean()
    torch.testing.assert_close(model.losses(prediction, batch)["loss_relevance"], wanted)
    assert {n for n in parameters_without_gradient(model, batch) if not is_key_bias(n)} == set()


def test_evaluation_does_not_depend_on_random_state() -> None:
    model = tiny_model("vipa_swinb").eval()
    batch = prepared(model)
    answers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        answers.append(logits_of(model, batch))
    assert torch.equal(*answers)


def test_training_is_determined_by_the_seed() -> None:
    model = tiny_model("vipa_tiny_refshapes").train()
    batch = prepared(model)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model(batch, mode="loss")["loss_mask"].item())
    assert found[0] == found[1] != found[2]


def test_losses_by_hand() -> None:
    """Logits 0: BCE is ln 2. Referents are the upper or the lower half of 64 x 96 pixels, or nothing: dice of the
    former is 1 - (2 x 3072 x 0.5 + 1) / (6144 x 0.5 + 3072 + 1) = 1 - 3073 / 6145."""
    model = tiny_model(f"{ABLATIONS}/table5_advanced_language").train()
    batch = prepared(model)
    found = model.losses(Prediction(torch.zeros(6, 16, 24), auxiliary=model(batch).auxiliary), batch)
    torch.testing.assert_close(found["loss_mask"], torch.tensor(2.0).log())
    torch.testing.assert_close(found["loss_dice"], torch.tensor(1 - 3073 / 6145))


class OneLevel(torch.nn.Module):
    """Smallest encoder that VIPA takes: levels and words, here as from a joint encoder such as BEiT-3, at one stride
    and with one row per expression."""

    level_dims, word_dim = (12,), 8

    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.words = torch.nn.Conv2d(3, 12, 16, 16), torch.nn.Embedding(100, 8)

    def forward(self, batch: Batch) -> tuple[EncodedFeatures, TextFeatures]:
        level = self.pixels(batch.images)[batch.image_of]
        mask = torch.ones(len(level), *level.shape[2:], dtype=torch.bool)
        words = self.words(batch.tokens.ids)
        return EncodedFeatures([level], [mask], (16,), None), TextFeatures(words, batch.tokens.word_mask, None)


def test_custom_encoders_work() -> None:
    torch.manual_seed(0)
    model = VIPA(encoder=dict(type=OneLevel), num_heads=2, decoder=dict(width=8))
    batch = prepared(model)
    assert logits_of(model, batch).shape == (6, 4, 6)
    assert {n for n in parameters_without_gradient(model, batch) if "key.bias" not in n} == set()


# Explanations ---------------------------------------------------------------------------------------------------------


def test_prediction_contains_regions_of_words() -> None:
    """64 x 96 pixels at stride 32 are 2 x 3 places, and each token retrieves 2 of them. All five tokens belong to the
    text's only word. The row of the word combines tokens 1 to 4, that of the expression is token 0."""
    model = tiny_model("vipa_swinb").eval()
    batch = prepared(model)
    with torch.no_grad():
        regions = model(batch).regions
        results = model(batch, mode="predict")
    assert regions.scores.shape == regions.retrieved.shape == (6, 5, 2, 3)
    assert regions.retrieved.flatten(2).sum(-1).eq(2).all()
    assert len(results) == 2 and "regions" not in vars(results[1])
    found = results[1].regions
    assert len(found) == 3 and found is results[1].regions
    for row, one in enumerate(found, 3):
        assert one.extent == (2.0, 3.0)
        assert torch.equal(one.retrieved, torch.stack([regions.retrieved[row, 0], regions.retrieved[row, 1:].any(0)]))
        assert torch.equal(one.scores, torch.stack([regions.scores[row, 0], regions.scores[row, 1:].amax(0)]))


def test_no_regions_without_retrieval() -> None:
    model = tiny_model(f"{ABLATIONS}/table5_advanced_language").eval()
    assert model(prepared(model), mode="predict")[0].regions is None


# Properties of every model --------------------------------------------------------------------------------------------


def test_every_trained_parameter_gets_a_gradient(model: RefSegmentor) -> None:
    """Biases of keys have no effect and no gradient."""
    assert {n for n in parameters_without_gradient(model, prepared(model)) if not is_key_bias(n)} == set()


def test_phrases_together_equal_one_by_one(model: RefSegmentor) -> None:
    check_phrases_one_by_one(model)


def test_images_with_different_numbers_of_phrases(model: RefSegmentor) -> None:
    """Two phrases of the first image, three of the second."""
    batch = prepared(model)
    meta = batch.metas[0]
    fewer = replace(
        batch,
        image_of=batch.image_of[1:],
        tokens=replace(batch.tokens, text_of=batch.tokens.text_of[1:]),
        metas=[replace(meta, expression_ids=meta.expression_ids[1:], texts=meta.texts[1:]), batch.metas[1]],
    )
    torch.testing.assert_close(logits_of(model, fewer), logits_of(model, batch)[1:], atol=1e-5, rtol=1e-5)


def test_images_are_encoded_once_with_late_fusion() -> None:
    """Two images with three phrases each."""
    for row, wanted in (
        ("table7_without_fusion", [2] * 4),
        ("table7_late_fusion", [2] * 4),
        ("table8_direct_supervision", [2, 6, 6, 6]),
    ):
        model = tiny_model(f"{ABLATIONS}/{row}").eval()
        rows: list[int] = []
        run = model.encoder.vision.run_stage
        model.encoder.vision.run_stage = lambda stage, tokens, size, run=run, rows=rows: (
            rows.append(len(tokens)) or run(stage, tokens, size)
        )
        logits_of(model, prepared(model))
        assert rows == wanted


def test_padded_words_have_no_effect(model: RefSegmentor) -> None:
    check_padded_words(model)


def test_padded_pixels_have_no_effect_after_the_encoder(model: RefSegmentor) -> None:
    """The encoder's padded pixels may hold anything. (Inside encoders, convolutions and windows do read padding.)"""
    batch = padded_images(prepared(model), 64, 64)
    model.eval()
    encode = model.encoder.forward

    def dirty(batch: object) -> object:
        features, text = encode(batch)
        levels = [
            level.masked_fill(~mask[:, None], 30.0) for level, mask in zip(features.levels, features.masks, strict=True)
        ]
        return replace(features, levels=levels), text

    with torch.no_grad():
        clean = model(batch)
        model.encoder.forward = dirty
        other = model(batch)
    del model.encoder.forward
    torch.testing.assert_close(clean.mask_logits, other.mask_logits, atol=1e-5, rtol=1e-4)
    if clean.regions is not None:
        assert torch.equal(clean.regions.retrieved, other.regions.retrieved)
        assert not clean.regions.retrieved[..., -1].any()


def test_words_affect_the_prediction(model: RefSegmentor) -> None:
    batch = prepared(model)
    other = replace(batch, tokens=replace(batch.tokens, text_of=batch.tokens.text_of.flip(0)))
    assert not torch.allclose(logits_of(model, batch), logits_of(model, other), atol=1e-6)


def test_no_target_and_padding_give_finite_losses(model: RefSegmentor) -> None:
    check_finite_without_targets(model)


def test_bfloat16_is_finite(model: RefSegmentor) -> None:
    """Scores stay in fp32. (With other features, other pixels may be best, so answers may change.)"""
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prediction = model(prepared(model))
    assert torch.isfinite(prediction.mask_logits).all()
    assert prediction.regions is None or prediction.regions.scores.dtype is torch.float32


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ConfigError, match=r"key_values 'words'\. Valid values: visual, language"):
        tiny_model("vipa_swinb", key_values="words")
    with pytest.raises(ConfigError, match="Set cues and generator to None"):
        tiny_model("vipa_swinb", key_values="language")
    with pytest.raises(ConfigError, match=r"Set supervision\.scores to None"):
        tiny_model("vipa_swinb", **{"cues.global_cue": False, "cues.local_cues": False})
    model = tiny_model(f"{ABLATIONS}/table6a_without_retrieval", **{"encoder.fusion": None})
    with pytest.raises(ConfigError, match="Nothing in this model reads the words"):
        model(prepared(model))
