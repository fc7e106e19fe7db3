"""Tiny random models of every supported family; outputs are compared with transformers' own forward."""

from pathlib import Path

import pytest
import torch
import transformers  # its classes are imported when they are first used
from mmengine.model import BaseModule

from refseg.errors import ConfigError, DataError
from refseg.models import TextEncoder
from refseg.structures import TextTokens

SMALL = dict(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24)
CONFIGS = {
    "bert": dict(model_type="bert", **SMALL),
    "distilbert": dict(model_type="distilbert", vocab_size=40, dim=16, n_layers=3, n_heads=2, hidden_dim=24),
    "camembert": dict(model_type="camembert", **SMALL, pad_token_id=1, max_position_embeddings=20),
    "roberta": dict(model_type="roberta", **SMALL, pad_token_id=1, max_position_embeddings=20),
    "xlm-roberta": dict(model_type="xlm-roberta", **SMALL, pad_token_id=1, max_position_embeddings=20),
    "clip_text_model": dict(model_type="clip_text_model", **SMALL, max_position_embeddings=20),
}


# Models that run as a whole
WHOLE = {
    "modernbert": dict(
        model_type="modernbert", **SMALL, pad_token_id=1, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3
    ),
    "mpnet": dict(model_type="mpnet", **SMALL, pad_token_id=1, max_position_embeddings=20),
    "electra": dict(model_type="electra", **SMALL, embedding_size=8, pad_token_id=1),
    "deberta-v2": dict(model_type="deberta-v2", **SMALL, pad_token_id=1),
    "siglip_text_model": dict(model_type="siglip_text_model", **SMALL, max_position_embeddings=20),
    "siglip2_text_model": dict(model_type="siglip2_text_model", **SMALL, max_position_embeddings=20),
}


def tokens(lengths: tuple[int, ...] = (6, 4), pad: int = 1, extra: int = 0) -> TextTokens:
    draw = torch.Generator().manual_seed(1)
    length = max(lengths) + extra
    word_mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 40, (len(lengths), max(lengths)), generator=draw)
    ids = torch.nn.functional.pad(ids, (0, extra), value=pad).masked_fill(~word_mask, pad)
    return TextTokens(ids, word_mask, torch.tensor([0, 1, 0]))


@pytest.fixture(params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_equals_transformers_forward(kind: str) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(config=CONFIGS[kind]).eval()
    settings = dict(CONFIGS[kind])
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = transformers.AutoModel.from_config(config).eval()
    model.embeddings.load_state_dict(encoder.embeddings.state_dict())
    stack = model.transformer if kind == "distilbert" else model.encoder
    layers = stack.layers if kind == "clip_text_model" else stack.layer
    layers.load_state_dict(encoder.layers.state_dict())
    batch = tokens()
    with torch.no_grad():
        features = encoder(batch)
        expected = model(input_ids=batch.ids, attention_mask=batch.word_mask.long()).last_hidden_state
    torch.testing.assert_close(features.word_feats[batch.word_mask], expected[batch.word_mask])


def test_padding_changes_nothing(kind: str) -> None:
    encoder = TextEncoder(config=CONFIGS[kind]).eval()
    short, long = tokens(), tokens(extra=5)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder(short).word_feats[short.word_mask], encoder(long).word_feats[long.word_mask], atol=1e-5, rtol=1e-5
        )


def test_stages_in_turn_are_the_whole(kind: str) -> None:
    encoder = TextEncoder(config=CONFIGS[kind], stages=(2, 1)).eval()
    batch = tokens()
    hidden, bias = encoder.embed(batch)
    for stage in range(encoder.num_stages):
        hidden = encoder.run_stage(stage, hidden, bias)
    torch.testing.assert_close(encoder.finish(hidden), encoder(batch).word_feats)


def test_layers_beyond_the_stages_are_dropped_and_all_parameters_learn(kind: str) -> None:
    encoder = TextEncoder(config=CONFIGS[kind], stages=(1, 1))
    assert len(encoder.layers) == 2
    encoder(tokens()).word_feats.square().sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []
    with pytest.raises(ValueError, match="do not fit a model of 3 layers"):
        TextEncoder(config=CONFIGS[kind], stages=(3, 1))


def test_equal_texts_are_encoded_once(kind: str) -> None:
    features = TextEncoder(config=CONFIGS[kind]).eval()(tokens())
    assert features.word_feats.shape[0] == 2
    word_feats, word_mask = features.per_expression()
    assert word_feats.shape == (3, 6, 16) and torch.equal(word_feats[0], word_feats[2])
    assert word_mask.sum(1).tolist() == [6, 4, 6]


def test_from_a_folder_with_safetensors(tmp_path: Path, kind: str) -> None:
    settings = dict(CONFIGS[kind])
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = transformers.AutoModel.from_config(config)
    model.save_pretrained(tmp_path)
    encoder = TextEncoder(pretrained=str(tmp_path))
    for name, weight in encoder.embeddings.state_dict().items():
        assert torch.equal(weight, model.embeddings.state_dict()[name]), name


def test_architecture_comes_from_the_folder(tmp_path: Path) -> None:
    """As roberta-base: 514 positions, 1 token type, and an epsilon of 1e-5, where RoBERTa's defaults are 512, 2, 1e-12.
    A config beside it changes the dropout alone."""
    own = dict(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model("roberta", **SMALL, **own))
    model.save_pretrained(tmp_path)
    encoder = TextEncoder(pretrained=str(tmp_path), config=dict(model_type="roberta", hidden_dropout_prob=0.0))
    assert encoder.embeddings.position_embeddings.weight.shape[0] == 514
    assert encoder.embeddings.LayerNorm.eps == 1e-5
    assert encoder.embeddings.dropout.p == 0.0 and encoder.layers[0].attention.self.dropout.p == 0.1
    with pytest.raises(ConfigError, match=r"hidden_size 16.*says 32\. Remove these settings"):
        TextEncoder(pretrained=str(tmp_path), config=dict(hidden_size=32))


def test_weights_survive_mmengines_init(kind: str) -> None:
    class Model(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.text_encoder = TextEncoder(config=CONFIGS[kind])

    model = Model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="needs pretrained, config, or both"):
        TextEncoder()
    with pytest.raises(ValueError, match="no setting 'hiden_size'"):
        TextEncoder(config=dict(model_type="bert", hiden_size=3))
    with pytest.raises(DataError, match="hf download nobody/nothing"):
        TextEncoder(pretrained="nobody/nothing")
    with pytest.raises(ConfigError, match=r"text_encoder\.config: it cannot be built.*16.*12"):
        TextEncoder(config=dict(model_type="bert", hidden_size=16))  # with BERT's 12 attention heads
    encoder = TextEncoder(config=CONFIGS["bert"])
    with pytest.raises(ValueError, match="Token id 99 exceeds the text encoder's vocab_size 40"):
        encoder(TextTokens(torch.tensor([[99]]), torch.tensor([[True]]), torch.tensor([0])))


def test_models_that_do_not_encode_texts_are_refused(tmp_path: Path) -> None:
    """A model with a decoder, and an image encoder, in a folder."""
    settings = {
        "t5": dict(vocab_size=40, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2),
        "vit": dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16),
    }
    for model_type, changes in settings.items():
        transformers.AutoConfig.for_model(model_type, **changes).save_pretrained(tmp_path / model_type)
        with pytest.raises(ConfigError, match=f"{model_type} is a {model_type} model, not an encoder of texts"):
            TextEncoder(pretrained=str(tmp_path / model_type))


def test_what_is_not_trained_stays_and_passes_gradients_on() -> None:
    """As LAVT trains BERT: not the embeddings, and not the layers after the first ones."""
    encoder = TextEncoder(config=CONFIGS["bert"], train_embeddings=False, trained_layers=1)
    tokens = TextTokens(torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool), torch.tensor([0]))
    encoder(tokens).word_feats.square().sum().backward()
    trained = {name for name, weight in encoder.named_parameters() if weight.grad is not None}
    assert trained == {name for name, _ in encoder.named_parameters() if name.startswith("layers.0.")}
    with pytest.raises(ValueError, match=r"trained_layers must be in 0\.\.3, not 9"):
        TextEncoder(config=CONFIGS["bert"], trained_layers=9)


# Models that run as a whole -------------------------------------------------------------------------------------------


def transformers_model(settings: dict) -> torch.nn.Module:
    """Build transformers' own model."""
    settings = dict(settings)
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    towers = {"siglip_text_model": "SiglipTextModel", "siglip2_text_model": "Siglip2TextModel"}
    if config.model_type in towers:
        return getattr(transformers, towers[config.model_type])(config).eval()
    return transformers.AutoModel.from_config(config).eval()


@pytest.fixture(params=WHOLE)
def whole(request: pytest.FixtureRequest) -> str:
    return request.param


def test_whole_models_equal_transformers(whole: str, tmp_path: Path) -> None:
    """From a folder. All trained parameters reach the words, poolers are not trained, and stages are refused."""
    torch.manual_seed(0)
    own = transformers_model(WHOLE[whole])
    own.save_pretrained(tmp_path)
    encoder, batch = TextEncoder(pretrained=str(tmp_path)).eval(), tokens()
    features = encoder(batch).word_feats
    with torch.no_grad():
        wanted = own(input_ids=batch.ids, attention_mask=batch.word_mask.long()).last_hidden_state
    torch.testing.assert_close(features[batch.word_mask], wanted[batch.word_mask])
    features.square().sum().backward()
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert [name for name in trained if encoder.get_parameter(name).grad is None] == [] and len(trained) > 15
    assert not any("pooler" in name or ".head." in name for name in trained)
    for settings in (dict(stages=(2, 1)), dict(trained_layers=1), dict(train_embeddings=False)):
        with pytest.raises(ConfigError, match=rf"a {whole} model are not run one by one.*They do for bert, distilbert"):
            TextEncoder(config=WHOLE[whole], **settings)


def test_padding_changes_no_words_of_whole_models(whole: str) -> None:
    encoder, short, long = TextEncoder(config=WHOLE[whole]).eval(), tokens(), tokens(extra=5)
    with torch.no_grad():
        one, two = (encoder(batch).word_feats[batch.word_mask] for batch in (short, long))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    assert one.shape == (10, 16) and not torch.allclose(one[0], one[6])


def test_whole_models_survive_mmengines_init(whole: str) -> None:
    encoder = TextEncoder(config=WHOLE[whole])
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    encoder.init_weights()
    assert all(torch.equal(before[name], weight) for name, weight in encoder.state_dict().items())


def test_clip_of_both_towers_gives_its_text_tower(tmp_path: Path) -> None:
    small = {key: value for key, value in SMALL.items() if key != "vocab_size"}
    settings = transformers.CLIPConfig(
        text_config=dict(**SMALL, max_position_embeddings=20), vision_config=dict(**small, patch_size=16, image_size=32)
    )
    own = transformers.CLIPModel(settings).eval()
    own.save_pretrained(tmp_path)
    encoder, batch = TextEncoder(pretrained=str(tmp_path)).eval(), tokens()
    with torch.no_grad():
        wanted = own.text_model(input_ids=batch.ids, attention_mask=batch.word_mask.long()).last_hidden_state
        torch.testing.assert_close(encoder(batch).word_feats[batch.word_mask], wanted[batch.word_mask])


@pytest.mark.parametrize("name", [*CONFIGS, *WHOLE])
def test_architecture_stands_for_the_folder(name: str, tmp_path: Path) -> None:
    """An encoder that is built from it takes the weights of the first one, and gives the same."""
    transformers_model((CONFIGS | WHOLE)[name]).save_pretrained(tmp_path)
    first, batch = TextEncoder(pretrained=str(tmp_path)).eval(), tokens()
    described = TextEncoder.describe({"pretrained": str(tmp_path)})
    assert described == f"{tmp_path}: {(CONFIGS | WHOLE)[name]['model_type']}, 3 layers of 16"
    second = TextEncoder(**TextEncoder.architecture({"pretrained": str(tmp_path)})).eval()
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second(batch).word_feats, first(batch).word_feats)


# Frozen encoders ------------------------------------------------------------------------------------------------------


def count_rows(encoder: TextEncoder) -> list[int]:
    """Return the list to which the number of phrases is added that the encoder encodes at once."""
    rows: list[int] = []
    encode = encoder.encode
    encoder.encode = lambda tokens: rows.append(len(tokens.ids)) or encode(tokens)
    return rows


def only_words(features: torch.Tensor, batch: TextTokens) -> torch.Tensor:
    return features * batch.word_mask[..., None]


@pytest.fixture(params=["bert", "clip_text_model", "modernbert", "mpnet"])
def frozen(request: pytest.FixtureRequest) -> TextEncoder:
    torch.manual_seed(0)
    config = dict((CONFIGS | WHOLE)[request.param])
    dropouts = {"bert": "hidden_dropout_prob", "mpnet": "hidden_dropout_prob", "modernbert": "mlp_dropout"}
    if request.param in dropouts:
        config[dropouts[request.param]] = 0.5
    return TextEncoder(config=config, frozen=True)


def test_frozen_encoders_keep_their_features(frozen: TextEncoder) -> None:
    """Features are those that are computed without dropout, before and after `train()`. Each phrase is encoded once."""
    rows, batch = count_rows(frozen), tokens()
    for model in (frozen, frozen.train()):
        assert not any(part.training for part in model.modules())
    with torch.no_grad():
        wanted = only_words(frozen.encode(batch), batch)
    rows.clear()
    for _ in range(2):
        features = frozen(batch)
        torch.testing.assert_close(features.word_feats, wanted, atol=1e-5, rtol=1e-5)
        assert not features.word_feats.requires_grad and features.text_of is batch.text_of
    assert rows == [2] and not any(p.requires_grad for p in frozen.parameters())
    # More padding, and one more phrase in front
    longer = tokens((3, 6, 4), extra=2)
    longer.ids[1:, :6], longer.ids[0, :3] = batch.ids, torch.tensor([7, 8, 9])
    features = frozen(longer).word_feats
    assert rows == [2, 1] and features.shape == (3, 8, 16)
    torch.testing.assert_close(features[1:, :6], wanted, atol=1e-5, rtol=1e-5)
    assert features[0, :3].any(1).all() and not features[0, 3:].any()


def test_other_weights_and_types_drop_kept_features(frozen: TextEncoder) -> None:
    batch = tokens()
    before = frozen(batch).word_feats
    torch.manual_seed(1)
    state = {k: v + 0.1 * torch.randn_like(v) if v.is_floating_point() else v for k, v in frozen.state_dict().items()}
    holder = torch.nn.ModuleDict(dict(text=frozen))
    holder.load_state_dict({f"text.{name}": value for name, value in state.items()})
    after = frozen(batch).word_feats
    assert not torch.allclose(before, after, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(after, only_words(frozen.encode(batch), batch), atol=1e-5, rtol=1e-5)
    holder.to(torch.float64)
    double = frozen(batch).word_feats
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), after, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert not torch.equal(double, after.double()), "computed anew"


def test_kept_features_have_a_limit(frozen: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 13 words of 16 numbers of 4 bytes: phrases of 4 and 6 words fit, the next one of 8 does not."""
    monkeypatch.setattr("refseg.models.encoders.text.CACHE_BYTES", 13 * 16 * 4)
    rows, batch = count_rows(frozen), tokens((8, 4, 6))
    wanted = frozen(batch).word_feats
    for _ in range(2):
        torch.testing.assert_close(frozen(batch).word_feats, wanted, atol=1e-5, rtol=1e-5)
    assert rows == [3, 1, 1]
    assert sum(feats.nbytes for feats in frozen._cache.values()) == 10 * 16 * 4
    frozen.forget()
    frozen(batch)
    assert rows == [3, 1, 1, 3]


def test_many_phrases_are_encoded_in_chunks_of_alike_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refseg.models.encoders.text.ALIKE", 2)
    frozen = TextEncoder(config=CONFIGS["bert"], frozen=True)
    rows, batch = count_rows(frozen), tokens((6, 2, 5, 3, 4))
    with torch.no_grad():
        wanted = only_words(frozen.encode(batch), batch)
    torch.testing.assert_close(frozen(batch).word_feats, wanted, atol=1e-5, rtol=1e-5)
    assert rows == [5, 2, 2, 1]


def test_features_kept_by_a_prediction_serve_a_training(frozen: TextEncoder) -> None:
    """Tensors of inference mode cannot take part in a backward pass."""
    batch, head = tokens(), torch.nn.Linear(16, 1)
    with torch.inference_mode():
        frozen(batch)
    head(frozen(batch).word_feats).sum().backward()
    assert head.weight.grad.any()


def test_features_of_autocast_are_kept_apart() -> None:
    frozen, batch = TextEncoder(config=CONFIGS["bert"], frozen=True), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        low = frozen(batch).word_feats
        assert torch.equal(frozen(batch).word_feats, low)
    with torch.no_grad():
        wanted = only_words(frozen.encode(batch), batch)
    torch.testing.assert_close(frozen(batch).word_feats, wanted, atol=1e-6, rtol=1e-6)
    assert not torch.equal(low.float(), wanted)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_sentence_and_dropped_words(is_frozen: bool) -> None:
    """The first feature is the mean over real words, and in training some phrases keep nothing else."""
    encoder = TextEncoder(config=CONFIGS["bert"], frozen=is_frozen, sentence="mean", sentence_only=0.5).eval()
    plain = TextEncoder(config=CONFIGS["bert"], frozen=is_frozen).eval()
    plain.load_state_dict(encoder.state_dict())
    batch = tokens((6, 4) * 20)
    features, wanted = encoder(batch), plain(batch).word_feats
    assert torch.equal(features.word_mask, batch.word_mask)
    torch.testing.assert_close(features.word_feats[:, 1:], wanted[:, 1:])
    mean = wanted[1, :4].mean(0)
    torch.testing.assert_close(features.word_feats[1, 0], 4 * mean / mean.norm())
    # In training
    kept = encoder.train()(batch).word_mask
    whole = (kept == batch.word_mask).all(1)
    assert kept[:, 0].all() and not kept[~whole, 1:].any() and 5 < whole.sum() < 35
    assert torch.equal(encoder.eval()(batch).word_mask, batch.word_mask)


def test_mistakes_about_sentences_are_named() -> None:
    with pytest.raises(ConfigError, match="stages=None"):
        TextEncoder(config=CONFIGS["bert"], stages=(2, 1), sentence="mean")
    with pytest.raises(ConfigError, match="probability"):
        TextEncoder(config=CONFIGS["bert"], sentence_only=2)
    with pytest.raises(ConfigError, match="sentence"):
        TextEncoder(config=CONFIGS["bert"], sentence="last")
