"""DeRIS: the loopback, the union of instances, losses, parameter groups, size, and what holds for every model."""

import math
from dataclasses import replace

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from models.referring_checks import (
    check_bfloat16,
    check_finite_without_targets,
    check_padded_words,
    check_phrases_one_by_one,
    logits_of,
    num_parameters,
    padded_images,
    parameters_without_gradient,
    prepared,
    tiny_model,
)
from refseg.engine.run import load_config
from refseg.errors import ConfigError
from refseg.models import DeRIS
from refseg.models.deris.decoder import Loopback, sine_words
from refseg.models.layers import Groups
from refseg.models.losses import Referents, instance_losses
from refseg.models.postprocess import finish
from refseg.structures import Prediction, StackedInstances


@pytest.fixture(scope="module", params=["deris_beit3b", "deris_tiny_refshapes"])
def model(request: pytest.FixtureRequest) -> DeRIS:
    return tiny_model(request.param)


def test_every_trained_parameter_gets_a_gradient(model: DeRIS) -> None:
    """But for what softmax does not see: a key's bias, and the query where there is one thing to attend to; for
    positions that only deformable attention reads, whose offsets begin with weights of zero; and, with one channel in a
    group, for biases before GroupNorm."""
    unseen = {n for n in parameters_without_gradient(model, prepared(model)) if "key.bias" not in n}
    names = ("level_encoding.weight", "lateral_convs.0.conv.bias", "output_convs.0.conv.bias")
    unseen -= {f"pixel_decoder.mmdet_decoder.{name}" for name in names}
    if not model.decoder.loopbacks[0].among_queries:
        unseen = {n for n in unseen if "loopbacks" not in n or ".self_attn.query." not in n}
    assert unseen == set()


def test_phrases_together_equal_one_by_one(model: DeRIS) -> None:
    check_phrases_one_by_one(model)


def test_padded_words_have_no_effect(model: DeRIS) -> None:
    check_padded_words(model)


def test_words_affect_the_prediction(model: DeRIS) -> None:
    batch = prepared(model)
    other = replace(batch, tokens=replace(batch.tokens, text_of=batch.tokens.text_of.flip(0)))
    assert not torch.allclose(logits_of(model, batch), logits_of(model, other), atol=1e-6)


def test_no_target_and_padding_give_finite_losses(model: DeRIS) -> None:
    check_finite_without_targets(model)


def test_bfloat16_trains_and_predicts(model: DeRIS) -> None:
    check_bfloat16(model, prepared(model))


@pytest.mark.parametrize(("attention", "same"), [("itself", True), ("queries", False)])
def test_masks_reach_other_queries_in_the_loopback(attention: str, same: bool) -> None:
    """What lies inside a mask changes what queries attend to, unless each of them attends to itself alone."""
    torch.manual_seed(0)
    loopback = Loopback(8, 2, 16, attention=attention).eval()
    query, words, mask = torch.randn(2, 3, 8), torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)
    one, other = (loopback(query, torch.randn(2, 3, 8), words, mask, sine_words(4, 8, words.device)) for _ in range(2))
    assert torch.allclose(one[0], other[0], atol=1e-6) is same


def test_a_query_that_attends_to_itself_becomes_its_value() -> None:
    """The attention weight of the only entry is 1."""
    torch.manual_seed(0)
    loopback = Loopback(8, 2, 16, attention="itself").eval()
    query, words, mask = torch.randn(2, 3, 8), torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)
    updated, read = loopback(query, torch.randn(2, 3, 8), words, mask, sine_words(4, 8, words.device))
    attn = loopback.self_attn
    normed = loopback.norm(query + attn.out(attn.key_value(query).chunk(2, -1)[1]))
    wanted = loopback.read_words(normed, words, mask, word_position=sine_words(4, 8, words.device))
    torch.testing.assert_close(read, wanted)
    torch.testing.assert_close(updated, loopback.join(torch.cat([normed, wanted], -1)))


def test_positions_of_words_by_hand() -> None:
    wanted = [[math.sin(p), math.cos(p), 0, 1, 0, 1] for p in range(3)]
    torch.testing.assert_close(sine_words(3, 6, torch.device("cpu")), torch.tensor(wanted))


def test_padding_is_not_inside_a_mask() -> None:
    """Means over the image alone: with features of one value on the image and another one on padding."""
    model = tiny_model("deris_tiny_refshapes")
    seen = []
    loopback = model.decoder.loopbacks[0]
    loopback.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    decoder = model.decoder
    for part in (decoder.join_pixels, decoder.join_patches):
        torch.nn.init.zeros_(part.weight)
    torch.nn.init.ones_(decoder.join_pixels.bias)  # mask features of 1
    whole = prepared(model)
    for batch in (whole, padded_images(whole, 32, 48)):
        logits_of(model, batch)
    share = seen[0].flatten()[0]  # the probability of the mask, which is the same everywhere
    torch.testing.assert_close(seen[0], share.expand_as(seen[0]), rtol=0.5, atol=0.5)
    torch.testing.assert_close(seen[0], seen[1])


def prediction_of(relevance: list[float], no_target: float) -> Prediction:
    """Two instances: the upper and the lower half of 64 x 96 pixels."""
    logits = torch.full((1, 2, 64, 96), -2.0)
    logits[0, 0, :32] = logits[0, 1, 32:] = 2.0
    return Prediction(None, torch.tensor([no_target]), StackedInstances(logits, torch.tensor([relevance])))


@pytest.mark.parametrize(("relevance", "rows"), [([0.8, 0.9], 64), ([0.6, 0.71], 32), ([0.6, 0.69], 0)])
def test_the_answer_is_the_union_of_relevant_instances(relevance: list[float], rows: int) -> None:
    """Above 0.7, as published for gRefCOCO. Without any, the phrase is rejected, whatever the head says."""
    model = tiny_model("deris_beit3b")
    batch = prepared(model, num_images=1, expressions_per_image=1)
    for no_target in (-9.0, 9.0):
        (result,) = finish(prediction_of(relevance, no_target), batch, model.postprocess)
        assert result.masks.sum() == rows * 96
        assert result.rejected.tolist() == [rows == 0]


def test_losses_are_weighted_by_block() -> None:
    """The last block's instance losses and 0.2 times those of each earlier one."""
    model = tiny_model("deris_beit3b", **{"instances.num_points": None})
    batch = prepared(model)
    output = model.train()(batch).auxiliary
    losses = model.losses(Prediction(None, -output.existence_logit, auxiliary=output), batch)
    referents = Referents(batch, output.mask_feats, Groups(batch.num_expressions, "cpu"), align_corners=True)
    single = [instance_losses([block], referents, model.instances)[0] for block in output.blocks]
    for name in ("loss_relevance", "loss_instance_mask", "loss_instance_dice"):
        wanted = single[-1][name] + 0.2 * sum(one[name] for one in single[:-1])
        torch.testing.assert_close(losses[name], wanted)
    bce = torch.nn.functional.binary_cross_entropy(output.existence_logit.sigmoid(), (~batch.no_target()).float())
    torch.testing.assert_close(losses["loss_no_target"], bce)


def test_parameter_groups_are_the_published_ones() -> None:
    """BEiT-3 learns at half the rate, Swin stays as it is, and nothing decays."""
    cfg = load_config("deris_beit3b")
    model = tiny_model("deris_beit3b")
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {(group["weight_decay"], group["amsgrad"]) for group in optimizer.param_groups} == {(0, True)}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is not name.startswith("vision.")
        if parameter.requires_grad:
            assert rates[id(parameter)] == (5e-5 if name.startswith("encoder.") else 1e-4), name


def test_number_of_parameters_is_the_published_one() -> None:
    """The published network less what it does not use or train: scores of objects, boxes, and `logit_embed`, 514,
    132,612 and 514; SEG_proj, 131,584; perception queries and their score, 5,377; four maps of positions, 4 x 2,560;
    and BEiT-3's mask token, 768. That is 281,609."""
    assert num_parameters("deris_beit3b") == 291_474_838 - 281_609


def test_invalid_settings_raise() -> None:
    with pytest.raises(ConfigError, match="loopback_attention"):
        tiny_model("deris_beit3b", **{"decoder.loopback_attention": "all"})
    with pytest.raises(ConfigError, match="DeRIS needs encoder"):
        tiny_model("deris_beit3b", **{"encoder.level_scales": (2, 1)})
