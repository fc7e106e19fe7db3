"""Graphs of every method answer like the model, for other numbers of images, phrases, and words than they were traced
with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from models.referring_checks import padded_images, prepared, tiny_model, with_padded_words
from refseg.errors import ConfigError, UsageError
from refseg.export.graphs import build_graphs, write_graphs
from refseg.models import RefSegmentor
from refseg.models.onnx_segmentor import OnnxSegmentor, named_tensors
from refseg.structures import Batch

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
SIZE, ANOTHER = (64, 96), (128, 160)
SHORT = {"encoder.text.config.num_hidden_layers": 1}
TUNED = {"encoder.text.trained_layers": 1}  # of that layer
CONV = {"encoder.vision": dict(_delete_=True, type="ConvEncoder", dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), stride=4)}
LITE = dict(_delete_=True, type="TimmEncoder", name="tf_efficientnet_lite0")
BatchOf = Callable[[tuple[int, int], int], Batch]  # of a size and a number of phrases per image


def check_graphs(model: RefSegmentor, batch_of: BatchOf, folder: Path, *, padded: bool = False) -> str:
    """Write the graphs of a model, compare what they and the model predict for two phrases and for one, at two sizes if
    they take any size, and return why they take one only."""
    step = (model.data_preprocessor.size_divisor,) * 2
    files, reason = write_graphs(model.eval(), folder, size=SIZE, step=step, padded=padded, pad_id=0)
    assert set(folder.iterdir()) == set(files)
    exported = OnnxSegmentor(folder=str(folder)).eval()
    assert exported.shares_images == model.shares_images == (len(files) == 2)
    for size, phrases in ((SIZE, 2), (SIZE if reason else ANOTHER, 1)):
        batch = batch_of(size, phrases)
        with torch.no_grad():
            expected, found = named_tensors(model.infer(batch)), named_tensors(exported.infer(batch))
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(
                found[name], expected[name], atol=1e-3, rtol=1e-3, msg=lambda m, n=name, s=size: f"{n} {s}: {m}"
            )
    if reason:
        with pytest.raises(ConfigError, match=r"takes images of \[64, 96\] and got \[128, 160\]"):
            exported.infer(batch_of(ANOTHER, 1))
    return reason


def test_late_fusion_has_two_graphs(tmp_path: Path) -> None:
    """Two images with phrases that are padded by four more tokens, and the encoder of `refseg finetune`, whose padding
    depends on the size of its input. The second block has masked attention."""
    changes = {**SHORT, "decoder.num_blocks": 2, "encoder.vision": LITE, "data_preprocessor.size_divisor": 32}
    model = tiny_model("instalign_tiny_refshapes", **changes)
    assert not check_graphs(
        model,
        lambda size, phrases: with_padded_words(prepared(model, shape=size, expressions_per_image=phrases)),
        tmp_path,
    )
    assert {file.name for file in tmp_path.iterdir()} == {"image.onnx", "phrases.onnx"}


@pytest.fixture
def no_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out PyTorch's optimizer of graphs, a third of the time. The test above and the exports in `test_export.py`
    include it."""
    monkeypatch.setattr(torch.onnx, "export", partial(torch.onnx.export, optimize=False))


@pytest.mark.usefixtures("no_optimizer")
def test_early_fusion_has_one_graph_which_masks_padding(tmp_path: Path) -> None:
    """The images fill the upper left 40 x 64 pixels of their input. Stage 0 of the Swin has shifted windows."""
    model = tiny_model("lavt_tiny_refshapes", **{"encoder.vision.arch.depths": (2, 1, 1, 1)})
    reason = check_graphs(
        model,
        lambda size, phrases: padded_images(prepared(model, shape=size, expressions_per_image=phrases), 40, 64),
        tmp_path,
        padded=True,
    )
    assert reason == "The windows of Swin's attention are laid out for one image size."
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx"}


@pytest.mark.slow
@pytest.mark.usefixtures("no_optimizer")
@pytest.mark.parametrize(
    ("config", "changes", "any_size"),
    [
        # The time grows with the number of nodes, so models have few layers, and no Swin
        ("rela_tiny_refshapes", {**SHORT, "decoder.num_blocks": 1}, True),
        ("cgformer_swinb", {**SHORT, **CONV}, True),
        ("deris_beit3b", {"vision": CONV["encoder.vision"], "decoder.num_blocks": 1}, False),
        ("dmmi_swinb", {**SHORT, **CONV, **TUNED, "encoder.fused_stages": (3,)}, True),
        ("lgformer_swinb", {**SHORT, **CONV, **TUNED, "pixel_decoder.num_layers": 1, "prototype.num_layers": 1}, True),
        ("vipa/ablations/refshapes_early_fusion", {}, False),
        ("vipa/ablations/refshapes_without_fusion", SHORT, False),
        ("latentvg_beit3b_grefcoco", {}, False),
    ],
)
def test_every_method(config: str, changes: dict[str, Any], any_size: bool, tmp_path: Path) -> None:
    model = tiny_model(config, **changes)
    reason = check_graphs(
        model, lambda size, phrases: prepared(model, shape=size, expressions_per_image=phrases), tmp_path
    )
    assert (reason == "") == any_size, reason


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
        write_graphs(model, tmp_path, size=SIZE, step=(32, 32), padded=False, pad_id=0)
