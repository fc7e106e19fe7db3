"""Resolve the SET:SPLIT arguments of commands: sets of the catalog, annotation files and folders."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from refseg.datasets.catalog import IMAGE_FOLDERS, SETS, TRAIN2014, Counts, KnownSet, get_set
from refseg.errors import DataError
from refseg.paths import data_path

META = "meta.json"  # marks a folder made by RefShapes
EXPRESSIONS = "refshapes.jsonl"


@dataclass(frozen=True)
class Target:
    """A data set that a command works on.

    Args:
        name: Name to show, as the user gave it.
        title: Description to show.
        annotations: As in a config.
        image_root: As in a config.
        split_by: See `KnownSet`.
        counts: Expected numbers by split.
        seen_unseen: See `KnownSet`.
        verified: Whether the counts are certain.
        reference: Source of the counts.
        source: Address or command that the annotations come from.
        image_source: The same for the images.
        files: Expected SHA-256 by file.
    """

    name: str
    title: str
    annotations: dict[str, Any]
    image_root: str | None = None
    split_by: Literal["image", "object"] | None = None
    counts: dict[str, Counts] = field(default_factory=dict)
    seen_unseen: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    verified: bool = True
    reference: str = ""
    source: str = ""
    image_source: str = ""
    files: dict[str, str] = field(default_factory=dict)

    @property
    def main_file(self) -> Path:
        """The file of expressions."""
        return data_path(self.annotations.get("refs") or self.annotations["file"])

    @property
    def images(self) -> Path:
        """The folder that image paths are relative to."""
        return data_path(self.image_root) if self.image_root else self.main_file.parent


@contextmanager
def data_root(root: str | None) -> Iterator[None]:
    """Let `data/...` mean `root/...` inside the block, also in processes that it starts."""
    before = os.environ.get("REFSEG_DATA")
    if root is not None:
        os.environ["REFSEG_DATA"] = os.path.abspath(root)
    try:
        yield
    finally:
        if root is not None:
            os.environ.pop("REFSEG_DATA")
            if before is not None:
                os.environ["REFSEG_DATA"] = before


def resolve(argument: str) -> list[Target]:
    """Return the data sets that one argument names."""
    if argument in SETS:
        return [_catalog_target(SETS[argument])]
    path = Path(argument) if Path(argument).exists() else data_path(argument)
    if path.is_dir():
        return _folder_targets(_absolute(path), argument.rstrip("/"))
    if path.is_file() and path.suffix == ".json":
        annotations = dict(format="seqtr", file=str(_absolute(path)))
        image_source = IMAGE_FOLDERS[TRAIN2014].source
        return [Target(argument, "SeqTR's layout", annotations, image_root=TRAIN2014, image_source=image_source)]
    if path.is_file():
        check_is_text(path)
        return [Target(argument, "JSONL", dict(format="jsonl", file=str(_absolute(path))))]
    if "/" in argument or path.suffix:
        raise DataError(f"no such file or folder: {path}")
    return [_catalog_target(get_set(argument))]


def resolve_all(arguments: Sequence[str]) -> list[Target]:
    """Return the data sets that the arguments name, or all sets in the data root if there are none."""
    if arguments:
        return [target for argument in arguments for target in resolve(argument)]
    root = data_path("data")
    known = [
        one
        for one in SETS.values()
        if (root / one.refs).is_file() or ((root / one.folder).is_dir() and not _has_other_division(root, one))
    ]
    generated = sorted(file.parent for file in root.glob(f"*/{META}")) if root.is_dir() else []
    targets = [_catalog_target(one) for one in known]
    targets += [target for folder in generated for target in refshapes_targets(_absolute(folder))]
    if not targets:
        raise DataError(
            f"no data set is in {root}. `refseg data layout` shows the expected files. Choose another folder with "
            "--data-root or $REFSEG_DATA, or pass a JSONL file or a folder"
        )
    return targets


def parse_target(argument: str) -> tuple[list[Target], list[str] | None]:
    """Parse SET or SET:SPLIT,SPLIT into targets and split names. A colon inside a path does not mark a split."""
    name, colon, splits = argument.rpartition(":")
    if not colon or "/" in splits or "\\" in splits:
        return resolve(argument), None
    if not name or not splits or not all(splits.split(",")):
        raise DataError(f"{argument!r} is not SET:SPLIT or SET:SPLIT,SPLIT")
    return resolve(name), splits.split(",")


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


def _absolute(path: Path) -> Path:
    """Return an absolute path without resolving links: images are next to a link, not next to its target."""
    return Path(os.path.abspath(path))


def _catalog_target(known: KnownSet, root: Path | None = None, **changes: Any) -> Target:
    """Return a set of the catalog, whose folder is in `root` if that is given, with other fields changed."""
    annotations = known.annotations
    if root is not None:
        annotations = {key: value.replace("data/", f"{root}/", 1) for key, value in annotations.items()}
    fields = dict(
        name=known.name,
        title=known.title,
        annotations=annotations,
        image_root=known.image_root,
        split_by=known.split_by,
        counts=known.counts,
        seen_unseen=known.seen_unseen,
        verified=known.verified,
        reference="published" if known.verified else "published, unverified",
        source=known.source,
        image_source=IMAGE_FOLDERS[known.image_root].source,
    )
    return Target(**{**fields, **changes})


def _folder_targets(folder: Path, argument: str) -> list[Target]:
    """Return the sets in a folder that RefShapes made, or that has the name of a set's folder."""
    root = folder.parent
    if (folder / META).is_file():
        return refshapes_targets(folder)
    if (root / META).is_file():
        targets = [target for target in refshapes_targets(root) if target.main_file.parent == folder]
    else:
        targets = [
            _catalog_target(
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
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        hashes = {str(folder / name): str(digest) for name, digest in meta.get("sha256", {}).items()}
        jsonl = {
            split: Counts(images=_number(numbers, "images"), sentences=_number(numbers, "expressions"))
            for split, numbers in meta.get("counts", {}).items()
        }
        layouts = {
            name: {
                split: Counts(*(_number(numbers, key) for key in ("refs", "images", "sentences")))
                for split, numbers in splits.items()
            }
            for name, splits in meta.get("layouts", {}).items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{folder / META} is damaged ({error}). Make the folder again") from None
    command = "`refseg data refshapes --overwrite`"
    common: dict[str, Any] = dict(split_by="image", verified=True, reference=META, source=command, image_source=command)
    targets = []
    expressions = folder / EXPRESSIONS
    if expressions.is_file() or str(expressions) in hashes:
        targets.append(
            Target(
                name=f"{folder.name}/{EXPRESSIONS}",
                title="RefShapes",
                annotations=dict(format="jsonl", file=str(expressions)),
                counts=jsonl,
                files={name: digest for name, digest in hashes.items() if name.endswith(EXPRESSIONS)},
                **common,
            )
        )
    for known in SETS.values():
        is_present = (folder / known.refs).is_file()
        if is_present or (known.folder in layouts and not _has_other_division(folder, known)):
            names = {str(folder / known.refs), str(folder / known.folder / "instances.json")}
            targets.append(
                _catalog_target(
                    known,
                    folder,
                    name=f"{folder.name}/{known.name}",
                    title=f"RefShapes in the layout of {known.title}",
                    image_root=str(folder / "images"),
                    counts=layouts.get(known.folder, {}),
                    seen_unseen={},
                    files={name: digest for name, digest in hashes.items() if name in names},
                    **common,
                )
            )
    return targets


def _number(numbers: dict[str, Any], name: str) -> int | None:
    return int(numbers[name]) if name in numbers else None


def _has_other_division(root: Path, known: KnownSet) -> bool:
    """Return whether another set of the same folder is present, or comes first in the catalog."""
    others = [one for one in SETS.values() if one.folder == known.folder]
    return any((root / one.refs).is_file() for one in others) or others[0] is not known
