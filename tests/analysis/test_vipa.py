"""Attention spread and retrieved regions of VIPA, on examples computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config

from models.referring_checks import padded_images, prepared, tiny_model
from refseg.analysis.trained_model import TrainedModel
from refseg.analysis.vipa import (
    attention_spread,
    effective_rank,
    mean_cosine,
    measure_attention,
    measure_retrieval,
    recorded_attention,
    relative_entropy,
    retrieved_shares,
    token_distance,
)
from refseg.structures import Sample, SampleMeta


def test_relative_entropy() -> None:
    """Equal weights: 1. A single weight: 0. Two equal ones of four: ln 2 / ln 4. One valid place, no weight: NaN."""
    weights = torch.tensor([[1.0, 1, 1, 1], [0, 5, 0, 0], [2, 2, 0, 0], [2, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    valid = torch.tensor([[1, 1, 1, 1]] * 3 + [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    entropy = relative_entropy(weights, valid)
    torch.testing.assert_close(entropy[:4], torch.tensor([1.0, 0.0, 0.5, 1.0]))
    assert entropy[4:].isnan().all()


def test_attention_spread() -> None:
    """Two pixels, two tokens, one head. If each pixel attends to a different token, both spreads are 0. If both
    attend to both tokens equally, they are 1. The third pixel and token are padding and do not count."""
    attention = torch.full((2, 1, 3, 3), 0.3)
    attention[0, 0, :2, :2] = torch.eye(2)
    attention[1, 0, :2, :2] = 0.5
    valid = torch.tensor([[True, True, False]] * 2)
    over_tokens, over_pixels = attention_spread(attention, valid, valid)
    assert over_tokens.tolist() == pytest.approx([0, 1]) and over_pixels.tolist() == pytest.approx([0, 1])


@pytest.mark.parametrize("padded", [False, True])
def test_recorded_attention(padded: bool) -> None:
    """Four stages of the last run, six expressions of five tokens. Cosines are those of queries and keys, averaged over
    heads. Nothing is recorded afterwards."""
    model = tiny_model("vipa_swinb").eval()
    batch = prepared(model)
    batch = padded_images(batch, 64, 48) if padded else batch
    inputs = []
    handle = model.decoder.attn_layers[0].attn.register_forward_pre_hook(lambda _, args: inputs.append(args))
    with recorded_attention(model.decoder) as stages, torch.no_grad():
        model(batch)
        model(batch)
    handle.remove()
    assert [stage.size for stage in stages] == [(2, 3), (4, 6), (8, 12), (16, 24)]
    for stage in stages:
        height, width = stage.size
        assert stage.weights.shape == (6, 2, height * width, 5) and stage.cosines.shape == (6, height * width, 5)
        assert stage.pixel_mask.sum(1).tolist() == [height * (-(-width // 2) if padded else width)] * 6
        for entropy in attention_spread(stage.weights, stage.token_mask, stage.pixel_mask):
            assert entropy.min() > 0 and entropy.max() <= 1 + 1e-5
    attn, (pixels, tokens, _) = model.decoder.attn_layers[0].attn, inputs[-1]
    query, key = attn.query(pixels)[0, 4].view(2, -1), attn.key_value(tokens)[0, 3].chunk(2)[0].view(2, -1)
    torch.testing.assert_close(stages[0].cosines[0, 4, 3], torch.cosine_similarity(query, key).mean())
    stages.clear()
    with torch.no_grad():
        model(batch)
    assert stages == []


def test_zero_queries_attend_uniformly() -> None:
    """With zero queries all tokens have the same weight, so the relative entropy is 1."""
    model = tiny_model("vipa_swinb").eval()
    for layer in model.decoder.attn_layers:
        torch.nn.init.zeros_(layer.attn.query.weight)
        torch.nn.init.zeros_(layer.attn.query.bias)
    with recorded_attention(model.decoder) as stages, torch.no_grad():
        model(prepared(model))
    for stage in stages:
        spread = attention_spread(stage.weights, stage.token_mask, stage.pixel_mask)
        for value in torch.cat(list(spread)).tolist():
            assert math.isclose(value, 1.0, abs_tol=1e-5)


def test_token_distance() -> None:
    """Two valid tokens have cosines 1 and 0 with the first pixel: a mean distance of 0.5. The second pixel and the
    third token do not count. Without a pixel it is NaN."""
    cosines = torch.tensor([[[1.0, 0.0, 7.0], [-1.0, -1.0, 7.0]]])
    tokens = torch.tensor([[True, True, False]])
    assert token_distance(cosines, tokens, torch.tensor([[True, False]])).tolist() == [0.5]
    assert token_distance(cosines, tokens, torch.tensor([[True, True]])).tolist() == [1.25]
    assert token_distance(cosines, tokens, torch.tensor([[False, False]])).isnan().all()


def trained(config: str, samples: list[Sample]) -> TrainedModel:
    cfg = Config(dict(test_dataloader=dict(batch_size=2)))
    return TrainedModel(cfg, tiny_model(config).eval(), samples)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Two images of 64 x 96 pixels with an instance in the left half, to which both phrases of the image refer."""
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[..., :48] = True
    draw = torch.Generator().manual_seed(0)
    return [
        Sample(
            image=torch.randint(0, 256, (3, 64, 96), generator=draw, dtype=torch.uint8),
            token_ids=[[2, 7, 9, 3], [2, 8, 3]],
            word_of=[[-1, 0, 1, -1], [-1, 0, -1]],
            pad_id=0,
            instance_masks=mask,
            instance_boxes=torch.tensor([[0.0, 0.0, 48.0, 64.0]]),
            referents=torch.ones(2, 1, dtype=torch.bool),
            meta=SampleMeta(f"{number}", f"{number}.png", (64, 96), (64, 96), ("a", "b"), ("red dog", "dog")),
        )
        for number in range(2)
    ]


def test_measured_attention_and_pictures(samples: list[Sample], tmp_path: Path) -> None:
    """A row for each stage and the mean, and a picture for each of the first three phrases: a row of maps for each
    stage, a column for each token."""
    table = measure_attention(trained("vipa_swinb", samples), pictures=tmp_path, count=3)
    assert list(table) == ["stage 4", "stage 3", "stage 2", "stage 1", "mean"]
    for key, value in table["mean"].items():
        assert value == pytest.approx(sum(row[key] for name, row in table.items() if name != "mean") / 4)
        assert 0 < value < 2
    widths = {file.name: cv2.imread(file).shape[1] for file in tmp_path.iterdir()}
    assert set(widths) == {"0_a.png", "0_b.png", "1_a.png"}
    assert widths["0_a.png"] == widths["1_a.png"] == pytest.approx(widths["0_b.png"] * 4 / 3, rel=0.02)


def test_measured_retrieval(samples: list[Sample]) -> None:
    """Shares, ranks and cosines are within their bounds; eq. 4 outweighs the mask. Training mode and hooks are gone."""
    measured = trained("vipa_swinb", samples)
    values = measure_retrieval(measured)
    assert values["tau"] == pytest.approx(1.0) and values["chance"] == pytest.approx(2 / 6)
    assert 1 < values["rank"] <= 6 and -1 <= values["cue_cosine"] <= 1 and -1 <= values["token_cosine"] <= 1
    assert 0 < values["mask_gradient"] < 0.5
    generator = measured.model.generator
    assert not generator.retrieval.training and not generator._forward_hooks
    assert not generator.retrieval._forward_pre_hooks


def test_effective_rank() -> None:
    """Two orthogonal directions with the same weight, among them a padded row: 2. Parallel rows: 1."""
    x = torch.tensor([[[1.0, 0], [0, 1], [5, 5]], [[1, 1], [2, 2], [-1, -1]]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    assert effective_rank(x, valid).tolist() == pytest.approx([2, 1], abs=1e-5)


def test_mean_cosine() -> None:
    """Cosines of the pairs are 1, 0 and 0; the fourth row does not count. One row has no pair."""
    x = torch.tensor([[[2.0, 0], [1, 0], [0, 3], [1, 1]]]).expand(2, -1, -1)
    valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    one, two = mean_cosine(x, valid).tolist()
    assert one == pytest.approx(1 / 3) and math.isnan(two)


def test_retrieved_shares() -> None:
    """Four pixels, of which the first two are the target. [CLS] retrieves pixels 0 and 2, half of the target. The first
    word retrieves the whole target, the second the same pixels as [CLS], and the last token is no cue. The words find
    0.75 of the target on average and share (0.5 + 1) / 2 of their pixels with [CLS]. Chance is two pixels of four."""
    retrieved = torch.tensor([[[1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]], dtype=torch.bool)
    relevant = torch.tensor([[True, True, False, False]])
    shares = retrieved_shares(retrieved, relevant, torch.ones(1, 4, dtype=torch.bool))
    assert [value.item() for value in shares] == pytest.approx([0.5, 0.75, 0.5, 0.75])


def test_shares_without_target_or_cue() -> None:
    """Shares are NaN without a target, and `alike` is NaN if [CLS] is no cue. Padding does not count: one pixel of two
    valid ones is half."""
    retrieved = torch.tensor([[[1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, 0]]], dtype=torch.bool)
    relevant = torch.tensor([[0, 0, 0], [0, 1, 0]], dtype=torch.bool)
    valid = torch.tensor([[True, True, False]] * 2)
    by_first, by_words, chance, alike = retrieved_shares(retrieved, relevant, valid)
    assert by_first.isnan().all() and by_words[0].isnan() and by_words[1] == 1
    assert chance.tolist() == [0.5, 0.5] and alike[0] == 0 and alike[1].isnan()
