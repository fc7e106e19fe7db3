"""What the arguments of the data commands name: sets of the catalogue, JSONL files, folders."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from refseg.datasets.catalogue import IMAGE_FOLDERS, SETS, TRAIN2014, Counts, KnownSet, get_set
from refseg.errors import DataError
from refseg.paths import data_path

META = "meta.json"  # by which a folder made by RefShapes is known
EXPRESSIONS = "refshapes.jsonl"


@dataclass(frozen=True)
class Target:
    """A data set as a command works on it. `annotations` and `image_root` are what a config has.

    `counts` are what it should hold, `reference` says by whom. `seen_unseen`: the catalog's, see there. `files`: hashes
    that its files should have.
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
        return data_path(self.annotations.get("refs") or self.annotations["file"])

    @property
    def images(self) -> Path:
        """The folder that image paths are relative to."""
        return data_path(self.image_root) if self.image_root else self.main_file.parent


@contextmanager
def data_root(root: str | None) -> Iterator[None]:
    """Within it, `data/...` means `root/...`, here and in processes started here."""
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


def of_catalogue(known: KnownSet) -> Target:
    return Target(
        name=known.name,
        title=known.title,
        annotations=known.annotations,
        image_root=known.image_root,
        split_by=known.split_by,
        counts=known.counts,
        seen_unseen=known.seen_unseen,
        verified=known.verified,
        reference="published" if known.verified else "published, unverified",
        source=known.source,
        image_source=IMAGE_FOLDERS[known.image_root].source,
    )


def of_jsonl(file: Path, **more: Any) -> Target:
    annotations = dict(format="jsonl", file=str(file))
    return Target(name=more.pop("name", file.name), title=more.pop("title", "JSONL"), annotations=annotations, **more)


def of_seqtr(file: Path, name: str) -> Target:
    """A JSON file in SeqTR's layout, with COCO's images."""
    annotations = dict(format="seqtr", file=str(file))
    source = IMAGE_FOLDERS[TRAIN2014].source
    return Target(name, "SeqTR's layout", annotations, image_root=TRAIN2014, image_source=source)


def _moved(known: KnownSet, root: Path, **changes: Any) -> Target:
    """A set of the catalogue whose folder lies in another root than `data`."""
    annotations = {key: value.replace("data/", f"{root}/", 1) for key, value in known.annotations.items()}
    return Target(**{**vars(of_catalogue(known)), "annotations": annotations, **changes})


def resolve(argument: str) -> list[Target]:
    """The data sets that one argument names."""
    if argument in SETS:
        return [of_catalogue(SETS[argument])]
    path = Path(argument) if Path(argument).exists() else data_path(argument)
    if path.is_dir():
        return _of_folder(_absolute(path), argument.rstrip("/"))
    if path.is_file() and path.suffix == ".json":
        return [of_seqtr(_absolute(path), argument)]
    if path.is_file():
        check_is_text(path)
        return [of_jsonl(_absolute(path), name=argument)]
    if "/" in argument or path.suffix:
        raise DataError(f"no such file or folder: {path}")
    return [of_catalogue(get_set(argument))]


def check_is_text(path: Path) -> None:
    """An image, a pickle or an archive is refused as a whole, not line by line."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a character may be cut off at the end
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        head = b"\0"
    if b"\0" in head:
        raise DataError(
            f"{path} is no JSONL file: it does not hold text in UTF-8. Give the file of annotations, the folder of a "
            "set, or a name that `refseg data layout` lists"
        )


def _absolute(path: Path) -> Path:
    """Links stay links: images lie beside them, where data sets look, and not beside what they lead to."""
    return Path(os.path.abspath(path))


def _of_folder(folder: Path, argument: str) -> list[Target]:
    if (folder / META).is_file():
        return of_refshapes(folder)
    if (folder.parent / META).is_file():
        found = [target for target in of_refshapes(folder.parent) if target.main_file.parent == folder]
    else:
        found = _known_in(folder, argument)
    if not found:
        raise DataError(
            f"{folder} is neither made by `refseg data refshapes` (no {META}) nor the folder of a known set with its "
            "refs file in it; `refseg data layout` shows what is expected. A folder of folders is a --data-root"
        )
    return found


def _known_in(folder: Path, argument: str) -> list[Target]:
    return [
        _moved(
            known,
            folder.parent,
            name=f"{argument}/{Path(known.refs).name}",
            image_root=str(folder.parent / Path(known.image_root).relative_to("data")),
        )
        for known in SETS.values()
        if known.folder == folder.name and (folder.parent / known.refs).is_file()
    ]


def of_refshapes(folder: Path) -> list[Target]:
    """The JSONL file of a generated folder, and each of the official layouts in it."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        hashes = {str(folder / name): str(digest) for name, digest in meta.get("sha256", {}).items()}
        common: dict[str, Any] = dict(
            split_by="image", verified=True, reference=META, source="`refseg data refshapes --overwrite`"
        )
        common["image_source"] = common["source"]
        jsonl = {
            split: Counts(images=_number(numbers, "images"), sentences=_number(numbers, "expressions"))
            for split, numbers in meta.get("counts", {}).items()
        }
        layouts = {
            name: {
                split: Counts(*(_number(numbers, what) for what in ("refs", "images", "sentences")))
                for split, numbers in splits.items()
            }
            for name, splits in meta.get("layouts", {}).items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{folder / META} is damaged ({error}); make the folder again") from None
    targets = []
    if (folder / EXPRESSIONS).is_file() or str(folder / EXPRESSIONS) in hashes:
        targets.append(
            of_jsonl(
                folder / EXPRESSIONS,
                name=f"{folder.name}/{EXPRESSIONS}",
                title="RefShapes",
                counts=jsonl,
                files={name: digest for name, digest in hashes.items() if name.endswith(EXPRESSIONS)},
                **common,
            )
        )
    for known in SETS.values():
        if known.folder in layouts or (folder / known.refs).is_file():
            if not (folder / known.refs).is_file() and _other_division(folder, known):
                continue
            names = {str(folder / known.refs), str(folder / known.folder / "instances.json")}
            targets.append(
                _moved(
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


def _other_division(root: Path, known: KnownSet) -> bool:
    """Whether another set of the same folder is there, or comes first in the catalogue."""
    others = [one for one in SETS.values() if one.folder == known.folder]
    return any((root / one.refs).is_file() for one in others) or others[0] is not known


def present() -> list[Target]:
    """What the data root holds: sets of the catalogue whose folder exists, and folders made by RefShapes."""
    root = data_path("data")
    known = [
        one
        for one in SETS.values()
        if (root / one.refs).is_file() or ((root / one.folder).is_dir() and not _other_division(root, one))
    ]
    generated = sorted(file.parent for file in root.glob(f"*/{META}")) if root.is_dir() else []
    return [of_catalogue(one) for one in known] + [t for folder in generated for t in of_refshapes(_absolute(folder))]


def resolve_all(arguments: Sequence[str]) -> list[Target]:
    if arguments:
        return [target for argument in arguments for target in resolve(argument)]
    found = present()
    if not found:
        raise DataError(
            f"no data set is in {data_path('data')}. `refseg data layout` shows what goes where; another place is "
            "--data-root or $REFSEG_DATA; a JSONL file or a folder is an argument"
        )
    return found
