"""Configs in configs/_base_/datasets: their keys, their paths, and batches from files in the official layouts.

RefShapes replaces the official data sets.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from conftest import REPOSITORY
from refseg.cli.main import main
from refseg.config_check import unknown_keys
from refseg.datasets.catalog import SETS
from refseg.datasets.collate import collate_samples
from refseg.datasets.samplers import SampleKey
from refseg.registry import DATASETS

FOLDER = REPOSITORY / "configs/_base_/datasets"
FILES = sorted(path.stem for path in FOLDER.glob("*.py"))
# RefShapes' files that replace files of other sets.
STAND_IN = {
    "data/refcoco/refs(google).p": "refcocog/refs(umd).p",
    "data/refcocog/refs(google).p": "refcocog/refs(umd).p",
    "data/refclef/refs(berkeley).p": "refcocog/refs(umd).p",
    "data/refclef/refs(unc).p": "refcoco/refs(unc).p",
    "data/rrefcoco+/refs(unc).p": "rrefcoco/refs(unc).p",
    "data/rrsisd/refs(unc).p": "refcocog/refs(umd).p",
    "data/rrefcocog/refs(umd).p": "rrefcoco/refs(unc).p",
}
IMPORTED = ("refsegrs", "risbench")  # by `refseg data import`, which writes JSONL
OTHER_FORMATS = ("jsonl", "saco", "seqtr", "refshapes", *IMPORTED)


def load(name: str) -> Config:
    return Config.fromfile(FOLDER / f"{name}.py")


def datasets(cfg: Config) -> dict[str, Any]:
    """Return the data sets of each loader; a mixture has several."""
    found = {}
    for loader in ("train", "val", "test"):
        dataset = cfg[f"{loader}_dataloader"].dataset
        for number, part in enumerate(dataset.get("datasets", [dataset])):
            found[f"{loader} {number}"] = part
    return found


@pytest.mark.parametrize("name", FILES)
def test_all_keys_are_known(name: str) -> None:
    assert unknown_keys(load(name)) == []


@pytest.mark.parametrize("name", [name for name in FILES if name.split("_")[0] not in OTHER_FORMATS])
def test_paths_agree_with_the_catalog(name: str) -> None:
    known = {str(one.annotations["refs"]): one for one in SETS.values()}
    for dataset in datasets(load(name)).values():
        one = known[dataset.annotations.refs]
        assert dataset.annotations.to_dict() == one.annotations and dataset.image_root == one.image_root
        for split in [dataset.split] if isinstance(dataset.split, str) else dataset.split:
            # Sets without counts have unknown splits.
            assert not one.counts or any(tag.startswith(split) for tag in one.counts), f"{one.name}: {split}"


def test_training_drops_incomplete_batches() -> None:
    """Published code does. Exceptions are own data, which may be smaller than a batch, and RefShapes."""
    kept = {name for name in FILES if not load(name).train_dataloader.get("drop_last", False)}
    assert kept == {"jsonl", *(name for name in FILES if name.startswith("refshapes"))}
    assert not any(load(name).val_dataloader.get("drop_last", False) for name in FILES)


def test_every_set_of_the_catalog_has_a_config() -> None:
    used = {dataset.annotations.get("refs") for name in FILES for dataset in datasets(load(name)).values()}
    assert {str(one.annotations["refs"]) for one in SETS.values()} <= used


def seqtr_entries(refshapes: Path) -> dict[str, list[dict]]:
    """Return the rows with one referent in SeqTR's layout, in the splits of the mixed file."""
    evaluated = ("refcoco_unc", "refcocoplus_unc", "refcocog_umd")
    entries: dict[str, list[dict]] = {}
    for line in (refshapes / "refshapes.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["targets"] and len(row["targets"]) == 1:
            name = Path(row["image"]).name
            entry = {"image_id": 0, "file_name": name, "height": row["size"][0], "width": row["size"][1]}
            entry |= {"expressions": [row["text"]], "mask": row["targets"][0]}
            sets = [""] if row["split"] == "train" else [f"_{one}" for one in evaluated]
            for one in sets:
                entries.setdefault(row["split"] + one, []).append(entry)
    return entries


@pytest.fixture(scope="module")
def data_root(refshapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a data folder in which RefShapes replaces every set."""
    root = tmp_path_factory.mktemp("data")
    for layout in ("refcoco", "refcoco+", "refcocog", "grefcoco", "ref-zom", "rrefcoco"):
        shutil.copytree(refshapes_tiny / layout, root / layout)
    for place, source in STAND_IN.items():
        target = root / place.removeprefix("data/")
        target.parent.mkdir(exist_ok=True)
        shutil.copy(refshapes_tiny / source, target)
        shutil.copy(refshapes_tiny / Path(source).parent / "instances.json", target.parent / f"{target.stem}.json")
    (root / "images").mkdir()
    for folder in ("train2014", "trainval2014", "saiapr_tc-12", "rrsisd/JPEGImages"):
        (root / "images" / folder).parent.mkdir(exist_ok=True)
        (root / "images" / folder).symlink_to(refshapes_tiny / "images")
    for folder in ("refshapes_mini", "refshapes_base", "refshapes_hard"):
        (root / folder).symlink_to(refshapes_tiny)
    seqtr = root / "seqtr_type/annotations/mixed-seg/instances_nogoogle_withid.json"
    seqtr.parent.mkdir(parents=True)
    seqtr.write_text(json.dumps(seqtr_entries(refshapes_tiny)))
    (root / "images" / "saco").symlink_to(refshapes_tiny / "images")
    (root / "saco").mkdir()
    source, saco = str(refshapes_tiny / "refshapes.jsonl"), str(root / "saco" / "saco.json")
    assert main(["data", "export", source, "--to", "sa-co", "--out", saco]) == 0
    rows = (refshapes_tiny / "refshapes.jsonl").read_text().replace('"images/', f'"{refshapes_tiny}/images/')
    for name in ("own", *IMPORTED):
        (root / name).mkdir()
        (root / name / f"{name}.jsonl").write_text(rows)
    return root


@pytest.mark.parametrize("name", FILES)
def test_batches(name: str, data_root: Path, refshapes_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load a batch of each loader, with RefShapes' words and categories and a small image size."""
    monkeypatch.setenv("REFSEG_DATA", str(data_root))
    for which, dataset in datasets(load(name)).items():
        for transform in dataset.pipeline:
            if transform.type == "Resize":
                transform.setdefault("size", (96, 96))
            if transform.type == "LoadText":
                transform.tokenizer = dict(word_list=str(refshapes_tiny / "words.txt"), max_words=20)
        refs = dataset.annotations.get("refs")
        if refs in STAND_IN:
            dataset.annotations.instances = refs.replace(".p", ".json")
        if dataset.get("categories"):
            dataset.categories = ["circle", "square", "star"]
        if dataset.get("hold_out"):
            dataset.hold_out.share = 0.5
        # Images of RefShapes are in one split only, so the leak filter keeps all.
        built = DATASETS.build(dataset)
        batch = collate_samples([built[SampleKey(i)] for i in range(min(2, len(built)))])["batch"]
        assert batch.num_expressions >= batch.num_images >= 1, which
        if which.startswith("train"):
            assert batch.num_expressions == batch.num_images or name.startswith("refshapes")
        else:
            assert batch.ground_truth[0] is not None
