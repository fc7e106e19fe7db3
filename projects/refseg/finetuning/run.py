"""The steps of a fine-tuning: check the data, split, plan, write a config, train, calibrate, report.

The config in the output folder is an ordinary one: `refseg train DIR/finetune.py --work-dir DIR --resume` trains it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from refseg.analysis.calibrated_config import find_target, write_thresholds
from refseg.analysis.thresholds import Goal, choose_thresholds
from refseg.analysis.thresholds import Settings as Thresholds
from refseg.config_check import check_config, complete_inputs, merge_options
from refseg.data_tools.check import check_target
from refseg.data_tools.issues import report_lines
from refseg.data_tools.rows import image_keys, read_rows, with_base, write_rows
from refseg.data_tools.split import split_by_image
from refseg.datasets.annotations import open_annotations
from refseg.datasets.collate import collate_samples
from refseg.datasets.selection import in_splits
from refseg.datasets.targets import resolve
from refseg.datasets.tokenizers import with_tokenizer_files
from refseg.engine.checkpoint import best_checkpoint, latest_checkpoint
from refseg.engine.param_groups import ROLES
from refseg.engine.run import RunOptions, load_config, read_config, test, train, without_weights
from refseg.errors import ConfigError, DataError, UsageError
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.scorer import describe_predictions, open_data, score_file
from refseg.files import sha256_of, write_atomically
from refseg.finetuning.plan import Facts, Plan, choose_plan, describe, facts_of, limit_time
from refseg.inference.inferencer import ReferringInferencer
from refseg.inference.loading import find_model, test_pipeline
from refseg.lora import Lora
from refseg.paths import resolve_config
from refseg.pretrained import PACKAGES
from refseg.registry import DATASETS, MODELS
from refseg.report.report import render_report
from refseg.report.report_data import Settings, score_run
from refseg.report.work_dir import read_work_dir

BASE = "finetune/instalign_small"
CONFIG = "finetune.py"  # the config in the output folder
DATA = "data.jsonl"  # the data with a val split, where the user's file has none
WORDS = "words.txt"  # the words of the data, for a start from scratch
STATE = "finetune.json"  # what the folder was made from
SCRATCH = "scratch"
DEFAULT_START = "efficientnet_lite0+minilm"
DEFAULT_OUT = "work_dirs/finetune"
ENOUGH_NEGATIVES = 0.15  # share of phrases that refer to nothing
MIN_ABSENT, MIN_T_ACC = 5, 80.0  # for a choice of the no-target threshold on val
SHARED_SECONDS = 600.0  # for which other processes wait for the first one's plan


@dataclass(frozen=True, slots=True)
class Request:
    """The user's request.

    Args:
        data: JSONL file.
        start: An encoder pair such as "efficientnet_lite0+minilm", "scratch", or a model as for `find_model`.
        out: Output folder.
        seconds: Limit of the training.
        steps: Steps of the training.
        image_size: Side of the square that images are resized to.
        batch_size: Images per step.
        freeze: Encoders that stay as they are: "vision", "text".
        lora: Encoders that stay, and get trained additions of low rank (`refseg.lora`).
        negatives: Share of training phrases with targets that are replaced by ones that refer to nothing in the image.
            None: as many as the data lack to `ENOUGH_NEGATIVES` of all.
        seed: Of the split and the training.
        cfg_options: Further changes of the config.
    """

    data: str
    start: str = DEFAULT_START
    out: str = DEFAULT_OUT
    seconds: float | None = None
    steps: int | None = None
    image_size: int | None = None
    batch_size: int | None = None
    freeze: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    negatives: float | None = None
    seed: int = 0
    cfg_options: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Finetuned:
    """A fine-tuned model.

    Args:
        work_dir: Its folder, which every command takes as a model.
        scores: Scores by split.
        seconds: Duration of the training.
        inferencer: The model, ready to use; None in all processes but the first.
    """

    work_dir: Path
    scores: dict[str, dict[str, float]]
    seconds: float
    inferencer: ReferringInferencer | None


def finetune(
    data: str | Path,
    *,
    model: str = DEFAULT_START,
    out: str | Path = DEFAULT_OUT,
    launcher: Literal["none", "pytorch"] = "none",
    **options: Any,
) -> Finetuned:
    """Fine-tune a model on your own images and phrases, and return it with its scores.

    Args:
        data: JSONL file (docs/data.md).
        model: Where to start from: an encoder pair such as "efficientnet_lite0+minilm", "scratch", or a model: a name
            that `refseg models` lists, a work directory, or a checkpoint.
        out: Output folder. If it has an interrupted run of the same request, that run continues.
        launcher: "pytorch" in each of several processes that torchrun started.
        **options: Further fields of `Request`, such as seconds=600.
    """
    request = Request(str(data), model, str(out), **options)
    rank = int(os.environ.get("RANK", "0")) if launcher == "pytorch" else 0
    folder = Path(request.out)
    if rank == 0:
        prepare(request)
    else:
        wait_for(folder)

    # Train, or continue. A finished training is not continued, also one that stopped early.
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if "seconds" not in state:
        start = time.monotonic()
        train(str(folder / CONFIG), RunOptions(work_dir=str(folder), resume=True, launcher=launcher))
        state["seconds"] = time.monotonic() - start
        if rank == 0:
            write_atomically(folder / STATE, json.dumps(state, indent=1))
    seconds = state["seconds"]
    if torch.distributed.is_initialized():  # the first process does the rest alone
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if rank:
        return Finetuned(folder, {}, seconds, None)

    scores = finish(request, folder, seconds)
    return Finetuned(folder, scores, seconds, ReferringInferencer(folder))


# Prepare --------------------------------------------------------------------------------------------------------------


def prepare(request: Request) -> None:
    """Check and split the data, plan, and write the config, unless an earlier run of the same request did so."""
    folder = Path(request.out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file. Choose a folder")
    asked = {**asdict(request), "data_sha256": sha256_of(existing(request.data))}
    asked = json.loads(json.dumps({key: value for key, value in asked.items() if key != "out"}))
    state = folder / STATE
    if state.is_file():
        before = json.loads(state.read_text(encoding="utf-8"))
        changed = sorted(key for key in asked if asked[key] != before.get("request", {}).get(key))
        if changed:
            raise UsageError(
                f"{folder} holds another fine-tuning: {', '.join(changed)} differ. Choose another --out, or delete the "
                "folder"
            )
        done = latest_checkpoint(folder)
        where = "the finished training" if "seconds" in before else done.name if done else "the beginning"
        print(f"{folder}: continuing from {where}", flush=True)
        return
    left_behind = {DATA, WORDS, CONFIG, ".refseg_cache"}  # by a start that failed
    if folder.is_dir() and any(file.name not in left_behind for file in folder.iterdir()):
        raise UsageError(f"{folder} is not empty, and no fine-tuning made it. Choose another --out")

    # The data: the same checks as `refseg data check`
    if is_model(request.start):
        find_model(request.start)  # an unknown name shows before large data are read
    elif request.start != SCRATCH:
        check_pair(request.start)
    (target,) = resolve(request.data)
    report = check_target(target)
    if report.number("defect"):
        raise DataError("\n".join(["the data has defects:", *report_lines(report, everything=False)]))
    folder.mkdir(parents=True, exist_ok=True)
    data = with_val_split(Path(request.data), folder, seed=request.seed)
    store = open_annotations(format="jsonl", file=str(data))
    splits = [str(split) for split in ("train", "val", "test") if split in store.splits]
    facts = facts_of(store, in_splits(store, "train"))
    if facts.negatives == facts.phrases:
        raise DataError(f"{request.data}: no training phrase has a target, so there is nothing to learn")
    counts = [(split, *count(store, split)) for split in splits]
    print(f"data: {describe(facts, counts)}", flush=True)

    # The plan, from the data and the machine
    image_size = request.image_size or own_image_size(request.start)
    plan = choose_plan(facts, image_size=image_size, batch_size=request.batch_size)
    if request.steps is not None:
        plan.steps = request.steps
        plan.reasons[-1] = f"{request.steps} steps, as you said"
    while True:
        cfg = build_config(request, data, plan, facts, with_test="test" in splits)
        try:
            per_step, per_image, reasons = measure(cfg)
            break
        except torch.OutOfMemoryError:
            if plan.batch_size == 1:
                raise UsageError(
                    f"one image of {plan.image_size} does not fit into the GPU's memory. Choose a smaller "
                    "--image-size, --freeze vision, or --lora"
                ) from None
            plan.halve_batch()
    num_val = next(images for split, images, _ in counts if split == "val")
    limit_time(plan, seconds_per_step=per_step, seconds_per_validation=per_image * num_val, limit=request.seconds)
    cfg = build_config(request, data, plan, facts, with_test="test" in splits)
    rate = cfg.train_dataloader.dataset.hard_negative_rate
    plan.reasons.append(
        f"hard negatives in place of {rate:.0%} of the phrases with targets: {facts.negatives:,} of {facts.phrases:,} "
        "already refer to nothing"
    )
    plan.reasons += reasons
    print("\n".join(f"plan: {reason}" for reason in plan.reasons), flush=True)
    cfg.dump(folder / CONFIG)
    write_atomically(state, json.dumps({"request": asked, "plan": asdict(plan), "data": str(data)}, indent=1))


def existing(path: str) -> str:
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder. `refseg data import {path} --out own.jsonl` makes a file from it")
    if not Path(path).is_file():
        raise DataError(f"no such file: {path}. `refseg data import` makes one from the files of labeling tools")
    return path


def wait_for(folder: Path) -> None:
    """Wait for the plan of the first process."""
    end = time.monotonic() + SHARED_SECONDS
    while not (folder / STATE).is_file():
        if time.monotonic() > end:
            raise UsageError(f"process {os.environ['RANK']} waited {SHARED_SECONDS:.0f} s for {folder / STATE}")
        time.sleep(0.5)


def count(store: Any, split: str) -> tuple[int, int]:
    """Return the number of images and phrases of a split."""
    chosen = in_splits(store, split)
    return len(np.unique(store.image_of_expression[chosen])), int(chosen.sum())


def with_val_split(data: Path, folder: Path, *, seed: int) -> Path:
    """Return a file with the splits train and val: the user's, or a copy in which some images are held out."""
    rows = list(read_rows(data).values())
    splits = {str(row.get("split") or "") for row in rows}
    unknown = sorted(split for split in splits - {"", "train", "val"} if not split.startswith("test"))
    if unknown:
        raise DataError(f"{data}: split {unknown[0]!r} is unknown. Rename it to train, val, or test, or leave it out")
    if not splits & {"", "train"}:
        raise DataError(f"{data}: no row is for training. Such rows have the split train, or none")
    if {"train", "val"} <= splits and "" not in splits:
        return data
    base = data.parent
    if "val" in splits:  # rows without a split are for training
        for row in rows:
            row["split"] = row.get("split") or "train"
        write_rows(folder / DATA, (with_base(row, base, folder) for row in rows))
        return folder / DATA
    # Hold out images; rows of a test split stay out of training
    free = [row for row in rows if not str(row.get("split") or "").startswith("test")]
    keys = image_keys(free, base)
    if len(set(keys)) < 2:
        raise DataError(f"{data} has one image. At least two are needed: one to learn from, and one to check")
    for row, split in zip(free, split_by_image(free, {"train": 0.85, "val": 0.15}, seed, keys=keys), strict=True):
        row["split"] = split
    held_out = {key for key, row in zip(keys, free, strict=True) if row["split"] == "val"}
    print(f"no split val: {len(held_out)} of {len(set(keys))} images are held out for it ({folder / DATA})", flush=True)
    write_rows(folder / DATA, (with_base(row, base, folder) for row in rows))
    return folder / DATA


# Config ---------------------------------------------------------------------------------------------------------------


def build_config(request: Request, data: Path, plan: Plan, facts: Facts, *, with_test: bool) -> Config:
    """Return the config of a fine-tuning, complete: the base, the start, the data, the plan, the user's options."""
    cfg = read_config(resolve_config(BASE))
    for key in [key for key in cfg if key.startswith("_")]:
        cfg.pop(key)
    options: dict[str, Any] = {**plan.options(), "randomness.seed": request.seed}
    for loader, split in (("train", "train"), ("val", "val"), ("test", "test" if with_test else "val")):
        options |= {
            f"{loader}_dataloader.dataset.annotations.file": str(data),
            f"{loader}_dataloader.dataset.split": split,
            f"{loader}_dataloader.num_workers": 4 if facts.gpu else 0,
            f"{loader}_dataloader.persistent_workers": facts.gpu,
        }
    merge_options(cfg, options)
    start_from(cfg, request, data, plan)
    encoder = cfg.model.get("encoder") or {}
    parts = [part for part in ROLES if part in encoder]
    for option, chosen in (("--freeze", request.freeze), ("--lora", request.lora)):
        if unknown := sorted(set(chosen) - set(parts)):
            valid = f"Valid: {', '.join(parts)}" if parts else "Omit the option"
            raise UsageError(f"{option} {unknown[0]}: {cfg.model.type} has no encoder.{unknown[0]}. {valid}")
    for part in request.lora:
        encoder[part].lora = asdict(Lora())
        encoder[part].pop("frozen", None)  # as the default has it for text
    for part in request.freeze:
        encoder[part].frozen = True
    if not encoder:
        cfg.optim_wrapper.paramwise_cfg.pop("encoder_lr_mult", None)
    share = facts.negatives / facts.phrases  # of all; the rate is of those that refer to something
    lacking = round(max(0.0, ENOUGH_NEGATIVES - share) / (1 - share), 3)
    negatives = lacking if request.negatives is None else request.negatives
    cfg.train_dataloader.dataset.hard_negative_rate = negatives
    if request.seconds is not None:
        cfg.custom_hooks.append(ConfigDict(type="TimeLimitHook", seconds=request.seconds))
    cfg.auto_scale_lr = None
    merge_options(cfg, dict(request.cfg_options or {}))
    complete_inputs(cfg, dict(request.cfg_options or {}))
    check_config(cfg)
    return cfg


def is_model(start: str) -> bool:
    """Return whether a start is a model, not "scratch" or an encoder pair."""
    return start != SCRATCH and ("+" not in start or Path(start).exists())


def check_pair(start: str) -> None:
    """Raise a UsageError unless an encoder pair is an image model and a text model, in this order."""
    import timm

    def is_image_model(name: str) -> bool:
        return name == DEFAULT_START.partition("+")[0] or timm.is_model(name)

    vision, _, text = start.partition("+")
    if not text or not is_image_model(vision):
        hint = f"Did you mean {text}+{vision}?" if is_image_model(text) else f"An example is {DEFAULT_START}."
        raise UsageError(f"--from {start}: an encoder pair is an image model of timm and a text model. {hint}")


def own_image_size(start: str) -> int | None:
    """Return the image size that a model was trained at; None for other starts, and models that resize themselves."""
    steps = test_pipeline(load_config(str(find_model(start)[0]))) if is_model(start) else []
    return next((max(step["size"]) for step in steps if step["type"] == "Resize"), None)


def start_from(cfg: Config, request: Request, data: Path, plan: Plan) -> None:
    """Set the model and the inputs of a config, in place: random weights, an encoder pair, or another model."""
    start = request.start
    vision, _, text = start.partition("+")
    if start == SCRATCH:
        model = read_config(resolve_config("instalign/instalign_tiny_refshapes")).model
        cfg.model.encoder = model.encoder
        cfg.model.encoder.text.config.vocab_size = 30_000
        words = Path(request.out, WORDS)
        texts = [json.loads(line)["text"] for line in data.read_text(encoding="utf-8").splitlines() if line.strip()]
        write_atomically(words, "\n".join(sorted({word for line in texts for word in split_words(line)})))
        cfg.inputs.tokenizer = ConfigDict(word_list=str(words), max_words=32)
        return
    if not is_model(start):
        lite = vision in PACKAGES
        name = "tf_efficientnet_lite0" if lite else vision
        cfg.model.encoder.vision = ConfigDict(type="TimmEncoder", name=name, pretrained=vision if lite else True)
        cfg.model.encoder.text.pretrained = text
        cfg.inputs.tokenizer.pretrained = text
        return

    # Another model: its architecture, its weights, and its inputs
    config, checkpoint = find_model(start)
    other = load_config(str(config))
    if checkpoint is None and not hasattr(MODELS.get(other.model.type), "save_processor"):
        raise UsageError(f"{start} cannot be trained. Start from clipseg, from a model of your own, or {DEFAULT_START}")
    cfg.model = other.model if checkpoint is None else ConfigDict(without_weights(other.model))
    cfg.load_from = None if checkpoint is None else str(checkpoint)
    steps = [ConfigDict(step) for step in test_pipeline(other)]
    if checkpoint is not None:
        steps = [ConfigDict(step) for step in with_tokenizer_files(checkpoint.parent, steps)]
    cfg.pop("inputs")
    inner = [step for step in steps if step.type in ("Resize", "LoadText", "RawText")]
    resizes = [step for step in inner if step.type == "Resize"]
    if request.image_size and not resizes:
        raise UsageError(f"--image-size: {other.model.type} resizes images itself. Omit the option")
    for step in resizes:
        step.size = (plan.image_size, plan.image_size)
    flip = [step for step in cfg.train_dataloader.dataset.pipeline if step.type == "RandomFlip"]
    for loader in ("train", "val", "test"):
        pack = (
            ConfigDict(type="PackSample")
            if loader == "train"
            else ConfigDict(type="PackSample", with_ground_truth=True)
        )
        pipeline = [ConfigDict(type="LoadImage"), *(flip if loader == "train" else ()), *inner, pack]
        cfg[f"{loader}_dataloader"].dataset.pipeline = pipeline


def split_words(text: str) -> list[str]:
    """Return the words and punctuation marks of a phrase, as a word list's tokenizer splits it."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    return [word for word, _ in BertPreTokenizer().pre_tokenize_str(text.lower())]


def measure(cfg: Config) -> tuple[float, float, list[str]]:
    """Measure a training step and the answers to one image of the val split, in seconds, and say what is trained on."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":  # what an earlier, larger batch took does not count
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).to(device)
        loaders = {split: cfg[f"{split}_dataloader"].dataset for split in ("train", "val")}
        train_set, val_set = (DATASETS.build(dataset) for dataset in loaders.values())
    size = min(cfg.train_dataloader.batch_size, len(train_set))
    timed = []
    for _ in range(2):  # the first step also warms up
        start = time.perf_counter()
        batch = model.data_preprocessor(collate_samples([train_set[i] for i in range(size)]), True)
        loss, _ = model.parse_losses(model(**batch, mode="loss"))
        loss.backward()
        timed.append(time.perf_counter() - start)
    start = time.perf_counter()
    with torch.no_grad():
        for result in model.eval().val_step(collate_samples([val_set[0]])):
            result.final_masks()
    per_image = time.perf_counter() - start
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained, whole = sum(size for size, grad in sizes if grad), sum(size for size, _ in sizes)
    # On a GPU, keep a tenth of the memory free, besides two numbers per trained one for the optimizer
    if device == "cuda":
        usable = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        if torch.cuda.max_memory_allocated() + 8 * trained > 0.9 * usable:
            raise torch.OutOfMemoryError
    facts = [f"{trained / 1e6:.2f} of {whole / 1e6:.2f} million parameters are trained"]
    if train_set.hard_negative_rate:
        tried = train_set.hard_negatives
        pairs = [f", such as {new!r} in place of {old!r}" for old, new in tried if new]
        facts.append(f"{len(pairs)} of {len(tried)} tried phrases have a hard negative{pairs[0] if pairs else ''}")
    return timed[-1] * 1.1, per_image, facts


# Finish ---------------------------------------------------------------------------------------------------------------


def finish(request: Request, folder: Path, seconds: float) -> dict[str, dict[str, float]]:
    """Calibrate on val, score val and test with the chosen thresholds, and write the report."""
    checkpoint = best_checkpoint(folder) or latest_checkpoint(folder)
    if checkpoint is None:
        raise ConfigError(f"the training wrote no checkpoint to {folder}. See the log there")
    data = json.loads((folder / STATE).read_text(encoding="utf-8"))["data"]
    config = str(folder / CONFIG)

    # Choose the no-target threshold on val
    predictions = folder / "val.jsonl"
    options = RunOptions(work_dir=str(folder), cfg_options={"test_dataloader.dataset.split": "val"})
    test(config, str(checkpoint), options, predictions=str(predictions))
    chosen = calibrate(predictions, f"{data}:val", folder)
    print(f"chosen on val: {chosen}", flush=True)

    # Score with it
    store = open_annotations(format="jsonl", file=data)
    scores: dict[str, dict[str, float]] = {}
    for split in ("val", "test"):
        if split in store.splits:
            predictions = folder / f"{split}.jsonl"
            options = RunOptions(work_dir=str(folder), cfg_options={"test_dataloader.dataset.split": split})
            found = test(config, str(checkpoint), options, predictions=str(predictions))
            scores[split] = {name.rpartition("/")[2]: value for name, value in found.items()}
    write_report(folder, predictions, f"{data}:{split if split in store.splits else 'val'}", request, seconds)
    write_atomically(folder / "scores.json", json.dumps({"scores": scores, "seconds": seconds}, indent=1))
    for split, values in scores.items():
        print(f"{split}: " + "  ".join(f"{name} {value:.1f}" for name, value in values.items()))
    command = "refseg" if shutil.which("refseg") else "python -m refseg.cli"
    print(f"report: {(folder / 'report.html').resolve()}")
    print(f"use it: {command} predict {folder} --image PHOTO --text PHRASE --out answers --show")
    print(f"        {command} demo {folder}")
    return scores


def calibrate(predictions: Path, data: str, folder: Path) -> str:
    """Choose the thresholds with the best gIoU on val, write them into the folder's config, and describe them."""
    opened = open_data(data)
    protocol = get_protocol("refseg")
    scored = score_file(predictions, opened.truths, [protocol])
    header = describe_predictions(predictions)["header"]
    rows = scored.rows[protocol.name]
    if (~rows.has_target).sum() < MIN_ABSENT:
        return f"the thresholds stay: val has less than {MIN_ABSENT} phrases that refer to nothing"
    try:
        goal = Goal("gIoU", min_t_acc=MIN_T_ACC)
        choice = choose_thresholds(rows, None, protocol, goal, Thresholds.of_header(header))
    except UsageError as error:
        return f"the thresholds stay: {error}"
    keys = write_thresholds(find_target(str(folder), predictions, header), choice.chosen.known())
    return ", ".join(keys) or "the thresholds stay"


def write_report(folder: Path, predictions: Path, data: str, request: Request, seconds: float) -> None:
    """Write report.html: scores, calibration, curves and pictures."""
    scored = score_run(predictions, open_data(data), Settings([get_protocol("refseg")], resamples=200))
    run = read_work_dir(folder)
    summary = {**scored.summary, "start": request.start, "training time": f"{seconds:.0f} s"}
    report = replace(
        scored,
        title=f"{Path(request.data).name}, fine-tuned from {request.start}",
        summary=summary,
        curves=run.curves,
        environment=run.environment,
        config_text=run.config_text,
    )
    write_atomically(folder / "report.html", render_report(report))


def parse_parts(parts: Sequence[str]) -> tuple[str, ...]:
    """Return the names of encoders, from arguments such as "vision,text"."""
    return tuple(part for argument in parts for part in argument.split(",") if part)
