"""Multi-scale deformable attention: one function with several backends.

    pytorch   CPU: an embedding bag, many times faster than `grid_sample`. CUDA: the same as `plain`
    triton    CUDA: Triton kernels, forward and backward, compiled at first use
    mmcv      CUDA: the kernels of a compiled mmcv, if one is installed
    plain     anywhere: `grid_sample`; used by torch.compile and the exporters

All give the same numbers. By default, the best backend for the tensors is chosen. The argument `backend` overrides
that, and so does the environment variable REFSEG_DEFORM_BACKEND if the argument is not given.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import shutil
from collections.abc import Sequence

import torch
from torch import Tensor

from refseg.compat import mmcv_ext_state
from refseg.ops import _pytorch

BACKENDS = ("pytorch", "triton", "mmcv", "plain")
ENVIRONMENT_VARIABLE = "REFSEG_DEFORM_BACKEND"
_TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None


def deformable_attention(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Compute equation 3 of Deformable DETR without its projections, with mmcv's conventions.

    Args:
        value: (B, S, H, D), the pixels of all levels one after the other, row by row; S = sum(h * w).
        spatial_shapes: (L, 2), the (h, w) of each level, as a tensor or as numbers.
        sampling_locations: (B, Q, H, L, P, 2), the (x, y) from (0, 0), the upper left corner of the image, to (1, 1),
            the lower right one. Outside the image the value is zero.
        attention_weights: (B, Q, H, L, P).
        backend: One of BACKENDS; by default the best one for the tensors.

    Returns:
        (B, Q, H * D) in the dtype of `value`. Sums are computed at least in fp32.
    """
    if backend is None:
        backend, _ = choose_backend(value)
    else:
        _check_backend(backend, value, "backend")
    captured = _is_captured()
    if not captured:
        _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)

    # Backends for GPUs read the level sizes on the device.
    if backend in ("triton", "mmcv"):
        shapes = sizes_on(spatial_shapes, value.device)
        if backend == "mmcv":
            return _by_mmcv(value, shapes, sampling_locations, attention_weights)
        from refseg.ops import _triton

        return _triton.deformable_attention(value, shapes, sampling_locations, attention_weights)

    # Backends of PyTorch need them as numbers.
    pairs = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    sizes = [(h, w) for h, w in pairs]
    if not captured and (any(h < 1 or w < 1 for h, w in sizes) or sum(h * w for h, w in sizes) != value.shape[1]):
        raise ValueError(f"levels of (h, w) {sizes} do not make up the {value.shape[1]} pixels of value")
    bag = backend == "pytorch" and value.device.type == "cpu" and not captured
    compute = _pytorch.embedding_bag if bag else _pytorch.plain
    return compute(value, sizes, sampling_locations, attention_weights)


def sizes_on(spatial_shapes: Tensor | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return the (h, w) of each level as a tensor (L, 2) on a device."""
    if isinstance(spatial_shapes, Tensor):
        return spatial_shapes.to(device)
    # Filled on the device, because copying a list makes a GPU synchronize
    return torch.stack([torch.full((), side, device=device) for shape in spatial_shapes for side in shape]).view(-1, 2)


def choose_backend(value: Tensor) -> tuple[str, str]:
    """Return the default backend for `value`, and the reason."""
    if _is_captured():
        return "plain", "a compiler or an exporter follows the call"
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        _check_backend(named, value, ENVIRONMENT_VARIABLE)
        return named, f"{ENVIRONMENT_VARIABLE} says so"
    if not value.is_cuda:
        how = "embedding bags" if value.device.type == "cpu" else "grid_sample"
        return "pytorch", f"{how} on {value.device.type}"
    reasons: list[str] = []
    for name in ("triton", "mmcv"):
        reason = why_not(name, value)
        if not reason:
            return name, "; ".join([*reasons, f"{name} runs on {value.device}"])
        reasons.append(f"no {name}: {reason}")
    return "pytorch", "; ".join([*reasons, "grid_sample on cuda"])


def available_backends(value: Tensor | None = None) -> tuple[str, ...]:
    """Return the backends that can run on the device of `value`; by default on a GPU if there is one, else on CPU."""
    if value is None:
        value = torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu")
    return tuple(name for name in BACKENDS if not why_not(name, value))


def why_not(name: str, value: Tensor) -> str:
    """Return why this backend cannot run on `value`, and the remedy; empty if it can."""
    if name == "mmcv":
        if not value.is_cuda:
            return f"mmcv has this kernel for CUDA only and the tensors are on {value.device.type}; use 'pytorch'"
        compiled, state = mmcv_ext_state()
        if compiled and not hasattr(importlib.import_module("mmcv._ext"), "ms_deform_attn_forward"):
            compiled, state = False, "this mmcv was compiled without ms_deform_attn_forward"
        return "" if compiled else f"{state}; build mmcv from source for this PyTorch, or use 'triton' or 'pytorch'"
    if name != "triton":
        return ""
    if not _TRITON_IS_INSTALLED:
        return "Triton is not installed; `pip install triton` (Linux), or use 'pytorch'"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    if not value.is_cuda:
        return (
            f"Triton's kernels run on GPUs and the tensors are on {value.device.type}; use 'pytorch' "
            "(TRITON_INTERPRET=1, set before Python starts, runs them on CPU, for tests only)"
        )
    if torch.version.hip is None and torch.cuda.get_device_capability(value.device) < (7, 0):
        return "Triton needs a GPU of compute capability 7.0 or more; use 'mmcv' or 'pytorch'"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton builds its launcher with a C compiler and there is none; install gcc, or use 'pytorch'"
    return ""


def _is_captured() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def _check_backend(name: str, value: Tensor, source: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{source} names an unknown backend, {name!r}. Valid backends: {', '.join(BACKENDS)}")
    if reason := why_not(name, value):
        raise RuntimeError(f"{source} asks for the backend {name!r}, which cannot run here: {reason}")


def _check_shapes(value: Tensor, spatial_shapes: object, locations: Tensor, weights: Tensor) -> None:
    """Check shapes and devices, without waiting for a device."""
    if value.dim() != 4 or locations.dim() != 6 or weights.dim() != 5:
        raise ValueError(
            "expected value (B, S, H, D), sampling_locations (B, Q, H, L, P, 2) and attention_weights (B, Q, H, L, P), "
            f"got {tuple(value.shape)}, {tuple(locations.shape)} and {tuple(weights.shape)}"
        )
    if locations.shape != (*weights.shape, 2):
        raise ValueError(
            "sampling_locations must have the shape of attention_weights and a last dimension of 2, "
            f"got {tuple(locations.shape)} and {tuple(weights.shape)}"
        )
    sizes = [(tensor.shape[0], tensor.shape[2]) for tensor in (value, locations)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"value and sampling_locations differ in images or heads: (B, H) = {sizes[0]} and {sizes[1]}")
    levels = len(spatial_shapes)  # type: ignore[arg-type]
    if levels != locations.shape[3]:
        raise ValueError(f"spatial_shapes has {levels} levels, sampling_locations has {locations.shape[3]}")
    if not value.device == locations.device == weights.device:
        raise ValueError(
            f"tensors on different devices: value {value.device}, sampling_locations {locations.device}, "
            f"attention_weights {weights.device}"
        )


def _by_mmcv(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Compute the attention with mmcv's CUDA kernels, which need full groups of images and have no bf16."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    images, queries, channels = value.shape[0], locations.shape[1], value.shape[2] * value.shape[3]
    if images * queries == 0:
        return value.new_zeros(images, queries, channels) + 0 * value.sum()
    dtype = torch.float32 if value.dtype == torch.bfloat16 else value.dtype
    shapes = shapes.to(torch.int64).contiguous()
    areas = shapes.prod(1)
    wide, locations, weights = (x.to(dtype).contiguous() for x in (value, locations, weights))
    starts, group = areas.cumsum(0) - areas, math.gcd(images, 64)
    return MultiScaleDeformableAttnFunction.apply(wide, shapes, starts, locations, weights, group).to(value.dtype)
