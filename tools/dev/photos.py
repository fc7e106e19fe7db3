"""Make a small data set of real photographs for fine-tuning experiments, and score models on it.

    python tools/dev/photos.py --out data/photos
    python tools/dev/photos.py --out data/photos --score predictions.jsonl --splits test
    python tools/dev/photos.py --out data/photos --run work_dirs/photos --time 8m

The photographs come from Python packages: the source distribution of labelme, the wheel of imgaug,
and the installed gradio, scikit-learn, and matplotlib. A package that is not available is reported
and left out. The files belong to their authors and stay in the output folder. The repository has
only `photos.json` beside this script, with phrases and polygons that were made for refseg. Polygons
of labelme and imgaug are read from their packages.

All splits have the same photographs and different phrases. `train` has the phrases to train on (tag
`phrase`: "seen"). `val` and `test` have other phrases about the same photographs and objects
("unseen"), including other absent objects. A phrase is never in two splits of one photograph. Choose
thresholds on val, and report test once. The scores say whether fine-tuning works on real
photographs. They say nothing about new photographs.

The tag `kind` of a phrase is "name", "attribute", "relation", "group", or "absent" (the phrase refers
to nothing). "Left" and "right" are sides of the picture.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refseg.datasets.masks import decode, to_rle
from refseg.errors import DataError, UserError
from refseg.evaluation.prediction_file import read_header
from refseg.evaluation.protocols import NoTarget, get_protocol
from refseg.evaluation.scorer import open_data, score_file
from refseg.files import write_atomically
from refseg.visualization.captions import caption
from refseg.visualization.overlay import Display, fit_for_display, grid, overlay_masks, stack

TABLE = Path(__file__).with_suffix(".json")
JSONL = "photos.jsonl"
SHEET = "sheet.png"
SPLITS = ("train", "val", "test")
KINDS = ("name", "attribute", "relation", "group", "absent")
MAX_BYTES = 20_000_000  # of one file of a package
ReadFile = Callable[[str], bytes]


# Packages -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Download:
    """An archive on PyPI.

    Args:
        requirement: Name and version for pip.
        pattern: File name of the archive.
        root: Folder in the archive that paths are relative to.
        options: More options for `pip download`.
    """

    requirement: str
    pattern: str
    root: str = ""
    options: tuple[str, ...] = ()


DOWNLOADS = {
    "labelme": Download("labelme==6.3.1", "labelme-*.tar.gz", "labelme-6.3.1/", ("--no-binary", ":all:")),
    "imgaug": Download("imgaug==0.4.0", "imgaug-*.whl"),
}
INSTALLED = {"gradio": "gradio", "scikit-learn": "sklearn", "matplotlib": "matplotlib"}  # package -> module


def download(package: str, folder: Path) -> Path:
    """Return the archive of a package in `folder`. It is downloaded if it is not there yet.

    Raises:
        DataError: pip cannot download it.
    """
    source = DOWNLOADS[package]
    archives = sorted(folder.glob(source.pattern))
    if not archives:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *source.options]
        done = subprocess.run([*command, "--dest", str(folder), source.requirement], capture_output=True, text=True)
        archives = sorted(folder.glob(source.pattern))
        if done.returncode or not archives:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DataError(f"pip cannot download {source.requirement} ({reason}). Pass --{package} FILE")
    return archives[0]


def read_archive(archive: Path, root: str, name: str) -> bytes:
    """Read one regular file of a .tar.gz or .whl archive. Nothing is written to disk.

    Raises:
        DataError: There is no such file, it is too large, or the archive is damaged.
    """
    try:
        if archive.name.endswith(".whl"):
            with zipfile.ZipFile(archive) as wheel, wheel.open(root + name) as file:
                content = file.read(MAX_BYTES + 1)
        else:
            with tarfile.open(archive) as tar:
                member = tar.getmember(root + name)
                stream = tar.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise DataError(f"{name} in {archive} is not a regular file")
                content = stream.read(MAX_BYTES + 1)
    except (KeyError, OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{name} cannot be read from {archive} ({error})") from None
    if len(content) > MAX_BYTES:
        raise DataError(f"{name} in {archive} has more than {MAX_BYTES:,} bytes")
    return content


def read_installed(folder: Path, name: str) -> bytes:
    """Read a file of an installed package."""
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise DataError(f"{name} is not in the installed package in {folder} ({error.strerror})") from None


def open_package(package: str, cache: Path, given: dict[str, Path | None]) -> ReadFile:
    """Return a function that reads a file of a package.

    Args:
        cache: Folder for downloads.
        given: Archives of packages that need no download.
    """
    if package in DOWNLOADS:
        archive = given.get(package) or download(package, cache)
        return partial(read_archive, archive, DOWNLOADS[package].root)
    spec = importlib.util.find_spec(INSTALLED[package])
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{package} is not installed. Run: pip install {package}")
    return partial(read_installed, Path(spec.submodule_search_locations[0]))


# Data set -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photo:
    """One photograph with its instances (polygons by name) and phrases (split, kind, text, names of the targets)."""

    name: str
    size: tuple[int, int]
    content: bytes
    instances: dict[str, list[list[float]]]
    phrases: list[tuple[str, str, str, list[str]]]

    @property
    def file(self) -> str:
        return f"images/{self.name}.jpg"


def read_photo(entry: dict[str, Any], read: ReadFile) -> Photo:
    """Read the photograph of an entry of the table, and the polygons that its package has.

    Raises:
        DataError: The photograph is not the one that the table describes.
    """
    content = read(entry["member"])
    with Image.open(BytesIO(content)) as image:
        size = (image.height, image.width)
    if list(size) != entry["size"]:
        raise DataError(f"{entry['member']} has size {list(size)}, not {entry['size']}. Is it another version?")
    shapes = shapes_of(json.loads(read(entry["annotations"]))) if "annotations" in entry else []
    instances = {
        name: [shapes[index] for index in value["shapes"]] if "shapes" in value else [value["polygon"]]
        for name, value in entry["instances"].items()
    }
    return Photo(entry["name"], size, content, instances, entry["phrases"])


def shapes_of(annotations: dict[str, Any]) -> list[list[float]]:
    """Return the polygons [x, y, x, y, ...] in a file of labelme, or in the file of imgaug's quokka."""
    if "shapes" in annotations:
        return [[value for point in shape["points"] for value in point] for shape in annotations["shapes"]]
    return [[point[axis] for point in polygon["keypoints"] for axis in "xy"] for polygon in annotations["polygons"]]


def read_photos(cache: Path, given: dict[str, Path | None]) -> list[Photo]:
    """Read all photographs that can be had, and report the others."""
    cache.mkdir(parents=True, exist_ok=True)
    entries = json.loads(TABLE.read_text())
    photos = []
    for package in dict.fromkeys(entry["source"] for entry in entries):
        members = [entry for entry in entries if entry["source"] == package]
        try:
            read = open_package(package, cache, given)
        except DataError as error:
            print(f"{package}: left out ({len(members)} photographs): {error}")
            continue
        for entry in members:
            try:
                photos.append(read_photo(entry, read))
            except DataError as error:
                print(f"{package}: left out {entry['name']}: {error}")
    if not photos:
        raise DataError("no package is available, so there are no photographs")
    return photos


def rows_of(photo: Photo) -> list[dict[str, Any]]:
    """Return the rows of a photograph in refseg's JSONL format."""
    rows = []
    for number, (split, kind, text, names) in enumerate(photo.phrases):
        rows.append(
            {
                "expression_id": f"{photo.name}:{number}",
                "image": photo.file,
                "size": list(photo.size),
                "text": text,
                "targets": [photo.instances[name] for name in names] or None,
                "instance_ids": names,
                "split": split,
                "tags": {"kind": kind, "phrase": "seen" if split == "train" else "unseen"},
            }
        )
    return rows


def write_data(photos: Sequence[Photo], out: Path) -> Path:
    """Write the images, the JSONL file, and a sheet of all photographs. Return the JSONL file."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    for photo in photos:
        write_atomically(out / photo.file, photo.content)
    rows = [row for photo in photos for row in rows_of(photo)]
    write_atomically(out / JSONL, "".join(json.dumps(row) + "\n" for row in rows))
    Image.fromarray(grid([panel(photo) for photo in photos], columns=4)).save(out / SHEET)
    return out / JSONL


def panel(photo: Photo, width: int = 480) -> np.ndarray:
    """Draw a photograph with the outlines of its instances, and its phrases below: (H, width, 3) uint8."""
    image = np.asarray(Image.open(BytesIO(photo.content)).convert("RGB"))
    masks = np.stack([decode(to_rle(polygons, photo.size)) for polygons in photo.instances.values()])  # (N, H, W)
    pixels, masks = fit_for_display(image, masks, Display(width, width))
    lines = [", ".join(photo.instances)]
    for split, kind, text, names in photo.phrases:
        lines.append(f"{split} [{kind}] {text}" + (f" -> {', '.join(names)}" if names else ""))
    strips = [caption(line, width, size=12, max_lines=3) for line in lines]
    return stack([overlay_masks(pixels, masks, alpha=0.15), *strips], width)


def print_counts(photos: Sequence[Photo]) -> None:
    """Print the numbers of photographs, instances, and phrases by kind and split."""
    print(f"{len(photos)} photographs, {sum(len(photo.instances) for photo in photos)} instances")
    counts = Counter((split, kind) for photo in photos for split, kind, *_ in photo.phrases)
    print(f"{'phrases':<10}" + "".join(f"{split:>7}" for split in SPLITS))
    for kind in KINDS:
        print(f"{kind:<10}" + "".join(f"{counts[split, kind]:>7}" for split in SPLITS))
    totals = [sum(counts[split, kind] for kind in KINDS) for split in SPLITS]
    print(f"{'all':<10}" + "".join(f"{total:>7}" for total in totals))


# Scores ---------------------------------------------------------------------------------------------------------------


def accuracy(predictions: str | Path, data: str, *, threshold: float = 0.5) -> dict[str, Any]:
    """Measure a prediction file on seen and unseen phrases.

    The answer to a phrase with targets is correct if it is not rejected and the IoU of its mask with the merged targets
    is at least 0.5. The answer to an absent phrase is correct if it is rejected. An answer is rejected if its no-target
    probability exceeds the threshold, or if its mask is empty.

    Args:
        predictions: A file of predictions, with an answer to every phrase of the data.
        data: The JSONL file and its splits, as in "data/photos/photos.jsonl:train,test".
        threshold: The no-target probability above which an answer is rejected. Choose it on val.

    Returns:
        For "seen" and "unseen", as far as the splits have such phrases: "target" and "absent" phrases as a whole, and
        "by_kind". Each has its `accuracy` in percent, and the numbers `correct` and `count`.
    """
    # Rows at the original size, in the order of the data
    truths = open_data(data).truths
    protocol = get_protocol("gres")
    rows = score_file(predictions, truths, [protocol]).rows[protocol.name]
    rejected = NoTarget("head-or-empty", threshold).rejected(rows)
    overlaps = rows.intersection >= 0.5 * np.maximum(rows.union, 1)
    correct = np.where(rows.has_target, overlaps & ~rejected, rejected)
    # Groups by the tags of the phrases
    tags = [truths.expression(position).tags for position in range(len(truths))]
    phrase = np.array([str(tag.get("phrase")) for tag in tags])
    kind = np.array([str(tag.get("kind")) for tag in tags])
    result: dict[str, Any] = {}
    for name in ("seen", "unseen"):
        chosen = phrase == name
        if chosen.any():
            result[name] = {
                "target": share(correct[chosen & rows.has_target]),
                "absent": share(correct[chosen & ~rows.has_target]),
                "by_kind": {one: share(correct[chosen & (kind == one)]) for one in KINDS if one in kind[chosen]},
            }
    return result


def share(correct: np.ndarray) -> dict[str, Any]:
    """Return the accuracy in percent (None if there are no answers), and the numbers behind it."""
    percent = round(100 * float(correct.mean()), 1) if correct.size else None
    return {"accuracy": percent, "correct": int(correct.sum()), "count": int(correct.size)}


# Fine-tuning ----------------------------------------------------------------------------------------------------------


def run_finetune(file: Path, work_dir: Path, options: Sequence[str]) -> dict[str, Any]:
    """Fine-tune a model on the train split, and measure it on train (seen phrases) and test (unseen ones).

    Args:
        file: The data.
        work_dir: Folder of the run.
        options: More options of `refseg finetune`.

    Returns:
        The result of `accuracy`, with the `minutes` of the command and the `peak_gib` of memory.
    """
    refseg = [sys.executable, "-m", "refseg.cli"]
    start = time.monotonic()
    subprocess.run([*refseg, "finetune", str(file), "--out", str(work_dir), *options], check=True)
    minutes = (time.monotonic() - start) / 60
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # KiB on Linux
    predictions = work_dir / "photos_predictions.jsonl"
    splits = ["--cfg-options", "test_dataloader.dataset.split=['train','test']"]
    subprocess.run([*refseg, "test", str(work_dir), "--predictions", str(predictions), *splits], check=True)
    # The threshold that the command chose on val
    threshold = read_header(predictions)["postprocess"]["no_target_threshold"]
    found = accuracy(predictions, f"{file}:train,test", threshold=threshold)
    return {**found, "threshold": threshold, "minutes": round(minutes, 1), "peak_gib": round(peak, 1)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/photos"), help="folder of the data set")
    parser.add_argument("--labelme", type=Path, metavar="FILE", help="labelme-6.3.1.tar.gz, instead of a download")
    parser.add_argument("--imgaug", type=Path, metavar="FILE", help="wheel of imgaug 0.4.0, instead of a download")
    parser.add_argument("--score", type=Path, metavar="PREDICTIONS", help="score this file, and make no data")
    parser.add_argument("--splits", default="test", help="splits to score, such as train,test (default: test)")
    parser.add_argument("--threshold", type=float, default=0.5, help="no-target threshold of --score (default: 0.5)")
    parser.add_argument("--run", type=Path, metavar="DIR", help="fine-tune a model in this folder, and score it")
    args, options = parser.parse_known_args(argv)  # more options are those of `refseg finetune`
    if options and not args.run:
        parser.error(f"unknown options: {' '.join(options)}")
    try:
        if args.score:
            result = accuracy(args.score, f"{args.out / JSONL}:{args.splits}", threshold=args.threshold)
            print(json.dumps(result, indent=1))
            return 0
        photos = read_photos(args.out / "packages", {"labelme": args.labelme, "imgaug": args.imgaug})
        file = write_data(photos, args.out)
        print_counts(photos)
        print(f"wrote {file} and {args.out / SHEET}")
        if args.run:
            print(json.dumps(run_finetune(file, args.run, options), indent=1))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
