"""Graphs of every method answer like the model, for other numbers of images, phrases, and words than they were traced
with."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from models.referring_checks import padded_images, prepared, tiny_model, with_padded_words
from refseg.errors import UsageError
from refseg.export.graphs import build_graphs, write_graphs
from refseg.models import RefSegmentor
from refseg.models.onnx_segmentor import OnnxSegmentor, named_tensors
from refseg.structures import Batch

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
SIZE = (64, 96)
CONV = dict(_delete_=True, type="ConvEncoder", dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), stride=4)


def check_graphs(model: RefSegmentor, batch: Batch, folder: Path, *, padded: bool = False) -> OnnxSegmentor:
    """Write the graphs of a model, and compare what they and the model predict."""
    write_graphs(model.eval(), folder, size=SIZE, padded=padded, pad_id=batch.tokens.pad_id)
    exported = OnnxSegmentor(folder=str(folder)).eval()
    assert exported.shares_images == model.shares_images
    with torch.no_grad():
        expected, found = named_tensors(model.infer(batch)), named_tensors(exported.infer(batch))
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-3, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    return exported


def test_late_fusion_has_two_graphs(tmp_path: Path) -> None:
    """Two images with two phrases each, of which one is padded by four more tokens."""
    model = tiny_model("instalign_tiny_refshapes", **{"decoder.num_blocks": 2})
    batch = with_padded_words(prepared(model, shape=SIZE, expressions_per_image=2, num_words=5))
    check_graphs(model, batch, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"image.onnx", "phrases.onnx"}


def test_early_fusion_has_one_graph_which_masks_padding(tmp_path: Path) -> None:
    """The images fill the upper left 40 x 64 pixels of their input."""
    model = tiny_model("lavt_tiny_refshapes", **{"encoder.vision.arch.depths": (2, 1, 1, 1)})
    batch = padded_images(prepared(model, shape=SIZE, expressions_per_image=2), 40, 64)
    check_graphs(model, batch, tmp_path, padded=True)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("baseline_tiny_refshapes", {}),
        ("rela_tiny_refshapes", {"decoder.num_blocks": 1}),  # the time grows with the number of layers
        ("rela_tiny_refshapes_late", {"decoder.num_blocks": 1}),
        ("cgformer_swinb", {"encoder.vision": CONV}),  # the graphs of Swin take a minute
        ("deris_beit3b", {"vision": CONV, "decoder.num_blocks": 1}),
        ("dmmi_swinb", {"encoder.vision": CONV, "encoder.fused_stages": (3,)}),  # fewer nodes
        ("lgformer_swinb", {"encoder.vision": CONV, "pixel_decoder.num_layers": 1, "prototype.num_layers": 1}),
        ("vipa/ablations/refshapes_early_fusion", {}),
        ("vipa/ablations/refshapes_without_fusion", {}),
        ("latentvg_beit3b_grefcoco", {}),
    ],
)
def test_every_method(config: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's optimizer of graphs, which the tests above include, would take a third of the time."""
    monkeypatch.setattr(torch.onnx, "export", partial(torch.onnx.export, optimize=False))
    model = tiny_model(config, **changes)
    check_graphs(model, prepared(model, shape=SIZE, expressions_per_image=2), tmp_path)


def test_programs_and_compiled_libraries(tmp_path: Path) -> None:
    """The program of the images' graph and AOTInductor's library of the phrases' answer like the model."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    model = tiny_model("baseline_tiny_refshapes", **{"num_decoder_layers": 1}).eval()
    batch = prepared(model, shape=SIZE, num_images=1, expressions_per_image=2)
    image, phrases = build_graphs(model, size=SIZE).values()
    file = torch._inductor.aoti_compile_and_package(phrases.trace(), package_path=f"{tmp_path}/phrases.pt2")
    with torch.no_grad():
        expected = named_tensors(model.infer(batch))
        features = dict(zip(image.outputs, image.trace().module()(batch.images), strict=True))
        inputs = features | {"token_ids": batch.tokens.ids, "word_mask": batch.tokens.word_mask}
        found = torch._inductor.aoti_load_package(file)(*(inputs[name] for name in phrases.inputs))
    for name, tensor in zip(phrases.outputs, found, strict=True):
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-4)


def test_what_the_exporter_cannot_follow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("lavt_tiny_refshapes").eval()
    infer = model.infer
    monkeypatch.setattr(model, "infer", lambda batch: infer(batch) if batch.tokens.ids.sum().item() else None)
    with pytest.raises(UsageError, match=r"LAVT cannot be exported: PyTorch's exporter cannot follow it \(.*: .+\)"):
        write_graphs(model, tmp_path, size=SIZE, padded=False, pad_id=0)
