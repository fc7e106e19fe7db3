"""Attention weights to look at, and the layer built on attention."""

import torch
import torch.nn.functional as F

from refseg.models.layers import Attention, AttentionLayer, init_mask2former

VALID = torch.tensor([[True, True, False], [False, False, False]])


def test_weights_match_forward() -> None:
    """In both forms of the mask; a row that may read nothing has no weights, and reads zero."""
    torch.manual_seed(0)
    attention = Attention(8, 2, memory_dim=5)
    x, memory = torch.randn(2, 4, 8), torch.randn(2, 3, 5)
    value = attention.key_value(memory)[..., 8:].unflatten(-1, (2, 4)).transpose(1, 2)  # (E, heads, S, d)
    for valid in (None, VALID, VALID[:, None].expand(-1, 4, -1)):
        weights = attention.weights(x, memory, valid)
        read = attention.out((weights @ value).transpose(1, 2).flatten(2))
        torch.testing.assert_close(read, attention(x, memory, valid))
        sums = torch.ones(2, 2, 4) if valid is None else torch.tensor([1.0, 0.0])[:, None, None].expand(-1, 2, 4)
        torch.testing.assert_close(weights.sum(-1), sums)


def test_layer_is_post_norm() -> None:
    torch.manual_seed(0)
    layer = AttentionLayer(8, 2, 16, memory_dim=5)
    x, memory = torch.randn(2, 4, 8), torch.randn(2, 3, 5)
    read = F.layer_norm(x + layer.attn(x, memory, VALID), (8,))
    torch.testing.assert_close(layer(x, memory, VALID), F.layer_norm(read + layer.ffn(read), (8,)))


def test_attention_is_initialized_like_pytorchs() -> None:
    """Xavier of a (3 * 64, 64) matrix is within sqrt(6 / 256) = 0.1531; of the output's (64, 64), sqrt(6 / 128)."""
    attention = Attention(64, 4)
    init_mask2former(attention)
    for part in (attention.query, attention.key_value):
        assert 0.150 < part.weight.abs().max() <= 0.1531 and not part.bias.any()
    assert 0.2 < attention.out.weight.abs().max() <= 0.2166
