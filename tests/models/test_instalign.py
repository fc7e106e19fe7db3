"""InstAlign's parts, the rows of its tables, and what must hold for every model."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from models.referring_checks import (
    check_bfloat16,
    logits_of,
    only,
    padded_images,
    parameters_without_gradient,
    prepared,
    tiny_model,
    with_padded_words,
)
from refseg.engine.run import load_config
from refseg.errors import ConfigError
from refseg.models.instalign.heads import (
    EMPTY,
    InstanceAggregation,
    NoTargetPredictor,
    mask_statistics,
    misalignment,
    word_attention,
)
from refseg.models.layers import Groups
from refseg.models.losses.instances import BlockOutput, InstanceWeights, match

ABLATIONS = "instalign/ablations"


# Phrase-object alignment
# -----------------------------------------------------------------------------------------------


def test_word_attention_by_hand() -> None:
    """C = 4, so scores are halved: the query (2, 0, 0, 0) and words (ln 3, ...) and (0, ...) give scores ln 3 and 0,
    hence 3/4 and 1/4; a third word is padding."""
    query = torch.tensor([[[2.0, 0, 0, 0]]])
    words = torch.tensor([[[math.log(3), 0, 0, 0], [0, 1.0, 0, 0], [9.0, 9, 9, 9]]])
    attention = word_attention(query, words, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(attention, torch.tensor([[[0.75, 0.25, 0.0]]]))


def test_misalignment_by_hand() -> None:
    """A phrase of the query's direction costs 0, one at a right angle 1, the opposite one 2."""
    query = torch.tensor([[[3.0, 0.0], [3.0, 0.0], [3.0, 0.0]]])
    words = torch.tensor([[[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]]])
    torch.testing.assert_close(misalignment(query, words, torch.eye(3)[None]), torch.tensor([[0.0, 1.0, 2.0]]))


def test_alignment_of_no_words_is_finite() -> None:
    """A text of padding alone: nothing is attended to, the phrase is zero, and the cosine with it is 0."""
    query, words, mask = torch.randn(1, 2, 4), torch.randn(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool)
    attention = word_attention(query, words, mask)
    assert not attention.any()
    torch.testing.assert_close(misalignment(query, words, attention), torch.ones(1, 2))


def test_alignment_by_attention_reads_the_blocks_own_attention() -> None:
    """Eq. 4 with the object-text attention: a model whose queries all attend to one word has that word as phrase."""
    model = tiny_model("instalign_swinb", alignment="attention").train()
    batch = prepared(model)
    decoded = []
    model.decoder.register_forward_hook(lambda _, args, output: decoded.extend(output))
    blocks = model(batch).auxiliary.blocks
    for block, (query_feats, words, attention) in zip(blocks, decoded, strict=True):
        phrase = torch.einsum("ehnl,elc->enc", attention, words) / attention.shape[1]
        cosine = torch.nn.functional.cosine_similarity(query_feats, phrase, dim=-1)
        torch.testing.assert_close(block.misalignment, 1 - cosine)


def test_words_come_from_the_chosen_block_and_heads() -> None:
    decoded: list = []
    returned = {}
    for name, words in {
        "default": {},
        "head": dict(block=0, heads=(1,)),
        "dot": dict(matrix="dot"),
    }.items():
        decoded.clear()
        model = tiny_model("instalign_swinb", words=words).eval()
        model.decoder.register_forward_hook(lambda _, args, output: decoded.extend(output))
        with torch.no_grad():
            returned[name] = torch.stack([one.word_attention for one in model(prepared(model)).instances])
    mask = torch.ones(returned["dot"].shape[0], returned["dot"].shape[-1], dtype=torch.bool)
    assert torch.equal(returned["default"], decoded[-2].word_attention.mean(1))
    assert torch.equal(returned["head"], decoded[0].word_attention[:, 1])
    assert torch.equal(returned["dot"], word_attention(decoded[-1].query_feats, decoded[-1].word_feats, mask))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alignment": "cosine"}, "cosine"),
        ({"words": dict(block=9)}, "words.block 9 exceeds the decoder's 9 blocks"),
        ({"words": dict(matrix="both")}, "words.matrix"),
        ({"alignment": "attention", "decoder.reads_words": False}, "blocks attend to words"),
    ],
)
def test_wrong_choices_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_model("instalign_swinb", **options)


# Aggregation and no-target
# ---------------------------------------------------------------------------------------------


def test_aggregation_by_hand() -> None:
    """Eq. 5 with slope 0.25 at one pixel: 0.5 PReLU(4) + 0.9 PReLU(-8) = 2 - 1.8."""
    logits, relevance = torch.tensor([4.0, -8.0])[None, :, None, None], torch.tensor([[0.5, 0.9]])
    torch.testing.assert_close(InstanceAggregation("soft")(logits, relevance), torch.tensor([[[0.2]]]))
    torch.testing.assert_close(InstanceAggregation("soft_without_prelu")(logits, relevance), torch.tensor([[[-5.2]]]))


def test_fixed_selection_is_a_union() -> None:
    """Of the queries of relevance above 0.5 the largest logit; nothing where there is none."""
    logits = torch.tensor([4.0, -8.0, 99.0])[None, :, None, None].repeat(2, 1, 1, 1)
    merged = InstanceAggregation("fixed")(logits, torch.tensor([[0.6, 0.9, 0.5], [0.1, 0.2, 0.5]]))
    assert merged.flatten().tolist() == [4.0, EMPTY]


def test_aggregation_learns_its_slope() -> None:
    aggregate = InstanceAggregation("soft")
    aggregate(torch.full((1, 1, 1, 1), -3.0), torch.tensor([[0.5]])).sum().backward()
    torch.testing.assert_close(aggregate.slope.grad, torch.tensor([-1.5]))
    assert not any(slope.requires_grad for slope in InstanceAggregation("fixed").parameters())


def test_mask_statistics_by_hand() -> None:
    """A merged mask of logits ln 3, 0, -ln 3 and padding: probabilities 3/4, 1/2, 1/4, of which one is inside. Of two
    instances of relevance 1 and 1/3 with constant logits 0 and ln 3, the mean weighs 3/4 and 1/4."""
    log3 = math.log(3)
    merged = torch.tensor([[[log3, 0.0, -log3, 9.0]]])
    logits = torch.tensor([0.0, log3])[None, :, None, None].repeat(1, 1, 1, 4)
    valid = torch.tensor([[[True, True, True, False]]])
    result = mask_statistics(logits, torch.tensor([[1.0, 1 / 3]]), merged, valid)
    instances = [log3 / 40, 0.75 / 4, (0.5 * 0.75 + 0.75 * 0.25) * 3 / 4]
    torch.testing.assert_close(result, torch.tensor([[log3 / 10, 0.75, 1.5 / 4, *instances]]))


@pytest.mark.parametrize(("features", "width"), [("concat", 5), ("sentence", 3), ("relevant", 2), ("mean", 2)])
def test_no_target_input_features(features: str, width: int) -> None:
    predictor = NoTargetPredictor(embed_dim=2, sentence_dim=3, features=features)
    seen = []
    predictor.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].tolist()))
    query = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    words = torch.tensor([[[1.0, 1.0, 1.0], [3.0, 5.0, 7.0], [9.0, 9.0, 9.0]]])
    predictor(query, torch.tensor([[1.0, 0.5]]), words, torch.tensor([[True, True, False]]))
    wanted = dict(concat=[2.5, 5, 2, 3, 4], sentence=[2, 3, 4], relevant=[2.5, 5], mean=[2, 4])[features]
    assert len(wanted) == width and seen == [wanted]


def test_no_target_with_normalized_relevance() -> None:
    """(1 x 1 + 0.5 x 3) / 1.5."""
    predictor = NoTargetPredictor(embed_dim=1, sentence_dim=3, features="relevant", normalize=True)
    seen = []
    predictor.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0].item()))
    words, mask = torch.zeros(1, 1, 3), torch.ones(1, 1, dtype=torch.bool)
    predictor(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[1.0, 0.5]]), words, mask)
    assert seen == [pytest.approx(2.5 / 1.5)]


# The tables -----------------------------------------------------------------------------------------------------------


def losses(config: str, **overrides: object) -> set[str]:
    model = tiny_model(config, **overrides)
    model.train()
    return set(model(prepared(model), mode="loss"))


def test_rows_of_table_3a_differ_in_losses() -> None:
    merged = {"loss_merged", "loss_no_target"}
    plain = merged | {"loss_relevance", "loss_instance_mask", "loss_instance_dice", "num_nonfinite_costs"}
    assert losses("instalign_swinb") == plain | {"loss_poa"}
    assert losses(f"{ABLATIONS}/table3a_without_poa") == plain
    assert losses(f"{ABLATIONS}/table3a_without_instance_supervision") == merged


def test_rows_of_other_tables_differ_as_expected() -> None:
    default = tiny_model("instalign_swinb")
    assert (default.aggregate.mode, default.no_target.features) == ("soft", "concat")
    assert tiny_model(f"{ABLATIONS}/table3b_fixed_selection").aggregate.mode == "fixed"
    without = tiny_model(f"{ABLATIONS}/table3b_without_prelu").aggregate.slope
    assert without.item() == 1 and not without.requires_grad
    assert tiny_model(f"{ABLATIONS}/table3c_sentence_only").no_target.features == "sentence"
    assert tiny_model(f"{ABLATIONS}/table3c_relevant_queries_only").no_target.features == "relevant"
    assert tiny_model(f"{ABLATIONS}/table3c_mean_of_queries").no_target.features == "mean"
    assert default.loss_weights == dict(instance=1.0, merged=1.0, merged_dice=0.0, no_target=0.1)
    assert tiny_model(f"{ABLATIONS}/section9_2_instance_weight_half").loss_weights["instance"] == 0.5


def test_mask2former_decoder_ignores_the_text() -> None:
    """Other words change neither relevance nor masks, and no-target alone."""
    for config, same in (("mask2former_swinb", True), ("instalign_swinb", False)):
        model = tiny_model(config).eval()
        batch = prepared(model)
        other = replace(batch, tokens=replace(batch.tokens, ids=batch.tokens.ids.flip(0)))
        with torch.no_grad():
            one, two = model(batch), model(other)
        assert torch.equal(one.mask_logits, two.mask_logits) is same
        assert not torch.equal(one.no_target_logit, two.no_target_logit)


@pytest.mark.parametrize("num_points", [64, None])
@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("instalign_swinb", {}),
        ("instalign_swinb", {"alignment": "attention", "no_target.features": "concat_mask"}),
        ("mask2former_swinb", {}),
        (f"{ABLATIONS}/table3a_without_instance_supervision", {}),
        (f"{ABLATIONS}/table3a_without_poa", {}),
    ],
)
def test_every_parameter_learns(config: str, options: dict, num_points: int | None) -> None:
    """Every parameter gets a gradient that is not zero, as distributed training needs. Exceptions are biases of keys,
    which a softmax does not see, and what only the offsets of deformable attention see, which begins with zero weights.
    """
    options = {"instances.num_points": num_points, "encoder.vision.drop_path_rate": 0.0, **options}
    model = tiny_model(config, **options)
    for layer in model.pixel_decoder.mmdet_decoder.encoder.layers:
        torch.nn.init.normal_(layer.self_attn.attention_weights.weight, std=0.5)
    unseen = {n for n in parameters_without_gradient(model, prepared(model)) if not n.endswith("key.bias")}
    assert unseen == set()


def test_merged_losses_by_hand() -> None:
    """Logits 0: BCE is ln 2 wherever it counts. Of two phrases one refers to half of the image, so that its dice is
    1 - (2 x 8 x 0.5 + 1) / (16 x 0.5 + 8 + 1) = 1 - 9 / 17; the other refers to nothing and has no dice."""
    model = tiny_model("instalign_swinb", merged_dice_weight=2.0)
    batch = prepared(model, shape=(32, 32), num_images=1, expressions_per_image=2)
    losses = model._merged_losses(torch.zeros(2, 4, 4), batch)
    torch.testing.assert_close(losses["loss_merged"], torch.tensor(math.log(2)))
    torch.testing.assert_close(losses["loss_merged_dice"], torch.tensor(2 * (1 - 9 / 17)))


def test_merged_losses_ignore_padding() -> None:
    model = tiny_model("instalign_swinb", merged_dice_weight=2.0)
    batch = padded_images(prepared(model, shape=(32, 32), num_images=1, expressions_per_image=2), 32, 16)
    batch = replace(batch, instance_masks=[masks & batch.pixel_mask for masks in batch.instance_masks])
    logits = torch.randn(2, 4, 4)
    other = logits.clone()
    other[..., 2:] = 7.0
    assert model._merged_losses(logits, batch) == model._merged_losses(other, batch)


# What must hold for every model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["concat", "concat_mask"])
def test_padded_words_have_no_effect(features: str) -> None:
    model = tiny_model("instalign_swinb", **{"no_target.features": features}).eval()
    batch = prepared(model)
    with torch.no_grad():
        one, two = model(batch), model(with_padded_words(batch))
    torch.testing.assert_close(one.mask_logits, two.mask_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.no_target_logit, two.no_target_logit, atol=1e-5, rtol=1e-5)
    for a, b in zip(one.instances, two.instances, strict=True):
        torch.testing.assert_close(a.relevance, b.relevance, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.word_attention, b.word_attention[:, : a.word_attention.shape[1]])


@pytest.mark.parametrize("config", ["instalign_swinb", "mask2former_swinb", "instalign_tiny_refshapes"])
def test_phrases_together_equal_one_by_one(config: str) -> None:
    """Two images with three phrases each."""
    model = tiny_model(config).eval()
    batch = prepared(model, shape=(64, 64))
    with torch.no_grad():
        together = model(batch)
        for expression in range(batch.num_expressions):
            alone = model(only(batch, expression))
            torch.testing.assert_close(together.mask_logits[expression], alone.mask_logits[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(together.no_target_logit[expression], alone.no_target_logit[0])
            torch.testing.assert_close(
                together.instances[expression].relevance, alone.instances[0].relevance, atol=1e-5, rtol=1e-4
            )


def test_images_with_different_numbers_of_phrases() -> None:
    """Two phrases of the first image, three of the second."""
    model = tiny_model("instalign_swinb").eval()
    batch = prepared(model)
    meta = batch.metas[0]
    fewer = replace(
        batch,
        image_of=batch.image_of[1:],
        tokens=replace(batch.tokens, text_of=batch.tokens.text_of[1:]),
        metas=[replace(meta, expression_ids=meta.expression_ids[1:], texts=meta.texts[1:]), batch.metas[1]],
    )
    torch.testing.assert_close(logits_of(model, fewer), logits_of(model, batch)[1:], atol=1e-5, rtol=1e-5)


def test_padded_pixels_have_no_effect_in_the_decoder() -> None:
    """The same pixels read with other values in the padding. (Encoders and GroupNorm are not blind to padding: only the
    transformer parts are.)"""
    model = tiny_model("instalign_swinb").eval()
    batch = padded_images(prepared(model), 64, 64)
    with torch.no_grad():
        features, text = model.encoder(batch)
        pixels = model.pixel_decoder(features, padded=True)
        dirty = pixels._replace(
            levels=[
                level.masked_fill(~mask.flatten(1)[..., None], 9.0)
                for level, mask in zip(pixels.levels, pixels.masks, strict=True)
            ]
        )
        words, word_mask = text.per_expression()
        groups = Groups(batch.expression_counts, "cpu")
        one, two = (model.decoder(p, words, word_mask, groups=groups, heads=model.heads) for p in (pixels, dirty))
    torch.testing.assert_close(one[-1].query_feats, two[-1].query_feats)


def test_blocks_attend_inside_their_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks but the first, at their own level; that one, too, if asked for; none without masked attention."""
    import refseg.models.instalign.decoder as module

    for key, value, wanted in (
        ("masked_attention", True, [1, 2, 0, 1, 2, 0, 1, 2]),
        ("first_masked", True, [0, 1, 2, 0, 1, 2, 0, 1, 2]),
        ("masked_attention", False, []),
    ):
        levels: list[int] = []
        original = module.pixel_attn_mask
        monkeypatch.setattr(module, "pixel_attn_mask", lambda *a, seen=levels, f=original: seen.append(a[1]) or f(*a))
        model = tiny_model("instalign_swinb", **{f"decoder.{key}": value})
        logits_of(model, prepared(model))
        monkeypatch.undo()
        assert levels == wanted


def test_groups_of_parameters() -> None:
    """A tenth of the rate for the pretrained encoders and nothing else; no decay for norms and the like."""
    cfg = load_config("instalign_swinb")
    model = tiny_model("instalign_swinb")
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = {name_of[id(p)]: g for g in wrapper.optimizer.param_groups for p in g["params"]}
    slow = {name for name, group in settings.items() if group["lr"] == pytest.approx(1e-5)}
    assert slow == {name for name in settings if name.startswith("encoder.")}
    kept = {name for name, group in settings.items() if group["weight_decay"] == 0}
    norms = {
        f"{module}.{name}"
        for module, part in model.named_modules()
        if isinstance(part, torch.nn.LayerNorm | torch.nn.GroupNorm)
        for name, _ in part.named_parameters()
    }
    embeddings = {"decoder.queries", "decoder.query_position", "decoder.level_embed", "aggregate.slope"}
    tables = {name for name in settings if "position_bias_table" in name or "level_encoding" in name}
    assert kept == norms | embeddings | tables


def test_pairs_do_not_depend_on_half_precision() -> None:
    """A mask that is right on half of a large image: sums over 12,544 points do not fit into fp16."""
    feats, target = torch.full((1, 1, 12544), -12.0), torch.zeros(1, 1, 12544)
    feats[..., :6272], target[..., :6272] = 12.0, 1.0
    query = torch.tensor([[[-1.0], [0.1], [1.0]]])
    with torch.autocast("cpu", torch.float16):
        assert word_attention(query, query, torch.ones(1, 3, dtype=torch.bool)).dtype == torch.float32
        block = BlockOutput(torch.zeros(1, 3), query.half(), torch.zeros(1, 3))
        referents = SimpleNamespace(
            mask_feats=feats, sample=lambda _: (feats, target), groups=Groups([1], "cpu"), padding=None, counts=[1]
        )
        (pairs,), bad = match([block], referents, InstanceWeights())
    assert bad == 0 and pairs.query.tolist() == [2]


def test_bfloat16_trains_and_predicts() -> None:
    model = tiny_model("instalign_swinb")
    gradients = check_bfloat16(model, prepared(model))
    assert all(gradients[f"heads.mask.{name}"].any() for name, _ in model.heads.mask.named_parameters())


def test_instances_come_with_relevance_and_words() -> None:
    model = tiny_model("instalign_swinb", **{"postprocess": dict(instance_threshold=0.0)}).eval()
    batch = prepared(model)
    with torch.no_grad():
        results = model(batch, mode="predict")
    for result in results:
        assert len(result.instances) == 3
        for instances in result.instances:
            assert len(instances) <= 5
            assert all(one.mask.shape == (64, 96) and 0 <= one.score <= 1 and len(one.words) == 1 for one in instances)


def test_only_relevant_instances_are_returned() -> None:
    model = tiny_model("instalign_swinb").eval()
    batch = prepared(model)
    torch.nn.init.constant_(model.heads.relevance[-1].bias, -30.0)
    with torch.no_grad():
        assert all(instances == [] for result in model(batch, mode="predict") for instances in result.instances)
