"""The steps of an export: check, write graphs and their config, quantize, compare, keep what passes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from refseg.datasets.tokenizers import save_tokenizer_files
from refseg.datasets.transforms import Resize
from refseg.errors import UsageError
from refseg.export.graphs import quantize, write_graphs
from refseg.export.parity import bundled_examples, compare, examples_of
from refseg.files import write_atomically
from refseg.inference.inferencer import ReferringInferencer
from refseg.inference.inputs import Loading
from refseg.inference.loading import LoadedModel, build_transforms, load_model
from refseg.models.onnx_segmentor import OnnxSegmentor
from refseg.models.preprocessor import ReferringDataPreprocessor, pad_size
from refseg.terminal import aligned
from refseg.weights import describe_weights

CONFIG, REPORT, INT8 = "onnx_model.py", "export.json", "int8"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Keys of the model's config that evaluation reads
KEPT = ("default_scope", "custom_imports", "val_dataloader", "val_evaluator", "val_cfg", "test_dataloader",
        "test_evaluator", "test_cfg", "default_hooks", "env_cfg",
        "log_level", "log_processor", "visualizer")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """How far an exported model may differ from the original. In fp32, no answer may change.

    Args:
        logit_difference: Largest difference of a logit in fp32. Both programs round differently, and the difference
            grows with the size of the logits and the depth of the model. It is 1e-5 to 1e-3 for models that agree.
        iou: Smallest IoU of a mask with the original's in fp32. A pixel whose logit is near 0 may flip.
        int8_iou: Smallest mean IoU in int8, which is a trade. It only guards against a broken model.
    """

    logit_difference: float = 0.01
    iou: float = 0.99
    int8_iou: float = 0.5


def export(
    model: str,
    weights: str | None,
    out: Path,
    *,
    int8: bool = False,
    data: str | None = None,
    samples: int = 8,
    limits: Limits | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> None:
    """Export a model to a folder, and print how it compares with the original.

    Args:
        model: See `find_model`.
        weights: See `find_model`.
        out: Folder of the exported model. It must not exist, or be empty.
        int8: Also write a model with 8-bit weights, to `out/int8`.
        data: SET:SPLIT with the samples to compare on. None: those that come with refseg.
        samples: The most images to compare on.
        limits: What the exported models must keep to.
        cfg_options: Changes of the config.

    Raises:
        UsageError: The model cannot be exported, or an exported model differs too much and is not kept.
    """
    # Everything that can be refused is refused before the work
    limits = limits or Limits()
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"refseg export needs {', '.join(missing)}. Install them: pip install 'refseg[onnx]'")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty folder. Choose another --out.")
    examples = bundled_examples()[:samples] if data is None else examples_of(data, samples)
    loaded = load_model(model, weights, device="cpu", cfg_options=cfg_options)
    size, padded = input_of(loaded)
    weights_used = describe_weights(loaded.segmentor, loaded.checkpoint)  # now: a training may replace the file
    loading = Loading(upright=data is None)  # ground truth belongs to images as they are stored
    original = ReferringInferencer(loaded, loading=loading)
    pad_id = original.pack(np.zeros((*size, 3), np.uint8), ["?"], name="").pad_id
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        # Graphs, quantized graphs, and their configs
        folder = Path(scratch, "model")
        folders = {"ONNX": folder} | ({"ONNX int8": folder / INT8} if int8 else {})
        list(folders.values())[-1].mkdir(parents=True)
        graphs = write_graphs(loaded.segmentor, folder, size=size, padded=padded, pad_id=pad_id)
        for graph in graphs if int8 else ():
            quantize(graph, folder / INT8 / graph.name)
        for one in folders.values():
            write_config(loaded, one, size)
        # Comparison
        exported = [ReferringInferencer(str(one), device="cpu", loading=loading) for one in folders.values()]
        baseline, parities = compare(original, exported, examples)
        rows: dict[str, dict[str, Any]] = {"PyTorch": baseline.summary()}
        rows |= {name: parity.summary() for name, parity in zip(folders, parities, strict=True)}
        print("\n".join(table_of(rows)))
        report = {
            "model": weights_used,
            "samples": data or "the examples that come with refseg",
            "images": len(examples),
            "threads": torch.get_num_threads(),
            "limits": asdict(limits),
            "parity": rows,
        }
        write_atomically(folder / REPORT, json.dumps(report, indent=2))
        # Keep what passes
        if problem := exceeded(rows["ONNX"], limits.logit_difference, limits.iou):
            raise UsageError(f"The exported model is not kept: {problem}")
        problem = int8 and exceeded(rows["ONNX int8"], None, limits.int8_iou)
        if problem:
            shutil.rmtree(folder / INT8)
        os.replace(folder, out)
    print(f"model: {out} ({', '.join(graph.name for graph in graphs)})")
    if problem:
        raise UsageError(f"The int8 model is not kept: {problem}")


def input_of(loaded: LoadedModel) -> tuple[tuple[int, int], bool]:
    """Return the input size (H, W) of a model's graphs, and whether images can be smaller than that.

    Raises:
        UsageError: The model has no graphs, or images have no common size.
    """
    name = type(loaded.segmentor).__name__
    if loaded.segmentor.brings_weights:
        raise UsageError(
            f"{name} cannot be exported: its processor of transformers, which resizes images and tokenizes phrases, is "
            "not part of a graph, and the number of boxes that it finds differs from image to image."
            if loaded.checkpoint is None and not isinstance(loaded.segmentor, OnnxSegmentor)
            else f"{loaded.config.parent} is an exported model already."
        )
    preprocessor = loaded.segmentor.data_preprocessor
    if not isinstance(preprocessor, ReferringDataPreprocessor):
        raise UsageError(f"{name} cannot be exported: its data preprocessor is a {type(preprocessor).__name__}.")
    resize = next((one for one in build_transforms(loaded.pipeline) if isinstance(one, Resize)), None)
    if resize is None:
        raise UsageError(
            f"{name} cannot be exported: its test pipeline has no Resize, which a graph of one size needs."
        )
    padded_size = pad_size(resize.size, preprocessor.size_divisor)
    return padded_size, resize.mode == "keep" or padded_size != resize.size


def write_config(loaded: LoadedModel, folder: Path, size: tuple[int, int]) -> None:
    """Write the config of an exported model and the files of its tokenizer into its folder, which can be moved."""
    cfg = {key: loaded.cfg[key] for key in KEPT if loaded.cfg.get(key)}
    preprocessor = loaded.segmentor.data_preprocessor
    cfg["model"] = dict(
        type="OnnxSegmentor",
        folder="{{ fileDirname }}",
        data_preprocessor=dict(
            type="ReferringDataPreprocessor",
            mean=preprocessor.mean.flatten().tolist(),
            std=preprocessor.std.flatten().tolist(),
            size_divisor=size,
        ),
        postprocess=asdict(loaded.segmentor.postprocess),
    )
    Config(cfg).dump(folder / CONFIG)
    save_tokenizer_files({"pipeline": loaded.pipeline}, folder)


def exceeded(row: Mapping[str, Any], logit_difference: float | None, iou: float) -> str:
    """Return which limits a row of the table exceeds, or an empty string. NaN exceeds all."""
    if logit_difference is None:
        return "" if row["mean_iou"] >= iou else f"the masks' mean IoU is {row['mean_iou']:.3f} (limit: {iou})."
    problems = []
    if not row["max_logit_difference"] <= logit_difference:
        problems.append(f"logits differ by up to {row['max_logit_difference']:.2g} (limit: {logit_difference:g})")
    if not row["min_iou"] >= iou:
        problems.append(f"a mask has an IoU of {row['min_iou']:.3f} with the original (limit: {iou:g})")
    if row["changed"]:
        problems.append(f"{row['changed']} of {row['phrases']} answers changed")
    return f"{', '.join(problems)}." if problems else ""


def table_of(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the table of a comparison. Times are medians, of one image and of the phrases about it."""

    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [("", "logits", "mean IoU", "min IoU", "changed", "image ms", "phrases ms", "gIoU")]
    for name, row in rows.items():
        lines.append(
            (
                name,
                f"{row['max_logit_difference']:.1e}",
                f"{row['mean_iou']:.4f}",
                f"{row['min_iou']:.4f}",
                f"{row['changed']} of {row['phrases']}",
                text(row["image_ms"], ".1f"),
                text(row["phrases_ms"], ".1f"),
                text(row["gIoU"], ".2f"),
            )
        )
    return aligned(lines)
