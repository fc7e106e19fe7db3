import argparse
import hashlib
import importlib
import json
import os
import pickletools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_tools

from refseg.cli.data import COMMANDS
from refseg.errors import UsageError
from refseg.refshapes import PRESETS, generate, word_list
from refseg.refshapes.generate import annotation_files, main
from refseg.refshapes.presets import draw_image, make_image

# These change only together with GENERATOR_VERSION. The first two are of the splits that version 1 had (38 images, 228
# rows), and have not changed since.
FORMER_EXPRESSIONS = "e241b3c77b99d9f4dc58870066a51c3899b1d4b2f4255df0618ba53f5d75502a"
FORMER_PIXELS = "4aa0d1e62af52ac76164444d447c8c587302978e8943a89be66fe72e2698716d"
TINY_EXPRESSIONS = "45a6715cdd3e56fbd62688cdbd3593f3743d05fef8f0d77597858959a17cdd90"
TINY_PIXELS = "26bbf3de417765dc10954a92b372889b9b431e129b15396c7cff0bf1441959b5"
TINY_ANNOTATIONS = "5db37a18cb5b5c15d28c1b756bcf0984ea2e350135e8007f19204bf7ccfb7866"
FORMER_SPLITS = ("train", "val", "test")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_image(path):
    with Image.open(path) as image:
        return np.asarray(image)


def all_pixels(out, splits=("train", "val", "test", "testA", "testB")):
    paths = sorted((out / "images").glob("*.png"))
    return b"".join(read_image(path).tobytes() for path in paths if path.name.split("_")[0] in splits)


def all_annotations(out):
    return b"".join((out / name).read_bytes() for name in annotation_files())


def all_files(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("refshapes") / "tiny"
    generate("tiny", out, workers=1, progress=False)
    return out


def test_bytes_are_the_same_everywhere(tiny):
    assert sha256((tiny / "refshapes.jsonl").read_bytes()) == TINY_EXPRESSIONS
    assert sha256(all_pixels(tiny)) == TINY_PIXELS
    assert sha256(all_annotations(tiny)) == TINY_ANNOTATIONS


def test_output_of_version_1_has_not_changed(tiny):
    lines = (tiny / "refshapes.jsonl").read_bytes().splitlines(keepends=True)
    assert sha256(b"".join(lines[: 38 * 6])) == FORMER_EXPRESSIONS
    assert sha256(all_pixels(tiny, FORMER_SPLITS)) == FORMER_PIXELS


def test_number_of_workers_does_not_change_the_output(tiny, tmp_path):
    generate("tiny", tmp_path / "two", workers=2, progress=False)
    for name in (*annotation_files(), "paraphrases.jsonl", "words.txt", "meta.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tiny / name).read_bytes()
    assert all_pixels(tmp_path / "two") == all_pixels(tiny)


def test_pickles_have_no_back_references(tiny):
    """Back references would depend on the identity of the values."""
    content = (tiny / "refcoco/refs(unc).p").read_bytes()
    assert content.startswith(b"\x80\x02]")  # protocol 2, a list
    assert not {op.name for op, _, _ in pickletools.genops(content)} & {"BINGET", "GET"}


def test_files(tiny):
    layouts = ["grefcoco", "ref-zom", "refcoco", "refcoco+", "refcocog", "rrefcoco"]
    names = [*layouts, "images", "meta.json", "paraphrases.jsonl", "refshapes.jsonl", "words.txt"]
    assert sorted(path.name for path in tiny.iterdir()) == sorted(names)
    assert sorted(path.name for path in tiny.glob("*/*[!g]")) == sorted(
        ["grefs(unc).json", "refs(final).p", "refs(umd).p", *["refs(unc).p"] * 3, *["instances.json"] * 6]
    )
    assert (tiny / "words.txt").read_text().split("\n") == [*word_list(), ""]
    meta = json.loads((tiny / "meta.json").read_text())
    assert meta["preset"]["name"] == "tiny"
    assert meta["sha256"] == {name: sha256((tiny / name).read_bytes()) for name in annotation_files()}
    images = {split: counts["images"] for split, counts in meta["counts"].items()}
    assert images == {"train": 24, "val": 7, "test": 7, "testA": 4, "testB": 4}
    assert meta["counts"]["train"]["expressions"] == 24 * 6
    assert sum(meta["counts"]["train"]["skills"].values()) == 24 * 6


def test_rows(tiny):
    rows = read_rows(tiny / "refshapes.jsonl")
    assert len(rows) == 46 * 6
    assert len({row["expression_id"] for row in rows}) == len(rows)
    for number, row in enumerate(rows):
        first = rows[number // 6 * 6]
        assert row["image"] == first["image"]  # grouped by image
        assert list(read_image(tiny / row["image"]).shape) == [*row["size"], 3] == [96, 96, 3]
        assert row["image"].startswith(f"images/{row['split']}_")
        assert len(row["targets"] or []) == len(row["instance_ids"]) == row["tags"]["num_targets"]
        assert (row["targets"] is None) == (row["tags"]["skill"] == "no_target")
        assert list(row["tags"]["words"]) == [str(i) for i in row["instance_ids"]]
    assert len({row["image"] for row in rows}) == 46


def test_encoded_masks_decode_to_the_same_pixels(tiny):
    sample = make_image(PRESETS["tiny"], "train", 0)
    for row in read_rows(tiny / "refshapes.jsonl")[:6]:
        for target, i in zip(row["targets"] or [], row["instance_ids"], strict=True):
            assert (mask_tools.decode(target) == sample.masks[i]).all()
    assert (read_image(tiny / "images/train_000000.png") == draw_image(PRESETS["tiny"], sample)).all()


def test_images_are_distinct(tiny):
    paths = list((tiny / "images").glob("*.png"))
    assert len({read_image(path).tobytes() for path in paths}) == len(paths) == 46


def copy_of(tiny, out):
    """Copy a finished folder, with hard links to the images, so that a test may damage the copy."""
    for path in (path for path in tiny.rglob("*") if path.is_file()):
        target = out / path.relative_to(tiny)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target) if path.suffix == ".png" else target.write_bytes(path.read_bytes())
    return out


def test_finished_folder_is_left_alone(tiny, tmp_path, capsys):
    out = copy_of(tiny, tmp_path / "out")
    (out / "refshapes.jsonl").write_text("untouched")
    meta = generate("tiny", out, workers=1)
    assert "already complete" in capsys.readouterr().out
    assert (out / "refshapes.jsonl").read_text() == "untouched"
    assert meta == json.loads((tiny / "meta.json").read_text())


@pytest.mark.parametrize("interrupted", [False, True])
def test_missing_images_are_made_again(tiny, tmp_path, interrupted):
    out = copy_of(tiny, tmp_path / "out")
    time_written = (out / "images/train_000001.png").stat().st_mtime_ns
    for name in ("train_000000", "val_000003"):
        (out / f"images/{name}.png").unlink()
    if interrupted:  # like a run that was stopped halfway
        (out / "meta.json").rename(out / "generating.json")
        (out / "refshapes.jsonl").rename(out / "refshapes.jsonl.tmp")
        (out / "refcoco/refs(unc).p").unlink()
        (out / "refcoco+/refs(unc).p.tmp").write_bytes(b"half of it")
        (out / "grefcoco/instances.json").write_bytes(b"half of it")
    generate("tiny", out, workers=1, progress=False)
    assert all_annotations(out) == all_annotations(tiny)
    assert all_pixels(out) == all_pixels(tiny)
    assert (out / "images/train_000001.png").stat().st_mtime_ns == time_written
    assert all_files(out) == all_files(tiny)


def test_missing_annotation_file_is_made_again(tiny, tmp_path):
    out = copy_of(tiny, tmp_path / "out")
    (out / "ref-zom/refs(final).p").unlink()
    generate("tiny", out, workers=1, progress=False)
    assert all_annotations(out) == all_annotations(tiny)


def test_interruption_leaves_a_folder_that_can_be_resumed(tmp_path, monkeypatch):
    module = importlib.import_module("refseg.refshapes.generate")  # the package's attribute is the function

    def stop_at_third(preset, split, index):
        if index == 3:
            raise KeyboardInterrupt
        return make_image(preset, split, index)

    with monkeypatch.context() as patch:
        patch.setattr(module, "make_image", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            generate("tiny", tmp_path / "out", workers=1, progress=False)
    assert not (tmp_path / "out/meta.json").exists()
    assert not any((tmp_path / "out" / name).exists() for name in annotation_files())
    generate("tiny", tmp_path / "out", workers=1, progress=False)
    assert sha256((tmp_path / "out/refshapes.jsonl").read_bytes()) == TINY_EXPRESSIONS


def test_another_preset_is_refused_or_overwritten(tiny, tmp_path):
    out = copy_of(tiny, tmp_path / "out")
    other = replace(PRESETS["tiny"], name="other", seed=1, images={"val": 2})
    with pytest.raises(UsageError, match=r"preset 'tiny'.*--out, or --overwrite"):
        generate(other, out, workers=1, progress=False)
    assert (out / "meta.json").exists()
    generate(other, out, workers=1, overwrite=True, progress=False)
    assert sorted(path.name for path in (out / "images").iterdir()) == ["val_000000.png", "val_000001.png"]


def test_other_files_are_never_removed(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    preset = replace(PRESETS["tiny"], images={"val": 1})
    with pytest.raises(UsageError, match="holds other files"):
        generate(preset, tmp_path, workers=1, progress=False)
    generate(preset, tmp_path, workers=1, overwrite=True, progress=False)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is a file; RefShapes needs a folder"):
            generate(preset, tmp_path / "thesis.txt", workers=1, overwrite=overwrite, progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_files_of_version_1_are_removed_on_overwriting(tmp_path):
    (tmp_path / "instances.jsonl").write_text("[]")
    generate(replace(PRESETS["tiny"], images={"val": 1}), tmp_path, workers=1, overwrite=True, progress=False)
    assert not (tmp_path / "instances.jsonl").exists()


def test_image_size_of_a_preset(tmp_path):
    preset = replace(PRESETS["tiny"], image_size=(64, 112), images={"test": 2})
    generate(preset, tmp_path / "out", workers=1, progress=False)
    assert read_image(tmp_path / "out/images/test_000000.png").shape == (64, 112, 3)
    assert read_rows(tmp_path / "out/refshapes.jsonl")[0]["size"] == [64, 112]


def test_preset_without_suitable_scenes():
    poor = replace(PRESETS["tiny"], expressions=replace(PRESETS["tiny"].expressions, per_image=99))
    poor = replace(poor, scene=replace(poor.scene, num_shapes=(0, 0)))
    with pytest.raises(ValueError, match="Allow more shapes"):
        make_image(poor, "train", 0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": {"testC": 1}}, "split 'testC'. Valid: train, val"),
        ({"images": {"heldout": 1}}, "needs held_out pairs"),
        ({"images": {"train": 100_001}}, "more than 100000 images"),
    ],
)
def test_invalid_presets_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["tiny"], **change)


def test_unknown_preset(tmp_path):
    with pytest.raises(ValueError, match=r"preset 'maxi'\. Valid presets: base, hard, mini, tiny"):
        generate("maxi", tmp_path / "out")


def test_sizes_of_mini():
    mini = PRESETS["mini"]
    assert mini.images == {"train": 2400, "val": 101, "test": 101, "testA": 51, "testB": 51}
    assert mini.expressions_of("train").per_image == 18 and mini.expressions_of("val").per_image == 6
    assert len(make_image(mini, "train", 3).expressions) == 18
    assert len(make_image(mini, "test", 3).expressions) == 6


def test_command_line(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    COMMANDS["refshapes"].add_arguments(parser)
    out = str(tmp_path / "out")
    assert main(parser.parse_args(["--preset", "tiny", "--out", out, "--workers", "1"])) == 0
    assert "train: 24 images, 144 expressions" in capsys.readouterr().out
    with pytest.raises(UsageError, match="Valid presets: base, hard, mini, tiny"):
        main(parser.parse_args(["--preset", "maxi", "--out", out]))


def test_script_without_a_main_guard(tmp_path):
    """Each new process runs the script again. This must end in an error, not in an endless chain of processes."""
    script = tmp_path / "script.py"
    call = f"generate('tiny', {str(tmp_path / 'out')!r}, workers=2)"
    script.write_text(f"from refseg.refshapes import generate\n{call}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.returncode != 0 and "__main__" in done.stderr
