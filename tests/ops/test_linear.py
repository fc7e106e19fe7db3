from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from refseg.ops import linear as fast
from refseg.ops import use_fast_linear
from refseg.ops.linear import FastLinear


def flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def test_fast_linear_falls_back_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, rows = FastLinear(5, 3), torch.randn(2, 4, 5)
    expected = F.linear(rows, layer.weight, layer.bias)
    assert layer(rows).requires_grad
    assert flops(lambda: layer(rows)) == 2 * 8 * 5 * 3
    calls = []

    def spy(rows: Tensor, weight: Tensor, bias: Tensor, *_: object) -> Tensor:
        calls.append(rows)
        return F.linear(rows, weight, bias)

    monkeypatch.setattr(fast, "onednn_linear", lambda: spy)
    with torch.no_grad():
        torch.testing.assert_close(layer(rows), expected)
        assert len(calls) == 1
        assert layer(rows[:0]).shape == (0, 4, 3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(rows).dtype == torch.bfloat16
        assert layer.double()(rows.double()).dtype == torch.float64
    assert len(calls) == 1


def test_fast_linear_is_exact_with_onednn() -> None:
    layer, rows = FastLinear(64, 48), torch.randn(2, 30, 64)
    with torch.no_grad():
        torch.testing.assert_close(layer(rows), F.linear(rows, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)
        transposed = torch.randn(64, 30).t()
        torch.testing.assert_close(layer(transposed), F.linear(transposed, layer.weight, layer.bias))


def test_only_plain_linears_change_class() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Own(2, 2), nn.Conv2d(1, 1, 1))
    before = model.state_dict()
    assert use_fast_linear(model) == 1
    assert [type(part) for part in model] == [FastLinear, Own, nn.Conv2d]
    assert model.state_dict().keys() == before.keys()
