"""Published ReLA weights: every key finds a place or is left out for a reason, and the decoder computes with them what
the published one does, written here with PyTorch's own attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.official_swin import swin_state_to_official
from models.referring_checks import logits_of, prepared, tiny_model
from refseg.errors import CheckpointError
from refseg.models import ReLA
from refseg.models.layers import Groups, PixelFeatures
from refseg.models.rela.weights import rela_state_from_official

DIM, MASK, FFN, REGIONS, BLOCKS, HEADS = 32, 16, 32, 9, 4, 2  # of `rela_swinb` shrunk for tests
PREDICTOR, PIXELS = "sem_seg_head.predictor.", "sem_seg_head.pixel_decoder."


def linear(name: str, out_dim: int, in_dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out_dim, in_dim), f"{name}.bias": (out_dim,)}


def norm(name: str, dim: int = DIM) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def attention(name: str) -> dict[str, tuple[int, ...]]:
    fused = {f"{name}.in_proj_weight": (3 * DIM, DIM), f"{name}.in_proj_bias": (3 * DIM,)}
    return fused | linear(f"{name}.out_proj", DIM, DIM)


def predictor_shapes() -> dict[str, tuple[int, ...]]:
    """The published predictor's keys (facts: section E.3)."""
    shapes: dict[str, tuple[int, ...]] = {
        "lang_weight": (),
        "lang_proj.weight": (DIM, 32),
        "level_embed.weight": (3, DIM),
    }
    shapes |= {"query_feat.weight": (REGIONS, DIM), "query_embed.weight": (REGIONS, DIM)}
    shapes |= attention("RLA_lang_att.multihead_attn") | norm("RLA_lang_att.norm") | norm("decoder_norm")
    for block in range(BLOCKS):
        shapes |= attention(f"RLA_vision.{block}.self_attn") | norm(f"RLA_vision.{block}.norm")
        shapes |= attention(f"RIA_layers.{block}.multihead_attn") | norm(f"RIA_layers.{block}.norm")
        ffn = f"transformer_ffn_layers.{block}"
        shapes |= linear(f"{ffn}.linear1", FFN, DIM) | linear(f"{ffn}.linear2", DIM, FFN) | norm(f"{ffn}.norm")
    shapes |= linear("minimap_embed", 2, DIM)
    shapes |= linear("nt_embed.layers.0", DIM, DIM) | linear("nt_embed.layers.1", 2, DIM)
    shapes |= linear("mask_embed.layers.0", DIM, DIM) | linear("mask_embed.layers.1", DIM, DIM)
    return shapes | linear("mask_embed.layers.2", MASK, DIM)


def pixel_decoder_shapes() -> dict[str, tuple[int, ...]]:
    """Mask2Former's, with 1 layer, 2 heads, 3 levels and 4 points; encoder levels of 16, 32, 64, 128 channels."""
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.level_embed": (3, DIM),
        "mask_features.weight": (MASK, DIM, 1, 1),
    }
    shapes |= {"mask_features.bias": (MASK,), "adapter_1.weight": (DIM, 16, 1, 1), "layer_1.weight": (DIM, DIM, 3, 3)}
    shapes |= norm("adapter_1.norm") | norm("layer_1.norm")
    for level, dim in enumerate((128, 64, 32)):
        shapes |= {f"input_proj.{level}.0.weight": (DIM, dim, 1, 1), f"input_proj.{level}.0.bias": (DIM,)}
        shapes |= norm(f"input_proj.{level}.1")
    layer = "transformer.encoder.layers.0"
    for name, out_dim in (
        ("sampling_offsets", 48),
        ("attention_weights", 24),
        ("value_proj", DIM),
        ("output_proj", DIM),
    ):
        shapes |= linear(f"{layer}.self_attn.{name}", out_dim, DIM)
    shapes |= linear(f"{layer}.linear1", 32, DIM) | linear(f"{layer}.linear2", DIM, 32)
    return shapes | norm(f"{layer}.norm1") | norm(f"{layer}.norm2")


def official_model(ours: ReLA) -> dict[str, Tensor]:
    """Random weights by the published names. Swin's and BERT's shapes are ours, by their names."""
    draw = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw) * 0.3

    own = ours.state_dict()
    swin = {k.removeprefix("encoder.vision."): v for k, v in own.items() if k.startswith("encoder.vision.")}
    model = {f"backbone.{k}": random(*v.shape) for k, v in swin_state_to_official(swin).items()}
    for stage, blocks in enumerate((1, 1, 2, 1)):
        dim = 16 * 2**stage
        for block in range(blocks):
            name = f"backbone.layers.{stage}.blocks.{block}.attn.relative_position_index"
            model[name] = torch.zeros(16, 16, dtype=torch.long)
        parts = {"vis_project": dim, "image_lang_att.f_query": dim, "image_lang_att.f_key": 32}
        parts |= {"image_lang_att.f_value": 32, "image_lang_att.W": dim, "project_mm": dim}
        for part, in_dim in parts.items():
            model[f"backbone.layers.{stage}.fusion.{part}.0.weight"] = random(dim, in_dim, 1)
            model[f"backbone.layers.{stage}.fusion.{part}.0.bias"] = random(dim)
        for layer in (0, 2) if stage < 3 else ():  # unlike LAVT, no gate after the last stage
            model[f"backbone.layers.{stage}.res_gate.{layer}.weight"] = random(dim, dim)
    bert = {k.removeprefix("encoder.text."): v for k, v in own.items() if k.startswith("encoder.text.")}
    model |= {f"text_encoder.{k.replace('layers.', 'encoder.layer.')}": random(*v.shape) for k, v in bert.items()}
    model["text_encoder.embeddings.position_ids"] = torch.arange(16)[None]
    model |= {PIXELS + name: random(*shape) for name, shape in pixel_decoder_shapes().items()}
    return model | {PREDICTOR + name: random(*shape) for name, shape in predictor_shapes().items()}


@pytest.fixture(scope="module")
def ours() -> ReLA:
    return tiny_model("rela_swinb")


@pytest.fixture
def content(ours: ReLA) -> dict:
    return {"model": official_model(ours), "iteration": 149_999}


def test_every_key_is_converted_or_left_out(ours: ReLA, content: dict) -> None:
    """Query, key and value are one tensor there and two here: one key more for weight and bias of each attention."""
    state, left_out = rela_state_from_official(content, window_size=4)
    split = 2 * (2 * BLOCKS + 1)
    assert len(content["model"]) + split == len(state) + len(left_out)
    assert sorted(left_out.values()) == sorted(
        ["bias that the following instance norm cancels"] * 8
        + ["buffer, computed from the window"] * 5
        + ["buffer, computed"]
    )
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in ours.state_dict().items() if not k.endswith("relative_position_index")
    }


def test_converted_weights_give_the_published_result(content: dict) -> None:
    state, _ = rela_state_from_official(content, window_size=4)
    model = tiny_model("rela_swinb")
    batch = prepared(model)
    before = logits_of(model, batch)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(key.endswith("relative_position_index") for key in missing)
    assert not torch.allclose(before, logits_of(model, batch), atol=1e-4)


def test_weights_of_equal_shape_are_not_mixed_up(content: dict) -> None:
    state, _ = rela_state_from_official(content, window_size=4)
    pairs = {
        "encoder.layers.0.norm1.weight": "encoder.layers.0.norms.0.weight",
        "encoder.layers.0.norm2.weight": "encoder.layers.0.norms.1.weight",
        "encoder.layers.0.linear1.bias": "encoder.layers.0.ffn.layers.0.0.bias",
        "encoder.layers.0.linear2.bias": "encoder.layers.0.ffn.layers.1.bias",
    }
    pairs = {f"transformer.{theirs}": ours for theirs, ours in pairs.items()} | {
        "adapter_1.norm.bias": "lateral_convs.0.gn.bias",
        "layer_1.norm.bias": "output_convs.0.gn.bias",
        "input_proj.1.0.bias": "input_convs.1.conv.bias",
        "input_proj.1.1.bias": "input_convs.1.gn.bias",
    }
    for theirs, ours in pairs.items():
        assert state[f"pixel_decoder.mmdet_decoder.{ours}"] is content["model"][PIXELS + theirs], ours


def test_old_name_of_queries_is_converted(content: dict) -> None:
    content["model"][PREDICTOR + "static_query.weight"] = content["model"].pop(PREDICTOR + "query_feat.weight")
    state, _ = rela_state_from_official(content, window_size=4)
    assert state["decoder.queries"] is content["model"][PREDICTOR + "static_query.weight"]


@pytest.mark.parametrize(
    "key",
    [
        PREDICTOR + "RLA_lang_att.multihead_attn.in_proj_weight",
        PREDICTOR + "RIA_layers.3.norm.bias",
        PREDICTOR + "RLA_vision.0.self_attn.out_proj.bias",
        PREDICTOR + "lang_weight",
        PREDICTOR + "nt_embed.layers.1.weight",
        PIXELS + "transformer.level_embed",
        PIXELS + "input_proj.2.1.weight",
        PIXELS + "transformer.encoder.layers.0.linear2.bias",
        PIXELS + "adapter_1.norm.weight",
        "backbone.norm2.weight",
        "backbone.layers.0.res_gate.2.weight",
        "text_encoder.encoder.layer.1.output.dense.bias",
    ],
)
def test_each_missing_key_raises(content: dict, key: str) -> None:
    del content["model"][key]
    with pytest.raises(CheckpointError, match=r"[12] weights of ReLA are missing"):
        rela_state_from_official(content, window_size=4)


@pytest.mark.parametrize(
    "key", ["criterion.weight", PREDICTOR + "class_embed.weight", PIXELS + "adapter_2.weight", "backbone.stem.weight"]
)
def test_unknown_keys_are_reported(content: dict, key: str) -> None:
    content["model"][key] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=f"1 keys are not from ReLA: {key}"):
        rela_state_from_official(content, window_size=4)


def test_other_checkpoints_are_rejected() -> None:
    with pytest.raises(CheckpointError, match=r"Not a ReLA checkpoint.*Found: state_dict"):
        rela_state_from_official({"state_dict": {}})


class Plain:
    """The published predictor, step by step, on official names. One row per expression, no padding."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = {k.removeprefix(PREDICTOR): v for k, v in weights.items() if k.startswith(PREDICTOR)}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (DIM,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def attend(self, name: str, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None = None) -> Tensor:
        layer = torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        layer.load_state_dict(
            {k.removeprefix(f"{name}."): v for k, v in self.weights.items() if k.startswith(f"{name}.")}
        )
        hidden = None if hidden is None else hidden.repeat_interleave(HEADS, 0)
        return layer(query, key, value, attn_mask=hidden, need_weights=False)[0]

    def heads(self, region: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.norm("decoder_norm", region)
        mask = normed
        for number in range(3):
            mask = self.linear(f"mask_embed.layers.{number}", mask.relu() if number else mask)
        no_target = self.linear("nt_embed.layers.1", self.linear("nt_embed.layers.0", normed).relu()).mean(1)
        return mask, self.linear("minimap_embed", normed), no_target

    def decode(self, pixels: PixelFeatures, words: Tensor) -> tuple[Tensor, Tensor]:
        position = self.weights["query_embed.weight"]
        region = self.weights["query_feat.weight"].repeat(len(words), 1, 1)
        for block in range(BLOCKS):
            level = block % 3
            masks = torch.einsum("enc,echw->enhw", self.heads(region)[0], pixels.mask_feats)
            masks = F.interpolate(masks, size=pixels.sizes[level], mode="bilinear", align_corners=False).flatten(2)
            hidden = masks.sigmoid() < 0.5
            hidden = hidden & ~hidden.all(-1, keepdim=True)
            memory = pixels.levels[level] + self.weights["level_embed.weight"][level]
            read = self.attend(
                f"RIA_layers.{block}.multihead_attn",
                region + position,
                memory + pixels.positions[level],
                memory,
                hidden,
            )
            region = self.norm(f"RIA_layers.{block}.norm", region + read)
            if block == 0:
                projected = words @ self.weights["lang_proj.weight"].T
                read = region + self.attend("RLA_lang_att.multihead_attn", region, projected, projected)
                region = region + 0.1 * self.weights["lang_weight"].sigmoid() * self.norm("RLA_lang_att.norm", read)
            placed = region + position
            read = self.attend(f"RLA_vision.{block}.self_attn", placed, placed, region)
            region = self.norm(f"RLA_vision.{block}.norm", region + read)
            ffn = f"transformer_ffn_layers.{block}"
            grown = self.linear(f"{ffn}.linear2", self.linear(f"{ffn}.linear1", region).relu())
            region = self.norm(f"{ffn}.norm", region + grown)
        mask, minimap, no_target = self.heads(region)
        merged = torch.einsum("ena,enc->eac", minimap, mask)
        return torch.einsum("eac,echw->eahw", merged, pixels.mask_feats), no_target


def test_padded_words_are_read_as_published(content: dict) -> None:
    """Phrases of 5 words: BERT's outputs for all 20 tokens, without a mask, are the memory of the published decoder."""
    content["model"][PREDICTOR + "lang_proj.weight"] *= 10  # so that words matter
    state, _ = rela_state_from_official(content, window_size=4)
    model = tiny_model("rela_swinb", padded_words=20).eval()
    # With the text encoder's own initial weights, words differ more than with the random ones of `content`
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith("encoder.text.")}, strict=False)
    batch = prepared(model, num_images=2, expressions_per_image=1)
    seen: list[tuple] = []
    model.decoder.register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.no_grad():
        logits = model(batch).mask_logits
        pixels, words, _ = seen[0]
        assert words.shape == (2, 20, 32) and words[:, 5:].any()
        plain = Plain(content["model"])
        all_words, real_words = (plain.decode(pixels, some)[0] for some in (words, words[:, :5]))
    all_words, real_words = (channels[:, 1] - channels[:, 0] for channels in (all_words, real_words))
    torch.testing.assert_close(logits, all_words, atol=1e-3, rtol=1e-4)
    assert (logits - real_words).abs().max() > 5 * (logits - all_words).abs().max()  # the latter is rounding


def test_decoder_equals_the_published_one(content: dict) -> None:
    """Random weights, two images with one expression each, words without padding."""
    state, _ = rela_state_from_official(content, window_size=4)
    model = tiny_model("rela_swinb").eval()
    model.load_state_dict(state, strict=False)
    draw = torch.Generator().manual_seed(2)
    sizes = [(2, 3), (4, 6), (8, 12)]
    levels, positions = ([torch.randn(2, h * w, DIM, generator=draw) for h, w in sizes] for _ in range(2))
    masks = [torch.ones(2, h, w, dtype=torch.bool) for h, w in sizes]
    pixels = PixelFeatures(torch.randn(2, MASK, 16, 24, generator=draw), levels, positions, masks, False)
    words = torch.randn(2, 5, 32, generator=draw)
    with torch.no_grad():
        groups = Groups([1, 1], "cpu")
        decoded = model.decoder(pixels, words, torch.ones(2, 5, dtype=torch.bool), groups=groups, heads=model.heads)
        mask_embeds, minimap, no_target = model.heads(decoded[-1].query_feats)
        logits = groups.dot(torch.bmm(minimap[:, None], mask_embeds), pixels.mask_feats)[:, 0]
        channels, classes = Plain(content["model"]).decode(pixels, words)
    torch.testing.assert_close(logits, channels[:, 1] - channels[:, 0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(no_target, classes[:, 1] - classes[:, 0], atol=1e-4, rtol=1e-4)
    assert logits.abs().max() > 1
