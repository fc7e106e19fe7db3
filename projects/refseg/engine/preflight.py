"""Checks of a config before anything is built: tokenizers, weights, annotations, splits, images, and memory.

`refseg doctor CONFIG` prints all of them. A training prints those that failed, and stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from refseg.config_check import dicts_with
from refseg.datasets.annotations import image_root_of, open_annotations
from refseg.datasets.images import read_image
from refseg.datasets.selection import in_splits
from refseg.datasets.tokenizers import TextTokenizer
from refseg.engine.run import input_size
from refseg.errors import CheckpointError, ConfigError, DataError, UsageError, UserError, sentence
from refseg.known_models import find_weights_of, require_weights
from refseg.models.encoders.swin import swin_arch
from refseg.models.encoders.text import text_config
from refseg.paths import data_path
from refseg.pretrained import downloads_allowed
from refseg.registry import MODELS
from refseg.terminal import FAIL, OK, WARN, Check
from refseg.weights import weights_file

SAMPLED_IMAGES = 16
OPTIMIZER_STATES = {"SGD": 1, "MuonAdamW": 2, "AdamW": 2, "Adam": 2}  # most tensors of the size of a parameter


def preflight(cfg: Config, *, batch_size: int | None = None) -> list[Check]:
    """Return all checks, in the order in which a training would meet them.

    Configs without `train_cfg` are for evaluation only. Their test data are checked, but no memory.
    """
    checks: list[Check] = []
    trains = bool(cfg.get("train_cfg"))

    def run(name: str, function: Callable[[], str], bad: str = FAIL) -> None:
        try:
            checks.append(Check(name, OK, function()))
        except (UserError, OSError) as error:
            text, _, remedy = sentence(error).partition("\n")
            if all(text != check.text for check in checks):  # a missing file is one row
                checks.append(Check(name, bad, text, remedy.strip()))

    # Text: each tokenizer once, then the weights of each text model.
    stages = ("train", "val", "test") if trains else ("test",)
    loaders = {key: cfg[f"{key}_dataloader"] for key in stages if cfg.get(f"{key}_dataloader")}
    tokenizers = {str(one): one for loader in loaders.values() for one in dicts_with(loader, "tokenizer")}
    for one in tokenizers.values():
        run("tokenizer", lambda one=one: describe_tokenizer(one["tokenizer"]))
    brings_weights = getattr(MODELS.get(cfg.model["type"]), "brings_weights", False)
    if brings_weights:
        run("weights", lambda: describe_published(cfg.model))
    for one in dicts_with(cfg.model, "pretrained"):
        if one["pretrained"] and not brings_weights:
            name = "text weights" if one.get("type") == "TextEncoder" else "vision weights"
            describe = getattr(MODELS.get(one["type"]), "describe", None)
            run(name, lambda one=one, describe=describe: describe(one) if describe else check_file(**one))
    for one in dicts_with(cfg.model, "init_cfg"):  # of backbones of mmdet and mmseg
        if isinstance(one["init_cfg"], Mapping) and one["init_cfg"].get("checkpoint"):
            run("vision weights", lambda one=one: check_init(one["init_cfg"]["checkpoint"], one.get("type")))
    if cfg.get("load_from"):
        run("load_from", lambda: check_file(cfg.load_from, "checkpoint"))

    # Data: every set of every loader, once.
    seen: set[str] = set()
    for key, loader in loaders.items():
        for dataset in loader.dataset.get("datasets") or [loader.dataset]:
            if dataset.get("annotations") and str(dataset) not in seen:
                seen.add(str(dataset))
                bad = WARN if key == "test" else FAIL  # training does not need test data
                run(f"{key} data", lambda dataset=dataset: check_data(dataset), bad)

    if trains:
        checks.append(memory_check(cfg, batch_size or cfg.train_dataloader.batch_size))
    return checks


def require_preflight(cfg: Config) -> None:
    """Print "preflight ok", or raise a ConfigError with the checks that failed, one a line."""
    checks = preflight(cfg)
    for check in checks:
        if check.status == WARN:
            print(f"preflight: {check.name}: {check.text}" + (f" -> {check.remedy}" if check.remedy else ""))
    if failed := [check for check in checks if check.status == FAIL]:
        each = [f"{check.name}: {check.text}" + f" -> {check.remedy}" * bool(check.remedy) for check in failed]
        raise ConfigError("\n  ".join(["this config cannot be trained here:", *each]))
    print(f"preflight ok (memory: {checks[-1].text})", flush=True)


def describe_tokenizer(settings: Mapping) -> str:
    tokenizer = TextTokenizer(**settings)
    name = next(str(settings[key]) for key in ("pretrained", "word_list", "sentencepiece") if settings.get(key))
    return f"{name}: {len(tokenizer.tokenizer):,} tokens, phrases of at most {tokenizer.max_words}"


def describe_published(model: Mapping) -> str:
    """Return the folders of the weights that a model brings."""
    names = [str(model[key]) for key in ("pretrained", "detector", "masks", "tracker") if model.get(key)]
    require_weights(names)
    return ", ".join(str(find_weights_of(name) or f"{name} (to be downloaded)") for name in names)


def check_file(pretrained: str, type: str, **others: Any) -> str:
    """Return the size of a file of weights. Its content is read when the model is built."""
    path = weights_file(data_path(pretrained))
    if not path.is_file():
        raise CheckpointError(
            f"no weights of {type} at {path}\n`refseg data layout` says where to get them; to train from random "
            "weights, set pretrained=None"
        )
    return f"{path}: {path.stat().st_size / 2**20:,.0f} MiB"


def check_init(checkpoint: str, owner: str) -> str:
    """Describe the weights of an mmengine `init_cfg`, which mmengine would download from a URL without asking."""
    if "://" not in checkpoint:
        return check_file(checkpoint, owner)
    if not downloads_allowed():
        raise ConfigError(
            f"init_cfg.checkpoint of {owner} is {checkpoint}, which is a download\nallow it with --allow-download "
            "(REFSEG_ALLOW_DOWNLOAD=1), or set it to a file"
        )
    return checkpoint


def check_data(dataset: Mapping) -> str:
    """Check that annotations can be read, that the split is there, and that some of its images can be decoded."""
    store = open_annotations(**dataset["annotations"])
    split = dataset.get("split")
    images = np.unique(store.image_of_expression[in_splits(store, split)])
    root = image_root_of(dataset["annotations"], dataset.get("image_root"))
    sample = images[np.linspace(0, len(images) - 1, min(SAMPLED_IMAGES, len(images))).astype(int)]
    missing = [store.image_path(int(image)) for image in sample if not (root / store.image_path(int(image))).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(sample)} sampled images of split {split!r} are not in {root} ({missing[0]}, ...)\n"
            "put the images there, or name their folder in image_root; `refseg data layout` says where to get them"
        )
    for image in sample[:4]:
        read_image(str(root / store.image_path(int(image))))
    name = dataset["annotations"].get("refs") or dataset["annotations"].get("file")
    return f"{name}, {split or 'all splits'}: {len(images):,} images; {len(sample)} sampled, all there"


def memory_check(cfg: Config, batch_size: int) -> Check:
    """Compare the estimate of a training step with the GPU's memory, if there is one."""
    try:
        parts = estimate_memory(cfg, batch_size)
    except UsageError:  # the size of images is not known
        parts = None
    if parts is None:
        return Check("memory", OK, "not estimated for this encoder; `refseg benchmark CONFIG` measures it")
    total = sum(parts.values())
    made_of = ", ".join(f"{name} {gib:.1f}" for name, gib in parts.items())
    precision = "mixed precision" if cfg.optim_wrapper.get("dtype") else "fp32"
    text = f"roughly {total:.0f} GiB per process for a batch of {batch_size} in {precision} ({made_of})"
    status, remedy = OK, ""
    if torch.cuda.is_available():
        available = torch.cuda.get_device_properties(0).total_memory / 2**30
        text += f"; this GPU has {available:.0f} GiB"
        if total >= 0.95 * available:
            status = WARN
            remedy = "--amp, a smaller train_dataloader.batch_size with optim_wrapper.accumulative_counts, or "
            remedy += "checkpointing=True"
    return Check("memory", status, text, remedy)


def estimate_memory(cfg: Config, batch_size: int) -> dict[str, float] | None:
    """Estimate the memory of a training step per process, in GiB, by parts; None for encoders other than Swin.

    Nothing is built: parameters and activations of Swin, and parameters of a BERT-like text model, follow from their
    sizes. A Swin block keeps about 17 values per token and channel for its backward pass (two norms, query, key and
    value, projection, an MLP of four times the width before and after its activation, residuals), and its attention
    weights. Pixel and mask decoders are taken as 0.6 of the encoder's activations. That factor is calibrated on
    InstAlign with Swin-B at 480 x 480: a batch of 8 in fp32 needs about 19 GB. Other decoders need less or more.
    """
    vision = next((one for one in dicts_with(cfg.model, "window_size") if one.get("type") == "SwinEncoder"), None)
    if vision is None or any(one["type"] == "BEiT3Encoder" for one in dicts_with(cfg.model, "type")):  # DeRIS has both
        return None
    arch, side = swin_arch(vision.get("arch", "base")), vision["window_size"]
    height, width = input_size(cfg)
    parameters = activations = 0.0
    for stage, (depth, heads) in enumerate(zip(arch.depths, arch.num_heads, strict=True)):
        channels, stride = arch.embed_dims * 2**stage, 4 * 2**stage
        tokens = (height // stride) * (width // stride)
        parameters += depth * 12 * channels**2 + 8 * channels**2  # blocks, and the merging after the stage
        per_token = channels if vision.get("checkpointing") else 17 * channels + heads * side**2
        activations += depth * tokens * per_token
    for text in dicts_with(cfg.model, "text"):
        settings = (text["text"] or {}).get("config") or {}
        if settings.get("model_type"):
            sizes = text_config(**settings)
            parameters += 12 * sizes.num_hidden_layers * sizes.hidden_size**2 + sizes.vocab_size * sizes.hidden_size
    parameters *= 1.1  # decoder and heads
    states = OPTIMIZER_STATES.get(cfg.optim_wrapper.optimizer.type, 2)
    bytes_each = 2 if cfg.optim_wrapper.get("dtype") else 4
    gib = 2.0**30
    return {
        "weights": 4 * parameters / gib,
        "gradients": 4 * parameters / gib,
        "optimizer": 4 * states * parameters / gib,
        "activations": 1.6 * activations * batch_size * bytes_each / gib,
    }
