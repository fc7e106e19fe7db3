"""Kernels, predictions, and training steps on each device: at toy size on the CPU, and on a GPU with `-m gpu`.

Every leaf config takes a step on the GPU in tests/test_configs.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from conftest import DEVICES, REPOSITORY
from distributed import run_distributed
from refseg.analysis.synthetic import dummy_batch, vocabulary_size
from refseg.engine.run import build_model, load_config
from refseg.models.layers import Attention
from refseg.models.losses import instances
from refseg.models.losses.matching import Pairs
from refseg.ops import available_backends, choose_backend, deformable_attention

METHODS = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))
TOY = "instalign_tiny_refshapes"
on_devices = pytest.mark.parametrize("device", DEVICES)
# All methods on a GPU. On the CPU, other tests have them
on_models = pytest.mark.parametrize(
    ("name", "device"), [(TOY, "cpu"), *(pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in METHODS)]
)
COMPILED = [  # a decoder with deformable attention and matching, Swin with a fusion, and a multiway transformer
    pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in (TOY, "lavt_swinb", "latentvg_beit3b")
]


def toy(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return a config's model at its tiny size, and a batch of two images with two expressions each, for the CPU."""
    cfg = load_config(name)
    cfg.merge_from_dict(cfg.get("_tiny", {}))
    torch.manual_seed(0)
    model = build_model(cfg)
    words = vocabulary_size(model)
    return model, dummy_batch(shape=(64, 64), num_images=2, expressions_per_image=2, num_words=7, vocab_size=words)


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off TF32, which PyTorch uses for convolutions in fp32 on GPUs, and which has 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def relative_error(mine: Tensor, right: Tensor) -> float:
    return ((mine.detach().cpu().double() - right).norm() / right.norm()).item()


@on_devices
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 3e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str
)
@pytest.mark.parametrize("size", [(3, 5), (60, 80)])
def test_deformable_attention(device: str, dtype: torch.dtype, limit: float, size: tuple[int, int]) -> None:
    """Every backend has mmcv's numbers, for which mmcv's form in PyTorch computes in fp64, forward and backward.

    As with autocast, the locations are in fp32. Their gradient jumps between pixels. On 80 columns, rounding moves
    about one coordinate of 1e5 over such a border, which changes it by its own size: an error of the root of 1e-5.
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    large = device == "cuda" and size[0] > 9
    heads, channels, points = (8, 32, 4) if large else (3, 5, 2)
    shapes = [size, (size[0] // 2, size[1] // 2), (1, 1)] if large else [(size[0] // 3, size[1] // 3), (2, 2), (1, 1)]
    queries, draw = sum(h * w for h, w in shapes), torch.Generator().manual_seed(0)
    taps = (2, queries, heads, len(shapes), points)
    value = torch.randn(2, queries, heads, channels, generator=draw).to(dtype)
    locations, weights = 0.5 + 0.4 * torch.randn(*taps, 2, generator=draw), torch.rand(taps, generator=draw)
    grad = torch.randn(2, queries, heads * channels, generator=draw).to(dtype)
    wide = [tensor.double().requires_grad_() for tensor in (value, locations, weights)]
    out = multi_scale_deformable_attn_pytorch(wide[0], torch.tensor(shapes), *wide[1:])
    right = [out.detach(), *torch.autograd.grad(out, wide, grad.double())]
    inputs = [tensor.to(device).requires_grad_() for tensor in (value, locations, weights)]
    names = available_backends(inputs[0])
    assert choose_backend(inputs[0])[0] == ("triton" if device == "cuda" else "pytorch")
    for backend in names:
        out = deformable_attention(inputs[0], shapes, *inputs[1:], backend)
        mine = [out, *torch.autograd.grad(out, inputs, grad.to(device))]
        errors = [relative_error(*pair) for pair in zip(mine, right, strict=True)]
        bounds = (limit, limit, 3e-2, limit)
        assert all(error < bound for error, bound in zip(errors, bounds, strict=True)), (backend, errors)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_to_nothing_is_zero(device: str, dtype: torch.dtype) -> None:
    """A row whose mask is False everywhere reads zeros and has finite gradients, whichever kernel PyTorch chooses."""
    torch.manual_seed(0)
    attention = Attention(64, 2).to(device, dtype)
    x, memory = torch.randn(2, 3, 64), torch.randn(2, 50, 64)
    x, memory = (tensor.to(device, dtype).requires_grad_() for tensor in (x, memory))
    mask = torch.rand(2, 3, 50, device=device) > 0.5
    mask[1, 2] = False
    out = attention(x, memory, mask)
    torch.testing.assert_close(out[1, 2], attention.out.bias)
    grads = torch.autograd.grad(out.square().sum(), [x, memory, *attention.parameters()])
    assert all(grad.isfinite().all() for grad in grads)


def logits_and_gradients(model: torch.nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """Return the mask logits in evaluation mode, and the gradients of their mean square, as one vector each."""
    prediction = model.eval()(**model.data_preprocessor(batch), mode="tensor")
    logits = prediction.instances.mask_logits if prediction.mask_logits is None else prediction.mask_logits
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grads = torch.autograd.grad(logits.square().mean(), trained, allow_unused=True)
    return [logits.detach().flatten(), torch.cat([grad.flatten() for grad in grads if grad is not None])]


@on_models
def test_prediction_is_that_of_fp64(name: str, device: str) -> None:
    """Logits and gradients in fp32 agree with those of the same weights in fp64 on the CPU.

    Gradients of deformable attention's locations jump between pixels, so rounding changes them by up to some percent.
    """
    model, batch = toy(name)
    mine = logits_and_gradients(model.to(device), batch)
    right = logits_and_gradients(model.to("cpu").double(), batch)
    assert relative_error(mine[0], right[0]) < 1e-4 and relative_error(mine[1], right[1]) < 0.05


@on_models
def test_channels_last(name: str, device: str) -> None:
    """The memory format of convolutions changes no number."""
    model, batch = toy(name)
    right = [tensor.cpu().double() for tensor in logits_and_gradients(model.to(device), batch)]
    mine = logits_and_gradients(model.to(memory_format=torch.channels_last), batch)
    assert relative_error(mine[0], right[0]) < 1e-4 and relative_error(mine[1], right[1]) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("name", "device"), [("baseline_tiny_refshapes", "cpu"), *COMPILED])
def test_compiled(name: str, device: str) -> None:
    """A compiled model predicts what the model does, and its training step gives gradients."""
    model, batch = toy(name)
    model.to(device).eval()
    data = model.data_preprocessor(batch)
    compiled = torch.compile(model, backend="inductor" if device == "cuda" else "aot_eager")
    with torch.no_grad():
        mine, right = (part(**data, mode="predict") for part in (compiled, model))
    for one, other in zip(mine, right, strict=True):
        torch.testing.assert_close(one.mask_logits, other.mask_logits, rtol=1e-3, atol=1e-3)
    model.train()
    loss, _ = model.parse_losses(compiled(**data, mode="loss"))
    loss.backward()
    assert loss.isfinite() and any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_simulated_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and predictions never mix devices, nor dtypes that CUDA's autocast does not join.

    The tensors claim to be on a GPU and have no numbers (PyTorch's FakeTensorMode), so this needs none. What reads
    numbers gets zeros and ones.
    """
    triton = pytest.importorskip("refseg.ops._triton", exc_type=ImportError)

    def ones(tensor: Tensor) -> Any:
        return np.ones(tuple(tensor.shape), dtype=int).tolist()

    def first_queries(cost: Tensor, counts: list[int]) -> list[Pairs]:
        rows = torch.arange(sum(counts), device=cost.device)
        return [Pairs(rows % cost.shape[1], 0 * rows, 0 * rows)] * len(cost)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    monkeypatch.setattr(triton, "_launch", lambda *_: None)
    monkeypatch.setattr(FakeTensor, "tolist", ones)
    monkeypatch.setattr(FakeTensor, "__int__", lambda tensor: 0, raising=False)
    monkeypatch.setattr(instances, "assign", first_queries)
    model, batch = toy(name)
    with FakeTensorMode(allow_non_fake_inputs=True), cuda_autocast():
        model.to("cuda").train()
        losses = model(**model.data_preprocessor(batch, True), mode="loss")
        loss, _ = model.parse_losses(losses)
        prediction = model.eval()(**model.data_preprocessor(batch), mode="tensor")
    assert loss.device.type == "cuda" and loss.dtype == torch.float32
    logits = prediction.mask_logits if prediction.instances is None else prediction.instances.mask_logits
    assert logits.device.type == "cuda"


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Turn bf16 autocast on for CUDA, which `torch.autocast` does not do without a GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)  # PyTorch's default


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", METHODS)
def test_mixed_precision(name: str, dtype: str) -> None:
    """Steps in mixed precision have finite losses and change the weights. The scale of fp16 may skip the first ones."""
    model, batch = toy(name)
    model.to("cuda").train()
    scale = "dynamic" if dtype == "float16" else 1.0
    wrapper = build_optim_wrapper(
        model,
        dict(
            type="refseg.GuardedAmpOptimWrapper", optimizer=dict(type="AdamW", lr=1e-4), dtype=dtype, loss_scale=scale
        ),
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(8):
        assert torch.isfinite(model.train_step(batch, wrapper)["loss"])
    assert any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def distributed_step(rank: int, world_size: int, device: str) -> None:
    model, batch = toy(TOY)
    devices = None if device == "cpu" else [rank]
    wrapped = MMDistributedDataParallel(model.to(device), device_ids=devices, broadcast_buffers=False)
    wrapper = build_optim_wrapper(
        wrapped, dict(type="refseg.GuardedOptimWrapper", optimizer=dict(type="AdamW", lr=1e-4))
    )
    for _ in range(2):  # the second step fails if a parameter had no gradient in the first one
        assert torch.isfinite(wrapped.train_step(batch, wrapper)["loss"])


@pytest.mark.slow
@on_devices
def test_distributed_step(device: str) -> None:
    """DistributedDataParallel takes steps, with gloo on the CPU and with nccl on a GPU."""
    run_distributed(distributed_step, 1, device, backend="gloo" if device == "cpu" else "nccl")
