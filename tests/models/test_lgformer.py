"""LGFormer's parts and the rows of its tables."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models.referring_checks import is_key_bias, logits_of, parameters_without_gradient, prepared, tiny_model
from refseg.engine.run import load_config
from refseg.errors import ConfigError
from refseg.models.lgformer.pixel_decoder import Decoded, LanguageGuidedPixelDecoder
from refseg.models.lgformer.prototype import MaskMerge, PrototypeGenerator, dot_products
from refseg.structures import EncodedFeatures, Prediction

ABLATIONS = "lgformer/ablations"


def parts(config: str) -> set[str]:
    """First two names of all parameters of a model."""
    return {".".join(name.split(".")[:2]) for name, _ in tiny_model(config).named_parameters()}


def words_read(config: str) -> int:
    return sum(".cross_attn_words." in name for name, _ in tiny_model(config).named_parameters())


def test_ablation_rows_differ_as_expected() -> None:
    """A layer that reads words, or pixels, has 6 parameters for it: weight and bias of query, key and value, output."""
    full = tiny_model("lgformer_swinb_refcocoplus")
    assert len(full.pixel_decoder.layers) == 2 and len(full.prototype.layers) == 3  # shrunk for tests
    assert words_read("lgformer_swinb_refcocoplus") == 2 * 6
    assert words_read(f"{ABLATIONS}/table4_vlba_only") == 0
    assert words_read(f"{ABLATIONS}/table4_without_v2la") == 2 * 6
    assert words_read(f"{ABLATIONS}/table6_sentence_embedding") == 2 * 6
    for row, pixels_read in (
        ("table4_pwam_baseline", False),
        ("table4_without_v2la", False),
        ("table6_sentence_embedding", True),
    ):
        names = [name for name, _ in tiny_model(f"{ABLATIONS}/{row}").named_parameters()]
        assert any("prototype.layers.0.cross_attn_pixels" in name for name in names) is pixels_read
        assert any("word_update" in name for name in names) is (row != "table4_pwam_baseline")
    assert "prototype.queries" in parts(f"{ABLATIONS}/table2_1_learnable_query")
    assert "merge.mlp" in parts(f"{ABLATIONS}/table2_10_learnable_queries")
    assert not {"prototype.queries", "merge.mlp"} & parts("lgformer_swinb_refcocoplus")


@pytest.mark.parametrize("row", ["table2_10_learnable_queries", "table4_vlba_only", "table6_sentence_embedding"])
def test_ablation_rows_train(row: str) -> None:
    model = tiny_model(f"{ABLATIONS}/{row}")
    unseen = {n for n in parameters_without_gradient(model, prepared(model)) if "key.bias" not in n}
    # zero offsets at the start hide positions where nothing else reads them; one query has nothing to choose from
    unseen -= {"pixel_decoder.level_embed"} if row == "table4_vlba_only" else set()
    assert {n for n in unseen if not (n.startswith("prototype.layers") and ".self_attn.query" in n)} == set()


def test_interpolating_products_equals_interpolating_features() -> None:
    """What lets the product be taken at stride 8: both are linear."""
    prototypes, feats = torch.randn(2, 3, 8), torch.randn(2, 8, 5, 6)
    wanted = dot_products(prototypes, F.interpolate(feats, scale_factor=2, mode="bilinear"))
    torch.testing.assert_close(
        F.interpolate(dot_products(prototypes, feats), scale_factor=2, mode="bilinear"), wanted, atol=1e-5, rtol=1e-5
    )


def test_masks_have_stride_4() -> None:
    for config in ("lgformer_swinb", "lgformer_tiny_refshapes", f"{ABLATIONS}/table2_10_learnable_queries"):
        model = tiny_model(config)
        assert logits_of(model, prepared(model)).shape == (6, 16, 24)


def test_mask_merge_is_per_pixel() -> None:
    merge = MaskMerge(3, 4)
    logits = torch.randn(2, 3, 4, 5)
    whole = merge(logits)
    torch.testing.assert_close(whole[:, :, 2:3, 1:2], merge(logits[:, :, 2:3, 1:2]))


def test_linguistic_query_ignores_padding() -> None:
    """The linguistic query is the mean of valid words."""
    generator = PrototypeGenerator(word_dim=4, embed_dim=8, num_layers=0)
    words = torch.randn(1, 3, 4)
    mask, no_levels = torch.tensor([[True, True, False]]), Decoded([], [], [], torch.empty(0))
    mean = generator.project_sentence(words[:, :2].mean(1))[:, None]
    torch.testing.assert_close(generator(no_levels, words, mask, padded=False), generator.head(mean))


def features_for(decoder: LanguageGuidedPixelDecoder, masks: list[torch.Tensor]) -> EncodedFeatures:
    draw = torch.Generator().manual_seed(0)
    levels = [torch.randn(1, 6, *mask.shape[1:], generator=draw) for mask in masks]
    return EncodedFeatures(levels, masks, (8, 16, 32), None)


def small_decoder(**settings: object) -> LanguageGuidedPixelDecoder:
    torch.manual_seed(0)
    decoder = LanguageGuidedPixelDecoder(
        level_dims=(6, 6, 6), word_dim=5, embed_dim=8, num_layers=2, num_heads=2, ffn_dim=8, **settings
    )
    for layer in decoder.layers:  # offsets and weights begin with zeros; as after some training
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.5)
    return decoder.eval()


MASKS = [torch.ones(1, 8, 8, dtype=torch.bool), torch.ones(1, 4, 4, dtype=torch.bool), torch.ones(1, 2, 2).bool()]
WORDS, WORD_MASK = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(1)), torch.ones(1, 3, dtype=torch.bool)


def test_a_sentence_is_the_mean_of_its_words() -> None:
    """Table 6: words replaced by their mean change nothing there, and something where words are read one by one."""
    mean = WORDS.mean(1, keepdim=True).expand(-1, 3, -1)
    for l2va, same in (("sentence", True), ("words", False)):
        decoder = small_decoder(l2va=l2va)
        with torch.no_grad():
            one, other = (
                decoder(features_for(decoder, MASKS), words, WORD_MASK, padded=False) for words in (WORDS, mean)
            )
        assert torch.allclose(one.mask_feats, other.mask_feats, atol=1e-6) is same


def test_padded_pixels_are_masked() -> None:
    """Whatever the right half of each level holds, the left half and the prototype stay the same. (GroupNorm, which
    counts all pixels, is taken out.)"""
    masks = [mask.clone() for mask in MASKS]
    for mask in masks:
        mask[..., mask.shape[-1] // 2 :] = False
    decoder = small_decoder()
    for project in decoder.project:
        project[1] = torch.nn.Identity()
    generator = PrototypeGenerator(word_dim=5, embed_dim=8, num_layers=3, num_heads=2, ffn_dim=8).eval()
    clean = features_for(decoder, masks)
    dirty = replace(clean, levels=[level.clone() for level in clean.levels])
    for level, mask in zip(dirty.levels, masks, strict=True):
        level.transpose(0, 1)[:, ~mask] = 50.0
    with torch.no_grad():
        decoded = [decoder(features, WORDS, WORD_MASK, padded=True) for features in (clean, dirty)]
        prototypes = [generator(one, WORDS, WORD_MASK, padded=True) for one in decoded]
    kept = [one.mask_feats.transpose(0, 1)[:, masks[0]] for one in decoded]
    torch.testing.assert_close(kept[0], kept[1])
    torch.testing.assert_close(prototypes[0], prototypes[1])


def test_levels_go_from_coarse_to_fine() -> None:
    """Five layers: strides 32, 16, 8, and again 32, 16."""
    generator = PrototypeGenerator(word_dim=5, embed_dim=8, num_layers=5, num_heads=2, ffn_dim=8)
    seen = []
    for layer in generator.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[1].shape[1]))
    decoder = small_decoder()
    generator(decoder(features_for(decoder, MASKS), WORDS, WORD_MASK, padded=False), WORDS, WORD_MASK, padded=False)
    assert seen == [4, 16, 64, 4, 16]


def test_labels_are_one_from_half_coverage() -> None:
    """A mask of the upper 30 rows of 64: at stride 4, 7 rows of 16 are full and the eighth is half, so 8 of 16 are 1.
    With logit 3 everywhere the loss is (softplus(-3) + softplus(3)) / 2."""
    model = tiny_model("lgformer_swinb")
    batch = prepared(model, num_images=1, expressions_per_image=1)
    batch.instance_masks[0][:] = False
    batch.instance_masks[0][:, :30] = True
    loss = model.losses(Prediction(torch.full((1, 16, 24), 3.0)), batch)["loss_mask"]
    softplus = F.softplus(torch.tensor([-3.0, 3.0]))
    torch.testing.assert_close(loss, softplus.mean())


def test_other_encoders_train() -> None:
    """BEiT-3 has no text encoder of its own, only levels and words: of strides 4, 8 and 16 here."""
    cfg = load_config("vipa_beit3b_refcoco")
    cfg.merge_from_dict(cfg._tiny)
    model = tiny_model("lgformer_swinb", encoder=dict(_delete_=True, **cfg.model.encoder))
    batch = prepared(model, shape=(64, 96))
    assert logits_of(model, batch).shape == (6, 16, 24)
    unseen = {name for name in parameters_without_gradient(model, batch) if not is_key_bias(name)}
    assert not {name for name in unseen if not (name.startswith("prototype.layers") and ".self_attn.query" in name)}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("embed_dim", 48, r"embed_dim 48 must be a multiple of 32 \(GroupNorm\)"),
        ("merge_dim", 0, "merge_dim is 0, but must be at least 1"),
        ("pixel_decoder.l2va", "word", r"l2va 'word'\. Valid values: words, sentence, None"),
        ("pixel_decoder.lateral", True, "lateral=True needs 4 encoder levels, got 3"),
        ("pixel_decoder.num_heads", 3, r"embed_dim 32 must be a multiple of 3 \(heads\)"),
        ("prototype.embed_dim", 8, r"prototype\.embed_dim follows from other keys of the model\. Remove it"),
        ("prototype.num_heads", 3, r"prototype\.num_heads 3 must divide embed_dim 32"),
        ("prototype.num_queries", 10, "num_queries is 10"),
        ("prototype.query", "learned", r"query 'learned'\. Valid values: linguistic, learnable"),
    ],
)
def test_invalid_values_name_the_key(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_model("lgformer_swinb", **{key: value})
