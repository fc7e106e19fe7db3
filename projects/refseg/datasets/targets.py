"""Resolve the SET:SPLIT arguments of commands: sets of the catalog, annotation files and folders."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from refseg.datasets.catalog import IMAGE_FOLDERS, SETS, TRAIN2014, Counts, Target, get_set
from refseg.errors import DataError
from refseg.paths import data_path

META = "meta.json"  # marks a folder made by RefShapes
EXPRESSIONS = "refshapes.jsonl"


@contextmanager
def data_root(root: str | None) -> Iterator[None]:
    """Let `data/...` mean `root/...` inside the block, also in processes that it starts."""
    before = os.environ.get("REFSEG_DATA")
    if root is not None:
        os.environ["REFSEG_DATA"] = os.path.abspath(root)
    try:
        yield
    finally:
        os.environ.pop("REFSEG_DATA", None)
        if before is not None:
            os.environ["REFSEG_DATA"] = before


def resolve(argument: str) -> list[Target]:
    """Return the data sets that one argument names."""
    if argument in SETS:
        return [SETS[argument]]
    path = Path(argument) if Path(argument).exists() else data_path(argument)
    place = Path(os.path.abspath(path))  # links stay: images are next to a link, not next to its target
    if path.is_dir():
        return _folder_targets(place, argument.rstrip("/"))
    if path.is_file() and path.suffix == ".json":
        if is_saco(path):
            return [Target(argument, "SA-Co's format", dict(format="saco", file=str(place)))]
        annotations = dict(format="seqtr", file=str(place))
        source = IMAGE_FOLDERS[TRAIN2014].source
        return [Target(argument, "SeqTR's layout", annotations, image_root=TRAIN2014, image_source=source)]
    if path.is_file():
        check_is_text(path)
        return [Target(argument, "JSONL", dict(format="jsonl", file=str(place)))]
    if "/" in argument or path.suffix:
        raise DataError(f"no such file or folder: {path}")
    return [get_set(argument)]


def resolve_all(arguments: Sequence[str]) -> list[Target]:
    """Return the data sets that the arguments name, or all sets in the data root if there are none."""
    if arguments:
        return [target for argument in arguments for target in resolve(argument)]
    root = data_path("data")
    folders = {known.folder for known in SETS.values() if (root / known.folder).is_dir()}
    targets = _present(root, folders)
    for meta in sorted(root.glob(f"*/{META}")):
        targets += refshapes_targets(Path(os.path.abspath(meta.parent)))
    if not targets:
        raise DataError(
            f"no data set is in {root}. `refseg data layout` shows the expected files. Choose another folder with "
            "--data-root or $REFSEG_DATA, or pass a JSONL file or a folder"
        )
    return targets


def _present(root: Path, folders: Collection[str]) -> list[Target]:
    """Return the sets of the catalog whose refs file is below `root`, and for each of `folders` without such a file
    the first set that belongs there."""
    present = {known.name for known in SETS.values() if (root / known.refs).is_file()}
    filled = {SETS[name].folder for name in present}
    first = {known.folder: known.name for known in reversed(SETS.values())}
    return [
        known
        for known in SETS.values()
        if known.name in present
        or (known.folder in folders and known.folder not in filled and first[known.folder] == known.name)
    ]


def parse_target(argument: str) -> tuple[list[Target], list[str] | None]:
    """Parse SET or SET:SPLIT,SPLIT into targets and split names. A colon inside a path does not mark a split."""
    name, colon, splits = argument.rpartition(":")
    if not colon or "/" in splits or "\\" in splits:
        return resolve(argument), None
    if not name or not splits or not all(splits.split(",")):
        raise DataError(f"{argument!r} is not SET:SPLIT or SET:SPLIT,SPLIT")
    return resolve(name), splits.split(",")


def is_saco(path: Path) -> bool:
    """Return whether a JSON file is in SA-Co's format: only there, entries have a `text_input`."""
    with path.open("rb") as file:
        before = b""
        while chunk := file.read(2**20):
            if b'"text_input"' in before + chunk:
                return True
            before = chunk[-20:]
    return False


def check_is_text(path: Path) -> None:
    """Raise DataError for a file that is not text, such as an image, a pickle or an archive."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be incomplete
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        head = b"\0"
    if b"\0" in head:
        raise DataError(
            f"{path} is not a JSONL file: it does not hold text in UTF-8. Give the file of annotations, the folder of "
            "a set, or a name that `refseg data layout` lists"
        )


def _moved(known: Target, root: Path, **changes: Any) -> Target:
    """Return a set of the catalog whose folder is in `root`, with other fields changed."""
    annotations = {key: value.replace("data/", f"{root}/", 1) for key, value in known.annotations.items()}
    return replace(known, annotations=annotations, **changes)


def _folder_targets(folder: Path, argument: str) -> list[Target]:
    """Return the sets in a folder that RefShapes made, or that has the name of a set's folder."""
    root = folder.parent
    if (folder / META).is_file():
        return refshapes_targets(folder)
    if (root / META).is_file():
        targets = [target for target in refshapes_targets(root) if target.main_file.parent == folder]
    else:
        targets = [
            _moved(
                known,
                root,
                name=f"{argument}/{Path(known.refs).name}",
                image_root=str(root / Path(known.image_root).relative_to("data")),
            )
            for known in SETS.values()
            if known.folder == folder.name and (root / known.refs).is_file()
        ]
    if not targets:
        raise DataError(
            f"{folder} was not made by `refseg data refshapes` (no {META}) and is not the folder of a known set with "
            "its refs file in it. `refseg data layout` shows the expected files. Pass a folder of such folders as "
            "--data-root"
        )
    return targets


def refshapes_targets(folder: Path) -> list[Target]:
    """Return the JSONL file of a folder made by RefShapes, and each of the official layouts in it."""

    def counts(splits: dict[str, dict], **names: str) -> dict[str, Counts]:
        return {
            split: Counts(**{field: int(numbers[name]) for field, name in names.items() if name in numbers})
            for split, numbers in splits.items()
        }

    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        hashes = {str(folder / name): str(digest) for name, digest in meta.get("sha256", {}).items()}
        in_jsonl = counts(meta.get("counts", {}), images="images", sentences="expressions")
        in_layouts = {
            name: counts(splits, refs="refs", images="images", sentences="sentences")
            for name, splits in meta.get("layouts", {}).items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{folder / META} is damaged ({error}). Make the folder again") from None
    command = "`refseg data refshapes --overwrite`"
    common: dict[str, Any] = dict(split_by="image", verified=True, reference=META, source=command, image_source=command)
    targets = []
    expressions = str(folder / EXPRESSIONS)
    if os.path.isfile(expressions) or expressions in hashes:
        targets.append(
            Target(
                name=f"{folder.name}/{EXPRESSIONS}",
                title="RefShapes",
                annotations=dict(format="jsonl", file=expressions),
                counts=in_jsonl,
                files={name: digest for name, digest in hashes.items() if name == expressions},
                **common,
            )
        )
    for known in _present(folder, in_layouts.keys()):
        files = (str(folder / known.refs), str(folder / known.folder / "instances.json"))
        targets.append(
            _moved(
                known,
                folder,
                name=f"{folder.name}/{known.name}",
                title=f"RefShapes in the layout of {known.title}",
                image_root=str(folder / "images"),
                counts=in_layouts.get(known.folder, {}),
                seen_unseen={},
                files={name: digest for name, digest in hashes.items() if name in files},
                **common,
            )
        )
    return targets
