"""Annotation files -> a `RecordStore`, converted once and then memory-mapped.

The converted file lies in `.refseg_cache` beside the annotations, or, where that cannot be written, in `$REFSEG_CACHE`
or the user's cache folder; where none of them can, the data set works from memory. It is made again when a source file
changes: size and time are compared, and where they differ, a hash of the content. Several processes may start at once:
one converts, the others wait.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refseg.datasets.readers import READERS
from refseg.datasets.store import RecordStore, from_annotations, open_store
from refseg.errors import ConfigError
from refseg.files import sha256_of
from refseg.paths import data_path
from refseg.records import Record

logger = logging.getLogger("refseg.data")
VERSION = 4  # raise it when a reader gives other records for the same files
LOCK_SECONDS = 1800


def open_annotations(*, format: str, **arguments: Any) -> RecordStore:
    """`format`: a name in `READERS`; `arguments`: that reader's."""
    check_arguments(format, arguments)
    reader = READERS[format]
    files = [data_path(arguments[name]) for name in reader.files]
    if not all(file.is_file() for file in files):
        reader.read(**arguments)  # says which is missing and what to do
    name = _cache_name(format, arguments, files)
    for folder in _cache_folders(files):
        store = _from_folder(folder, name, files, reader.read, arguments)
        if store is not None:
            return store
    logger.warning("no folder can be written to keep %s in: it is read anew in every process", files[0])
    return _convert(reader.read, arguments)


def complete_paths(record: Record, root: Path) -> Record:
    """The record, in place, with the paths of its image and mask files beginning at the image root."""
    record.image_path = str(root / record.image_path)
    for instance in record.instances:
        if isinstance(instance.segmentation, str):
            instance.segmentation = str(root / instance.segmentation)
    return record


def image_root_of(annotations: dict[str, Any], image_root: str | None) -> Path:
    """Where image paths begin: JSONL's are relative to the file unless said otherwise, REFER's must be told."""
    if image_root is not None:
        return data_path(image_root)
    if annotations["format"] != "jsonl":
        raise ConfigError("image_root is needed: these annotations do not say where their images are")
    return data_path(annotations["file"]).parent


def generated_by(annotations: dict[str, Any]) -> dict[str, Any] | None:
    """Preset and generator version of RefShapes, from the meta.json of its folder; None for other data."""
    file = data_path(annotations[READERS[annotations["format"]].files[0]])
    for folder in (file.parent, file.parent.parent):  # the official layouts have a folder of their own
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            return {"preset": meta["preset"]["name"], "generator_version": meta["generator_version"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def check_arguments(format: str, arguments: dict[str, Any]) -> None:
    if format not in READERS:
        raise ConfigError(f"annotations.format must be one of {sorted(READERS)}, not {format!r}")
    accepted = inspect.signature(READERS[format].read).parameters
    needed = {name for name, parameter in accepted.items() if parameter.default is parameter.empty}
    if not needed <= set(arguments) <= set(accepted):
        optional = f" (and may have {sorted(set(accepted) - needed)})" if needed != set(accepted) else ""
        message = f"annotations of format {format!r} need {sorted(needed)}{optional}, not {sorted(arguments)}"
        raise ConfigError(message)


def _cache_name(format: str, arguments: dict[str, Any], files: list[Path]) -> str:
    others = sorted((key, str(value)) for key, value in arguments.items() if key not in READERS[format].files)
    identity = [VERSION, format, others, [str(file.resolve()) for file in files]]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    return f"{files[0].parent.name}-{files[0].stem}-{digest}.columns"


def _cache_folders(files: list[Path]) -> Iterator[Path]:
    if os.environ.get("REFSEG_CACHE"):
        yield Path(os.environ["REFSEG_CACHE"])
    yield files[0].parent / ".refseg_cache"
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        yield (Path(root) if root else Path.home() / ".cache") / "refseg" / "annotations"
    except RuntimeError:  # no home
        return


def _from_folder(folder: Path, name: str, files: list[Path], read: Callable, arguments: dict) -> RecordStore | None:
    """The store in this folder, made if need be; None where that is not possible here."""
    from filelock import FileLock, Timeout

    place = folder / name
    store = _fresh(place, files)
    if store is not None:
        return store
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock", timeout=LOCK_SECONDS):
            store = _fresh(place, files)  # another process may have made it meanwhile
            if store is None:
                logger.warning("converting %s (once)", files[0])
                stamps = [_stamp(file) for file in files]
                _convert(read, arguments, sources=stamps).save(place)
                store = open_store(place)
    except (OSError, NotImplementedError, Timeout) as error:
        logger.info("%s cannot be used as a cache: %s", folder, error)
        return None
    return store


def _convert(read: Callable, arguments: dict[str, Any], **info: Any) -> RecordStore:
    with _without_collector():
        found = read(**arguments)
        stamps = [[file, _quick_stamp(Path(file))] for file in found.opened]  # whose sizes the columns hold
        return from_annotations(found, opened=stamps, **info)


@contextmanager
def _without_collector() -> Iterator[None]:
    """The garbage collector walks over millions of new objects again and again: 40 % of the time, for no garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _fresh(place: Path, files: list[Path]) -> RecordStore | None:
    """The saved store if it was made from these files as they are now."""
    try:
        store = open_store(place)
        sources, opened = store.info["sources"], store.info["opened"]
        if any(_quick_stamp(Path(file)) != stat for file, stat in opened):
            return None
    except Exception as error:  # not there, of an older version, or damaged in one of many ways
        logger.debug("%s is not used: %s", place, error)
        return None
    quick = [_quick_stamp(file) for file in files]
    if [source["stat"] for source in sources] == quick:
        return store
    if [source["sha256"] for source in sources] != [sha256_of(file) for file in files]:
        return None
    # Touched or copied, not changed: remember the new times.
    store.info["sources"] = [{**source, "stat": stat} for source, stat in zip(sources, quick, strict=True)]
    try:
        store.save(place)
    except OSError:
        pass  # it is only slower next time
    return store


def _quick_stamp(file: Path) -> list[int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _stamp(file: Path) -> dict[str, Any]:
    """Taken before reading: a file that changes while it is read does not match afterwards."""
    return {"name": file.name, "stat": _quick_stamp(file), "sha256": sha256_of(file)}
