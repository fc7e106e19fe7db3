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
