"""LGFormer's parts and the rows of its tables."""

import pytest
import torch
import torch.nn.functional as F

from models.referring_checks import logits_of, parameters_without_gradient, prepared, tiny_model
from refseg.models.lgformer.prototype import MaskMerge, PrototypeGenerator, dot_products

ABLATIONS = "lgformer_ablations"


def parts(config: str) -> set[str]:
    """First two names of all parameters of a model."""
    return {".".join(name.split(".")[:2]) for name, _ in tiny_model(config).named_parameters()}


def words_read(config: str) -> int:
    return sum(".words." in name for name, _ in tiny_model(config).named_parameters())


def test_rows_of_the_tables_differ_where_they_should() -> None:
    """A layer that reads words, or pixels, has 6 parameters for it: weight and bias of query, key and value, output."""
    full = tiny_model("lgformer_swinb_refcocoplus")
    assert len(full.pixel_decoder.layers) == 2 and len(full.prototype.layers) == 3  # shrunk for tests
    assert words_read("lgformer_swinb_refcocoplus") == 2 * 6
    assert words_read(f"{ABLATIONS}/table4_vlba") == 0
    assert words_read(f"{ABLATIONS}/table4_vlba_l2va") == 2 * 6
    assert words_read(f"{ABLATIONS}/table6_sentence") == 2 * 6
    for row, pixels_read in (("table4_pwam", False), ("table4_vlba_l2va", False), ("table6_sentence", True)):
        names = [name for name, _ in tiny_model(f"{ABLATIONS}/{row}").named_parameters()]
        assert any("prototype.layers.0.pixels" in name for name in names) is pixels_read
        assert any("word_update" in name for name in names) is (row != "table4_pwam")
    assert "prototype.queries" in parts(f"{ABLATIONS}/table2_learnable_1")
    assert "merge.mlp" in parts(f"{ABLATIONS}/table2_learnable_10")
    assert not {"prototype.queries", "merge.mlp"} & parts("lgformer_swinb_refcocoplus")


@pytest.mark.parametrize("row", ["table2_learnable_10", "table4_vlba", "table6_sentence"])
def test_rows_train(row: str) -> None:
    model = tiny_model(f"{ABLATIONS}/{row}")
    unseen = {n for n in parameters_without_gradient(model, prepared(model)) if "key.bias" not in n}
    # zero offsets at the start hide positions where nothing else reads them; one query has nothing to choose from
    unseen -= {"pixel_decoder.level_embed"} if row == "table4_vlba" else set()
    assert {n for n in unseen if not (n.startswith("prototype.layers") and ".own.query" in n)} == set()


def test_interpolating_products_is_interpolating_features() -> None:
    """What lets the product be taken at stride 8: both are linear."""
    prototypes, feats = torch.randn(2, 3, 8), torch.randn(2, 8, 5, 6)
    wanted = dot_products(prototypes, F.interpolate(feats, scale_factor=2, mode="bilinear"))
    torch.testing.assert_close(
        F.interpolate(dot_products(prototypes, feats), scale_factor=2, mode="bilinear"), wanted, atol=1e-5, rtol=1e-5
    )


def test_masks_come_at_stride_4() -> None:
    for config in ("lgformer_swinb", "lgformer_tiny_refshapes", f"{ABLATIONS}/table2_learnable_10"):
        model = tiny_model(config)
        assert logits_of(model, prepared(model)).shape == (6, 16, 24)


def test_a_mask_merge_is_pixel_by_pixel() -> None:
    merge = MaskMerge(3, 4)
    logits = torch.randn(2, 3, 4, 5)
    whole = merge(logits)
    torch.testing.assert_close(whole[:, :, 2:3, 1:2], merge(logits[:, :, 2:3, 1:2]))


def test_words_that_differ_only_by_padding_give_one_query() -> None:
    """The linguistic query is the mean of valid words."""
    generator = PrototypeGenerator(word_dim=4, embed_dim=8, num_heads=2)
    words = torch.randn(1, 3, 4)
    mask = torch.tensor([[True, True, False]])
    mean = generator.project_sentence(words[:, :2].mean(1))[:, None]
    torch.testing.assert_close(generator._query(words, mask), mean)


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="a linguistic query is one, not 10"):
        PrototypeGenerator(word_dim=4, num_queries=10)
    with pytest.raises(ValueError, match="'linguistic' or 'learnable', not 'learned'"):
        PrototypeGenerator(word_dim=4, query="learned")
    with pytest.raises(ValueError, match="l2va is"):
        tiny_model("lgformer_swinb", **{"pixel_decoder.l2va": "word"})
    with pytest.raises(ValueError, match="4 levels are needed with lateral=True, got 3"):
        tiny_model("lgformer_swinb", **{"pixel_decoder.lateral": True})
