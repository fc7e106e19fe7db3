"""Multi-scale deformable attention: every backend that runs on CPU against mmcv's `grid_sample` function."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import refseg  # noqa: F401  lets mmcv.ops import without a compiled extension
from refseg.ops import available_backends, choose_backend, deformable_attention
from refseg.ops.deformable_attention import why_not

NAMES = ("pytorch", "plain")


def inputs(shapes, *, images=2, queries=5, heads=2, channels=3, points=2, spread=0.7, dtype=torch.float64, seed=0):
    """Return random (value, sampling_locations, attention_weights), with a third of the locations outside the image."""
    generator = torch.Generator().manual_seed(seed)
    pixels = sum(h * w for h, w in shapes)
    value = torch.randn(images, pixels, heads, channels, generator=generator, dtype=dtype)
    taps = (images, queries, heads, len(shapes), points)
    locations = 0.5 + spread * torch.randn(*taps, 2, generator=generator, dtype=dtype)
    weights = torch.rand(*taps, generator=generator, dtype=dtype)
    return value, locations, weights


def mmcv_pytorch(value, shapes, locations, weights):
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, torch.tensor(shapes), locations, weights)


def with_gradients(function, tensors, seed=0):
    """Return the output and the gradients of all tensors, for a random gradient of the output."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*tensors)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


SHAPES = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    shapes=SHAPES,
    images=st.integers(1, 3),
    queries=st.integers(1, 9),
    heads=st.integers(1, 3),
    channels=st.integers(1, 9),
    points=st.integers(1, 4),
    spread=st.sampled_from([0.1, 0.7, 3.0, 1e4]),
    seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize("backend", NAMES)
def test_parity_with_mmcv(backend, shapes, images, queries, heads, channels, points, spread, seed):
    tensors = inputs(
        shapes, images=images, queries=queries, heads=heads, channels=channels, points=points, spread=spread, seed=seed
    )
    ours = with_gradients(lambda v, x, w: deformable_attention(v, torch.tensor(shapes), x, w, backend), tensors)
    theirs = with_gradients(lambda v, x, w: mmcv_pytorch(v, shapes, x, w), tensors)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", NAMES)
def test_gradcheck(backend):
    shapes = [(3, 4), (1, 1), (2, 1)]
    tensors = [tensor.requires_grad_() for tensor in inputs(shapes, images=2, queries=2, channels=2)]
    assert torch.autograd.gradcheck(lambda v, x, w: deformable_attention(v, shapes, x, w, backend), tensors)


@pytest.mark.parametrize("backend", NAMES)
def test_by_hand(backend):
    """A level of 1 x 2 pixels with values 1 and 3, weight 0.5.

    x = 0.5 is the middle between the pixel centers 0.25 and 0.75: (1 + 3) / 2 * 0.5 = 1. x = 0 is half a pixel left of
    the first center, hence half of it: 1 / 2 * 0.5 = 0.25. x = 1.25 is a pixel right of the last center: 0.
    """
    value = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    locations = torch.tensor([[0.5, 0.5], [0.0, 0.5], [1.25, 0.5]]).view(1, 3, 1, 1, 1, 2)
    out = deformable_attention(value, [(1, 2)], locations, torch.full((1, 3, 1, 1, 1), 0.5), backend)
    assert out.flatten().tolist() == [1.0, 0.25, 0.0]


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("empty", [{"images": 0}, {"queries": 0}])
def test_empty(backend, empty):
    tensors = inputs([(2, 3)], **empty)
    out, *grads = with_gradients(lambda v, x, w: deformable_attention(v, [(2, 3)], x, w, backend), tensors)
    assert out.shape == (empty.get("images", 2), empty.get("queries", 5), 6)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in tensors]
    assert all(not grad.any() for grad in grads)


@pytest.mark.parametrize("backend", NAMES)
def test_far_outside_and_not_finite(backend):
    """Locations far outside give zero. NaN may give anything, but reads no memory outside the table."""
    value, locations, weights = inputs([(2, 3)], dtype=torch.float32)
    for far in (1e30, -1e30, float("inf"), -float("inf")):
        if backend == "pytorch" or abs(far) < float("inf"):
            out = deformable_attention(value, [(2, 3)], torch.full_like(locations, far), weights, backend)
            assert not out.any()
    tensors = (value, torch.full_like(locations, float("nan")), weights)
    with_gradients(lambda v, x, w: deformable_attention(v, [(2, 3)], x, w, backend), tensors)


@pytest.mark.parametrize("backend", NAMES)
def test_not_contiguous(backend):
    shapes = [(4, 3), (2, 2)]
    tensors = inputs(shapes)
    strided = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in tensors]
    assert not any(tensor.is_contiguous() for tensor in strided)

    def run(v, x, w):  # clone() in `with_gradients` keeps the strides
        return deformable_attention(v, shapes, x, w, backend)

    for mine, expected in zip(with_gradients(run, strided), with_gradients(run, tensors), strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_fp32(backend, dtype):
    """The only error comes from rounding the output once."""
    shapes = [(4, 3), (2, 2)]
    value, locations, weights = inputs(shapes, dtype=torch.float32)
    value = value.to(dtype)
    out, grad_value, *_ = with_gradients(
        lambda v, x, w: deformable_attention(v, shapes, x, w, backend), (value, locations, weights)
    )
    assert out.dtype == grad_value.dtype == dtype
    wide = deformable_attention(value.float(), shapes, locations, weights, backend)
    torch.testing.assert_close(out, wide.to(dtype), rtol=1e-3 if dtype == torch.float16 else 8e-3, atol=0)


def test_only_requested_gradients_are_computed():
    shapes = [(4, 3), (2, 2)]
    tensors = inputs(shapes)
    expected = with_gradients(lambda v, x, w: deformable_attention(v, shapes, x, w), tensors)[1:]
    for wanted in range(3):
        some = [tensor.clone().requires_grad_(i == wanted) for i, tensor in enumerate(tensors)]
        out = deformable_attention(some[0], shapes, *some[1:])
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        out.backward(grad)
        assert [tensor.grad is not None for tensor in some] == [i == wanted for i in range(3)]
        torch.testing.assert_close(some[wanted].grad, expected[wanted])


def test_double_backward_works_with_plain_only():
    shapes = [(3, 3)]
    for backend in NAMES:
        tensors = [tensor.requires_grad_() for tensor in inputs(shapes)]
        out = deformable_attention(tensors[0], shapes, *tensors[1:], backend)
        (grad,) = torch.autograd.grad(out.square().sum(), tensors[0], create_graph=True)
        if backend == "plain":
            grad.sum().backward()
        else:
            with pytest.raises(RuntimeError, match="once_differentiable"):
                grad.sum().backward()


def test_saved_memory_is_less_than_half_of_plain():
    """The embedding bag saves its three inputs. The plain form saves samples of every channel at every tap."""
    shapes = [(12, 12), (6, 6), (3, 3)]
    tensors = inputs(shapes, images=1, queries=189, heads=4, channels=16, points=4, dtype=torch.float32)

    def saved(function):
        kept = {}

        def pack(tensor):
            return kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = function(*(tensor.clone().requires_grad_() for tensor in tensors))
        assert out.requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    bag = saved(lambda v, x, w: deformable_attention(v, shapes, x, w, "pytorch"))
    assert bag == sum(tensor.numel() * 4 for tensor in tensors)
    assert bag < 0.5 * saved(lambda v, x, w: deformable_attention(v, shapes, x, w, "plain"))
    assert bag < 0.5 * saved(lambda v, x, w: mmcv_pytorch(v, shapes, x, w))


def test_gradients_are_reproducible():
    """Taps are sorted, so the gradient of the value does not depend on threads."""
    shapes = [(9, 9), (4, 4)]
    tensors = inputs(shapes, queries=97, heads=4, channels=8, dtype=torch.float32)
    first, second = (
        with_gradients(lambda v, x, w: deformable_attention(v, shapes, x, w, "pytorch"), tensors) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_default_backend_on_cpu(monkeypatch):
    value = torch.zeros(1, 1, 1, 1)
    monkeypatch.delenv("REFSEG_DEFORM_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert choose_backend(value) == ("pytorch", "embedding bags on cpu")
    assert available_backends(value) == ("pytorch", "plain")
    monkeypatch.setenv("REFSEG_DEFORM_BACKEND", "plain")
    name, reason = choose_backend(value)
    assert name == "plain" and "REFSEG_DEFORM_BACKEND" in reason


def test_argument_overrides_the_environment_variable(monkeypatch):
    monkeypatch.setenv("REFSEG_DEFORM_BACKEND", "plain")
    value, locations, weights = (tensor.requires_grad_() for tensor in inputs([(2, 2)]))
    by_environment = deformable_attention(value, [(2, 2)], locations, weights)
    by_argument = deformable_attention(value, [(2, 2)], locations, weights, backend="pytorch")
    assert "EmbeddingBag" not in type(by_environment.grad_fn).__name__
    assert "EmbeddingBag" in type(by_argument.grad_fn).__name__


def test_unknown_and_impossible_backends(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    value, locations, weights = inputs([(2, 2)])
    with pytest.raises(ValueError, match=r"backend names an unknown.*'cuda'.*pytorch, triton, mmcv, plain"):
        deformable_attention(value, [(2, 2)], locations, weights, backend="cuda")
    with pytest.raises(RuntimeError, match=r"'triton', which cannot run here.*use 'pytorch'"):
        deformable_attention(value, [(2, 2)], locations, weights, backend="triton")
    with pytest.raises(RuntimeError, match=r"'mmcv', which cannot run here.*CUDA only.*cpu.*use 'pytorch'"):
        deformable_attention(value, [(2, 2)], locations, weights, backend="mmcv")
    monkeypatch.setenv("REFSEG_DEFORM_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"REFSEG_DEFORM_BACKEND names an unknown.*'fast'"):
        deformable_attention(value, [(2, 2)], locations, weights)


@pytest.mark.parametrize("compiled", [False, True])
def test_mmcv_needs_a_compiled_extension_with_the_operator(monkeypatch, compiled):
    """mmcv's extension is missing, or was compiled without this operator."""
    monkeypatch.setitem(sys.modules, "mmcv._ext", ModuleType("mmcv._ext"))
    monkeypatch.setattr(sys.modules[why_not.__module__], "mmcv_ext_state", lambda: (compiled, "no extension"))
    reason = why_not("mmcv", SimpleNamespace(is_cuda=True))
    assert reason.startswith("this mmcv was compiled without" if compiled else "no extension; build mmcv")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v, s, x, w: (v[0], s, x, w), r"expected value \(B, S, H, D\)"),
        (lambda v, s, x, w: (v, s, x[..., :1], w), "last dimension of 2"),
        (lambda v, s, x, w: (v, s, x, w[:, :2]), "shape of attention_weights"),
        (lambda v, s, x, w: (v[:1], s, x, w), "differ in images or heads"),
        (lambda v, s, x, w: (v, s + [(1, 1)], x, w), "spatial_shapes has 2 levels"),
        (lambda v, s, x, w: (v, [(2, 3)], x, w), "do not make up the 4 pixels"),
        (lambda v, s, x, w: (v, [(-2, -2)], x, w), "do not make up the 4 pixels"),
        (lambda v, s, x, w: (v.to("meta"), s, x, w), "different devices"),
    ],
)
def test_wrong_shapes(change, message):
    value, locations, weights = inputs([(2, 2)])
    with pytest.raises(ValueError, match=message):
        deformable_attention(*change(value, [(2, 2)], locations, weights), backend="pytorch")


class Op(torch.nn.Module):
    def forward(self, value, locations, weights):
        return deformable_attention(value, [(4, 3), (2, 2)], locations, weights)


def test_export_trace_and_compile_use_plain():
    tensors = inputs([(4, 3), (2, 2)], dtype=torch.float32)
    expected = Op()(*tensors)
    exported = torch.export.export(Op(), tensors)
    assert any("grid_sampler" in str(node.target) for node in exported.graph.nodes)
    traced = torch.jit.trace(Op(), tensors)
    assert "grid_sampler" in str(traced.inlined_graph)
    compiled = torch.compile(Op(), backend="eager", fullgraph=True)
    for module in (exported.module(), traced, compiled):
        torch.testing.assert_close(module(*tensors), expected)


def test_autocast_keeps_locations_exact():
    shapes = [(4, 3)]
    value, locations, weights = inputs(shapes, dtype=torch.float32)
    expected = deformable_attention(value, shapes, locations, weights)
    with torch.autocast("cpu", torch.bfloat16):
        for backend in NAMES:
            torch.testing.assert_close(deformable_attention(value, shapes, locations, weights, backend), expected)
