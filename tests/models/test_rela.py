"""ReLA's regions, minimap, losses, parameter groups and size."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from models.referring_checks import (
    check_bfloat16,
    logits_of,
    num_parameters,
    only,
    padded_images,
    parameters_without_gradient,
    prepared,
    tiny_model,
    with_padded_words,
)
from refseg.engine.run import load_config
from refseg.errors import ConfigError
from refseg.models import ReLA
from refseg.models.layers import Groups, PixelFeatures
from refseg.models.rela.decoder import RegionDecoder
from refseg.models.rela.segmentor import RegionHeads, covered_minimap, truncated_minimap
from refseg.structures import Batch, Prediction

SWIN = {"encoder.vision.drop_path_rate": 0.0}  # or blocks may have no gradient
VARIANTS = {
    "swin": ("rela_swinb", SWIN | {"decoder.zero_words": False}),
    "refshapes": ("rela_tiny_refshapes", {"decoder.zero_words": False}),
    "unfused": ("rela_swinb", SWIN | {"decoder.zero_words": False, "encoder.fusion": None}),
}


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> ReLA:
    config, overrides = VARIANTS[request.param]
    return tiny_model(config, **overrides)


def small_batch(model: ReLA, **kwargs: object) -> Batch:
    """Of images whose coarsest level is 2 x 3."""
    stride = model.encoder.vision.strides[-1]
    return prepared(model, shape=(2 * stride, 3 * stride), **kwargs)


def exact_logits(model: ReLA, batch: Batch) -> torch.Tensor:
    """In double precision: rounding in fp32 may put a pixel into a region's mask or take it out."""
    logits = logits_of(model.double(), replace(batch, images=batch.images.double()))
    model.float()
    return logits


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def unseen_by_losses(model: ReLA) -> set[str]:
    """But for what softmax does not see, a key's bias, and for positions that only deformable attention reads: its
    offsets begin with weights of zero."""
    expected = ("key.bias", "pixel_decoder.mmdet_decoder.level_encoding")
    unseen = parameters_without_gradient(model, small_batch(model, num_images=1, expressions_per_image=2))
    return {name for name in unseen if not any(part in name for part in expected)}


def test_every_trained_parameter_gets_a_gradient(model: ReLA) -> None:
    assert unseen_by_losses(model) == set()


def test_initial_words_are_zeros() -> None:
    """As published: then nothing is read, and attention to words learns after its words do."""
    model = tiny_model("rela_swinb", **SWIN)
    assert not model.decoder.project_words.weight.any()
    parts = ("query.weight", "query.bias", "key_value.weight", "out.weight")
    assert unseen_by_losses(model) == {f"decoder.region_language.cross_attn_words.{part}" for part in parts}


def test_zero_gates_get_no_gradient() -> None:
    """Gates that start at zero, as in the published code, cannot open."""
    model = tiny_model("rela_swinb", **SWIN, **{"encoder.fusion.gate_init": "zeros"})
    gates = {f"encoder.fusions.{stage}.gate.{layer}.weight" for stage in range(3) for layer in (0, 2)}
    assert gates <= unseen_by_losses(model)


def test_phrases_together_equal_one_by_one(model: ReLA) -> None:
    batch = small_batch(model)
    together = exact_logits(model, batch)
    for expression in (1, 3, 5):
        alone = exact_logits(model, only(batch, expression))
        torch.testing.assert_close(alone[0], together[expression])


def test_images_with_different_numbers_of_phrases(model: ReLA) -> None:
    """Two phrases of the first image and one of the second."""
    batch = small_batch(model, expressions_per_image=2)
    together, kept = exact_logits(model, batch), [0, 1, 2]
    first, second = batch.metas
    fewer = replace(
        batch,
        image_of=batch.image_of[kept],
        tokens=replace(batch.tokens, text_of=batch.tokens.text_of[kept]),
        referents=batch.referents[:3],
        metas=[first, replace(second, expression_ids=second.expression_ids[:1], texts=second.texts[:1])],
    )
    torch.testing.assert_close(exact_logits(model, fewer), together[kept])


def test_padded_words_have_no_effect(model: ReLA) -> None:
    batch = small_batch(model)
    torch.testing.assert_close(exact_logits(model, with_padded_words(batch)), exact_logits(model, batch))


def test_padded_words_are_read_on_request() -> None:
    """With `padded_words`, phrases of 5 tokens have other answers than without, and phrases of that many have the same.
    Padding of the batch has no effect either way."""
    settings = SWIN | {"decoder.zero_words": False}
    plain, reads_padding = (tiny_model("rela_swinb", **settings, padded_words=number) for number in (None, 20))
    short, full = small_batch(plain), small_batch(plain, num_words=20)
    assert not torch.allclose(exact_logits(plain, short), exact_logits(reads_padding, short), atol=1e-5)
    torch.testing.assert_close(exact_logits(plain, full), exact_logits(reads_padding, full))
    for model in (plain, reads_padding):
        torch.testing.assert_close(exact_logits(model, with_padded_words(short)), exact_logits(model, short))
    with pytest.raises(ConfigError, match=r"24 tokens, and model\.padded_words is 20\. Set padded_words to"):
        reads_padding(with_padded_words(full))


def test_words_affect_the_prediction(model: ReLA) -> None:
    batch = small_batch(model)
    other = replace(batch, tokens=replace(batch.tokens, text_of=batch.tokens.text_of.flip(0)))
    assert not torch.allclose(exact_logits(model, batch), exact_logits(model, other), atol=1e-6)


@pytest.mark.parametrize("expressions", [1, 3])
def test_no_target_and_padding_give_finite_losses(model: ReLA, expressions: int) -> None:
    batch = small_batch(model, num_images=1, expressions_per_image=expressions)
    height, width = batch.images.shape[-2:]
    batch = padded_images(batch, height // 2 + 4, width * 2 // 3)
    nothing = replace(batch, referents=[torch.zeros_like(refers) for refers in batch.referents])
    model.train()
    losses = model(nothing, mode="loss")
    dice = {"loss_dice"} if model.dice_weight else set()
    assert set(losses) == {"loss_mask", "loss_minimap", "loss_no_target"} | dice
    total = model.parse_losses(losses)[0]
    total.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    assert torch.isfinite(total) and gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_bfloat16_trains_and_predicts(model: ReLA) -> None:
    check_bfloat16(model, small_batch(model))


# Regions ----------------------------------------------------------------------------------------------------------


def small_pixels(*, padded: bool = False, rows: int = 1, scale: float = 1.0) -> PixelFeatures:
    """Levels of 2 x 2, 4 x 4 and 8 x 8 pixels, mask features of 16 x 16; their right half is padding."""
    draw = torch.Generator().manual_seed(0)
    sizes = [(2, 2), (4, 4), (8, 8)]
    levels = [torch.randn(rows, h * w, 8, generator=draw) for h, w in sizes]
    positions = [torch.randn(rows, h * w, 8, generator=draw) for h, w in sizes]
    masks = []
    for h, w in sizes:
        mask = torch.ones(rows, h, w, dtype=torch.bool)
        mask[..., w // 2 :] = not padded
        masks.append(mask)
    return PixelFeatures(torch.randn(rows, 4, 16, 16, generator=draw) * scale, levels, positions, masks, padded)


def small_decoder(**settings: object) -> tuple[RegionDecoder, RegionHeads]:
    torch.manual_seed(0)
    sizes = dict(embed_dim=8, pixel_dim=8, word_dim=5, num_queries=4, num_blocks=5, num_heads=2, ffn_dim=8)
    return RegionDecoder(**(sizes | settings)).eval(), RegionHeads(embed_dim=8, mask_dim=4).eval()


WORDS, WORD_MASK = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)), torch.ones(2, 3, dtype=torch.bool)


def test_padded_pixels_are_masked() -> None:
    decoder, heads = small_decoder()
    clean = small_pixels(padded=True)
    levels = [level.clone() for level in clean.levels]
    for level, mask in zip(levels, clean.masks, strict=True):
        level[~mask.flatten(1)] = 50.0
    mask_feats = clean.mask_feats.clone()
    mask_feats[..., 8:] = -50.0
    groups = Groups([2], "cpu")
    with torch.no_grad():
        outputs = [
            decoder(pixels, WORDS, WORD_MASK, groups=groups, heads=heads)[-1].query_feats
            for pixels in (clean, clean._replace(levels=levels, mask_feats=mask_feats))
        ]
    torch.testing.assert_close(outputs[0], outputs[1])


def test_levels_go_from_coarse_to_fine_with_masked_attention() -> None:
    """Five blocks: strides 32, 16, 8, and again 32, 16. Every region reads at least one pixel, and not always all."""
    decoder, heads = small_decoder()
    seen = []
    for block in decoder.region_image:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    with torch.no_grad():
        decoder(small_pixels(), WORDS, WORD_MASK, groups=Groups([2], "cpu"), heads=heads)
    assert [tuple(attn_mask.shape) for attn_mask in seen] == [(1, 8, s) for s in (4, 16, 64, 4, 16)]
    assert all(attn_mask.any(-1).all() for attn_mask in seen)
    assert not all(attn_mask.all() for attn_mask in seen[:3])


def test_words_are_used_in_the_first_block_only() -> None:
    decoder, heads = small_decoder(zero_words=False)
    calls = []
    decoder.region_language.register_forward_hook(lambda module, args, output: calls.append(output))
    decoded = decoder(small_pixels(), WORDS, WORD_MASK, groups=Groups([2], "cpu"), heads=heads)
    assert len(calls) == 1 and len(decoded) == 5
    assert all(one.query_feats.shape == (2, 4, 8) and one.word_feats.shape == (2, 3, 8) for one in decoded)


def test_initial_language_update_by_hand() -> None:
    """Words of zeros: what is read is 0, its norm that of X; sigmoid(0) * 0.1 = 0.05: X grows by 5 % of its norm."""
    decoder, _ = small_decoder()
    region = torch.randn(2, 4, 8)
    grown = decoder.region_language(region, torch.zeros(2, 3, 8), WORD_MASK)
    torch.testing.assert_close(grown, region + 0.05 * torch.nn.functional.layer_norm(region, (8,)))


def test_the_merged_mask_is_the_weighted_sum_of_masks(model: ReLA) -> None:
    """Two channels, each the sum of regions' masks weighted by that channel of the minimap; inside less outside."""
    batch = small_batch(model)
    model.eval()
    outputs = []
    hook = model.decoder.register_forward_hook(lambda module, args, output: outputs.append((args[0], output)))
    with torch.no_grad():
        logits = model(batch).mask_logits
        hook.remove()
        pixels, decoded = outputs[0]
        normed = model.heads.norm(decoded[-1].query_feats)
        rows = torch.arange(6) if len(pixels.mask_feats) == 6 else batch.image_of
        masks = torch.einsum("end,edhw->enhw", model.heads.mask(normed), pixels.mask_feats[rows])
        channels = torch.einsum("enc,enhw->echw", model.heads.minimap(normed), masks)
    torch.testing.assert_close(logits, channels[:, 1] - channels[:, 0], atol=1e-3, rtol=1e-4)


def test_ties_are_outside_and_not_no_target() -> None:
    """Equal scores give a logit of exactly 0; argmax takes the first class: outside, and not "no target"."""
    model = tiny_model("rela_swinb")
    for head in (model.heads.minimap, model.heads.no_target[2]):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    batch = prepared(model)
    prediction = model.eval()(batch)
    assert not prediction.mask_logits.any() and not prediction.no_target_logit.any()
    assert not any(result.rejected.any() for result in model(batch, mode="predict"))


# Losses -----------------------------------------------------------------------------------------------------------


def test_the_truncated_minimap_by_hand() -> None:
    """A mask of 12 x 12 for 3 x 3 regions of 4 x 4 pixels: only the middle 2 x 2 of each are asked. The first region
    has these and nothing else; the second has 15 pixels of 16, without one of these; the last is full."""
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[0, 1:3, 1:3] = True
    mask[0, 0:4, 4:8] = True
    mask[0, 1, 5] = False
    mask[0, 8:, 8:] = True
    assert truncated_minimap(mask, 3).tolist() == [[True, False, False] + [False] * 5 + [True]]
    assert covered_minimap(mask, 3).tolist() == [[False, True, False] + [False] * 5 + [True]]


def test_the_truncated_minimap_is_the_published_one() -> None:
    """Bilinear to 10 x 10 and cut to whole numbers, at 480 x 480, where weights are quarters and exact."""
    masks = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.4
    masks = torch.nn.functional.interpolate(masks.float(), size=(480, 480), mode="nearest")
    published = torch.nn.functional.interpolate(masks, size=(10, 10), mode="bilinear", align_corners=False).long()
    assert torch.equal(truncated_minimap(masks[:, 0].bool(), 10), published.flatten(1).bool())
    assert published.any() and not published.all()


@pytest.mark.parametrize("size", [(96, 96), (97, 131), (7, 5)])
def test_a_full_mask_is_a_full_minimap(size: tuple[int, int]) -> None:
    """Whatever weights of interpolation round to."""
    for label in (truncated_minimap, covered_minimap):
        assert label(torch.ones(1, *size, dtype=torch.bool), 10).all()
        assert not label(torch.zeros(1, *size, dtype=torch.bool), 10).any()


def test_the_losses_by_hand() -> None:
    """One expression whose mask is the upper half of 64 x 96. Mask: logit -2 everywhere, so a half of weight 1.1 costs
    softplus(2) and one of 0.9 costs softplus(-2); times 5. Minimap, 3 x 3: the upper three regions are mask; the middle
    of the next three is between lines 31 and 32, one in, one out, so truncated 3 of 9; logit 1:
    (3 * 1.1 * softplus(-1) + 6 * 0.9 * softplus(1)) / (3 * 1.1 + 6 * 0.9) * 0.5. With target, logit -3: softplus(-3) *
    0.5, as the weight of a single number cancels."""
    model = tiny_model("rela_swinb")
    batch = prepared(model, num_images=1, expressions_per_image=1)
    prediction = Prediction(torch.full((1, 16, 24), -2.0), torch.tensor([-3.0]), auxiliary=torch.full((1, 9), 1.0))
    losses = {name: loss.item() for name, loss in model.losses(prediction, batch).items()}
    assert losses["loss_mask"] == pytest.approx(5 * (1.1 * softplus(2) + 0.9 * softplus(-2)) / 2, rel=1e-5)
    minimap = (3.3 * softplus(-1) + 5.4 * softplus(1)) / 8.7
    assert losses["loss_minimap"] == pytest.approx(0.5 * minimap, rel=1e-5)
    assert losses["loss_no_target"] == pytest.approx(0.5 * softplus(-3), rel=1e-5)


def test_the_dice_loss_by_hand() -> None:
    """Two expressions, the first of the upper half of 64 x 96, the second of nothing, which has no part in it; a
    third on the right is padding, and has none either. Logit -2 on 64 x 64 pixels, of which half are mask."""
    model = tiny_model("rela_swinb", dice_weight=2.0)
    batch = padded_images(prepared(model, num_images=1, expressions_per_image=2), 64, 64)
    batch.instance_masks[0][:, :, 64:] = False
    logits = torch.full((2, 16, 24), -2.0)
    prediction = Prediction(logits, torch.tensor([-3.0, 3.0]), auxiliary=torch.zeros(2, 9))
    share = torch.tensor(-2.0).sigmoid().item()
    dice = 1 - (2 * share * 2048 + 1) / (share * 4096 + 2048 + 1)
    assert model.losses(prediction, batch)["loss_dice"].item() == pytest.approx(10 * dice, rel=1e-4)


def test_no_target_is_weighted_by_class() -> None:
    """Two expressions, the second without target, logits 0 and 2: (0.9 softplus(0) + 1.1 softplus(-2)) / 2."""
    model = tiny_model("rela_swinb")
    batch = prepared(model, num_images=1, expressions_per_image=2)
    prediction = Prediction(torch.zeros(2, 16, 24), torch.tensor([0.0, 2.0]), auxiliary=torch.zeros(2, 9))
    loss = model.losses(prediction, batch)["loss_no_target"].item()
    assert loss == pytest.approx(0.5 * (0.9 * softplus(0) + 1.1 * softplus(-2)) / 2, rel=1e-5)


def test_losses_ignore_padding() -> None:
    """The right half of the input is padding: a mask of the whole image is a full minimap, and logits there do not
    count (but for the column that interpolation mixes in, which is as the one beside it)."""
    model = tiny_model("rela_swinb")
    batch = padded_images(prepared(model, num_images=1, expressions_per_image=1), 64, 48)
    batch.instance_masks[0][:] = False
    batch.instance_masks[0][:, :, :48] = True
    mask_logits = torch.full((1, 16, 24), 2.0)
    mask_logits[..., 13:] = 9.0
    losses = model.losses(Prediction(mask_logits, torch.tensor([0.0]), auxiliary=torch.full((1, 9), 1.0)), batch)
    assert losses["loss_mask"].item() == pytest.approx(5 * softplus(-2), rel=1e-5)
    assert losses["loss_minimap"].item() == pytest.approx(0.5 * softplus(-1), rel=1e-5)


# Configs ----------------------------------------------------------------------------------------------------------


def test_parameter_groups_are_the_published_ones() -> None:
    """No decay for norms, position tables and embeddings, but for BERT's norms; decay for biases and the rest."""
    cfg = load_config("rela_swinb")
    model = tiny_model("rela_swinb")
    optimizer = build_optim_wrapper(model, dict(cfg.optim_wrapper, _scope_=cfg.default_scope)).optimizer
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {group["lr"] for group in optimizer.param_groups} == {1e-5}
    for name, parameter in model.named_parameters():
        embeddings = ("decoder.queries", "decoder.query_position", "decoder.level_embed")
        norm = "norm" in name or ".gn." in name
        free = not name.startswith("encoder.text") and (norm or name.endswith("position_bias_table"))
        frozen = name.startswith(("encoder.text.embeddings", "encoder.text.layers.2."))  # 2 of 3 layers, as shrunk
        wanted = None if frozen else 0.0 if free or name in embeddings else 0.05
        assert parameter.requires_grad is not frozen and decay.get(id(parameter)) == wanted, name


def test_the_published_config_has_the_published_options() -> None:
    cfg = load_config("rela/rela_swinb_grefcoco_published")
    assert (cfg.model.encoder.fusion.gate_init, cfg.model.padded_words) == ("zeros", 20)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        _, resize, text, _ = loader.dataset.pipeline
        assert (resize.antialias, text.tokenizer.keep_end, text.tokenizer.max_words) == (True, False, 20)


def test_instalign_trains_with_the_region_decoder() -> None:
    """The row "ReLA + InstAlign" of InstAlign's Table 3d. Words of zeros have no direction: gradients of cosines
    explode there, so they begin with random weights."""
    settings = dict(type="RegionDecoder", num_queries=4, num_blocks=4, num_heads=2, ffn_dim=32)
    norms = {}
    for zero_words in (True, False):
        model = tiny_model("instalign_tiny_refshapes", decoder=dict(_delete_=True, zero_words=zero_words, **settings))
        model.train()
        batch = small_batch(model, num_images=1, expressions_per_image=2)
        model.parse_losses(model(batch, mode="loss"))[0].backward()
        norms[zero_words] = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
        if not zero_words:
            unseen = parameters_without_gradient(model, batch)
            assert {n for n in unseen if n.startswith("decoder")} == set()
    assert norms[True] > 100 * norms[False]


def test_number_of_parameters_is_the_published_one() -> None:
    """225.5 M. The published code has two biases more in each PWAM, which its norms take away: 2 * (128 + 256 + 512 +
    1024), and so 225,521,469."""
    assert num_parameters("rela_swinb") == 225_521_469 - 2 * 1920


def test_invalid_arguments_raise() -> None:
    for key, value, message in (
        ("minimap_target", "soft", r"minimap_target 'soft'\. Valid values: truncated, covered"),
        ("class_weights", (1, 2, 3), r"class_weights \(1, 2, 3\) must be two numbers"),
        ("embed_dim", 30, r"pixel_decoder\.embed_dim 30 must be a multiple of 4 \(sine positions\)"),
        ("pixel_decoder.mask_dim", 3, r"pixel_decoder\.mask_dim follows from other keys.*Remove it"),
        ("decoder.num_queries", 10, r"decoder\.num_queries 10 must be a square, such as 9"),
        ("decoder.num_queries", 0, r"decoder\.num_queries is 0, but must be at least 1"),
        ("decoder.num_heads", 3, r"decoder\.num_heads 3 must divide embed_dim 32"),
        ("decoder.embed_dim", 32, r"decoder\.embed_dim follows from other keys.*Remove it"),
        ("encoder.fusion.gate_init", "ones", r"fusion\.gate_init 'ones'\. Valid values: random, zeros"),
        ("encoder.fusion.dropout", 2.0, r"fusion\.dropout 2\.0 is no probability"),
        ("encoder.fusion.word_dim", 8, r"encoder\.fusion\.word_dim follows from other keys.*Remove it"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_model("rela_swinb", **{key: value})
