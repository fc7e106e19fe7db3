"""SwinEncoder and its fast window attention against mmdet's SwinTransformer with the same weights, at tiny widths.

mmdet takes seconds to import. It is imported where it is used, so that collecting the tests stays fast.
"""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModule
from torch import nn

from models.official_swin import swin_state_to_official
from refseg.errors import CheckpointError, ConfigError
from refseg.models.encoders.swin import SwinEncoder
from refseg.registry import MODELS

ARCH = dict(embed_dims=8, depths=(2, 2, 3, 2), num_heads=(1, 2, 2, 4))
SIZES = [(7, (64, 96)), (7, (72, 104)), (12, (72, 104)), (12, (50, 61)), (12, (5, 3))]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny tensors: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(window_size: int = 7, **settings) -> SwinEncoder:
    """Random weights large enough that every part of the attention shows in the output."""
    torch.manual_seed(0)
    encoder = SwinEncoder(arch=ARCH, window_size=window_size, **{"drop_path_rate": 0.0, **settings})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder


def theirs(encoder: SwinEncoder, **settings) -> nn.Module:
    from mmdet.models.backbones import SwinTransformer

    swin = SwinTransformer(**ARCH, window_size=encoder.window_size, out_indices=encoder.out_stages, **settings)
    swin.load_state_dict(encoder.state_dict())
    swin.train(encoder.training)
    return swin


def attention(channels: int = 8, window: int = 4, shift: int = 2, **settings) -> tuple[nn.Module, nn.Module]:
    """mmdet's module, and a fast copy of it."""
    from refseg.models.encoders.window_attention import ShiftWindowMSA, use_fast_window_attention

    torch.manual_seed(0)
    slow = ShiftWindowMSA(channels, 2, window, shift_size=shift, **settings).eval()
    with torch.no_grad():
        for parameter in slow.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    fast = copy.deepcopy(slow)
    assert use_fast_window_attention(fast) == 1
    return slow, fast


@pytest.mark.parametrize(("window", "size"), SIZES)
@pytest.mark.parametrize("derive", [False, True])
def test_equals_mmdet(window: int, size: tuple[int, int], derive: bool) -> None:
    encoder = tiny(window).eval()
    images = torch.randn(2, 3, *size)
    with torch.set_grad_enabled(derive):
        maps, expected = encoder(images), theirs(encoder)(images)
    for found, wanted, dim in zip(maps, expected, encoder.dims, strict=True):
        assert found.shape == wanted.shape and found.shape[1] == dim
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_gradients_equal_mmdets() -> None:
    encoder = tiny()
    swin, images = theirs(encoder, drop_path_rate=0.0), torch.randn(2, 3, 72, 104)
    for model in (encoder, swin):
        sum(level.square().mean() for level in model(images)).backward()
    expected = dict(swin.named_parameters())
    for name, parameter in encoder.named_parameters():
        error = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm()
        assert error < 1e-4, name


def test_stages_in_turn_are_the_whole() -> None:
    encoder = tiny().eval()
    images = torch.randn(1, 3, 72, 104)
    tokens, size = encoder.embed(images)
    assert size == (18, 26) and tokens.shape == (1, 18 * 26, 8)
    maps = []
    for stage in range(encoder.num_stages):
        tokens = encoder.run_stage(stage, tokens, size)
        maps.append(encoder.norm(stage, tokens).transpose(1, 2).unflatten(-1, size))
        if stage < encoder.num_stages - 1:
            tokens, size = encoder.downsample(stage, tokens, size)
    assert encoder.strides == (4, 8, 16, 32) and encoder.dims == (8, 16, 32, 64)
    for found, wanted in zip(maps, encoder(images), strict=True):
        torch.testing.assert_close(found, wanted)


def test_only_output_stages_have_a_norm_and_all_parameters_learn() -> None:
    encoder = tiny(out_stages=(1, 3))
    maps = encoder(torch.randn(1, 3, 64, 64))
    assert [level.shape[1] for level in maps] == [16, 64]
    sum(level.square().sum() for level in maps).backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []
    assert not hasattr(encoder, "norm0")


def test_checkpointing_has_the_same_gradients() -> None:
    plain, images = tiny(), torch.randn(1, 3, 72, 72)
    saving = tiny(checkpointing=True)
    for encoder in (plain, saving):
        sum(level.square().mean() for level in encoder(images)).backward()
    for first, second in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad)


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ConfigError, match=r"Unknown SwinEncoder\.arch 'huge'\. Valid: tiny, small, base, large"):
        SwinEncoder(arch="huge")
    with pytest.raises(ConfigError, match="depth"):
        SwinEncoder(arch={**ARCH, "depth": 3})
    with pytest.raises(ConfigError, match="out_stages"):
        SwinEncoder(arch=ARCH, out_stages=(4,))
    with pytest.raises(ValueError, match="5 tokens do not form a map of size"):
        attention()[1](torch.randn(1, 5, 8), (2, 3))


class Parent(BaseModule):
    def __init__(self, **settings) -> None:
        super().__init__()
        self.encoder = MODELS.build(dict(type=SwinEncoder, arch=ARCH, window_size=7, **settings))


def test_fresh_weights() -> None:
    """Linear weights and tables have a deviation of 0.02, biases are 0, norms 1 and 0; mmengine changes nothing."""
    parent = Parent()
    before = copy.deepcopy(parent.state_dict())
    parent.init_weights()
    for name, weight in parent.encoder.named_parameters():
        assert torch.equal(weight, before[f"encoder.{name}"])
        if "projection" in name:
            continue
        if "norm" in name or name.endswith("bias"):
            assert torch.all(weight == float("norm" in name and name.endswith("weight"))), name
        else:
            assert 0.01 < weight.std() < 0.03, name


def test_pretrained_is_loaded_once(tmp_path: Path) -> None:
    source, file = tiny(), tmp_path / "swin.pth"
    torch.save({"model": swin_state_to_official(source.state_dict())}, file)
    parent = Parent(pretrained=str(file))
    parent.init_weights()
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), parent.encoder.parameters(), strict=True))
    with torch.no_grad():
        for parameter in parent.parameters():
            parameter.fill_(3.0)
    parent.init_weights()
    parent.encoder.init_weights()
    assert all(torch.all(parameter == 3.0) for parameter in parent.parameters())


def test_missing_pretrained_raises() -> None:
    with pytest.raises(CheckpointError, match=r"nowhere/swin\.pth.*github\.com/microsoft.*pretrained=None"):
        tiny(pretrained="nowhere/swin.pth").init_weights()


def test_official_order_is_pad_then_shift() -> None:
    """One row of 4 tokens, window 3, shift 1; scores are equal and values are the tokens, so outputs are means.

    Padded to 3 x 6, the first row is a b c d 0 0, the others are zeros. Shifted up and left by 1, the last row is
    b c d | 0 0 a. Only places that come from the same side mix: b, c and d with each other, a with nothing. Shifted
    first, the row would be b c d | a 0 0, and a would be mixed with zeros.
    """
    slow, fast = attention(channels=2, window=3, shift=1)
    with torch.no_grad():
        for parameter in slow.parameters():
            parameter.zero_()
        slow.w_msa.qkv.weight[4:] = torch.eye(2)
        slow.w_msa.proj.weight.copy_(torch.eye(2))
        fast.load_state_dict(slow.state_dict())
        a, b, c, d = torch.randn(4, 2)
        mean = (b + c + d) / 3
        for module in (slow, fast):
            found = module(torch.stack([a, b, c, d])[None], (1, 4))[0]
            torch.testing.assert_close(found, torch.stack([a, mean, mean, mean]))


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (5, 9), (1, 1), (3, 8)])
@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_and_its_gradients(size: tuple[int, int], shift: int, bias: bool) -> None:
    slow, fast = attention(shift=shift, qkv_bias=bias)
    slow, fast = slow.double(), fast.double()
    tokens = torch.randn(3, size[0] * size[1], 8, dtype=torch.float64, requires_grad=True)
    results = []
    for module in (slow, fast):
        out = module(tokens, size)
        grads = torch.autograd.grad(out.square().sum(), [tokens, *module.parameters()])
        results.append([out, *grads])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


def test_frozen_table_takes_the_fused_path_with_equal_gradients() -> None:
    slow, fast = attention()
    tokens = torch.randn(2, 30, 8, requires_grad=True)
    grads = []
    for module in (slow, fast):
        module.w_msa.relative_position_bias_table.requires_grad_(False)
        grads.append(torch.autograd.grad(module(tokens, (5, 6)).square().sum(), tokens)[0])
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def test_weight_changes_take_effect() -> None:
    """Nothing that depends on parameters is remembered."""
    slow, fast = attention()
    tokens = torch.randn(1, 30, 8)
    with torch.no_grad():
        fast(tokens, (5, 6))
        for parameter in slow.parameters():
            parameter.mul_(-0.7)
        fast.load_state_dict(slow.state_dict())
        torch.testing.assert_close(fast(tokens, (5, 6)), slow(tokens, (5, 6)))


def test_plans_made_in_inference_work_in_training() -> None:
    from refseg.models.encoders import window_attention

    window_attention.cached_plan.cache_clear()
    _, fast = attention()
    tokens = torch.randn(1, 30, 8)
    with torch.inference_mode():
        fast(tokens, (5, 6))
    fast(tokens, (5, 6)).sum().backward()
    assert window_attention.cached_plan.cache_info().hits == 1


def test_dropout_of_attention_weights() -> None:
    """With all scores equal, values 1 and dropout 0.5, an output is 2 k / L, k of the L = 16 weights being left."""
    _, fast = attention(channels=16, shift=0, attn_drop_rate=0.5)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
        fast.w_msa.qkv.bias[32:] = 1
        fast.w_msa.proj.weight.copy_(torch.eye(16))
    tokens = torch.randn(8, 16, 16)
    torch.testing.assert_close(fast(tokens, (4, 4)), torch.ones(8, 16, 16))
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            out = fast.train()(tokens, (4, 4))
        kept = out * 8
        torch.testing.assert_close(kept, kept.round(), atol=1e-4, rtol=0)
        assert 0.9 < out.mean() < 1.1 and out.std() > 0.1


@pytest.mark.parametrize("derive", [False, True])
def test_half_precision(derive: bool) -> None:
    slow, fast = attention()
    tokens = torch.randn(2, 30, 8)
    with torch.set_grad_enabled(derive):
        exact = slow(tokens, (5, 6))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = fast(tokens, (5, 6))
        half = fast.half()(tokens.half(), (5, 6))
    assert (found.dtype, half.dtype) == (torch.bfloat16, torch.float16)
    for rough in (found, half):  # far above any CPU's rounding, far below an attention that reads other tokens
        assert (rough.float() - exact).norm() < 0.3 * exact.norm()


@pytest.mark.parametrize("derive", [False, True])
def test_compiles(derive: bool) -> None:
    slow, fast = attention()
    tokens = torch.randn(2, 30, 8)
    compiled = torch.compile(fast, backend="aot_eager")
    with torch.set_grad_enabled(derive):
        torch.testing.assert_close(compiled(tokens, (5, 6)), slow(tokens, (5, 6)), atol=1e-5, rtol=1e-5)
    if derive:
        results = [torch.autograd.grad(m(tokens, (5, 6)).square().sum(), [*m.parameters()]) for m in (compiled, slow)]
        for found, wanted in zip(*results, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_modules_change_class_in_place() -> None:
    from refseg.models.encoders.window_attention import (
        FastShiftWindowMSA,
        ShiftWindowMSA,
        use_fast_window_attention,
    )

    encoder = tiny()
    swin = theirs(encoder)
    held = [part for part in swin.modules() if type(part) is ShiftWindowMSA]
    assert use_fast_window_attention(swin) == len(held) == 9
    assert use_fast_window_attention(swin) == 0, "those are fast already"
    assert all(type(part) is FastShiftWindowMSA and isinstance(part, ShiftWindowMSA) for part in held)
    assert swin.state_dict().keys() == encoder.state_dict().keys()
