"""DMMI's fusion, decoders, erased entities, losses, parameter groups and size."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from models.referring_checks import logits_of, num_parameters, prepared, tiny_model
from refseg.engine.run import load_config
from refseg.errors import ConfigError
from refseg.models.dmmi.fusion import MultiScaleFusion
from refseg.models.dmmi.segmentor import contrast_losses, erase_entities, padded
from refseg.structures import Batch, TextTokens

E, L, C, D = 2, 4, 8, 5


def fusion_and_inputs(height: int, width: int) -> tuple[MultiScaleFusion, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    fusion = MultiScaleFusion(pixel_dim=C, word_dim=D)
    word_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    return fusion, torch.randn(E, height * width, C), torch.randn(E, L, D), word_mask


def normed(x: torch.Tensor) -> torch.Tensor:
    return F.instance_norm(x.transpose(1, 2)).transpose(1, 2)


def test_fusion_matches_its_equations() -> None:
    """As published: neighborhoods are unfolded, zeros lie beyond the border, and words beyond the ends repeat them."""
    fusion, pixels, words, word_mask = fusion_and_inputs(2, 3)
    fusion.patch_scores.data, fusion.ngram_scores.data = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([2.0, 0.0, 1.0])
    to_words, to_pixels = 0, 0
    for number, side in enumerate((1, 3, 5)):
        reduced = normed(fusion.reduce[number](pixels)).transpose(1, 2).unflatten(2, (2, 3))
        patches = F.unfold(reduced, side, padding=side // 2).transpose(1, 2)  # (E, P, C / r k k)
        query = normed(patches @ fusion.convs[number].weight.flatten(1).T)
        scores = query @ fusion.key[number](words).transpose(1, 2) / C**0.5
        weights = scores.masked_fill(~word_mask[:, None], -torch.inf).softmax(-1)
        to_words = to_words + fusion.patch_scores.softmax(0)[number] * weights
    gathered = normed(fusion.out(to_words @ fusion.value(words)))
    level = F.gelu(fusion.project(F.gelu(fusion.vision(pixels)) * gathered))
    for number, (before, after) in enumerate(((0, 0), (1, 0), (1, 1))):
        short = fusion.shrink[number](words)
        short = torch.cat([short[:, :1]] * before + [short] + [short[:, -1:]] * after, 1)
        grams = torch.stack([short[:, i : i + L] for i in range(number + 1)], -1).flatten(2)  # (E, L, C / n n)
        ngram = fusion.ngrams[number]
        query = (grams @ ngram.weight.flatten(1).T + ngram.bias) * word_mask[..., None]
        scores = query @ normed(fusion.pixel_key[number](pixels)).transpose(1, 2) / C**0.5
        to_pixels = to_pixels + fusion.ngram_scores.softmax(0)[number] * scores.softmax(-1)
    update = fusion.word_out(to_pixels @ normed(fusion.pixel_value(pixels)))

    fused = fusion(pixels, words, word_mask=word_mask, pixel_mask=None, size=(2, 3))
    torch.testing.assert_close(fused.level, level)
    torch.testing.assert_close(fused.pixels, pixels + fusion.gate(level) * level)
    torch.testing.assert_close(fused.words, words + F.gelu(fusion.update(update)))


def test_padded_pixels_do_not_enter_the_fusion() -> None:
    """The left half of a padded map gives what it gives alone, and so do the words."""
    fusion, pixels, words, word_mask = fusion_and_inputs(3, 4)
    mask = torch.tensor([True, True, False, False]).repeat(E, 3)
    full = fusion(pixels, words, word_mask=word_mask, pixel_mask=mask, size=(3, 4))
    left = fusion(pixels[mask].view(E, 6, C), words, word_mask=word_mask, pixel_mask=None, size=(3, 2))
    torch.testing.assert_close(full.level[mask].view(E, 6, C), left.level)
    torch.testing.assert_close(full.words, left.words)


def test_the_last_fusion_has_no_gate() -> None:
    fusion = MultiScaleFusion(pixel_dim=C, word_dim=D, feeds_next=False)
    assert not any("gate" in name for name in fusion.state_dict())


def tokens_of(words: list[int]) -> TextTokens:
    """Tokens 10, 11, ... of one text; words[i] is the word of token i."""
    ids = torch.arange(10, 10 + len(words))[None]
    return TextTokens(ids, torch.ones_like(ids).bool(), torch.tensor([0]), word_of=torch.tensor([words]), pad_id=1)


def test_one_entity_is_erased() -> None:
    """Content words in a row, with all their tokens: "man", or "striped shirt"."""
    torch.manual_seed(0)
    tokens = tokens_of([-1, 0, 1, 2, 3, 4, 4, 5, -1])
    erased = [erase_entities(tokens, ["the man in a striped shirt"]) for _ in range(20)]
    found = {tuple(one.ids[0].tolist()) for one in erased}
    assert found == {(10, 11, 1, 13, 14, 15, 16, 17, 18), (10, 11, 12, 13, 14, 1, 1, 1, 18)}
    assert all(one.word_mask.all() for one in erased)


def test_a_phrase_without_content_words_stays() -> None:
    tokens = tokens_of([-1, 0, 1, -1])
    assert torch.equal(erase_entities(tokens, ["that one"]).ids, tokens.ids)


def test_phrases_are_padded_to_num_words() -> None:
    tokens = padded(tokens_of([-1, 0, -1]), 5)
    assert tokens.ids.tolist() == [[10, 11, 12, 1, 1]]
    assert tokens.word_mask.tolist() == [[True, True, True, False, False]]
    with pytest.raises(ConfigError, match=r"6 tokens, more than model\.num_words=5"):
        padded(tokens_of([0] * 6), 5)


def test_decoders_read_the_padding() -> None:
    """As published, so the number of words that a model was trained with is a part of it."""
    model = tiny_model("dmmi_swinb")
    batch = prepared(model)
    before = logits_of(model, batch)
    model.num_words = 16
    assert not torch.allclose(before, logits_of(model, batch), atol=1e-6)


def test_contrast_by_hand() -> None:
    """The first pair: 3 of 3 + 1 in its row, 3 of 3 + 2 in its column. The second: 1 of 2 + 1, and of 1 + 1."""
    losses = contrast_losses(torch.tensor([[3.0, 1.0], [2.0, 1.0]]).log())
    expected = [math.log(4 / 3) + math.log(5 / 3), math.log(3) + math.log(2)]
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_reconstruction_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fourth real word is rebuilt as its opposite, the others are right: a cosine of 1/2. Padding and phrases
    without a target, 2 of 6, do not count."""
    model = tiny_model("dmmi_swinb").eval()
    batch = prepared(model, num_words=4)
    prediction = model.infer(batch)
    words = prediction.auxiliary[1].clone()
    words[:, 3:] *= -1
    monkeypatch.setattr(model.text_decoder, "forward", lambda *_: words)
    loss = model.losses(prediction, batch)["loss_reconstruction"]
    assert loss.item() == pytest.approx(0.01 * (1 - 4 / 6 * 0.5), rel=1e-5)


def test_the_reconstruction_trains_pixels() -> None:
    """What the phrase lacks must come from pixels. The words to rebuild are fixed."""
    model = tiny_model("dmmi_swinb").train()
    batch = prepared(model)
    decoded, words, word_mask = (prediction := model.infer(batch)).auxiliary
    words = words.detach().requires_grad_()
    prediction.auxiliary = (decoded, words, word_mask)
    model.losses(prediction, batch)["loss_reconstruction"].backward()
    assert model.encoder.vision.patch_embed.projection.weight.grad.any()
    assert words.grad is None


def without_targets(batch: Batch) -> Batch:
    return replace(batch, referents=[torch.zeros_like(refers) for refers in batch.referents])


def test_no_expression_has_a_target() -> None:
    """Only the mask is learned: the contrast is 0, and the reconstruction the constant 1 of its formula."""
    model = tiny_model("dmmi_swinb").train()
    losses = model(without_targets(prepared(model)), mode="loss")
    assert losses["loss_contrast"] == 0 and losses["loss_mask"] > 0
    assert losses["loss_reconstruction"].item() == pytest.approx(0.01)
    losses["loss_reconstruction"].backward()
    assert not model.text_decoder.conv.weight.grad.any()


def test_parameter_groups_are_the_published_ones() -> None:
    """Only Swin's norms and position tables have no weight decay; BERT's embeddings and last layer are not trained."""
    cfg = load_config("dmmi_swinb")
    model = tiny_model("dmmi_swinb")
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("encoder.text.embeddings.", "encoder.text.layers.2."))
        assert parameter.requires_grad is not frozen, name
        if not frozen:
            free = name.startswith("encoder.vision.") and ("norm" in name or "position_bias_table" in name)
            assert decay[id(parameter)] == (0 if free else 0.01), name


def test_number_of_parameters_is_the_published_one() -> None:
    """The published code has 340,578,160 parameters: less three layers of 768 channels and 2,048 in their feed-forward
    networks that only serve as templates; the last gate; and biases that an instance norm takes away, in each stage of
    C channels (1 + 1/2 + 1/4) C of `reduce`, 3 C of `convs`, C of `out`, and 4 x 768."""
    attention = 4 * (768 * 768 + 768)
    layer = 2 * attention + 2 * 768 * 2048 + 2048 + 768 + 3 * 2 * 768
    biases = sum(c + c // 2 + c // 4 + 3 * c + c + 4 * 768 for c in (128, 256, 512, 1024))
    assert num_parameters("dmmi_swinb") == 340_578_160 - 3 * layer - 2 * 1024**2 - biases


def test_invalid_settings_raise() -> None:
    with pytest.raises(ConfigError, match=r"layer\.num_heads 5 must divide the 32 channels"):
        tiny_model("dmmi_swinb", **{"layer.num_heads": 5})
    with pytest.raises(ConfigError, match="temperature must be positive, not 0"):
        tiny_model("dmmi_swinb", temperature=0)
    with pytest.raises(ConfigError, match=r"number of encoder\.out_stages is 2, but must be at least 3"):
        tiny_model("dmmi_swinb", **{"encoder.out_stages": (2, 3)})
    beit3 = load_config("latentvg_tiny_refshapes").model.encoder.to_dict()
    with pytest.raises(ConfigError, match="DMMI needs a FusedEncoder: BEiT3Encoder cannot encode phrases alone"):
        tiny_model("dmmi_swinb", encoder=dict(beit3, _delete_=True))
