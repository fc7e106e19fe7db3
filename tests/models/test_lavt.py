"""LAVT's decoder, loss, parameter groups and size."""

import math

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from models.referring_checks import logits_of, num_parameters, padded_images, prepared, tiny_model
from refseg.engine.run import load_config
from refseg.errors import ConfigError
from refseg.models.layers import JoinLevels
from refseg.structures import Prediction


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_the_second_score_is_the_referent() -> None:
    """Scores 0 and 5 everywhere: a logit of 5 everywhere, at the size of the input."""
    model = tiny_model("lavt_swinb")
    torch.nn.init.zeros_(model.decoder.classify.weight)
    model.decoder.classify.bias.data = torch.tensor([0.0, 5.0])
    batch = prepared(model)
    assert torch.equal(logits_of(model, batch), torch.full((6, 64, 96), 5.0))


def test_logits_are_interpolated_with_aligned_corners() -> None:
    """The corner pixels of the input are those of the map at stride 4, as in the published network."""
    model = tiny_model("lavt_swinb")
    batch = prepared(model)
    logits = logits_of(model, batch)
    with torch.no_grad():
        scores = model.decoder(model.encoder(batch)[0].levels)
    stride4 = scores[:, 1] - scores[:, 0]
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(logits[(slice(None), *corner)], stride4[(slice(None), *corner)])


def test_the_loss_by_hand() -> None:
    """Logit -2 everywhere; the first expression's mask is the upper half, so n pixels of weight 1.1 that cost
    softplus(2) and n of weight 0.9 that cost softplus(-2). The mean is weighted. Padding, here the right half, does not
    count, and changes nothing as it is half of either."""
    model = tiny_model("lavt_swinb")
    batch = prepared(model, num_images=1, expressions_per_image=1)
    wanted = (1.1 * softplus(2) + 0.9 * softplus(-2)) / 2
    prediction = Prediction(torch.full((1, 64, 96), -2.0))
    assert model.losses(prediction, batch)["loss_mask"].item() == pytest.approx(wanted, rel=1e-5)
    prediction.mask_logits[..., 48:] = 9.0
    loss = model.losses(prediction, padded_images(batch, 64, 48))["loss_mask"]
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_coarse_channels_come_first() -> None:
    """Without the weights of the first coarse_dim inputs, the coarse map does not matter."""
    step = JoinLevels(4, 3, 8, align_corners=True).eval()
    coarse, fine = torch.randn(1, 4, 2, 2), torch.randn(1, 3, 4, 4)
    before = step(coarse, fine)
    step.conv1.weight.data[:, :4] = 0
    changed = step(coarse, fine)
    assert not torch.allclose(before, changed)
    torch.testing.assert_close(step(torch.randn(1, 4, 2, 2), fine), changed)


def test_parameter_groups_are_the_published_ones() -> None:
    """No decay for Swin's norms and position tables; decay for biases, the decoder's BatchNorm, BERT's norms, PWAM and
    gates. One rate for all. Embeddings and the layers after the trained ones are not trained."""
    cfg = load_config("lavt_swinb")
    model = tiny_model("lavt_swinb")
    optimizer = build_optim_wrapper(model, dict(cfg.optim_wrapper, _scope_=cfg.default_scope)).optimizer
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {group["lr"] for group in optimizer.param_groups} == {5e-5}
    for name, parameter in model.named_parameters():
        vision = name.startswith("encoder.vision")
        free = vision and ("norm" in name or "relative_position_bias_table" in name)
        frozen = name.startswith(("encoder.text.embeddings", "encoder.text.layers.2."))  # 2 of 3 layers, as shrunk
        assert parameter.requires_grad is not frozen, name
        assert decay.get(id(parameter)) == (None if frozen else 0.0 if free else 0.01), name


def test_number_of_parameters_is_the_published_one() -> None:
    """The published code has 227,739,514 parameters: less the last gate, 2 * 1024**2, which nothing reads, and two
    biases in each PWAM, which its norms take away, 2 * (128 + 256 + 512 + 1024)."""
    assert num_parameters("lavt_swinb") == 227_739_514 - 2 * 1024**2 - 2 * 1920


def test_encoder_without_fusion_raises() -> None:
    with pytest.raises(ConfigError, match=r"Set model\.encoder\.fusion"):
        tiny_model("lavt_swinb", **{"encoder.fusion": None})
