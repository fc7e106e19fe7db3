"""The loop of stages: what is shared until the first fusion, what is gathered there, and what goes where."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.referring_checks import padded_images
from refseg.analysis.synthetic import dummy_batch
from refseg.errors import ConfigError
from refseg.models import FusedEncoder, ReferringDataPreprocessor
from refseg.structures import Batch

SWIN = dict(
    type="SwinEncoder",
    arch=dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)),
    window_size=4,
    drop_path_rate=0.0,
)
BERT = dict(
    type="TextEncoder",
    config=dict(
        model_type="bert",
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ),
)

STAGED = dict(type="StagedCrossAttention", head_dim=8)


def encoder(**settings: object) -> FusedEncoder:
    torch.manual_seed(0)
    return FusedEncoder(**{"vision": SWIN, "text": BERT, **settings}).eval()


def batch_of(expressions: int = 3) -> Batch:
    data = dummy_batch(shape=(64, 96), num_images=2, expressions_per_image=expressions, num_words=5, vocab_size=50)
    return ReferringDataPreprocessor()(data)["batch"]


def test_without_fusion_nothing_is_gathered() -> None:
    """2 images with 3 expressions each: 2 rows of pixels, as each encoder gives them alone."""
    batch = batch_of()
    model = encoder(out_stages=(1, 3))
    with torch.no_grad():
        features, text = model(batch)
        levels = model.vision(batch.images)
    assert [tuple(level.shape) for level in features.levels] == [(2, 16, 8, 12), (2, 64, 2, 3)]
    assert features.strides == (8, 32) and model.level_dims == (16, 64)
    assert [tuple(mask.shape) for mask in features.masks] == [(2, 8, 12), (2, 2, 3)]
    for level, wanted in zip(features.levels, levels, strict=True):
        torch.testing.assert_close(level, wanted)
    assert features.image_of is batch.image_of
    torch.testing.assert_close(text.word_feats, model.text(batch.tokens).word_feats)
    assert features.per_expression().levels[0].shape[0] == 6


@pytest.mark.parametrize("fusion", [dict(type="PWAM"), dict(type="VLBA"), STAGED], ids=lambda fusion: fusion["type"])
@pytest.mark.parametrize("first", [0, 2])
def test_rows_are_images_until_the_first_fusion(fusion: dict, first: int) -> None:
    model = encoder(fusion=fusion, fused_stages=tuple(range(first, 4)))
    rows = []
    run = model.vision.run_stage
    model.vision.run_stage = lambda stage, tokens, size: rows.append(len(tokens)) or run(stage, tokens, size)
    with torch.no_grad():
        features, text = model(batch_of())
    assert rows == [2] * (first + 1) + [6] * (3 - first)
    assert all(len(rows) == 6 for rows in (*features.levels, *features.masks))
    assert features.image_of is None and features.per_expression() is features
    assert text.word_feats.shape == (6, 5, 16) and text.text_of is None


def test_expressions_of_images_in_any_order() -> None:
    """Levels from before the first fusion follow the expressions too."""
    batch = batch_of()
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    tokens = replace(batch.tokens, text_of=batch.tokens.text_of[order])
    mixed = replace(batch, image_of=batch.image_of[order], tokens=tokens)
    model = encoder(fusion=dict(type="VLBA"), fused_stages=(2, 3))
    with torch.no_grad():
        (features, text), (wanted, words) = model(mixed), model(batch)
    for level, other in zip(features.levels, wanted.levels, strict=True):
        torch.testing.assert_close(level, other[order])
    torch.testing.assert_close(text.word_feats, words.word_feats[order])


def test_text_stages_may_have_any_length() -> None:
    """Without a fusion, cuts change nothing; five stages are more than the vision has, the last run at its end."""
    batch = batch_of()
    with torch.no_grad():
        whole, *cut = (encoder(text={**BERT, "stages": stages})(batch)[1] for stages in (None, (1, 1, 1), (2, 1)))
        five = {**BERT, "config": {**BERT["config"], "num_hidden_layers": 5}}
        long, longer = (encoder(text={**five, "stages": stages})(batch)[1] for stages in (None, (1, 1, 1, 1, 1)))
    for text in cut:
        torch.testing.assert_close(text.word_feats, whole.word_feats)
    torch.testing.assert_close(longer.word_feats, long.word_feats)


def test_later_text_stages_see_fused_words() -> None:
    """VLBA changes the words that enter the second text stage; PWAM leaves them."""
    batch = batch_of()
    for fusion, same in (("PWAM", True), ("VLBA", False)):
        cut = encoder(text={**BERT, "stages": (1, 2)}, fusion=dict(type=fusion))
        with torch.no_grad():
            words = cut(batch)[1].word_feats
            alone = cut.text(batch.tokens).per_expression()[0]
        assert torch.allclose(words, alone, atol=1e-6) is same


def test_words_and_pixels_meet_stage_by_stage() -> None:
    """Text stage i + 1 gets words that have seen vision stage i: what enters vision stage 3 matters to none of the text
    stages 0 to 3, and what enters vision stage 2 to text stage 3 alone."""
    batch = batch_of()
    text = {**BERT, "stages": (1, 1, 1, 1), "config": {**BERT["config"], "num_hidden_layers": 4}}
    entering: list[list[torch.Tensor]] = []
    for changed in (None, 3, 2):
        model = encoder(text=text, fusion=STAGED)
        entered: list[torch.Tensor] = []
        run_text, run_vision = model.text.run_stage, model.vision.run_stage
        model.text.run_stage = lambda stage, words, bias, run=run_text, kept=entered: (
            kept.append(words) or run(stage, words, bias)
        )
        model.vision.run_stage = lambda stage, pixels, size, run=run_vision, which=changed: run(
            stage, pixels + 1.0 * (stage == which) * pixels.flip(1), size
        )
        with torch.no_grad():
            model(batch)
        entering.append(entered)
    same = [[torch.equal(*words) for words in zip(entering[0], other, strict=True)] for other in entering[1:]]
    assert same == [[True, True, True, True], [True, True, True, False]]


def test_late_fusion_shares_both_encoders() -> None:
    """One fusion after all layers, in both directions: until then a row per image and per text."""
    model = encoder(fusion={**STAGED, "updates_words": "always"}, fused_stages=(3,))
    rows = []
    run = model.vision.run_stage
    model.vision.run_stage = lambda stage, tokens, size: rows.append(len(tokens)) or run(stage, tokens, size)
    batch = batch_of()
    with torch.no_grad():
        features, text = model(batch)
        alone = model.text(batch.tokens).per_expression()[0]
    assert rows == [2] * 4 and features.image_of is None
    assert not torch.allclose(text.word_feats, alone, atol=1e-3)
    assert model.word_dim == 16 == text.word_feats.shape[-1]


def test_fusions_and_decoders_get_padding_masks() -> None:
    """Of 64 x 96 pixels 32 x 64 are image: at stride 32, two of six. Without padding a fusion gets no mask."""
    model = encoder(fusion=dict(type="VLBA"))
    given = []
    model.fusions["3"].register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["pixel_mask"]), with_kwargs=True
    )
    features, _ = model(padded_images(batch_of(), 32, 64))
    assert features.masks[3][0].tolist() == [[True, True, False], [False, False, False]]
    model(batch_of())
    assert given[0][0].tolist() == [True, True, False, False, False, False]
    assert given[1] is None


RESNET = dict(type="mmdet.ResNet", depth=18, base_channels=8, stem_channels=8)
VIT = dict(
    type="TimmEncoder", name="vit_tiny_patch16_224", options=dict(depth=1, embed_dim=32, num_heads=2), pyramid_dim=16
)


@pytest.mark.parametrize("vision", [RESNET, VIT], ids=lambda vision: vision["type"])
@pytest.mark.parametrize("fusion", [dict(type="PWAM"), dict(type="VLBA"), STAGED], ids=lambda fusion: fusion["type"])
def test_without_stages_only_the_last_map_is_fused(vision: dict, fusion: dict) -> None:
    """Levels before the last one are the image encoder's, in a row per expression."""
    model, batch = encoder(vision=vision, fusion=fusion, fused_stages=(3,)), batch_of()
    with torch.no_grad():
        features, text = model(batch)
        levels = model.vision(batch.images)
    assert features.image_of is None and text.text_of is None and features.strides == (4, 8, 16, 32)
    assert [tuple(mask.shape) for mask in features.masks] == [(6, 16, 24), (6, 8, 12), (6, 4, 6), (6, 2, 3)]
    for level, wanted in zip(features.levels[:3], levels[:3], strict=True):
        torch.testing.assert_close(level, wanted[batch.image_of])
    assert not torch.allclose(features.levels[3], levels[3][batch.image_of], atol=1e-3)
    assert not torch.allclose(features.levels[3][0], features.levels[3][1], atol=1e-6), "both phrases of an image"


def test_fusion_between_stages_needs_stages() -> None:
    for vision, name in ((RESNET, r"mmdet\.ResNet"), (VIT, "vit_tiny_patch16_224")):
        with pytest.raises(ConfigError, match=rf"{name} cannot be run stage by stage.*Set fused_stages=\(3,\)"):
            encoder(vision=vision, fusion=STAGED, fused_stages=(2, 3))
    with pytest.raises(ConfigError, match=r"out_stages \(0, 1\) must contain 3, where words are fused"):
        encoder(vision=RESNET, fusion=STAGED, fused_stages=(3,), out_stages=(0, 1))


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("fusion", [dict(type="PWAM"), dict(type="VLBA"), STAGED], ids=lambda fusion: fusion["type"])
def test_fusions_work_between_stages_of_timm(name: str, fusion: dict) -> None:
    """Everything gets a gradient, and each level sees the words."""
    options = {"convnext_atto": dict(dims=(8, 8, 16, 16)), "swin_tiny_patch4_window7_224": dict(embed_dim=24)}[name]
    vision = dict(type="TimmEncoder", name=name, options=dict(options, depths=(1, 1, 1, 1)))
    model, batch = encoder(vision=vision, fusion=fusion, out_stages=(1, 2, 3)).train(), batch_of()
    features, text = model(batch)
    assert [len(level) for level in features.levels] == [6, 6, 6] and features.strides == (8, 16, 32)
    for level in features.levels:
        assert not torch.allclose(level[0], level[1], atol=1e-6), "both phrases of an image"
    (sum(level.square().mean() for level in features.levels) + text.word_feats.square().mean()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_missing_stages_raise() -> None:
    with pytest.raises(ConfigError, match="fused_stages"):
        encoder(fusion=dict(type="PWAM"), fused_stages=(3, 4))
    with pytest.raises(ConfigError, match=r"Set encoder\.out_stages instead"):
        encoder(vision={**SWIN, "out_stages": (3,)})
