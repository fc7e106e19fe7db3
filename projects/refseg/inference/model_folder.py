"""Write a model folder: config.json, model.safetensors, files of the tokenizer, and a model card.

Everything that takes a work directory takes such a folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from refseg.datasets.tokenizers import save_tokenizer_files
from refseg.engine.checkpoint import PROCESSOR
from refseg.errors import UsageError
from refseg.files import folder_to_replace, write_atomically
from refseg.inference.loading import LoadedModel
from refseg.inference.model_card import Result, facts_of, model_card
from refseg.json_config import CONFIG, portable, write_json_config
from refseg.shipped import WEIGHTS
from refseg.weights import METADATA, read_checkpoint, state_dict_of

CARD = "README.md"
_META = ("seed", "epoch", "iter", "dataset_meta", "config", "start", "checkpoint", "license")  # facts for the card


def save_model(
    loaded: LoadedModel,
    out: str | Path,
    *,
    half: bool = False,
    license: str | None = None,
    results: Sequence[Result] = (),
) -> Path:
    """Write the folder of a model, and return the path of its card. If it fails, a folder that is there stays.

    Args:
        loaded: The model.
        out: Folder to write. It must not exist, be empty, or be a model folder, which is replaced.
        half: Write 16 bits per number. A file with 16 bits keeps them in any case.
        license: License of the weights. None: that of the model folder that the model is from, or unknown.
        results: Scores for the card.
    """
    out = Path(out)
    if out.exists() and not (out / CONFIG).is_file() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty and not a model folder. Choose another folder")
    with folder_to_replace(out) as folder:
        write_model(loaded, folder, half=half, license=license)
        write_atomically(folder / CARD, model_card(out.name, facts_of(loaded, folder / WEIGHTS), results))
    return out / CARD


def write_model(loaded: LoadedModel, folder: Path, *, half: bool = False, license: str | None = None) -> None:
    """Write config, weights, and tokenizer of a model into an empty folder."""
    if loaded.checkpoint is None:
        raise UsageError(
            f"{loaded.name} loads published weights of others ({loaded.weights_name}), which are not copied. "
            "Pass on its name or its config"
        )
    write_json_config(loaded.cfg, folder / CONFIG)
    content = read_checkpoint(loaded.checkpoint)
    half = half or any(value.dtype == torch.float16 for value in state_dict_of(content, loaded.checkpoint).values())
    meta = slim_meta(loaded, content.get("meta")) | ({"license": license} if license else {})
    write_weights(loaded.segmentor.state_dict(), folder / WEIGHTS, half=half, meta=meta)
    save_tokenizer_files(loaded.pipeline, folder)
    if (loaded.checkpoint.parent / PROCESSOR).is_dir():
        shutil.copytree(loaded.checkpoint.parent / PROCESSOR, folder / PROCESSOR)


def slim_meta(loaded: LoadedModel, meta: Any) -> dict[str, Any]:
    """Return what the `meta` of a checkpoint says about its training, without paths of this machine."""
    meta = meta if isinstance(meta, dict) else {}
    if loaded.config.name != CONFIG:  # a work directory; a model folder has these facts already
        start, checkpoint = loaded.cfg.get("load_from") or "no whole model", loaded.checkpoint
        meta = {**meta, "config": loaded.name, "start": start, "checkpoint": checkpoint and checkpoint.name}
    return portable({key: meta[key] for key in _META if meta.get(key) is not None})


def write_weights(state: Mapping[str, Tensor], file: Path, *, half: bool, meta: Mapping[str, Any]) -> None:
    """Write a .safetensors file. With `half`, floating-point numbers get 16 bits."""
    kept = {}
    for name, value in state.items():
        kept[name] = value.half() if half and value.is_floating_point() else value
        if kept[name].is_floating_point() and not kept[name].isfinite().all() and value.isfinite().all():
            raise UsageError(f"{name} has values that 16 bits cannot hold (largest: {value.abs().max():g})")
        kept[name] = kept[name].detach().to("cpu", memory_format=torch.contiguous_format, copy=True).contiguous()
    save_file(kept, file, metadata={"format": "pt", METADATA: json.dumps({"meta": meta}, default=str)})
    file.chmod(0o644)
