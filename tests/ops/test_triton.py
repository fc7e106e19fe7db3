"""The Triton kernels without a GPU: their numbers in Triton's CPU interpreter, and that they compile for GPUs.

Both run in a process of their own: TRITON_INTERPRET must be set before triton is imported.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import refseg

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run_python(source: str, **environment: str) -> str:
    """Run `source` in a new interpreter that finds the same refseg. Return its output."""
    paths = [str(Path(refseg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def test_parity_in_the_interpreter():
    """Outputs and gradients are those of the plain form, for levels of one pixel, locations outside, D not a power of
    two, and an incomplete last block, in all dtypes. Empty input works. Wrong level sizes, which are not checked on a
    GPU because that would wait for it, read no memory outside the value."""
    run_python(
        """
        import torch
        from refseg.ops import available_backends, deformable_attention

        assert "triton" in available_backends(torch.zeros(1))
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
        for dtype, atol in tolerance.items():
            for shapes, channels, points in (([(5, 7), (1, 1), (3, 2)], 5, 2), ([(1, 1)], 1, 1), ([(2, 9)], 16, 3)):
                torch.manual_seed(0)
                pixels, taps = sum(h * w for h, w in shapes), (2, 3, 3, len(shapes), points)
                value = torch.randn(2, pixels, 3, channels).to(dtype).requires_grad_()
                wide = torch.float64 if dtype == torch.float64 else torch.float32
                locations = 0.5 + 0.7 * torch.randn(*taps, 2, dtype=wide)
                locations[0, 0, 0, 0, 0] = 1e30
                locations = locations.to(wide).requires_grad_()
                weights = torch.rand(*taps).to(dtype).requires_grad_()
                grad = torch.randn(2, 3, 3 * channels).to(dtype)
                results = []
                for backend in ("triton", "plain"):
                    out = deformable_attention(value, torch.tensor(shapes), locations, weights, backend)
                    results.append([out, *torch.autograd.grad(out, (value, locations, weights), grad)])
                for mine, expected in zip(*results):
                    assert mine.dtype == expected.dtype
                    scale = max(1.0, expected.abs().max().item())
                    torch.testing.assert_close(mine, expected, rtol=0, atol=atol * scale)

        for images, queries in ((0, 3), (2, 0)):
            value = torch.randn(images, 6, 3, 4, requires_grad=True)
            out = deformable_attention(
                value, [(2, 3)], torch.rand(images, queries, 3, 1, 2, 2), torch.rand(images, queries, 3, 1, 2), "triton"
            )
            out.sum().backward()
            assert out.shape == (images, queries, 12) and not value.grad.any()

        # wrong level sizes: rows past the end of the value count as outside and are not read
        value, weights = torch.ones(1, 4, 1, 2), torch.ones(1, 1, 1, 1, 1)
        locations = torch.full((1, 1, 1, 1, 1, 2), 0.9)
        assert not deformable_attention(value, torch.tensor([(50, 50)]), locations, weights, "triton").any()
        """,
        TRITON_INTERPRET="1",
    )


def test_kernels_compile_for_gpus():
    """Triton compiles for a GPU without having one."""
    printed = run_python(
        """
        import triton.language as tl
        from triton import compile
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from refseg.ops import _triton

        constants = dict(H=8, D=32, L=3, P=4, BLOCK=16, BLOCK_D=32, DTYPE=tl.float32)
        for dtype in ("fp32", "bf16"):
            pointers = dict(value=dtype, out=dtype, grad=dtype, weights=dtype, grad_weights=dtype, grad_value="fp32",
                            locations="fp32", grad_locations="fp32", shapes="i64", starts="i64")
            for kernel in (_triton._forward, _triton._backward):
                types = {name: "*" + pointers[name] if name in pointers else "i32" for name in kernel.arg_names}
                types.update(dict.fromkeys(constants, "constexpr"))
                compiled = compile(ASTSource(kernel, types, constexprs=constants), target=GPUTarget("cuda", 90, 32))
                print(dtype, kernel.__name__, "atom" in compiled.asm["ptx"] or "red." in compiled.asm["ptx"])
        """,
        TRITON_INTERPRET="0",
    )
    assert [line.split()[2] for line in printed.splitlines()] == ["False", "True"] * 2, "the value's gradient is atomic"
