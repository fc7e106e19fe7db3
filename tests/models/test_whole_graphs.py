"""`--compile`: PyTorch's compiler follows each model from end to end."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.referring_checks import logits_of, prepared, tiny_model

MODELS = [
    ("cgformer_swinb", {}),
    ("deris_beit3b", {}),
    ("dmmi_swinb", {}),
    ("lavt_swinb", {}),
    ("lgformer_swinb", {}),
    ("rela_swinb", {}),
    ("rela_swinb", {"encoder.fusion": None}),
    ("instalign_swinb", {}),
    ("vipa_swinb", {}),
    ("latentvg_beit3b_grefcoco", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "changes"), MODELS)
def test_whole_models_compile(config: str, changes: dict[str, Any]) -> None:
    """One graph, the same logits. (The backend only traces; what generated code computes is PyTorch's affair.)"""
    model = tiny_model(config, **changes).eval()
    batch = prepared(model)
    exact = logits_of(model, batch)
    torch.compiler.reset()
    traced = logits_of(torch.compile(model, backend="eager", fullgraph=True), batch)
    torch.testing.assert_close(traced, exact, atol=1e-4, rtol=1e-4)
