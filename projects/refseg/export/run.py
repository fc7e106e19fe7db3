"""The steps of an export: check, write graphs and their config, quantize, compare, keep what passes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from refseg.datasets.tokenizers import save_tokenizer_files
from refseg.datasets.transforms import Resize
from refseg.errors import UsageError
from refseg.export.graphs import quantize, write_graphs
from refseg.export.parity import Example, bundled_examples, compare, examples_of
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
    size, step, padded = input_of(loaded)
    weights_used = describe_weights(loaded.segmentor, loaded.checkpoint)  # now: a training may replace the file
    loading = Loading(upright=data is None)  # ground truth belongs to images as they are stored
    pad_id = ReferringInferencer(loaded).pack(np.zeros((*size, 3), np.uint8), ["?"], name="").pad_id
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        # Graphs, quantized graphs, and their configs
        folder = Path(scratch, "model")
        folders = {"ONNX": folder} | ({"ONNX int8": folder / INT8} if int8 else {})
        list(folders.values())[-1].mkdir(parents=True)
        graphs, reason = write_graphs(loaded.segmentor, folder, size=size, step=step, padded=padded, pad_id=pad_id)
        for graph in graphs if int8 else ():
            quantize(graph, folder / INT8 / graph.name)
        for one in folders.values():
            write_config(loaded, one, size if reason else step)
        # Comparison, also on images of another size if the graphs take them
        models = {"PyTorch": loaded} | {name: load_model(str(one), device="cpu") for name, one in folders.items()}
        rows = compare_models(models, examples, loading)
        if not reason:
            height, width = size[0] + 2 * step[0], size[1] + step[1]
            others = {f"{name} {width} x {height}": resized(one, (height, width)) for name, one in models.items()}
            rows |= compare_models(others, examples, loading)
        print("\n".join(table_of(rows)))
        sizes = f"{size[1]} x {size[0]} only. {reason}" if reason else f"multiples of {step[1]} x {step[0]}"
        report = {
            "model": weights_used,
            "samples": data or "the examples that come with refseg",
            "images": len(examples),
            "image_sizes": sizes,
            "threads": torch.get_num_threads(),
            "limits": asdict(limits),
            "parity": rows,
        }
        write_atomically(folder / REPORT, json.dumps(report, indent=2))
        # Keep what passes
        quantized = {name: row for name, row in rows.items() if name.startswith("ONNX int8")}
        exact = {name: row for name, row in rows.items() if name.startswith("ONNX") and name not in quantized}
        if problem := exceeded(exact, limits.logit_difference, limits.iou):
            raise UsageError(f"The exported model is not kept. {problem}")
        problem = exceeded(quantized, None, limits.int8_iou)
        if problem:
            shutil.rmtree(folder / INT8)
        os.replace(folder, out)
    print(f"model: {out} ({', '.join(graph.name for graph in graphs)})")
    print(f"image sizes: {sizes}")
    if problem:
        raise UsageError(f"The int8 model is not kept. {problem}")


def compare_models(
    models: Mapping[str, LoadedModel], examples: Sequence[Example], loading: Loading
) -> dict[str, dict[str, Any]]:
    """Return a row of the table for each model: the first one compared with itself, and the others with it."""
    original, *exported = (ReferringInferencer(one, loading=loading) for one in models.values())
    baseline, parities = compare(original, exported, examples)
    return {name: parity.summary() for name, parity in zip(models, (baseline, *parities), strict=True)}


def resized(loaded: LoadedModel, size: tuple[int, int]) -> LoadedModel:
    """Return a model whose pipeline resizes images to another size (H, W)."""
    return replace(loaded, pipeline=[{**one, "size": size} if one["type"] == "Resize" else one
                                     for one in loaded.pipeline])  # fmt: skip


def input_of(loaded: LoadedModel) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """Return the size (H, W) of a model's input, the step of such sizes, and whether images can be smaller than that.

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
        raise UsageError(f"{name} cannot be exported: its test pipeline has no Resize, which says the size of images.")
    size, step = (pad_size(one, preprocessor.size_divisor) for one in (resize.size, (1, 1)))
    return size, step, resize.mode == "keep" or size != resize.size


def write_config(loaded: LoadedModel, folder: Path, size_divisor: tuple[int, int]) -> None:
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
            size_divisor=size_divisor,
        ),
        postprocess=asdict(loaded.segmentor.postprocess),
    )
    Config(cfg).dump(folder / CONFIG)
    save_tokenizer_files({"pipeline": loaded.pipeline}, folder)


def exceeded(rows: Mapping[str, Mapping[str, Any]], logit_difference: float | None, iou: float) -> str:
    """Return which limits the first bad row of a table exceeds, or an empty string. NaN exceeds all.

    Without a limit of logits, only the mean IoU counts.
    """
    for name, row in rows.items():
        problems = []
        if logit_difference is None:
            if not row["mean_iou"] >= iou:
                problems.append(f"the masks' mean IoU is {row['mean_iou']:.3f} (limit: {iou})")
        else:
            if not row["max_logit_difference"] <= logit_difference:
                difference = row["max_logit_difference"]
                problems.append(f"logits differ by up to {difference:.2g} (limit: {logit_difference:g})")
            if not row["min_iou"] >= iou:
                problems.append(f"a mask has an IoU of {row['min_iou']:.3f} with the original (limit: {iou:g})")
            if row["changed"]:
                problems.append(f"{row['changed']} of {row['phrases']} answers changed")
        if problems:
            return f"{name}: {', '.join(problems)}."
    return ""


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
