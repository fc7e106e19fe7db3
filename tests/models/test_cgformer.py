"""CGFormer's grouping, mask head, losses, parameter groups and size."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from models.referring_checks import logits_of, num_parameters, padded_images, prepared, tiny_model
from refseg.engine.run import load_config
from refseg.errors import ConfigError
from refseg.models.cgformer.decoder import GroupPixels, MaskHead, ReadWords, framed
from refseg.structures import Prediction


def grouping(**settings: object) -> GroupPixels:
    torch.manual_seed(0)
    return GroupPixels(8, **{"dropout": 0.0, "log_temperature": 1.0, "draws_at_test": False, **settings})


def tokens_and_pixels() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 8, generator=draw), torch.randn(2, 500, 8, generator=draw)


def test_a_token_is_updated_from_its_pixels() -> None:
    """Cosines of normed tokens and pixels; shares of a token's pixels sum to n / (n + 1); a shortcut before the norm of
    the feed-forward network, and none around it."""
    group = grouping().eval()
    tokens, pixels = tokens_and_pixels()
    updated, groups = group(tokens, pixels, None)
    normed = group.norm_pixels(pixels)
    cosines = F.cosine_similarity(
        group.query(group.norm_tokens(tokens))[:, :, None], group.key(normed)[:, None], dim=-1
    )  # (E, N, P)
    torch.testing.assert_close(groups, cosines.softmax(1))
    mean = (groups @ group.value(normed)) / (groups.sum(-1, keepdim=True) + 1)
    torch.testing.assert_close(updated, group.ffn(group.norm_ffn(tokens + group.out(mean))))


def test_in_training_each_pixel_joins_one_token() -> None:
    """Draws are one-hot, and on average they are the probabilities of test time (500 pixels and 200 draws of each: the
    standard error of a share of 500 pixels is below 0.0016)."""
    group = grouping()
    tokens, pixels = tokens_and_pixels()
    with torch.no_grad():
        draws = torch.stack([group.train()(tokens, pixels, None)[1] for _ in range(200)])
        expected = group.eval()(tokens, pixels, None)[1]
    torch.testing.assert_close(draws.amax(2), torch.ones(200, 2, 500))
    torch.testing.assert_close(draws.sum(2), torch.ones(200, 2, 500))
    torch.testing.assert_close(draws.mean((0, 3)), expected.mean(2), atol=0.01, rtol=0)


def test_groups_at_test_are_fixed_unless_they_are_drawn() -> None:
    tokens, pixels = tokens_and_pixels()
    for draws, same in ((False, True), (True, False)):
        group = grouping(draws_at_test=draws).eval()
        torch.manual_seed(1)
        first = group(tokens, pixels, None)[1]
        assert torch.equal(first, group(tokens, pixels, None)[1]) is same


def test_padded_pixels_join_no_token() -> None:
    group = grouping().eval()
    tokens, pixels = tokens_and_pixels()
    mask = torch.ones(2, 500, dtype=torch.bool)
    mask[:, 300:] = False
    updated, groups = group(tokens, pixels, mask)
    assert not groups[..., 300:].any()
    torch.testing.assert_close(updated, group(tokens, pixels[:, :300], None)[0])


def test_a_temperature_below_one_is_learned() -> None:
    """The published code starts the parameter at 1 and clamps it at 0, so it never gets a gradient."""
    tokens, pixels = tokens_and_pixels()
    for start, learned in ((1.0, False), (-0.1, True)):
        group = grouping(log_temperature=start).train()
        group(tokens, pixels, None)[1][:, 0].square().sum().backward()
        assert bool(group.log_temperature.grad) is learned


def test_only_the_last_token_reads_words() -> None:
    torch.manual_seed(0)
    reading = ReadWords(8, 6, 0.0).eval()
    tokens, mask = torch.randn(2, 3, 8), torch.ones(2, 4, dtype=torch.bool)
    one, other = (reading(tokens, torch.randn(2, 4, 6), mask) for _ in range(2))
    assert torch.equal(one[:, :2], other[:, :2])
    assert not torch.allclose(one[:, 2], other[:, 2])


def test_the_mask_is_the_product_of_projected_pixels_and_the_kernel() -> None:
    """As published: a 1x1 convolution, then a 1x1 kernel with a padding of 1, whose frame is the bias."""
    torch.manual_seed(0)
    head = MaskHead(8).eval()
    x, token = torch.randn(2, 8, 3, 5), torch.randn(2, 8)
    up = x
    for conv, norm in ((head.conv1, head.norm1), (head.conv2, head.norm2)):
        up = F.relu(norm(conv(F.interpolate(up, scale_factor=2, mode="bilinear"))))
    up = F.conv2d(up, head.project.weight[..., None, None], head.project.bias)
    kernel = head.kernel(token)
    wanted = torch.cat(
        [F.conv2d(up[e : e + 1], kernel[e, None, :-1, None, None], kernel[e, -1:], padding=1) for e in range(2)]
    )
    torch.testing.assert_close(head(x, token), wanted[:, 0])


def test_the_frame_is_the_bias() -> None:
    found = framed(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.5]]]))
    assert found.tolist() == [[[0.5] * 4, [0.5, 1.5, 2.5, 0.5], [0.5] * 4]]


def test_losses_by_hand() -> None:
    """Logits of 2 on the mask, the upper half, and -2 below: log(1 + e^-2). Dice: 1 - (2 p n + 1) / (p n + (1 - p) n +
    n + 1), for p the sigmoid of 2 and n pixels in either half. Groups equal to the mask are taken for logits: p is the
    sigmoid of 1 inside and 1/2 outside."""
    model = tiny_model("cgformer_swinb")
    batch = prepared(model, num_images=1, expressions_per_image=1)
    batch.instance_masks[0][:] = False
    batch.instance_masks[0][:, :32] = True
    sides = ((4, 6), (8, 12), (16, 24))
    groups = [torch.zeros(1, *side) for side in sides]
    for one in groups:
        one[:, : one.shape[1] // 2] = 1
    logits = torch.full((1, 64, 96), -2.0)
    logits[:, :32] = 2

    def dice(inside: float, outside: float, n: float) -> float:
        p, q = 1 / (1 + math.exp(-inside)), 1 / (1 + math.exp(-outside))
        return 1 - (2 * p * n + 1) / (p * n + q * n + n + 1)

    losses = model.losses(Prediction(logits, auxiliary=groups), batch)
    assert losses["loss_mask"].item() == pytest.approx(math.log1p(math.exp(-2)), rel=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(dice(2, -2, 32 * 96), rel=1e-5)
    weights = zip((0.001, 0.01, 0.1), sides, strict=True)
    wanted = sum(weight * dice(1, 0, height * width / 2) for weight, (height, width) in weights)
    assert losses["loss_grouping"].item() == pytest.approx(wanted, rel=1e-5)


def test_padding_does_not_enter_the_losses() -> None:
    model = tiny_model("cgformer_swinb")
    batch = padded_images(prepared(model), 64, 48)
    groups = [torch.rand(6, *side) for side in ((4, 6), (8, 12), (16, 24))]
    logits = torch.randn(6, 64, 96)
    before = model.losses(Prediction(logits, auxiliary=groups), batch)
    other = [torch.cat([one.chunk(2, -1)[0], torch.rand_like(one).chunk(2, -1)[1]], -1) for one in groups]
    logits = torch.cat([logits[..., :48], torch.randn(6, 64, 48)], -1)
    after = model.losses(Prediction(logits, auxiliary=other), batch)
    assert before == {name: pytest.approx(loss.item(), rel=1e-6) for name, loss in after.items()}


def test_no_expression_has_a_target() -> None:
    """Dice counts expressions with a target only; without any it is 0."""
    model = tiny_model("cgformer_swinb")
    batch = prepared(model)
    batch = replace(batch, referents=[torch.zeros_like(refers) for refers in batch.referents])
    losses = model(batch, mode="loss")
    assert losses["loss_dice"] == losses["loss_grouping"] == 0 and losses["loss_mask"] > 0


def test_positions_follow_the_input() -> None:
    """Tables for 64 x 64 are interpolated for 64 x 96; both sizes give logits of the input's size."""
    model = tiny_model("cgformer_swinb")
    for shape in ((64, 64), (64, 96)):
        assert logits_of(model, prepared(model, shape=shape)).shape == (6, *shape)


def test_parameter_groups_are_the_published_ones() -> None:
    """Swin and BERT learn at half the rate of PWAM and the decoder; everything has weight decay."""
    cfg = load_config("cgformer_swinb")
    model = tiny_model("cgformer_swinb")
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {(group["weight_decay"], group["amsgrad"]) for group in optimizer.param_groups} == {(1e-4, True)}
    for name, parameter in model.named_parameters():
        slow = name.startswith(("encoder.vision.", "encoder.text."))
        assert rates[id(parameter)] == (5e-5 if slow else 1e-4), name


def test_number_of_parameters_is_the_published_one() -> None:
    """The published code has 253,705,595 parameters: less the last gate, 2 * 1024**2, which nothing reads; two biases
    in each PWAM, 2 * (128 + 256 + 512 + 1024), and six of convolutions before BatchNorm, 6 * 512, which the norms take
    away; and in two levels a norm and an MLP, 1024 + 512 * 1024 + 1024 + 1024 * 512 + 512, that are not used."""
    unused = 2 * (1024 + 2 * 512 * 1024 + 1024 + 512)
    wanted = 253_705_595 - 2 * 1024**2 - 2 * 1920 - 6 * 512 - unused
    assert num_parameters("cgformer_swinb") == wanted


def test_invalid_settings_raise() -> None:
    with pytest.raises(ConfigError, match=r"decoder\.position_sides \(4, 8\) must have 3 numbers"):
        tiny_model("cgformer_swinb", **{"decoder.position_sides": (4, 8)})
    with pytest.raises(ConfigError, match="grouping_weights has 1 weights, but there are 3 groupings"):
        tiny_model("cgformer_swinb", grouping_weights=(0.1,))
    with pytest.raises(ConfigError, match=r"fusion\.num_heads 3 must divide the 16 channels"):
        tiny_model("cgformer_swinb", **{"encoder.fusion.num_heads": 3})
    with pytest.raises(ConfigError, match=r"decoder\.num_tokens is 1, but must be at least 2"):
        tiny_model("cgformer_swinb", **{"decoder.num_tokens": 1})
