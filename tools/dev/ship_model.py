"""Write the folder of the model that ships with refseg from a work directory, and measure the model.

python tools/dev/ship_model.py WORK_DIR

The folder gets the weights in half precision, the config, the words of the tokenizer, example images, and a model card.
All numbers of the card are of the shipped weights. They are measured here, with `refseg test`.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from refseg.cli.quickstart import use_data_root
from refseg.engine.run import RunOptions, test
from refseg.errors import DataError, UsageError, UserError
from refseg.evaluation.alignment import alignment_report
from refseg.evaluation.breakdowns import breakdown
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.scorer import open_data, score_file
from refseg.files import folder_to_replace, sha256_of, write_atomically
from refseg.inference.loading import ALIGNMENT, LoadedModel, load_model
from refseg.inference.model_card import Result, facts_of, results_table
from refseg.inference.model_folder import CARD, write_model
from refseg.json_config import CONFIG
from refseg.paths import data_path
from refseg.publish.run import Scored, measure
from refseg.refshapes.generate import EXPRESSIONS
from refseg.refshapes.presets import PRESETS, GeneratedImage, Preset, draw_image, make_image
from refseg.refshapes.skills import SKILLS
from refseg.refshapes.vocabulary import word_list
from refseg.report.work_dir import read_work_dir
from refseg.shipped import EXAMPLES, MODELS, REFSHAPES, WEIGHTS
from refseg.weights import read_checkpoint

MAX_BYTES = 5_000_000
NUM_EXAMPLES = 6
README_PHRASES = ("the red circle", "all stars")  # of the first example, as the README asks them
METRICS = ("gIoU", "cIoU", "mIoU", "Pr@0.5", "Pr@0.9", "N-acc", "T-acc")  # of the card
LEVELS = ((80.0, "yes"), (50.0, "in part"))  # from this gIoU on, the model has a skill; below all of them: "no"


@dataclass(frozen=True)
class Training:
    """Facts about the training that only its checkpoint and its work directory have."""

    config: str
    preset: str
    generator_version: str
    chosen: str
    processes: str


def ship(work_dir: Path, out: Path, *, data: Path | None = None, command: str | None = None) -> Path:
    """Write the folder, and return the path of the model card. The old folder stays if anything fails."""
    loaded = load_model(work_dir, device="cpu")
    training = read_training(loaded)
    preset = PRESETS[training.preset]
    data = data or data_path(f"data/refshapes_{training.preset}")
    check_data(data, training)

    use_data_root(loaded.cfg, f"data/refshapes_{training.preset}")
    with folder_to_replace(out) as folder:
        write_model(loaded, folder, half=True)
        write_examples(preset, folder)
        shipped = load_model(folder, device="cpu")
        results, skills, alignment = score(shipped, data, preset)
        if alignment:
            write_atomically(folder / ALIGNMENT, json.dumps(alignment, indent=1) + "\n")
        facts = facts_of(shipped, folder / WEIGHTS)
        facts["license"] = "Apache-2.0, as refseg. The data is generated: it has no other owner"
        facts["checkpoint"] = f"{training.chosen}, by gIoU on split val"
        facts["processes"] = training.processes
        write_atomically(folder / CARD, shapes_card(training, preset, facts, results, skills, command))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if size > MAX_BYTES:
            raise UsageError(f"the folder would have {size:,} bytes (limit: {MAX_BYTES:,}). Ship a smaller model")
    print(f"{out}: {size:,} bytes")
    return out / CARD


# Facts ----------------------------------------------------------------------------------------------------------------


def read_training(loaded: LoadedModel) -> Training:
    """Read what the checkpoint and the work directory say about the training."""
    meta = read_checkpoint(loaded.checkpoint).get("meta") or {}
    generated = (meta.get("dataset_meta") or {}).get("generated") or {}
    folder = loaded.config.parent
    if generated.get("preset") not in PRESETS:
        raise UsageError(
            f"the weights in {folder} were not trained on a preset of RefShapes (the checkpoint's meta says "
            f"{generated.get('preset')!r}). The model that ships must be"
        )
    log = read_work_dir(folder)
    validations = max((len(curve.values) for curve in log.curves.metrics), default=0)
    return Training(
        config=loaded.config.stem,
        preset=generated["preset"],
        generator_version=str(generated.get("generator_version")),
        chosen=f"the best of {validations} validations" if validations > 1 else "that of the only validation",
        processes=log.environment.get("GPU number", "unknown"),
    )


def check_data(data: Path, training: Training) -> None:
    """Raise an error unless a folder has the RefShapes that the model was trained on."""
    try:
        meta = json.loads((data / "meta.json").read_text(encoding="utf-8"))
    except OSError:
        raise DataError(
            f"no RefShapes in {data}. Run `refseg data refshapes --preset {training.preset} --out {data}`, or pass "
            "--data"
        ) from None
    found = (meta["preset"]["name"], str(meta["generator_version"]))
    if found != (training.preset, training.generator_version):
        raise DataError(
            f"{data} has RefShapes {found[0]} of generator version {found[1]}, but the model was trained on "
            f"{training.preset} of version {training.generator_version}"
        )


# Files ----------------------------------------------------------------------------------------------------------------


def write_examples(preset: Preset, folder: Path) -> None:
    """Write images of the test split, with phrases. The first one fits the phrases of the README."""
    images = [make_image(preset, "test", index) for index in range(preset.images["test"])]
    first = next((image for image in images if fits_readme(image)), images[0])
    chosen = [first, *(image for image in images if image is not first)][:NUM_EXAMPLES]
    lines = []
    for number, image in enumerate(chosen):
        name = f"example_{number}.png"
        Image.fromarray(draw_image(preset, image)).save(folder / name, optimize=True)
        # A phrase each with one referent, several, and none
        by_kind = {min(len(expression.referents), 2): expression.text for expression in image.expressions[::-1]}
        own = [by_kind[kind] for kind in (1, 2, 0) if kind in by_kind]
        texts = [*README_PHRASES, *own[-1:]] if number == 0 else own
        lines.append(json.dumps({"image": name, "texts": texts}) + "\n")
    write_atomically(folder / EXAMPLES, "".join(lines))


def fits_readme(image: GeneratedImage) -> bool:
    """Return whether an image has exactly one red circle, several stars, and a phrase that refers to nothing."""
    shapes = image.scene.shapes
    red_circles = sum((shape.kind, shape.color) == ("circle", "red") for shape in shapes)
    stars = sum(shape.kind == "star" for shape in shapes)
    return red_circles == 1 and stars >= 2 and any(not expression.referents for expression in image.expressions)


# Numbers --------------------------------------------------------------------------------------------------------------


def score(model: LoadedModel, data: Path, preset: Preset) -> tuple[list[Result], list[dict], dict | None]:
    """Score the shipped weights.

    Returns:
        The scores of each split; those of the test split by skill; and the content of `alignment.json`, measured on the
        test split (None if the model has no words for its instances).
    """
    protocol = get_protocol("refseg")
    results: list[Result] = []
    skills: list[dict] = []
    alignment = None
    for split in [name for name in ("val", "test", "heldout") if preset.images.get(name)]:
        with tempfile.TemporaryDirectory() as temporary:
            predictions = Path(temporary, "predictions.jsonl")
            options = {
                "test_dataloader.dataset.split": split,
                "test_dataloader.dataset.no_target": "keep",
                "test_dataloader.dataset.annotations.file": str(data / EXPRESSIONS),
                "test_dataloader.num_workers": 0,
                "test_dataloader.persistent_workers": False,
                "visualizer.vis_backends": [],
            }
            run = RunOptions(work_dir=temporary, cfg_options=options)
            with contextlib.redirect_stdout(sys.stderr):
                test(str(model.config), str(model.checkpoint), run, predictions=str(predictions))
            where = f"{data / EXPRESSIONS}:{split}"
            (result,) = measure(model, [Scored(str(predictions), where)], [protocol])
            metrics = {name: result.metrics[name] for name in METRICS if name in result.metrics}
            results.append(replace(result, metrics=metrics))
            if split == "test":
                truths = open_data(where).truths
                rows = score_file(predictions, truths, [protocol]).rows[protocol.name]
                skills = breakdown(rows, protocol, "skill")
                report = alignment_report(str(predictions), truths)
                # The word bars of pictures need these keys and no others
                if report.get("all words", {}).get("matched"):
                    header = {"checkpoint": {"sha256": sha256_of(model.checkpoint)}}
                    alignment = {"alignment": report, "predictions": {"header": header}}
    return results, skills, alignment


# Card -----------------------------------------------------------------------------------------------------------------


def shapes_card(
    training: Training,
    preset: Preset,
    facts: dict[str, str],
    results: Sequence[Result],
    skills: list[dict],
    command: str | None,
) -> str:
    """Return the model card in Markdown."""
    height, width = preset.image_size
    data = f"data/refshapes_{preset.name}"
    made = command or (
        f"refseg data refshapes --preset {preset.name} --out {data}\n"
        f"    refseg train {training.config}    # with the options of the run, which are in {CONFIG}"
    )
    return f"""# refshapes: a small model that knows drawn shapes only

This model finds shapes in generated pictures: colored circles, squares, triangles, stars, diamonds, and crosses on a
gray background. It ships with refseg so that you can try the toolbox before any training. **It has never seen a
photograph. On photographs, and on drawings of another style, its answers mean nothing.**

    from refseg import example_image, segment
    answer = segment(example_image(), ["the red circle", "all stars"])

| | |
|---|---|
{chr(10).join(f"| {name} | {value} |" for name, value in facts.items())}
| images | {width} x {height} pixels, {preset.images["train"]:,} of them in training |

## Results

The checkpoint was chosen on val, so the numbers of val are slightly optimistic.

{results_table(results)}

## Skills

gIoU by the skill that a phrase needs (split test). For `no_target`, it is the share of phrases that refer to nothing
and are answered with "nothing here". The model has a skill from a gIoU of {LEVELS[0][0]:.0f} on, and has it in part \
from {LEVELS[1][0]:.0f} on.

| skill | phrases | gIoU | the model has it |
|---|---|---|---|
{skill_rows(skills)}

## Limits

- **Domain.** Pictures of RefShapes only. refseg warns when this model is used, and notes images that do not have the
  gray background of RefShapes.
- **Words.** The {len(word_list())} words of `words.txt`. Other words are reported as unknown. The answer to a phrase of
  unknown words only is "nothing here".
- **Size.** Each image is resized to the size in the config. Details of large images are lost.
- **Use.** For demonstrations and tests. Do not compare it with models for photographs.

## How it was made

    {made}
    python tools/dev/ship_model.py WORK_DIR
"""


def skill_rows(lines: list[dict[str, Any]]) -> str:
    """Return the lines of the table of skills. Skills that the test split lacks were not trained."""
    found = {line["skill"]: line for line in lines}
    rows = []
    for name in dict.fromkeys([*SKILLS, "no_target", *found]):
        if name in found:
            score = found[name]["gIoU"]
            level = next((text for least, text in LEVELS if score >= least), "no")
            rows.append(f"| {name} | {found[name]['expressions']} | {score:.1f} | {level} |")
        else:
            rows.append(f"| {name} | - | - | no: not in its training data |")
    return "\n".join(rows)


def cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work_dir", type=Path, help="work directory of the training; its best checkpoint ships")
    parser.add_argument("--out", type=Path, default=MODELS / REFSHAPES, help="folder to write (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder of RefShapes (default: data/refshapes_PRESET)")
    parser.add_argument("--command", help="command of the training, for the model card")
    args = parser.parse_args()
    try:
        card = ship(args.work_dir, args.out, data=args.data, command=args.command)
    except UserError as error:
        print(f"ship_model: error: {error}", file=sys.stderr)
        return 1
    print(card.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
